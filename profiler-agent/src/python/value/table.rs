//! The entries of dicts, in the order in which a program meets them, and how they are written.

use std::collections::HashMap;

use super::types::{Collection, Kind, MAX_NAME_BYTES};
use super::{MAX_ENTRIES, N_AT_ONCE, Out, Unreadable, Values, read_word};
use crate::ids::Address;
use crate::process::memory::ReadMemory;
use crate::python::thread_name::{Entries, word};

/// What is written of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `key: value`
    Pairs,
    /// `key`
    Keys,
    /// `value`
    Values,
    /// `(key, value)`
    Items,
}

/// Goes through a table in its own order.
#[derive(Debug)]
pub(super) struct Table {
    entries: Entries,
    /// Values that lie apart from the keys.
    values: Option<Address>,
    next: usize,
    piece: [u8; N_AT_ONCE * 24],
    /// There are more entries than are looked at.
    pub(super) is_cut: bool,
}

impl Table {
    pub(super) const fn new(entries: Entries, values: Option<Address>) -> Self {
        Self {
            entries,
            values,
            next: 0,
            piece: [0; N_AT_ONCE * 24],
            is_cut: false,
        }
    }

    /// The next key and value; neither is null.
    pub(super) fn next<M: ReadMemory>(
        &mut self,
        values: &mut Values<'_, M>,
    ) -> Result<Option<(Address, Address)>, Unreadable> {
        let n_entries = self.entries.len.min(MAX_ENTRIES);
        let stride = self.entries.stride;
        while self.next < n_entries {
            let idx = self.next;
            if idx.is_multiple_of(N_AT_ONCE) {
                if !values.spend() {
                    self.is_cut = true;
                    return Ok(None);
                }
                let n_bytes = (n_entries - idx).min(N_AT_ONCE) * stride;
                let start = self.entries.start.add((idx * stride) as u64);
                values.memory.read(start, &mut self.piece[..n_bytes])?;
            }
            self.next += 1;
            let entry = &self.piece[idx % N_AT_ONCE * stride..][..stride];
            let key = word(entry, self.entries.key);
            let value = match self.values {
                Some(apart) => read_word(&values.memory, apart.add(idx as u64 * 8))?,
                None => word(entry, self.entries.key + 8),
            };
            if key != 0 && value != 0 {
                return Ok(Some((Address(key), Address(value))));
            }
        }
        self.is_cut = self.entries.len > n_entries;
        Ok(None)
    }
}

/// The order of a dict's entries.
enum Order {
    OfTable,
    /// Of an OrderedDict: by `_ODictNode`.
    OfNodes {
        node: Address,
        /// Entries that the table has before those that the nodes came to.
        passed: HashMap<Address, Address>,
        n_left: usize,
    },
}

/// Goes through a dict in its order.
pub(super) struct Cursor {
    table: Table,
    order: Order,
}

impl Cursor {
    pub(super) fn next<M: ReadMemory>(
        &mut self,
        values: &mut Values<'_, M>,
    ) -> Result<Option<(Address, Address)>, Unreadable> {
        /// `_ODictNode.next`, behind the key and its hash.
        const NEXT: u64 = 16;
        let Order::OfNodes {
            node,
            passed,
            n_left,
        } = &mut self.order
        else {
            return self.table.next(values);
        };
        if node.is_null() {
            return Ok(None);
        }
        if *n_left == 0 || !values.spend() {
            self.table.is_cut = true;
            return Ok(None);
        }
        *n_left -= 1;
        let key = Address(read_word(&values.memory, *node)?);
        *node = Address(read_word(&values.memory, node.add(NEXT))?);
        if let Some(value) = passed.remove(&key) {
            return Ok(Some((key, value)));
        }
        while let Some((at, value)) = self.table.next(values)? {
            if at == key {
                return Ok(Some((key, value)));
            }
            passed.insert(at, value);
        }
        if self.table.is_cut {
            return Ok(None);
        }
        Err(Unreadable)
    }
}

impl<M: ReadMemory> Values<'_, M> {
    /// The entries of a dict from the first one on.
    pub(super) fn cursor(&mut self, dict: Address) -> Result<Cursor, Unreadable> {
        const MA_VALUES: u64 = 24;
        /// `od_first`, behind the dict.
        const FIRST: u64 = 32;
        let order = match self.facts(dict)?.kind {
            Kind::Collection(Collection::OrderedDict) => Order::OfNodes {
                node: Address(self.field(dict, FIRST)?),
                passed: HashMap::new(),
                n_left: MAX_ENTRIES,
            },
            Kind::Dict | Kind::FrozenDict | Kind::Collection(Collection::DefaultDict) => {
                Order::OfTable
            }
            _ => return Err(Unreadable),
        };
        let entries = self.layout.entries(&self.memory, dict)?;
        let apart = Address(self.field(dict, MA_VALUES)?);
        let values = (!apart.is_null()).then(|| apart.add(self.layout.values_header));
        Ok(Cursor {
            table: Table::new(entries, values),
            order,
        })
    }

    /// Entries of a dict, with commas.
    pub(super) fn entries(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        dict: Address,
        shape: Shape,
    ) -> Result<(), Unreadable> {
        let mut cursor = self.cursor(dict)?;
        let mut is_first = true;
        while let Some((key, value)) = cursor.next(self)? {
            if !out.goes_on(is_first) {
                return Ok(());
            }
            is_first = false;
            let separator = match shape {
                Shape::Keys => {
                    self.write(out, path, key)?;
                    continue;
                }
                Shape::Values => {
                    self.write(out, path, value)?;
                    continue;
                }
                Shape::Pairs => ": ",
                Shape::Items => {
                    out.push("(");
                    ", "
                }
            };
            self.write(out, path, key)?;
            out.push(separator);
            if !out.is_full {
                self.write(out, path, value)?;
            }
            if shape == Shape::Items {
                out.close(")");
            }
        }
        if cursor.table.is_cut {
            out.cut();
        }
        Ok(())
    }

    /// `name=value` of a dict's entries whose keys are names, with commas; `is_first`: nothing stands before them.
    pub(super) fn fields(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        dict: Address,
        mut is_first: bool,
        is_sorted: bool,
    ) -> Result<(), Unreadable> {
        let mut cursor = self.cursor(dict)?;
        let mut fields = Vec::new();
        while let Some((key, value)) = cursor.next(self)? {
            if !is_sorted && fields.len() > out.n_left {
                break;
            }
            if self.facts(key)?.kind == Kind::Str {
                fields.push((self.layout.text(&self.memory, key, MAX_NAME_BYTES)?, value));
            }
        }
        if is_sorted {
            fields.sort();
        }
        for (name, value) in fields.into_iter().filter(|(name, _)| !name.is_empty()) {
            if !out.goes_on(is_first) {
                return Ok(());
            }
            is_first = false;
            out.push(&format!("{name}="));
            if !out.is_full {
                self.write(out, path, value)?;
            }
        }
        if cursor.table.is_cut {
            out.cut();
        }
        Ok(())
    }

    /// What a table has for these names, as far as they are among the first entries.
    pub(super) fn find<const N: usize>(
        &mut self,
        mut table: Table,
        names: [&str; N],
    ) -> Result<[Option<Address>; N], Unreadable> {
        /// They are set when the object is made.
        const MAX_LOOKED_AT: usize = 256;
        let mut found = [None; N];
        for _ in 0..MAX_LOOKED_AT {
            let Some((key, value)) = table.next(self)? else {
                break;
            };
            if !self.spend() {
                break;
            }
            let Ok(name) = self.layout.text(&self.memory, key, MAX_NAME_BYTES) else {
                continue;
            };
            if let Some(idx) = names.iter().position(|it| *it == name) {
                found[idx] = Some(value);
                if found.iter().all(Option::is_some) {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The same of a dict.
    pub(super) fn find_in_dict<const N: usize>(
        &mut self,
        dict: Address,
        names: [&str; N],
    ) -> Result<[Option<Address>; N], Unreadable> {
        let table = self.cursor(dict)?.table;
        self.find(table, names)
    }
}
