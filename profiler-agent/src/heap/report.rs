//! A snapshot as a table for people and as JSON for programs, and what changed between two.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::snapshot::{LargeRow, Snapshot, TypeRow};
use super::stopped::Stopped;
use crate::format::{bytes_text, escape, thousands};
use crate::ids::Pid;
use crate::process::program::ProgramId;
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
    /// Tells the program that it ran from one that it ran before or after (exec); absent where it is not known.
    #[serde(default)]
    pub program: Option<String>,
    /// When it was counted, in seconds since 1970.
    pub taken: u64,
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
    /// How long the process stood for it; absent without `--freeze`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
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
    pub fn new(
        pid: Pid,
        version: Version,
        program: Option<ProgramId>,
        snapshot: &Snapshot,
        stopped: Option<Stopped>,
    ) -> Self {
        let total = snapshot.total();
        Self {
            format: FORMAT,
            pid: pid.0,
            python: version.to_string(),
            program: program.map(|program| program.to_string()),
            taken: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            count: total.n_objects,
            bytes: total.n_bytes,
            types: snapshot.types.iter().map(TypeEntry::new).collect(),
            largest: snapshot.largest.iter().map(LargeEntry::new).collect(),
            bytes_read: snapshot.n_read,
            bytes_not_read: NotReadEntry::new(&snapshot.not_read),
            stopped,
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

/// How a type changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `__module__`.
    pub module: String,
    /// `__qualname__`.
    #[serde(rename = "type")]
    pub qualname: String,
    /// Objects now.
    pub count: u64,
    /// Their bytes now.
    pub bytes: u64,
    /// Objects more than before.
    pub count_change: i64,
    /// Bytes more than before.
    pub bytes_change: i64,
}

/// What changed between two looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// [`FORMAT`].
    pub format: u32,
    /// The process.
    pub pid: u32,
    /// When the earlier one was, in seconds since 1970.
    pub since: u64,
    /// When the later one was.
    pub taken: u64,
    /// All types together.
    pub count_change: i64,
    /// Bytes of all types together.
    pub bytes_change: i64,
    /// Why it may not be growth what differs, in words.
    pub warnings: Vec<String>,
    /// How long the process stood for the later one; absent without `--freeze`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
    /// Types whose count or bytes changed, those that grew most first.
    pub types: Vec<Change>,
}

/// Compares two looks.
#[must_use]
pub fn diff(earlier: &Document, later: &Document) -> Diff {
    let mut before: HashMap<(&str, &str), &TypeEntry> = earlier
        .types
        .iter()
        .map(|entry| ((&*entry.module, &*entry.qualname), entry))
        .collect();
    let change = |module: &str, qualname: &str, old: (u64, u64), new: (u64, u64)| Change {
        module: module.to_owned(),
        qualname: qualname.to_owned(),
        count: new.0,
        bytes: new.1,
        count_change: new.0.wrapping_sub(old.0).cast_signed(),
        bytes_change: new.1.wrapping_sub(old.1).cast_signed(),
    };
    let mut types: Vec<Change> = later
        .types
        .iter()
        .map(|entry| {
            let old = before.remove(&(&*entry.module, &*entry.qualname));
            let old = old.map_or((0, 0), |old| (old.count, old.bytes));
            change(
                &entry.module,
                &entry.qualname,
                old,
                (entry.count, entry.bytes),
            )
        })
        .collect();
    types.extend(
        before
            .into_values()
            .map(|old| change(&old.module, &old.qualname, (old.count, old.bytes), (0, 0))),
    );
    types.retain(|change| change.count_change != 0 || change.bytes_change != 0);
    types.sort_by(|a, b| {
        (b.bytes_change, b.count_change, &a.module, &a.qualname).cmp(&(
            a.bytes_change,
            a.count_change,
            &b.module,
            &b.qualname,
        ))
    });
    Diff {
        format: FORMAT,
        pid: later.pid,
        since: earlier.taken,
        taken: later.taken,
        count_change: later.count.wrapping_sub(earlier.count).cast_signed(),
        bytes_change: later.bytes.wrapping_sub(earlier.bytes).cast_signed(),
        warnings: warnings(earlier, later),
        stopped: later.stopped.clone(),
        types,
    }
}

/// What says that two looks are not those of one program.
fn warnings(earlier: &Document, later: &Document) -> Vec<String> {
    let mut warnings = Vec::new();
    if earlier.pid != later.pid {
        warnings.push(format!(
            "the earlier counts are those of process {}",
            earlier.pid
        ));
    } else if let (Some(before), Some(now)) = (&earlier.program, &later.program)
        && before != now
    {
        let pid = later.pid;
        warnings.push(format!(
            "process {pid} ran another program when it was counted earlier"
        ));
    }
    if earlier.python != later.python {
        let (before, now) = (&earlier.python, &later.python);
        warnings.push(format!(
            "it was CPython {} then, and is {} now",
            escape(before),
            escape(now)
        ));
    }
    warnings
}

/// As JSON, on one line.
#[must_use]
pub fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text
}

/// A look as a table.
///
/// ```text
/// process 1234, CPython 3.12.1: 8,766,675 objects, 798.6 MiB
///
///        count         size  type
///    2,500,607    486.7 MiB  dict
///    1,250,000     66.8 MiB  app.Node
///   ...
/// ```
#[must_use]
pub fn table(document: &Document, n_types: usize) -> String {
    let mut out = String::new();
    line(
        &mut out,
        format_args!(
            "process {}, CPython {}: {} objects, {}\n",
            document.pid,
            escape(&document.python),
            thousands(document.count.cast_signed()),
            bytes_text(document.bytes.cast_signed())
        ),
    );
    line(
        &mut out,
        format_args!("{:>13} {:>12}  type", "count", "size"),
    );
    for entry in document.types.iter().take(n_types) {
        line(
            &mut out,
            format_args!(
                "{:>13} {:>12}  {}",
                thousands(entry.count.cast_signed()),
                bytes_text(entry.bytes.cast_signed()),
                full_name(&entry.module, &entry.qualname)
            ),
        );
    }
    and_more(&mut out, document.types.len(), n_types);
    if !document.largest.is_empty() {
        line(&mut out, format_args!("\nthe largest objects:"));
    }
    for large in &document.largest {
        let length = large
            .length
            .map(|length| format!(", length {}", thousands(length.cast_signed())))
            .unwrap_or_default();
        line(
            &mut out,
            format_args!(
                "{:>26}  {} at {}{length}",
                bytes_text(large.bytes.cast_signed()),
                full_name(&large.module, &large.qualname),
                escape(&large.address)
            ),
        );
    }
    for skipped in document.bytes_not_read.in_words() {
        line(&mut out, format_args!("\n{skipped}"));
    }
    stopped_line(&mut out, document.stopped.as_ref());
    out
}

/// How long the process stood, where it did.
pub(super) fn stopped_line(out: &mut String, stopped: Option<&Stopped>) {
    if let Some(stopped) = stopped {
        line(out, format_args!("\n{}", stopped.in_words()));
    }
}

/// What changed, as a table.
#[must_use]
pub fn diff_table(earlier: &Document, diff: &Diff, n_types: usize) -> String {
    let mut out = String::new();
    line(
        &mut out,
        format_args!(
            "process {}, since {} s ago ({} objects, {}): {} objects, {}\n",
            diff.pid,
            diff.taken.saturating_sub(diff.since),
            thousands(earlier.count.cast_signed()),
            bytes_text(earlier.bytes.cast_signed()),
            signed(diff.count_change),
            signed_bytes(diff.bytes_change)
        ),
    );
    line(
        &mut out,
        format_args!("{:>13} {:>13} {:>12}  type", "more", "count", "more bytes"),
    );
    for change in diff.types.iter().take(n_types) {
        line(
            &mut out,
            format_args!(
                "{:>13} {:>13} {:>12}  {}",
                signed(change.count_change),
                thousands(change.count.cast_signed()),
                signed_bytes(change.bytes_change),
                full_name(&change.module, &change.qualname)
            ),
        );
    }
    and_more(&mut out, diff.types.len(), n_types);
    stopped_line(&mut out, diff.stopped.as_ref());
    out
}

fn and_more(out: &mut String, n_all: usize, n_shown: usize) {
    if n_all > n_shown {
        let n_more = thousands((n_all - n_shown) as i64);
        line(out, format_args!("{:>26}  {n_more} more types (--top)", ""));
    }
}

impl NotReadEntry {
    /// What is missing from the counts, a line each.
    fn in_words(&self) -> Vec<String> {
        [
            (self.swapped, "swapped out, not read"),
            (self.shared, "shared with other processes, not read"),
            (self.files, "private views of files, not read"),
            (self.failed, "gone while they were read"),
        ]
        .into_iter()
        .filter(|(n_bytes, _)| *n_bytes > 0)
        .map(|(n_bytes, why)| format!("{} {why}", bytes_text(n_bytes.cast_signed())))
        .collect()
    }
}

pub(super) fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{text}");
}

/// `module.Qualname`, made harmless; types of `builtins` without their module.
pub(crate) fn full_name(module: &str, qualname: &str) -> String {
    let name = if module == "builtins" {
        qualname.to_owned()
    } else {
        format!("{module}.{qualname}")
    };
    escape(&name).into_owned()
}

fn signed(change: i64) -> String {
    let sign = if change > 0 { "+" } else { "" };
    format!("{sign}{}", thousands(change))
}

fn signed_bytes(change: i64) -> String {
    let sign = if change < 0 { "-" } else { "+" };
    let n_bytes = i64::try_from(change.unsigned_abs()).unwrap_or(i64::MAX);
    format!("{sign}{}", bytes_text(n_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(types: &[(&str, u64, u64)]) -> Document {
        Document {
            format: FORMAT,
            pid: 7,
            python: "3.12.1".into(),
            program: Some("a".into()),
            taken: 100,
            count: types.iter().map(|row| row.1).sum(),
            bytes: types.iter().map(|row| row.2).sum(),
            types: types
                .iter()
                .map(|(name, count, bytes)| TypeEntry {
                    module: "app".into(),
                    qualname: (*name).into(),
                    count: *count,
                    bytes: *bytes,
                    tracked: 0,
                })
                .collect(),
            largest: Vec::new(),
            bytes_read: 0,
            bytes_not_read: NotReadEntry {
                swapped: 12 << 20,
                shared: 0,
                files: 0,
                failed: 0,
            },
            stopped: None,
        }
    }

    #[test]
    fn what_grew_comes_first_and_what_went_is_there_too() {
        let earlier = document(&[("Same", 5, 500), ("Gone", 2, 80), ("More", 1, 10)]);
        let later = document(&[("Same", 5, 500), ("More", 1001, 10_010), ("New", 1, 16)]);
        let changes = diff(&earlier, &later);
        let shown: Vec<_> = changes
            .types
            .iter()
            .map(|change| (&*change.qualname, change.count_change, change.bytes_change))
            .collect();
        assert_eq!(
            shown,
            [("More", 1000, 10_000), ("New", 1, 16), ("Gone", -2, -80)]
        );
        let table = diff_table(&earlier, &changes, 2);
        assert!(table.contains("+1,000"), "{table}");
        assert!(table.contains("1 more types"), "{table}");
    }

    #[test]
    fn counts_of_another_process_program_or_version_are_compared_with_a_warning() {
        let later = document(&[]);
        assert_eq!(diff(&later, &later).warnings, [""; 0]);
        let differs = |change: fn(&mut Document)| {
            let mut earlier = later.clone();
            change(&mut earlier);
            diff(&earlier, &later).warnings.len()
        };
        assert_eq!(differs(|earlier| earlier.pid = 8), 1);
        assert_eq!(differs(|earlier| earlier.program = Some("b".into())), 1);
        assert_eq!(differs(|earlier| earlier.python = "3.8.0".into()), 1);
        // A mark that an older pyagent made.
        assert_eq!(differs(|earlier| earlier.program = None), 0);
    }

    #[test]
    fn names_are_made_harmless_and_what_is_missing_is_said() {
        let text = table(&document(&[("a\x1b[2J", 1_234_567, 8)]), 10);
        assert!(
            text.contains("1,234,567") && text.contains("app.a\\u{1b}[2J"),
            "{text}"
        );
        assert!(text.contains("12.0 MiB swapped out, not read"), "{text}");
    }

    #[test]
    fn json_is_read_back_as_it_was_written() {
        let written = document(&[("A", 1, 2)]);
        let read: Document = serde_json::from_str(&json(&written)).unwrap();
        assert_eq!(read, written);
    }
}
