//! Marks: counts that are kept for a later comparison, one a process, in the state folder. Those of processes that have
//! ended, and old ones, are removed when another one is read or written.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::report::{Document, FORMAT};
use crate::ids::Pid;
use crate::process::facts::Stat;

/// Most bytes of a mark that are read.
const MAX_BYTES: u64 = 256 << 20;

/// Marks are kept for so long.
pub const MAX_AGE: Duration = Duration::from_hours(7 * 24);

/// Most files of the state folder that are looked at.
const MAX_FILES: usize = 65_536;

/// Why there is no mark to compare with.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// None was made.
    #[error("process {pid} has no mark yet: make one with `pyagent heap --pid {pid} --mark`")]
    None {
        /// The process.
        pid: Pid,
    },
    /// It is not known where marks are kept.
    #[error("no folder for marks: set XDG_STATE_HOME or HOME")]
    NoFolder,
    /// The file cannot be read or written.
    #[error("{path} cannot be read or written")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{path}: no counts as `pyagent heap --json` writes them: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Where the mark of a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkPlace {
    pid: Pid,
    start_ticks: u64,
}

impl MarkPlace {
    /// Of the process with this number that started then: a later one with the same number has another mark.
    #[must_use]
    pub const fn new(pid: Pid, start_ticks: u64) -> Self {
        Self { pid, start_ticks }
    }

    /// The mark.
    pub fn read(&self) -> Result<Document, MarkError> {
        let path = self.path()?;
        self.remove_others(&path);
        match read(&path) {
            Err(MarkError::File { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Err(MarkError::None { pid: self.pid })
            }
            result => result,
        }
    }

    /// Replaces the mark. Returns its file.
    pub fn write(&self, document: &Document) -> Result<PathBuf, MarkError> {
        let path = self.path()?;
        let failed = |source| MarkError::File {
            path: path.clone(),
            source,
        };
        let folder = path.parent().ok_or(MarkError::NoFolder)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed)?;
        let part = path.with_extension("part");
        let text = serde_json::to_vec(document).map_err(|error| failed(error.into()))?;
        fs::write(&part, text).map_err(failed)?;
        fs::rename(&part, &path).map_err(failed)?;
        self.remove_others(&path);
        Ok(path)
    }

    /// Removes the marks beside this one that nobody can compare with any more. One that cannot be removed is tried again the
    /// next time.
    fn remove_others(&self, path: &Path) {
        let files = path.parent().and_then(|folder| fs::read_dir(folder).ok());
        for file in files.into_iter().flatten().flatten().take(MAX_FILES) {
            let name = file.file_name();
            let Some(other) = name.to_str().and_then(Self::of_file) else {
                continue;
            };
            if other != *self && (other.has_ended() || is_old(&file)) {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    /// Whose mark a file is.
    fn of_file(name: &str) -> Option<Self> {
        let name = name.strip_prefix("heap-")?;
        let name = name
            .strip_suffix(".json")
            .or_else(|| name.strip_suffix(".part"))?;
        let (pid, start_ticks) = name.split_once('-')?;
        Some(Self::new(Pid(pid.parse().ok()?), start_ticks.parse().ok()?))
    }

    fn has_ended(&self) -> bool {
        let stat = Stat::read(&format!("/proc/{}/stat", self.pid));
        stat.map_or(true, |stat| stat.start_ticks != self.start_ticks)
    }

    fn path(&self) -> Result<PathBuf, MarkError> {
        let folder = folder().ok_or(MarkError::NoFolder)?;
        Ok(folder.join(format!("heap-{}-{}.json", self.pid, self.start_ticks)))
    }
}

fn is_old(file: &fs::DirEntry) -> bool {
    let changed = file.metadata().and_then(|metadata| metadata.modified());
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > MAX_AGE))
}

/// `$XDG_STATE_HOME/pyagent`; without it `/var/lib/pyagent` for root, and `~/.local/state/pyagent` for others.
fn folder() -> Option<PathBuf> {
    let absolute =
        |path: std::ffi::OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    if let Some(state) = std::env::var_os("XDG_STATE_HOME").and_then(absolute) {
        return Some(state.join("pyagent"));
    }
    if nix::unistd::Uid::effective().is_root() {
        return Some(PathBuf::from("/var/lib/pyagent"));
    }
    let home = std::env::var_os("HOME").and_then(absolute)?;
    Some(home.join(".local/state/pyagent"))
}

/// Counts from a file, as `--mark` or `--json` wrote them.
pub fn read(path: &Path) -> Result<Document, MarkError> {
    let failed = |source| MarkError::File {
        path: path.to_owned(),
        source,
    };
    let content = |why: String| MarkError::Content {
        path: path.to_owned(),
        why,
    };
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes))
        .map_err(failed)?;
    let document: Document =
        serde_json::from_slice(&bytes).map_err(|error| content(error.to_string()))?;
    if document.format != FORMAT {
        return Err(content(format!(
            "format {}, and this pyagent reads {FORMAT}",
            document.format
        )));
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn marks_of_processes_that_have_ended_and_old_ones_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let start_ticks = |pid: u32| {
            Stat::read(&format!("/proc/{pid}/stat"))
                .unwrap()
                .start_ticks
        };
        let (own, init) = (std::process::id(), 1);
        let (own_ticks, init_ticks) = (start_ticks(own), start_ticks(init));
        let names = [
            (format!("heap-{own}-{own_ticks}.json"), true),
            (format!("heap-{init}-{init_ticks}.json"), true),
            (format!("heap-{own}-{}.json", own_ticks + 1), false),
            (format!("heap-4194305-{own_ticks}.json"), false),
            (format!("heap-4194305-{own_ticks}.part"), false),
            ("heap-notes.json".to_owned(), true),
            ("other.json".to_owned(), true),
        ];
        for (name, _) in &names {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let place = MarkPlace::new(Pid(own), own_ticks);
        place.remove_others(&folder.path().join(&names[0].0));
        for (name, is_kept) in &names {
            assert_eq!(folder.path().join(name).exists(), *is_kept, "{name}");
        }
        // Those of processes that live, but the own one, are removed when they are old.
        for (name, _) in names.iter().filter(|(_, is_kept)| *is_kept) {
            let file = fs::File::options()
                .write(true)
                .open(folder.path().join(name))
                .unwrap();
            file.set_modified(SystemTime::now() - MAX_AGE * 2).unwrap();
        }
        place.remove_others(&folder.path().join(&names[0].0));
        for (name, is_kept) in &names {
            let is_kept = *is_kept && *name != names[1].0;
            assert_eq!(folder.path().join(name).exists(), is_kept, "{name}");
        }
    }
}
