//! What of a process's memory is its own and can be written: where a heap can be. And which of its pages are there
//! now, from `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst), so that a reader touches no other.
//!
//! Reading a page that is not there would bring it in: from swap, or from a file. So it would count as the process's.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::unix::fs::FileExt as _;

use super::facts;
use super::map_line::MapLine;
use crate::ids::{Address, Pid};

/// Most bytes of a maps file that are read.
const MAX_MAPS_BYTES: u64 = 8 << 20;

/// Bytes of an entry of `pagemap`.
const ENTRY_BYTES: usize = 8;

/// Entries that are read at once: those of 32 MiB.
const N_ENTRIES: usize = 8192;

/// Most stretches of present pages that are kept (16 MiB of memory); what comes after is not read.
const MAX_RUNS: usize = 1 << 20;

/// Bits of `pagemap`: the page is present; it is swapped out.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// What a stretch of memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Backed by nothing: heaps, arenas, stacks of threads.
    Anonymous,
    /// Variables of a program or library that begin with a value: its `.data`.
    Data,
    /// Variables that begin as zero, its `.bss`, and anonymous memory that happens to follow: they are one to the kernel.
    DataAndMore,
}

/// A stretch of memory that the process alone can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// What it is.
    pub kind: RegionKind,
}

/// Pages side by side that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First address, that of a page.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// Of what they are part.
    pub kind: RegionKind,
}

/// Bytes of memory that are not read, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NotRead {
    /// Swapped out.
    pub swapped: u64,
    /// Shared with other processes, or could be.
    pub shared: u64,
    /// Private views of files that are no program or library.
    pub files: u64,
    /// It went away, or changed its protection, while it was read; or there were too many pieces.
    pub failed: u64,
}

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// In memory.
    Present,
    /// Swapped out.
    Swapped,
    /// Nowhere: it was never touched, or given back.
    Absent,
}

/// Which pages of a process are there.
#[derive(Debug)]
pub struct PageMap {
    file: File,
    /// Bytes of a page.
    pub page_bytes: u64,
}

impl PageMap {
    /// Opens it.
    pub fn of_process(pid: Pid) -> std::io::Result<Self> {
        Ok(Self {
            file: File::open(format!("/proc/{pid}/pagemap"))?,
            page_bytes: rustix::param::page_size() as u64,
        })
    }

    /// Tells of each page of a range, which begins and ends with a page, by its address. Returns how far it came: what is
    /// behind was unmapped meanwhile.
    pub fn look(
        &self,
        start: u64,
        end: u64,
        tell: &mut dyn FnMut(u64, Page),
    ) -> std::io::Result<u64> {
        let mut entries = vec![0; N_ENTRIES * ENTRY_BYTES];
        let mut at = start;
        while at < end {
            let n_pages = ((end - at) / self.page_bytes).min(N_ENTRIES as u64);
            let wanted = &mut entries[..n_pages as usize * ENTRY_BYTES];
            let n_read = self
                .file
                .read_at(wanted, at / self.page_bytes * ENTRY_BYTES as u64)?;
            let pages = wanted[..n_read].as_chunks::<ENTRY_BYTES>().0;
            if pages.is_empty() {
                return Ok(at);
            }
            for page in pages {
                let entry = u64::from_le_bytes(*page);
                let page = match (entry & PRESENT, entry & SWAPPED) {
                    (0, 0) => Page::Absent,
                    (0, _) => Page::Swapped,
                    _ => Page::Present,
                };
                tell(at, page);
                at += self.page_bytes;
            }
        }
        Ok(end)
    }
}

/// The pages of a process that a heap can be on, and that are there.
#[derive(Debug, Clone, Default)]
pub struct Resident {
    /// In the order of their addresses; no two touch unless their kinds differ.
    pub runs: Vec<Run>,
    /// All of what the pages are part of, there or not, in the order of their addresses.
    regions: Vec<Region>,
    /// What is left out.
    pub not_read: NotRead,
}

impl Resident {
    /// Looks the pages of a process up.
    pub fn of_process(pid: Pid) -> std::io::Result<Self> {
        match Self::shown(pid) {
            Ok(resident) if resident.runs.is_empty() => {
                facts::stand_in(pid).map_or(Ok(resident), Self::shown)
            }
            result => result,
        }
    }

    fn shown(pid: Pid) -> std::io::Result<Self> {
        let mut not_read = NotRead::default();
        let maps = File::open(format!("/proc/{pid}/maps"))?;
        let regions = regions(BufReader::new(maps.take(MAX_MAPS_BYTES)), &mut not_read)?;
        let pagemap = PageMap::of_process(pid)?;
        let mut resident = Self {
            runs: Vec::new(),
            not_read,
            regions: Vec::new(),
        };
        for region in &regions {
            resident.add(&pagemap, *region)?;
        }
        resident.regions = regions;
        Ok(resident)
    }

    /// Bytes of the pages that are there.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Whether all of a range is there.
    #[must_use]
    pub fn contains(&self, address: Address, n_bytes: u64) -> bool {
        let Some(end) = address.0.checked_add(n_bytes) else {
            return false;
        };
        let mut at = address.0;
        let mut idx = self.runs.partition_point(|run| run.end <= at);
        while let Some(run) = self.runs.get(idx).filter(|run| run.start <= at) {
            if end <= run.end {
                return true;
            }
            at = run.end;
            idx += 1;
        }
        false
    }

    /// Whether a range lies in one region, whether its pages are there or not.
    #[must_use]
    pub fn is_mapped(&self, address: Address, n_bytes: u64) -> bool {
        let idx = self
            .regions
            .partition_point(|region| region.end <= address.0);
        self.regions
            .get(idx)
            .is_some_and(|region| region.start <= address.0 && n_bytes <= region.end - address.0)
    }

    fn add(&mut self, pagemap: &PageMap, region: Region) -> std::io::Result<()> {
        let seen = pagemap.look(region.start, region.end, &mut |at, page| match page {
            Page::Present => self.push(at, at + pagemap.page_bytes, region.kind),
            Page::Swapped => self.not_read.swapped += pagemap.page_bytes,
            Page::Absent => {}
        })?;
        self.not_read.failed += region.end - seen;
        Ok(())
    }

    fn push(&mut self, start: u64, end: u64, kind: RegionKind) {
        let is_full = self.runs.len() >= MAX_RUNS;
        match self.runs.last_mut() {
            Some(last) if last.end == start && last.kind == kind => last.end = end,
            _ if is_full => self.not_read.failed += end - start,
            _ => self.runs.push(Run { start, end, kind }),
        }
    }
}

/// The regions of a maps file, in its order.
fn regions(
    mut maps: impl std::io::BufRead,
    not_read: &mut NotRead,
) -> std::io::Result<Vec<Region>> {
    let mut text = Vec::new();
    maps.read_to_end(&mut text)?;
    let lines: Vec<MapLine<'_>> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| MapLine::parse(line.trim_ascii_end()))
        .collect();
    let programs: HashSet<_> = lines
        .iter()
        .filter(|line| line.is_executable())
        .filter_map(MapLine::backing)
        .collect();
    let mut regions = Vec::new();
    // Where the variables of a program end so far: what has no file behind them are those that begin as zero.
    let mut end_of_data = None;
    for line in &lines {
        let n_bytes = line.end - line.start;
        let follows_data = end_of_data == Some(line.start);
        let file = line.backing();
        let is_of_program = file.is_some_and(|file| programs.contains(&file));
        if is_of_program {
            end_of_data = Some(line.end);
        }
        if !line.is_read_write() || is_of_kernel(line.name) {
            continue;
        }
        let kind = match (file, !line.is_shared()) {
            (_, false) => {
                not_read.shared += n_bytes;
                continue;
            }
            (Some(_), true) if !is_of_program => {
                not_read.files += n_bytes;
                continue;
            }
            (Some(_), true) => RegionKind::Data,
            (None, true) if follows_data && line.name.is_empty() => RegionKind::DataAndMore,
            (None, true) => RegionKind::Anonymous,
        };
        regions.push(Region {
            start: line.start,
            end: line.end,
            kind,
        });
    }
    Ok(regions)
}

/// The kernel's own mappings, those of devices, and the stack of the main thread, where no object is.
fn is_of_kernel(name: &[u8]) -> bool {
    let is_device = name.starts_with(b"/dev/") && !name.starts_with(b"/dev/shm/");
    name.starts_with(b"[v") || name.starts_with(b"[stack") || is_device
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"\
1000-2000 r-xp 00000000 fe:01 7    /bin/python
2000-3000 r--p 00001000 fe:01 7    /bin/python
3000-4000 rw-p 00002000 fe:01 7    /bin/python
4000-6000 rw-p 00000000 00:00 0 
9000-a000 rw-p 00000000 00:00 0    [heap]
b000-c000 rw-p 00000000 fe:01 8    /data/weights
c000-d000 rw-s 00000000 00:01 9    /dev/shm/x
d000-e000 rw-p 00000000 00:00 0 
e000-f000 r--p 00000000 00:00 0 
f000-11000 rw-p 00000000 00:00 0   [stack]
";

    #[test]
    fn heaps_and_variables_are_read_and_files_and_shared_memory_are_not() {
        let mut not_read = NotRead::default();
        let found = regions(MAPS, &mut not_read).unwrap();
        let shown: Vec<_> = found
            .iter()
            .map(|region| (region.start, region.kind))
            .collect();
        assert_eq!(
            shown,
            [
                (0x3000, RegionKind::Data),
                (0x4000, RegionKind::DataAndMore),
                (0x9000, RegionKind::Anonymous),
                (0xd000, RegionKind::Anonymous),
            ]
        );
        assert_eq!((not_read.files, not_read.shared), (0x1000, 0x1000));
    }

    #[test]
    fn own_memory_is_resident_and_a_range_may_span_runs() {
        let resident = Resident::of_process(Pid(std::process::id())).unwrap();
        let value = Box::new([7_u64; 16]);
        assert!(resident.contains(Address(&raw const value[0] as u64), 128));
        assert!(!resident.contains(Address(8), 8));
        let run = |start, end, kind| Run { start, end, kind };
        let made = Resident {
            runs: vec![
                run(0x1000, 0x2000, RegionKind::Data),
                run(0x2000, 0x3000, RegionKind::Anonymous),
                run(0x5000, 0x6000, RegionKind::Anonymous),
            ],
            ..Resident::default()
        };
        assert!(made.contains(Address(0x1ff8), 16));
        assert!(!made.contains(Address(0x2ff8), 16) && !made.contains(Address(u64::MAX), 16));
    }
}
