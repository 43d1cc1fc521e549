//! How long things took: a line as each step ends, a table at the end.

use std::time::{Duration, Instant};

/// Says what begins, runs it, says how long it took.
pub(crate) fn timed<T, E>(what: &str, step: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    println!("{what} ...");
    let start = Instant::now();
    let result = step();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    println!("{what}: {outcome} in {}", seconds(start.elapsed()));
    result
}

/// `1.2 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// One row of a closing table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What was run.
    pub(crate) name: String,
    /// How long it took.
    pub(crate) duration: Duration,
    /// How it ended, in words.
    pub(crate) outcome: String,
}

/// The rows as a table with aligned columns, a line each.
pub(crate) fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let lines = rows.iter().map(|row| {
        format!(
            "{:<width$}  {:>9}  {}\n",
            row.name,
            seconds(row.duration),
            row.outcome
        )
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_names_and_times() {
        let row = |name: &str, millis, outcome: &str| Row {
            name: name.into(),
            duration: Duration::from_millis(millis),
            outcome: outcome.into(),
        };
        let text = table(&[row("fmt", 1_250, "ok"), row("clippy", 100_000, "FAILED")]);
        assert_eq!(text, "fmt         1.2 s  ok\nclippy    100.0 s  FAILED\n");
    }
}
