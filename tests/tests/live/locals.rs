//! Local variables of live processes: what `dump --locals` says, beside what the interpreter says of its own frames
//! (`workloads/locals.py`); and of a process that changes all the time, and is hostile, that nothing torn is shown.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pyagent_tests::compiler::workload;
use pyagent_tests::interpreters;
use pyagent_tests::pyagent::binary;
use pyagent_tests::target::Target;
use serde_json::Value;

/// Seed of values that are made by chance.
const SEED: &str = "20261123";

/// Dumps of a process that runs on.
const N_DUMPS: usize = 4;

/// Longest a dump may take: it gives up by itself after 5 s for one process.
const LIMIT: Duration = Duration::from_secs(60);

fn dump(pid: u32, arguments: &[&str]) -> String {
    let begun = Instant::now();
    let output = Command::new(binary())
        .args(["dump", "--pid", &pid.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    String::from_utf8(output.stdout).unwrap()
}

fn threads(pid: u32, arguments: &[&str]) -> Vec<Value> {
    let document: Value = serde_json::from_str(&dump(pid, arguments)).unwrap();
    document["processes"][0]["threads"]
        .as_array()
        .unwrap()
        .clone()
}

/// Whether a value that is cut is the beginning of the true one: what follows that is dots and what closes brackets.
fn begins(shown: &str, truth: &str) -> bool {
    let same = shown.chars().zip(truth.chars());
    let n_same = same.take_while(|(one, other)| one == other).count();
    let mut rest = shown.chars().skip(n_same);
    shown.contains("...") && rest.all(|char| "., '\"()[]{}<>".contains(char))
}

/// What a frame's variables are, and what they should be.
fn compare(frame: &Value, truth: &Value, errors: &mut Vec<String>) -> (usize, usize) {
    let function = truth[0].as_str().unwrap();
    let shown: BTreeMap<&str, &Value> = frame["locals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|local| (local["name"].as_str().unwrap(), local))
        .collect();
    let truth = truth[1].as_object().unwrap();
    let mut n_cut = 0;
    if !frame["locals_problem"].is_null() {
        errors.push(format!("{function}: {}", frame["locals_problem"]));
    }
    if !shown.keys().copied().eq(truth.keys().map(String::as_str)) {
        let names: Vec<&String> = truth.keys().collect();
        errors.push(format!("{function}: {:?} for {names:?}", shown.keys()));
    }
    for (name, truth) in truth {
        let Some(local) = shown.get(name.as_str()) else {
            continue;
        };
        let value = local["value"].as_str().unwrap_or("nothing");
        let (type_name, truth) = (&truth[0], truth[1].as_str().unwrap());
        let is_cut = local["truncated"] == true;
        n_cut += usize::from(is_cut);
        let is_right = if is_cut {
            begins(value, truth)
        } else {
            value == truth
        };
        if !is_right || local["type"] != *type_name {
            let truth: String = truth.chars().take(1200).collect();
            errors.push(format!(
                "{function}: {name} is {local}, not {type_name} {truth}"
            ));
        }
    }
    (truth.len(), n_cut)
}

#[test]
fn every_variable_of_every_frame_is_what_the_interpreter_says() {
    let mut wrong = Vec::new();
    for python in interpreters::supported() {
        let called = format!("{:?} {}", python.version, python.build);
        let mut target = Target::start(python.command(&workload("locals.py")).arg(SEED));
        assert_eq!(target.line(), "ready", "{called}");
        let pid = target.pid().0;
        let mut errors = Vec::new();
        let (mut n_variables, mut n_cut) = (0, 0);
        for detail in ["-l", "-ll"] {
            let shown = threads(pid, &[detail, "--json"]);
            target.tell("");
            let truth: Value = serde_json::from_str(&target.line()).unwrap();
            for (name, truth) in truth.as_object().unwrap() {
                let thread = shown.iter().find(|it| it["name"] == **name);
                let thread = thread.unwrap_or_else(|| panic!("{called}: no {name}"));
                let frames = thread["frames"].as_array().unwrap();
                let truth = truth.as_array().unwrap();
                assert_eq!(frames.len(), truth.len(), "{called} {name}: {thread}");
                for (frame, truth) in frames.iter().zip(truth) {
                    let (n, n_long) = compare(frame, truth, &mut errors);
                    n_variables += n;
                    n_cut += n_long;
                }
            }
        }
        println!(
            "{called}: {n_variables} variables, {n_cut} cut, {} wrong",
            errors.len()
        );
        assert!(n_variables > 200 && n_cut > 10 && n_cut < n_variables / 3);
        wrong.extend(errors.into_iter().map(|error| format!("{called}: {error}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn arguments_come_first_and_nothing_without_being_asked_for() {
    for python in interpreters::usual() {
        let mut target = Target::start(python.command(&workload("locals.py")).arg("1"));
        assert_eq!(target.line(), "ready");
        let pid = target.pid().0;
        assert!(!dump(pid, &["--json"]).contains("\"locals\""));
        assert!(!dump(pid, &[]).contains(" = "));
        let shown = threads(pid, &["--locals", "--json"]);
        let names = |thread: &str, function: &str| -> Vec<(String, bool)> {
            let thread = shown.iter().find(|it| it["name"] == thread).unwrap();
            let frames = thread["frames"].as_array().unwrap().iter();
            let mut frames =
                frames.filter(|it| it["function"].as_str().unwrap().ends_with(function));
            let locals = frames.next().unwrap()["locals"].as_array().unwrap();
            let name = |it: &Value| it["name"].as_str().unwrap().to_owned();
            locals
                .iter()
                .map(|it| (name(it), it["argument"] == true))
                .collect()
        };
        let expected = [
            "first", "second", "key", "rest", "more", "number", "text", "deep",
        ];
        let expected = expected.map(str::to_owned);
        let found = names("rest", "plain");
        let (arguments, others) = found.split_at(5);
        assert!(arguments.iter().all(|(_, is)| *is) && others.iter().all(|(_, is)| !is));
        assert!(
            found.iter().map(|(name, _)| name).eq(&expected),
            "{found:?}"
        );
        // Those that an inner function uses too are arguments still.
        let found = names("cells", "cells");
        let arguments: Vec<&String> = found.iter().filter(|it| it.1).map(|it| &it.0).collect();
        assert_eq!(arguments, ["argument", "other"], "{found:?}");
        let printed = dump(pid, &["--locals"]);
        assert!(printed.contains("\n        rest = ("), "{printed}");
        assert!(!printed.contains(|char: char| char.is_control() && char != '\n'));
    }
}

/// Threads that change their variables, what these hold, and their frames as fast as they can.
const BUSY: &str = "
import sys, threading
shared, table = [], {}
def pairs():
    n = 0
    while True:
        pair = (n, -n)
        text = '%d:%d' % (n, n)
        n += 1000003
def calls(n=0):
    while True:
        leaf((n, -n), n)
        n += 1
def leaf(pair, n):
    same = [n, pair, -n]
    return same
def changes():
    escape = '\\x1b[2J\\x07'
    while True:
        for n in range(100):
            table[n] = escape * n
            shared.append([n, escape])
        table.clear()
        shared.clear()
        held, also = table, shared
def deep(n):
    own = n
    if n:
        deep(n - 1)
    else:
        while True:
            for _ in range(10): own = own + 1
for run in (pairs, calls, changes, lambda: deep(400)):
    threading.Thread(target=run, daemon=True).start()
huge = [[i, str(i)] for i in range(300000)]
def waits(huge, names={str(i): i for i in range(100000)}):
    everything = [huge, names, huge]
    print('ready', flush=True)
    sys.stdin.readline()
waits(huge)
";

/// The numbers in a text, in their order.
fn numbers(text: &str) -> Vec<i128> {
    let is_part = |char: char| char.is_ascii_digit() || char == '-';
    text.split(|char| !is_part(char))
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[test]
fn nothing_torn_is_shown_of_a_process_that_never_rests() {
    let free_threaded = interpreters::supported()
        .into_iter()
        .filter(|python| python.free_threaded);
    for python in interpreters::usual().into_iter().chain(free_threaded) {
        let called = format!("{:?} {}", python.version, python.build);
        let mut target = Target::python(&python, BUSY, &[]);
        assert_eq!(target.line(), "ready", "{called}");
        let pid = target.pid().0;
        let (mut n_known, mut n_unknown, mut n_moved) = (0, 0, 0);
        let begun = Instant::now();
        for _ in 0..N_DUMPS {
            for thread in threads(pid, &["-ll", "--json"]) {
                for frame in thread["frames"].as_array().unwrap() {
                    n_moved += usize::from(!frame["locals_problem"].is_null());
                    for local in frame["locals"].as_array().unwrap() {
                        let Some(value) = local["value"].as_str() else {
                            n_unknown += 1;
                            continue;
                        };
                        n_known += 1;
                        let numbers = numbers(value);
                        let is_whole = match local["name"].as_str().unwrap() {
                            "pair" => numbers.len() == 2 && numbers[0] == -numbers[1],
                            "text" => numbers.len() == 2 && numbers[0] == numbers[1],
                            "same" => {
                                numbers.len() == 4
                                    && numbers[0] == numbers[1]
                                    && numbers[2] == numbers[3]
                                    && numbers[0] == -numbers[2]
                            }
                            _ => true,
                        };
                        assert!(is_whole, "{called}: {local}");
                    }
                }
            }
        }
        println!(
            "{called}: {:?} a dump; {n_known} values known, {n_unknown} not, {n_moved} frames left meanwhile",
            begun.elapsed() / N_DUMPS as u32
        );
        assert!(n_known > N_DUMPS * 10, "{called}: {n_known}");
        let printed = dump(pid, &["-ll"]);
        assert!(!printed.contains(|char: char| char.is_control() && char != '\n'));
    }
}
