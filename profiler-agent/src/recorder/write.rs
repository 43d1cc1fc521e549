//! Writing: windows in, the oldest out.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::clock::Clock;
use super::folder;
use super::labels;
use super::samples::{Builder, Encoder, LabelValue, Place, THREAD_START};
use super::schema::{self, OpenError, PAGE_BYTES};
use crate::profile::model::{
    self, FrameKind, Function, LabelSetId, Mapping, ProcessId, Profile, ProfileType,
};
use crate::profile::window::ClosedWindow;

/// A row says that it is needed at most so many windows late, so that not each window writes to all rows that it needs.
const REFRESH: i64 = 16;

/// They do not all say it in the same window.
const STAGGER: i64 = 16;

/// Rows that are remembered at most, of each table.
const MAX_KNOWN: usize = 1 << 16;

/// Windows that are removed in one transaction, so that it is short.
const MAX_REMOVED: usize = 4;

/// Rows that nobody needs, removed in one transaction.
const MAX_UNUSED_REMOVED: i64 = 500;

/// Pages that are given back to the file system in one step.
const VACUUM_PAGES: u32 = 256;

/// What a window takes at least, as long as none was written.
const FIRST_WINDOW_BYTES: u64 = 256 << 10;

/// Bounds of what is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Windows that ended earlier go.
    pub(super) keep: Duration,
    /// Bytes of the database and its log.
    pub(super) keep_bytes: u64,
}

impl Limits {
    /// Bytes of the log at most.
    fn log_bytes(self) -> u64 {
        (self.keep_bytes / 8).clamp(1 << 20, 64 << 20)
    }

    /// Pages of the database at most.
    fn n_pages(self) -> u64 {
        self.keep_bytes.saturating_sub(self.log_bytes()) / PAGE_BYTES
    }
}

/// Why a window was not written. Nothing of it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The database is damaged.
    #[error("the database is damaged")]
    Damaged,
    /// There is no room on the disk.
    #[error("the disk is full")]
    DiskFull,
    /// Somebody reads the database for so long that its log cannot be emptied.
    #[error("a reader holds the database's log, which is as long as it may be")]
    LogHeld,
    /// Anything else.
    #[error(transparent)]
    Other(rusqlite::Error),
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        if schema::is_damage(&error) {
            Self::Damaged
        } else if schema::is_full(&error) {
            Self::DiskFull
        } else {
            Self::Other(error)
        }
    }
}

/// What a table's rows are remembered by: two hashes with keys of this run's own, so that nobody makes two texts equal.
type Key = (u64, u64);

/// Rows that are known to be there, and the window in which they last said that they are needed.
#[derive(Debug, Default)]
struct Known {
    rows: HashMap<Key, (i64, i64)>,
}

impl Known {
    fn get(&self, key: Key) -> Option<(i64, i64)> {
        self.rows.get(&key).copied()
    }

    fn set(&mut self, key: Key, id: i64, used: i64) {
        if self.rows.len() >= MAX_KNOWN {
            self.rows.clear();
        }
        self.rows.insert(key, (id, used));
    }
}

/// Whether a row has to say that it is needed.
fn is_due(id: i64, used: i64, seq: i64) -> bool {
    seq - used > REFRESH + id % STAGGER
}

/// What is remembered from window to window.
#[derive(Debug, Default)]
struct Rows {
    builder: Builder,
    encoder: Encoder,
    hashers: [RandomState; 2],
    strings: Known,
    functions: Known,
    processes: Known,
}

/// Writes to one database.
#[derive(Debug)]
pub(super) struct Writer {
    db: Connection,
    path: PathBuf,
    limits: Limits,
    clock: Clock,
    boot: i64,
    rows: Rows,
    /// Bytes that the largest of the last windows took.
    window_bytes: u64,
    /// Old windows were removed since the disk is full, and no window was written since.
    gave_to_full_disk: bool,
}

impl Writer {
    pub(super) fn open(path: &Path, limits: Limits, clock: Clock) -> Result<Self, OpenError> {
        let db = schema::open(path)?;
        db.set_prepared_statement_cache_capacity(32);
        db.pragma_update(None, "journal_size_limit", (limits.log_bytes() / 2) as i64)?;
        db.query_row(
            &format!("PRAGMA max_page_count = {}", limits.n_pages()),
            [],
            |_| Ok(()),
        )?;
        let boot = db.query_row(
            "INSERT INTO boot (boot_id, began_ns) VALUES (?1, ?2)
             ON CONFLICT (boot_id) DO UPDATE SET began_ns = ?2 RETURNING id",
            params![clock.boot_id, clock.boot_began_ns()],
            |row| row.get(0),
        )?;
        Ok(Self {
            db,
            path: path.to_owned(),
            limits,
            clock,
            boot,
            rows: Rows::default(),
            window_bytes: FIRST_WINDOW_BYTES,
            gave_to_full_disk: false,
        })
    }

    /// Writes a window, and removes the oldest where there is no room.
    pub(super) fn commit(&mut self, window: &ClosedWindow) -> Result<u64, WriteError> {
        let mut n_removed = self.make_room()?;
        let mut written = self.write(window);
        // What it takes is known afterwards only.
        while matches!(written, Err(WriteError::DiskFull)) {
            // What others have filled is not theirs to give back: what is removed makes room in the database, but its log may
            // find none on the disk. Old windows are not given up for that more than once.
            let is_disk = folder::n_free_bytes(&self.path) < self.window_bytes * 2;
            if is_disk && std::mem::replace(&mut self.gave_to_full_disk, true) {
                break;
            }
            let n = self.remove_oldest(MAX_REMOVED)?;
            self.checkpoint()?;
            // Without windows nobody needs any row.
            if n == 0 && !self.remove_unused(0)? {
                break;
            }
            n_removed += n;
            written = self.write(window);
        }
        self.window_bytes = written?.max(self.window_bytes - self.window_bytes / 8);
        self.gave_to_full_disk = false;
        Ok(n_removed)
    }

    /// Empties the log into the database, as far as readers let it, and begins it anew. Both wait for the disk (SQLite syncs a
    /// new log's header before what follows it), and are to be done when no window waits: the next one is then only appended.
    pub(super) fn settle(&mut self) -> Result<(), WriteError> {
        self.checkpoint()?;
        note_boot(&self.db, &self.clock, self.boot)?;
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), WriteError> {
        self.db
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// Room for a window in the database and in its log.
    fn make_room(&mut self) -> Result<u64, WriteError> {
        let expected = self.window_bytes * 2;
        if self.log_bytes() + expected > self.limits.log_bytes() {
            self.db
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            if self.log_bytes() + expected.min(self.limits.log_bytes() / 2)
                > self.limits.log_bytes()
            {
                return Err(WriteError::LogHeld);
            }
        }
        let mut n_removed = 0;
        while !self.has_room()? {
            let n = self.remove_oldest(MAX_REMOVED)?;
            n_removed += n;
            if n == 0 && !self.remove_unused(0)? {
                break;
            }
        }
        Ok(n_removed)
    }

    /// Whether the database has room for a window as large as the last ones, and as much again.
    fn has_room(&self) -> rusqlite::Result<bool> {
        let expected = (self.window_bytes * 2 / PAGE_BYTES).min(self.limits.n_pages() / 2);
        Ok(self.n_used_pages()? + expected <= self.limits.n_pages())
    }

    fn log_bytes(&self) -> u64 {
        folder::n_bytes(&self.path) - std::fs::metadata(&self.path).map_or(0, |found| found.len())
    }

    fn pragma(&self, name: &str) -> rusqlite::Result<u64> {
        let value: i64 = self.db.pragma_query_value(None, name, |row| row.get(0))?;
        Ok(value.unsigned_abs())
    }

    fn n_used_pages(&self) -> rusqlite::Result<u64> {
        Ok(self
            .pragma("page_count")?
            .saturating_sub(self.pragma("freelist_count")?))
    }

    fn begin(db: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
        db.transaction_with_behavior(TransactionBehavior::Immediate)
    }

    /// Removes the oldest windows; how many there were.
    fn remove_oldest(&mut self, n_windows: usize) -> Result<u64, WriteError> {
        let transaction = Self::begin(&mut self.db)?;
        let n_removed = transaction
            .prepare_cached("SELECT seq FROM window ORDER BY seq LIMIT ?1")?
            .query_map([n_windows as i64], |row| row.get::<_, i64>(0))?
            .collect::<Result<Vec<_>, _>>()?;
        for seq in &n_removed {
            remove(&transaction, *seq)?;
        }
        transaction.commit()?;
        Ok(n_removed.len() as u64)
    }

    /// A step of what can wait: removes windows that are too old, or in the way of the next one, rows that nobody needs, and
    /// pages that are not used. How many windows went; `None`: there is nothing left to do.
    pub(super) fn tidy(&mut self) -> Result<Option<u64>, WriteError> {
        let keep_ns = i64::try_from(self.limits.keep.as_nanos()).unwrap_or(i64::MAX);
        let oldest_ns = self.clock.boot_ns().saturating_sub(keep_ns);
        let oldest_unix_ns = self.clock.wall_ns().saturating_sub(keep_ns);
        let transaction = Self::begin(&mut self.db)?;
        let expired = transaction
            .prepare_cached(
                "SELECT seq FROM window JOIN boot ON boot.id = window.boot
                 WHERE CASE WHEN boot.id = ?1 THEN end_ns < ?2 ELSE end_ns + began_ns < ?3 END
                 ORDER BY seq LIMIT ?4",
            )?
            .query_map(
                params![self.boot, oldest_ns, oldest_unix_ns, MAX_REMOVED as i64],
                |row| row.get::<_, i64>(0),
            )?
            .collect::<Result<Vec<_>, _>>()?;
        for seq in &expired {
            remove(&transaction, *seq)?;
        }
        transaction.commit()?;
        if !expired.is_empty() {
            self.settle()?;
            return Ok(Some(expired.len() as u64));
        }
        if !self.has_room()? {
            let n_removed = self.remove_oldest(MAX_REMOVED)?;
            if n_removed > 0 {
                self.settle()?;
                return Ok(Some(n_removed));
            }
        }
        if self.remove_unused(REFRESH + STAGGER)? {
            self.settle()?;
            return Ok(Some(0));
        }
        if self.pragma("page_count")? > self.limits.n_pages() {
            let freed = self.pragma("freelist_count")?;
            if freed > 0 {
                self.db
                    .execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
                self.settle()?;
                let pragma = format!("PRAGMA max_page_count = {}", self.limits.n_pages());
                self.db.query_row(&pragma, [], |_| Ok(()))?;
                return Ok(Some(0));
            }
            let n_removed = self.remove_oldest(MAX_REMOVED)?;
            return Ok((n_removed > 0).then_some(n_removed));
        }
        Ok(None)
    }

    /// Removes some rows that no window needs. A row was needed at most `late` windows after it said so.
    fn remove_unused(&mut self, late: i64) -> Result<bool, WriteError> {
        let transaction = Self::begin(&mut self.db)?;
        let oldest: Option<i64> =
            transaction.query_row("SELECT min(seq) FROM window", [], |row| row.get(0))?;
        let oldest = oldest.unwrap_or(i64::MAX);
        let mut has_removed = false;
        let Rows {
            strings,
            functions,
            processes,
            ..
        } = &mut self.rows;
        // What a row refers to said it when the row did, or as many windows earlier.
        for (table, known, late) in [
            ("process", processes, late),
            ("function", functions, late),
            ("string", strings, 2 * late),
        ] {
            let sql = format!(
                "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE used < ?1 LIMIT ?2) RETURNING id"
            );
            let before = oldest.saturating_sub(late);
            let removed = transaction
                .prepare_cached(&sql)?
                .query_map(params![before, MAX_UNUSED_REMOVED], |row| row.get(0))?
                .collect::<Result<HashSet<i64>, _>>()?;
            if !removed.is_empty() {
                has_removed = true;
                known.rows.retain(|_, (id, _)| !removed.contains(id));
            }
        }
        transaction.commit()?;
        Ok(has_removed)
    }

    fn write(&mut self, window: &ClosedWindow) -> Result<u64, WriteError> {
        let written = self.try_write(window);
        if written.is_err() {
            // Rows of a transaction that was taken back are not there.
            self.rows = Rows::default();
        }
        written
    }

    /// Bytes of the samples.
    fn try_write(&mut self, window: &ClosedWindow) -> Result<u64, WriteError> {
        let transaction = Self::begin(&mut self.db)?;
        note_boot(&transaction, &self.clock, self.boot)?;
        let mut n_bytes = 0;
        for (profile_type, profile) in &window.profiles {
            let seq = insert_window(&transaction, self.boot, window, *profile_type, profile)?;
            let mut part = PartWriter {
                transaction: &transaction,
                rows: &mut self.rows,
                boot: self.boot,
                seq,
                profile,
                functions: HashMap::default(),
            };
            n_bytes += part.write_all(*profile_type)?;
        }
        transaction.commit()?;
        Ok(n_bytes)
    }

    /// Keeps that a target needs this window and those before it no more.
    pub(super) fn acknowledge(&mut self, target: &str, seq: i64) -> Result<(), WriteError> {
        self.db
            .prepare_cached(
                "INSERT INTO target (name, acknowledged) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET acknowledged = max(acknowledged, ?2)",
            )?
            .execute(params![target, seq])?;
        Ok(())
    }

    /// Number of the last window that was ever written.
    pub(super) fn last_seq(&self) -> rusqlite::Result<i64> {
        let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'window'";
        self.db.query_row(sql, [], |row| row.get(0))
    }

    /// Wall time of the begin of the oldest window, in nanoseconds since 1970.
    pub(super) fn oldest_ns(&self) -> rusqlite::Result<Option<i64>> {
        self.db
            .query_row(
                "SELECT start_ns + began_ns FROM window JOIN boot ON boot.id = window.boot ORDER BY seq LIMIT 1",
                [],
                |row| row.get(0),
            )
            .optional()
    }
}

/// Writes down when the host was started, by the wall clock as it is now.
fn note_boot(db: &Connection, clock: &Clock, boot: i64) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE boot SET began_ns = ?1 WHERE id = ?2")?
        .execute(params![clock.boot_began_ns(), boot])?;
    Ok(())
}

fn remove(transaction: &Transaction<'_>, seq: i64) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM part WHERE window = ?1")?
        .execute([seq])?;
    transaction
        .prepare_cached("DELETE FROM window WHERE seq = ?1")?
        .execute([seq])?;
    Ok(())
}

fn insert_window(
    transaction: &Transaction<'_>,
    boot: i64,
    window: &ClosedWindow,
    profile_type: ProfileType,
    profile: &Profile,
) -> rusqlite::Result<i64> {
    transaction
        .prepare_cached(
            "INSERT INTO window (boot, type, start_ns, end_ns, period, remarks) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .insert(params![
            boot,
            profile_type.name(),
            window.start_ns.cast_signed(),
            window.end_ns.cast_signed(),
            profile.period,
            profile.comments.join("\n"),
        ])
}

/// The number of a kind of frame in the table of functions.
pub(super) const fn kind_number(kind: FrameKind) -> i64 {
    match kind {
        FrameKind::Python => 0,
        FrameKind::Native => 1,
        FrameKind::Kernel => 2,
        FrameKind::Reason => 3,
    }
}

/// Writes one profile of a window.
struct PartWriter<'a> {
    transaction: &'a Transaction<'a>,
    rows: &'a mut Rows,
    boot: i64,
    seq: i64,
    profile: &'a Profile,
    /// Rows of the profile's functions, each in a binary: there are many more places than functions.
    functions: HashMap<(u32, u32), i64, foldhash::fast::RandomState>,
}

impl PartWriter<'_> {
    fn write_all(&mut self, profile_type: ProfileType) -> rusqlite::Result<u64> {
        let profile = self.profile;
        let mut by_process: Vec<Vec<&model::Sample>> = vec![Vec::new(); profile.processes.len()];
        for sample in &profile.samples {
            let set = profile.label_sets.get(sample.labels.0 as usize);
            let process = set.and_then(|set| by_process.get_mut(set.process.0 as usize));
            if let Some(samples) = process {
                samples.push(sample);
            }
        }
        let mut places = vec![None; profile.locations.len()];
        let mut n_bytes = 0;
        for (idx, samples) in (0..).zip(by_process) {
            if !samples.is_empty() {
                n_bytes += self.write(profile_type, ProcessId(idx), &samples, &mut places)?;
            }
        }
        Ok(n_bytes)
    }

    fn write(
        &mut self,
        profile_type: ProfileType,
        process: ProcessId,
        samples: &[&model::Sample],
        places: &mut [Option<Place>],
    ) -> rusqlite::Result<u64> {
        let profile = self.profile;
        let mut builder = std::mem::take(&mut self.rows.builder);
        builder.clear();
        let mut label_sets = HashMap::new();
        let mut sums = model::Values::default();
        for sample in samples {
            let labels = match label_sets.get(&sample.labels) {
                Some(labels) => *labels,
                None => {
                    let labels = builder.labels(self.labels(sample.labels)?);
                    label_sets.insert(sample.labels, labels);
                    labels
                }
            };
            let mut node = None;
            let stack = profile.stacks.get(sample.stack.0 as usize);
            for location in stack.into_iter().flatten().rev() {
                let place = match places.get(location.0 as usize) {
                    Some(Some(place)) => *place,
                    _ => {
                        let place = self.place(*location)?;
                        if let Some(known) = places.get_mut(location.0 as usize) {
                            *known = Some(place);
                        }
                        place
                    }
                };
                node = Some(builder.call(node, place));
            }
            builder.sample(node, labels, sample.values);
            sums.add(sample.values);
        }
        let bytes = self
            .rows
            .encoder
            .encode(builder.samples(), profile_type.sample_types().len());
        self.rows.builder = builder;
        let process = self.process(process)?;
        self.transaction
            .prepare_cached(
                "INSERT INTO part (window, process, value, value_2, samples) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![self.seq, process, sums[0], sums[1], bytes])?;
        Ok(bytes.len() as u64)
    }

    fn key(&self, value: impl Hash) -> Key {
        let [first, second] = &self.rows.hashers;
        (first.hash_one(&value), second.hash_one(&value))
    }

    /// Says that a row is needed, if it is time to.
    fn refresh(&self, table: &str, id: i64, used: i64) -> rusqlite::Result<i64> {
        if !is_due(id, used, self.seq) {
            return Ok(used);
        }
        self.transaction
            .prepare_cached(&format!("UPDATE {table} SET used = ?1 WHERE id = ?2"))?
            .execute(params![self.seq, id])?;
        Ok(self.seq)
    }

    /// The row of a text.
    fn string(&mut self, text: &str) -> rusqlite::Result<i64> {
        let key = self.key(text);
        let found = match self.rows.strings.get(key) {
            Some(known) => Some(known),
            None => self
                .transaction
                .prepare_cached("SELECT id, used FROM string WHERE text = ?1")?
                .query_row([text], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?,
        };
        let (id, used) = match found {
            Some((id, used)) => (id, self.refresh("string", id, used)?),
            None => {
                let id = self
                    .transaction
                    .prepare_cached("INSERT INTO string (text, used) VALUES (?1, ?2)")?
                    .insert(params![text, self.seq])?;
                (id, self.seq)
            }
        };
        self.rows.strings.set(key, id, used);
        Ok(id)
    }

    fn labels(&mut self, id: LabelSetId) -> rusqlite::Result<Vec<(i64, LabelValue)>> {
        let profile = self.profile;
        let set = profile.label_sets.get(id.0 as usize);
        let labels = set.into_iter().flat_map(|set| &set.labels);
        let mut rows = Vec::new();
        if let Some(set) = set.filter(|set| set.thread_started_ns != 0) {
            let started_ns = set.thread_started_ns.cast_signed();
            rows.push((THREAD_START, LabelValue::Num(started_ns)));
        }
        for (name, value) in labels {
            let name = self.string(profile.str(*name))?;
            let value = match *value {
                model::LabelValue::Str(text) => LabelValue::Str(self.string(profile.str(text))?),
                model::LabelValue::Num(number) => LabelValue::Num(number),
            };
            rows.push((name, value));
        }
        Ok(rows)
    }

    fn place(&mut self, id: model::LocationId) -> rusqlite::Result<Place> {
        let profile = self.profile;
        let location = profile.locations.get(id.0 as usize);
        let function = location.and_then(|it| profile.functions.get(it.function.0 as usize));
        let mapping = location.and_then(|it| profile.mappings.get(it.mapping.0 as usize));
        let (Some(location), Some(function), Some(mapping)) = (location, function, mapping) else {
            return Err(rusqlite::Error::IntegralValueOutOfRange(0, id.0.into()));
        };
        let key = (location.function.0, location.mapping.0);
        let row = match self.functions.get(&key) {
            Some(row) => *row,
            None => {
                let row = self.function(function, *mapping)?;
                self.functions.insert(key, row);
                row
            }
        };
        Ok(Place {
            function: row,
            line: location.line,
            address: location.address,
        })
    }

    /// The row of a function, and of the binary that it is in.
    fn function(&mut self, function: &Function, mapping: Mapping) -> rusqlite::Result<i64> {
        let profile = self.profile;
        let texts = [
            function.name,
            function.filename,
            mapping.filename,
            mapping.build_id,
        ]
        .map(|id| profile.str(id));
        let kind = kind_number(function.kind);
        let key = self.key((texts, kind, function.start_line));
        if let Some((id, used)) = self.rows.functions.get(key)
            && !is_due(id, used, self.seq)
        {
            return Ok(id);
        }
        let mut rows = [0; 4];
        for (row, text) in rows.iter_mut().zip(texts) {
            *row = self.string(text)?;
        }
        let [name, filename, mapping, build_id] = rows;
        let found: Option<(i64, i64)> = self
            .transaction
            .prepare_cached(
                "SELECT id, used FROM function WHERE name = ?1 AND filename = ?2 AND start_line = ?3 AND kind = ?4
                 AND mapping = ?5 AND build_id = ?6",
            )?
            .query_row(
                params![name, filename, function.start_line, kind, mapping, build_id],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let (id, used) = match found {
            Some((id, used)) => (id, self.refresh("function", id, used)?),
            None => {
                let id = self
                    .transaction
                    .prepare_cached(
                        "INSERT INTO function (name, filename, start_line, kind, mapping, build_id, used)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    )?
                    .insert(params![
                        name,
                        filename,
                        function.start_line,
                        kind,
                        mapping,
                        build_id,
                        self.seq
                    ])?;
                (id, self.seq)
            }
        };
        self.rows.functions.set(key, id, used);
        Ok(id)
    }

    fn process(&mut self, id: ProcessId) -> rusqlite::Result<i64> {
        let profile = self.profile;
        let Some(process) = profile.processes.get(id.0 as usize) else {
            return Err(rusqlite::Error::IntegralValueOutOfRange(0, id.0.into()));
        };
        let (labels, cmdline) = (
            labels::to_json(profile, &process.labels),
            profile.str(process.cmdline),
        );
        let started_ns = process.started_ns.cast_signed();
        let key = self.key((process.pid, started_ns, process.owner, cmdline, &labels));
        let found = match self.rows.processes.get(key) {
            Some(known) => Some(known),
            None => self
                .transaction
                .prepare_cached(
                    "SELECT id, used FROM process
                     WHERE pid = ?1 AND started_ns = ?2 AND boot = ?3 AND cmdline = ?4 AND labels = ?5
                     AND owner IS ?6",
                )?
                .query_row(
                    params![process.pid, started_ns, self.boot, cmdline, labels, process.owner],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .optional()?,
        };
        let (id, used) = match found {
            Some((id, used)) => (id, self.refresh("process", id, used)?),
            None => {
                let id = self
                    .transaction
                    .prepare_cached(
                        "INSERT INTO process (pid, started_ns, boot, cmdline, labels, owner, used)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    )?
                    .insert(params![
                        process.pid,
                        started_ns,
                        self.boot,
                        cmdline,
                        labels,
                        process.owner,
                        self.seq
                    ])?;
                (id, self.seq)
            }
        };
        self.rows.processes.set(key, id, used);
        Ok(id)
    }
}
