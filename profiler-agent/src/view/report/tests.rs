//! Views over small profiles whose figures are added up by hand.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

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
                thread_name: format!("worker {tid}").into(),
            }),
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
    let sources = BTreeMap::new();
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
             `- 0.900 s  9.0%  fib  /srv/app.py:7\n"
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
        text.contains("no sample has such a label; there are: comm, pid, "),
        "{text}"
    );
}

#[test]
fn programs_read_the_same_figures() {
    let profile = web().without_native();
    let folding = Folding::default();
    let sources = BTreeMap::new();
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
