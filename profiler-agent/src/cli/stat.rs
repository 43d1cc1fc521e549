//! `pyagent stat`: runs a command some times, and says what it took.

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal as _, PipeReader, PipeWriter, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::exit::{self, ExitError};
use super::launch::{Launch, name_of, pass_on, pass_on_interrupt};
use super::named;
use super::output::print;
use super::record::{received, watch_hangup};
use super::rows::style_of;
use super::timed::Prints;
use crate::agent::{Agent, Purpose, Recording};
use crate::config::{DEFAULT_RATE_HZ, SamplingConfig};
use crate::format::file::Target;
use crate::format::{Format, escape};
use crate::ids::Pid;
use crate::kernel::probe::Rights;
use crate::profile::measure::Measure;
use crate::profile::merge::Merger;
use crate::profile::model::{Profile, ProfileType};
use crate::track::tracker::Selection;
use crate::view::report::{Folding, Question, SortKey, View};
use crate::view::stat::{Run, Stat, json, text};

/// A report of figures is shorter than this.
const MAX_REPORT_BYTES: u64 = 4096;

/// Runs that are sampled by one start of the agent: their processes wait for their turn, with some MiB each.
const RUNS_AT_ONCE: usize = 16;

/// The time of a run is shown this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// `pyagent stat`.
#[derive(Debug, Args, Clone)]
#[command(after_help = STAT_EXAMPLES, after_long_help = STAT_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct StatArgs {
    /// Runs
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub runs: u32,
    /// Runs before them that are not counted
    #[arg(long, short, value_name = "N", default_value_t = 0)]
    pub warmup: u32,
    /// Go on when the command fails, and end with 0
    #[arg(long, short)]
    pub ignore_failure: bool,
    /// Throw away what the command prints
    #[arg(long)]
    pub discard: bool,
    /// Time only: without its functions
    #[arg(long)]
    pub no_profile: bool,
    /// Samples a second for the functions, 1 to 10000
    #[arg(long, value_name = "HZ", default_value_t = DEFAULT_RATE_HZ, env = "PYAGENT_RATE",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// Functions that are shown
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// Write the profile of all runs into a file: .pb.gz, .folded, .svg
    #[arg(long, short, value_name = "FILE", conflicts_with = "no_profile")]
    pub output: Option<PathBuf>,
    /// Write the figures into a file, as hyperfine does
    #[arg(long, value_name = "FILE")]
    pub export_json: Option<PathBuf>,
    /// Print them on standard output; what the command prints there goes to standard error
    #[arg(long)]
    pub json: bool,
    /// Run CMD as root too when pyagent was called by sudo
    #[arg(long, env = "PYAGENT_AS_ROOT", value_parser = clap::builder::BoolishValueParser::new())]
    pub as_root: bool,
    /// Command to run
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

const STAT_EXAMPLES: &str = "\
Examples:
  sudo pyagent stat -- python3 app.py                      what time -v says, and the functions
  sudo pyagent stat -r 10 --warmup 1 --discard -- python3 app.py
  pyagent stat -r 10 --no-profile --export-json a.json -- ./app.py";

/// What the figures are.
const STAT_HELP: &str = "\
Examples:
  sudo pyagent stat -- python3 app.py                      what time -v says, and the functions
  sudo pyagent stat -r 10 --warmup 1 --discard -- python3 app.py
  pyagent stat -r 10 --no-profile --export-json a.json -- ./app.py

It times whole commands: the start of the interpreter is in each figure, and so is what the command starts and waits for \
(getrusage(2), RUSAGE_CHILDREN). Wall time is by CLOCK_MONOTONIC, from before the command is started until it was waited for. \
Max RSS is that of its largest process, and at least that of a copy of the small process that starts it, some MiB.

What the command prints is shown, as time(1) does; --discard throws it away, as hyperfine does. The figures go to standard \
error. Standard input is the command's own in a single run; in several each of them reads nothing.

A run is far off when its modified z-score, 0.6745 * |time - median| / median of |time - median|, is above 3.5; of 5 runs on.

A command that fails ends it, with what there is until then and its exit code (128+n a signal, 125 pyagent failed, 126 not \
executable, 127 not found), unless --ignore-failure. So does Ctrl-C.

The functions are those of all Python processes of the runs, by the same samples as those of `record --subprocesses -- CMD`, \
which take some time of their own: --no-profile leaves them out. So does pyagent, and says so, where rights are missing.";

/// Runs the command; the exit code is CMD's own when it failed.
pub async fn run(args: StatArgs) -> Result<ExitCode> {
    match stat(&args).await {
        Err(error) if error.downcast_ref::<ExitError>().is_none() => {
            super::print_error(&error);
            Ok(ExitCode::from(exit::LAUNCH_FAILED))
        }
        result => result,
    }
}

async fn stat(args: &StatArgs) -> Result<ExitCode> {
    let output = match &args.output {
        Some(path) => {
            let format = Format::choose(None, Some(path));
            let format = format.map_err(|_| {
                ExitError::Usage(format!(
                    "`{}` does not tell the format of the profile: end it with .pb.gz, .folded, .svg or .html (figures go to \
                     --export-json FILE)",
                    escape(&path.to_string_lossy())
                ))
            })?;
            Some((Target::named(path.clone()), format))
        }
        None => None,
    };
    let export = args.export_json.clone().map(Target::named);
    for target in output.iter().map(|(target, _)| target).chain(&export) {
        target.check()?;
    }
    let mut signals = Signals::new()?;
    let mut end = None;
    for idx in 0..args.warmup {
        if end.is_none() {
            let prepared = vec![Prepared::new(args)?];
            let warm_up = Kind::WarmUp { idx };
            (_, end) = run_all(args, prepared, &mut signals, warm_up).await?;
        }
    }
    let mut runs = Vec::new();
    let mut profiles = Profiles::new(args);
    while end.is_none() && runs.len() < args.runs as usize {
        let n = RUNS_AT_ONCE.min(args.runs as usize - runs.len());
        let prepared = (0..n).map(|_| Prepared::new(args));
        let prepared = prepared.collect::<Result<Vec<_>>>()?;
        let pids = prepared.iter().map(|it| it.launch.pid()).collect();
        let recorder = profiles.begin(args, pids).await;
        let counted = Kind::Counted { idx: runs.len() };
        let (more, stopped) = run_all(args, prepared, &mut signals, counted).await?;
        runs.extend(more);
        end = stopped;
        profiles.end(recorder).await;
    }
    if let Some(End::NotStarted(code)) = end {
        return Ok(ExitCode::from(code));
    }
    let profile = profiles.finish();
    if let (Ok(profile), Some((target, format))) = (&profile, &output) {
        target.write(profile, format)?;
    }
    show(args, &runs, profile, export.as_ref())?;
    Ok(match end {
        None => ExitCode::SUCCESS,
        Some(End::Failed(what, code)) => {
            let how = match runs.last().and_then(|run| run.signal) {
                Some(signal) => format!("was ended by signal {signal}"),
                None => format!("failed with exit code {code}"),
            };
            tell!("{what} of the command {how}; --ignore-failure goes on after it");
            ExitCode::from(code)
        }
        Some(End::Interrupted(code) | End::NotStarted(code)) => ExitCode::from(code),
    })
}

/// Why there are no more runs, with the exit code that says so.
enum End {
    /// It failed, in this one.
    Failed(String, u8),
    /// It is no command.
    NotStarted(u8),
    /// By who called.
    Interrupted(u8),
}

/// Which runs.
#[derive(Clone, Copy)]
enum Kind {
    WarmUp {
        idx: u32,
    },
    /// The first of them.
    Counted {
        idx: usize,
    },
}

/// One run after the other, until one of them ends all.
async fn run_all(
    args: &StatArgs,
    prepared: Vec<Prepared>,
    signals: &mut Signals,
    kind: Kind,
) -> Result<(Vec<Run>, Option<End>)> {
    let mut runs = Vec::new();
    for prepared in prepared {
        let what = match kind {
            Kind::WarmUp { idx } => format!("warm-up {} of {}", idx + 1, args.warmup),
            Kind::Counted { idx } => format!("run {} of {}", idx + runs.len() + 1, args.runs),
        };
        match once(args, prepared, signals, &what).await? {
            Ended::Ran(run) => {
                runs.push(run);
                if run.code != Some(0) && !args.ignore_failure {
                    return Ok((runs, Some(End::Failed(what, code_of(&run)))));
                }
            }
            Ended::NotStarted(code) => return Ok((runs, Some(End::NotStarted(code)))),
            Ended::Interrupted(code) => return Ok((runs, Some(End::Interrupted(code)))),
        }
    }
    Ok((runs, None))
}

/// As shells have it: 128 + n for a signal.
fn code_of(run: &Run) -> u8 {
    let code = run.code.or_else(|| run.signal.map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(exit::FAILED)
}

fn show(
    args: &StatArgs,
    runs: &[Run],
    profile: Result<Profile, String>,
    export: Option<&Target>,
) -> Result<()> {
    let command: Vec<String> = args
        .command
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let profile = profile.map(Profile::without_native);
    let (functions, functions_json) = match &profile {
        Ok(profile) => functions(profile, args.top),
        Err(why) => (Err(why.clone()), Value::Null),
    };
    let stat = Stat {
        command: &command,
        runs,
        n_warmups: args.warmup,
        n_wanted: args.runs,
        functions,
        functions_json,
        width: style_of(&std::io::stderr()).width,
    };
    if let Some(target) = export {
        let document = format!("{:#}\n", json(&stat));
        target.write_with(|out| out.write_all(document.as_bytes()))?;
    }
    if args.json {
        print(&format!("{}\n", json(&stat)))?;
    } else {
        tell_part!("{}", text(&stat));
    }
    Ok(())
}

/// The top of what `report` shows of the runs.
fn functions(profile: &Profile, top: usize) -> (Result<String, String>, Value) {
    let (folding, none) = (Folding::default(), std::collections::BTreeMap::new());
    let question = Question {
        profile,
        measure: Measure::main(profile),
        sort: SortKey::Own,
        top: Some(top),
        restrictions: &[],
        labels: &[],
        folding: &folding,
        sources: &none,
        style: style_of(&std::io::stderr()),
    };
    let view = View::named("functions").expect("the name is that of a row");
    let text = if profile.n_samples() == 0 {
        Err("nothing of it ran Python for long enough to be sampled".to_owned())
    } else {
        Ok(view.text(&question))
    };
    (text, view.json(&question))
}

/// How a run ended.
enum Ended {
    Ran(Run),
    /// With the exit code that says why.
    NotStarted(u8),
    /// By who called, with CMD's exit code.
    Interrupted(u8),
}

/// A process that waits for the word to run CMD, and the way back from it.
struct Prepared {
    launch: Launch,
    report: PipeReader,
    report_back: PipeWriter,
}

impl Prepared {
    fn new(args: &StatArgs) -> Result<Self> {
        let (report, report_back) = std::io::pipe().context("cannot make a pipe")?;
        let prints = if args.discard {
            Prints::Nowhere
        } else if args.json {
            Prints::Error
        } else {
            Prints::Own
        };
        let name = name_of(&report_back);
        let mut options: Vec<&OsStr> = vec![
            OsStr::new("--report"),
            OsStr::new(&name),
            OsStr::new("--prints"),
            OsStr::new(prints.name()),
        ];
        if args.runs > 1 || args.warmup > 0 {
            options.push(OsStr::new("--no-input"));
        }
        Ok(Self {
            launch: Launch::prepare_as("__time", &options, &args.command, args.as_root)?,
            report,
            report_back,
        })
    }
}

/// One run, with its progress.
async fn once(
    args: &StatArgs,
    prepared: Prepared,
    signals: &mut Signals,
    what: &str,
) -> Result<Ended> {
    let Prepared {
        launch,
        report,
        report_back,
    } = prepared;
    let mut progress = Progress::new(args, what);
    let (mut child, _wait) = launch.go_at_once()?;
    let mut is_interrupted = false;
    let status = loop {
        tokio::select! {
            _ = signals.interrupt.recv() => {
                is_interrupted = true;
                pass_on_interrupt(child.id());
            }
            _ = signals.terminate.recv() => {
                is_interrupted = true;
                pass_on(child.id(), Signal::SIGTERM);
            }
            () = received(&mut signals.hangup) => {
                is_interrupted = true;
                pass_on(child.id(), Signal::SIGHUP);
            }
            _ = signals.children.recv() => {}
            () = tokio::time::sleep(PROGRESS_INTERVAL) => progress.show(),
        }
        if let Some(status) = child.try_wait().context("cannot wait for the command")? {
            break status;
        }
    };
    progress.clear();
    // Nobody else could write any more.
    drop(report_back);
    let figures = read_report(report)?;
    Ok(match figures {
        Some(figures) if is_interrupted => Ended::Interrupted(match code_of(&figures) {
            // It made its peace with the signal; who called still wanted an end.
            0 => exit::FAILED,
            code => code,
        }),
        Some(figures) => Ended::Ran(figures),
        None => match status.code().and_then(|code| u8::try_from(code).ok()) {
            Some(code) if code != 0 => Ended::NotStarted(code),
            _ => return Err(anyhow!("the process that timed the command was killed")),
        },
    })
}

/// What the child wrote before it ended; `None`: nothing.
fn read_report(report: PipeReader) -> Result<Option<Run>> {
    let mut bytes = Vec::new();
    report
        .take(MAX_REPORT_BYTES)
        .read_to_end(&mut bytes)
        .context("cannot read the figures")?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let figures = serde_json::from_slice(&bytes).context("the figures cannot be read")?;
    Ok(Some(figures))
}

/// The signals that end a run, and that of its end.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// `None` under `nohup`, which has it ignored.
    hangup: Option<tokio::signal::unix::Signal>,
    children: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?,
            terminate: signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?,
            hangup: watch_hangup()?,
            children: signal(SignalKind::child()).context("cannot watch for SIGCHLD")?,
        })
    }
}

/// The profiles of runs, or why there are none.
struct Profiles(Result<Vec<Profile>, String>);

impl Profiles {
    fn new(args: &StatArgs) -> Self {
        if args.no_profile {
            Self(Err("--no-profile".to_owned()))
        } else {
            Self(Ok(Vec::new()))
        }
    }

    /// Has runs sampled, unless that failed once.
    async fn begin(&mut self, args: &StatArgs, pids: Vec<Pid>) -> Option<Recorder> {
        self.0.as_ref().ok()?;
        match Recorder::start(args, pids).await {
            Ok(recorder) => Some(recorder),
            Err(why) => {
                self.0 = Err(why);
                None
            }
        }
    }

    async fn end(&mut self, recorder: Option<Recorder>) {
        let Some(recorder) = recorder else { return };
        match (recorder.finish().await, &mut self.0) {
            (Ok(profile), Ok(profiles)) => profiles.push(profile),
            (Err(why), profiles) => *profiles = Err(why),
            (Ok(_), Err(_)) => {}
        }
    }

    /// All in one.
    fn finish(self) -> Result<Profile, String> {
        let profiles = self.0?;
        let mut merger = Merger::default();
        for profile in &profiles {
            merger.add(profile, |sample| Some(sample.values));
        }
        let mut head = match profiles.first() {
            Some(first) => first.head(),
            None => return Err("no run was sampled".to_owned()),
        };
        head.duration = profiles.iter().map(|it| it.duration).sum();
        for comment in profiles.iter().skip(1).flat_map(|it| &it.comments) {
            if !head.comments.contains(comment) {
                head.comments.push(comment.clone());
            }
        }
        Ok(merger.finish(head))
    }
}

/// Samples all Python processes that some of pyagent's own start.
struct Recorder {
    agent: Agent,
    profile: oneshot::Receiver<Profile>,
}

impl Recorder {
    /// Why not is one line.
    async fn start(args: &StatArgs, pids: Vec<Pid>) -> Result<Self, String> {
        let missing = Rights::of_this_process().missing();
        if !missing.is_empty() {
            return Err(ExitError::Rights(missing).to_string());
        }
        named::check_namespace().map_err(|error| format!("{error:#}"))?;
        let selection = Selection {
            only_pids: Some(pids),
            subprocesses: true,
            ..Selection::default()
        };
        let mut config = SamplingConfig::of(selection);
        config.rate_hz = args.rate;
        let (reply, profile) = oneshot::channel();
        let recording = Recording {
            profile_type: ProfileType::Cpu,
            duration: None,
            keeps_times: false,
            reply,
        };
        let agent = Agent::start(&config, Purpose::Record(recording));
        let mut agent = agent.map_err(|error| format!("{error:#}"))?;
        agent.scanned().await;
        Ok(Self { agent, profile })
    }

    async fn finish(self) -> Result<Profile, String> {
        let stopped = tokio::task::spawn_blocking(|| self.agent.stop()).await;
        stopped.map_err(|_| "the agent did not stop".to_owned())?;
        let profile = self.profile.await;
        profile.map_err(|_| "the agent ended without a profile".to_owned())
    }
}

/// What a terminal shows of a run.
struct Progress {
    line: String,
    begun: Instant,
    /// Whether the line can be written again: nobody else writes meanwhile.
    is_alone: bool,
    is_shown: bool,
}

impl Progress {
    fn new(args: &StatArgs, what: &str) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let command = args.command.first().map(|it| it.to_string_lossy());
        let progress = Self {
            line: format!("{what}: {}", escape(&command.unwrap_or_default())),
            begun: Instant::now(),
            is_alone: is_terminal && args.discard,
            is_shown: false,
        };
        if is_terminal && !args.discard && args.runs + args.warmup > 1 {
            tell!("{}", progress.line);
        }
        progress
    }

    fn show(&mut self) {
        if self.is_alone {
            let seconds = self.begun.elapsed().as_secs_f64();
            tell_part!("\r\x1b[K  {}, {seconds:.0} s; Ctrl-C ends", self.line);
            self.is_shown = true;
        }
    }

    fn clear(&mut self) {
        if self.is_shown {
            tell_part!("\r\x1b[K");
            self.is_shown = false;
        }
    }
}
