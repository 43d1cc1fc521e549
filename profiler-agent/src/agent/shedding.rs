//! What is given up when memory or CPU time run out, before the kernel ends the agent: what can be read again, deep ends of
//! stacks, then samples. It comes back by the same steps when there is room.
//!
//! Memory is that of the control group ([`crate::process::limits`]): a container that takes more than its limit is killed, with all that
//! it has not written yet. Whoever has no limit sheds nothing.

use std::time::{Duration, Instant};

use crate::process::limits::MemoryUse;

/// Part of the memory, in percent, above which more is given up.
const HIGH: u64 = 70;

/// Part below which it comes back.
const LOW: u64 = 60;

/// Part above which also what waits to be kept is handed on at once.
const URGENT: u64 = 85;

/// Between two steps down: what was given up needs time to be seen.
const DOWN_PAUSE: Duration = Duration::from_secs(2);

/// Time with room before a step back.
const UP_PAUSE: Duration = Duration::from_secs(20);

/// Part of the samples of a second, in percent, whose loss means that there is too little CPU time.
const LOST: u64 = 10;

/// What is still had at each step: frames of a stack, and the part of the rate that was asked for.
const STEPS: [(usize, u32); 8] = [
    (usize::MAX, 1),
    (64, 1),
    (24, 1),
    (24, 2),
    (24, 4),
    (16, 8),
    (16, 16),
    (16, 32),
];

/// How far the rate is lowered for want of CPU time: 2 to the power of this.
const MAX_HALVINGS: u32 = 5;

/// What happens in a second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Second {
    /// Memory; `None`: there is no limit.
    pub(super) memory: Option<MemoryUse>,
    /// Samples that came.
    pub(super) n_samples: u64,
    /// Samples that were lost since nobody took them.
    pub(super) n_lost: u64,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Orders {
    /// Caches are to be halved.
    pub(super) shrink: bool,
    /// The window is to be closed at once.
    pub(super) close_window: bool,
}

/// How much is given up now.
#[derive(Debug)]
pub(super) struct Shedding {
    step: usize,
    halvings: u32,
    /// Whether CPU time is limited.
    has_cpu_limit: bool,
    stepped: Instant,
    halved: Instant,
    /// When there was too little CPU time last.
    short: Instant,
    /// Since when there is room.
    room_since: Option<Instant>,
    last: Option<MemoryUse>,
    /// Stacks that were cut.
    pub(super) n_cut: u64,
    /// Samples that would have been taken at the rate that was asked for, as far as that can be told.
    pub(super) n_shed: u64,
    /// Times that something more was given up.
    pub(super) n_steps: u64,
}

impl Shedding {
    pub(super) fn new(has_cpu_limit: bool, now: Instant) -> Self {
        let long_ago = now.checked_sub(UP_PAUSE).unwrap_or(now);
        Self {
            step: 0,
            halvings: 0,
            has_cpu_limit,
            stepped: long_ago,
            halved: long_ago,
            short: long_ago,
            room_since: None,
            last: None,
            n_cut: 0,
            n_shed: 0,
            n_steps: 0,
        }
    }

    /// Frames of a stack that are kept, from the leaf on.
    pub(super) fn max_frames(&self) -> usize {
        STEPS[self.step].0
    }

    /// What the rate is divided by.
    pub(super) fn divisor(&self) -> u32 {
        STEPS[self.step].1.max(1 << self.halvings)
    }

    /// The memory, as it was seen last; `None`: there is no limit.
    pub(super) fn memory(&self) -> Option<MemoryUse> {
        self.last
    }

    /// Why profiles are coarser than they were asked to be; empty: they are not.
    pub(super) fn problem(&self) -> String {
        let divisor = self.divisor();
        let rate = if divisor > 1 {
            format!("one of {divisor} samples is taken")
        } else {
            String::new()
        };
        let mut parts = Vec::new();
        if self.step > 0 {
            let used = self.last.map_or(0, MemoryUse::percent);
            let frames = self.max_frames();
            parts.push(format!(
                "memory is short ({used} % of the memory limit are taken now), so stacks have {frames} frames at most"
            ));
        }
        if self.halvings > 0 {
            parts.push("samples were lost for want of CPU time (a limit is set)".to_owned());
        }
        if !rate.is_empty() {
            parts.push(rate);
        }
        parts.join(", ")
    }

    /// Looks at a second that is over.
    pub(super) fn on_second(&mut self, second: Second, now: Instant) -> Orders {
        self.n_shed += second.n_samples * u64::from(self.divisor() - 1);
        self.on_cpu(second, now);
        self.last = second.memory;
        let Some(memory) = second.memory else {
            self.step = 0;
            return Orders::default();
        };
        let used = memory.percent();
        if used >= HIGH {
            self.room_since = None;
            let is_settled = now.saturating_duration_since(self.stepped) >= DOWN_PAUSE;
            if is_settled && self.step + 1 < STEPS.len() {
                self.step += 1;
                self.n_steps += 1;
                self.stepped = now;
            }
            return Orders {
                shrink: is_settled || used >= URGENT,
                close_window: used >= URGENT,
            };
        }
        if used >= LOW || self.step == 0 {
            self.room_since = None;
            return Orders::default();
        }
        let since = *self.room_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= UP_PAUSE {
            self.step -= 1;
            self.stepped = now;
            self.room_since = None;
        }
        Orders::default()
    }

    fn on_cpu(&mut self, second: Second, now: Instant) {
        if !self.has_cpu_limit {
            return;
        }
        let n_all = second.n_samples + second.n_lost;
        let is_short = second.n_lost > 0 && second.n_lost * 100 >= n_all * LOST;
        let since = |moment: Instant| now.saturating_duration_since(moment);
        if is_short {
            self.short = now;
            if since(self.halved) >= DOWN_PAUSE && self.halvings < MAX_HALVINGS {
                self.halvings += 1;
                self.n_steps += 1;
                self.halved = now;
            }
        } else if self.halvings > 0 && since(self.short.max(self.halved)) >= UP_PAUSE {
            self.halvings -= 1;
            self.halved = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(percent: u64) -> Second {
        let memory = MemoryUse {
            max: 1000,
            used: percent * 10,
        };
        Second {
            memory: Some(memory),
            n_samples: 100,
            n_lost: 0,
        }
    }

    /// Feeds a second each, and says after which one it was like this.
    fn seconds_until(
        shedding: &mut Shedding,
        begun: &mut Instant,
        second: Second,
        mut is_it: impl FnMut(&Shedding) -> bool,
    ) -> u32 {
        for n in 1..10_000 {
            *begun += Duration::from_secs(1);
            shedding.on_second(second, *begun);
            if is_it(shedding) {
                return n;
            }
        }
        panic!("never: {shedding:?}");
    }

    #[test]
    fn stacks_become_coarser_then_samples_fewer_and_both_come_back() {
        let mut now = Instant::now();
        let mut shedding = Shedding::new(false, now);
        assert_eq!(shedding.on_second(second(69), now), Orders::default());
        assert_eq!((shedding.max_frames(), shedding.divisor()), (usize::MAX, 1));
        let orders = shedding.on_second(second(71), now);
        assert!(orders.shrink && !orders.close_window);
        assert_eq!((shedding.max_frames(), shedding.divisor()), (64, 1));
        // Not faster than what was given up can be seen.
        now += Duration::from_secs(1);
        assert!(!shedding.on_second(second(71), now).shrink);
        assert_eq!(shedding.max_frames(), 64);
        let n = seconds_until(&mut shedding, &mut now, second(75), |it| it.divisor() == 32);
        assert!((10..=14).contains(&n), "{n}");
        assert!(shedding.max_frames() >= 16);
        assert!(shedding.problem().contains("75 %") && shedding.problem().contains("32"));
        let orders = shedding.on_second(second(90), now);
        assert!(orders.shrink && orders.close_window);
        // In between it stays.
        for _ in 0..100 {
            now += Duration::from_secs(1);
            shedding.on_second(second(65), now);
        }
        assert_eq!(shedding.divisor(), 32);
        assert!(shedding.n_shed > 100 * 31 * 100);
        let n = seconds_until(&mut shedding, &mut now, second(50), |it| it.step == 0);
        assert!((140..=150).contains(&n), "{n}");
        assert_eq!(shedding.problem(), "");
        assert_eq!(shedding.n_steps, 7);
    }

    #[test]
    fn without_a_limit_nothing_is_given_up() {
        let mut now = Instant::now();
        let mut shedding = Shedding::new(false, now);
        for _ in 0..100 {
            now += Duration::from_secs(1);
            let lossy = Second {
                memory: None,
                n_samples: 1,
                n_lost: 1000,
            };
            assert_eq!(shedding.on_second(lossy, now), Orders::default());
        }
        assert_eq!((shedding.divisor(), shedding.n_steps), (1, 0));
    }

    #[test]
    fn losses_under_a_cpu_limit_lower_the_rate_until_there_are_none() {
        let mut now = Instant::now();
        let mut shedding = Shedding::new(true, now);
        let lossy = Second {
            n_lost: 50,
            ..second(10)
        };
        seconds_until(&mut shedding, &mut now, lossy, |it| it.divisor() == 8);
        assert!(shedding.problem().contains("CPU time"));
        assert_eq!(shedding.max_frames(), usize::MAX);
        // A few lost ones are none too many.
        let few = Second {
            n_lost: 5,
            ..second(10)
        };
        let n = seconds_until(&mut shedding, &mut now, few, |it| it.divisor() == 1);
        assert!((60..70).contains(&n), "{n}");
    }
}
