//! deploy/collector: a real Collector names the pods of profiles by the API server (k8sattributes), and the agent does; what they
//! say is the same.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use pyagent_tests::cluster::{Cluster, NODE, Part};
use pyagent_tests::push::{prepared, resource_attributes};
use serde_json::{Value, json};

use super::chart::{Values, chart};
use super::pods::{running, template};

/// That of the example.
const NAMESPACE: &str = "pyagent";

/// Where the programs are.
const PROGRAMS: &str = "shops";

/// The example's image, and the program in it.
const IMAGE: &str = "docker.io/otel/opentelemetry-collector-contrib:0.162.0";
const PROGRAM: &str = "otelcol-contrib";

/// Where the Collector writes, on the node.
const OUTPUT: &str = "/var/lib/pyagent-collector";

/// What both can know of a pod.
const NAMES: [&str; 6] = [
    "k8s.namespace.name",
    "k8s.pod.name",
    "k8s.node.name",
    "k8s.deployment.name",
    "k8s.statefulset.name",
    "k8s.job.name",
];

/// What only an agent says that asks the API server.
const OF_AGENT: &str = "service.namespace";

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/collector");
    fs::read_to_string(path.join(name)).unwrap()
}

/// Puts `new` in the place of the only `old`.
fn replaced(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old}: {text}");
    text.replace(old, new)
}

/// Starts the example's Collector, which writes to a file in place of its log. Returns its address and the file.
fn start_collector(cluster: &Cluster, program: &Path) -> (String, PathBuf) {
    let folder = cluster.folder("collector");
    fs::copy(program, folder.join(PROGRAM)).unwrap();
    let part = Part {
        folder: &folder,
        names: &[PROGRAM],
    };
    cluster.import_folders(IMAGE, &[], &[part]);
    let output = cluster.own_folder(OUTPUT);
    fs::create_dir_all(&output).unwrap();
    fs::set_permissions(&output, fs::Permissions::from_mode(0o777)).unwrap();

    let text = example("collector.yaml");
    // With a bound on the size it writes at once.
    let file = "file: {path: /out/profiles.json, rotation: {max_megabytes: 1000}}";
    let text = replaced(&text, "debug: {}", file);
    let text = replaced(&text, "exporters: [debug]", "exporters: [file]");
    let volume = format!("volumes:\n        - {{name: out, hostPath: {{path: {OUTPUT}}}}}\n");
    let text = replaced(&text, "volumes:\n", &volume);
    let mount = "volumeMounts:\n            - {name: out, mountPath: /out}\n";
    let text = replaced(&text, "volumeMounts:\n", mount);
    cluster.apply(&text);
    cluster.wait_rolled_out(NAMESPACE, "deployment/collector");
    let pod = cluster.pod(NAMESPACE, "app.kubernetes.io/name=collector");
    (pod.address().to_owned(), output.join("profiles.json"))
}

/// Has the chart send to the Collector, by the example's values and these.
fn helm(cluster: &Cluster, verb: &str, address: &str, values: &str) {
    // There is no DNS here.
    let example = replaced(&example("pyagent.yaml"), "collector.pyagent.svc", address);
    let (example, values) = (Values::new(&example), Values::new(values));
    let mut helm = cluster.helm();
    helm.args(["--namespace", NAMESPACE, verb, "pyagent"])
        .arg(chart())
        .args(["--values", &example.path(), "--values", &values.path()])
        .args(["--wait", "--timeout=2m"]);
    let output = helm.output().unwrap();
    assert!(output.status.success(), "{output:?}\n{}", cluster.state());
    cluster.wait_rolled_out(NAMESPACE, "daemonset/pyagent");
}

/// Attributes of the newest resource of each pod, by its unique id, that is so.
fn written(
    file: &Path,
    is_meant: impl Fn(&BTreeMap<String, String>) -> bool,
) -> BTreeMap<String, BTreeMap<String, String>> {
    let text = fs::read_to_string(file).unwrap_or_default();
    // The last line may not be whole.
    let lines = text
        .lines()
        .map_while(|line| serde_json::from_str(line).ok());
    let mut by_pod = BTreeMap::new();
    for data in lines.collect::<Vec<Value>>() {
        for resource in data["resourceProfiles"].as_array().into_iter().flatten() {
            let attributes = resource_attributes(&data, resource);
            if let Some(uid) = attributes.get("k8s.pod.uid").cloned()
                && is_meant(&attributes)
            {
                by_pod.insert(uid, attributes);
            }
        }
    }
    by_pod
}

#[test]
fn the_collector_and_the_agent_say_the_same_of_pods() {
    let Some(program) = prepared("PYAGENT_COLLECTOR") else {
        return;
    };
    let Some(cluster) = Cluster::get() else {
        return;
    };
    cluster.make_namespace(NAMESPACE);
    cluster.make_namespace(PROGRAMS);
    let metadata = |name: &str| json!({"name": name, "namespace": PROGRAMS});
    let apps = |kind: &str, name: &str| {
        let labels = json!({"matchLabels": {"app": name}});
        let spec = json!({
            "selector": labels, "serviceName": name, "template": template(cluster, name, "Always"),
        });
        json!({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata(name), "spec": spec})
    };
    let mut web = apps("Deployment", "web");
    web["spec"].as_object_mut().unwrap().remove("serviceName");
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata("once"),
        "spec": {"template": template(cluster, "once", "Never")},
    });
    for manifest in [web, apps("StatefulSet", "db"), job] {
        cluster.apply(&manifest.to_string());
    }
    let pods = ["web", "db", "once"].map(|name| running(cluster, PROGRAMS, name));
    let (address, file) = start_collector(cluster, Path::new(&program));

    // An agent that asks no API server knows which pod it is, and the Collector says the rest.
    let blind = "{image: {pullPolicy: Never}, types: [cpu], kubernetes: {enabled: false}}";
    helm(cluster, "install", &address, blind);
    let is_blind = |attributes: &BTreeMap<String, String>| !attributes.contains_key(OF_AGENT);
    let by_collector = cluster.wait_until("profiles of each pod", || {
        let written = written(&file, is_blind);
        let is_there = pods.iter().all(|pod| written.contains_key(pod.uid()));
        is_there.then_some(written)
    });
    // One that does says the same of itself, and the Collector does not change it.
    let seeing = "{image: {pullPolicy: Never}, types: [cpu]}";
    helm(cluster, "upgrade", &address, seeing);
    let by_agent = cluster.wait_until("profiles of each pod by the agent's names", || {
        let written = written(&file, |it| !is_blind(it));
        let is_there = pods.iter().all(|pod| written.contains_key(pod.uid()));
        is_there.then_some(written)
    });
    for pod in &pods {
        let of = |names: &BTreeMap<String, BTreeMap<String, String>>| {
            let attributes = &names[pod.uid()];
            NAMES.map(|name| attributes.get(name).cloned())
        };
        let (collectors, agents) = (of(&by_collector), of(&by_agent));
        assert_eq!(collectors, agents, "{}", pod.name());
        let [namespace, name, node, ..] = collectors;
        assert_eq!(namespace.as_deref(), Some(PROGRAMS));
        assert_eq!(name.as_deref(), Some(pod.name()));
        assert_eq!(node.as_deref(), Some(NODE));
    }
    let workload = |idx: usize, name: &str| by_collector[pods[idx].uid()].get(name).cloned();
    assert_eq!(workload(0, "k8s.deployment.name").as_deref(), Some("web"));
    assert_eq!(workload(1, "k8s.statefulset.name").as_deref(), Some("db"));
    assert_eq!(workload(2, "k8s.job.name").as_deref(), Some("once"));
}
