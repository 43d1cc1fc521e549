//! Kubernetes without a cluster: a process in a control group as the kubelet makes them, and a stand-in for the API server. Root.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use profiler_agent::format::read::read;
use profiler_agent::process::resident;
use profiler_agent::profile::model::Profile;
use pyagent_tests::api_server::ApiServer;
use pyagent_tests::interpreters;
use pyagent_tests::pod_group::PodGroup;
use pyagent_tests::pyagent::{Pyagent, binary, run};
use pyagent_tests::target::Target;
use serde_json::{Value, json};

/// Uses the CPU until its standard input closes.
const WORK: &str = "\
import sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), __import__('os')._exit(0)), daemon=True).start()
print('ready', flush=True)
def spin():
    while True:
        sum(range(1000))
spin()
";

/// Longest time until what the server tells is seen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A program in a pod, an API server, and an agent that asks it.
struct Scene {
    uid: String,
    target: Target,
    group: PodGroup,
    server: ApiServer,
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let uid = format!("9d4a6f0e-23c5-4b7a-8f61-{:012x}", std::process::id());
        let folder = tempfile::tempdir().unwrap();
        let group = PodGroup::new(&uid);
        let mut command = group.command(&uid, "app", folder.path());
        let python = interpreters::newest();
        let mut target = Target::start(
            command
                .arg(&python.path)
                .args(["-I", "-S", "-B", "-c", WORK]),
        );
        assert_eq!(target.line(), "ready");
        let server = ApiServer::start();
        let of_web = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "controller": true}]);
        server.put_object(
            "/apis/apps/v1/namespaces/shop/replicasets/web-7f",
            &json!({ "ownerReferences": of_web }),
        );
        Self {
            uid,
            target,
            group,
            server,
            folder,
        }
    }

    /// The pod's metadata, with these labels and annotations.
    fn pod(&self, labels: &Value, annotations: &Value) -> Value {
        json!({
            "uid": self.uid, "name": "web-7f-x2", "namespace": "shop",
            "labels": labels, "annotations": annotations,
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7f", "controller": true},
            ],
        })
    }

    fn agent(&self, more: &[&str]) -> Pyagent {
        let config = self.folder.path().join("config");
        self.server.write_kubeconfig(&config);
        let mut command = Command::new(binary());
        command
            .args(["--listen", "127.0.0.1:0", "--rate", "199"])
            .args(["--node-name", "node-1"])
            .args(more)
            .env("KUBECONFIG", config);
        Pyagent::start_by(&mut command, "go tool pprof")
    }

    /// A profile of the target; `None`: it is not profiled.
    fn pulled(&self, agent: &Pyagent, more: &[&str]) -> Option<Profile> {
        let file: PathBuf = self.folder.path().join("it.pb.gz");
        let (address, shown) = (agent.address(), file.display().to_string());
        let mut arguments = vec![&*address, "-d", "300ms", "-o", &shown, "--force"];
        arguments.extend(more);
        let output = run("pull", &arguments, b"");
        if output.status.code() == Some(4) {
            return None;
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        Some(read(&std::fs::read(file).unwrap()).unwrap())
    }

    /// What a label says in all samples of the target, as soon as there are some with it.
    fn label(&self, agent: &Pyagent, name: &str) -> Option<String> {
        let profile = self.pulled(agent, &["--pid", &self.target.pid().to_string()])?;
        let mut texts: Vec<&str> = profile
            .samples
            .iter()
            .map(|sample| profile.label(sample.labels, name).unwrap_or_default())
            .collect();
        texts.sort_unstable();
        texts.dedup();
        match texts.as_slice() {
            [text] => Some((*text).to_owned()),
            _ => None,
        }
    }

    fn wait_for(what: &str, mut is_it: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !is_it() {
            assert!(begun.elapsed() < PATIENCE, "{what}");
        }
        println!("{what} after {} ms", begun.elapsed().as_millis());
    }
}

/// What a page of the agent says.
fn page(agent: &Pyagent, path: &str) -> String {
    let url = format!("http://{}{path}", agent.address());
    let output = Command::new("curl").args(["-sS", &url]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_process_in_a_pod_has_its_names_from_the_first_sample_on() {
    let scene = Scene::new();
    scene
        .server
        .put(scene.pod(&json!({"app": "web", "example.com/team": "a"}), &json!({})));
    let agent = scene.agent(&[
        "--namespace",
        "shop",
        "--k8s-label",
        "app,team=example.com/team",
    ]);
    assert!(
        agent.greeting.contains("profiling 1 Python process"),
        "{}",
        agent.greeting
    );
    for (name, expected) in [
        ("k8s_namespace_name", "shop"),
        ("k8s_pod_name", "web-7f-x2"),
        ("k8s_pod_uid", &*scene.uid),
        ("k8s_container_name", "app"),
        ("k8s_node_name", "node-1"),
        ("k8s_replicaset_name", "web-7f"),
        ("k8s_deployment_name", "web"),
        ("service_name", "web"),
        ("service_namespace", "shop"),
        ("container_id", &scene.group.container_id),
        ("k8s_pod_label_app", "web"),
        ("team", "a"),
    ] {
        assert_eq!(
            scene.label(&agent, name).as_deref(),
            Some(expected),
            "{name}"
        );
    }
    // Chosen by a client, too.
    assert!(
        scene
            .pulled(&agent, &["-n", "shop", "-l", "app=web"])
            .is_some()
    );
    assert!(scene.pulled(&agent, &["-n", "other"]).is_none());
    assert!(scene.pulled(&agent, &["-l", "app!=web"]).is_none());
    assert!(page(&agent, "/metrics").contains("\npyagent_kubernetes_pods 1\n"));
    assert_eq!(page(&agent, "/readyz"), "ready\n");
    agent.stop();
}

#[test]
fn names_come_as_soon_as_they_are_known_and_stay_while_the_server_is_away() {
    let scene = Scene::new();
    let agent = scene.agent(&["--all-python"]);
    // Known without anybody's help.
    assert_eq!(scene.label(&agent, "k8s_pod_uid"), Some(scene.uid.clone()));
    assert_eq!(
        scene.label(&agent, "k8s_container_name").as_deref(),
        Some("app")
    );
    assert_eq!(scene.label(&agent, "k8s_pod_name").as_deref(), Some(""));
    scene.server.put(scene.pod(&json!({}), &json!({})));
    Scene::wait_for("its names come", || {
        scene.label(&agent, "k8s_pod_name").as_deref() == Some("web-7f-x2")
    });
    scene.server.set_away(true);
    Scene::wait_for("it is told that the server is away", || {
        page(&agent, "/readyz").contains("etcd is away")
    });
    assert!(page(&agent, "/readyz").starts_with("ready, degraded"));
    assert_eq!(
        scene.label(&agent, "k8s_deployment_name").as_deref(),
        Some("web")
    );
    scene.server.set_away(false);
    Scene::wait_for("it is well again", || page(&agent, "/readyz") == "ready\n");
    // It went on from where it was.
    assert_eq!(scene.server.n_lists(), 1);
    scene.server.remove(&scene.uid);
    Scene::wait_for("the pod has gone", || {
        page(&agent, "/metrics").contains("\npyagent_kubernetes_pods 0\n")
    });
    assert_eq!(
        scene.label(&agent, "k8s_pod_name").as_deref(),
        Some("web-7f-x2")
    );
    agent.stop();
}

#[test]
fn who_runs_a_pod_decides_whether_it_is_profiled_while_it_runs() {
    let scene = Scene::new();
    let (no, yes) = (
        json!({"pyagent.io/profile": "false"}),
        json!({"pyagent.io/profile": "true"}),
    );
    scene.server.put(scene.pod(&json!({}), &no));
    let agent = scene.agent(&["-A"]);
    let is_profiled = || scene.pulled(&agent, &["-n", "shop"]).is_some();
    assert!(!is_profiled());
    scene.server.put(scene.pod(&json!({}), &json!({})));
    Scene::wait_for("without the annotation it is profiled", is_profiled);
    scene.server.put(scene.pod(&json!({}), &no));
    Scene::wait_for("it is not profiled any more", || !is_profiled());
    agent.stop();
    // Only who asked for it.
    scene.server.put(scene.pod(&json!({}), &json!({})));
    let agent = scene.agent(&["-A", "--k8s-opt-in"]);
    let is_profiled = || scene.pulled(&agent, &["-n", "shop"]).is_some();
    assert!(!is_profiled());
    scene.server.put(scene.pod(&json!({}), &yes));
    Scene::wait_for("it asked for it", is_profiled);
    agent.stop();
}

#[test]
fn the_agent_profiles_what_has_the_labels_that_it_was_told() {
    let scene = Scene::new();
    let pod = |app: &str| scene.pod(&json!({"app": app}), &json!({}));
    scene.server.put(pod("db"));
    let agent = scene.agent(&["-n", "shop", "-l", "app in (web,api)"]);
    let is_profiled = || scene.pulled(&agent, &["-A"]).is_some();
    assert!(!is_profiled());
    scene.server.put(pod("api"));
    Scene::wait_for("it has the label", is_profiled);
    scene.server.put(pod("db"));
    Scene::wait_for("it has another one", || !is_profiled());
    agent.stop();
}

/// A pod of a full node: labels and annotations as the tools that make pods write them, more than is kept.
fn neighbour(number: u32, version: u32) -> Value {
    let texts = |prefix: &str, n: usize, bytes: usize| -> Value {
        let of = |idx| {
            (
                format!("example.com/{prefix}-{idx}"),
                "x".repeat(bytes).into(),
            )
        };
        (0..n).map(of).collect::<serde_json::Map<_, _>>().into()
    };
    let mut labels = texts("label", 20, 60);
    labels["version"] = version.to_string().into();
    json!({
        "uid": format!("00000000-0000-4000-8000-{number:012x}"), "name": format!("web-7f-{number}"),
        "namespace": format!("team-{}", number % 40),
        "labels": labels, "annotations": texts("annotation", 20, 2048),
    })
}

#[test]
fn a_node_of_250_pods_that_change_costs_little_memory() {
    const N_PODS: u32 = 250;
    let scene = Scene::new();
    scene.server.put(scene.pod(&json!({}), &json!({})));
    let agent = scene.agent(&["--all-python", "--k8s-label", "app"]);
    let anonymous = || resident::read(agent.pid()).unwrap().anon;
    let before = anonymous();
    // The process's own is one of them. Each changes, as pods do when they start and when they are judged.
    for version in 0..20 {
        for number in 1..N_PODS {
            scene.server.put(neighbour(number, version));
        }
    }
    // They are told in order.
    scene
        .server
        .put(scene.pod(&json!({"app": "last"}), &json!({})));
    Scene::wait_for("all changes are known", || {
        scene.label(&agent, "k8s_pod_label_app").as_deref() == Some("last")
    });
    let n_known = format!("\npyagent_kubernetes_pods {N_PODS}\n");
    assert!(page(&agent, "/metrics").contains(&n_known));
    let after = anonymous();
    let grown = after.saturating_sub(before);
    println!("250 pods, each changed 20 times: {} KiB more", grown >> 10);
    // 250 pods of 21 labels of some 85 bytes are 450 KB; what was read of 12 MB of annotations has to be gone.
    assert!(grown < 8 << 20, "{before} before, {after} after");
    agent.stop();
}

#[test]
fn what_needs_the_server_is_refused_without_it() {
    let said = |arguments: &[&str]| {
        let output = Command::new(binary())
            .args(arguments)
            .env_remove("KUBECONFIG")
            .output()
            .unwrap();
        let code = output.status.code().unwrap();
        (code, String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = said(&["--namespace", "shop", "--listen", "127.0.0.1:0"]);
    assert_eq!((code, text.contains("--namespace")), (2, true), "{text}");
    let (code, text) = said(&[
        "--all-python",
        "--kubernetes",
        "on",
        "--listen",
        "127.0.0.1:0",
    ]);
    assert_eq!((code, text.contains("KUBECONFIG")), (1, true), "{text}");
}
