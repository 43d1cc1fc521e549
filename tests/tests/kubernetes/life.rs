//! Pods that come and go: one of a second or two, one that crashes again and again, fifty at once; an agent that is killed, and an
//! API server that is away. What is asked for is what the agent has recorded: every sample has the names of its pod.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use pyagent_tests::cluster::{Cluster, PYTHON_IMAGE, Pod};
use pyagent_tests::containers::SCRIPT;
use pyagent_tests::pyagent::binary;
use serde_json::{Value, json};

use super::chart::{Values, chart};

/// Where the agent is.
const NAMESPACE: &str = "recorded";

/// Windows are short, so that a test need not wait for long.
const VALUES: &str = "
image: {pullPolicy: Never}
insecure: true
types: [cpu]
rate: 99
extraArgs: [--window, 2s]
";

/// Labels that a sample of a pod has to have.
const LABELS: [&str; 4] = [
    "k8s_namespace_name",
    "k8s_pod_name",
    "k8s_pod_uid",
    "k8s_container_name",
];

/// Installs the agent, once for all tests. Returns its address.
fn agent(cluster: &Cluster) -> String {
    let get = ["get", "namespace", NAMESPACE];
    if cluster.try_kubectl(&get).is_err() {
        cluster.make_namespace(NAMESPACE);
        let values = Values::new(VALUES);
        let mut helm = cluster.helm();
        helm.args(["--namespace", NAMESPACE, "install", NAMESPACE])
            .arg(chart())
            .args(["--values", &values.path(), "--wait", "--timeout=2m"]);
        let output = helm.output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", cluster.state());
    }
    cluster.wait_rolled_out(NAMESPACE, "daemonset/recorded-pyagent");
    let agent = cluster.pod(NAMESPACE, "app.kubernetes.io/name=pyagent");
    format!("{}:7099", agent.address())
}

/// A container that runs Python code.
fn container(cluster: &Cluster, name: &str, code: &str) -> Value {
    let python = cluster.python.executable.display().to_string();
    json!({
        "name": name,
        "image": PYTHON_IMAGE,
        "imagePullPolicy": "Never",
        "command": [python, "-I", "-S", "-B", "-c", code],
        "resources": {"requests": {"cpu": "1m"}, "limits": {"cpu": "200m"}},
    })
}

/// What a pod needs beside its containers.
fn spec(restarts: &str, container: Value) -> Value {
    json!({
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 0,
        "restartPolicy": restarts,
        "containers": [container],
    })
}

/// Python code that uses the CPU for so many seconds.
fn busy(seconds: f64) -> String {
    format!("import time\nend = time.time() + {seconds}\nwhile time.time() < end: pass")
}

/// What was recorded in the last minutes, of pods in one namespace or of which nothing is known; `None`: nothing.
fn recorded(cluster: &Cluster, address: &str, namespace: &str) -> Option<Vec<Value>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("it.jsonl");
    let mut pull = cluster.command(binary());
    pull.args(["pull", address, "--last", "30m", "--force", "-o"])
        .arg(&file);
    let output = pull.output().unwrap();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{said}");
        return None;
    }
    let text = fs::read_to_string(file).unwrap();
    let samples = text.lines().skip(1);
    let samples = samples.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let is_meant = |sample: &Value| {
        let of = label(sample, "k8s_namespace_name");
        of == namespace || of.is_empty() && !label(sample, "k8s_pod_uid").is_empty()
    };
    Some(samples.filter(is_meant).collect())
}

fn label<'a>(sample: &'a Value, name: &str) -> &'a str {
    sample["labels"][name].as_str().unwrap_or_default()
}

/// Samples by the name of their pod; every one has all labels.
fn by_pod(samples: &[Value]) -> BTreeMap<String, Vec<&Value>> {
    let mut by_pod: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for sample in samples {
        for name in LABELS {
            assert_ne!(label(sample, name), "", "{name}: {sample}");
        }
        let pod = label(sample, "k8s_pod_name").to_owned();
        by_pod.entry(pod).or_default().push(sample);
    }
    by_pod
}

/// Pods of a namespace, as kubectl says them.
fn pods(cluster: &Cluster, namespace: &str) -> Vec<Pod> {
    let pods = cluster.json(&["--namespace", namespace, "get", "pods"]);
    let pods = pods["items"].as_array().unwrap().iter();
    pods.map(|pod| Pod(pod.clone())).collect()
}

#[test]
fn fifty_pods_that_begin_at_once_have_their_own_names() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let address = agent(cluster);
    let namespace = "many";
    cluster.make_namespace(namespace);
    let labels = json!({"app": "many"});
    let container = container(cluster, "many-main", &busy(600.0));
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "many", "namespace": namespace},
        "spec": {
            "replicas": 50,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec("Always", container)},
        },
    });
    cluster.apply(&deployment.to_string());
    cluster.wait_rolled_out(namespace, "deployment/many");
    let expected: BTreeMap<String, String> = pods(cluster, namespace)
        .iter()
        .map(|pod| (pod.name().to_owned(), pod.uid().to_owned()))
        .collect();
    assert_eq!(expected.len(), 50);
    let samples = cluster.wait_until("samples of all pods", || {
        let samples = recorded(cluster, &address, namespace)?;
        let n_pods = by_pod(&samples).len();
        (n_pods >= 50).then_some(samples)
    });
    for (name, samples) in by_pod(&samples) {
        let uid = expected
            .get(&name)
            .unwrap_or_else(|| panic!("there is no {name}"));
        for sample in samples {
            assert_eq!(label(sample, "k8s_pod_uid"), uid);
            assert_eq!(label(sample, "k8s_namespace_name"), namespace);
            assert_eq!(label(sample, "k8s_container_name"), "many-main");
            assert_eq!(label(sample, "k8s_deployment_name"), "many");
        }
    }
    cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

#[test]
fn pods_of_a_moment_and_pods_that_crash_keep_their_names() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let address = agent(cluster);
    let namespace = "brief";
    cluster.make_namespace(namespace);
    let metadata = |name: &str| json!({"name": name, "namespace": namespace});
    let brief = spec("Never", container(cluster, "brief-main", &busy(2.0)));
    let cron = json!({
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": metadata("tick"),
        "spec": {
            "schedule": "* * * * *",
            "jobTemplate": {"spec": {"template": {"spec": brief}}},
        },
    });
    let code = format!("{}\nraise SystemExit('crash')", busy(1.5));
    let crashing = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata("crash"),
        "spec": spec("Always", container(cluster, "crash-main", &code)),
    });
    cluster.apply(&cron.to_string());
    cluster.apply(&crashing.to_string());
    let samples = cluster.wait_until("both have run", || {
        let samples = recorded(cluster, &address, namespace)?;
        let is_there = |name: &str, value: &str| samples.iter().any(|it| label(it, name) == value);
        let containers: BTreeSet<&str> = samples
            .iter()
            .filter(|it| label(it, "k8s_pod_name") == "crash")
            .map(|it| label(it, "container_id"))
            .collect();
        let have_run = is_there("k8s_cronjob_name", "tick") && containers.len() >= 2;
        have_run.then_some(samples)
    });
    for (name, samples) in by_pod(&samples) {
        let (container, cronjob) = match name.as_str() {
            "crash" => ("crash-main", ""),
            _ => ("brief-main", "tick"),
        };
        for sample in samples {
            assert_eq!(label(sample, "k8s_container_name"), container);
            assert_eq!(label(sample, "k8s_cronjob_name"), cronjob);
            let is_of_job = label(sample, "k8s_job_name").starts_with("tick-");
            assert_eq!(is_of_job, cronjob == "tick");
            assert_eq!(label(sample, "k8s_namespace_name"), namespace);
        }
    }
    cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}

/// Where it records, on the node.
const RECORDED: &str = "/var/lib/pyagent";

/// Numbers of the windows that are recorded on the node, and how many samples each has; none where nothing is recorded yet.
fn windows(cluster: &Cluster, folder: &str) -> BTreeMap<i64, i64> {
    let path = cluster.own_folder(folder).join("pyagent.db");
    if !path.exists() {
        return BTreeMap::new();
    }
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = rusqlite::Connection::open_with_flags(path, flags).unwrap();
    let sql = "SELECT v1_windows.window, total(value) FROM v1_windows
        LEFT JOIN v1_values ON v1_values.window = v1_windows.window GROUP BY 1";
    let mut statement = db.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, f64>(1)? as i64)));
    rows.unwrap().map(Result::unwrap).collect()
}

/// Waits until there are more windows than these.
pub(super) fn wait_for_windows(
    cluster: &Cluster,
    folder: &str,
    before: &BTreeMap<i64, i64>,
) -> BTreeMap<i64, i64> {
    cluster.wait_until("windows are recorded", || {
        let now = windows(cluster, folder);
        let n_new = now.keys().filter(|it| !before.contains_key(it)).count();
        (n_new >= 3).then_some(now)
    })
}

#[test]
fn an_agent_that_is_killed_comes_back_with_every_window_that_it_had() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    agent(cluster);
    let shop = cluster.deploy_program("default", "killed");
    let before = wait_for_windows(cluster, RECORDED, &BTreeMap::new());
    let agent_pod = cluster.pod(NAMESPACE, "app.kubernetes.io/name=pyagent");
    assert!(cluster.kill_container(agent_pod.container_id()));
    cluster.wait_until("it was started again", || {
        let pod = cluster.pod(NAMESPACE, "app.kubernetes.io/name=pyagent");
        let status = &pod.0["status"]["containerStatuses"][0];
        (status["restartCount"] == 1 && status["ready"] == true).then_some(())
    });
    let after = wait_for_windows(cluster, RECORDED, &before);
    for (window, n_samples) in &before {
        assert_eq!(after.get(window), Some(n_samples), "window {window}");
    }
    // A new DaemonSet's pod takes it over, too.
    let restart = ["--namespace", NAMESPACE, "rollout", "restart"];
    cluster.kubectl(&[&restart[..], &["daemonset/recorded-pyagent"]].concat());
    let address = agent(cluster);
    let replaced = wait_for_windows(cluster, RECORDED, &after);
    for (window, n_samples) in &after {
        assert_eq!(replaced.get(window), Some(n_samples), "window {window}");
    }
    // The old one's windows are served by the new one.
    let samples = recorded(cluster, &address, "default").unwrap();
    let of_shop = samples
        .iter()
        .filter(|it| label(it, "k8s_pod_uid") == shop.uid());
    assert!(of_shop.count() > 0);
    cluster.kubectl(&["delete", "deployment", "killed", "--wait=false"]);
}

#[test]
fn while_the_api_server_is_away_names_stay_and_come_afterwards() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let address = agent(cluster);
    let shop = cluster.deploy_program("default", "away");
    assert!(!cluster.pull(&address, &shop, &[]).is_empty());
    let health = address.replace(":7099", ":7098");
    let ready = || {
        let mut curl = cluster.command("curl");
        let output = curl
            .args(["-sS", &format!("http://{health}/readyz")])
            .output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    };
    cluster.without_api(|| {
        let begun = Instant::now();
        let mut said = String::new();
        while begun.elapsed() < Duration::from_secs(30) {
            said = ready();
            thread::sleep(Duration::from_secs(1));
        }
        assert!(said.contains("Kubernetes is not followed"), "{said}");
        let samples = cluster.pull(&address, &shop, &[]);
        for sample in &samples {
            assert_eq!(label(sample, "k8s_pod_name"), shop.name());
            assert_eq!(label(sample, "k8s_deployment_name"), "away");
        }
    });
    let late = cluster.deploy_program("default", "late");
    cluster.wait_until("the new pod has its names", || {
        let samples = cluster.pull(&address, &late, &[]);
        let named = samples
            .iter()
            .all(|it| label(it, "k8s_pod_name") == late.name());
        named.then_some(())
    });
    cluster.wait_until("it is ready again", || {
        (ready().trim() == "ready").then_some(())
    });
    let delete = ["delete", "deployment", "away", "late", "--wait=false"];
    cluster.kubectl(&delete);
}

#[test]
fn a_program_without_any_rights_is_profiled() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let address = agent(cluster);
    let namespace = "restricted";
    cluster.make_namespace(namespace);
    let enforce = "pod-security.kubernetes.io/enforce=restricted";
    cluster.kubectl(&["label", "namespace", namespace, enforce]);
    let mut container = container(cluster, "main", "");
    let python = cluster.python.executable.display().to_string();
    container["command"] = json!([python, "-I", "-S", "-B", format!("/{SCRIPT}")]);
    container["securityContext"] = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": 65_534,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "humble", "namespace": namespace, "labels": {"app": "humble"}},
        "spec": spec("Never", container),
    });
    cluster.apply(&pod.to_string());
    let wait = [
        "--namespace",
        namespace,
        "wait",
        "--for=condition=Ready",
        "--timeout=1m",
    ];
    cluster.kubectl(&[&wait[..], &["pod/humble"]].concat());
    let pod = cluster.pod(namespace, "app=humble");
    let samples = cluster.pull(&address, &pod, &[]);
    let spins = |sample: &Value| pyagent_tests::cluster::agent::functions(sample).contains(&"spin");
    assert!(samples.iter().any(spins), "{samples:#?}");
    cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
}
