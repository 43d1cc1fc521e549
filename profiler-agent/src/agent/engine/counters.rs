//! What is counted, and what of it is told: in profiles, in the status.

use profiler_common::counters::Counter;
use profiler_common::event::PythonStatus;

use super::listing::process_state;
use super::{Engine, Sampler};
use crate::kernel::cpus::n_cpus_online;
use crate::kubernetes::watch::WatchStatus;
use crate::push::Counts;
use crate::python::refusal::Reason;
use crate::recorder::RecorderStatus;
use crate::serve::query::{CounterValue, KubernetesInfo, RecorderInfo, Status};

/// Remark in profiles that were taken without the kernel programs.
const REMOTE_NOTE: &str =
    "read from outside, without BPF: running threads, no native or kernel frames";

/// Counters of the engine itself.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct EngineCounters {
    pub(super) samples: u64,
    /// Of them those of the CPU of which it is known whether their thread held the global interpreter lock, ...
    pub(super) gil_known: u64,
    /// ... and those whose thread held it.
    pub(super) gil_held: u64,
    /// Of them page faults.
    pub(super) faults: u64,
    /// Of them allocations.
    pub(super) allocations: u64,
    pub(super) probes_placed: u64,
    pub(super) undecodable: u64,
    pub(super) waiting_lost: u64,
    pub(super) ended_undiscovered: u64,
    pub(super) cpu_gaps: u64,
}

/// Whether a counter tells of something lost, cut or not completed.
pub(super) fn is_loss(name: &str) -> bool {
    !matches!(
        name,
        "timer_ticks"
            | "timer_idle_ticks"
            | "samples"
            | "samples_received"
            | "samples_gil_known"
            | "samples_gil_held"
            | "thread_list_walks"
            | "stacks_repaired"
            | "leaves_repaired"
            | "python_complete"
            | "python_native_thread"
            | "python_no_frame"
            | "probes_placed"
            | "shedding_steps"
            | "samples_ended_undiscovered"
    )
}

/// Counter of the samples with this outcome of the Python part.
pub(super) fn status_counter(status: PythonStatus) -> &'static str {
    match status {
        PythonStatus::None => "python_not_unwound",
        PythonStatus::Complete => "python_complete",
        PythonStatus::Truncated => "python_truncated",
        PythonStatus::FrameSwitch => "python_frame_switch",
        PythonStatus::FrameFault => "python_frame_unreadable",
        PythonStatus::NoThreadState => "python_native_thread",
        PythonStatus::ThreadStateFault => "python_thread_state_unreadable",
        PythonStatus::ThreadListTruncated => "python_thread_list_truncated",
        PythonStatus::Ambiguous => "python_ambiguous_thread_state",
        PythonStatus::NoFrame => "python_no_frame",
        PythonStatus::NoInterpreter => "python_interpreter_not_initialised",
        PythonStatus::Pending => "python_not_yet_discovered",
        PythonStatus::FrameLoop => "python_frame_loop",
        PythonStatus::NoThreadPointer => "python_thread_pointer_unreadable",
    }
}

impl Engine {
    /// What was lost or not completed since `before`, in words.
    pub(super) fn comments(&self, before: &[CounterValue]) -> Vec<String> {
        let now = self.counter_values();
        let mut comments: Vec<String> = match self.parts.sampler {
            Sampler::Kernel(_) => Vec::new(),
            Sampler::Remote(_) => vec![REMOTE_NOTE.to_owned()],
        };
        let grown = now
            .iter()
            .zip(before)
            .filter(|(now, before)| now.value > before.value);
        comments.extend(
            grown
                .filter(|(now, _)| is_loss(now.name))
                .map(|(now, before)| {
                    format!("{}: {} ({})", now.name, now.value - before.value, now.help)
                }),
        );
        comments
    }

    pub(super) fn counter_values(&self) -> Vec<CounterValue> {
        // A counter must not fall.
        let n_missed = self.parts.sampler.n_missed().max(self.n_missed.get());
        self.n_missed.set(n_missed);
        let kernel = Counter::ALL.into_iter().zip(self.parts.sampler.totals());
        let mut values: Vec<CounterValue> = kernel
            .map(|(counter, value)| CounterValue {
                name: counter.name(),
                help: counter.help(),
                value,
            })
            .collect();
        let own = &self.counters;
        let symbolizer = self.symbolizer.counters();
        values.extend(
            [
                (
                    "timer_missed",
                    "Periods in which the timer of a busy CPU did not fire",
                    n_missed,
                ),
                ("samples_received", "Samples that reached the agent", own.samples),
                (
                    "samples_gil_known",
                    "Samples of the CPU of which it is known whether their thread held the GIL",
                    own.gil_known,
                ),
                ("samples_gil_held", "Samples of the CPU whose thread held the GIL", own.gil_held),
                ("records_undecodable", "Records that could not be decoded", own.undecodable),
                (
                    "samples_undiscovered_lost",
                    "Samples of Python processes that were lost before those were discovered",
                    own.waiting_lost,
                ),
                (
                    "samples_ended_undiscovered",
                    "Samples of new programs that ended before it was known whether they run Python",
                    own.ended_undiscovered,
                ),
                (
                    "probes_placed",
                    "Times that probes were placed in the allocators of a process",
                    own.probes_placed,
                ),
                (
                    "huge_faults_uncounted",
                    "Sampled faults that count as a small page since the kernel was putting pages together",
                    self.huge_faults.n_uncounted(),
                ),
                (
                    "fault_pages_gone",
                    "Sampled faults that count as a small page since the memory was gone when it was looked at",
                    self.huge_faults.n_gone(),
                ),
                (
                    "stacks_cut",
                    "Samples whose stack was cut, since the agent has little memory left",
                    self.shedding.n_cut,
                ),
                (
                    "samples_shed",
                    "Samples that were not taken, since the agent has little memory or CPU time left",
                    self.shedding.n_shed,
                ),
                (
                    "shedding_steps",
                    "Times that the agent gave up more, since it has little memory or CPU time left",
                    self.shedding.n_steps,
                ),
                ("cpu_attached_late", "CPUs that came online while sampling", own.cpu_gaps),
                ("frames_code_object_gone", "Frames whose code object had gone", symbolizer.frames_gone),
                ("frames_unreadable", "Frames whose code object could not be read", symbolizer.frames_unreadable),
                (
                    "frames_over_budget",
                    "Frames whose code object was not read because their process has too many new ones",
                    symbolizer.frames_over_budget,
                ),
                ("leaves_repaired", "Leaf instructions that lagged and were corrected", symbolizer.leaves_repaired),
            ]
            .map(|(name, help, value)| CounterValue { name, help, value }),
        );
        values.extend(PythonStatus::ALL.into_iter().map(|status| CounterValue {
            name: status_counter(status),
            help: status.reason(),
            value: symbolizer.by_status[status as usize],
        }));
        values
    }

    /// What the targets of pushes were sent, together; zeros without any.
    fn push_counters(&self) -> [CounterValue; 4] {
        let targets = self.parts.pushes.as_ref().map(|counts| counts());
        let targets = targets.unwrap_or_default();
        let sum = |value: fn(&Counts) -> u64| targets.iter().map(|it| value(&it.counts)).sum();
        [
            (
                "push_requests_sent",
                "Pushes that a target has taken",
                sum(|it| it.sent),
            ),
            (
                "push_requests_retried",
                "Pushes that were tried again",
                sum(|it| it.retried),
            ),
            (
                "push_requests_rejected",
                "Pushes, or profiles out of them, that a target refused for good",
                sum(|it| it.rejected),
            ),
            (
                "push_windows_dropped",
                "Windows that were dropped before a target could be sent them",
                sum(|it| it.dropped),
            ),
        ]
        .map(|(name, help, value)| CounterValue { name, help, value })
    }

    fn recorder_info(&self) -> Option<RecorderInfo> {
        let (_, reader) = self.parts.recorder.as_ref()?;
        let status = reader.status();
        Some(RecorderInfo {
            folder: status.folder.to_string_lossy().into_owned(),
            problem: status.problem.unwrap_or_default(),
            n_bytes: status.n_bytes,
            keep_bytes: status.keep_bytes,
            oldest: status.oldest,
        })
    }

    fn kubernetes_info(&self) -> Option<KubernetesInfo> {
        let status = self.parts.pods.as_ref()?.borrow();
        Some(KubernetesInfo {
            problem: status.problem.clone(),
            n_pods: status.n_pods as u64,
        })
    }

    /// What is counted of asking for pods; zeros where nobody does.
    fn kubernetes_counters(&self) -> [CounterValue; 4] {
        let status = self.parts.pods.as_ref().map(|status| status.borrow());
        let of = |value: fn(&WatchStatus) -> u64| status.as_ref().map_or(0, |it| value(it));
        [
            (
                "kubernetes_lists",
                "Times that all pods of this node were read",
                of(|it| it.n_lists),
            ),
            (
                "kubernetes_changes",
                "Changes of pods that the API server told of",
                of(|it| it.n_changes),
            ),
            (
                "kubernetes_failures",
                "Questions to the API server that failed",
                of(|it| it.n_failed),
            ),
            (
                "kubernetes_pods_untaken",
                "Pods, or lines of the API server, that could not be read, or for which there was no room",
                of(|it| it.n_untaken),
            ),
        ]
        .map(|(name, help, value)| CounterValue { name, help, value })
    }

    /// What the recorder counts; zeros without one.
    fn recorder_counters(&self) -> [CounterValue; 3] {
        let status = self
            .parts
            .recorder
            .as_ref()
            .map(|(_, reader)| reader.status());
        let n_unrecorded = self.windows.as_ref().map_or(0, |it| it.n_unrecorded);
        let of = |value: fn(&RecorderStatus) -> u64| status.as_ref().map_or(0, value);
        [
            (
                "windows_recorded",
                "Windows that the recorder has written",
                of(|it| it.n_recorded),
            ),
            (
                "windows_lost",
                "Windows that the recorder could not write",
                of(|it| it.n_dropped) + n_unrecorded,
            ),
            (
                "windows_removed",
                "Windows that the recorder removed, for their age or for the room that they took",
                of(|it| it.n_removed),
            ),
        ]
        .map(|(name, help, value)| CounterValue { name, help, value })
    }

    pub(super) fn status(&self) -> Status {
        Status {
            uptime: self.started.elapsed(),
            kernel_release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            rate_asked_hz: f64::from(self.parts.config.rate_hz),
            rate_hz: f64::from(self.rate.current_hz()),
            n_cpus_online: n_cpus_online(),
            n_cpus_attached: self.parts.sampler.n_cpus() as u32,
            samples_per_second: self.samples_per_second,
            last_window: self
                .windows
                .as_ref()
                .and_then(|windows| windows.last.clone()),
            memory: self.shedding.memory(),
            shedding: self.shedding.problem(),
            recorder: self.recorder_info(),
            not_recorded: self.parts.not_recorded.clone(),
            kubernetes: self.kubernetes_info(),
            counters: {
                let mut counters = self.counter_values();
                counters.extend(self.recorder_counters());
                counters.extend(self.push_counters());
                counters.extend(self.kubernetes_counters());
                counters
            },
            processes: self
                .process_counts
                .by_state
                .iter()
                .map(|(state, n_processes)| (process_state(*state), *n_processes))
                .collect(),
            not_profiled: Reason::ALL
                .into_iter()
                .map(|reason| {
                    let n_processes = self.process_counts.by_reason.get(&reason);
                    (reason.name(), n_processes.copied().unwrap_or(0))
                })
                .collect(),
        }
    }
}
