//! `/proc/PID/smaps`: what is mapped where, and how much of it is resident (Documentation/filesystems/proc.rst).
//!
//! The kernel walks the page tables for it: some milliseconds for a gigabyte, during which the process may have to wait
//! with a mapping of its own. It is read when somebody asks, not time and again.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use super::facts;
use super::map_line::MapLine;
use super::maps::FileId;
use crate::ids::Pid;

/// Most mappings that are read; `vm.max_map_count` is far below by default.
const MAX_MAPPINGS: usize = 1 << 20;

/// Longest line that is kept: a path has 4,096 bytes at most, each of which may be written as four.
const MAX_LINE: u64 = 20_000;

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedRegion {
    /// First address.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// Code can run there.
    pub is_executable: bool,
    /// Other processes see what is written.
    pub is_shared: bool,
    /// The file behind it; `None`: none.
    pub file: Option<FileId>,
    /// What the kernel calls it: a path, `[heap]`, `[stack]`, or nothing.
    pub name: Vec<u8>,
    /// Bytes of it that are resident.
    pub resident: u64,
}

/// Every mapping, in the order of the addresses.
pub fn of_process(pid: Pid) -> std::io::Result<Vec<MappedRegion>> {
    let shown = |pid: Pid| parse(BufReader::new(File::open(format!("/proc/{pid}/smaps"))?));
    let regions = shown(pid)?;
    match facts::stand_in(pid) {
        // Where the main thread has ended another one shows the memory.
        Some(other) if regions.is_empty() => shown(other),
        _ => Ok(regions),
    }
}

fn parse(mut smaps: impl BufRead) -> std::io::Result<Vec<MappedRegion>> {
    let mut regions: Vec<MappedRegion> = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = Read::take(&mut smaps, MAX_LINE);
        if limited.read_until(b'\n', &mut line)? == 0 {
            return Ok(regions);
        }
        let line = line.trim_ascii_end();
        if let Some(n_bytes) = resident_bytes(line) {
            if let Some(region) = regions.last_mut() {
                region.resident = n_bytes;
            }
        } else if let Some(region) = header(line) {
            if regions.len() >= MAX_MAPPINGS {
                return Ok(regions);
            }
            regions.push(region);
        }
    }
}

/// A line that tells how much is resident: `Rss:      12 kB`.
fn resident_bytes(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"Rss:")?.strip_suffix(b"kB")?;
    let kib: u64 = std::str::from_utf8(rest).ok()?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The first line of a mapping.
fn header(line: &[u8]) -> Option<MappedRegion> {
    let line = MapLine::parse(line)?;
    Some(MappedRegion {
        start: line.start,
        end: line.end,
        is_executable: line.is_executable(),
        is_shared: line.is_shared(),
        file: line.backing(),
        name: line.name.to_vec(),
        resident: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_have_their_resident_bytes() {
        let smaps = b"\
1000-3000 r-xp 00000000 fe:01 7    /bin/a b
Size:                  8 kB
Rss:                   4 kB
VmFlags: rd ex mr
9000-a000 rw-p 00000000 00:00 0    [heap]
Rss:                   0 kB
";
        let regions = parse(&smaps[..]).unwrap();
        assert_eq!(regions.len(), 2);
        assert_eq!((regions[0].start, regions[0].end), (0x1000, 0x3000));
        assert_eq!(
            (regions[0].resident, &regions[0].name[..]),
            (4096, &b"/bin/a b"[..])
        );
        assert!(regions[0].is_executable && !regions[0].is_shared);
        assert!(!regions[1].is_executable && regions[1].file.is_none());
    }

    #[test]
    fn the_own_mappings_are_what_is_resident() {
        let regions = of_process(Pid(std::process::id())).unwrap();
        let sum: u64 = regions.iter().map(|region| region.resident).sum();
        let total = super::super::resident::total(Pid(std::process::id())).unwrap();
        // The kernel counts per CPU, so that its sum lags.
        assert!(sum.abs_diff(total) < total / 4 + (4 << 20), "{sum} {total}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_left_out(text in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let _ = parse(&text[..]);
        }
    }
}
