//! The tutorials' programs under pyagent and under cProfile, beside what they say of themselves: the short form of
//! `cargo xtask compare`. Root.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use profiler_agent::profile::chance;
use pyagent_tests::interpreters;
use pyagent_tests::pyagent::binary;
use serde_json::Value;

/// How far a share may be from the true one, if chance does not explain more.
const MAX_POINTS: f64 = 0.03;

/// True shares that differ by this have an order.
const MIN_DIFFERENCE: f64 = 0.05;

/// A program, its argument, and the function that shares are of.
const PROGRAMS: [(&str, &str, &str); 2] = [
    ("julia.py", "500", "calc_pure_python"),
    ("nbody.py", "6000", "simulate"),
];

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("workloads/toolbox")
        .join(name)
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// Numbers by name.
fn numbers(value: &Value) -> BTreeMap<String, f64> {
    let rows = value.as_object().unwrap().iter();
    rows.map(|(name, value)| (name.clone(), number(value)))
        .collect()
}

/// By function of the program: its share of the root with what it calls, and samples.
fn functions(report: &Value, script: &Path, root: &str) -> BTreeMap<String, (f64, f64)> {
    let rows = report["functions"].as_array().unwrap().iter();
    let of_script: Vec<_> = rows
        .filter(|row| row["file"] == script.to_str().unwrap())
        .collect();
    let of_root = of_script.iter().find(|row| row["function"] == root);
    let whole = number(&of_root.expect("the root was sampled")["total"]);
    let share = |row: &&Value| {
        let name = row["function"].as_str().unwrap().to_owned();
        (
            name,
            (number(&row["total"]) / whole, number(&row["samples"])),
        )
    };
    of_script.iter().map(share).collect()
}

/// Prints the functions of a program with what they call, in seconds, out of a file of pstats.
const READ_PSTATS: &str = "
import json, pstats, sys
rows = pstats.Stats(sys.argv[1]).stats.items()
print(json.dumps({name: times[3] for (file, _, name), times in rows if file == sys.argv[2]}))
";

fn read_pstats(python: &Path, file: &Path, script: &Path) -> BTreeMap<String, f64> {
    let mut read = Command::new(python);
    let json = run(read.args(["-c", READ_PSTATS]).arg(file).arg(script));
    numbers(&serde_json::from_str(&json).unwrap())
}

#[test]
fn shares_are_those_that_the_programs_know_and_the_order_is_cprofiles() {
    let python = interpreters::newest();
    let folder = tempfile::tempdir().unwrap();
    for (name, size, root) in PROGRAMS {
        let script = script(name);
        let [account, profile, pstats, converted] =
            ["account", "x.pb.gz", "x.cprofile", "x.pstats"].map(|it| folder.path().join(it));
        run(Command::new(binary())
            .args(["record", "--rate", "999", "--force", "-o"])
            .arg(&profile)
            .arg("--")
            .arg(&python.path)
            .arg("-B")
            .arg(&script)
            .arg(size)
            .env("TOOLBOX_ACCOUNT", &account));
        let account: Value = serde_json::from_str(&fs::read_to_string(&account).unwrap()).unwrap();
        let mut report = Command::new(binary());
        report.arg("report").arg(&profile);
        let json = run(report.args(["--functions", "--json", "--top", "100000"]));
        let ours = functions(&serde_json::from_str(&json).unwrap(), &script, root);
        let truth = numbers(&account["cumulative"]);
        let truth: BTreeMap<_, _> = truth.iter().map(|(it, v)| (it, v / truth[root])).collect();
        let deviations = chance::deviations(truth.len() * PROGRAMS.len());
        let n = ours[root].1;
        eprintln!("{name}, {n} samples:");
        for (function, share) in &truth {
            let seen = ours.get(*function).map_or(0.0, |it| it.0);
            eprintln!(
                "  {function}: {:.1} % of {:.1} %",
                100.0 * seen,
                100.0 * share
            );
            let range = chance::share(seen, n, deviations);
            let is_chance = (range.low..=range.high).contains(share);
            assert!(
                is_chance || (seen - share).abs() <= MAX_POINTS,
                "{name}: {function}"
            );
        }

        // pyagent's answer in cProfile's format, and cProfile's own. That one is of wall time, which the rest of the machine
        // shifts: it can be asked where one function takes most of it.
        let mut convert = Command::new(binary());
        convert.arg("convert").arg(&profile).arg("-o");
        run(convert.arg(&converted));
        let mut answers = vec![read_pstats(&python.path, &converted, &script)];
        if name == "julia.py" {
            let mut trace = Command::new(&python.path);
            trace.args(["-B", "-m", "cProfile", "-o"]).arg(&pstats);
            run(trace.arg(&script).arg(size));
            answers.push(read_pstats(&python.path, &pstats, &script));
        }
        let mut n_pairs = 0;
        for (larger, share) in &truth {
            for (smaller, _) in truth
                .iter()
                .filter(|(_, it)| share - **it >= MIN_DIFFERENCE)
            {
                n_pairs += 1;
                for answer in &answers {
                    let above = answer.get(*smaller).copied().unwrap_or_default();
                    assert!(answer[*larger] > above, "{name}: {smaller} above {larger}");
                }
            }
        }
        assert!(n_pairs >= 5, "{name}: {n_pairs}");
    }
}
