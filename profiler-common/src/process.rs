//! What the kernel must know of a process: one entry of the process map.

/// Most processes that are profiled at once, when nothing else is said. An entry takes some 150 bytes.
pub const DEFAULT_MAX_PROCESSES: u32 = 16_384;

/// Most different interpreter builds (layouts) at once.
pub const MAX_LAYOUTS: u32 = 512;

/// What the sampling program does for a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum ProcessState {
    /// After an exec: the agent has not decided yet. Samples carry no Python part.
    #[default]
    Pending = 0,
    /// A CPython whose layout is known.
    Python = 1,
}

/// Number of `layout` that stands for "none".
pub const NO_LAYOUT: u32 = u32::MAX;

/// One entry of the process map, keyed by tgid in the initial pid namespace.
///
/// The fork program copies it for the child (with a generation of its own), exec makes it pending, the exit
/// of the last thread deletes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ProcessEntry {
    /// New at every fork and exec, and different for any two programs ever seen: what was learned of code
    /// objects holds within one generation. (The start time of a process does not change at exec.)
    pub generation: u64,
    /// Address of `_PyRuntime`.
    pub runtime: u64,
    /// The PC is "in the eval loop" in here; user registers are sent only then. Half-open.
    pub eval_start: u64,
    /// End of the eval loop's code, exclusive.
    pub eval_end: u64,
    /// Code that the compiler split off the eval loop (`.cold`). Half-open; empty when there is none.
    pub eval_cold_start: u64,
    /// End of the cold part, exclusive.
    pub eval_cold_end: u64,
    /// Where a thread keeps its thread state, see [`ThreadSlot`].
    pub thread_slot: ThreadSlot,
    /// Index into the layout map, or [`NO_LAYOUT`].
    pub layout: u32,
    /// A [`ProcessState`].
    pub state: ProcessState,
    /// Bytes of a pool of small objects; 0 where there are none.
    pub pool_bytes: u64,
}

/// Where CPython's per-thread pointer to the thread state lies, relative to the thread pointer.
///
/// It is calibrated by the agent on a live thread: no knowledge of the C library is needed, and musl's
/// indirect table and glibc's second-level keys are the same case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ThreadSlot {
    /// Offset from the thread pointer.
    pub offset: i32,
    /// When not negative: the word at `offset` is a pointer, and the slot lies this many bytes behind it.
    pub indirect: i32,
    /// 0: there is no such slot; the thread state is found in the interpreter's list.
    pub known: u32,
    /// Not used; zero.
    pub reserved: u32,
}
