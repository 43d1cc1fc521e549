//! The processes that are measured: a busy one, alone on a CPU, and idle ones.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::interpreters::Interpreter;

/// What the stack of a busy process is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// One function that calls itself.
    Recursion,
    /// Functions that are all different.
    Functions,
}

impl Stack {
    /// As the workload and the report call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Recursion => "recursion",
            Self::Functions => "functions",
        }
    }
}

/// A process that talks over a pipe. It is killed when this is dropped.
#[derive(Debug)]
pub struct Target {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// Times of many equal pieces of work.
#[derive(Debug, Clone, Copy)]
pub struct Pieces {
    /// Of the fastest piece, in nanoseconds.
    pub best_ns: f64,
    /// Of all the time by the number of pieces, in nanoseconds.
    pub mean_ns: f64,
}

impl Target {
    /// A process that is alone on the last CPU, before all others (`chrt -f`). Returns when it is ready.
    pub fn busy(
        interpreter: &Interpreter,
        stack: Stack,
        depth: u32,
        n_idle_threads: u32,
    ) -> Result<Self> {
        let cpu = std::thread::available_parallelism().map_or(1, usize::from) - 1;
        let mut command = Command::new("chrt");
        command.args(["-f", "10", "taskset", "-c", &cpu.to_string()]);
        command
            .arg(&interpreter.path)
            .args(["-I", "-S", "-B"])
            .arg(workload("bench_target.py"));
        command.args([
            stack.name(),
            &depth.to_string(),
            &n_idle_threads.to_string(),
        ]);
        Self::start(command)
    }

    /// A process that waits and never runs: on no CPU of its own, where a busy one would keep it from ending.
    pub fn idle(interpreter: &Interpreter) -> Result<Self> {
        let mut command = interpreter.command(&workload("bench_target.py"));
        command.args([Stack::Recursion.name(), "10", "0"]);
        Self::start(command)
    }

    /// A process that sleeps and works for a millisecond now and then; `marker` is its last argument.
    pub fn sleeper(interpreter: &Interpreter, marker: &str) -> Result<Self> {
        let mut command = interpreter.command(&workload("bench_sleeper.py"));
        command.arg(marker);
        Self::start(command)
    }

    fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let stdin = child.stdin.take().context("a pipe was asked for")?;
        let stdout = BufReader::new(child.stdout.take().context("a pipe was asked for")?);
        let mut target = Self {
            child,
            stdin,
            stdout,
        };
        let line = target.line()?;
        ensure!(line == "ready", "the target said {line:?}");
        Ok(target)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it work until it is dropped.
    pub fn spin(&mut self) -> Result<()> {
        self.tell("spin")
    }

    /// Rounds that take `piece_ns` when nothing disturbs.
    pub fn rounds_of(&mut self, piece_ns: f64) -> Result<u64> {
        const TRIAL_ROUNDS: u64 = 10_000;
        self.tell(&format!("time {TRIAL_ROUNDS}"))?;
        let trial_ns: f64 = self.line()?.parse().context("a time in nanoseconds")?;
        Ok((TRIAL_ROUNDS as f64 * piece_ns / trial_ns) as u64)
    }

    /// Lets it do pieces of `n_rounds` for `seconds`.
    pub fn pieces(&mut self, n_rounds: u64, seconds: f64) -> Result<Pieces> {
        self.tell(&format!("pieces {n_rounds} {seconds}"))?;
        let line = self.line()?;
        let mut numbers = line.split(' ').map(str::parse);
        let mut next = || {
            numbers
                .next()
                .context("a number")
                .and_then(|number| Ok(number?))
        };
        Ok(Pieces {
            best_ns: next()?,
            mean_ns: next()?,
        })
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        writeln!(self.stdin, "{command}").context("the target has gone")
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It can have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn workload(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("workloads")
        .join(name)
}
