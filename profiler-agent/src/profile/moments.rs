//! When samples were taken, where that was kept. A profile is a sum: this is what a sum loses.
//!
//! 16 bytes a moment, in a table of its own beside the samples: a profile without times pays nothing for it.

use super::model::{MAX_VALUES, Profile, Sample, Values};

/// Most moments of one profile; what comes later is in the sums alone, and counted in a comment. 64 MiB.
pub const MAX_MOMENTS: usize = 4 << 20;

/// When a sample was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Nanoseconds since 1970. Of a CPU sample the end of the time that it stands for.
    pub at_ns: i64,
    /// Its row, an index into [`Profile::samples`].
    pub row: u32,
    /// How much of the row's first value it is; 1 of a CPU sample.
    pub count: u32,
}

/// What of a row's values was not given to its moments yet.
#[derive(Debug, Clone, Copy, Default)]
struct Rest {
    /// What the shares are of: the row's first value, or the sum of its moments where that is more.
    whole: i64,
    /// Of these, what belongs to no moment so far.
    left: i64,
    given: [i64; MAX_VALUES],
}

impl Profile {
    /// Whether it is known of any sample when it was taken.
    #[must_use]
    pub fn has_moments(&self) -> bool {
        !self.moments.is_empty()
    }

    /// Samples of which it is not known when they were taken.
    #[must_use]
    pub fn n_without_time(&self) -> i64 {
        let counts = self.moments.iter().map(|it| i64::from(it.count));
        let n_timed = counts.fold(0, i64::saturating_add);
        self.n_samples().saturating_sub(n_timed).max(0)
    }

    /// The samples one by one in the order in which they were taken, then what has no time. Nothing of the sums is lost:
    /// each moment has its share of its row's values.
    #[must_use = "it does nothing but to look samples up"]
    pub fn one_by_one(&self) -> impl Iterator<Item = (Option<i64>, &Sample, Values)> {
        let mut rests: Vec<Rest> = vec![Rest::default(); self.samples.len()];
        for moment in &self.moments {
            if let Some(rest) = rests.get_mut(moment.row as usize) {
                rest.whole = rest.whole.saturating_add(i64::from(moment.count));
            }
        }
        for (rest, sample) in rests.iter_mut().zip(&self.samples) {
            rest.whole = rest.whole.max(sample.values[0]);
            rest.left = rest.whole;
        }
        let mut moments = self.moments.iter();
        let mut rows = 0..self.samples.len();
        std::iter::from_fn(move || {
            for moment in moments.by_ref() {
                let row = moment.row as usize;
                if let (Some(sample), Some(rest)) = (self.samples.get(row), rests.get_mut(row)) {
                    let share = rest.take(sample.values, i64::from(moment.count));
                    return Some((Some(moment.at_ns), sample, share));
                }
            }
            for row in rows.by_ref() {
                let (sample, rest) = (self.samples.get(row)?, rests.get(row)?);
                let values = rest.rest(sample.values);
                // A row that was never given away is there, even if it says nothing.
                if rest.left == rest.whole || values != Values::default() {
                    return Some((None, sample, values));
                }
            }
            None
        })
    }
}

impl Rest {
    fn take(&mut self, values: Values, count: i64) -> Values {
        self.left = self.left.saturating_sub(count);
        let share = if self.left == 0 {
            self.rest(values)
        } else {
            let share = |idx: usize| {
                let share = i128::from(values[idx]) * i128::from(count);
                (share / i128::from(self.whole.max(1))) as i64
            };
            Values::from(std::array::from_fn::<i64, MAX_VALUES, _>(share))
        };
        for (idx, given) in self.given.iter_mut().enumerate() {
            *given = given.saturating_add(share[idx]);
        }
        share
    }

    fn rest(&self, values: Values) -> Values {
        let rest = |idx: usize| values[idx].saturating_sub(self.given[idx]);
        Values::from(std::array::from_fn::<i64, MAX_VALUES, _>(rest))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::profile::model::{LabelSet, ProcessId, ValueType};
    use crate::profile::tables::{Head, Tables};

    fn profile(rows: &[(i64, i64, Option<i64>)]) -> Profile {
        let mut tables = Tables::default();
        let labels = tables.label_set(LabelSet {
            process: ProcessId(0),
            thread_started_ns: 0,
            labels: [].into(),
        });
        let stack = tables.stack(&[]);
        for (count, value, at_ns) in rows {
            let row = tables.add(stack, labels, [*count, *value].into());
            if let Some(at_ns) = at_ns {
                tables.note(row, *at_ns, *count);
            }
        }
        tables.finish(Head {
            sample_types: &ValueType::CPU_SAMPLES,
            period: 1,
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            comments: Vec::new(),
        })
    }

    proptest! {
        #[test]
        fn one_by_one_is_all_of_it(rows in prop::collection::vec(
            (1_i64..4, -50_i64..50, prop::option::of(any::<i64>())), 1..40,
        )) {
            let profile = profile(&rows);
            let mut sum = Values::default();
            let mut before = Some(i64::MIN);
            for (at_ns, _, values) in profile.one_by_one() {
                sum.add(values);
                // Those without a time come last.
                prop_assert!(before.is_some() || at_ns.is_none());
                prop_assert!(at_ns.is_none() || at_ns >= before);
                before = at_ns;
            }
            prop_assert_eq!(sum, profile.samples[0].values);
            let n_untimed: i64 = rows.iter().filter(|row| row.2.is_none()).map(|row| row.0).sum();
            prop_assert_eq!(profile.n_without_time(), n_untimed);
        }
    }

    #[test]
    fn what_has_no_time_is_one_sample_behind_the_others() {
        let profile = profile(&[(1, 100, Some(7)), (1, 100, Some(3)), (2, 201, None)]);
        let said: Vec<_> = profile
            .one_by_one()
            .map(|(at_ns, _, values)| (at_ns, values[0], values[1]))
            .collect();
        assert_eq!(said, [(Some(3), 1, 100), (Some(7), 1, 100), (None, 2, 201)]);
    }
}
