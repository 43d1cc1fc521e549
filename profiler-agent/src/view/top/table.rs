//! The rows: which ones, in which order.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::str::FromStr;

use foldhash::fast::RandomState;

use super::Top;
use super::kept::{Place, ThreadId, Times};
use crate::format::{escape, short_file};
use crate::profile::model::FrameKind;

/// What is in the order first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortKey {
    /// Share of the last look in which it was the leaf.
    #[default]
    OwnPercent,
    /// Share of the last look in which it was in the stack.
    TotalPercent,
    /// Time since the begin in which it was the leaf.
    OwnTime,
    /// Time since the begin in which it was in the stack.
    TotalTime,
    /// Share of the last look in which it was in the stack of a thread that held the global interpreter lock.
    GilPercent,
}

impl SortKey {
    /// Every key, in the order of the columns.
    pub const ALL: [Self; 5] = [
        Self::OwnPercent,
        Self::TotalPercent,
        Self::OwnTime,
        Self::TotalTime,
        Self::GilPercent,
    ];

    /// Name, as `--sort` takes it and JSON has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OwnPercent => "own_percent",
            Self::TotalPercent => "total_percent",
            Self::OwnTime => "own_time",
            Self::TotalTime => "total_time",
            Self::GilPercent => "gil_percent",
        }
    }

    /// Head of its column.
    #[must_use]
    pub const fn head(self) -> &'static str {
        match self {
            Self::OwnPercent => "%Own",
            Self::TotalPercent => "%Total",
            Self::OwnTime => "OwnTime",
            Self::TotalTime => "TotalTime",
            Self::GilPercent => "%GIL",
        }
    }
}

/// A name that no [`SortKey`] has.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is none of own_percent, total_percent, own_time, total_time, gil_percent")]
pub struct UnknownKey(String);

impl FromStr for SortKey {
    type Err = UnknownKey;

    fn from_str(name: &str) -> Result<Self, UnknownKey> {
        let known = Self::ALL.into_iter().find(|key| key.name() == name);
        known.ok_or_else(|| UnknownKey(escape(name).into_owned()))
    }
}

/// Of what the percentages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Span {
    /// The last look.
    #[default]
    Last,
    /// All since the begin.
    Whole,
}

/// Which rows.
#[derive(Debug, Clone, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag, or a key that is pressed"
)]
pub struct Choice {
    /// Order.
    pub sort: SortKey,
    /// Functions, not lines.
    pub by_function: bool,
    /// Each thread for itself.
    pub by_thread: bool,
    /// Of this process alone.
    pub pid: Option<u32>,
    /// Only what has this text in its function or file, in small or capital letters; empty: everything.
    pub filter: String,
    /// Of what the percentages are.
    pub span: Span,
    /// Files with their whole paths.
    pub has_full_filenames: bool,
    /// Without line numbers.
    pub has_no_lines: bool,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    pub(super) place: &'a Place,
    /// With its name; `None`: of all threads together.
    pub(super) thread: Option<(ThreadId, &'a str)>,
    /// 100 is all of one CPU.
    pub(super) own_percent: f64,
    pub(super) total_percent: f64,
    /// Of the total that in which its thread held the global interpreter lock; `None`: that is not known.
    pub(super) gil_percent: Option<f64>,
    pub(super) whole: Times,
}

impl Row<'_> {
    /// The function with its place, escaped: `f (app.py:7)`.
    pub(super) fn function(&self, choice: &Choice) -> String {
        let name = match &*self.place.name {
            "" => "<no name>".into(),
            name => escape(name),
        };
        let file = match (self.place.kind, choice.has_full_filenames) {
            (FrameKind::Python, false) => last_two(short_file(&self.place.file)),
            _ => &self.place.file,
        };
        let file = escape(file);
        let is_python = self.place.kind == FrameKind::Python;
        match self.place.line {
            _ if file.is_empty() => name.into_owned(),
            line @ 1.. if is_python && !choice.has_no_lines => format!("{name} ({file}:{line})"),
            _ => format!("{name} ({file})"),
        }
    }

    fn key(&self, key: SortKey) -> f64 {
        match key {
            SortKey::OwnPercent => self.own_percent,
            SortKey::TotalPercent => self.total_percent,
            SortKey::OwnTime => self.whole.own as f64,
            SortKey::TotalTime => self.whole.total as f64,
            SortKey::GilPercent => self.gil_percent.unwrap_or(0.0),
        }
    }
}

/// Of the program's own files their folder and name.
fn last_two(file: &str) -> &str {
    let mut slashes = file.rmatch_indices('/').map(|(at, _)| at);
    match (file.starts_with('/'), slashes.nth(1)) {
        (true, Some(at)) => &file[at + 1..],
        _ => file,
    }
}

impl Top {
    /// The rows of a choice, in their order.
    #[must_use]
    pub fn rows(&self, choice: &Choice) -> Vec<Row<'_>> {
        let kept = &self.kept;
        let cells = if choice.by_function {
            &kept.functions
        } else {
            &kept.lines
        };
        let needle = choice.filter.to_lowercase();
        let mut meant: HashMap<u32, bool, RandomState> = HashMap::default();
        let mut is_meant = |place: u32| {
            needle.is_empty()
                || *meant.entry(place).or_insert_with(|| {
                    let place = kept.places.get_index(place as usize);
                    place.is_some_and(|place| {
                        place.name.to_lowercase().contains(&needle)
                            || place.file.to_lowercase().contains(&needle)
                    })
                })
        };
        let mut sums: HashMap<(Option<u32>, u32), [Times; 2], RandomState> = HashMap::default();
        for ((thread, place), cell) in cells {
            let id = kept.threads.get_index(*thread as usize);
            let is_of_process = choice
                .pid
                .is_none_or(|pid| id.is_some_and(|(id, _)| id.pid == pid));
            if is_of_process && is_meant(*place) {
                let key = (choice.by_thread.then_some(*thread), *place);
                let [current, whole] = sums.entry(key).or_default();
                current.add(kept.current(cell));
                whole.add(cell.whole);
            }
        }
        let seconds = self.span_seconds(choice.span);
        let percent = |ns: i64| ns as f64 / 1e7 / seconds;
        let rows = sums
            .into_iter()
            .filter_map(|((thread, place), [current, whole])| {
                let shown = match choice.span {
                    Span::Last => current,
                    Span::Whole => whole,
                };
                let thread = thread.and_then(|idx| kept.threads.get_index(idx as usize));
                Some(Row {
                    place: kept.places.get_index(place as usize)?,
                    thread: thread.map(|(id, name)| (*id, &**name)),
                    own_percent: percent(shown.own),
                    total_percent: percent(shown.total),
                    gil_percent: (shown.gil_known > 0).then(|| percent(shown.gil_held)),
                    whole,
                })
            });
        let mut rows: Vec<Row<'_>> = rows.collect();
        rows.sort_unstable_by(|one, other| compare(one, other, choice.sort));
        rows
    }
}

/// What has most of the key first; what is equal by the other keys, then by name, so that rows do not change places.
fn compare(one: &Row<'_>, other: &Row<'_>, sort: SortKey) -> Ordering {
    let others = SortKey::ALL.into_iter();
    let mut keys = [sort].into_iter().chain(others);
    keys.find_map(|key| {
        let order = other.key(key).total_cmp(&one.key(key));
        order.is_ne().then_some(order)
    })
    .unwrap_or_else(|| {
        let name = |row: &Row<'_>| (row.thread.map(|(id, _)| (id.pid, id.tid)), row.place.line);
        one.place
            .name
            .cmp(&other.place.name)
            .then_with(|| one.place.file.cmp(&other.place.file))
            .then_with(|| name(one).cmp(&name(other)))
    })
}
