//! Files: the bytes of a format into a file, whole or not at all.
//!
//! A file is written under another name beside its target and renamed, so that nobody sees half of one and a
//! full disk leaves none. pyagent mostly runs as root while the folder may be anybody's: the name beside the
//! target is created exclusively, symbolic links in folders that everybody may write to are refused, and the
//! file belongs to the user who called sudo.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, fchown, fstat, openat,
    renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use time::OffsetDateTime;

use super::{Format, escape};
use crate::profile::model::Profile;

/// Where a profile goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file that the user named: what is there is replaced.
    Named(PathBuf),
    /// A file that pyagent named: what is there is kept.
    Default(PathBuf),
}

/// Why a file was not written. Each message is one line and names the file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is something of this name, and pyagent chose the name.
    #[error("{path} exists: give -o FILE, or --force to replace it")]
    Exists {
        /// The file.
        path: String,
    },
    /// The target is a folder, or its name is empty.
    #[error("{path} is not the name of a file")]
    NotAFile {
        /// The target.
        path: String,
    },
    /// The target is a link or a device in a folder that everybody may write to.
    #[error(
        "{path} is a {kind} in a folder that everybody may write to: not followed; remove it or give another name"
    )]
    NotFollowed {
        /// The target.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// The folder cannot be opened, or not be written to.
    #[error("cannot write into {folder}: {error}")]
    Folder {
        /// The folder.
        folder: String,
        /// What the system says.
        error: io::Error,
    },
    /// No room was left.
    #[error("the disk of {path} is full: nothing was written")]
    Full {
        /// The file.
        path: String,
    },
    /// Anything else.
    #[error("cannot write {path}: {error}")]
    Write {
        /// The file.
        path: String,
        /// What the system says.
        error: io::Error,
    },
}

impl Target {
    /// The target for `-o`: `-` is standard output.
    #[must_use]
    pub fn named(path: PathBuf) -> Self {
        if path.as_os_str() == "-" {
            Self::Stdout
        } else {
            Self::Named(path)
        }
    }

    /// The target when none was given, in the current folder: `pyagent-<comm>-<pid>-<UTC time>.pb.gz` for one
    /// process, `pyagent-all-<UTC time>.pb.gz` for several (`process` is `None`).
    #[must_use]
    pub fn default_name(process: Option<(&str, u32)>, start: SystemTime, format: &Format) -> Self {
        let subject = match process {
            Some((comm, pid)) => format!("{}-{pid}", file_name_part(comm)),
            None => "all".to_owned(),
        };
        let extension = format.extensions.first().copied().unwrap_or_default();
        let time = utc_compact(start);
        Self::Default(format!("pyagent-{subject}-{time}{extension}").into())
    }

    /// Replaces what is there, also under a name that pyagent chose: `--force`.
    #[must_use]
    pub fn forced(self) -> Self {
        match self {
            Self::Default(path) => Self::Named(path),
            other @ (Self::Stdout | Self::Named(_)) => other,
        }
    }

    /// Checks that the file can be written, before the time for a profile is spent. It leaves nothing behind.
    pub fn check(&self) -> Result<(), FileError> {
        match self {
            Self::Stdout => Ok(()),
            // Opening a pipe twice would show its reader an end between.
            Self::Named(path) if is_pipe(path) => Ok(()),
            Self::Named(path) | Self::Default(path) => match Place::find(path)? {
                Place::Stream(_) => Ok(()),
                Place::Folder(folder) => {
                    if matches!(self, Self::Default(_)) && folder.target_exists() {
                        return Err(FileError::Exists { path: show(path) });
                    }
                    folder.create().map(drop)
                }
            },
        }
    }

    /// Writes a profile.
    pub fn write(&self, profile: &Profile, format: &Format) -> Result<(), FileError> {
        self.write_with(|out| format.write(profile, out))
    }

    /// Writes what `content` writes.
    pub fn write_with(
        &self,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), FileError> {
        let (path, is_default) = match self {
            Self::Stdout => {
                return match write_stream(io::stdout().lock(), content) {
                    // Its reader has all that it wanted.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                    written => {
                        written.map_err(|error| write_error(Path::new("standard output"), error))
                    }
                };
            }
            Self::Named(path) => (path, false),
            Self::Default(path) => (path, true),
        };
        match Place::find(path)? {
            Place::Stream(file) => {
                write_stream(file, content).map_err(|error| write_error(path, error))
            }
            Place::Folder(folder) => folder.create()?.fill(content, is_default),
        }
    }
}

/// What a path leads to.
enum Place {
    /// A terminal, a pipe, a device: written to as it is.
    Stream(File),
    /// A file, there or not yet, in an open folder.
    Folder(Folder),
}

/// An open folder and the name of the target in it: nobody can exchange the folder between two steps.
struct Folder {
    fd: OwnedFd,
    name: OsString,
    /// As the user gave it, for messages.
    path: PathBuf,
}

/// A file beside its target, removed again unless it was renamed.
struct Draft {
    folder: Folder,
    file: Option<File>,
    name: OsString,
}

fn is_pipe(path: &Path) -> bool {
    fs::stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

/// Links that lead to links: as many as the kernel follows.
const MAX_LINKS: usize = 40;

impl Place {
    fn find(path: &Path) -> Result<Self, FileError> {
        let mut target = path.to_owned();
        for _ in 0..MAX_LINKS {
            let folder = Folder::open(&target, path)?;
            let kind = match statat(&folder.fd, &folder.name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => return Ok(Self::Folder(folder)),
                Err(error) => return Err(write_error(path, error.into())),
            };
            match kind {
                FileType::RegularFile => return Ok(Self::Folder(folder)),
                FileType::Directory => return Err(FileError::NotAFile { path: show(path) }),
                FileType::Symlink => {
                    folder.refuse_if_public(path, "symbolic link")?;
                    if let Some(file) = folder.open_stream_behind_link() {
                        return Ok(Self::Stream(file));
                    }
                    let link = fs::readlinkat(&folder.fd, &folder.name, Vec::new())
                        .map_err(|error| write_error(path, error.into()))?;
                    // An absolute link replaces the folder, a relative one is read from it.
                    let parent = target.parent().unwrap_or(Path::new(""));
                    target = parent.join(OsString::from_vec(link.into_bytes()));
                }
                _ => {
                    folder.refuse_if_public(path, "device or pipe")?;
                    return folder
                        .open_stream(OFlags::NOFOLLOW)
                        .map(Self::Stream)
                        .map_err(|error| write_error(path, error.into()));
                }
            }
        }
        Err(write_error(path, Errno::LOOP.into()))
    }
}

impl Folder {
    fn open(target: &Path, path: &Path) -> Result<Self, FileError> {
        let not_a_file = || FileError::NotAFile { path: show(path) };
        let name = target.file_name().ok_or_else(not_a_file)?;
        if target.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(not_a_file());
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(parent, flags, Mode::empty()).map_err(|error| FileError::Folder {
            folder: show(parent),
            error: error.into(),
        })?;
        Ok(Self {
            fd,
            name: name.to_owned(),
            path: path.to_owned(),
        })
    }

    fn target_exists(&self) -> bool {
        statat(&self.fd, &self.name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    fn refuse_if_public(&self, path: &Path, kind: &'static str) -> Result<(), FileError> {
        let stat = fstat(&self.fd).map_err(|error| write_error(path, error.into()))?;
        if stat.st_mode & Mode::WOTH.as_raw_mode() == 0 {
            return Ok(());
        }
        Err(FileError::NotFollowed {
            path: show(path),
            kind,
        })
    }

    /// The pipe, terminal or device that a link such as `/dev/stdout` leads to, and whatever a link in /proc
    /// leads to: that is open already, and somebody waits for it there. `None` for other files.
    fn open_stream_behind_link(&self) -> Option<File> {
        let kind = statat(&self.fd, &self.name, AtFlags::empty()).ok()?;
        let is_stream = match FileType::from_raw_mode(kind.st_mode) {
            FileType::Directory => false,
            FileType::RegularFile => {
                fs::fstatfs(&self.fd).is_ok_and(|stat| stat.f_type == fs::PROC_SUPER_MAGIC)
            }
            _ => true,
        };
        let file = is_stream.then(|| self.open_stream(OFlags::APPEND).ok());
        file.flatten()
    }

    /// What is there already, to be written to. A pipe that nobody reads from is an error, not a long wait.
    fn open_stream(&self, flags: OFlags) -> rustix::io::Result<File> {
        let flags = flags | OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(&self.fd, &self.name, flags, Mode::empty())?;
        fs::fcntl_setfl(&fd, fs::fcntl_getfl(&fd)? - OFlags::NONBLOCK)?;
        Ok(fd.into())
    }

    /// A new file beside the target.
    fn create(self) -> Result<Draft, FileError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        for attempt in 0..100_u32 {
            let name = OsString::from(format!(".pyagent-{}-{attempt}.tmp", std::process::id()));
            match openat(&self.fd, &name, flags, mode) {
                Ok(fd) => {
                    let draft = Draft {
                        file: Some(fd.into()),
                        name,
                        folder: self,
                    };
                    draft.give_to_caller()?;
                    return Ok(draft);
                }
                Err(Errno::EXIST) => {}
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    return Err(FileError::Full {
                        path: show(&self.path),
                    });
                }
                Err(error) => {
                    let folder = match self.path.parent() {
                        Some(folder) if !folder.as_os_str().is_empty() => folder,
                        _ => Path::new("the current folder"),
                    };
                    return Err(FileError::Folder {
                        folder: show(folder),
                        error: error.into(),
                    });
                }
            }
        }
        Err(write_error(&self.path, Errno::EXIST.into()))
    }
}

impl Draft {
    /// Hands the file to the user who called sudo.
    fn give_to_caller(&self) -> Result<(), FileError> {
        let (Some(file), Some((uid, gid))) = (&self.file, sudo_caller()) else {
            return Ok(());
        };
        fchown(file, Some(uid), Some(gid))
            .map_err(|error| write_error(&self.folder.path, error.into()))
    }

    fn fill(
        mut self,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        keep_existing: bool,
    ) -> Result<(), FileError> {
        let file = self.file.take().expect("a draft is filled once");
        // Some file systems find out that they are full only when they write back.
        write_stream(&file, content)
            .and_then(|()| file.sync_all())
            .map_err(|error| write_error(&self.folder.path, error))?;
        self.rename(keep_existing)
    }

    fn rename(&self, keep_existing: bool) -> Result<(), FileError> {
        let Folder { fd, name, path } = &self.folder;
        let renamed = if keep_existing {
            match renameat_with(fd, &self.name, fd, name, RenameFlags::NOREPLACE) {
                // A file system without that flag: a hard link is as exclusive, the draft's name is removed
                // on drop.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    fs::linkat(fd, &self.name, fd, name, AtFlags::empty())
                }
                other => other,
            }
        } else {
            fs::renameat(fd, &self.name, fd, name)
        };
        renamed.map_err(|error| match error {
            Errno::EXIST => FileError::Exists { path: show(path) },
            error => write_error(path, error.into()),
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After the rename there is nothing of this name.
        let _ = unlinkat(&self.folder.fd, &self.name, AtFlags::empty());
    }
}

/// The user and group that called sudo; `None` without sudo, or without the right to give files away.
fn sudo_caller() -> Option<(Uid, Gid)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let (uid, gid) = (number("SUDO_UID")?, number("SUDO_GID")?);
    // The highest number means "unchanged" to the kernel.
    (uid != u32::MAX && gid != u32::MAX).then(|| (Uid::from_raw(uid), Gid::from_raw(gid)))
}

fn write_stream(
    out: impl Write,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, out);
    let written = content(&mut out).and_then(|()| out.flush());
    // What is left in the buffer after an error must not be tried again on drop.
    drop(out.into_parts());
    written
}

fn write_error(path: &Path, error: io::Error) -> FileError {
    let path = show(path);
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FileError::Full { path },
        _ => FileError::Write { path, error },
    }
}

fn show(path: &Path) -> String {
    escape(&path.to_string_lossy()).into_owned()
}

/// A process name as a part of a file name: letters and digits of any script, `.`, `_`, `-`, and `_` for all
/// else. Never empty, and never a name that hides a file.
fn file_name_part(comm: &str) -> String {
    let part: String = comm
        .chars()
        .take(32)
        .map(|char| match char {
            '.' | '_' | '-' => char,
            char if char.is_alphanumeric() => char,
            _ => '_',
        })
        .collect();
    if part.is_empty() {
        "unnamed".to_owned()
    } else {
        part
    }
}

/// `20260131T235959Z`.
fn utc_compact(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    let month = u8::from(month);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// The name of a file, for messages about where a profile was written.
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::Named(path) | Self::Default(path) => f.write_str(&show(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, read, read_dir, set_permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn put(target: &Target, content: &[u8]) -> Result<(), FileError> {
        target.write_with(|out| out.write_all(content))
    }

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_named_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.svg");
        let target = Target::named(path.clone());
        target.check().unwrap();
        assert!(names(folder.path()).is_empty());
        put(&target, b"one").unwrap();
        put(&target, b"two").unwrap();
        assert_eq!(read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["out.svg"]);
    }

    #[test]
    fn a_default_name_is_not_overwritten_without_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pyagent-all.pb.gz");
        let target = Target::Default(path.clone());
        target.check().unwrap();
        put(&target, b"one").unwrap();
        assert!(matches!(target.check(), Err(FileError::Exists { .. })));
        assert!(matches!(
            put(&target, b"two"),
            Err(FileError::Exists { .. })
        ));
        assert_eq!(read(&path).unwrap(), b"one");
        put(&target.forced(), b"two").unwrap();
        assert_eq!(read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()).len(), 1);
    }

    #[test]
    fn content_that_fails_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target::named(folder.path().join("out.folded"));
        put(&target, b"old").unwrap();
        let failed = target.write_with(|out| {
            out.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        let message = failed.unwrap_err().to_string();
        assert!(
            message.ends_with("is full: nothing was written"),
            "{message}"
        );
        assert_eq!(read(folder.path().join("out.folded")).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["out.folded"]);
    }

    #[test]
    fn a_full_device_is_one_clear_line() {
        let error = put(&Target::named("/dev/full".into()), &vec![0; 1 << 20]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the disk of /dev/full is full: nothing was written"
        );
        assert!(FileType::from_raw_mode(fs::stat("/dev/full").unwrap().st_mode).is_char_device());
    }

    #[test]
    fn devices_are_written_to_and_not_replaced() {
        for path in ["/dev/null", "/dev/stderr"] {
            let before = fs::lstat(path).unwrap().st_ino;
            put(&Target::named(path.into()), b"").unwrap();
            assert_eq!(fs::lstat(path).unwrap().st_ino, before);
        }
    }

    #[test]
    fn an_open_file_behind_a_link_in_proc_is_written_to_and_not_replaced() {
        use std::os::fd::AsRawFd as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "before ").unwrap();
        let open = File::open(&path).unwrap();
        let link = format!("/proc/self/fd/{}", open.as_raw_fd());
        put(&Target::named(link.into()), b"after").unwrap();
        assert_eq!(read(&path).unwrap(), b"before after");
        assert_eq!(names(folder.path()), ["log"]);
    }

    #[test]
    fn a_link_is_followed_in_a_private_folder_and_refused_in_a_public_one() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        let link = folder.path().join("link");
        std::fs::write(&real, "old").unwrap();
        symlink("real", &link).unwrap();
        let target = Target::named(link.clone());
        put(&target, b"new").unwrap();
        assert_eq!(read(&real).unwrap(), b"new");
        assert!(link.is_symlink());

        set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        assert!(matches!(target.check(), Err(FileError::NotFollowed { .. })));
        assert!(matches!(
            put(&target, b"bad"),
            Err(FileError::NotFollowed { .. })
        ));
        assert_eq!(read(&real).unwrap(), b"new");
    }

    #[test]
    fn links_in_a_circle_end() {
        let folder = tempfile::tempdir().unwrap();
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        let error = put(&Target::named(folder.path().join("a")), b"x").unwrap_err();
        assert!(matches!(error, FileError::Write { .. }), "{error}");
    }

    #[test]
    fn what_is_not_a_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            folder.path().to_owned(),
            folder.path().join("x/"),
            "..".into(),
            "".into(),
        ] {
            let error = Target::named(path).check().unwrap_err();
            assert!(matches!(error, FileError::NotAFile { .. }), "{error}");
        }
        let error = Target::named(folder.path().join("none/out.svg"))
            .check()
            .unwrap_err();
        assert!(matches!(error, FileError::Folder { .. }), "{error}");
    }

    #[test]
    fn default_names_are_harmless_and_tell_the_time() {
        let time = UNIX_EPOCH + Duration::from_secs(1_769_903_999);
        let name = |process| Target::default_name(process, time, Format::default_format());
        let expected = "pyagent-python3.12-7-20260131T235959Z.pb.gz";
        assert_eq!(
            name(Some(("python3.12", 7))),
            Target::Default(expected.into())
        );
        let expected = "pyagent-.._.._x_мир-7-20260131T235959Z.pb.gz";
        assert_eq!(
            name(Some(("../../x\nмир", 7))),
            Target::Default(expected.into())
        );
        let expected = "pyagent-all-20260131T235959Z.pb.gz";
        assert_eq!(name(None), Target::Default(expected.into()));
    }

    #[test]
    fn standard_output_is_a_dash() {
        assert_eq!(Target::named("-".into()), Target::Stdout);
        assert!(Target::Stdout.check().is_ok());
    }
}
