//! Names of kernel functions, from `/proc/kallsyms` (proc(5)).
//!
//! The file is read once. A running kernel has 100,000 to 200,000 functions, whose names alone take 3 MiB and
//! more; of those a profile shows a few hundred. So the addresses are kept as they are searched, and the
//! names in small compressed blocks: about 10 bytes a function. A lookup inflates one block, some
//! microseconds: whoever asks keeps the answer.
//!
//! Modules and BPF programs that are loaded later are not in it; reading again is the caller's decision.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};

use flate2::{Compress, Compression, FlushCompress, Status};

use crate::inflate::Inflater;

/// Where the kernel shows its symbols.
const PATH: &str = "/proc/kallsyms";

/// Most bytes of the file that are read; it has about 8 MiB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Most symbols that are kept.
const MAX_SYMBOLS: usize = 1 << 20;

/// Most bytes of a name with its module. The kernel's own bound is 512 for each (`KSYM_NAME_LEN`).
const MAX_NAME_BYTES: usize = 1024;

/// Names in one compressed block. Larger blocks are smaller in sum and slower to look up.
const BLOCK_SYMBOLS: usize = 64;

/// Farther behind a symbol's start an address is not in that function: kallsyms has no sizes.
const MAX_FUNCTION_BYTES: u64 = 1 << 20;

/// Symbols that mark the end of code although their type says code.
const END_MARKERS: [&[u8]; 4] = [b"_etext", b"_einittext", b"_end", b"__init_end"];

/// Why there are no kernel symbols.
#[derive(Debug, thiserror::Error)]
pub enum KallsymsError {
    /// The file cannot be read.
    #[error("/proc/kallsyms: {0}")]
    Io(#[from] io::Error),
    /// The kernel shows every address as zero.
    #[error("/proc/kallsyms hides the addresses (needs CAP_SYSLOG, or kernel.kptr_restrict=0)")]
    Hidden,
    /// The file has no function: a kernel without `CONFIG_KALLSYMS`.
    #[error("/proc/kallsyms names no function")]
    Empty,
}

/// A function of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSymbol {
    /// Its name.
    pub name: Box<str>,
    /// Module that it belongs to (`bpf` for BPF programs); `None` for the kernel itself.
    pub module: Option<Box<str>>,
    /// Its first address.
    pub start: u64,
}

/// The functions of the running kernel.
#[derive(Debug)]
pub struct Kallsyms {
    /// Where functions lie, ascending. On x86-64 one has them all; on arm64 modules and BPF programs lie far below the
    /// kernel itself.
    regions: Box<[Region]>,
    /// Offsets of the functions and of what ends them in their regions, ascending in each.
    starts: Box<[u32]>,
    /// Deflated names, [`BLOCK_SYMBOLS`] a block: each with its module behind a tab, and a NUL. An empty name
    /// marks the start of something that is no function.
    names: Box<[u8]>,
    /// End of each block in `names`.
    block_ends: Box<[u32]>,
    inflater: Inflater,
}

/// Functions whose addresses differ in 32 bits.
#[derive(Debug)]
struct Region {
    /// Address of the first; the others count from it.
    base: u64,
    /// Its index among all.
    first: u32,
}

/// A line of the file: where its name lies among all names.
struct Line {
    address: u64,
    name_start: u32,
    name_bytes: u16,
}

impl Kallsyms {
    /// Reads the symbols of the running kernel.
    pub fn read() -> Result<Self, KallsymsError> {
        let file = File::open(PATH)?;
        Self::parse(BufReader::with_capacity(
            64 * 1024,
            file.take(MAX_FILE_BYTES),
        ))
    }

    /// Reads symbols in the format of `/proc/kallsyms`. Lines that are none are skipped.
    pub fn parse(mut file: impl BufRead) -> Result<Self, KallsymsError> {
        let mut lines = Vec::new();
        let mut names = Vec::new();
        let mut line = Vec::new();
        let mut is_hidden = false;
        while lines.len() < MAX_SYMBOLS {
            line.clear();
            if file.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let Some((address, name)) = parse_line(line.trim_ascii_end()) else {
                continue;
            };
            if address.cast_signed() >= 0 {
                // Not in the kernel's half: per-CPU offsets; or all addresses are zero.
                is_hidden |= address == 0 && !name.is_empty();
                continue;
            }
            let name_bytes = name.len() as u16;
            lines.push(Line {
                address,
                name_start: names.len() as u32,
                name_bytes,
            });
            names.extend_from_slice(name);
        }
        // Of several names of one address the first, as the kernel itself does; a function before a mark.
        lines.sort_by_key(|line| (line.address, line.name_bytes == 0));
        lines.dedup_by_key(|line| line.address);
        let Some(first) = lines.iter().position(|line| line.name_bytes > 0) else {
            return Err(if is_hidden {
                KallsymsError::Hidden
            } else {
                KallsymsError::Empty
            });
        };
        Ok(Self::pack(&lines[first..], &names))
    }

    fn pack(lines: &[Line], names: &[u8]) -> Self {
        let mut regions: Vec<Region> = Vec::new();
        let mut starts = Vec::with_capacity(lines.len());
        for (first, line) in (0..).zip(lines) {
            let offset = regions
                .last()
                .and_then(|region| u32::try_from(line.address - region.base).ok());
            if offset.is_none() {
                regions.push(Region {
                    base: line.address,
                    first,
                });
            }
            starts.push(offset.unwrap_or(0));
        }
        let mut deflate = Compress::new(Compression::fast(), false);
        let mut packed = Vec::new();
        let mut block_ends = Vec::new();
        let mut block = Vec::new();
        for lines in lines.chunks(BLOCK_SYMBOLS) {
            block.clear();
            for line in lines {
                let start = line.name_start as usize;
                block.extend_from_slice(&names[start..start + usize::from(line.name_bytes)]);
                block.push(0);
            }
            deflate_into(&mut deflate, &block, &mut packed);
            block_ends.push(packed.len() as u32);
        }
        Self {
            regions: regions.into(),
            starts: starts.into(),
            names: packed.into(),
            block_ends: block_ends.into(),
            inflater: Inflater::new(false),
        }
    }

    /// The function that an address lies in; `None` outside of all functions.
    #[must_use]
    pub fn lookup(&mut self, address: u64) -> Option<KernelSymbol> {
        let is_before = |region: &Region| region.base <= address;
        let (before, after) = self
            .regions
            .split_at(self.regions.partition_point(is_before));
        let region = before.last()?;
        let offset = address - region.base;
        let end = after.first().map(|region| region.first as usize);
        let starts = &self.starts[region.first as usize..end.unwrap_or(self.starts.len())];
        let behind = starts.partition_point(|start| u64::from(*start) <= offset);
        let in_region = behind.checked_sub(1)?;
        let symbol_idx = region.first as usize + in_region;
        let start = u64::from(starts[in_region]);
        if offset - start >= MAX_FUNCTION_BYTES {
            return None;
        }
        let start = region.base + start;
        let block = self.block(symbol_idx / BLOCK_SYMBOLS)?;
        let name = block
            .split(|byte| *byte == 0)
            .nth(symbol_idx % BLOCK_SYMBOLS)?;
        if name.is_empty() {
            return None;
        }
        let name = String::from_utf8_lossy(name);
        let (name, module) = match name.split_once('\t') {
            Some((name, module)) => (
                name,
                Some(module.trim_start_matches('[').trim_end_matches(']').into()),
            ),
            None => (&*name, None),
        };
        Some(KernelSymbol {
            name: name.into(),
            module,
            start,
        })
    }

    /// How many functions there are, marks of their ends included.
    #[must_use]
    pub fn n_symbols(&self) -> usize {
        self.starts.len()
    }

    /// Bytes of memory that the symbols take.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.regions)
            + size_of_val(&*self.starts)
            + self.names.len()
            + size_of_val(&*self.block_ends)
    }

    fn block(&mut self, block_idx: usize) -> Option<Vec<u8>> {
        let end = *self.block_ends.get(block_idx)? as usize;
        let start = block_idx
            .checked_sub(1)
            .map_or(0, |before| self.block_ends[before] as usize);
        let max_bytes = BLOCK_SYMBOLS * (MAX_NAME_BYTES + 1);
        self.inflater.unpack(&self.names[start..end], max_bytes)
    }
}

/// Address and name with module of one line; an empty name for what is no function.
fn parse_line(line: &[u8]) -> Option<(u64, &[u8])> {
    let (address, rest) = line.split_at_checked(line.iter().position(|byte| *byte == b' ')?)?;
    let address = u64::from_str_radix(str::from_utf8(address).ok()?, 16).ok()?;
    let [b' ', kind, b' ', name @ ..] = rest else {
        return None;
    };
    let is_code = matches!(kind, b't' | b'T' | b'w' | b'W') && !END_MARKERS.contains(&name);
    // A name with a NUL would shift all others of its block.
    let is_usable = name.len() <= MAX_NAME_BYTES && !name.contains(&0);
    Some((address, if is_code && is_usable { name } else { &[] }))
}

fn deflate_into(deflate: &mut Compress, block: &[u8], packed: &mut Vec<u8>) {
    deflate.reset();
    loop {
        packed.reserve(block.len() / 2 + 64);
        let done = deflate.total_in() as usize;
        // Only a full buffer stops it before the end, and there is more room in the next round.
        let status = deflate.compress_vec(&block[done..], packed, FlushCompress::Finish);
        if matches!(status, Ok(Status::StreamEnd) | Err(_)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Kallsyms, KallsymsError> {
        Kallsyms::parse(text.as_bytes())
    }

    fn name_at(kallsyms: &mut Kallsyms, address: u64) -> Option<String> {
        kallsyms.lookup(address).map(|symbol| symbol.name.into())
    }

    const SOME: &str = "\
0000000000001000 A percpu_thing
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000100 t do_work.isra.0
ffffffff81000200 T _etext
ffffffffa0000040 t in_module\t[zram]
ffffffffa0000080 d data_of_module\t[zram]
ffffffff81000180 W weak_one
ffffffffc0000000 t last\t[zram]
";

    #[test]
    fn an_address_belongs_to_the_function_that_starts_before_it() {
        let mut kallsyms = parse(SOME).unwrap();
        assert_eq!(
            name_at(&mut kallsyms, 0xffff_ffff_8100_0000).as_deref(),
            Some("_stext")
        );
        assert_eq!(
            name_at(&mut kallsyms, 0xffff_ffff_8100_017f).as_deref(),
            Some("do_work.isra.0")
        );
        assert_eq!(
            name_at(&mut kallsyms, 0xffff_ffff_8100_01ff).as_deref(),
            Some("weak_one")
        );
        let in_module = KernelSymbol {
            name: "in_module".into(),
            module: Some("zram".into()),
            start: 0xffff_ffff_a000_0040,
        };
        assert_eq!(kallsyms.lookup(0xffff_ffff_a000_0050), Some(in_module));
    }

    #[test]
    fn functions_far_from_each_other_are_all_found() {
        // As on arm64, where the kernel lies at a random address.
        let mut kallsyms = parse(
            "ffffa6496fa10000 T _stext\n\
             ffffa6496fa10200 t do_work\n\
             ffffa6496fa10300 T _etext\n\
             ffff800000ab1000 t bpf_prog_1\t[bpf]\n\
             ffff800000ab2000 t bpf_prog_2\t[bpf]\n\
             ffffa64800000010 t in_module\t[zram]\n",
        )
        .unwrap();
        for (address, name) in [
            (0xffff_8000_00ab_1fff, Some("bpf_prog_1")),
            (0xffff_8000_00ab_2001, Some("bpf_prog_2")),
            (0xffff_a648_0000_0010, Some("in_module")),
            (0xffff_a649_6fa1_0010, Some("_stext")),
            (0xffff_a649_6fa1_02ff, Some("do_work")),
            (0xffff_a649_6fa1_0300, None),
            (0xffff_a648_0000_000f, None),
            (0xffff_8000_00ab_0fff, None),
        ] {
            assert_eq!(
                name_at(&mut kallsyms, address).as_deref(),
                name,
                "{address:#x}"
            );
        }
    }

    #[test]
    fn an_address_outside_of_code_has_no_name() {
        let mut kallsyms = parse(SOME).unwrap();
        for address in [
            0,
            0x1000,
            0xffff_ffff_80ff_ffff,
            0xffff_ffff_8100_0200,
            0xffff_ffff_9000_0000,
            0xffff_ffff_a000_0080,
            0xffff_ffff_c010_0000,
            u64::MAX,
        ] {
            assert_eq!(kallsyms.lookup(address), None, "{address:#x}");
        }
    }

    #[test]
    fn hidden_addresses_are_an_error_of_their_own() {
        let hidden = "0000000000000000 T _stext\n0000000000000000 t do_work\n";
        assert!(matches!(parse(hidden), Err(KallsymsError::Hidden)));
        assert!(matches!(parse(""), Err(KallsymsError::Empty)));
        assert!(matches!(
            parse("no\nkallsyms at all\n"),
            Err(KallsymsError::Empty)
        ));
    }

    #[test]
    fn every_function_of_this_kernel_has_one_of_its_names() {
        let text = std::fs::read_to_string(PATH).unwrap();
        let mut names: HashMap<u64, Vec<&str>> = HashMap::new();
        for line in text.lines() {
            let mut fields = line.split_ascii_whitespace();
            let address = u64::from_str_radix(fields.next().unwrap(), 16).unwrap();
            if ["t", "T", "w", "W"].contains(&fields.next().unwrap()) {
                names
                    .entry(address)
                    .or_default()
                    .push(fields.next().unwrap());
            }
        }
        if names.keys().all(|address| *address == 0) {
            assert!(matches!(
                Kallsyms::read(),
                Err(KallsymsError::Hidden | KallsymsError::Empty)
            ));
            eprintln!("skipped: the kernel hides its addresses");
            return;
        }
        let mut kallsyms = Kallsyms::read().unwrap();
        for (address, names) in &names {
            let Some(symbol) = kallsyms.lookup(*address) else {
                let is_marker = names
                    .iter()
                    .any(|name| END_MARKERS.contains(&name.as_bytes()));
                assert!(is_marker, "{address:#x} {names:?}");
                continue;
            };
            assert!(
                names.contains(&&*symbol.name),
                "{address:#x}: {} is none of {names:?}",
                symbol.name
            );
            assert_eq!(symbol.start, *address);
        }
        assert!(
            kallsyms.memory_bytes() < names.len() * 20,
            "{} bytes",
            kallsyms.memory_bytes()
        );
    }

    proptest! {
        #[test]
        fn any_file_gives_symbols_or_an_error(
            lines in prop::collection::vec((0..3_u8, any::<u64>(), "[tTdD]", "\\PC{0,60}"), 0..150),
            address in any::<u64>(),
        ) {
            let mut text = String::new();
            for (high, address, kind, name) in &lines {
                let address = if *high == 0 { *address } else { 0xffff_ffff_8000_0000 | address };
                writeln!(text, "{address:016x} {kind} {name}").unwrap();
            }
            if let Ok(mut kallsyms) = parse(&text) {
                let _ = kallsyms.lookup(address);
                for (_, address, ..) in &lines {
                    let _ = kallsyms.lookup(0xffff_ffff_8000_0000 | address);
                }
            }
        }

        #[test]
        fn any_bytes_give_symbols_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let _ = Kallsyms::parse(&*bytes);
        }
    }
}
