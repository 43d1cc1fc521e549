//! `pyagent record`: one profile into a file.

use std::io::IsTerminal as _;
use std::process::{Child, ExitCode, ExitStatus};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::exit::{self, ExitError};
use super::launch::{Launch, pass_on, pass_on_interrupt};
use super::named;
use super::{RecordArgs, log::LogArgs};
use crate::agent::{Agent, AgentAsker, Purpose, Recording};
use crate::bpf::source::probe_cost::ProbeCost;
use crate::config::{POOL_PERIOD, SamplingConfig};
use crate::format::file::Target;
use crate::format::{Format, Times, bytes_text, escape};
use crate::ids::Pid;
use crate::kernel::probe::Rights;
use crate::kernel::restrictions::is_confidential;
use crate::process::facts::{self, comm};
use crate::process::memory::ProcessMemory;
use crate::profile::model::{Profile, ProfileType};
use crate::track::process::{ProcessListing, TrackState};
use crate::track::tracker::Selection;
use crate::view::summary::summary;

/// The end of a target is seen within this time; that of CMD at once.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// Progress is shown this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Runs the command; the exit code is CMD's own when there is one.
pub async fn run(args: RecordArgs, log: &LogArgs) -> Result<ExitCode> {
    let has_command = !args.command.is_empty();
    let result = record(args, log).await;
    match result {
        // 125 tells the caller that it was pyagent, not CMD, that failed.
        Err(error) if has_command && error.downcast_ref::<ExitError>().is_none() => {
            super::print_error(&error);
            Ok(ExitCode::from(exit::LAUNCH_FAILED))
        }
        result => result,
    }
}

async fn record(args: RecordArgs, log: &LogArgs) -> Result<ExitCode> {
    check_choice(&args)?;
    args.gil.check(args.profile_type)?;
    if let Some(path) = args.output.output.as_deref().filter(|path| path.is_dir()) {
        let message = format!(
            "{} is a folder: name a file in it, such as profile.svg",
            escape(&path.to_string_lossy())
        );
        return Err(ExitError::Usage(message).into());
    }
    let format = Format::choose(args.output.format.as_deref(), args.output.output.as_deref())
        .map_err(|error| ExitError::Usage(error.to_string()))?;
    let keeps_times = keeps_times(&args, format)?;
    let missing = Rights::of_this_process().missing();
    let started = SystemTime::now();
    let target = target(&args, format, started);
    target.check()?;
    let launch = match args.command.as_slice() {
        [] => None,
        command => Some(Launch::prepare(command, args.as_root)?),
    };
    let config = config(&args, log, launch.as_ref());
    let (reply, profile) = oneshot::channel();
    let recording = Recording {
        profile_type: args.profile_type,
        duration: args.duration,
        keeps_times,
        reply,
    };
    let mut agent = if !missing.is_empty() {
        if !is_readable(&config) || args.profile_type != ProfileType::Cpu {
            return Err(ExitError::Rights(missing).into());
        }
        let names: Vec<&str> = missing.iter().map(|capability| capability.name).collect();
        tell_remote(&format!("without {}", names.join(", ")));
        Agent::start_remote(&config, recording)?
    } else if is_confidential() && is_readable(&config) && args.profile_type == ProfileType::Cpu {
        tell_remote("the kernel's lockdown (confidentiality) refuses the kernel programs");
        Agent::start_remote(&config, recording)?
    } else {
        named::check_namespace()?;
        Agent::start(&config, Purpose::Record(recording))?
    };
    let listing = agent.scanned().await;
    let child = match launch {
        Some(launch) => Some(launch.go()?),
        None => {
            check_found(&args, &listing)?;
            None
        }
    };
    announce(&args, &listing);
    if let Some(cost) = agent.probe_cost() {
        tell!("{}", probes_text(cost, args.allocation.alloc_budget));
    }
    let outcome = wait(&args, &config, &agent.asker(), child, profile).await?;
    let (profile, status) = finish(agent, outcome).await?;
    let profile = args.gil.chosen(profile);
    if profile.n_samples() == 0 && status.is_some_and(is_not_started) {
        // The reason is on the terminal already, and an empty file would only be in the way.
        return Ok(status.map_or(ExitCode::SUCCESS, code_of_status));
    }
    let (n_samples, summary) = (profile.n_samples(), summary(&profile));
    target.write(&args.frames.apply(profile), format)?;
    tell_part!("{summary}");
    if n_samples == 0 {
        tell!("{}", nothing_sampled(&args));
    }
    if let Target::Named(path) | Target::Default(path) = &target {
        tell!(
            "wrote {} ({})",
            escape(&path.to_string_lossy()),
            format.name
        );
    }
    Ok(status.map_or(ExitCode::SUCCESS, code_of_status))
}

/// What probes cost the processes.
pub(super) fn probes_text(cost: ProbeCost, budget: f64) -> String {
    format!(
        "a probe costs {:.2} us here, {:.1} us where the kernel has to single-step; above {} % of a process's CPU time \
         they are taken away",
        cost.emulated_ns / 1e3,
        cost.stepped_ns / 1e3,
        budget * 100.0
    )
}

/// What an empty profile means.
fn nothing_sampled(args: &RecordArgs) -> &'static str {
    if args.gil.gil {
        "no samples: no thread that was seen held the GIL"
    } else if args.profile_type == ProfileType::Faults {
        "no samples: nothing that was selected touched new memory while it was recorded"
    } else if args.profile_type.is_of_allocations() {
        "no samples: nothing that was selected allocated enough memory of this kind, or it did before the probes stood, within some 30 ms of its begin"
    } else if !args.command.is_empty() && !args.selection.subprocesses {
        "no samples: the command itself ran no Python, or hardly any; --subprocesses records what it starts"
    } else {
        "no samples: pyagent samples time on the CPU, and nothing that was selected used any"
    }
}

/// Whether times are kept. A file that cannot have them is no place for them.
fn keeps_times(args: &RecordArgs, format: &Format) -> Result<bool, ExitError> {
    let is_of_time = args.profile_type == ProfileType::Cpu;
    if !args.timestamps {
        return Ok(is_of_time && format.times == Times::Shown);
    }
    let why = if !is_of_time {
        "--timestamps is for --type cpu: memory has no course of its own".to_owned()
    } else if format.times == Times::Lost {
        let formats = Format::with_times();
        format!(
            "--timestamps: a file of format {} has no place for them; {formats} have",
            format.name
        )
    } else {
        return Ok(true);
    };
    Err(ExitError::Usage(why))
}

fn check_choice(args: &RecordArgs) -> Result<()> {
    if args.command.is_empty() && args.selection.is_empty() {
        let message = "what is to be recorded? choose --pid PID, --container NAME, --all-python, --comm REGEX, --cmdline REGEX, --cgroup PATH, or -- CMD";
        return Err(ExitError::Usage(message.to_owned()).into());
    }
    if !args.command.is_empty() && !args.selection.is_empty() {
        let message =
            "choose either a command (-- CMD) or running processes (--pid, --all-python, ...)";
        return Err(ExitError::Usage(message.to_owned()).into());
    }
    for problem in named::check(&args.selection.pid)? {
        tell!("{problem}");
    }
    if !args.selection.container.is_empty() {
        named::check_namespace()?;
    }
    for problem in named::missing(&args.selection.included()) {
        if problem.is_all {
            return Err(ExitError::NothingMatched(problem.message).into());
        }
        tell!("{}", problem.message);
    }
    Ok(())
}

fn target(args: &RecordArgs, format: &Format, started: SystemTime) -> Target {
    let target = match &args.output.output {
        Some(path) => Target::named(path.clone()),
        None => {
            let process = match args.selection.pid.as_slice() {
                [pid] => comm(Pid(*pid)).ok().map(|comm| (comm, *pid)),
                _ => None,
            };
            Target::default_name(
                process.as_ref().map(|(comm, pid)| (comm.as_str(), *pid)),
                started,
                format,
            )
        }
    };
    if args.output.force {
        target.forced()
    } else {
        target
    }
}

fn config(args: &RecordArgs, log: &LogArgs, launch: Option<&Launch>) -> SamplingConfig {
    let selection = match launch {
        Some(launch) => Selection {
            only_pids: Some(vec![launch.pid()]),
            ..args.selection.selection()
        },
        None => args.selection.selection(),
    };
    let config = args.sampling.config(
        &[args.profile_type],
        selection,
        args.max_samples_per_second,
        log,
    );
    SamplingConfig {
        allocation: args.allocation.config(),
        has_instructions: args.bytecode,
        ..config
    }
}

/// Whether stacks can be read from outside: that takes the right to read the memory of every process that was
/// named.
fn is_readable(config: &SamplingConfig) -> bool {
    let pids = config.selection.only_pids.as_deref().unwrap_or_default();
    !pids.is_empty()
        && pids
            .iter()
            .all(|pid| ProcessMemory::new(*pid).is_readable())
}

fn tell_remote(why: &str) {
    tell!(
        "{why}: stacks are read from outside instead; running threads only, no native or kernel frames"
    );
}

/// Processes that were named must be there and run Python.
fn check_found(args: &RecordArgs, listing: &[ProcessListing]) -> Result<(), ExitError> {
    named::check_any_tracked(listing)?;
    if !listing.is_empty() {
        return Ok(());
    }
    match args.selection.pid.as_slice() {
        [] => Ok(()),
        [pid, ..] => {
            let message = format!(
                "process {pid} is left out by --comm, --cmdline, --cgroup, --container or an --exclude, or has ended"
            );
            Err(ExitError::NothingMatched(message))
        }
    }
}

fn announce(args: &RecordArgs, listing: &[ProcessListing]) {
    let n_profiled = listing
        .iter()
        .filter(|process| process.state == TrackState::Profiled)
        .count();
    let what = match (args.command.first(), n_profiled) {
        (Some(command), _) => command.to_string_lossy().into_owned(),
        (None, 0) => "no Python process yet; new ones will be".to_owned(),
        (None, 1) => "1 process".to_owned(),
        (None, n) => format!("{n} processes"),
    };
    let until = match args.duration {
        Some(duration) => format!("for {:.1} s", duration.as_secs_f64()),
        None => "until Ctrl-C or the end".to_owned(),
    };
    tell!(
        "recording {} {} {until}",
        escape(&what),
        match args.profile_type {
            ProfileType::Cpu => format!("at {} Hz", args.sampling.rate),
            ProfileType::Faults => format!("at each {}th page fault", args.sampling.fault_period),
            ProfileType::Pools =>
                format!("each {} of small objects", bytes_text(POOL_PERIOD as i64)),
            ProfileType::Alloc | ProfileType::Mmap => format!(
                "one {} each {}",
                if args.profile_type == ProfileType::Mmap {
                    "mapping"
                } else {
                    "allocation"
                },
                bytes_text(args.allocation.alloc_period as i64)
            ),
        }
    );
}

/// Why the recording ended.
enum Outcome {
    /// Its time was over, and the profile is there.
    Profile(Box<Profile>),
    /// The user, the target or CMD ended; the profile comes when the agent stops.
    Stop(oneshot::Receiver<Profile>, Option<ExitStatus>),
}

async fn wait(
    args: &RecordArgs,
    config: &SamplingConfig,
    asker: &AgentAsker,
    mut child: Option<Child>,
    mut profile: oneshot::Receiver<Profile>,
) -> Result<Outcome> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut hangup = watch_hangup()?;
    let mut watch = Watch::new()?;
    let mut progress = Progress::new(args.duration);
    // CMD gets the first signal; the second one ends the recording, whatever CMD does.
    let mut n_signals = 0;
    while n_signals < 2 {
        tokio::select! {
            result = &mut profile => {
                progress.clear();
                let profile = result.context("the agent ended without a profile")?;
                // CMD goes on after the recording; its end is waited for as the shell would.
                let Some(child) = child else { return Ok(Outcome::Profile(Box::new(profile))) };
                tell!("the recording is over; the file is written when the command has ended");
                let status = wait_for_child(child, &mut interrupt, &mut terminate).await?;
                let (reply, receiver) = oneshot::channel();
                // The receiver is right here.
                let _ = reply.send(profile);
                return Ok(Outcome::Stop(receiver, Some(status)));
            }
            _ = interrupt.recv() => match &child {
                Some(child) => {
                    pass_on_interrupt(child.id());
                    n_signals += 1;
                }
                None => break,
            },
            _ = terminate.recv() => match &child {
                Some(child) => {
                    pass_on(child.id(), Signal::SIGTERM);
                    n_signals += 1;
                }
                None => break,
            },
            () = received(&mut hangup) => match &child {
                Some(child) => {
                    pass_on(child.id(), Signal::SIGHUP);
                    n_signals += 1;
                }
                None => break,
            },
            () = watch.look() => {
                if let Some(child) = &mut child
                    && let Some(status) = child.try_wait().context("cannot wait for the command")?
                {
                    progress.clear();
                    return Ok(Outcome::Stop(profile, Some(status)));
                }
                if child.is_none() && has_ended(config, asker).await {
                    break;
                }
                progress.show(asker).await;
            }
        }
    }
    progress.clear();
    Ok(Outcome::Stop(profile, None))
}

/// The end of the terminal; `None` under `nohup`, which has it ignored.
pub(super) fn watch_hangup() -> Result<Option<tokio::signal::unix::Signal>> {
    if facts::ignores_hangup() {
        return Ok(None);
    }
    let hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    Ok(Some(hangup))
}

pub(super) async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// When to look whether a target has ended.
struct Watch {
    interval: tokio::time::Interval,
    children: tokio::signal::unix::Signal,
}

impl Watch {
    fn new() -> Result<Self> {
        Ok(Self {
            interval: tokio::time::interval(WATCH_INTERVAL),
            children: signal(SignalKind::child()).context("cannot watch for SIGCHLD")?,
        })
    }

    /// Waits for the end of a child, else for a moment.
    async fn look(&mut self) {
        tokio::select! {
            _ = self.interval.tick() => {}
            _ = self.children.recv() => {}
        }
    }
}

async fn wait_for_child(
    mut child: Child,
    interrupt: &mut tokio::signal::unix::Signal,
    terminate: &mut tokio::signal::unix::Signal,
) -> Result<ExitStatus> {
    let mut watch = Watch::new()?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => pass_on_interrupt(child.id()),
            _ = terminate.recv() => pass_on(child.id(), Signal::SIGTERM),
            () = watch.look() => {
                if let Some(status) = child.try_wait().context("cannot wait for the command")? {
                    return Ok(status);
                }
            }
        }
    }
}

/// Whether every process that was named has ended (and, with `--subprocesses`, all of theirs).
async fn has_ended(config: &SamplingConfig, asker: &AgentAsker) -> bool {
    let Some(pids) = &config.selection.only_pids else {
        return false;
    };
    if pids.iter().any(|pid| facts::is_alive(*pid)) {
        return false;
    }
    if !config.selection.subprocesses {
        return true;
    }
    let Some(status) = asker.status().await else {
        return true;
    };
    status
        .processes
        .iter()
        .all(|(_, n_processes)| *n_processes == 0)
}

/// Stops the agent and gets the profile.
async fn finish(agent: Agent, outcome: Outcome) -> Result<(Profile, Option<ExitStatus>)> {
    tokio::task::spawn_blocking(|| agent.stop())
        .await
        .context("the agent did not stop")?;
    match outcome {
        Outcome::Profile(profile) => Ok((*profile, None)),
        Outcome::Stop(profile, status) => Ok((
            profile.await.context("the agent ended without a profile")?,
            status,
        )),
    }
}

/// Whether CMD was not found or not executable, as far as the exit code can tell.
fn is_not_started(status: ExitStatus) -> bool {
    let codes = [exit::LAUNCH_FAILED, exit::NOT_EXECUTABLE, exit::NOT_FOUND];
    status.code().is_some_and(|code| {
        codes
            .iter()
            .any(|not_started| i32::from(*not_started) == code)
    })
}

/// As shells have it: 128 + n for a signal.
fn code_of_status(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(exit::FAILED))
}

/// A line on the terminal while it records; nothing when nobody looks.
struct Progress {
    begun: Instant,
    duration: Option<Duration>,
    next: Instant,
    is_shown: bool,
}

impl Progress {
    fn new(duration: Option<Duration>) -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            duration,
            next: now + PROGRESS_INTERVAL,
            is_shown: false,
        }
    }

    async fn show(&mut self, asker: &AgentAsker) {
        if Instant::now() < self.next || !std::io::stderr().is_terminal() {
            return;
        }
        self.next = Instant::now() + PROGRESS_INTERVAL;
        let Some(status) = asker.status().await else {
            return;
        };
        let n_samples = status
            .counters
            .iter()
            .find(|counter| counter.name == "samples_received");
        let of = self
            .duration
            .map(|duration| format!(" of {:.0}", duration.as_secs_f64()))
            .unwrap_or_default();
        tell_part!(
            "\r\x1b[K  {:.0}{of} s, {} samples; Ctrl-C ends",
            self.begun.elapsed().as_secs_f64(),
            n_samples.map_or(0, |counter| counter.value)
        );
        self.is_shown = true;
    }

    fn clear(&mut self) {
        if self.is_shown {
            tell_part!("\r\x1b[K");
            self.is_shown = false;
        }
    }
}
