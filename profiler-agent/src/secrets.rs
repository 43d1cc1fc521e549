//! Files with secrets, and files that say who may ask: read once at the start, and again when they change.
//!
//! A file that cannot be used any more leaves what was read before in force, and is told once. Files are compared by
//! what the system says of them once a second, and read when they have stood still for one: Kubernetes swaps a link,
//! others write a certificate and its key one after the other.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::statvfs::{FsFlags, fstatvfs};
use tokio::sync::watch;

use crate::format::escape;

/// How often files are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Most bytes of a file.
const MAX_BYTES: u64 = 1 << 20;

/// A file that cannot be used. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {}: {error}", shown(.path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Others can read a secret.
    #[error(
        "{path} can be read by others than its owner, and it holds a secret: chmod 600 {path}",
        path = shown(.path)
    )]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// Another user can change it.
    #[error(
        "{path} belongs to user {owner}, who could change it: chown it to root, or to the user that pyagent runs as",
        path = shown(.path)
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// What is in it cannot be used.
    #[error("{}: {reason}", shown(.path))]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why, in one line.
        reason: String,
    },
}

impl FileError {
    /// With what is wrong in it.
    pub fn unusable(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Unusable {
            path: path.to_owned(),
            reason: escape(&reason.to_string()).into_owned(),
        }
    }
}

fn shown(path: &Path) -> String {
    escape(&path.to_string_lossy()).into_owned()
}

/// Whether others may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// Certificates.
    Public,
    /// A private key: a group may share it (Debian's `ssl-cert`).
    Group,
    /// Tokens.
    Owner,
}

/// Reads a file of bounded size, after a look at who else can read or change it.
///
/// # Errors
/// It cannot be read or is no regular file, it is larger than 1 MiB, or others can read or change what is secret.
pub fn read(path: &Path, secrecy: Secrecy) -> Result<Vec<u8>, FileError> {
    let unreadable = |error| FileError::Unreadable {
        path: path.to_owned(),
        error,
    };
    // Non-blocking: a pipe in its place would hold the agent up.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(unreadable)?;
    let facts = file.metadata().map_err(unreadable)?;
    if !facts.is_file() {
        return Err(FileError::unusable(path, "it is not a regular file"));
    }
    if facts.len() > MAX_BYTES {
        return Err(FileError::unusable(path, "it is larger than 1 MiB"));
    }
    let others = match secrecy {
        Secrecy::Public => 0,
        Secrecy::Group => 0o007,
        Secrecy::Owner => 0o077,
    };
    let own = rustix::process::geteuid().as_raw();
    if secrecy != Secrecy::Public {
        if facts.uid() != 0 && facts.uid() != own {
            return Err(FileError::Foreign {
                path: path.to_owned(),
                owner: facts.uid(),
            });
        }
        if facts.mode() & others != 0 && !is_mounted_secret(&file, &facts) {
            return Err(FileError::Open {
                path: path.to_owned(),
            });
        }
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(bytes)
}

/// Whether this is how a container gets its secrets (Kubernetes, Docker's swarm, systemd's credentials): a file of root's
/// on a file system in memory, mounted read-only. Its mode says nothing there: Kubernetes makes it 0644, and only
/// processes of the container, or root, get at the mount.
fn is_mounted_secret(file: &File, facts: &Metadata) -> bool {
    /// `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
    const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    let is_in_memory =
        rustix::fs::fstatfs(file).is_ok_and(|system| IN_MEMORY.contains(&(system.f_type as u64)));
    let is_read_only =
        fstatvfs(file).is_ok_and(|system| system.flags().contains(FsFlags::ST_RDONLY));
    is_in_memory && is_read_only && facts.uid() == 0 && facts.mode() & 0o022 == 0
}

/// What tells one content of a file from another.
type Fingerprint = Option<(u64, u64, i64, i64, u64)>;

fn fingerprints(paths: &[PathBuf]) -> Vec<Fingerprint> {
    let of = |path: &PathBuf| {
        let facts = std::fs::metadata(path).ok()?;
        let changed = facts.ctime();
        Some((
            facts.dev(),
            facts.ino(),
            changed,
            facts.ctime_nsec(),
            facts.len(),
        ))
    };
    paths.iter().map(of).collect()
}

/// What is read from files, now and whenever they change, until nobody looks at it any more.
///
/// # Errors
/// What `load` says of the first time.
pub fn follow<T: Send + Sync + 'static>(
    paths: Vec<PathBuf>,
    load: impl Fn() -> Result<T, FileError> + Send + 'static,
) -> Result<watch::Receiver<Arc<T>>, FileError> {
    let mut loaded = fingerprints(&paths);
    let (sender, receiver) = watch::channel(Arc::new(load()?));
    tokio::spawn(async move {
        let mut load = load;
        let mut last = loaded.clone();
        let mut paths = paths;
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = sender.closed() => return,
            }
            let is_new = |now: &Vec<Fingerprint>| *now != loaded && *now == last;
            // A file system that hangs holds up a thread of its own.
            let looked = tokio::task::spawn_blocking(move || {
                let now = fingerprints(&paths);
                (now, paths)
            });
            let Ok((now, back)) = looked.await else {
                return;
            };
            paths = back;
            if !is_new(&now) {
                last = now;
                continue;
            }
            let read = tokio::task::spawn_blocking(move || (load(), load));
            let Ok((result, back)) = read.await else {
                return;
            };
            load = back;
            let names: Vec<String> = paths.iter().map(|path| shown(path)).collect();
            let names = names.join(", ");
            match result {
                Ok(value) => {
                    tracing::info!("{names}: read again");
                    sender.send_replace(Arc::new(value));
                }
                Err(error) => {
                    tracing::warn!("{error}; what was read before stays in force");
                }
            }
            last.clone_from(&now);
            loaded = now;
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        write(&path, "secret").unwrap();
        for (mode, secrecy, is_fine) in [
            (0o600, Secrecy::Owner, true),
            (0o400, Secrecy::Owner, true),
            (0o640, Secrecy::Owner, false),
            (0o604, Secrecy::Owner, false),
            (0o620, Secrecy::Owner, false),
            (0o640, Secrecy::Group, true),
            (0o644, Secrecy::Group, false),
            (0o644, Secrecy::Public, true),
        ] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let result = read(&path, secrecy);
            assert_eq!(result.is_ok(), is_fine, "{mode:o} {secrecy:?}");
            if let Err(error) = result {
                assert!(error.to_string().contains("chmod 600"), "{error}");
            }
        }
        // A link is what it leads to.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(read(&link, Secrecy::Owner).is_err());
        let error = read(folder.path(), Secrecy::Public).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_secret_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: a file can be given to another user by root only");
            assert!(std::env::var_os("CI").is_none(), "CI runs as root");
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::chown(file.path(), Some(1234), None).unwrap();
        let error = read(file.path(), Secrecy::Owner).unwrap_err();
        assert!(error.to_string().contains("user 1234"), "{error}");
    }
}
