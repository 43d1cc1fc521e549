//! What changed between two profiles: functions or lines, by what they take of all, or of the same work, and what of it may be
//! chance.
//!
//! Functions of two profiles are the same by kind, name and file: lines move when code changes. A file that only one of them
//! has is the other's of the same package, or of the same last two parts, where that is unambiguous: each release may have a
//! folder of its own.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use foldhash::fast::RandomState;
use indexmap::IndexMap;

use super::calls::by_stack;
use super::chance::{self, Estimate, deviations};
use super::measure::{Amount, Measure};
use super::model::{FrameKind, Function, Profile, StringId};

/// Samples that are closer together than this are taken for one when nobody says another time.
///
/// A visit of a function that lasts longer than the distance of two samples leaves several samples that tell the same. How
/// long visits last is not in a profile, so a time has to be assumed: requests and tasks are mostly shorter than this.
pub const DEFAULT_CORRELATION: Duration = Duration::from_millis(100);

/// With fewer samples than this in one of the profiles nothing is judged.
pub const MIN_SAMPLES: f64 = 100.0;

/// What is assumed of a profile that does not say how far its samples are apart: what most profilers do.
const ASSUMED_PERIOD: Duration = Duration::from_millis(10);

/// Lengths of two profiles differ by no more than this part where their totals are compared.
const SAME_LENGTH: f64 = 0.02;

/// Bytes of a page, in which page faults are counted.
const PAGE_BYTES: f64 = 4096.0;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Parts of each profile's own total: profiles may differ in length and load.
    Shares,
    /// Amounts, as parts of the total before: both did the same work.
    SameWork,
}

/// What rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// Functions.
    Functions,
    /// Lines of Python functions.
    Lines,
}

/// A function, or a line of one, in both profiles.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Kind of code.
    pub kind: FrameKind,
    /// Name.
    pub name: Box<str>,
    /// File or module.
    pub filename: Box<str>,
    /// The line; 0 of functions, and of lines that are not known.
    pub line: u32,
}

/// What was one thing before and after.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Change {
    /// Before.
    pub before: Amount,
    /// After.
    pub after: Amount,
    /// What it was of the total ([`Basis`]).
    pub part_before: f64,
    /// What it is of the total.
    pub part_after: f64,
    /// Their difference, with its error.
    pub change: Estimate,
}

/// A row of the comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Of what.
    pub place: Place,
    /// First line of the function, after or else before; 0: not known.
    pub start_line: u32,
    /// Of it alone.
    pub own: Change,
    /// With what it calls.
    pub total: Change,
}

/// One of the two profiles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Side {
    /// All of it.
    pub whole: Amount,
    /// Samples that were taken; `None`: the profile does not say what one stands for.
    pub n_samples: Option<f64>,
    /// Of them those that can be taken for independent.
    pub n_independent: f64,
}

/// A comparison.
#[derive(Debug, Clone)]
pub struct Diff {
    /// What is compared.
    pub basis: Basis,
    /// Before.
    pub before: Side,
    /// After.
    pub after: Side,
    /// The total as a part of the total before: 1.1 where it grew by a tenth. `None`: totals cannot be compared.
    pub total: Option<Estimate>,
    /// Standard deviations of each error, for all comparisons together.
    pub deviations: f64,
    /// The rows, in no order.
    pub rows: Vec<Row>,
}

/// What is to be said to who asked whether something became slower.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Rows that grew by more than was allowed, and more than by chance; the largest growth first.
    pub grown: Vec<usize>,
    /// The same of the total.
    pub total_has_grown: bool,
    /// So many samples of each profile would tell a change as large as was asked for from chance; `None`: there are enough.
    pub n_samples_needed: Option<f64>,
}

impl Verdict {
    /// Whether something became slower.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.total_has_grown || !self.grown.is_empty()
    }
}

impl Side {
    fn new(profile: &Profile, measure: Measure, correlation: Duration) -> Self {
        let whole = measure.whole(profile);
        let kinds: Vec<&str> = profile.sample_types.iter().map(|it| it.kind).collect();
        let period = profile.period as f64;
        let unit = profile.sample_types.get(measure.idx).map(|it| it.unit);
        let n_samples = match kinds.first() {
            Some(&"samples") => Some(whole.n_samples as f64),
            Some(&"page_faults") if period > 0.0 => {
                Some(whole.n_samples as f64 * PAGE_BYTES / period)
            }
            _ if period > 0.0 && unit == Some(profile.period_type.unit) => {
                Some(whole.weight as f64 / period)
            }
            _ => None,
        };
        let correlation = correlation.as_secs_f64();
        let seconds = profile.duration.as_secs_f64();
        let is_of_time = profile.period_type.unit == "nanoseconds" && period > 1.0;
        let independent = |n: f64| {
            let distance = if is_of_time {
                period / 1e9
            } else {
                ASSUMED_PERIOD.as_secs_f64()
            };
            let by_distance = n * (distance / correlation).min(1.0);
            // Memory comes in bursts: one moment tells one thing, however much is touched in it.
            match kinds.first() {
                Some(&"samples") => by_distance,
                _ if seconds > 0.0 => n.min(seconds / correlation),
                _ => by_distance,
            }
        };
        Self {
            whole,
            n_samples,
            n_independent: n_samples.map_or(0.0, independent),
        }
    }

    fn part(&self, amount: Amount) -> f64 {
        if self.whole.weight == 0 {
            0.0
        } else {
            amount.weight as f64 / self.whole.weight as f64
        }
    }

    /// A part of the total, as it was sampled.
    fn estimate(&self, part: f64, basis: Basis, z: f64) -> Estimate {
        match basis {
            Basis::Shares => chance::share(part, self.n_independent, z),
            Basis::SameWork if self.n_independent > 0.0 => {
                chance::count(part * self.n_independent, z).scaled(1.0 / self.n_independent)
            }
            Basis::SameWork => Estimate {
                value: part,
                low: 0.0,
                high: f64::INFINITY,
            },
        }
    }
}

impl Diff {
    /// Compares two profiles by the same kind of value.
    #[must_use]
    pub fn new(
        profiles: [&Profile; 2],
        measures: [Measure; 2],
        grain: Grain,
        basis: Basis,
        correlation: Duration,
    ) -> Self {
        let mut places = Places::default();
        for side in 0..2 {
            places.add(profiles[side], measures[side], grain, side);
        }
        let [before, after] =
            [0, 1].map(|side| Side::new(profiles[side], measures[side], correlation));
        // Each row by itself and with what it calls, and the total.
        let z = deviations(places.rows.len() * 2 + 1);
        let growth = if before.whole.weight == 0 {
            1.0
        } else {
            after.whole.weight as f64 / before.whole.weight as f64
        };
        let scale = match basis {
            Basis::Shares => 1.0,
            Basis::SameWork => growth,
        };
        let change = |amounts: [Amount; 2]| {
            let parts = [before.part(amounts[0]), after.part(amounts[1])];
            let was = before.estimate(parts[0], basis, z);
            let is = after.estimate(parts[1], basis, z).scaled(scale);
            Change {
                before: amounts[0],
                after: amounts[1],
                part_before: parts[0],
                part_after: parts[1] * scale,
                change: Estimate::difference(was, is),
            }
        };
        let rows = places.rows.into_iter().map(|(place, sums)| Row {
            place,
            start_line: sums.start_line,
            own: change(sums.own),
            total: change(sums.total),
        });
        let rows = rows.collect();
        let is_comparable = match basis {
            Basis::SameWork => true,
            Basis::Shares => are_of_one_length(profiles),
        };
        let total = is_comparable.then(|| {
            let was = before.estimate(1.0, Basis::SameWork, z);
            let is = after.estimate(1.0, Basis::SameWork, z).scaled(growth);
            Estimate::difference(was, is)
        });
        Self {
            basis,
            before,
            after,
            total,
            deviations: z,
            rows,
        }
    }

    /// Whether something grew by more than this part of the total, and by more than chance explains.
    #[must_use]
    pub fn verdict(&self, allowed: f64) -> Verdict {
        let n_least = |side: &Side| side.n_samples.unwrap_or(0.0);
        let has_enough = n_least(&self.before).min(n_least(&self.after)) >= MIN_SAMPLES;
        let has_grown =
            |change: &Estimate| has_enough && change.value > allowed && change.low > 0.0;
        let mut grown: Vec<usize> = (0..self.rows.len())
            .filter(|idx| has_grown(&self.rows[*idx].total.change))
            .collect();
        grown.sort_by(|a, b| {
            let growth = |idx: &usize| self.rows[*idx].total.change.value;
            growth(b).total_cmp(&growth(a))
        });
        Verdict {
            grown,
            total_has_grown: self.total.as_ref().is_some_and(has_grown),
            n_samples_needed: self.n_samples_needed(allowed),
        }
    }

    /// Samples of each profile that tell growth of this part of the total from chance, of a function with half of it before:
    /// where the error is largest.
    fn n_samples_needed(&self, allowed: f64) -> Option<f64> {
        let [before, after] = [&self.before, &self.after].map(|side| {
            // Where the profile does not say how many samples it has, none of it can be told.
            side.estimate(0.5, self.basis, self.deviations)
        });
        let n_least = |side: &Side| side.n_samples.unwrap_or(0.0);
        let has_enough = n_least(&self.before).min(n_least(&self.after)) >= MIN_SAMPLES;
        if has_enough && Estimate::difference(before, after).error() <= allowed {
            return None;
        }
        // Two errors of `z * sqrt(0.25 / n)` or, of counts, `z * sqrt(0.5 / n)`.
        let variance = match self.basis {
            Basis::Shares => 0.5,
            Basis::SameWork => 1.0,
        };
        let n_independent = variance * (self.deviations / allowed).powi(2);
        let apart = |side: &Side| n_least(side) / side.n_independent.max(f64::MIN_POSITIVE);
        let factor = [&self.before, &self.after]
            .into_iter()
            .filter(|side| side.n_independent > 0.0)
            .map(apart)
            .fold(1.0, f64::max);
        Some((n_independent * factor).max(MIN_SAMPLES))
    }

    /// The rows by the size of their change, the largest first.
    #[must_use]
    pub fn by_change(&self, by_total: bool) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        let size = |change: &Change| change.change.value.abs();
        rows.sort_by(|a, b| {
            let [first, second] = [a, b].map(|row| {
                let sizes = [size(&row.own), size(&row.total)];
                if by_total {
                    [sizes[1], sizes[0]]
                } else {
                    sizes
                }
            });
            let by_size = second[0].total_cmp(&first[0]);
            let by_other = || second[1].total_cmp(&first[1]);
            let by_amount = || Reverse(a.total.after.weight).cmp(&Reverse(b.total.after.weight));
            let by_name = || {
                let name = |row: &Row| {
                    let place = &row.place;
                    (place.name.clone(), place.filename.clone(), place.line)
                };
                name(a).cmp(&name(b))
            };
            by_size
                .then_with(by_other)
                .then_with(by_amount)
                .then_with(by_name)
        });
        rows
    }
}

/// Whether what both used in their time can be compared.
fn are_of_one_length(profiles: [&Profile; 2]) -> bool {
    let [before, after] = profiles.map(|profile| profile.duration.as_secs_f64());
    before > 0.0 && after > 0.0 && (after / before - 1.0).abs() <= SAME_LENGTH
}

/// The sums of one place, before and after.
#[derive(Debug, Default)]
struct Sums {
    start_line: u32,
    own: [Amount; 2],
    total: [Amount; 2],
    /// The last stack that was counted.
    counted_for: usize,
}

#[derive(Debug, Default)]
struct Places {
    rows: IndexMap<Place, Sums, RandomState>,
    n_stacks: usize,
}

impl Places {
    fn add(&mut self, profile: &Profile, measure: Measure, grain: Grain, side: usize) {
        let mut known: HashMap<(u32, u32), usize, RandomState> = HashMap::default();
        for (stack, amount) in by_stack(profile, measure) {
            if amount == Amount::default() {
                continue;
            }
            self.n_stacks += 1;
            let is_meant = |kind| match grain {
                Grain::Functions => true,
                // What a line does in machine code and in the kernel is its own.
                Grain::Lines => kind == FrameKind::Python,
            };
            let frames = profile.frames(stack);
            for (depth, frame) in frames.filter(|it| is_meant(it.kind)).enumerate() {
                let line = match grain {
                    Grain::Functions => 0,
                    Grain::Lines => frame.line,
                };
                let idx = *known.entry((frame.function.0, line)).or_insert_with(|| {
                    let place = Place {
                        kind: frame.kind,
                        name: frame.name.into(),
                        filename: frame.filename.into(),
                        line,
                    };
                    let entry = self.rows.entry(place);
                    let idx = entry.index();
                    let sums = entry.or_default();
                    let function = profile.functions.get(frame.function.0 as usize);
                    sums.start_line = match function.map_or(0, |it| it.start_line) {
                        0 => sums.start_line,
                        line => line,
                    };
                    idx
                });
                let sums = &mut self.rows[idx];
                if depth == 0 {
                    sums.own[side].add(amount);
                }
                if sums.counted_for != self.n_stacks {
                    sums.counted_for = self.n_stacks;
                    sums.total[side].add(amount);
                }
            }
        }
    }
}

/// The profile with the names that the other one has for its files, where only their folders differ.
#[must_use]
pub fn with_files_of(other: &Profile, mut profile: Profile) -> Profile {
    let [of_other, own] = [other, &profile].map(python_files);
    let renamed: HashMap<String, String, RandomState> = same_files(&own, &of_other)
        .into_iter()
        .map(|(own, of_other)| (own.to_owned(), of_other.to_owned()))
        .collect();
    for idx in 0..profile.functions.len() {
        let function = profile.functions[idx];
        if let Some(name) = renamed.get(profile.str(function.filename))
            && function.kind == FrameKind::Python
        {
            let filename = StringId(profile.strings.len() as u32);
            profile.strings.push(name.as_str().into());
            profile.functions[idx] = Function {
                filename,
                ..function
            };
        }
    }
    profile
}

fn python_files(profile: &Profile) -> BTreeSet<&str> {
    let python = |function: &&Function| function.kind == FrameKind::Python;
    let functions = profile.functions.iter().filter(python);
    functions
        .map(|function| profile.str(function.filename))
        .collect()
}

/// Files whose folders alone differ: first those that have the last folder in common, then those of one name, where each side
/// has one.
fn same_files<'a>(
    before: &BTreeSet<&'a str>,
    after: &BTreeSet<&'a str>,
) -> Vec<(&'a str, &'a str)> {
    let mut left = [before - after, after - before];
    let mut pairs = only_ones(&left, last_parts);
    for (old, new) in &pairs {
        left[0].remove(old);
        left[1].remove(new);
    }
    // A folder that has files of both is that of no release: what is in one part of it is not what is in another.
    let both: Vec<&str> = before.intersection(after).copied().collect();
    let is_release = |(old, new): &(&str, &str)| {
        let common = common_folder(old, new);
        common.len() <= 1 || !both.iter().any(|file| file.starts_with(common))
    };
    pairs.extend(only_ones(&left, last_part).into_iter().filter(is_release));
    pairs
}

/// Pairs of files that are alone in what `part` says of them, on both sides.
fn only_ones<'a>(
    sides: &[BTreeSet<&'a str>; 2],
    part: impl Fn(&'a str) -> &'a str,
) -> Vec<(&'a str, &'a str)> {
    let mut candidates: BTreeMap<&str, [Vec<&str>; 2]> = BTreeMap::new();
    for (idx, files) in sides.iter().enumerate() {
        for file in files {
            candidates.entry(part(file)).or_default()[idx].push(file);
        }
    }
    let pair = |sides: [Vec<&'a str>; 2]| match [sides[0].as_slice(), sides[1].as_slice()] {
        [[old], [new]] => Some((*old, *new)),
        _ => None,
    };
    candidates.into_values().filter_map(pair).collect()
}

/// `/srv/` of `/srv/1/view.py` and `/srv/2/view.py`.
fn common_folder<'a>(file: &'a str, other: &str) -> &'a str {
    let n_same = file
        .bytes()
        .zip(other.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    let end = file.as_bytes()[..n_same]
        .iter()
        .rposition(|byte| *byte == b'/');
    &file[..end.map_or(0, |end| end + 1)]
}

/// `view.py` of `/srv/release-7/web/view.py`.
fn last_part(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

/// `web/view.py` of `/srv/release-7/web/view.py`.
fn last_parts(file: &str) -> &str {
    let Some(last) = file.rfind('/') else {
        return file;
    };
    file[..last]
        .rfind('/')
        .map_or(file, |before| &file[before + 1..])
}

#[cfg(test)]
mod tests;
