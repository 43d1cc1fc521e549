//! The course of a profile whose samples have their times: thread by thread, for viewers that have an axis of time.
//!
//! A sample of the CPU stands for a period. Samples that follow each other within one and a half of them are one stretch in
//! which the thread ran; where it was sampled later than that, it did not run meanwhile. A stretch begins half a period before
//! its first sample and ends half a period after its last one, and what changed from one sample to the next changed in the
//! middle: so n samples take n periods, and no border is off by more than half of one on average.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use foldhash::fast::RandomState;

use super::perf::step;
use crate::profile::measure::{Measure, Unit};
use crate::profile::model::{LabelSetId, Profile, StackId, Thread, label};

/// What a format does with the times of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// It shows a course: of a recording they are kept by themselves.
    Shown,
    /// It keeps them where there are any.
    Kept,
    /// It has sums alone.
    Lost,
}

/// A sample with its time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tick {
    /// Nanoseconds since the begin of the course.
    pub(super) at: u64,
    /// From here on the thread did what it shows,
    pub(super) from: u64,
    /// and until here.
    pub(super) to: u64,
    pub(super) stack: StackId,
    /// Samples that it stands for.
    pub(super) count: u32,
    /// Whether the thread held the global interpreter lock.
    pub(super) holds_gil: bool,
}

/// What a thread was seen to do, in its order.
pub(super) struct ThreadCourse<'a> {
    pub(super) thread: Thread<'a>,
    pub(super) ticks: Vec<Tick>,
}

/// The course of every thread, by process and thread id.
pub(super) struct Timeline<'a> {
    pub(super) threads: Vec<ThreadCourse<'a>>,
    /// Wall time of its begin.
    pub(super) start: SystemTime,
}

impl<'a> Timeline<'a> {
    /// The course; `None`: no sample has its time, or they are not of time.
    pub(super) fn of(profile: &'a Profile) -> Option<Self> {
        if Measure::main(profile).unit != Unit::Time {
            return None;
        }
        let first = profile.moments.first()?;
        let period = period(profile);
        let recorded = profile.start.duration_since(UNIX_EPOCH).ok();
        let recorded = recorded.and_then(|since| i64::try_from(since.as_nanos()).ok());
        let before_first = first.at_ns.saturating_sub_unsigned(period);
        // A profile that does not say when it began does so with its first sample.
        let start_ns = match recorded {
            Some(recorded @ 1..) if recorded <= first.at_ns => recorded,
            Some(_) | None => before_first,
        };
        let is_held =
            |labels: LabelSetId| profile.label(labels, label::GIL) == Some(label::GIL_HELD);
        let mut known: HashMap<LabelSetId, (Thread<'a>, bool), RandomState> = HashMap::default();
        // A thread has the name of its process before it gets one and when it ends: it stays one, by the last other name.
        let mut threads: BTreeMap<(i64, i64), (Thread<'a>, Vec<Tick>)> = BTreeMap::new();
        for moment in &profile.moments {
            let Some(sample) = profile.samples.get(moment.row as usize) else {
                continue;
            };
            let labels = sample.labels;
            let (thread, holds_gil) = *known
                .entry(labels)
                .or_insert_with(|| (profile.thread(labels), is_held(labels)));
            // No further than some 292 years apart, both.
            let at = moment.at_ns.saturating_sub(start_ns).max(0).cast_unsigned();
            let (named, ticks) = threads.entry((thread.pid, thread.tid)).or_default();
            if *named == Thread::default() || thread.thread_name != thread.comm {
                *named = thread;
            }
            ticks.push(Tick {
                at,
                from: at,
                to: at,
                stack: sample.stack,
                count: moment.count,
                holds_gil,
            });
        }
        let threads = threads.into_values().map(|(thread, mut ticks)| {
            lay_out(&mut ticks, period);
            ThreadCourse { thread, ticks }
        });
        let since = u64::try_from(start_ns).unwrap_or(0);
        Some(Self {
            threads: threads.collect(),
            start: UNIX_EPOCH + std::time::Duration::from_nanos(since),
        })
    }
}

/// Nanoseconds that a sample stands for.
pub(super) fn period(profile: &Profile) -> u64 {
    u64::try_from(step(profile).as_nanos()).unwrap_or(u64::MAX)
}

/// Says of each from when and until when it holds. They are in their order.
fn lay_out(ticks: &mut [Tick], period: u64) {
    let half = period / 2;
    let mut before: Option<Tick> = None;
    for idx in 0..ticks.len() {
        let at = ticks[idx].at;
        let from = match before {
            Some(before) if follows(before.at, at, period) => before.at + (at - before.at) / 2,
            Some(_) | None => at.saturating_sub(half),
        };
        let to = match ticks.get(idx + 1) {
            Some(next) if follows(at, next.at, period) => at + (next.at - at) / 2,
            Some(_) | None => at.saturating_add(half),
        };
        (ticks[idx].from, ticks[idx].to) = (from, to);
        before = Some(ticks[idx]);
    }
}

/// Whether the thread ran from one of two samples to the other.
fn follows(before: u64, at: u64, period: u64) -> bool {
    at - before <= period.saturating_add(period / 2)
}

impl ThreadCourse<'_> {
    /// The stretches of time in which the thread ran, as ranges of its samples.
    pub(super) fn stretches(&self) -> Vec<Range<usize>> {
        self.chunks(|before, tick| before.to == tick.from)
    }

    /// Those in which it held the global interpreter lock: from when and until when.
    pub(super) fn holds_gil(&self) -> Vec<Range<u64>> {
        let chunks = self
            .chunks(|before, tick| before.to == tick.from && before.holds_gil == tick.holds_gil);
        let held = chunks.into_iter().filter_map(|chunk| {
            let (first, last) = (self.ticks.get(chunk.start)?, self.ticks.get(chunk.end - 1)?);
            first.holds_gil.then_some(first.from..last.to)
        });
        held.collect()
    }

    fn chunks(&self, are_one: impl Fn(&Tick, &Tick) -> bool) -> Vec<Range<usize>> {
        let mut chunks = Vec::new();
        let mut begin = 0;
        for chunk in self.ticks.chunk_by(are_one) {
            chunks.push(begin..begin + chunk.len());
            begin += chunk.len();
        }
        chunks
    }

    /// Samples of it.
    pub(super) fn n_samples(&self) -> u64 {
        self.ticks.iter().map(|tick| u64::from(tick.count)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(at: &[u64]) -> Vec<Tick> {
        let tick = |at: &u64| Tick {
            at: *at,
            from: *at,
            to: *at,
            stack: StackId(0),
            count: 1,
            holds_gil: true,
        };
        at.iter().map(tick).collect()
    }

    #[test]
    fn n_samples_take_n_periods_and_gaps_are_gaps() {
        let mut ticks = ticks(&[100, 110, 120, 200, 215, 231]);
        lay_out(&mut ticks, 10);
        let spans: Vec<_> = ticks.iter().map(|tick| (tick.from, tick.to)).collect();
        assert_eq!(
            spans,
            [
                (95, 105),
                (105, 115),
                (115, 125),
                (195, 207),
                (207, 220),
                (226, 236)
            ]
        );
        let course = ThreadCourse {
            thread: Thread::default(),
            ticks,
        };
        assert_eq!(course.stretches(), [0..3, 3..5, 5..6]);
        assert_eq!(course.holds_gil(), [95..125, 195..220, 226..236]);
    }

    #[test]
    fn equal_and_absurd_times_do_no_harm() {
        let mut ticks = ticks(&[0, 0, 0, u64::MAX, u64::MAX]);
        lay_out(&mut ticks, u64::MAX);
        lay_out(&mut ticks, 0);
        assert!(ticks.iter().all(|tick| tick.from <= tick.to));
        assert!(ticks.windows(2).all(|pair| pair[0].to <= pair[1].from));
    }
}
