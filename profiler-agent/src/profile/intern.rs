//! Interning: equal things get one id, in the order in which they were first seen.
//!
//! Two kinds of table. [`Table`] compares content. [`SharedTable`] sits before it and compares addresses of
//! `Arc`s, which is what makes a repeated stack cheap: a frame that was seen before costs one hash of three
//! words, whatever the length of its names.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::fast::RandomState;
use indexmap::IndexSet;

/// A set of distinct values, each with a number: its place in the order of arrival.
#[derive(Debug, Clone)]
pub(super) struct Table<T: Eq + Hash> {
    values: IndexSet<T, RandomState>,
}

impl<T: Eq + Hash> Default for Table<T> {
    fn default() -> Self {
        Self {
            values: IndexSet::default(),
        }
    }
}

impl<T: Eq + Hash> FromIterator<T> for Table<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self {
            values: values.into_iter().collect(),
        }
    }
}

impl<T: Eq + Hash> Table<T> {
    /// The number of `value`, which is added when it is new.
    ///
    /// Numbers are 32 bits wide: the aggregation's bound on the sum of stack lengths keeps every table far
    /// below that.
    pub(super) fn intern(&mut self, value: T) -> u32 {
        self.values.insert_full(value).0 as u32
    }

    /// The number of `value` when it is known.
    pub(super) fn number(&self, value: &T) -> Option<u32> {
        self.values.get_index_of(value).map(|idx| idx as u32)
    }

    /// The value with this number.
    pub(super) fn value(&self, number: u32) -> Option<&T> {
        self.values.get_index(number as usize)
    }

    /// The values in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.values.iter()
    }

    /// The values, ordered by number.
    pub(super) fn into_vec(self) -> Vec<T> {
        self.values.into_iter().collect()
    }
}

impl Table<Box<str>> {
    /// The number of this text when it is known.
    pub(super) fn number_of_str(&self, text: &str) -> Option<u32> {
        self.values.get_index_of(text).map(|idx| idx as u32)
    }

    /// As [`Table::intern`]; allocates only when the text is new.
    pub(super) fn intern_str(&mut self, text: &str) -> u32 {
        match self.values.get_index_of(text) {
            Some(idx) => idx as u32,
            None => self.intern(text.into()),
        }
    }
}

impl<T: Clone + Eq + Hash> Table<Box<[T]>> {
    /// As [`Table::intern`]; allocates only when the sequence is new. The flag says whether it was.
    pub(super) fn intern_slice(&mut self, values: &[T]) -> (u32, bool) {
        match self.values.get_index_of(values) {
            Some(idx) => (idx as u32, false),
            None => (self.intern(values.into()), true),
        }
    }

    /// The number of this sequence when it is known.
    pub(super) fn get(&self, values: &[T]) -> Option<u32> {
        self.values.get_index_of(values).map(|idx| idx as u32)
    }
}

/// What is known of a shared value, found by its address.
///
/// The table keeps a reference to each value that it has seen: an address in it cannot be given to another
/// value while the table lives.
#[derive(Debug)]
pub(super) struct SharedTable<T, Id> {
    known: HashMap<usize, (Arc<T>, Id), RandomState>,
}

impl<T, Id> Default for SharedTable<T, Id> {
    fn default() -> Self {
        Self {
            known: HashMap::default(),
        }
    }
}

impl<T, Id: Copy> SharedTable<T, Id> {
    /// The id of `value`; `intern` is asked for it at the first sight of this address.
    pub(super) fn get_or_insert_with(
        &mut self,
        value: &Arc<T>,
        intern: impl FnOnce(&T) -> Id,
    ) -> Id {
        self.known
            .entry(address_of(value))
            .or_insert_with(|| (Arc::clone(value), intern(value)))
            .1
    }

    /// The values that were seen, and their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<T>, Id)> {
        self.known.values().map(|(value, id)| (value, *id))
    }
}

/// Where the shared value lies: its identity for as long as somebody keeps it alive.
pub(super) fn address_of<T>(value: &Arc<T>) -> usize {
    Arc::as_ptr(value).addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_get_one_number_in_order_of_arrival() {
        let mut table = Table::default();
        assert_eq!(table.intern_str("b"), 0);
        assert_eq!(table.intern_str("a"), 1);
        assert_eq!(table.intern_str("b"), 0);
        assert_eq!(table.into_vec(), vec![Box::from("b"), Box::from("a")]);
    }

    #[test]
    fn a_shared_value_is_interned_once_for_each_address() {
        let mut table = SharedTable::default();
        let first = Arc::new(5);
        let mut n_asked = 0;
        for _ in 0..3 {
            let id = table.get_or_insert_with(&first, |value| {
                n_asked += 1;
                *value
            });
            assert_eq!(id, 5);
        }
        assert_eq!(n_asked, 1);
    }

    #[test]
    fn an_address_in_the_table_is_not_given_to_another_value() {
        let mut table = SharedTable::default();
        for number in 0..1000_u64 {
            // Each value dies at the end of its turn but for the table's reference.
            let value = Arc::new(number);
            assert_eq!(table.get_or_insert_with(&value, |value| *value), number);
        }
    }
}
