//! Every way a sample can be lost, cut or left incomplete in the kernel, as an index into a per-CPU array.
//!
//! The agent adds the counters of its own stages; GetStatus, `/metrics` and `doctor` show both.

/// A counter of the kernel programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Counter {
    /// The sampling timer fired (any task, idle included).
    Ticks = 0,
    /// A sample of a selected process was begun.
    Samples = 1,
    /// Lost: the ring buffer was full.
    LostFull = 2,
    /// Lost: a sampler interrupted another program on this CPU and both scratches were taken.
    Nested = 3,
    /// The record was sent without a Python part for want of the interpreter's layout.
    NoLayout = 4,
    /// The kernel stack could not be read.
    KernelStackFailed = 5,
    /// The user registers could not be read.
    RegistersFailed = 6,
    /// A fork could not be followed: the process map was full.
    ForkLost = 7,
    /// An exec could not be followed: the process map was full.
    ExecLost = 8,
    /// A lifecycle record was lost: the ring buffer was full.
    LifecycleLost = 9,
    /// A stack caught in a frame switch was completed from the registers.
    Repaired = 10,
    /// Thread states found by walking the list instead of the thread's own storage.
    ThreadListWalks = 11,
    /// The sampling timer fired on a CPU that had nothing to run.
    IdleTicks = 12,
    /// An allocation was sampled whose release will not be noticed: the table of such was full.
    LiveFull = 13,
    /// A release could not be told: the ring buffer was full.
    ReleaseLost = 14,
    /// A sampled allocation failed, or came back on a way that has no probe.
    CallsUnseen = 15,
}

/// Number of counters.
pub const N_COUNTERS: usize = 16;

impl Counter {
    /// Every counter, in the order of its numbers.
    pub const ALL: [Self; N_COUNTERS] = [
        Self::Ticks,
        Self::Samples,
        Self::LostFull,
        Self::Nested,
        Self::NoLayout,
        Self::KernelStackFailed,
        Self::RegistersFailed,
        Self::ForkLost,
        Self::ExecLost,
        Self::LifecycleLost,
        Self::Repaired,
        Self::ThreadListWalks,
        Self::IdleTicks,
        Self::LiveFull,
        Self::ReleaseLost,
        Self::CallsUnseen,
    ];

    /// Name as GetStatus, `/metrics` (`pyagent_<name>_total`) and `doctor` show it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ticks => "timer_ticks",
            Self::IdleTicks => "timer_idle_ticks",
            Self::Samples => "samples",
            Self::LostFull => "lost_full",
            Self::Nested => "lost_nested",
            Self::NoLayout => "no_layout",
            Self::KernelStackFailed => "kernel_stack_failed",
            Self::RegistersFailed => "registers_failed",
            Self::ForkLost => "fork_lost",
            Self::ExecLost => "exec_lost",
            Self::LifecycleLost => "lifecycle_lost",
            Self::Repaired => "stacks_repaired",
            Self::ThreadListWalks => "thread_list_walks",
            Self::LiveFull => "allocations_not_followed",
            Self::ReleaseLost => "releases_lost",
            Self::CallsUnseen => "allocations_unseen",
        }
    }

    /// What it counts, in words.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::Ticks => "Times the sampling timer fired, on any task",
            Self::IdleTicks => "Times the sampling timer fired on a CPU that had nothing to run",
            Self::Samples => "Samples of selected processes begun in the kernel",
            Self::LostFull => "Samples lost because the ring buffer was full",
            Self::Nested => "Samples lost because they interrupted another sample",
            Self::NoLayout => "Samples sent without a Python stack for want of a layout",
            Self::KernelStackFailed => "Samples without their kernel stack",
            Self::RegistersFailed => "Samples without their user registers",
            Self::ForkLost => "Forks that could not be followed",
            Self::ExecLost => "Execs that could not be followed",
            Self::LifecycleLost => {
                "Fork, exec and exit records lost because the ring buffer was full"
            }
            Self::Repaired => "Stacks caught in a frame switch and completed from the registers",
            Self::ThreadListWalks => "Thread states found by walking the list of threads",
            Self::CallsUnseen => {
                "Sampled allocations that failed or came back on a way that has no probe"
            }
            Self::LiveFull => {
                "Sampled allocations whose release will not be noticed: too many are alive"
            }
            Self::ReleaseLost => {
                "Releases of memory that were noticed late or not at all because the ring buffer was full"
            }
        }
    }
}
