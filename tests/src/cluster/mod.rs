//! A Kubernetes of one node: etcd, the API server, controllers, scheduler, kubelet, containerd and runc, as they are, without a
//! registry, in namespaces of its own.
//!
//! One for each test binary, started by the first test that asks for it. `cargo xtask test` makes the programs; a machine
//! without them skips those tests, and where `CI` is `true` that is a failure. Not there: CoreDNS and kube-proxy, so a
//! service has no address that could be reached but the API's; and nothing enforces a NetworkPolicy.

pub mod agent;
mod certificates;
mod image;
mod place;
mod programs;
mod schemas;

use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::compiler::workload;
use crate::containers::{SCRIPT, prepared_root};
use crate::interpreters::{self, Interpreter};

pub use image::Part;
pub use programs::NODE;

use place::Place;
use programs::{PAUSE_IMAGE, Parts, Programs};

/// pyagent's own image, as `cargo xtask image` calls it.
pub const PYAGENT_IMAGE: &str = concat!("localhost/pyagent:", env!("CARGO_PKG_VERSION"));

/// An image with interpreters and [`SCRIPT`].
pub const PYTHON_IMAGE: &str = "localhost/python:1";

/// How long something may take that takes seconds.
const PATIENCE: Duration = Duration::from_mins(2);

/// How often it is looked whether it has come.
const INTERVAL: Duration = Duration::from_millis(200);

/// A running cluster. When the tests end, however they do, it goes.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    programs: Programs,
    /// The interpreter that [`PYTHON_IMAGE`] is for.
    pub python: Interpreter,
}

impl Cluster {
    /// The cluster of this process; `None`, with the reason on stderr, where there are no programs for it.
    #[must_use]
    pub fn get() -> Option<&'static Self> {
        static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
        CLUSTER.get_or_init(Self::start).as_ref()
    }

    fn start() -> Option<Self> {
        let programs = Programs::of_environment();
        let image = env::var_os("PYAGENT_IMAGE").filter(|image| !image.is_empty());
        let python = interpreters::usual()
            .into_iter()
            .find(Interpreter::has_own_root);
        let (Some(programs), Some(image), Some(python)) = (programs, image, python) else {
            assert!(
                env::var_os("CI").is_none_or(|ci| ci != "true"),
                "no Kubernetes, no image or no prepared interpreters, but CI promises them"
            );
            eprintln!(
                "skipped: PYAGENT_CLUSTER, PYAGENT_IMAGE and PYAGENT_INTERPRETERS are needed (`cargo xtask test kubernetes`)"
            );
            return None;
        };
        let start = Instant::now();
        let cluster = Self {
            place: Place::new(),
            programs,
            python,
        };
        let parts = cluster.parts();
        parts.write_certificates();
        parts.start_runtime();
        parts.start_api();
        cluster.wait_until("containerd answers", || {
            let version = cluster.containerd(&["version"]).output().ok()?;
            version.status.success().then_some(())
        });
        let pause = cluster.programs.path("pause");
        let folder = pause.parent().expect("a folder");
        cluster.import_folders(
            PAUSE_IMAGE,
            &["/pause"],
            &[Part {
                folder,
                names: &["pause"],
            }],
        );
        cluster.import_python(PYTHON_IMAGE, &cluster.python);
        cluster.import(Path::new(&image));
        cluster.wait_until("the API is ready", || {
            cluster.try_kubectl(&["get", "--raw", "/readyz"]).ok()
        });
        parts.start_controllers();
        parts.start_kubelet();
        cluster.wait_until("the node is ready", || {
            let wait = [
                "wait",
                "--for=condition=Ready",
                "--timeout=1s",
                "node",
                NODE,
            ];
            cluster.try_kubectl(&wait).ok()
        });
        cluster.wait_until("there is a service account", || {
            cluster
                .try_kubectl(&["get", "serviceaccount", "default"])
                .ok()
        });
        eprintln!(
            "a Kubernetes is ready after {:.1} s",
            start.elapsed().as_secs_f64()
        );
        Some(cluster)
    }

    /// A command that runs in the cluster's network, as who may everything there.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.place.in_network();
        command
            .arg(program)
            .env("PATH", self.programs.search_path())
            .env("KUBECONFIG", self.place.folder.join("pki/admin.conf"))
            // What clients keep of earlier answers is this cluster's.
            .env("HOME", self.place.folder.join("home"));
        command
    }

    /// What kubectl prints.
    ///
    /// # Panics
    /// With what it complains about.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let answer = self.try_kubectl(arguments);
        answer.unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
    }

    /// What kubectl prints, or complains about.
    ///
    /// # Errors
    /// What it printed on standard error, when it failed.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        answer(self.command("kubectl").args(arguments))
    }

    /// What kubectl answers as JSON.
    ///
    /// # Panics
    /// With what it complains about.
    #[must_use]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--output=json"];
        all.splice(0..0, arguments.iter().copied());
        serde_json::from_str(&self.kubectl(&all)).expect("it prints JSON")
    }

    /// Applies a manifest.
    ///
    /// # Panics
    /// With what kubectl complains about.
    pub fn apply(&self, manifest: &str) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("manifest.yaml");
        let mut file = fs::File::create(&path).expect("the folder is ours");
        file.write_all(manifest.as_bytes())
            .expect("the folder is ours");
        self.kubectl(&["apply", "--filename", &path.display().to_string()]);
    }

    /// Does something while there is no API server: what kubectl asks fails then.
    ///
    /// # Panics
    /// With the state of the cluster, when the API does not come back.
    pub fn without_api(&self, work: impl FnOnce()) {
        self.parts().end("kube-apiserver");
        let worked = panic::catch_unwind(AssertUnwindSafe(work));
        self.parts().start_api_server();
        self.wait_until("the API is ready again", || {
            self.try_kubectl(&["get", "--raw", "/readyz"]).ok()
        });
        if let Err(panic) = worked {
            panic::resume_unwind(panic);
        }
    }

    /// Kills the processes of a container, by the id that the runtime has for it. False: there is no such.
    ///
    /// # Panics
    /// When the runtime cannot be asked.
    #[must_use]
    pub fn kill_container(&self, id: &str) -> bool {
        let mut kill = self.containerd(&["--namespace=k8s.io", "tasks", "kill"]);
        answer(kill.args(["--signal", "SIGKILL", id])).is_ok()
    }

    /// Waits for this, which takes seconds.
    ///
    /// # Panics
    /// With the state of the cluster, when it does not come within two minutes.
    pub fn wait_until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            if Instant::now() > deadline {
                panic!("not within {PATIENCE:?}: {what}\n{}", self.state());
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Waits until all of a DaemonSet or Deployment (`deployment/app`) runs and is ready.
    ///
    /// # Panics
    /// With the state of the cluster, when it does not.
    pub fn wait_rolled_out(&self, namespace: &str, workload: &str) {
        let patience = format!("--timeout={}s", PATIENCE.as_secs());
        let arguments = [
            "--namespace",
            namespace,
            "rollout",
            "status",
            &patience,
            workload,
        ];
        let rolled_out = self.try_kubectl(&arguments);
        rolled_out.unwrap_or_else(|error| panic!("{workload}: {error}\n{}", self.state()));
    }

    /// The only pod with these labels (`app=web`), as the API describes it.
    ///
    /// # Panics
    /// When there is none, or several.
    #[must_use]
    pub fn pod(&self, namespace: &str, selector: &str) -> Pod {
        let pods = self.json(&[
            "--namespace",
            namespace,
            "get",
            "pods",
            "--selector",
            selector,
        ]);
        let items = pods["items"].as_array().expect("a list");
        let running: Vec<_> = items
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .collect();
        assert_eq!(running.len(), 1, "{namespace} {selector}: {pods:#}");
        Pod(running[0].clone())
    }

    /// Makes an image of folders, which runs a command when nothing else is said.
    ///
    /// # Panics
    /// When that fails.
    pub fn import_folders(&self, name: &str, command: &[&str], parts: &[Part<'_>]) {
        let scratch = tempfile::tempdir_in(&self.place.folder).expect("the folder is ours");
        self.import(&image::archive(name, command, parts, scratch.path()));
    }

    /// Makes an image like [`PYTHON_IMAGE`] of the root that an interpreter runs in.
    ///
    /// # Panics
    /// When that fails.
    pub fn import_python(&self, name: &str, python: &Interpreter) {
        let script = workload(SCRIPT);
        let root = Part {
            folder: &prepared_root(python),
            names: &["."],
        };
        let script = Part {
            folder: script.parent().expect("a folder"),
            names: &[SCRIPT],
        };
        self.import_folders(name, &[], &[root, script]);
    }

    /// Takes an image's archive.
    ///
    /// # Panics
    /// When containerd refuses it.
    pub fn import(&self, archive: &Path) {
        let mut import = self.containerd(&["--namespace=k8s.io", "images", "import"]);
        let imported = answer(import.arg(archive));
        imported.unwrap_or_else(|error| panic!("{}: {error}", archive.display()));
    }

    /// Helm, in the cluster's network.
    #[must_use]
    pub fn helm(&self) -> Command {
        self.command("helm")
    }

    /// What kubeconform, told to be strict, finds wrong with manifests; empty when nothing is. Kinds that the API does not know
    /// by itself are passed over.
    ///
    /// # Panics
    /// When it cannot be asked.
    #[must_use]
    pub fn wrong(&self, manifests: &Path) -> String {
        let folder = self.place.folder.join("schemas");
        if !folder.exists() {
            fs::create_dir(&folder).expect("the folder is ours");
            let open_api = self.kubectl(&["get", "--raw", "/openapi/v2"]);
            schemas::write(&serde_json::from_str(&open_api).expect("JSON"), &folder);
        }
        let mut check = self.command("kubeconform");
        check
            .args(["-strict", "-ignore-missing-schemas", "-schema-location"])
            .arg(folder.join(schemas::FILE_NAMES))
            .arg(manifests);
        let output = check.output().expect("util-linux is there");
        [output.stdout, output.stderr]
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .concat()
    }

    /// A folder for what a test needs beside the cluster; gone with it.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.place.folder.join("tests").join(name);
        fs::create_dir_all(&folder).expect("the folder is ours");
        folder
    }

    /// A folder that the cluster has in the place of one of the host's: of `/run`, `/var/lib` or `/var/log`.
    #[must_use]
    pub fn own_folder(&self, path: &str) -> PathBuf {
        let below = path.trim_start_matches('/');
        self.place.folder.join("own").join(below)
    }

    /// What there is, and what went wrong: for messages.
    #[must_use]
    pub fn state(&self) -> String {
        let mut text = String::new();
        for arguments in [
            &["get", "pods", "--all-namespaces", "--output=wide"][..],
            &[
                "get",
                "events",
                "--all-namespaces",
                "--sort-by=.lastTimestamp",
            ],
        ] {
            let shown = self.try_kubectl(arguments).unwrap_or_else(|error| error);
            let _ = writeln!(text, "{shown}");
        }
        text + &programs::last_words(&self.place.folder)
    }

    fn parts(&self) -> Parts<'_> {
        Parts {
            place: &self.place,
            programs: &self.programs,
        }
    }

    fn containerd(&self, arguments: &[&str]) -> Command {
        let mut ctr = self.parts().tool("ctr");
        let socket = self.place.folder.join("containerd.sock");
        ctr.arg("--address").arg(socket).args(arguments);
        ctr
    }
}

/// What a program prints on standard output; what it prints on standard error, when it fails.
fn answer(command: &mut Command) -> Result<String, String> {
    let output: Output = command
        .stdin(Stdio::null())
        .output()
        .expect("util-linux is there");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// A pod, as the API describes it.
#[derive(Debug, Clone)]
pub struct Pod(pub Value);

impl Pod {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        text(&self.0["metadata"]["name"])
    }

    /// Its unique id.
    #[must_use]
    pub fn uid(&self) -> &str {
        text(&self.0["metadata"]["uid"])
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> &str {
        text(&self.0["status"]["podIP"])
    }

    /// The id of the first container, as the runtime calls it.
    #[must_use]
    pub fn container_id(&self) -> &str {
        let id = text(&self.0["status"]["containerStatuses"][0]["containerID"]);
        id.strip_prefix("containerd://")
            .expect("it is containerd's")
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("the API says so of a pod that runs")
}
