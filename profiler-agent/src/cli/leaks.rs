//! `pyagent leaks`: types whose objects only grow, and the lines that touched memory meanwhile.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::sync::oneshot;

use super::ending::Ending;
use super::exit::ExitError;
use super::heap::Life;
use super::log::LogArgs;
use super::output::print;
use super::{LeaksArgs, heap};
use crate::agent::{Agent, Recording};
use crate::format::{bytes_text, duration_text, escape};
use crate::heap::names::TypeName;
use crate::heap::snapshot::Snapshot;
use crate::ids::Pid;
use crate::kernel::probe::Rights;
use crate::process::resident;
use crate::profile::growth::{Growth, points_needed};
use crate::profile::model::{Profile, ProfileType};
use crate::python::discover::Interpreter;
use crate::track::tracker::Selection;
use crate::view::memory::touched_by_line;

/// Looks at the heap in all: so many that growth can be told from chance with thousands of types.
const N_LOOKS: u32 = 30;

/// Looks do not follow each other faster, ...
const MIN_INTERVAL: Duration = Duration::from_millis(250);

/// ... and take no more than one of so many parts of a core.
const MAX_SHARE: u32 = 4;

/// Growth that may be chance is not reported: the probability that anything of the report is, at most.
const MAX_CHANCE: f64 = 0.001;

/// Less is not worth a line, in bytes over the whole time.
const MIN_GROWN_BYTES: f64 = 65_536.0;

/// Types and lines that are shown.
const MAX_SHOWN: usize = 10;

/// What was seen of a type.
#[derive(Debug, Default)]
struct Series {
    /// Seconds since the begin, objects.
    counts: Vec<(f64, f64)>,
    bytes: Vec<(f64, f64)>,
}

/// A type whose objects only grow.
#[derive(Debug)]
struct Leak {
    name: TypeName,
    count_per_second: f64,
    bytes_per_second: f64,
    /// How probable it is by chance, all types that were looked at considered.
    p: f64,
}

/// Runs the command.
pub async fn run(args: LeaksArgs, log: &LogArgs) -> Result<ExitCode> {
    let pid = Pid(args.pid);
    let interpreter = heap::interpreter(pid)?;
    let missing = Rights::of_this_process().missing();
    if !missing.is_empty() {
        return Err(ExitError::Rights(missing).into());
    }
    super::named::check_namespace()?;
    let selection = Selection {
        only_pids: Some(vec![pid]),
        ..Selection::default()
    };
    let config = args
        .sampling
        .config(&[ProfileType::Faults], selection, None, log);
    let (reply, profile) = oneshot::channel();
    let recording = Recording {
        profile_type: ProfileType::Faults,
        duration: None,
        reply,
    };
    let mut agent = Agent::start(&config, Some(recording), false)?;
    agent.scanned().await;
    let interval = (args.duration / (N_LOOKS - 1)).max(MIN_INTERVAL);
    tell!(
        "looking at the heap of {pid} every {} for {}",
        duration_text(interval),
        duration_text(args.duration)
    );
    let watched = watch(pid, &interpreter, interval, args.duration).await;
    tokio::task::spawn_blocking(|| agent.stop())
        .await
        .context("the agent did not stop")?;
    let watched = watched?;
    let profile = profile.await.ok();
    let text = if args.json {
        watched.as_json(profile.as_ref())
    } else {
        watched.as_text(profile.as_ref())
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Everything that was seen.
#[derive(Debug, Default)]
struct Watched {
    types: HashMap<TypeName, Series>,
    /// Seconds since the begin, bytes.
    resident: Vec<(f64, f64)>,
    n_looks: usize,
    seconds: f64,
}

/// Looks at the heap again and again, until the time is over, the process ends or runs another program, or somebody ends
/// it.
async fn watch(
    pid: Pid,
    interpreter: &Interpreter,
    interval: Duration,
    duration: Duration,
) -> Result<Watched> {
    let mut ending = Ending::new()?;
    let life = Life::of_process(pid)?;
    let begun = Instant::now();
    let mut watched = Watched::default();
    loop {
        let looked = Instant::now();
        let at = begun.elapsed().as_secs_f64();
        let interpreter = interpreter.clone();
        let look = move || Snapshot::take(pid, &interpreter, 0, &mut |_, _| {});
        let snapshot = tokio::select! {
            snapshot = tokio::task::spawn_blocking(look) => snapshot.context("cannot look at the heap")?,
            () = ending.received() => return Ok(watched),
        };
        if let Some(end) = life.end().filter(|_| watched.n_looks > 0) {
            tell!("{end}");
            return Ok(watched);
        }
        let snapshot = snapshot.map_err(|error| heap::explained(pid, error))?;
        watched.add(at, snapshot);
        if let Ok(resident) = resident::read(pid) {
            watched.resident.push((at, resident.total() as f64));
        }
        if begun.elapsed() >= duration {
            return Ok(watched);
        }
        // A large heap is looked at less often.
        let took = looked.elapsed();
        let pause = interval.saturating_sub(took).max(took * (MAX_SHARE - 1));
        if watched.n_looks == 1 {
            watched.warn_if_too_short(took + pause, duration);
        }
        // The last look is at the end of the time.
        let pause = pause.min(duration.saturating_sub(begun.elapsed()));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = ending.received() => return Ok(watched),
        }
    }
}

impl Watched {
    fn add(&mut self, at: f64, snapshot: Snapshot) {
        self.n_looks += 1;
        self.seconds = at;
        for row in snapshot.types {
            let series = self.types.entry(row.name).or_default();
            series.counts.push((at, row.count.n_objects as f64));
            series.bytes.push((at, row.count.n_bytes as f64));
        }
        // Of others there is none any more.
        for series in self.types.values_mut() {
            if series.counts.last().is_some_and(|(seen, _)| *seen < at) {
                series.counts.push((at, 0.0));
                series.bytes.push((at, 0.0));
            }
        }
    }

    /// Looks after which a type that grows in each step is told from chance.
    fn looks_needed(&self) -> usize {
        points_needed(self.types.len(), MAX_CHANCE)
    }

    /// Why it cannot be said that nothing grows; `None`: it can.
    fn inconclusive(&self) -> Option<String> {
        let needed = self.looks_needed();
        (self.n_looks < needed).then(|| {
            format!(
                "too few looks to tell growth from chance among {} types, {needed} are needed; look longer (--duration)",
                self.types.len()
            )
        })
    }

    /// Says so where the time does not suffice for the looks that are needed.
    fn warn_if_too_short(&self, step: Duration, duration: Duration) {
        let n_steps = u32::try_from(self.looks_needed() - 1).unwrap_or(u32::MAX);
        let needed = step.saturating_mul(n_steps);
        if needed > duration {
            tell!(
                "too short to tell growth from chance: {} looks are needed for {} types, at least {} here (--duration)",
                n_steps + 1,
                self.types.len(),
                duration_text(needed)
            );
        }
    }

    /// Types whose objects only grow, those that take most first.
    fn leaks(&self) -> Vec<Leak> {
        let mut leaks: Vec<Leak> = self
            .types
            .iter()
            .filter_map(|(name, series)| {
                let (first, last) = (series.bytes.first()?, series.bytes.last()?);
                let is_worth_it = last.1 - first.1 >= MIN_GROWN_BYTES;
                let (counts, bytes) = (Growth::of(&series.counts), Growth::of(&series.bytes));
                let bytes = bytes.filter(|_| is_worth_it)?;
                Some(Leak {
                    name: name.clone(),
                    count_per_second: counts.map_or(0.0, |counts| counts.per_second),
                    bytes_per_second: bytes.per_second,
                    p: (bytes.p * self.types.len() as f64).min(1.0),
                })
            })
            .filter(|leak| leak.p <= MAX_CHANCE)
            .collect();
        leaks.sort_by(|a, b| b.bytes_per_second.total_cmp(&a.bytes_per_second));
        leaks
    }

    fn as_text(&self, profile: Option<&Profile>) -> String {
        let leaks = self.leaks();
        let mut text = String::new();
        let mut say = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        let noun = if self.n_looks == 1 { "look" } else { "looks" };
        let seconds = Duration::from_secs_f64(self.seconds);
        let looks = format!("{} {noun} in {}", self.n_looks, duration_text(seconds));
        if let Some(why) = self.inconclusive() {
            say(&format!("{looks}: {why}"));
        } else if leaks.is_empty() {
            say(&format!(
                "nothing only grows: {} types, {looks}",
                self.types.len()
            ));
        } else {
            say(&format!("types that only grow ({looks}):\n"));
            say("     bytes/min  objects/min  by chance  type");
            for leak in leaks.iter().take(MAX_SHOWN) {
                say(&format!(
                    "{:>14} {:>12.0} {:>10.0e}  {}",
                    format!("+{}", bytes_text((leak.bytes_per_second * 60.0) as i64)),
                    leak.count_per_second * 60.0,
                    leak.p,
                    escape(&leak.name.to_string())
                ));
            }
            if leaks.len() > MAX_SHOWN {
                say(&format!("{:>14} more (--json)", leaks.len() - MAX_SHOWN));
            }
            let lines = profile.map(touched_by_line).unwrap_or_default();
            if !lines.is_empty() {
                say(
                    "\nlines that touched most memory meanwhile, whether or not it was freed again:\n",
                );
            }
            for (line, n_bytes) in lines.iter().take(MAX_SHOWN) {
                say(&format!("{:>14}  {line}", bytes_text(*n_bytes)));
            }
        }
        if let Some(growth) = Growth::of(&self.resident) {
            let per_minute = bytes_text((growth.per_second * 60.0) as i64);
            say(&format!("\nresident memory grows by {per_minute} a minute"));
        }
        text
    }

    fn as_json(&self, profile: Option<&Profile>) -> String {
        let leaks: Vec<_> = self
            .leaks()
            .iter()
            .map(|leak| {
                json!({
                    "module": leak.name.module,
                    "type": leak.name.qualname,
                    "bytes_per_second": leak.bytes_per_second,
                    "objects_per_second": leak.count_per_second,
                    "p": leak.p,
                })
            })
            .collect();
        let lines = profile.map(touched_by_line).unwrap_or_default();
        let lines: Vec<_> = lines
            .into_iter()
            .map(|(line, n_bytes)| json!({"line": line, "touched_bytes": n_bytes}))
            .collect();
        let document = json!({
            "format": 1,
            "looks": self.n_looks,
            "seconds": self.seconds,
            "conclusive": self.inconclusive().is_none(),
            "inconclusive_because": self.inconclusive(),
            "types": leaks,
            "lines": lines,
            "resident_bytes_per_second": Growth::of(&self.resident).map(|growth| growth.per_second),
        });
        format!("{document:#}\n")
    }
}
