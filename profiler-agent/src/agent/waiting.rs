//! Samples of programs that the tracker has not decided about yet.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use profiler_common::event::source;

use crate::ids::Generation;
use crate::sample::decode::RawSample;

/// Samples of one program that are kept.
const MAX_PER_PROGRAM: usize = 256;

/// Samples that are kept in all.
const MAX_IN_ALL: usize = 4096;

/// Of them page faults: every program that starts has hundreds, and most are not Python.
const MAX_FAULTS_IN_ALL: usize = MAX_IN_ALL / 2;

/// How long a decision can take: the tracker tries for some seconds.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Samples that wait, by program.
#[derive(Default)]
pub(super) struct Waiting {
    by_program: HashMap<Generation, (Instant, Vec<RawSample>)>,
    n_samples: usize,
    n_faults: usize,
}

impl Waiting {
    /// Keeps a sample. False: there is no room, it is lost.
    pub(super) fn keep(&mut self, sample: RawSample) -> bool {
        if self.n_samples >= MAX_IN_ALL || is_fault(&sample) && self.n_faults >= MAX_FAULTS_IN_ALL {
            return false;
        }
        let (_, samples) = self
            .by_program
            .entry(sample.generation)
            .or_insert_with(|| (Instant::now(), Vec::new()));
        if samples.len() >= MAX_PER_PROGRAM {
            return false;
        }
        self.n_faults += usize::from(is_fault(&sample));
        samples.push(sample);
        self.n_samples += 1;
        true
    }

    /// Takes the samples of a program.
    pub(super) fn take(&mut self, generation: Generation) -> Vec<RawSample> {
        let samples = self
            .by_program
            .remove(&generation)
            .map(|(_, samples)| samples)
            .unwrap_or_default();
        self.n_samples -= samples.len();
        self.n_faults -= n_faults(&samples);
        samples
    }

    /// Drops what is too old; returns how many samples that were.
    pub(super) fn expire(&mut self) -> usize {
        let before = self.n_samples;
        self.by_program.retain(|_, (since, samples)| {
            let keep = since.elapsed() < MAX_AGE;
            if !keep {
                self.n_samples -= samples.len();
                self.n_faults -= n_faults(samples);
            }
            keep
        });
        before - self.n_samples
    }
}

fn is_fault(sample: &RawSample) -> bool {
    sample.source == source::FAULTS
}

fn n_faults(samples: &[RawSample]) -> usize {
    samples.iter().filter(|sample| is_fault(sample)).count()
}
