//! The report: what a pipe or a file gets. Text without escape codes, or JSON.

use std::fmt::Write as _;

use serde_json::{Value, json as value};

use super::draw::{cpu_share_text, function_head, number_columns, numbers, sampling_text};
use super::kept::ThreadId;
use super::keys::{Ui, process_rows};
use super::table::Span;
use super::{Gil, Top};
use crate::format::{duration_text, escape, thousands, unix_seconds};
use crate::profile::model::FrameKind;
use crate::view::columns::{columns, wrapped};

/// Rows when nobody says how many.
const DEFAULT_TOP: usize = 30;

/// Columns of remarks.
const REMARK_WIDTH: usize = 100;

/// All since the begin, as text. Percentages are of the whole time.
#[must_use]
pub fn text(top: &Top, ui: &Ui) -> String {
    let choice = super::Choice {
        span: Span::Whole,
        ..ui.choice.clone()
    };
    let rows = top.rows(&choice);
    let n_all = rows.len();
    let n_shown = n_all.min(ui.top.unwrap_or(DEFAULT_TOP));
    let processes = match top.processes.len() {
        1 => "1 process".to_owned(),
        n => format!("{} processes", thousands(n as i64)),
    };
    // Writing to a String does not fail.
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} samples of {processes} in {}",
        thousands(top.n_samples),
        duration_text(top.elapsed)
    );
    let _ = writeln!(text, "{}", sampling_text(top, Span::Whole, choice.pid));
    let _ = writeln!(
        text,
        "{}; waiting is not in it",
        cpu_share_text(top, Span::Whole, choice.pid)
    );
    if let Some(why) = top.ended() {
        let _ = writeln!(text, "{}", escape(why));
    }
    let threads = rows[..n_shown].iter();
    let threads = threads.map(|row| thread_text(row.thread, choice.pid));
    let threads: Vec<String> = threads.collect();
    let n_thread = if choice.by_thread {
        let widest = threads.iter().map(|thread| columns(thread)).max();
        widest.unwrap_or(0).max("Thread".len()) + 2
    } else {
        0
    };
    if n_all > 0 {
        text.push('\n');
        for (key, width) in number_columns(top.kept.knows_gil) {
            let _ = write!(text, "{:>width$}", key.head());
        }
        let thread = if choice.by_thread { "Thread" } else { "" };
        let gap = " ".repeat(n_thread - thread.len());
        let _ = writeln!(text, "  {thread}{gap}{}", function_head(ui));
    }
    for (row, thread) in rows[..n_shown].iter().zip(&threads) {
        let gap = " ".repeat(n_thread.saturating_sub(columns(thread)));
        let _ = writeln!(
            text,
            "{}  {thread}{gap}{}",
            numbers(row, top.kept.knows_gil),
            row.function(&choice)
        );
    }
    if n_shown < n_all {
        let _ = writeln!(
            text,
            "{} of {} rows; --top N shows more",
            thousands(n_shown as i64),
            thousands(n_all as i64)
        );
    }
    let remarks = top.remarks(Span::Whole);
    if !remarks.is_empty() {
        text.push_str("\nnot in the profile, or not complete:\n");
        for remark in &remarks {
            text.push_str(&wrapped(&escape(remark), 2, REMARK_WIDTH));
        }
    }
    text
}

/// The same as one document of JSON.
#[must_use]
pub fn json(top: &Top, ui: &Ui) -> Value {
    let choice = super::Choice {
        span: Span::Whole,
        ..ui.choice.clone()
    };
    let rows = top.rows(&choice);
    let rows = rows.iter().take(ui.top.unwrap_or(usize::MAX)).map(|row| {
        let mut value = value!({
            "own_percent": row.own_percent,
            "total_percent": row.total_percent,
            "gil_percent": row.gil_percent,
            "own_seconds": row.whole.own as f64 / 1e9,
            "total_seconds": row.whole.total as f64 / 1e9,
            "function": row.place.name,
            "file": row.place.file,
            "line": row.place.line,
            "kind": match row.place.kind {
                FrameKind::Python => "python",
                FrameKind::Native => "native",
                FrameKind::Kernel => "kernel",
                FrameKind::Reason => "remark",
            },
        });
        if let Some((id, name)) = row.thread {
            value["pid"] = id.pid.into();
            value["tid"] = id.tid.into();
            value["thread"] = name.into();
        }
        value
    });
    let rows: Vec<Value> = rows.collect();
    let processes = process_rows(top).into_iter().map(|(pid, process)| {
        value!({
            "pid": pid,
            "program": process.name,
            "python_version": process.python_version,
            "is_running": process.is_running,
            "cpu_percent": 100.0 * top.cpus(Span::Whole, Some(pid)),
            "cpu_seconds": process.whole_ns as f64 / 1e9,
            "samples": process.n_samples,
        })
    });
    let processes: Vec<Value> = processes.collect();
    let vitals = top.vitals[2];
    let gil = match top.gil_share(Span::Whole) {
        Gil::Share(share) => Some(100.0 * share),
        Gil::NoSamples | Gil::Unknown | Gil::NotSaid => None,
    };
    let cpus = top.cpus(Span::Whole, None);
    let n_cpus = vitals.map(|it| it.n_cpus).filter(|n| *n > 0);
    value!({
        "view": "top",
        "start": unix_seconds(top.begun),
        "duration": top.elapsed.as_secs_f64(),
        "samples": top.n_samples,
        "samples_per_second": top.n_samples as f64 / top.span_seconds(Span::Whole),
        "rate_hz": vitals.map(|it| it.rate_hz),
        "lost": top.n_lost(),
        "gil_percent": gil,
        "cpu_percent": 100.0 * cpus,
        "cpus": n_cpus,
        "on_cpu_percent": n_cpus.map(|n| 100.0 * cpus / f64::from(n)),
        "ended": top.ended(),
        "by": if choice.by_function { "function" } else { "line" },
        "sort": choice.sort.name(),
        "functions": rows,
        "processes": processes,
        "remarks": top.remarks(Span::Whole),
    })
}

/// The share of samples that held the global interpreter lock, in words.
pub(super) fn gil_text(gil: Gil) -> String {
    match gil {
        Gil::Share(share) => format!("{:.1} %", 100.0 * share),
        Gil::NoSamples => "-".to_owned(),
        Gil::Unknown => "not known".to_owned(),
        Gil::NotSaid => "not told".to_owned(),
    }
}

/// Nanoseconds in at most nine columns: `0.12s`, `123.4s`, `12345s`.
pub(super) fn seconds_text(ns: i64) -> String {
    let seconds = ns as f64 / 1e9;
    match seconds {
        ..99.995 => format!("{seconds:.2}s"),
        ..999.95 => format!("{seconds:.1}s"),
        _ => format!("{seconds:.0}s"),
    }
}

/// A thread, escaped: `1234 Worker`; with its process in front where there can be others.
pub(super) fn thread_text(thread: Option<(ThreadId, &str)>, pid: Option<u32>) -> String {
    let Some((id, name)) = thread else {
        return String::new();
    };
    match pid {
        Some(_) => format!("{} {}", id.tid, escape(name)),
        None if id.pid == id.tid => format!("{} {}", id.pid, escape(name)),
        None => format!("{}/{} {}", id.pid, id.tid, escape(name)),
    }
}
