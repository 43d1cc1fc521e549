//! How the kernel splits the time of the CPUs: `/proc/stat`, first line.

use std::fs;
use std::time::Duration;

/// CPU time of all CPUs together, in ticks.
#[derive(Debug)]
pub struct CpuTicks {
    timed: u64,
    interrupts: u64,
    stolen: u64,
}

/// The unit of `/proc/stat`: `USER_HZ`.
const TICK: Duration = Duration::from_millis(10);

impl CpuTicks {
    /// Since the start of the system.
    ///
    /// # Panics
    /// When `/proc/stat` cannot be read.
    #[must_use]
    pub fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let ticks: Vec<u64> = stat
            .lines()
            .next()
            .unwrap()
            .split_whitespace()
            .skip(1)
            .flat_map(str::parse)
            .collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks[..] else {
            panic!("{stat}")
        };
        Self {
            timed: user + nice + system,
            interrupts: irq + softirq,
            stolen: steal,
        }
    }

    /// Share of the CPU time since then that was no thread's: interrupts, and what the hypervisor took. The timer
    /// counts it to the thread that it interrupts.
    #[must_use]
    pub fn untimed_share(&self) -> f64 {
        let now = Self::now();
        let untimed = now.interrupts + now.stolen - self.interrupts - self.stolen;
        untimed as f64 / (now.timed - self.timed).max(1) as f64
    }

    /// What the hypervisor took of the CPUs since then and the kernel knows of: it is no thread's time.
    #[must_use]
    pub fn stolen(&self) -> Duration {
        TICK.saturating_mul((Self::now().stolen - self.stolen) as u32)
    }
}
