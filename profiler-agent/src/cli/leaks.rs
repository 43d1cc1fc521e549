//! `pyagent leaks`: types and lines that only grow in a process.

mod report;
mod watched;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use self::watched::Watched;
use super::ending::Ending;
use super::exit::ExitError;
use super::heap::Life;
use super::log::LogArgs;
use super::output::print;
use super::record::probes_text;
use super::{LeaksArgs, heap, named};
use crate::agent::{Agent, AgentAsker, Purpose, Recording, RecordingResult};
use crate::config::SamplingConfig;
use crate::format::duration_text;
use crate::heap::snapshot::{HeapError, Snapshot};
use crate::ids::Pid;
use crate::kernel::probe::Rights;
use crate::process::{facts, resident};
use crate::profile::model::ProfileType;
use crate::python::discover::Interpreter;
use crate::track::tracker::Selection;

/// Looks at the heap in all: so many that growth can be told from chance with thousands of types.
const N_LOOKS: u32 = 30;

/// Looks do not follow each other faster, ...
const MIN_INTERVAL: Duration = Duration::from_millis(250);

/// ... and take no more than one of so many parts of a core.
const MAX_SHARE: u32 = 4;

/// The probes are placed within this time after the process is known, else it goes on without.
const PLACED_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether they are is looked at this often.
const PLACED_INTERVAL: Duration = Duration::from_millis(50);

/// Runs the command.
pub async fn run(args: LeaksArgs, log: &LogArgs) -> Result<ExitCode> {
    let pid = Pid(args.pid);
    let interpreter = named::interpreter(pid)?;
    for problem in named::check(&[args.pid])? {
        tell!("{problem}");
    }
    let missing = Rights::of_this_process().missing();
    if !missing.is_empty() {
        return Err(ExitError::Rights(missing).into());
    }
    named::check_namespace()?;
    let types = [ProfileType::Faults, ProfileType::Pools, ProfileType::Alloc];
    let mut watched = Watched::new(args.allocation.alloc_period);
    let (mut agent, profile) = match start(&args, log, &types) {
        Ok(started) => started,
        // Kernels can be built without probes.
        Err(error) => {
            let Ok(started) = start(&args, log, &types[..1]) else {
                return Err(error);
            };
            watched.notes.push(format!("lines are not seen: {error:#}"));
            started
        }
    };
    agent.scanned().await;
    let asker = agent.asker();
    let interval = (args.duration / (N_LOOKS - 1)).max(MIN_INTERVAL);
    if let Some(cost) = agent.probe_cost() {
        tell!("{}", probes_text(cost, args.allocation.alloc_budget));
        wait_for_probes(&asker, pid).await;
    }
    tell!(
        "looking at the heap of {pid} every {} for {}",
        duration_text(interval),
        duration_text(args.duration)
    );
    let ended = watch(
        &mut watched,
        &asker,
        pid,
        &interpreter,
        (interval, args.duration),
    )
    .await;
    tokio::task::spawn_blocking(|| agent.stop())
        .await
        .context("the agent did not stop")?;
    ended?;
    let profile = profile.await.ok();
    let text = if args.json {
        watched.as_json(profile.as_ref())
    } else {
        watched.as_text(profile.as_ref())
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Starts an agent for this process, which samples these types and records page faults.
fn start(
    args: &LeaksArgs,
    log: &LogArgs,
    types: &[ProfileType],
) -> Result<(Agent, RecordingResult)> {
    let selection = Selection {
        only_pids: Some(vec![Pid(args.pid)]),
        ..Selection::default()
    };
    let config = SamplingConfig {
        allocation: args.allocation.config(),
        ..args.sampling.config(types, selection, None, log)
    };
    let (reply, profile) = oneshot::channel();
    let recording = Recording {
        profile_type: ProfileType::Faults,
        duration: None,
        keeps_times: false,
        reply,
    };
    Ok((Agent::start(&config, Purpose::Record(recording))?, profile))
}

/// Waits until it is known which probes the process has.
async fn wait_for_probes(asker: &AgentAsker, pid: Pid) {
    let begun = Instant::now();
    while begun.elapsed() < PLACED_TIMEOUT && facts::is_alive(pid) {
        let answer = asker.in_use(pid).await;
        if answer.is_some_and(|in_use| in_use.probes.is_settled) {
            return;
        }
        tokio::time::sleep(PLACED_INTERVAL).await;
    }
}

/// Looks at the process again and again, until the time is over, the process ends or runs another program, or somebody ends
/// it.
async fn watch(
    watched: &mut Watched,
    asker: &AgentAsker,
    pid: Pid,
    interpreter: &Interpreter,
    (interval, duration): (Duration, Duration),
) -> Result<()> {
    let mut ending = Ending::new()?;
    let life = Life::of_process(pid)?;
    let begun = Instant::now();
    loop {
        let looked = Instant::now();
        let at = begun.elapsed().as_secs_f64();
        let in_use = asker.in_use(pid).await;
        let snapshot = if watched.has_types() {
            let interpreter = interpreter.clone();
            let look = move || Snapshot::take(pid, &interpreter, 0, &mut |_, _| {});
            tokio::select! {
                snapshot = tokio::task::spawn_blocking(look) => Some(snapshot.context("cannot look at the heap")?),
                () = ending.received() => return Ok(()),
            }
        } else {
            None
        };
        if let Some(end) = life.end().filter(|_| watched.n_looks() > 0) {
            tell!("{end}");
            return Ok(());
        }
        watched.begin_look(at);
        match snapshot {
            Some(Ok(snapshot)) => watched.add_types(snapshot),
            Some(Err(error @ (HeapError::FreeThreaded(_) | HeapError::Unsupported(_)))) => {
                watched.has_no_types(&error);
            }
            Some(Err(error)) => return Err(heap::explained(pid, error)),
            None => {}
        }
        if let Some(in_use) = in_use {
            watched.add_lines(in_use);
        }
        if let Ok(resident) = resident::read(pid) {
            watched.add_resident(resident);
        }
        if begun.elapsed() >= duration {
            return Ok(());
        }
        // A large heap is looked at less often.
        let took = looked.elapsed();
        let pause = interval.saturating_sub(took).max(took * (MAX_SHARE - 1));
        if watched.n_looks() == 1
            && let Some(warning) = watched.too_short(took + pause, duration)
        {
            tell!("{warning}");
        }
        // The last look is at the end of the time.
        let pause = pause.min(duration.saturating_sub(begun.elapsed()));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = ending.received() => return Ok(()),
        }
    }
}
