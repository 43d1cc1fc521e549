//! The few instructions of arm64 that matter between a dispatch jump and the store of the instruction.
//!
//! Encodings are those of the Arm Architecture Reference Manual, "A64 instruction set encoding". What is not known here
//! ends the line: no rule is better than a wrong one.

use super::{MAX_INSTRUCTIONS, RegisterSum, touches_field};

/// Bytes of an instruction: all have the same.
pub(super) const MAX_INSTRUCTION_BYTES: usize = 4;

/// x0 to x30. As number 31 instructions mean zero, or the stack pointer.
const N_REGISTERS: usize = 31;

/// A register number that stands for zero, or for the stack pointer.
const ZERO_OR_SP: usize = 31;

type Values = super::Values<N_REGISTERS>;

/// The registers that 64-bit stores into the field go through, as indexes into `UserRegisters::general`.
pub(super) fn bases_of_stores(text: &[u8], field: u64) -> impl Iterator<Item = u8> {
    let (words, _) = text.as_chunks::<MAX_INSTRUCTION_BYTES>();
    words.iter().filter_map(move |word| {
        let store = Access::of(u32::from_le_bytes(*word))?;
        let base = store.value_of(field).map(|_| store.base);
        base.filter(|base| *base != ZERO_OR_SP)
            .map(|base| base as u8)
    })
}

/// What the first store into the field of some structure writes to, and what it writes.
pub(super) fn next_store(text: &[u8], field: u64) -> Option<(RegisterSum, RegisterSum)> {
    let mut values = Values::at_sample(|number| Some(number as u8));
    let (words, _) = text.as_chunks::<MAX_INSTRUCTION_BYTES>();
    for word in words.iter().take(MAX_INSTRUCTIONS) {
        match Effect::of(u32::from_le_bytes(*word)) {
            Effect::Nothing => {}
            Effect::Ends => return None,
            Effect::Writes(register) => values.set(register, None),
            Effect::Sum {
                register,
                of,
                addend,
            } => {
                let sum = values.get(of).map(|sum| sum.plus(addend));
                values.set(register, sum);
            }
            Effect::Accesses(access) => {
                if access.writes_field(field) {
                    let instr = values.get(access.value_of(field)?);
                    return values.get(access.base).zip(instr);
                }
                if !access.is_store {
                    values.set(access.first, None);
                    if let Some(second) = access.second {
                        values.set(second, None);
                    }
                }
                if let Some(addend) = access.added_to_base {
                    let sum = values.get(access.base).map(|sum| sum.plus(addend));
                    values.set(access.base, sum);
                }
            }
        }
    }
    None
}

/// What an instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Nothing to general registers and memory.
    Nothing,
    /// It goes elsewhere, or is not known.
    Ends,
    /// A general register is written.
    Writes(usize),
    /// A register becomes another and a constant.
    Sum {
        register: usize,
        of: usize,
        addend: i64,
    },
    /// Memory is read or written.
    Accesses(Access),
}

/// A load or a store of registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Access {
    is_store: bool,
    /// Whether these are general registers, of which all 64 bits are accessed.
    is_of_whole_registers: bool,
    /// What is accessed; vector registers are given as [`ZERO_OR_SP`].
    first: usize,
    /// The other register of a pair.
    second: Option<usize>,
    base: usize,
    /// From the base as it was before; `None`: an index is added, as to elements of arrays.
    offset: Option<i64>,
    n_bytes: u64,
    /// The base register moves on.
    added_to_base: Option<i64>,
}

/// `n_bits` of an instruction from bit `at` on.
const fn bits(instruction: u32, at: u32, n_bits: u32) -> u32 {
    instruction >> at & ((1 << n_bits) - 1)
}

/// The same, as a number of a register.
const fn register(instruction: u32, at: u32) -> usize {
    bits(instruction, at, 5) as usize
}

/// The same, sign-extended.
const fn signed_bits(instruction: u32, at: u32, n_bits: u32) -> i64 {
    ((bits(instruction, at, n_bits) << (32 - n_bits)).cast_signed() >> (32 - n_bits)) as i64
}

impl Effect {
    fn of(instruction: u32) -> Self {
        // The main groups, by bits 25 to 28.
        match bits(instruction, 25, 4) {
            0b1000 | 0b1001 => Self::of_immediate(instruction),
            0b1010 | 0b1011 => Self::of_branch_or_system(instruction),
            0b0100 | 0b0110 | 0b1100 | 0b1110 => Access::of(instruction)
                .map_or_else(|| Self::of_literal(instruction), Self::Accesses),
            0b0101 | 0b1101 => Self::of_registers(instruction),
            // Vectors. Some move to a general register.
            0b0111 | 0b1111 => Self::Writes(register(instruction, 0)),
            _ => Self::Ends,
        }
    }

    /// Data processing with constants: all write their lowest register.
    fn of_immediate(instruction: u32) -> Self {
        let target = register(instruction, 0);
        let of = register(instruction, 5);
        // ADD and SUB of 64 bits, without flags; the constant may be shifted by 12 bits.
        let is_sum = instruction & 0xbf80_0000 == 0x9100_0000;
        if is_sum && of != ZERO_OR_SP {
            let constant = i64::from(bits(instruction, 10, 12)) << (12 * bits(instruction, 22, 1));
            let is_difference = bits(instruction, 30, 1) == 1;
            return Self::Sum {
                register: target,
                of,
                addend: if is_difference { -constant } else { constant },
            };
        }
        Self::Writes(target)
    }

    /// Branches, system calls, barriers; of the hints those for nothing, and those that mark targets of jumps.
    fn of_branch_or_system(instruction: u32) -> Self {
        const NOP: u32 = 0xd503_201f;
        const BTI: u32 = 0xd503_241f;
        const BTI_KIND: u32 = 0xc0;
        if instruction == NOP || instruction & !BTI_KIND == BTI {
            Self::Nothing
        } else {
            Self::Ends
        }
    }

    /// Data processing of registers: all that write one write their lowest.
    fn of_registers(instruction: u32) -> Self {
        // MOV: ORR with zero and a register that is not shifted.
        let is_copy = instruction & 0xffe0_ffe0 == 0xaa00_03e0;
        let of = register(instruction, 16);
        if is_copy && of != ZERO_OR_SP {
            return Self::Sum {
                register: register(instruction, 0),
                of,
                addend: 0,
            };
        }
        Self::Writes(register(instruction, 0))
    }

    /// Loads of what lies beside the code.
    fn of_literal(instruction: u32) -> Self {
        let is_general = instruction & 0x3f00_0000 == 0x1800_0000;
        if is_general {
            Self::Writes(register(instruction, 0))
        } else {
            Self::Ends
        }
    }
}

impl Access {
    /// `None`: another one than of single registers and of pairs, or no access at all.
    fn of(instruction: u32) -> Option<Self> {
        match (bits(instruction, 27, 3), bits(instruction, 24, 2)) {
            (0b111, 0b01) => Some(Self::of_unsigned_offset(instruction)),
            (0b111, 0b00) => Self::of_small_offset(instruction),
            (0b101, 0b00 | 0b01) => Self::of_pair(instruction),
            _ => None,
        }
    }

    /// Of one register, without the address.
    fn of_one(instruction: u32) -> Self {
        let is_vector = bits(instruction, 26, 1) == 1;
        let (size, kind) = (bits(instruction, 30, 2), bits(instruction, 22, 2));
        // Vectors of 128 bits have a kind of their own.
        let scale = if is_vector && kind & 0b10 != 0 {
            4
        } else {
            size
        };
        let is_store = kind == 0b00 || (is_vector && kind == 0b10);
        Self {
            is_store,
            is_of_whole_registers: size == 0b11 && !is_vector,
            first: if is_vector {
                ZERO_OR_SP
            } else {
                register(instruction, 0)
            },
            second: None,
            base: register(instruction, 5),
            offset: None,
            n_bytes: 1 << scale,
            added_to_base: None,
        }
    }

    fn of_unsigned_offset(instruction: u32) -> Self {
        let one = Self::of_one(instruction);
        let offset = u64::from(bits(instruction, 10, 12)) * one.n_bytes;
        Self {
            offset: Some(offset.cast_signed()),
            ..one
        }
    }

    /// With an offset of 9 bits, which may be added to the base, or with a register as an index. Not the atomic ones.
    fn of_small_offset(instruction: u32) -> Option<Self> {
        let one = Self::of_one(instruction);
        let constant = signed_bits(instruction, 12, 9);
        let (offset, added_to_base) = match (bits(instruction, 21, 1), bits(instruction, 10, 2)) {
            (0, 0b00 | 0b10) => (Some(constant), None),
            (0, 0b01) => (Some(0), Some(constant)),
            (0, _) => (Some(constant), Some(constant)),
            (_, 0b10) => (None, None),
            _ => return None,
        };
        Some(Self {
            offset,
            added_to_base,
            ..one
        })
    }

    fn of_pair(instruction: u32) -> Option<Self> {
        let is_vector = bits(instruction, 26, 1) == 1;
        let size = bits(instruction, 30, 2);
        let n_bytes: u64 = match (is_vector, size) {
            // Of those of 64 bits the first is a load with a sign, or a store with a tag.
            (false, 0b00 | 0b01) | (true, 0b00) => 4,
            (false, 0b10) | (true, 0b01) => 8,
            (true, 0b10) => 16,
            _ => return None,
        };
        let is_store = bits(instruction, 22, 1) == 0;
        if is_store && !is_vector && size == 0b01 {
            return None;
        }
        let constant = signed_bits(instruction, 15, 7) * n_bytes.cast_signed();
        let (offset, added_to_base) = match bits(instruction, 23, 2) {
            0b01 => (0, Some(constant)),
            0b11 => (constant, Some(constant)),
            _ => (constant, None),
        };
        let general = |at| {
            if is_vector {
                ZERO_OR_SP
            } else {
                register(instruction, at)
            }
        };
        Some(Self {
            is_store,
            is_of_whole_registers: size == 0b10 && !is_vector,
            first: general(0),
            second: Some(general(10)),
            base: register(instruction, 5),
            offset: Some(offset),
            n_bytes: 2 * n_bytes,
            added_to_base,
        })
    }

    /// Whether a structure's field is written that the base points to. The stack and elements of arrays are not what the
    /// field is reached through.
    fn writes_field(&self, field: u64) -> bool {
        let offset = self.offset.filter(|_| self.is_store);
        self.base != ZERO_OR_SP
            && offset.is_some_and(|offset| touches_field(offset, self.n_bytes, field))
    }

    /// The register that is stored into the field: `str xT, [xN, #field]`, or one of the two of `stp`, with which
    /// compilers store the instruction and the field behind it at once (3.14+).
    fn value_of(&self, field: u64) -> Option<usize> {
        let is_plain = self.is_store && self.is_of_whole_registers && self.added_to_base.is_none();
        let register = match self.offset.map(|offset| field.cast_signed() - offset) {
            Some(0) => Some(self.first),
            Some(8) => self.second,
            _ => None,
        };
        register.filter(|register| is_plain && *register != ZERO_OR_SP)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `prev_instr` of 3.11.
    const FIELD: u64 = 56;

    fn text(instructions: &[u32]) -> Vec<u8> {
        let bytes = instructions.iter().flat_map(|word| word.to_le_bytes());
        bytes.collect()
    }

    fn next(instructions: &[u32]) -> Option<(RegisterSum, RegisterSum)> {
        next_store(&text(instructions), FIELD)
    }

    fn sum(general_idx: u8, addend: i64) -> RegisterSum {
        RegisterSum {
            general_idx,
            addend,
        }
    }

    /// `str x22, [x25, #56]`: how Debian's CPython 3.11.2 for arm64 stores its instruction.
    const STORE: u32 = 0xf900_1f36;

    /// Beginnings of handlers of that interpreter, up to what follows the store, as objdump shows them.
    #[rustfmt::skip]
    const HANDLERS: [&[u32]; 3] = [
        &[
            0x8b3a_cf2b, // add x11, x25, w26, sxtw #3
            0x9100_0ad5, // add x21, x22, #0x2
            0xf85f_8f01, // ldr x1, [x24, #-8]!
            0xf900_1f36, // str x22, [x25, #56]
            0xf940_2560, // ldr x0, [x11, #72]
            0xf900_2561, // str x1, [x11, #72]
        ],
        &[
            0xf940_0721, // ldr x1, [x25, #8]
            0x9000_2480, // adrp x0, 939000
            0x911b_0000, // add x0, x0, #0x6c0
            0x9100_0adc, // add x28, x22, #0x2
            0xf940_0423, // ldr x3, [x1, #8]
            0xf900_1f36, // str x22, [x25, #56]
            0xeb00_007f, // cmp x3, x0
        ],
        &[
            0xf85f_8315, // ldur x21, [x24, #-8]
            0x9100_0adc, // add x28, x22, #0x2
            0xaa15_03e0, // mov x0, x21
            0xf940_06a1, // ldr x1, [x21, #8]
            0xf940_7021, // ldr x1, [x1, #224]
            0xf900_1f36, // str x22, [x25, #56]
            0xd63f_0020, // blr x1
        ],
    ];

    #[test]
    fn the_store_is_found_from_the_handlers_entry_to_the_store_and_no_further() {
        for handler in HANDLERS {
            let store_idx = handler.iter().position(|word| *word == STORE).unwrap();
            for pc in 0..=store_idx {
                let found = next(&handler[pc..]);
                assert_eq!(found, Some((sum(25, 0), sum(22, 0))), "{pc} {handler:x?}");
            }
            assert_eq!(next(&handler[store_idx + 1..]), None);
        }
    }

    #[test]
    fn a_value_that_is_computed_on_the_way_is_followed() {
        const STORE_X3: u32 = 0xf900_1f63; // str x3, [x27, #56]
        let computed = [
            0xaa16_03e3, // mov x3, x22
            0x9100_0863, // add x3, x3, #0x2
            0xd140_0463, // sub x3, x3, #0x1, lsl #12
            STORE_X3,
        ];
        assert_eq!(next(&computed), Some((sum(27, 0), sum(22, 2 - 0x1000))));
        assert_eq!(next(&computed[1..]), Some((sum(27, 0), sum(3, 2 - 0x1000))));
        // ldr x4, [x3], #8; str x4, [x3, #8]!
        let moved_on = [0xf840_8464, 0xf800_8c64, STORE_X3];
        assert_eq!(next(&moved_on), Some((sum(27, 0), sum(3, 16))));
    }

    #[test]
    fn a_register_that_is_overwritten_is_not_known() {
        for overwrite in [
            0x8b04_0063, // add x3, x3, x4
            0x1100_0863, // add w3, w3, #0x2
            0xb100_0863, // adds x3, x3, #0x2
            0x2a03_03e3, // mov w3, w3
            0xf280_0023, // movk x3, #0x1
            0xf940_0023, // ldr x3, [x1]
            0x3940_0023, // ldrb w3, [x1]
            0xa940_1023, // ldp x3, x4, [x1]
            0xa940_0c24, // ldp x4, x3, [x1]
            0x6940_1023, // ldpsw x3, x4, [x1]
            0x5800_8003, // ldr x3, 1034
            0x9e66_0003, // fmov x3, d0
            0x9a85_0083, // csel x3, x4, x5, eq
            0xd341_0863, // ubfx x3, x3, #1, #2
        ] {
            let found = next(&[overwrite, 0xf900_1f63]); // str x3, [x27, #56]
            assert_eq!(found, None, "{overwrite:#x}");
        }
    }

    #[test]
    fn branches_and_what_is_not_known_end_the_line() {
        for end in [
            0x1400_0400, // b
            0x5400_8000, // b.eq
            0xb400_8004, // cbz x4
            0x3618_8004, // tbz w4, #3
            0x9400_0400, // bl
            0xd63f_0080, // blr x4
            0xd61f_0080, // br x4
            0xd65f_03c0, // ret
            0xd400_0001, // svc #0x0
            0xd420_0020, // brk #0x1
            0xd503_3bbf, // dmb ish
            0xc804_7f65, // stxr w4, x5, [x27]
            0xf824_0365, // ldadd x4, x5, [x27]
            0x4c00_7f60, // st1 {v0.2d}, [x27]
            0xd503_233f, // paciasp
            0x0000_0000, // udf #0
            0x04e1_3040, // bic z0.d, z2.d, z1.d
        ] {
            assert_eq!(next(&[end, STORE]), None, "{end:#x}");
        }
    }

    #[test]
    fn only_a_plain_store_into_the_field_counts_and_another_one_ends_the_line() {
        for passed in [
            0xf900_1fe3, // str x3, [sp, #56]
            0xf900_2363, // str x3, [x27, #64]
            0xf900_1b63, // str x3, [x27, #48]
            0xf824_7b63, // str x3, [x27, x4, lsl #3]
            0xf940_1f64, // ldr x4, [x27, #56]
            0xd503_201f, // nop
            0xd503_245f, // bti c
        ] {
            let found = next(&[passed, STORE]);
            assert_eq!(found, Some((sum(25, 0), sum(22, 0))), "{passed:#x}");
        }
        for end in [
            0xf900_1f7f, // str xzr, [x27, #56]
            0xb900_3f64, // str w4, [x27, #60]
            0x3900_ff64, // strb w4, [x27, #63]
            0x2907_1764, // stp w4, w5, [x27, #56]
            0xa983_9764, // stp x4, x5, [x27, #56]!
            0x3d80_0f60, // str q0, [x27, #48]
            0xf803_4364, // stur x4, [x27, #52]
            0xf803_8f64, // str x4, [x27, #56]!
        ] {
            assert_eq!(next(&[end, STORE]), None, "{end:#x}");
        }
        // str x4, [x27], #56 writes in front of the field.
        assert_eq!(next(&[0xf803_8764, STORE]), Some((sum(25, 0), sum(22, 0))));
    }

    #[test]
    fn a_store_of_two_registers_at_once_counts_too() {
        // As Debian's 3.15.2 does: stp x11, x10, [x8, #56].
        assert_eq!(next(&[0xa903_a90b]), Some((sum(8, 0), sum(11, 0))));
        // stp x4, x5, [x27, #48]: the second is what lies in the field.
        assert_eq!(next(&[0xa903_1764]), Some((sum(27, 0), sum(5, 0))));
        let all = text(&[0xa903_a90b, 0xa903_a90b, STORE]);
        assert_eq!(bases_of_stores(&all, FIELD).collect::<Vec<_>>(), [8, 8, 25]);
    }

    #[test]
    fn the_twelfth_instruction_is_the_last_one_that_is_looked_at() {
        const NOP: u32 = 0xd503_201f;
        let behind = |n_nops| [&vec![NOP; n_nops][..], &[STORE]].concat();
        assert!(next(&behind(MAX_INSTRUCTIONS - 1)).is_some());
        assert_eq!(next(&behind(MAX_INSTRUCTIONS)), None);
    }

    #[test]
    fn stores_through_the_stack_pointer_are_not_the_loops() {
        let all = text(&[STORE, 0xf900_1fe3, STORE, 0xf900_2363, 0xf900_1f7f]);
        assert_eq!(bases_of_stores(&all, FIELD).collect::<Vec<_>>(), [25, 25]);
    }

    proptest! {
        #[test]
        fn any_instructions_give_a_result(
            instructions in proptest::collection::vec(any::<u32>(), 0..16),
            field in 0..=u64::from(u16::MAX),
        ) {
            if let Some((frame, instr)) = next_store(&text(&instructions), field) {
                prop_assert!(usize::from(frame.general_idx) < N_REGISTERS);
                prop_assert!(usize::from(instr.general_idx) < N_REGISTERS);
            }
            prop_assert!(bases_of_stores(&text(&instructions), field).count() <= instructions.len());
        }
    }
}
