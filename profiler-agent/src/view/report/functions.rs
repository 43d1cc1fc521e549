//! The table of functions.

use std::fmt::Write as _;

use serde_json::Value;

use super::Question;
use super::select::selected;
use super::style::{cell, function_json, function_text, heads, not_all, share};
use crate::format::thousands;
use crate::profile::calls::{FunctionAmounts, functions};

/// Functions when nobody says how many.
const DEFAULT_TOP: usize = 30;

/// A narrower terminal has no room for the column of samples.
const MIN_COLUMNS: usize = 80;

pub(super) fn text(question: &Question<'_>) -> String {
    let (rows, n_all) = chosen(question);
    let unit = question.measure.unit;
    let [own, total] = heads(unit);
    let style = question.style;
    let has_samples = !style.is_narrower(MIN_COLUMNS);
    let samples = if has_samples { "  samples  " } else { "" };
    let mut text = format!("{samples}{own:>10}       %  {total:>10}       %  function\n");
    let whole = question.measure.whole(question.profile).weight;
    for row in &rows {
        let samples = if has_samples {
            format!("{:>9}  ", thousands(row.total.n_samples))
        } else {
            String::new()
        };
        let line = format!(
            "{samples}{:>10}  {:>5.1}%  {:>10}  {:>5.1}%",
            cell(unit, row.own.weight),
            100.0 * share(row.own.weight, whole),
            cell(unit, row.total.weight),
            100.0 * share(row.total.weight, whole),
        );
        let name = style.fit(
            &function_text(question.profile, row.function, style),
            line.len() + 2,
        );
        let line = style.by_share(&line, share(row.own.weight, whole));
        // Writing to a String does not fail.
        let _ = writeln!(text, "{line}  {name}");
    }
    text.push_str(&not_all(rows.len(), n_all, "function"));
    text
}

pub(super) fn json(question: &Question<'_>) -> Value {
    let (rows, _) = chosen(question);
    let rows = rows.iter().map(|row| {
        let mut value = function_json(question.profile, row.function);
        value["samples"] = row.total.n_samples.into();
        value["self_samples"] = row.own.n_samples.into();
        value["self"] = row.own.weight.into();
        value["total"] = row.total.weight.into();
        value
    });
    rows.collect()
}

fn chosen(question: &Question<'_>) -> (Vec<FunctionAmounts>, usize) {
    let all = functions(question.profile, question.measure);
    let (mut rows, n_all) = selected(question, all);
    if question.top.is_none() && question.restrictions.is_empty() {
        rows.truncate(DEFAULT_TOP);
    }
    (rows, n_all)
}
