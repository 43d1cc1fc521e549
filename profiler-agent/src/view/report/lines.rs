//! The source of functions with what each line takes, as line_profiler, memory_profiler and Scalene print it.

mod columns;
mod extent;
mod origin;
mod page;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use serde_json::Value;

use self::columns::Columns;
use self::extent::{Shown, shown};
use self::origin::mismatch;
pub use self::page::{all_files, page};
use super::Question;
use super::select::selected;
use super::style::{amount_text, function_json, function_text, share};
use crate::format::escape;
use crate::profile::calls::{FunctionAmounts, functions};
use crate::profile::lines::{LineAmounts, Lines, lines};
use crate::profile::measure::{Amount, Measure};
use crate::profile::model::{FrameKind, FunctionId, Profile};

/// Functions when nobody says how many.
const DEFAULT_TOP: usize = 5;

/// The source of a file.
#[derive(Debug, Default)]
pub struct Source {
    /// A text a line, without their ends.
    pub lines: Vec<String>,
    /// It was changed when the profile was over already: its lines may be others by now.
    pub is_newer: bool,
}

/// Files by their names: their source, or in a few words why it is not here.
pub type Sources = BTreeMap<String, Result<Source, String>>;

/// The files whose source this view shows.
#[must_use]
pub fn files(question: &Question<'_>) -> Vec<String> {
    files_of(question, chosen(question, Some(DEFAULT_TOP)))
}

/// The files of these functions, each once, in the order of the functions.
fn files_of(question: &Question<'_>, functions: Vec<(FunctionAmounts, Lines)>) -> Vec<String> {
    let mut seen = HashSet::new();
    let files = functions
        .into_iter()
        .map(|(function, _)| file(question.profile, function.function))
        .filter(|file| seen.insert(*file));
    files.map(str::to_owned).collect()
}

fn file(profile: &Profile, function: FunctionId) -> &str {
    let function = profile.functions.get(function.0 as usize);
    function.map_or("", |function| profile.str(function.filename))
}

/// What a function's lines take by themselves.
fn own_of(lines: &Lines) -> Amount {
    let mut own = Amount::default();
    for line in lines.values() {
        own.add(line.own());
    }
    own
}

/// The Python functions that are asked for, with their lines; so many when nobody says how many.
fn chosen(question: &Question<'_>, default_top: Option<usize>) -> Vec<(FunctionAmounts, Lines)> {
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
        function.own = by_function
            .get(&function.function)
            .map_or_else(Amount::default, own_of);
    }
    let (mut rows, _) = selected(question, all);
    if let Some(top) = default_top
        && question.top.is_none()
        && question.restrictions.is_empty()
    {
        rows.truncate(top);
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
    let columns = Columns::new(question);
    let mut text = String::new();
    for (function, lines) in chosen(question, Some(DEFAULT_TOP)) {
        if !text.is_empty() {
            text.push('\n');
        }
        let id = function.function;
        let style = question.style;
        text.push_str(&style.prose(&format!(
            "{}: {} of its own, {} in all ({:.1}%)\n",
            function_text(question.profile, id, style),
            amount_text(unit, function.own.weight),
            amount_text(unit, function.total.weight),
            100.0 * share(function.total.weight, whole)
        )));
        let file = file(question.profile, id);
        let source = question.sources.get(file);
        let known = source.and_then(|source| source.as_ref().ok());
        let code = known.map(|source| source.lines.as_slice());
        let start = question.profile.functions[id.0 as usize].start_line;
        for problem in problems(question.profile, id, &lines, source) {
            text.push_str(&style.prose(&format!("    {problem}: {}\n", escape(file))));
        }
        // Writing to a String does not fail.
        let _ = writeln!(text, "    line {}  source", columns.head(question.profile));
        for line in shown(&lines, start, code) {
            match line {
                Shown::Gap => text.push_str("     ...\n"),
                Shown::Line(number) => {
                    let its = lines.get(&number);
                    let numbers = columns.row(id, number, its);
                    let label = format!("{:>8}", label(number));
                    let code = escape(code_at(code, number));
                    let code = style.fit(&code, label.len() + numbers.len() + 3);
                    let numbers = style.by_share(&numbers, columns.own_share(its));
                    let row = format!("{label} {numbers}  {code}");
                    let _ = writeln!(text, "{}", row.trim_end());
                }
            }
        }
    }
    let left_out = columns.left_out();
    if !left_out.is_empty() {
        let left_out = left_out.join(", ");
        let said = format!("\nin a wider terminal there are columns of {left_out} too\n");
        text.push_str(&question.style.prose(&said));
    }
    text
}

fn label(number: u32) -> String {
    match number {
        0 => "-".to_owned(),
        number => number.to_string(),
    }
}

/// A line of the source; empty where there is none.
fn code_at(source: Option<&[String]>, number: u32) -> &str {
    let idx = (number as usize).checked_sub(1);
    let line = source.and_then(|source| source.get(idx?));
    line.map_or("", String::as_str)
}

/// What is to be said of the source of a function; nothing of one that is as it was.
fn problems(
    profile: &Profile,
    function: FunctionId,
    lines: &Lines,
    source: Option<&Result<Source, String>>,
) -> Vec<String> {
    let mismatch = match source {
        Some(Ok(source)) => mismatch(profile, function, lines, &source.lines),
        Some(Err(_)) | None => None,
    };
    problem(source).into_iter().chain(mismatch).collect()
}

/// What is to be said of a file's source, whatever is in it.
pub(super) fn problem(source: Option<&Result<Source, String>>) -> Option<String> {
    match source {
        None => Some("the source is not here".to_owned()),
        Some(Err(reason)) => Some(format!("the source is not here ({})", escape(reason))),
        Some(Ok(source)) if source.is_newer => Some(
            "the source was changed after the profile was recorded, lines may be others".to_owned(),
        ),
        Some(Ok(_)) => None,
    }
}

pub(super) fn json(question: &Question<'_>) -> Value {
    let profile = question.profile;
    let values: Vec<_> = Measure::all(profile)
        .into_iter()
        .map(|measure| {
            (
                profile.sample_types[measure.idx].kind,
                lines(profile, measure),
            )
        })
        .collect();
    let rows = chosen(question, Some(DEFAULT_TOP)).into_iter();
    let rows = rows.map(|(function, lines)| {
        let id = function.function;
        let mut row = function_json(profile, id);
        row["self"] = function.own.weight.into();
        row["total"] = function.total.weight.into();
        let source = question.sources.get(file(profile, id));
        let known = source.and_then(|source| source.as_ref().ok());
        let problems = problems(profile, id, &lines, source);
        row["source_problem"] = match problems.as_slice() {
            [] => Value::Null,
            problems => problems.join("; ").into(),
        };
        let line_json = |(number, line): (&u32, &LineAmounts)| {
            let code =
                known.and_then(|source| source.lines.get((*number as usize).checked_sub(1)?));
            let total = |of: &Lines| of.get(number).map_or(0, |line| line.total.weight);
            let values: serde_json::Map<String, Value> = values
                .iter()
                .filter_map(|(kind, of)| Some(((*kind).to_owned(), total(of.get(&id)?).into())))
                .collect();
            serde_json::json!({
                "line": number,
                "samples": line.total.n_samples,
                "total": line.total.weight,
                "python": line.python.weight,
                "native": line.native.weight,
                "kernel": line.kernel.weight,
                "values": values,
                "source": code,
            })
        };
        row["lines"] = lines.iter().map(line_json).collect();
        row
    });
    rows.collect()
}
