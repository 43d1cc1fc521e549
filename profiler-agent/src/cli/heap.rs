//! `pyagent heap`: objects of a process by type.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::exit::ExitError;
use super::named;
use crate::config::parse_duration;
use crate::format::escape;
use crate::format::file::Target;
use crate::heap::chart::Chart;
use crate::heap::mark::{self, MarkPlace};
use crate::heap::report::{self, Document};
use crate::heap::show;
use crate::heap::snapshot::{HeapError, Snapshot};
use crate::ids::Pid;
use crate::process::facts::Stat;
use crate::process::memory::MemoryError;
use crate::python::discover::{Discoverer, Discovery, Interpreter};

/// Progress is shown when a scan takes longer than this, and then as often.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Objects that are shown one by one.
const N_LARGEST: usize = 10;

/// `pyagent heap`.
#[derive(Debug, Args, Clone)]
#[command(
    after_long_help = "Examples:\n  sudo pyagent heap --pid 1234                      what is the memory made of?\n  sudo pyagent heap --pid 1234 --mark               remember it, and later:\n  sudo pyagent heap --pid 1234 --diff               what became more since?\n  sudo pyagent heap --pid 1234 --show app.Session   which ones, and who holds them?\n  sudo pyagent heap --pid 1234 --every 10s -o heap.html\n\nThe process runs on, and no page is read that is not in memory already: what is swapped out is not counted, and\nsaid to be missing. Sizes are those of sys.getsizeof: of an object alone, not of what it refers to."
)]
pub struct HeapArgs {
    /// The process
    #[arg(long, value_name = "PID", env = "PYAGENT_PID")]
    pub pid: u32,
    /// Types that are shown
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub top: usize,
    /// Remember the counts, for --diff
    #[arg(long, conflicts_with_all = ["diff", "show", "every"])]
    pub mark: bool,
    /// Show what became more or less since --mark, or since what --json wrote to FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with_all = ["show", "every"])]
    pub diff: Option<Option<PathBuf>>,
    /// Show the objects of a type, such as app.Session, and who refers to them
    #[arg(long, value_name = "TYPE", conflicts_with = "every")]
    pub show: Option<String>,
    /// Count again and again, until Ctrl-C or the process's end, and draw how the counts change
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "output")]
    pub every: Option<Duration>,
    /// HTML file for --every
    #[arg(long, short, value_name = "FILE", requires = "every")]
    pub output: Option<PathBuf>,
    /// Print all of it as JSON
    #[arg(long, conflicts_with = "every")]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &HeapArgs) -> Result<ExitCode> {
    let pid = Pid(args.pid);
    let interpreter = interpreter(pid)?;
    if let (Some(interval), Some(path)) = (args.every, &args.output) {
        return watch(pid, &interpreter, interval, path, args.top);
    }
    if let Some(name) = &args.show {
        return show_type(pid, &interpreter, name, args);
    }
    let place = MarkPlace::new(pid, start_ticks(pid)?);
    // Read first: without it there is no need to look.
    let earlier = match &args.diff {
        None => None,
        Some(Some(path)) => Some(mark::read(path)?),
        Some(None) => Some(place.read()?),
    };
    let snapshot = take(pid, &interpreter)?;
    let document = Document::new(pid, interpreter.version, &snapshot);
    if args.mark {
        let path = place.write(&document)?;
        tell!(
            "remembered in {}; `pyagent heap --pid {pid} --diff` compares with it",
            escape(&path.to_string_lossy())
        );
        if !args.json {
            return Ok(ExitCode::SUCCESS);
        }
    }
    print(&match (&earlier, args.json) {
        (Some(earlier), true) => report::json(&report::diff(earlier, &document)),
        (Some(earlier), false) => {
            report::diff_table(earlier, &report::diff(earlier, &document), args.top)
        }
        (None, true) => report::json(&document),
        (None, false) => report::table(&document, args.top),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")
}

fn show_type(pid: Pid, interpreter: &Interpreter, name: &str, args: &HeapArgs) -> Result<ExitCode> {
    let mut progress = Progress::new();
    let shown = show::show(pid, interpreter, name, args.top, &mut |n_done, n_all| {
        progress.advance(n_done, n_all);
    });
    progress.finish();
    let shown = shown.map_err(|error| explained(pid, error))?;
    if shown.n_objects == 0 {
        let hint = "`pyagent heap --pid` lists the types by their full names";
        return Err(ExitError::NothingMatched(format!(
            "process {pid} has no object of type {}: {hint}",
            escape(name)
        ))
        .into());
    }
    print(&if args.json {
        report::json(&shown)
    } else {
        show::table(&shown)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Counts until the process ends. Each time the whole file is written anew, so that Ctrl-C loses nothing.
fn watch(
    pid: Pid,
    interpreter: &Interpreter,
    interval: Duration,
    path: &Path,
    n_types: usize,
) -> Result<ExitCode> {
    let target = Target::named(path.to_owned());
    target.check()?;
    let mut chart = Chart::new(pid, interpreter.version);
    let start_ticks = start_ticks(pid)?;
    loop {
        let started = Instant::now();
        match take(pid, interpreter) {
            Ok(snapshot) => chart.add(SystemTime::now(), &snapshot),
            Err(_) if Stat::read(&format!("/proc/{pid}/stat")).is_err() && !chart.is_empty() => {
                tell!(
                    "process {pid} has ended: {} is complete",
                    escape(&path.to_string_lossy())
                );
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => return Err(error),
        }
        target.write_with(|out| out.write_all(chart.html(n_types).as_bytes()))?;
        tell!(
            "{}: {} objects, {} looks",
            escape(&path.to_string_lossy()),
            chart.last_count(),
            chart.n_looks()
        );
        std::thread::sleep(interval.saturating_sub(started.elapsed()));
        // Another process can have the number by now.
        if self::start_ticks(pid).ok() != Some(start_ticks) {
            tell!(
                "process {pid} has ended: {} is complete",
                escape(&path.to_string_lossy())
            );
            return Ok(ExitCode::SUCCESS);
        }
    }
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

fn start_ticks(pid: Pid) -> Result<u64> {
    let stat = Stat::read(&format!("/proc/{pid}/stat")).map_err(|_| gone(pid))?;
    Ok(stat.start_ticks)
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
