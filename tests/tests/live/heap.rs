//! `pyagent heap` against what processes say of themselves, on every version; and that looking disturbs nobody.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::pyagent::binary;
use pyagent_tests::target::Target;
use serde_json::Value;

/// Containers of the interpreter's own: few of them are not to be found from inside.
const CONTAINERS: [&str; 7] = [
    "builtins.list",
    "builtins.dict",
    "builtins.set",
    "builtins.frozenset",
    "builtins.bytearray",
    "collections.deque",
    "array.array",
];

/// What keeps the frame of a call. There are thousands of each; the frame of `main`, and of what it calls to count, are a
/// few more or less.
const CALLS: [(&str, u64); 5] = [
    ("builtins.generator", 0),
    ("builtins.coroutine", 0),
    ("builtins.async_generator", 0),
    ("builtins.traceback", 0),
    ("builtins.frame", 4),
];

/// What lies outside of what the collector shows: tuples, strings, numbers and bytes of code objects and of variables of
/// the interpreter, and strings that are only interned. They are a fixed number; the workload's own come on top.
const VALUES: [(&str, u64); 5] = [
    ("builtins.str", 3000),
    ("builtins.tuple", 3000),
    ("builtins.int", 1500),
    ("builtins.bytes", 3500),
    ("builtins.float", 100),
];

/// Count, bytes and tracked ones by the name of the type.
type Counts = BTreeMap<String, [u64; 3]>;

fn interpreters() -> Vec<Interpreter> {
    let has_layout = |python: &Interpreter| python.minor() >= (3, 8);
    interpreters::usual()
        .into_iter()
        .filter(has_layout)
        .collect()
}

fn source() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("workloads/heap.py");
    fs::read_to_string(path).unwrap()
}

/// A heap of 80 objects or so for each unit of scale.
fn start(python: &Interpreter, scale: u32) -> Target {
    let mut target = Target::python(python, &source(), &[&scale.to_string()]);
    assert_eq!(target.line(), "ready", "{}", python.path.display());
    target
}

fn heap(target: &Target, arguments: &[&str]) -> Output {
    Command::new(binary())
        .args(["heap", "--pid", &target.pid().to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn counts(document: &Value) -> Counts {
    let entries = document["types"].as_array().unwrap();
    entries
        .iter()
        .map(|entry| {
            let name = format!(
                "{}.{}",
                entry["module"].as_str().unwrap(),
                entry["type"].as_str().unwrap()
            );
            let figures = ["count", "bytes", "tracked"].map(|key| entry[key].as_u64().unwrap());
            (name, figures)
        })
        .collect()
}

fn truth(target: &mut Target) -> Counts {
    target.tell("count");
    serde_json::from_str(&target.line()).unwrap()
}

/// The figures of a type, 0 of one of which there is none.
fn of(counts: &Counts, name: &str) -> [u64; 3] {
    counts.get(name).copied().unwrap_or_default()
}

/// How far off, in parts of the truth.
fn error(ours: u64, truth: u64) -> f64 {
    ours.abs_diff(truth) as f64 / truth.max(1) as f64
}

#[test]
fn the_counts_are_those_of_the_process_itself() {
    for python in interpreters() {
        let mut target = start(&python, 3000);
        let ours = counts(&json(&heap(&target, &["--json"])));
        let truth = truth(&mut target);
        let (mut worst_class, mut worst_container) = (0.0_f64, 0.0_f64);
        for (name, figures) in truth
            .iter()
            .filter(|(name, _)| name.starts_with("__main__."))
        {
            let found = of(&ours, name);
            let errors = [0, 1, 2].map(|idx| error(found[idx], figures[idx]));
            worst_class = errors.iter().copied().fold(worst_class, f64::max);
            assert!(
                errors.iter().all(|error| *error <= 0.001),
                "{}: {name}: {found:?}, truly {figures:?}",
                python.path.display()
            );
        }
        for name in CONTAINERS {
            let (found, figures) = (of(&ours, name), of(&truth, name));
            let errors = [0, 1].map(|idx| error(found[idx], figures[idx]));
            worst_container = errors.iter().copied().fold(worst_container, f64::max);
            assert!(
                errors.iter().all(|error| *error <= 0.02),
                "{}: {name}: {found:?}, truly {figures:?}",
                python.path.display()
            );
        }
        for (name, n_more) in CALLS {
            let (found, figures) = (of(&ours, name), of(&truth, name));
            let [count, bytes] = [0, 1].map(|idx| found[idx].abs_diff(figures[idx]));
            assert!(
                figures[0] >= 3000 && count <= n_more && bytes <= n_more * 1000,
                "{}: {name}: {found:?}, truly {figures:?}",
                python.path.display()
            );
        }
        for (name, n_hidden) in VALUES {
            let (found, figures) = (of(&ours, name), of(&truth, name));
            // From 3.15 on a bytearray keeps its bytes in an object of their own, which nothing shows.
            let n_hidden = match (name, python.minor()) {
                ("builtins.bytes", (3, 15..)) => n_hidden + of(&truth, "builtins.bytearray")[0],
                _ => n_hidden,
            };
            assert!(
                found[0] >= figures[0] - figures[0] / 1000 && found[0] <= figures[0] + n_hidden,
                "{}: {name}: {found:?}, truly {figures:?}",
                python.path.display()
            );
        }
        let (major, minor, micro) = python.version;
        println!(
            "{major}.{minor}.{micro}: classes {:.3} %, containers {:.2} %, str {:+}, tuple {:+}",
            worst_class * 100.0,
            worst_container * 100.0,
            of(&ours, "builtins.str")[0].cast_signed()
                - of(&truth, "builtins.str")[0].cast_signed(),
            of(&ours, "builtins.tuple")[0].cast_signed()
                - of(&truth, "builtins.tuple")[0].cast_signed(),
        );
    }
}

/// Pointers to variables of an interpreter that is loaded at low addresses: side by side they look like a count, a type
/// and a size of 11 MiB. So much memory is behind them, of which each word would say that a chunk ends there.
const POINTERS: &str = "
import sys
print('ready', flush=True)
sys.stdin.readline()
keep = [[True, bytes, int, None] * 2000, [True, None, bytes, int] * 2000, [True, str, int, None] * 2000]
keep.append([b'\\xff' * 100000 for _ in range(160)])
print('built', flush=True)
sys.stdin.readline()
";

#[test]
fn pointers_side_by_side_are_no_objects() {
    for python in interpreters() {
        let mut target = Target::python(&python, POINTERS, &[]);
        assert_eq!(target.asked(), "ready");
        let before = counts(&json(&heap(&target, &["--json"])));
        target.tell("");
        assert_eq!(target.asked(), "built");
        let after = counts(&json(&heap(&target, &["--json"])));
        for (name, n_objects, n_bytes) in [
            ("builtins.bytes", 160, 160 * 100_033),
            ("builtins.str", 0, 0),
        ] {
            let grown = [0, 1].map(|idx| {
                of(&after, name)[idx].cast_signed() - of(&before, name)[idx].cast_signed()
            });
            // Beside them: a line that was read, names that were interned, and what the interpreter let go meanwhile.
            assert!(
                (grown[0] - n_objects).abs() < 8 && (grown[1] - n_bytes).abs() < 4096,
                "{}: {name} grew by {grown:?}",
                python.path.display()
            );
        }
    }
}

#[test]
fn what_grew_since_a_mark_is_shown() {
    for python in interpreters() {
        let state = tempfile::tempdir().unwrap();
        let mut target = start(&python, 100);
        let run = |target: &Target, arguments: &[&str]| {
            Command::new(binary())
                .args(["heap", "--pid", &target.pid().to_string()])
                .args(arguments)
                .env("XDG_STATE_HOME", state.path())
                .output()
                .unwrap()
        };
        let early = run(&target, &["--diff"]);
        let message = String::from_utf8_lossy(&early.stderr);
        assert_eq!(early.status.code(), Some(1), "{message}");
        assert!(
            message.contains("--mark") && message.lines().count() == 1,
            "{message}"
        );
        assert!(run(&target, &["--mark"]).status.success());
        target.tell("grow 5000");
        assert_eq!(target.line(), "grown");
        let changes = json(&run(&target, &["--diff", "--json"]));
        let grown = changes["types"]
            .as_array()
            .unwrap()
            .iter()
            .find(|change| change["type"] == "Grown")
            .unwrap_or_else(|| panic!("{}: {changes}", python.path.display()));
        assert_eq!(grown["count_change"], 5000, "{}", python.path.display());
        assert_eq!(grown["module"], "__main__");
    }
}

#[test]
fn who_refers_to_an_object_is_shown() {
    const CODE: &str = "\
import sys
class Leak: pass
class Holder: pass
holder = Holder()
holder.it = Leak()
in_list = [Leak() for _ in range(3)]
in_dict = {'a': Leak()}
in_set = {Leak()}
in_tuple = (Leak(),)
class Slotted: __slots__ = ('it',)
slotted = Slotted()
slotted.it = Leak()
print('ready', flush=True)
sys.stdin.readline()
";
    for python in interpreters() {
        let mut target = Target::python(&python, CODE, &[]);
        assert_eq!(target.line(), "ready");
        let shown = json(&heap(&target, &["--show", "__main__.Leak", "--json"]));
        assert_eq!(shown["count"], 8, "{}: {shown}", python.path.display());
        let referrers: BTreeMap<&str, u64> = shown["referrers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| {
                (
                    row["type"].as_str().unwrap(),
                    row["count"].as_u64().unwrap(),
                )
            })
            .collect();
        for (name, count) in [
            ("list", 3),
            ("set", 1),
            ("tuple", 1),
            ("__main__.Slotted", 1),
        ] {
            assert_eq!(
                referrers.get(name),
                Some(&count),
                "{}: {shown}",
                python.path.display()
            );
        }
        // An attribute is held by the instance from 3.11 on, and by its dict before.
        let in_attributes = referrers.get("__main__.Holder").copied().unwrap_or(0)
            + referrers.get("dict").copied().unwrap_or(0);
        assert_eq!(in_attributes, 2, "{}: {shown}", python.path.display());
    }
}

#[test]
fn looking_does_not_disturb() {
    for python in interpreters() {
        let mut target = start(&python, 500);
        let mut rss = || {
            target.tell("rss");
            let answer: Value = serde_json::from_str(&target.line()).unwrap();
            answer
        };
        // What answering itself needs is there from then on.
        rss();
        let before = rss();
        let pid = target.pid();
        for _ in 0..3 {
            let output = Command::new(binary())
                .args(["heap", "--json", "--pid", &pid.to_string()])
                .output()
                .unwrap();
            assert!(output.status.success());
        }
        // The process itself reads its figures; nothing but that may differ.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let rss_kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .and_then(|number| number.parse::<u64>().ok());
        let after = {
            target.tell("rss");
            let answer: Value = serde_json::from_str(&target.line()).unwrap();
            answer
        };
        assert_eq!(after["major_faults"], before["major_faults"]);
        assert_eq!(after["swap_kib"], before["swap_kib"]);
        let before_kib = before["rss_kib"].as_u64().unwrap();
        // The kernel batches its counts by CPU: 64 pages a thread at most.
        assert!(
            rss_kib.unwrap().abs_diff(before_kib) <= 256,
            "{}: {before_kib} KiB, then {rss_kib:?}",
            python.path.display()
        );
    }
}

#[test]
fn memory_that_was_never_touched_is_not_read() {
    let python = interpreters::newest();
    const CODE: &str = "\
import mmap, sys
untouched = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print('ready', flush=True)
sys.stdin.readline()
";
    let mut target = Target::python(&python, CODE, &[]);
    assert_eq!(target.line(), "ready");
    let document = json(&heap(&target, &["--json"]));
    assert!(document["bytes_read"].as_u64().unwrap() < 64 << 20);
    let status = fs::read_to_string(format!("/proc/{}/status", target.pid())).unwrap();
    assert!(status.contains("VmRSS"), "it lives");
}

#[test]
fn a_process_near_its_memory_limit_survives() {
    let root = PathBuf::from("/sys/fs/cgroup");
    let (group, limit, usage) = if root.join("cgroup.controllers").is_file() {
        (
            root.join("pyagent-test-heap"),
            "memory.max",
            "memory.current",
        )
    } else {
        (
            root.join("memory/pyagent-test-heap"),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        )
    };
    if fs::create_dir_all(&group).is_err() || !group.join(limit).is_file() {
        eprintln!("skipped: no control group of memory can be made");
        let _ = fs::remove_dir(&group);
        return;
    }
    let python = interpreters::newest();
    // It enters the group itself, before it makes its heap: what it has then counts there.
    let code = format!(
        "open({:?}, 'w').write('0')\n{}",
        group.join("cgroup.procs").display().to_string(),
        source()
    );
    let mut target = Target::python(&python, &code, &["1000"]);
    assert_eq!(target.line(), "ready");
    let used: u64 = fs::read_to_string(group.join(usage))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    fs::write(group.join(limit), (used + (1 << 20)).to_string()).unwrap();
    for _ in 0..3 {
        json(&heap(&target, &["--json"]));
    }
    target.tell("rss");
    assert!(target.line().contains("rss_kib"), "it lives");
    assert!(target.finish().success());
    fs::remove_dir(&group).unwrap();
}

#[test]
fn what_cannot_be_read_is_one_line_with_the_reason() {
    let one_line = |arguments: &[&str], code: i32, words: &[&str]| {
        let output = Command::new(binary())
            .arg("heap")
            .args(arguments)
            .output()
            .unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        for word in words {
            assert!(message.contains(word), "{word}: {message}");
        }
    };
    one_line(&["--pid", "999999999"], 4, &["no process"]);
    let mut sleep = Command::new("sleep").arg("60").spawn().unwrap();
    one_line(&["--pid", &sleep.id().to_string()], 4, &["no CPython"]);
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    let free_threaded = interpreters::supported()
        .into_iter()
        .find(|python| python.free_threaded);
    match free_threaded {
        None => eprintln!("skipped: no free-threaded CPython"),
        Some(python) => {
            let target = start(&python, 10);
            one_line(&["--pid", &target.pid().to_string()], 1, &["free-threaded"]);
        }
    }
}

#[test]
fn a_chart_is_written_while_the_process_runs_and_complete_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("heap.html");
    let mut target = start(&interpreters::newest(), 100);
    let mut pyagent = Command::new(binary())
        .args([
            "heap",
            "--pid",
            &target.pid().to_string(),
            "--every",
            "200ms",
            "-o",
        ])
        .arg(&page)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let errors = std::io::BufReader::new(pyagent.stderr.take().unwrap());
    let mut lines = std::io::BufRead::lines(errors);
    lines.next().unwrap().unwrap();
    target.tell("grow 3000");
    assert_eq!(target.line(), "grown");
    // One look may have begun before.
    for _ in 0..2 {
        lines.next().unwrap().unwrap();
    }
    assert!(target.finish().success());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(rest.last().unwrap().contains("complete"), "{rest:?}");
    assert!(pyagent.wait().unwrap().success());
    let html = fs::read_to_string(&page).unwrap();
    assert!(
        html.contains("__main__.Grown") && html.contains("+3,000"),
        "{html}"
    );
}
