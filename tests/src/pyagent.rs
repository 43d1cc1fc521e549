//! The binary under test, as a process of its own: for what a process can do to the host, or have done to it.

use std::env;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use profiler_agent::ids::Pid;

/// `$PYAGENT_BIN`, else the one of this build, which is made first where it is missing or old.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match env::var_os("PYAGENT_BIN") {
        Some(path) => path.into(),
        None => build(),
    })
}

/// Runs a verb with this on its standard input, to its end.
///
/// # Panics
/// When it cannot be started.
pub fn run(verb: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(binary())
        .arg(verb)
        .args(arguments)
        .env_remove("PYAGENT_ADDR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pyagent can be started");
    // It may have refused its arguments already.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("the child is ours")
}

/// What it printed.
///
/// # Panics
/// When it failed.
#[must_use]
pub fn text(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The test's own executable lies in `deps` of the folder that the binary is in.
fn build() -> PathBuf {
    let own = env::current_exe().expect("/proc/self/exe");
    let folder = own
        .parent()
        .and_then(|deps| deps.parent())
        .expect("cargo's folders");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args([
        "build",
        "--quiet",
        "--package",
        "profiler-agent",
        "--bin",
        "pyagent",
    ]);
    if folder.ends_with("release") {
        build.arg("--release");
    }
    let status = build
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs the tests");
    assert!(status.success(), "pyagent cannot be built");
    folder.join("pyagent")
}

/// A running pyagent; killed when dropped.
#[derive(Debug)]
pub struct Pyagent {
    child: Child,
    /// What it has printed on standard error until it was ready.
    pub greeting: String,
    errors: BufReader<std::process::ChildStderr>,
}

impl Pyagent {
    /// Starts it and waits for a line of its standard error that contains `ready`.
    ///
    /// # Panics
    /// With what it printed, when it ends before.
    #[must_use]
    pub fn start(arguments: &[&str], ready: &str) -> Self {
        Self::start_by(Command::new(binary()).args(arguments), ready)
    }

    /// The same by a command that is or becomes pyagent.
    ///
    /// # Panics
    /// With what it printed, when it ends before.
    #[must_use]
    pub fn start_by(command: &mut Command, ready: &str) -> Self {
        let mut child = command
            // What a test does not ask for is not kept on the host.
            .env(
                "PYAGENT_DATA_DIR",
                env::var_os("PYAGENT_DATA_DIR").unwrap_or("none".into()),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary is there");
        let mut errors = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut greeting = String::new();
        while !greeting.contains(ready) {
            let n_read = errors.read_line(&mut greeting).expect("it prints text");
            assert!(n_read > 0, "pyagent ended: {greeting}");
        }
        Self {
            child,
            greeting,
            errors,
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// Where it serves, from what it said.
    ///
    /// # Panics
    /// When it did not say so.
    #[must_use]
    pub fn address(&self) -> String {
        let said = self.greeting.split("serving gRPC and HTTP on ").nth(1);
        let address = said.and_then(|rest| rest.split(';').next());
        address.expect("it serves").to_owned()
    }

    /// Asks it to end (SIGTERM) and waits for it; what it printed since it was ready.
    ///
    /// # Panics
    /// When it failed.
    pub fn stop(mut self) -> String {
        let pid = nix::unistd::Pid::from_raw(self.pid().0.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
        let (rest, is_success) = self.finish();
        assert!(is_success, "{rest}");
        rest
    }

    /// Kills it (SIGKILL): it has no chance to clean up.
    ///
    /// # Panics
    /// When it had ended already.
    pub fn kill(&mut self) {
        assert_eq!(
            self.child.try_wait().expect("it is a child"),
            None,
            "it still runs"
        );
        self.child.kill().expect("it is a child");
        self.child.wait().expect("it is a child");
    }

    /// Waits for its end; what it printed since, and whether it succeeded.
    ///
    /// # Panics
    /// When it printed what is no text.
    pub fn finish(&mut self) -> (String, bool) {
        let mut rest = String::new();
        self.errors
            .read_to_string(&mut rest)
            .expect("it prints text");
        (rest, self.child.wait().expect("it is a child").success())
    }
}

impl Drop for Pyagent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
