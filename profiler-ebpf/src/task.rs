//! Facts of a task: ids, name, thread pointer, saved registers. Two ways to have them, which the same programs are
//! built with: see [`Task`].

use aya_ebpf::helpers::generated::{
    bpf_get_current_comm, bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs,
};

use profiler_common::event::UserRegisters;

use crate::globals;
use crate::memory;
use crate::registers::{self, SavedRegisters};

/// Reads the `task_struct` of a task, given as its address.
pub(crate) trait Task {
    /// Address of the current one.
    fn current() -> u64;

    /// The word at an offset.
    fn u64_at(task: u64, offset: u32) -> Option<u64>;

    /// The half word at an offset.
    fn u32_at(task: u64, offset: u32) -> Option<u32>;

    /// Copies the registers with which the current task last left user space into a record; returns the address of the
    /// instruction.
    fn saved_user_registers(into: &mut UserRegisters) -> Option<u64>;

    /// The thread pointer of a task that runs, or is switched out: x86-64's FS base, arm64's `TPIDR_EL0`.
    ///
    /// A program may write `TPIDR_EL0` itself, and the kernel saves it when it switches to another task
    /// (`tls_thread_switch` in arch/arm64/kernel/process.c). Of a thread it is what clone was given
    /// (`copy_thread`), and stays so. Only the first thread's is of the program before until the first switch
    /// after its exec: it is found in no list until then, or its storage is not there, which the record says.
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

    /// When a task began, in nanoseconds since boot; 0: that is not known.
    #[inline(always)]
    fn started_ns(task: u64) -> u64 {
        let offset = globals::task_start();
        if offset == 0 {
            return 0;
        }
        Self::u64_at(task, offset).unwrap_or(0)
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
    fn saved_user_registers(into: &mut UserRegisters) -> Option<u64> {
        // SAFETY: helpers on the current task, which has registers.
        let saved =
            unsafe { &*(bpf_task_pt_regs(bpf_get_current_task_btf()) as *const SavedRegisters) };
        registers::copy(saved, into);
        Some(registers::instruction_address(saved))
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
    fn saved_user_registers(into: &mut UserRegisters) -> Option<u64> {
        let stack = Self::u64_at(Self::current(), globals::task_stack())?;
        registers::probe(stack + u64::from(globals::stack_registers()), into)
    }
}

/// Name of the current thread (`comm`).
#[inline(always)]
pub(crate) fn comm(comm: &mut [u8; 16]) {
    // SAFETY: the helper fills what it is given, and a failure leaves zeros.
    unsafe { bpf_get_current_comm(comm.as_mut_ptr().cast(), 16) };
}
