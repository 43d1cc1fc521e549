//! The saved registers of user space: what x86-64 and arm64 call them, in one place.

use profiler_common::event::{N_GENERAL_REGISTERS, UserRegisters};

/// What the kernel saves of user space: `pt_regs`, of which arm64's begins with what it shows to programs
/// (`user_pt_regs`).
pub(crate) type SavedRegisters = aya_ebpf::bindings::bpf_user_pt_regs_t;

#[cfg(bpf_target_arch = "x86_64")]
pub(crate) use x86_64::{
    by_number, copy, instruction_address, is_of_user_space, probe, result, stack_pointer,
};

#[cfg(bpf_target_arch = "aarch64")]
pub(crate) use arm64::{
    by_number, copy, instruction_address, is_of_user_space, probe, result, stack_pointer,
};

/// A register by its index in [`UserRegisters::general`]; 0 for others. The context of a program can be read at offsets that
/// are constants only, so it is copied; in a subprogram of its own, whose stack is free again afterwards.
#[inline(never)]
pub(crate) fn general(saved: &SavedRegisters, idx: u64) -> u64 {
    let mut registers = UserRegisters {
        general: [0; N_GENERAL_REGISTERS],
        sp: 0,
    };
    copy(saved, &mut registers);
    // The verifier wants to see the bound where the index is used.
    let idx = core::hint::black_box(idx);
    if idx < N_GENERAL_REGISTERS as u64 {
        registers.general[idx as usize]
    } else {
        0
    }
}

#[cfg(bpf_target_arch = "x86_64")]
mod x86_64 {
    use super::{N_GENERAL_REGISTERS, SavedRegisters, UserRegisters};
    use crate::memory;

    /// Whether registers are those of user space: its code runs with a privilege level of 3.
    #[inline(always)]
    pub(crate) const fn is_of_user_space(registers: &SavedRegisters) -> bool {
        registers.cs & 3 == 3
    }

    /// Address of the instruction that was interrupted.
    #[inline(always)]
    pub(crate) const fn instruction_address(registers: &SavedRegisters) -> u64 {
        registers.rip
    }

    /// The stack pointer.
    #[inline(always)]
    pub(crate) const fn stack_pointer(registers: &SavedRegisters) -> u64 {
        registers.rsp
    }

    /// What a function returns.
    #[inline(always)]
    pub(crate) const fn result(registers: &SavedRegisters) -> u64 {
        registers.rax
    }

    /// Copies them into a record.
    #[inline(always)]
    pub(crate) fn copy(saved: &SavedRegisters, into: &mut UserRegisters) {
        into.general = [
            saved.r15, saved.r14, saved.r13, saved.r12, saved.rbp, saved.rbx, saved.r11, saved.r10,
            saved.r9, saved.r8, saved.rax, saved.rcx, saved.rdx, saved.rsi, saved.rdi,
        ];
        into.sp = saved.rsp;
    }

    /// A register by the processor's number; 0 for the stack pointer.
    #[inline(always)]
    pub(crate) fn by_number(registers: &UserRegisters, number: u8) -> u64 {
        /// Index into [`UserRegisters::general`]; the stack pointer is not in it.
        const GENERAL_IDX: [u8; N_GENERAL_REGISTERS + 1] =
            [10, 11, 12, 5, 15, 4, 13, 14, 9, 8, 7, 6, 3, 2, 1, 0];
        let mut value = 0;
        for (candidate, idx) in GENERAL_IDX.iter().enumerate() {
            if candidate as u8 == number && usize::from(*idx) < N_GENERAL_REGISTERS {
                value = registers.general[usize::from(*idx)];
            }
        }
        value
    }

    /// Reads those at an address in the kernel into a record; returns the address of the instruction. `None`: they
    /// cannot be read, or are not of user space.
    #[inline(always)]
    pub(crate) fn probe(address: u64, into: &mut UserRegisters) -> Option<u64> {
        let saved: SavedRegisters = memory::kernel(address)?;
        copy(&saved, into);
        is_of_user_space(&saved).then_some(saved.rip)
    }
}

#[cfg(bpf_target_arch = "aarch64")]
mod arm64 {
    use super::{N_GENERAL_REGISTERS, SavedRegisters, UserRegisters};
    use crate::memory;

    /// Whether registers are those of user space: exception level 0, which is 0 in the mode of `pstate`
    /// (`PSR_MODE_EL0t` in arch/arm64/include/uapi/asm/ptrace.h).
    #[inline(always)]
    pub(crate) const fn is_of_user_space(registers: &SavedRegisters) -> bool {
        is_mode_of_user_space(registers.pstate)
    }

    const fn is_mode_of_user_space(pstate: u64) -> bool {
        const MODE: u64 = 0xf;
        pstate & MODE == 0
    }

    /// Address of the instruction that was interrupted.
    #[inline(always)]
    pub(crate) const fn instruction_address(registers: &SavedRegisters) -> u64 {
        registers.pc
    }

    /// The stack pointer.
    #[inline(always)]
    pub(crate) const fn stack_pointer(registers: &SavedRegisters) -> u64 {
        registers.sp
    }

    /// What a function returns.
    #[inline(always)]
    pub(crate) const fn result(registers: &SavedRegisters) -> u64 {
        registers.regs[0]
    }

    /// Copies them into a record.
    #[inline(always)]
    pub(crate) fn copy(saved: &SavedRegisters, into: &mut UserRegisters) {
        into.general = saved.regs;
        into.sp = saved.sp;
    }

    /// A register by the processor's number; 0 for the stack pointer, which is also that of zero.
    #[inline(always)]
    pub(crate) fn by_number(registers: &UserRegisters, number: u8) -> u64 {
        // The verifier wants to see the bound where the index is used.
        let idx = core::hint::black_box(number) as usize & N_GENERAL_REGISTERS;
        if idx < N_GENERAL_REGISTERS {
            registers.general[idx]
        } else {
            0
        }
    }

    /// Reads those at an address in the kernel into a record; returns the address of the instruction. `None`: they
    /// cannot be read, or are not of user space.
    #[inline(always)]
    pub(crate) fn probe(address: u64, into: &mut UserRegisters) -> Option<u64> {
        // x0 to x30 and the stack pointer, straight into the record: on a program's stack of 512 bytes there is no
        // room for them. Behind these are the address of the instruction and the processor's state.
        memory::kernel_into(address, into)?;
        let behind = address + size_of::<UserRegisters>() as u64;
        let [pc, pstate]: [u64; 2] = memory::kernel(behind)?;
        is_mode_of_user_space(pstate).then_some(pc)
    }
}
