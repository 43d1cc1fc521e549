//! Samples of programs that the tracker has not decided about yet.
//!
//! Most programs that start are not Python, and what is dropped of them is no loss: a sample counts as lost when its program
//! turns out to be Python.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ids::Generation;

/// Samples of one program that are kept.
const MAX_PER_PROGRAM: usize = 256;

/// Samples that are kept in all.
const MAX_IN_ALL: usize = 4096;

/// Of them page faults: every program that starts has hundreds, and most are not Python.
const MAX_FAULTS_IN_ALL: usize = MAX_IN_ALL / 2;

/// How long samples are kept: the tracker tries for some seconds.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Programs that wait. The tracker decides about each or tells of its end, unless it missed an event.
const MAX_PROGRAMS: usize = 4096;

/// What waits of one program.
#[derive(Debug)]
struct Program<S> {
    since: Instant,
    samples: Vec<S>,
    /// Of them page faults.
    n_faults: usize,
    n_dropped: u64,
}

/// What waited of a program.
#[derive(Debug)]
pub(super) struct Waited<S> {
    /// The samples that were kept.
    pub(super) samples: Vec<S>,
    /// How many were not.
    pub(super) n_lost: u64,
}

/// Samples that wait, by program.
#[derive(Debug)]
pub(super) struct Waiting<S> {
    by_program: HashMap<Generation, Program<S>>,
    n_samples: usize,
    n_faults: usize,
}

impl<S> Default for Waiting<S> {
    fn default() -> Self {
        Self {
            by_program: HashMap::new(),
            n_samples: 0,
            n_faults: 0,
        }
    }
}

impl<S> Waiting<S> {
    /// Keeps a sample, or counts it where there is no room for it. Returns how many samples are lost by that, since nobody can
    /// tell any more whose they were.
    pub(super) fn keep(
        &mut self,
        generation: Generation,
        sample: S,
        is_fault: bool,
        now: Instant,
    ) -> u64 {
        let is_known = self.by_program.contains_key(&generation);
        let n_lost = if !is_known && self.by_program.len() >= MAX_PROGRAMS {
            self.forget_oldest()
        } else {
            0
        };
        let is_full =
            self.n_samples >= MAX_IN_ALL || is_fault && self.n_faults >= MAX_FAULTS_IN_ALL;
        let program = self
            .by_program
            .entry(generation)
            .or_insert_with(|| Program {
                since: now,
                samples: Vec::new(),
                n_faults: 0,
                n_dropped: 0,
            });
        if is_full || program.samples.len() >= MAX_PER_PROGRAM {
            program.n_dropped += 1;
            return n_lost;
        }
        program.samples.push(sample);
        program.n_faults += usize::from(is_fault);
        self.n_samples += 1;
        self.n_faults += usize::from(is_fault);
        n_lost
    }

    /// Takes what waits of a program.
    pub(super) fn take(&mut self, generation: Generation) -> Waited<S> {
        let Some(program) = self.by_program.remove(&generation) else {
            return Waited {
                samples: Vec::new(),
                n_lost: 0,
            };
        };
        self.n_samples -= program.samples.len();
        self.n_faults -= program.n_faults;
        Waited {
            samples: program.samples,
            n_lost: program.n_dropped,
        }
    }

    /// Drops samples that are too old. Whether that is a loss turns out later.
    pub(super) fn expire(&mut self, now: Instant) {
        for program in self.by_program.values_mut() {
            if now.saturating_duration_since(program.since) >= MAX_AGE {
                let n_samples = std::mem::take(&mut program.samples).len();
                self.n_samples -= n_samples;
                self.n_faults -= std::mem::take(&mut program.n_faults);
                program.n_dropped += n_samples as u64;
            }
        }
    }

    fn forget_oldest(&mut self) -> u64 {
        let programs = self.by_program.iter();
        let oldest = programs.min_by_key(|(_, program)| program.since);
        let oldest = oldest.map(|(generation, _)| *generation);
        oldest.map_or(0, |generation| {
            let waited = self.take(generation);
            waited.samples.len() as u64 + waited.n_lost
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(waiting: &mut Waiting<()>, generation: u64, now: Instant) -> u64 {
        waiting.keep(Generation(generation), (), false, now)
    }

    #[test]
    fn what_is_dropped_is_lost_when_its_program_turns_out_to_be_python() {
        let (mut waiting, begun) = (Waiting::default(), Instant::now());
        let n_samples = MAX_PER_PROGRAM + 5;
        for _ in 0..n_samples {
            assert_eq!(keep(&mut waiting, 1, begun), 0);
            assert_eq!(keep(&mut waiting, 2, begun), 0);
        }
        let waited = waiting.take(Generation(1));
        assert_eq!((waited.samples.len(), waited.n_lost), (MAX_PER_PROGRAM, 5));
        // What was kept too long is lost in the same way, and only once.
        waiting.expire(begun + MAX_AGE / 2);
        assert_eq!(waiting.n_samples, MAX_PER_PROGRAM);
        waiting.expire(begun + MAX_AGE);
        waiting.expire(begun + MAX_AGE * 2);
        assert_eq!(waiting.n_samples, 0);
        let waited = waiting.take(Generation(2));
        assert_eq!((waited.samples.len(), waited.n_lost), (0, n_samples as u64));
        assert_eq!(waiting.take(Generation(2)).n_lost, 0);
    }

    #[test]
    fn page_faults_have_half_of_the_room() {
        let (mut waiting, begun) = (Waiting::default(), Instant::now());
        for n in 0..MAX_IN_ALL {
            let generation = Generation((n / 100) as u64);
            waiting.keep(generation, (), true, begun);
        }
        assert_eq!(
            (waiting.n_samples, waiting.n_faults),
            (MAX_FAULTS_IN_ALL, MAX_FAULTS_IN_ALL)
        );
        keep(&mut waiting, 0, begun);
        assert_eq!(waiting.n_samples, MAX_FAULTS_IN_ALL + 1);
        let waited = waiting.take(Generation(0));
        assert_eq!(
            (waited.samples.len(), waiting.n_faults),
            (101, MAX_FAULTS_IN_ALL - 100)
        );
    }

    #[test]
    fn room_is_bounded_and_what_nobody_asked_for_is_lost_with_its_program() {
        let (mut waiting, begun) = (Waiting::default(), Instant::now());
        let after = |n: u64| begun + Duration::from_millis(n);
        for generation in 0..MAX_PROGRAMS as u64 {
            assert_eq!(keep(&mut waiting, generation, after(generation)), 0);
        }
        assert_eq!(keep(&mut waiting, 0, after(9999)), 0);
        assert_eq!(waiting.n_samples, MAX_IN_ALL);
        // The first one goes, with the sample that was kept and the one that was not.
        assert_eq!(keep(&mut waiting, u64::MAX, after(9999)), 2);
        assert_eq!(waiting.by_program.len(), MAX_PROGRAMS);
        assert_eq!(waiting.take(Generation(0)).n_lost, 0);
        let waited = waiting.take(Generation(u64::MAX));
        assert_eq!((waited.samples.len(), waited.n_lost), (1, 0));
    }
}
