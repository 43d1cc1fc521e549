//! What the agent itself costs: CPU time for each sample, memory, time to the first sample.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    agent_run::AgentRun,
    median,
    proc_files::{cpu_ns, map_bytes, status_bytes},
    report::Section,
    target::{Stack, Target},
};
use crate::interpreters::Interpreter;

/// Processes at once, for the agent's memory.
const N_PROCESSES: [usize; 3] = [1, 50, 200];

/// The agent's start is over by then, and its first windows are filled.
const SETTLE: Duration = Duration::from_secs(12);

const CPU_INTERVAL: Duration = Duration::from_secs(8);

const N_STARTS: usize = 9;

/// A target that is before all others gets this much of its CPU (95 %, by the scheduler's own limit).
const MIN_TARGET_SHARE: f64 = 0.8;

/// A `pyagent record` that is stopped when this is dropped.
struct Recorder {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Recorder {
    fn start(pyagent: &Path, arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let child = Command::new(pyagent)
            .arg("record")
            .args(arguments)
            .arg("--output")
            .arg(folder.path().join("out.pb.gz"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", pyagent.display()))?;
        Ok(Self {
            child,
            _folder: folder,
        })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        // It can have ended by itself.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        let _ = self.child.wait();
    }
}

/// CPU time of the agent for 1,000 samples a second.
pub fn cpu(interpreter: &Interpreter, pyagent: &Path) -> Result<Section> {
    let mut section = Section::new(
        "The agent's CPU time",
        &format!(
            "CPU time of all threads of `pyagent record` by the scheduler, over {} s in the middle of a recording of one \
             process that is always busy (different functions; CPU time of the target times the rate is the number of \
             samples). Aim: below 1 % of a core for 1,000 samples a second.",
            CPU_INTERVAL.as_secs()
        ),
        &[
            "rate",
            "depth",
            "CPU of one core",
            "for 1,000 samples/s",
            "aim",
        ],
    );
    for (rate_hz, depth) in [
        (99_u32, 30),
        (999, 30),
        (4_999, 10),
        (4_999, 30),
        (4_999, 100),
    ] {
        let mut target = Target::busy(interpreter, Stack::Functions, depth, 0)?;
        target.spin()?;
        let rate = rate_hz.to_string();
        let recorder = Recorder::start(
            pyagent,
            &["--pid", &target.pid().to_string(), "--rate", &rate],
        )?;
        sleep(Duration::from_secs(2));
        let begun = Instant::now();
        let (agent_before, target_before) = (cpu_ns(recorder.pid())?, cpu_ns(target.pid())?);
        sleep(CPU_INTERVAL);
        let (agent_after, target_after) = (cpu_ns(recorder.pid())?, cpu_ns(target.pid())?);
        let agent_share = (agent_after - agent_before) as f64 / begun.elapsed().as_nanos() as f64;
        let target_share =
            (target_after - target_before) as f64 / begun.elapsed().as_nanos() as f64;
        ensure!(
            target_share > MIN_TARGET_SHARE,
            "the target had {:.0} % of its CPU: something else runs before it",
            target_share * 100.0
        );
        let samples_per_second = target_share * f64::from(rate_hz);
        section.push(vec![
            format!("{rate_hz} Hz"),
            depth.to_string(),
            format!("{:.2} %", agent_share * 100.0),
            format!("{:.2} %", agent_share * 100.0 * 1000.0 / samples_per_second),
            "1 %".to_owned(),
        ]);
    }
    Ok(section)
}

/// Memory of the agent with many processes.
pub fn memory(interpreter: &Interpreter, pyagent: &Path) -> Result<Section> {
    let mut section = Section::new(
        "The agent's memory",
        &format!(
            "MiB of `pyagent record` at 99 Hz on as many processes (CPython {}, each works about 1 ms twice a second), {} s \
             after its start. BPF maps: `memlock` of each map that it holds. The ring buffer is mapped, so that its touched \
             pages count in both. Aim: below 64 MiB in all, with 200 processes.",
            super::kernel_cost::version(interpreter),
            SETTLE.as_secs()
        ),
        &[
            "processes",
            "resident",
            "highest resident",
            "BPF maps",
            "resident + BPF maps",
            "aim",
        ],
    );
    let marker = format!("bench-sleeper-{}", std::process::id());
    let mut sleepers = Vec::new();
    for n_processes in N_PROCESSES {
        while sleepers.len() < n_processes {
            sleepers.push(Target::sleeper(interpreter, &marker)?);
        }
        let recorder = Recorder::start(pyagent, &["--cmdline", &marker])?;
        sleep(SETTLE);
        let pid = recorder.pid();
        let (resident, peak) = (status_bytes(pid, "VmRSS")?, status_bytes(pid, "VmHWM")?);
        let maps = map_bytes(pid)?;
        section.push(vec![
            n_processes.to_string(),
            mib(resident),
            mib(peak),
            mib(maps),
            mib(resident + maps),
            "64.0".to_owned(),
        ]);
    }
    Ok(section)
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1024.0 / 1024.0)
}

/// Time from the agent's start to the first sample.
pub fn first_sample(interpreter: &Interpreter, pyagent: &Path) -> Result<Section> {
    let mut section = Section::new(
        "From the start to the first sample",
        &format!(
            "Milliseconds, the median (and the least and the most) of {N_STARTS} starts, target always busy, 999 Hz: from \
             `Agent::start` until the kernel has taken a sample of the target, and until a sample with a complete Python \
             stack is symbolized. The counters are looked at each millisecond. What the program needs before is the time \
             of `pyagent --version`. Aim: 300 ms in all."
        ),
        &["step", "median ms", "least", "most", "aim"],
    );
    let mut target = Target::busy(interpreter, Stack::Functions, 30, 0)?;
    target.spin()?;
    let (mut version_ms, mut taken_ms, mut complete_ms) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..N_STARTS {
        let begun = Instant::now();
        Command::new(pyagent)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .context("pyagent")?;
        version_ms.push(milliseconds(begun));
        let begun = Instant::now();
        let agent = AgentRun::starting(target.pid(), 999)?;
        agent.wait_for("samples")?;
        taken_ms.push(milliseconds(begun));
        agent.wait_for("python_complete")?;
        complete_ms.push(milliseconds(begun));
    }
    for (step, times_ms, aim) in [
        ("`pyagent --version`", version_ms, ""),
        ("first sample taken", taken_ms, "300"),
        ("first complete sample symbolized", complete_ms, ""),
    ] {
        let least = times_ms.iter().copied().fold(f64::INFINITY, f64::min);
        let most = times_ms.iter().copied().fold(0.0, f64::max);
        section.push(vec![
            step.to_owned(),
            format!("{:.0}", median(times_ms)),
            format!("{least:.0}"),
            format!("{most:.0}"),
            aim.to_owned(),
        ]);
    }
    Ok(section)
}

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
