//! Reading: windows of a range of time, as one profile.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use foldhash::fast::RandomState;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::Value;

use super::clock::{self, Clock};
use super::labels::{self, Named};
use super::samples::{Decoder, LabelValue, Place, Samples, THREAD_START};
use super::schema;
use crate::profile::model::{
    self, FrameKind, Function, FunctionId, LabelSet, LabelSetId, Location, LocationId, Mapping,
    MappingId, Process, ProcessId, Profile, ProfileType, Values, label,
};
use crate::profile::query::{ProcessFacts, ProcessFilter, RecordedRequest, TimeRange, Viewer};
use crate::profile::tables::{Head, Tables};
use crate::profile::window::{OF_ALL_PROCESSES, Remarks, names_process};

/// Most namespaces that are told.
const MAX_NAMESPACES: u32 = 512;

/// A gap that is shorter is one between two windows, not one in what was recorded.
const MIN_GAP: Duration = Duration::from_secs(1);

/// Why there is no recorded profile.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No window ended in the range.
    #[error("nothing was recorded in that time{0}")]
    Nothing(String),
    /// Windows did, and none has samples of such a process.
    #[error("no process that was recorded in that time matches")]
    NoMatch,
    /// Whoever asked has left.
    #[error("given up")]
    Abandoned,
    /// The database cannot be read.
    #[error("the recorder's database cannot be read: {0}")]
    Unreadable(#[from] rusqlite::Error),
}

/// A row of the table of windows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    seq: i64,
    profile_type: ProfileType,
    /// Wall times, in nanoseconds since 1970.
    start_ns: i64,
    end_ns: i64,
    period: i64,
    remarks: String,
}

/// Reads the profile that is asked for. `is_abandoned` is asked between windows.
pub(super) fn read(
    database: &Path,
    clock: &Clock,
    request: &RecordedRequest,
    is_abandoned: &dyn Fn() -> bool,
) -> Result<Profile, ReadError> {
    let db = schema::open_to_read(database)?;
    let windows = windows(&db, clock, request.profile_type, request.range)?;
    if windows.is_empty() {
        return Err(ReadError::Nothing(what_there_is(
            &db,
            request.profile_type,
        )?));
    }
    let mut reading = Reading::new(&db, &request.filter);
    let mut remarks = Remarks::default();
    // The newest first: what was in use at the end is what the last window of a process says.
    for window in windows.iter().rev() {
        if is_abandoned() {
            return Err(ReadError::Abandoned);
        }
        reading.add(window)?;
    }
    for window in &windows {
        remarks.add(window.remarks.lines());
    }
    if !reading.has_matched {
        return Err(ReadError::NoMatch);
    }
    let (start, length) = span(&windows);
    let mut comments = remarks.into_lines();
    if request.filter.viewer != Viewer::All {
        comments.retain(|line| !names_process(line));
    }
    if !request.filter.is_all() && !comments.is_empty() {
        comments.push(OF_ALL_PROCESSES.to_owned());
    }
    comments.extend(gap_note(&windows, length));
    comments.extend(reading.note());
    Ok(reading.tables.finish(Head {
        sample_types: request.profile_type.sample_types(),
        period: windows.last().map_or(0, |window| window.period),
        start: clock::wall_time(start),
        duration: length,
        comments,
    }))
}

/// A window as it was written.
#[derive(Debug)]
pub struct RecordedWindow {
    /// Its number; later ones have larger ones.
    pub seq: i64,
    /// How many windows there were after the one that was asked for, and are no more.
    pub n_missed: u64,
    /// When it began, in nanoseconds since boot.
    pub start_ns: u64,
    /// When it ended, in nanoseconds since boot.
    pub end_ns: u64,
    /// What the profile is about.
    pub profile_type: ProfileType,
    /// The samples of all processes.
    pub profile: Profile,
}

/// The oldest window after this one, of any type; `None`: there is none yet.
pub(super) fn after(database: &Path, seq: i64) -> Result<Option<RecordedWindow>, ReadError> {
    let db = &schema::open_to_read(database)?;
    let sql = format!("{WINDOWS} WHERE seq > ?1 ORDER BY seq LIMIT 1");
    let window = db
        .prepare_cached(&sql)?
        .query_row([seq], |row| Ok(window_of(row)))
        .optional()?;
    let Some(window) = window else {
        return Ok(None);
    };
    let window = window?;
    let first: i64 = db.query_row("SELECT first_window FROM meta", [], |row| row.get(0))?;
    let (start_ns, end_ns) = db.query_row(
        "SELECT start_ns, end_ns FROM window WHERE seq = ?1",
        [window.seq],
        |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
    )?;
    let every = ProcessFilter::default();
    let mut reading = Reading::new(db, &every);
    reading.add(&window)?;
    let (start, duration) = span(std::slice::from_ref(&window));
    let mut comments: Vec<String> = window.remarks.lines().map(str::to_owned).collect();
    comments.extend(reading.note());
    let profile = reading.tables.finish(Head {
        sample_types: window.profile_type.sample_types(),
        period: window.period,
        start: clock::wall_time(start),
        duration,
        comments,
    });
    Ok(Some(RecordedWindow {
        seq: window.seq,
        // Of a database that was begun anew all are after those of the one before.
        n_missed: (window.seq - seq.max(first - 1) - 1).max(0).unsigned_abs(),
        start_ns: start_ns.cast_unsigned(),
        end_ns: end_ns.cast_unsigned(),
        profile_type: window.profile_type,
        profile,
    }))
}

/// Kubernetes namespaces of processes, each once; of too many those that were needed last.
pub(super) fn namespaces(database: &Path) -> Result<Vec<String>, ReadError> {
    let db = schema::open_to_read(database)?;
    let sql = "SELECT json_extract(labels, '$.' || ?1) AS name FROM process
        WHERE name IS NOT NULL GROUP BY name ORDER BY max(used) DESC LIMIT ?2";
    let mut statement = db.prepare(sql)?;
    let rows = statement.query_map(params![label::K8S_NAMESPACE, MAX_NAMESPACES], |row| {
        row.get(0)
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The last window that a target needs no more; `None`: it was not asked for before.
pub(super) fn acknowledged(database: &Path, target: &str) -> Result<Option<i64>, ReadError> {
    let db = schema::open_to_read(database)?;
    let acknowledged = db
        .query_row(
            "SELECT acknowledged FROM target WHERE name = ?1",
            [target],
            |row| row.get(0),
        )
        .optional()?;
    Ok(acknowledged)
}

const WINDOWS: &str = "SELECT seq, type, began_ns + start_ns, began_ns + end_ns, period, remarks
     FROM window JOIN boot ON boot.id = window.boot";

fn window_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Window> {
    let name: String = row.get(1)?;
    let profile_type = name
        .parse()
        .map_err(|_| rusqlite::Error::InvalidColumnName(name))?;
    Ok(Window {
        seq: row.get(0)?,
        profile_type,
        start_ns: row.get(2)?,
        end_ns: row.get(3)?,
        period: row.get(4)?,
        remarks: row.get(5)?,
    })
}

/// The windows that ended in the range, the oldest first. Each belongs to one of two ranges that touch.
fn windows(
    db: &Connection,
    clock: &Clock,
    profile_type: ProfileType,
    range: TimeRange,
) -> rusqlite::Result<Vec<Window>> {
    let now_ns = clock.wall_ns();
    let (from_ns, to_ns) = match range {
        TimeRange::Last(length) => {
            let length = i64::try_from(length.as_nanos()).unwrap_or(i64::MAX);
            (now_ns.saturating_sub(length), i64::MAX)
        }
        TimeRange::Between { from, to } => (
            from.map_or(i64::MIN, clock::unix_ns),
            to.map_or(i64::MAX, clock::unix_ns),
        ),
    };
    // The clock may have been set since the last window was written: what is of this boot is asked for by today's clock.
    let boot: Option<(i64, i64)> = db
        .query_row(
            "SELECT id, began_ns FROM boot WHERE boot_id = ?1",
            [&*clock.boot_id],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let (boot, moved_ns) = boot.map_or((-1, 0), |(id, began_ns)| {
        (id, clock.boot_began_ns().saturating_sub(began_ns))
    });
    let sql = format!(
        "{WINDOWS} WHERE type = ?1 AND began_ns + end_ns + iif(boot = ?2, ?3, 0) > ?4
         AND began_ns + end_ns + iif(boot = ?2, ?3, 0) <= ?5 ORDER BY seq"
    );
    let mut statement = db.prepare(&sql)?;
    let rows = statement.query_map(
        params![profile_type.name(), boot, moved_ns, from_ns, to_ns],
        |row| Ok(window_of(row)),
    )?;
    let mut windows = rows.map(|row| row?).collect::<Result<Vec<Window>, _>>()?;
    windows.sort_by_key(|window| window.seq);
    Ok(windows)
}

/// From when to when there is something, in words.
fn what_there_is(db: &Connection, profile_type: ProfileType) -> rusqlite::Result<String> {
    let (from, to): (Option<String>, Option<String>) = db.query_row(
        "SELECT min(start_time), max(end_time) FROM v1_windows WHERE type = ?1",
        [profile_type.name()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(match (from, to) {
        (Some(from), Some(to)) => format!(
            ": the recorder has {} from {from} to {to}",
            profile_type.name()
        ),
        _ => format!(": the recorder has no {} yet", profile_type.name()),
    })
}

/// Wall time of the first start, and how long it is from there to the last end.
fn span(windows: &[Window]) -> (i64, Duration) {
    let start = windows.iter().map(|window| window.start_ns).min();
    let end = windows.iter().map(|window| window.end_ns).max();
    let start = start.unwrap_or(0);
    let length = end.unwrap_or(0).saturating_sub(start).max(0);
    (start, Duration::from_nanos(length.unsigned_abs()))
}

/// What to say where windows are missing.
fn gap_note(windows: &[Window], length: Duration) -> Option<String> {
    let of_window = |window: &Window| (window.end_ns - window.start_ns).max(0).unsigned_abs();
    let recorded = Duration::from_nanos(windows.iter().map(of_window).sum());
    let gap = length.saturating_sub(recorded);
    (gap >= MIN_GAP).then(|| {
        format!(
            "not recorded: {:.0} s of {:.0} s, when no agent ran or windows could not be kept",
            gap.as_secs_f64(),
            length.as_secs_f64()
        )
    })
}

/// A profile that is read.
struct Reading<'a> {
    db: &'a Connection,
    filter: &'a ProcessFilter,
    tables: Tables,
    /// Processes by row; `None`: they are not meant, or cannot be read.
    processes: HashMap<i64, Option<ProcessId>, RandomState>,
    functions: HashMap<i64, Option<(FunctionId, MappingId)>, RandomState>,
    strings: HashMap<i64, model::StringId, RandomState>,
    locations: HashMap<Place, LocationId, RandomState>,
    /// Processes of which the last window was read.
    is_last_read: HashSet<i64, RandomState>,
    decoder: Decoder,
    has_matched: bool,
    n_damaged: u64,
}

impl<'a> Reading<'a> {
    fn new(db: &'a Connection, filter: &'a ProcessFilter) -> Self {
        Self {
            db,
            filter,
            tables: Tables::default(),
            processes: HashMap::default(),
            functions: HashMap::default(),
            strings: HashMap::default(),
            locations: HashMap::default(),
            is_last_read: HashSet::default(),
            decoder: Decoder::default(),
            has_matched: false,
            n_damaged: 0,
        }
    }

    fn note(&self) -> Option<String> {
        (self.n_damaged > 0).then(|| {
            format!(
                "recorder_damaged: {} (Parts of windows that could not be read back)",
                self.n_damaged
            )
        })
    }

    /// Adds a window. Windows come in their order from the newest.
    fn add(&mut self, window: &Window) -> rusqlite::Result<()> {
        let db = self.db;
        let mut parts = db.prepare_cached("SELECT process, samples FROM part WHERE window = ?1")?;
        let mut rows = parts.query([window.seq])?;
        while let Some(row) = rows.next()? {
            let process = row.get(0)?;
            let Some(id) = self.process(process)? else {
                continue;
            };
            self.has_matched = true;
            let bytes = row.get_ref(1)?.as_blob().unwrap_or_default();
            let n_values = window.profile_type.sample_types().len();
            match self.decoder.decode(bytes, n_values) {
                Ok(samples) => {
                    let is_last = self.is_last_read.insert(process);
                    self.add_part(window, id, &samples, is_last)?;
                }
                Err(_) => self.n_damaged += 1,
            }
        }
        Ok(())
    }

    fn add_part(
        &mut self,
        window: &Window,
        process: ProcessId,
        samples: &Samples,
        is_last: bool,
    ) -> rusqlite::Result<()> {
        let mut label_sets: Vec<Option<LabelSetId>> = vec![None; samples.labels.len()];
        let mut frames = Vec::new();
        for sample in &samples.rows {
            let values = if is_last {
                sample.values
            } else {
                window.profile_type.without_snapshots(sample.values)
            };
            if values == Values::default() {
                continue;
            }
            let idx = sample.labels as usize;
            let labels = match label_sets[idx] {
                Some(labels) => labels,
                None => {
                    let labels = self.label_set(process, &samples.labels[idx], window.seq)?;
                    *label_sets[idx].insert(labels)
                }
            };
            frames.clear();
            let mut is_whole = true;
            let mut next = sample.leaf;
            while let Some(idx) = next {
                let node = samples.nodes[idx as usize];
                match self.location(samples.places[node.place as usize])? {
                    Some(location) => frames.push(location),
                    None => is_whole = false,
                }
                next = node.caller;
            }
            let stack = if self.tables.is_full() {
                let known = self.tables.known_stack(&frames).filter(|_| is_whole);
                known.unwrap_or_else(|| self.tables.no_stack(values[0]))
            } else {
                self.tables.stack(&frames)
            };
            self.tables.add(stack, labels, values);
        }
        Ok(())
    }

    /// `None`: it is not meant.
    fn process(&mut self, row: i64) -> rusqlite::Result<Option<ProcessId>> {
        if let Some(known) = self.processes.get(&row) {
            return Ok(*known);
        }
        let found = self
            .db
            .prepare_cached(
                "SELECT pid, started_ns, cmdline, labels, owner FROM process WHERE id = ?1",
            )?
            .query_row([row], |row| {
                Ok((
                    row.get::<_, u32>(0)?,
                    row.get::<_, i64>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, String>(3)?,
                    row.get::<_, Option<u32>>(4)?,
                ))
            })
            .optional()?;
        let process = found.and_then(|(pid, started_ns, cmdline, labels, owner)| {
            let labels = labels::of_json(&labels)?;
            let is_meant = self.filter.matches(&facts(pid, owner, &cmdline, &labels));
            is_meant.then(|| {
                let tables = &mut self.tables;
                let labels = labels.iter().filter_map(|(name, value)| match value {
                    Value::String(text) => Some(tables.text_label(name, text)),
                    Value::Number(number) => {
                        let number = model::LabelValue::Num(number.as_i64()?);
                        Some((tables.string(name), number))
                    }
                    _ => None,
                });
                let labels = labels.collect();
                let process = Process {
                    pid,
                    started_ns: started_ns.cast_unsigned(),
                    owner,
                    cmdline: tables.string(&cmdline),
                    labels,
                };
                tables.process(process)
            })
        });
        self.processes.insert(row, process);
        Ok(process)
    }

    fn label_set(
        &mut self,
        process: ProcessId,
        labels: &[(i64, LabelValue)],
        seq: i64,
    ) -> rusqlite::Result<LabelSetId> {
        let (mut named, mut thread_started_ns) = (Vec::new(), 0);
        for (name, value) in labels {
            if let (THREAD_START, LabelValue::Num(started_ns)) = (*name, value) {
                thread_started_ns = started_ns.cast_unsigned();
                continue;
            }
            let value = match *value {
                LabelValue::Str(text) => model::LabelValue::Str(self.string(text)?),
                LabelValue::Num(number) => model::LabelValue::Num(number),
            };
            named.push((self.string(*name)?, value));
        }
        let set = self.tables.label_set(LabelSet {
            process,
            thread_started_ns,
            labels: named.into(),
        });
        self.tables
            .name_recorded_thread(set, seq.max(0).unsigned_abs());
        Ok(set)
    }

    /// `None`: there is no room for it.
    fn location(&mut self, place: Place) -> rusqlite::Result<Option<LocationId>> {
        if let Some(known) = self.locations.get(&place) {
            return Ok(Some(*known));
        }
        if self.tables.is_full() {
            return Ok(None);
        }
        let (function, mapping) = match self.function(place.function)? {
            Some(found) => found,
            None => self.missing_function(),
        };
        let location = self.tables.location(Location {
            function,
            line: place.line,
            mapping,
            address: place.address,
        });
        self.locations.insert(place, location);
        Ok(Some(location))
    }

    fn missing_function(&mut self) -> (FunctionId, MappingId) {
        let function = Function {
            kind: FrameKind::Reason,
            name: self.tables.string("[not kept by the recorder]"),
            filename: self.tables.string(""),
            start_line: 0,
        };
        (self.tables.function(function), MappingId(0))
    }

    fn function(&mut self, row: i64) -> rusqlite::Result<Option<(FunctionId, MappingId)>> {
        if let Some(known) = self.functions.get(&row) {
            return Ok(*known);
        }
        let found = self
            .db
            .prepare_cached(
                "SELECT kind, name, filename, start_line, mapping, build_id FROM function WHERE id = ?1",
            )?
            .query_row([row], |row| {
                let texts: [i64; 4] = [row.get(1)?, row.get(2)?, row.get(4)?, row.get(5)?];
                Ok((row.get::<_, i64>(0)?, row.get::<_, u32>(3)?, texts))
            })
            .optional()?;
        let function = match found {
            None => None,
            Some((kind, start_line, [name, filename, mapping, build_id])) => {
                let function = Function {
                    kind: kind_of(kind),
                    name: self.string(name)?,
                    filename: self.string(filename)?,
                    start_line,
                };
                let mapping = Mapping {
                    filename: self.string(mapping)?,
                    build_id: self.string(build_id)?,
                };
                Some((self.tables.function(function), self.tables.mapping(mapping)))
            }
        };
        self.functions.insert(row, function);
        Ok(function)
    }

    /// A text; empty where it is not there.
    fn string(&mut self, row: i64) -> rusqlite::Result<model::StringId> {
        if let Some(known) = self.strings.get(&row) {
            return Ok(*known);
        }
        let text: Option<String> = self
            .db
            .prepare_cached("SELECT text FROM string WHERE id = ?1")?
            .query_row([row], |row| row.get(0))
            .optional()?;
        let id = self.tables.string(&text.unwrap_or_default());
        self.strings.insert(row, id);
        Ok(id)
    }
}

/// What a filter looks at.
fn facts<'a>(
    pid: u32,
    owner: Option<u32>,
    cmdline: &'a str,
    labels: &'a Named,
) -> ProcessFacts<'a> {
    let text = |name| {
        let mut found = labels.iter().filter(|(known, _)| known == name);
        found
            .next()
            .and_then(|(_, value)| value.as_str())
            .unwrap_or_default()
    };
    ProcessFacts {
        pid,
        comm: text(label::COMM),
        cmdline,
        cgroup: text(label::CGROUP),
        container_id: text(label::CONTAINER_ID),
        container_name: text(label::CONTAINER_NAME),
        k8s_namespace: text(label::K8S_NAMESPACE),
        is_in_pod: !text(label::K8S_POD_UID).is_empty(),
        pod_labels: None,
        owner,
    }
}

fn kind_of(number: i64) -> FrameKind {
    match number {
        0 => FrameKind::Python,
        1 => FrameKind::Native,
        2 => FrameKind::Kernel,
        _ => FrameKind::Reason,
    }
}
