//! Where the functions of an ELF file begin and end, from the table that finds its unwind entries
//! (`.eh_frame_hdr`, Linux Standard Base, Exception Frames): stripped files have no names, but they have this.
//!
//! Only the form that linkers write is read: a sorted table of pairs of 32-bit offsets from the section's start.
//! A unwind entry counts only if it names the start that the table names. The file is hostile; see
//! [`super::headers`].

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use object::LittleEndian;
use object::elf::{PT_GNU_EH_FRAME, PT_LOAD, ProgramHeader64};
use object::read::elf::ProgramHeader as _;

use super::elf::AddressRange;

/// Most entries of a table (2.4 MB); larger ones are not used.
const MAX_ENTRIES: u32 = 300_000;

/// Version 1; a pointer as 32 bits relative to itself; 32 bits of count; pairs of 32 bits relative to the section.
const HEADER: [u8; 4] = [1, 0x1b, 0x03, 0x3b];

const HEADER_BYTES: u64 = 12;

/// The unwind entries of a file.
#[derive(Debug)]
pub(super) struct UnwindTable {
    /// Address of the section: offsets count from here.
    address: u64,
    /// Sorted by start.
    entries: Box<[Entry]>,
    segments: Vec<ProgramHeader64<LittleEndian>>,
}

/// Offsets from the section's address.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: i32,
    /// Of the unwind entry (FDE).
    at: i32,
}

impl UnwindTable {
    /// Reads the table; `None` where there is none of the usual form.
    pub(super) fn read(file: &File, segments: Vec<ProgramHeader64<LittleEndian>>) -> Option<Self> {
        let endian = LittleEndian;
        let section = segments
            .iter()
            .find(|segment| segment.p_type(endian) == PT_GNU_EH_FRAME)?;
        let (address, offset) = (section.p_vaddr(endian), section.p_offset(endian));
        let mut header = [0; HEADER_BYTES as usize];
        file.read_exact_at(&mut header, offset).ok()?;
        let (form, count) = (header.first_chunk()?, u32_at(&header, 8)?);
        if *form != HEADER || count > MAX_ENTRIES {
            return None;
        }
        let mut bytes = vec![0; count as usize * size_of::<Entry>()];
        file.read_exact_at(&mut bytes, offset.checked_add(HEADER_BYTES)?)
            .ok()?;
        let (pairs, _) = bytes.as_chunks::<{ size_of::<Entry>() }>();
        let entries: Box<[Entry]> = pairs
            .iter()
            .map(|[a, b, c, d, e, f, g, h]| Entry {
                start: i32::from_le_bytes([*a, *b, *c, *d]),
                at: i32::from_le_bytes([*e, *f, *g, *h]),
            })
            .collect();
        entries
            .is_sorted_by_key(|entry| entry.start)
            .then_some(Self {
                address,
                entries,
                segments,
            })
    }

    /// Where functions begin, ascending.
    pub(super) fn starts(&self) -> impl Iterator<Item = u64> {
        let entries = self.entries.iter();
        entries.map(|entry| self.address.wrapping_add_signed(entry.start.into()))
    }

    /// The function that holds an address, as linked.
    pub(super) fn lookup(&self, file: &File, address: u64) -> Option<AddressRange> {
        let offset = address.wrapping_sub(self.address).cast_signed();
        let behind = self
            .entries
            .partition_point(|entry| i64::from(entry.start) <= offset);
        let entry = self.entries[..behind].last()?;
        let start = self.address.wrapping_add_signed(entry.start.into());
        let at = self.address.wrapping_add_signed(entry.at.into());
        // Length, offset of the common part, start relative to itself, number of bytes.
        let mut fde = [0; 16];
        file.read_exact_at(&mut fde, self.file_offset(at)?).ok()?;
        let start_offset = u32_at(&fde, 8)?.cast_signed();
        let is_of_function = at.wrapping_add(8).wrapping_add_signed(start_offset.into()) == start;
        let end = start.checked_add(u32_at(&fde, 12)?.into())?;
        (is_of_function && address < end).then_some(AddressRange { start, end })
    }

    /// Bytes of memory that the table takes beside itself.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.entries) + size_of_val(&*self.segments)
    }

    fn file_offset(&self, address: u64) -> Option<u64> {
        let endian = LittleEndian;
        let mut loaded = self
            .segments
            .iter()
            .filter(|segment| segment.p_type(endian) == PT_LOAD);
        loaded.find_map(|segment| {
            let in_segment = address.checked_sub(segment.p_vaddr(endian))?;
            let offset = segment.p_offset(endian).checked_add(in_segment)?;
            (in_segment < segment.p_filesz(endian)).then_some(offset)
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::super::headers::Headers;
    use super::*;

    /// The functions that readelf shows: `... FDE cie=... pc=START..END`.
    fn shown(path: &Path) -> Option<Vec<AddressRange>> {
        let output = Command::new("readelf")
            .args(["-W", "--debug-dump=frames"])
            .arg(path)
            .output();
        let Ok(output) = output else {
            eprintln!("skipped: no readelf");
            return None;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let address = |hex| u64::from_str_radix(hex, 16).unwrap();
        let ranges = text.lines().filter_map(|line| {
            let (start, end) = line
                .split_once(" FDE ")?
                .1
                .split_once("pc=")?
                .1
                .split_once("..")?;
            Some(AddressRange {
                start: address(start),
                end: address(end),
            })
        });
        Some(ranges.collect())
    }

    fn read(path: &Path) -> (File, Option<UnwindTable>) {
        let file = File::open(path).unwrap();
        let segments = Headers::read(&file).unwrap().segments;
        let table = UnwindTable::read(&file, segments);
        (file, table)
    }

    #[test]
    fn functions_are_those_that_readelf_shows() {
        let mut n_functions = 0;
        for name in ["libc.so.6", "libz.so.1", "libm.so.6", "libstdc++.so.6"] {
            let path = Path::new("/lib/x86_64-linux-gnu").join(name);
            if !path.exists() {
                continue;
            }
            let Some(mut functions) = shown(&path) else {
                return;
            };
            functions.sort_by_key(|function| function.start);
            let (file, table) = read(&path);
            let table = table.unwrap();
            for function in functions.iter().filter(|function| !function.is_empty()) {
                for address in [function.start, function.end - 1] {
                    assert_eq!(
                        table.lookup(&file, address),
                        Some(*function),
                        "{name} {address:#x}"
                    );
                }
            }
            let gaps = functions
                .windows(2)
                .filter(|pair| pair[0].end < pair[1].start);
            for pair in gaps {
                assert_eq!(
                    table.lookup(&file, pair[0].end),
                    None,
                    "{name} {:#x}",
                    pair[0].end
                );
            }
            assert_eq!(table.lookup(&file, 0), None);
            assert_eq!(table.lookup(&file, u64::MAX), None);
            n_functions += functions.len();
        }
        eprintln!("{n_functions} functions");
        assert!(n_functions > 0 || !Path::new("/lib/x86_64-linux-gnu/libc.so.6").exists());
    }
}
