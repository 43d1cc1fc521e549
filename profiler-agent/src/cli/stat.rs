//! `pyagent stat`: runs a command some times, and says what it took.

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal as _, PipeReader, Read as _};
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
use super::report::style;
use super::timed::{Figures, Prints};
use crate::agent::{Agent, Purpose, Recording};
use crate::config::{DEFAULT_RATE_HZ, SamplingConfig};
use crate::format::file::Target;
use crate::format::{Format, escape};
use crate::ids::Pid;
use crate::kernel::probe::Rights;
use crate::profile::measure::Measure;
use crate::profile::model::{Profile, ProfileType};
use crate::view::report::{Folding, Question, SortKey, View};
use crate::view::stat::{Run, Stat, json, text};

/// Functions that are shown.
const TOP: usize = 10;

/// A report of figures is shorter than this.
const MAX_REPORT_BYTES: u64 = 4096;

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
    let output = args.output.clone().map(|path| {
        let format = Format::choose(None, Some(&path));
        format.map(|format| (Target::named(path), format))
    });
    let output = output
        .transpose()
        .map_err(|error| ExitError::Usage(error.to_string()))?;
    let export = args.export_json.clone().map(Target::named);
    for target in output.iter().map(|(target, _)| target).chain(&export) {
        target.check()?;
    }
    let mut signals = Signals::new()?;
    let mut stopped = None;
    for idx in 0..args.warmup {
        match once(args, &mut signals, "warm-up", idx, args.warmup).await? {
            Ended::Ran(figures) if is_failure(&figures) && !args.ignore_failure => {
                stopped = Some(("warm-up", idx, code_of(&figures)));
                break;
            }
            Ended::Ran(_) => {}
            Ended::NotStarted(code) => return Ok(ExitCode::from(code)),
            Ended::Interrupted(code) => {
                tell!("interrupted while it warmed up");
                return Ok(ExitCode::from(code));
            }
        }
    }
    let recorder = match args.no_profile {
        true => Err("--no-profile".to_owned()),
        false => Recorder::start(args).await,
    };
    let mut runs = Vec::new();
    let mut interrupted = None;
    if stopped.is_none() {
        for idx in 0..args.runs {
            match once(args, &mut signals, "run", idx, args.runs).await? {
                Ended::Ran(figures) => {
                    runs.push(shown(&figures));
                    if is_failure(&figures) && !args.ignore_failure {
                        stopped = Some(("run", idx, code_of(&figures)));
                        break;
                    }
                }
                Ended::NotStarted(code) => return Ok(ExitCode::from(code)),
                Ended::Interrupted(code) => {
                    interrupted = Some(code);
                    break;
                }
            }
        }
    }
    let profile = match recorder {
        Ok(recorder) => recorder.finish().await,
        Err(why) => Err(why),
    };
    if let (Ok(profile), Some((target, format))) = (&profile, &output) {
        target.write(profile, format)?;
    }
    show(args, &runs, profile, export.as_ref())?;
    if let Some((what, idx, code)) = stopped {
        tell!(
            "{what} {} of the command failed with exit code {code}; --ignore-failure goes on after it",
            idx + 1
        );
        return Ok(ExitCode::from(code));
    }
    Ok(interrupted.map_or(ExitCode::SUCCESS, ExitCode::from))
}

fn is_failure(figures: &Figures) -> bool {
    figures.code != Some(0)
}

/// As shells have it: 128 + n for a signal.
fn code_of(figures: &Figures) -> u8 {
    let code = figures
        .code
        .or_else(|| figures.signal.map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(exit::FAILED)
}

fn shown(figures: &Figures) -> Run {
    let Figures {
        wall,
        user,
        system,
        max_rss,
        minor_faults,
        major_faults,
        voluntary_switches,
        involuntary_switches,
        blocks_in,
        blocks_out,
        code,
        signal,
    } = *figures;
    Run {
        wall,
        user,
        system,
        max_rss,
        minor_faults,
        major_faults,
        voluntary_switches,
        involuntary_switches,
        blocks_in,
        blocks_out,
        code,
        signal,
    }
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
        Ok(profile) => functions(profile),
        Err(why) => (Err(why.clone()), Value::Null),
    };
    let stat = Stat {
        command: &command,
        runs,
        n_warmups: args.warmup,
        n_wanted: args.runs,
        functions,
        functions_json,
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
fn functions(profile: &Profile) -> (Result<String, String>, Value) {
    let (folding, none) = (Folding::default(), std::collections::BTreeMap::new());
    let question = Question {
        profile,
        measure: Measure::main(profile),
        sort: SortKey::Own,
        top: Some(TOP),
        restrictions: &[],
        labels: &[],
        folding: &folding,
        sources: &none,
        style: style(),
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
    Ran(Figures),
    /// With the exit code that says why.
    NotStarted(u8),
    /// By who called, with CMD's exit code.
    Interrupted(u8),
}

/// One run, with its progress.
async fn once(
    args: &StatArgs,
    signals: &mut Signals,
    what: &str,
    idx: u32,
    n: u32,
) -> Result<Ended> {
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
    let launch = Launch::prepare_as("__time", &options, &args.command, args.as_root)?;
    let mut progress = Progress::new(args, what, idx, n);
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
fn read_report(report: PipeReader) -> Result<Option<Figures>> {
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
    children: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?,
            terminate: signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?,
            children: signal(SignalKind::child()).context("cannot watch for SIGCHLD")?,
        })
    }
}

/// Samples all Python processes that pyagent starts, itself or through others.
struct Recorder {
    agent: Agent,
    profile: oneshot::Receiver<Profile>,
}

impl Recorder {
    /// Why not is one line.
    async fn start(args: &StatArgs) -> Result<Self, String> {
        let missing = Rights::of_this_process().missing();
        if !missing.is_empty() {
            return Err(ExitError::Rights(missing).to_string());
        }
        named::check_namespace().map_err(|error| format!("{error:#}"))?;
        let mut config = SamplingConfig::of_pid(Pid(std::process::id()));
        config.selection.subprocesses = true;
        config.rate_hz = args.rate;
        let (reply, profile) = oneshot::channel();
        let recording = Recording {
            profile_type: ProfileType::Cpu,
            duration: None,
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
    fn new(args: &StatArgs, what: &str, idx: u32, n: u32) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let command = args.command.first().map(|it| it.to_string_lossy());
        let progress = Self {
            line: format!(
                "{what} {} of {n}: {}",
                idx + 1,
                escape(&command.unwrap_or_default())
            ),
            begun: Instant::now(),
            is_alone: is_terminal && args.discard,
            is_shown: false,
        };
        if is_terminal && !args.discard && n > 1 {
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
