//! How long a process stood still while it was looked at, for people and for programs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::format::{duration_text, escape};

/// A stop for a look; absent from a report where none was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// How long it stood, or parts of it did.
    pub microseconds: u64,
    /// Whether it stood during all of the look: then everything is of one moment.
    pub complete: bool,
    /// Why not, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Stopped {
    /// A stop that lasted for all of the look, or not, for this reason.
    #[must_use]
    pub fn new(lasted: Duration, why_not: Option<String>) -> Self {
        Self {
            microseconds: u64::try_from(lasted.as_micros()).unwrap_or(u64::MAX),
            complete: why_not.is_none(),
            why: why_not,
        }
    }

    /// As one line without its end.
    #[must_use]
    pub fn in_words(&self) -> String {
        let lasted = duration_text(Duration::from_micros(self.microseconds));
        let why = self.why.as_ref();
        let why = why.map_or(String::new(), |why| format!("; {}", escape(why)));
        format!("target stopped for {lasted}{why}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_told_and_why_it_was_not_enough() {
        let whole = Stopped::new(Duration::from_micros(123_400), None);
        assert_eq!(whole.in_words(), "target stopped for 123.4 ms");
        assert!(whole.complete);
        let part = Stopped::new(Duration::from_secs(1), Some("the limit".into()));
        assert_eq!(part.in_words(), "target stopped for 1 s; the limit");
        assert!(!part.complete);
    }
}
