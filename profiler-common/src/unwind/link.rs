//! The machine code that links a new frame to its caller: what it is about to store says who that is.
//!
//! Compilers may publish a frame before its `previous` is written. For those few instructions the field holds
//! what an earlier frame in its place left there, often a chain that looks whole.

use super::Window;
use crate::arch;

/// Bytes of code from the interrupted instruction on in which the store is looked for.
pub const TEXT_BYTES: u16 = 32;

/// Bytes of `mov [base + displacement], source` with a displacement of one byte.
const STORE_BYTES: u16 = 4;

/// A store that is still to come, by register number (x86-64: ax is 0, r15 is 15; arm64: x0 is 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkStore {
    /// Holds the address of the frame.
    pub base: u8,
    /// Holds what becomes its `previous`.
    pub source: u8,
}

/// Finds the first store of a register of 64 bits to `[register + displacement]` at the start of the window.
#[must_use]
#[inline(always)]
pub fn find_store(code: &Window, displacement: u16) -> Option<LinkStore> {
    if arch::IS_ARM64 {
        find_arm64(code, displacement)
    } else {
        find_x86_64(code, displacement)
    }
}

/// `str xS, [xB, #displacement]`: the form with an unsigned offset in words (Arm Architecture Reference Manual, STR
/// (immediate), unsigned offset, 64-bit). Instructions have 4 bytes and are aligned.
#[inline(always)]
fn find_arm64(code: &Window, displacement: u16) -> Option<LinkStore> {
    const INSTRUCTION_BYTES: u16 = 4;
    /// Everything but the offset and the two registers.
    const FORM: u32 = 0xffc0_0000;
    const STORE: u32 = 0xf900_0000;
    /// Stands for the stack pointer as a base, and for zero as a source.
    const NO_GENERAL: u8 = 31;
    let mut idx = 0;
    while idx < TEXT_BYTES {
        let instruction = (code.word_at(idx) >> (idx % 8 * 8)) as u32;
        let (base, source) = ((instruction >> 5 & 31) as u8, (instruction & 31) as u8);
        let is_store = instruction & FORM == STORE
            && instruction >> 10 & 0xfff == u32::from(displacement / 8)
            && base != NO_GENERAL
            && source != NO_GENERAL;
        if is_store {
            return Some(LinkStore { base, source });
        }
        idx += INSTRUCTION_BYTES;
    }
    None
}

/// `mov [base + displacement], source`. It does not decode what is before, so bytes inside of another instruction
/// can look like one: the caller compares what the registers hold with the frame that it knows, and walks from
/// there.
#[inline(always)]
fn find_x86_64(code: &Window, displacement: u16) -> Option<LinkStore> {
    const REX_W: u64 = 0x48;
    const MOV_STORE: u64 = 0x89;
    const NEEDS_SIB: u64 = 4;
    let mut idx = 0;
    while idx + STORE_BYTES <= TEXT_BYTES {
        let shift = idx % 8 * 8;
        let bytes = if shift > 32 {
            code.word_at(idx) >> shift | code.word_at(idx + 8) << (64 - shift)
        } else {
            code.word_at(idx) >> shift
        };
        let (rex, opcode, operands) = (bytes & 0xff, bytes >> 8 & 0xff, bytes >> 16 & 0xff);
        let is_store = rex & 0xf8 == REX_W
            && opcode == MOV_STORE
            && operands & 0xc0 == 0x40
            && operands & 7 != NEEDS_SIB
            && bytes >> 24 & 0xff == u64::from(displacement);
        if is_store {
            return Some(LinkStore {
                base: (operands & 7 | (rex & 1) << 3) as u8,
                source: (operands >> 3 & 7 | (rex & 4) << 1) as u8,
            });
        }
        idx += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const N_BYTES: usize = TEXT_BYTES as usize;

    fn window(code: &[u8]) -> Window {
        let mut bytes = [0x90; N_BYTES];
        bytes[..code.len()].copy_from_slice(code);
        let mut window = Window::new();
        for (word, bytes) in window.words_mut().iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap());
        }
        window
    }

    /// The call of a Python function in Debian's CPython 3.11.2, from behind the store of `current_frame` on, as
    /// objdump shows it.
    const DEBIAN_3_11: [u8; 19] = [
        0x49, 0xc1, 0xfe, 0x03, // sar $0x3,%r14
        0x4c, 0x89, 0x53, 0x38, // mov %r10,0x38(%rbx)
        0x8d, 0x48, 0xff, // lea -0x1(%rax),%ecx
        0x44, 0x89, 0x73, 0x40, // mov %r14d,0x40(%rbx)
        0x48, 0x89, 0x5a, 0x30, // mov %rbx,0x30(%rdx)
    ];

    #[test]
    fn the_store_of_the_link_is_found_wherever_the_code_was_interrupted() {
        const BX: u8 = 3;
        const DX: u8 = 2;
        let expected = Some(LinkStore {
            base: DX,
            source: BX,
        });
        for start in [0, 4, 8, 11, 15] {
            assert_eq!(
                find_x86_64(&window(&DEBIAN_3_11[start..]), 0x30),
                expected,
                "{start}"
            );
        }
        assert_eq!(find_x86_64(&window(&DEBIAN_3_11[16..]), 0x30), None);
        assert_eq!(find_x86_64(&window(&DEBIAN_3_11), 0x28), None);
    }

    #[test]
    fn numbered_registers_and_the_last_place_are_read() {
        // mov %r9,0x8(%r13), at each offset at which it fits.
        let store = [0x4d, 0x89, 0x4d, 0x08];
        for offset in 0..=N_BYTES - store.len() {
            let mut code = [0x90; N_BYTES];
            code[offset..][..store.len()].copy_from_slice(&store);
            assert_eq!(
                find_x86_64(&window(&code), 8),
                Some(LinkStore {
                    base: 13,
                    source: 9
                }),
                "{offset}"
            );
        }
    }

    #[test]
    fn stores_of_arm64_are_found_at_each_instruction() {
        const NOP: u32 = 0xd503_201f;
        const STORE: u32 = 0xf900_1ad9; // str x25, [x22, #48]
        let code = |instructions: &[u32]| {
            let bytes = instructions.iter().flat_map(|word| word.to_le_bytes());
            let mut code = [0; N_BYTES];
            for (byte, from) in code.iter_mut().zip(bytes) {
                *byte = from;
            }
            window(&code)
        };
        for at in 0..N_BYTES / 4 {
            let mut instructions = [NOP; N_BYTES / 4];
            instructions[at] = STORE;
            let expected = Some(LinkStore {
                base: 22,
                source: 25,
            });
            assert_eq!(find_arm64(&code(&instructions), 0x30), expected, "{at}");
            assert_eq!(find_arm64(&code(&instructions), 0x38), None);
        }
        for other in [
            0xf900_1bf9, // str x25, [sp, #48]
            0xf900_1adf, // str xzr, [x22, #48]
            0xb900_32d9, // str w25, [x22, #48]
            0xf940_1ad9, // ldr x25, [x22, #48]
        ] {
            assert_eq!(find_arm64(&code(&[other]), 0x30), None, "{other:#x}");
        }
    }
}
