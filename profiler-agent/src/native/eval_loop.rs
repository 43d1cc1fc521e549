//! The machine code of CPython's evaluation loop: which register holds the instruction that the leaf frame
//! really is at. It reads code that was read from a process or a file; it reads no process itself.
//!
//! From 3.11 on each bytecode handler begins by storing the address of its instruction into the frame
//! (`frame->prev_instr` in 3.11 and 3.12, `frame->instr_ptr` from 3.13 on). Compilers move the store a few
//! machine instructions down, behind the mispredicted jump into the handler, where most samples fall: for
//! these the frame still says the previous bytecode instruction. The address is in a register then, and
//! the store that is about to come says in which. It is found without symbols, by following the code from
//! the sampled PC for as long as it is a straight line. Up to 3.10 the store precedes the jump: no repair.
//!
//! Here: what is looked for, and what it means. `x86_64` and `arm64` know the instructions. The oracle is
//! `tests/tests/offline/leaf.rs`, which single-steps real interpreters; arm64's rules were not put to that test.

// On x86-64 for its tests.
#[cfg(any(test, target_arch = "aarch64"))]
mod arm64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::ops::Range;

use profiler_common::event::{N_GENERAL_REGISTERS, UserRegisters};

#[cfg(target_arch = "aarch64")]
use self::arm64 as machine;
#[cfg(target_arch = "x86_64")]
use self::x86_64 as machine;
use crate::ids::Address;

/// Most machine instructions that are looked at, the sampled one included.
pub const MAX_INSTRUCTIONS: usize = 12;

/// Bytes of code from the sampled PC on that suffice for [`EvalLoop::decide`].
pub const TEXT_BYTES: usize = MAX_INSTRUCTIONS * machine::MAX_INSTRUCTION_BYTES;

/// Most bytes of an evaluation loop that are looked at; gcc's have 45 to 60 KiB.
pub const MAX_EVAL_LOOP_BYTES: usize = 1 << 20;

/// Bytes of a frame's instruction field.
const FIELD_BYTES: u64 = 8;

/// What is known of the evaluation loop of one build of CPython.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvalLoop {
    /// Offset of `prev_instr` or `instr_ptr` in a frame, in bytes.
    instr_offset: u16,
    /// The register that holds the running frame all through the loop, as an index into
    /// [`UserRegisters::general`]; `None` where none stands out.
    frame_idx: Option<u8>,
}

/// How the leaf's instruction is found at one PC. Depends on the code alone: decided once for each binary
/// and PC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairRule {
    /// What the frame says stands.
    None,
    /// The store of the leaf's instruction is still to come.
    Store {
        /// Address of the frame that is written to.
        frame: RegisterSum,
        /// Address of the bytecode instruction that will be written.
        instr: RegisterSum,
    },
}

/// A value that can be computed from the registers of the sample: one of them, and a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterSum {
    /// Index into [`UserRegisters::general`].
    general_idx: u8,
    /// Is added to the register; wraps.
    addend: i64,
}

/// What the interpreter was about to store when the sample was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingStore {
    /// The frame that is written to. Whoever knows the leaf's address should compare it.
    pub frame: Address,
    /// What is written into the frame's instruction field.
    pub instr: Address,
}

impl EvalLoop {
    /// Learns from the loop's whole code (`text`, of which the first [`MAX_EVAL_LOOP_BYTES`] are looked at)
    /// in which register it keeps its frame: the one that more than half of the stores go through. gcc
    /// sends 95 % through one. The others write to frames of callees, to callers that are returned
    /// to, and to other structures; a store like that is about to happen in the middle of some handlers,
    /// and no repair.
    ///
    /// `instr_offset` is the offset of `prev_instr` or `instr_ptr` in a frame (56 in 3.11 to 3.13). With
    /// no text at all any register will do.
    #[must_use]
    pub fn of(text: &[u8], instr_offset: u16) -> Self {
        let text = text.get(..MAX_EVAL_LOOP_BYTES).unwrap_or(text);
        let mut n_stores_by_idx = [0_usize; N_GENERAL_REGISTERS];
        for general_idx in machine::bases_of_stores(text, instr_offset.into()) {
            if let Some(n_stores) = n_stores_by_idx.get_mut(usize::from(general_idx)) {
                *n_stores += 1;
            }
        }
        let n_all: usize = n_stores_by_idx.iter().sum();
        let frame_idx = (0_u8..)
            .zip(n_stores_by_idx)
            .find(|&(_, n_stores)| n_stores * 2 > n_all);
        Self {
            instr_offset,
            frame_idx: frame_idx.map(|(idx, _)| idx),
        }
    }

    /// Decides from the code at a sampled PC: `text` begins there, and [`TEXT_BYTES`] of it suffice.
    ///
    /// It follows the code up to the first store of a general register into the frame's field, through copies of
    /// registers and sums with constants; a branch, a call, or a store of another shape ends it,
    /// and so does a store whose frame or value the registers of the sample do not tell. Total: any bytes
    /// give a rule.
    #[must_use]
    pub fn decide(self, text: &[u8]) -> RepairRule {
        let Some((frame, instr)) = machine::next_store(text, self.instr_offset.into()) else {
            return RepairRule::None;
        };
        let is_running_frame = self
            .frame_idx
            .is_none_or(|frame_idx| frame.general_idx == frame_idx);
        if is_running_frame {
            RepairRule::Store { frame, instr }
        } else {
            RepairRule::None
        }
    }
}

impl RepairRule {
    /// What is about to be stored, by the registers of a sample at the PC that the rule was decided for.
    ///
    /// Compare [`PendingStore::instr_in`] with the leaf before it is believed.
    #[must_use]
    pub fn apply(self, registers: &UserRegisters) -> Option<PendingStore> {
        match self {
            Self::None => None,
            Self::Store { frame, instr } => Some(PendingStore {
                frame: frame.of(registers)?,
                instr: instr.of(registers)?,
            }),
        }
    }
}

impl PendingStore {
    /// The instruction, if it is one of the leaf's: `code` is from the first instruction of the leaf's code
    /// object to behind the last. What else the loop stores at that offset is no instruction of the leaf.
    ///
    /// The first instruction itself is refused. A frame that is made for a call begins there (3.13+), so it
    /// is what the loop stores into the *callee's* frame, which in a recursion runs the same code; and a leaf
    /// that is at its first instruction says so without a repair, or says that it has not begun, which is
    /// the same line.
    #[must_use]
    pub fn instr_in(self, code: Range<Address>) -> Option<Address> {
        let is_aligned = self.instr.0.wrapping_sub(code.start.0).is_multiple_of(2);
        (code.start < self.instr && self.instr < code.end && is_aligned).then_some(self.instr)
    }
}

impl RegisterSum {
    /// The value at the sample.
    fn of(self, registers: &UserRegisters) -> Option<Address> {
        let register = registers.general.get(usize::from(self.general_idx))?;
        Some(Address(register.wrapping_add_signed(self.addend)))
    }

    /// The same and a constant more.
    fn plus(self, addend: i64) -> Self {
        Self {
            addend: self.addend.wrapping_add(addend),
            ..self
        }
    }
}

/// What each register holds at some point of the straight line, in terms of the registers of the sample;
/// `None` where they do not tell it. By register number.
struct Values<const N: usize>([Option<RegisterSum>; N]);

impl<const N: usize> Values<N> {
    /// Each register holds itself; `general_idx` is the index into [`UserRegisters::general`] by register number.
    fn at_sample(general_idx: impl Fn(usize) -> Option<u8>) -> Self {
        Self(std::array::from_fn(|number| {
            general_idx(number).map(|general_idx| RegisterSum {
                general_idx,
                addend: 0,
            })
        }))
    }

    /// What a register holds.
    fn get(&self, number: usize) -> Option<RegisterSum> {
        self.0.get(number).copied().flatten()
    }

    /// From here on the register holds this.
    fn set(&mut self, number: usize, sum: Option<RegisterSum>) {
        if let Some(value) = self.0.get_mut(number) {
            *value = sum;
        }
    }
}

/// Whether what is written `offset` bytes behind where a register points to touches the field there.
fn touches_field(offset: i64, n_bytes: u64, field: u64) -> bool {
    let end = offset.saturating_add_unsigned(n_bytes);
    offset < (field + FIELD_BYTES).cast_signed() && end > field.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_instruction_behind_the_first_one_of_the_leafs_code_is_believed() {
        let code = Address(1000)..Address(1010);
        let instr_in = |instr| {
            PendingStore {
                frame: Address(0),
                instr: Address(instr),
            }
            .instr_in(code.clone())
        };
        for (instr, is_believed) in [
            (998, false),
            (1000, false),
            (1001, false),
            (1002, true),
            (1008, true),
            (1010, false),
            (u64::MAX, false),
        ] {
            assert_eq!(
                instr_in(instr),
                is_believed.then_some(Address(instr)),
                "{instr}"
            );
        }
    }
}
