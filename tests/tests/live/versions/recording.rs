//! Samples all workloads of one interpreter at once, and sorts what came by workload.

use std::collections::HashMap;
use std::path::Path;

use profiler_agent::agent::{Agent, Purpose, Recording};
use profiler_agent::config::{
    AllocationConfig, DEFAULT_FAULT_PERIOD, DEFAULT_WINDOW, SamplingConfig,
};
use profiler_agent::ids::Pid;
use profiler_agent::process::service::LabelOptions;
use profiler_agent::profile::model::{FrameKind, Profile, ProfileType};
use profiler_agent::python::discover::{Discoverer, Discovery};
use profiler_agent::track::process::TrackState;
use profiler_agent::track::tracker::Selection;
use profiler_common::layout::GilKind;
use profiler_common::process::DEFAULT_MAX_PROCESSES;
use pyagent_tests::cpu_ticks::CpuTicks;
use pyagent_tests::interpreters::Interpreter;
use tokio::sync::oneshot;

use super::legal::{Frame, Legal};
use super::workload::{Report, Running, Workload, folder};

/// Samples a second and CPU; in step with nothing.
const RATE_HZ: u32 = 1999;

/// Half a second of the deepest stacks.
const RING_BYTES: u32 = 32 << 20;

/// Samples with the same stack in the same thread.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) pid: i64,
    pub(crate) tid: i64,
    pub(crate) thread_name: String,
    pub(crate) python_version: String,
    /// Python frames, leaf first.
    pub(crate) frames: Vec<Frame>,
    /// Remarks in the place of frames: what is missing.
    pub(crate) remarks: Vec<String>,
    /// Everything, leaf first, for people.
    pub(crate) shown: String,
    pub(crate) n_samples: u64,
    pub(crate) seconds: f64,
}

/// What was sampled of one workload, and what is known of it.
#[derive(Debug)]
pub(crate) struct Sampled {
    pub(crate) workload: Workload,
    pub(crate) report: Report,
    pub(crate) legal: Legal,
    pub(crate) cpu_seconds: f64,
    pub(crate) stacks: Vec<Stack>,
    pub(crate) pid: i64,
    /// Seconds between two samples of a CPU.
    pub(crate) period: f64,
    /// Share of the busy CPUs' time that was no thread's: interrupts, and what the hypervisor took.
    pub(crate) untimed_share: f64,
    /// CPU time of whoever it was that the agent says it has no samples of.
    pub(crate) missed_seconds: f64,
}

/// One recording of one interpreter.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) interpreter: Interpreter,
    /// The interpreter that `exec_before` becomes.
    pub(crate) next: Interpreter,
    /// Whether it can be told which thread holds the GIL.
    pub(crate) knows_gil: bool,
    pub(crate) period: f64,
    pub(crate) sampled: Vec<Sampled>,
    /// All counters of the agent at the end.
    pub(crate) counters: HashMap<&'static str, u64>,
    /// The remarks of the profile.
    pub(crate) comments: Vec<String>,
}

impl Sampled {
    pub(crate) fn n_samples(&self) -> u64 {
        self.stacks.iter().map(|stack| stack.n_samples).sum()
    }

    pub(crate) fn sampled_seconds(&self) -> f64 {
        self.stacks.iter().map(|stack| stack.seconds).sum()
    }

    /// Number of samples whose stack is so.
    pub(crate) fn count(&self, is_so: impl Fn(&Stack) -> bool) -> u64 {
        self.stacks
            .iter()
            .filter(|stack| is_so(stack))
            .map(|stack| stack.n_samples)
            .sum()
    }
}

/// Runs all workloads with one interpreter and records them.
pub(crate) fn record(
    workloads: &[Workload],
    interpreter: &Interpreter,
    next: &Interpreter,
) -> Recorded {
    let dir = tempfile::tempdir().unwrap();
    let start = |workload: &Workload| {
        let script = script(*workload, dir.path());
        Running::start(
            *workload,
            &script,
            interpreter,
            &next.executable,
            dir.path(),
        )
    };
    let mut running: Vec<Running> = workloads.iter().map(start).collect();
    running.iter_mut().for_each(Running::wait_until_ready);
    let knows_gil = knows_gil(Pid(running[0].pid()));
    let (reply, profile) = oneshot::channel();
    let pids = running.iter().map(|workload| Pid(workload.pid())).collect();
    let config = SamplingConfig {
        selection: Selection {
            only_pids: Some(pids),
            subprocesses: true,
            ..Selection::default()
        },
        types: vec![ProfileType::Cpu],
        rate_hz: RATE_HZ,
        fault_period: DEFAULT_FAULT_PERIOD,
        max_samples_per_second: None,
        ring_bytes: RING_BYTES,
        max_processes: DEFAULT_MAX_PROCESSES,
        window: DEFAULT_WINDOW,
        allocation: AllocationConfig::default(),
        labels: LabelOptions::default(),
        has_instructions: false,
        bpf_debug: false,
    };
    let mut agent = Agent::start(
        &config,
        Purpose::Record(Recording {
            profile_type: ProfileType::Cpu,
            duration: None,
            keeps_times: false,
            reply,
        }),
    )
    .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for process in runtime.block_on(agent.scanned()) {
        let version = interpreter.version;
        assert_eq!(
            process.state,
            TrackState::Profiled,
            "{version:?}: {}: {}",
            process.facts.program(),
            process.reason
        );
    }
    let before = CpuTicks::now();
    let (first, rest) = running.split_first_mut().unwrap();
    first.go();
    let mut done = vec![(first.wait_until_done(), first.workload)];
    // The agent answers when it has seen to every sample before: it has read the symbols of the interpreter.
    runtime.block_on(agent.asker().status()).unwrap();
    rest.iter_mut().for_each(Running::go);
    done.extend(
        rest.iter_mut()
            .map(|workload| (workload.wait_until_done(), workload.workload)),
    );
    let untimed_share = before.untimed_share();
    let stolen = before.stolen();
    let status = runtime.block_on(agent.asker().status()).unwrap();
    agent.stop();
    let profile = profile.blocking_recv().unwrap();
    let mut stacks = stacks(&profile);
    let period = profile.period as f64 / 1e9;
    let counters: HashMap<&str, u64> = status
        .counters
        .iter()
        .map(|counter| (counter.name, counter.value))
        .collect();
    // The kernel takes what it knows to be stolen from a thread's time. A pause of the host that it does not know
    // of, as for memory that the host has to find first, is CPU time of one thread, with one tick at its end. Steal
    // elsewhere can hide it here: what a workload itself saw of it counts too.
    let missed_seconds = (counters["timer_missed"] as f64 * period - stolen.as_secs_f64()).max(0.0);
    let sampled = done.into_iter().zip(&running).map(
        |(((report, legal, cpu_seconds), workload), running)| Sampled {
            workload,
            missed_seconds: missed_seconds.max(report.paused),
            report,
            cpu_seconds,
            stacks: legal
                .pids
                .iter()
                .flat_map(|pid| stacks.remove(pid).unwrap_or_default())
                .collect(),
            legal,
            pid: running.pid().into(),
            period,
            untimed_share,
        },
    );
    let sampled = sampled.collect();
    for (pid, stacks) in stacks {
        eprintln!(
            "process {pid} is of no workload: {} stacks, such as {:?}",
            stacks.len(),
            stacks.first()
        );
    }
    Recorded {
        interpreter: interpreter.clone(),
        next: next.clone(),
        knows_gil,
        period,
        sampled,
        counters,
        comments: profile.comments.clone(),
    }
}

/// Whether the layout of a process says how to find the holder of its GIL.
fn knows_gil(pid: Pid) -> bool {
    match Discoverer::default().discover(pid, &mut |_| {}) {
        Discovery::Python(interpreter) => interpreter.layout.walk.gil_kind != GilKind::Unknown,
        other => panic!("{pid}: {other:?}"),
    }
}

/// The workload's file; that with names beyond ASCII is copied to a path beyond ASCII.
fn script(workload: Workload, dir: &Path) -> std::path::PathBuf {
    let script = folder().join(workload.name).with_extension("py");
    if workload.name != "names" {
        return script;
    }
    let dir = dir.join("étage/папка/路径/🐍");
    std::fs::create_dir_all(&dir).unwrap();
    let copy = dir.join("имя 文件 🐍.py");
    std::fs::copy(script, &copy).unwrap();
    copy
}

fn stacks(profile: &Profile) -> HashMap<i64, Vec<Stack>> {
    let mut stacks: HashMap<i64, Vec<Stack>> = HashMap::new();
    for sample in &profile.samples {
        let thread = profile.thread(sample.labels);
        let mut frames = Vec::new();
        let mut remarks = Vec::new();
        let shown = profile
            .frames(sample.stack)
            .map(|frame| format!("{}:{}", frame.name, frame.line));
        let shown = shown.collect::<Vec<_>>().join(" < ");
        for frame in profile.frames(sample.stack) {
            let start_line = profile.functions[frame.function.0 as usize].start_line;
            match frame.kind {
                FrameKind::Python => frames.push(Frame {
                    function: (frame.name.to_owned(), frame.filename.to_owned(), start_line),
                    line: frame.line,
                }),
                FrameKind::Reason => remarks.push(frame.name.to_owned()),
                FrameKind::Native | FrameKind::Kernel => {}
            }
        }
        stacks.entry(thread.pid).or_default().push(Stack {
            pid: thread.pid,
            tid: thread.tid,
            thread_name: thread.thread_name.to_owned(),
            python_version: thread.python_version.to_owned(),
            frames,
            remarks,
            shown,
            n_samples: sample.values[0] as u64,
            seconds: sample.values[1] as f64 / 1e9,
        });
    }
    stacks
}
