//! Comparisons of profiles whose truth is known: by construction, and drawn by chance from one program.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::profile::model::{Location, MappingId, ValueType};
use crate::profile::tables::{Head, Tables};

/// 10 ms: that of the samples of these profiles.
const PERIOD_NS: i64 = 10_000_000;

/// Stacks from their roots on, with their number of samples.
fn profile(stacks: &[(&str, i64)], folder: &str, seconds: u64) -> Profile {
    let mut tables = Tables::default();
    for (stack, count) in stacks {
        let frames: Vec<_> = stack
            .split(' ')
            .rev()
            .map(|name| {
                let function = Function {
                    kind: FrameKind::Python,
                    name: tables.string(name),
                    filename: tables.string(&format!("{folder}/web/app.py")),
                    start_line: 7,
                };
                let location = Location {
                    function: tables.function(function),
                    line: name.len() as u32,
                    mapping: MappingId(0),
                    address: 0,
                };
                tables.location(location)
            })
            .collect();
        let stack = tables.stack(&frames);
        let process = crate::profile::model::Process {
            pid: 5,
            started_ns: 0,
            owner: None,
            cmdline: tables.string(""),
            labels: Box::default(),
        };
        let set = crate::profile::model::LabelSet {
            process: tables.process(process),
            thread_started_ns: 0,
            labels: Box::default(),
        };
        let set = tables.label_set(set);
        tables.add(stack, set, [*count, count.saturating_mul(PERIOD_NS)].into());
    }
    tables.finish(Head {
        sample_types: &ValueType::CPU_SAMPLES,
        period: PERIOD_NS,
        start: SystemTime::UNIX_EPOCH,
        duration: Duration::from_secs(seconds),
        comments: Vec::new(),
    })
}

fn compared(before: &Profile, after: &Profile, basis: Basis, correlation: Duration) -> Diff {
    let measures = [Measure::main(before), Measure::main(after)];
    Diff::new(
        [before, after],
        measures,
        Grain::Functions,
        basis,
        correlation,
    )
}

fn row<'a>(diff: &'a Diff, name: &str) -> &'a Row {
    let found = diff.rows.iter().find(|row| &*row.place.name == name);
    found.expect("it was sampled")
}

/// The time of no sample counts for another one.
const INDEPENDENT: Duration = Duration::from_millis(10);

#[test]
fn a_function_that_takes_a_fifth_more_is_found_with_that_amount() {
    // 100 s; `query` has half, then a fifth more. The rest does what it did.
    let before = profile(&[("main query", 50_000), ("main render", 50_000)], "/a", 1);
    let after = profile(&[("main query", 60_000), ("main render", 50_000)], "/a", 9);
    let diff = compared(&before, &after, Basis::SameWork, INDEPENDENT);
    let query = row(&diff, "query");
    assert!((query.total.change.value - 0.1).abs() < 1e-9, "{query:?}");
    assert!(query.own.change.is_change() && !row(&diff, "render").own.change.is_change());
    assert!((row(&diff, "main").total.change.value - 0.1).abs() < 1e-9);
    assert_eq!(diff.by_change(false)[0].place, query.place);
    let verdict = diff.verdict(0.05);
    assert!(verdict.has_failed() && verdict.total_has_grown);
    assert_eq!(verdict.n_samples_needed, None);
    assert!(!diff.verdict(0.11).has_failed());
    // Of all it has 60 of 110 now: 4.5 points more. Lengths differ, so the total says nothing.
    let diff = compared(&before, &after, Basis::Shares, INDEPENDENT);
    let share = row(&diff, "query").total.change.value;
    assert!((share - (6.0 / 11.0 - 0.5)).abs() < 1e-9);
    assert_eq!(diff.total, None);
    assert!(diff.verdict(0.04).has_failed() && !diff.verdict(0.05).has_failed());
    // The other way round it is faster, and that is no failure of anything but its share's other side.
    let back = compared(&after, &before, Basis::SameWork, INDEPENDENT);
    assert!(!back.verdict(0.001).has_failed());
    assert!(row(&back, "query").own.change.high < 0.0);
}

#[test]
fn what_few_samples_say_is_never_a_failure() {
    let before = profile(&[("main query", 10), ("main render", 40)], "/a", 1);
    let after = profile(&[("main query", 90), ("main render", 10)], "/a", 1);
    for basis in [Basis::Shares, Basis::SameWork] {
        let verdict = compared(&before, &after, basis, INDEPENDENT).verdict(0.05);
        assert!(!verdict.has_failed(), "{verdict:?}");
        let needed = verdict.n_samples_needed.expect("there are too few");
        assert!(needed > 1000.0, "{needed}");
        // So many do.
        let many = needed.ceil() as i64;
        let enough = profile(&[("main query", many / 2), ("main", many / 2)], "/a", 1);
        let diff = compared(&enough, &enough, basis, INDEPENDENT);
        let error = row(&diff, "query").own.change.error();
        assert!((0.04..0.06).contains(&error), "{basis:?} {error}");
    }
    let none = profile(&[], "/a", 1);
    let diff = compared(&none, &before, Basis::SameWork, INDEPENDENT);
    assert!(
        !diff.verdict(0.05).has_failed() && diff.rows.iter().all(|it| !it.own.change.is_change())
    );
}

#[test]
fn nanoseconds_are_no_samples() {
    let mut one = profile(&[("main query", 500), ("main", 500)], "/a", 1);
    let [diff, finer] = [1, 1_000].map(|factor| {
        for sample in &mut one.samples {
            sample.values = [sample.values[0], sample.values[1] * factor].into();
        }
        compared(&one, &one, Basis::Shares, INDEPENDENT)
    });
    let error = |diff: &Diff| row(diff, "query").own.change.error();
    assert!((error(&diff) - error(&finer)).abs() < 1e-12);
}

#[test]
fn samples_that_follow_each_other_count_as_one() {
    let one = profile(&[("main query", 5_000), ("main", 5_000)], "/a", 1);
    let n = |correlation| {
        let diff = compared(&one, &one, Basis::Shares, correlation);
        diff.before.n_independent
    };
    assert!((n(INDEPENDENT) - 10_000.0).abs() < 1e-6);
    assert!((n(DEFAULT_CORRELATION) - 1_000.0).abs() < 1e-6);
    // Closer samples than the period are none.
    assert!((n(Duration::from_millis(1)) - 10_000.0).abs() < 1e-6);
}

#[test]
fn a_release_in_another_folder_has_the_same_functions() {
    let before = profile(&[("main query", 100)], "/srv/7", 1);
    let after = with_files_of(&before, profile(&[("main query", 100)], "/srv/8", 1));
    let diff = compared(&before, &after, Basis::Shares, INDEPENDENT);
    assert_eq!(diff.rows.len(), 2);
    let other = with_files_of(&before, profile(&[("main", 1)], "", 1));
    assert_eq!(other.str(other.functions[0].filename), "/srv/7/web/app.py");
}

#[test]
fn files_are_the_same_whatever_the_folder_of_the_release() {
    let same = |before: &[&'static str], after: &[&'static str]| {
        let [before, after] = [before, after].map(|files| files.iter().copied().collect());
        let mut pairs = same_files(&before, &after);
        pairs.sort_unstable();
        pairs
    };
    let library = "/usr/lib/python3.12/json/encoder.py";
    let one = "/srv/releases/1/app.py";
    let two = "/srv/releases/2/app.py";
    assert_eq!(same(&[one, library], &[two, library]), [(one, two)]);
    // The script, and what its package has.
    let packed = same(
        &[one, "/srv/releases/1/pkg/m.py"],
        &[two, "/srv/releases/2/pkg/m.py"],
    );
    assert_eq!(packed.len(), 2);
    let elsewhere = same(&["/build/app.py", library], &["/srv/x/app.py", library]);
    assert_eq!(elsewhere.len(), 1);
    // Two parts of one program.
    let parts = same(
        &["/srv/main.py", "/srv/a/utils.py"],
        &["/srv/main.py", "/srv/b/utils.py"],
    );
    assert_eq!(parts, []);
    // Which of them it is cannot be told.
    let several = same(&["/srv/1/a.py"], &["/srv/2/a.py", "/srv/3/a.py"]);
    assert_eq!(several, []);
    assert_eq!(same(&[""], &["/a.py"]), []);
}

#[test]
fn lines_are_compared_by_their_numbers() {
    let before = profile(&[("main query", 100), ("main", 50)], "/a", 1);
    let measures = [Measure::main(&before); 2];
    let diff = Diff::new(
        [&before, &before],
        measures,
        Grain::Lines,
        Basis::Shares,
        INDEPENDENT,
    );
    let lines: Vec<u32> = diff.rows.iter().map(|row| row.place.line).collect();
    assert_eq!(diff.rows.len(), 2);
    assert!(lines.contains(&4) && lines.contains(&5), "{lines:?}");
}

/// xorshift64*: the same numbers in each run.
struct Random(u64);

impl Random {
    fn share(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / 9_007_199_254_740_992.0
    }
}

/// A recording of a program of 200 functions, most of them small, of `n` samples. It stays with each for `visit` samples on
/// average, so that samples are as independent as `visit` is small.
fn recorded(random: &mut Random, n: i64, visit: f64) -> Profile {
    const N_FUNCTIONS: usize = 200;
    let mut counts = vec![0; N_FUNCTIONS];
    let mut idx = 0;
    for sample in 0..n {
        if sample == 0 || random.share() < 1.0 / visit {
            // The cube makes few large and many small ones.
            idx = (random.share().powi(3) * N_FUNCTIONS as f64) as usize;
        }
        counts[idx] += 1;
    }
    let mut names = vec![String::new(); N_FUNCTIONS];
    for (idx, name) in names.iter_mut().enumerate() {
        write!(name, "main part{} f{idx}", idx / 20).expect("memory takes it");
    }
    let stacks: Vec<(&str, i64)> = names
        .iter()
        .map(String::as_str)
        .zip(counts)
        .filter(|(_, count)| *count > 0)
        .collect();
    profile(&stacks, "/a", 10)
}

#[test]
fn a_thousand_diffs_of_a_program_with_itself_give_no_failure() {
    let mut random = Random(42);
    let mut n_beyond_plain_error = 0;
    for (n, visit, correlation) in [
        (300, 1.0, INDEPENDENT),
        (5_000, 1.0, INDEPENDENT),
        // Visits of 50 ms on average, of which many are longer.
        (5_000, 5.0, DEFAULT_CORRELATION),
    ] {
        let profiles: Vec<Profile> = (0..27).map(|_| recorded(&mut random, n, visit)).collect();
        let mut n_pairs = 0;
        for (idx, before) in profiles.iter().enumerate() {
            for after in &profiles[idx + 1..] {
                n_pairs += 1;
                for basis in [Basis::Shares, Basis::SameWork] {
                    let diff = compared(before, after, basis, correlation);
                    let beyond: Vec<_> = diff
                        .rows
                        .iter()
                        .filter(|row| row.own.change.is_change() || row.total.change.is_change())
                        .collect();
                    assert!(beyond.is_empty(), "{n} {visit} {basis:?}: {beyond:?}");
                    assert!(!diff.verdict(1e-6).has_failed());
                    // One at a time, as if samples were independent: what the correction is for.
                    n_beyond_plain_error += diff
                        .rows
                        .iter()
                        .filter(|row| {
                            let shares = [row.own.part_before, row.own.part_after];
                            let [a, b] = shares.map(|it| chance::share(it, n as f64, 1.96));
                            Estimate::difference(a, b).is_change()
                        })
                        .count();
                }
            }
        }
        assert_eq!(n_pairs, 351);
    }
    assert!(n_beyond_plain_error > 1_000, "{n_beyond_plain_error}");
}

#[test]
fn a_real_change_is_found_through_the_error_with_enough_samples() {
    // Half of the time, and a fifth more: 4.5 points.
    let mut random = Random(7);
    let mut found = 0;
    for _ in 0..50 {
        let mut counted = |share: f64, n: i64| {
            let hits = (0..n).filter(|_| random.share() < share).count() as i64;
            profile(&[("main query", hits), ("main render", n - hits)], "/a", 10)
        };
        let before = counted(0.5, 20_000);
        let after = counted(6.0 / 11.0, 20_000);
        let diff = compared(&before, &after, Basis::Shares, INDEPENDENT);
        let change = row(&diff, "query").total.change;
        let truth = 6.0 / 11.0 - 0.5;
        assert!(change.low <= truth && truth <= change.high, "{change:?}");
        found += usize::from(diff.verdict(0.02).has_failed());
    }
    // The error is 2.3 points at four to five deviations of 0.5.
    assert_eq!(found, 50);
}

proptest! {
    #[test]
    fn any_counts_give_ordered_intervals(
        before in proptest::collection::vec(0_i64..1 << 50, 1..6),
        after in proptest::collection::vec(0_i64..1 << 50, 1..6),
        same_work in any::<bool>(),
        correlation in 1_u64..10_000,
    ) {
        let names = ["a", "a b", "a b c", "d", "d a", "e"];
        let build = |counts: &[i64]| {
            let stacks: Vec<(&str, i64)> = names.into_iter().zip(counts.iter().copied()).collect();
            profile(&stacks, "/a", 3)
        };
        let basis = if same_work { Basis::SameWork } else { Basis::Shares };
        let diff = compared(&build(&before), &build(&after), basis, Duration::from_millis(correlation));
        for row in &diff.rows {
            for change in [row.own.change, row.total.change] {
                prop_assert!(change.low <= change.value && change.value <= change.high, "{:?}", change);
                prop_assert!(change.value.is_finite() && !change.low.is_nan() && !change.high.is_nan());
            }
        }
        let _ = diff.verdict(0.05);
    }
}
