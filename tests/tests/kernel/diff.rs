//! `pyagent diff` over real recordings: of one program with itself, and of one of which a function became slower. Root.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use profiler_agent::format::Format;
use profiler_agent::format::read::read;
use profiler_agent::profile::chance::{Estimate, share};
use profiler_agent::profile::diff::{Basis, DEFAULT_CORRELATION, Diff, Grain};
use profiler_agent::profile::measure::Measure;
use profiler_agent::profile::model::Profile;
use pyagent_tests::interpreters;
use pyagent_tests::pyagent::binary;
use pyagent_tests::target::Target;
use serde_json::Value;

/// Stays with one of some functions for a random time of up to 50 ms, as a service does with its requests.
const SERVICE: &str = "
import random, sys, time
random.seed(int(sys.argv[1]))
def work(until):
    while time.thread_time() < until:
        for _ in range(200): pass
def parse(until): work(until)
def query(until): work(until)
def render(until): work(until)
def log(until): work(until)
print('ready', flush=True)
while True:
    handle, = random.choices([parse, query, render, log], [4, 3, 2, 1])
    handle(time.thread_time() + random.uniform(0, 0.05))
";

/// Two functions in turns, one of which does so many rounds; says what each took.
const TWO: &str = "
import sys, time
def steady(n):
    x = 0
    for i in range(n): x += i
def slower(n):
    x = 0
    for i in range(n): x += i
n, took = int(sys.argv[1]), [0, 0]
def main():
    for _ in range(1000):
        a = time.thread_time_ns()
        steady(10000)
        b = time.thread_time_ns()
        slower(n)
        took[0] += b - a
        took[1] += time.thread_time_ns() - b
main()
print(*took)
";

const N_PROCESSES: usize = 20;

/// One recording of 20 processes of one program, taken apart.
fn recordings(folder: &Path) -> Vec<Profile> {
    let python = interpreters::newest();
    let mut targets: Vec<Target> = (0..N_PROCESSES)
        .map(|idx| Target::python(&python, SERVICE, &[&idx.to_string()]))
        .collect();
    for target in &mut targets {
        assert_eq!(target.line(), "ready");
    }
    let pids: Vec<String> = targets
        .iter()
        .map(|target| target.pid().to_string())
        .collect();
    let file = folder.join("all.pb.gz");
    let output = Command::new(binary())
        .args([
            "record",
            "--rate",
            "999",
            "-d",
            "10s",
            "--pid",
            &pids.join(","),
            "-o",
        ])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let all = read(&fs::read(file).unwrap()).unwrap();
    let of_pid =
        |pid: &String| all.part(|sample| all.thread(sample.labels).pid.to_string() == *pid);
    pids.iter()
        .map(of_pid)
        .map(Profile::without_native)
        .collect()
}

#[test]
fn none_of_190_pairs_of_recordings_of_one_program_fails() {
    let folder = tempfile::tempdir().unwrap();
    let profiles = recordings(folder.path());
    let (mut n_pairs, mut n_plain) = (0, 0);
    for (idx, before) in profiles.iter().enumerate() {
        for after in &profiles[idx + 1..] {
            n_pairs += 1;
            let measures = [Measure::main(before), Measure::main(after)];
            for basis in [Basis::Shares, Basis::SameWork] {
                for grain in [Grain::Functions, Grain::Lines] {
                    let diff =
                        Diff::new([before, after], measures, grain, basis, DEFAULT_CORRELATION);
                    for side in [diff.before, diff.after] {
                        assert!(side.n_samples.unwrap() >= 100.0, "{side:?}");
                    }
                    for allowed in [1e-6, 0.05] {
                        let verdict = diff.verdict(allowed);
                        assert!(
                            !verdict.has_failed(),
                            "{basis:?} {grain:?} {verdict:?} {diff:?}"
                        );
                    }
                    // As if each sample were independent, and each row the only one.
                    n_plain += diff
                        .rows
                        .iter()
                        .filter(|row| {
                            let n = |whole: f64| whole.max(1.0);
                            let a = share(
                                row.own.part_before.min(1.0),
                                n(diff.before.n_samples.unwrap()),
                                1.96,
                            );
                            let b = share(
                                row.own.part_after.min(1.0),
                                n(diff.after.n_samples.unwrap()),
                                1.96,
                            );
                            Estimate::difference(a, b).is_change()
                        })
                        .count();
                }
            }
        }
    }
    assert_eq!(n_pairs, 190);
    assert!(n_plain > 0, "these recordings do differ");
    // The same by the command.
    let mut files = Vec::new();
    for (idx, profile) in profiles.iter().take(2).enumerate() {
        let path = folder.path().join(format!("{idx}.pb.gz"));
        let mut bytes = Vec::new();
        Format::default_format().write(profile, &mut bytes).unwrap();
        fs::write(&path, bytes).unwrap();
        files.push(path);
    }
    let output = Command::new(binary())
        .arg("diff")
        .args(&files)
        .args(["--fail-over", "5%"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains("too few samples to tell growth by 5.0 %"),
        "{printed}"
    );
}

#[test]
fn a_function_that_became_a_fifth_slower_is_found_with_its_amount() {
    let folder = tempfile::tempdir().unwrap();
    let python = interpreters::newest();
    let script = folder.path().join("two.py");
    fs::write(&script, TWO).unwrap();
    let mut took = Vec::new();
    let mut files = Vec::new();
    for rounds in ["10000", "12000"] {
        let file = folder.path().join(format!("{rounds}.pb.gz"));
        let output = Command::new(binary())
            .args(["record", "--rate", "999", "-o"])
            .args([file.as_os_str(), "--".as_ref(), python.path.as_os_str()])
            .args([
                "-I".as_ref(),
                "-S".as_ref(),
                script.as_os_str(),
                rounds.as_ref(),
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        let own: Vec<f64> = printed
            .split_whitespace()
            .map(|it| it.parse().unwrap())
            .collect();
        took.push(own);
        files.push(file);
    }
    // The samples are of many short turns: 1 ms apart they tell different things.
    let output = Command::new(binary())
        .arg("diff")
        .args(&files)
        .args([
            "--same-work",
            "--correlation",
            "1ms",
            "--sort",
            "tottime",
            "--json",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let total_before = document["before"]["total"].as_f64().unwrap();
    let row = |name: &str| {
        let rows = document["functions"].as_array().unwrap();
        let found = rows.iter().find(|row| row["function"] == name);
        found
            .unwrap_or_else(|| panic!("{name} in {document}"))
            .clone()
    };
    for (idx, name) in ["steady", "slower"].into_iter().enumerate() {
        // By the program's own clock.
        let truth = (took[1][idx] - took[0][idx]) / total_before;
        let change = &row(name)["total"];
        let within = change["low"].as_f64().unwrap()..=change["high"].as_f64().unwrap();
        assert!(within.contains(&truth), "{name}: {truth} {change}");
        // A sample stands for 1 ms: what was sampled is what was used, but for those at the edges of its 1,000 turns.
        let of_samples = change["change"].as_f64().unwrap();
        let n_samples = total_before / Duration::from_millis(1).as_nanos() as f64;
        let edges = 5.0 * (2.0 * 2.0 * 1_000.0_f64).sqrt() / n_samples;
        assert!(
            (of_samples - truth).abs() < edges,
            "{name}: {of_samples} {truth} {edges}"
        );
    }
    let slower = row("slower");
    assert_eq!(slower["line"], 6, "{slower}");
    let growth = took[1][1] / took[0][1] / (took[1][0] / took[0][0]);
    println!("slower: {growth:.3} times, next to the other one; {slower}");
}
