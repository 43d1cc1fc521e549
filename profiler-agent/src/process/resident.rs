//! Resident memory of a process, by what backs it.
//!
//! Read from `/proc/PID/status` when it is asked for. The tracepoint `kmem:rss_stat` would tell each change as it happens,
//! but runs for every page that any process of the host touches; one read costs some 40 microseconds.

use std::fs;
use std::io;

use super::facts;
use crate::ids::Pid;
use crate::profile::memory::Resident;

/// Reads it. An error means that the process has gone, or that /proc hides it; `NotFound` also that it has no memory of its
/// own, as kernel threads and zombies.
pub fn read(pid: Pid) -> io::Result<Resident> {
    let read = |pid: Pid| fs::read_to_string(format!("/proc/{pid}/status"));
    let parsed = parse(&read(pid)?);
    // Where the main thread has ended another one shows the memory.
    let parsed = match (parsed, facts::stand_in(pid)) {
        (None, Some(other)) => parse(&read(other)?),
        (parsed, _) => parsed,
    };
    parsed.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The sum alone, in bytes, which takes some 5 microseconds. `None`: the process has gone, or has no memory of its own.
#[must_use]
pub fn total(pid: Pid) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let n_pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    n_pages
        .checked_mul(rustix::param::page_size() as u64)
        .filter(|n_bytes| *n_bytes > 0)
}

/// The lines of proc_pid_status(5).
fn parse(status: &str) -> Option<Resident> {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Resident {
        anon: bytes("RssAnon:")?,
        file: bytes("RssFile:")?,
        shmem: bytes("RssShmem:")?,
        swap: bytes("VmSwap:").unwrap_or(0),
        peak: bytes("VmHWM:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_status_are_bytes() {
        let status = "Name:\tx\nVmHWM:\t    900 kB\nRssAnon:\t     300 kB\nRssFile:\t 200 kB\nRssShmem:\t 4 kB\n";
        let resident = parse(status).unwrap();
        assert_eq!(resident.total(), 504 << 10);
        assert_eq!((resident.peak, resident.swap), (900 << 10, 0));
        assert_eq!(parse("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn memory_that_is_touched_is_resident() {
        let own = Pid(std::process::id());
        let before = read(own).unwrap();
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = read(own).unwrap();
        assert!(
            after.anon >= before.anon + (60 << 20),
            "{before:?} {after:?}"
        );
        assert!(after.peak >= after.total());
        drop(touched);
        assert!(read(Pid(4_194_305)).is_err());
    }
}
