//! What is looked up in an ELF file: sections, single symbols, where a file offset is loaded.
//!
//! The file belongs to a target and is hostile: it is never mapped, only read through a bounded cache; any
//! bytes give an error or a value.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;

use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, ObjectSymbolTable as _,
    ReadCache, ReadRef as _, Relocation, RelocationFlags, RelocationTarget, elf,
};

/// Most bytes that are read of one file.
const MAX_READ_BYTES: u64 = 256 << 20;

/// Relocations of slots through which functions of other files are called.
const IS_FUNCTION: [elf::RelocationType; 4] = [
    elf::R_X86_64_JUMP_SLOT,
    elf::R_X86_64_GLOB_DAT,
    elf::R_AARCH64_JUMP_SLOT,
    elf::R_AARCH64_GLOB_DAT,
];

/// Relocations of slots whose value a function of this file chooses.
const IS_CHOSEN: [elf::RelocationType; 2] = [elf::R_X86_64_IRELATIVE, elf::R_AARCH64_IRELATIVE];

/// What the dynamic linker binds a slot to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Import {
    /// A symbol, which may be defined in this file or in another.
    Symbol(String),
    /// What the function of this file at an address chooses when the program starts.
    ChosenBy(u64),
}

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Not a 64-bit ELF file, or a damaged one.
    #[error("no usable ELF file: {0}")]
    Parse(#[from] object::Error),
}

/// A loaded segment: its file range and its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file.
    pub file_offset: u64,
    /// Bytes in the file.
    pub file_bytes: u64,
    /// Virtual address as linked.
    pub address: u64,
}

/// A half-open range of virtual addresses, as linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddressRange {
    /// First address.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
}

impl AddressRange {
    /// Whether an address lies in it.
    #[must_use]
    pub const fn contains(&self, address: u64) -> bool {
        address >= self.start && address < self.end
    }

    /// Whether nothing lies in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start >= self.end
    }
}

/// Whether a file is a program for the CPU and word size of this one; `None`: it is no ELF file.
#[must_use]
pub fn is_of_this_architecture(file: &File) -> Option<bool> {
    // e_ident: magic, EI_CLASS at 4, EI_DATA at 5; e_machine at 18.
    let mut head = [0; 20];
    file.read_exact_at(&mut head, 0).ok()?;
    if !head.starts_with(&elf::ELFMAG) {
        return None;
    }
    let machine = elf::Machine(u16::from_le_bytes([head[18], head[19]]));
    let own = if cfg!(target_arch = "aarch64") {
        elf::EM_AARCH64
    } else {
        elf::EM_X86_64
    };
    let is_64_bit = elf::FileClass(head[4]) == elf::ELFCLASS64;
    let is_little_endian = elf::DataEncoding(head[5]) == elf::ELFDATA2LSB;
    Some(is_64_bit && is_little_endian && machine == own)
}

/// A reader that gives up after [`MAX_READ_BYTES`].
#[derive(Debug)]
struct Bounded {
    file: File,
    left: Cell<u64>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n_read = self.file.read(buffer)?;
        let Some(left) = self.left.get().checked_sub(n_read as u64) else {
            return Err(std::io::Error::other("the file is read too much"));
        };
        self.left.set(left);
        Ok(n_read)
    }
}

impl Seek for Bounded {
    fn seek(&mut self, position: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(position)
    }
}

/// An open ELF file and what has been read of it.
pub struct ElfReader {
    cache: ReadCache<Bounded>,
}

/// A parsed ELF file, borrowed from its [`ElfReader`].
pub struct Elf<'a> {
    file: ElfFile64<'a, Endianness, &'a ReadCache<Bounded>>,
    cache: &'a ReadCache<Bounded>,
}

impl ElfReader {
    /// Takes the file; nothing is read yet.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self {
            cache: ReadCache::new(Bounded {
                file,
                left: Cell::new(MAX_READ_BYTES),
            }),
        }
    }

    /// Parses the headers.
    pub fn parse(&self) -> Result<Elf<'_>, ElfError> {
        Ok(Elf {
            file: ElfFile64::parse(&self.cache)?,
            cache: &self.cache,
        })
    }
}

impl Elf<'_> {
    /// The loaded segments.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        let endian = self.file.endian();
        let headers = self
            .file
            .elf_header()
            .program_headers(endian, self.cache)
            .unwrap_or(&[]);
        headers
            .iter()
            .filter(|header| header.p_type(endian) == elf::PT_LOAD)
            .map(|header| Segment {
                file_offset: header.p_offset(endian),
                file_bytes: header.p_filesz(endian),
                address: header.p_vaddr(endian),
            })
            .collect()
    }

    /// Address and size of a section.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<AddressRange> {
        let section = self.file.section_by_name(name)?;
        let start = section.address();
        Some(AddressRange {
            start,
            end: start.checked_add(section.size())?,
        })
    }

    /// Contents of a section, if it is at most `max_bytes` long.
    #[must_use]
    pub fn section_bytes(&self, name: &str, max_bytes: u64) -> Option<&[u8]> {
        let section = self.file.section_by_name(name)?;
        let (offset, size) = section.file_range()?;
        if size > max_bytes {
            return None;
        }
        self.cache.read_bytes_at(offset, size).ok()
    }

    /// Whether the dynamic string table (names of symbols and of needed libraries) contains `text`: a look
    /// that is cheaper than the symbols.
    #[must_use]
    pub fn dynamic_strings_contain(&self, text: &str) -> bool {
        self.section_bytes(".dynstr", 32 << 20)
            .is_some_and(|strings| memchr::memmem::find(strings, text.as_bytes()).is_some())
    }

    /// Address and size of the defined dynamic or, failing that, static symbols of these names; the order of
    /// the result is that of the names.
    #[must_use]
    pub fn symbols<const N: usize>(&self, names: [&str; N]) -> [Option<AddressRange>; N] {
        let mut found = [None; N];
        for symbol in self.file.dynamic_symbols().chain(self.file.symbols()) {
            if symbol.is_undefined() || symbol.address() == 0 {
                continue;
            }
            let Ok(symbol_name) = symbol.name_bytes() else {
                continue;
            };
            if let Some(idx) = names.iter().position(|name| name.as_bytes() == symbol_name)
                && found[idx].is_none()
            {
                let start = symbol.address();
                found[idx] = start
                    .checked_add(symbol.size())
                    .map(|end| AddressRange { start, end });
                if found.iter().all(Option::is_some) {
                    break;
                }
            }
        }
        found
    }

    /// Addresses of those of these names that the file itself defines for the dynamic linker.
    #[must_use]
    pub fn defined(&self, names: &HashSet<&str>) -> HashMap<String, u64> {
        let symbols = self.file.dynamic_symbols();
        let defined = symbols.filter(|it| !it.is_undefined() && it.address() != 0);
        let wanted = defined.filter_map(|it| {
            let name = it.name().ok().filter(|name| names.contains(name))?;
            Some((name.to_owned(), it.address()))
        });
        wanted.collect()
    }

    /// The functions that the dynamic linker binds, by the address of the slot that it writes them into; at most
    /// `max_slots`. ELF for x86-64 and for AArch64, "Relocation Types".
    #[must_use]
    pub fn imports(&self, max_slots: usize) -> HashMap<u64, Import> {
        let symbols = self.file.dynamic_symbol_table();
        let relocations = self.file.dynamic_relocations().into_iter().flatten();
        let import = |(slot, relocation): (u64, Relocation)| {
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                return None;
            };
            let import = match relocation.target() {
                _ if IS_CHOSEN.contains(&r_type) => {
                    Import::ChosenBy(relocation.addend().cast_unsigned())
                }
                RelocationTarget::Symbol(idx) if IS_FUNCTION.contains(&r_type) => {
                    let symbol = symbols.as_ref()?.symbol_by_index(idx).ok()?;
                    Import::Symbol(symbol.name().ok()?.to_owned())
                }
                _ => return None,
            };
            Some((slot, import))
        };
        relocations.filter_map(import).take(max_slots).collect()
    }

    /// Bytes of the file at a virtual address.
    #[must_use]
    pub fn bytes_at(&self, address: u64, n_bytes: u64) -> Option<&[u8]> {
        let segment = self.segments().into_iter().find(|segment| {
            address >= segment.address
                && address.saturating_add(n_bytes)
                    <= segment.address.saturating_add(segment.file_bytes)
        })?;
        self.cache
            .read_bytes_at(segment.file_offset + (address - segment.address), n_bytes)
            .ok()
    }
}

/// Difference between where a file is mapped and where it was linked to be, from any one of its mappings.
///
/// Computed from the segment that holds the mapping's file offset: the lowest mapping of a file can be a stale
/// reservation.
#[must_use]
pub fn load_bias(
    segments: &[Segment],
    mapping_start: u64,
    mapping_file_offset: u64,
) -> Option<u64> {
    // A mapping begins at a page: on arm64 one of 4, 16 or 64 KiB.
    let page_mask = rustix::param::page_size() as u64 - 1;
    load_bias_by(page_mask, segments, mapping_start, mapping_file_offset)
}

fn load_bias_by(
    page_mask: u64,
    segments: &[Segment],
    mapping_start: u64,
    mapping_file_offset: u64,
) -> Option<u64> {
    let first = |segment: &Segment| segment.file_offset & !page_mask;
    let holds = |segment: &&Segment| {
        mapping_file_offset >= first(segment)
            && mapping_file_offset < segment.file_offset.saturating_add(segment.file_bytes)
    };
    // The page on which one segment ends is often that on which the next begins, and then is mapped for both.
    let begins = |segment: &&Segment| mapping_file_offset == first(segment);
    let mut held = segments.iter().filter(holds);
    let segment = held.clone().find(begins).or_else(|| held.next())?;
    let address = segment
        .address
        .wrapping_sub(segment.file_offset)
        .wrapping_add(mapping_file_offset);
    Some(mapping_start.wrapping_sub(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bias_is_taken_from_the_segment_that_holds_the_mapping() {
        let segments = [
            Segment {
                file_offset: 0,
                file_bytes: 0x800,
                address: 0,
            },
            Segment {
                file_offset: 0x1234,
                file_bytes: 0x4000,
                address: 0x3234,
            },
        ];
        let bias = |start, offset| load_bias_by(0xfff, &segments, start, offset);
        assert_eq!(bias(0x7000_0000, 0), Some(0x7000_0000));
        // 0x1234 lies on the page 0x1000, which is linked to be at 0x3000.
        assert_eq!(bias(0x7000_3000, 0x1000), Some(0x7000_0000));
        assert_eq!(bias(0x7000_3000, 0x9_0000), None);
    }

    #[test]
    fn a_segment_that_begins_on_a_page_is_told_from_the_one_that_ends_there() {
        let segments = [
            Segment {
                file_offset: 0,
                file_bytes: 0x1_2340,
                address: 0,
            },
            Segment {
                file_offset: 0x1_2340,
                file_bytes: 0x4_0000,
                address: 0x2_2340,
            },
        ];
        for page_bytes in [0x1000, 0x4000, 0x1_0000] {
            let mask = page_bytes - 1;
            let bias = |start, offset| load_bias_by(mask, &segments, start, offset);
            let mapping = 0x1_2340 & !mask;
            assert_eq!(
                bias(0x7001_0000 + mapping, mapping),
                Some(0x7000_0000),
                "{page_bytes:#x}"
            );
            assert_eq!(bias(0x7000_0000, 0), Some(0x7000_0000));
        }
    }

    #[test]
    fn this_program_has_its_own_symbols() {
        let reader = ElfReader::new(File::open("/proc/self/exe").unwrap());
        let elf = reader.parse().unwrap();
        assert!(!elf.segments().is_empty());
        assert!(elf.section(".text").is_some_and(|text| !text.is_empty()));
        let [main, none] = elf.symbols(["main", "no such symbol"]);
        assert!(main.is_some() && none.is_none());
    }
}
