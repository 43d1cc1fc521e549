//! Which columns the lines have: time in Python, machine code and the kernel; of a profile of memory its other values.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::profile::lines::{LineAmounts, Lines, lines};
use crate::profile::measure::{Measure, Unit};
use crate::profile::model::{FunctionId, Profile, ValueType};
use crate::view::report::Question;
use crate::view::report::style::{cell, share};

/// The numbers beside the lines.
pub(super) struct Columns {
    measure: Measure,
    whole: i64,
    kind: Kind,
    /// Columns behind the amount and its part of the whole that there is room for.
    n_shown: usize,
}

/// Columns of the amount and its part of the whole.
const MAIN: usize = 18;

/// Columns of a line's number, and of the gaps around the numbers.
pub(super) const BESIDE: usize = 11;

/// Columns that are left for the source, at least.
const MIN_SOURCE: usize = 18;

enum Kind {
    /// Where the time of one value went.
    Split,
    /// Several values beside each other.
    Values(Vec<ValueColumn>),
}

struct ValueColumn {
    head: &'static str,
    unit: Unit,
    lines: HashMap<FunctionId, Lines, RandomState>,
}

/// Heads of values; of others the kind.
const HEADS: [(&str, &str); 6] = [
    ("alloc_space", "allocated"),
    ("inuse_space", "in use"),
    ("peak_space", "at peak"),
    ("temporary_space", "temporary"),
    ("alloc_objects", "objects"),
    ("inuse_objects", "obj in use"),
];

fn head(value: Option<&ValueType>) -> &'static str {
    let kind = value.map_or("total", |it| it.kind);
    let known = HEADS.iter().find(|(known, _)| *known == kind);
    known.map_or(kind, |(_, head)| head)
}

/// Whether a profile has several values that say different things, as one of allocations.
fn has_several(profile: &Profile) -> bool {
    profile.sample_types.len() > 2
}

impl Columns {
    pub(super) fn new(question: &Question<'_>) -> Self {
        let (profile, measure) = (question.profile, question.measure);
        let kind = if has_several(profile) {
            let others = Measure::all(profile).into_iter().filter(|it| {
                // Objects are those that were allocated, unless others are asked for.
                let is_in_use = profile.sample_types[it.idx].kind == "inuse_objects";
                it.idx != measure.idx && !is_in_use
            });
            let mut columns: Vec<ValueColumn> = others
                .map(|it| ValueColumn {
                    head: head(profile.sample_types.get(it.idx)),
                    unit: it.unit,
                    lines: lines(profile, it),
                })
                .collect();
            // Numbers of things behind their sizes.
            columns.sort_by_key(|column| column.unit == Unit::Count);
            Kind::Values(columns)
        } else {
            Kind::Split
        };
        let mut columns = Self {
            measure,
            whole: measure.whole(profile).weight,
            kind,
            n_shown: usize::MAX,
        };
        let (heads, width) = columns.heads();
        columns.n_shown = match question.style.width {
            Some(all) => all.saturating_sub(BESIDE + MAIN + MIN_SOURCE) / (width + 2),
            None => heads.len(),
        }
        .min(heads.len());
        columns
    }

    /// Heads of the columns behind the amount and its part of the whole, and their width.
    fn heads(&self) -> (Vec<&'static str>, usize) {
        match &self.kind {
            Kind::Split => (vec!["python", "native", "kernel"], 9),
            Kind::Values(columns) => {
                let heads = columns.iter().map(|column| column.head);
                (["of its own"].into_iter().chain(heads).collect(), 10)
            }
        }
    }

    /// Heads of the columns that a wider terminal would show.
    pub(super) fn left_out(&self) -> Vec<&'static str> {
        self.heads().0.split_off(self.n_shown)
    }

    /// The head of the table, without the source's.
    pub(super) fn head(&self, profile: &Profile) -> String {
        let main = match &self.kind {
            Kind::Split => "total",
            Kind::Values(_) => head(profile.sample_types.get(self.measure.idx)),
        };
        let (heads, width) = self.heads();
        let mut text = format!("{main:>10}  {:>6}", "%");
        for head in &heads[..self.n_shown] {
            text = format!("{text}  {head:>width$}");
        }
        text
    }

    /// The numbers of a line; `None`: it has no samples.
    pub(super) fn row(
        &self,
        function: FunctionId,
        number: u32,
        line: Option<&LineAmounts>,
    ) -> String {
        let Some(line) = line else {
            return " ".repeat(self.width());
        };
        let part = |unit: Unit, weight: i64| match weight {
            0 => String::new(),
            weight => cell(unit, weight),
        };
        let unit = self.measure.unit;
        let mut text = format!(
            "{:>10}  {:>5.1}%",
            cell(unit, line.total.weight),
            100.0 * share(line.total.weight, self.whole)
        );
        let parts: Vec<String> = match &self.kind {
            Kind::Split => [line.python, line.native, line.kernel]
                .map(|amount| part(unit, amount.weight))
                .into(),
            Kind::Values(columns) => {
                let others = columns.iter().map(|column| {
                    let lines = column.lines.get(&function);
                    let its = lines.and_then(|lines| lines.get(&number));
                    part(column.unit, its.map_or(0, |line| line.total.weight))
                });
                let own = part(unit, line.own().weight);
                [own].into_iter().chain(others).collect()
            }
        };
        let (_, width) = self.heads();
        for part in &parts[..self.n_shown] {
            text = format!("{text}  {part:>width$}");
        }
        text
    }

    /// Columns of a terminal that a row takes.
    fn width(&self) -> usize {
        MAIN + (self.heads().1 + 2) * self.n_shown
    }

    /// How much of all a line takes by itself.
    pub(super) fn own_share(&self, line: Option<&LineAmounts>) -> f64 {
        share(line.map_or(0, |line| line.own().weight), self.whole)
    }
}
