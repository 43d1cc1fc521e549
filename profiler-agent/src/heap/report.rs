//! A snapshot as a table for people, and as JSON for programs.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::snapshot::{LargeRow, Snapshot, TypeRow};
use crate::ids::Pid;
use crate::process::regions::NotRead;
use crate::python::layout::Version;

/// Version of the JSON; another one has other fields.
pub const FORMAT: u32 = 1;

/// What is printed with `--json`, and kept by `--mark`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`].
    pub format: u32,
    /// The process.
    pub pid: u32,
    /// Version of its interpreter.
    pub python: String,
    /// Objects of all types.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Every type of which there are objects, most bytes first.
    pub types: Vec<TypeEntry>,
    /// The largest objects, largest first.
    pub largest: Vec<LargeEntry>,
    /// Bytes of memory that were read.
    pub bytes_read: u64,
    /// Bytes of memory that were not.
    pub bytes_not_read: NotReadEntry,
}

/// One type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeEntry {
    /// `__module__`.
    pub module: String,
    /// `__qualname__`.
    #[serde(rename = "type")]
    pub qualname: String,
    /// Objects.
    pub count: u64,
    /// Their bytes, as `sys.getsizeof` means them.
    pub bytes: u64,
    /// Those of them that the garbage collector follows.
    pub tracked: u64,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeEntry {
    /// Its address, in hexadecimal.
    pub address: String,
    /// `__module__` of its type.
    pub module: String,
    /// `__qualname__` of its type.
    #[serde(rename = "type")]
    pub qualname: String,
    /// Its bytes.
    pub bytes: u64,
    /// Its length, where it has one.
    pub length: Option<u64>,
}

/// Memory that was not read, by the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotReadEntry {
    /// Swapped out.
    pub swapped: u64,
    /// Shared, or could be.
    pub shared: u64,
    /// Private views of files.
    pub files: u64,
    /// It went away meanwhile.
    pub failed: u64,
}

impl Document {
    /// Of a snapshot.
    #[must_use]
    pub fn new(pid: Pid, version: Version, snapshot: &Snapshot) -> Self {
        let total = snapshot.total();
        Self {
            format: FORMAT,
            pid: pid.0,
            python: version.to_string(),
            count: total.n_objects,
            bytes: total.n_bytes,
            types: snapshot.types.iter().map(TypeEntry::new).collect(),
            largest: snapshot.largest.iter().map(LargeEntry::new).collect(),
            bytes_read: snapshot.n_read,
            bytes_not_read: NotReadEntry::new(&snapshot.not_read),
        }
    }
}

impl TypeEntry {
    fn new(row: &TypeRow) -> Self {
        Self {
            module: row.name.module.clone(),
            qualname: row.name.qualname.clone(),
            count: row.count.n_objects,
            bytes: row.count.n_bytes,
            tracked: row.count.n_tracked,
        }
    }
}

impl LargeEntry {
    fn new(row: &LargeRow) -> Self {
        Self {
            address: row.address.to_string(),
            module: row.name.module.clone(),
            qualname: row.name.qualname.clone(),
            bytes: row.n_bytes,
            length: row.length,
        }
    }
}

impl NotReadEntry {
    fn new(not_read: &NotRead) -> Self {
        Self {
            swapped: not_read.swapped,
            shared: not_read.shared,
            files: not_read.files,
            failed: not_read.failed,
        }
    }
}

/// A snapshot as JSON, on one line.
#[must_use]
pub fn json(pid: Pid, version: Version, snapshot: &Snapshot) -> String {
    let document = Document::new(pid, version, snapshot);
    let mut text = serde_json::to_string(&document).unwrap_or_default();
    text.push('\n');
    text
}

/// A snapshot as a table.
#[must_use]
pub fn table(pid: Pid, version: Version, snapshot: &Snapshot, n_types: usize) -> String {
    let mut out = String::new();
    let total = snapshot.total();
    let _ = writeln!(
        out,
        "process {pid}, CPython {version}: {} objects, {} bytes",
        total.n_objects, total.n_bytes
    );
    for row in snapshot.types.iter().take(n_types) {
        let _ = writeln!(
            out,
            "{:>12} {:>14}  {}",
            row.count.n_objects, row.count.n_bytes, row.name
        );
    }
    out
}
