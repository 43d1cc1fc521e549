//! What the functions of an ELF file call, load and compare with: for finding functions that have no name. x86-64 only; on
//! other machines nothing is found.
//!
//! The code is decoded as it lies, function by function as the unwind table has them. An address that is computed from one
//! in a register is known if that was loaded before it in the file: a guess, since jumps are not followed.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;

use super::elf::{AddressRange, Elf};
use super::headers::Headers;
use super::unwind_table::UnwindTable;

/// Most bytes of one function that are looked at.
const MAX_FUNCTION_BYTES: u64 = 1 << 20;

/// Most slots of addresses that are looked at.
const MAX_SLOTS: usize = 65_536;

/// What one function refers to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct References {
    /// Functions of the file that it calls or jumps to.
    pub calls: BTreeSet<u64>,
    /// Addresses of the pointers to functions that it calls, where they are constant.
    pub calls_through: BTreeSet<u64>,
    /// What it reads: address and bytes, where the address is constant.
    pub loads: BTreeSet<(u64, usize)>,
    /// Constants that it gives to registers, and that it compares with.
    pub constants: BTreeSet<u64>,
    /// Of those the ones that it compares with.
    pub compared: BTreeSet<u64>,
}

/// The functions of a file.
pub struct FunctionScan<'a> {
    elf: &'a Elf<'a>,
    functions: Vec<AddressRange>,
    /// The addresses that the dynamic linker writes into slots, of the one symbol that is of interest.
    pointers: HashMap<u64, u64>,
}

impl<'a> FunctionScan<'a> {
    /// Of a parsed file and the same file, open; `base` is the symbol through whose address others may be computed. `None`:
    /// it has no unwind table, so that nothing tells where functions begin.
    #[must_use]
    pub fn of(elf: &'a Elf<'a>, file: &File, base: &str) -> Option<Self> {
        let headers = Headers::read(file).ok()?;
        let table = UnwindTable::read(file, headers.segments)?;
        let starts: Vec<u64> = table.starts().collect();
        let functions = starts
            .iter()
            .filter_map(|&start| table.lookup(file, start))
            .filter(|function| function.end - function.start <= MAX_FUNCTION_BYTES);
        let [base_range] = elf.symbols([base]);
        let pointers = base_range.map_or_else(HashMap::new, |range| {
            let imports = elf.imports(MAX_SLOTS).into_iter();
            let is_base =
                |import| matches!(import, super::elf::Import::Symbol(name) if name == base);
            imports
                .filter_map(|(slot, import)| is_base(import).then_some((slot, range.start)))
                .collect()
        });
        Some(Self {
            elf,
            functions: functions.collect(),
            pointers,
        })
    }

    /// The functions that the unwind table has.
    #[must_use]
    pub fn functions(&self) -> &[AddressRange] {
        &self.functions
    }

    /// What the code in a range refers to.
    #[must_use]
    pub fn references(&self, function: AddressRange) -> References {
        let n_bytes = function.end.saturating_sub(function.start);
        let bytes = self
            .elf
            .bytes_at(function.start, n_bytes.min(MAX_FUNCTION_BYTES));
        machine::references(bytes.unwrap_or_default(), function, &self.pointers)
    }
}

#[cfg(target_arch = "x86_64")]
mod machine {
    use std::collections::HashMap;

    use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

    use super::{AddressRange, References};

    /// General registers.
    const N_REGISTERS: usize = 16;

    pub(super) fn references(
        bytes: &[u8],
        function: AddressRange,
        pointers: &HashMap<u64, u64>,
    ) -> References {
        let mut references = References::default();
        let mut known = [None; N_REGISTERS];
        for instruction in Decoder::with_ip(64, bytes, function.start, DecoderOptions::NONE) {
            let memory = memory_address(&instruction, &known);
            add(&mut references, &instruction, memory, function);
            let target = instruction.op0_register().full_register();
            if instruction.op0_kind() == OpKind::Register
                && target.is_gpr64()
                && !matches!(
                    instruction.mnemonic(),
                    Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push
                )
                && let Some(known) = known.get_mut(target.number())
            {
                *known = match instruction.mnemonic() {
                    Mnemonic::Mov => memory.and_then(|slot| pointers.get(&slot).copied()),
                    Mnemonic::Lea => memory,
                    _ => None,
                };
            }
        }
        references
    }

    fn add(
        references: &mut References,
        instruction: &Instruction,
        memory: Option<u64>,
        function: AddressRange,
    ) {
        match instruction.flow_control() {
            FlowControl::Call
            | FlowControl::UnconditionalBranch
            | FlowControl::ConditionalBranch
                if instruction.op0_kind() == OpKind::NearBranch64 =>
            {
                let target = instruction.near_branch64();
                if !function.contains(target) {
                    references.calls.insert(target);
                }
            }
            FlowControl::IndirectCall | FlowControl::IndirectBranch => {
                references.calls_through.extend(memory);
            }
            FlowControl::Next if instruction.op1_kind() == OpKind::Memory => {
                let n_bytes = instruction.memory_size().size();
                if instruction.mnemonic() != Mnemonic::Lea {
                    references
                        .loads
                        .extend(memory.map(|address| (address, n_bytes)));
                }
            }
            FlowControl::Next => {
                if let Ok(constant) = instruction.try_immediate(1) {
                    references.constants.insert(constant);
                    if instruction.mnemonic() == Mnemonic::Cmp {
                        references.compared.insert(constant);
                    }
                }
            }
            _ => {}
        }
    }

    /// The address of the memory operand, where it is constant.
    fn memory_address(
        instruction: &Instruction,
        known: &[Option<u64>; N_REGISTERS],
    ) -> Option<u64> {
        if instruction.is_ip_rel_memory_operand() {
            return Some(instruction.ip_rel_memory_address());
        }
        let has_memory =
            (0..instruction.op_count()).any(|idx| instruction.op_kind(idx) == OpKind::Memory);
        if !has_memory || instruction.memory_index() != Register::None {
            return None;
        }
        let displacement = instruction.memory_displacement64();
        let base = instruction.memory_base();
        if base == Register::None {
            // Of a thread-local variable it is no address.
            return (instruction.segment_prefix() == Register::None).then_some(displacement);
        }
        let known = base
            .is_gpr64()
            .then(|| known.get(base.number()))
            .flatten()?;
        known.map(|address| address.wrapping_add(displacement))
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod machine {
    use std::collections::HashMap;

    use super::{AddressRange, References};

    pub(super) fn references(
        _bytes: &[u8],
        _function: AddressRange,
        _pointers: &HashMap<u64, u64>,
    ) -> References {
        References::default()
    }
}
