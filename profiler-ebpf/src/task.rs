//! Facts of a task: ids, name, thread pointer, user registers. Two ways to have them, which the same programs are
//! built with: see [`Task`].

use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs,
};
use profiler_common::event::{N_GENERAL_REGISTERS, UserRegisters};

use crate::globals;
use crate::memory;

/// Reads the `task_struct` of a task, given as its address.
pub(crate) trait Task {
    /// Address of the current one.
    fn current() -> u64;

    /// The word at an offset.
    fn u64_at(task: u64, offset: u32) -> Option<u64>;

    /// The half word at an offset.
    fn u32_at(task: u64, offset: u32) -> Option<u32>;

    /// The registers with which the current task last left user space.
    fn saved_user_registers() -> Option<pt_regs>;

    /// The thread pointer (FS base) of a task that runs, or is switched out.
    #[inline(always)]
    fn thread_pointer(task: u64) -> Option<u64> {
        Self::u64_at(task, globals::task_thread_pointer())
    }

    /// Thread id and process id (tgid), as the initial pid namespace has them.
    #[inline(always)]
    fn ids(task: u64) -> Option<(u32, u32)> {
        let tid = Self::u32_at(task, globals::task_pid())?;
        let pid = Self::u32_at(task, globals::task_tgid())?;
        Some((tid, pid))
    }

    /// Number of living threads of the task's process. An exiting task no longer counts when it is reported.
    #[inline(always)]
    fn n_living_threads(task: u64) -> Option<u32> {
        let signal = Self::u64_at(task, globals::task_signal())?;
        Self::u32_at(signal, globals::signal_live())
    }
}

/// Through pointers whose type the verifier knows, which takes no call and is allowed under any lockdown. Needs BTF, and
/// `bpf_task_pt_regs` (5.15+).
pub(crate) struct TypedTask;

impl Task for TypedTask {
    #[inline(always)]
    fn current() -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_current_task_btf() as u64 }
    }

    #[inline(always)]
    fn u64_at(task: u64, offset: u32) -> Option<u64> {
        // SAFETY: the verifier accepts no pointer of another type, and a fault reads as 0.
        Some(unsafe { core::ptr::read_volatile((task + u64::from(offset)) as *const u64) })
    }

    #[inline(always)]
    fn u32_at(task: u64, offset: u32) -> Option<u32> {
        // SAFETY: as above.
        Some(unsafe { core::ptr::read_volatile((task + u64::from(offset)) as *const u32) })
    }

    #[inline(always)]
    fn saved_user_registers() -> Option<pt_regs> {
        // SAFETY: helpers on the current task, which has registers.
        Some(unsafe { *(bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs) })
    }
}

/// By reading the kernel's memory, on kernels without BTF or older than 5.15. Refused under the lockdown
/// "confidentiality".
pub(crate) struct ProbedTask;

impl Task for ProbedTask {
    #[inline(always)]
    fn current() -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_current_task() }
    }

    #[inline(always)]
    fn u64_at(task: u64, offset: u32) -> Option<u64> {
        memory::kernel(task + u64::from(offset))
    }

    #[inline(always)]
    fn u32_at(task: u64, offset: u32) -> Option<u32> {
        memory::kernel(task + u64::from(offset))
    }

    #[inline(always)]
    fn saved_user_registers() -> Option<pt_regs> {
        let stack = Self::u64_at(Self::current(), globals::task_stack())?;
        let saved: pt_regs = memory::kernel(stack + u64::from(globals::stack_registers()))?;
        is_of_user_space(&saved).then_some(saved)
    }
}

/// Whether registers are those of user space: its code runs with a privilege level of 3.
#[inline(always)]
pub(crate) const fn is_of_user_space(registers: &pt_regs) -> bool {
    registers.cs & 3 == 3
}

/// Name of the current thread (`comm`).
#[inline(always)]
pub(crate) fn comm(comm: &mut [u8; 16]) {
    // SAFETY: the helper fills what it is given, and a failure leaves zeros.
    unsafe { bpf_get_current_comm(comm.as_mut_ptr().cast(), 16) };
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
