//! Facts of a task: ids, name, thread pointer, user registers.

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs,
};
use profiler_common::event::{N_GENERAL_REGISTERS, UserRegisters};

use crate::globals;
use crate::memory;

/// Address of the current `task_struct`.
#[inline(always)]
pub(crate) fn current() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_current_task() }
}

/// The thread pointer (FS base) of a task that runs, or is switched out.
#[inline(always)]
pub(crate) fn thread_pointer(task: u64) -> Option<u64> {
    memory::kernel(task + u64::from(globals::task_thread_pointer()))
}

/// Thread id and process id (tgid), as the initial pid namespace has them.
#[inline(always)]
pub(crate) fn ids(task: u64) -> Option<(u32, u32)> {
    let tid = memory::kernel(task + u64::from(globals::task_pid()))?;
    let pid = memory::kernel(task + u64::from(globals::task_tgid()))?;
    Some((tid, pid))
}

/// `comm` of a task.
#[inline(always)]
pub(crate) fn comm(task: u64) -> [u8; 16] {
    memory::kernel(task + u64::from(globals::task_comm())).unwrap_or_default()
}

/// Number of living threads of the task's process. An exiting task no longer counts when it is reported.
#[inline(always)]
pub(crate) fn n_living_threads(task: u64) -> Option<i32> {
    let signal: u64 = memory::kernel(task + u64::from(globals::task_signal()))?;
    memory::kernel(signal + u64::from(globals::signal_live()))
}

/// The registers with which the current task last left user space: instruction pointer and the rest.
/// `bpf_task_pt_regs` is there from 5.15 on.
#[inline(always)]
pub(crate) fn saved_user_registers(registers: &mut UserRegisters) -> Option<u64> {
    // SAFETY: helpers on the current task.
    let address = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf().cast()) };
    let saved: pt_regs = memory::kernel(address as u64)?;
    *registers = user_registers(&saved);
    Some(saved.rip)
}

/// The registers of user space in a record's order, which is that of `pt_regs`.
#[inline(always)]
pub(crate) fn user_registers(saved: &pt_regs) -> UserRegisters {
    let general: [u64; N_GENERAL_REGISTERS] = [
        saved.r15, saved.r14, saved.r13, saved.r12, saved.rbp, saved.rbx, saved.r11, saved.r10,
        saved.r9, saved.r8, saved.rax, saved.rcx, saved.rdx, saved.rsi, saved.rdi,
    ];
    UserRegisters {
        general,
        sp: saved.rsp,
    }
}
