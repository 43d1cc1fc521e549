//! A line of `/proc/PID/maps`, which is also the first one of each mapping in `smaps` (proc_pid_maps(5)).

use super::maps::FileId;

/// One mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MapLine<'a> {
    /// First address.
    pub(super) start: u64,
    /// End, exclusive, behind `start`.
    pub(super) end: u64,
    permissions: &'a [u8],
    /// Offset in the file, in bytes.
    pub(super) file_offset: u64,
    /// Device and inode; the inode is 0 where there is no file.
    pub(super) file: FileId,
    /// A path, `[heap]`, `[stack]`, or nothing.
    pub(super) name: &'a [u8],
}

impl<'a> MapLine<'a> {
    /// Reads a line without its end; `None`: it is none.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let mut range = fields.next()?.split(|byte| *byte == b'-');
        let (start, end) = (hex(range.next()?)?, hex(range.next()?)?);
        let permissions = fields.next()?;
        let file_offset = hex(fields.next()?)?;
        let mut device = fields.next()?.split(|byte| *byte == b':');
        let (major, minor) = (hex(device.next()?)?, hex(device.next()?)?);
        let inode: u64 = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let file = FileId {
            device: rustix::fs::makedev(u32::try_from(major).ok()?, u32::try_from(minor).ok()?),
            inode,
        };
        (start < end).then(|| Self {
            start,
            end,
            permissions,
            file_offset,
            file,
            name: fields.next().unwrap_or_default().trim_ascii_start(),
        })
    }

    /// It may be read and written.
    pub(super) fn is_read_write(&self) -> bool {
        self.permissions.starts_with(b"rw")
    }

    /// Code can run there.
    pub(super) fn is_executable(&self) -> bool {
        self.permissions.get(2) == Some(&b'x')
    }

    /// Other processes see what is written.
    pub(super) fn is_shared(&self) -> bool {
        self.permissions.get(3) == Some(&b's')
    }

    /// The file behind it, if there is one.
    pub(super) fn backing(&self) -> Option<FileId> {
        (self.file.inode != 0).then_some(self.file)
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
