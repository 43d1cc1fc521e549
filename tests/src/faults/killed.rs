//! The agent is killed (SIGKILL), again and again: what its recorder had written is there afterwards.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::database;
use crate::pyagent::Pyagent;

/// What became of the windows that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Killed {
    /// Windows that were written.
    pub n_windows: usize,
    /// Windows that were there before a kill and not after it.
    pub n_lost: usize,
}

/// Starts an agent and kills it, so many times, at moments that lie anywhere in a window of a second.
///
/// # Panics
/// When the database is damaged after a kill.
#[must_use]
pub fn killed(data: &Path, n_times: u32, start: impl Fn() -> Pyagent) -> Killed {
    let numbers = || -> BTreeSet<i64> {
        let windows = database::windows(data);
        windows.into_iter().map(|(number, ..)| number).collect()
    };
    let mut known = BTreeSet::new();
    let mut n_lost = 0;
    for round in 0..n_times {
        let mut agent = start();
        let wait = 900 + u64::from(round) * 7919 % 1500;
        sleep(Duration::from_millis(wait));
        known.append(&mut numbers());
        agent.kill();
        assert_eq!(database::integrity(data), "ok", "round {round}");
        let mut there = numbers();
        n_lost += known.difference(&there).count();
        known.append(&mut there);
    }
    Killed {
        n_windows: known.len(),
        n_lost,
    }
}
