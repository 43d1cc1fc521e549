//! The names that a program gave to its Python threads, read from outside.
//!
//! The way there: interpreter -> `sys.modules` -> module `threading` -> its `_active`, a dict from ident to
//! `Thread` -> the attribute `_name`. The ident is the `pthread_t`, which a thread state keeps as `thread_id`.
//! Field offsets are those of CPython's headers ([`ThreadNameLayout`]); how a dict keeps its entries and an
//! object its attributes is in `Objects/dict-common.h` (up to 3.10), `Include/internal/pycore_dict.h` and
//! `pycore_object.h` (3.11 on).
//!
//! The program runs on meanwhile: objects are freed and their memory used again. A name counts only if two
//! of at most three readings give it to the same ident. All bounds hold whatever the memory says.
//!
//! Not here: which interpreter a process runs, and which thread state belongs to which kernel thread.

use std::collections::HashMap;

use super::layout::Version;
use super::string::{STR_HEADER_BYTES, StrHeader, StrKind, StrLayout};
use crate::ids::Address;
use crate::process::memory::{MemoryError, ReadMemory};
use crate::process::pages::Pages;

/// Most threads whose names are read.
pub const MAX_THREADS: usize = 4096;

/// Most slots of a dict's entry table, used and deleted ones.
const MAX_DICT_ENTRIES: u64 = 65_536;

/// Most modules that are looked at to find `threading`; it is imported early.
const MAX_MODULES: usize = 16_384;

/// Most attributes of a module or thread that are looked at. (Shared keys hold at most 30.)
const MAX_ATTRIBUTES: usize = 512;

/// Most fields and objects that are read in one call; 4,096 threads need about 60,000.
const MAX_READS: u32 = 262_144;

/// Most pages that are fetched in one call, at some 2 us each; 200 threads need 200 to 300.
const MAX_PAGES: u32 = 8192;

/// How often `_active` is read until it was not resized during two readings in a row, or three if these differ.
const MAX_READINGS: usize = 6;

/// Entry tables are read in pieces of this many bytes, a multiple of 16 and of 24.
const ENTRIES_PIECE_BYTES: usize = 3072;

/// Offset of `tp_basicsize` behind the object header; the other offsets in a type count from it too.
pub(super) const TYPE_BASICSIZE: u64 = 16;
/// `tp_flags`.
pub(super) const TYPE_FLAGS: u64 = 152;
/// `tp_dictoffset`.
pub(super) const TYPE_DICTOFFSET: u64 = 272;

/// `Py_TPFLAGS_INLINE_VALUES` (3.13+).
pub(super) const FLAG_INLINE_VALUES: u64 = 1 << 2;
/// `Py_TPFLAGS_MANAGED_DICT` (3.11+).
pub(super) const FLAG_MANAGED_DICT: u64 = 1 << 4;
/// `Py_TPFLAGS_IMMUTABLETYPE` (3.10+): no statement of a program makes such a class.
pub(super) const FLAG_IMMUTABLE: u64 = 1 << 8;
/// `Py_TPFLAGS_HEAPTYPE`.
pub(super) const FLAG_HEAPTYPE: u64 = 1 << 9;
/// `Py_TPFLAGS_LONG_SUBCLASS`.
pub(super) const FLAG_INT: u64 = 1 << 24;
/// `Py_TPFLAGS_UNICODE_SUBCLASS`.
pub(super) const FLAG_STR: u64 = 1 << 28;
/// `Py_TPFLAGS_DICT_SUBCLASS`.
pub(super) const FLAG_DICT: u64 = 1 << 29;

/// How the key table of a dict begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeysLayout {
    /// `dk_size` 8, `dk_nentries` 32, indices from 40; entries of 24 bytes (hash, key, value) (<= 3.10).
    Sized,
    /// `dk_log2_index_bytes` 9, `dk_kind` 10, `dk_nentries` 24, indices from 32; entries of 24 bytes for
    /// `DICT_KEYS_GENERAL`, of 16 (key, value) where all keys are str (3.11+).
    Log2,
}

/// Where an instance keeps its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttributesLayout {
    /// A dict at `tp_dictoffset` (<= 3.10).
    DictOffset,
    /// Before the object: the dict at -24; while that is NULL the values at -32 (3.11).
    DictBesideValues,
    /// One word at -24: a dict, or values minus one when its lowest bit is set (3.12).
    DictOrValues,
    /// A dict before the object; while that is NULL the values behind the object, `tp_basicsize` from its start
    /// (3.13+).
    ValuesBehind,
}

/// How an int keeps its sign and the number of its 30-bit digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IntLayout {
    /// `ob_size`: the count, negative for negative numbers (<= 3.11).
    ObSize,
    /// `lv_tag`: the count times 8, the sign in the lowest bits (3.12+).
    Tag,
}

/// Where the fields lie that lead to the names. One row a CPython version, for builds with the GIL; those of
/// free-threaded builds follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadNameLayout {
    /// Major and minor version.
    pub version: (u8, u8),
    /// `PyInterpreterState.modules` (<= 3.11), `.imports.modules` (3.12+).
    pub interpreter_modules: u64,
    /// `sizeof(PyObject)`. The fields of dict, module, int, str and type follow it in the same order always.
    pub object_header: u64,
    /// `PyHeapTypeObject.ht_cached_keys`: the keys that instances share.
    pub heap_type_cached_keys: u64,
    /// `PyUnicodeObject` and what it contains.
    pub string: StrLayout,
    /// `offsetof(PyDictValues, values)`.
    pub values_header: u64,
    /// Bytes before an object at which its managed dict hangs: `-MANAGED_DICT_OFFSET` (3.11+).
    pub managed_dict: u64,
    pub(super) keys: KeysLayout,
    pub(super) attributes: AttributesLayout,
    pub(super) int: IntLayout,
}

/// Up to 3.10; the interpreter and the type object differ.
const fn row_until_3_10(minor: u8, interpreter_modules: u64, cached_keys: u64) -> ThreadNameLayout {
    ThreadNameLayout {
        version: (3, minor),
        interpreter_modules,
        object_header: 16,
        heap_type_cached_keys: cached_keys,
        string: StrLayout::V3_6,
        values_header: 0,
        managed_dict: 24,
        keys: KeysLayout::Sized,
        attributes: AttributesLayout::DictOffset,
        int: IntLayout::ObSize,
    }
}

/// 3.11.
const ROW_3_11: ThreadNameLayout = ThreadNameLayout {
    version: (3, 11),
    interpreter_modules: 888,
    keys: KeysLayout::Log2,
    attributes: AttributesLayout::DictBesideValues,
    ..row_until_3_10(11, 888, 872)
};

/// 3.12.
const ROW_3_12: ThreadNameLayout = ThreadNameLayout {
    version: (3, 12),
    interpreter_modules: 944,
    heap_type_cached_keys: 880,
    string: StrLayout::V3_12,
    attributes: AttributesLayout::DictOrValues,
    int: IntLayout::Tag,
    ..ROW_3_11
};

/// 3.13.
const ROW_3_13: ThreadNameLayout = ThreadNameLayout {
    version: (3, 13),
    interpreter_modules: 7656,
    values_header: 8,
    attributes: AttributesLayout::ValuesBehind,
    ..ROW_3_12
};

/// 3.14. The way into the interpreter is in `_Py_DebugOffsets`.
const ROW_3_14: ThreadNameLayout = ThreadNameLayout {
    version: (3, 14),
    interpreter_modules: 7688,
    ..ROW_3_13
};

/// 3.15.
const ROW_3_15: ThreadNameLayout = ThreadNameLayout {
    version: (3, 15),
    interpreter_modules: 7592,
    heap_type_cached_keys: 888,
    ..ROW_3_14
};

/// 3.14 and 3.15 are from the debug offsets of 3.14.10 and 3.15.2. The others were compiled from the headers of 3.6.15, 3.7.16, 3.8.18, 3.9.18, 3.10.13, 3.11.7, 3.12.1 and 3.13.0.
const LAYOUTS: [ThreadNameLayout; 10] = [
    row_until_3_10(6, 16, 856),
    row_until_3_10(7, 40, 856),
    row_until_3_10(8, 56, 872),
    row_until_3_10(9, 856, 864),
    row_until_3_10(10, 856, 872),
    ROW_3_11,
    ROW_3_12,
    ROW_3_13,
    ROW_3_14,
    ROW_3_15,
];

impl ThreadNameLayout {
    /// Every row, oldest first.
    #[must_use]
    pub const fn all() -> &'static [Self] {
        &LAYOUTS
    }

    /// That of an interpreter; `modules` is `interpreter_state.imports_modules` of its own `_Py_DebugOffsets`, where it
    /// has them (3.13+). `None` when its version has no row.
    #[must_use]
    pub fn of_interpreter(
        version: Version,
        free_threaded: bool,
        modules: Option<u16>,
    ) -> Option<Self> {
        let (major, minor) = version.minor();
        let mut layout = *Self::for_version(major, minor)?;
        if free_threaded {
            layout = layout.with_free_threads();
        }
        if let Some(modules) = modules {
            layout.interpreter_modules = modules.into();
        }
        Some(layout)
    }

    /// The row of a version; `None` when it has none.
    #[must_use]
    pub fn for_version(major: u8, minor: u8) -> Option<&'static Self> {
        LAYOUTS
            .iter()
            .find(|layout| layout.version == (major, minor))
    }

    /// The same of a free-threaded build (3.13+): a larger header of each object, and no GC header before it.
    fn with_free_threads(self) -> Self {
        const LARGER_HEADER: u64 = 16;
        let (major, minor) = self.version;
        Self {
            object_header: self.object_header + LARGER_HEADER,
            heap_type_cached_keys: self.heap_type_cached_keys + LARGER_HEADER,
            string: StrLayout::of_version(Version::new(major, minor, 0).0, true),
            managed_dict: 8,
            ..self
        }
    }
}

/// Why the names could not be read.
#[derive(thiserror::Error, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadNameError {
    /// Memory on the way to the names could not be read.
    #[error("thread names: {0}")]
    Memory(#[from] MemoryError),
    /// What should be a dict is none: the layout does not fit, or memory is damaged.
    #[error("thread names: no dict at {0}")]
    NotADict(Address),
    /// A dict's key table makes no sense.
    #[error("thread names: implausible dict keys at {0}")]
    ImplausibleKeys(Address),
    /// What should be a str or an int is none.
    #[error("thread names: unexpected type of the object at {0}")]
    UnexpectedType(Address),
    /// `threading._active` was resized during each attempt.
    #[error("thread names: the table of threads does not come to rest")]
    Changing,
    /// The structures are deeper or wider than any program's.
    #[error("thread names: more than {MAX_READS} fields or {MAX_PAGES} pages")]
    TooManyReads,
}

impl ThreadNameError {
    /// Whether the rest of the process cannot be read either, and going on is of no use.
    const fn is_final(self) -> bool {
        match self {
            Self::Memory(MemoryError::Gone | MemoryError::Denied) | Self::TooManyReads => true,
            Self::Memory(MemoryError::Unmapped(_))
            | Self::NotADict(_)
            | Self::ImplausibleKeys(_)
            | Self::UnexpectedType(_)
            | Self::Changing => false,
        }
    }
}

type Result<T, E = ThreadNameError> = std::result::Result<T, E>;

/// The names of an interpreter's threads by their ident (`pthread_t`, a thread state's `thread_id`).
///
/// Empty when the program has not imported `threading`. Threads that start or end during the call may be
/// absent, and so is a thread whose object cannot be read.
pub fn thread_names(
    memory: &impl ReadMemory,
    layout: &ThreadNameLayout,
    interpreter: Address,
) -> Result<HashMap<u64, Box<str>>> {
    let pages = Pages::new(memory);
    let mut reader = Reader {
        pages,
        layout,
        n_reads: 0,
        types: HashMap::new(),
        shared: HashMap::new(),
    };
    let modules = reader.pointer(interpreter.add(layout.interpreter_modules))?;
    if modules.is_null() {
        return Ok(HashMap::new());
    }
    let modules = reader.dict(modules)?;
    let Some(threading) = reader.find(&modules, b"threading", MAX_MODULES)? else {
        return Ok(HashMap::new());
    };
    let namespace = reader.pointer(threading.add(layout.object_header))?;
    let namespace = reader.dict(namespace)?;
    let Some(active) = reader.find(&namespace, b"_active", MAX_ATTRIBUTES)? else {
        return Ok(HashMap::new());
    };
    let mut readings: Vec<HashMap<u64, Box<str>>> = Vec::new();
    for _ in 0..MAX_READINGS {
        match reader.names_of(active)? {
            Some(names) => readings.push(names),
            None => readings.clear(),
        }
        match &*readings {
            [first, second] if first == second => return Ok(readings.swap_remove(0)),
            // The table may have been resized twice, back to where it was, so that one of the readings lacks a thread.
            [first, second, third] => return Ok(most_agree(first, second, third)),
            _ => {}
        }
    }
    Err(ThreadNameError::Changing)
}

/// What two of three readings say.
fn most_agree(
    first: &HashMap<u64, Box<str>>,
    second: &HashMap<u64, Box<str>>,
    third: &HashMap<u64, Box<str>>,
) -> HashMap<u64, Box<str>> {
    let says = |names: &HashMap<u64, Box<str>>, ident: &u64, name: &str| {
        names.get(ident).is_some_and(|known| **known == *name)
    };
    let of_first = first
        .iter()
        .filter(|(ident, name)| says(second, ident, name) || says(third, ident, name));
    let of_others = second
        .iter()
        .filter(|(ident, name)| says(third, ident, name));
    of_first
        .chain(of_others)
        .map(|(ident, name)| (*ident, name.clone()))
        .collect()
}

/// What is needed of a type object.
#[derive(Debug, Clone, Copy)]
struct TypeFacts {
    flags: u64,
    basicsize: u64,
    dictoffset: i64,
}

/// A dict: its key table, and the values where they are apart (split table).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dict {
    keys: Address,
    values: Option<Address>,
}

/// The entries of a key table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entries {
    pub(super) start: Address,
    pub(super) stride: usize,
    /// Offset of the key in an entry; the value follows it.
    pub(super) key: usize,
    pub(super) len: usize,
}

impl KeysLayout {
    /// Where the entries of a key table lie whose first bytes are `head`; `None`: it makes no sense, or has more than
    /// `max_entries`.
    pub(super) fn entries(
        self,
        keys: Address,
        head: &[u8; 40],
        max_entries: u64,
    ) -> Option<Entries> {
        let (indices, index_bytes, n_entries, stride, key) = match self {
            Self::Sized => {
                let size = word(head, 8);
                if !size.is_power_of_two() || size > max_entries.saturating_mul(2) {
                    return None;
                }
                let index_width = match size {
                    0..=0xff => 1,
                    0x100..=0xffff => 2,
                    0x1_0000..=0xffff_ffff => 4,
                    _ => 8,
                };
                (40, size.checked_mul(index_width)?, word(head, 32), 24, 8)
            }
            Self::Log2 => {
                let index_bytes = 1_u64.checked_shl(head[9].into())?;
                if index_bytes > max_entries.saturating_mul(16) {
                    return None;
                }
                let (stride, key) = if head[10] == 0 { (24, 8) } else { (16, 0) };
                (32, index_bytes, word(head, 24), stride, key)
            }
        };
        (n_entries <= max_entries).then(|| Entries {
            start: keys.add(indices).add(index_bytes),
            stride,
            key,
            len: n_entries as usize,
        })
    }
}

/// One entry of a key table.
#[derive(Debug, Clone, Copy)]
struct Entry {
    slot: usize,
    key: Address,
    value: Address,
}

/// Reads structures; counts its reads, remembers types and shared keys.
struct Reader<'a, M> {
    pages: Pages<'a, M>,
    layout: &'a ThreadNameLayout,
    n_reads: u32,
    types: HashMap<Address, TypeFacts>,
    /// Slot of `_name` in key tables that many instances share.
    shared: HashMap<Address, Option<usize>>,
}

impl<M: ReadMemory> Reader<'_, M> {
    /// One reading. `None`: `_active` was resized meanwhile.
    fn names_of(&mut self, active: Address) -> Result<Option<HashMap<u64, Box<str>>>> {
        // Nothing of the reading before may make this one err in the same way.
        self.pages.forget();
        self.types.clear();
        self.shared.clear();
        let before = self.dict(active)?;
        let mut names = HashMap::new();
        for entry in self.all_entries(&before)? {
            match self.named(entry) {
                Ok((ident, name)) => drop(names.insert(ident, name)),
                Err(error) if error.is_final() => return Err(error),
                // The thread ended meanwhile, or its object is not what `threading` makes: it has no name.
                Err(_) => {}
            }
        }
        self.pages.forget();
        Ok((self.dict(active)? == before).then_some(names))
    }

    /// The ident and the name of one entry of `_active`.
    fn named(&mut self, entry: Entry) -> Result<(u64, Box<str>)> {
        let ident = self.int(entry.key)?;
        let name = self
            .name_slot(entry.value)?
            .ok_or(ThreadNameError::UnexpectedType(entry.value))?;
        let name = self.pointer(name)?;
        Ok((ident, self.text(name)?))
    }

    /// Address of the word that points to a thread's `_name`.
    fn name_slot(&mut self, object: Address) -> Result<Option<Address>> {
        let type_address = self.pointer(object.add(self.layout.object_header - 8))?;
        let facts = self.type_facts(type_address)?;
        let dict = match self.layout.attributes {
            AttributesLayout::DictOffset => {
                // Negative for objects of variable size, which a thread is not.
                let Ok(offset @ 1..) = u64::try_from(facts.dictoffset) else {
                    return Ok(None);
                };
                self.pointer(object.add(offset))?
            }
            AttributesLayout::DictBesideValues => {
                let Some([values, dict]) = self.before_object(object, facts)? else {
                    return Ok(None);
                };
                if dict.is_null() {
                    return self.inline_slot(type_address, facts, values);
                }
                dict
            }
            AttributesLayout::DictOrValues => {
                let Some([_, word]) = self.before_object(object, facts)? else {
                    return Ok(None);
                };
                if word.0 & 1 == 1 {
                    return self.inline_slot(type_address, facts, word.add(1));
                }
                word
            }
            AttributesLayout::ValuesBehind => {
                let Some([_, dict]) = self.before_object(object, facts)? else {
                    return Ok(None);
                };
                if dict.is_null() && facts.flags & FLAG_INLINE_VALUES != 0 {
                    return self.inline_slot(type_address, facts, object.add(facts.basicsize));
                }
                dict
            }
        };
        if dict.is_null() {
            return Ok(None);
        }
        let dict = self.dict(dict)?;
        if let Some(values) = dict.values {
            return self.shared_slot(dict.keys, values);
        }
        let entries = self.entries(dict.keys)?;
        let found = self.find_slot(&entries, b"_name", MAX_ATTRIBUTES)?;
        Ok(found.map(|slot| {
            entries
                .start
                .add((slot * entries.stride + entries.key + 8) as u64)
        }))
    }

    /// The word at which an object's managed dict hangs, and the one before.
    fn before_object(&mut self, object: Address, facts: TypeFacts) -> Result<Option<[Address; 2]>> {
        if facts.flags & FLAG_MANAGED_DICT == 0 {
            return Ok(None);
        }
        let start = object.0.wrapping_sub(self.layout.managed_dict + 8);
        let words: [u8; 16] = self.bytes(Address(start))?;
        Ok(Some([Address(word(&words, 0)), Address(word(&words, 8))]))
    }

    /// Slot of `_name` among the values of an object without a dict of its own.
    fn inline_slot(
        &mut self,
        type_address: Address,
        facts: TypeFacts,
        values: Address,
    ) -> Result<Option<Address>> {
        if values.is_null() || facts.flags & FLAG_HEAPTYPE == 0 {
            return Ok(None);
        }
        let keys = self.pointer(type_address.add(self.layout.heap_type_cached_keys))?;
        self.shared_slot(keys, values)
    }

    /// Slot of `_name` in a split table: the key table is shared, `values` is the instance's.
    fn shared_slot(&mut self, keys: Address, values: Address) -> Result<Option<Address>> {
        let slot = if let Some(slot) = self.shared.get(&keys) {
            *slot
        } else {
            let entries = self.entries(keys)?;
            let slot = self.find_slot(&entries, b"_name", MAX_ATTRIBUTES)?;
            self.shared.insert(keys, slot);
            slot
        };
        Ok(slot.map(|slot| values.add(self.layout.values_header + 8 * slot as u64)))
    }

    fn dict(&mut self, address: Address) -> Result<Dict> {
        // ma_used, ma_version_tag, ma_keys, ma_values
        let (facts, fields) = self.object::<32>(address)?;
        if facts.flags & FLAG_DICT == 0 {
            return Err(ThreadNameError::NotADict(address));
        }
        let values = Address(word(&fields, 24));
        Ok(Dict {
            keys: Address(word(&fields, 16)),
            values: (!values.is_null()).then_some(values),
        })
    }

    fn entries(&mut self, keys: Address) -> Result<Entries> {
        let head: [u8; 40] = self.bytes(keys)?;
        self.layout
            .keys
            .entries(keys, &head, MAX_DICT_ENTRIES)
            .ok_or(ThreadNameError::ImplausibleKeys(keys))
    }

    /// The used entries of a dict that is no split table, at most [`MAX_THREADS`].
    fn all_entries(&mut self, dict: &Dict) -> Result<Vec<Entry>> {
        let entries = self.entries(dict.keys)?;
        let mut used = Vec::new();
        self.each_entry(&entries, MAX_DICT_ENTRIES as usize, |_, entry| {
            if !entry.key.is_null() && !entry.value.is_null() && used.len() < MAX_THREADS {
                used.push(entry);
            }
            Ok(None::<()>)
        })?;
        Ok(used)
    }

    /// The value of a str key; `None` when the dict lacks it.
    fn find(&mut self, dict: &Dict, name: &[u8], max_entries: usize) -> Result<Option<Address>> {
        let entries = self.entries(dict.keys)?;
        let Some(slot) = self.find_slot(&entries, name, max_entries)? else {
            return Ok(None);
        };
        let at = match dict.values {
            Some(values) => values.add(self.layout.values_header + 8 * slot as u64),
            None => entries
                .start
                .add((slot * entries.stride + entries.key + 8) as u64),
        };
        let value = self.pointer(at)?;
        Ok((!value.is_null()).then_some(value))
    }

    /// The slot whose key is this ASCII text.
    fn find_slot(
        &mut self,
        entries: &Entries,
        name: &[u8],
        max_entries: usize,
    ) -> Result<Option<usize>> {
        self.each_entry(entries, max_entries, |reader, entry| {
            if entry.key.is_null() {
                return Ok(None);
            }
            match reader.is_text(entry.key, name) {
                Ok(is_same) => Ok(is_same.then_some(entry.slot)),
                Err(error) if error.is_final() => Err(error),
                Err(_) => Ok(None),
            }
        })
    }

    /// Visits entries in order until the visitor returns a value.
    fn each_entry<T>(
        &mut self,
        entries: &Entries,
        max_entries: usize,
        mut visit: impl FnMut(&mut Self, Entry) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let n_entries = entries.len.min(max_entries);
        let per_piece = ENTRIES_PIECE_BYTES / entries.stride;
        let mut piece = [0; ENTRIES_PIECE_BYTES];
        for first in (0..n_entries).step_by(per_piece) {
            let piece = &mut piece[..(n_entries - first).min(per_piece) * entries.stride];
            self.fill(entries.start.add((first * entries.stride) as u64), piece)?;
            for (idx, bytes) in piece.chunks_exact(entries.stride).enumerate() {
                let key = Address(word(bytes, entries.key));
                let value = Address(word(bytes, entries.key + 8));
                if let Some(found) = visit(
                    self,
                    Entry {
                        slot: first + idx,
                        key,
                        value,
                    },
                )? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// A positive int of at most 60 bits: a `pthread_t` is an address.
    fn int(&mut self, object: Address) -> Result<u64> {
        let unexpected = ThreadNameError::UnexpectedType(object);
        // The size and two digits; allocations come in steps of 16 bytes, so two digits are always there.
        let (facts, fields) = self.object::<16>(object)?;
        let n_digits = match (self.layout.int, word(&fields, 0)) {
            (IntLayout::ObSize, size) => size,
            // The two lowest bits: 0 positive, 1 zero, 2 negative. The third is no part of the count.
            (IntLayout::Tag, tag) if tag.trailing_zeros() >= 2 => tag >> 3,
            (IntLayout::Tag, _) => return Err(unexpected),
        };
        let (low, high) = (
            u64::from(half_word(&fields, 8)),
            u64::from(half_word(&fields, 12)),
        );
        match n_digits {
            _ if facts.flags & FLAG_INT == 0 => Err(unexpected),
            1 => Ok(low),
            2 => Ok(low | high << 30),
            _ => Err(unexpected),
        }
    }

    /// Whether the object is a str of exactly this ASCII text, of at most 16 characters.
    fn is_text(&mut self, object: Address, text: &[u8]) -> Result<bool> {
        let header = self.str_header(object)?;
        let mut characters = [0; 16];
        let Some(characters) = characters.get_mut(..header.byte_len) else {
            return Ok(false);
        };
        if header.kind != StrKind::Latin1 || characters.len() != text.len() {
            return Ok(false);
        }
        self.fill(object.add(header.data_offset.into()), characters)?;
        Ok(characters == text)
    }

    /// A str, decoded; see [`super::string`] for what is cut and replaced.
    fn text(&mut self, object: Address) -> Result<Box<str>> {
        let type_address = self.pointer(object.add(self.layout.object_header - 8))?;
        if self.type_facts(type_address)?.flags & FLAG_STR == 0 {
            return Err(ThreadNameError::UnexpectedType(object));
        }
        let header = self.str_header(object)?;
        let mut bytes = vec![0; header.byte_len];
        self.fill(object.add(header.data_offset.into()), &mut bytes)?;
        Ok(header.decode(&bytes).into())
    }

    fn str_header(&mut self, object: Address) -> Result<StrHeader> {
        let mut bytes = [0; STR_HEADER_BYTES];
        // Not a byte more than the header has: nothing may be mapped behind it.
        let bytes = &mut bytes[..self.layout.string.header_bytes()];
        self.fill(object, bytes)?;
        let header = StrHeader::parse(self.layout.string, bytes);
        header.map_err(|_| ThreadNameError::UnexpectedType(object))
    }

    /// The type of an object and the `N` bytes behind its header, by one read.
    fn object<const N: usize>(&mut self, object: Address) -> Result<(TypeFacts, [u8; N])> {
        const { assert!(N <= 32, "it has to fit behind the largest header") };
        let header = self.layout.object_header as usize;
        let mut bytes = [0; 64];
        self.fill(object, &mut bytes[..header + N])?;
        let mut fields = [0; N];
        fields.copy_from_slice(&bytes[header..header + N]);
        Ok((self.type_facts(Address(word(&bytes, header - 8)))?, fields))
    }

    fn type_facts(&mut self, address: Address) -> Result<TypeFacts> {
        if let Some(facts) = self.types.get(&address) {
            return Ok(*facts);
        }
        let start = address.add(self.layout.object_header + TYPE_BASICSIZE);
        let fields: [u8; (TYPE_DICTOFFSET + 8 - TYPE_BASICSIZE) as usize] = self.bytes(start)?;
        let facts = TypeFacts {
            flags: word(&fields, (TYPE_FLAGS - TYPE_BASICSIZE) as usize),
            basicsize: word(&fields, 0),
            dictoffset: word(&fields, (TYPE_DICTOFFSET - TYPE_BASICSIZE) as usize).cast_signed(),
        };
        self.types.insert(address, facts);
        Ok(facts)
    }

    fn pointer(&mut self, at: Address) -> Result<Address> {
        Ok(Address(u64::from_le_bytes(self.bytes(at)?)))
    }

    fn bytes<const N: usize>(&mut self, at: Address) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(at, &mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, at: Address, buffer: &mut [u8]) -> Result<()> {
        if self.n_reads == MAX_READS || self.pages.n_fetched() >= MAX_PAGES {
            return Err(ThreadNameError::TooManyReads);
        }
        self.n_reads += 1;
        Ok(self.pages.read(at, buffer)?)
    }
}

/// The word at a byte offset, which must lie in `bytes`.
pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    let word = bytes[at..at + 8].try_into().expect("the range has 8 bytes");
    u64::from_le_bytes(word)
}

/// The same for 4 bytes.
pub(super) fn half_word(bytes: &[u8], at: usize) -> u32 {
    let half_word = bytes[at..at + 4].try_into().expect("the range has 4 bytes");
    u32::from_le_bytes(half_word)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;
    use crate::process::memory_image::MemoryImage;
    use crate::python::string::MAX_STR_CHARS;

    const IMAGE_BYTES: usize = 32 * 1024;

    /// Builds the structures of one version in a memory image.
    struct Builder {
        layout: &'static ThreadNameLayout,
        image: MemoryImage,
        next: u64,
        /// Unused bytes between objects.
        gap: u64,
    }

    /// Addresses of the types that the structures need.
    struct Types {
        dict: u64,
        int: u64,
        str: u64,
        thread: u64,
    }

    impl Builder {
        fn allocate(&mut self, n_bytes: u64) -> u64 {
            // With room for the words before an object.
            let address = self.next + 32;
            self.next = (address + n_bytes + self.gap).next_multiple_of(16);
            address
        }

        fn object(&mut self, type_address: u64, words: &[u64]) -> u64 {
            let header = self.layout.object_header;
            let object = self.allocate(header + 8 * words.len() as u64);
            self.image.write_word(object + header - 8, type_address);
            self.words(object + header, words);
            object
        }

        fn words(&mut self, address: u64, words: &[u64]) {
            for (idx, word) in words.iter().enumerate() {
                self.image.write_word(address + 8 * idx as u64, *word);
            }
        }

        fn type_object(&mut self, flags: u64, cached_keys: u64) -> u64 {
            let header = self.layout.object_header;
            let address = self.allocate(1024);
            self.image.write_word(address + header + TYPE_FLAGS, flags);
            self.image
                .write_word(address + header + TYPE_BASICSIZE, header);
            self.image
                .write_word(address + header + TYPE_DICTOFFSET, header);
            self.image
                .write_word(address + self.layout.heap_type_cached_keys, cached_keys);
            address
        }

        fn text(&mut self, type_address: u64, text: &str) -> u64 {
            let is_ascii = text.is_ascii();
            let characters: Vec<u8> = if is_ascii {
                text.into()
            } else {
                text.chars()
                    .flat_map(|c| u32::from(c).to_le_bytes())
                    .collect()
            };
            let state = if is_ascii { 0x64 } else { 0x30 };
            let layout = self.layout.string;
            let data = u64::from(if is_ascii {
                layout.ascii_data
            } else {
                layout.compact_data
            });
            let object = self.object(
                type_address,
                &[text.chars().count() as u64, 0, state, 0, 0, 0, 0, 0, 0, 0],
            );
            self.image.write(object + data, &characters);
            object
        }

        fn int(&mut self, type_address: u64, value: u64) -> u64 {
            let n_digits = 2;
            let tag = if self.layout.int == IntLayout::Tag {
                n_digits << 3
            } else {
                n_digits
            };
            let digits = (value & 0x3fff_ffff) | (value >> 30) << 32;
            self.object(type_address, &[tag, digits])
        }

        /// A key table; those of 3.11+ with str keys have short entries.
        fn keys(&mut self, has_str_keys: bool, entries: &[(u64, u64)]) -> u64 {
            let n_entries = entries.len() as u64;
            let (head, is_short) = match self.layout.keys {
                KeysLayout::Sized => (vec![0, 8, 0, 0, n_entries, 0], false),
                KeysLayout::Log2 => (
                    vec![
                        0,
                        3 | 3 << 8 | u64::from(has_str_keys) << 16,
                        0,
                        n_entries,
                        0,
                    ],
                    has_str_keys,
                ),
            };
            let words: Vec<u64> = entries
                .iter()
                .flat_map(|(key, value)| {
                    if is_short {
                        vec![*key, *value]
                    } else {
                        vec![0, *key, *value]
                    }
                })
                .collect();
            let address = self.allocate(8 * (head.len() + words.len()) as u64);
            self.words(address, &head);
            self.words(address + 8 * head.len() as u64, &words);
            address
        }

        fn dict(&mut self, type_address: u64, has_str_keys: bool, entries: &[(u64, u64)]) -> u64 {
            let keys = self.keys(has_str_keys, entries);
            self.object(type_address, &[entries.len() as u64, 0, keys, 0])
        }

        /// A thread whose only attributes are `_target` and `_name`, kept as the version keeps them at first.
        fn thread(&mut self, types: &Types, name: u64) -> u64 {
            let header = self.layout.values_header;
            let values = self.allocate(header + 16);
            self.words(values + header, &[0, name]);
            let thread = self.object(types.thread, &[0, 0, 0]);
            match self.layout.attributes {
                AttributesLayout::DictOffset => {
                    let keys = self.shared_keys(types);
                    let dict = self.object(types.dict, &[2, 0, keys, values]);
                    self.image
                        .write_word(thread + self.layout.object_header, dict);
                }
                AttributesLayout::DictBesideValues => self.image.write_word(thread - 32, values),
                AttributesLayout::DictOrValues => self.image.write_word(thread - 24, values - 1),
                AttributesLayout::ValuesBehind => {
                    self.image
                        .write_word(thread + self.layout.object_header + header + 8, name);
                }
            }
            thread
        }

        fn shared_keys(&mut self, types: &Types) -> u64 {
            let names = ["_target", "_name"].map(|name| self.text(types.str, name));
            self.keys(true, &names.map(|name| (name, 0)))
        }
    }

    /// An image with these threads, its interpreter at the first byte.
    fn image(layout: &'static ThreadNameLayout, threads: &[(u64, &str)], gap: u64) -> MemoryImage {
        let image = MemoryImage {
            bytes: vec![0; IMAGE_BYTES + 64 * gap as usize],
        };
        let mut builder = Builder {
            layout,
            image,
            next: MemoryImage::BASE + 8192,
            gap,
        };
        let mut types = Types {
            dict: 0,
            int: 0,
            str: 0,
            thread: 0,
        };
        types.dict = builder.type_object(FLAG_DICT, 0);
        types.int = builder.type_object(FLAG_INT, 0);
        types.str = builder.type_object(FLAG_STR, 0);
        let keys = builder.shared_keys(&types);
        types.thread =
            builder.type_object(FLAG_HEAPTYPE | FLAG_MANAGED_DICT | FLAG_INLINE_VALUES, keys);
        let mut active = Vec::new();
        for (ident, name) in threads {
            let name = builder.text(types.str, name);
            active.push((builder.int(types.int, *ident), builder.thread(&types, name)));
        }
        let active = builder.dict(types.dict, false, &active);
        let [sys, threading, name] =
            ["sys", "threading", "_active"].map(|name| builder.text(types.str, name));
        let namespace = builder.dict(types.dict, true, &[(sys, sys), (0, 0), (name, active)]);
        let module = builder.object(0, &[namespace]);
        let modules = builder.dict(types.dict, true, &[(sys, sys), (threading, module)]);
        builder
            .image
            .write_word(MemoryImage::BASE + layout.interpreter_modules, modules);
        builder.image
    }

    const INTERPRETER: Address = Address(MemoryImage::BASE);
    const IDENT: u64 = 0x7f12_3456_7700;

    fn names(layout: &ThreadNameLayout, memory: &impl ReadMemory) -> Vec<(u64, String)> {
        let names = thread_names(memory, layout, INTERPRETER).unwrap_or_default();
        let mut names: Vec<_> = names
            .into_iter()
            .map(|(ident, name)| (ident, name.into()))
            .collect();
        names.sort();
        names
    }

    /// Memory that becomes another one after some reads.
    struct Changing<'a> {
        images: [&'a MemoryImage; 2],
        n_reads: Cell<usize>,
        change_at: usize,
    }

    impl ReadMemory for Changing<'_> {
        fn read(&self, address: Address, buffer: &mut [u8]) -> Result<(), MemoryError> {
            self.n_reads.set(self.n_reads.get() + 1);
            let is_changed = self.n_reads.get() > self.change_at;
            self.images[usize::from(is_changed)].read(address, buffer)
        }
    }

    #[test]
    fn every_layout_reads_its_own_structures() {
        for layout in ThreadNameLayout::all() {
            let image = image(
                layout,
                &[(IDENT, "MainThread"), (IDENT + 64, "поток 🐍")],
                0,
            );
            let expected = [
                (IDENT, "MainThread".to_owned()),
                (IDENT + 64, "поток 🐍".to_owned()),
            ];
            assert_eq!(names(layout, &image), expected, "{:?}", layout.version);
        }
    }

    #[test]
    fn a_name_is_never_given_to_the_thread_of_another_moment() {
        for layout in ThreadNameLayout::all() {
            let before = image(layout, &[(IDENT, "first"), (IDENT + 64, "other")], 4096);
            // The same memory, used again: the entries of the table moved up. Each object has a page to
            // itself, so that the change can come between any two.
            let after = image(
                layout,
                &[(IDENT + 64, "other"), (IDENT + 128, "third")],
                4096,
            );
            let true_names = [names(layout, &before), names(layout, &after)].concat();
            assert_eq!(true_names.len(), 4);
            for change_at in 0..200 {
                let memory = Changing {
                    images: [&before, &after],
                    n_reads: Cell::new(0),
                    change_at,
                };
                for name in names(layout, &memory) {
                    assert!(
                        true_names.contains(&name),
                        "{:?} {change_at} {name:?}",
                        layout.version
                    );
                }
            }
        }
    }

    #[test]
    fn a_table_without_end_stops_at_the_bound() {
        let layout = ThreadNameLayout::for_version(3, 13).unwrap();
        let mut image = image(layout, &[(IDENT, "MainThread")], 0);
        // Every word points back to the start: whatever is followed, there is more.
        for address in (0..IMAGE_BYTES as u64).step_by(8) {
            if address != layout.interpreter_modules {
                image.write_word(MemoryImage::BASE + address, MemoryImage::BASE + 0x100);
            }
        }
        let modules = Changing {
            images: [&image, &image],
            n_reads: Cell::new(0),
            change_at: 0,
        };
        let _ = thread_names(&modules, layout, INTERPRETER);
        assert!(modules.n_reads.get() <= MAX_READS as usize);
    }

    proptest! {
        #[test]
        fn damaged_memory_gives_bounded_names(
            version in 0..LAYOUTS.len(),
            damage in prop::collection::vec((0..IMAGE_BYTES as u64 / 8, 0..4_u8, any::<u64>()), 0..40),
        ) {
            let layout = &LAYOUTS[version];
            let mut image = image(layout, &[(IDENT, "MainThread"), (IDENT + 64, "поток")], 0);
            for (word_idx, kind, word) in damage {
                let word = match kind {
                    0 => word,
                    1 => MemoryImage::BASE + word % IMAGE_BYTES as u64,
                    2 => word % 70_000,
                    _ => word & 0xff_ffff,
                };
                // Behind the interpreter, where the structures are.
                image.write_word(MemoryImage::BASE + (8192 + word_idx * 8) % IMAGE_BYTES as u64, word);
            }
            let memory = Changing { images: [&image, &image], n_reads: Cell::new(0), change_at: 0 };
            if let Ok(names) = thread_names(&memory, layout, INTERPRETER) {
                prop_assert!(names.len() <= MAX_THREADS);
                prop_assert!(names.values().all(|name| name.chars().count() <= MAX_STR_CHARS + 1));
            }
            prop_assert!(memory.n_reads.get() <= MAX_READS as usize);
        }
    }
}
