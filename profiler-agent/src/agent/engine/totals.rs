//! What was allocated since the probes were placed, for scrapers of heap profiles.

use std::time::{Instant, SystemTime};

use super::pull::{ALLOCATION_NOTE, matches};
use super::{Engine, boot_ns};
use crate::agent::live_blocks::FRESH;
use crate::profile::query::Viewer;
use crate::profile::totals::Totals;
use crate::serve::query::{PullError, TotalsRequest};

/// What was lost since the start, in words, and when that was looked up: not at each of many questions.
#[derive(Debug, Default)]
pub(super) struct Losses {
    looked: Option<Instant>,
    comments: Vec<String>,
}

impl Engine {
    /// As they are now; when they were asked for a moment ago, as they were then.
    pub(super) fn totals(&mut self, request: &TotalsRequest) -> Result<Totals, PullError> {
        let TotalsRequest {
            profile_type,
            filter,
        } = request;
        if let Some(error) = self.why_not(*profile_type, filter) {
            return Err(error);
        }
        let mut comments = self.losses().to_vec();
        comments.push(ALLOCATION_NOTE.to_owned());
        // They name processes.
        if filter.viewer == Viewer::All {
            comments.extend(self.probe_states.notes());
        }
        let (symbolizer, show_cmdline) = (&self.symbolizer, self.parts.show_cmdline);
        let is_meant = |generation| {
            let process = symbolizer.process(generation);
            process.is_some_and(|process| matches(filter, process, show_cmdline))
        };
        let pids = &filter.include.pids;
        let programs = self.live.totals(*profile_type, pids, boot_ns(), is_meant);
        let config = &self.parts.config;
        let period = self.parts.sampler.period(
            *profile_type,
            self.rate.current_hz(),
            config.allocation.period,
        );
        Ok(Totals {
            profile_type: *profile_type,
            period,
            taken: SystemTime::now(),
            programs,
            comments,
        })
    }

    fn losses(&mut self) -> &[String] {
        let is_fresh = |at: Instant| at.elapsed() < FRESH;
        if !self.losses.looked.is_some_and(is_fresh) {
            let mut zeros = self.counter_values();
            for counter in &mut zeros {
                counter.value = 0;
            }
            self.losses = Losses {
                looked: Some(Instant::now()),
                comments: self.comments(&zeros),
            };
        }
        &self.losses.comments
    }
}
