//! The code of an ELF file, one instruction at a time, and whether a function of it ever returns.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fs::File;

use super::super::elf::{AddressRange, Elf, Import, Segment};
use super::super::headers::Headers;
use super::super::unwind_table::UnwindTable;
use super::imports::Imports;
use super::{Flow, Instruction, ProbeError, ProbePoint, machine};

/// Bytes that are read at once.
const CHUNK_BYTES: u64 = 4096;

/// Calls into calls that are followed to see whether a function returns: `malloc_printerr` of glibc ends in `abort`
/// three calls down.
const MAX_DEPTH: usize = 6;

/// Instructions of one function that are looked at for that; one that has more is taken to return.
const MAX_LOOKED_AT: usize = 1024;

/// The same, for all functions of a file.
const MAX_LOOKED_AT_OVERALL: usize = 1 << 20;

/// The code of one ELF file.
pub struct Code<'a> {
    elf: &'a Elf<'a>,
    file: &'a File,
    segments: Vec<Segment>,
    imports: Imports,
    unwind_table: Option<UnwindTable>,
    /// By address of the function.
    returns: RefCell<HashMap<u64, bool>>,
    /// The functions that are being looked at, each called by the one before it.
    in_progress: RefCell<Vec<u64>>,
    /// Whether one of them was taken not to return, since the first was begun with.
    has_assumed: Cell<bool>,
    n_looked_at: Cell<usize>,
    /// The last one that was looked up.
    function: Cell<AddressRange>,
}

impl<'a> Code<'a> {
    /// Of a parsed file and the same file, open.
    #[must_use]
    pub fn of(elf: &'a Elf<'a>, file: &'a File) -> Self {
        let headers = Headers::read(file).ok();
        Self {
            elf,
            file,
            segments: elf.segments(),
            imports: Imports::of(elf),
            unwind_table: headers.and_then(|headers| UnwindTable::read(file, headers.segments)),
            returns: RefCell::default(),
            in_progress: RefCell::default(),
            has_assumed: Cell::new(false),
            n_looked_at: Cell::new(0),
            function: Cell::default(),
        }
    }

    /// A probe on an instruction.
    pub(super) fn point(&self, address: u64, is_emulated: bool) -> Result<ProbePoint, ProbeError> {
        let segment = self.segment(address)?;
        let file_offset = segment.file_offset.checked_add(address - segment.address);
        Ok(ProbePoint {
            address,
            file_offset: file_offset.ok_or(ProbeError::NotInFile(address))?,
            is_emulated,
        })
    }

    /// The instruction at an address.
    pub(super) fn instruction(&self, address: u64) -> Result<Instruction, ProbeError> {
        let bytes = self.bytes(address)?;
        machine::decode(bytes, address).ok_or(ProbeError::NoInstruction(address))
    }

    /// What the dynamic linker binds to a slot.
    pub(super) fn import(&self, slot: u64) -> Option<&Import> {
        self.imports.at(slot)
    }

    /// The address of what is bound, if this file defines it.
    pub(super) fn own(&self, import: &Import) -> Option<u64> {
        self.imports.own(import)
    }

    /// Whether it is one of those that return what they are given first.
    pub(super) fn returns_first_argument(&self, import: &Import) -> bool {
        self.imports.returns_first_argument(import)
    }

    /// Whether what is bound is not one of those that end the program.
    pub(super) fn is_returning(import: &Import) -> bool {
        Imports::returns(import)
    }

    /// What the stub at an address jumps to, if it is one (procedure linkage table).
    pub(super) fn stub(&self, address: u64) -> Option<&Import> {
        machine::slot_of_stub(self.bytes(address).ok()?, address).and_then(|slot| self.import(slot))
    }

    /// Whether what follows an instruction is not its function's any more. Compilers put nothing behind a call that does
    /// not return.
    pub(super) fn is_last(&self, address: u64, n_bytes: u8) -> bool {
        let Some(table) = &self.unwind_table else {
            return false;
        };
        if !self.function.get().contains(address) {
            let function = table.lookup(self.file, address);
            self.function.set(function.unwrap_or_default());
        }
        let function = self.function.get();
        function.contains(address) && address.saturating_add(n_bytes.into()) >= function.end
    }

    /// Whether at an address there is a text, as in messages: some printable characters and a zero byte.
    pub(super) fn is_text(&self, address: u64) -> bool {
        let Ok(bytes) = self.bytes(address) else {
            return false;
        };
        let n_characters = bytes
            .iter()
            .take_while(|byte| matches!(byte, b' '..=b'~'))
            .count();
        n_characters > 3 && bytes.get(n_characters) == Some(&0)
    }

    /// Whether another block of code begins at an address that a call would return to: padding, or what prepares
    /// another message.
    pub(super) fn is_between_blocks(&self, address: u64) -> bool {
        self.instruction(address).is_ok_and(|instruction| {
            let loads_text = |address| self.is_text(address);
            instruction.is_padding || instruction.loads_address.is_some_and(loads_text)
        })
    }

    /// Whether the function at an address may return. What cannot be told may.
    pub(super) fn may_return(&self, function: u64) -> bool {
        self.may_return_within(function, MAX_DEPTH)
    }

    fn may_return_within(&self, function: u64, depth: usize) -> bool {
        if let Some(&returns) = self.returns.borrow().get(&function) {
            return returns;
        }
        let Some(depth) = depth.checked_sub(1) else {
            return true;
        };
        // A function that returns has a way back on which it does not call itself.
        if self.in_progress.borrow().contains(&function) {
            self.has_assumed.set(true);
            return false;
        }
        if self.in_progress.borrow().is_empty() {
            self.has_assumed.set(false);
        }
        self.in_progress.borrow_mut().push(function);
        let returns = self.has_way_back(function, depth);
        self.in_progress.borrow_mut().pop();
        // With the assumption a way may have been missed, but none was made up.
        if returns || !self.has_assumed.get() {
            self.returns.borrow_mut().insert(function, returns);
        }
        returns
    }

    fn has_way_back(&self, function: u64, depth: usize) -> bool {
        let mut seen = HashSet::new();
        let mut next = vec![function];
        while let Some(address) = next.pop() {
            if !seen.insert(address) {
                continue;
            }
            self.n_looked_at.set(self.n_looked_at.get() + 1);
            let Ok(instruction) = self.instruction(address) else {
                return true;
            };
            if seen.len() > MAX_LOOKED_AT || self.n_looked_at.get() > MAX_LOOKED_AT_OVERALL {
                return true;
            }
            let goes_on = match instruction.flow {
                Flow::Return | Flow::JumpAnywhere => return true,
                Flow::JumpThrough(slot) => {
                    if self.import(slot).is_none_or(Imports::returns) {
                        return true;
                    }
                    false
                }
                Flow::Stop => false,
                Flow::Jump(target) => {
                    next.push(target);
                    false
                }
                Flow::Branch { target, .. } => {
                    next.push(target);
                    true
                }
                Flow::Call(Some(callee)) => self.may_return_within(callee, depth),
                Flow::Call(None) | Flow::Next => true,
            };
            if goes_on && !self.is_last(address, instruction.n_bytes) {
                next.push(address.wrapping_add(instruction.n_bytes.into()));
            }
        }
        false
    }

    /// Bytes from an address on: enough for an instruction, unless the segment ends.
    fn bytes(&self, address: u64) -> Result<&[u8], ProbeError> {
        let not_in_file = ProbeError::NotInFile(address);
        let segment = self.segment(address)?;
        let in_segment = address - segment.address;
        let chunk = in_segment - in_segment % CHUNK_BYTES;
        let n_bytes =
            (CHUNK_BYTES + machine::MAX_INSTRUCTION_BYTES).min(segment.file_bytes - chunk);
        let bytes = self.elf.bytes_at(segment.address + chunk, n_bytes);
        let bytes = bytes.and_then(|bytes| bytes.get((in_segment - chunk) as usize..));
        bytes.ok_or(not_in_file)
    }

    fn segment(&self, address: u64) -> Result<&Segment, ProbeError> {
        let holds = |segment: &&Segment| {
            let in_segment = address.checked_sub(segment.address);
            in_segment.is_some_and(|in_segment| in_segment < segment.file_bytes)
        };
        let segment = self.segments.iter().find(holds);
        segment.ok_or(ProbeError::NotInFile(address))
    }
}
