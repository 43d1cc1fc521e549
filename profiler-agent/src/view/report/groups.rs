//! A profile by its labels.

use std::fmt::Write as _;

use serde_json::Value;

use super::Question;
use super::select::{Restriction, restrict};
use super::style::{cell, not_all, share};
use crate::format::{escape, thousands};
use crate::profile::groups::{Group, groups, label_names};
use crate::view::columns::{columns, cut};

/// Columns of a value, at most.
const MAX_VALUE_COLUMNS: usize = 60;

/// Columns that a value keeps, however narrow the terminal is, and of those that are cut at least.
const MIN_VALUE_COLUMNS: usize = 9;

/// A narrower terminal has no room for the column of samples.
const MIN_COLUMNS: usize = 80;

pub(super) fn text(question: &Question<'_>) -> String {
    let (rows, n_all) = chosen(question);
    let style = question.style;
    let n_labels = question.labels.len();
    let shown: Vec<Vec<String>> = rows
        .iter()
        .map(|group| group.values.iter().map(|value| shown(value)).collect())
        .collect();
    let heads: Vec<_> = question.labels.iter().map(|label| escape(label)).collect();
    let width = |idx: usize| {
        let cells = shown.iter().map(|values| columns(&values[idx]));
        cells.chain([columns(&heads[idx])]).max().unwrap_or(0)
    };
    let has_samples = !style.is_narrower(MIN_COLUMNS);
    let unit = question.measure.unit;
    let value_type = question.profile.sample_types.get(question.measure.idx);
    let mut text = format!(
        "{}{:>14}       %",
        if has_samples { "  samples  " } else { "" },
        value_type.map_or("self", |it| it.kind)
    );
    let room = style
        .width
        .map_or(usize::MAX, |width| width.saturating_sub(columns(&text)));
    let widths = fitting((0..n_labels).map(width).collect(), room);
    for (head, width) in heads.iter().zip(&widths) {
        text.push_str(&padded(head, *width));
    }
    let mut text = format!("{}\n", text.trim_end());
    let whole = question.measure.whole(question.profile).weight;
    for (group, values) in rows.iter().zip(&shown) {
        let samples = if has_samples {
            format!("{:>9}  ", thousands(group.amount.n_samples))
        } else {
            String::new()
        };
        let mut line = format!(
            "{samples}{:>14}  {:>5.1}%",
            cell(unit, group.amount.weight),
            100.0 * share(group.amount.weight, whole)
        );
        for (value, width) in values.iter().zip(&widths) {
            line.push_str(&padded(value, *width));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push_str(&not_all(rows.len(), n_all, "row"));
    let known = label_names(question.profile);
    if !question.labels.iter().any(|label| known.contains(label)) {
        let said = match known.as_slice() {
            [] => "the samples have no labels".to_owned(),
            names => format!("no sample has such a label; there are {}", names.join(", ")),
        };
        text.push_str(&style.prose(&format!("{}\n", escape(&said))));
    }
    text
}

/// The widest columns give way until all fit, with two spaces before each.
fn fitting(mut widths: Vec<usize>, room: usize) -> Vec<usize> {
    while widths.iter().map(|width| width + 2).sum::<usize>() > room {
        let widest = widths.iter_mut().max();
        match widest.filter(|width| **width > MIN_VALUE_COLUMNS) {
            Some(widest) => *widest -= 1,
            None => break,
        }
    }
    widths
}

/// A cell with two spaces before it.
fn padded(text: &str, width: usize) -> String {
    let text = cut(text, width);
    let gap = " ".repeat(width.saturating_sub(columns(&text)));
    format!("  {text}{gap}")
}

pub(super) fn json(question: &Question<'_>) -> Value {
    let (rows, _) = chosen(question);
    let rows = rows.into_iter().map(|group| {
        let labels: serde_json::Map<String, Value> = question
            .labels
            .iter()
            .zip(group.values)
            .map(|(name, value)| ((*name).to_owned(), value.into()))
            .collect();
        serde_json::json!({
            "labels": labels,
            "samples": group.amount.n_samples,
            "self": group.amount.weight,
        })
    });
    rows.collect()
}

/// Whether there is a row that every pattern matches.
#[must_use]
pub fn matches_any_group(question: &Question<'_>) -> bool {
    let mut groups = groups(question.profile, question.measure, question.labels);
    let patterns = question
        .restrictions
        .iter()
        .filter_map(Restriction::pattern);
    groups.retain(|group| {
        let values = group.values.join(" ");
        patterns.clone().all(|pattern| pattern.is_match(&values))
    });
    !groups.is_empty() || patterns.clone().next().is_none()
}

/// The rows that are asked for, patterns over their values; and how many there are.
fn chosen(question: &Question<'_>) -> (Vec<Group>, usize) {
    let mut groups = groups(question.profile, question.measure, question.labels);
    let n_all = groups.len();
    restrict(&mut groups, question.restrictions, |group| {
        [group.values.join(" ")]
    });
    if let Some(top) = question.top {
        groups.truncate(top);
    }
    (groups, n_all)
}

fn shown(value: &str) -> String {
    let value = escape(value);
    cut(
        if value.is_empty() { "-" } else { &value },
        MAX_VALUE_COLUMNS,
    )
}
