//! Settings of the kernel programs, written by the agent before they are loaded.
//!
//! The kernel sees them as constants. Offsets of kernel structures come from the running kernel, by its BTF or by
//! calibration: rustc emits no relocations for them.

macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident, $get:ident: $type:ty = $default:expr;)*) => {$(
        #[unsafe(no_mangle)]
        static $name: $type = $default;

        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $get() -> $type {
            // SAFETY: the static is initialised; the read is volatile because the agent changes it before load.
            unsafe { core::ptr::read_volatile(&raw const $name) }
        }
    )*};
}

globals! {
    /// The thread pointer: `task_struct.thread.fsbase` on x86-64, `task_struct.thread.uw.tp_value` on arm64.
    TASK_THREAD_POINTER, task_thread_pointer: u32 = 0;
    /// `task_struct.pid`.
    TASK_PID, task_pid: u32 = 0;
    /// `task_struct.tgid`.
    TASK_TGID, task_tgid: u32 = 0;
    /// `task_struct.signal`.
    TASK_SIGNAL, task_signal: u32 = 0;
    /// `signal_struct.live`: number of living threads of a process.
    SIGNAL_LIVE, signal_live: u32 = 0;
    /// `task_struct.start_boottime`: when the thread began; 0: where it lies is not known.
    TASK_START, task_start: u32 = 0;
    /// `task_struct.stack`: the kernel stack.
    TASK_STACK, task_stack: u32 = 0;
    /// Where the registers of user space lie on it, from its lowest address: at its end.
    STACK_REGISTERS, stack_registers: u32 = 0;
    /// Every exec makes a pending entry, so that new processes are found; else only known processes matter.
    FOLLOW_ALL, follow_all: u32 = 0;
    /// A child of a profiled process is profiled.
    FOLLOW_CHILDREN, follow_children: u32 = 0;
    /// Process id of the agent, which is never profiled.
    AGENT_PID, agent_pid: u32 = 0;
    /// Mean distance of sampled allocations, in bytes.
    ALLOC_PERIOD, alloc_period: u64 = 0;
    /// Distance of sampled pools of small objects, in bytes.
    POOL_PERIOD, pool_period: u64 = 0;
    /// The ring buffer's reader is woken when this many bytes wait.
    WAKEUP_BYTES, wakeup_bytes: u64 = 0;
}
