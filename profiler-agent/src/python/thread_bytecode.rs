//! Copies of bytecode: free-threaded CPython from 3.14 on gives each thread a copy of a function's bytecode to
//! specialize, so a frame's instruction can lie outside of its code object.
//!
//! `co_tlbc` points to a `_PyCodeArray`: a count, then one pointer for each index that a thread was given; the first
//! is the code object's own bytecode, NULL stands for no copy (`Include/cpython/code.h`, 3.14). The copies have the
//! size of the original, so an offset in one is an offset in all. Checked against memory made after that header: no
//! such interpreter was at hand.

use std::collections::HashMap;
use std::ops::Range;

use profiler_common::event::PyFrame;
use profiler_common::layout::ABSENT;

use super::code::CodeSymbol;
use super::layout::CodeLayout;
use crate::ids::Address;
use crate::process::memory::ReadMemory;

/// Most copies of a function's bytecode that are looked at; each takes a thread.
const MAX_COPIES: u64 = 4096;

/// Most code objects whose copies are remembered.
const MAX_CODES: usize = 16_384;

/// Where the copies of one program's bytecode lie.
#[derive(Debug, Default)]
pub struct ThreadBytecode {
    /// By address and identity of the code object.
    copies: HashMap<(u64, u32), Vec<Address>>,
}

impl ThreadBytecode {
    /// The bytecode that a frame executes: the code object's own, unless its instruction lies in a copy.
    pub fn of_frame(
        &mut self,
        memory: &impl ReadMemory,
        layout: &CodeLayout,
        frame: &PyFrame,
        symbol: &CodeSymbol,
    ) -> Range<Address> {
        let own = symbol.instructions();
        let instr = Address(frame.instr);
        if layout.thread_bytecode == ABSENT || own.contains(&instr) {
            return own;
        }
        let n_bytes = own.end.0.wrapping_sub(own.start.0);
        let copy = |copies: &[Address]| {
            let ranges = copies.iter().map(|start| *start..start.add(n_bytes));
            ranges.into_iter().find(|range| range.contains(&instr))
        };
        let key = (frame.code, frame.identity);
        if let Some(range) = self.copies.get(&key).and_then(|known| copy(known)) {
            return range;
        }
        let read = read_copies(memory, layout, Address(frame.code)).unwrap_or_default();
        let range = copy(&read).unwrap_or(own);
        if self.copies.len() >= MAX_CODES {
            self.copies.clear();
        }
        self.copies.insert(key, read);
        range
    }
}

/// The copies that exist now; `None` where the array cannot be read.
fn read_copies(
    memory: &impl ReadMemory,
    layout: &CodeLayout,
    code: Address,
) -> Option<Vec<Address>> {
    let array = memory
        .read_u64(code.add(layout.thread_bytecode.into()))
        .ok()?;
    let n_copies = memory.read_u64(Address(array)).ok()?.min(MAX_COPIES);
    let mut bytes = vec![0; n_copies as usize * 8];
    memory.read(Address(array).add(8), &mut bytes).ok()?;
    let words = bytes.as_chunks::<8>().0.iter();
    let pointers = words.map(|word| Address(u64::from_le_bytes(*word)));
    Some(pointers.filter(|pointer| !pointer.is_null()).collect())
}
