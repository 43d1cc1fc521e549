//! The tables, and how a database is opened, made and brought up to date.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::clock;

/// `PRAGMA application_id` of pyagent's databases: "pyag".
const APPLICATION_ID: i32 = 0x7079_6167;

/// Bytes of a page.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Readers and a person with `sqlite3` wait for each other so long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// What brings a database from one version (`PRAGMA user_version`) to the next; the first makes it from nothing.
const MIGRATIONS: &[fn(&Transaction<'_>) -> rusqlite::Result<()>] = &[version_1, version_2];

/// Version of the tables, as this agent writes them.
pub(super) const VERSION: usize = MIGRATIONS.len();

/// Only the views are public: tables change with the agent.
///
/// `used` is the number of a window in which the row was needed, or of one soon before the last (see `write::REFRESH`).
const TABLES_1: &str = "
CREATE TABLE meta (
    -- Number of the first window of this database.
    first_window INTEGER NOT NULL
);
CREATE TABLE boot (
    id INTEGER PRIMARY KEY,
    boot_id TEXT NOT NULL UNIQUE,
    -- Wall time of its begin, by the last clock that was seen.
    began_ns INTEGER NOT NULL
);
CREATE TABLE string (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE,
    used INTEGER NOT NULL
);
CREATE INDEX string_used ON string (used);
CREATE TABLE function (
    id INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    name INTEGER NOT NULL,
    filename INTEGER NOT NULL,
    start_line INTEGER NOT NULL,
    mapping INTEGER NOT NULL,
    build_id INTEGER NOT NULL,
    used INTEGER NOT NULL,
    UNIQUE (name, filename, start_line, kind, mapping, build_id)
);
CREATE INDEX function_used ON function (used);
CREATE TABLE process (
    id INTEGER PRIMARY KEY,
    boot INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    started_ns INTEGER NOT NULL,
    cmdline TEXT NOT NULL,
    labels TEXT NOT NULL,
    -- The user who may see it beside root.
    owner INTEGER,
    used INTEGER NOT NULL
);
CREATE INDEX process_pid ON process (pid, started_ns);
CREATE INDEX process_used ON process (used);
CREATE TABLE window (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    boot INTEGER NOT NULL,
    type TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    period INTEGER NOT NULL,
    remarks TEXT NOT NULL
);
CREATE INDEX window_end ON window (boot, end_ns);
CREATE TABLE part (
    id INTEGER PRIMARY KEY,
    window INTEGER NOT NULL,
    process INTEGER NOT NULL,
    value INTEGER NOT NULL,
    value_2 INTEGER NOT NULL,
    samples BLOB NOT NULL
);
CREATE INDEX part_window ON part (window, process);
CREATE TABLE target (
    name TEXT PRIMARY KEY,
    acknowledged INTEGER NOT NULL
) WITHOUT ROWID;
";

const VIEWS_1: &str = "
CREATE VIEW v1_windows AS
SELECT seq AS window, type,
    strftime('%Y-%m-%dT%H:%M:%fZ', (began_ns + start_ns) / 1e9, 'unixepoch') AS start_time,
    strftime('%Y-%m-%dT%H:%M:%fZ', (began_ns + end_ns) / 1e9, 'unixepoch') AS end_time,
    (began_ns + start_ns) AS start_unix_ns, (began_ns + end_ns) AS end_unix_ns,
    period, remarks, boot_id
FROM window JOIN boot ON boot.id = window.boot;
CREATE VIEW v1_processes AS
SELECT process.id AS process, pid,
    strftime('%Y-%m-%dT%H:%M:%fZ', (began_ns + started_ns) / 1e9, 'unixepoch') AS start_time,
    cmdline, labels, boot_id
FROM process JOIN boot ON boot.id = process.boot;
CREATE VIEW v1_values AS
SELECT part.window AS window, part.process AS process, window.type AS type, value, value_2,
    length(samples) AS n_bytes
FROM part JOIN window ON window.seq = part.window;
CREATE VIEW v1_functions AS
SELECT function.id AS function, n.text AS name, f.text AS filename, start_line
FROM function JOIN string AS n ON n.id = function.name JOIN string AS f ON f.id = function.filename;
";

fn version_1(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(TABLES_1)?;
    // Numbers go on where those of a database that was lost ended: whoever remembers one of them is not misled.
    let last = clock::unix_ns(SystemTime::now()) / 1_000_000;
    transaction.execute(
        "INSERT INTO sqlite_sequence (name, seq) VALUES ('window', ?1)",
        [last],
    )?;
    transaction.execute("INSERT INTO meta (first_window) VALUES (?1)", [last + 1])?;
    transaction.execute_batch(VIEWS_1)
}

/// The tables stay. Parts say when threads began ([`super::samples::THREAD_START`]), which an agent of version 1 would take for
/// a label.
fn version_2(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch("")
}

/// Why a database cannot be written to.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// A newer agent made it.
    #[error("a newer pyagent wrote it")]
    Newer,
    /// It is none, or damaged.
    #[error("it is damaged, or no database of pyagent")]
    Damaged,
    /// The file cannot be made or written to.
    #[error(transparent)]
    File(std::io::Error),
    /// Anything else.
    #[error(transparent)]
    Other(rusqlite::Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        if is_damage(&error) {
            Self::Damaged
        } else {
            Self::Other(error)
        }
    }
}

/// Whether an error says that the file is not what it should be.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(
        code,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    ) || matches!(error, rusqlite::Error::SqliteFailure(failure, Some(message))
        if failure.code == ErrorCode::Unknown && message.starts_with("no such"))
}

/// Whether an error says that there is no room.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// Opens a database for writing; makes it where there is none, and brings it up to date.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    make_private(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.pragma_update(None, "page_size", PAGE_BYTES as i64)?;
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    let journal: String =
        db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if journal != "wal" {
        tracing::debug!("the database's journal is {journal}");
    }
    // What was committed outlives the agent in any case; only when the host loses power, what came after the last
    // checkpoint is lost, never the database.
    db.pragma_update(None, "synchronous", "NORMAL")?;
    // The agent does it after each commit, where nobody waits.
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    db.pragma_update(None, "cache_size", -2048)?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    db.pragma_update(None, "trusted_schema", false)?;
    migrate(&mut db)?;
    Ok(db)
}

/// Makes the file where there is none, for its owner alone: SQLite gives its other files the same mode.
fn make_private(path: &Path) -> Result<(), OpenError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    let made = file.and_then(|file| {
        let found = file.metadata()?;
        if found.mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        Ok(())
    });
    made.map_err(OpenError::File)
}

fn migrate(db: &mut Connection) -> Result<(), OpenError> {
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version = usize::try_from(version).map_err(|_| OpenError::Damaged)?;
    if version > VERSION {
        return Err(OpenError::Newer);
    }
    let n_tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let is_new = version == 0 && n_tables == 0;
    if !is_new && application != APPLICATION_ID {
        return Err(OpenError::Damaged);
    }
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for migration in &MIGRATIONS[version..] {
        migration(&transaction)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION as i64)?;
    transaction.commit()?;
    Ok(())
}

/// Whether a database is what it should be; reads all of it.
pub(super) fn is_sound(path: &Path) -> bool {
    let check = || {
        let db = open_to_read(path)?;
        db.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
    };
    match check() {
        Ok(answer) => answer == "ok",
        Err(error) => !is_damage(&error),
    }
}

/// Opens a database for reading.
pub(super) fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.pragma_update(None, "cache_size", -1024)?;
    db.pragma_update(None, "trusted_schema", false)?;
    Ok(db)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_database_is_made_once_and_only_its_views_are_public() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a.db");
        drop(open(&path).unwrap());
        let db = open(&path).unwrap();
        let version: usize = db
            .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
            .unwrap() as usize;
        assert_eq!(version, VERSION);
        let mut views = db
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'view'")
            .unwrap();
        let names = views.query_map([], |row| row.get::<_, String>(0)).unwrap();
        for name in names {
            let name = name.unwrap();
            assert!(name.starts_with("v1_"));
            // It can be asked.
            db.query_row(&format!("SELECT count(*) FROM {name}"), [], |row| {
                row.get::<_, i64>(0)
            })
            .unwrap();
        }
    }

    #[test]
    fn what_is_newer_or_no_database_of_ours_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("newer.db");
        let db = open(&path).unwrap();
        db.pragma_update(None, "user_version", VERSION as i64 + 1)
            .unwrap();
        drop(db);
        assert!(matches!(open(&path), Err(OpenError::Newer)));

        let path = scratch.path().join("garbage.db");
        fs::write(&path, vec![b'x'; 20_000]).unwrap();
        assert!(matches!(open(&path), Err(OpenError::Damaged)));

        let path = scratch.path().join("other.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch("CREATE TABLE precious (text)").unwrap();
        drop(db);
        assert!(matches!(open(&path), Err(OpenError::Damaged)));
    }
}
