//! The few instructions of x86-64 that matter between a dispatch jump and the store of the instruction.

use crate::native::registers::GENERAL_IDX;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind,
    Register, UsedMemory,
};

use super::{MAX_INSTRUCTIONS, RegisterSum, touches_field};

/// Bytes of the longest instruction.
pub(super) const MAX_INSTRUCTION_BYTES: usize = 15;

/// General registers, the stack pointer included.
const N_REGISTERS: usize = 16;

type Values = super::Values<N_REGISTERS>;

/// The registers that 64-bit stores into the field go through, as indexes into `UserRegisters::general`.
pub(super) fn bases_of_stores(text: &[u8], field: u64) -> impl Iterator<Item = u8> {
    let registers = at_sample();
    let instructions = Decoder::new(64, text, DecoderOptions::NONE);
    instructions.into_iter().filter_map(move |instruction| {
        let base = get(&registers, instruction.memory_base());
        base.filter(|_| is_plain_store(&instruction, field))
            .map(|base| base.general_idx)
    })
}

/// What the first store into the field of some structure writes to, and what it writes.
pub(super) fn next_store(text: &[u8], field: u64) -> Option<(RegisterSum, RegisterSum)> {
    let mut values = at_sample();
    let mut info_factory = InstructionInfoFactory::new();
    let decoder = Decoder::new(64, text, DecoderOptions::NONE);
    for instruction in decoder.into_iter().take(MAX_INSTRUCTIONS) {
        if instruction.is_invalid() || instruction.flow_control() != FlowControl::Next {
            return None;
        }
        let info = info_factory.info(&instruction);
        if info
            .used_memory()
            .iter()
            .any(|memory| writes_field(memory, field))
        {
            let is_plain = is_plain_store(&instruction, field);
            let frame = get(&values, instruction.memory_base());
            let instr = get(&values, instruction.op1_register());
            return frame.zip(instr).filter(|_| is_plain);
        }
        let result = result_of(&values, &instruction);
        for used in info
            .used_registers()
            .iter()
            .filter(|used| is_write(used.access()))
        {
            set(&mut values, used.register(), None);
        }
        if let Some((register, sum)) = result {
            set(&mut values, register, sum);
        }
    }
    None
}

/// Each register holds itself.
fn at_sample() -> Values {
    Values::at_sample(|number| GENERAL_IDX.get(number).copied().flatten())
}

/// What a 64-bit general register holds.
fn get(values: &Values, register: Register) -> Option<RegisterSum> {
    if register.is_gpr64() {
        values.get(register.number())
    } else {
        None
    }
}

/// From here on the register, or the one that it is a part of, holds this.
fn set(values: &mut Values, register: Register, sum: Option<RegisterSum>) {
    let register = register.full_register();
    if register.is_gpr64() {
        values.set(register.number(), sum);
    }
}

/// The register that the instruction computes and what it then holds, for the few instructions that
/// move an address about.
fn result_of(
    values: &Values,
    instruction: &Instruction,
) -> Option<(Register, Option<RegisterSum>)> {
    if instruction.op0_kind() != OpKind::Register || !instruction.op0_register().is_gpr64() {
        return None;
    }
    let register = instruction.op0_register();
    let constant =
        || is_constant(instruction.op1_kind()).then(|| instruction.immediate(1).cast_signed());
    let sum = match instruction.mnemonic() {
        Mnemonic::Mov if instruction.op1_kind() == OpKind::Register => {
            get(values, instruction.op1_register())
        }
        Mnemonic::Lea if instruction.memory_index() == Register::None => {
            let displacement = instruction.memory_displacement64().cast_signed();
            get(values, instruction.memory_base()).map(|base| base.plus(displacement))
        }
        Mnemonic::Add => get(values, register)
            .zip(constant())
            .map(|(sum, addend)| sum.plus(addend)),
        Mnemonic::Sub => get(values, register)
            .zip(constant())
            .map(|(sum, addend)| sum.plus(addend.wrapping_neg())),
        Mnemonic::Inc => get(values, register).map(|sum| sum.plus(1)),
        Mnemonic::Dec => get(values, register).map(|sum| sum.plus(-1)),
        _ => None,
    };
    Some((register, sum))
}

/// Whether an operand is a constant of the instruction, sign-extended to 64 bits.
fn is_constant(kind: OpKind) -> bool {
    matches!(kind, OpKind::Immediate8to64 | OpKind::Immediate32to64)
}

/// Whether this is `mov [register + field], register`, 64 bits wide.
fn is_plain_store(instruction: &Instruction, field: u64) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Memory
        && instruction.memory_displacement64() == field
        && instruction.memory_index() == Register::None
        && instruction.op1_kind() == OpKind::Register
        && instruction.op1_register().is_gpr64()
}

/// Whether a memory operand is written and touches the field of a structure that a register points to. The
/// stack (`[rsp + ..]`), statics and elements of arrays are not what the field is reached through.
fn writes_field(memory: &UsedMemory, field: u64) -> bool {
    let base = memory.base();
    if !is_write(memory.access()) || !base.is_gpr64() || base == Register::RSP {
        return false;
    }
    if memory.index() != Register::None {
        return false;
    }
    let offset = memory.displacement().cast_signed();
    touches_field(offset, memory.memory_size().size() as u64, field)
}

/// Whether an access writes, if only sometimes.
fn is_write(access: iced_x86::OpAccess) -> bool {
    use iced_x86::OpAccess;
    match access {
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
            true
        }
        OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use profiler_common::event::{N_GENERAL_REGISTERS, UserRegisters};

    use super::super::{EvalLoop, PendingStore, RepairRule, TEXT_BYTES};
    use super::*;
    use crate::ids::Address;

    /// `prev_instr` and `instr_ptr` of 3.11 to 3.13.
    const INSTR_OFFSET: u16 = 56;

    // Indexes into `UserRegisters::general`.
    const R15: u8 = 0;
    const R14: u8 = 1;
    const BP: u8 = 4;
    const BX: u8 = 5;
    const R10: u8 = 7;

    fn sum(general_idx: u8, addend: i64) -> RegisterSum {
        RegisterSum {
            general_idx,
            addend,
        }
    }

    fn store(frame: RegisterSum, instr: RegisterSum) -> RepairRule {
        RepairRule::Store { frame, instr }
    }

    fn decide(text: &[u8]) -> RepairRule {
        EvalLoop::of(&[], INSTR_OFFSET).decide(text)
    }

    /// A handler of 3.11.7 (gcc 12): the frame is in rbp, the instruction in r14, and the instruction after
    /// it (rax) is not what is stored.
    const HANDLER_3_11: &[u8] = &[
        0x49, 0x8d, 0x46, 0x02, //       lea 0x2(%r14),%rax
        0x48, 0x8b, 0x53, 0xf8, //       mov -0x8(%rbx),%rdx
        0x48, 0x8b, 0x73, 0xf0, //       mov -0x10(%rbx),%rsi
        0x4c, 0x89, 0x75, 0x38, //       mov %r14,0x38(%rbp)
        0x48, 0x89, 0x44, 0x24, 0x08, // mov %rax,0x8(%rsp)
    ];

    #[test]
    fn the_store_of_3_11_is_found_from_the_handlers_entry_to_the_store_and_no_further() {
        for pc in [0, 4, 8, 12] {
            assert_eq!(decide(&HANDLER_3_11[pc..]), store(sum(BP, 0), sum(R14, 0)));
        }
        assert_eq!(decide(&HANDLER_3_11[16..]), RepairRule::None);
    }

    #[test]
    fn the_store_of_3_12_is_found() {
        let text = [
            0x4d, 0x8b, 0x67, 0xf8, // mov -0x8(%r15),%r12
            0x49, 0x8d, 0x6a, 0x02, // lea 0x2(%r10),%rbp
            0x4d, 0x8b, 0x6f, 0xf0, // mov -0x10(%r15),%r13
            0x4c, 0x89, 0x53, 0x38, // mov %r10,0x38(%rbx)
        ];
        assert_eq!(decide(&text), store(sum(BX, 0), sum(R10, 0)));
    }

    #[test]
    fn the_store_of_3_13_is_found_before_the_register_moves_on() {
        let text = [
            0x44, 0x89, 0xf0, //       mov %r14d,%eax
            0x4c, 0x89, 0x7d, 0x38, // mov %r15,0x38(%rbp)
            0x49, 0x83, 0xc7, 0x02, // add $0x2,%r15
        ];
        assert_eq!(decide(&text), store(sum(BP, 0), sum(R15, 0)));
        assert_eq!(decide(&text[3..]), store(sum(BP, 0), sum(R15, 0)));
        assert_eq!(decide(&text[7..]), RepairRule::None);
    }

    #[test]
    fn a_value_that_is_computed_on_the_way_is_followed() {
        // RETURN_GENERATOR of 3.13: what is stored is the instruction behind it. `sub` of two registers and
        // a store into one byte of the frame lie between, and do not matter.
        let text = [
            0x4c, 0x8d, 0x4d, 0x48, // lea 0x48(%rbp),%r9
            0x4c, 0x8b, 0x34, 0x24, // mov (%rsp),%r14
            0x88, 0x45, 0xfb, //       mov %al,-0x5(%rbp)
            0x48, 0x8d, 0x43, 0xf8, // lea -0x8(%rbx),%rax
            0x4d, 0x8d, 0x6f, 0x02, // lea 0x2(%r15),%r13
            0x4c, 0x89, 0xf9, //       mov %r15,%rcx
            0x4c, 0x29, 0xc8, //       sub %r9,%rax
            0x4c, 0x89, 0x6d, 0x38, // mov %r13,0x38(%rbp)
        ];
        assert_eq!(decide(&text), store(sum(BP, 0), sum(R15, 2)));
        // Behind the `lea` it is in r13, which is index 2.
        assert_eq!(decide(&text[19..]), store(sum(BP, 0), sum(2, 0)));
        // add $0xbe,%rax; sub $0x2,%rax; inc %rax; mov %rax,0x38(%rbp)
        let text = [
            0x48, 0x05, 0xbe, 0x00, 0x00, 0x00, 0x48, 0x83, 0xe8, 0x02, 0x48, 0xff, 0xc0, 0x48,
            0x89, 0x45, 0x38,
        ];
        assert_eq!(decide(&text), store(sum(BP, 0), sum(10, 0xbe - 2 + 1)));
    }

    #[test]
    fn a_value_that_comes_from_memory_is_not_known_before_it_is_loaded() {
        // 3.12, making a generator: mov %eax,0x40(%rbx); mov 0x10(%rsp),%rax; mov %rax,0x38(%rbx).
        let text = [
            0x89, 0x43, 0x40, 0x48, 0x8b, 0x44, 0x24, 0x10, 0x48, 0x89, 0x43, 0x38,
        ];
        assert_eq!(decide(&text), RepairRule::None);
        assert_eq!(decide(&text[3..]), RepairRule::None);
        assert_eq!(decide(&text[8..]), store(sum(BX, 0), sum(10, 0)));
    }

    #[test]
    fn a_write_to_a_part_of_the_register_makes_it_unknown() {
        for overwrite in [
            &[0xb0, 0x01][..],               // mov $0x1,%al
            &[0x31, 0xc0],                   // xor %eax,%eax
            &[0x48, 0x98],                   // cltq
            &[0x0f, 0xa2],                   // cpuid
            &[0x48, 0x0f, 0x44, 0xc1],       // cmove %rcx,%rax
            &[0x48, 0x91],                   // xchg %rax,%rcx
            &[0x48, 0x8d, 0x04, 0x08],       // lea (%rax,%rcx,1),%rax
            &[0x67, 0x8d, 0x40, 0x02],       // lea 0x2(%eax),%eax
            &[0x48, 0x8d, 0x05, 0, 0, 0, 0], // lea 0x0(%rip),%rax
        ] {
            let text = [overwrite, &[0x48, 0x89, 0x45, 0x38]].concat(); // mov %rax,0x38(%rbp)
            assert_eq!(decide(&text), RepairRule::None, "{overwrite:x?}");
        }
    }

    #[test]
    fn branches_calls_and_bytes_that_are_no_code_end_the_line() {
        for end in [
            &[0x74, 0x00][..],   // je
            &[0xeb, 0x00],       // jmp
            &[0xff, 0x24, 0xc7], // jmp *(%rdi,%rax,8)
            &[0xe8, 0, 0, 0, 0], // call
            &[0xff, 0xd0],       // call *%rax
            &[0xc3],             // ret
            &[0x0f, 0x05],       // syscall
            &[0xcc],             // int3
            &[0x0f, 0x0b],       // ud2
            &[0x06],             // none
        ] {
            let text = [end, HANDLER_3_11].concat();
            assert_eq!(decide(&text), RepairRule::None, "{end:x?}");
        }
    }

    #[test]
    fn only_a_plain_store_into_the_field_counts_and_another_one_ends_the_line() {
        let behind = [0x4c, 0x89, 0x75, 0x38]; // mov %r14,0x38(%rbp)
        for passed in [
            &[0x48, 0x89, 0x44, 0x24, 0x38][..], // mov %rax,0x38(%rsp)
            &[0x48, 0x89, 0x45, 0x40],           // mov %rax,0x40(%rbp)
            &[0x48, 0x89, 0x45, 0x30],           // mov %rax,0x30(%rbp)
            &[0x48, 0x89, 0x54, 0xc3, 0x38],     // mov %rdx,0x38(%rbx,%rax,8)
            &[0x48, 0x89, 0x05, 0x38, 0, 0, 0],  // mov %rax,0x38(%rip)
            &[0x48, 0x8b, 0x47, 0x38],           // mov 0x38(%rdi),%rax
        ] {
            let text = [passed, &behind].concat();
            assert_eq!(decide(&text), store(sum(BP, 0), sum(R14, 0)), "{passed:x?}");
        }
        for end in [
            &[0xc7, 0x43, 0x38, 1, 0, 0, 0][..], // movl $0x1,0x38(%rbx)
            &[0x89, 0x43, 0x3c],                 // mov %eax,0x3c(%rbx)
            &[0x0f, 0x11, 0x43, 0x30],           // movups %xmm0,0x30(%rbx)
            &[0x48, 0x89, 0x43, 0x34],           // mov %rax,0x34(%rbx)
        ] {
            let text = [end, &behind].concat();
            assert_eq!(decide(&text), RepairRule::None, "{end:x?}");
        }
    }

    #[test]
    fn the_twelfth_instruction_is_the_last_one_that_is_looked_at() {
        let nops = |n_nops| [&vec![0x90; n_nops][..], &HANDLER_3_11[12..16]].concat();
        assert_eq!(
            decide(&nops(MAX_INSTRUCTIONS - 1)),
            store(sum(BP, 0), sum(R14, 0))
        );
        assert_eq!(decide(&nops(MAX_INSTRUCTIONS)), RepairRule::None);
    }

    #[test]
    fn a_rule_reads_the_registers_in_the_order_of_the_record() {
        let general = std::array::from_fn(|idx| 1000 * (idx as u64 + 1));
        let registers = UserRegisters { general, sp: 7 };
        // mov %rX,0x38(%rbp) for every rX but rsp, and its place in the record.
        let places: [(u8, u8, u64); N_GENERAL_REGISTERS] = [
            (0x4c, 0x7d, 0),
            (0x4c, 0x75, 1),
            (0x4c, 0x6d, 2),
            (0x4c, 0x65, 3),
            (0x48, 0x6d, 4),
            (0x48, 0x5d, 5),
            (0x4c, 0x5d, 6),
            (0x4c, 0x55, 7),
            (0x4c, 0x4d, 8),
            (0x4c, 0x45, 9),
            (0x48, 0x45, 10),
            (0x48, 0x4d, 11),
            (0x48, 0x55, 12),
            (0x48, 0x75, 13),
            (0x48, 0x7d, 14),
        ];
        for (rex, mod_rm, general_idx) in places {
            let pending = decide(&[rex, 0x89, mod_rm, 0x38]).apply(&registers);
            let expected = PendingStore {
                frame: Address(5000),
                instr: Address(1000 * (general_idx + 1)),
            };
            assert_eq!(pending, Some(expected));
        }
        assert_eq!(decide(&[0x48, 0x89, 0x65, 0x38]), RepairRule::None); // mov %rsp,0x38(%rbp)
        assert_eq!(RepairRule::None.apply(&registers), None);
    }

    #[test]
    fn a_store_into_another_frame_than_the_loops_own_is_no_repair() {
        // 3.12, returning into a caller: lea (%rax,%rdx,2),%rdx; mov %rdx,0x38(%rbp). The loop has its frame
        // in rbx, as three handlers show.
        let handler = [0x4c, 0x89, 0x53, 0x38]; // mov %r10,0x38(%rbx)
        let into_caller = [0x48, 0x8d, 0x14, 0x50, 0x48, 0x89, 0x55, 0x38];
        let text = [&into_caller[..], &handler, &handler, &handler].concat();
        let eval_loop = EvalLoop::of(&text, INSTR_OFFSET);
        assert_eq!(eval_loop.frame_idx, Some(BX));
        assert_eq!(eval_loop.decide(&text[4..]), RepairRule::None);
        assert_eq!(eval_loop.decide(&handler), store(sum(BX, 0), sum(R10, 0)));
        // Where no register stands out, none is refused.
        let undecided = EvalLoop::of(&[&into_caller[..], &handler].concat(), INSTR_OFFSET);
        assert_eq!(undecided.frame_idx, None);
        assert_eq!(undecided.decide(&text[4..]), store(sum(BP, 0), sum(12, 0)));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_rule_that_can_be_applied(
            text in proptest::collection::vec(any::<u8>(), 0..TEXT_BYTES),
            instr_offset in any::<u16>(),
            general in any::<[u64; N_GENERAL_REGISTERS]>(),
        ) {
            let registers = UserRegisters { general, sp: 0 };
            // Half of the cases end in a store, which random bytes hardly ever have.
            let with_store = [&text[..], &[0x4c, 0x89, 0x75, 0x38]].concat();
            for (text, instr_offset) in [(&text, instr_offset), (&with_store, INSTR_OFFSET)] {
                for eval_loop in [EvalLoop::of(&[], instr_offset), EvalLoop::of(text, instr_offset)] {
                    let rule = eval_loop.decide(text);
                    prop_assert_eq!(rule.apply(&registers).is_some(), rule != RepairRule::None);
                }
            }
        }
    }
}
