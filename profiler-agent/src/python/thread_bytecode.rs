//! Copies of bytecode: free-threaded CPython from 3.14 on gives each thread a copy of a function's bytecode to
//! specialize, so a frame's instruction can lie outside of its code object.
//!
//! `co_tlbc` points to a `_PyCodeArray`: a count, then one pointer for each index that a thread was given; the first
//! is the code object's own bytecode, NULL stands for no copy (`Include/cpython/code.h`, 3.14). The copies have the
//! size of the original, so an offset in one is an offset in all. Tested on memory made after that header: no such
//! interpreter was at hand.

use std::collections::HashMap;
use std::ops::Range;

use profiler_common::event::PyFrame;
use profiler_common::layout::ABSENT;

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
    /// The bytecode that a frame executes: the code object's `own`, unless its instruction lies in a copy.
    pub fn of_frame(
        &mut self,
        memory: &impl ReadMemory,
        layout: &CodeLayout,
        frame: &PyFrame,
        own: Range<Address>,
    ) -> Range<Address> {
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

#[cfg(test)]
mod tests {
    use profiler_common::event::PyFrame;

    use super::*;
    use crate::process::memory_image::MemoryImage;
    use crate::python::layout::{Offsets, Version, row};

    const BASE: u64 = MemoryImage::BASE;
    const CODE: u64 = BASE;
    const CO_TLBC: u16 = 200;
    const ARRAY: u64 = BASE + 0x400;
    const OWN: u64 = BASE + 0x100;
    const N_BYTES: u64 = 64;
    const COPY: u64 = BASE + 0x800;
    const LATER_COPY: u64 = BASE + 0xa00;

    fn layout() -> CodeLayout {
        let known = row(Version::of_minor(3, 12)).expect("3.12 is known");
        let Offsets::Table(layout) = known.offsets else {
            panic!("3.12 has a table")
        };
        CodeLayout {
            thread_bytecode: CO_TLBC,
            ..layout.code
        }
    }

    /// A code object with its array of `entries`.
    fn image(entries: &[u64]) -> MemoryImage {
        let mut image = MemoryImage {
            bytes: vec![0; 0x1000],
        };
        image.write_word(CODE + u64::from(CO_TLBC), ARRAY);
        image.write_word(ARRAY, entries.len() as u64);
        for (idx, entry) in entries.iter().enumerate() {
            image.write_word(ARRAY + 8 + 8 * idx as u64, *entry);
        }
        image
    }

    fn executed(bytecode: &mut ThreadBytecode, image: &MemoryImage, instr: u64) -> u64 {
        let frame = PyFrame {
            code: CODE,
            instr,
            ..PyFrame::default()
        };
        let own = Address(OWN)..Address(OWN + N_BYTES);
        let range = bytecode.of_frame(image, &layout(), &frame, own);
        assert_eq!(range.end.0 - range.start.0, N_BYTES);
        range.start.0
    }

    #[test]
    fn an_instruction_in_a_threads_copy_belongs_to_that_copy() {
        let mut bytecode = ThreadBytecode::default();
        let image = image(&[OWN, 0, COPY]);
        assert_eq!(executed(&mut bytecode, &image, OWN + 8), OWN);
        assert_eq!(executed(&mut bytecode, &image, COPY), COPY);
        assert_eq!(executed(&mut bytecode, &image, COPY + N_BYTES - 2), COPY);
        // In no copy: the code object's own is what is known.
        assert_eq!(executed(&mut bytecode, &image, COPY + N_BYTES), OWN);
    }

    #[test]
    fn a_copy_that_is_made_later_is_found() {
        let mut bytecode = ThreadBytecode::default();
        assert_eq!(executed(&mut bytecode, &image(&[OWN, COPY]), COPY), COPY);
        let later = image(&[OWN, COPY, LATER_COPY]);
        assert_eq!(executed(&mut bytecode, &later, LATER_COPY + 2), LATER_COPY);
    }

    #[test]
    fn an_array_that_cannot_be_read_is_none() {
        let mut bytecode = ThreadBytecode::default();
        let mut image = image(&[OWN, COPY]);
        image.write_word(ARRAY, u64::MAX);
        assert_eq!(executed(&mut bytecode, &image, COPY), OWN);
        image.write_word(CODE + u64::from(CO_TLBC), 0);
        assert_eq!(executed(&mut bytecode, &image, COPY), OWN);
    }
}
