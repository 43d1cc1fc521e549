//! What is noted of threads that are switched out.

/// A thread of a profiled process, by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct OffCpuThread {
    /// When it was switched out, in nanoseconds since boot; 0: it runs.
    pub since_ns: u64,
    /// Nanoseconds in all that it had waited for a CPU until then.
    pub run_delay: u64,
    /// Its state then, see [`crate::event::task_state`].
    pub state: u32,
    /// Process.
    pub pid: u32,
}
