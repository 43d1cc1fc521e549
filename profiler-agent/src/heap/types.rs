//! The types of a process: found by what a type object looks like, and kept by address.
//!
//! A type object is an object whose type is `type`, which is its own type, or a metaclass: a type object with
//! `Py_TPFLAGS_TYPE_SUBCLASS`. So what looks like one is collected first, and then kept if a chain of types leads
//! from it to `type`. No symbol is needed.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::bytes::{half, start_of_block, word};
use super::layout::{GC_HEAD_BYTES, HeapLayout, KeysLayout, flags, type_object};
use super::names;
use crate::ids::Address;
use crate::process::memory::ReadMemory;

/// Most types that are known of one process; 100 bytes each.
const MAX_TYPES: usize = 1 << 18;

/// Largest `tp_basicsize` and `tp_itemsize` that are believed.
const MAX_BASICSIZE: u64 = 1 << 26;
const MAX_ITEMSIZE: u64 = 1 << 20;

/// Longest chain of bases that is followed.
const MAX_BASES: usize = 64;

/// Addresses of user space.
const MAX_ADDRESS: u64 = 1 << 47;

/// Most values that lie behind an instance (`SHARED_KEYS_MAX_SIZE` is 30).
pub(super) const MAX_INLINE_VALUES: u64 = 64;

/// A process with so many pools has its small objects in pools; fewer can be chance.
const MIN_POOLS: usize = 16;

/// Bytes at the start of a key table that say how large it is.
pub(super) const KEYS_HEAD_BYTES: usize = 40;

/// Types of which the interpreter and its libraries have objects as variables. A pair of a number and a pointer to any
/// other type is no object there, but a row of a table of types.
const STATIC: [&str; 14] = [
    "NoneType",
    "NotImplementedType",
    "bool",
    "bytes",
    "code",
    "ellipsis",
    "hamt",
    "hamt_bitmap_node",
    "int",
    "moduledef",
    "str",
    "tuple",
    "type",
    "typing.NoDefaultType",
];

/// How the size of an instance is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeRule {
    /// `tp_basicsize`, and `tp_itemsize` for each of `ob_size` items.
    Items,
    /// The digits of an int.
    Int,
    /// The characters of a str.
    Str,
    /// The allocated items of a list.
    List,
    /// The key table of a dict, and its values where they are apart.
    Dict,
    /// The table of a set or frozenset.
    Set,
    /// The allocated bytes of a bytearray.
    ByteArray,
    /// The blocks of a `collections.deque`.
    Deque,
    /// The allocated items of an `array.array`.
    Array,
    /// The frame at the end of a generator, coroutine or asynchronous generator (3.11+).
    Generator,
    /// The same of a frame object, which can have its frame elsewhere. Up to 3.10 it has items itself.
    Frame,
    /// A type object: one size for classes, another for variables of programs.
    Type,
}

/// What is known of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeInfo {
    /// Where it is.
    pub address: Address,
    /// `tp_basicsize`, in bytes.
    pub basicsize: u64,
    /// `tp_itemsize`, in bytes.
    pub itemsize: u64,
    /// `tp_flags`.
    pub flags: u64,
    /// `tp_base`.
    pub base: Address,
    /// `tp_name`.
    pub name: Address,
    /// `tp_dict`.
    pub dict: Address,
    /// Bytes in front of its instances.
    pub bytes_before: u64,
    /// The attributes' values lie behind its instances (3.13+).
    pub has_inline_values: bool,
    /// Size of its instances.
    pub size_rule: SizeRule,
    /// Bytes of the keys that its instances share.
    pub shared_keys_bytes: u64,
    /// Attributes whose values an instance keeps, at most.
    pub n_values: u64,
    /// Programs have variables of it.
    pub may_be_static: bool,
}

impl TypeInfo {
    /// Whether it was made while the program ran, as classes are.
    #[must_use]
    pub const fn is_heap_type(&self) -> bool {
        self.flags & flags::HEAPTYPE != 0
    }

    /// Whether the collector can follow its instances.
    #[must_use]
    pub const fn has_gc(&self) -> bool {
        self.flags & flags::HAVE_GC != 0
    }

    /// Whether its instances are types.
    #[must_use]
    pub const fn is_metatype(&self) -> bool {
        self.flags & flags::TYPE != 0
    }
}

/// What looks like a type object.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    info: TypeInfo,
    /// Its own type.
    metatype: u64,
    /// glibc's size of the chunk that it would be in.
    chunk_word: u64,
}

/// Collects what looks like a type object.
#[derive(Debug)]
pub struct TypeFinder {
    layout: HeapLayout,
    candidates: Vec<Candidate>,
    n_pools: usize,
    /// There were more than are kept.
    pub is_cut: bool,
}

impl TypeFinder {
    /// None yet.
    #[must_use]
    pub fn new(layout: HeapLayout) -> Self {
        Self {
            layout,
            candidates: Vec::new(),
            n_pools: 0,
            is_cut: false,
        }
    }

    /// Counts a pool, in which there are no types.
    pub fn add_pool(&mut self) {
        self.n_pools += 1;
    }

    /// Looks at what lies at `at` of `bytes`, whose first byte is at `base`.
    pub fn look(&mut self, base: u64, bytes: &[u8], at: usize) {
        let Some(candidate) = self.candidate(base, bytes, at) else {
            return;
        };
        if self.candidates.len() < MAX_TYPES {
            self.candidates.push(candidate);
        } else {
            self.is_cut = true;
        }
    }

    fn candidate(&self, base: u64, bytes: &[u8], at: usize) -> Option<Candidate> {
        let object = bytes.get(at..at.checked_add(type_object::BYTES)?)?;
        let tp_flags = word(object, type_object::FLAGS)?;
        // Most memory is sorted out here.
        if tp_flags & (flags::READY | flags::READYING) != flags::READY || tp_flags >> 32 != 0 {
            return None;
        }
        let metatype = word(object, 8)?;
        let info = TypeInfo {
            address: Address(base + at as u64),
            basicsize: word(object, type_object::BASICSIZE)?,
            itemsize: word(object, type_object::ITEMSIZE)?,
            flags: tp_flags,
            base: Address(word(object, type_object::BASE)?),
            name: Address(word(object, type_object::NAME)?),
            dict: Address(word(object, type_object::DICT)?),
            bytes_before: self.layout.bytes_before(tp_flags),
            has_inline_values: self.layout.version >= (3, 13)
                && tp_flags & flags::INLINE_VALUES != 0,
            size_rule: SizeRule::Items,
            shared_keys_bytes: 0,
            n_values: 0,
            may_be_static: false,
        };
        let is_type = self.layout.refcount.is_live(word(object, 0)?)
            && is_pointer(metatype)
            && info.basicsize <= MAX_BASICSIZE
            && info.itemsize <= MAX_ITEMSIZE
            && (info.base.is_null() || is_pointer(info.base.0))
            && info.name.0 > 0xfff
            && info.name.0 < MAX_ADDRESS;
        is_type.then_some(Candidate {
            info,
            metatype,
            chunk_word: chunk_word(bytes, at).unwrap_or(0),
        })
    }

    /// Keeps those that are types.
    #[must_use]
    pub fn finish(self, memory: &impl ReadMemory) -> Option<TypeTable> {
        let root = self.root()?;
        let mut metatypes: Vec<u64> = vec![root];
        let by_metatype = self.by_metatype();
        let mut infos: Vec<TypeInfo> = Vec::new();
        let mut by_address = HashMap::with_hasher(FixedState::default());
        let mut n_in_chunks = 0;
        let mut n_heap_types = 0;
        let root_bytes = self
            .candidates
            .iter()
            .find(|candidate| candidate.info.address.0 == root)?
            .info
            .basicsize;
        while let Some(metatype) = metatypes.pop() {
            for candidate in by_metatype.get(&metatype).into_iter().flatten() {
                let address = candidate.info.address.0;
                if by_address.contains_key(&address) {
                    continue;
                }
                by_address.insert(address, infos.len() as u32);
                infos.push(candidate.info);
                if candidate.info.is_metatype() && address != root {
                    metatypes.push(address);
                }
                if candidate.info.is_heap_type() {
                    n_heap_types += 1;
                    n_in_chunks += usize::from(is_chunk(candidate.chunk_word, root_bytes));
                }
            }
        }
        let mut table = TypeTable {
            first: infos.iter().map(|info| info.address.0).min()?,
            last: infos.iter().map(|info| info.address.0).max()?,
            infos,
            by_address,
            class_bytes: root_bytes,
            static_type_bytes: self.layout.static_type_bytes,
            has_pools: self.n_pools >= MIN_POOLS,
            // Classes are too large for pymalloc: if they lie in chunks of glibc's, so does all that is.
            allocator: if n_heap_types >= 8 && n_in_chunks * 10 >= n_heap_types * 9 {
                Allocator::Glibc
            } else {
                Allocator::Other
            },
        };
        table.find_sizes(memory, &self.layout);
        Some(table)
    }

    /// `type`: it is its own type, and most others' too.
    fn root(&self) -> Option<u64> {
        let mut n_instances: HashMap<u64, usize> = HashMap::new();
        for candidate in &self.candidates {
            *n_instances.entry(candidate.metatype).or_default() += 1;
        }
        self.candidates
            .iter()
            .filter(|candidate| {
                candidate.info.address.0 == candidate.metatype && candidate.info.is_metatype()
            })
            .map(|candidate| candidate.metatype)
            .max_by_key(|address| n_instances.get(address).copied())
    }

    fn by_metatype(&self) -> HashMap<u64, Vec<&Candidate>> {
        let mut by_metatype: HashMap<u64, Vec<&Candidate>> = HashMap::new();
        for candidate in &self.candidates {
            by_metatype
                .entry(candidate.metatype)
                .or_default()
                .push(candidate);
        }
        by_metatype
    }
}

/// Who gives memory to what is larger than pymalloc's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocator {
    /// glibc: the size of a chunk stands in front of it.
    Glibc,
    /// Another one: nothing is known of its blocks.
    Other,
}

/// What glibc's size of a chunk would be of a class.
fn chunk_word(bytes: &[u8], at: usize) -> Option<u64> {
    let start = start_of_block(bytes, at.checked_sub(GC_HEAD_BYTES as usize)?);
    word(bytes, start.checked_sub(8)?)
}

/// Whether a word is glibc's size of a chunk for a class: it has nothing else in it but its slots.
fn is_chunk(word: u64, class_bytes: u64) -> bool {
    let n_bytes = word & !7;
    n_bytes >= class_bytes && n_bytes <= class_bytes + (1 << 16)
}

pub(super) fn is_pointer(word: u64) -> bool {
    word > 0xfff && word < MAX_ADDRESS && word & 7 == 0
}

/// The types of a process.
#[derive(Debug)]
pub struct TypeTable {
    infos: Vec<TypeInfo>,
    by_address: HashMap<u64, u32, FixedState>,
    first: u64,
    last: u64,
    /// `tp_basicsize` of `type`: the size of a class.
    class_bytes: u64,
    static_type_bytes: u64,
    /// Small objects lie in pools of pymalloc: it was not switched off (`PYTHONMALLOC`).
    pub has_pools: bool,
    /// Who gives the memory of large objects.
    pub allocator: Allocator,
}

impl TypeTable {
    /// The index of the type at an address.
    #[must_use]
    #[inline]
    pub fn find(&self, address: u64) -> Option<u32> {
        if address < self.first || address > self.last {
            return None;
        }
        self.by_address.get(&address).copied()
    }

    /// The size of a type object, as `type.__sizeof__` has it.
    #[must_use]
    pub fn bytes_of_type(&self, address: Address) -> Option<u64> {
        let info = &self.infos[self.find(address.0)? as usize];
        Some(if info.is_heap_type() {
            self.class_bytes + info.shared_keys_bytes
        } else {
            self.static_type_bytes
        })
    }

    /// All of them; an index says which.
    #[must_use]
    pub fn all(&self) -> &[TypeInfo] {
        &self.infos
    }

    fn find_sizes(&mut self, memory: &impl ReadMemory, layout: &HeapLayout) {
        let mut by_address = HashMap::new();
        for info in &mut self.infos {
            let name = names::c_text(memory, info.name).unwrap_or_default();
            by_address.insert(info.address, own_rule(layout, info, &name));
            info.may_be_static = !info.is_heap_type() && STATIC.contains(&name.as_str());
        }
        for idx in 0..self.infos.len() {
            let info = self.infos[idx];
            self.infos[idx].size_rule = self.rule(&info, &by_address);
            if !info.is_heap_type() {
                continue;
            }
            let Some(keys) = shared_keys(memory, layout, &info) else {
                continue;
            };
            self.infos[idx].shared_keys_bytes = keys.n_bytes;
            self.infos[idx].n_values = keys.n_shared.min(MAX_INLINE_VALUES);
        }
    }

    /// That of the nearest base that has one of its own.
    fn rule(&self, info: &TypeInfo, own: &HashMap<Address, Option<SizeRule>>) -> SizeRule {
        if info.is_metatype() {
            return SizeRule::Type;
        }
        let mut at = *info;
        for _ in 0..MAX_BASES {
            if let Some(Some(rule)) = own.get(&at.address) {
                return *rule;
            }
            let Some(idx) = self.find(at.base.0) else {
                break;
            };
            at = self.infos[idx as usize];
        }
        SizeRule::Items
    }
}

/// The rule of a type of the interpreter's or its libraries'; `None`: that of its base.
fn own_rule(layout: &HeapLayout, info: &TypeInfo, name: &str) -> Option<SizeRule> {
    let has_frame = layout
        .frame
        .is_some_and(|frame| info.itemsize != 0 && info.basicsize >= frame.n_bytes);
    match name {
        // Of a library, and so a class in some versions.
        "collections.deque" => return Some(SizeRule::Deque),
        "array.array" => return Some(SizeRule::Array),
        _ if info.is_heap_type() => return None,
        "set" | "frozenset" => return Some(SizeRule::Set),
        "generator" | "coroutine" | "async_generator" if has_frame => {
            return Some(SizeRule::Generator);
        }
        "frame" if has_frame || layout.frame.is_none() => return Some(SizeRule::Frame),
        "bytearray" => return Some(SizeRule::ByteArray),
        _ => {}
    }
    let by_flag = [
        (flags::INT, SizeRule::Int),
        (flags::STR, SizeRule::Str),
        (flags::LIST, SizeRule::List),
        (flags::DICT, SizeRule::Dict),
    ];
    let found = by_flag.iter().find(|(flag, _)| info.flags & flag != 0)?;
    Some(found.1)
}

/// The keys that the instances of a class share.
fn shared_keys(memory: &impl ReadMemory, layout: &HeapLayout, info: &TypeInfo) -> Option<KeysSize> {
    let keys = memory
        .read_u64(info.address.add(layout.cached_keys))
        .ok()
        .filter(|keys| *keys != 0)?;
    let mut head = [0; KEYS_HEAD_BYTES];
    memory.read(Address(keys), &mut head).ok()?;
    keys_bytes(layout.keys, &head)
}

/// Bytes of a key table; `None`: it makes no sense. `head` are its first
/// [`KEYS_HEAD_BYTES`].
#[must_use]
pub(super) fn keys_bytes(layout: KeysLayout, head: &[u8]) -> Option<KeysSize> {
    const GENERAL: u8 = 0;
    let (n_slots_log2, header_bytes, index_bytes, entry_bytes) = match layout {
        KeysLayout::Sized => {
            let n_slots = word(head, 8)?;
            if !n_slots.is_power_of_two() || n_slots > 1 << 40 {
                return None;
            }
            let width = match n_slots {
                0..=0xff => 1,
                0x100..=0xffff => 2,
                0x1_0000..=0xffff_ffff => 4,
                _ => 8,
            };
            (n_slots.trailing_zeros(), 40, n_slots * width, 24)
        }
        KeysLayout::Log2 => {
            let (log2_size, log2_index_bytes) = (*head.get(8)?, *head.get(9)?);
            if log2_size > 40 || log2_index_bytes > 44 {
                return None;
            }
            let entry_bytes = if *head.get(10)? == GENERAL { 24 } else { 16 };
            (u32::from(log2_size), 32, 1 << log2_index_bytes, entry_bytes)
        }
    };
    let n_usable = (1_u64 << n_slots_log2) * 2 / 3;
    let (usable_at, entries_at) = match layout {
        KeysLayout::Sized => (24, 32),
        KeysLayout::Log2 => (16, 24),
    };
    Some(KeysSize {
        is_shared: half(head, 0)? != 1,
        n_bytes: header_bytes + index_bytes + n_usable * entry_bytes,
        n_usable,
        n_shared: word(head, usable_at)?.wrapping_add(word(head, entries_at)?),
    })
}

/// What a key table says of its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeysSize {
    /// More than one dict, or a class and its instances, have it.
    pub(super) is_shared: bool,
    /// All of it.
    pub(super) n_bytes: u64,
    /// Entries that fit.
    pub(super) n_usable: u64,
    /// Values that a dict keeps apart (3.11+).
    pub(super) n_shared: u64,
}

impl KeysSize {
    /// What a dict owns of its key table: all of one that it has alone, and its values where they are apart.
    pub(super) fn bytes_of_dict(&self, layout: KeysLayout, has_values: bool) -> u64 {
        let keys = if self.is_shared { 0 } else { self.n_bytes };
        let values = match (has_values, layout) {
            (false, _) => 0,
            (true, KeysLayout::Sized) => self.n_usable * 8,
            (true, KeysLayout::Log2) => self.n_shared.min(MAX_INLINE_VALUES) * 8,
        };
        keys + values
    }
}
