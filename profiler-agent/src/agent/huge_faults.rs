//! Page faults that made a huge page resident. That the page is huge now does not tell that the fault made it so: the
//! kernel puts small pages together soon after they were touched (khugepaged), some eight of a host in ten seconds. It
//! says when; a fault just before counts as a small one.

use crate::ids::{Address, Generation, Pid};
use crate::process::huge_pages::{HugePages, PagemapOpener};
use crate::profile::aggregate::ResolvedSample;
use crate::sample::decode::RawSample;

/// What was not counted with a sample: the rest of a huge page.
#[derive(Debug)]
pub(super) struct Rest {
    /// When the sample was taken, and of which program; without its parts.
    pub(super) time_ns: u64,
    pub(super) generation: Generation,
    /// The stack of the sample, with no further fault and the bytes that are to be added.
    pub(super) resolved: ResolvedSample,
}

/// A sampled fault that may have made a huge page resident.
#[derive(Debug)]
struct Looked {
    /// Nanoseconds since boot. The kernel may have put the page together since the sample, and said so in a record that
    /// was not read yet.
    at_ns: u64,
    pid: Pid,
    address: Address,
    /// Nothing was there: it was not touched yet, or is gone again.
    is_absent: bool,
    rest: Rest,
}

/// Looks sampled faults up.
#[derive(Debug, Default)]
pub(super) struct HugeFaults {
    pages: HugePages,
    looked: Vec<Looked>,
    /// When the kernel last put small pages together.
    collapsed_ns: u64,
    n_uncounted: u64,
    n_gone: u64,
}

impl HugeFaults {
    /// Looks up what `open` opens.
    pub(super) fn new(open: PagemapOpener) -> Self {
        Self {
            pages: HugePages::new(open),
            ..Self::default()
        }
    }

    /// Bytes that each fault of a sample made resident for certain; `now_ns` is the time, in nanoseconds since boot. Those
    /// of a huge page are kept back, with the stack that `resolved` says.
    pub(super) fn look(
        &mut self,
        sample: &RawSample,
        now_ns: u64,
        resolved: &ResolvedSample,
    ) -> u64 {
        let (small, huge) = (self.pages.small_bytes(), self.pages.huge_bytes());
        let page_bytes = self
            .pages
            .page_bytes(sample.pid, sample.generation, sample.address);
        if huge > small && page_bytes.is_none_or(|n_bytes| n_bytes >= huge) {
            let more = sample.period.saturating_mul(huge - small);
            let rest = Rest {
                time_ns: sample.time_ns,
                generation: sample.generation,
                resolved: ResolvedSample {
                    values: [0, i64::try_from(more).unwrap_or(i64::MAX)].into(),
                    ..resolved.clone()
                },
            };
            self.looked.push(Looked {
                at_ns: now_ns,
                pid: sample.pid,
                address: sample.address,
                is_absent: page_bytes.is_none(),
                rest,
            });
            return small;
        }
        // Another number of pages is none that the kernel gives: it is at work there.
        page_bytes
            .filter(|n_bytes| self.pages.has_sizes_between() && n_bytes.is_power_of_two())
            .unwrap_or(small)
    }

    /// The kernel put small pages together.
    pub(super) fn on_collapse(&mut self, time_ns: u64) {
        self.collapsed_ns = self.collapsed_ns.max(time_ns);
    }

    /// What is to be added for the faults that were looked up until `until_ns`, before which every record was read.
    pub(super) fn settled(&mut self, until_ns: u64) -> Vec<Rest> {
        let settled: Vec<_> = self
            .looked
            .extract_if(.., |looked| looked.at_ns <= until_ns)
            .collect();
        self.huge(settled)
    }

    /// Forgets a program that has ended, and gives what is to be added for it.
    pub(super) fn take(&mut self, generation: Generation) -> Vec<Rest> {
        let taken: Vec<_> = self
            .looked
            .extract_if(.., |looked| looked.rest.generation == generation)
            .collect();
        let rests = self.huge(taken);
        self.pages.remove(generation);
        rests
    }

    /// Sampled faults in huge pages that count as small ones.
    pub(super) fn n_uncounted(&self) -> u64 {
        self.n_uncounted
    }

    /// Sampled faults that count as small ones because the memory was gone when it was looked at.
    pub(super) fn n_gone(&self) -> u64 {
        self.n_gone
    }

    fn huge(&mut self, looked: Vec<Looked>) -> Vec<Rest> {
        let mut rests = Vec::new();
        for looked in looked {
            let Looked {
                pid, address, rest, ..
            } = looked;
            if looked.is_absent {
                let found = self.pages.page_bytes(pid, rest.generation, address);
                self.n_gone += u64::from(found.is_none());
                if found.is_none_or(|n_bytes| n_bytes < self.pages.huge_bytes()) {
                    continue;
                }
            }
            // Collapses since the look do not matter, but are too few to tell them apart.
            if rest.time_ns > self.collapsed_ns {
                rests.push(rest);
            } else {
                self.n_uncounted += 1;
            }
        }
        rests
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::profile::aggregate::{ProcessLabels, ThreadLabels};

    /// A sample at `time_ns` whose huge page was seen 10 ns later.
    fn seen(time_ns: u64) -> Looked {
        let labels = ThreadLabels {
            process: Arc::new(ProcessLabels::of_pid(7)),
            tid: 7,
            started_ns: 0,
            thread_name: "".into(),
        };
        let rest = Rest {
            time_ns,
            generation: Generation(1),
            resolved: ResolvedSample {
                frames: Vec::new(),
                labels: Arc::new(labels),
                instruction: None,
                values: [0, 7].into(),
            },
        };
        Looked {
            at_ns: time_ns + 10,
            pid: Pid(7),
            address: Address(0),
            is_absent: false,
            rest,
        }
    }

    fn times(rests: &[Rest]) -> Vec<u64> {
        rests.iter().map(|rest| rest.time_ns).collect()
    }

    fn with(looked: Vec<Looked>) -> HugeFaults {
        HugeFaults {
            looked,
            ..HugeFaults::default()
        }
    }

    #[test]
    fn what_was_touched_before_pages_were_put_together_counts_as_small() {
        let mut faults = with(vec![seen(100), seen(200), seen(300)]);
        faults.on_collapse(200);
        assert_eq!(times(&faults.settled(1000)), [300]);
        assert_eq!(faults.n_uncounted(), 2);
        assert!(faults.settled(1000).is_empty(), "added twice");
    }

    #[test]
    fn nothing_is_added_before_every_record_was_read() {
        let mut faults = with(vec![seen(100), seen(200)]);
        assert_eq!(times(&faults.settled(205)), [100]);
        faults.on_collapse(204);
        assert!(faults.settled(1000).is_empty());
        assert_eq!(faults.n_uncounted(), 1);
    }

    #[test]
    fn what_is_gone_counts_as_small() {
        let absent = Looked {
            is_absent: true,
            ..seen(100)
        };
        let mut faults = with(vec![absent]);
        assert!(faults.settled(1000).is_empty());
        assert_eq!((faults.n_gone(), faults.n_uncounted()), (1, 0));
    }

    #[test]
    fn what_ended_is_added_once() {
        let mut faults = with(vec![seen(100)]);
        assert_eq!(faults.take(Generation(1)).len(), 1);
        assert!(faults.settled(1000).is_empty());
    }
}
