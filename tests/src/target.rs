//! A process to look at: started by a test, ready when it has said so, gone with the test.
//!
//! Readiness is a line on its standard output; it lives until its standard input closes, or is killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use profiler_agent::ids::Pid;
use profiler_agent::python::discover::{Discoverer, Discovery, Interpreter};
use rustix::process::{Resource, Rlimit, prlimit};

use crate::interpreters;

/// CPU time after which the kernel ends a target, should its test have been killed.
const MAX_CPU_SECONDS: u64 = 300;

/// A running process; killed when dropped.
#[derive(Debug)]
pub struct Target {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Target {
    /// Starts a command, with pipes to its standard input and output.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        limit_cpu_time(&child);
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Self {
            child,
            input,
            output,
        }
    }

    /// Starts Python code (`-c`), undisturbed by the caller's environment.
    #[must_use]
    pub fn python(python: &interpreters::Interpreter, code: &str, arguments: &[&str]) -> Self {
        Self::start(
            Command::new(&python.path)
                .args(["-I", "-S", "-B", "-c", code])
                .args(arguments),
        )
    }

    /// The next line that it prints, without its end; empty when it has ended.
    ///
    /// # Panics
    /// When the line is not text.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .expect("the target prints text");
        line.truncate(line.trim_end().len());
        line
    }

    /// Reads a line of what it prints after which it waits for an answer, and until it does: what it made in between is gone.
    ///
    /// # Panics
    /// When it prints something else than text, or does not wait for its standard input within a minute.
    pub fn asked(&mut self) -> String {
        let line = self.line();
        let deadline = Instant::now() + Duration::from_secs(60);
        // The kernel shows the number and the arguments of a blocked system call: it reads from 0.
        let waits = format!("{} 0x0 ", nix::libc::SYS_read);
        let path = format!("/proc/{}/syscall", self.pid());
        while !std::fs::read_to_string(&path).is_ok_and(|call| call.starts_with(&waits)) {
            assert!(Instant::now() < deadline, "it does not wait for an answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        line
    }

    /// Writes a line to its standard input.
    ///
    /// # Panics
    /// When it has closed it.
    pub fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("it is closed only here");
        writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .expect("the target reads");
    }

    /// Closes its standard input, which ends it if it was made so, and waits for its end.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn finish(&mut self) -> std::process::ExitStatus {
        drop(self.input.take());
        self.child.wait().expect("it was started here")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// Its interpreter, as the agent discovers it. The process must have run Python code already.
    ///
    /// # Panics
    /// When it is not discovered.
    #[must_use]
    pub fn interpreter(&self) -> Interpreter {
        match Discoverer::default().discover(self.pid(), &mut |_| {}) {
            Discovery::Python(interpreter) => *interpreter,
            other => panic!("{}: {other:?}", self.pid()),
        }
    }
}

fn limit_cpu_time(child: &Child) {
    let limit = Rlimit {
        current: Some(MAX_CPU_SECONDS),
        maximum: Some(MAX_CPU_SECONDS),
    };
    // One that has ended already needs none.
    let _ = prlimit(
        Some(rustix::process::Pid::from_child(child)),
        Resource::Cpu,
        limit,
    );
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
