//! Counts objects by type, and keeps the largest ones.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::bytes::half;
use super::layout::{FrameLayout, HeapLayout, KeysLayout};
use super::memory::QuietMemory;
use super::scan::{Object, Visitor};
use super::size::Elsewhere;
use super::types::{KEYS_HEAD_BYTES, TypeInfo, keys_bytes};
use crate::ids::Address;
use crate::process::memory::{MemoryError, ReadMemory as _};

/// Largest item of an `array.array` that is believed, and how many kinds are remembered; there are 14 of 8 bytes at most.
const MAX_ITEM_BYTES: u32 = 16;
const MAX_KINDS: usize = 64;

/// Most variables and places on the stack of a code object that are believed, and how many code objects are remembered.
const MAX_SLOTS: u32 = 1 << 20;
const MAX_CODES: usize = 1 << 16;

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
    frame: Option<FrameLayout>,
    /// By the index of the type.
    pub counts: Vec<TypeCount>,
    largest: BinaryHeap<Reverse<LargeObject>>,
    n_largest: usize,
    waiting: Vec<Waiting>,
    waiting_keys: Vec<Address>,
    waiting_arrays: Vec<(LargeObject, Address, u64)>,
    /// Bytes of an item of an `array.array`, by where its kind is described.
    item_bytes: HashMap<Address, u64>,
    /// Objects with a frame, and their code.
    waiting_slots: Vec<(LargeObject, Address)>,
    /// Objects whose frame is elsewhere.
    waiting_frames: Vec<(LargeObject, Address)>,
    /// Bytes of the variables and the stack of a code object.
    slot_bytes: HashMap<Address, u64>,
}

impl Tally {
    /// Of so many types; `n_largest` objects are kept.
    #[must_use]
    pub fn new(layout: &HeapLayout, n_types: usize, n_largest: usize) -> Self {
        Self {
            keys: layout.keys,
            frame: layout.frame,
            counts: vec![TypeCount::default(); n_types],
            largest: BinaryHeap::new(),
            n_largest,
            waiting: Vec::new(),
            waiting_keys: Vec::new(),
            waiting_arrays: Vec::new(),
            item_bytes: HashMap::new(),
            waiting_slots: Vec::new(),
            waiting_frames: Vec::new(),
            slot_bytes: HashMap::new(),
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

    /// `co_nlocalsplus` and `co_stacksize` words; 0 where they cannot be read.
    fn bytes_of_slots(&mut self, memory: &QuietMemory, code: Address) -> u64 {
        if let Some(n_bytes) = self.slot_bytes.get(&code) {
            return *n_bytes;
        }
        let n_bytes = self
            .frame
            .and_then(|frame| n_slots(memory, frame, code))
            .map_or(0, |n_slots| u64::from(n_slots) * 8);
        if self.slot_bytes.len() < MAX_CODES {
            self.slot_bytes.insert(code, n_bytes);
        }
        n_bytes
    }

    /// The code object of a frame.
    fn code_of(&self, memory: &QuietMemory, frame: Address) -> Option<Address> {
        let layout = self.frame?;
        let code = memory.read_u64(frame.add(layout.code)).ok()?;
        Some(Address(code & !layout.code_tag_mask))
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
            Some(Elsewhere::Items { kind, n_items }) => {
                self.waiting_arrays.push((found, kind, n_items));
            }
            Some(Elsewhere::Slots { code }) => self.waiting_slots.push((found, code)),
            Some(Elsewhere::SlotsOfFrame { frame }) => self.waiting_frames.push((found, frame)),
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
        for (mut object, kind, n_items) in std::mem::take(&mut self.waiting_arrays) {
            object.n_bytes += n_items * self.bytes_of_item(memory, kind);
            self.add_bytes(object);
        }
        for (object, frame) in std::mem::take(&mut self.waiting_frames) {
            // A call that has returned meanwhile has no code: it is counted without its variables.
            let code = self.code_of(memory, frame).unwrap_or(Address(0));
            self.waiting_slots.push((object, code));
        }
        for (mut object, code) in std::mem::take(&mut self.waiting_slots) {
            object.n_bytes += self.bytes_of_slots(memory, code);
            self.add_bytes(object);
        }
        Ok(())
    }
}

/// Variables and places on the stack of a code object.
fn n_slots(memory: &QuietMemory, layout: FrameLayout, code: Address) -> Option<u32> {
    // `co_stacksize`, `co_firstlineno`, `co_nlocalsplus`.
    let mut fields = [0; 12];
    memory
        .read(code.add(layout.code_stack_size), &mut fields)
        .ok()?;
    let n_slots = half(&fields, 0)?.checked_add(half(&fields, 8)?)?;
    (n_slots <= MAX_SLOTS).then_some(n_slots)
}
