//! Whether a program's walks succeed. One whose walks begin to fail is looked at anew: its interpreter may have been
//! finalized and initialised again, with other threads and another slot for their state.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use profiler_common::event::PythonStatus;

use crate::ids::Generation;

/// Samples that are judged together.
const N_JUDGED: u32 = 100;

/// Walks of a sound program fail for less than this share of them, in percent; but native threads have none.
const MAX_FAILED_PERCENT: u32 = 90;

/// The pause before a program is looked at again; each further look doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// At most so long.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// The walks of all programs.
#[derive(Debug, Default)]
pub(super) struct Health {
    programs: HashMap<Generation, Program>,
}

#[derive(Debug)]
struct Program {
    n_failed: u32,
    n_samples: u32,
    pause: Duration,
    next_look: Instant,
}

impl Health {
    /// Counts a walk. True: the program is to be looked at.
    pub(super) fn count(
        &mut self,
        generation: Generation,
        status: PythonStatus,
        now: Instant,
    ) -> bool {
        let program = self.programs.entry(generation).or_insert(Program {
            n_failed: 0,
            n_samples: 0,
            pause: FIRST_PAUSE,
            next_look: now,
        });
        program.n_samples += 1;
        program.n_failed += u32::from(is_failed(status));
        if program.n_samples < N_JUDGED {
            return false;
        }
        let is_failing = program.n_failed * 100 > program.n_samples * MAX_FAILED_PERCENT;
        (program.n_samples, program.n_failed) = (0, 0);
        if !is_failing || now < program.next_look {
            return false;
        }
        program.next_look = now + program.pause;
        program.pause = (program.pause * 2).min(LONGEST_PAUSE);
        true
    }

    /// A program has ended.
    pub(super) fn remove(&mut self, generation: Generation) {
        self.programs.remove(&generation);
    }
}

/// Whether a walk found nothing that makes sense, which wrong facts of the interpreter would explain.
const fn is_failed(status: PythonStatus) -> bool {
    match status {
        PythonStatus::NoThreadState
        | PythonStatus::ThreadStateFault
        | PythonStatus::NoInterpreter
        | PythonStatus::NoFrame
        | PythonStatus::FrameFault
        | PythonStatus::FrameLoop
        | PythonStatus::FrameSwitch => true,
        PythonStatus::None
        | PythonStatus::Complete
        | PythonStatus::Truncated
        | PythonStatus::ThreadListTruncated
        | PythonStatus::Ambiguous
        | PythonStatus::Pending
        | PythonStatus::NoThreadPointer => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: Generation = Generation(7);

    /// How many looks `n` walks of this kind ask for.
    fn looks(health: &mut Health, status: PythonStatus, n: u32, now: Instant) -> usize {
        (0..n)
            .filter(|_| health.count(PROGRAM, status, now))
            .count()
    }

    #[test]
    fn walks_that_fail_ask_for_a_look_and_then_less_and_less_often() {
        let (mut health, begun) = (Health::default(), Instant::now());
        assert_eq!(looks(&mut health, PythonStatus::Complete, 1000, begun), 0);
        assert_eq!(
            looks(&mut health, PythonStatus::NoThreadState, 1000, begun),
            1
        );
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(
            looks(&mut health, PythonStatus::NoThreadState, 1000, after(6)),
            1
        );
        assert_eq!(
            looks(&mut health, PythonStatus::NoThreadState, 1000, after(12)),
            0
        );
        assert_eq!(
            looks(&mut health, PythonStatus::NoThreadState, 1000, after(17)),
            1
        );
        assert_eq!(
            looks(&mut health, PythonStatus::Complete, 1000, after(1000)),
            0
        );
    }

    #[test]
    fn some_that_fail_among_many_that_do_not_ask_for_nothing() {
        let (mut health, begun) = (Health::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(
                looks(&mut health, PythonStatus::NoThreadState, 40, begun),
                0
            );
            assert_eq!(looks(&mut health, PythonStatus::Complete, 10, begun), 0);
        }
    }
}
