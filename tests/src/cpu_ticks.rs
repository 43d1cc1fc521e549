//! How the kernel splits the time of the CPUs: `/proc/stat`, first line.

use std::fs;

/// CPU time of all CPUs together, in ticks.
#[derive(Debug)]
pub struct CpuTicks {
    timed: u64,
    untimed: u64,
}

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
            untimed: irq + softirq + steal,
        }
    }

    /// Share of the CPU time since then that was no thread's: interrupts, and what the hypervisor took. The timer
    /// counts it to the thread that it interrupts.
    #[must_use]
    pub fn untimed_share(&self) -> f64 {
        let now = Self::now();
        (now.untimed - self.untimed) as f64 / (now.timed - self.timed).max(1) as f64
    }
}
