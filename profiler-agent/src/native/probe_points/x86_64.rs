//! What the instructions of x86-64 do, and which of them the kernel emulates.

use crate::native::registers::GENERAL_IDX;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

use super::{Condition, Flow, Instruction, MAX_ARGUMENTS, Registers};

/// Bytes of the longest instruction.
pub(super) const MAX_INSTRUCTION_BYTES: u64 = 15;

/// rdi, rsi, rdx (System V ABI for x86-64, 3.2.3).
pub(super) const ARGUMENTS: [u8; MAX_ARGUMENTS] = [14, 13, 12];

/// rax.
pub(super) const RESULT: u8 = 10;

/// What a called function need not keep: rax, rcx, rdx, rsi, rdi, r8 to r11.
pub(super) const CLOBBERED_BY_CALLS: Registers = Registers(0b0111_1111_1100_0000);

/// The first instruction of some bytes, which lie at `address`.
pub(super) fn decode(bytes: &[u8], address: u64) -> Option<Instruction> {
    let instruction = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        return None;
    }
    let is_written = |access| {
        matches!(
            access,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    };
    let mut info_factory = InstructionInfoFactory::new();
    let info = info_factory.info(&instruction);
    let written = info.used_registers().iter();
    let writes = written
        .filter(|used| is_written(used.access()))
        .filter_map(|used| general_idx(used.register()))
        .fold(Registers::NONE, |registers, idx| {
            registers.or(Registers::one(idx))
        });
    let of_system_call = if is_system_call(&instruction) {
        Registers::one(RESULT)
    } else {
        Registers::NONE
    };
    Some(Instruction {
        n_bytes: instruction.len() as u8,
        is_emulated: is_emulated(bytes, &instruction),
        flow: flow(&instruction),
        writes: writes.or(of_system_call),
        copies: copy(&instruction),
        zeroes: zeroed(&instruction),
        loads_address: constant_address(&instruction),
        is_padding: instruction.mnemonic() == Mnemonic::Nop,
        tests: tested(&instruction),
    })
}

/// The slot that a stub of the procedure linkage table jumps through: `endbr64` or nothing, then `jmp *slot(%rip)`.
pub(super) fn slot_of_stub(bytes: &[u8], address: u64) -> Option<u64> {
    let mut instructions = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).into_iter();
    let mut instruction = instructions.next()?;
    if instruction.mnemonic() == Mnemonic::Endbr64 {
        instruction = instructions.next()?;
    }
    slot(&instruction)
}

/// Linux, arch/x86/kernel/uprobes.c: `branch_setup_xol_insn` and `push_setup_xol_insn`. Both refuse the operand size prefix,
/// and all others but REX before `push`.
fn is_emulated(bytes: &[u8], instruction: &iced_x86::Instruction) -> bool {
    match bytes {
        // nop, push, jcc, call, jmp.
        [0x90 | 0x50..=0x57 | 0x70..=0x7f | 0xe8 | 0xe9 | 0xeb, ..] | [0x0f, 0x80..=0x8f, ..] => {
            true
        }
        // push of r8 to r15.
        [0x41, 0x50..=0x57, ..] => instruction.len() == 2,
        _ => false,
    }
}

fn flow(instruction: &iced_x86::Instruction) -> Flow {
    let target = || match instruction.op0_kind() {
        OpKind::NearBranch64 => Some(instruction.near_branch64()),
        _ => None,
    };
    match instruction.flow_control() {
        _ if instruction.mnemonic() == Mnemonic::Hlt => Flow::Stop,
        _ if is_system_call(instruction) => Flow::Next,
        FlowControl::Next => Flow::Next,
        FlowControl::UnconditionalBranch => target().map_or(Flow::JumpAnywhere, Flow::Jump),
        FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => match target() {
            Some(target) => Flow::Branch {
                target,
                condition: condition(instruction),
            },
            None => Flow::Next,
        },
        FlowControl::IndirectBranch => {
            slot(instruction).map_or(Flow::JumpAnywhere, Flow::JumpThrough)
        }
        FlowControl::Call | FlowControl::IndirectCall => Flow::Call(target()),
        FlowControl::Return => Flow::Return,
        FlowControl::Interrupt | FlowControl::Exception => Flow::Stop,
    }
}

fn is_system_call(instruction: &iced_x86::Instruction) -> bool {
    matches!(instruction.code(), Code::Syscall | Code::Sysenter)
}

fn condition(instruction: &iced_x86::Instruction) -> Condition {
    match instruction.mnemonic() {
        Mnemonic::Je => Condition::Zero,
        Mnemonic::Jne => Condition::NotZero,
        _ => Condition::Other,
    }
}

/// `jmp *slot(%rip)`.
fn slot(instruction: &iced_x86::Instruction) -> Option<u64> {
    (instruction.mnemonic() == Mnemonic::Jmp
        && instruction.op0_kind() == OpKind::Memory
        && instruction.is_ip_rel_memory_operand())
    .then(|| instruction.ip_rel_memory_address())
}

/// `mov` from one 64-bit register to another: `(to, from)`.
fn copy(instruction: &iced_x86::Instruction) -> Option<(u8, u8)> {
    let is_copy = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register().is_gpr64()
        && instruction.op1_register().is_gpr64();
    let to = general_idx(instruction.op0_register()).filter(|_| is_copy)?;
    Some((to, general_idx(instruction.op1_register())?))
}

/// `xor` of a register with itself, of 32 or 64 bits.
fn zeroed(instruction: &iced_x86::Instruction) -> Option<u8> {
    let register = instruction.op0_register();
    let is_zeroing = instruction.mnemonic() == Mnemonic::Xor
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && (register.is_gpr32() || register.is_gpr64())
        && register == instruction.op1_register();
    general_idx(register).filter(|_| is_zeroing)
}

/// `lea address(%rip)`, or `mov` of a 32-bit constant, which addresses of programs at fixed places are.
fn constant_address(instruction: &iced_x86::Instruction) -> Option<u64> {
    match instruction.mnemonic() {
        Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => {
            Some(instruction.ip_rel_memory_address())
        }
        Mnemonic::Mov if instruction.op1_kind() == OpKind::Immediate32 => {
            Some(instruction.immediate32().into())
        }
        _ => None,
    }
}

/// `test` of a 64-bit register with itself.
fn tested(instruction: &iced_x86::Instruction) -> Option<u8> {
    let register = instruction.op0_register();
    let is_test = instruction.mnemonic() == Mnemonic::Test
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && register.is_gpr64()
        && register == instruction.op1_register();
    general_idx(register).filter(|_| is_test)
}

/// The index of a general register, or of the one that it is a part of.
fn general_idx(register: Register) -> Option<u8> {
    let register = register.full_register();
    let number = register.is_gpr64().then(|| register.number())?;
    GENERAL_IDX.get(number).copied().flatten()
}
