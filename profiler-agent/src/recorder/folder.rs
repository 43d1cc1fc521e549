//! Where the database lies: a folder of the agent's own, and the lock that keeps a second agent out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statfs};

/// Where the agent of root keeps its data.
const SYSTEM_FOLDER: &str = "/var/lib/pyagent";

/// Name of the database.
const DATABASE: &str = "pyagent.db";

/// What the lock is held on.
const LOCK: &str = "pyagent.lock";

/// How the names of all of its files begin.
const OWN: &[u8] = b"pyagent.";

/// The one thing in a volume that is new.
const MADE_WITH_A_FILE_SYSTEM: &str = "lost+found";

/// File systems of other machines, where a database in WAL mode cannot be: what `statfs` calls them (linux/magic.h, and
/// the file systems' own sources). FUSE can be local, but does not say so.
const NETWORK: [(u64, &str); 9] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB 2"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x0bd0_0bd0, "Lustre"),
    (0x6573_5546, "FUSE"),
];

/// A folder for the database, held by this process alone.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Device and number: somebody may put another folder in its place.
    place: (u64, u64),
    /// The lock goes with it.
    _lock: File,
}

/// Why a folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another agent has it.
    #[error(
        "{path} is in use by another pyagent{by}: give this one a folder of its own with --data-dir DIR, or --data-dir none"
    )]
    InUse {
        /// The folder.
        path: String,
        /// ` (process N)`, or nothing.
        by: String,
    },
    /// It cannot be made or written to.
    #[error("{path} cannot be used: {reason}")]
    Unusable {
        /// The folder.
        path: String,
        /// Why not.
        reason: String,
    },
}

impl FolderError {
    fn unusable(path: &Path, reason: &dyn ToString) -> Self {
        Self::Unusable {
            path: shown(path),
            reason: reason.to_string(),
        }
    }
}

/// A path for messages.
pub(super) fn shown(path: &Path) -> String {
    crate::format::escape(&path.to_string_lossy()).into_owned()
}

/// Where data is kept when nothing is said: `/var/lib/pyagent` for root, else the user's state directory
/// (`$XDG_STATE_HOME`, or `~/.local/state`). `None`: the user has no home.
#[must_use]
pub fn default_folder() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from(SYSTEM_FOLDER));
    }
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("pyagent"))
}

impl Folder {
    /// Makes the folder where it is missing, and takes its lock.
    pub(super) fn open(path: &Path) -> Result<Self, FolderError> {
        let unusable = |error: io::Error| FolderError::unusable(path, &error);
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(unusable)?;
        let found = fs::metadata(path).map_err(unusable)?;
        if found.uid() != rustix::process::geteuid().as_raw() {
            let reason = format!("it belongs to the user {}", found.uid());
            return Err(FolderError::unusable(path, &reason));
        }
        if found.mode() & 0o077 != 0 {
            if let Some(other) = foreign(path).map_err(unusable)? {
                let reason = format!(
                    "others may look into it, and it is no folder of pyagent's own: {} is in it",
                    shown(&other)
                );
                return Err(FolderError::unusable(path, &reason));
            }
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(unusable)?;
        }
        let lock = lock(path)?;
        Ok(Self {
            path: path.to_owned(),
            place: (found.dev(), found.ino()),
            _lock: lock,
        })
    }

    /// Whether its path still leads to it.
    pub(super) fn is_there(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.place)
    }

    /// The database's path.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// What it lies on when that is of another machine; `None`: it is of this one.
    pub(super) fn network(&self) -> Option<&'static str> {
        let kind = statfs(&self.path).ok()?.f_type;
        // Some kernels give 32 bits with a sign.
        let kind = u64::from(kind as u32);
        let network = NETWORK.iter().find(|(known, _)| *known == kind);
        network.map(|(_, name)| *name)
    }
}

/// Something in a folder that pyagent did not make. Rights are taken from others only where there is none: `/tmp` stays what
/// it is.
fn foreign(folder: &Path) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let is_own = name.as_encoded_bytes().starts_with(OWN) || name == MADE_WITH_A_FILE_SYSTEM;
        if !is_own {
            return Ok(Some(PathBuf::from(name)));
        }
    }
    Ok(None)
}

fn lock(folder: &Path) -> Result<File, FolderError> {
    let unusable = |error: io::Error| FolderError::unusable(folder, &error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(folder.join(LOCK))
        .map_err(unusable)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // Who holds it is a courtesy: the lock counts.
            let _ = file
                .set_len(0)
                .and_then(|()| write!(file, "{}", std::process::id()));
            Ok(file)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = file.take(20).read_to_string(&mut pid);
            let by = match pid.parse::<u32>() {
                Ok(pid) => format!(" (process {pid})"),
                Err(_) => String::new(),
            };
            Err(FolderError::InUse {
                path: shown(folder),
                by,
            })
        }
        Err(error) => Err(unusable(error.into())),
    }
}

/// Files of a database: itself, its log, and the index of that.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// What can still be written to the file system of a file; without an answer as much as one likes.
pub(super) fn n_free_bytes(path: &Path) -> u64 {
    let free = |found: rustix::fs::StatVfs| {
        // What is reserved is so for root.
        let is_root = rustix::process::geteuid().is_root();
        let n_blocks = if is_root {
            found.f_bfree
        } else {
            found.f_bavail
        };
        n_blocks.saturating_mul(found.f_frsize)
    };
    rustix::fs::statvfs(path).map_or(u64::MAX, free)
}

/// Puts a database aside as `*.bak`; an older one of that name is replaced.
pub(super) fn move_aside(database: &Path) -> io::Result<PathBuf> {
    let with = |suffix: &str| {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = with(".bak");
    for suffix in SUFFIXES {
        let (from, mut to) = (with(suffix), aside.clone().into_os_string());
        to.push(suffix);
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // What belonged to an older one must not be taken for a part of this one.
                let _ = fs::remove_file(&to);
            }
            moved => moved?,
        }
    }
    Ok(aside)
}

/// Bytes of a database and its log on the disk.
pub(super) fn n_bytes(database: &Path) -> u64 {
    let size = |suffix: &&str| {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        fs::metadata(PathBuf::from(name)).map_or(0, |found| found.len())
    };
    SUFFIXES[..2].iter().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_the_agents_alone_and_has_one_holder() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/b");
        let folder = Folder::open(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(LOCK)), 0o600);
        let error = Folder::open(&path).unwrap_err().to_string();
        assert!(error.contains("in use by another pyagent"), "{error}");
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(folder);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let folder = Folder::open(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(folder.network(), None);
    }

    #[test]
    fn a_folder_of_somebody_else_and_a_file_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(
            Folder::open(&file),
            Err(FolderError::Unusable { .. })
        ));
        if rustix::process::geteuid().is_root() {
            let other = scratch.path().join("other");
            fs::create_dir(&other).unwrap();
            std::os::unix::fs::chown(&other, Some(12345), None).unwrap();
            let error = Folder::open(&other).unwrap_err().to_string();
            assert!(error.contains("belongs to the user 12345"), "{error}");
        }
    }

    #[test]
    fn a_folder_with_other_things_in_it_keeps_its_rights() {
        let scratch = tempfile::tempdir().unwrap();
        let shared = scratch.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::write(shared.join("somebody's"), "x").unwrap();
        let of_all = fs::Permissions::from_mode(0o777);
        fs::set_permissions(&shared, of_all.clone()).unwrap();
        let error = Folder::open(&shared).unwrap_err().to_string();
        assert!(error.contains("somebody's is in it"), "{error}");
        assert_eq!(fs::metadata(&shared).unwrap().mode() & 0o777, 0o777);
        assert_eq!(fs::read_dir(&shared).unwrap().count(), 1);
        // A new volume, as it is handed to a container.
        fs::remove_file(shared.join("somebody's")).unwrap();
        fs::create_dir(shared.join("lost+found")).unwrap();
        drop(Folder::open(&shared).unwrap());
        fs::set_permissions(&shared, of_all).unwrap();
        Folder::open(&shared).unwrap();
        assert_eq!(fs::metadata(&shared).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_is_moved_aside_replaces_what_was_aside() {
        let scratch = tempfile::tempdir().unwrap();
        let database = scratch.path().join(DATABASE);
        fs::write(&database, "first").unwrap();
        fs::write(scratch.path().join("pyagent.db-wal"), "log").unwrap();
        let aside = move_aside(&database).unwrap();
        fs::write(&database, "second").unwrap();
        assert_eq!(move_aside(&database).unwrap(), aside);
        assert_eq!(fs::read_to_string(&aside).unwrap(), "second");
        assert!(!scratch.path().join("pyagent.db.bak-wal").exists());
        assert!(!database.exists());
    }
}
