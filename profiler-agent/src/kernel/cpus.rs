//! The host's CPUs: how many are online, and where a possible one stands in what the kernel tells of each.

use std::path::Path;

/// Numbers of all CPUs that the kernel made room for, also of those that are not there (yet).
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// CPUs of the host, also those that this process may not run on.
#[must_use]
pub fn n_cpus_online() -> u32 {
    let n_cpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    n_cpus.ok().flatten().map_or(1, |n_cpus| n_cpus as u32)
}

/// The numbers of the possible CPUs, which can have gaps. The values of a per-CPU map are in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PossibleCpus {
    ranges: Vec<(u32, u32)>,
}

impl PossibleCpus {
    /// Of the running kernel; without gaps where it does not say it.
    #[must_use]
    pub fn of_running_kernel() -> Self {
        let text = std::fs::read_to_string(Path::new(POSSIBLE)).unwrap_or_default();
        Self::parse(&text).unwrap_or(Self {
            ranges: vec![(0, u32::MAX)],
        })
    }

    /// `0-3,8-11,16`, as sysfs has it.
    fn parse(text: &str) -> Option<Self> {
        let range = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some((first, last))
        };
        let ranges: Option<Vec<_>> = text.trim().split(',').map(range).collect();
        ranges.map(|ranges| Self { ranges })
    }

    /// Where a CPU's value stands among those of all.
    #[must_use]
    pub fn position(&self, cpu: u32) -> Option<usize> {
        let mut n_before = 0;
        for (first, last) in &self.ranges {
            if (*first..=*last).contains(&cpu) {
                return Some(n_before + (cpu - first) as usize);
            }
            n_before += (last - first) as usize + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_gaps_have_positions_without() {
        let cpus = PossibleCpus::parse("0-3,8-11,16\n").unwrap();
        let positions = [0, 3, 4, 7, 8, 11, 12, 16, 17].map(|cpu| cpus.position(cpu));
        let expected = [
            Some(0),
            Some(3),
            None,
            None,
            Some(4),
            Some(7),
            None,
            Some(8),
            None,
        ];
        assert_eq!(positions, expected);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["", "x", "3-1", "0-", "0,,1", "99999999999"] {
            assert_eq!(PossibleCpus::parse(text), None, "{text}");
        }
    }

    #[test]
    fn this_host_has_its_first_cpu_first() {
        assert_eq!(PossibleCpus::of_running_kernel().position(0), Some(0));
        assert!(n_cpus_online() > 0);
    }
}
