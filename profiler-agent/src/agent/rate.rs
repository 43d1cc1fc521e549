//! The limit on samples a second: lowers the rate when it is exceeded, raises it when there is room again.

/// Samples a second, and what they are limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RateLimit {
    asked_hz: u32,
    max_samples_per_second: Option<u32>,
    current_hz: u32,
    divisor: u32,
}

impl RateLimit {
    pub(super) fn new(asked_hz: u32, max_samples_per_second: Option<u32>) -> Self {
        Self {
            asked_hz,
            max_samples_per_second,
            current_hz: asked_hz,
            divisor: 1,
        }
    }

    /// From now on one in so many of the samples that were asked for are the most that are taken.
    pub(super) fn divide(&mut self, divisor: u32) {
        self.divisor = divisor.max(1);
    }

    pub(super) fn current_hz(&self) -> u32 {
        self.current_hz
    }

    /// The new rate, if it has to change, after a second with so many samples.
    pub(super) fn on_second(&mut self, n_samples: u64) -> Option<u32> {
        let asked_hz = (self.asked_hz / self.divisor).max(1);
        let max = self.max_samples_per_second.map_or(u64::MAX, u64::from);
        // What the rate that may be taken would give.
        let projected = n_samples * u64::from(asked_hz) / u64::from(self.current_hz.max(1));
        let wanted = if n_samples > max {
            // A tenth below the limit, so that it is not exceeded again at once.
            (u64::from(asked_hz) * max * 9 / 10 / projected.max(1)).max(1) as u32
        } else if self.current_hz > asked_hz
            || self.current_hz < asked_hz && projected < max / 10 * 8
        {
            asked_hz
        } else {
            return None;
        };
        let wanted = wanted.min(asked_hz);
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
    factor: u64,
}

impl PeriodLimit {
    pub(super) fn new(asked: u64, max_samples_per_second: Option<u32>) -> Self {
        Self {
            asked: asked.max(1),
            max_samples_per_second,
            current: asked.max(1),
            factor: 1,
        }
    }

    /// From now on one in so many of the samples that were asked for are the most that are taken.
    pub(super) fn divide(&mut self, divisor: u32) {
        self.factor = u64::from(divisor.max(1));
    }

    pub(super) fn current(&self) -> u64 {
        self.current
    }

    /// The new period, if it has to change, after a second with so many samples.
    pub(super) fn on_second(&mut self, n_samples: u64) -> Option<u64> {
        let asked = self.asked.saturating_mul(self.factor);
        let max = self.max_samples_per_second.map_or(u64::MAX, u64::from);
        let n_events = n_samples.saturating_mul(self.current);
        let wanted = if n_samples > max {
            // A tenth below the limit, so that it is not exceeded again at once.
            n_events.div_ceil((max / 10 * 9).max(1))
        } else if self.current < asked || self.current > asked && n_events / asked < max / 10 * 8 {
            asked
        } else {
            return None;
        };
        let wanted = wanted.max(asked);
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

    #[test]
    fn what_is_shed_comes_back_whether_there_is_a_limit_or_not() {
        for max in [None, Some(1000)] {
            let mut limit = RateLimit::new(99, max);
            limit.divide(4);
            assert_eq!(limit.on_second(100), Some(24));
            assert_eq!(limit.on_second(24), None);
            limit.divide(1000);
            assert_eq!(limit.on_second(24), Some(1));
            limit.divide(1);
            assert_eq!(limit.on_second(1), Some(99));
            let mut period = PeriodLimit::new(16, max);
            period.divide(2);
            assert_eq!(period.on_second(100), Some(32));
            assert_eq!(period.on_second(50), None);
            period.divide(1);
            assert_eq!(period.on_second(50), Some(16));
        }
    }
}
