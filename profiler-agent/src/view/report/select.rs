//! Which functions, in which order: by the words of pstats.

use std::cmp::{Ordering, Reverse};
use std::str::FromStr;

use super::Question;
use super::style::{name, place};
use crate::profile::calls::FunctionAmounts;
use crate::profile::model::{FunctionId, Profile};
use crate::profile::query::{PatternError, parse_pattern};

/// What comes first. Names are those of `pstats.Stats.sort_stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortKey {
    /// Of the function alone.
    #[default]
    Own,
    /// With what it calls.
    Total,
    /// Samples with the function anywhere in their stack: where pstats has the number of calls.
    Samples,
    /// Name.
    Name,
    /// File.
    File,
    /// First line.
    Line,
    /// Name, file, line.
    NameFileLine,
    /// File, line, name, as they are printed by pstats.
    Standard,
}

/// Names of keys; several may mean the same.
const KEYS: &[(&str, SortKey)] = &[
    ("tottime", SortKey::Own),
    ("time", SortKey::Own),
    ("self", SortKey::Own),
    ("cumtime", SortKey::Total),
    ("cumulative", SortKey::Total),
    ("total", SortKey::Total),
    ("calls", SortKey::Samples),
    ("ncalls", SortKey::Samples),
    ("pcalls", SortKey::Samples),
    ("samples", SortKey::Samples),
    ("name", SortKey::Name),
    ("file", SortKey::File),
    ("filename", SortKey::File),
    ("module", SortKey::File),
    ("line", SortKey::Line),
    ("nfl", SortKey::NameFileLine),
    ("stdname", SortKey::Standard),
];

/// A name that no [`SortKey`] has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no sort key: there are {}", .0.escape_debug(), key_names())]
pub struct UnknownKey(String);

fn key_names() -> String {
    let names: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

impl FromStr for SortKey {
    type Err = UnknownKey;

    fn from_str(name: &str) -> Result<Self, UnknownKey> {
        let known = KEYS.iter().find(|(known, _)| *known == name);
        known
            .map(|(_, key)| *key)
            .ok_or_else(|| UnknownKey(name.to_owned()))
    }
}

/// Which functions are shown, as pstats' `print_stats` takes it.
#[derive(Debug, Clone)]
pub enum Restriction {
    /// So many.
    Number(usize),
    /// This part of them, 0 to 1.
    Share(f64),
    /// Those whose `file:line(name)`, name, or `module.name` matches.
    Pattern(regex::Regex),
}

/// What cannot be a restriction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestrictionError {
    /// A number with a point that is no part.
    #[error("{0} is no part of the functions: a number with a point must be between 0.0 and 1.0")]
    Share(String),
    /// Not a regular expression.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

impl Restriction {
    /// The pattern, if it is one.
    #[must_use]
    pub const fn pattern(&self) -> Option<&regex::Regex> {
        match self {
            Self::Pattern(pattern) => Some(pattern),
            Self::Number(_) | Self::Share(_) => None,
        }
    }
}

impl FromStr for Restriction {
    type Err = RestrictionError;

    fn from_str(text: &str) -> Result<Self, RestrictionError> {
        if let Ok(number) = text.parse() {
            return Ok(Self::Number(number));
        }
        let is_number = |char: char| char.is_ascii_digit() || char == '.';
        if let Some(share) = text.parse().ok().filter(|_| text.chars().all(is_number)) {
            return match share {
                0.0..=1.0 => Ok(Self::Share(share)),
                _ => Err(RestrictionError::Share(text.to_owned())),
            };
        }
        Ok(Self::Pattern(parse_pattern(text)?))
    }
}

/// The functions that are asked for, in order; and how many there are without [`Question::top`] and restrictions.
pub(super) fn selected(
    question: &Question<'_>,
    mut functions: Vec<FunctionAmounts>,
) -> (Vec<FunctionAmounts>, usize) {
    let n_all = functions.len();
    functions.sort_by(|a, b| order(question, a, b));
    let texts = |it: &FunctionAmounts| texts(question.profile, it.function);
    restrict(&mut functions, question.restrictions, texts);
    if let Some(top) = question.top {
        functions.truncate(top);
    }
    (functions, n_all)
}

/// Whether there is a function that every pattern matches.
#[must_use]
pub fn matches_any(profile: &Profile, restrictions: &[Restriction]) -> bool {
    let patterns: Vec<_> = restrictions
        .iter()
        .filter_map(Restriction::pattern)
        .collect();
    let ids = (0..profile.functions.len()).map(|idx| FunctionId(idx as u32));
    patterns.is_empty()
        || ids.map(|id| texts(profile, id)).any(|texts| {
            patterns
                .iter()
                .all(|it| texts.iter().any(|text| it.is_match(text)))
        })
}

/// Leaves the rows that are asked for: one restriction after the other, patterns over any of a row's texts.
pub(super) fn restrict<T, const N: usize>(
    rows: &mut Vec<T>,
    restrictions: &[Restriction],
    texts: impl Fn(&T) -> [String; N],
) {
    for restriction in restrictions {
        match restriction {
            Restriction::Number(number) => rows.truncate(*number),
            Restriction::Share(share) => {
                // As pstats rounds.
                let number = (rows.len() as f64 * share + 0.5) as usize;
                rows.truncate(number);
            }
            Restriction::Pattern(pattern) => {
                rows.retain(|row| texts(row).iter().any(|text| pattern.is_match(text)));
            }
        }
    }
}

/// What patterns look at of a function.
pub(super) fn texts(profile: &Profile, function: FunctionId) -> [String; 3] {
    profile
        .functions
        .get(function.0 as usize)
        .map_or_else(Default::default, |known| {
            let [file, name] = [known.filename, known.name].map(|it| profile.str(it));
            pattern_texts(file, known.start_line, name)
        })
}

/// What patterns look at: `file:line(name)` as in pstats; the name, so that `dumps$` finds it; and the name behind that of its
/// module, `json.encoder.dumps`.
pub(super) fn pattern_texts(file: &str, line: u32, name: &str) -> [String; 3] {
    let module = file.strip_suffix(".py").unwrap_or(file);
    let module = module.strip_suffix("/__init__").unwrap_or(module);
    let module = module.trim_start_matches('/').replace('/', ".");
    [
        format!("{file}:{line}({name})"),
        name.to_owned(),
        format!("{module}.{name}"),
    ]
}

/// `file:line(name)`, with the whole path.
fn standard_name(profile: &Profile, function: FunctionId) -> String {
    match profile.functions.get(function.0 as usize) {
        Some(known) => format!(
            "{}:{}({})",
            profile.str(known.filename),
            known.start_line,
            profile.str(known.name)
        ),
        None => String::new(),
    }
}

fn order(question: &Question<'_>, a: &FunctionAmounts, b: &FunctionAmounts) -> Ordering {
    let profile = question.profile;
    let name = |it: &FunctionAmounts| name(profile, it.function);
    let place = |it: &FunctionAmounts| place(profile, it.function, question.style);
    let line = |it: &FunctionAmounts| {
        let function = profile.functions.get(it.function.0 as usize);
        function.map_or(0, |function| function.start_line)
    };
    let own = |it: &FunctionAmounts| Reverse((it.own.weight, it.total.weight));
    let total = |it: &FunctionAmounts| Reverse((it.total.weight, it.own.weight));
    let by_key = match question.sort {
        SortKey::Own => own(a).cmp(&own(b)),
        SortKey::Total => total(a).cmp(&total(b)),
        SortKey::Samples => Reverse(a.total.n_samples).cmp(&Reverse(b.total.n_samples)),
        SortKey::Name => name(a).cmp(&name(b)),
        SortKey::File => place(a).cmp(&place(b)),
        SortKey::Line => line(a).cmp(&line(b)),
        SortKey::NameFileLine => (name(a), place(a)).cmp(&(name(b), place(b))),
        SortKey::Standard => {
            let standard = |it: &FunctionAmounts| standard_name(profile, it.function);
            standard(a).cmp(&standard(b))
        }
    };
    by_key.then_with(|| standard_name(profile, a.function).cmp(&standard_name(profile, b.function)))
}
