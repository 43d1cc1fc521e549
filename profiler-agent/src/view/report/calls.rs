//! Callers and callees of functions.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::Question;
use super::select::selected;
use super::style::{cell, function_json, function_text, heads, share};
use crate::profile::calls::{Call, FunctionAmounts, calls, functions};
use crate::profile::model::FunctionId;

/// Functions when nobody says how many.
const DEFAULT_TOP: usize = 10;

/// Columns of the numbers in front of a name.
const NUMBERS: usize = 36;

/// Which end of the calls is shown.
#[derive(Debug, Clone, Copy)]
enum End {
    Callers,
    Callees,
}

pub(super) fn callers_text(question: &Question<'_>) -> String {
    text(question, End::Callers)
}

pub(super) fn callees_text(question: &Question<'_>) -> String {
    text(question, End::Callees)
}

pub(super) fn callers_json(question: &Question<'_>) -> Value {
    json(question, End::Callers)
}

pub(super) fn callees_json(question: &Question<'_>) -> Value {
    json(question, End::Callees)
}

impl End {
    /// Whose call it is here, and who is at the other end.
    const fn of(self, call: &Call) -> (FunctionId, FunctionId) {
        match self {
            Self::Callers => (call.callee, call.caller),
            Self::Callees => (call.caller, call.callee),
        }
    }

    const fn words(self) -> [&'static str; 2] {
        match self {
            Self::Callers => ["was called by", "nobody: it is where its threads begin"],
            Self::Callees => ["called", "nobody that was seen"],
        }
    }
}

/// Of each function that is asked for the calls of this kind, most weight first.
fn chosen(question: &Question<'_>, end: End) -> Vec<(FunctionAmounts, Vec<Call>)> {
    let all = functions(question.profile, question.measure);
    let (mut rows, _) = selected(question, all);
    if question.top.is_none() && question.restrictions.is_empty() {
        rows.truncate(DEFAULT_TOP);
    }
    let mut by_function: HashMap<FunctionId, Vec<Call>> = HashMap::new();
    for call in calls(question.profile, question.measure) {
        by_function.entry(end.of(&call).0).or_default().push(call);
    }
    let with_calls = rows.into_iter().map(|row| {
        let mut calls = by_function.remove(&row.function).unwrap_or_default();
        calls.sort_by_key(|call| (Reverse(call.total.weight), end.of(call).1));
        (row, calls)
    });
    with_calls.collect()
}

fn text(question: &Question<'_>, end: End) -> String {
    let unit = question.measure.unit;
    let [own, total] = heads(unit);
    let profile = question.profile;
    let [words, nobody] = end.words();
    let mut text = format!("{own:>12}{total:>12}       %\n");
    for (function, calls) in chosen(question, end) {
        let style = question.style;
        let name = style.fit(
            &function_text(profile, function.function, style),
            words.len() + 1,
        );
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name} {words}");
        for call in &calls {
            let numbers = format!(
                "{:>12}{:>12}  {:>5.1}%    ",
                cell(unit, call.own.weight),
                cell(unit, call.total.weight),
                100.0 * share(call.total.weight, function.total.weight),
            );
            let other = function_text(profile, end.of(call).1, style);
            let _ = writeln!(text, "{numbers}{}", style.fit(&other, numbers.len()));
        }
        if calls.is_empty() {
            let indent = if style.is_narrower(NUMBERS + nobody.len()) {
                4
            } else {
                NUMBERS
            };
            let _ = writeln!(text, "{:indent$}{nobody}", "");
        }
    }
    text
}

fn json(question: &Question<'_>, end: End) -> Value {
    let profile = question.profile;
    let rows = chosen(question, end).into_iter().map(|(function, calls)| {
        let mut row = function_json(profile, function.function);
        row["self"] = function.own.weight.into();
        row["total"] = function.total.weight.into();
        let calls = calls.iter().map(|call| {
            let mut value = function_json(profile, end.of(call).1);
            value["self"] = call.own.weight.into();
            value["total"] = call.total.weight.into();
            value["samples"] = call.total.n_samples.into();
            value
        });
        row["calls"] = calls.collect();
        row
    });
    rows.collect()
}
