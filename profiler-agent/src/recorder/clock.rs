//! Two clocks. Windows are kept by the time since boot, which nobody sets; people ask in wall time.
//!
//! For each boot there is one number: the wall time of its begin, by the clock as it was last. So when the clock is set, all
//! windows of this boot move with it, and none overlaps another one, is lost or changes its place.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The clocks of this host; cheap to clone.
#[derive(Clone)]
pub(super) struct Clock {
    /// What names this boot.
    pub(super) boot_id: Arc<str>,
    boot_ns: Arc<dyn Fn() -> i64 + Send + Sync>,
    wall_ns: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clock")
            .field("boot_id", &self.boot_id)
            .finish_non_exhaustive()
    }
}

impl Clock {
    /// The kernel's.
    pub(super) fn system() -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        Self {
            boot_id: boot_id.as_deref().map_or("unknown", str::trim).into(),
            boot_ns: Arc::new(boot_ns),
            wall_ns: Arc::new(|| unix_ns(SystemTime::now())),
        }
    }

    #[cfg(test)]
    pub(super) fn of(
        boot_id: &str,
        boot_ns: impl Fn() -> i64 + Send + Sync + 'static,
        wall_ns: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        Self {
            boot_id: boot_id.into(),
            boot_ns: Arc::new(boot_ns),
            wall_ns: Arc::new(wall_ns),
        }
    }

    /// Nanoseconds since boot, suspended time included.
    pub(super) fn boot_ns(&self) -> i64 {
        (self.boot_ns)()
    }

    /// Wall time in nanoseconds since 1970.
    pub(super) fn wall_ns(&self) -> i64 {
        (self.wall_ns)()
    }

    /// Wall time of the boot, by the clock as it is now, in nanoseconds since 1970.
    pub(super) fn boot_began_ns(&self) -> i64 {
        self.wall_ns().saturating_sub(self.boot_ns())
    }
}

fn boot_ns() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}

/// Nanoseconds since 1970; negative before it.
pub(super) fn unix_ns(time: SystemTime) -> i64 {
    let number = |length: Duration| i64::try_from(length.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => number(since),
        Err(before) => -number(before.duration()),
    }
}

/// The time that is so many nanoseconds after 1970.
pub(super) fn wall_time(unix_ns: i64) -> SystemTime {
    let length = Duration::from_nanos(unix_ns.unsigned_abs());
    let time = if unix_ns < 0 {
        UNIX_EPOCH.checked_sub(length)
    } else {
        UNIX_EPOCH.checked_add(length)
    };
    time.unwrap_or(UNIX_EPOCH)
}
