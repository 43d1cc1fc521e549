//! `pyagent diff` over files: its figures against other programs', its exit codes, and what it says of what cannot be compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use profiler_agent::format::Format;
use profiler_agent::format::read::read;
use profiler_agent::profile::model::{Profile, ValueType, Values};
use pyagent_tests::pyagent::{run, text};
use serde_json::Value;

const BEFORE: &str = "\
<module> (app.py);main (app.py);render (web/view.py) 60000
<module> (app.py);main (app.py);query (web/model.py);connect (sql/db.py) 30000
<module> (app.py);main (app.py);gone (app.py) 9000
<module> (app.py);main (app.py) 1000
";

/// `render` takes a fifth more, `gone` has gone, and `fib` calls itself.
const AFTER: &str = "\
<module> (app.py);main (app.py);render (web/view.py) 72000
<module> (app.py);main (app.py);query (web/model.py);connect (sql/db.py) 30000
<module> (app.py);main (app.py);fib (app.py);fib (app.py);fib (app.py) 9500
<module> (app.py);main (app.py) 1000
";

fn diff(arguments: &[&str], input: &[u8]) -> Output {
    run("diff", arguments, input)
}

/// A profile of time on the CPU, 10 ms a sample, over so many seconds.
fn cpu_profile(stacks: &str, seconds: u64) -> Profile {
    const PERIOD_NS: i64 = 10_000_000;
    let mut profile = read(stacks.as_bytes()).unwrap();
    profile.sample_types = &ValueType::CPU_SAMPLES;
    profile.period_type = ValueType::CPU;
    profile.period = PERIOD_NS;
    profile.duration = Duration::from_secs(seconds);
    for sample in &mut profile.samples {
        sample.values = Values::from([sample.values[0], sample.values[0] * PERIOD_NS]);
    }
    profile
}

/// Both as pprof, of different lengths, in a folder.
fn files(folder: &Path) -> [String; 2] {
    [("before", BEFORE, 900), ("after", AFTER, 1000)].map(|(name, stacks, seconds)| {
        let path = folder.join(format!("{name}.pb.gz"));
        let mut bytes = Vec::new();
        let format = Format::from_name("pprof").unwrap();
        format
            .write(&cpu_profile(stacks, seconds), &mut bytes)
            .unwrap();
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    })
}

/// Nanoseconds of each function alone and with what it calls: after less before.
fn changes(before: &str, after: &str, arguments: &[&str]) -> BTreeMap<String, (i64, i64)> {
    let all = [&[before, after, "--json"], arguments].concat();
    let document: Value = serde_json::from_str(&text(&diff(&all, b""))).unwrap();
    let rows = document["functions"].as_array().unwrap().clone();
    let change =
        |value: &Value| value["after"].as_i64().unwrap() - value["before"].as_i64().unwrap();
    rows.iter()
        .map(|row| {
            let name = row["function"].as_str().unwrap().to_owned();
            (name, (change(&row["self"]), change(&row["total"])))
        })
        .collect()
}

#[test]
fn go_subtracts_one_profile_from_the_other_with_the_same_figures() {
    if Command::new("go").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI has Go");
        println!("skipped: no `go` on this machine");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [before, after] = files(folder.path());
    let output = Command::new("go")
        .args(["tool", "pprof", "-top", "-nodefraction=0", "-unit=ns"])
        .args(["-diff_base", &before, &after])
        .env("PPROF_TMPDIR", folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let top = String::from_utf8(output.stdout).unwrap();
    let nanoseconds = |text: &str| text.trim_end_matches("ns").parse::<f64>().unwrap() as i64;
    let (_, rows) = top.split_once("cum%\n").unwrap();
    let of_go: BTreeMap<String, (i64, i64)> = rows
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            // It takes `<module>` for the arguments of a template, and shows the mapping in its place.
            let name = words[5].replace("[[python]]", "<module>");
            (name, (nanoseconds(words[0]), nanoseconds(words[3])))
        })
        .collect();
    assert!(of_go.len() == 5, "{top}");
    let mut own = changes(&before, &after, &[]);
    // What did not change is not in Go's table.
    own.retain(|name, change| of_go.contains_key(name) || *change != (0, 0));
    assert_eq!(own, of_go, "{top}");
    assert_eq!(own["fib"], (95_000_000_000, 95_000_000_000));
}

#[test]
fn infernos_diff_folded_has_the_same_stacks_and_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let [before, after, out] = ["a.folded", "b.folded", "diff.folded"].map(path);
    fs::write(&before, BEFORE).unwrap();
    fs::write(&after, AFTER).unwrap();
    let _ = text(&diff(&[&before, &after, "-o", &out], b""));
    let written = fs::read_to_string(&out).unwrap();
    let mut expected = Vec::new();
    let options = inferno::differential::Options::default();
    inferno::differential::from_readers(
        options,
        BEFORE.as_bytes(),
        AFTER.as_bytes(),
        &mut expected,
    )
    .unwrap();
    let expected = String::from_utf8(expected).unwrap();
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(sorted(&written), sorted(&expected));
    assert_eq!(written.lines().count(), 5);
    // The same on standard output, and nothing else.
    assert_eq!(
        text(&diff(&[&before, "-", "-o", "-"], AFTER.as_bytes())),
        written
    );
}

#[test]
fn the_flame_graph_shows_what_grew_and_what_shrank() {
    let folder = tempfile::tempdir().unwrap();
    let [before, after] = files(folder.path());
    let svg = folder.path().join("diff.svg");
    let arguments = [&before, &after, "-o", svg.to_str().unwrap(), "--same-work"];
    let _ = text(&diff(&arguments, b""));
    let svg = fs::read_to_string(svg).unwrap();
    // 120 s more, of 1125 s.
    assert!(
        svg.contains("render (web/view.py) (720,000,000,000 nanoseconds, 64.00%; +10.67%)"),
        "{svg}"
    );
    assert!(
        svg.contains("connect (sql/db.py) (300,000,000,000 nanoseconds, 26.67%; 0.00%)"),
        "{svg}"
    );
    assert!(svg.contains("after.pb.gz against before.pb.gz"), "{svg}");
}

#[test]
fn what_became_slower_fails_and_what_became_faster_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let [before, after] = files(folder.path());
    for (arguments, code, parts) in [
        // 12 s of each 100 s more: 12 %; the new function 9.5 %.
        (
            &[&*before, &after, "--same-work", "--fail-over", "11%"][..],
            5,
            &["+12.0 %", "render", "all of it"][..],
        ),
        (
            &[&*before, &after, "--same-work", "--fail-over", "13%"],
            0,
            &["nothing grew"],
        ),
        // 72 of 112.5 are 64 %; 60 of 100 were 60 %.
        (
            &[&*before, &after, "--fail-over", "3.9%"],
            5,
            &["+4.0 %", "fib"],
        ),
        (
            &[&*before, &after, "--fail-over", "10%"],
            0,
            &["nothing grew"],
        ),
        (
            &[&*before, &before, "--fail-over", "0.01%"],
            0,
            &[
                "too few samples to tell growth by 0.0 %",
                "the total changed by 0.0 %",
            ],
        ),
        (
            &[
                &*before,
                &after,
                "--same-work",
                "--lines",
                "--fail-over",
                "11%",
            ],
            5,
            &["render  web/view.py\n"],
        ),
    ] {
        let output = diff(arguments, b"");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {printed}");
        for part in parts {
            assert!(printed.contains(part), "{arguments:?}: {part} in {printed}");
        }
    }
    // Rows that may be chance are said to be: 1 of 60 samples is nothing.
    let few = BEFORE.replace("000\n", "\n");
    let before = folder.path().join("few.folded");
    fs::write(&before, few).unwrap();
    let after = AFTER.replace("000\n", "\n").replace("9500", "0");
    let arguments = [before.to_str().unwrap(), "-", "--fail-over", "1%", "--json"];
    let document: Value = serde_json::from_str(&text(&diff(&arguments, after.as_bytes()))).unwrap();
    assert_eq!(document["verdict"]["failed"], false, "{document}");
    assert_eq!(document["verdict"]["conclusive"], false, "{document}");
    assert!(document["verdict"]["samples_needed"].as_f64().unwrap() > 1e5);
}

#[test]
fn rows_are_sorted_by_their_change_and_restricted() {
    let folder = tempfile::tempdir().unwrap();
    let [before, after] = files(folder.path());
    let names = |arguments: &[&str]| {
        let all = [&[&*before, &after], arguments].concat();
        let printed = text(&diff(&all, b""));
        let (_, table) = printed.split_once("function\n").unwrap();
        let rows = table.lines().take_while(|line| line.contains('%'));
        let name = |line: &str| line.rsplit("  ").nth(1).unwrap().trim().to_owned();
        rows.map(name).collect::<Vec<_>>()
    };
    assert_eq!(names(&["--same-work"])[..3], ["render", "fib", "gone"]);
    assert_eq!(
        names(&["--same-work", "--sort", "cumtime", "2"]),
        ["<module>", "main"]
    );
    assert_eq!(names(&["--top", "1"]), ["gone"]);
    assert_eq!(names(&["web/"]), ["render", "query"]);
    assert_eq!(names(&["connect|query", "1"]), ["connect"]);
}

#[test]
fn what_cannot_be_compared_is_one_line_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let [before, _] = files(folder.path());
    for (arguments, code, part) in [
        (&["-", "-"][..], 2, "standard input"),
        (&[&*before, "-"], 2, "cpu (nanoseconds) and samples (count)"),
        (&[&*before, "nosuch.pb.gz"], 1, "nosuch.pb.gz"),
        (
            &[&*before, &before, "--value", "alloc_space"],
            2,
            "it has samples, cpu",
        ),
        (&[&*before, &before, "--sort", "name"], 2, "cumtime"),
        (&[&*before, &before, "-o", "x.json"], 2, ".folded"),
        (&[&*before, &before, "--last", "5m"], 2, "agents"),
        (
            &[&*before, "127.0.0.1:1", "--last", "5m"],
            1,
            "no agent answers",
        ),
    ] {
        let output = diff(arguments, BEFORE.as_bytes());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(part), "{arguments:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{arguments:?}: {errors}");
        assert!(output.stdout.is_empty());
    }
    // A value that both have.
    let _ = text(&diff(
        &[&before, "-", "--value", "samples"],
        AFTER.as_bytes(),
    ));
    // Nothing names no profile.
    assert_eq!(diff(&[&before], b"").status.code(), Some(2));
}

#[test]
fn the_help_fits_a_screen_and_the_long_one_teaches() {
    let help = text(&diff(&["-h"], b""));
    assert!(help.lines().count() <= 40, "{help}");
    assert!(
        help.contains("Examples:") && help.contains("<BEFORE> <AFTER>"),
        "{help}"
    );
    assert!(!help.contains("127.0.0.1:7099"), "{help}");
    assert!(text(&diff(&["--help"], b"")).contains("Bonferroni"));
}
