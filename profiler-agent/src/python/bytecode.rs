//! The instruction that a frame executes: its offset, and its opcode as it stands in memory at that moment.
//!
//! What CPython says of a frame is not always an instruction's own place. Up to 3.10 `f_lasti` stays at an `EXTENDED_ARG` while
//! the instruction behind it runs. 3.11 and 3.12 keep the unit in front of the one to return to, which lies in the
//! caches of a call. So the bytecode of a code object is read once, and what begins where is kept: specializing changes
//! opcodes, but neither places nor what they are forms of. Which form stands there now is one byte read for each sample.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::RandomState;
use profiler_common::event::PyFrame;
use profiler_common::layout::InstructionUnit;

use super::code::{self, CodeSymbol};
use super::layout::{Layout, Version};
use super::opcodes::{CACHE, Opcodes, opcodes};
use crate::ids::Address;
use crate::process::memory::ReadMemory;
use crate::profile::instructions::Instruction;

/// Longest bytecode that is read.
const MAX_CODE_BYTES: u64 = 1 << 20;

/// Memory for the bytecode of one program; what is kept starts over beyond it.
const MAX_BYTES: usize = 8 << 20;

/// Memory of an entry beside its units.
const ENTRY_BYTES: usize = 96;

/// Bytes of a code unit.
const UNIT: u32 = 2;

/// Prefixes of one instruction.
const MAX_PREFIXES: u32 = 3;

/// The bytecode of one code object.
#[derive(Debug, PartialEq, Eq)]
struct Bytecode {
    /// The opcode of each code unit without its specialization; [`CACHE`] for the data of the instruction before. Ends where
    /// something stands in place of an instruction that is kept elsewhere.
    bases: Box<[u8]>,
    n_bytes: u32,
}

impl Bytecode {
    fn of(opcodes: &Opcodes, text: &[u8]) -> Self {
        let units = text.as_chunks::<2>().0;
        let mut bases = Vec::with_capacity(units.len());
        while let Some([number, _]) = units.get(bases.len()) {
            let Some(opcode) = opcodes.get(*number) else {
                break;
            };
            let Some(n_cache_entries) = opcode.n_cache_entries.filter(|_| *number != CACHE) else {
                break;
            };
            bases.push(opcode.base);
            let end = bases.len() + usize::from(n_cache_entries);
            bases.resize(end.min(units.len()), CACHE);
        }
        Self {
            bases: bases.into(),
            n_bytes: text.len() as u32,
        }
    }

    /// The instruction that what is at `offset` belongs to. `read` gives the opcode that stands at an offset now. `is_exact`:
    /// `offset` is never that of a cache.
    fn instruction(
        &self,
        opcodes: &Opcodes,
        offset: u32,
        is_exact: bool,
        read: impl Fn(u32) -> Option<u8>,
    ) -> Option<Instruction> {
        if offset >= self.n_bytes || !offset.is_multiple_of(UNIT) {
            return None;
        }
        let known = self.bases.len() as u32;
        let base = |unit: u32| self.bases.get(unit as usize).copied();
        let mut unit = offset / UNIT;
        while base(unit) == Some(CACHE) {
            unit = unit.checked_sub(1)?;
        }
        if unit >= known && !is_exact {
            return None;
        }
        for _ in 0..=MAX_PREFIXES {
            let now = || read(unit * UNIT);
            let number = match base(unit) {
                Some(base) if opcodes.is_prefix(base) => base,
                // Another form can only be other memory by now.
                Some(base) => now()
                    .filter(|number| opcodes.can_stand_for(*number, base))
                    .unwrap_or(base),
                None if unit * UNIT < self.n_bytes => now()?,
                None => return None,
            };
            if !opcodes.is_prefix(number) {
                return Some(Instruction {
                    offset: unit * UNIT,
                    opcode: number,
                    name: opcodes.get(number).map(|it| it.name),
                });
            }
            unit += 1;
        }
        None
    }
}

/// A frame at an instruction.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// As the kernel read it.
    pub frame: &'a PyFrame,
    /// Its code object.
    pub symbol: &'a CodeSymbol,
    /// The bytecode that it executes, which is the thread's own in free-threaded builds (3.11+).
    pub executed: &'a Range<Address>,
    /// Where in the code object's own bytecode it is, or `f_lasti`.
    pub instr: u64,
}

/// The bytecode of one program's code objects.
#[derive(Debug, Default)]
pub struct Bytecodes {
    /// By address and identity of the code object; `None`: it could not be read.
    known: HashMap<(u64, u32), Option<Arc<Bytecode>>, RandomState>,
    n_bytes: usize,
}

impl Bytecodes {
    /// Whether the bytecode of a frame was read already.
    #[must_use]
    pub fn knows(&self, frame: &PyFrame) -> bool {
        self.known.contains_key(&(frame.code, frame.identity))
    }

    /// The instruction of a frame; `None`: it has not begun, or it cannot be read. `version` is that of the interpreter.
    pub fn instruction(
        &mut self,
        memory: &impl ReadMemory,
        layout: &Layout,
        version: Version,
        at: At<'_>,
    ) -> Option<Instruction> {
        let unit = layout.walk.instruction_unit;
        let offset = at.symbol.offset(at.instr, unit)?;
        let text = at.symbol.text();
        let is_before_3_11 = at.symbol.instructions().is_empty();
        let start = if is_before_3_11 {
            text.start
        } else {
            at.executed.start
        };
        let read = |offset: u32| {
            let mut byte = [0];
            memory.read(start.add(offset.into()), &mut byte).ok()?;
            Some(byte[0])
        };
        let Some(opcodes) = opcodes(version) else {
            let n_bytes = text.end.0.saturating_sub(text.start.0);
            let is_inside = u64::from(offset) < n_bytes;
            return Some(Instruction {
                offset,
                opcode: is_inside.then(|| read(offset)).flatten()?,
                name: None,
            });
        };
        let bytecode = self.get(memory, layout, opcodes, at)?;
        let is_exact = unit != InstructionUnit::PrevInstr;
        bytecode.instruction(opcodes, offset, is_exact, read)
    }

    fn get(
        &mut self,
        memory: &impl ReadMemory,
        layout: &Layout,
        opcodes: &Opcodes,
        at: At<'_>,
    ) -> Option<Arc<Bytecode>> {
        let key = (at.frame.code, at.frame.identity);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let text = read_text(memory, layout, at);
        let bytecode = text.map(|text| Arc::new(Bytecode::of(opcodes, &text)));
        let n_units = bytecode.as_ref().map_or(0, |it| it.bases.len());
        self.n_bytes += ENTRY_BYTES + n_units;
        if self.n_bytes > MAX_BYTES {
            self.known.clear();
            self.n_bytes = ENTRY_BYTES + n_units;
        }
        self.known.insert(key, bytecode.clone());
        bytecode
    }
}

/// The code object's own bytecode, if it is the same object before and after.
fn read_text(memory: &impl ReadMemory, layout: &Layout, at: At<'_>) -> Option<Vec<u8>> {
    let text = at.symbol.text();
    let n_bytes = text.end.0.checked_sub(text.start.0)?;
    if n_bytes == 0 || n_bytes > MAX_CODE_BYTES {
        return None;
    }
    let is_there = || code::check_same(memory, layout, at.frame).is_ok();
    let mut bytes = vec![0; n_bytes as usize];
    (is_there() && memory.read(text.start, &mut bytes).is_ok() && is_there()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(minor: u8) -> &'static Opcodes {
        opcodes(Version::new(3, minor, 0)).unwrap()
    }

    fn number(minor: u8, name: &str) -> u8 {
        let table = table(minor);
        let named = |number: &u8| table.get(*number).is_some_and(|it| it.name == name);
        (0..=255).find(named).unwrap_or_else(|| panic!("{name}"))
    }

    /// Opcodes by their names; `=N` is a unit of data.
    fn text(minor: u8, names: &str) -> Vec<u8> {
        let unit = |name: &str| match name.strip_prefix('=') {
            Some(data) => [data.parse().unwrap(), 7],
            None => [number(minor, name), 1],
        };
        names.split(' ').flat_map(unit).collect()
    }

    fn named(minor: u8, text: &[u8], now: &[u8], offset: u32) -> Option<String> {
        let read = |offset: u32| now.get(offset as usize).copied();
        let bytecode = Bytecode::of(table(minor), text);
        let found = bytecode.instruction(table(minor), offset, minor != 12, read)?;
        Some(found.to_string())
    }

    #[test]
    fn a_cache_belongs_to_the_instruction_in_front_of_it_whatever_it_holds() {
        let call = number(12, "CALL");
        let text = text(
            12,
            &format!("RESUME LOAD_FAST BINARY_OP ={call} CALL =1 =2 =3 POP_TOP"),
        );
        for (offset, expected) in [
            (0, "0 RESUME"),
            (4, "4 BINARY_OP"),
            (6, "4 BINARY_OP"),
            (8, "8 CALL"),
            (10, "8 CALL"),
            (14, "8 CALL"),
            (16, "16 POP_TOP"),
        ] {
            assert_eq!(named(12, &text, &text, offset).as_deref(), Some(expected));
        }
        for offset in [1, 3, 18, u32::MAX - 1] {
            assert_eq!(named(12, &text, &text, offset), None);
        }
    }

    #[test]
    fn a_prefix_belongs_to_the_instruction_behind_it() {
        for minor in [8, 9, 10, 13] {
            let text = text(minor, "NOP EXTENDED_ARG EXTENDED_ARG LOAD_CONST POP_TOP");
            for offset in [2, 4, 6] {
                let found = named(minor, &text, &text, offset);
                assert_eq!(found.as_deref(), Some("6 LOAD_CONST"), "{minor}");
            }
        }
        // Nothing is behind it.
        let text = text(13, "NOP EXTENDED_ARG");
        assert_eq!(named(13, &text, &text, 2), None);
    }

    #[test]
    fn the_form_is_the_one_in_memory_if_it_can_be_one() {
        let before = text(13, "RESUME BINARY_OP =0 POP_TOP");
        for (name, expected) in [
            ("BINARY_OP_ADD_INT", "2 BINARY_OP_ADD_INT"),
            ("INSTRUMENTED_LINE", "2 INSTRUMENTED_LINE"),
            // Other memory by now.
            ("POP_TOP", "2 BINARY_OP"),
            ("CALL_LEN", "2 BINARY_OP"),
        ] {
            let mut now = before.clone();
            now[2] = number(13, name);
            assert_eq!(named(13, &before, &now, 2).as_deref(), Some(expected));
        }
        assert_eq!(named(13, &before, &[], 2).as_deref(), Some("2 BINARY_OP"));
    }

    #[test]
    fn behind_what_hides_an_instruction_only_exact_places_count() {
        for minor in [12, 13] {
            let text = text(
                minor,
                "RESUME INSTRUMENTED_LINE =0 POP_TOP EXTENDED_ARG NOP",
            );
            let found = |offset| named(minor, &text, &text, offset);
            assert_eq!(found(0).as_deref(), Some("0 RESUME"));
            let exact = |text: &str| (minor == 13).then(|| text.to_owned());
            assert_eq!(found(2), exact("2 INSTRUMENTED_LINE"));
            assert_eq!(found(6), exact("6 POP_TOP"));
            assert_eq!(found(8), exact("10 NOP"));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_instruction_or_none(
            text in proptest::collection::vec(any::<u8>(), 0..200),
            now in proptest::collection::vec(any::<u8>(), 0..200),
            offset in 0_u32..300,
            minor in 8_u8..=15,
        ) {
            let read = |offset: u32| now.get(offset as usize).copied();
            let bytecode = Bytecode::of(table(minor), &text);
            if let Some(found) = bytecode.instruction(table(minor), offset, minor > 12, read) {
                prop_assert!((found.offset as usize) < text.len() && found.offset % 2 == 0);
            }
        }
    }
}
