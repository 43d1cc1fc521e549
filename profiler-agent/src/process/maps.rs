//! `/proc/PID/maps`: what is mapped where.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;

use super::map_line::MapLine;
use super::{facts, vdso};
use crate::ids::{Address, Pid};

/// Most bytes of a maps file that are read; a process can make it as long as it likes.
const MAX_BYTES: u64 = 8 << 20;

/// Which file, told apart from all others: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device, as `st_dev` of the mapping's file system has it.
    pub device: u64,
    /// Inode.
    pub inode: u64,
}

/// A file-backed mapping, or the vdso.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: Address,
    /// End, exclusive.
    pub end: Address,
    /// Offset in the file, in bytes.
    pub file_offset: u64,
    /// Whether code can run there.
    pub executable: bool,
    /// The file.
    pub file: FileId,
    /// Path as the kernel shows it, without ` (deleted)`; in the process's own mount namespace.
    pub path: PathBuf,
    /// The file has been removed or replaced.
    pub deleted: bool,
}

impl Mapping {
    /// Whether it is the kernel's own code, which no file backs.
    #[must_use]
    pub fn is_vdso(&self) -> bool {
        self.file.inode == 0
    }
}

/// The file-backed mappings of a process and its vdso, in the order of their addresses.
pub fn of_process(pid: Pid) -> std::io::Result<Vec<Mapping>> {
    let mappings = shown(pid)?;
    if !mappings.is_empty() {
        return Ok(mappings);
    }
    facts::stand_in(pid).map_or(Ok(mappings), shown)
}

fn shown(pid: Pid) -> std::io::Result<Vec<Mapping>> {
    let file = File::open(format!("/proc/{pid}/maps"))?;
    let mut mappings = Vec::new();
    let mut reader = BufReader::new(file.take(MAX_BYTES));
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(mappings);
        }
        if let Some(mapping) = parse(line.trim_ascii_end()) {
            mappings.push(mapping);
        }
    }
}

/// One line; `None` when it is neither backed by a file nor the vdso.
fn parse(line: &[u8]) -> Option<Mapping> {
    let line = MapLine::parse(line)?;
    let path = line.name;
    let is_file = line.file.inode != 0 && path.first() == Some(&b'/');
    let is_vdso = line.file.inode == 0 && path == vdso::NAME.as_bytes();
    if !is_file && !is_vdso {
        return None;
    }
    let (path, deleted) = match path.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (path, false),
    };
    Some(Mapping {
        start: Address(line.start),
        end: Address(line.end),
        file_offset: line.file_offset,
        executable: line.is_executable(),
        file: line.file,
        path: unescaped(path),
        deleted,
    })
}

/// The kernel writes a newline in a path as `\012`.
fn unescaped(path: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            bytes.push(b'\n');
            rest = after;
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_with_odd_paths_and_deleted_files() {
        let line =
            b"7f00-7fff r-xp 00001000 fe:01 4242                       /opt/a b\\012c (deleted)";
        let mapping = parse(line).unwrap();
        assert_eq!(
            (mapping.start, mapping.end),
            (Address(0x7f00), Address(0x7fff))
        );
        assert_eq!(mapping.file_offset, 0x1000);
        assert!(mapping.executable && mapping.deleted);
        assert_eq!(mapping.path, PathBuf::from("/opt/a b\nc"));
        assert_eq!(mapping.file.inode, 4242);
        assert_eq!(
            parse(b"7f00-7fff rw-p 00000000 00:00 0                        [heap]"),
            None
        );
    }

    #[test]
    fn own_mappings_contain_this_function() {
        let mappings = of_process(Pid(std::process::id())).unwrap();
        let here = own_mappings_contain_this_function as fn() as usize as u64;
        assert!(
            mappings
                .iter()
                .any(|m| m.executable && m.start.0 <= here && here < m.end.0)
        );
    }

    proptest::proptest! {
        #[test]
        fn any_line_gives_a_value(line in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&line);
        }
    }
}
