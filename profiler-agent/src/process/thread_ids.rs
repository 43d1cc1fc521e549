//! Thread ids of other pid namespaces: a process in a container calls its threads by other numbers than we do.
//!
//! `NSpid` of `/proc/PID/task/TID/status` (proc_pid_status(5), since 4.1) has a thread's ids from our namespace, the
//! first, to its own, the last.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::facts;
use crate::ids::{Pid, Tid};

/// The ids of a process are read again when one is not known, but not more often than this.
const MIN_AGE: Duration = Duration::from_millis(100);

/// An id can be given to another thread: what is known is read again after this long.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Ids of threads by those of their own namespace, for processes whose namespace is not ours.
#[derive(Debug, Default)]
pub struct ThreadIds {
    by_process: HashMap<Pid, Known>,
}

#[derive(Debug)]
struct Known {
    read: Instant,
    /// By the id in the namespace of the process; empty when that is ours.
    by_inner: HashMap<Tid, Tid>,
    is_ours: bool,
}

impl ThreadIds {
    /// Our id of the thread that its own namespace calls `inner`; `None` when there is no such thread.
    pub fn outer(&mut self, pid: Pid, inner: Tid) -> Option<Tid> {
        if let Some(known) = self.by_process.get(&pid) {
            let age = known.read.elapsed();
            match known.outer(inner) {
                Some(outer) if age < MAX_AGE => return Some(outer),
                None if age < MIN_AGE => return None,
                Some(_) | None => {}
            }
        }
        let known = Known::read(pid)?;
        let outer = known.outer(inner);
        self.by_process.insert(pid, known);
        outer
    }
}

impl ThreadIds {
    /// What the own namespace of a process calls these threads of it.
    #[must_use]
    pub fn inner_ids(pid: Pid, tids: &[Tid]) -> HashSet<Tid> {
        let ids = tids.iter().filter_map(|tid| namespace_ids(pid, *tid));
        ids.filter_map(|ids| ids.last().copied()).collect()
    }
}

impl Known {
    fn outer(&self, inner: Tid) -> Option<Tid> {
        if self.is_ours {
            Some(inner)
        } else {
            self.by_inner.get(&inner).copied()
        }
    }

    fn read(pid: Pid) -> Option<Self> {
        let is_ours = matches!(namespace_ids(pid, Tid(pid.0))?.as_slice(), [_]);
        let by_inner = if is_ours {
            HashMap::new()
        } else {
            let tids = facts::tids(pid).ok()?.into_iter();
            tids.filter_map(|tid| Some((*namespace_ids(pid, tid)?.last()?, tid)))
                .collect()
        };
        Some(Self {
            read: Instant::now(),
            by_inner,
            is_ours,
        })
    }
}

/// The ids of a thread, from our namespace to its own.
fn namespace_ids(pid: Pid, tid: Tid) -> Option<Vec<Tid>> {
    let ids = facts::status_field(&format!("/proc/{pid}/task/{tid}/status"), "NSpid:")?;
    let ids = ids.split_ascii_whitespace();
    ids.map(|id| id.parse().ok().map(Tid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_our_own_namespace_ids_are_the_same() {
        let own = Pid(std::process::id());
        let tid = Tid(rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .cast_unsigned());
        assert_eq!(ThreadIds::default().outer(own, tid), Some(tid));
        assert_eq!(ThreadIds::default().outer(Pid(u32::MAX >> 2), tid), None);
    }
}
