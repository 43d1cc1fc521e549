//! Counts objects by type, and keeps the largest ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::layout::{HeapLayout, KeysLayout};
use super::memory::QuietMemory;
use super::scan::{Object, Visitor};
use super::types::{TypeInfo, keys_bytes};
use crate::ids::Address;
use crate::process::memory::MemoryError;

/// Bytes of a key table that say how large it is.
const KEYS_HEAD_BYTES: usize = 40;

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
        }
    }

    /// The largest objects, largest first.
    #[must_use]
    pub fn largest(&self) -> Vec<LargeObject> {
        let mut largest: Vec<_> = self.largest.iter().map(|large| large.0).collect();
        largest.sort_unstable_by(|a, b| b.cmp(a));
        largest
    }

    fn add_bytes(&mut self, object: LargeObject) {
        if let Some(count) = self.counts.get_mut(object.type_idx as usize) {
            count.n_bytes = count.n_bytes.saturating_add(object.n_bytes);
        }
        if self.largest.len() < self.n_largest {
            self.largest.push(Reverse(object));
        } else if self
            .largest
            .peek()
            .is_some_and(|least| least.0 < object)
        {
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
        match object.size.keys {
            None => self.add_bytes(found),
            Some((keys, has_values)) => {
                self.waiting.push(Waiting {
                    object: found,
                    has_values,
                });
                self.waiting_keys.push(Address(keys));
            }
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
        Ok(())
    }
}
