//! What threads are called. A name becomes known while a thread runs already, and a thread may get another one: when a
//! profile is finished each thread has one name in it, the best and then the newest that was told.
//!
//! A thread is told from others by its id and the moment at which it began, so that one that gets the id of another does not
//! get its name. Of what has no such moment every name stays as it was told.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use indexmap::IndexMap;

use super::intern::Table;
use super::model::{LabelSet, LabelSetId, LabelValue, Labels, ProcessId, StringId};

/// The name of a thread, and how good it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ThreadName {
    /// The name.
    pub text: Box<str>,
    /// Whether it is better than others.
    pub rank: NameRank,
}

/// Which of two names of a thread it is called by: the larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct NameRank {
    /// It is `threading`'s, not one that the kernel has for the thread.
    pub is_own: bool,
    /// When it was seen, on the clock of whoever tells names; a newer one has a larger number.
    pub seen: u64,
}

/// A name of which nothing else is known.
impl From<&str> for ThreadName {
    fn from(text: &str) -> Self {
        Self {
            text: text.into(),
            rank: NameRank::default(),
        }
    }
}

/// A name of which nothing else is known.
impl From<String> for ThreadName {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// A thread among all that ran since the host was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ThreadKey {
    /// Its process. The same program can be several rows of the table of processes, so it is not one of those.
    pub(super) pid: u32,
    /// Its id.
    pub(super) tid: i64,
    /// When it began, in nanoseconds since boot; not 0.
    pub(super) started_ns: u64,
}

/// Names that were told.
#[derive(Debug, Default)]
pub(super) struct ThreadNames {
    by_thread: HashMap<ThreadKey, (NameRank, StringId), RandomState>,
}

/// Sets of labels in which each thread has one name.
#[derive(Debug)]
pub(super) struct Settled {
    /// The sets, each of them once.
    pub(super) sets: Vec<LabelSet>,
    /// The new id of each old one.
    pub(super) ids: Vec<LabelSetId>,
}

impl ThreadNames {
    /// A name of a thread.
    pub(super) fn tell(&mut self, thread: ThreadKey, rank: NameRank, name: StringId) {
        let known = self.by_thread.entry(thread).or_insert((rank, name));
        if rank >= known.0 {
            *known = (rank, name);
        }
    }

    /// Gives each thread its name. `key` says whose a set is, `label` is the id of the text `thread_name`. `None`: nothing
    /// changes. Sets that say the same afterwards are one, of the thread that came last.
    pub(super) fn settle(
        &self,
        sets: &Table<LabelSet>,
        label: StringId,
        key: impl Fn(&LabelSet) -> Option<ThreadKey>,
    ) -> Option<Settled> {
        if self.by_thread.is_empty() {
            return None;
        }
        let mut settled: IndexMap<(ProcessId, Labels), u64, RandomState> = IndexMap::default();
        let mut ids = Vec::new();
        let mut is_renamed = false;
        for set in sets.iter() {
            let mut labels = set.labels.clone();
            let name = key(set).and_then(|thread| self.by_thread.get(&thread));
            let value = labels.iter_mut().find(|(found, _)| *found == label);
            if let (Some((_, name)), Some((_, value))) = (name, value)
                && *value != LabelValue::Str(*name)
            {
                *value = LabelValue::Str(*name);
                is_renamed = true;
            }
            let entry = settled.entry((set.process, labels));
            ids.push(LabelSetId(entry.index() as u32));
            *entry.or_default() = set.thread_started_ns;
        }
        let is_same = !is_renamed && settled.len() == ids.len();
        let set = |((process, labels), thread_started_ns)| LabelSet {
            process,
            thread_started_ns,
            labels,
        };
        (!is_same).then(|| Settled {
            sets: settled.into_iter().map(set).collect(),
            ids,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: StringId = StringId(1);

    fn set(tid: i64, started_ns: u64, name: u32) -> LabelSet {
        LabelSet {
            process: ProcessId(0),
            thread_started_ns: started_ns,
            labels: [
                (StringId(0), LabelValue::Num(tid)),
                (LABEL, LabelValue::Str(StringId(name))),
            ]
            .into(),
        }
    }

    fn key(set: &LabelSet) -> Option<ThreadKey> {
        let LabelValue::Num(tid) = set.labels[0].1 else {
            return None;
        };
        (set.thread_started_ns != 0).then_some(ThreadKey {
            pid: 1,
            tid,
            started_ns: set.thread_started_ns,
        })
    }

    /// Sets by thread, begin and name; and ranks in which the names were told.
    fn settled(told: &[(i64, u64, u32, (bool, u64))]) -> Option<Settled> {
        let (mut names, mut sets) = (ThreadNames::default(), Table::default());
        for (tid, started_ns, name, (is_own, seen)) in told {
            let set = set(*tid, *started_ns, *name);
            let rank = NameRank {
                is_own: *is_own,
                seen: *seen,
            };
            if let Some(thread) = key(&set) {
                names.tell(thread, rank, StringId(*name));
            }
            sets.intern(set);
        }
        names.settle(&sets, LABEL, key)
    }

    #[test]
    fn a_thread_has_its_last_own_name_whatever_was_told_when() {
        let kernel = (7, 100, 50, (false, 9));
        let (first, last) = ((7, 100, 51, (true, 1)), (7, 100, 52, (true, 2)));
        for told in [[kernel, first, last], [last, kernel, first]] {
            let settled = settled(&told).unwrap();
            assert_eq!(settled.sets, [set(7, 100, 52)]);
            assert_eq!(settled.ids, [LabelSetId(0); 3]);
        }
    }

    #[test]
    fn who_gets_the_id_of_another_thread_does_not_get_its_name() {
        let told = [
            (7, 100, 50, (true, 1)),
            (7, 200, 51, (false, 2)),
            (8, 100, 52, (false, 2)),
            (7, 0, 53, (false, 3)),
        ];
        assert!(settled(&told).is_none());
    }

    #[test]
    fn sets_that_say_the_same_are_one_of_the_thread_that_came_last() {
        let told = [
            (7, 100, 50, (true, 1)),
            (8, 100, 50, (true, 1)),
            (7, 200, 50, (true, 2)),
        ];
        let settled = settled(&told).unwrap();
        assert_eq!(settled.sets, [set(7, 200, 50), set(8, 100, 50)]);
        assert_eq!(settled.ids, [0, 1, 0].map(LabelSetId));
    }
}
