//! Where facts of a task lie in the running kernel's structures.

use super::btf::{Btf, BtfError};

/// Bytes of a kernel stack on x86-64 (`THREAD_SIZE`; twice as much in kernels built with KASAN).
pub const KERNEL_STACK_BYTES: u32 = 16 << 10;

/// Bytes of x86-64's `pt_regs`, which lie at the end of the kernel stack.
pub const REGISTERS_BYTES: u32 = 168;

/// Offsets in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.thread.fsbase`: the thread pointer of x86-64.
    pub thread_pointer: u32,
    /// `task_struct.pid`: the thread's id.
    pub pid: u32,
    /// `task_struct.tgid`: the process's id.
    pub tgid: u32,
    /// `task_struct.signal`, which the threads of a process share.
    pub signal: u32,
    /// `signal_struct.live`: number of living threads.
    pub signal_live: u32,
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
            thread_pointer: task("thread.fsbase")?,
            pid: task("pid")?,
            tgid: task("tgid")?,
            signal: task("signal")?,
            signal_live: btf.offset_of("signal_struct", "live")?,
            stack: task("stack")?,
            stack_registers: KERNEL_STACK_BYTES - REGISTERS_BYTES,
        })
    }
}
