//! The limit on samples a second: lowers the rate when it is exceeded, raises it when there is room again.

/// Samples a second, and what they are limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RateLimit {
    asked_hz: u32,
    max_samples_per_second: Option<u32>,
    current_hz: u32,
}

impl RateLimit {
    pub(super) fn new(asked_hz: u32, max_samples_per_second: Option<u32>) -> Self {
        Self {
            asked_hz,
            max_samples_per_second,
            current_hz: asked_hz,
        }
    }

    pub(super) fn current_hz(&self) -> u32 {
        self.current_hz
    }

    /// The new rate, if it has to change, after a second with so many samples.
    pub(super) fn on_second(&mut self, n_samples: u64) -> Option<u32> {
        let max = u64::from(self.max_samples_per_second?);
        // What the rate that was asked for would give.
        let projected = n_samples * u64::from(self.asked_hz) / u64::from(self.current_hz.max(1));
        let wanted = if n_samples > max {
            // A tenth below the limit, so that it is not exceeded again at once.
            (u64::from(self.asked_hz) * max * 9 / 10 / projected.max(1)).max(1) as u32
        } else if self.current_hz < self.asked_hz && projected < max * 8 / 10 {
            self.asked_hz
        } else {
            return None;
        };
        let wanted = wanted.min(self.asked_hz);
        (wanted != self.current_hz).then(|| {
            self.current_hz = wanted;
            wanted
        })
    }
}

/// The same for a source that takes one of so many events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PeriodLimit {
    asked: u64,
    max_samples_per_second: Option<u32>,
    current: u64,
}

impl PeriodLimit {
    pub(super) fn new(asked: u64, max_samples_per_second: Option<u32>) -> Self {
        Self {
            asked: asked.max(1),
            max_samples_per_second,
            current: asked.max(1),
        }
    }

    pub(super) fn current(&self) -> u64 {
        self.current
    }

    /// The new period, if it has to change, after a second with so many samples.
    pub(super) fn on_second(&mut self, n_samples: u64) -> Option<u64> {
        let max = u64::from(self.max_samples_per_second?);
        let n_events = n_samples.saturating_mul(self.current);
        let wanted = if n_samples > max {
            // A tenth below the limit, so that it is not exceeded again at once.
            n_events.div_ceil((max * 9 / 10).max(1))
        } else if self.current > self.asked && n_events / self.asked < max * 8 / 10 {
            self.asked
        } else {
            return None;
        };
        let wanted = wanted.max(self.asked);
        (wanted != self.current).then(|| {
            self.current = wanted;
            wanted
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_period_grows_above_the_limit_and_comes_back_when_there_is_room() {
        let mut limit = PeriodLimit::new(16, Some(1000));
        assert_eq!(limit.on_second(1000), None);
        // 160,000 events a second: 900 samples are every 178th.
        assert_eq!(limit.on_second(10_000), Some(178));
        assert_eq!(limit.on_second(900), None, "16 would give 10,000 again");
        assert_eq!(limit.on_second(10), Some(16));
        assert_eq!(PeriodLimit::new(16, None).on_second(1 << 40), None);
    }

    #[test]
    fn the_rate_falls_below_the_limit_and_comes_back_when_there_is_room() {
        let mut limit = RateLimit::new(99, Some(1000));
        assert_eq!(limit.on_second(900), None);
        assert_eq!(limit.on_second(3960), Some(22));
        // 40 busy CPUs give 880 samples a second then.
        assert_eq!(
            limit.on_second(880),
            None,
            "40 busy CPUs would still exceed the limit at 99 Hz"
        );
        assert_eq!(limit.on_second(100), Some(99));
        assert_eq!(RateLimit::new(99, None).on_second(1 << 40), None);
    }
}
