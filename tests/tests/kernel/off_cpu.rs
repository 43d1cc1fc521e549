//! Time off the CPU, beside what the programs' own clocks and the kernel say of it. Root.

use std::collections::BTreeMap;
use std::process::Command;

use profiler_agent::profile::model::{FrameKind, Profile, ProfileType, label};
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::recorder::{Recorder, of_pids};
use pyagent_tests::target::Target;
use serde_json::Value;

/// See its own text.
const WAITS: &str = include_str!("../../workloads/waits.py");

/// Seconds of each of its two parts.
const SECONDS: f64 = 3.0;

/// What each of its functions waits for.
const REASONS: &[(&str, &str)] = &[
    ("wait_sleep", "sleep"),
    ("wait_short", "sleep"),
    ("wait_lock", "lock"),
    ("wait_pipe", "pipe"),
    ("wait_socket", "socket"),
    ("wait_select", "poll"),
    ("wait_child", "child"),
    ("wait_gil", "gil"),
];

/// A sample of a wait.
struct Waited {
    tid: i64,
    /// The function whose name begins with `wait_`, and its line.
    place: Option<(String, u32)>,
    reason: String,
    state: String,
    gil: Option<String>,
    n_samples: i64,
    ns: i64,
}

fn waits(profile: &Profile) -> Vec<Waited> {
    let text = |labels, name| profile.label(labels, name).map(str::to_owned);
    let of = |sample: &profiler_agent::profile::model::Sample| Waited {
        tid: profile.thread(sample.labels).tid,
        place: profile
            .frames(sample.stack)
            .find(|it| it.kind == FrameKind::Python && it.name.starts_with("wait_"))
            .map(|it| (it.name.to_owned(), it.line)),
        reason: text(sample.labels, label::WAIT).expect("each wait has a reason"),
        state: text(sample.labels, label::THREAD_STATE).expect("each wait has a state"),
        gil: text(sample.labels, label::GIL),
        n_samples: sample.values[0],
        ns: sample.values[1],
    };
    profile.samples.iter().map(of).collect()
}

/// The line of a function of the program that waits.
fn waiting_line(function: &str) -> u32 {
    let head = format!("def {function}():");
    let mut lines = WAITS.lines().zip(1_u32..);
    lines.find(|(line, _)| *line == head).unwrap();
    lines.find(|(line, _)| line.ends_with("# waits")).unwrap().1
}

fn sum(waits: &[Waited], is_meant: impl Fn(&Waited) -> bool) -> f64 {
    let meant = waits.iter().filter(|it| is_meant(it));
    meant.map(|it| it.ns as f64).sum()
}

fn run(python: &Interpreter) -> (Vec<Waited>, Value) {
    let mut target = Target::start(
        Command::new(&python.path)
            .args(["-I", "-S", "-B", "-c", WAITS])
            .arg(SECONDS.to_string()),
    );
    assert_eq!(target.line(), "ready");
    let mut config = of_pids(&[target.pid()], 99);
    config.types = vec![ProfileType::OffCpu];
    let recorder = Recorder::start(&config);
    target.tell("go");
    let said: Value = serde_json::from_str(&target.line()).unwrap();
    recorder.settle();
    assert_eq!(recorder.counter("off_cpu_lost_nanoseconds"), 0);
    assert_eq!(recorder.counter("off_cpu_not_followed"), 0);
    let profile = recorder.stop();
    assert_eq!(profile.sample_types, ProfileType::OffCpu.sample_types());
    (waits(&profile), said)
}

/// Whether the GIL's lock can be told from others: musl waits for a condition on the thread's stack.
fn has_known_gil(python: &Interpreter) -> bool {
    python.minor() >= (3, 8) && !python.free_threaded && !python.is_on_musl()
}

#[test]
fn waits_are_as_long_as_the_program_and_the_kernel_say() {
    let pythons = interpreters::supported();
    let mut pythons = pythons
        .iter()
        .filter(|it| it.minor() >= (3, 8) && it.has_libraries() && has_known_gil(it));
    let (first, last) = (pythons.next().unwrap(), pythons.next_back().unwrap());
    for python in [first, last] {
        let (waits, said) = run(python);
        check_functions(python, &waits, &said["waited"]);
        check_threads(python, &waits, &said["threads"]);
    }
}

fn check_functions(python: &Interpreter, waits: &[Waited], said: &Value) {
    for (function, reason) in REASONS {
        let line = waiting_line(function);
        let here = |it: &Waited| it.place.as_ref().is_some_and(|(name, _)| name == function);
        let on_line = |it: &Waited| it.place.as_ref().is_some_and(|(_, at)| *at == line);
        let said = said[function].as_f64().unwrap();
        let found = sum(waits, |it| here(it) && on_line(it));
        let as_expected = sum(waits, |it| here(it) && on_line(it) && it.reason == *reason);
        let no_cpu = sum(waits, |it| here(it) && on_line(it) && it.reason == "cpu");
        let n_samples: i64 = waits
            .iter()
            .filter(|it| here(it))
            .map(|it| it.n_samples)
            .sum();
        eprintln!(
            "{:?} {function}: {:.1} ms by its clock, {:.1} ms found ({:+.2} %), {:.1} % for {reason}, {n_samples} samples",
            python.version,
            said / 1e6,
            found / 1e6,
            (found / said - 1.0) * 100.0,
            as_expected / found * 100.0
        );
        // Of waits below the threshold one of several is taken: three standard deviations of their number.
        let chance = if *function == "wait_short" {
            3.0 / (n_samples as f64).sqrt()
        } else {
            0.0
        };
        assert!(
            (found / said - 1.0).abs() < 0.02 + chance,
            "{function}: {found} of {said}"
        );
        // How long a thread waits for a CPU is the host's business.
        assert!(as_expected + no_cpu > 0.97 * found, "{function}");
        assert!(as_expected > 0.25 * found, "{function}");
    }
    let gil = |it: &&Waited| it.reason == "gil";
    assert!(waits.iter().filter(gil).all(|it| it.state == "gil"));
    let is_waiting = |it: &Waited| it.gil.as_deref() == Some("waiting");
    assert!(waits.iter().filter(gil).all(is_waiting));
    let no_cpu = |it: &&Waited| it.reason == "cpu";
    assert!(waits.iter().filter(no_cpu).all(|it| it.state == "runnable"));
    // Who sleeps has given the lock away.
    let sleeps = waits.iter().filter(|it| it.reason == "sleep");
    assert!(sleeps.clone().count() > 0);
    let mut sleeps = sleeps.filter(|it| it.gil.is_some());
    assert!(sleeps.all(|it| it.gil.as_deref() == Some("released")));
}

fn check_threads(python: &Interpreter, waits: &[Waited], said: &Value) {
    let mut by_thread: BTreeMap<i64, f64> = BTreeMap::new();
    for wait in waits {
        *by_thread.entry(wait.tid).or_default() += wait.ns as f64;
    }
    for (tid, thread) in said.as_object().unwrap() {
        let name = thread[0].as_str().unwrap();
        let (passed, ran) = (thread[1].as_f64().unwrap(), thread[2].as_f64().unwrap());
        let found = by_thread.get(&tid.parse().unwrap()).copied().unwrap_or(0.0);
        eprintln!(
            "{:?} thread {name}: {:.1} ms of {:.1} ms off the CPU by schedstat, {:.1} ms found",
            python.version,
            (passed - ran) / 1e6,
            passed / 1e6,
            found / 1e6
        );
        let chance = if name == "wait_short" { 0.08 } else { 0.0 };
        let wrong = (found - (passed - ran)).abs();
        assert!(
            wrong < (0.02 + chance) * passed,
            "{name}: {found}, {thread}"
        );
    }
}
