//! What a sample costs in the kernel: the kernel's own run-time statistics of the sampling program.

use std::{thread::sleep, time::Duration};

use anyhow::{Result, ensure};

use super::{
    agent_run::AgentRun,
    median,
    proc_files::{RunTime, RunTimeStatistics, sampler_run_time},
    report::Section,
    target::{Stack, Target},
};
use crate::interpreters::Interpreter;

const RATE_HZ: u32 = 4_999;
const N_INTERVALS: usize = 12;
const INTERVAL: Duration = Duration::from_millis(250);

/// Frames of the stacks, and the aims in microseconds: recursion, then different functions.
const DEPTHS: [(u32, [f64; 2]); 3] = [(10, [2.0, 2.8]), (30, [2.7, 4.2]), (100, [4.5, 9.5])];

/// Versions that are measured: the oldest way of frames, the first data stack, and the newer ones.
const VERSIONS: [(u8, u8); 4] = [(3, 8), (3, 11), (3, 12), (3, 13)];

/// Measures every depth, kind of stack and version.
pub fn measure(interpreters: &[Interpreter]) -> Result<Section> {
    let _statistics = RunTimeStatistics::enable()?;
    let measured: Vec<_> = interpreters
        .iter()
        .filter(|interpreter| VERSIONS.contains(&interpreter.minor()))
        .collect();
    let Some(first) = measured.first() else {
        anyhow::bail!("no interpreter to measure")
    };
    let unselected_ns = unselected_tick_ns(first)?;
    let mut section = Section::new(
        "In the kernel: a sample",
        &format!(
            "Microseconds a sample of the program `sample_cpu`, by the kernel's BPF run-time statistics, at {RATE_HZ} Hz, \
             target pinned to one CPU under `chrt -f`. Of {N_INTERVALS} intervals of {} ms (about {} samples each) the \
             median and the least. A run on a process that is not selected took {unselected_ns:.0} ns in the same run of \
             the benchmark; these runs are subtracted. Depth counts all frames of the stack.",
            INTERVAL.as_millis(),
            RATE_HZ * INTERVAL.as_millis() as u32 / 1000
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
                let costs_ns = sample_costs_ns(interpreter, stack, depth, unselected_ns)?;
                let least_ns = costs_ns.iter().copied().fold(f64::INFINITY, f64::min);
                section.push(vec![
                    version(interpreter),
                    stack.name().to_owned(),
                    depth.to_string(),
                    format!("{:.2}", median(costs_ns) / 1e3),
                    format!("{:.2}", least_ns / 1e3),
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

/// Nanoseconds of a run on a task that is not selected: a selection that never runs.
fn unselected_tick_ns(interpreter: &Interpreter) -> Result<f64> {
    let mut busy = Target::busy(interpreter, Stack::Recursion, 10, 0)?;
    let idle = Target::idle(interpreter)?;
    let agent = AgentRun::of_pid(idle.pid(), RATE_HZ)?;
    busy.spin()?;
    let mut costs_ns = Vec::new();
    for _ in 0..N_INTERVALS {
        let (run_time, n_samples) = interval(&agent)?;
        ensure!(n_samples == 0, "the idle process has run");
        costs_ns.push(run_time.ns as f64 / run_time.n_runs as f64);
    }
    Ok(median(costs_ns))
}

fn sample_costs_ns(
    interpreter: &Interpreter,
    stack: Stack,
    depth: u32,
    unselected_ns: f64,
) -> Result<Vec<f64>> {
    let mut target = Target::busy(interpreter, stack, depth, 0)?;
    target.spin()?;
    let agent = AgentRun::of_pid(target.pid(), RATE_HZ)?;
    // From here on every sample has its stack.
    agent.wait_for("python_complete")?;
    let mut costs_ns = Vec::new();
    for _ in 0..N_INTERVALS {
        let (run_time, n_samples) = interval(&agent)?;
        ensure!(n_samples > 0, "the target was not sampled");
        let n_unselected = run_time.n_runs.saturating_sub(n_samples) as f64;
        costs_ns.push((run_time.ns as f64 - n_unselected * unselected_ns) / n_samples as f64);
    }
    Ok(costs_ns)
}

/// What the program ran, and how many samples it took, in one interval.
fn interval(agent: &AgentRun) -> Result<(RunTime, u64)> {
    let pid = std::process::id();
    let (before, samples_before) = (sampler_run_time(pid)?, agent.counter("samples")?);
    sleep(INTERVAL);
    let (after, samples_after) = (sampler_run_time(pid)?, agent.counter("samples")?);
    let run_time = RunTime {
        ns: after.ns - before.ns,
        n_runs: after.n_runs - before.n_runs,
    };
    Ok((run_time, samples_after - samples_before))
}
