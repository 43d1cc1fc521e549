//! How long each CPU had nothing to run: `/proc/stat` (proc_stat(5)).

use std::collections::HashMap;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// Time without a task since boot, by CPU. Empty where `/proc/stat` cannot be read.
#[must_use]
pub fn idle_by_cpu() -> HashMap<u32, Duration> {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    parse(&stat, ticks_per_second())
}

fn ticks_per_second() -> u64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks
        .and_then(|ticks| u64::try_from(ticks).ok())
        .filter(|&ticks| ticks > 0)
        .unwrap_or(100)
}

/// The lines `cpuN user nice system idle iowait ...`, in ticks.
fn parse(stat: &str, ticks_per_second: u64) -> HashMap<u32, Duration> {
    let of_line = |line: &str| {
        let (name, times) = line.split_once(' ')?;
        let cpu = name.strip_prefix("cpu")?.parse().ok()?;
        let mut idle_and_iowait = times.split_ascii_whitespace().skip(3);
        let idle: u64 = idle_and_iowait.next()?.parse().ok()?;
        let iowait: u64 = idle_and_iowait.next()?.parse().ok()?;
        let millis = idle.saturating_add(iowait).saturating_mul(1000) / ticks_per_second;
        Some((cpu, Duration::from_millis(millis)))
    };
    stat.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_lines_of_single_cpus_count() {
        let stat = "cpu  10 0 10 900 100 0 0 0 0 0\ncpu0 5 0 5 400 50 0 0 0 0 0\ncpu12 5 0 5 500 50 1 2 3 0 0\n\
                    intr 42 0\nctxt 5\n";
        let idle = parse(stat, 100);
        assert_eq!(idle.len(), 2);
        assert_eq!(idle[&0], Duration::from_millis(4500));
        assert_eq!(idle[&12], Duration::from_millis(5500));
    }

    #[test]
    fn this_host_says_it() {
        assert!(!idle_by_cpu().is_empty());
    }
}
