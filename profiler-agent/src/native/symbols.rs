//! Names of the functions in an ELF file: from its `.symtab`, else its `.dynsym`; without a name, where a function
//! begins.
//!
//! A table keeps 12 bytes a function and reads a name from the file when it is asked for: of the 100,000 names
//! of a large library a profile shows a few. [`SymbolTables`] bounds all tables together.
//!
//! Not here: separate debug files, inlined functions, lines. The file is hostile; see [`super::headers`].

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::hash::Hash;
use std::io;
use std::os::unix::fs::FileExt as _;

use cpp_demangle::{BorrowedSymbol, DemangleOptions};
use object::LittleEndian;
use object::elf::{
    SHF_EXECINSTR, SHT_DYNSYM, SHT_SYMTAB, STB_GLOBAL, STB_WEAK, STT_FUNC, STT_GNU_IFUNC,
    SectionHeader64, SectionType, Sym64,
};
use object::read::elf::SectionHeader as _;

use super::elf::Segment;
use super::headers::{Headers, HeadersError, read_structs};
use super::unwind_table::UnwindTable;

/// Most functions of one file (3.6 MB).
pub const MAX_FUNCTIONS: usize = 300_000;

/// Most symbols of one table that are looked at.
const MAX_SYMBOLS: u64 = 4 << 20;

/// Symbols that are read at once.
const PIECE_SYMBOLS: u64 = 4096;

/// Most bytes of a mangled name; longer ones are cut, and not demangled. Those of Rust's nested types have ten thousand.
const MAX_MANGLED_BYTES: usize = 32 << 10;

/// Longer ones of C++ are shown as they are: what demangles them takes more than time in proportion.
const MAX_CPP_BYTES: usize = 4096;

/// Most bytes of a demangled name; longer ones are cut. A short mangled name can stand for gigabytes.
const MAX_NAME_BYTES: usize = 1024;

/// Most names of one address that are compared.
const MAX_ALIASES: usize = 16;

/// How many functions may begin between the start of a function and an address in it.
const MAX_NESTED: usize = 32;

/// Bytes of all tables together in [`SymbolTables`].
const MAX_TABLES_BYTES: usize = 8 << 20;

/// Most tables in [`SymbolTables`]: each keeps its file open.
const MAX_TABLES: usize = 128;

/// A function of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// Its name, demangled, without parameters.
    pub name: Box<str>,
    /// Its first address, as linked.
    pub start: u64,
}

/// Functions in the code of one file.
#[derive(Debug)]
pub struct SymbolTable {
    file: File,
    /// The addresses of functions count from here.
    base: u64,
    /// By start, then by how good a name is.
    functions: Box<[Function]>,
    names: Strings,
    is_cut: bool,
    /// Where functions begin that have no name; not read where the file has its `.symtab`.
    unwind_table: Option<UnwindTable>,
}

#[derive(Debug, Clone, Copy)]
struct Function {
    start: u32,
    n_bytes: u32,
    /// Offset in the string table.
    name: u32,
}

/// Where a string table lies in its file.
#[derive(Debug, Clone, Copy)]
struct Strings {
    file_offset: u64,
    n_bytes: u64,
}

/// A symbol while the table is made.
struct Candidate {
    function: Function,
    rank: u8,
    has_size: bool,
}

impl SymbolTable {
    /// Reads the functions of a file, not their names.
    pub fn read(file: File) -> Result<Self, HeadersError> {
        let Headers { segments, sections } = Headers::read(&file)?;
        let endian = LittleEndian;
        let code = sections.iter().filter(|section| is_code(section));
        let base = code
            .map(|section| section.sh_addr(endian))
            .min()
            .unwrap_or(0);
        let table = |kind: SectionType| {
            sections
                .iter()
                .find(|section| section.sh_type(endian) == kind)
        };
        let mut functions = Vec::new();
        let mut names = Strings {
            file_offset: 0,
            n_bytes: 0,
        };
        let mut is_cut = false;
        // The exported functions are better than an arbitrary part of all.
        for table in [table(SHT_SYMTAB), table(SHT_DYNSYM)].into_iter().flatten() {
            let Some(strings) = sections.get(table.sh_link(endian) as usize) else {
                continue;
            };
            let (candidates, is_table_cut) = candidates_of(&file, table, &sections, base)?;
            is_cut |= is_table_cut;
            if !candidates.is_empty() {
                functions = candidates;
                names = Strings {
                    file_offset: strings.sh_offset(endian),
                    n_bytes: strings.sh_size(endian),
                };
                if !is_table_cut {
                    break;
                }
            }
        }
        let has_all_names = table(SHT_SYMTAB).is_some() && !is_cut;
        Ok(Self {
            unwind_table: (!has_all_names)
                .then(|| UnwindTable::read(&file, segments))
                .flatten(),
            file,
            base,
            functions: sorted(functions),
            names,
            is_cut,
        })
    }

    /// The first address of the function that holds an address, as linked, where no symbol names it; `None` where
    /// the file does not say.
    #[must_use]
    pub fn start_of_nameless(&self, address: u64) -> Option<u64> {
        let function = self.unwind_table.as_ref()?.lookup(&self.file, address)?;
        Some(function.start)
    }

    /// The function that holds an address, as linked; `None` where no symbol is, or its name is unreadable.
    #[must_use]
    pub fn lookup(&self, address: u64) -> Option<Symbol> {
        let offset = u32::try_from(address.checked_sub(self.base)?).ok()?;
        let behind = self
            .functions
            .partition_point(|function| function.start <= offset);
        let nearest = self.functions[..behind].iter().rev().take(MAX_NESTED);
        let holds = |function: &&Function| offset - function.start < function.n_bytes;
        let start = nearest.copied().find(|function| holds(&function))?.start;
        let first = self
            .functions
            .partition_point(|function| function.start < start);
        let aliases = self.functions[first..behind].iter().take(MAX_ALIASES);
        let names = aliases.filter(|function| function.start == start && holds(function));
        let names = names.filter_map(|function| self.names.read(&self.file, function.name).ok());
        // `malloc` rather than `__libc_malloc`; among equals the first.
        let name = names
            .filter(|name| !name.is_empty())
            .min_by_key(|name| leading_underscores(name))?;
        Some(Symbol {
            name: demangle(&name),
            start: self.base + u64::from(start),
        })
    }

    /// How many functions there are, aliases included.
    #[must_use]
    pub fn n_functions(&self) -> usize {
        self.functions.len()
    }

    /// Whether the file has more than [`MAX_FUNCTIONS`], and some are missing.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Bytes of memory that the table takes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let unwind_table = self
            .unwind_table
            .as_ref()
            .map_or(0, UnwindTable::memory_bytes);
        size_of::<Self>() + size_of_val(&*self.functions) + unwind_table
    }
}

/// Where a file's offset is loaded: its virtual address as linked.
#[must_use]
pub fn vaddr_of_file_offset(segments: &[Segment], file_offset: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let in_segment = file_offset.checked_sub(segment.file_offset)?;
        (in_segment < segment.file_bytes).then(|| segment.address.wrapping_add(in_segment))
    })
}

fn is_code(section: &SectionHeader64<LittleEndian>) -> bool {
    section.sh_flags(LittleEndian).0 & SHF_EXECINSTR.0 != 0
}

/// The functions of one symbol table; whether there are more than [`MAX_FUNCTIONS`].
fn candidates_of(
    file: &File,
    table: &SectionHeader64<LittleEndian>,
    sections: &[SectionHeader64<LittleEndian>],
    base: u64,
) -> io::Result<(Vec<Candidate>, bool)> {
    let n_symbols = table.sh_size(LittleEndian) / size_of::<Sym64<LittleEndian>>() as u64;
    let mut candidates = Vec::new();
    for first in (0..n_symbols.min(MAX_SYMBOLS)).step_by(PIECE_SYMBOLS as usize) {
        let offset = table
            .sh_offset(LittleEndian)
            .saturating_add(first * size_of::<Sym64<LittleEndian>>() as u64);
        let n_piece = (n_symbols - first).min(PIECE_SYMBOLS) as usize;
        for symbol in read_structs::<Sym64<LittleEndian>>(file, offset, n_piece)? {
            let Some(candidate) = candidate(&symbol, sections, base) else {
                continue;
            };
            if candidates.len() == MAX_FUNCTIONS {
                return Ok((candidates, true));
            }
            candidates.push(candidate);
        }
    }
    Ok((candidates, n_symbols > MAX_SYMBOLS))
}

/// A symbol, if it is a function in a section of code.
fn candidate(
    symbol: &Sym64<LittleEndian>,
    sections: &[SectionHeader64<LittleEndian>],
    base: u64,
) -> Option<Candidate> {
    let endian = LittleEndian;
    if symbol.st_type() != STT_FUNC && symbol.st_type() != STT_GNU_IFUNC {
        return None;
    }
    let section = sections.get(usize::from(symbol.st_shndx.get(endian).0))?;
    let address = symbol.st_value.get(endian);
    let to_section_end = section
        .sh_addr(endian)
        .checked_add(section.sh_size(endian))?
        .checked_sub(address)?;
    if !is_code(section) || address < section.sh_addr(endian) || to_section_end == 0 {
        return None;
    }
    let rank = match symbol.st_bind() {
        STB_GLOBAL => 0,
        STB_WEAK => 1,
        _ => 2,
    };
    let size = symbol.st_size.get(endian);
    // Code written by hand often has no size: such a function ends where the next begins.
    let n_bytes = if size == 0 {
        to_section_end
    } else {
        size.min(to_section_end)
    };
    let function = Function {
        start: u32::try_from(address.checked_sub(base)?).ok()?,
        n_bytes: u32::try_from(n_bytes).ok()?,
        name: symbol.st_name.get(endian),
    };
    Some(Candidate {
        function,
        rank,
        has_size: size != 0,
    })
}

fn sorted(mut candidates: Vec<Candidate>) -> Box<[Function]> {
    candidates.sort_by_key(|candidate| (candidate.function.start, candidate.rank));
    let mut next_start = u32::MAX;
    let mut start = u32::MAX;
    for candidate in candidates.iter_mut().rev() {
        if candidate.function.start != start {
            (next_start, start) = (start, candidate.function.start);
        }
        if !candidate.has_size {
            candidate.function.n_bytes = candidate.function.n_bytes.min(next_start - start);
        }
    }
    candidates
        .into_iter()
        .map(|candidate| candidate.function)
        .collect()
}

impl Strings {
    /// The string at an offset of the table, at most [`MAX_MANGLED_BYTES`].
    fn read(self, file: &File, name: u32) -> io::Result<String> {
        const PIECE_BYTES: usize = 128;
        let mut text = Vec::new();
        let mut at = u64::from(name);
        while text.len() < MAX_MANGLED_BYTES && at < self.n_bytes {
            let mut piece = [0; PIECE_BYTES];
            let piece = &mut piece[..(self.n_bytes - at).min(PIECE_BYTES as u64) as usize];
            file.read_exact_at(piece, self.file_offset.saturating_add(at))?;
            if let Some(end) = piece.iter().position(|byte| *byte == 0) {
                text.extend_from_slice(&piece[..end]);
                break;
            }
            text.extend_from_slice(piece);
            at += PIECE_BYTES as u64;
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn leading_underscores(name: &str) -> usize {
    // `_Z` and `_R` begin mangled names.
    let is_mangled = name.starts_with("_Z") || name.starts_with("_R");
    if is_mangled {
        0
    } else {
        name.bytes().take_while(|byte| *byte == b'_').count()
    }
}

/// A name as its author wrote it: Rust without hash, C++ without parameters, others as they are. Cut, with an
/// ellipsis, where it is longer than any reader bears.
#[must_use]
pub fn demangle(mangled: &str) -> Box<str> {
    if let Ok(name) = rustc_demangle::try_demangle(mangled) {
        return Cut::write(|out| write!(out, "{name:#}"));
    }
    if mangled.starts_with("_Z")
        && mangled.len() <= MAX_CPP_BYTES
        && let Ok(symbol) = BorrowedSymbol::new(mangled.as_bytes())
    {
        let options = DemangleOptions::new().no_params().no_return_type();
        let name = Cut::write(|out| symbol.structured_demangle(out, &options));
        if !name.is_empty() {
            return name;
        }
    }
    Cut::write(|out| out.write_str(mangled))
}

/// Text that stops its writer at [`MAX_NAME_BYTES`].
#[derive(Default)]
struct Cut {
    text: String,
    is_full: bool,
}

impl Cut {
    /// What `write` wrote; empty when it failed by itself.
    fn write(write: impl FnOnce(&mut Self) -> fmt::Result) -> Box<str> {
        let mut cut = Self::default();
        let written = write(&mut cut);
        if cut.is_full {
            cut.text.push('…');
        } else if written.is_err() {
            cut.text.clear();
        }
        cut.text.into()
    }
}

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_NAME_BYTES - self.text.len();
        self.text.push_str(&text[..text.floor_char_boundary(room)]);
        self.is_full |= text.len() > room;
        if self.is_full {
            Err(fmt::Error)
        } else {
            Ok(())
        }
    }
}

/// The tables of the files that were used last, within [`MAX_TABLES_BYTES`].
#[derive(Debug)]
pub struct SymbolTables<K> {
    /// `None`: the file has no usable table.
    tables: HashMap<K, Used>,
    n_bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Used {
    table: Option<SymbolTable>,
    at: u64,
}

impl<K: Eq + Hash + Clone> Default for SymbolTables<K> {
    fn default() -> Self {
        Self {
            tables: HashMap::new(),
            n_bytes: 0,
            clock: 0,
        }
    }
}

impl<K: Eq + Hash + Clone> SymbolTables<K> {
    /// The table of a file, which `open` opens at the first use. `None` when it cannot be opened, or (from
    /// then on) when it is no usable ELF file.
    pub fn table<E>(
        &mut self,
        key: &K,
        open: impl FnOnce() -> Result<File, E>,
    ) -> Option<&SymbolTable> {
        self.clock += 1;
        if !self.tables.contains_key(key) {
            let table = SymbolTable::read(open().ok()?).ok();
            let n_bytes = table.as_ref().map_or(0, SymbolTable::memory_bytes);
            self.make_room(n_bytes);
            self.n_bytes += n_bytes;
            self.tables.insert(key.clone(), Used { table, at: 0 });
        }
        let used = self.tables.get_mut(key)?;
        used.at = self.clock;
        used.table.as_ref()
    }

    /// Bytes of memory that all tables take.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        self.n_bytes
    }

    fn make_room(&mut self, n_bytes: usize) {
        while self.tables.len() >= MAX_TABLES || self.n_bytes + n_bytes > MAX_TABLES_BYTES {
            let oldest = self.tables.iter().min_by_key(|(_, used)| used.at);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            let table = self.tables.remove(&oldest).and_then(|used| used.table);
            self.n_bytes -= table.map_or(0, |table| table.memory_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::native::build_id::BuildId;
    use crate::native::elf::ElfReader;

    /// A function as readelf shows it.
    #[derive(Debug)]
    struct Shown {
        start: u64,
        n_bytes: u64,
        name: String,
    }

    /// Libraries of this host, and this program, which has a `.symtab`.
    fn files() -> Vec<PathBuf> {
        let dirs = [
            "/lib/x86_64-linux-gnu",
            "/lib/aarch64-linux-gnu",
            "/lib64",
            "/usr/lib64",
            "/usr/lib",
        ];
        let names = ["libc.so.6", "libz.so.1", "libm.so.6", "libstdc++.so.6"];
        let find = |name| {
            dirs.iter()
                .map(|dir| Path::new(dir).join(name))
                .find(|path| path.exists())
        };
        let mut files: Vec<_> = names.into_iter().filter_map(find).collect();
        files.push(std::env::current_exe().unwrap());
        files
    }

    fn readelf(options: &str, path: &Path) -> Option<String> {
        let Ok(output) = Command::new("readelf").arg(options).arg(path).output() else {
            eprintln!("skipped: no readelf");
            return None;
        };
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The functions of the table that is used: `.symtab` where there is one.
    fn shown(path: &Path) -> Option<Vec<Shown>> {
        let text = readelf("-Ws", path)?;
        let tables: Vec<&str> = text.split("Symbol table '").collect();
        let table = tables.iter().find(|table| table.starts_with(".symtab"));
        let table = table.or_else(|| tables.iter().find(|table| table.starts_with(".dynsym")))?;
        let functions = table.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [_, start, n_bytes, "FUNC" | "IFUNC", _, _, section, name, ..] = fields[..] else {
                return None;
            };
            let n_bytes = n_bytes
                .strip_prefix("0x")
                .map_or_else(|| n_bytes.parse(), |hex| u64::from_str_radix(hex, 16));
            (section != "UND").then(|| Shown {
                start: u64::from_str_radix(start, 16).unwrap(),
                n_bytes: n_bytes.unwrap(),
                name: name.split('@').next().unwrap().to_owned(),
            })
        });
        Some(functions.collect())
    }

    #[test]
    fn every_function_of_real_files_is_found_under_one_of_its_names() {
        for path in files() {
            let Some(functions) = shown(&path) else {
                return;
            };
            let table = SymbolTable::read(File::open(&path).unwrap()).unwrap();
            assert!(
                table.n_functions() > 50 && !table.is_cut(),
                "{}",
                path.display()
            );
            let mut names: HashMap<u64, Vec<Box<str>>> = HashMap::new();
            for function in &functions {
                names
                    .entry(function.start)
                    .or_default()
                    .push(demangle(&function.name));
            }
            for function in &functions {
                for address in [function.start, function.start + function.n_bytes.max(1) - 1] {
                    let symbol = table
                        .lookup(address)
                        .unwrap_or_else(|| panic!("{address:#x} {function:?}"));
                    assert!(
                        names[&symbol.start].contains(&symbol.name),
                        "{address:#x} {function:?} {symbol:?}"
                    );
                    assert!(
                        function.start <= symbol.start && symbol.start <= address,
                        "{function:?} {symbol:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn addresses_outside_of_functions_have_no_name() {
        for path in files() {
            let Some(mut functions) = shown(&path) else {
                return;
            };
            let table = SymbolTable::read(File::open(&path).unwrap()).unwrap();
            functions.sort_by_key(|function| function.start);
            let mut end = 0;
            for pair in functions.windows(2) {
                end = end.max(pair[0].start + pair[0].n_bytes);
                if pair[0].n_bytes > 0 && end < pair[1].start {
                    assert_eq!(table.lookup(end), None, "{} {end:#x}", path.display());
                }
            }
            assert_eq!(table.lookup(0), None);
            assert_eq!(table.lookup(u64::MAX), None);
        }
    }

    #[test]
    fn the_plainest_name_of_a_function_is_preferred() {
        let mut n_better = 0;
        for path in files() {
            let Some(functions) = shown(&path) else {
                return;
            };
            let table = SymbolTable::read(File::open(&path).unwrap()).unwrap();
            let mut names: HashMap<u64, Vec<&str>> = HashMap::new();
            for function in &functions {
                names
                    .entry(function.start)
                    .or_default()
                    .push(&function.name);
            }
            for (start, names) in names {
                let underscores = names.iter().map(|name| leading_underscores(name));
                let (fewest, most) = (
                    underscores.clone().min().unwrap(),
                    underscores.max().unwrap(),
                );
                let symbol = table.lookup(start).unwrap();
                let is_plainest = |name: &&&str| leading_underscores(name) == fewest;
                let plainest = names.iter().filter(is_plainest).map(|name| demangle(name));
                assert!(
                    plainest.into_iter().any(|name| name == symbol.name),
                    "{symbol:?} {names:?}"
                );
                n_better += usize::from(fewest < most);
            }
        }
        assert!(
            n_better > 50,
            "{n_better} functions have names to choose from"
        );
    }

    #[test]
    fn build_ids_are_those_that_readelf_shows() {
        for path in files() {
            let Some(text) = readelf("-n", &path) else {
                return;
            };
            let shown = text
                .split("Build ID: ")
                .nth(1)
                .and_then(|rest| rest.split_ascii_whitespace().next());
            let build_id = BuildId::of_file(&File::open(&path).unwrap()).unwrap();
            assert_eq!(
                build_id.map(|build_id| build_id.to_string()).as_deref(),
                shown,
                "{}",
                path.display()
            );
        }
    }

    #[test]
    fn file_offsets_become_addresses_through_the_segments() {
        for path in files() {
            let Some(text) = readelf("-Wl", &path) else {
                return;
            };
            let reader = ElfReader::new(File::open(&path).unwrap());
            let segments = reader.parse().unwrap().segments();
            let number =
                |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
            let mut n_segments = 0;
            for line in text.lines() {
                let fields: Vec<&str> = line.split_ascii_whitespace().collect();
                let ["LOAD", offset, address, _, n_bytes, ..] = fields[..] else {
                    continue;
                };
                let (offset, address, n_bytes) = (number(offset), number(address), number(n_bytes));
                if n_bytes > 0 {
                    n_segments += 1;
                    assert_eq!(vaddr_of_file_offset(&segments, offset), Some(address));
                    assert_eq!(
                        vaddr_of_file_offset(&segments, offset + n_bytes - 1),
                        Some(address + n_bytes - 1)
                    );
                }
            }
            assert!(n_segments > 1);
            assert_eq!(vaddr_of_file_offset(&segments, u64::MAX), None);
        }
    }

    #[test]
    fn names_are_demangled_without_hash_and_parameters() {
        let cases = [
            ("deflate", "deflate"),
            (
                "_ZN4core3fmt9Formatter3pad17h0123456789abcdefE",
                "core::fmt::Formatter::pad",
            ),
            (
                "_RNvCskwGfYPst2Cb_3foo16example_function",
                "foo::example_function",
            ),
            (
                "_ZNSt6vectorIiSaIiEE9push_backEOi",
                "std::vector<int, std::allocator<int> >::push_back",
            ),
            ("_Znwm", "operator new"),
            ("_Z", "_Z"),
            ("_ZZZZZ", "_ZZZZZ"),
            ("", ""),
        ];
        for (mangled, name) in cases {
            assert_eq!(&*demangle(mangled), name);
        }
    }

    #[test]
    fn a_name_that_unfolds_without_end_is_cut() {
        // Each template argument repeats the one before twice.
        let mut bomb = String::from("_Z1fI1AIiiE");
        for idx in 0..30 {
            let before = char::from_digit(idx, 36).unwrap().to_ascii_uppercase();
            write!(bomb, "1BIS{before}_S{before}_E").unwrap();
        }
        bomb.push_str("Evv");
        for name in [
            bomb.as_str(),
            &"x".repeat(5000),
            &format!("_ZN5000{}E", "é".repeat(2500)),
        ] {
            let name = demangle(name);
            assert!(name.ends_with('…'), "{name}");
            assert!(name.len() <= MAX_NAME_BYTES + '…'.len_utf8());
        }
    }

    #[test]
    fn tables_that_were_not_used_for_long_make_room() {
        let path = std::env::current_exe().unwrap();
        let mut tables = SymbolTables::default();
        let one = SymbolTable::read(File::open(&path).unwrap())
            .unwrap()
            .memory_bytes();
        let mut n_opened = 0;
        for key in 0..2 * MAX_TABLES {
            for key in [key, 0] {
                let open = || {
                    n_opened += 1;
                    File::open(&path)
                };
                assert!(tables.table(&key, open).is_some());
            }
            assert!(tables.memory_bytes() <= MAX_TABLES_BYTES);
        }
        assert!(2 * MAX_TABLES * one > MAX_TABLES_BYTES);
        // The one that is used each time is never read again.
        assert_eq!(n_opened, 2 * MAX_TABLES);
    }

    #[test]
    fn a_file_that_is_no_elf_is_read_once_and_one_that_cannot_be_opened_is_tried_again() {
        let mut tables = SymbolTables::default();
        assert!(tables.table(&1, || Err("gone")).is_none());
        assert!(
            tables
                .table(&1, || File::open("/proc/self/exe").map_err(|_| "gone"))
                .is_some()
        );
        assert!(tables.table(&2, || File::open("/dev/null")).is_none());
        let is_opened_again = std::cell::Cell::new(false);
        let open = || {
            is_opened_again.set(true);
            File::open("/proc/self/exe")
        };
        assert!(tables.table(&2, open).is_none() && !is_opened_again.get());
    }

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, bytes).unwrap();
        file
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn damaged_files_give_a_value_or_an_error(
            damage in prop::collection::vec((0..10_000_usize, 0..4_u8, any::<u64>()), 1..40),
            address in any::<u64>(),
        ) {
            let path = files().into_iter().find(|path| path.ends_with("libz.so.1"));
            let Some(path) = path else { return Ok(()) };
            let mut bytes = std::fs::read(path).unwrap();
            let n_bytes = bytes.len();
            for (at, place, word) in damage {
                // Headers and symbols at the start, sections at the end.
                let at = if place == 0 { n_bytes - 1 - at % 2200 } else { at % 64_usize.pow(u32::from(place).min(2)) };
                bytes[at] = word as u8;
            }
            let file = file_of(&bytes);
            let _ = BuildId::of_file(&file);
            if let Ok(table) = SymbolTable::read(file) {
                for address in [address, address % (n_bytes as u64), 0x3000] {
                    let _ = table.lookup(address);
                }
            }
        }

        #[test]
        fn any_name_is_demangled_to_a_bounded_one(name in "(_Z|_R|_ZN)?[a-zA-Z0-9_$.é]{0,200}") {
            prop_assert!(demangle(&name).len() <= MAX_NAME_BYTES + '…'.len_utf8());
        }
    }
}
