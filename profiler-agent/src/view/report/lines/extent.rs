//! Which lines of a function are shown.

use crate::profile::lines::Lines;

/// Lines around one with samples that are shown of a long function.
const CONTEXT: u32 = 3;

/// A function with more lines than this is long.
const LONG: u32 = 60;

/// What is printed of a function.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Line(u32),
    Gap,
}

/// The lines of a function: all of a short one, of a long one those with samples and what is around them.
pub(super) fn shown(lines: &Lines, start: u32, source: Option<&[String]>) -> Vec<Shown> {
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
    // What is behind the end of the source has samples, or is nothing: a profile can say any number.
    let end_of_source = end.min(u32::try_from(source.len()).unwrap_or(u32::MAX));
    for line in first..=end_of_source {
        if is_near(line) {
            rows.push(Shown::Line(line));
        } else if rows.last() != Some(&Shown::Gap) {
            rows.push(Shown::Gap);
        }
    }
    for line in lines.keys().filter(|line| **line > end_of_source) {
        if rows.last() != Some(&Shown::Gap) && !rows.is_empty() {
            rows.push(Shown::Gap);
        }
        rows.push(Shown::Line(*line));
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
fn begin_of_block(source: &[String], line: u32) -> u32 {
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
fn end_of_block(source: &[String], first: u32, last: u32) -> u32 {
    let at = |number: u32| source.get(number as usize - 1).map(String::as_str);
    let last = last.max(first);
    let Some(outer) = at(first).map(indent) else {
        return last;
    };
    let mut end = last;
    let mut number = last;
    while let Some(line) = number.checked_add(1).and_then(at) {
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

#[cfg(test)]
mod tests {
    use crate::profile::lines::LineAmounts;

    use super::*;

    fn source(text: &str) -> Vec<String> {
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
    fn lines_behind_the_end_of_the_source_are_those_with_samples() {
        let source = source("def f():\n    x = 1\n");
        let lines: Lines = [2, 4_000_000_000, u32::MAX]
            .map(|line| (line, LineAmounts::default()))
            .into();
        let expected = [
            Shown::Line(1),
            Shown::Line(2),
            Shown::Gap,
            Shown::Line(4_000_000_000),
            Shown::Gap,
            Shown::Line(u32::MAX),
        ];
        assert_eq!(shown(&lines, 1, Some(&source)), expected);
    }

    #[test]
    fn without_source_the_lines_with_samples_are_shown() {
        let lines: Lines = [(5, LineAmounts::default()), (9, LineAmounts::default())].into();
        assert_eq!(shown(&lines, 3, None), [Shown::Line(5), Shown::Line(9)]);
    }
}
