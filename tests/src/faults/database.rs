//! What the recorder of an agent has on its disk, read by SQLite itself and not by the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

/// The database in a folder for `--data-dir`.
#[must_use]
pub fn path(data: &Path) -> PathBuf {
    data.join("pyagent.db")
}

/// The windows with CPU samples that were written, each with its begin and end in wall time.
///
/// # Panics
/// When there is no database.
#[must_use]
pub fn windows(data: &Path) -> BTreeSet<(i64, i64, i64)> {
    let db = Connection::open(path(data)).expect("the database is there");
    let mut statement = db
        .prepare("SELECT window, start_unix_ns, end_unix_ns FROM v1_windows WHERE type = 'cpu'")
        .expect("the view is public");
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .expect("it can be asked");
    rows.map(|row| row.expect("a row")).collect()
}

/// Samples of each window with CPU samples, by the window's number. A database that is not made yet has none.
///
/// # Panics
/// When it is no database of the agent's.
#[must_use]
pub fn samples(data: &Path) -> BTreeMap<i64, i64> {
    let db = Connection::open(path(data)).expect("the database is there");
    let statement = db.prepare(
        "SELECT window, sum(value) FROM v1_values WHERE type = 'cpu' GROUP BY window HAVING sum(value) > 0",
    );
    let mut statement = match statement {
        Ok(statement) => statement,
        Err(error) if error.to_string().contains("no such table") => return BTreeMap::new(),
        Err(error) => panic!("the view is public: {error}"),
    };
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("it can be asked");
    rows.map(|row| row.expect("a row")).collect()
}

/// What SQLite says of the database: `ok`, or what is wrong with it.
///
/// # Panics
/// When there is no database.
#[must_use]
pub fn integrity(data: &Path) -> String {
    let db = Connection::open(path(data)).expect("the database is there");
    db.query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("it can be checked")
}
