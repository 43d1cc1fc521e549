//! How large the page is that backs an address: small, or a huge one.
//!
//! `/proc/PID/pagemap` says which frame backs an address, and `/proc/kpageflags` of which pages that frame's folio is
//! made (Documentation/admin-guide/mm/pagemap.rst). Both need CAP_SYS_ADMIN; without it every fault counts as one
//! page. Only anonymous memory is looked at: a fault on a file makes no more resident than was in the page cache.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use crate::ids::{Address, Generation, Pid};

/// Where the kernel shows how huge pages are given (Documentation/admin-guide/mm/transhuge.rst).
const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// Bytes of an entry of either file.
const ENTRY_BYTES: u64 = 8;

/// Entries that are read to find the ends of a folio: those of a huge page on machines with pages of 4 KiB.
const N_ENTRIES: u64 = 512;

/// Most processes whose file is kept open.
const MAX_OPEN: usize = 64;

/// Bits of `pagemap`: the page is present; its frame number.
const PRESENT: u64 = 1 << 63;
const FRAME_MASK: u64 = (1 << 55) - 1;

/// Bits of `kpageflags` (include/uapi/linux/kernel-page-flags.h).
const KPF_ANON: u64 = 1 << 12;
const KPF_COMPOUND_HEAD: u64 = 1 << 15;
const KPF_COMPOUND_TAIL: u64 = 1 << 16;

/// Opens what shows the pages of a process, `/proc/PID/pagemap`. Frames are shown to who opened it with CAP_SYS_ADMIN.
pub type PagemapOpener = Box<dyn FnMut(Pid) -> Option<File> + Send>;

/// Opens it with the rights of this thread.
#[must_use]
pub fn open_pagemap(pid: Pid) -> Option<File> {
    File::open(format!("/proc/{pid}/pagemap")).ok()
}

/// Looks pages up.
pub struct HugePages {
    open: PagemapOpener,
    flags: Option<File>,
    small_bytes: u64,
    huge_bytes: u64,
    has_sizes_between: bool,
    by_program: HashMap<Generation, Option<File>>,
}

impl std::fmt::Debug for HugePages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HugePages")
            .field("huge_bytes", &self.huge_bytes)
            .finish_non_exhaustive()
    }
}

impl Default for HugePages {
    fn default() -> Self {
        Self::new(Box::new(open_pagemap))
    }
}

impl HugePages {
    /// Looks up what `open` opens.
    #[must_use]
    pub fn new(open: PagemapOpener) -> Self {
        let small_bytes = rustix::param::page_size() as u64;
        let huge_bytes: Option<u64> = fs::read_to_string(format!("{SETTINGS}/hpage_pmd_size"))
            .ok()
            .and_then(|text| text.trim().parse().ok());
        Self {
            open,
            // Without huge pages there is nothing to look up.
            flags: huge_bytes.and_then(|_| File::open("/proc/kpageflags").ok()),
            small_bytes,
            huge_bytes: huge_bytes.unwrap_or(small_bytes),
            has_sizes_between: huge_bytes.is_some_and(has_sizes_below),
            by_program: HashMap::new(),
        }
    }

    /// Bytes of the smallest page.
    #[must_use]
    pub const fn small_bytes(&self) -> u64 {
        self.small_bytes
    }

    /// Bytes of a huge page; those of a small one where there are none.
    #[must_use]
    pub const fn huge_bytes(&self) -> u64 {
        self.huge_bytes
    }

    /// Whether a fault may be given a page of a size between (6.8+, where the administrator allows it).
    #[must_use]
    pub const fn has_sizes_between(&self) -> bool {
        self.has_sizes_between
    }

    /// Forgets a program.
    pub fn remove(&mut self, generation: Generation) {
        self.by_program.remove(&generation);
    }

    /// Bytes of the page that backs an address of a program; what is a file, or the page of zeros that all share, counts
    /// as small. `None`: nothing is there now, or it may not be looked at.
    pub fn page_bytes(
        &mut self,
        pid: Pid,
        generation: Generation,
        address: Address,
    ) -> Option<u64> {
        let flags = self.flags.as_ref()?;
        if self.by_program.len() >= MAX_OPEN && !self.by_program.contains_key(&generation) {
            self.by_program.clear();
        }
        // Once opened it shows the memory of this program and of no later one.
        let open = &mut self.open;
        let pagemap = self
            .by_program
            .entry(generation)
            .or_insert_with(|| open(pid))
            .as_ref()?;
        let (mut entry, mut own) = ([0; ENTRY_BYTES as usize], [0; ENTRY_BYTES as usize]);
        let place = address.0 / self.small_bytes * ENTRY_BYTES;
        pagemap.read_exact_at(&mut entry, place).ok()?;
        let entry = u64::from_le_bytes(entry);
        let frame = entry & FRAME_MASK;
        if entry & PRESENT == 0 || frame == 0 {
            return None;
        }
        // Most pages stand alone: one entry says so, and the kernel puts each entry together when it is read.
        flags.read_exact_at(&mut own, frame * ENTRY_BYTES).ok()?;
        if !is_part_of_anonymous_folio(u64::from_le_bytes(own)) {
            return Some(self.small_bytes);
        }
        let first = frame / N_ENTRIES * N_ENTRIES;
        let mut bytes = [0; (N_ENTRIES * ENTRY_BYTES) as usize];
        let n_read = flags.read_at(&mut bytes, first * ENTRY_BYTES).ok()?;
        let entries: Vec<u64> = bytes[..n_read]
            .as_chunks()
            .0
            .iter()
            .map(|entry| u64::from_le_bytes(*entry))
            .collect();
        let n_huge = self.huge_bytes / self.small_bytes;
        let n_pages = n_pages_of_folio(&entries, (frame - first) as usize, n_huge).unwrap_or(1);
        Some(n_pages * self.small_bytes)
    }
}

/// Whether the kernel knows huge pages (CONFIG_TRANSPARENT_HUGEPAGE).
#[must_use]
pub fn has_huge_pages() -> bool {
    fs::exists(SETTINGS).unwrap_or(false)
}

/// Whether the kernel is set to give pages of a size below `huge_bytes` (`hugepages-<size>kB/enabled`).
fn has_sizes_below(huge_bytes: u64) -> bool {
    let Ok(entries) = fs::read_dir(SETTINGS) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let size = name.to_str().and_then(|name| {
            let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            kib.parse::<u64>().ok()
        });
        let enabled = fs::read_to_string(entry.path().join("enabled"));
        size.is_some_and(|kib| kib * 1024 < huge_bytes)
            && enabled.is_ok_and(|enabled| !enabled.contains("[never]"))
    })
}

fn is_part_of_anonymous_folio(entry: u64) -> bool {
    entry & KPF_ANON != 0 && entry & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL) != 0
}

/// How many pages the folio of an entry has: `n_huge` if it does not begin here. `None`: it is not anonymous, or not
/// made of several.
fn n_pages_of_folio(entries: &[u64], idx: usize, n_huge: u64) -> Option<u64> {
    let is = |idx: usize, bit: u64| entries.get(idx).is_some_and(|entry| entry & bit != 0);
    if !entries
        .get(idx)
        .copied()
        .is_some_and(is_part_of_anonymous_folio)
    {
        return None;
    }
    let Some(head) = (0..=idx).rev().find(|idx| is(*idx, KPF_COMPOUND_HEAD)) else {
        return Some(n_huge);
    };
    let tails = (head + 1..entries.len()).take_while(|idx| is(*idx, KPF_COMPOUND_TAIL));
    Some(tails.count() as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: u64 = KPF_ANON | KPF_COMPOUND_HEAD;
    const TAIL: u64 = KPF_ANON | KPF_COMPOUND_TAIL;

    #[test]
    fn the_ends_of_a_folio_are_found() {
        let entries = [KPF_ANON, HEAD, TAIL, TAIL, TAIL, HEAD, TAIL, KPF_ANON];
        let sizes: Vec<_> = (0..8)
            .map(|idx| n_pages_of_folio(&entries, idx, 512))
            .collect();
        let (four, two) = (Some(4), Some(2));
        assert_eq!(sizes, [None, four, four, four, four, two, two, None]);
    }

    #[test]
    fn what_is_a_file_or_begins_elsewhere_is_not_measured() {
        assert_eq!(
            n_pages_of_folio(&[KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL], 1, 512),
            None
        );
        assert_eq!(n_pages_of_folio(&[TAIL; 512], 7, 8192), Some(8192));
        assert_eq!(n_pages_of_folio(&[], 7, 512), None);
    }

    #[test]
    fn a_small_page_of_this_process_is_a_small_page() {
        let mut pages = HugePages::default();
        let value = Box::new(7_u64);
        let address = Address(&raw const *value as u64);
        let own = Pid(std::process::id());
        let n_bytes = pages.page_bytes(own, Generation(1), address);
        assert!(n_bytes.is_none_or(|n| n.is_power_of_two() && n >= pages.small_bytes()));
        assert_eq!(pages.page_bytes(own, Generation(1), Address(8)), None);
    }
}
