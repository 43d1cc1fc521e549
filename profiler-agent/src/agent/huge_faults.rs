//! Page faults that made a huge page resident. That the page is huge now does not tell that the fault made it so: the
//! kernel puts small pages together soon after they were touched (khugepaged). But who touches small pages of one
//! huge page takes several faults in it, one after the other, while a huge fault has the next one elsewhere.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ids::{Address, Generation, Tid};
use crate::profile::aggregate::ResolvedSample;
use crate::sample::decode::RawSample;

/// A fault counts as huge when its thread has touched nothing else of the page for so long.
const PATIENCE: Duration = Duration::from_secs(1);

/// A thread without a fault for so long is forgotten.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Most threads that are followed; beyond, no fault of another thread is taken for a huge one.
const MAX_THREADS: usize = 4096;

/// What was not counted with a sample yet: the rest of a huge page.
#[derive(Debug)]
pub(super) struct Rest {
    /// When the sample was taken, and of which program; without its parts.
    pub(super) time_ns: u64,
    pub(super) generation: Generation,
    /// The stack of the sample, with no further fault and the bytes that are to be added.
    pub(super) resolved: ResolvedSample,
}

/// The last fault of a thread.
#[derive(Debug)]
struct Last {
    seen: Instant,
    address: u64,
    /// Of the page that it lay in.
    page_bytes: u64,
    rest: Option<Rest>,
}

/// Follows the faults of threads.
#[derive(Debug, Default)]
pub(super) struct HugeFaults {
    threads: HashMap<(Generation, Tid), Last>,
}

impl HugeFaults {
    /// Takes a sample that lies in a page of `page_bytes` now, and was counted as `small_bytes` for each fault. Gives
    /// what is to be added for the sample before it.
    pub(super) fn on_sample(
        &mut self,
        sample: &RawSample,
        resolved: &ResolvedSample,
        small_bytes: u64,
        page_bytes: u64,
    ) -> Option<Rest> {
        let Address(address) = sample.address;
        let key = (sample.generation, sample.tid);
        let is_huge = page_bytes > small_bytes;
        if !self.threads.contains_key(&key) && self.threads.len() >= MAX_THREADS {
            return None;
        }
        let before = self.threads.remove(&key);
        let is_near = |last: &Last| {
            let larger = page_bytes.max(last.page_bytes).max(1);
            address / larger == last.address / larger
        };
        let is_first = before.as_ref().is_none_or(|last| !is_near(last));
        let more = sample
            .period
            .saturating_mul(page_bytes - small_bytes.min(page_bytes));
        let rest = (is_huge && is_first).then(|| Rest {
            time_ns: sample.time_ns,
            generation: sample.generation,
            resolved: ResolvedSample {
                values: [0, i64::try_from(more).unwrap_or(i64::MAX)],
                ..resolved.clone()
            },
        });
        let last = Last {
            seen: Instant::now(),
            address,
            page_bytes,
            rest,
        };
        self.threads.insert(key, last);
        // The page of the one before may have been small ones: then this one lies in it too.
        before.and_then(|last| last.rest).filter(|_| is_first)
    }

    /// What is to be added since nothing came after it; with `all` also what is young.
    pub(super) fn settled(&mut self, all: bool) -> Vec<Rest> {
        let is_settled = |last: &&mut Last| all || last.seen.elapsed() >= PATIENCE;
        let settled = self.threads.values_mut().filter(is_settled);
        let settled = settled.filter_map(|last| last.rest.take()).collect();
        // Threads come and go.
        self.threads.retain(|_, last| last.seen.elapsed() < MAX_AGE);
        settled
    }

    /// Forgets a program that has ended, and gives what is to be added for it.
    pub(super) fn take(&mut self, generation: Generation) -> Vec<Rest> {
        let is_of_it = |(program, _): &(Generation, Tid), _: &mut Last| *program == generation;
        let taken = self.threads.extract_if(is_of_it);
        taken.filter_map(|(_, last)| last.rest).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use profiler_common::event::{KernelStatus, PythonStatus};

    use super::*;
    use crate::ids::Pid;
    use crate::profile::aggregate::ThreadLabels;

    const SMALL: u64 = 4096;
    const HUGE: u64 = 2 << 20;

    fn sample(address: u64) -> (RawSample, ResolvedSample) {
        let raw = RawSample {
            time_ns: address,
            generation: Generation(1),
            pid: Pid(7),
            tid: Tid(7),
            cpu: 0,
            source: 1,
            period: 16,
            address: Address(address),
            user_ip: Address(0),
            thread_state: Address(0),
            frame: Address(0),
            flags: 0,
            python_status: PythonStatus::Complete,
            kernel_status: KernelStatus::UserMode,
            comm: [0; 16],
            registers: None,
            python: Vec::new(),
            kernel: Vec::new(),
        };
        let labels = ThreadLabels {
            pid: 7,
            tid: 7,
            thread_name: "".into(),
            comm: "".into(),
            python_version: "".into(),
            process: Arc::new([]),
        };
        let resolved = ResolvedSample {
            frames: Vec::new(),
            labels: Arc::new(labels),
            values: [16, 16 * SMALL as i64],
        };
        (raw, resolved)
    }

    /// The bytes that are added in all for faults at these places, each with the size of its page at that time.
    fn added(faults: &[(u64, u64)]) -> i64 {
        let mut huge = HugeFaults::default();
        let mut rests = Vec::new();
        for (address, page_bytes) in faults {
            let (raw, resolved) = sample(*address);
            rests.extend(huge.on_sample(&raw, &resolved, SMALL, *page_bytes));
        }
        assert!(huge.settled(false).is_empty(), "it is too early");
        rests.extend(huge.settled(true));
        assert!(rests.iter().all(|rest| rest.resolved.values[0] == 0));
        rests.iter().map(|rest| rest.resolved.values[1]).sum()
    }

    #[test]
    fn huge_pages_far_from_each_other_count_as_huge() {
        let more = 16 * (HUGE - SMALL) as i64;
        assert_eq!(added(&[(0, HUGE)]), more);
        assert_eq!(
            added(&[(0, HUGE), (16 * HUGE, HUGE), (32 * HUGE, HUGE)]),
            3 * more
        );
        assert_eq!(added(&[(0, SMALL), (16 * HUGE, HUGE), (0, SMALL)]), more);
    }

    #[test]
    fn small_pages_that_were_put_together_meanwhile_do_not() {
        let step = 16 * SMALL;
        let faults: Vec<_> = (0..96).map(|idx| (idx * step, HUGE)).collect();
        assert_eq!(added(&faults), 0);
        let mixed: Vec<_> = (0..96)
            .map(|idx| (idx * step, if idx % 3 == 0 { HUGE } else { SMALL }))
            .collect();
        assert_eq!(added(&mixed), 0);
    }

    #[test]
    fn what_ended_is_added_once() {
        let mut huge = HugeFaults::default();
        let (raw, resolved) = sample(0);
        assert!(huge.on_sample(&raw, &resolved, SMALL, HUGE).is_none());
        assert_eq!(huge.take(raw.generation).len(), 1);
        assert!(huge.settled(true).is_empty());
    }
}
