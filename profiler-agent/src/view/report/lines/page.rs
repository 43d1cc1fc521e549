//! The page of annotated source: which files, functions and lines are on it, so that it stays small whatever the profile is.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;
use indexmap::IndexMap;

use super::extent::{Shown, shown};
use super::{chosen, code_at, file, files_of, mismatch, own_of, problem};
use crate::format::html::{LinesFile, LinesFunction, LinesPage, LinesValue, SplitColumn};
use crate::format::{is_of_library, short_file, thousands};
use crate::profile::calls::functions;
use crate::profile::lines::{Lines, lines, lines_of_files};
use crate::profile::measure::Measure;
use crate::profile::model::{FunctionId, Profile, StringId};
use crate::view::report::style::{amount_text, share};
use crate::view::report::{Question, SortKey, note, sentence};

/// Bytes that the page has beside its script, at most: about.
const MAX_BYTES: usize = 3 << 20;

/// Lines of one function, at most.
const MAX_LINES: usize = 3000;

/// Characters of a line, at most.
const MAX_LINE_CHARS: usize = 400;

/// So many lines from one to the next are shown between them.
const MIN_GAP: u32 = 3;

/// Bytes of a line beside its text, and of a number of it.
const LINE_BYTES: usize = 12;
const NUMBER_BYTES: usize = 6;

/// The files whose source the page may show, the most important first.
#[must_use]
pub fn all_files(question: &Question<'_>) -> Vec<String> {
    files_of(question, chosen(question, None))
}

/// What the page shows. Functions are taken in the order that is asked for, as long as there is room.
#[must_use]
pub fn page<'a>(question: &Question<'a>) -> LinesPage<'a> {
    let profile = question.profile;
    let values = Values::new(profile);
    let mut room = Room::new(profile, values.measures.len());
    let mut comments = profile.comments.clone();
    let mut left_out = (0, 0);
    let mut rows = Vec::new();
    // Of each file the first thing that speaks against it.
    let mut mismatches: HashMap<StringId, String, RandomState> = HashMap::default();
    for (function, lines) in chosen(question, None) {
        let Some(its) = profile.functions.get(function.function.0 as usize) else {
            continue;
        };
        let code = code_of(question, file(profile, function.function));
        let wanted = room.lines(&lines, its.start_line, code);
        let names = [its.name, its.filename].map(|id| profile.str(id));
        if room.take(its.filename, names, &wanted, code, &lines) {
            let line = if wanted.contains(&its.start_line) {
                its.start_line
            } else {
                wanted.first().copied().unwrap_or(0)
            };
            rows.push((function.function, line));
            let found = code.and_then(|code| mismatch(profile, function.function, &lines, code));
            if let Some(found) = found {
                mismatches.entry(its.filename).or_insert(found);
            }
        } else {
            left_out.0 += 1;
            left_out.1 += function.own.weight;
        }
    }
    let (n_left_out, own_left_out) = left_out;
    let whole = question.measure.whole(profile).weight;
    if n_left_out > 0 {
        comments.push(format!(
            "{} of {} functions are not on this page, which has an end: {:.1} % of all is their own ({}); `--lines REGEX` chooses others",
            thousands(n_left_out),
            thousands(n_left_out + rows.len() as i64),
            100.0 * share(own_left_out, whole),
            amount_text(question.measure.unit, own_left_out),
        ));
    }
    if room.n_lines_left_out > 0 {
        comments.push(format!(
            "{} lines of very long functions are not on this page: those that take least",
            thousands(room.n_lines_left_out as i64)
        ));
    }
    let files = room.wanted.iter().map(|(id, wanted)| {
        let name = profile.str(*id);
        let source = question.sources.get(name);
        let problems = problem(source).into_iter().chain(mismatches.remove(id));
        LinesFile {
            problem: problems.collect::<Vec<_>>().join("; "),
            ..values.file(wanted, name, code_of(question, name))
        }
    });
    let files = files.collect();
    let functions = rows.into_iter().filter_map(|(id, line)| {
        let name = profile.functions.get(id.0 as usize)?;
        let (own, total) = values.function(id);
        Some(LinesFunction {
            file: room.wanted.get_index_of(&name.filename)?,
            name: match profile.str(name.name) {
                "" => "<no name>",
                name => name,
            },
            line,
            own,
            total,
        })
    });
    LinesPage {
        version: env!("CARGO_PKG_VERSION"),
        types: values.types(profile),
        main: question.measure.idx,
        by_total: question.sort == SortKey::Total,
        subtitle: format!("{}{}", sentence(profile, question.measure), note(profile))
            .trim_end()
            .replace('\n', "; "),
        comments,
        functions: functions.collect(),
        files,
    }
}

fn code_of<'a>(question: &Question<'a>, file: &str) -> Option<&'a [String]> {
    let source = question.sources.get(file)?.as_ref().ok()?;
    Some(source.lines.as_slice())
}

/// What fits onto the page.
struct Room {
    left: usize,
    /// Bytes of the numbers of a line with samples, and of a function.
    numbers: usize,
    /// Of each file the lines that are on the page.
    wanted: IndexMap<StringId, BTreeSet<u32>, RandomState>,
    n_lines_left_out: usize,
}

impl Room {
    fn new(profile: &Profile, n_values: usize) -> Self {
        let comments: usize = profile.comments.iter().map(String::len).sum();
        Self {
            left: MAX_BYTES.saturating_sub(comments),
            numbers: 4 * n_values * NUMBER_BYTES,
            wanted: IndexMap::default(),
            n_lines_left_out: 0,
        }
    }

    /// The lines of a function that are worth showing.
    fn lines(&mut self, lines: &Lines, start: u32, code: Option<&[String]>) -> BTreeSet<u32> {
        let all: BTreeSet<u32> = shown(lines, start, code)
            .into_iter()
            .filter_map(|line| match line {
                Shown::Line(number) => Some(number),
                Shown::Gap => None,
            })
            .collect();
        if all.len() <= MAX_LINES {
            return all;
        }
        let mut sampled: Vec<_> = lines.iter().collect();
        sampled.sort_by_key(|(number, line)| {
            let key = (line.own().weight, line.total.weight);
            (std::cmp::Reverse(key), **number)
        });
        self.n_lines_left_out += sampled.len().saturating_sub(MAX_LINES);
        let kept = sampled.into_iter().take(MAX_LINES);
        kept.map(|(number, _)| *number).collect()
    }

    /// Puts a function onto the page, if there is room for it.
    fn take(
        &mut self,
        file: StringId,
        [name, path]: [&str; 2],
        wanted: &BTreeSet<u32>,
        code: Option<&[String]>,
        lines: &Lines,
    ) -> bool {
        let known = self.wanted.get(&file);
        let new = wanted
            .iter()
            .filter(|line| known.is_none_or(|known| !known.contains(line)));
        let n_bytes: usize = new
            .map(|line| {
                let numbers = if lines.contains_key(line) {
                    self.numbers
                } else {
                    0
                };
                LINE_BYTES + cut(code_at(code, *line)).len() + numbers
            })
            .sum();
        // A path is there whole and short.
        let of_file = if known.is_none() { 2 * path.len() } else { 0 };
        let n_bytes = n_bytes + of_file + name.len() + LINE_BYTES + self.numbers;
        let Some(left) = self.left.checked_sub(n_bytes) else {
            return false;
        };
        self.left = left;
        self.wanted.entry(file).or_default().extend(wanted);
        true
    }
}

/// A line without what is behind the end of any that people write.
fn cut(line: &str) -> Cow<'_, str> {
    match line.char_indices().nth(MAX_LINE_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]).into(),
        None => line.into(),
    }
}

/// All values of a profile, by line, file and function.
struct Values {
    measures: Vec<Measure>,
    of_files: Vec<HashMap<StringId, Lines, RandomState>>,
    /// Of each function for each value what is its own, and its total.
    of_functions: HashMap<FunctionId, (Vec<i64>, Vec<i64>), RandomState>,
    file_ids: HashMap<Box<str>, StringId, RandomState>,
}

impl Values {
    fn new(profile: &Profile) -> Self {
        let measures = Measure::all(profile);
        let n_values = measures.len();
        let mut of_functions: HashMap<_, (Vec<i64>, Vec<i64>), RandomState> = HashMap::default();
        for measure in &measures {
            let nothing = || (vec![0; n_values], vec![0; n_values]);
            for (function, lines) in lines(profile, *measure) {
                let (own, _) = of_functions.entry(function).or_insert_with(nothing);
                own[measure.idx] = own_of(&lines).weight.max(0);
            }
            for its in functions(profile, *measure) {
                if let Some((_, total)) = of_functions.get_mut(&its.function) {
                    total[measure.idx] = its.total.weight.max(0);
                }
            }
        }
        let of_files: Vec<_> = measures
            .iter()
            .map(|measure| lines_of_files(profile, *measure))
            .collect();
        let ids = of_files.iter().flat_map(HashMap::keys);
        Self {
            file_ids: ids.map(|id| (profile.str(*id).into(), *id)).collect(),
            measures,
            of_files,
            of_functions,
        }
    }

    fn types(&self, profile: &Profile) -> Vec<LinesValue> {
        let types = self.measures.iter().map(|measure| {
            let value = profile.sample_types[measure.idx];
            LinesValue {
                kind: value.kind,
                unit: value.unit,
                whole: measure.whole(profile).weight.max(0),
            }
        });
        types.collect()
    }

    fn function(&self, function: FunctionId) -> (Vec<i64>, Vec<i64>) {
        self.of_functions
            .get(&function)
            .cloned()
            .unwrap_or_default()
    }

    fn file<'a>(
        &self,
        wanted: &BTreeSet<u32>,
        name: &'a str,
        code: Option<&'a [String]>,
    ) -> LinesFile<'a> {
        let nothing = Lines::new();
        let id = self.file_ids.get(name);
        let of_values: Vec<&Lines> = self
            .of_files
            .iter()
            .map(|files| id.and_then(|id| files.get(id)).unwrap_or(&nothing))
            .collect();
        // What is not known comes last.
        let mut numbers: Vec<u32> = Vec::with_capacity(wanted.len());
        for line in wanted.iter().copied().filter(|line| *line > 0) {
            // Dots would take as much room.
            if let (Some(before), Some(code)) = (numbers.last().copied(), code)
                && line - before <= MIN_GAP
                && (line as usize) <= code.len()
            {
                numbers.extend(before + 1..line);
            }
            numbers.push(line);
        }
        numbers.extend(wanted.first().filter(|line| **line == 0));
        let mut file = LinesFile {
            name,
            short: short_file(name),
            is_library: is_of_library(name),
            own: of_values
                .iter()
                .map(|lines| own_of(lines).weight.max(0))
                .collect(),
            amounts: vec![SplitColumn::default(); of_values.len()],
            ..LinesFile::default()
        };
        for (idx, number) in (0..).zip(&numbers) {
            file.text.push(cut(code_at(code, *number)));
            if !of_values.iter().any(|lines| lines.contains_key(number)) {
                continue;
            }
            file.at.push(idx);
            for (column, lines) in file.amounts.iter_mut().zip(&of_values) {
                let line = lines.get(number).copied().unwrap_or_default();
                column.total.push(line.total.weight.max(0));
                column.python.push(line.python.weight.max(0));
                column.native.push(line.native.weight.max(0));
                column.kernel.push(line.kernel.weight.max(0));
            }
        }
        file.lines = numbers;
        file
    }
}
