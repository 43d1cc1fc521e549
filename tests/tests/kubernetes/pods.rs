//! What the agent knows of pods by the API server, compared with what kubectl says; and pods that do not want to be profiled.

use std::collections::BTreeSet;

use pyagent_tests::cluster::agent::{AgentPod, PORT, functions, label_values};
use pyagent_tests::cluster::{Cluster, NODE, PYTHON_IMAGE, Pod};
use pyagent_tests::containers::{SCRIPT, prepared_root};
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::pyagent::binary;
use serde_json::{Value, json};

/// What docs/kubernetes.md says is the least.
const CAPABILITIES: [&str; 3] = ["BPF", "PERFMON", "SYS_PTRACE"];

/// Labels that tell what a pod belongs to.
const WORKLOADS: [&str; 6] = [
    "k8s_deployment_name",
    "k8s_replicaset_name",
    "k8s_statefulset_name",
    "k8s_daemonset_name",
    "k8s_cronjob_name",
    "k8s_job_name",
];

/// An agent with the rights that it says it needs, and no others. Returns its address.
fn start_agent(cluster: &Cluster, namespace: &'static str, arguments: &[&str]) -> String {
    let name = format!("pyagent-{namespace}");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "pyagent", "namespace": namespace}});
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
        "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
            {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["get"]},
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "pyagent", "namespace": namespace}],
    });
    for manifest in [account, role, binding] {
        cluster.apply(&manifest.to_string());
    }
    let agent = AgentPod {
        namespace,
        capabilities: &CAPABILITIES,
        arguments,
        seccomp: "RuntimeDefault",
        host_pid: true,
    };
    let mut daemonset: Value = serde_json::from_str(&agent.daemonset()).unwrap();
    let pod = &mut daemonset["spec"]["template"]["spec"];
    pod["serviceAccountName"] = json!("pyagent");
    pod["automountServiceAccountToken"] = json!(true);
    let node =
        json!({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}});
    pod["containers"][0]["env"]
        .as_array_mut()
        .unwrap()
        .push(node);
    cluster.apply(&daemonset.to_string());
    cluster.wait_rolled_out(namespace, "daemonset/pyagent");
    format!("{}:{PORT}", cluster.pod(namespace, "app=pyagent").address())
}

/// A template of pods that use the CPU.
pub(super) fn template(cluster: &Cluster, name: &str, restarts: &str) -> Value {
    let python = cluster.python.executable.display().to_string();
    let command = [&*python, "-I", "-S", "-B", &format!("/{SCRIPT}")].map(str::to_owned);
    json!({
        "metadata": {"labels": {"app": name}},
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": restarts,
            "containers": [{
                "name": format!("{name}-main"),
                "image": PYTHON_IMAGE,
                "imagePullPolicy": "Never",
                "command": command,
                "resources": {"requests": {"cpu": "10m"}, "limits": {"cpu": "100m"}},
            }],
        },
    })
}

/// The pod with this label, when it runs.
pub(super) fn running(cluster: &Cluster, namespace: &str, name: &str) -> Pod {
    let selector = format!("app={name}");
    cluster.wait_until("the pod runs", || {
        let get = [
            "--namespace",
            namespace,
            "get",
            "pods",
            "--selector",
            &selector,
        ];
        let pods = cluster.json(&get);
        let pod = pods["items"].as_array()?.first()?.clone();
        (pod["status"]["phase"] == "Running").then_some(Pod(pod))
    })
}

/// What `pyagent pull` says: whether there is a process that these flags mean.
fn is_profiled(cluster: &Cluster, address: &str, flags: &[&str]) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("it.pb.gz");
    let mut pull = cluster.command(binary());
    pull.args(["pull", address, "--duration", "200ms", "-o"])
        .arg(file)
        .args(flags);
    let output = pull.output().unwrap();
    match output.status.code() {
        Some(0) => true,
        Some(4) => false,
        _ => panic!("{}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn every_kind_of_workload_is_told_by_its_names() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let namespace = "names";
    cluster.make_namespace(namespace);
    let apps = |kind: &str, name: &str| {
        let labels = json!({"matchLabels": {"app": name}});
        let template = template(cluster, name, "Always");
        let mut spec = json!({"selector": labels, "template": template});
        if kind == "StatefulSet" {
            spec["serviceName"] = json!(name);
        }
        let metadata = json!({"name": name, "namespace": namespace});
        json!({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec})
    };
    let job = |name: &str| json!({"template": template(cluster, name, "Never")});
    let batch = |kind: &str, name: &str, spec: Value| {
        let metadata = json!({"name": name, "namespace": namespace});
        json!({"apiVersion": "batch/v1", "kind": kind, "metadata": metadata, "spec": spec})
    };
    let cron = json!({"schedule": "0 0 1 1 *", "jobTemplate": {"spec": job("nightly")}});
    for manifest in [
        apps("Deployment", "web"),
        apps("StatefulSet", "db"),
        apps("DaemonSet", "log"),
        batch("Job", "once", job("once")),
        batch("CronJob", "nightly", cron),
    ] {
        cluster.apply(&manifest.to_string());
    }
    let now = ["create", "job", "nightly-now", "--from=cronjob/nightly"];
    cluster.kubectl(&[&["--namespace", namespace][..], &now[..]].concat());
    let mut alone = template(cluster, "alone", "Never");
    alone["apiVersion"] = json!("v1");
    alone["kind"] = json!("Pod");
    alone["metadata"]["name"] = json!("alone");
    alone["metadata"]["namespace"] = json!(namespace);
    cluster.apply(&alone.to_string());

    let flags = ["--namespace", namespace, "--k8s-label", "app"];
    let address = start_agent(cluster, namespace, &flags);
    for (name, service, expected) in [
        ("web", "web", &[("k8s_deployment_name", "web")][..]),
        ("db", "db", &[("k8s_statefulset_name", "db")]),
        ("log", "log", &[("k8s_daemonset_name", "log")]),
        ("once", "once", &[("k8s_job_name", "once")]),
        (
            "nightly",
            "nightly",
            &[
                ("k8s_cronjob_name", "nightly"),
                ("k8s_job_name", "nightly-now"),
            ],
        ),
        ("alone", "alone", &[]),
    ] {
        let pod = running(cluster, namespace, name);
        let samples = cluster.pull(&address, &pod, &[]);
        let only = |label: &str, value: &str| {
            let values = label_values(&samples, label);
            assert_eq!(
                values,
                BTreeSet::from([value.to_owned()]),
                "{name}: {label}"
            );
        };
        only("k8s_namespace_name", namespace);
        only("k8s_pod_name", pod.name());
        only("k8s_pod_uid", pod.uid());
        only("k8s_node_name", NODE);
        only("k8s_container_name", &format!("{name}-main"));
        only("container_id", pod.container_id());
        only("service_name", service);
        only("service_namespace", namespace);
        only("k8s_pod_label_app", name);
        // What kubectl says that it belongs to, and its owner; and nothing else.
        let owner = pod.0["metadata"]["ownerReferences"][0]["name"].as_str();
        for label in WORKLOADS {
            let mut known = expected.iter();
            let known = known.find(|(other, _)| *other == label).map(|(_, it)| *it);
            let replica_set = owner.filter(|_| label == "k8s_replicaset_name" && name == "web");
            only(label, known.or(replica_set).unwrap_or_default());
        }
        assert!(
            samples
                .iter()
                .any(|sample| functions(sample).contains(&"spin"))
        );
        // By kubectl's words, also of all at once.
        let by_label = format!("app={name}");
        assert!(is_profiled(
            cluster,
            &address,
            &["-n", namespace, "-l", &by_label]
        ));
    }
    let none = "app notin (web,db,log,once,nightly,alone)";
    assert!(!is_profiled(cluster, &address, &["-l", none]));
    assert!(!is_profiled(cluster, &address, &["-n", "kube-system"]));
    cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

/// Of each version that is in an image of its own or in that of the cluster, one that programs run in production.
fn cpythons() -> Vec<Interpreter> {
    let is_meant = |python: &Interpreter| {
        python.has_own_root()
            && python.has_libraries()
            && !python.is_debug()
            && !python.free_threaded
    };
    let mut found: Vec<_> = interpreters::supported()
        .into_iter()
        .filter(is_meant)
        .collect();
    found.dedup_by_key(|python| python.minor());
    found
}

#[test]
fn deployments_of_different_cpythons_are_told_apart() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let namespace = "cpythons";
    cluster.make_namespace(namespace);
    let pythons = cpythons();
    assert!(pythons.len() >= 3, "{pythons:?}");
    let name = |python: &Interpreter| format!("on-{}-{}", python.version.0, python.version.1);
    for python in &pythons {
        let image = if prepared_root(python) == prepared_root(&cluster.python) {
            PYTHON_IMAGE.to_owned()
        } else {
            let image = format!("localhost/{}:1", name(python));
            cluster.import_python(&image, python);
            image
        };
        cluster.deploy_with(namespace, &name(python), &image, python);
    }
    let address = start_agent(cluster, namespace, &["--namespace", namespace]);
    for python in &pythons {
        let name = name(python);
        cluster.wait_rolled_out(namespace, &format!("deployment/{name}"));
        let pod = cluster.pod(namespace, &format!("app={name}"));
        let samples = cluster.pull(&address, &pod, &[]);
        let (major, minor, micro) = python.version;
        for (label, expected) in [
            ("k8s_deployment_name", &*name),
            ("k8s_pod_name", pod.name()),
            ("k8s_pod_uid", pod.uid()),
            ("container_id", pod.container_id()),
            ("python_version", &format!("{major}.{minor}.{micro}")),
        ] {
            let only = BTreeSet::from([expected.to_owned()]);
            assert_eq!(label_values(&samples, label), only, "{name}: {label}");
        }
        let mut spins = samples.iter();
        assert!(
            spins.any(|sample| functions(sample).contains(&"spin")),
            "{name}"
        );
    }
    cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

#[test]
fn a_pod_begins_and_ceases_to_be_profiled_as_it_is_annotated() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let namespace = "consent";
    cluster.make_namespace(namespace);
    let shop = cluster.deploy_program(namespace, "shop");
    let address = start_agent(cluster, namespace, &["-A"]);
    let annotate = |annotation: &str| {
        let pod = [
            "--namespace",
            namespace,
            "annotate",
            "--overwrite",
            "pod",
            shop.name(),
        ];
        cluster.kubectl(&[&pod[..], &[annotation]].concat());
    };
    let wait = |what: &str, expected: bool| {
        cluster.wait_until(what, || {
            let is = is_profiled(cluster, &address, &["-n", namespace, "-l", "app=shop"]);
            (is == expected).then_some(())
        });
    };
    wait("it is profiled", true);
    annotate("pyagent.io/profile=false");
    wait("it is not profiled any more", false);
    annotate("pyagent.io/profile-");
    wait("it is profiled again", true);
    cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}
