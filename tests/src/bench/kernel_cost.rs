//! What a sample costs in the kernel: the kernel's own run-time statistics of the sampling program.

use std::{thread::sleep, time::Duration};

use anyhow::{Result, bail, ensure};

use super::{
    agent_run::AgentRun,
    median,
    proc_files::{RunTime, RunTimeStatistics, Sampler},
    report::Section,
    target::{Stack, Target},
};
use crate::interpreters::Interpreter;

const RATE_HZ: u32 = 4_999;
const N_INTERVALS: usize = 20;
const INTERVAL: Duration = Duration::from_millis(200);

/// Frames of the stacks, and the aims in microseconds: recursion, then different functions.
const DEPTHS: [(u32, [f64; 2]); 3] = [(10, [2.0, 2.8]), (30, [2.7, 4.2]), (100, [4.5, 9.5])];

/// Versions that are measured: the oldest way of frames, the first data stack, and the newer ones.
const VERSIONS: [(u8, u8); 4] = [(3, 8), (3, 11), (3, 12), (3, 13)];

/// Measures every depth, kind of stack and version, the newest interpreter of each version.
pub fn measure(interpreters: &[Interpreter]) -> Result<Section> {
    let _statistics = RunTimeStatistics::enable()?;
    let measured: Vec<_> = VERSIONS
        .into_iter()
        .filter_map(|minor| {
            let mut newest_first = interpreters.iter().rev();
            newest_first.find(|found| found.minor() == minor && !found.free_threaded)
        })
        .collect();
    let Some(first) = measured.first() else {
        bail!("no interpreter to measure")
    };
    let unselected = unselected_tick(first)?;
    let mut section = Section::new(
        "In the kernel: a sample",
        &format!(
            "Microseconds a sample of the program `sample_cpu`, by the kernel's BPF run-time statistics, at {RATE_HZ} Hz, \
             target pinned to one CPU under `chrt -f`. Of {N_INTERVALS} intervals of {} ms (about {} samples each) the \
             median and the least: what else runs on the host costs the program caches. A run on a task that is not \
             selected took {:.0} ns (least {:.0}) in the same run of the benchmark; these runs are subtracted. Depth \
             counts all frames of the stack.",
            INTERVAL.as_millis(),
            RATE_HZ * INTERVAL.as_millis() as u32 / 1000,
            unselected.median_ns,
            unselected.least_ns
        ),
        &[
            "CPython",
            "stack",
            "depth",
            "median us",
            "least us",
            "aim us (3.12)",
        ],
    );
    for interpreter in measured {
        for (stack_idx, stack) in [Stack::Recursion, Stack::Functions].into_iter().enumerate() {
            for (depth, aims_us) in DEPTHS {
                let cost = sample_cost(interpreter, stack, depth, unselected)?;
                section.push(vec![
                    version(interpreter),
                    stack.name().to_owned(),
                    depth.to_string(),
                    format!("{:.2}", cost.median_ns / 1e3),
                    format!("{:.2}", cost.least_ns / 1e3),
                    format!("{:.1}", aims_us[stack_idx]),
                ]);
            }
        }
    }
    Ok(section)
}

/// Major, minor and micro version.
#[must_use]
pub fn version(interpreter: &Interpreter) -> String {
    let (major, minor, micro) = interpreter.version;
    format!("{major}.{minor}.{micro}")
}

/// Nanoseconds of a run of the program, over several intervals.
#[derive(Debug, Clone, Copy)]
struct Cost {
    median_ns: f64,
    least_ns: f64,
}

impl Cost {
    /// `cost_ns` of each interval.
    fn of(intervals: &[Interval], cost_ns: impl Fn(&Interval) -> f64) -> Self {
        let costs_ns: Vec<f64> = intervals.iter().map(cost_ns).collect();
        Self {
            least_ns: costs_ns.iter().copied().fold(f64::INFINITY, f64::min),
            median_ns: median(costs_ns),
        }
    }
}

/// A run on a task that is not selected: the selected process never runs.
fn unselected_tick(interpreter: &Interpreter) -> Result<Cost> {
    let mut busy = Target::busy(interpreter, Stack::Recursion, 10, 0)?;
    let idle = Target::idle(interpreter)?;
    let agent = AgentRun::of_pid(idle.pid(), RATE_HZ)?;
    busy.spin()?;
    let intervals = intervals(&agent)?;
    let is_idle = intervals.iter().all(|interval| interval.n_samples == 0);
    ensure!(is_idle, "the idle process has run");
    Ok(Cost::of(&intervals, |interval| {
        interval.run_time.ns as f64 / interval.run_time.n_runs as f64
    }))
}

fn sample_cost(
    interpreter: &Interpreter,
    stack: Stack,
    depth: u32,
    unselected: Cost,
) -> Result<Cost> {
    let mut target = Target::busy(interpreter, stack, depth, 0)?;
    target.spin()?;
    let agent = AgentRun::of_pid(target.pid(), RATE_HZ)?;
    // From here on every sample has its stack.
    agent.wait_for("python_complete")?;
    let intervals = intervals(&agent)?;
    let is_sampled = intervals.iter().all(|interval| interval.n_samples > 0);
    ensure!(is_sampled, "the target was not sampled");
    let cost_ns = |interval: &Interval, unselected_ns: f64| {
        let n_unselected = interval.run_time.n_runs.saturating_sub(interval.n_samples);
        (interval.run_time.ns as f64 - n_unselected as f64 * unselected_ns)
            / interval.n_samples as f64
    };
    Ok(Cost {
        median_ns: Cost::of(&intervals, |it| cost_ns(it, unselected.median_ns)).median_ns,
        least_ns: Cost::of(&intervals, |it| cost_ns(it, unselected.least_ns)).least_ns,
    })
}

/// What the program ran, and how many samples it took, in one interval.
#[derive(Debug, Clone, Copy)]
struct Interval {
    run_time: RunTime,
    n_samples: u64,
}

fn intervals(agent: &AgentRun) -> Result<Vec<Interval>> {
    let sampler = Sampler::of(std::process::id())?;
    let mut before = snapshot(&sampler, agent)?;
    let mut intervals = Vec::new();
    for _ in 0..N_INTERVALS {
        sleep(INTERVAL);
        let after = snapshot(&sampler, agent)?;
        intervals.push(Interval {
            run_time: RunTime {
                ns: after.run_time.ns - before.run_time.ns,
                n_runs: after.run_time.n_runs - before.run_time.n_runs,
            },
            n_samples: after.n_samples - before.n_samples,
        });
        before = after;
    }
    Ok(intervals)
}

/// Run time and samples of one moment: the samples are read before and after, until hardly one came between.
fn snapshot(sampler: &Sampler, agent: &AgentRun) -> Result<Interval> {
    const MAX_BETWEEN: u64 = 5;
    const MAX_ATTEMPTS: u32 = 1000;
    for _ in 0..MAX_ATTEMPTS {
        let n_before = agent.counter("samples")?;
        let run_time = sampler.run_time()?;
        let n_after = agent.counter("samples")?;
        if n_after - n_before <= MAX_BETWEEN {
            return Ok(Interval {
                run_time,
                n_samples: n_before.midpoint(n_after),
            });
        }
    }
    bail!("the host is too busy to read two counters within a millisecond")
}
