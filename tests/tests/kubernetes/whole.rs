//! A workload's profile of the whole cluster (`--k8s`): from outside through ports that the API server forwards, as who may no
//! more than is needed, and from inside by the agents' addresses and by the name of a service.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use pyagent_tests::cluster::agent::{AgentPod, PORT, functions, label_values};
use pyagent_tests::cluster::{Cluster, NODE, PYAGENT_IMAGE, Pod};
use pyagent_tests::pyagent::binary;
use serde_json::{Value, json};

const NAMESPACE: &str = "whole";

fn only(value: &str) -> BTreeSet<String> {
    BTreeSet::from([value.to_owned()])
}

/// What a verb prints; an error: what it says.
fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let [printed, told] =
        [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
    if output.status.success() {
        Ok(printed)
    } else {
        Err(told)
    }
}

/// Lines of JSON that are samples.
fn samples(text: &str) -> Vec<Value> {
    let values = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let values = values.filter(|value: &Value| !value["stack"].is_null());
    values.collect()
}

/// The samples of the Deployment `shop`, when there are any.
fn pulled(cluster: &Cluster, arguments: &[&str]) -> Vec<Value> {
    cluster.wait_until("samples of the workload", || {
        let mut pull = cluster.command(binary());
        pull.args([
            "pull",
            "--k8s",
            "-n",
            NAMESPACE,
            "deploy/shop",
            "--format",
            "jsonl",
            "-o",
            "-",
        ]);
        match said(pull.args(arguments)) {
            Ok(text) => Some(samples(&text)),
            // An agent is ready before it knows all processes, and windows close each ten seconds.
            Err(error) if error.contains("no agent has samples") => None,
            Err(error) => panic!("{pull:?}: {error}"),
        }
    })
}

fn check(samples: &[Value], shop: &Pod) {
    assert!(!samples.is_empty());
    assert_eq!(label_values(samples, "k8s_pod_uid"), only(shop.uid()));
    assert_eq!(label_values(samples, "k8s_pod_name"), only(shop.name()));
    assert_eq!(label_values(samples, "k8s_deployment_name"), only("shop"));
    assert_eq!(label_values(samples, "k8s_node_name"), only(NODE));
    assert!(
        samples
            .iter()
            .any(|sample| functions(sample).contains(&"spin"))
    );
}

/// An account of the test's namespace with these rules in a namespace, and its token.
fn account(cluster: &Cluster, name: &str, rules: &[(&str, Value)]) -> String {
    cluster.kubectl(&["--namespace", NAMESPACE, "create", "serviceaccount", name]);
    for (namespace, rules) in rules {
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": name, "namespace": namespace}, "rules": rules,
        });
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
        });
        cluster.apply(&role.to_string());
        cluster.apply(&binding.to_string());
    }
    let token = cluster.kubectl(&["--namespace", NAMESPACE, "create", "token", name]);
    token.trim().to_owned()
}

fn lists_pods() -> Value {
    json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}])
}

#[test]
fn from_outside_ports_are_forwarded_for_who_may_that() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/pyagent.yaml");
    let manifest = path.display().to_string();
    cluster.kubectl(&["apply", "--filename", &manifest]);
    cluster.wait_rolled_out("pyagent", "daemonset/pyagent");
    cluster.make_namespace(NAMESPACE);
    let shop = cluster.deploy_program(NAMESPACE, "shop");

    check(&pulled(cluster, &["--duration", "2s"]), &shop);
    check(&pulled(cluster, &["--last", "5m"]), &shop);
    let by_label = pulled(cluster, &["--last", "5m", "-l", "app=shop"]);
    check(&by_label, &shop);

    let verb = |arguments: &[&str]| {
        let mut command = cluster.command(binary());
        command.args(arguments);
        said(&mut command).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    };
    let top = verb(&[
        "top",
        "--k8s",
        "-n",
        NAMESPACE,
        "deploy/shop",
        "--json",
        "-d",
        "2s",
    ]);
    assert!(top.contains("spin"), "{top}");
    let by = ["--last", "5m", "--by", "k8s_pod_name"];
    let report = verb(
        &[
            &["report", "--k8s", "-n", NAMESPACE, "deploy/shop"],
            &by[..],
        ]
        .concat(),
    );
    assert!(report.contains(shop.name()), "{report}");

    // As somebody who may list pods, and then forward ports too.
    let token = account(
        cluster,
        "viewer",
        &[(NAMESPACE, lists_pods()), ("pyagent", lists_pods())],
    );
    let admin = cluster.json(&["config", "view", "--raw", "--output", "json"]);
    let mut config = admin;
    config["users"][0]["user"] = json!({"token": token});
    let file = cluster.folder("whole").join("viewer.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let kubeconfig = file.display().to_string();
    let pull = || {
        let mut pull = cluster.command(binary());
        pull.args([
            "pull",
            "--k8s",
            "-n",
            NAMESPACE,
            "deploy/shop",
            "--duration",
            "1s",
        ]);
        pull.args([
            "--k8s-agents-namespace",
            "pyagent",
            "--kubeconfig",
            &kubeconfig,
        ]);
        said(pull.args(["--format", "jsonl", "-o", "-"]))
    };
    let refused = pull().unwrap_err();
    assert!(refused.contains("pods/portforward"), "{refused}");
    let forwards = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]},
    ]);
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "viewer", "namespace": "pyagent"}, "rules": forwards,
    });
    cluster.apply(&role.to_string());
    let samples_of_viewer = cluster.wait_until("the role counts", || pull().ok());
    check(&samples(&samples_of_viewer), &shop);
    cluster.kubectl(&["delete", "namespace", NAMESPACE]);
    cluster.kubectl(&["delete", "--filename", &manifest]);
}

/// A pod that runs pyagent once, and what it prints.
fn inside(cluster: &Cluster, name: &str, arguments: &[&str], agent: &Pod) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "inside"},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": "viewer",
            // There is no DNS here: the kubelet writes it into /etc/hosts.
            "hostAliases": [{"ip": agent.address(), "hostnames": ["agents.inside.svc"]}],
            "containers": [{
                "name": "pull", "image": PYAGENT_IMAGE, "imagePullPolicy": "Never", "args": arguments,
            }],
        },
    });
    cluster.apply(&pod.to_string());
    let get = ["--namespace", "inside", "get", "pod", name];
    let phase = cluster.wait_until("the pod has ended", || {
        let pod = cluster.json(&get);
        let phase = pod["status"]["phase"].as_str()?.to_owned();
        ["Succeeded", "Failed"]
            .contains(&phase.as_str())
            .then_some(phase)
    });
    let logs = cluster.kubectl(&["--namespace", "inside", "logs", name]);
    assert_eq!(phase, "Succeeded", "{logs}");
    logs
}

#[test]
fn from_inside_agents_are_asked_at_their_addresses_and_by_a_services_name() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    cluster.make_namespace("inside");
    let shop = cluster.deploy_program("inside", "shop");
    let agent = AgentPod {
        namespace: "inside",
        capabilities: &["BPF", "PERFMON", "SYS_PTRACE"],
        arguments: &["--all-python"],
        seccomp: "RuntimeDefault",
        host_pid: true,
    };
    cluster.apply(&agent.daemonset());
    cluster.wait_rolled_out("inside", "daemonset/pyagent");
    let agent = cluster.pod("inside", "app=pyagent");
    // Its processes are known before others ask.
    assert!(
        !cluster
            .pull(&format!("{}:{PORT}", agent.address()), &shop, &[])
            .is_empty()
    );
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "viewer", "namespace": "inside"}, "rules": lists_pods(),
    });
    cluster.apply(&role.to_string());
    cluster.kubectl(&[
        "--namespace",
        "inside",
        "create",
        "serviceaccount",
        "viewer",
    ]);
    let bind = [
        "create",
        "rolebinding",
        "viewer",
        "--role=viewer",
        "--serviceaccount=inside:viewer",
    ];
    cluster.kubectl(&[&["--namespace", "inside"], &bind[..]].concat());
    // This agent asks no API server, so it knows pods by their UIDs alone.
    let label = format!("k8s_pod_uid=^{}$", shop.uid());
    let pull = [
        "pull",
        "--k8s",
        "--duration",
        "2s",
        "--format",
        "jsonl",
        "-o",
        "-",
        "--label",
        &label,
    ];
    let by_address = [
        "-A",
        "--k8s-agents-namespace",
        "inside",
        "--k8s-agents-selector",
        "app=pyagent",
    ];
    let by_service = ["-A", "--k8s-service", "http://agents.inside.svc:7099"];
    for (name, how) in [("address", &by_address[..]), ("service", &by_service)] {
        let logs = inside(cluster, name, &[&pull[..], how].concat(), &agent);
        let samples = samples(&logs);
        assert_eq!(
            label_values(&samples, "k8s_pod_uid"),
            only(shop.uid()),
            "{logs}"
        );
    }
    cluster.kubectl(&["delete", "namespace", "inside"]);
}
