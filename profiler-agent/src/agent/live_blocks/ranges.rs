//! Values that belong to ranges of addresses, which come and go as mappings do: a range may be given back in part, from
//! the middle too, and a new one may replace what was there.

use std::collections::BTreeMap;

/// What can be divided with its range.
pub(super) trait Divide {
    /// Takes `part` of `whole` out of it, and returns that. What cannot be divided stays.
    fn take(&mut self, part: u64, whole: u64) -> Self;
}

/// Ranges that do not overlap, by their begin: their end, exclusive, and their value.
#[derive(Debug)]
pub(super) struct Ranges<T>(BTreeMap<u64, (u64, T)>);

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Divide> Ranges<T> {
    /// Adds a range, in place of what was there, which is returned.
    pub(super) fn insert(&mut self, start: u64, n_bytes: u64, value: T) -> Vec<T> {
        let Some(end) = start.checked_add(n_bytes).filter(|end| *end > start) else {
            return Vec::new();
        };
        let replaced = self.remove(start, n_bytes);
        self.0.insert(start, (end, value));
        replaced
    }

    /// Removes a range, which may be any; returns the values that went with it, in the order of their addresses.
    pub(super) fn remove(&mut self, start: u64, n_bytes: u64) -> Vec<T> {
        let end = start.saturating_add(n_bytes);
        let before = self.0.range(..start).next_back();
        let first = before
            .filter(|(_, (before_end, _))| *before_end > start)
            .map_or(start, |(before_start, _)| *before_start);
        let touched: Vec<u64> = self.0.range(first..end).map(|(start, _)| *start).collect();
        let mut removed = Vec::new();
        for old_start in touched {
            let Some((old_end, mut value)) = self.0.remove(&old_start) else {
                continue;
            };
            let (cut_start, cut_end) = (old_start.max(start), old_end.min(end));
            let n_left = old_end - cut_end;
            let n_old = old_end - old_start;
            if n_left > 0 && cut_start > old_start {
                let behind = value.take(n_left, n_old);
                self.0.insert(cut_end, (old_end, behind));
                removed.push(value.take(cut_end - cut_start, n_old - n_left));
                self.0.insert(old_start, (cut_start, value));
            } else if n_left > 0 {
                removed.push(value.take(cut_end - cut_start, n_old));
                self.0.insert(cut_end, (old_end, value));
            } else if cut_start > old_start {
                removed.push(value.take(cut_end - cut_start, n_old));
                self.0.insert(old_start, (cut_start, value));
            } else {
                removed.push(value);
            }
        }
        removed
    }

    /// Every value.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.values().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of one owner.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Owned(u32, u64);

    impl Divide for Owned {
        fn take(&mut self, part: u64, whole: u64) -> Self {
            assert_eq!(self.1, whole);
            self.1 -= part;
            Self(self.0, part)
        }
    }

    #[test]
    fn a_part_is_taken_from_the_middle_and_from_both_ends() {
        let mut ranges = Ranges::default();
        assert!(ranges.insert(100, 100, Owned(1, 100)).is_empty());
        assert_eq!(ranges.remove(140, 20), [Owned(1, 20)]);
        assert_eq!(ranges.remove(90, 20), [Owned(1, 10)]);
        assert_eq!(ranges.remove(195, 100), [Owned(1, 5)]);
        assert!(ranges.remove(0, 100).is_empty() && ranges.remove(u64::MAX, 5).is_empty());
        let left: u64 = ranges.values().map(|owned| owned.1).sum();
        assert_eq!(left, 65);
        assert_eq!(ranges.insert(0, 1000, Owned(2, 1000)).len(), 2);
    }

    proptest! {
        #[test]
        fn it_is_what_a_byte_by_byte_map_says(
            steps in proptest::collection::vec((any::<bool>(), 0_u64..60, 1_u64..30), 1..60)
        ) {
            let mut ranges = Ranges::default();
            let mut bytes = [0_u32; 100];
            for (owner, (is_new, start, n_bytes)) in (1..).zip(steps) {
                let here = &mut bytes[start as usize..(start + n_bytes) as usize];
                let there = here.iter().filter(|owner| **owner != 0).count() as u64;
                let removed = if is_new {
                    ranges.insert(start, n_bytes, Owned(owner, n_bytes))
                } else {
                    ranges.remove(start, n_bytes)
                };
                prop_assert_eq!(removed.iter().map(|owned| owned.1).sum::<u64>(), there);
                here.fill(if is_new { owner } else { 0 });
                for owner in 1..=owner {
                    let expected = bytes.iter().filter(|it| **it == owner).count() as u64;
                    let held = ranges.values().filter(|it| it.0 == owner);
                    prop_assert_eq!(held.map(|it| it.1).sum::<u64>(), expected);
                }
            }
        }
    }
}
