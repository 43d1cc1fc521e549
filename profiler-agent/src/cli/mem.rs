//! `pyagent mem`: the memory of Python processes over time, live or into a file.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{Instant as TokioInstant, sleep_until};

use super::ending::Ending;
use super::exit::ExitError;
use super::log::LogArgs;
use super::output::print;
use super::{MemArgs, named, own_agent};
use crate::agent::AgentAsker;
use crate::format::file::Target;
use crate::format::{escape, unix_seconds};
use crate::heap::parts;
use crate::ids::Pid;
use crate::process::facts;
use crate::profile::memory::{MemoryInfo, Parts};
use crate::profile::model::{Profile, ProfileType};
use crate::profile::query::ProcessFilter;
use crate::serve::query::{ProcessState, PullError, PullRequest, Query};
use crate::view::memory::{MemoryWatch, Observed, SortKey, Watched, mprof, png, svg};

/// Columns of the table where there is no terminal.
const PLAIN_WIDTH: usize = 200;

/// The agent answers a question about itself within this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How the file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    /// For `mprof plot`; of this process and its children.
    Mprof(u32),
    Svg,
    Png,
    Json,
}

/// Runs the command until its time is over, what was named has ended, or Ctrl-C.
pub async fn run(args: MemArgs, log: &LogArgs) -> Result<ExitCode> {
    let file = args
        .output
        .as_deref()
        .map(|path| file_kind(path, &args))
        .transpose()?;
    let target = args.output.clone().map(Target::named);
    if let Some(target) = &target {
        target.check()?;
    }
    let types = [ProfileType::Faults, ProfileType::Cpu];
    let agent = own_agent::start(&args.selection, &args.sampling, &types, log).await?;
    let (mut watch, rest) = watch(&args, &agent.asker(), file).await?;
    tokio::task::spawn_blocking(|| agent.stop())
        .await
        .context("the agent did not stop")?;
    if let Some(faults) = rest.get().await {
        watch.add_touched(&faults);
    }
    if watch.all().next().is_none() {
        return Err(nothing_seen().into());
    }
    if let (Some(target), Some(path), Some(kind)) = (target, &args.output, file) {
        let bytes = match kind {
            FileKind::Mprof(pid) => mprof::dat(&watch, pid).into_bytes(),
            FileKind::Svg => svg::svg(&watch).ok_or_else(nothing_seen)?.into_bytes(),
            FileKind::Png => png::png(&watch).ok_or_else(nothing_seen)?,
            FileKind::Json => format!("{:#}\n", as_json(&watch)).into_bytes(),
        };
        target.write_with(|out| out.write_all(&bytes))?;
        tell!("wrote {}", escape(&path.to_string_lossy()));
    }
    Ok(ExitCode::SUCCESS)
}

fn nothing_seen() -> ExitError {
    let message = "no Python process that was selected ran meanwhile; `pyagent doctor PID` says why one is not seen";
    ExitError::NothingMatched(message.to_owned())
}

fn file_kind(path: &Path, args: &MemArgs) -> Result<FileKind, ExitError> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    match (extension, args.selection.pid.as_slice()) {
        (Some("dat"), [pid]) => Ok(FileKind::Mprof(*pid)),
        (Some("dat"), _) => {
            let message = "a .dat file of mprof has one process and its children: choose it by --pid PID (and --subprocesses)";
            Err(ExitError::Usage(message.to_owned()))
        }
        (Some("svg"), _) => Ok(FileKind::Svg),
        (Some("png"), _) => Ok(FileKind::Png),
        (Some("json"), _) => Ok(FileKind::Json),
        _ => {
            let name = path.to_string_lossy();
            let message = format!(
                "`{}` does not tell the format: end it with .svg, .png, .json or .dat (for mprof plot)",
                escape(&name)
            );
            Err(ExitError::Usage(message))
        }
    }
}

/// Looks again and again, and shows what it sees. With it come the page faults since the last look, to be had when the
/// agent has ended.
async fn watch(
    args: &MemArgs,
    asker: &AgentAsker,
    file: Option<FileKind>,
) -> Result<(MemoryWatch, Faults)> {
    let mut ending = Ending::new()?;
    let mut watch = MemoryWatch::default();
    let mut screen = Screen::new(args, file)?;
    let begun = TokioInstant::now();
    let end = args.duration.map(|length| begun + length);
    // The time that is left counts, where that is less than the interval.
    let next_after = |last: TokioInstant| {
        let next = (last + args.every).max(TokioInstant::now());
        end.map_or(next, |end| next.min(end))
    };
    let mut next = next_after(begun);
    let mut parts = PartsReader::new(&args.selection.pid);
    let mut faults = Faults::begin(asker, next - begun);
    watch.add(SystemTime::now(), observe(asker, &mut parts).await, None);
    loop {
        let is_stopped = tokio::select! {
            () = sleep_until(next) => false,
            () = ending.received() => true,
        };
        if is_stopped {
            watch.add(SystemTime::now(), observe(asker, &mut parts).await, None);
            break;
        }
        let is_over = args.once || end.is_some_and(|end| next >= end);
        let last = next;
        next = next_after(last);
        // The next ones begin before these are there: none falls in between.
        let length = if is_over { args.every } else { next - last };
        let before = std::mem::replace(&mut faults, Faults::begin(asker, length));
        let profile = before.get().await;
        watch.add(
            SystemTime::now(),
            observe(asker, &mut parts).await,
            profile.as_ref(),
        );
        if !screen.show(&watch)? || is_over || has_ended(args, &watch) {
            break;
        }
    }
    screen.close();
    Ok((watch, faults))
}

/// Whether everything that was named has ended.
fn has_ended(args: &MemArgs, watch: &MemoryWatch) -> bool {
    let pids = &args.selection.pid;
    !pids.is_empty()
        && !pids.iter().any(|pid| facts::is_alive(Pid(*pid)))
        && !watch.all().any(|watched| watched.is_running)
}

/// Looks what the memory of the processes that were named is made of.
struct PartsReader {
    /// Those, a few, with what was seen of them last.
    named: HashMap<u32, Option<Seen>>,
}

/// A look.
struct Seen {
    at: Instant,
    took: Duration,
    parts: Option<Parts>,
}

impl PartsReader {
    /// More are not looked at: the table says enough of them.
    const MAX_NAMED: usize = 8;

    /// Looks do not follow each other faster ...
    const INTERVAL: Duration = Duration::from_millis(900);

    /// ... and take no more than one of so many parts of the time.
    const MAX_SHARE: u32 = 50;

    fn new(pids: &[u32]) -> Self {
        let named = pids.iter().take(Self::MAX_NAMED);
        Self {
            named: named.map(|pid| (*pid, None)).collect(),
        }
    }

    /// What a process's memory is made of, if it was named, and how long ago that was.
    async fn look(&mut self, pid: u32) -> Option<(Parts, Duration)> {
        let seen = self.named.get_mut(&pid)?;
        let is_due = seen.as_ref().is_none_or(|seen| {
            seen.at.elapsed() >= (seen.took * Self::MAX_SHARE).max(Self::INTERVAL)
        });
        if is_due {
            let look = move || {
                let interpreter = named::interpreter(Pid(pid)).ok()?;
                let begun = Instant::now();
                let parts = parts::of_process(Pid(pid), &interpreter).ok();
                Some((begun.elapsed(), parts))
            };
            let (took, parts) = tokio::task::spawn_blocking(look).await.ok().flatten()?;
            let at = Instant::now();
            *seen = Some(Seen { at, took, parts });
        }
        let seen = seen.as_ref()?;
        Some((seen.parts?, seen.at.elapsed()))
    }
}

/// The memory of every process that is profiled.
async fn observe(asker: &AgentAsker, parts: &mut PartsReader) -> Vec<Observed> {
    let (reply, answer) = oneshot::channel();
    let query = Query::ListProcesses {
        filter: ProcessFilter::default(),
        with_memory: true,
        reply,
    };
    if !asker.ask(query) {
        return Vec::new();
    }
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
    let processes = answer.ok().and_then(Result::ok).unwrap_or_default();
    let mut observed = Vec::new();
    for process in processes {
        let Some(memory) = process
            .memory
            .filter(|_| process.state == ProcessState::Profiled)
        else {
            continue;
        };
        observed.push(Observed {
            pid: process.pid,
            start_time: process.start_time,
            program: program(&process.program, &process.script),
            memory,
            parts: parts.look(process.pid).await,
        });
    }
    observed
}

/// What a process runs: `app.py`, `-m http.server`, or the program itself.
pub(super) fn program(program: &str, script: &str) -> String {
    let file = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    match script {
        "" => file(program),
        module if module.starts_with('-') => module.to_owned(),
        script => file(script),
    }
}

/// The page faults of an interval.
struct Faults(Option<oneshot::Receiver<Result<Profile, PullError>>>);

impl Faults {
    /// Those from now on.
    fn begin(asker: &AgentAsker, duration: Duration) -> Self {
        let (reply, answer) = oneshot::channel();
        let request = PullRequest {
            profile_type: ProfileType::Faults,
            filter: ProcessFilter::default(),
            duration,
        };
        Self(asker.ask(Query::Pull { request, reply }).then_some(answer))
    }

    /// Waits for them; `None` when there was no process, or the agent is busy.
    async fn get(self) -> Option<Profile> {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.0?).await;
        answer.ok()?.ok()?.ok()
    }
}

/// Where the table is shown.
struct Screen<'a> {
    args: &'a MemArgs,
    /// It is drawn over the one before.
    is_live: bool,
    is_quiet: bool,
    begun: Instant,
}

impl<'a> Screen<'a> {
    fn new(args: &'a MemArgs, file: Option<FileKind>) -> Result<Self> {
        let is_terminal = std::io::stdout().is_terminal();
        let screen = Self {
            args,
            is_live: is_terminal && has_screen() && !args.json && !args.once,
            // Into a file, without anybody who looks.
            is_quiet: file.is_some() && !is_terminal && !args.json,
            begun: Instant::now(),
        };
        if screen.is_live {
            // Another screen, so that what was there comes back; no cursor.
            print("\x1b[?1049h\x1b[?25l")?;
        }
        Ok(screen)
    }

    /// False: nobody reads it any more.
    fn show(&self, watch: &MemoryWatch) -> Result<bool> {
        if self.is_quiet {
            return Ok(true);
        }
        if self.args.json {
            return print(&format!("{}\n", last_as_json(watch)));
        }
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
        let size = size.filter(|_| self.is_live && self.args.top.is_none());
        let width = rustix::termios::tcgetwinsize(std::io::stdout())
            .map_or(PLAIN_WIDTH, |size| usize::from(size.ws_col).max(20));
        let room = size.map_or(30, |size| usize::from(size.ws_row).saturating_sub(4).max(1));
        let table = watch.table(self.args.sort, self.args.top.unwrap_or(room), width);
        if !self.is_live {
            return print(&table);
        }
        let title = format!(
            "pyagent mem: {}, {:.0} s; Ctrl-C ends it",
            match watch.running(self.args.sort).len() {
                1 => "1 process".to_owned(),
                n => format!("{n} processes"),
            },
            self.begun.elapsed().as_secs_f64()
        );
        let title: String = title.chars().take(width).collect();
        // Home, each line cleared to its end, then the rest of the screen.
        let mut text = format!("\x1b[H{title}\x1b[K\n\x1b[K\n");
        for line in table.lines() {
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J");
        print(&text)
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.is_live) {
            // A terminal that has gone needs no cursor.
            let _ = print("\x1b[?25h\x1b[?1049l");
        }
    }
}

/// Whether the terminal can be drawn over: one that is called dumb cannot.
fn has_screen() -> bool {
    std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

fn memory_json(MemoryInfo { resident, gc }: MemoryInfo) -> Value {
    json!({
        "anon_bytes": resident.anon,
        "file_bytes": resident.file,
        "shmem_bytes": resident.shmem,
        "swap_bytes": resident.swap,
        "peak_bytes": resident.peak,
        "gc": gc.map(|gc| json!({
            "collections": gc.collections,
            "collected": gc.collected,
            "uncollectable": gc.uncollectable,
            "seconds": gc.duration.map(|duration| duration.as_secs_f64()),
            "sampled_seconds": gc.sampled_duration.map(|duration| duration.as_secs_f64()),
        })),
    })
}

/// What is there now, as one line.
fn last_as_json(watch: &MemoryWatch) -> Value {
    let process = |watched: &Watched| {
        json!({
            "pid": watched.pid,
            "program": watched.program,
            "time": watched.points.last().map(|point| unix_seconds(point.at)),
            "memory": memory_json(watched.last()),
            "slope_bytes_per_minute": watched.slope(),
            "faults_per_second": watched.faults_per_second(),
            "collections_per_second": watched.collections_per_second(),
            "gc_share": watched.gc_share(),
            "lines": lines_json(watched),
            "parts": watched.parts.map(|(parts, _)| parts_json(&parts)),
        })
    };
    let running = watch.running(SortKey::default());
    Value::Array(running.into_iter().map(process).collect())
}

/// In bytes.
fn parts_json(parts: &Parts) -> Value {
    json!({
        "resident": parts.resident,
        "small_objects": parts.small_objects,
        "small_objects_in_use": parts.small_objects_in_use,
        "malloc": parts.malloc,
        "mmap": parts.mmap,
        "shared_memory": parts.shared,
        "mapped_files": parts.files,
        "stacks": parts.stacks,
        "programs_and_libraries": parts.programs,
    })
}

fn lines_json(watched: &Watched) -> Value {
    let line = |(line, n_bytes)| json!({"line": line, "touched_bytes": n_bytes});
    watched.lines().into_iter().map(line).collect()
}

/// Everything that was seen.
fn as_json(watch: &MemoryWatch) -> Value {
    let process = |watched: &Watched| {
        let points = watched.points.iter().map(|point| {
            json!({
                "time": unix_seconds(point.at),
                "page_faults": point.n_faults,
                "memory": memory_json(point.memory),
            })
        });
        json!({
            "pid": watched.pid,
            "program": watched.program,
            "points": points.collect::<Vec<_>>(),
            "lines": lines_json(watched),
            "parts": watched.parts.map(|(parts, _)| parts_json(&parts)),
        })
    };
    json!({"version": 1, "processes": watch.all().map(process).collect::<Vec<_>>()})
}
