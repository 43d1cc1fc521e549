//! The source of functions with what each line takes, as line_profiler and Scalene print it.

use std::fmt::Write as _;

use serde_json::Value;

use super::Question;
use super::select::selected;
use super::style::{amount_text, cell, function_json, function_text, share};
use crate::format::escape;
use crate::profile::calls::{FunctionAmounts, functions};
use crate::profile::lines::{LineAmounts, Lines, lines};
use crate::profile::measure::Amount;
use crate::profile::model::{FrameKind, FunctionId};

/// Functions when nobody says how many.
const DEFAULT_TOP: usize = 5;

/// Lines around one with samples that are shown of a long function.
const CONTEXT: u32 = 3;

/// A function with more lines than this is long.
const LONG: u32 = 60;

/// The source of a file, a text a line, without their ends.
pub type Source = Vec<String>;

/// The files whose source this view shows.
#[must_use]
pub fn files(question: &Question<'_>) -> Vec<String> {
    let files = chosen(question)
        .into_iter()
        .map(|(function, _)| file(question, function.function));
    let mut files: Vec<String> = files.collect();
    files.sort_unstable();
    files.dedup();
    files
}

fn file(question: &Question<'_>, function: FunctionId) -> String {
    let function = question.profile.functions.get(function.0 as usize);
    let file = function.map_or("", |function| question.profile.str(function.filename));
    file.to_owned()
}

/// The Python functions that are asked for, with their lines.
fn chosen(question: &Question<'_>) -> Vec<(FunctionAmounts, Lines)> {
    let profile = question.profile;
    let mut by_function = lines(profile, question.measure);
    let is_python = |it: &FunctionAmounts| {
        let function = profile.functions.get(it.function.0 as usize);
        function.is_some_and(|function| function.kind == FrameKind::Python)
    };
    let mut all = functions(profile, question.measure);
    all.retain(is_python);
    // A function's own is what its lines take: machine code that it calls included.
    for function in &mut all {
        let lines = by_function.get(&function.function);
        function.own = Amount::default();
        for line in lines.iter().flat_map(|lines| lines.values()) {
            function.own.add(line.own());
        }
    }
    let (mut rows, _) = selected(question, all);
    if question.top.is_none() && question.restrictions.is_empty() {
        rows.truncate(DEFAULT_TOP);
    }
    let with_lines = rows.into_iter().map(|row| {
        let lines = by_function.remove(&row.function).unwrap_or_default();
        (row, lines)
    });
    with_lines.collect()
}

pub(super) fn text(question: &Question<'_>) -> String {
    let unit = question.measure.unit;
    let whole = question.measure.whole(question.profile).weight;
    let mut text = String::new();
    for (function, lines) in chosen(question) {
        if !text.is_empty() {
            text.push('\n');
        }
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{}: {} of its own, {} in all ({:.1}%)",
            function_text(question.profile, function.function),
            amount_text(unit, function.own.weight),
            amount_text(unit, function.total.weight),
            100.0 * share(function.total.weight, whole)
        );
        let _ = writeln!(
            text,
            "    line      total       %     python     native     kernel  source"
        );
        let file = file(question, function.function);
        let source = question.sources.get(&file);
        let start = question.profile.functions[function.function.0 as usize].start_line;
        for line in shown(&lines, start, source) {
            match line {
                Shown::Gap => text.push_str("     ...\n"),
                Shown::Line(number) => {
                    write_line(&mut text, question, whole, number, &lines, source);
                }
            }
        }
        if source.is_none() {
            let _ = writeln!(text, "    the source is not here: {}", escape(&file));
        }
    }
    text
}

/// What is printed of a function.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    Line(u32),
    Gap,
}

/// The lines of a function: all of a short one, of a long one those with samples and what is around them.
fn shown(lines: &Lines, start: u32, source: Option<&Source>) -> Vec<Shown> {
    let last = lines.keys().next_back().copied().unwrap_or(start);
    let Some(source) = source else {
        return lines.keys().map(|line| Shown::Line(*line)).collect();
    };
    let sampled = lines
        .keys()
        .copied()
        .find(|line| *line > 0)
        .unwrap_or(start.max(1));
    let first = match start {
        0 => begin_of_block(source, sampled),
        start => start.min(sampled),
    };
    let end = end_of_block(source, first, last);
    let is_long = end - first >= LONG;
    let is_near = |line: u32| {
        !is_long
            || line == first
            || lines
                .range(line.saturating_sub(CONTEXT).max(1)..=line.saturating_add(CONTEXT))
                .next()
                .is_some()
    };
    let mut rows = Vec::new();
    for line in first..=end {
        if is_near(line) {
            rows.push(Shown::Line(line));
        } else if rows.last() != Some(&Shown::Gap) {
            rows.push(Shown::Gap);
        }
    }
    if lines.contains_key(&0) {
        rows.push(Shown::Line(0));
    }
    rows
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The line of the `def` that a line is in, where the profile does not say it; without one the line itself.
fn begin_of_block(source: &Source, line: u32) -> u32 {
    let above = source.get(..line as usize).unwrap_or_default();
    let Some((own, above)) = above.split_last() else {
        return line;
    };
    let is_def = |text: &&String| {
        let code = text.trim_start();
        indent(text) < indent(own) && (code.starts_with("def ") || code.starts_with("async def "))
    };
    let found = above.iter().rposition(|text| is_def(&text));
    found.map_or(line, |idx| idx as u32 + 1)
}

/// The last line of what begins at `first` and goes on to `last` at least: where a line is indented no more than the first.
fn end_of_block(source: &Source, first: u32, last: u32) -> u32 {
    let at = |number: u32| source.get(number as usize - 1).map(String::as_str);
    let last = last.max(first);
    let Some(outer) = at(first).map(indent) else {
        return last;
    };
    let mut end = last;
    let mut number = last;
    while let Some(line) = at(number + 1) {
        number += 1;
        if line.trim().is_empty() {
            continue;
        }
        // A closing bracket of the first line's own.
        if indent(line) <= outer && !line.trim_start().starts_with([')', ']', '}']) {
            break;
        }
        end = number;
    }
    end
}

fn write_line(
    text: &mut String,
    question: &Question<'_>,
    whole: i64,
    number: u32,
    lines: &Lines,
    source: Option<&Source>,
) {
    let unit = question.measure.unit;
    let code = source
        .and_then(|source| source.get((number as usize).checked_sub(1)?))
        .map_or("", String::as_str);
    let code = escape(code);
    let label = if number == 0 {
        "-".to_owned()
    } else {
        number.to_string()
    };
    let numbers = match lines.get(&number) {
        None => " ".repeat(51),
        Some(line) => {
            let part = |weight: i64| match weight {
                0 => String::new(),
                weight => cell(unit, weight),
            };
            format!(
                "{:>10}  {:>5.1}%  {:>9}  {:>9}  {:>9}",
                cell(unit, line.total.weight),
                100.0 * share(line.total.weight, whole),
                part(line.python.weight),
                part(line.native.weight),
                part(line.kernel.weight),
            )
        }
    };
    let own = lines.get(&number).map_or(0, |line| line.own().weight);
    let style = question.style;
    let code = style.fit(&code, 63);
    let row = format!(
        "{label:>8} {}  {code}",
        style.by_share(&numbers, share(own, whole))
    );
    let _ = writeln!(text, "{}", row.trim_end());
}

pub(super) fn json(question: &Question<'_>) -> Value {
    let rows = chosen(question).into_iter().map(|(function, lines)| {
        let mut row = function_json(question.profile, function.function);
        row["self"] = function.own.weight.into();
        row["total"] = function.total.weight.into();
        let file = file(question, function.function);
        let source = question.sources.get(&file);
        let line_json = |(number, line): (&u32, &LineAmounts)| {
            let code = source.and_then(|source| source.get((*number as usize).checked_sub(1)?));
            serde_json::json!({
                "line": number,
                "samples": line.total.n_samples,
                "total": line.total.weight,
                "python": line.python.weight,
                "native": line.native.weight,
                "kernel": line.kernel.weight,
                "source": code,
            })
        };
        row["lines"] = lines.iter().map(line_json).collect();
        row
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_function_ends_where_the_next_one_begins() {
        let source = source(
            "import os\n\ndef f(\n    a,\n):\n    x = 1\n\n    return x\n\ndef g():\n    pass\n",
        );
        assert_eq!(end_of_block(&source, 3, 6), 8);
        assert_eq!(end_of_block(&source, 10, 10), 11);
        // Behind its end: the file is another one by now.
        assert_eq!(end_of_block(&source, 90, 95), 95);
        assert_eq!(begin_of_block(&source, 8), 3);
        assert_eq!(begin_of_block(&source, 1), 1);
        assert_eq!(begin_of_block(&source, 90), 90);
    }

    #[test]
    fn of_a_long_function_the_lines_around_samples_are_shown() {
        let text = format!("def f():\n{}", "    x = 1\n".repeat(100));
        let lines: Lines = [(50, LineAmounts::default())].into();
        let shown = shown(&lines, 1, Some(&source(&text)));
        let mut expected = vec![Shown::Line(1), Shown::Gap];
        expected.extend((47..=53).map(Shown::Line));
        expected.push(Shown::Gap);
        assert_eq!(shown, expected);
    }

    #[test]
    fn without_source_the_lines_with_samples_are_shown() {
        let lines: Lines = [(5, LineAmounts::default()), (9, LineAmounts::default())].into();
        assert_eq!(shown(&lines, 3, None), [Shown::Line(5), Shown::Line(9)]);
    }
}
