//! What the instructions of arm64 do, and which of them the kernel emulates.
//!
//! Encodings are those of the Arm Architecture Reference Manual, "A64 instruction set encoding". What is not known here
//! counts as writing every register that its fields could name.

use super::{Condition, Flow, Instruction, MAX_ARGUMENTS, Registers};

/// Bytes of an instruction: all have the same.
pub(super) const MAX_INSTRUCTION_BYTES: u64 = 4;

/// x0 to x2 (Procedure Call Standard for the Arm 64-bit Architecture, 6.1.1).
pub(super) const ARGUMENTS: [u8; MAX_ARGUMENTS] = [0, 1, 2];

/// x0.
pub(super) const RESULT: u8 = 0;

/// What a called function need not keep: x0 to x18, and x30.
pub(super) const CLOBBERED_BY_CALLS: Registers = Registers(0x4007_ffff);

/// A register number that stands for zero, or for the stack pointer.
const ZERO_OR_SP: u8 = 31;

/// The first instruction of some bytes, which lie at `address`.
pub(super) fn decode(bytes: &[u8], address: u64) -> Option<Instruction> {
    let word = u32::from_le_bytes(*bytes.first_chunk()?);
    let flow = flow(word, address)?;
    let (rd, rm) = (register(word, 0), register(word, 16));
    // MOV: ORR with zero and a register that is not shifted.
    let is_copy = word & 0xffe0_ffe0 == 0xaa00_03e0 && rd != ZERO_OR_SP;
    // MOVZ of 0, of 32 or 64 bits, and a copy of zero.
    let is_zeroing = word & 0x7f9f_ffe0 == 0x5280_0000 || word & 0x7fff_ffe0 == 0x2a1f_03e0;
    Some(Instruction {
        n_bytes: MAX_INSTRUCTION_BYTES as u8,
        is_emulated: is_emulated(word),
        flow,
        writes: writes(word),
        copies: (is_copy && rm != ZERO_OR_SP).then_some((rd, rm)),
        zeroes: (is_zeroing && rd != ZERO_OR_SP).then_some(rd),
        // Two instructions give an address. Returns are emulated, so that less needs to be known of the ways to them.
        loads_address: None,
        is_padding: false,
        tests: tested(word),
    })
}

/// The slot that a stub of the procedure linkage table jumps through: `bti c` or nothing, `adrp x16`, `ldr x17`, `add x16`,
/// `br x17`.
pub(super) fn slot_of_stub(bytes: &[u8], address: u64) -> Option<u64> {
    const BTI_C: u32 = 0xd503_245f;
    let (words, _) = bytes.as_chunks::<4>();
    let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
    let mut at = address;
    let mut adrp = words.next()?;
    if adrp == BTI_C {
        adrp = words.next()?;
        at = at.wrapping_add(4);
    }
    let load = words.next()?;
    if adrp & 0x9f00_001f != 0x9000_0010 || load & 0xffc0_03ff != 0xf940_0211 {
        return None;
    }
    let n_pages = signed_bits(word_of_adrp(adrp), 0, 21);
    let page = (at & !0xfff).wrapping_add_signed(n_pages << 12);
    Some(page.wrapping_add(u64::from(bits(load, 10, 12)) * 8))
}

/// The constant of `adrp`: two bits at 29, the others at 5.
const fn word_of_adrp(word: u32) -> u32 {
    bits(word, 5, 19) << 2 | bits(word, 29, 2)
}

/// Linux, arch/arm64/kernel/probes/decode-insn.c: `arm_probe_decode_insn`, of what it calls `INSN_GOOD_NO_SLOT`: branches, ADR,
/// ADRP and loads of what lies beside the code. NOP is among them in newer kernels only.
fn is_emulated(word: u32) -> bool {
    let is_branch = word & 0xff00_0010 == 0x5400_0000
        || word & 0x7e00_0000 == 0x3400_0000
        || word & 0x7e00_0000 == 0x3600_0000
        || word & 0x7c00_0000 == 0x1400_0000
        || word & 0xff9f_fc1f == 0xd61f_0000 && bits(word, 21, 2) != 3;
    let is_address = word & 0x1f00_0000 == 0x1000_0000;
    // LDR of 32 and 64 bits, LDRSW.
    let is_literal = word & 0xbf00_0000 == 0x1800_0000 || word & 0xff00_0000 == 0x9800_0000;
    is_branch || is_address || is_literal
}

/// `None`: no instruction.
fn flow(word: u32, address: u64) -> Option<Flow> {
    let target = |at, n_bits| address.wrapping_add_signed(4 * signed_bits(word, at, n_bits));
    Some(match word {
        // UDF, BRK, HLT.
        _ if word >> 16 == 0 || word & 0xff80_0000 == 0xd400_0000 && bits(word, 21, 2) != 0 => {
            Flow::Stop
        }
        // B.cond
        _ if word & 0xff00_0010 == 0x5400_0000 => Flow::Branch {
            target: target(5, 19),
            condition: match bits(word, 0, 4) {
                0 => Condition::Zero,
                1 => Condition::NotZero,
                _ => Condition::Other,
            },
        },
        // CBZ, CBNZ
        _ if word & 0x7e00_0000 == 0x3400_0000 => Flow::Branch {
            target: target(5, 19),
            condition: match (bits(word, 31, 1), bits(word, 24, 1)) {
                (1, 0) => Condition::Zero,
                (1, _) => Condition::NotZero,
                // The upper half of the register is not tested.
                _ => Condition::Other,
            },
        },
        // TBZ, TBNZ
        _ if word & 0x7e00_0000 == 0x3600_0000 => Flow::Branch {
            target: target(5, 14),
            condition: Condition::Other,
        },
        _ if word & 0xfc00_0000 == 0x1400_0000 => Flow::Jump(target(0, 26)),
        _ if word & 0xfc00_0000 == 0x9400_0000 => Flow::Call(Some(target(0, 26))),
        // BR, BLR, RET, with and without pointer authentication.
        _ if word & 0xfe00_0000 == 0xd600_0000 => match bits(word, 21, 2) {
            0 => Flow::JumpAnywhere,
            1 => Flow::Call(None),
            2 => Flow::Return,
            _ => return None,
        },
        _ => Flow::Next,
    })
}

/// The register that a branch or a comparison with 0 (`SUBS` into nowhere) tests, all 64 bits of it.
fn tested(word: u32) -> Option<u8> {
    let of_branch = word & 0xfe00_0000 == 0xb400_0000;
    let of_comparison = word & 0xffff_fc1f == 0xf100_001f;
    let register = if of_branch {
        register(word, 0)
    } else {
        register(word, 5)
    };
    ((of_branch || of_comparison) && register != ZERO_OR_SP).then_some(register)
}

/// The registers that an instruction may write, by its main group (bits 25 to 28).
fn writes(word: u32) -> Registers {
    let field = |at| Registers::one(register(word, at)).without(Registers::one(ZERO_OR_SP));
    match bits(word, 25, 4) {
        // Data processing with constants and with registers, vectors that may move to a general register.
        0b1000 | 0b1001 | 0b0101 | 0b1101 | 0b0111 | 0b1111 => field(0),
        // SVC.
        0b1010 if word & 0xffe0_001f == 0xd400_0001 => Registers::one(RESULT),
        // MRS writes its lowest; BL and BLR what all calls write.
        0b1010 | 0b1011 if word & 0xffe0_0000 == 0xd520_0000 => field(0),
        0b1010 | 0b1011 => Registers::NONE,
        0b0100 | 0b0110 | 0b1100 | 0b1110 if is_plain_store(word) => Registers::NONE,
        0b0100 | 0b0110 | 0b1100 | 0b1110 => field(0).or(field(5)).or(field(10)).or(field(16)),
        _ => Registers::ALL,
    }
}

/// STR with a constant offset, STUR, and STP with an offset: they write no register.
fn is_plain_store(word: u32) -> bool {
    word & 0x3bc0_0000 == 0x3900_0000
        || word & 0x3be0_0c00 == 0x3800_0000
        || word & 0x3bc0_0000 == 0x2900_0000
}

/// `n_bits` of an instruction from bit `at` on.
const fn bits(word: u32, at: u32, n_bits: u32) -> u32 {
    word >> at & ((1 << n_bits) - 1)
}

/// The same, as a number of a register.
const fn register(word: u32, at: u32) -> u8 {
    bits(word, at, 5) as u8
}

/// The same, sign-extended.
const fn signed_bits(word: u32, at: u32, n_bits: u32) -> i64 {
    ((bits(word, at, n_bits) << (32 - n_bits)).cast_signed() >> (32 - n_bits)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(word: u32) -> Instruction {
        decode(&word.to_le_bytes(), 0x1000).unwrap()
    }

    #[test]
    fn branches_lead_where_they_say_and_are_emulated() {
        let branch = |target, condition| Flow::Branch { target, condition };
        for (word, flow) in [
            (0x5400_0040, branch(0x1008, Condition::Zero)), // b.eq
            (0x54ff_ffc1, branch(0xff8, Condition::NotZero)), // b.ne
            (0x5400_004b, branch(0x1008, Condition::Other)), // b.lt
            (0xb400_0040, branch(0x1008, Condition::Zero)), // cbz x0
            (0xb500_0041, branch(0x1008, Condition::NotZero)), // cbnz x1
            (0x3500_0041, branch(0x1008, Condition::Other)), // cbnz w1
            (0x3600_0040, branch(0x1008, Condition::Other)), // tbz w0, #0
            (0x1400_0001, Flow::Jump(0x1004)),              // b
            (0x97ff_ffff, Flow::Call(Some(0xffc))),         // bl
            (0xd63f_0020, Flow::Call(None)),                // blr x1
            (0xd61f_0220, Flow::JumpAnywhere),              // br x17
            (0xd65f_03c0, Flow::Return),                    // ret
        ] {
            let instruction = decoded(word);
            assert_eq!(instruction.flow, flow, "{word:x}");
            assert!(instruction.is_emulated, "{word:x}");
        }
        for word in [0xd420_0000, 0, 0xd440_0000] {
            assert_eq!(decoded(word).flow, Flow::Stop, "{word:x}"); // brk, udf, hlt
        }
    }

    #[test]
    fn of_the_others_addresses_and_loads_from_beside_the_code_are_emulated() {
        for (word, is_emulated) in [
            (0x9000_0010, true),  // adrp x16
            (0x1000_0001, true),  // adr x1
            (0x5800_0040, true),  // ldr x0, +8
            (0x9800_0040, true),  // ldrsw x0, +8
            (0xd503_201f, false), // nop
            (0xd503_233f, false), // paciasp
            (0xa9bf_7bfd, false), // stp x29, x30, [sp, #-16]!
            (0xf940_0020, false), // ldr x0, [x1]
            (0x9100_0400, false), // add x0, x0, #1
        ] {
            assert_eq!(decoded(word).is_emulated, is_emulated, "{word:x}");
            assert_eq!(decoded(word).flow, Flow::Next, "{word:x}");
        }
    }

    #[test]
    fn what_is_written_copied_zeroed_and_tested() {
        let (x0, x1) = (Registers::one(0), Registers::one(1));
        assert_eq!(decoded(0xaa00_03e1).copies, Some((1, 0))); // mov x1, x0
        assert_eq!(decoded(0xaa00_03e1).writes, x1);
        assert_eq!(decoded(0x2a00_03e1).copies, None); // mov w1, w0
        assert_eq!(decoded(0xd280_0000).zeroes, Some(0)); // mov x0, #0
        assert_eq!(decoded(0xaa1f_03e0).zeroes, Some(0)); // mov x0, xzr
        assert_eq!(decoded(0xd280_0020).zeroes, None); // mov x0, #1
        assert_eq!(decoded(0xb400_0040).tests, Some(0)); // cbz x0
        assert_eq!(decoded(0xf100_003f).tests, Some(1)); // cmp x1, #0
        assert_eq!(decoded(0xf100_043f).tests, None); // cmp x1, #1
        assert!(decoded(0xf940_0020).writes.contains(0)); // ldr x0, [x1]
        assert_eq!(decoded(0xf900_0020).writes, Registers::NONE); // str x0, [x1]
        assert!(decoded(0xf800_8420).writes.contains(1)); // str x0, [x1], #8
        assert_eq!(decoded(0xd400_0001).writes, x0); // svc
    }

    #[test]
    fn calls_keep_the_registers_that_the_convention_says() {
        let clobbered = |number| CLOBBERED_BY_CALLS.contains(number);
        assert!(ARGUMENTS.into_iter().chain([RESULT, 18, 30]).all(clobbered));
        assert!(!(19..=29).any(clobbered));
    }

    #[test]
    fn a_stub_is_followed_to_its_slot() {
        // adrp x16, 0x11000; ldr x17, [x16, #8]; add x16, x16, #8; br x17
        let stub = [0x9000_0090_u32, 0xf940_0611, 0x9100_2210, 0xd61f_0220];
        let bytes: Vec<u8> = stub.into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(slot_of_stub(&bytes, 0x1230), Some(0x1_1008));
        assert_eq!(slot_of_stub(&bytes[4..], 0x1234), None);
        let behind_bti: Vec<u8> = [&0xd503_245f_u32.to_le_bytes(), &bytes[..]].concat();
        assert_eq!(slot_of_stub(&behind_bti, 0x122c), Some(0x1_1008));
    }
}
