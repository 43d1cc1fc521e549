//! A cluster of any size that is none: an API server and agents on loopback, which say what a test tells them to.

use std::borrow::Cow;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use profiler_agent::format::Format;
use profiler_agent::profile::aggregate::{
    Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
};
use profiler_agent::profile::model::{Profile, ValueType};
use serde_json::{Value, json};

use crate::api_server::ApiServer;
use crate::fake_agents::{Behaviour, FakeAgents};
use crate::pyagent::binary;

/// See the module's documentation.
pub struct FakeCluster {
    /// Its API server.
    pub api: ApiServer,
    /// Its agents.
    pub agents: FakeAgents,
    folder: tempfile::TempDir,
}

impl Default for FakeCluster {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeCluster {
    /// One without nodes.
    ///
    /// # Panics
    /// When there are no ports, threads or files.
    #[must_use]
    pub fn new() -> Self {
        let cluster = Self {
            api: ApiServer::start(),
            agents: FakeAgents::new(),
            folder: tempfile::tempdir().expect("a folder"),
        };
        cluster.api.write_kubeconfig(&cluster.path("config"));
        cluster
    }

    /// A file of the test.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A node whose agent behaves so.
    pub fn node(&self, name: &str, behaviour: Behaviour) -> SocketAddr {
        let address = self.agents.start(behaviour);
        self.agent_pod(name, address, &[]);
        address
    }

    /// The same whose agent has this certificate and key, as PEM.
    pub fn secure_node(&self, name: &str, behaviour: Behaviour, tls: (String, String)) {
        let address = self.agents.start_with(behaviour, Some(tls));
        let certificate = ("PYAGENT_TLS_CERT", "/etc/pyagent/tls/tls.crt");
        self.agent_pod(name, address, &[certificate]);
    }

    /// A node whose agent's pod leads to this address.
    pub fn agent_pod(&self, node: &str, address: SocketAddr, variables: &[(&str, &str)]) {
        let pod = format!("pyagent-{node}");
        let listen = format!("0.0.0.0:{}", address.port());
        let variables = variables
            .iter()
            .copied()
            .chain([("PYAGENT_LISTEN", &*listen)]);
        let variables = variables.map(|(name, value)| json!({"name": name, "value": value}));
        self.api.forward_to(&pod, address);
        self.api.place(json!({
            "metadata": {
                "uid": format!("uid-{pod}"), "name": pod, "namespace": "pyagent",
                "labels": {"app.kubernetes.io/part-of": "pyagent", "app.kubernetes.io/component": "profiler"},
                "ownerReferences": [owner("DaemonSet", "pyagent")],
            },
            "spec": {"nodeName": node, "containers": [{"name": "pyagent", "env": variables.collect::<Vec<_>>()}]},
            "status": {"phase": "Running", "podIP": address.ip().to_string(),
                       "conditions": [{"type": "Ready", "status": "True"}]},
        }));
    }

    /// A pod of the Deployment `app`, `app=APP`, in the namespace `shop`.
    pub fn pod(&self, app: &str, number: u32, node: &str) {
        let pod = format!("{app}-7f-{number}");
        self.api.place(json!({
            "metadata": {
                "uid": format!("uid-{pod}"), "name": pod, "namespace": "shop",
                "labels": {"app": app, "pod-template-hash": "7f"},
                "ownerReferences": [owner("ReplicaSet", &format!("{app}-7f"))],
            },
            "spec": {"nodeName": node},
            "status": {"phase": "Running"},
        }));
    }

    /// Runs a verb over it, to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments)
            .output()
            .expect("pyagent can be started")
    }

    /// The same, to be changed and started.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.folder.path())
            .env("KUBECONFIG", self.path("config"));
        command
    }

    /// A file with this text, and its path.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("a file of the test");
        path.display().to_string()
    }
}

fn owner(kind: &str, name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "controller": true})
}

/// What a pod's process was seen to do.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// The Deployment, in the namespace `shop`.
    pub app: &'static str,
    /// Which of its pods.
    pub number: u32,
    /// Process id.
    pub pid: u32,
    /// The function that it was in.
    pub function: &'static str,
    /// How many samples.
    pub n_samples: i64,
}

/// The profile that an agent has of pods of its node.
#[must_use]
pub fn profile(node: &str, seen: &[Seen]) -> Profile {
    let start = UNIX_EPOCH + Duration::from_secs(1_767_225_600);
    let mut aggregator = Aggregator::new(start, &ValueType::CPU_SAMPLES, 10_000_000);
    for it in seen {
        let pod = format!("{}-7f-{}", it.app, it.number);
        let more = [
            ("k8s_namespace_name", "shop".to_owned()),
            ("k8s_pod_name", pod.clone()),
            ("k8s_pod_uid", format!("uid-{pod}")),
            ("k8s_node_name", node.to_owned()),
            ("k8s_deployment_name", it.app.to_owned()),
        ];
        let more = more.map(|(name, text)| (Cow::Borrowed(name), text.into()));
        let process = ProcessLabels {
            comm: "python3".into(),
            python_version: "3.12.1".into(),
            more: more.into(),
            ..ProcessLabels::of_pid(it.pid)
        };
        let functions = [it.function, "main"].map(|name| ResolvedFrame {
            function: Arc::new(ResolvedFunction::python(name, "/srv/app.py", 1)),
            line: 3,
            address: 0,
        });
        aggregator.add(&ResolvedSample {
            frames: functions.into(),
            labels: Arc::new(ThreadLabels {
                process: Arc::new(process),
                tid: it.pid,
                started_ns: 0,
                thread_name: "MainThread".into(),
            }),
            instruction: None,
            values: [it.n_samples, it.n_samples * 10_000_000].into(),
        });
    }
    aggregator.finish(
        Duration::from_mins(10),
        vec!["lost_full: 2 (Samples lost)".to_owned()],
    )
}

/// An agent that answers with a profile.
///
/// # Panics
/// Never: it is written to memory.
#[must_use]
pub fn answers(profile: &Profile) -> Behaviour {
    let mut bytes = Vec::new();
    let written = Format::default_format().write(profile, &mut bytes);
    written.expect("memory takes it");
    Behaviour::Profile(Arc::new(bytes), profile.n_samples())
}
