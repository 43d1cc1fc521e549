//! The instructions of functions with what each takes, below the lines that they were compiled from, as `dis` prints them.

use std::cmp::Reverse;
use std::fmt::Write as _;

use serde_json::Value;

use super::Question;
use super::lines::{Source, problem};
use super::select::selected;
use super::style::{amount_text, cell, function_json, function_text, share};
use crate::format::{escape, thousands};
use crate::profile::calls::{FunctionAmounts, functions};
use crate::profile::instructions::{Instructions, Place, instructions};
use crate::profile::lines::LineAmounts;
use crate::profile::measure::Amount;
use crate::profile::model::{FrameKind, FunctionId};
use crate::view::columns::cut;

/// Columns of an instruction's name, at most: names of others' profiles can be anything.
const MAX_NAME_COLUMNS: usize = 48;

/// The files whose source this view shows.
#[must_use]
pub fn bytecode_files(question: &Question<'_>) -> Vec<String> {
    let files = chosen(question)
        .into_iter()
        .map(|(function, _)| file(question, function.function).to_owned());
    let mut files: Vec<String> = files.collect();
    files.sort_unstable();
    files.dedup();
    files
}

/// Whether a function that is asked for was the innermost one of a sample.
#[must_use]
pub fn has_bytecode(question: &Question<'_>) -> bool {
    let of_all = Question {
        top: None,
        ..*question
    };
    !chosen(&of_all).is_empty()
}

fn file<'a>(question: &Question<'a>, function: FunctionId) -> &'a str {
    let function = question.profile.functions.get(function.0 as usize);
    function.map_or("", |function| question.profile.str(function.filename))
}

/// The Python functions that are asked for and have samples of their own, with their instructions; of these the first ones of
/// all functions together, by their amounts, if so many are asked for.
fn chosen(question: &Question<'_>) -> Vec<(FunctionAmounts, Instructions)> {
    let profile = question.profile;
    let mut by_function = instructions(profile, question.measure);
    let is_python = |it: &FunctionAmounts| {
        let function = profile.functions.get(it.function.0 as usize);
        function.is_some_and(|function| function.kind == FrameKind::Python)
    };
    let mut all = functions(profile, question.measure);
    all.retain(|it| is_python(it) && by_function.contains_key(&it.function));
    for function in &mut all {
        function.own = Amount::default();
        let of_function = by_function.get(&function.function);
        for amounts in of_function.iter().flat_map(|it| it.values()) {
            function.own.add(amounts.total);
        }
    }
    // The number is one of instructions.
    let of_all = Question {
        top: None,
        ..*question
    };
    let (rows, _) = selected(&of_all, all);
    let mut rows: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let instructions = by_function.remove(&row.function).unwrap_or_default();
            (row, instructions)
        })
        .collect();
    if let Some(top) = question.top {
        keep_first(&mut rows, top);
    }
    rows
}

/// Keeps the instructions that take most, and the functions that have one of them.
fn keep_first(rows: &mut Vec<(FunctionAmounts, Instructions)>, top: usize) {
    let all = rows.iter().enumerate().flat_map(|(idx, (_, it))| {
        it.iter()
            .map(move |(place, amounts)| (Reverse(amounts.total.weight), idx, place.clone()))
    });
    let mut all: Vec<_> = all.collect();
    all.sort_unstable();
    for (_, idx, place) in all.into_iter().skip(top) {
        rows[idx].1.remove(&place);
    }
    rows.retain(|(_, instructions)| !instructions.is_empty());
}

pub(super) fn text(question: &Question<'_>) -> String {
    let unit = question.measure.unit;
    let whole = question.measure.whole(question.profile).weight;
    let mut text = String::new();
    for (function, instructions) in chosen(question) {
        if !text.is_empty() {
            text.push('\n');
        }
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{}: {} of its own ({:.1}%)",
            function_text(question.profile, function.function, question.style),
            amount_text(unit, function.own.weight),
            100.0 * share(function.own.weight, whole)
        );
        let _ = writeln!(
            text,
            "  offset  samples       self       %     python     native     kernel  instruction"
        );
        let file = file(question, function.function);
        let source = question.sources.get(file);
        let source_text = source.and_then(|it| it.as_ref().ok());
        let mut shown_line = None;
        for (place, amounts) in &instructions {
            if let Place::At { line, .. } = place
                && shown_line != Some(*line)
            {
                shown_line = Some(*line);
                write_line(&mut text, question, *line, source_text);
            }
            write_place(&mut text, question, whole, place, amounts);
        }
        if let Some(problem) = problem(source) {
            let _ = writeln!(text, "    {problem}: {}", escape(file));
        }
    }
    text
}

fn write_line(text: &mut String, question: &Question<'_>, line: u32, source: Option<&Source>) {
    let code = escape(code_of(source, line).unwrap_or_default().trim());
    let label = match line {
        0 => "line not known".to_owned(),
        line => format!("line {line}"),
    };
    let code = question.style.fit(&code, label.len() + 4);
    let row = format!("  {label}  {code}");
    let _ = writeln!(text, "{}", question.style.dim(row.trim_end()));
}

fn code_of(source: Option<&Source>, line: u32) -> Option<&str> {
    let idx = (line as usize).checked_sub(1)?;
    source?.lines.get(idx).map(String::as_str)
}

fn write_place(
    text: &mut String,
    question: &Question<'_>,
    whole: i64,
    place: &Place,
    amounts: &LineAmounts,
) {
    let unit = question.measure.unit;
    let part = |weight: i64| match weight {
        0 => String::new(),
        weight => cell(unit, weight),
    };
    let numbers = format!(
        "{:>7}  {:>9}  {:>5.1}%  {:>9}  {:>9}  {:>9}",
        thousands(amounts.total.n_samples),
        cell(unit, amounts.total.weight),
        100.0 * share(amounts.total.weight, whole),
        part(amounts.python.weight),
        part(amounts.native.weight),
        part(amounts.kernel.weight),
    );
    let (offset, name) = match place {
        Place::At { offset, name, .. } => {
            (offset.to_string(), cut(&escape(name), MAX_NAME_COLUMNS))
        }
        Place::Unknown => (
            "-".to_owned(),
            "no instruction: not begun, or not read".to_owned(),
        ),
    };
    let numbers = question
        .style
        .by_share(&numbers, share(amounts.total.weight, whole));
    let _ = writeln!(text, "{offset:>8}  {numbers}  {name}");
}

pub(super) fn json(question: &Question<'_>) -> Value {
    let rows = chosen(question)
        .into_iter()
        .map(|(function, instructions)| {
            let mut row = function_json(question.profile, function.function);
            row["self"] = function.own.weight.into();
            let source = question.sources.get(file(question, function.function));
            let source = source.and_then(|it| it.as_ref().ok());
            let instruction_json = |(place, amounts): (&Place, &LineAmounts)| {
                let (offset, name, line) = match place {
                    Place::At { offset, name, line } => {
                        (Some(*offset), Some(name.as_str()), Some(*line))
                    }
                    Place::Unknown => (None, None, None),
                };
                serde_json::json!({
                    "offset": offset,
                    "instruction": name,
                    "line": line,
                    "samples": amounts.total.n_samples,
                    "self": amounts.total.weight,
                    "python": amounts.python.weight,
                    "native": amounts.native.weight,
                    "kernel": amounts.kernel.weight,
                    "source": line.and_then(|line| code_of(source, line)),
                })
            };
            row["instructions"] = instructions.iter().map(instruction_json).collect();
            row
        });
    rows.collect()
}
