//! Files that a target names, opened safely: under its own root, no magic links, regular files only.
//!
//! The files that are mapped are opened through `/proc/PID/map_files` first, which gives the very inode that
//! is mapped, deleted or not; then by path under the process's root, then through `/proc/PID/exe`, and the inode is
//! compared.

use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{CWD, FsWord, Mode, OFlags, ResolveFlags, fstatfs, openat, openat2};

use super::maps::{FileId, Mapping};
use super::{facts, vdso};
use crate::ids::Pid;

/// `OVERLAYFS_SUPER_MAGIC` of linux/magic.h.
const OVERLAY: FsWord = 0x794c_7630;

/// In place of the device of a file that all containers of an image have.
const ANY_OVERLAY: u64 = u64::MAX;

/// What is read of such a file, in bytes: its headers, and the build ID where linkers put it.
const HEAD_BYTES: usize = 4096;

/// Facts of a binary are kept by this: what changes when the file does.
///
/// Each container has an overlay of its own over the layers of its image, and so a device of its own for the same file; inode and
/// times are those of the file in its layer. Where only the host's root can have made such a file, the device is left out: what is
/// read of the binaries of an image is read once, not once for each container. A container that writes to the file gets a copy,
/// whose time of change, which nobody can set, is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Device and inode.
    pub file: FileId,
    /// Size in bytes.
    pub size_bytes: u64,
    /// When its content was changed last, in seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// When anything of it was.
    pub changed: (i64, i64),
    /// Hash of how it begins, where it has no device.
    pub head: u64,
}

impl FileKey {
    fn new(file: &File, metadata: &Metadata) -> Self {
        let mut key = Self {
            file: FileId {
                device: metadata.dev(),
                inode: metadata.ino(),
            },
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            head: 0,
        };
        // In a namespace of users nobody is the host's root, whatever is mounted there.
        let is_of_image = metadata.uid() == 0 && fstatfs(file).is_ok_and(|of| of.f_type == OVERLAY);
        if is_of_image && let Some(head) = head(file) {
            key.file.device = ANY_OVERLAY;
            key.head = head;
        }
        key
    }
}

/// A hash of how a file begins.
fn head(file: &File) -> Option<u64> {
    let mut bytes = [0; HEAD_BYTES];
    let n_read = file.read_at(&mut bytes, 0).ok()?;
    let mut hasher = DefaultHasher::new();
    bytes[..n_read].hash(&mut hasher);
    Some(hasher.finish())
}

/// Why a file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{path}: {source}")]
    Open {
        /// Path in the process's root.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is another file under that path now.
    #[error("{0}: the mapped file has been replaced, and /proc/PID/map_files cannot be read")]
    Replaced(String),
    /// A device, pipe or folder.
    #[error("{0}: not a regular file")]
    NotRegular(String),
}

/// Opens the file behind a mapping, or the vdso's image.
pub fn open_mapped(pid: Pid, mapping: &Mapping) -> Result<(File, FileKey), FileError> {
    open_shown(pid, mapping).or_else(|error| match facts::stand_in(pid) {
        Some(other) => open_shown(other, mapping),
        None => Err(error),
    })
}

fn open_shown(pid: Pid, mapping: &Mapping) -> Result<(File, FileKey), FileError> {
    if mapping.is_vdso() {
        let not_there = || FileError::NotRegular(mapping.path.display().to_string());
        return reopen_regular(vdso::image().ok_or_else(not_there)?, &mapping.path);
    }
    let link = format!(
        "/proc/{pid}/map_files/{:x}-{:x}",
        mapping.start.0, mapping.end.0
    );
    // The kernel's own link to the mapped inode; it needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, and for processes
    // of other users CAP_DAC_READ_SEARCH.
    if let Ok(opened) = open_link(&link, &mapping.path) {
        return Ok(opened);
    }
    let is_mapped = |(_, key): &(File, FileKey)| key.file.inode == mapping.file.inode;
    let problem = match open_in_root(pid, &mapping.path) {
        Ok(opened) if is_mapped(&opened) => return Ok(opened),
        Ok(_) => FileError::Replaced(mapping.path.display().to_string()),
        Err(error) => error,
    };
    // Its executable has a link of its own, which needs no more than the right to look at the process.
    if let Ok(opened) = open_link(&format!("/proc/{pid}/exe"), &mapping.path)
        && is_mapped(&opened)
    {
        return Ok(opened);
    }
    Err(problem)
}

/// Opens what a link of the kernel's in /proc leads to, whatever its path holds now.
fn open_link(link: &str, shown: &Path) -> Result<(File, FileKey), FileError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let handle = openat(CWD, link, flags, Mode::empty()).map_err(|source| FileError::Open {
        path: shown.display().to_string(),
        source: source.into(),
    })?;
    reopen_regular(&File::from(handle), shown)
}

/// Opens a path as the process itself sees it.
pub fn open_in_root(pid: Pid, path: &Path) -> Result<(File, FileKey), FileError> {
    let open_error = |source: rustix::io::Errno| FileError::Open {
        path: path.display().to_string(),
        source: source.into(),
    };
    let root = format!("/proc/{pid}/root");
    let root = openat(
        CWD,
        root.as_str(),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(open_error)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(
        &root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )
    .map_err(open_error)?;
    reopen_regular(&File::from(found), path)
}

/// From a bare handle (which opens nothing) to one that reads, if it is a regular file.
fn reopen_regular(handle: &File, path: &Path) -> Result<(File, FileKey), FileError> {
    use std::os::fd::AsRawFd as _;
    let shown = || path.display().to_string();
    let metadata = handle.metadata().map_err(|source| FileError::Open {
        path: shown(),
        source,
    })?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular(shown()));
    }
    let own = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file =
        openat(CWD, own.as_str(), flags, Mode::empty()).map_err(|source| FileError::Open {
            path: shown(),
            source: source.into(),
        })?;
    let file = File::from(file);
    let key = FileKey::new(&file, &metadata);
    Ok((file, key))
}
