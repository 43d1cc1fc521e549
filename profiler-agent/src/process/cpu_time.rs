//! The time that a process has spent on CPUs.

use std::fs;
use std::time::Duration;

use crate::ids::Pid;

/// Of all its threads, those that have ended included; `None`: it has gone. Exact to a tick of the kernel's clock, 10 ms
/// mostly (proc_pid_stat(5)).
#[must_use]
pub fn read(pid: Pid) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let n_ticks = parse(&stat)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_millis(
        n_ticks.saturating_mul(1000) / per_second,
    ))
}

/// `utime` and `stime`, fields 14 and 15. The name, field 2, can have blanks and parentheses.
fn parse(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    next()?.checked_add(next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_may_be_anything() {
        let stat = "7 (a) b) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14";
        assert_eq!(parse(stat), Some(11 + 12));
        assert_eq!(parse("7 (a"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn work_takes_time() {
        let own = Pid(std::process::id());
        let before = read(own).unwrap();
        while read(own).unwrap() < before + Duration::from_millis(20) {}
        assert_eq!(read(Pid(u32::MAX)), None);
    }
}
