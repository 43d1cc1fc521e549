//! Samples with their instruction, against what `dis` says in the process itself: before and after.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::process::Command;

use profiler_agent::config::SamplingConfig;
use profiler_agent::profile::model::{FrameKind, Profile, label};
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::pyagent::{binary, run, text};
use pyagent_tests::recorder::{Recorder, of_pids};
use pyagent_tests::target::Target;
use serde_json::Value;

/// Samples a second.
const RATE_HZ: u32 = 999;

/// CPU time of each function.
const SECONDS: &str = "0.1";

/// Functions of which one instruction takes nearly all: what it is a form of, up to 3.10, in 3.11, and since.
const DOMINATED: [(&str, [&str; 3]); 4] = [
    ("add", ["BINARY_ADD", "BINARY_OP", "BINARY_OP"]),
    ("store", ["STORE_SUBSCR", "STORE_SUBSCR", "STORE_SUBSCR"]),
    // Its specialized forms for functions of C call them in the instruction in front.
    ("call", ["CALL_FUNCTION", "PRECALL", "CALL"]),
    ("wide", ["LOAD_ATTR", "LOAD_ATTR", "LOAD_ATTR"]),
];

/// Offset, name as it stands in memory, name without specialization; the last one is missing where `dis` takes the data of
/// an instruction for one.
type Places = HashMap<String, Vec<(u32, String, Option<String>)>>;

fn workload(python: &Interpreter) -> Target {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/bytecode.py");
    let code = std::fs::read_to_string(script).unwrap();
    Target::python(python, &code, &[SECONDS])
}

fn places(target: &mut Target) -> Places {
    serde_json::from_str(&target.line()).unwrap()
}

/// Of a process: samples by innermost Python function and label.
fn labels(profile: &Profile, pid: u32) -> BTreeMap<(String, Option<String>), i64> {
    let mut counts = BTreeMap::new();
    for sample in &profile.samples {
        if profile.thread(sample.labels).pid != i64::from(pid) {
            continue;
        }
        let python = |kind: FrameKind| kind == FrameKind::Python;
        let innermost = profile
            .frames(sample.stack)
            .find(|frame| python(frame.kind));
        let name = innermost.map_or("", |frame| frame.name);
        let text = profile.label(sample.labels, label::INSTRUCTION);
        let key = (name.to_owned(), text.map(str::to_owned));
        *counts.entry(key).or_insert(0) += sample.values[0];
    }
    counts
}

fn check(
    python: &Interpreter,
    counts: &BTreeMap<(String, Option<String>), i64>,
    before: &Places,
    after: &Places,
) {
    let about = format!("{:?} {}", python.version, python.build);
    let (mut n_all, mut n_without, mut n_specialized) = (0, 0, 0);
    let mut by_base: HashMap<&str, HashMap<&str, i64>> = HashMap::new();
    for ((function, text), count) in counts {
        let (Some(before), Some(after)) = (before.get(function), after.get(function)) else {
            continue;
        };
        n_all += count;
        let Some(text) = text else {
            n_without += count;
            continue;
        };
        let known: Vec<_> = before
            .iter()
            .chain(after)
            .filter_map(|(offset, now, base)| Some((*offset, now, base.as_ref()?)))
            .collect();
        let shown: HashSet<String> = known
            .iter()
            .flat_map(|(offset, now, base)| [format!("{offset} {now}"), format!("{offset} {base}")])
            .collect();
        assert!(
            shown.contains(text),
            "{about}: {function}: `{text}`, {known:?}"
        );
        assert!(
            !text.contains("EXTENDED_ARG"),
            "{about}: {function}: {text}"
        );
        let (offset, name) = text.split_once(' ').unwrap();
        let offset: u32 = offset.parse().unwrap();
        let (_, _, base) = known.iter().find(|it| it.0 == offset).unwrap();
        if function == "small" && name.starts_with("BINARY_OP_") {
            n_specialized += count;
        }
        let of_function = by_base.entry(function.as_str()).or_default();
        *of_function.entry(base.as_str()).or_default() += count;
    }
    println!("{about}: {n_all} samples, {n_specialized} specialized, {n_without} without");
    assert!(n_all > 100, "{about}");
    let (_, minor) = python.minor();
    // What is specialized differs: 3.13 without the GIL does not.
    let is_specialized = |(_, now, base): &(u32, String, Option<String>)| {
        base.as_ref() != Some(now) && now.starts_with("BINARY_OP_")
    };
    let can = after["small"].iter().any(is_specialized);
    assert!(can || minor < 11 || python.free_threaded, "{about}");
    assert_eq!(n_specialized > 0, can, "{about}");
    for (function, bases) in DOMINATED {
        let base = bases[usize::from(minor >= 11) + usize::from(minor >= 12)];
        let of_function = &by_base[function];
        let all: i64 = of_function.values().sum();
        let own = of_function.get(base).copied().unwrap_or_default();
        println!("{about}: {function}: {own} of {all} at {base}");
        // A frame that has not begun has none.
        let without = counts.get(&(function.to_owned(), None));
        let all = all + without.copied().unwrap_or_default();
        assert!(2 * own > all, "{about}: {function}: {of_function:?}");
    }
}

#[test]
fn every_label_is_an_instruction_that_dis_shows_in_the_process() {
    let pythons: Vec<_> = interpreters::supported()
        .into_iter()
        .filter(|python| python.minor() >= (3, 8))
        .collect();
    let mut targets: Vec<_> = pythons.iter().map(workload).collect();
    let before: Vec<Places> = targets.iter_mut().map(places).collect();
    let pids: Vec<_> = targets.iter().map(Target::pid).collect();
    let recorder = Recorder::start(&SamplingConfig {
        has_instructions: true,
        ..of_pids(&pids, RATE_HZ)
    });
    for target in &mut targets {
        target.tell("");
    }
    let after: Vec<Places> = targets.iter_mut().map(places).collect();
    let profile = recorder.stop();
    for (idx, python) in pythons.iter().enumerate() {
        let counts = labels(&profile, pids[idx].0);
        check(python, &counts, &before[idx], &after[idx]);
    }
}

/// There is nothing to show of this function, and one line says why.
fn refuses(file: &str, function: &str, part: &str) {
    let output = run("report", &[file, "--bytecode", function], b"");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(
        errors.contains(part) && errors.lines().count() == 1,
        "{errors}"
    );
    assert!(output.stdout.is_empty());
}

#[test]
fn a_recording_with_instructions_is_reported_by_line_and_offset() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("app.py");
    let program = "\
import time
def spin(a, b):
    end = time.thread_time() + 1
    while time.thread_time() < end:
        for _ in range(200):
            c = a + b
    return c
spin(1 << 400000, 1 << 400001)
";
    std::fs::write(&script, program).unwrap();
    let python = interpreters::newest();
    let record = |file: &Path, flags: &[&str]| {
        let output = Command::new(binary())
            .args(["record", "--as-root", "--rate", "499", "-o"])
            .arg(file)
            .args(flags)
            .arg("--")
            .arg(&python.path)
            .arg(&script)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
    };
    let (with, without) = (
        folder.path().join("with.pb.gz"),
        folder.path().join("without.pb.gz"),
    );
    record(&with, &["--bytecode"]);
    record(&without, &[]);
    let with = with.to_str().unwrap();
    let document: Value = serde_json::from_str(&text(&run(
        "report",
        &[with, "--bytecode", "spin", "--json"],
        b"",
    )))
    .unwrap();
    let functions = document["bytecode"].as_array().unwrap();
    assert_eq!(functions.len(), 1, "{document}");
    let rows = functions[0]["instructions"].as_array().unwrap();
    let own = |row: &Value| row["self"].as_i64().unwrap();
    let most = rows.iter().max_by_key(|row| own(row)).unwrap();
    assert!(
        most["instruction"]
            .as_str()
            .unwrap()
            .starts_with("BINARY_OP"),
        "{most}"
    );
    assert_eq!(
        (most["line"].as_u64(), most["source"].as_str()),
        (Some(6), Some("            c = a + b"))
    );
    // Machine code adds large numbers.
    assert!(most["native"].as_i64() > most["python"].as_i64(), "{most}");
    assert_eq!(
        rows.iter().map(own).sum::<i64>(),
        functions[0]["self"].as_i64().unwrap()
    );
    for row in rows {
        let parts = ["python", "native", "kernel"].map(|part| row[part].as_i64().unwrap());
        assert_eq!(parts.iter().sum::<i64>(), own(row), "{row}");
    }
    let offsets: Vec<_> = rows
        .iter()
        .filter_map(|row| row["offset"].as_u64())
        .collect();
    assert!(offsets.is_sorted(), "{offsets:?}");

    let shown = text(&run("report", &[with, "--bytecode", "spin"], b""));
    println!("{shown}");
    let header = shown.find("line 6  c = a + b").unwrap();
    assert!(shown[header..].contains("BINARY_OP"), "{shown}");
    let first = text(&run(
        "report",
        &[with, "--bytecode", "spin", "--top", "1"],
        b"",
    ));
    assert_eq!(first.matches("BINARY_OP").count(), 1, "{first}");
    assert_eq!(first.matches("line ").count(), 1, "{first}");
    let by_label = text(&run("report", &[with, "--by", "instruction"], b""));
    assert!(by_label.contains("BINARY_OP"), "{by_label}");
    for (file, function, part) in [
        (without.to_str().unwrap(), "spin", "--bytecode"),
        (with, "nosuch", "no Python function"),
    ] {
        refuses(file, function, part);
    }
}
