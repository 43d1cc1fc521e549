//! Marks: counts that are kept for a later comparison, one a process, in the state folder.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::report::{Document, FORMAT};
use crate::ids::Pid;

/// Most bytes of a mark that are read.
const MAX_BYTES: u64 = 256 << 20;

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
    #[error("{path}: {source}")]
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
#[derive(Debug, Clone)]
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
        Ok(path)
    }

    fn path(&self) -> Result<PathBuf, MarkError> {
        let folder = folder().ok_or(MarkError::NoFolder)?;
        Ok(folder.join(format!("heap-{}-{}.json", self.pid, self.start_ticks)))
    }
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
