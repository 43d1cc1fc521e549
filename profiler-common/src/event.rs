//! The records that cross the ring buffer, kernel to agent: samples and process lifecycle events.
//!
//! A record starts with a [`RecordHead`]. A sample is a [`SampleHeader`], then [`UserRegisters`] (valid when
//! [`sample_flags::USER_REGISTERS`] is set), then `n_python` [`PyFrame`]s and `n_kernel` kernel addresses
//! (u64), both leaf first. Both sides are built from this file, so the version only guards against an agent
//! that is handed a foreign object file.

use crate::arch;

/// Version of the record layout; the first field of each record.
pub const RECORD_VERSION: u16 = 3;

/// Most Python frames in one sample; deeper stacks are cut at the root end and marked truncated.
pub const MAX_PYTHON_FRAMES: usize = 1024;

/// Most kernel frames in one sample (the kernel's own `perf_event_max_stack` default is 127).
pub const MAX_KERNEL_FRAMES: usize = 128;

/// Most bytes of one record. The scratch that a record is built in lies in a per-CPU map.
pub const MAX_SAMPLE_BYTES: usize = size_of::<SampleRecord>();

const _: () = assert!(
    MAX_SAMPLE_BYTES <= 32 * 1024,
    "the per-CPU scratch is bounded by 32 KiB"
);
const _: () = assert!(MAX_PYTHON_FRAMES.is_power_of_two() && MAX_KERNEL_FRAMES.is_power_of_two());
const _: () = assert!(size_of::<SampleHeader>().is_multiple_of(8) && size_of::<PyFrame>() == 24);
const _: () = assert!(size_of::<UserRegisters>() == (arch::THIS.n_general_registers + 1) * 8);

/// What kind of record follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum RecordKind {
    /// A [`SampleHeader`] and its parts.
    Sample = 1,
    /// A [`LifecycleRecord`]: a thread group was forked.
    Fork = 2,
    /// A [`LifecycleRecord`]: a process replaced its program.
    Exec = 3,
    /// A [`LifecycleRecord`]: the last thread of a process ended.
    Exit = 4,
    /// A [`RecordHead`] alone: the kernel put small pages of some process together into a huge one.
    Collapse = 5,
    /// A [`ReleaseRecord`]: memory was given back.
    Release = 6,
}

impl RecordKind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_u16(kind: u16) -> Option<Self> {
        [
            Self::Sample,
            Self::Fork,
            Self::Exec,
            Self::Exit,
            Self::Collapse,
            Self::Release,
        ]
        .into_iter()
        .find(|k| *k as u16 == kind)
    }
}

/// First bytes of each record.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct RecordHead {
    /// [`RECORD_VERSION`].
    pub version: u16,
    /// A [`RecordKind`].
    pub kind: u16,
    /// True length of the record, this head included.
    pub size_bytes: u32,
    /// CLOCK_BOOTTIME where the kernel has it for BPF (5.8+).
    pub time_ns: u64,
}

/// Fixed part of a sample.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct SampleHeader {
    /// Version, kind, length and time.
    pub head: RecordHead,
    /// Generation of the process entry that was used, see [`crate::process::ProcessEntry`].
    pub generation: u64,
    /// User-space instruction address; 0 when it could not be read.
    pub user_ip: u64,
    /// Address of the `PyThreadState` that was found; 0 when none was.
    pub thread_state: u64,
    /// Its `thread_id`, the `pthread_t` of the thread; 0 when none was found.
    pub thread_ident: u64,
    /// Address of its current frame, the leaf; 0 when it had none.
    pub frame: u64,
    /// What one sample stands for, in the unit of its source: nanoseconds of CPU time, page faults, bytes of small
    /// objects; of an allocation the mean distance of samples, in bytes.
    pub period: u64,
    /// What the event is about: for a page fault the address that was touched, for an allocation that of the memory;
    /// else 0.
    pub address: u64,
    /// Size of an allocation; else 0.
    pub n_bytes: u64,
    /// When the thread began, in nanoseconds since boot (`task_struct.start_boottime`): with its id it tells the thread
    /// from every other one. 0 where it is not known.
    pub thread_started_ns: u64,
    /// Process id (tgid) in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// CPU that the sample was taken on.
    pub cpu: u32,
    /// Bits of [`sample_flags`].
    pub flags: u32,
    /// A [`PythonStatus`].
    pub python_status: u8,
    /// A [`KernelStatus`].
    pub kernel_status: u8,
    /// Event source: one of [`source`].
    pub source: u8,
    /// Not used; zero.
    pub reserved: u8,
    /// Number of kernel addresses that follow.
    pub n_kernel: u16,
    /// Number of Python frames that follow.
    pub n_python: u16,
    /// The thread's name as the kernel has it (`task_struct.comm`), NUL padded.
    pub comm: [u8; 16],
}

/// Numbers of [`SampleHeader::source`]: rows of the agent's source table.
pub mod source {
    /// The CPU clock.
    pub const CPU: u8 = 0;
    /// Page faults.
    pub const FAULTS: u8 = 1;
    /// Pools or arenas of CPython's small objects.
    pub const POOLS: u8 = 2;
    /// `malloc` and its like.
    pub const ALLOC: u8 = 3;
    /// `mmap` and its like.
    pub const MMAP: u8 = 4;
}

/// Bits of [`SampleHeader::flags`].
pub mod sample_flags {
    /// The thread held the global interpreter lock of its interpreter.
    pub const GIL_HELD: u32 = 1;
    /// The CPU was in the kernel when the sample was taken.
    pub const IN_KERNEL: u32 = 1 << 1;
    /// The record's [`super::UserRegisters`] are filled.
    pub const USER_REGISTERS: u32 = 1 << 2;
    /// The stack was caught in a frame switch and completed from the registers.
    pub const REPAIRED: u32 = 1 << 3;
    /// Whether the GIL is held could be determined ([`GIL_HELD`] means something).
    pub const GIL_KNOWN: u32 = 1 << 4;
    /// The thread state came from the thread's own storage, without a walk over the list.
    pub const THREAD_STATE_DIRECT: u32 = 1 << 5;
    /// The thread state came out of a walk over the interpreters' lists.
    pub const THREAD_STATE_LISTED: u32 = 1 << 6;
    /// The thread held the GIL of an interpreter whose garbage collector was at work.
    pub const COLLECTING: u32 = 1 << 7;
}

/// The user-space registers, in the order of the kernel's `pt_regs`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UserRegisters {
    /// x86-64: r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di. arm64: x0 to x30.
    pub general: [u64; N_GENERAL_REGISTERS],
    /// Stack pointer.
    pub sp: u64,
}

/// General registers other than the stack pointer.
pub const N_GENERAL_REGISTERS: usize = arch::THIS.n_general_registers;

/// One Python frame as the kernel saw it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PyFrame {
    /// Address of the frame's code object (3.13+: of its executable).
    pub code: u64,
    /// What the frame says of its instruction, unit by [`crate::layout::InstructionUnit`].
    pub instr: u64,
    /// Tells code objects apart that lived at the same address, see [`crate::layout::IdentityKind`].
    pub identity: u32,
    /// Bits of [`frame_flags`].
    pub flags: u32,
}

/// Bits of [`PyFrame::flags`].
pub mod frame_flags {
    /// The frame was found through a register, not through the thread state.
    pub const FROM_REGISTER: u32 = 1;
    /// The identity could not be read.
    pub const NO_IDENTITY: u32 = 1 << 1;
    /// First frame of a call from C into the interpreter.
    pub const ENTRY: u32 = 1 << 2;
    /// Upper half: low 16 bits of `tlbc_index` (free-threaded builds).
    pub const TLBC_SHIFT: u32 = 16;
}

/// A record's scratch: the largest sample there can be. What is sent is cut to the true length.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SampleRecord {
    /// Fixed part.
    pub header: SampleHeader,
    /// The user registers.
    pub registers: UserRegisters,
    /// Python frames, leaf first.
    pub python: [PyFrame; MAX_PYTHON_FRAMES],
    /// Room for the kernel addresses, which follow the last Python frame directly.
    pub kernel: [u64; MAX_KERNEL_FRAMES],
}

/// A process was forked, replaced its program, or ended.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct LifecycleRecord {
    /// Version, kind, length and time.
    pub head: RecordHead,
    /// Generation of the process entry after the event; 0 when it has none.
    pub generation: u64,
    /// Generation of the parent's entry (fork), or of this process before the event.
    pub previous_generation: u64,
    /// Process that the event is about.
    pub pid: u32,
    /// Its parent (fork), else 0.
    pub parent_pid: u32,
    /// `comm` after the event.
    pub comm: [u8; 16],
}

/// Memory was given back: what was sampled when it was allocated, or any range of addresses.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ReleaseRecord {
    /// Version, kind, length and time.
    pub head: RecordHead,
    /// Address of the memory.
    pub address: u64,
    /// Bytes of a range; 0: all that was allocated at the address.
    pub n_bytes: u64,
    /// Process.
    pub pid: u32,
    /// A [`source`].
    pub source: u32,
}

/// Outcome of the Python part of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum PythonStatus {
    /// Not tried.
    #[default]
    None = 0,
    /// Every frame from the leaf to the thread's first frame is there.
    Complete = 1,
    /// More than [`MAX_PYTHON_FRAMES`]; the leaf side is there.
    Truncated = 2,
    /// The chain ended before the interpreter's entry frame and no register completed it.
    FrameSwitch = 3,
    /// A frame could not be read.
    FrameFault = 4,
    /// No thread state belongs to this thread: a native thread.
    NoThreadState = 5,
    /// The thread state could not be read.
    ThreadStateFault = 6,
    /// The list of thread states is longer than the walk's bound.
    ThreadListTruncated = 7,
    /// Several thread states claim this thread.
    Ambiguous = 8,
    /// The thread state has no frame: between calls into Python.
    NoFrame = 9,
    /// The interpreter is not initialised yet, or not any more.
    NoInterpreter = 10,
    /// The agent has not yet decided what this process is.
    Pending = 11,
    /// The chain comes back to a frame it has been at.
    FrameLoop = 12,
    /// The kernel's record of the thread's registers could not be read.
    NoThreadPointer = 13,
}

impl PythonStatus {
    /// Every status, in the order of its numbers.
    pub const ALL: [Self; 14] = [
        Self::None,
        Self::Complete,
        Self::Truncated,
        Self::FrameSwitch,
        Self::FrameFault,
        Self::NoThreadState,
        Self::ThreadStateFault,
        Self::ThreadListTruncated,
        Self::Ambiguous,
        Self::NoFrame,
        Self::NoInterpreter,
        Self::Pending,
        Self::FrameLoop,
        Self::NoThreadPointer,
    ];

    /// The status with this number, if there is one.
    #[must_use]
    pub fn from_u8(status: u8) -> Option<Self> {
        Self::ALL.get(usize::from(status)).copied()
    }

    /// The reason in words, as views and `doctor` show it.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::None => "not unwound",
            Self::Complete => "complete",
            Self::Truncated => "truncated",
            Self::FrameSwitch => "incomplete: frame switch",
            Self::FrameFault => "incomplete: frame unreadable",
            Self::NoThreadState => "native thread",
            Self::ThreadStateFault => "thread state unreadable",
            Self::ThreadListTruncated => "too many threads to find this one",
            Self::Ambiguous => "ambiguous thread state",
            Self::NoFrame => "no Python frame",
            Self::NoInterpreter => "interpreter not initialised",
            Self::Pending => "not yet discovered",
            Self::FrameLoop => "incomplete: frame loop",
            Self::NoThreadPointer => "thread pointer unreadable",
        }
    }
}

/// Outcome of the kernel part of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum KernelStatus {
    /// The CPU was in user space: there is no kernel stack.
    #[default]
    UserMode = 0,
    /// Complete.
    Complete = 1,
    /// More frames than [`MAX_KERNEL_FRAMES`].
    Truncated = 2,
    /// The kernel gave no stack.
    Failed = 3,
}

impl KernelStatus {
    /// The status with this number, if there is one.
    #[must_use]
    pub fn from_u8(status: u8) -> Option<Self> {
        [
            Self::UserMode,
            Self::Complete,
            Self::Truncated,
            Self::Failed,
        ]
        .get(usize::from(status))
        .copied()
    }
}
