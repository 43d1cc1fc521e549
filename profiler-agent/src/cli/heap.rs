//! `pyagent heap`: objects of a process by type.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::ending::Ending;
use super::exit::ExitError;
use super::freeze::{self, Freezing, Suspension};
use super::named;
use super::output::print;
use crate::config::parse_duration;
use crate::format::escape;
use crate::format::file::{FileError, Target};
use crate::heap::chart::Chart;
use crate::heap::mark::{self, MarkPlace};
use crate::heap::report::{self, Document};
use crate::heap::show;
use crate::heap::snapshot::{HeapError, Snapshot};
use crate::heap::stopped::Stopped;
use crate::ids::Pid;
use crate::process::facts::{self, Stat};
use crate::process::memory::MemoryError;
use crate::process::program::ProgramId;
use crate::python::discover::Interpreter;

/// Progress is shown when a scan takes longer than this, and then as often.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Objects that are shown one by one.
const N_LARGEST: usize = 10;

/// `pyagent heap`.
#[derive(Debug, Args, Clone)]
#[command(
    after_help = "Examples:\n  sudo pyagent heap --pid 1234                      what is the memory made of?\n  sudo pyagent heap --pid 1234 --mark               remember it, and later:\n  sudo pyagent heap --pid 1234 --diff               what became more since?\n  sudo pyagent heap --pid 1234 --show app.Session   which ones, and who holds them?\n  sudo pyagent heap --pid 1234 --every 10s -o heap.html",
    after_long_help = "Examples:\n  sudo pyagent heap --pid 1234                      what is the memory made of?\n  sudo pyagent heap --pid 1234 --mark               remember it, and later:\n  sudo pyagent heap --pid 1234 --diff               what became more since?\n  sudo pyagent heap --pid 1234 --show app.Session   which ones, and who holds them?\n  sudo pyagent heap --pid 1234 --every 10s -o heap.html\n\nThe process runs on, and no page is read that is not in memory already: what is swapped out is not counted, and said to be missing. Sizes are those of sys.getsizeof: of an object alone, not of what it refers to.\n\nMarks lie in $XDG_STATE_HOME/pyagent, else in /var/lib/pyagent (root) or ~/.local/state/pyagent, one for each process, the last one. Those of processes that have ended, and those older than 7 days, are removed when another one is made or read."
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
    /// Stop the process while it is looked at, for TIME at most (1s without, 10s at most)
    ///
    /// All counts are of one moment then. Nothing runs in the process meanwhile: it answers nobody, its timeouts go on,
    /// and it stands for as long as the memory takes to be read, some 0.2 s for 100 MB. It is stopped as by a debugger
    /// (ptrace): no SIGSTOP is sent, signals that come are delivered afterwards, and if pyagent dies the kernel lets it go on.
    /// After TIME it goes on too, and the report says how much had been read. Each look of --every stops it. System calls
    /// that wait, such as epoll_wait, can return early with EINTR: Python calls them again, a library in C must do so itself.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = freeze::DEFAULT, value_parser = freeze::parse_limit)]
    pub freeze: Option<Duration>,
    /// Print all of it as JSON
    #[arg(long, conflicts_with = "every")]
    pub json: bool,
}

/// Runs the command.
pub async fn run(args: HeapArgs) -> Result<ExitCode> {
    let pid = Pid(args.pid);
    if let Some(path) = &args.output {
        check_ending(path)?;
    }
    let interpreter = named::interpreter(pid)?;
    let suspension = Suspension::put_off(args.freeze.is_some())?;
    if let (Some(interval), Some(path)) = (args.every, &args.output) {
        let page = Page::new(path, args.top)?;
        let freezing = Freezing::for_at_most(args.freeze);
        return watch(pid, interpreter, interval, page, &freezing, suspension).await;
    }
    if let Some(name) = &args.show {
        return show_type(pid, &interpreter, name, &args);
    }
    count(pid, &interpreter, &args)
}

/// Counts once.
fn count(pid: Pid, interpreter: &Interpreter, args: &HeapArgs) -> Result<ExitCode> {
    let place = MarkPlace::new(pid, start_ticks(pid)?);
    // Read first: without it there is no need to look.
    let earlier = match &args.diff {
        None => None,
        Some(Some(path)) => Some(mark::read(path)?),
        Some(None) => Some(place.read()?),
    };
    let program = ProgramId::of_process(pid).ok();
    let (snapshot, stopped) = take(pid, interpreter, &Freezing::for_at_most(args.freeze))?;
    let document = Document::new(pid, interpreter.version, program, &snapshot, stopped);
    let changes = earlier
        .as_ref()
        .map(|earlier| report::diff(earlier, &document));
    for warning in changes.iter().flat_map(|changes| &changes.warnings) {
        tell!("pyagent: {warning}");
    }
    if args.mark {
        let path = place.write(&document)?;
        tell!(
            "remembered in {}; `pyagent heap --pid {pid} --diff` compares with it",
            escape(&path.to_string_lossy())
        );
        if !args.json {
            if let Some(stopped) = &document.stopped {
                tell!("{}", stopped.in_words());
            }
            return Ok(ExitCode::SUCCESS);
        }
    }
    print(&match (&earlier, &changes, args.json) {
        (Some(_), Some(changes), true) => report::json(changes),
        (Some(earlier), Some(changes), false) => report::diff_table(earlier, changes, args.top),
        (_, _, true) => report::json(&document),
        (_, _, false) => report::table(&document, args.top),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The page of `--every` is HTML.
fn check_ending(path: &Path) -> Result<(), ExitError> {
    if path.extension().is_some_and(|ending| ending == "html") {
        return Ok(());
    }
    let name = path.to_string_lossy();
    let message = format!(
        "`{}` does not end with .html: --every writes a page",
        escape(&name)
    );
    Err(ExitError::Usage(message))
}

fn show_type(pid: Pid, interpreter: &Interpreter, name: &str, args: &HeapArgs) -> Result<ExitCode> {
    let mut progress = Progress::new();
    let shown = Freezing::for_at_most(args.freeze).look(
        pid,
        |advance| {
            let shown = show::show(pid, interpreter, name, args.top, advance);
            shown.map_err(|error| explained(pid, error))
        },
        |n_done, n_all| progress.advance(n_done, n_all),
    );
    progress.finish();
    let (mut shown, stopped) = shown?;
    shown.stopped = stopped;
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

/// Counts until the process ends, runs another program, or somebody ends it. Each time the whole file is written anew, so
/// that nothing is lost then; what could not be written is in the next one.
async fn watch(
    pid: Pid,
    interpreter: Interpreter,
    interval: Duration,
    mut page: Page,
    freezing: &Freezing,
    mut suspension: Suspension,
) -> Result<ExitCode> {
    let mut ending = Ending::new()?;
    let mut chart = Chart::new(pid, interpreter.version);
    let life = Life::of_process(pid)?;
    let interpreter = Arc::new(interpreter);
    let why = loop {
        let started = Instant::now();
        let (interpreter, freezing_of_look) = (Arc::clone(&interpreter), freezing.clone());
        let look = tokio::task::spawn_blocking(move || take(pid, &interpreter, &freezing_of_look));
        let taken = tokio::select! {
            taken = look => taken.context("cannot look at the heap")?,
            () = ending.received() => {
                freezing.release.ask();
                break "ended".to_owned();
            }
        };
        if let Some(end) = life.end() {
            break end;
        }
        let (snapshot, stopped) = taken?;
        chart.add(SystemTime::now(), &snapshot);
        page.write(&chart, stopped.as_ref());
        let pause = interval.saturating_sub(started.elapsed());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = ending.received() => break "ended".to_owned(),
            () = suspension.done() => {}
        }
        // Another process can have the number by now.
        if let Some(end) = life.end() {
            break end;
        }
    };
    if chart.is_empty() {
        bail!("{why} before the first look: nothing was written");
    }
    page.finish(&why)?;
    Ok(ExitCode::SUCCESS)
}

/// The file of `--every`.
struct Page {
    target: Target,
    /// Its name, made harmless.
    name: String,
    n_types: usize,
    /// Why the last one could not be written.
    failure: Option<FileError>,
}

impl Page {
    fn new(path: &Path, n_types: usize) -> Result<Self> {
        let target = Target::named(path.to_owned());
        target.check()?;
        Ok(Self {
            target,
            name: escape(&path.to_string_lossy()).into_owned(),
            n_types,
            failure: None,
        })
    }

    /// Writes all of it. Of failures in a row the first is told.
    fn write(&mut self, chart: &Chart, stopped: Option<&Stopped>) {
        let html = chart.html(self.n_types);
        let written = self.target.write_with(|out| out.write_all(html.as_bytes()));
        match (&written, &self.failure) {
            (Ok(()), _) => {
                let n_looks = chart.n_looks();
                let noun = if n_looks == 1 { "look" } else { "looks" };
                let stopped =
                    stopped.map_or(String::new(), |stopped| format!(", {}", stopped.in_words()));
                tell!(
                    "{}: {} objects, {n_looks} {noun}{stopped}",
                    self.name,
                    chart.last_count()
                );
            }
            (Err(error), None) => tell!("pyagent: {error}; it is tried again after each look"),
            (Err(_), Some(_)) => {}
        }
        self.failure = written.err();
    }

    fn finish(self, why: &str) -> Result<(), FileError> {
        match self.failure {
            Some(failure) => Err(failure),
            None => {
                tell!("{why}: {} is complete", self.name);
                Ok(())
            }
        }
    }
}

/// One life of a process: from an exec to the next one, or to its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    pid: Pid,
    start_ticks: u64,
    program: Option<ProgramId>,
}

impl Life {
    /// That which a process has now.
    pub(super) fn of_process(pid: Pid) -> Result<Self> {
        Ok(Self {
            pid,
            start_ticks: start_ticks(pid)?,
            program: ProgramId::of_process(pid).ok(),
        })
    }

    /// How it has ended, in words.
    pub(super) fn end(&self) -> Option<String> {
        let pid = self.pid;
        if start_ticks(pid).ok() != Some(self.start_ticks) || !facts::is_alive(pid) {
            return Some(format!("process {pid} has ended"));
        }
        let program = self.program.zip(ProgramId::of_process(pid).ok());
        program
            .filter(|(before, now)| before != now)
            .map(|_| format!("process {pid} runs another program now (exec)"))
    }
}

fn start_ticks(pid: Pid) -> Result<u64> {
    let stat = Stat::read(&format!("/proc/{pid}/stat")).map_err(|_| named::gone(pid))?;
    Ok(stat.start_ticks)
}

fn take(
    pid: Pid,
    interpreter: &Interpreter,
    freezing: &Freezing,
) -> Result<(Snapshot, Option<Stopped>)> {
    let mut progress = Progress::new();
    let taken = freezing.look(
        pid,
        |advance| {
            let snapshot = Snapshot::take(pid, interpreter, N_LARGEST, advance);
            snapshot.map_err(|error| explained(pid, error))
        },
        |n_done, n_all| progress.advance(n_done, n_all),
    );
    progress.finish();
    taken
}

/// What to do about it.
pub(super) fn explained(pid: Pid, error: HeapError) -> anyhow::Error {
    match error {
        HeapError::Memory(MemoryError::Gone) => named::gone(pid).into(),
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
