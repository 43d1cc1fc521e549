//! A profile by its labels.

use std::fmt::Write as _;

use serde_json::Value;

use super::Question;
use super::style::{cell, share};
use crate::format::{escape, thousands};
use crate::profile::groups::{Group, groups, label_names};
use crate::view::columns::columns_of;

/// Columns of a value, at most.
const MAX_VALUE_COLUMNS: usize = 60;

pub(super) fn text(question: &Question<'_>) -> String {
    let rows = chosen(question);
    let n_labels = question.labels.len();
    let shown: Vec<Vec<String>> = rows
        .iter()
        .map(|group| group.values.iter().map(|value| shown(value)).collect())
        .collect();
    let width = |idx: usize| {
        let columns = |text: &str| text.chars().map(columns_of).sum::<usize>();
        let cells = shown.iter().map(|values| columns(&values[idx]));
        cells
            .chain([columns(question.labels[idx])])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..n_labels).map(width).collect();
    let unit = question.measure.unit;
    let mut text = String::from("  samples            self       %");
    if let Some(head) = question.profile.sample_types.get(question.measure.idx) {
        text = format!("  samples  {:>14}       %", head.kind);
    }
    for (label, width) in question.labels.iter().zip(&widths) {
        let _ = write!(text, "  {label:<width$}");
    }
    let mut text = format!("{}\n", text.trim_end());
    let whole = question.measure.whole(question.profile).weight;
    for (group, values) in rows.iter().zip(&shown) {
        let mut line = format!(
            "{:>9}  {:>14}  {:>5.1}%",
            thousands(group.amount.n_samples),
            cell(unit, group.amount.weight),
            100.0 * share(group.amount.weight, whole)
        );
        for (value, width) in values.iter().zip(&widths) {
            let n_columns: usize = value.chars().map(columns_of).sum();
            let _ = write!(
                line,
                "  {value}{}",
                " ".repeat(width.saturating_sub(n_columns))
            );
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let is_known = |label: &&str| label_names(question.profile).contains(label);
    if !question.labels.iter().any(is_known) {
        let names = label_names(question.profile).join(", ");
        let _ = writeln!(
            text,
            "no sample has such a label; there are: {}",
            escape(&names)
        );
    }
    text
}

pub(super) fn json(question: &Question<'_>) -> Value {
    let rows = chosen(question).into_iter().map(|group| {
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

fn chosen(question: &Question<'_>) -> Vec<Group> {
    let mut groups = groups(question.profile, question.measure, question.labels);
    if let Some(top) = question.top {
        groups.truncate(top);
    }
    groups
}

fn shown(value: &str) -> String {
    let value = escape(value);
    crate::view::columns::cut(
        if value.is_empty() { "-" } else { &value },
        MAX_VALUE_COLUMNS,
    )
}
