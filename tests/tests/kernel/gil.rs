//! Who held the global interpreter lock when a sample was taken: two threads, one that needs it always and one that gives it
//! away, each known by its function. Root.

use std::process::{Command, Output};

use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::pyagent::{Pyagent, binary, run, text};
use pyagent_tests::target::Target;
use serde_json::Value;

/// `holds` computes in Python, `releases` a hash in C, which CPython's documentation says is done without the GIL.
const TWO: &str = r"
import hashlib, threading
def holds():
    while True:
        for _ in range(1000): pass
def releases():
    data = b'x' * (64 << 20)
    while True:
        hashlib.sha256(data)
threading.Thread(target=releases, name='releases', daemon=True).start()
print('ready', flush=True)
holds()
";

fn two(python: &Interpreter) -> Target {
    let mut target = Target::python(python, TWO, &[]);
    assert_eq!(target.line(), "ready");
    target
}

/// Samples by their label, of those with a function in the stack.
fn by_gil(path: &str, thread: Option<&str>) -> (f64, f64, f64) {
    let mut arguments = vec![
        path.to_owned(),
        "--by".to_owned(),
        "gil".to_owned(),
        "--json".to_owned(),
    ];
    if let Some(thread) = thread {
        arguments.extend(["--filter".to_owned(), format!("thread_name={thread}")]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let rows: Value = serde_json::from_str(&text(&run("report", &arguments, b""))).unwrap();
    let of = |value: &str| {
        let rows = rows["by"].as_array().unwrap().iter();
        let row = rows.filter(|row| row["labels"]["gil"].as_str().unwrap_or("") == value);
        row.map(|row| row["samples"].as_f64().unwrap()).sum::<f64>()
    };
    (of("held"), of("released"), of(""))
}

fn record(target: &Target, path: &str, more: &[&str]) -> Output {
    Command::new(binary())
        .args([
            "record",
            "-d",
            "3s",
            "--pid",
            &target.pid().to_string(),
            "-o",
            path,
        ])
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn each_sample_says_whether_its_thread_held_the_gil() {
    let pythons = interpreters::supported();
    // Of older ones it is not known everywhere.
    let mut with_gil = pythons
        .iter()
        .filter(|it| it.minor() >= (3, 8) && !it.free_threaded && it.has_libraries());
    let (first, last) = (with_gil.next().unwrap(), with_gil.next_back().unwrap());
    for python in [first, last] {
        let target = two(python);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.pb.gz");
        let path = path.to_str().unwrap();
        let _ = text(&record(&target, path, &[]));
        let (held, released, unknown) = by_gil(path, Some("MainThread"));
        eprintln!("{:?} holds: {held} {released} {unknown}", python.version);
        let n = held + released + unknown;
        // Each 5 ms it lets the other one try.
        assert!(n > 5.0 && held > 0.9 * n, "{held} {released} {unknown}");
        let (held, released, unknown) = by_gil(path, Some("releases"));
        eprintln!("{:?} releases: {held} {released} {unknown}", python.version);
        let n = held + released + unknown;
        assert!(n > 5.0 && released > 0.9 * n, "{held} {released} {unknown}");

        // Only those that held it, of the file and of a recording of its own.
        let all = by_gil(path, None);
        let only: Value = serde_json::from_str(&text(&run(
            "report",
            &[path, "--gil", "--by", "gil", "--json"],
            b"",
        )))
        .unwrap();
        let only = only["by"].as_array().unwrap().clone();
        assert_eq!(only.len(), 1, "{only:?}");
        assert_eq!(only[0]["samples"].as_f64(), Some(all.0));
        let held_path = folder.path().join("held.pb.gz");
        let held_path = held_path.to_str().unwrap();
        let _ = text(&record(&target, held_path, &["--gil"]));
        let (held, released, unknown) = by_gil(held_path, None);
        assert!(
            held > 5.0 && released + unknown == 0.0,
            "{held} {released} {unknown}"
        );

        // In `top` a column: the same share for each function.
        let pid = target.pid().to_string();
        let seen = run(
            "top",
            &[
                "--pid",
                &pid,
                "-d",
                "3s",
                "--json",
                "--threads",
                "--function",
            ],
            b"",
        );
        let seen: Value = serde_json::from_str(&text(&seen)).unwrap();
        let percent = |name: &str, what: &str| {
            let mut rows = seen["functions"].as_array().unwrap().iter();
            let row = rows.find(|row| row["function"] == name).unwrap();
            row[what].as_f64().unwrap()
        };
        assert!(
            percent("holds", "gil_percent") > 0.9 * percent("holds", "total_percent"),
            "{seen}"
        );
        assert!(
            percent("releases", "gil_percent") < 0.1 * percent("releases", "total_percent"),
            "{seen}"
        );
        let only = text(&run(
            "top",
            &["--pid", &pid, "-d", "2s", "--gil", "--function"],
            b"",
        ));
        assert!(only.contains("%GIL") && only.contains("holds ("), "{only}");
    }
}

#[test]
fn without_a_gil_it_is_said_so() {
    let pythons = interpreters::supported();
    let Some(python) = pythons
        .iter()
        .rev()
        .find(|it| it.free_threaded && it.has_libraries())
    else {
        eprintln!("there is no free-threaded interpreter here");
        return;
    };
    let target = two(python);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.pb.gz");
    let path = path.to_str().unwrap();
    let output = record(&target, path, &["--gil"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("free-threaded Python has none"), "{said}");
    assert!(
        said.contains("no samples: no thread that was seen held the GIL"),
        "{said}"
    );
    let seen = text(&run(
        "top",
        &["--pid", &target.pid().to_string(), "-d", "1s"],
        b"",
    ));
    assert!(
        !seen.contains("%GIL") && seen.contains("GIL not known"),
        "{seen}"
    );
}

#[test]
fn an_agent_is_asked_for_it_too_and_waiting_cannot_be_told() {
    let target = two(&interpreters::newest());
    let pid = target.pid().to_string();
    let agent = Pyagent::start(&["--pid", &pid, "--listen", "127.0.0.1:0"], "serving");
    let address = agent.address();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("held.pb.gz");
    let path = path.to_str().unwrap();
    let _ = text(&run(
        "pull",
        &[&address, "-d", "2s", "--gil", "-o", path],
        b"",
    ));
    let (held, released, unknown) = by_gil(path, None);
    assert!(
        held > 5.0 && released + unknown == 0.0,
        "{held} {released} {unknown}"
    );
    for arguments in [
        &["record", "--idle", "--pid", &pid][..],
        &["top", "--idle", "--pid", &pid],
        &["pull", &address, "--idle"],
        &["report", path, "--idle"],
    ] {
        let output = run(arguments[0], &arguments[1..], b"");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("--idle cannot be answered yet"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
