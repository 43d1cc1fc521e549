//! `pyagent heap`: objects of a process by type.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::exit::ExitError;
use super::named;
use crate::heap::report;
use crate::heap::snapshot::{HeapError, Snapshot};
use crate::ids::Pid;
use crate::process::memory::MemoryError;
use crate::python::discover::{Discoverer, Discovery, Interpreter};

/// Progress is shown when a scan takes longer than this, and then as often.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Objects that are shown one by one.
const N_LARGEST: usize = 10;

/// `pyagent heap`.
#[derive(Debug, Args, Clone)]
pub struct HeapArgs {
    /// The process
    #[arg(long, value_name = "PID", env = "PYAGENT_PID")]
    pub pid: u32,
    /// Types that are shown
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub top: usize,
    /// Print all of it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &HeapArgs) -> Result<ExitCode> {
    let pid = Pid(args.pid);
    let interpreter = interpreter(pid)?;
    let snapshot = take(pid, &interpreter)?;
    let text = if args.json {
        report::json(pid, interpreter.version, &snapshot)
    } else {
        report::table(pid, interpreter.version, &snapshot, args.top)
    };
    let mut stdout = std::io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// The interpreter of a process, or why there is none.
pub(super) fn interpreter(pid: Pid) -> Result<Interpreter> {
    named::check(&[pid.0])?;
    match Discoverer::default().discover(pid, &mut |_| {}) {
        Discovery::Python(interpreter) => Ok(*interpreter),
        Discovery::Gone => Err(gone(pid).into()),
        Discovery::NotYet | Discovery::NotPython { .. } => {
            bail!("process {pid} does not run Python yet: try again, or ask `pyagent doctor {pid}`")
        }
        Discovery::Refused { refusal, .. } => bail!("process {pid}: {refusal}"),
    }
}

fn gone(pid: Pid) -> ExitError {
    ExitError::NothingMatched(format!("process {pid} has ended"))
}

fn take(pid: Pid, interpreter: &Interpreter) -> Result<Snapshot> {
    let mut progress = Progress::new();
    let snapshot = Snapshot::take(pid, interpreter, N_LARGEST, &mut |n_done, n_all| {
        progress.advance(n_done, n_all);
    });
    progress.finish();
    snapshot.map_err(|error| explained(pid, error))
}

/// What to do about it.
pub(super) fn explained(pid: Pid, error: HeapError) -> anyhow::Error {
    match error {
        HeapError::Memory(MemoryError::Gone) => gone(pid).into(),
        HeapError::Memory(MemoryError::Denied) => {
            anyhow::Error::from(error).context(format!("process {pid}: run pyagent with sudo"))
        }
        error => error.into(),
    }
}

/// A line on a terminal that says how far it is.
struct Progress {
    shown: Instant,
    is_terminal: bool,
    has_line: bool,
}

impl Progress {
    fn new() -> Self {
        Self {
            shown: Instant::now(),
            is_terminal: std::io::stderr().is_terminal(),
            has_line: false,
        }
    }

    fn advance(&mut self, n_done: u64, n_all: u64) {
        if self.is_terminal && self.shown.elapsed() > PROGRESS_INTERVAL {
            self.shown = Instant::now();
            self.has_line = true;
            tell_part!("\r{:3} % read", n_done * 100 / n_all.max(1));
        }
    }

    fn finish(&self) {
        if self.has_line {
            tell_part!("\r\x1b[K");
        }
    }
}
