//! Samples of programs that the tracker has not decided about yet.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ids::Generation;
use crate::sample::decode::RawSample;

/// Samples of one program that are kept.
const MAX_PER_PROGRAM: usize = 256;

/// Samples that are kept in all.
const MAX_IN_ALL: usize = 4096;

/// How long a decision can take: the tracker tries for some seconds.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Samples that wait, by program.
#[derive(Default)]
pub(super) struct Waiting {
    by_program: HashMap<Generation, (Instant, Vec<RawSample>)>,
    n_samples: usize,
}

impl Waiting {
    /// Keeps a sample. False: there is no room, it is lost.
    pub(super) fn keep(&mut self, sample: RawSample) -> bool {
        if self.n_samples >= MAX_IN_ALL {
            return false;
        }
        let (_, samples) = self
            .by_program
            .entry(sample.generation)
            .or_insert_with(|| (Instant::now(), Vec::new()));
        if samples.len() >= MAX_PER_PROGRAM {
            return false;
        }
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
        samples
    }

    /// Drops what is too old; returns how many samples that were.
    pub(super) fn expire(&mut self) -> usize {
        let before = self.n_samples;
        self.by_program.retain(|_, (since, samples)| {
            let keep = since.elapsed() < MAX_AGE;
            if !keep {
                self.n_samples -= samples.len();
            }
            keep
        });
        before - self.n_samples
    }
}
