//! Views over small profiles whose figures are added up by hand.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::profile::aggregate::{
    Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
};
use crate::profile::model::{FrameKind, ValueType};

/// 10 ms a sample.
const PERIOD_NS: i64 = 10_000_000;

fn frame(name: &str) -> ResolvedFrame {
    let (file, line) = match name {
        "dispatch" | "call" => ("/usr/lib/python3/dist-packages/web/app.py", 40),
        _ => ("/srv/app.py", 7),
    };
    let function = match name {
        "deflate" => ResolvedFunction {
            kind: FrameKind::Native,
            filename: "libz.so.1".into(),
            mapping: "/usr/lib/libz.so.1".into(),
            ..ResolvedFunction::python(name, "", 0)
        },
        _ => ResolvedFunction::python(name, file, line),
    };
    ResolvedFrame {
        function: Arc::new(function),
        line,
        address: 0,
    }
}

/// Stacks from their roots on, with the thread and the number of samples.
fn profile(rows: &[(&str, u32, i64)]) -> Profile {
    let mut aggregator =
        Aggregator::new(SystemTime::UNIX_EPOCH, &ValueType::CPU_SAMPLES, PERIOD_NS);
    for (stack, tid, count) in rows {
        aggregator.add(&ResolvedSample {
            frames: stack.split(' ').rev().map(frame).collect(),
            labels: Arc::new(ThreadLabels {
                process: Arc::new(ProcessLabels {
                    comm: "python3".into(),
                    ..ProcessLabels::of_pid(5)
                }),
                tid: *tid,
                started_ns: 0,
                thread_name: format!("worker {tid}").into(),
            }),
            instruction: None,
            values: [*count, *count * PERIOD_NS].into(),
        });
    }
    aggregator.finish(
        Duration::from_secs(10),
        vec!["3 samples lost: the ring was full".into()],
    )
}

/// 1,000 samples: 10 s.
fn web() -> Profile {
    profile(&[
        ("main dispatch call view render", 5, 500),
        ("main dispatch call view query", 5, 250),
        ("main dispatch call view query deflate", 6, 50),
        ("main dispatch call view", 6, 100),
        ("main fib fib fib", 6, 90),
        ("main", 6, 10),
    ])
}

fn shown(view: &str, profile: &Profile, change: impl FnOnce(&mut Question<'_>)) -> String {
    let folding = Folding::default();
    let sources = Sources::new();
    let mut question = Question {
        profile,
        measure: Measure::main(profile),
        sort: SortKey::Own,
        top: None,
        restrictions: &[],
        labels: &["tid", "thread_name"],
        folding: &folding,
        sources: &sources,
        style: Style::default(),
    };
    change(&mut question);
    View::named(view).unwrap().text(&question)
}

#[test]
fn functions_have_their_own_time_and_that_of_what_they_call() {
    let profile = web().without_native();
    assert_eq!(
        shown("functions", &profile, |_| {}),
        "1,000 samples of 1 process in 10 s: 10.000 s of CPU time\n\
         time on the CPU; waiting is not in it\n\
         \n\
         \x20 samples     tottime       %     cumtime       %  function\n\
         \x20     500       5.000   50.0%       5.000   50.0%  render  /srv/app.py:7\n\
         \x20     300       3.000   30.0%       3.000   30.0%  query  /srv/app.py:7\n\
         \x20     900       1.000   10.0%       9.000   90.0%  view  /srv/app.py:7\n\
         \x20      90       0.900    9.0%       0.900    9.0%  fib  /srv/app.py:7\n\
         \x20   1,000       0.100    1.0%      10.000  100.0%  main  /srv/app.py:7\n\
         \x20     900       0.000    0.0%       9.000   90.0%  call  web/app.py:40\n\
         \x20     900       0.000    0.0%       9.000   90.0%  dispatch  web/app.py:40\n\
         \n\
         not in the profile, or not complete:\n\
         \x20 3 samples lost: the ring was full\n"
    );
}

#[test]
fn with_native_frames_machine_code_has_its_own_time() {
    let text = shown("functions", &web(), |_| {});
    assert!(
        text.contains("       2.500   25.0%       3.000   30.0%  query"),
        "{text}"
    );
    assert!(
        text.contains("       0.500    5.0%       0.500    5.0%  deflate  libz.so.1\n"),
        "{text}"
    );
}

#[test]
fn functions_are_restricted_one_restriction_after_the_other() {
    let profile = web().without_native();
    let names = |sort: &str, restrictions: &[&str], top| {
        let restrictions: Vec<Restriction> =
            restrictions.iter().map(|it| it.parse().unwrap()).collect();
        let text = shown("functions", &profile, |question| {
            // The borrow ends with the question.
            question.restrictions = restrictions.leak();
            question.sort = sort.parse().unwrap();
            question.top = top;
        });
        let lines = text.lines().filter(|line| line.contains("app.py"));
        let name = |line: &str| line.split_whitespace().nth(5).unwrap().to_owned();
        lines.map(name).collect::<Vec<_>>()
    };
    assert_eq!(names("tottime", &["2"], None), ["render", "query"]);
    assert_eq!(names("cumtime", &[], Some(2)), ["main", "view"]);
    assert_eq!(names("tottime", &["web/"], None), ["call", "dispatch"]);
    // Of seven the half is four, of those one matches.
    assert_eq!(names("tottime", &["0.5", "fib"], None), ["fib"]);
    assert_eq!(names("name", &["3"], None), ["call", "dispatch", "fib"]);
    assert_eq!(names("samples", &["1"], None), ["main"]);
    for wrong in ["1.5", "("] {
        assert!(wrong.parse::<Restriction>().is_err(), "{wrong}");
    }
    assert!("calls per second".parse::<SortKey>().is_err());
}

#[test]
fn callers_and_callees_are_the_two_ends_of_calls() {
    let profile = web().without_native();
    let fib: Vec<Restriction> = vec!["fib".parse().unwrap()];
    let callers = shown("callers", &profile, |question| {
        question.restrictions = fib.clone().leak();
    });
    let (_, table) = callers.split_once("\n\n").unwrap();
    assert!(
        table.starts_with(
            "     tottime     cumtime       %\n\
             fib  /srv/app.py:7 was called by\n\
             \x20      0.000       0.900  100.0%    main  /srv/app.py:7\n\
             \x20      0.900       0.900  100.0%    fib  /srv/app.py:7\n"
        ),
        "{table}"
    );
    let view: Vec<Restriction> = vec!["view".parse().unwrap()];
    let called = shown("callees", &profile, |question| {
        question.restrictions = view.leak();
    });
    assert!(
        called.contains(
            "view  /srv/app.py:7 called\n\
             \x20      5.000       5.000   55.6%    render  /srv/app.py:7\n\
             \x20      3.000       3.000   33.3%    query  /srv/app.py:7\n"
        ),
        "{called}"
    );
}

#[test]
fn the_tree_folds_what_libraries_do_in_between() {
    let profile = web().without_native();
    let tree = shown("tree", &profile, |_| {});
    let (_, lines) = tree.split_once("\n\n").unwrap();
    assert!(
        lines.starts_with(
            "10.000 s  100.0%  main  /srv/app.py:7  (self 1.0%)\n\
             |- 9.000 s  90.0%  [2 frames] view  /srv/app.py:7  (self 10.0%)\n\
             |  |- 5.000 s  50.0%  render  /srv/app.py:7\n\
             |  `- 3.000 s  30.0%  query  /srv/app.py:7\n\
             `- 0.900 s  9.0%  fib × 3  /srv/app.py:7\n"
        ),
        "{lines}"
    );
    let folding = Folding {
        shows_all: true,
        ..Folding::default()
    };
    let folding: &'static Folding = Box::leak(Box::new(folding));
    let all = shown("tree", &profile, |question| question.folding = folding);
    assert!(
        all.contains("|- 9.000 s  90.0%  dispatch  web/app.py:40\n"),
        "{all}"
    );
}

#[test]
fn what_folded_frames_take_by_themselves_is_said() {
    let profile = profile(&[
        ("main dispatch call view", 5, 900),
        ("main dispatch call", 5, 50),
        ("main dispatch", 5, 47),
        ("main dispatch other", 5, 3),
    ]);
    let tree = shown("tree", &profile, |_| {});
    let (_, lines) = tree.split_once("\n\n").unwrap();
    assert!(
        lines.starts_with(
            "10.000 s  100.0%  main  /srv/app.py:7\n\
             `- 9.000 s  90.0%  [2 frames, self 9.7%] view  /srv/app.py:7\n\
             not shown: 1 branch of less than 0.5 %, together 0.3% (--show-all shows all)\n"
        ),
        "{lines}"
    );
}

#[test]
fn a_recursion_is_one_row_and_with_all_shown_a_row_each() {
    let deep = format!("main {}leaf", "fib ".repeat(900));
    let profile = profile(&[(&deep, 5, 100), ("main fib fib leaf", 5, 100)]);
    let tree = shown("tree", &profile, |_| {});
    let expected = "2.000 s  100.0%  main  /srv/app.py:7\n\
                    `- 2.000 s  100.0%  fib × 900  /srv/app.py:7\n\
                    \x20  `- 2.000 s  100.0%  leaf  /srv/app.py:7\n";
    assert!(tree.contains(expected), "{tree}");
    let all = shown("tree", &profile, |question| {
        question.folding = all_shown();
    });
    assert_eq!(all.matches("  fib  /srv").count(), 900);
    assert!(all.contains("(level 901) 1.000 s  50.0%  leaf"), "{all}");
    let widest = all.lines().map(|line| line.chars().count()).max();
    // 40 levels of three columns, and a row.
    assert!(widest < Some(120 + 60), "{widest:?}");
}

#[test]
fn a_stack_of_any_depth_is_shown() {
    let names: Vec<String> = (0..30_000).map(|idx| format!("f{}", idx % 2)).collect();
    let profile = profile(&[(&names.join(" "), 5, 1)]);
    let tree = shown("tree", &profile, |_| {});
    assert!(tree.contains("(level 29999) "), "the last row is missing");
}

#[test]
fn a_tree_that_is_cut_says_so() {
    let profile = web().without_native();
    let two = shown("tree", &profile, |question| question.top = Some(2));
    assert!(
        two.contains(
            "view  /srv/app.py:7  (self 10.0%)\n2 of 5 rows; --top N shows more\n\
             not shown: what the other rows take by themselves, 89.0%\n"
        ),
        "{two}"
    );
    let restricted = |texts: &[&str]| {
        let restrictions: Vec<Restriction> = texts.iter().map(|it| it.parse().unwrap()).collect();
        shown("tree", &profile, |question| {
            question.restrictions = restrictions.leak();
        })
    };
    assert_eq!(restricted(&["2"]), two);
    assert_eq!(restricted(&["0.4"]), two);
    let queries = restricted(&["query"]);
    assert!(
        queries.contains(
            "3.000 s  30.0%  main  /srv/app.py:7\n\
             `- 3.000 s  30.0%  [2 frames] view  /srv/app.py:7\n\
             \x20  `- 3.000 s  30.0%  query  /srv/app.py:7\n\
             not shown: stacks without what was asked for, 70.0%\n"
        ),
        "{queries}"
    );
}

fn all_shown() -> &'static Folding {
    Box::leak(Box::new(Folding {
        shows_all: true,
        ..Folding::default()
    }))
}

/// The number before the `%` behind a mark.
fn percent_behind(text: &str, mark: &str) -> Option<f64> {
    let (_, behind) = text.split_once(mark)?;
    let (number, _) = behind.split_once('%')?;
    Some(number.trim().parse().unwrap())
}

/// What the rows of a tree and its last sentences say, in % of the whole; and how many numbers that are.
fn sum_of_tree(tree: &str) -> (f64, usize) {
    let (_, rows) = tree.split_once("\n\n").unwrap();
    let (rows, _) = rows.split_once("\nnot in the profile").unwrap();
    let depth = |row: &str| match percent_level(row) {
        Some(level) => level,
        None => row.find(|char: char| char.is_ascii_digit()).unwrap() / 3,
    };
    let lines: Vec<&str> = rows.lines().collect();
    let is_row = |line: &str| !line.starts_with("not shown") && !line.contains("--top N");
    let (mut sum, mut n_numbers) = (0.0, 0);
    let mut add = |number: Option<f64>| {
        sum += number.unwrap_or(0.0);
        n_numbers += 1;
    };
    for (idx, line) in lines.iter().enumerate() {
        if !is_row(line) {
            add(percent_behind(line, "together ").or_else(|| percent_behind(line, ", ")));
            continue;
        }
        add(percent_behind(line, ", self "));
        let below = lines.get(idx + 1).filter(|next| is_row(next));
        let has_children = below.is_some_and(|next| depth(next) > depth(line));
        add(match percent_behind(line, "(self ") {
            None if !has_children => percent_behind(line, " s  "),
            own => own,
        });
    }
    (sum, n_numbers)
}

fn percent_level(row: &str) -> Option<usize> {
    let (_, behind) = row.split_once("(level ")?;
    let (level, _) = behind.split_once(')')?;
    Some(level.parse().unwrap())
}

/// Stacks over some functions of the program and of libraries, how often each.
fn stacks() -> impl Strategy<Value = Vec<(Vec<usize>, i64)>> {
    let stack = proptest::collection::vec(0..6_usize, 1..60);
    let count = prop_oneof![1..10_i64, 1..1000_i64];
    proptest::collection::vec((stack, count), 1..25)
}

fn of_stacks(stacks: &[(Vec<usize>, i64)]) -> Profile {
    let names = ["dispatch", "call", "view", "render", "fib", "main"];
    let texts: Vec<String> = stacks
        .iter()
        .map(|(stack, _)| {
            stack
                .iter()
                .map(|idx| names[*idx])
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    let rows: Vec<(&str, u32, i64)> = texts
        .iter()
        .zip(stacks)
        .map(|(text, (_, count))| (text.as_str(), 5, *count))
        .collect();
    profile(&rows)
}

proptest! {
    /// Each number is rounded to 0.1: off by 0.05 at most.
    #[test]
    fn what_a_tree_shows_adds_up_to_the_whole(stacks in stacks(), top in proptest::option::of(0..40_usize), all: bool) {
        let profile = of_stacks(&stacks);
        let tree = shown("tree", &profile, |question| {
            if all {
                question.folding = all_shown();
            } else {
                question.top = top;
            }
        });
        if top == Some(0) && !all {
            return Ok(());
        }
        let (sum, n_numbers) = sum_of_tree(&tree);
        let error = 0.05 * n_numbers as f64 + 1e-6;
        prop_assert!((sum - 100.0).abs() <= error, "{} with an error up to {}:\n{}", sum, error, tree);
    }
}

/// Columns of the widest line, without sequences of colours.
fn widest(text: &str) -> usize {
    let color = regex::Regex::new("\x1b\\[[0-9]*m").unwrap();
    let plain = color.replace_all(text, "").into_owned();
    let widths = plain.lines().map(unicode_width::UnicodeWidthStr::width);
    widths.max().unwrap_or(0)
}

/// Of deep stacks with names of any length, in any script.
fn wide(names: &[String], file: &str, weight: i64) -> Profile {
    let mut aggregator =
        Aggregator::new(SystemTime::UNIX_EPOCH, &ValueType::CPU_SAMPLES, PERIOD_NS);
    for n_frames in 1..=names.len() {
        let frames = names[..n_frames].iter().rev().map(|name| ResolvedFrame {
            function: Arc::new(ResolvedFunction::python(name, file, 123)),
            line: 123_456,
            address: 0,
        });
        aggregator.add(&ResolvedSample {
            frames: frames.collect(),
            labels: Arc::new(ThreadLabels {
                process: Arc::new(ProcessLabels {
                    comm: names[0].as_str().into(),
                    ..ProcessLabels::of_pid(1_234_567)
                }),
                tid: 1_234_567 + n_frames as u32,
                started_ns: 0,
                thread_name: names[n_frames - 1].as_str().into(),
            }),
            instruction: None,
            values: [weight, weight * PERIOD_NS].into(),
        });
    }
    let remark = format!("{} samples lost of {file}", names.join(" "));
    aggregator.finish(Duration::from_secs(10), vec![remark])
}

proptest! {
    #[test]
    fn no_row_is_wider_than_the_terminal(
        width in 60..200_usize,
        names in proptest::collection::vec("\\PC{1,80}|[a-z_.]{1,200}|[日本語👩‍💻é\u{fe0f}☺a]{1,60}", 1..30),
        file in "/[a-z/]{0,150}\\.py|\\PC{0,60}",
        weight in prop_oneof![1..100_i64, 1..1_000_000_000_i64],
        has_colors: bool,
    ) {
        let profile = wide(&names, &file, weight);
        let before = of_stacks(&[(vec![5, 2], 7)]);
        let sources: Sources = [(file.clone(), Ok(Source {
            lines: vec![names.join(" = "); 200_000.min(names.len() * 100)],
            is_newer: true,
        }))].into();
        let style = Style { width: Some(width), has_colors, ..Style::default() };
        for view in VIEWS {
            for shows_all in [false, true] {
                let text = shown(view.name, &profile, |question| {
                    question.style = style;
                    question.labels = &["pid", "comm", "tid", "thread_name"];
                    question.sources = Box::leak(Box::new(Sources::new()));
                    if shows_all {
                        question.folding = all_shown();
                    }
                });
                prop_assert!(widest(&text) <= width, "{}: {} of {}\n{}", view.name, widest(&text), width, text);
            }
        }
        let lines = shown_with("lines", &profile, &sources, style);
        prop_assert!(widest(&lines) <= width, "{} of {}\n{}", widest(&lines), width, lines);
        for by_total in [false, true] {
            let text = compared(&before, &profile, style, by_total);
            prop_assert!(widest(&text) <= width, "{} of {}\n{}", widest(&text), width, text);
        }
    }
}

fn shown_with(view: &str, profile: &Profile, sources: &Sources, style: Style) -> String {
    let folding = Folding::default();
    let question = Question {
        profile,
        measure: Measure::main(profile),
        sort: SortKey::Own,
        top: None,
        restrictions: &[],
        labels: &[],
        folding: &folding,
        sources,
        style,
    };
    View::named(view).unwrap().text(&question)
}

fn compared(before: &Profile, after: &Profile, style: Style, by_total: bool) -> String {
    use crate::profile::diff::{Basis, Diff, Grain};

    let measures = [before, after].map(Measure::main);
    let diff = Diff::new(
        [before, after],
        measures,
        Grain::Functions,
        Basis::Shares,
        Duration::from_secs(1),
    );
    let verdict = diff.verdict(0.0);
    diff::text(&diff::DiffQuestion {
        profiles: [before, after],
        measures,
        diff: &diff,
        grain: Grain::Functions,
        by_total,
        top: None,
        restrictions: &[],
        verdict: Some((0.0, verdict)),
        style,
    })
}

#[test]
fn a_narrow_terminal_still_shows_names() {
    let profile = web().without_native();
    for (width, expected) in [(60, "query  /srv/app.py:7"), (80, "query  /srv/app.py:7")] {
        let style = Style {
            width: Some(width),
            ..Style::default()
        };
        let text = shown("functions", &profile, |question| question.style = style);
        assert!(text.contains(expected), "{text}");
        let text = compared(&profile, &profile, style, false);
        assert!(text.contains(expected), "{text}");
        assert!(
            text.ends_with("samples lost: the ring was full\n")
                && text.contains("\ncumtime: in 110 columns, or with --sort cumtime\n"),
            "{text}"
        );
    }
}

#[test]
fn a_source_that_cannot_be_what_ran_is_said_to_be_another() {
    let profile = web().without_native();
    let source = |line: &str, n_lines| {
        let mut lines = vec![String::new(); n_lines];
        lines[n_lines.min(7) - 1] = line.to_owned();
        let source = Source {
            lines,
            is_newer: false,
        };
        [("/srv/app.py".to_owned(), Ok(source))].into()
    };
    let restriction: Vec<Restriction> = vec!["render".parse().unwrap()];
    let text = |sources: &Sources| {
        shown("lines", &profile, |question| {
            question.restrictions = restriction.clone().leak();
            question.sources = Box::leak(Box::new(Sources::new()));
            let sources = sources.iter().map(|(name, source)| {
                let source = source.as_ref().unwrap();
                let source = Source {
                    lines: source.lines.clone(),
                    is_newer: source.is_newer,
                };
                (name.clone(), Ok(source))
            });
            question.sources = Box::leak(Box::new(sources.collect::<Sources>()));
        })
    };
    let same = text(&source("def render(view):", 9));
    assert!(!same.contains("another one by now"), "{same}");
    let moved = text(&source("def query(view):", 9));
    assert!(
        moved.contains(
            "(50.0%)\n    the source is another one by now: line 7 does not begin render: /srv/app.py\n    line "
        ),
        "{moved}"
    );
    let short = text(&source("", 3));
    assert!(
        short.contains("another one by now: it ends at line 3, and line 7 was sampled"),
        "{short}"
    );
}

#[test]
fn rows_of_labels_are_restricted_by_what_they_show() {
    let profile = web().without_native();
    let rows = |texts: &[&str]| {
        let restrictions: Vec<Restriction> = texts.iter().map(|it| it.parse().unwrap()).collect();
        shown("by", &profile, |question| {
            question.restrictions = restrictions.leak();
        })
    };
    for (texts, expected) in [
        (&["1"][..], 1),
        (&["0.5"], 1),
        (&["^6 worker"], 1),
        (&["worker"], 2),
    ] {
        let text = rows(texts);
        assert_eq!(
            text.matches("    worker ").count(),
            expected,
            "{texts:?}: {text}"
        );
        assert_eq!(text.contains("1 of 2 rows"), expected == 1, "{text}");
    }
}

#[test]
fn a_thread_is_one_whatever_it_was_called() {
    let mut aggregator =
        Aggregator::new(SystemTime::UNIX_EPOCH, &ValueType::CPU_SAMPLES, PERIOD_NS);
    for (name, count) in [("python3", 10), ("MainThread", 20), ("python3", 5), ("", 5)] {
        aggregator.add(&ResolvedSample {
            frames: vec![frame("main")],
            labels: Arc::new(ThreadLabels {
                process: Arc::new(ProcessLabels {
                    comm: "python3".into(),
                    ..ProcessLabels::of_pid(5)
                }),
                tid: 5,
                started_ns: 0,
                thread_name: name.into(),
            }),
            instruction: None,
            values: [count, count * PERIOD_NS].into(),
        });
    }
    let profile = aggregator.finish(Duration::from_secs(1), Vec::new());
    let text = shown("by", &profile, |_| {});
    assert!(text.contains("100.0%  5    MainThread\n"), "{text}");
    assert_eq!(text.matches('%').count(), 2, "{text}");
}

#[test]
fn labels_tell_whose_it_is() {
    let profile = web().without_native();
    let text = shown("by", &profile, |_| {});
    assert!(
        text.contains(
            "  samples             cpu       %  tid  thread_name\n\
             \x20     750           7.500   75.0%  5    worker 5\n\
             \x20     250           2.500   25.0%  6    worker 6\n"
        ),
        "{text}"
    );
    let text = shown("by", &profile, |question| question.labels = &["nosuch"]);
    assert!(
        text.contains("no sample has such a label; there are comm, pid, "),
        "{text}"
    );
}

#[test]
fn programs_read_the_same_figures() {
    let profile = web().without_native();
    let folding = Folding::default();
    let sources = Sources::new();
    let question = Question {
        profile: &profile,
        measure: Measure::main(&profile),
        sort: SortKey::Own,
        top: None,
        restrictions: &[],
        labels: &["tid"],
        folding: &folding,
        sources: &sources,
        style: Style::default(),
    };
    for view in VIEWS {
        let document = view.json(&question);
        assert_eq!(document["total"], 10_000_000_000_i64);
        assert_eq!(
            (&document["unit"], &document["samples"]),
            (&"nanoseconds".into(), &1000.into())
        );
        assert!(
            document[view.name]
                .as_array()
                .is_some_and(|rows| !rows.is_empty()),
            "{}",
            view.name
        );
    }
    let functions = View::named("functions").unwrap().json(&question);
    assert_eq!(functions["functions"][0]["function"], "render");
    assert_eq!(functions["functions"][2]["total"], 9_000_000_000_i64);
    let tree = View::named("tree").unwrap().json(&question);
    let own: i64 = tree["tree"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["self"].as_i64().unwrap())
        .sum();
    assert_eq!(own, 10_000_000_000);
}

#[test]
fn an_empty_profile_is_said_to_be_empty() {
    let text = shown("functions", &profile(&[]), |_| {});
    assert!(
        text.starts_with("0 samples of 0 processes in 10 s: 0.000 s of CPU time\n"),
        "{text}"
    );
    assert!(!text.contains("tottime"));
}
