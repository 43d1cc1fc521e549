//! `pyagent diff`: what changed from one profile to another.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::select::{pattern_texts, restrict};
use super::style::{Style, cell, heads, kind_name, not_all, place_text};
use super::{Restriction, note, remarks, sentence};
use crate::format::{escape, thousands, unix_seconds};
use crate::profile::chance::{Estimate, MAX_CHANCE};
use crate::profile::diff::{Basis, Change, Diff, Grain, MIN_SAMPLES, Row, Side, Verdict};
use crate::profile::measure::{Measure, Unit};
use crate::profile::model::{FrameKind, Profile};
use crate::profile::query::n_processes;

/// Rows when nobody says how many.
const DEFAULT_TOP: usize = 30;

/// A narrower terminal has room for one change: that which the rows are sorted by.
const MIN_COLUMNS: usize = 110;

/// What is looked at, and how.
#[derive(Debug)]
pub struct DiffQuestion<'a> {
    /// Before and after.
    pub profiles: [&'a Profile; 2],
    /// Which of their values.
    pub measures: [Measure; 2],
    /// The comparison.
    pub diff: &'a Diff,
    /// Its rows.
    pub grain: Grain,
    /// The largest change with what is called comes first, not that of the functions alone.
    pub by_total: bool,
    /// Rows, at most.
    pub top: Option<usize>,
    /// Which rows, one restriction after the other.
    pub restrictions: &'a [Restriction],
    /// Growth that is too much, as a part of the total, and what is to be said to it.
    pub verdict: Option<(f64, Verdict)>,
    /// How it looks.
    pub style: Style,
}

/// As text.
#[must_use]
pub fn text(question: &DiffQuestion<'_>) -> String {
    let style = question.style;
    let mut text = String::new();
    for (name, side) in [("before: ", 0), ("after:  ", 1)] {
        let sentence = sentence(question.profiles[side], question.measures[side]);
        text.push_str(&style.prose(&format!("{name}{sentence}")));
    }
    text.push_str(note(question.profiles[1]));
    text.push_str(&style.prose(&compared(question.diff)));
    text.push('\n');
    text.push_str(&style.bounded(table(question)));
    if let Some((allowed, verdict)) = &question.verdict {
        text.push('\n');
        text.push_str(&style.prose(&verdict_text(question, *allowed, verdict)));
    }
    for (name, side) in [("before", 0), ("after", 1)] {
        let title = format!("not in the profile {name}, or not complete:");
        text.push_str(&remarks(style, &title, &question.profiles[side].comments));
    }
    text
}

/// What the columns compare, and the total.
fn compared(diff: &Diff) -> String {
    let mut text = match diff.basis {
        Basis::Shares => "compared are shares of each profile's total, in % of it",
        Basis::SameWork => "compared are amounts, in % of the total before",
    }
    .to_owned();
    let certainty = 100.0 * (1.0 - MAX_CHANCE);
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "; *: larger than its error, so no chance (to {certainty} %, all rows together)"
    );
    match &diff.total {
        Some(total) => {
            let _ = writeln!(
                text,
                "the total changed by {} % (error {} %)",
                signed(total.value),
                percent(total.error())
            );
        }
        None => text.push_str(
            "totals are not compared: the profiles are not of the same length (--same-work: of the same work)\n",
        ),
    }
    for (name, side) in [("before", &diff.before), ("after", &diff.after)] {
        match side.n_samples {
            None => {
                let _ = writeln!(
                    text,
                    "the profile {name} does not say what a sample stands for: all of it may be chance"
                );
            }
            Some(n_samples) if n_samples < MIN_SAMPLES => {
                let _ = writeln!(
                    text,
                    "the profile {name} has too few samples to tell much: {}",
                    thousands(n_samples as i64)
                );
            }
            Some(_) => {}
        }
    }
    text
}

fn table(question: &DiffQuestion<'_>) -> String {
    let (rows, n_all) = chosen(question);
    let unit = question.measures[1].unit;
    let [own, total] = heads(unit);
    let what = match question.grain {
        Grain::Functions => "function",
        Grain::Lines => "line",
    };
    let style = question.style;
    let columns = format!(
        "{:>10}  {:>7}  {:>7}   {:>5}",
        "change", "after", "change", "error"
    );
    let is_narrow = style.is_narrower(MIN_COLUMNS);
    let [sorted, other] = if question.by_total {
        [total, own]
    } else {
        [own, total]
    };
    let mut text = if is_narrow {
        format!("{sorted:>10}\n{columns}  {what}\n")
    } else {
        let gap = columns.len() - 10 + 4;
        format!(
            "{own:>10}{:gap$}{total:>10}\n{columns}    {columns}  {what}\n",
            ""
        )
    };
    for row in &rows {
        let [of_own, of_total] = [&row.own, &row.total].map(|it| change_text(unit, it));
        let numbers = match (is_narrow, question.by_total) {
            (false, _) => format!("{of_own}    {of_total}"),
            (true, false) => of_own,
            (true, true) => of_total,
        };
        let change = if question.by_total {
            &row.total
        } else {
            &row.own
        };
        let name = row_text(row, question.grain, style);
        let name = style.fit(&name, numbers.len() + 2);
        let numbers = style.by_change(&numbers, &change.change);
        let _ = writeln!(text, "{numbers}  {name}");
    }
    text.push_str(&not_all(rows.len(), n_all, what));
    if is_narrow {
        let _ = writeln!(
            text,
            "{other}: in {MIN_COLUMNS} columns, or with --sort {other}"
        );
    }
    text
}

impl Style {
    /// Red grew, green shrank; what may be chance stands back.
    fn by_change(self, text: &str, change: &Estimate) -> String {
        match change {
            _ if !self.has_colors => text.to_owned(),
            change if !change.is_change() => self.dim(text),
            change if change.value > 0.0 => format!("\x1b[31m{text}\x1b[0m"),
            _ => format!("\x1b[32m{text}\x1b[0m"),
        }
    }
}

fn change_text(unit: Unit, change: &Change) -> String {
    let amount = change.after.weight.saturating_sub(change.before.weight);
    let sign = if amount > 0 { "+" } else { "" };
    let mark = if change.change.is_change() { '*' } else { ' ' };
    format!(
        "{:>10}  {:>6}%  {:>7}{mark}  {:>5}",
        format!("{sign}{}", cell(unit, amount)),
        percent(change.part_after),
        signed(change.change.value),
        percent(change.change.error()),
    )
}

/// `12.3` of 0.123.
fn percent(part: f64) -> String {
    if part.is_finite() {
        format!("{:.1}", 100.0 * part)
    } else {
        "?".to_owned()
    }
}

/// `+12.3`, `-0.1`, `0.0`.
fn signed(part: f64) -> String {
    let text = format!("{:+.1}", 100.0 * part);
    if text == "+0.0" || text == "-0.0" {
        "0.0".to_owned()
    } else {
        text
    }
}

/// The line that a row is at.
const fn row_line(row: &Row, grain: Grain) -> u32 {
    match grain {
        Grain::Functions => row.start_line,
        Grain::Lines => row.place.line,
    }
}

fn row_text(row: &Row, grain: Grain, style: Style) -> String {
    let place = &row.place;
    let name = match &*place.name {
        "" => "<no name>".into(),
        name => escape(name),
    };
    match place_text(place.kind, &place.filename, row_line(row, grain), style) {
        place if place.is_empty() => name.into_owned(),
        place => format!("{name}  {place}"),
    }
}

fn verdict_text(question: &DiffQuestion<'_>, allowed: f64, verdict: &Verdict) -> String {
    let diff = question.diff;
    let allowed_text = format!("{} % of the total", percent(allowed));
    let mut text = String::new();
    if verdict.has_failed() {
        let _ = writeln!(
            text,
            "failed: grew by more than {allowed_text}, and by more than the error:"
        );
        if let Some(total) = diff.total.as_ref().filter(|_| verdict.total_has_grown) {
            let (value, error) = (signed(total.value), percent(total.error()));
            let _ = writeln!(text, "  {value} % (error {error} %)  all of it");
        }
        if question.grain == Grain::Lines && !verdict.grown.is_empty() {
            text.push_str(
                "  (lines are compared by their numbers: they may only have moved; without --lines functions are compared)\n",
            );
        }
        for idx in verdict.grown.iter().take(DEFAULT_TOP) {
            let row = &diff.rows[*idx];
            let change = &row.total.change;
            let (value, error) = (signed(change.value), percent(change.error()));
            let name = row_text(row, question.grain, question.style);
            let _ = writeln!(text, "  {value} % (error {error} %)  {name}");
        }
    } else {
        let _ = writeln!(
            text,
            "nothing grew by more than {allowed_text} and by more than its error"
        );
    }
    if let Some(needed) = verdict.n_samples_needed {
        let n_samples = |side: &Side| match side.n_samples {
            Some(n_samples) => thousands(n_samples as i64),
            None => "an unknown number".to_owned(),
        };
        let _ = writeln!(
            text,
            "too few samples to tell growth by {allowed_text} from chance whatever grows: {} and {}; about {} of each would",
            n_samples(&diff.before),
            n_samples(&diff.after),
            thousands(needed.ceil().min(9e15) as i64)
        );
    }
    text
}

/// The rows that are asked for, and how many there are.
fn chosen<'a>(question: &DiffQuestion<'a>) -> (Vec<&'a Row>, usize) {
    let mut rows = question.diff.by_change(question.by_total);
    let n_all = rows.len();
    restrict(&mut rows, question.restrictions, |row| {
        let line = row_line(row, question.grain);
        pattern_texts(&row.place.filename, line, &row.place.name)
    });
    match question.top {
        Some(top) => rows.truncate(top),
        None if question.restrictions.is_empty() => rows.truncate(DEFAULT_TOP),
        None => {}
    }
    (rows, n_all)
}

/// As one document of JSON: all rows, unless they are restricted.
#[must_use]
pub fn json(question: &DiffQuestion<'_>) -> Value {
    let diff = question.diff;
    let side = |idx: usize, side: &Side| {
        let profile = question.profiles[idx];
        json!({
            "samples": side.n_samples,
            "independent_samples": side.n_independent,
            "total": side.whole.weight,
            "processes": n_processes(profile),
            "start": unix_seconds(profile.start),
            "duration": profile.duration.as_secs_f64(),
            "remarks": profile.comments,
        })
    };
    let value_type = question.profiles[1]
        .sample_types
        .get(question.measures[1].idx);
    let mut document = json!({
        "view": "diff",
        "value": value_type.map(|it| it.kind),
        "unit": value_type.map(|it| it.unit),
        "compared": match diff.basis {
            Basis::Shares => "shares",
            Basis::SameWork => "same work",
        },
        "certainty": 1.0 - MAX_CHANCE,
        "before": side(0, &diff.before),
        "after": side(1, &diff.after),
        "total_change": diff.total.as_ref().map(estimate_json),
    });
    let (rows, _) = if question.top.is_none() && question.restrictions.is_empty() {
        (diff.by_change(question.by_total), 0)
    } else {
        chosen(question)
    };
    let grain = match question.grain {
        Grain::Functions => "functions",
        Grain::Lines => "lines",
    };
    document[grain] = rows
        .iter()
        .map(|row| row_json(row, question.grain))
        .collect();
    if let Some((allowed, verdict)) = &question.verdict {
        let grown = verdict.grown.iter().map(|idx| &diff.rows[*idx]);
        let grown: Vec<Value> = grown.map(|row| row_json(row, question.grain)).collect();
        document["verdict"] = json!({
            "fail_over": allowed,
            "failed": verdict.has_failed(),
            "total_has_grown": verdict.total_has_grown,
            "grown": grown,
            "conclusive": verdict.n_samples_needed.is_none(),
            "samples_needed": verdict.n_samples_needed.map(f64::ceil),
        });
    }
    document
}

fn row_json(row: &Row, grain: Grain) -> Value {
    let line = row_line(row, grain);
    let is_known = row.place.kind == FrameKind::Python && line > 0;
    json!({
        "function": row.place.name,
        "file": row.place.filename,
        "line": if is_known { line } else { 0 },
        "kind": kind_name(row.place.kind),
        "self": change_json(&row.own),
        "total": change_json(&row.total),
    })
}

fn change_json(change: &Change) -> Value {
    let mut value = estimate_json(&change.change);
    value["before"] = change.before.weight.into();
    value["after"] = change.after.weight.into();
    value["samples_before"] = change.before.n_samples.into();
    value["samples_after"] = change.after.n_samples.into();
    value["part_before"] = change.part_before.into();
    value["part_after"] = change.part_after.into();
    value
}

fn estimate_json(estimate: &Estimate) -> Value {
    json!({
        "change": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "beyond_chance": estimate.is_change(),
    })
}
