//! Counts objects by type, and keeps the largest ones.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::layout::{HeapLayout, KeysLayout};
use super::memory::QuietMemory;
use super::scan::{Object, Visitor};
use super::size::Elsewhere;
use super::types::{KEYS_HEAD_BYTES, TypeInfo, keys_bytes};
use crate::ids::Address;
use crate::process::memory::{MemoryError, ReadMemory as _};

/// Largest item of an `array.array` that is believed, and how many kinds are remembered; there are 14 of 8 bytes at most.
const MAX_ITEM_BYTES: u32 = 16;
const MAX_KINDS: usize = 64;

/// How many objects of a type there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TypeCount {
    /// Objects.
    pub n_objects: u64,
    /// Their bytes.
    pub n_bytes: u64,
    /// Those of them that the collector follows.
    pub n_tracked: u64,
}

/// A large object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LargeObject {
    /// Its bytes.
    pub n_bytes: u64,
    /// Where it is.
    pub address: Address,
    /// Index of its type.
    pub type_idx: u32,
    /// Its length, where it has one.
    pub length: Option<u64>,
}

/// A dict whose key table has not been looked at.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    object: LargeObject,
    has_values: bool,
}

/// The counts.
#[derive(Debug)]
pub struct Tally {
    keys: KeysLayout,
    /// By the index of the type.
    pub counts: Vec<TypeCount>,
    largest: BinaryHeap<Reverse<LargeObject>>,
    n_largest: usize,
    waiting: Vec<Waiting>,
    waiting_keys: Vec<Address>,
    arrays: Vec<(LargeObject, Address, u64)>,
    /// Bytes of an item of an `array.array`, by where its kind is described.
    item_bytes: HashMap<Address, u64>,
}

impl Tally {
    /// Of so many types; `n_largest` objects are kept.
    #[must_use]
    pub fn new(layout: &HeapLayout, n_types: usize, n_largest: usize) -> Self {
        Self {
            keys: layout.keys,
            counts: vec![TypeCount::default(); n_types],
            largest: BinaryHeap::new(),
            n_largest,
            waiting: Vec::new(),
            waiting_keys: Vec::new(),
            arrays: Vec::new(),
            item_bytes: HashMap::new(),
        }
    }

    /// The largest objects, largest first.
    #[must_use]
    pub fn largest(&self) -> Vec<LargeObject> {
        let mut largest: Vec<_> = self.largest.iter().map(|large| large.0).collect();
        largest.sort_unstable_by(|a, b| b.cmp(a));
        largest
    }

    /// `arraydescr.itemsize`; 0 where it cannot be read.
    fn bytes_of_item(&mut self, memory: &QuietMemory, kind: Address) -> u64 {
        if let Some(n_bytes) = self.item_bytes.get(&kind) {
            return *n_bytes;
        }
        let n_bytes = memory.read_u32(kind.add(4)).unwrap_or(0);
        let n_bytes = if n_bytes <= MAX_ITEM_BYTES {
            u64::from(n_bytes)
        } else {
            0
        };
        if self.item_bytes.len() < MAX_KINDS {
            self.item_bytes.insert(kind, n_bytes);
        }
        n_bytes
    }

    fn add_bytes(&mut self, object: LargeObject) {
        if let Some(count) = self.counts.get_mut(object.type_idx as usize) {
            count.n_bytes = count.n_bytes.saturating_add(object.n_bytes);
        }
        if self.largest.len() < self.n_largest {
            self.largest.push(Reverse(object));
        } else if self.largest.peek().is_some_and(|least| least.0 < object) {
            self.largest.pop();
            self.largest.push(Reverse(object));
        }
    }
}

impl Visitor for Tally {
    fn object(&mut self, _info: &TypeInfo, object: &Object<'_>) {
        if let Some(count) = self.counts.get_mut(object.type_idx as usize) {
            count.n_objects += 1;
            count.n_tracked += u64::from(object.is_tracked);
        }
        let found = LargeObject {
            n_bytes: object.size.n_bytes,
            address: object.address,
            type_idx: object.type_idx,
            length: object.size.length,
        };
        match object.size.elsewhere {
            None => self.add_bytes(found),
            Some(Elsewhere::Keys { table, has_values }) => {
                self.waiting.push(Waiting {
                    object: found,
                    has_values,
                });
                self.waiting_keys.push(table);
            }
            Some(Elsewhere::Items { kind, n_items }) => self.arrays.push((found, kind, n_items)),
        }
    }

    fn end_of_window(&mut self, memory: &QuietMemory) -> Result<(), MemoryError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        let addresses = std::mem::take(&mut self.waiting_keys);
        let layout = self.keys;
        memory.read_pieces(&addresses, KEYS_HEAD_BYTES, &mut |idx, head| {
            if let (Some(dict), Some(keys)) = (waiting.get_mut(idx), keys_bytes(layout, head)) {
                dict.object.n_bytes += keys.bytes_of_dict(layout, dict.has_values);
            }
        })?;
        for dict in waiting.drain(..) {
            self.add_bytes(dict.object);
        }
        // The memory is used again.
        self.waiting = waiting;
        self.waiting_keys = addresses;
        self.waiting_keys.clear();
        for (mut object, kind, n_items) in std::mem::take(&mut self.arrays) {
            object.n_bytes += n_items * self.bytes_of_item(memory, kind);
            self.add_bytes(object);
        }
        Ok(())
    }
}
