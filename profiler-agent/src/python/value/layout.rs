//! Where the interpreter's own objects keep what is shown of them.
//!
//! Offsets behind the object header are those of `Include/cpython/*object.h`, the same from 3.6 to 3.15 where nothing else
//! is said; free-threaded builds have a larger header. `tests/tests/live/locals.rs` compares what is read with `repr` in
//! every interpreter.

use super::{Unreadable, read_word};
use crate::ids::Address;
use crate::process::memory::ReadMemory;
use crate::python::layout::{Layout, Version};
use crate::python::string::{StrKind, StrLayout, decode};
use crate::python::thread_name::{
    AttributesLayout, Entries, IntLayout, KeysLayout, ThreadNameLayout,
};

/// Largest table of a dict, in entries.
const MAX_ENTRIES: u64 = 1 << 40;

/// Offsets of one interpreter build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLayout {
    /// The version: 3 and this. `repr` differs by it.
    pub(super) minor: u8,
    /// `sizeof(PyObject)`: 16, or 32 in free-threaded builds. `ob_type` is its last word, `ob_size` the word behind it.
    pub(super) header: u64,
    /// `PyTupleObject.ob_item`, behind the header.
    pub(super) tuple_items: u64,
    /// `func_qualname`, behind the header.
    pub(super) function_qualname: u64,
    /// `gi_qualname`, behind the header; the same in coroutines and asynchronous generators.
    pub(super) generator_qualname: u64,
    /// `co_name`, `co_filename` and `co_firstlineno` (int).
    pub(super) code: [u64; 3],
    /// `PyHeapTypeObject.ht_qualname`.
    pub(super) type_qualname: u64,
    /// `offsetof(PyDictValues, values)`.
    pub(super) values_header: u64,
    /// Where instances have their attributes, and bytes before an object at which its managed dict hangs.
    pub(super) attributes: AttributesLayout,
    pub(super) managed_dict: u64,
    /// Bits of a word of a frame that are no part of the address.
    pub(super) slot_tag_mask: u64,
    pub(super) str: StrLayout,
    pub(super) keys: KeysLayout,
    pub(super) int: IntLayout,
}

impl ObjectLayout {
    /// That of an interpreter; `None`: its version has none.
    #[must_use]
    pub fn of_interpreter(layout: &Layout) -> Option<Self> {
        const ONE_WORD: u16 = 8;
        let version = Version(layout.walk.version_hex);
        let free_threaded = layout.code.ob_type != ONE_WORD;
        let known = ThreadNameLayout::of_interpreter(version, free_threaded, None)?;
        let (_, minor) = version.minor();
        let code = &layout.code;
        Some(Self {
            minor,
            header: known.object_header,
            // From 3.14 on a hash stands in front.
            tuple_items: if minor < 14 { 8 } else { 16 },
            function_qualname: if minor < 10 { 88 } else { 24 },
            generator_qualname: match minor {
                ..10 => 40,
                10 => 32,
                11 => 24,
                12.. => 16,
            },
            code: [code.name, code.filename, code.first_line].map(u64::from),
            type_qualname: known.heap_type_cached_keys - 8,
            values_header: known.values_header,
            attributes: known.attributes,
            managed_dict: known.managed_dict,
            slot_tag_mask: layout.walk.code_tag_mask.into(),
            str: known.string,
            keys: known.keys,
            int: known.int,
        })
    }

    /// The entries of a dict that has its keys for itself, or of the keys that it shares.
    pub(super) fn entries(
        &self,
        memory: &impl ReadMemory,
        dict: Address,
    ) -> Result<Entries, Unreadable> {
        const MA_KEYS: u64 = 16;
        let keys = Address(read_word(memory, dict.add(self.header + MA_KEYS))?);
        self.entries_of_keys(memory, keys)
    }

    /// The entries of a key table.
    pub(super) fn entries_of_keys(
        &self,
        memory: &impl ReadMemory,
        keys: Address,
    ) -> Result<Entries, Unreadable> {
        let mut head = [0; 40];
        memory.read(keys, &mut head)?;
        self.keys
            .entries(keys, &head, MAX_ENTRIES)
            .ok_or(Unreadable)
    }

    /// The text of a str, cut and lossy: for names.
    pub(super) fn text(
        &self,
        memory: &impl ReadMemory,
        object: Address,
        max_chars: usize,
    ) -> Result<String, Unreadable> {
        let chars = self.chars(memory, object, max_chars)?;
        Ok(decode(chars.kind, &chars.bytes))
    }

    /// The first characters of a str, or of an instance of a class that is derived from it.
    pub(super) fn chars(
        &self,
        memory: &impl ReadMemory,
        object: Address,
        max_chars: usize,
    ) -> Result<Chars, Unreadable> {
        const MAX_LENGTH: u64 = 1 << 48;
        let length = read_word(memory, object.add(self.str.length.into()))?;
        let state = memory.read_u32(object.add(self.str.state.into()))?;
        let state = state
            .checked_shr(self.str.kind_shift.into())
            .ok_or(Unreadable)?;
        let (is_compact, is_ascii) = (state >> 3 & 1 == 1, state >> 4 & 1 == 1);
        let (kind, width) = match state & 7 {
            1 => (StrKind::Latin1, 1),
            2 => (StrKind::Ucs2, 2),
            4 => (StrKind::Ucs4, 4),
            _ => return Err(Unreadable),
        };
        if length > MAX_LENGTH || (is_ascii && kind != StrKind::Latin1) {
            return Err(Unreadable);
        }
        let data = match (is_compact, is_ascii) {
            (true, true) => object.add(self.str.ascii_data.into()),
            (true, false) => object.add(self.str.compact_data.into()),
            // `PyUnicodeObject.data`: a pointer to them.
            (false, _) => Address(read_word(memory, object.add(self.str.compact_data.into()))?),
        };
        let n_chars = length.min(max_chars as u64) as usize;
        let mut bytes = vec![0; n_chars * width];
        memory.read(data, &mut bytes)?;
        Ok(Chars {
            kind,
            bytes,
            is_cut: length > n_chars as u64,
        })
    }
}

/// Characters as they lie in memory.
pub(super) struct Chars {
    pub(super) kind: StrKind,
    pub(super) bytes: Vec<u8>,
    /// There are more.
    pub(super) is_cut: bool,
}

impl Chars {
    /// Code points; any number can be among them.
    pub(super) fn codes(&self) -> Vec<u32> {
        match self.kind {
            StrKind::Latin1 => self.bytes.iter().map(|byte| u32::from(*byte)).collect(),
            StrKind::Ucs2 => {
                let units = self.bytes.as_chunks().0.iter();
                units.map(|unit| u16::from_le_bytes(*unit).into()).collect()
            }
            StrKind::Ucs4 => {
                let units = self.bytes.as_chunks().0.iter();
                units.map(|unit| u32::from_le_bytes(*unit)).collect()
            }
        }
    }
}
