//! Containers of Podman's, in a storage of their own, made of the interpreters that `cargo xtask interpreters`
//! prepared.
//!
//! A machine without Podman skips those tests; where `CI` is `true` that is a failure.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use profiler_agent::ids::Pid;

use crate::compiler::workload;
use crate::interpreters::{self, Interpreter};
use crate::target::Target;

/// The script that every container has, in its root.
pub const SCRIPT: &str = "contained.py";

/// The image with all prepared interpreters in it.
const IMAGE: &str = "interpreters";

/// An image without glibc, as Alpine's are.
pub const MUSL_IMAGE: &str = "musl";

/// Where the interpreter is in it: it does not find its library in the root itself.
pub const MUSL_PREFIX: &str = "usr/";

/// Limits that can be set without CAP_SYS_RESOURCE; nothing of the host's network is touched.
pub const RUN_OPTIONS: [&str; 6] = [
    "--ulimit",
    "nofile=1024:1024",
    "--ulimit",
    "nproc=1000:1000",
    "--network",
    "none",
];

/// User and group ids of a user namespace: those of the container are none of the host's.
pub const OWN_USER_NAMESPACE: [&str; 4] =
    ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];

/// Podman with a storage of its own. When the tests end, however they do, its containers and its storage go.
#[derive(Debug)]
pub struct Engine {
    folder: PathBuf,
    /// Interpreters of the image, oldest first.
    pub interpreters: Vec<Interpreter>,
    /// The static build on musl, which is all that [`MUSL_IMAGE`] has.
    pub musl: Option<Interpreter>,
    /// Cleans up when its standard input closes.
    _janitor: Child,
}

impl Engine {
    /// The engine of this process; `None`, with the reason on stderr, where there is no Podman.
    #[must_use]
    pub fn get() -> Option<&'static Self> {
        static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
        ENGINE.get_or_init(Self::start).as_ref()
    }

    fn start() -> Option<Self> {
        let mut interpreters = interpreters::supported();
        let musl = interpreters.iter().find(|python| python.is_on_musl());
        let musl = musl.cloned();
        interpreters.retain(Interpreter::has_own_root);
        // One root makes the image: that of the newest.
        if let Some(newest) = interpreters.last().map(prepared_folder) {
            interpreters.retain(|python| prepared_folder(python) == newest);
        }
        let has_podman = Command::new("podman").arg("--version").output().is_ok();
        if !has_podman || interpreters.is_empty() {
            assert!(
                env::var_os("CI").is_none_or(|ci| ci != "true"),
                "no Podman or no prepared interpreters, but CI promises both"
            );
            eprintln!(
                "skipped: Podman and PYAGENT_INTERPRETERS (`cargo xtask interpreters`) are needed"
            );
            return None;
        }
        let folder = tempfile::Builder::new()
            .prefix("pyagent-containers-")
            .tempdir()
            .expect("a temporary folder")
            .keep();
        // The root of a user namespace is not the owner.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).expect("it is ours");
        let janitor = janitor(&folder);
        let engine = Self {
            folder,
            interpreters,
            musl,
            _janitor: janitor,
        };
        engine.import(&prepared_root(&engine.interpreters[0]), "", IMAGE);
        if let Some(musl) = &engine.musl {
            engine.import(&prepared_folder(musl), MUSL_PREFIX, MUSL_IMAGE);
        }
        Some(engine)
    }

    /// Makes an image: a folder with interpreters as what is below `prefix`, and the script.
    fn import(&self, folder: &Path, prefix: &str, image: &str) {
        let script = workload(SCRIPT);
        let mut tar = Command::new("tar")
            .args(["--create", "--directory"])
            .arg(folder)
            .arg(format!("--transform=s,^\\./,./{prefix},"))
            .args([".", "--directory"])
            .arg(script.parent().expect("a folder"))
            .arg(SCRIPT)
            .stdout(Stdio::piped())
            .spawn()
            .expect("tar is there");
        let import = self
            .podman()
            .args(["import", "--quiet", "-", image])
            .stdin(tar.stdout.take().expect("it is piped"))
            .output();
        succeeded(&import.expect("podman is there"));
        assert!(tar.wait().expect("it was started here").success(), "tar");
    }

    /// A command of Podman's over this engine's storage.
    #[must_use]
    pub fn podman(&self) -> Command {
        podman(&self.folder)
    }

    /// Starts [`SCRIPT`] in a container of this name and waits until it is ready.
    ///
    /// # Panics
    /// With Podman's messages, when it does not start.
    #[must_use]
    pub fn start_script(&'static self, name: &str, options: &[&str], python: &Path) -> Container {
        self.start_script_in(IMAGE, name, options, python)
    }

    /// The same in a container of this image.
    ///
    /// # Panics
    /// With Podman's messages, when it does not start.
    #[must_use]
    pub fn start_script_in(
        &'static self,
        image: &str,
        name: &str,
        options: &[&str],
        python: &Path,
    ) -> Container {
        let mut run = self.podman();
        run.args(["run", "--interactive", "--name", name])
            .args(RUN_OPTIONS)
            .args(options)
            .arg(image)
            .arg(python)
            .args(["-I", "-S", "-B"])
            .arg(Path::new("/").join(SCRIPT));
        let mut client = Target::start(&mut run);
        let line = client.line();
        let ids: Option<Vec<u32>> = line.strip_prefix("ready ").map(|ids| {
            ids.split(' ')
                .map(|id| id.parse().expect("an id"))
                .collect()
        });
        let Some([main, worker]) = ids.as_deref() else {
            panic!("the container said `{line}`");
        };
        Container {
            engine: self,
            name: name.to_owned(),
            id: self.inspect(name, "{{.Id}}"),
            pid: Pid(self
                .inspect(name, "{{.State.Pid}}")
                .parse()
                .expect("a process id")),
            inner_tids: [*main, *worker],
            _client: client,
        }
    }

    /// Runs a command in a container of its own to its end; the binary under test is there as `/pyagent`.
    ///
    /// # Panics
    /// When Podman cannot be started.
    #[must_use]
    pub fn run_pyagent(&self, options: &[&str], arguments: &[&str]) -> Output {
        let binary = crate::pyagent::binary().display();
        let mut run = self.podman();
        run.args(["run", "--rm", "--volume", &format!("{binary}:/pyagent:ro")])
            .args(RUN_OPTIONS)
            .args(options)
            .args([IMAGE, "/pyagent"])
            .args(arguments);
        run.output().expect("podman is there")
    }

    /// A folder that containers can be given.
    #[must_use]
    pub fn shared_folder(&self) -> PathBuf {
        let folder = self.folder.join("shared");
        fs::create_dir_all(&folder).expect("it is ours");
        folder
    }

    fn inspect(&self, name: &str, what: &str) -> String {
        let mut inspect = self.podman();
        inspect.args(["inspect", "--format", what, name]);
        let output = inspect.output().expect("podman is there");
        succeeded(&output);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// The folders, on this host, that are the root of an interpreter's own.
#[must_use]
pub fn prepared_root(python: &Interpreter) -> PathBuf {
    prepared_folder(python).join("root")
}

/// The launcher is `bin/python3.N` in it.
fn prepared_folder(python: &Interpreter) -> PathBuf {
    let folder = python.path.parent().and_then(Path::parent);
    folder.unwrap_or(Path::new("/")).to_owned()
}

/// Podman with a storage in this folder.
#[must_use]
pub fn podman(folder: &Path) -> Command {
    let mut podman = Command::new("podman");
    for (option, name) in [
        ("--root", "root"),
        ("--runroot", "run"),
        ("--tmpdir", "tmp"),
    ] {
        podman.arg(option).arg(folder.join(name));
    }
    podman.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
    podman
}

/// A shell that outlives this process, and then removes every container and the folder.
fn janitor(folder: &Path) -> Child {
    let podman = podman(folder);
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            "folder=$1; shift; cat; \"$@\" rm --all --force --time 0; \
             umount --recursive \"$folder/root/overlay\"; rm -rf --one-file-system \"$folder\"",
            "janitor",
        ])
        .arg(folder)
        .arg(podman.get_program())
        .args(podman.get_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C is for the tests alone.
        .process_group(0);
    shell.spawn().expect("a shell is there")
}

/// A running container; removed when dropped.
#[derive(Debug)]
pub struct Container {
    engine: &'static Engine,
    /// Its name.
    pub name: String,
    /// Its id, as Podman says it.
    pub id: String,
    /// Its first process, in our pid namespace.
    pub pid: Pid,
    /// The ids that its own namespace has for its main thread and the other one.
    pub inner_tids: [u32; 2],
    _client: Target,
}

impl Container {
    /// Kills and removes it.
    ///
    /// # Panics
    /// With Podman's messages, when it cannot be removed.
    pub fn remove(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut removal = self.removal();
        // A mount namespace that another process makes meanwhile holds the container's mounts for a moment.
        while !removal.status.success() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(200));
            removal = self.removal();
        }
        succeeded(&removal);
    }

    fn removal(&self) -> Output {
        let mut remove = self.engine.podman();
        remove.args(["rm", "--force", "--ignore", "--time", "0", &self.name]);
        remove.output().expect("podman is there")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What is left, the janitor removes.
        let _ = self.removal();
    }
}

fn succeeded(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
