//! The table of workloads, and the properties that every recording must have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use pyagent_tests::interpreters::{self, Interpreter};

use super::legal::{Frame, Wrong};
use super::recording::{Recorded, Sampled, Stack, record};
use super::workload::Workload;

/// The same processes from the first sample to the last.
const fn steady(name: &'static str, cpu_seconds: f64) -> Workload {
    Workload {
        name,
        cpu_seconds,
        has_young_processes: false,
    }
}

/// Ends by the number of its passes.
const fn with_children(name: &'static str) -> Workload {
    Workload {
        name,
        cpu_seconds: 60.0,
        has_young_processes: true,
    }
}

/// What is sampled at the same time, after the first of each alone. Processes that come and go have a recording
/// of their own: on a host whose CPUs are all taken for seconds, the agent would look at them when they have gone.
const WORKLOADS: [&[Workload]; 2] = [
    &[
        steady("shares", 1.5),
        steady("recursion", 1.0),
        steady("generators", 1.0),
        steady("closures", 1.0),
        steady("classes", 1.0),
        steady("ordinary", 2.0),
        steady("switches", 2.0),
        steady("c_code", 1.0),
        steady("threads", 2.0),
        steady("thread_churn", 1.0),
        steady("names", 1.0),
        steady("dying", 1.0),
    ],
    &[
        steady("shares", 0.2),
        with_children("fork"),
        with_children("spawn"),
        with_children("tree"),
        steady("exec_before", 0.3),
    ],
];

/// CPU time of a further build of a version, against that of the first.
const FURTHER_SHARE: f64 = 0.6;

/// Share of the kernel's CPU time by which samples may miss it.
const MAX_GAP: f64 = 0.02;

/// CPU time of a process behind its last sample: the kernel takes its memory down when it has told the agent.
const EXIT_SECONDS: f64 = 0.0025;

/// Share of samples whose stack may be incomplete.
const MAX_INCOMPLETE: f64 = 0.001;

/// Findings of a kind that are printed.
const MAX_SHOWN: usize = 10;

/// Standard deviations that a bound allows: over all checks of a run one is exceeded by chance once in a
/// thousand runs.
const SIGMAS: f64 = 5.0;

/// Every interpreter that the project supports, recorded when the first test asks. `LIVE_PYTHON` names a part
/// of the path of the only one to take.
pub(crate) static RECORDED: LazyLock<Vec<Recorded>> = LazyLock::new(|| {
    let only = std::env::var("LIVE_PYTHON").unwrap_or_default();
    let found = interpreters::supported();
    // One becomes the next one; that must be in its own root.
    let mut by_root: BTreeMap<PathBuf, Vec<Interpreter>> = BTreeMap::new();
    for python in found {
        by_root.entry(python.root()).or_default().push(python);
    }
    let pairs = by_root
        .values()
        .flat_map(|group| group.iter().zip(group.iter().cycle().skip(1)))
        .filter(|(python, _)| python.path.to_string_lossy().contains(&only));
    let mut seen = BTreeSet::new();
    let mut recorded = Vec::new();
    for (python, next) in pairs {
        let is_usual = !python.free_threaded && !python.is_debug();
        // Of further builds of a version: not those that begin and end, which take the longest.
        let n_groups = if is_usual && seen.insert(python.minor()) {
            WORKLOADS.len()
        } else {
            1
        };
        for workloads in &WORKLOADS[..n_groups] {
            let mut workloads = workloads.to_vec();
            if n_groups == 1 {
                workloads
                    .iter_mut()
                    .for_each(|workload| workload.cpu_seconds *= FURTHER_SHARE);
            }
            recorded.push(record(&workloads, python, next));
        }
    }
    assert!(
        !recorded.is_empty(),
        "no CPython to run: `cargo xtask interpreters` gets some; LIVE_PYTHON={only:?}"
    );
    recorded.iter().for_each(show);
    write_matrix(&recorded);
    recorded
});

/// A table for the README: what was seen of each interpreter.
fn write_matrix(recorded: &[Recorded]) {
    let mut table =
        "| CPython | build | samples | lines | stacks | whole | thread names | GIL state |\n\
                     |---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for recorded in recorded
        .iter()
        .filter(|recorded| recorded.sampled.len() > 5)
    {
        let (major, minor, micro) = recorded.interpreter.version;
        let steady = || {
            recorded
                .sampled
                .iter()
                .filter(|sampled| !matches!(sampled.workload.name, "dying" | "exec_before"))
        };
        let sum = |of: &dyn Fn(&Sampled) -> u64| steady().map(of).sum::<u64>();
        let n_samples = sum(&Sampled::n_samples);
        let n_lines = sum(&|sampled| {
            let frames = |stack: &Stack| stack.frames.len() as u64 * stack.n_samples;
            sampled.stacks.iter().map(frames).sum()
        });
        let count_wrong = |is_so: fn(&Wrong) -> bool| {
            sum(&|sampled| {
                sampled.count(|stack| judge(sampled, stack).is_some_and(|wrong| is_so(&wrong)))
            })
        };
        let n_wrong = count_wrong(|_| true);
        let n_wrong_lines =
            count_wrong(|wrong| matches!(wrong, Wrong::Line(_) | Wrong::Call { .. }));
        let is_incomplete = |stack: &Stack| {
            !stack.remarks.is_empty() && !is_outside_python(stack) && !is_in_namedtuple(stack)
        };
        let n_incomplete = sum(&|sampled| sampled.count(is_incomplete));
        let whole = 100.0 * (1.0 - n_incomplete as f64 / n_samples as f64);
        let gil = if recorded.knows_gil {
            "known"
        } else {
            "not known"
        };
        let (n_named, n_threads) = thread_names(recorded);
        writeln!(
            table,
            "| {major}.{minor}.{micro} | {} | {n_samples} | {n_wrong_lines} of {n_lines} wrong | {n_wrong} wrong \
             | {whole:.2} % | {n_named} of {n_threads} | {gil} |",
            recorded.interpreter.build
        )
        .expect("writing to a String does not fail");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/interpreters.md");
    std::fs::write(path, table).expect("the target folder is there");
}

/// How many of the threads that say their names were sampled under them, and how many there are.
fn thread_names(recorded: &Recorded) -> (usize, usize) {
    let of = |sampled: &Sampled| {
        let is_named = |tid: i64, name: &str| {
            let mut stacks = sampled
                .stacks
                .iter()
                .filter(|stack| stack.tid == tid)
                .peekable();
            stacks.peek().is_some() && stacks.all(|stack| stack.thread_name == name)
        };
        let threads = &sampled.report.threads;
        let n_named = threads
            .iter()
            .filter(|(tid, name, ..)| is_named(*tid, name))
            .count();
        (n_named, threads.len())
    };
    let counts = recorded.sampled.iter().map(of);
    counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
}

/// Every workload of every interpreter.
fn all() -> impl Iterator<Item = (String, &'static Sampled)> {
    RECORDED.iter().flat_map(|recorded| {
        let (major, minor, micro) = recorded.interpreter.version;
        let build = &recorded.interpreter.build;
        recorded.sampled.iter().map(move |sampled| {
            (
                format!("{major}.{minor}.{micro} {build} {}", sampled.workload.name),
                sampled,
            )
        })
    })
}

/// Those that this workload gave.
pub(crate) fn of(name: &str) -> impl Iterator<Item = (String, &'static Sampled)> {
    all().filter(move |(_, sampled)| sampled.workload.name == name)
}

/// Those whose every process was there from the first sample to the last, with code that stays.
fn steady_ones() -> impl Iterator<Item = (String, &'static Sampled)> {
    all().filter(|(_, sampled)| {
        let workload = &sampled.workload;
        !workload.has_young_processes && !matches!(workload.name, "dying" | "exec_before")
    })
}

/// The figures of one interpreter.
fn show(recorded: &Recorded) {
    let (major, minor, micro) = recorded.interpreter.version;
    let counter = |name| recorded.counters.get(name).copied().unwrap_or(0);
    eprintln!(
        "{major}.{minor}.{micro} ({}): {} samples, {} periods missed, {} stacks repaired, {} leaves repaired, \
         {:.3} untimed, \
         {:.3} s missed; {:?}",
        recorded.interpreter.path.display(),
        counter("samples"),
        counter("timer_missed"),
        counter("stacks_repaired"),
        counter("leaves_repaired"),
        recorded.sampled[0].untimed_share,
        recorded.sampled[0].missed_seconds,
        recorded.comments
    );
    for sampled in &recorded.sampled {
        let mut remarks: BTreeMap<&str, u64> = BTreeMap::new();
        for stack in &sampled.stacks {
            if let Some(remark) = stack.remarks.last() {
                *remarks.entry(remark).or_default() += stack.n_samples;
            }
        }
        eprintln!(
            "    {:12} {:6} samples, {} wrong, {:.4} of the CPU time; {remarks:?}",
            sampled.workload.name,
            sampled.n_samples(),
            sampled.count(|stack| wrong(sampled, stack).is_some()),
            sampled.sampled_seconds() / sampled.cpu_seconds,
        );
        let is_cut = |stack: &&Stack| {
            stack
                .remarks
                .iter()
                .any(|remark| remark.starts_with("[incomplete"))
        };
        for stack in sampled.stacks.iter().filter(is_cut).take(MAX_SHOWN) {
            eprintln!("        {} x {}", stack.n_samples, stack.shown);
        }
    }
}

/// What is wrong with a stack that is shown as complete, in words.
fn wrong(sampled: &Sampled, stack: &Stack) -> Option<String> {
    judge(sampled, stack).map(|wrong| format!("{} x {wrong:?}: {}", stack.n_samples, stack.shown))
}

/// What is wrong with a stack that is shown as complete.
fn judge(sampled: &Sampled, stack: &Stack) -> Option<Wrong> {
    let becomes_another = sampled.workload.name == "exec_before";
    let has_starts = sampled.workload.has_young_processes || becomes_another;
    if !stack.remarks.is_empty() || (has_starts && is_starting(stack)) || is_tracing(stack) {
        return None;
    }
    if becomes_another
        && stack
            .frames
            .iter()
            .any(|frame| is_in(frame, "exec_after.py"))
    {
        return None;
    }
    let is_made =
        |frame: &&Frame| sampled.workload.name == "dying" && frame.function.1.starts_with("<made ");
    let n_made = stack.frames.iter().take_while(is_made).count();
    sampled.legal.judge(&stack.frames[n_made..])
}

/// The profile function itself, which is not traced.
fn is_tracing(stack: &Stack) -> bool {
    let is_of_it = |frame: &Frame| {
        is_in(frame, "harness.py") && frame.function.0.trim_start_matches("Legal.") == "note"
    };
    stack.frames.iter().any(is_of_it)
}

/// The start and the end of an interpreter, whose frames nobody could trace. It calls functions of its library
/// from C, imports, and looks encodings up.
fn is_starting(stack: &Stack) -> bool {
    let is_of_start = |frame: &Frame| {
        frame.function.1.starts_with("<frozen") || frame.function.1.contains("/encodings/")
    };
    let is_of_program = stack
        .frames
        .last()
        .is_some_and(|root| root.function.0 == "<module>");
    !is_of_program || stack.frames.iter().any(is_of_start)
}

/// What is true of a thread that has not begun to run Python, or has ended to. One that leaves the kernel
/// behind has no memory any more.
fn is_outside_python(stack: &Stack) -> bool {
    stack.remarks.iter().all(|remark| match remark.as_str() {
        "[native thread]" | "[no Python frame]" => true,
        "[thread state unreadable]" => stack.shown.contains("do_exit"),
        _ => false,
    })
}

pub(crate) fn is_in(frame: &Frame, file: &str) -> bool {
    frame.function.1.ends_with(&format!("/{file}"))
}

pub(crate) fn has(stack: &Stack, name: &str) -> bool {
    stack.frames.iter().any(|frame| frame.function.0 == name)
}

/// Standard deviation of a count of samples that each come with the same probability.
fn sigma(n: u64, share: f64) -> f64 {
    (n as f64 * share * (1.0 - share)).max(0.25).sqrt()
}

/// Fails with everything that was found.
fn assert_none(found: &[String]) {
    let shown = found
        .iter()
        .take(MAX_SHOWN)
        .map(|line| line.chars().take(600).collect::<String>());
    let shown: Vec<String> = shown.collect();
    assert!(
        found.is_empty(),
        "{} found:\n  {}",
        found.len(),
        shown.join("\n  ")
    );
}

#[test]
fn every_frame_and_caller_line_is_one_that_the_interpreter_reports() {
    let wrong: Vec<String> = all()
        .flat_map(|(name, sampled)| {
            let wrong = sampled
                .stacks
                .iter()
                .filter_map(|stack| wrong(sampled, stack));
            wrong
                .map(|wrong| format!("{name}: {wrong}"))
                .collect::<Vec<_>>()
        })
        .collect();
    assert_none(&wrong);
}

/// `namedtuple` executes source that it makes, and the code object dies at once: in 3.6 a class, later a lambda.
fn is_in_namedtuple(stack: &Stack) -> bool {
    let is_gone = stack
        .remarks
        .iter()
        .all(|remark| remark == "[code object gone]");
    is_gone
        && stack
            .frames
            .iter()
            .any(|frame| frame.function.0 == "namedtuple")
}

#[test]
fn stacks_are_complete_in_999_of_1000_samples() {
    let mut found = Vec::new();
    for (name, sampled) in steady_ones() {
        let is_churn = sampled.workload.name == "thread_churn";
        let is_outside = |stack: &Stack| is_churn && is_outside_python(stack);
        let n = sampled.n_samples();
        let n_incomplete = sampled.count(|stack| {
            !stack.remarks.is_empty() && !is_outside(stack) && !is_in_namedtuple(stack)
        });
        let limit = n as f64 * MAX_INCOMPLETE + SIGMAS * sigma(n, MAX_INCOMPLETE);
        if n_incomplete as f64 > limit {
            found.push(format!("{name}: {n_incomplete} of {n} incomplete"));
        }
    }
    for recorded in RECORDED.iter() {
        let lost: Vec<_> = ["lost_full", "lost_nested", "records_undecodable"]
            .into_iter()
            .filter(|name| recorded.counters.get(name).is_some_and(|n| *n > 0))
            .collect();
        if !lost.is_empty() {
            eprintln!("{:?}: {lost:?}", recorded.interpreter.version);
        }
    }
    assert_none(&found);
}

#[test]
fn the_root_is_the_first_frame_of_the_thread() {
    let roots = ["<module>", "_bootstrap", "Thread._bootstrap"];
    for (name, sampled) in steady_ones() {
        for stack in sampled
            .stacks
            .iter()
            .filter(|stack| stack.remarks.is_empty())
        {
            let root = &stack.frames.last().unwrap().function.0;
            let is_root = roots.contains(&root.as_str()) || root.ends_with("traced_thread");
            assert!(is_root, "{name}: {}", stack.shown);
            assert_eq!(
                root == "<module>",
                stack.tid == stack.pid,
                "{name}: {}",
                stack.shown
            );
        }
    }
}

#[test]
fn samples_add_up_to_the_cpu_time_of_the_kernel() {
    let mut found = Vec::new();
    for (name, sampled) in all() {
        let (seconds, cpu) = (sampled.sampled_seconds(), sampled.cpu_seconds);
        // Each stretch on a CPU is sampled once more or less; there are at most as many as samples.
        let chance = SIGMAS * (sampled.n_samples() as f64).sqrt() / 2.0 * sampled.period;
        let ended: BTreeSet<i64> = sampled
            .stacks
            .iter()
            .map(|stack| stack.pid)
            .filter(|pid| *pid != sampled.pid)
            .collect();
        let too_few =
            cpu * MAX_GAP + chance + ended.len() as f64 * EXIT_SECONDS + sampled.missed_seconds;
        // Interrupts and stolen time are no thread's time, but are sampled.
        let too_many = cpu * (MAX_GAP + sampled.untimed_share) + chance;
        if seconds < cpu - too_few || seconds > cpu + too_many {
            found.push(format!(
                "{name}: {seconds:.3} s of {cpu:.3} s sampled: not -{too_few:.3} to +{too_many:.3}"
            ));
        }
    }
    let steady = RECORDED
        .iter()
        .filter(|recorded| recorded.sampled.len() == WORKLOADS[0].len());
    for recorded in steady {
        let steady = || {
            recorded
                .sampled
                .iter()
                .filter(|sampled| !sampled.workload.has_young_processes)
        };
        let cpu: f64 = steady().map(|sampled| sampled.cpu_seconds).sum();
        let lost = ["lost_full", "lost_nested"]
            .map(|name| recorded.counters.get(name).copied().unwrap_or(0));
        let lost = lost.iter().sum::<u64>() as f64 * recorded.period;
        let seconds = steady().map(Sampled::sampled_seconds).sum::<f64>() + lost;
        let untimed_share = recorded.sampled[0].untimed_share;
        if seconds / cpu < 1.0 - MAX_GAP || seconds / cpu > 1.0 + MAX_GAP + untimed_share {
            found.push(format!(
                "{:?}: {seconds:.3} s of {cpu:.3} s",
                recorded.interpreter.version
            ));
        }
    }
    assert_none(&found);
}

#[test]
fn functions_have_their_share_of_the_samples() {
    let mut found = Vec::new();
    for (name, sampled) in steady_ones() {
        let n = sampled.n_samples();
        for (function, seconds) in &sampled.report.shares {
            let is_in =
                |stack: &Stack| stack.frames.iter().any(|frame| frame.function == *function);
            found.extend(compare(
                &name,
                sampled,
                n,
                function,
                *seconds,
                sampled.missed_seconds,
                sampled.count(is_in),
            ));
        }
    }
    assert_none(&found);
    assert!(of("shares").all(|(_, sampled)| sampled.report.shares.len() == 2));
    assert!(of("classes").all(|(_, sampled)| sampled.report.shares.len() == 2));
}

/// A complaint when something that took so long did not get its samples. Those of `missed_seconds` may be missing.
fn compare(
    name: &str,
    sampled: &Sampled,
    n: u64,
    what: &impl std::fmt::Debug,
    seconds: f64,
    missed_seconds: f64,
    n_found: u64,
) -> Option<String> {
    let share = (seconds / sampled.cpu_seconds).clamp(0.0, 1.0);
    let expected = seconds / sampled.period;
    let allowed = expected * MAX_GAP + SIGMAS * sigma(n, share) + 1.0;
    let missed = missed_seconds / sampled.period;
    let is_wrong =
        n_found as f64 > expected + allowed || (n_found as f64) < expected - allowed - missed;
    is_wrong.then(|| {
        format!(
            "{name}: {what:?}: {n_found} samples, not {expected:.0} +- {allowed:.0} (- {missed:.0})"
        )
    })
}

#[test]
fn a_recursion_never_shows_another_depth() {
    for (name, sampled) in of("recursion") {
        for (function, bottom, depth) in &sampled.report.depths {
            let mut n_at_bottom = 0;
            for stack in sampled
                .stacks
                .iter()
                .filter(|stack| stack.remarks.is_empty())
            {
                let n = stack
                    .frames
                    .iter()
                    .filter(|frame| frame.function.0 == *function)
                    .count();
                assert!(n <= *depth, "{name}: {n} frames: {}", stack.shown);
                if has(stack, bottom) {
                    assert_eq!(n, *depth, "{name}: {}", stack.shown);
                    n_at_bottom += stack.n_samples;
                }
            }
            assert!(
                n_at_bottom > 300,
                "{name}: {n_at_bottom} samples at the bottom of {function}"
            );
        }
    }
}

#[test]
fn threads_carry_their_names_and_run_their_own_functions() {
    let mut found = Vec::new();
    for (name, sampled) in all().filter(|(_, sampled)| !sampled.report.threads.is_empty()) {
        let threads: HashMap<i64, _> = sampled
            .report
            .threads
            .iter()
            .map(|thread| (thread.0, thread))
            .collect();
        let functions: Vec<_> = sampled
            .report
            .threads
            .iter()
            .map(|thread| &thread.2)
            .collect();
        let mut n_by_thread: HashMap<i64, u64> = HashMap::new();
        for stack in &sampled.stacks {
            *n_by_thread.entry(stack.tid).or_default() += stack.n_samples;
            let Some((_, thread_name, function, ..)) = threads.get(&stack.tid) else {
                assert_eq!(
                    (stack.tid, &*stack.thread_name),
                    (sampled.pid, "MainThread"),
                    "{name}: {}",
                    stack.shown
                );
                continue;
            };
            assert_eq!(stack.thread_name, *thread_name, "{name}: {}", stack.shown);
            let is_of_another =
                |frame: &Frame| functions.contains(&&frame.function) && frame.function != *function;
            assert!(
                !stack.frames.iter().any(is_of_another),
                "{name}: {thread_name}: {}",
                stack.shown
            );
        }
        for (tid, thread_name, _, seconds, paused) in &sampled.report.threads {
            let n = n_by_thread.get(tid).copied().unwrap_or(0);
            found.extend(compare(
                &name,
                sampled,
                sampled.n_samples(),
                thread_name,
                *seconds,
                sampled.missed_seconds.max(*paused),
                n,
            ));
        }
    }
    assert_none(&found);
    assert!(of("threads").all(|(_, sampled)| sampled.report.threads.len() == 200));
}

#[test]
fn no_sample_carries_the_name_of_another_code_object() {
    for (name, sampled) in of("dying") {
        let made: HashMap<&str, _> = sampled
            .report
            .made
            .iter()
            .map(|made| (&*made.0, made))
            .collect();
        let mut n_by_name: HashMap<&str, u64> = HashMap::new();
        let mut n_gone = 0;
        for stack in &sampled.stacks {
            let inner = stack
                .frames
                .iter()
                .find(|frame| frame.function.0.starts_with("inner_"));
            let outer = stack
                .frames
                .iter()
                .find(|frame| frame.function.0.starts_with("outer_"));
            n_gone += if stack.remarks.is_empty() {
                0
            } else {
                stack.n_samples
            };
            for (frame, prefix, first_line, n_more) in
                [(inner, "inner_", 4, 5), (outer, "outer_", 2, 1)]
            {
                let Some(frame) = frame else { continue };
                let (function, file, start) = &frame.function;
                let own = function.strip_prefix(prefix).unwrap();
                let (_, offset, ..) = made
                    .get(own)
                    .unwrap_or_else(|| panic!("{name}: {own} was not made"));
                assert_eq!(*file, format!("<made {own}>"), "{name}: {}", stack.shown);
                assert_eq!(*start, offset + first_line, "{name}: {}", stack.shown);
                assert!(
                    frame.line >= *start && frame.line <= start + n_more,
                    "{name}: {}",
                    stack.shown
                );
                assert!(
                    stack.thread_name.is_empty() || own.starts_with(&stack.thread_name),
                    "{name}: {}",
                    stack.shown
                );
                if prefix == "outer_" {
                    *n_by_name.entry(own).or_default() += stack.n_samples;
                }
            }
            if let (Some(inner), Some(outer)) = (inner, outer) {
                assert_eq!(
                    inner.function.1, outer.function.1,
                    "{name}: {}",
                    stack.shown
                );
            }
        }
        // While it was on a CPU n times, a function was sampled at most n times more than its time says.
        for (own, n) in n_by_name {
            let (_, _, seconds, n_switches) = made[own];
            let most = seconds / sampled.period * (1.0 + MAX_GAP) + *n_switches as f64 + 2.0;
            assert!(
                n as f64 <= most,
                "{name}: {own} has {n} samples in {seconds} s with {n_switches} switches"
            );
        }
        eprintln!(
            "{name}: {} functions made, {n_gone} of {} samples with one gone",
            made.len(),
            sampled.n_samples()
        );
    }
}
