//! A workload that runs: started, traced, told to go, looked at when it says that it is done.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::time::{ClockId, clock_getcpuclockid};
use pyagent_tests::interpreters::Interpreter;
use serde::Deserialize;

use super::legal::{Function, Legal};

/// One row of the table of workloads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    /// Its file in `workloads/live`, without the ending.
    pub(crate) name: &'static str,
    /// CPU time for which it is sampled.
    pub(crate) cpu_seconds: f64,
    /// Its processes begin or end while they are sampled.
    pub(crate) has_young_processes: bool,
}

/// What a workload says of itself when it is done.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    /// Functions, and the CPU seconds that they and what they call took.
    pub(crate) shares: Vec<(Function, f64)>,
    /// Threads: id, name, function, CPU seconds, those of them in which the host had paused.
    pub(crate) threads: Vec<(i64, String, Function, f64, f64)>,
    /// CPU seconds in which the host had paused, as far as its passes show them.
    pub(crate) paused: f64,
    /// Recursions: the function, the one at its bottom, the depth.
    pub(crate) depths: Vec<(String, String, usize)>,
    /// Functions that were made and died: name, first line, CPU seconds, times that the thread was switched.
    pub(crate) made: Vec<(String, u32, f64, u64)>,
    /// CPU seconds of the children that have ended.
    pub(crate) children_cpu: f64,
}

/// A running workload; killed when dropped.
pub(crate) struct Running {
    pub(crate) workload: Workload,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    legal: PathBuf,
    cpu_before: f64,
}

/// Folder of the workloads.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/live")
}

impl Running {
    /// Starts a workload; it traces itself meanwhile. `script` is its file, `dir` is for what it writes, `next`
    /// is the interpreter that it may become.
    pub(crate) fn start(
        workload: Workload,
        script: &Path,
        python: &Interpreter,
        next: &Path,
        dir: &Path,
    ) -> Self {
        let legal = dir.join(format!("{}.legal", workload.name));
        let mut command = Command::new(&python.path);
        command.args(["-B", "-W", "ignore"]);
        if workload.has_young_processes {
            // The programs that it starts find `sitecustomize` there.
            command
                .env("PYTHONPATH", folder())
                .env("LIVE_LEGAL", &legal);
        } else {
            command.args(["-I", "-S"]);
        }
        let mut child = command
            .arg(folder().join("harness.py"))
            .arg(script)
            .arg(workload.cpu_seconds.to_string())
            .arg(&legal)
            .env("PYTHONIOENCODING", "utf-8")
            .env("LC_ALL", "C.UTF-8")
            .env("LIVE_NEXT", next)
            .env("LIVE_AFTER", folder().join("exec_after.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self {
            workload,
            child,
            stdin,
            stdout,
            legal,
            cpu_before: 0.0,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self, expected: &str) -> Report {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let name = self.workload.name;
        let (what, report): (String, Report) =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{name}: {error}: {line:?}"));
        assert_eq!(what, expected, "{name}");
        report
    }

    /// Waits until it can be sampled.
    pub(crate) fn wait_until_ready(&mut self) {
        self.line("ready");
        self.cpu_before = self.cpu_seconds();
    }

    /// Lets it run.
    pub(crate) fn go(&mut self) {
        self.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// Waits until it has run; returns what it says of itself, what is legal, and the CPU seconds that it and
    /// its children took.
    pub(crate) fn wait_until_done(&mut self) -> (Report, Legal, f64) {
        let report = self.line("done");
        if self.workload.name == "exec_before" {
            // The program that it has become is done too.
            self.line("done");
        }
        let cpu = self.cpu_seconds() - self.cpu_before + report.children_cpu;
        let mut legal = Legal::read(&self.legal);
        legal.pids.insert(i64::from(self.pid()));
        (report, legal, cpu)
    }

    /// What the kernel says of the CPU time of all its threads, dead ones too (utime + stime, not rounded).
    fn cpu_seconds(&self) -> f64 {
        let pid = nix::unistd::Pid::from_raw(self.pid().cast_signed());
        let time = clock_getcpuclockid(pid).and_then(ClockId::now).unwrap();
        time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stdin.take();
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
