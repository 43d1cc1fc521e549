//! Where facts of a task lie in the running kernel's structures.

use profiler_common::arch::IS_ARM64;

use super::btf::{Btf, BtfError};

/// Least bytes of a kernel stack (`THREAD_SIZE`), on x86-64 and on arm64; twice as much in kernels built with KASAN,
/// and on arm64 never less than a page (arch/arm64/include/asm/memory.h).
pub const MIN_STACK_BYTES: u32 = 16 << 10;

/// Where the thread pointer lies in a `task_struct`.
const THREAD_POINTER: &str = if IS_ARM64 {
    "thread.uw.tp_value"
} else {
    "thread.fsbase"
};

/// Bytes of a kernel stack of a kernel without KASAN.
#[must_use]
pub fn kernel_stack_bytes() -> u32 {
    if IS_ARM64 {
        MIN_STACK_BYTES.max(rustix::param::page_size() as u32)
    } else {
        MIN_STACK_BYTES
    }
}

/// Offsets in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offsets {
    /// The thread pointer: `task_struct.thread.fsbase`, on arm64 `task_struct.thread.uw.tp_value`.
    pub thread_pointer: u32,
    /// `task_struct.pid`: the thread's id.
    pub pid: u32,
    /// `task_struct.tgid`: the process's id.
    pub tgid: u32,
    /// `task_struct.signal`, which the threads of a process share.
    pub signal: u32,
    /// `signal_struct.live`: number of living threads.
    pub signal_live: u32,
    /// `task_struct.start_boottime` (5.5+; `real_start_time` before): when the thread began, in nanoseconds since boot.
    /// 0: not known.
    pub start: u32,
    /// `task_struct.stack`: lowest address of the kernel stack.
    pub stack: u32,
    /// Where on it the registers of user space lie.
    pub stack_registers: u32,
}

impl Offsets {
    /// As the kernel's BTF has them.
    pub fn of_btf(btf: &Btf) -> Result<Self, BtfError> {
        let task = |path| btf.offset_of("task_struct", path);
        Ok(Self {
            thread_pointer: task(THREAD_POINTER)?,
            pid: task("pid")?,
            tgid: task("tgid")?,
            signal: task("signal")?,
            signal_live: btf.offset_of("signal_struct", "live")?,
            start: task("start_boottime")
                .or_else(|_| task("real_start_time"))
                .unwrap_or(0),
            stack: task("stack")?,
            // `task_pt_regs`: `pt_regs` is the last that lies on the stack.
            stack_registers: kernel_stack_bytes()
                .checked_sub(btf.size_of("pt_regs")?)
                .ok_or(BtfError::Damaged("pt_regs larger than a stack"))?,
        })
    }
}
