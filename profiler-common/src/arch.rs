//! What differs between processors, in one place: registers, addresses, and how a thread's id and its thread pointer
//! belong together.
//!
//! Both are described always, so that tests on one look at the other's too. [`THIS`] is the one that is profiled: that
//! of the agent, and for the kernel programs (whose own target is BPF) the one that aya-build names.

/// Whether arm64 (aarch64) is profiled, else x86-64.
pub const IS_ARM64: bool = cfg!(any(target_arch = "aarch64", bpf_target_arch = "aarch64"));

/// Facts of a processor architecture under Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arch {
    /// As people call it.
    pub name: &'static str,
    /// General registers in a record, the stack pointer not included: see `event::UserRegisters`.
    pub n_general_registers: usize,
    /// Index among them of a function's second argument.
    pub second_argument: usize,
    /// A `_PyCFrame` (3.11, 3.12) this near to the stack pointer belongs to the running evaluation loop; that of the loop
    /// before lies further away.
    pub own_cframe_bytes: u64,
    /// Most bytes that a thread's `pthread_t` lies below its thread pointer; 0: they are equal.
    pub max_thread_id_distance: u64,
    /// Bits of an address of user space.
    pub user_address_bits: u32,
    /// The kernel's addresses begin here.
    pub kernel_addresses: u64,
    /// Number of the system call `exit`, which ends a thread.
    pub exit_number: u32,
}

/// x86-64. The thread pointer is the FS base; the C libraries' `pthread_t` is its value (TLS variant II, ELF Handling
/// For Thread-Local Storage 3.4.6: thread-local variables lie below it).
pub const X86_64: Arch = Arch {
    name: "x86-64",
    n_general_registers: 15,
    second_argument: 13,
    // 0x80 to 0xb0 by the compilers of the day; behind that function's own frame, of 0x118 bytes and more.
    own_cframe_bytes: 0x100,
    max_thread_id_distance: 0,
    user_address_bits: 47,
    // With page tables of five levels (Documentation/arch/x86/x86_64/mm.rst).
    kernel_addresses: 0xff00_0000_0000_0000,
    exit_number: 60,
};

/// arm64. The thread pointer is `TPIDR_EL0`, which points to two words of the C library's (TLS variant I: thread-local
/// variables lie above them). Its `struct pthread`, which `pthread_t` is the address of, lies below: 1,856 bytes in
/// glibc 2.36, some 200 in musl. The stacks of two threads, which these lie on, are further from each other.
///
/// Addresses have 48 bits, or 52 where a program asks for them (Documentation/arch/arm64/memory.rst).
pub const ARM64: Arch = Arch {
    name: "arm64",
    n_general_registers: 31,
    second_argument: 1,
    // 0x100 in Debian's 3.11.2, whose frame has 0x160 bytes.
    own_cframe_bytes: 0x160,
    max_thread_id_distance: 4095,
    user_address_bits: 52,
    kernel_addresses: 0xfff0_0000_0000_0000,
    exit_number: 93,
};

/// The architecture that is profiled.
pub const THIS: Arch = if IS_ARM64 { ARM64 } else { X86_64 };

impl Arch {
    /// Whether this can be the `pthread_t` of the thread with this thread pointer.
    #[inline(always)]
    #[must_use]
    pub const fn is_id_of_thread(&self, thread_id: u64, thread_pointer: u64) -> bool {
        thread_pointer.wrapping_sub(thread_id) <= self.max_thread_id_distance
    }

    /// Whether this can be an address of user space: not in the first pages either.
    #[inline(always)]
    #[must_use]
    pub const fn is_user_address(&self, address: u64) -> bool {
        address >> self.user_address_bits == 0 && address >= 1 << 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_told_by_its_id() {
        let id = 0x7f00_0000_1740;
        assert!(X86_64.is_id_of_thread(id, id));
        assert!(!X86_64.is_id_of_thread(id, id + 8));
        // glibc 2.36 and musl on arm64.
        for bytes in [1856, 200] {
            assert!(ARM64.is_id_of_thread(id, id + bytes));
        }
        // The next thread's is at least a stack of 16 KiB away, in either direction.
        assert!(!ARM64.is_id_of_thread(id, id + (16 << 10)));
        assert!(!ARM64.is_id_of_thread(id, id - 8));
        assert!(!ARM64.is_id_of_thread(0, id));
    }

    #[test]
    fn addresses_of_user_space_are_told() {
        assert!(X86_64.is_user_address(0x7fff_ffff_f000));
        assert!(!X86_64.is_user_address(0xffff_ffff_f000));
        assert!(ARM64.is_user_address(0xffff_ffff_f000));
        for arch in [X86_64, ARM64] {
            assert!(!arch.is_user_address(0x1000));
            assert!(!arch.is_user_address(arch.kernel_addresses));
        }
    }
}
