//! The agent as a DaemonSet by a manifest that has nothing but what it needs, a program to profile, and profiles that are pulled
//! from outside of the pods.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use super::{Cluster, PYAGENT_IMAGE, PYTHON_IMAGE, Pod, answer};
use crate::containers::SCRIPT;
use crate::interpreters::Interpreter;
use crate::pyagent::binary;
use crate::target::Target;

/// Its port for profiles.
pub const PORT: u16 = 7099;
/// Its port for the kubelet's probes.
pub const HEALTH_PORT: u16 = 7098;

/// What a manifest of the agent says that differs from test to test.
#[derive(Debug, Clone)]
pub struct AgentPod<'a> {
    /// Where it is.
    pub namespace: &'a str,
    /// Without `CAP_`.
    pub capabilities: &'a [&'a str],
    /// Its arguments.
    pub arguments: &'a [&'a str],
    /// The security context's filter of system calls.
    pub seccomp: &'a str,
    /// Whether it sees the host's processes.
    pub host_pid: bool,
}

impl AgentPod<'_> {
    /// The pod alone.
    #[must_use]
    pub fn pod(&self) -> Value {
        let listen = format!("0.0.0.0:{PORT}");
        let health = format!("0.0.0.0:{HEALTH_PORT}");
        let environment = [
            ("PYAGENT_LISTEN", &*listen),
            ("PYAGENT_HEALTH_LISTEN", &health),
            // The pods' network is reached by the test alone.
            ("PYAGENT_INSECURE", "true"),
            ("PYAGENT_DATA_DIR", "none"),
        ];
        let environment = environment.map(|(name, value)| json!({"name": name, "value": value}));
        json!({
            "hostPID": self.host_pid,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": "pyagent",
                "image": PYAGENT_IMAGE,
                "imagePullPolicy": "Never",
                "args": self.arguments,
                "env": environment,
                "readinessProbe": {
                    "httpGet": {"path": "/readyz", "port": HEALTH_PORT}, "periodSeconds": 1,
                },
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"], "add": self.capabilities},
                    "seccompProfile": {"type": self.seccomp},
                },
            }],
        })
    }

    /// A pod that runs it once, as a manifest.
    #[must_use]
    pub fn once(&self, name: &str) -> String {
        let mut pod = self.pod();
        pod["restartPolicy"] = "Never".into();
        pod["containers"][0]["readinessProbe"] = Value::Null;
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": pod,
        })
        .to_string()
    }

    /// A DaemonSet of it, as a manifest.
    #[must_use]
    pub fn daemonset(&self) -> String {
        let labels = json!({"app": "pyagent"});
        json!({
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "pyagent", "namespace": self.namespace},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": self.pod()},
            },
        })
        .to_string()
    }
}

impl Cluster {
    /// A namespace, empty.
    ///
    /// # Panics
    /// With what kubectl complains about.
    pub fn make_namespace(&self, name: &str) {
        self.kubectl(&["create", "namespace", name]);
        self.wait_until("there is a service account", || {
            let get = ["--namespace", name, "get", "serviceaccount", "default"];
            self.try_kubectl(&get).ok()
        });
    }

    /// A Deployment of a program that uses the CPU, `app=NAME`, and waits for its pod.
    ///
    /// # Panics
    /// With the state of the cluster, when it does not run.
    pub fn deploy_program(&self, namespace: &str, name: &str) -> Pod {
        self.deploy_with(namespace, name, PYTHON_IMAGE, &self.python);
        self.wait_rolled_out(namespace, &format!("deployment/{name}"));
        self.pod(namespace, &format!("app={name}"))
    }

    /// The same with an interpreter of an image; does not wait.
    ///
    /// # Panics
    /// With what kubectl complains about.
    pub fn deploy_with(&self, namespace: &str, name: &str, image: &str, python: &Interpreter) {
        let labels = json!({"app": name});
        let python = python.executable.display().to_string();
        let script = format!("/{SCRIPT}");
        let manifest = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "main",
                        "image": image,
                        "imagePullPolicy": "Never",
                        "command": [python, "-I", "-S", "-B", script],
                        "resources": {"requests": {"cpu": "10m"}, "limits": {"cpu": "200m"}},
                    }],
                }},
            },
        });
        self.apply(&manifest.to_string());
    }

    /// As [`Self::pull`], through a port that kubectl forwards to the pod's loopback address.
    ///
    /// # Panics
    /// With what `pyagent pull` or kubectl complains about.
    #[must_use]
    pub fn pull_forwarded(&self, namespace: &str, agent: &Pod, pod: &Pod) -> Vec<Value> {
        let mut forward = self.command("kubectl");
        let port = format!(":{PORT}");
        forward.args([
            "--namespace",
            namespace,
            "port-forward",
            agent.name(),
            &port,
        ]);
        let mut forward = Target::start(&mut forward);
        let line = forward.line();
        let address = line.split(' ').nth(2).expect("Forwarding from ADDRESS");
        self.pull(address, pod, &[])
    }

    /// Samples that the agent at this address takes from now on, as JSON: `labels`, `values` and `stack`, leaf first. It waits
    /// until there is a process of this pod.
    ///
    /// # Panics
    /// With what `pyagent pull` complains about.
    #[must_use]
    pub fn pull(&self, address: &str, pod: &Pod, options: &[&str]) -> Vec<Value> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("profile.jsonl");
        let filter = format!("k8s_pod_uid=^{}$", pod.uid());
        self.wait_until("a profile of the pod", || {
            let mut pull = self.command(binary());
            pull.args(["pull", address, "--duration", "2s", "--force", "-o"])
                .arg(&file)
                .args(["--label", &filter])
                .args(options);
            match answer(&mut pull) {
                Ok(_) => Some(()),
                // The agent is ready before it knows all processes.
                Err(error) if error.contains("matches") => None,
                Err(error) => panic!("{pull:?}: {error}"),
            }
        });
        let text = fs::read_to_string(file).expect("it wrote it");
        let samples = text.lines().skip(1);
        let parsed = samples.map(|line| serde_json::from_str(line).expect("JSON"));
        parsed.collect()
    }
}

/// What the samples have as a label: each value once. Those without it count as empty.
#[must_use]
pub fn label_values(samples: &[Value], label: &str) -> BTreeSet<String> {
    let values = samples.iter().map(|sample| {
        let value = &sample["labels"][label];
        value.as_str().unwrap_or_default().to_owned()
    });
    values.collect()
}

/// Names of the Python functions of a sample, leaf first.
#[must_use]
pub fn functions(sample: &Value) -> Vec<&str> {
    let frames = sample["stack"].as_array().into_iter().flatten();
    let python = frames.filter(|frame| frame["kind"] == "python");
    python.filter_map(|frame| frame["name"].as_str()).collect()
}
