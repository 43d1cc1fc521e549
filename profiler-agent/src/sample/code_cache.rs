//! What is remembered of one program's code objects, and how much may be spent on learning more.
//!
//! A target decides how many code objects there are and how large they look, so both are bounded: the memory
//! of what is remembered, and the agent's CPU time for reading. Beyond the first the cache starts over; beyond
//! the second frames get a reason instead of a name, so that the samples of other processes do not wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use profiler_common::event::PyFrame;
use rustix::time::{ClockId, clock_gettime};

use crate::python::code::{Code, CodeError};

/// Layers of inherited code objects that are searched one by one; more are merged into one.
const MAX_LAYERS: usize = 4;

/// Memory for the code objects of one program. One of the standard library takes some 700 bytes.
const MAX_BYTES: usize = 16 << 20;

/// Memory of an entry beside its texts and lines.
const ENTRY_BYTES: usize = 256;

/// CPU time for reading that a program has at once: some 20,000 code objects of ordinary size.
const BURST: Duration = Duration::from_millis(500);

/// After that it gets one part in so many of the time that passes.
const SHARE: u32 = 20;

/// A code object by its address and identity.
type Key = (u64, u32);

/// Code objects, with the memory that they take.
#[derive(Debug, Clone, Default)]
struct Layer {
    codes: HashMap<Key, Result<Code, CodeError>, RandomState>,
    n_bytes: usize,
}

impl Layer {
    fn insert(&mut self, key: Key, code: Result<Code, CodeError>) {
        let n_bytes = ENTRY_BYTES + code.as_ref().map_or(0, Code::size_bytes);
        if self.n_bytes + n_bytes > MAX_BYTES {
            *self = Self::default();
        }
        if self.codes.insert(key, code).is_none() {
            self.n_bytes += n_bytes;
        }
    }
}

/// The code objects of one program.
#[derive(Debug)]
pub(super) struct CodeCache {
    own: Layer,
    /// What was known before a fork, shared with the relatives.
    inherited: Vec<Arc<Layer>>,
    budget: Budget,
}

impl CodeCache {
    /// Knows nothing.
    pub(super) fn new() -> Self {
        Self {
            own: Layer::default(),
            inherited: Vec::new(),
            budget: Budget::new(Instant::now()),
        }
    }

    /// The cache of a forked child, which knows what this one knows now.
    pub(super) fn fork(&mut self) -> Self {
        if !self.own.codes.is_empty() {
            self.inherited.push(Arc::new(std::mem::take(&mut self.own)));
        }
        if self.inherited.len() > MAX_LAYERS {
            let mut merged = Layer::default();
            for layer in &self.inherited {
                for (key, code) in &layer.codes {
                    merged.insert(*key, code.clone());
                }
            }
            self.inherited = vec![Arc::new(merged)];
        }
        Self {
            own: Layer::default(),
            inherited: self.inherited.clone(),
            budget: self.budget,
        }
    }

    /// Number of code objects that this program has learned itself.
    pub(super) fn len(&self) -> usize {
        self.own.codes.len()
    }

    /// Memory that it takes, what it shares with others too.
    pub(super) fn n_bytes(&self) -> usize {
        let inherited = self.inherited.iter().map(|layer| layer.n_bytes);
        self.own.n_bytes + inherited.sum::<usize>()
    }

    /// Forgets everything: it is read again when it is needed.
    pub(super) fn forget(&mut self) {
        self.own = Layer::default();
        self.inherited.clear();
    }

    /// The code object of a frame; `read` reads it when it is not known.
    pub(super) fn get(
        &mut self,
        frame: &PyFrame,
        read: impl FnOnce() -> Result<Code, CodeError>,
    ) -> Result<Code, CodeError> {
        let key = (frame.code, frame.identity);
        let inherited = || {
            self.inherited
                .iter()
                .rev()
                .find_map(|layer| layer.codes.get(&key))
        };
        if let Some(code) = self.own.codes.get(&key).or_else(inherited) {
            return code.clone();
        }
        let Some(code) = self.on_budget(read) else {
            return Err(CodeError::OverBudget);
        };
        self.own.insert(key, code.clone());
        code
    }

    /// Reads something else of the program's code objects; `None`: it has used up the time for that.
    pub(super) fn on_budget<T>(&mut self, read: impl FnOnce() -> T) -> Option<T> {
        if !self.budget.allows(Instant::now()) {
            return None;
        }
        let begun = thread_cpu_time();
        let result = read();
        self.budget.spend(thread_cpu_time().saturating_sub(begun));
        Some(result)
    }
}

/// CPU time of this thread: what others on the CPU take does not count.
fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time for the reading of one program's code objects. A forked child begins with what its parent has
/// left: forking is no way to more.
#[derive(Debug, Clone, Copy)]
struct Budget {
    /// Negative after a reading that took more than there was: the debt is waited for.
    left_ns: i64,
    refilled: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            left_ns: nanos(BURST),
            refilled: now,
        }
    }

    /// Whether anything is left.
    fn allows(&mut self, now: Instant) -> bool {
        let gained = nanos(now.saturating_duration_since(self.refilled) / SHARE);
        self.refilled = now;
        self.left_ns = self.left_ns.saturating_add(gained).min(nanos(BURST));
        self.left_ns > 0
    }

    fn spend(&mut self, time: Duration) {
        self.left_ns = self.left_ns.saturating_sub(nanos(time));
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(code: u64) -> PyFrame {
        PyFrame {
            code,
            ..PyFrame::default()
        }
    }

    #[test]
    fn what_is_known_is_read_once_and_a_child_knows_it_too() {
        let mut cache = CodeCache::new();
        for generation in 0..10 {
            assert_eq!(
                cache
                    .get(&frame(generation), || Err(CodeError::Gone))
                    .unwrap_err(),
                CodeError::Gone
            );
            cache = cache.fork();
            for known in 0..=generation {
                let known = cache
                    .get(&frame(known), || Err(CodeError::Denied))
                    .unwrap_err();
                assert_eq!(
                    known,
                    CodeError::Gone,
                    "a second read would have said otherwise"
                );
            }
        }
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn memory_is_bounded_and_over_generations_too() {
        let mut cache = CodeCache::new();
        for code in 0..300_000 {
            drop(cache.get(&frame(code), || Err(CodeError::Gone)));
            if code % 50_000 == 0 {
                cache = cache.fork();
            }
        }
        let n_bytes = cache.own.n_bytes
            + cache
                .inherited
                .iter()
                .map(|layer| layer.n_bytes)
                .sum::<usize>();
        assert!(n_bytes <= (MAX_LAYERS + 1) * MAX_BYTES, "{n_bytes}");
        assert!(cache.own.n_bytes > 0);
    }

    #[test]
    fn a_budget_is_spent_and_comes_back_with_time() {
        let begun = Instant::now();
        let after = |millis| begun + Duration::from_millis(millis);
        let mut budget = Budget::new(begun);
        assert!(budget.allows(begun));
        budget.spend(BURST + Duration::from_millis(50));
        assert!(!budget.allows(begun));
        assert!(
            !budget.allows(after(900)),
            "a debt of 50 ms is paid back in a second"
        );
        assert!(budget.allows(after(1_100)));
        budget.spend(Duration::from_millis(6));
        assert!(!budget.allows(after(1_100)));
        assert!(budget.allows(begun + Duration::from_hours(1)));
        assert_eq!(budget.left_ns, nanos(BURST), "no more than at the start");
    }
}
