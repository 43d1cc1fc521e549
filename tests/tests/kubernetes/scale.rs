//! Two hundred busy Python processes in fifty pods, an agent with the chart's own limits, and then with a tenth of a CPU: it is not
//! restarted, stays below its memory, and says what it lost.
//!
//! For a minute each; `PYAGENT_SCALE_SECONDS` says another time.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use pyagent_tests::cluster::{Cluster, PYTHON_IMAGE};
use pyagent_tests::pyagent::binary;
use serde_json::{Value, json};

use super::chart::{Values, chart};

/// Where the agent is.
const NAMESPACE: &str = "scale";

/// Where the programs are.
const PROGRAMS: &str = "crowd";

const N_PODS: usize = 50;
const N_PROCESSES: usize = 200;

/// What the chart says, with profiles on the pod's address.
const DEFAULT: &str = "
image: {pullPolicy: Never}
insecure: true
";

/// With a tenth of a CPU.
const TENTH: &str = "
image: {pullPolicy: Never}
insecure: true
resources: {limits: {cpu: 100m}}
";

/// Four processes that use the CPU, each by lines of its own.
const CODE: &str = "\
import os, time
n = 1
while n < 4 and os.fork(): n += 1
def spin(depth):
    end = time.time() + 1
    while time.time() < end:
        if depth: spin(depth - 1)
while True: spin(20)
";

/// Figures of `/metrics`, by name and labels.
fn metrics(cluster: &Cluster, address: &str) -> BTreeMap<String, f64> {
    let mut curl = cluster.command("curl");
    let output = curl.args([
        "-sS",
        "--max-time",
        "20",
        &format!("http://{address}:7098/metrics"),
    ]);
    let output = output.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

fn helm(cluster: &Cluster, verb: &str, values: &str) {
    let values = Values::new(values);
    let mut helm = cluster.helm();
    helm.args(["--namespace", NAMESPACE, verb, NAMESPACE])
        .arg(chart())
        .args(["--values", &values.path(), "--wait", "--timeout=3m"]);
    let output = helm.output().unwrap();
    assert!(output.status.success(), "{output:?}\n{}", cluster.state());
    cluster.wait_rolled_out(NAMESPACE, "daemonset/scale-pyagent");
}

fn start_programs(cluster: &Cluster) {
    cluster.make_namespace(PROGRAMS);
    let python = cluster.python.executable.display().to_string();
    let labels = json!({"app": "crowd"});
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "crowd", "namespace": PROGRAMS},
        "spec": {
            "replicas": N_PODS,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main",
                    "image": PYTHON_IMAGE,
                    "imagePullPolicy": "Never",
                    "command": [python, "-I", "-S", "-B", "-c", CODE],
                    "resources": {"requests": {"cpu": "1m"}},
                }],
            }},
        },
    });
    cluster.apply(&deployment.to_string());
    cluster.wait_rolled_out(PROGRAMS, "deployment/crowd");
}

/// Watches the agent for a while. Returns its largest use of memory, in bytes, and its figures at the begin and the end.
fn watch(cluster: &Cluster, what: &str) {
    let seconds = env::var("PYAGENT_SCALE_SECONDS").ok();
    let seconds = seconds.map_or(60, |seconds| seconds.parse().unwrap());
    let agent = cluster.pod(NAMESPACE, "app.kubernetes.io/name=pyagent");
    let address = agent.address().to_owned();
    let profiled = "pyagent_processes{state=\"profiled\"}";
    cluster.wait_until("all processes are profiled", || {
        let figures = metrics(cluster, &address);
        (figures.get(profiled).copied().unwrap_or(0.0) >= N_PROCESSES as f64).then_some(())
    });
    let before = metrics(cluster, &address);
    let (begun, mut largest, mut n_unanswered) = (Instant::now(), 0.0_f64, 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        let figures = metrics(cluster, &address);
        match figures.get("pyagent_memory_used_bytes") {
            Some(used) => largest = largest.max(*used),
            None => n_unanswered += 1,
        }
        thread::sleep(Duration::from_secs(1));
    }
    let after = cluster.wait_until("the agent answers", || {
        let figures = metrics(cluster, &address);
        figures
            .contains_key("pyagent_samples_received_total")
            .then_some(figures)
    });
    let grown = |name: &str| {
        let of = |figures: &BTreeMap<String, f64>| {
            figures
                .get(&format!("pyagent_{name}_total"))
                .copied()
                .unwrap_or(f64::NAN)
        };
        of(&after) - of(&before)
    };
    let limit = after["pyagent_memory_limit_bytes"];
    let (begun, received) = (grown("samples"), grown("samples_received"));
    let lost = grown("lost_full") + grown("lost_nested");
    let mut said = format!(
        "{what}, {seconds} s: {:.0} MiB of {:.0} MiB at most, {begun} samples begun, {received} received, {lost} lost",
        largest / f64::from(1 << 20),
        limit / f64::from(1 << 20),
    );
    for name in [
        "stacks_cut",
        "samples_shed",
        "shedding_steps",
        "windows_lost",
    ] {
        said = format!("{said}, {name} {}", grown(name));
    }
    eprintln!("{said}, unanswered {n_unanswered}");
    assert!(largest > 0.0 && largest < limit * 0.8, "{said}");
    // What was begun has come, or is counted; some are under way.
    assert!(
        (begun - received - lost).abs() <= begun * 0.05 + 2000.0,
        "{said}"
    );
    let pod = cluster.pod(NAMESPACE, "app.kubernetes.io/name=pyagent");
    assert_eq!(pod.name(), agent.name());
    let status = &pod.0["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 0, "{said}: {status:#}");
}

/// Every sample that was recorded has the names of its own pod.
fn check_names(cluster: &Cluster) {
    let agent = cluster.pod(NAMESPACE, "app.kubernetes.io/name=pyagent");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("it.jsonl");
    let mut pull = cluster.command(binary());
    pull.args([
        "pull",
        &format!("{}:7099", agent.address()),
        "--last",
        "1m",
        "-o",
    ])
    .arg(&file)
    .args(["--namespace", PROGRAMS]);
    let output = pull.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let pods = cluster.json(&["--namespace", PROGRAMS, "get", "pods"]);
    let uids: BTreeMap<&str, &str> = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| &pod["metadata"])
        .map(|it| (it["name"].as_str().unwrap(), it["uid"].as_str().unwrap()))
        .collect();
    let text = fs::read_to_string(file).unwrap();
    let mut seen = BTreeSet::new();
    for line in text.lines().skip(1) {
        let sample: Value = serde_json::from_str(line).unwrap();
        let labels = &sample["labels"];
        let name = labels["k8s_pod_name"].as_str().unwrap();
        assert_eq!(labels["k8s_pod_uid"], uids[name], "{sample}");
        assert_eq!(labels["k8s_deployment_name"], "crowd", "{sample}");
        seen.insert(name.to_owned());
    }
    assert_eq!(seen.len(), N_PODS);
}

#[test]
fn two_hundred_processes_in_fifty_pods_are_profiled_within_the_limits() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    cluster.make_namespace(NAMESPACE);
    helm(cluster, "install", DEFAULT);
    start_programs(cluster);
    watch(cluster, "no CPU limit");
    check_names(cluster);
    helm(cluster, "upgrade", TENTH);
    watch(cluster, "100m of CPU");
    let delete = ["delete", "namespace", PROGRAMS, "--wait=false"];
    cluster.kubectl(&delete);
}
