//! Log lines that can come again and again: one a cause and minute, with a count of those left out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often one cause may be told.
const INTERVAL: Duration = Duration::from_mins(1);

/// What was told, and when.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    told: HashMap<&'static str, (Instant, u64)>,
}

impl Throttle {
    /// Warns, unless the same cause was told within the last minute.
    pub(super) fn warn(&mut self, cause: &'static str, message: &dyn std::fmt::Display) {
        let n_left_out = match self.told.get_mut(cause) {
            Some((at, n_left_out)) if at.elapsed() < INTERVAL => {
                *n_left_out += 1;
                return;
            }
            Some((_, n_left_out)) => *n_left_out,
            None => 0,
        };
        self.told.insert(cause, (Instant::now(), 0));
        match n_left_out {
            0 => tracing::warn!("{message}"),
            n => tracing::warn!("{message} (and {n} times in between)"),
        }
    }
}
