//! The objects of one type one by one, and who refers to them.
//!
//! Three more passes: the objects; then every word of memory that is the address of one of them; then whose memory
//! those words lie in. An object has its own block and, elsewhere, the items of a list, the tables of a dict or set, and
//! the attributes of an instance. One level: who refers to a `__dict__` is not followed. What lies in no object is
//! counted: frames, stacks, and what belongs to libraries.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::ops::ControlFlow;

use foldhash::fast::FixedState;
use serde::Serialize;

use super::bytes::word;
use super::layout::{HeapLayout, KeysLayout, flags};
use super::memory::QuietMemory;
use super::names::type_name;
use super::report::{full_name, line, stopped_line};
use super::scan::{self, Object, Progress, Visitor};
use super::size::Elsewhere;
use super::snapshot::{HeapError, layout_of, proc_error};
use super::stopped::Stopped;
use super::types::{KEYS_HEAD_BYTES, SizeRule, TypeInfo, TypeTable, keys_bytes};
use crate::format::{bytes_text, thousands};
use crate::ids::{Address, Pid};
use crate::process::memory::MemoryError;
use crate::python::discover::Interpreter;

/// Most objects that are shown one by one.
const MAX_SHOWN: usize = 1000;

/// Most places that refer to them that are kept; what comes after is only counted.
const MAX_PLACES: usize = 1 << 20;

/// Largest table of a dict.
const MAX_TABLE_BYTES: u64 = 1 << 40;

/// Most values of a dict that lie apart from its keys.
const MAX_VALUES: u64 = 1 << 16;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Name of the type.
    #[serde(rename = "type")]
    pub name: String,
    /// Objects of it.
    #[serde(rename = "count")]
    pub n_objects: u64,
    /// The largest of them, largest first.
    pub objects: Vec<ShownObject>,
    /// Who refers to those: by type, most first.
    pub referrers: Vec<Referrer>,
    /// References that lie in no object.
    pub other_references: u64,
    /// How long the process stood for it; absent without `--freeze`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownObject {
    /// Its address, in hexadecimal.
    pub address: String,
    /// Its bytes, without a dict's table.
    pub bytes: u64,
    /// Its length, where it has one.
    pub length: Option<u64>,
    /// Who refers to it: types and addresses, a few of them.
    pub referrers: Vec<String>,
}

/// A type whose instances refer to the objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Referrer {
    /// Its name.
    #[serde(rename = "type")]
    pub name: String,
    /// References.
    pub count: u64,
}

/// Shows the largest `n_shown` objects of the type that is called `name`, with its module or without.
pub fn show(
    pid: Pid,
    interpreter: &Interpreter,
    name: &str,
    n_shown: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Shown, HeapError> {
    let layout = layout_of(interpreter)?;
    let memory = QuietMemory::of_process(pid).map_err(|source| proc_error(pid, source))?;
    let n_all = memory.resident.n_bytes() * 4;
    let mut n_done = 0;
    let mut advance = |n_bytes: u64| {
        n_done += n_bytes;
        progress(n_done, n_all);
        ControlFlow::Continue(())
    };
    let advance: Progress<'_> = &mut advance;
    let types = scan::find_types(&memory, &layout, advance)?
        .ok_or(HeapError::NoTypes(memory.resident.n_bytes()))?;
    let wanted: HashSet<u32> = (0_u32..)
        .zip(types.all())
        .filter(|(_, info)| {
            let called = type_name(&memory, &layout, info);
            called.qualname == name || format!("{}.{}", called.module, called.qualname) == name
        })
        .map(|(idx, _)| idx)
        .collect();
    let mut instances = Instances {
        types: wanted,
        n_shown: n_shown.min(MAX_SHOWN),
        n_objects: 0,
        largest: BinaryHeap::new(),
    };
    scan::scan(&memory, &layout, &types, &mut instances, advance)?;
    let mut places = Places {
        targets: instances.largest.iter().map(|object| object.0.1).collect(),
        found: BTreeMap::new(),
        n_more: 0,
    };
    scan::scan(&memory, &layout, &types, &mut places, advance)?;
    let mut owners = Owners {
        layout,
        places: places.found,
        owned: HashMap::new(),
        tables: Vec::new(),
    };
    scan::scan(&memory, &layout, &types, &mut owners, advance)?;
    Ok(shown(
        &memory,
        &layout,
        &types,
        name,
        instances,
        &owners,
        places.n_more,
    ))
}

fn shown(
    memory: &QuietMemory,
    layout: &HeapLayout,
    types: &TypeTable,
    name: &str,
    instances: Instances,
    owners: &Owners,
    n_more: u64,
) -> Shown {
    /// Referrers of one object that are named.
    const MAX_NAMED: usize = 5;
    let mut names: HashMap<u32, String> = HashMap::new();
    let mut name_of = |idx: u32| {
        names
            .entry(idx)
            .or_insert_with(|| {
                let called = type_name(memory, layout, &types.all()[idx as usize]);
                full_name(&called.module, &called.qualname)
            })
            .clone()
    };
    let mut by_target: HashMap<u64, Vec<String>> = HashMap::new();
    let mut by_type: HashMap<String, u64> = HashMap::new();
    let mut other_references = n_more;
    for (place, target) in &owners.places {
        let Some((owner, type_idx)) = owners.owned.get(place) else {
            other_references += 1;
            continue;
        };
        let owner_name = name_of(*type_idx);
        let shown = by_target.entry(*target).or_default();
        if shown.len() < MAX_NAMED {
            shown.push(format!("{owner_name} at {owner}"));
        }
        *by_type.entry(owner_name).or_default() += 1;
    }
    let mut referrers: Vec<Referrer> = by_type
        .into_iter()
        .map(|(name, count)| Referrer { name, count })
        .collect();
    referrers.sort_by(|a, b| (b.count, &a.name).cmp(&(a.count, &b.name)));
    let mut largest: Vec<_> = instances
        .largest
        .into_iter()
        .map(|object| object.0)
        .collect();
    largest.sort_unstable_by_key(|(bytes, address, _)| (Reverse(*bytes), *address));
    Shown {
        name: name.to_owned(),
        n_objects: instances.n_objects,
        objects: largest
            .into_iter()
            .map(|(bytes, address, length)| ShownObject {
                address: Address(address).to_string(),
                bytes,
                length,
                referrers: by_target.remove(&address).unwrap_or_default(),
            })
            .collect(),
        referrers,
        other_references,
        stopped: None,
    }
}

/// As a table.
#[must_use]
pub fn table(shown: &Shown) -> String {
    let mut out = String::new();
    line(
        &mut out,
        format_args!(
            "{}: {} objects, the largest {} of them:\n",
            full_name("builtins", &shown.name),
            thousands(shown.n_objects.cast_signed()),
            shown.objects.len()
        ),
    );
    for object in &shown.objects {
        let length = object
            .length
            .map(|length| format!(", length {}", thousands(length.cast_signed())))
            .unwrap_or_default();
        let by = if object.referrers.is_empty() {
            "nothing that is an object".to_owned()
        } else {
            object.referrers.join(", ")
        };
        line(
            &mut out,
            format_args!(
                "{} {}{length}, from {by}",
                object.address,
                bytes_text(object.bytes.cast_signed())
            ),
        );
    }
    line(
        &mut out,
        format_args!("\n{:>13}  referred to by", "references"),
    );
    for referrer in &shown.referrers {
        let count = thousands(referrer.count.cast_signed());
        line(&mut out, format_args!("{count:>13}  {}", referrer.name));
    }
    let others = thousands(shown.other_references.cast_signed());
    line(
        &mut out,
        format_args!("{others:>13}  no object: frames, stacks, libraries"),
    );
    stopped_line(&mut out, shown.stopped.as_ref());
    out
}

/// The objects of some types.
struct Instances {
    types: HashSet<u32>,
    n_shown: usize,
    n_objects: u64,
    /// Bytes, address and length.
    largest: BinaryHeap<Reverse<(u64, u64, Option<u64>)>>,
}

impl Visitor for Instances {
    fn object(&mut self, _info: &TypeInfo, object: &Object<'_>) {
        if !self.types.contains(&object.type_idx) {
            return;
        }
        self.n_objects += 1;
        let found = (object.size.n_bytes, object.address.0, object.size.length);
        self.largest.push(Reverse(found));
        if self.largest.len() > self.n_shown {
            self.largest.pop();
        }
    }

    fn end_of_window(&mut self, _memory: &QuietMemory) -> Result<(), MemoryError> {
        Ok(())
    }
}

/// The words that are the address of an object.
struct Places {
    targets: HashSet<u64, FixedState>,
    /// From where the word is to what it refers to.
    found: BTreeMap<u64, u64>,
    n_more: u64,
}

impl Visitor for Places {
    fn object(&mut self, _info: &TypeInfo, _object: &Object<'_>) {}

    fn words(&mut self, address: Address, bytes: &[u8]) {
        let mut at = address.0;
        for chunk in bytes.as_chunks::<8>().0 {
            let value = u64::from_le_bytes(*chunk);
            if value > 0xfff && self.targets.contains(&value) {
                if self.found.len() < MAX_PLACES {
                    self.found.insert(at, value);
                } else {
                    self.n_more += 1;
                }
            }
            at += 8;
        }
    }

    fn end_of_window(&mut self, _memory: &QuietMemory) -> Result<(), MemoryError> {
        Ok(())
    }
}

/// A dict whose table may hold a place.
struct Table {
    keys: Address,
    /// Its values, where they are apart.
    values: u64,
    owner: (Address, u32),
}

/// Whose memory the places lie in.
struct Owners {
    layout: HeapLayout,
    places: BTreeMap<u64, u64>,
    owned: HashMap<u64, (Address, u32)>,
    tables: Vec<Table>,
}

impl Owners {
    fn own(&mut self, start: u64, n_bytes: u64, owner: (Address, u32)) {
        let end = start.saturating_add(n_bytes);
        for (place, _) in self.places.range(start..end) {
            self.owned.insert(*place, owner);
        }
    }

    fn has_any(&self, start: u64, n_bytes: u64) -> bool {
        let end = start.saturating_add(n_bytes);
        self.places.range(start..end).next().is_some()
    }
}

impl Visitor for Owners {
    fn object(&mut self, info: &TypeInfo, object: &Object<'_>) {
        let owner = (object.address, object.type_idx);
        self.own(object.address.0, object.size.own_bytes, owner);
        let field = |at: usize| word(object.bytes, at).unwrap_or(0);
        match info.size_rule {
            SizeRule::List => self.own(field(24), field(32).saturating_mul(8), owner),
            SizeRule::Set => {
                let n_bytes = field(32).saturating_add(1).saturating_mul(16);
                self.own(field(40), n_bytes, owner);
            }
            SizeRule::Dict => {
                if let Some(Elsewhere::Keys { table, has_values }) = object.size.elsewhere {
                    let values = if has_values { field(40) } else { 0 };
                    let is_near = |start| self.has_any(start, MAX_TABLE_BYTES);
                    if is_near(table.0) || is_near(values) {
                        self.tables.push(Table {
                            keys: table,
                            values,
                            owner,
                        });
                    }
                }
            }
            SizeRule::Items
            | SizeRule::Int
            | SizeRule::Str
            | SizeRule::ByteArray
            | SizeRule::Deque
            | SizeRule::Array
            | SizeRule::Generator
            | SizeRule::Frame
            | SizeRule::Type => {}
        }
        if info.flags & flags::MANAGED_DICT == 0 {
            return;
        }
        // The values of an instance's attributes: a pointer in front (3.11), the same tagged (3.12).
        let values = match self.layout.version {
            (3, 11) => word(object.front, 0),
            (3, 12) => word(object.front, 8)
                .filter(|word| word & 1 == 1)
                .map(|word| word + 1),
            _ => None,
        };
        if let Some(values) = values.filter(|values| *values != 0) {
            self.own(values, info.n_values * 8, owner);
        }
    }

    fn end_of_window(&mut self, memory: &QuietMemory) -> Result<(), MemoryError> {
        let tables = std::mem::take(&mut self.tables);
        let addresses: Vec<Address> = tables.iter().map(|table| table.keys).collect();
        let layout: KeysLayout = self.layout.keys;
        memory.read_pieces(&addresses, KEYS_HEAD_BYTES, &mut |idx, head| {
            if let (Some(table), Some(keys)) = (tables.get(idx), keys_bytes(layout, head)) {
                self.own(table.keys.0, keys.n_bytes, table.owner);
                let n_values = keys.n_usable.max(keys.n_shared).min(MAX_VALUES);
                self.own(table.values, n_values * 8, table.owner);
            }
        })
    }
}
