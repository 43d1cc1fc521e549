//! `report --lines` over recordings of programs that say themselves what their lines took: of time by the thread's own
//! clock, of memory by counting. And py-spy's words on `record` and `dump`. Root.

use std::fs;
use std::path::Path;
use std::process::Command;

use pyagent_tests::interpreters;
use pyagent_tests::pyagent::{binary, run, text};
use pyagent_tests::target::Target;
use serde_json::Value;

/// Each line of `work` takes so much of the thread's CPU time as the program says: in Python, in a library, in the kernel.
/// A loop over numbers would be in machine code too, where the interpreter makes them.
const TIMED: &str = "\
import hashlib, json, os, sys, time

took = {}

def timed(kind, line, before):
    took[line] = [kind, time.thread_time_ns() - before + took.get(line, [kind, 0])[1]]

def work(blanks, data, nothing):
    before = time.thread_time_ns()
    for _ in blanks: pass
    timed('python', 10, before)
    before = time.thread_time_ns()
    hashlib.sha256(data)
    timed('native', 13, before)
    before = time.thread_time_ns()
    os.pread(nothing, 1 << 25, 0)
    timed('kernel', 16, before)

blanks = (None,) * 4_000_000
data = bytes(1 << 24)
nothing = os.open('/dev/zero', os.O_RDONLY)
end = time.thread_time() + float(sys.argv[1])
while time.thread_time() < end:
    work(blanks, data, nothing)
with open(sys.argv[2], 'w') as file:
    json.dump(took, file)
";

fn pyagent(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new(binary());
    let output = command
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
}

fn lines_of(folder: &Path, file: &str, more: &[&str], function: &str) -> Value {
    let file = folder.join(file);
    let arguments = [&[file.to_str().unwrap(), "--lines", "--json"], more].concat();
    let document: Value = serde_json::from_str(&text(&run("report", &arguments, b""))).unwrap();
    let functions = document["lines"].as_array().unwrap();
    let found = functions.iter().find(|it| it["function"] == function);
    found.unwrap_or_else(|| panic!("no {function}: {document}"))["lines"].clone()
}

fn line(lines: &Value, number: u32) -> &Value {
    let mut lines = lines.as_array().unwrap().iter();
    let found = lines.find(|it| it["line"] == number);
    found.unwrap_or_else(|| panic!("no line {number}"))
}

#[test]
fn lines_take_what_the_program_measures_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("timed.py");
    fs::write(&script, TIMED).unwrap();
    let took = folder.path().join("took.json");
    let python = interpreters::newest();
    let (script, took) = (script.to_str().unwrap(), took.to_str().unwrap());
    let record = [
        "record",
        "--rate",
        "997",
        "-o",
        "cpu.pb.gz",
        "--",
        python.path.to_str().unwrap(),
        "-I",
        "-B",
        script,
        "3",
        took,
    ];
    pyagent(folder.path(), &record);
    let took: Value = serde_json::from_str(&fs::read_to_string(took).unwrap()).unwrap();
    let lines = lines_of(folder.path(), "cpu.pb.gz", &[], "work");
    let timed = took.as_object().unwrap();
    let all_nanoseconds: f64 = timed.values().map(|its| its[1].as_f64().unwrap()).sum();
    let samples = |number: &String| line(&lines, number.parse().unwrap())["samples"].as_f64();
    let all_samples: f64 = timed.keys().map(|number| samples(number).unwrap()).sum();
    assert!(all_samples > 300.0, "{all_samples} in 3 s");
    for (number, its) in timed {
        let number: u32 = number.parse().unwrap();
        let (kind, nanoseconds) = (its[0].as_str().unwrap(), its[1].as_f64().unwrap());
        let its = line(&lines, number);
        // Of what all three take: a timer that did not fire on a busy machine is nobody's sample.
        let expected = nanoseconds / all_nanoseconds;
        let seen = its["samples"].as_f64().unwrap() / all_samples;
        // Samples come in even distances, which is less than chance; five of its deviations, and one part in a hundred for
        // the clock's own calls.
        let deviation = (expected * (1.0 - expected) / all_samples).sqrt();
        assert!(
            (seen - expected).abs() < 5.0 * deviation + 0.01,
            "{number}: {seen}, not {expected}, of {all_samples}"
        );
        // All of it is where the program says, but what Python does to call it.
        let split = ["python", "native", "kernel"].map(|part| its[part].as_f64().unwrap());
        let whole: f64 = split.iter().sum();
        let own = its[kind].as_f64().unwrap();
        println!(
            "{number}: {seen} samples, {expected:.0} by the program; {kind} {:.3}",
            own / whole
        );
        assert!(own / whole > 0.9, "{number}: {kind} {split:?}");
        assert_eq!(
            its["source"].as_str().unwrap(),
            TIMED.lines().nth(number as usize - 1).unwrap()
        );
    }
    // The page has the same.
    let (cpu, page) = (
        folder.path().join("cpu.pb.gz"),
        folder.path().join("page.html"),
    );
    let arguments = [
        cpu.to_str().unwrap(),
        "--lines",
        "--html",
        "-o",
        page.to_str().unwrap(),
    ];
    assert_eq!(text(&run("report", &arguments, b"")), "");
    let page = fs::read_to_string(&page).unwrap();
    let (_, data) = page
        .split_once("<script type=\"application/json\" id=\"data\">")
        .unwrap();
    let data: Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
    let files = data["files"].as_array().unwrap();
    let file = files.iter().find(|file| file["name"] == script).unwrap();
    let cpu = data["types"]
        .as_array()
        .unwrap()
        .iter()
        .position(|it| it["kind"] == "cpu")
        .unwrap();
    let column = &file["amounts"][cpu];
    for (idx, at) in file["at"].as_array().unwrap().iter().enumerate() {
        let number = file["lines"][at.as_u64().unwrap() as usize]
            .as_u64()
            .unwrap() as u32;
        if [10, 13, 16].contains(&number) {
            for part in ["total", "python", "native", "kernel"] {
                assert_eq!(
                    column[part][idx],
                    line(&lines, number)[part],
                    "{number} {part}"
                );
            }
        }
    }
}

/// What `keep` allocates stays, what `drop` does is given back. Each block is sampled: it is 16 times the period.
const ALLOCATING: &str = "\
import sys, time
kept = []
def work():
    for _ in range(24):
        kept.append(bytearray(8 << 20))
        bytearray(8 << 20)
sys.stdin.readline()
work()
print('done', flush=True)
sys.stdin.readline()
";

#[test]
fn lines_allocate_and_keep_what_the_program_counts() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("allocating.py");
    fs::write(&script, ALLOCATING).unwrap();
    let python = interpreters::newest();
    let mut target = Target::start(Command::new(&python.path).args(["-I", "-B"]).arg(&script));
    let pid = target.pid().to_string();
    let mut recording = Command::new(binary())
        .current_dir(folder.path())
        .args([
            "record",
            "--type",
            "alloc",
            "--alloc-budget",
            "100%",
            "--pid",
            &pid,
            "-o",
            "mem.pb.gz",
        ])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(recording.stderr.take().unwrap());
    let mut line_said = String::new();
    // It says what probes cost when they stand.
    while !line_said.contains("a probe costs") {
        line_said.clear();
        let n_bytes = std::io::BufRead::read_line(&mut said, &mut line_said).unwrap();
        assert!(n_bytes > 0, "the recording ended");
    }
    target.tell("");
    assert_eq!(target.line(), "done");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(recording.id() as i32),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    assert!(recording.wait().unwrap().success());
    drop(target);
    let lines = lines_of(
        folder.path(),
        "mem.pb.gz",
        &["--value", "inuse_space"],
        "work",
    );
    let block = f64::from(8 << 20);
    let whole = 24.0 * block;
    for (number, allocated, kept) in [(5, whole, whole), (6, whole, 0.0)] {
        let values = &line(&lines, number)["values"];
        let value = |kind: &str| values[kind].as_f64().unwrap();
        println!("{number}: {values}");
        // A block of 16 periods is missed once in e^16.
        assert!(
            (value("alloc_space") - allocated).abs() < 0.01 * whole,
            "{number}: {values}"
        );
        assert!(
            (value("inuse_space") - kept).abs() < 0.01 * whole,
            "{number}: {values}"
        );
        assert!(
            (value("alloc_objects") - 24.0).abs() < 1.0,
            "{number}: {values}"
        );
    }
}

#[test]
fn words_of_py_spy_are_taken_by_record_and_dump() {
    const SPIN: &str = "\
import subprocess, sys, threading
print('ready', flush=True)
if len(sys.argv) > 1:
    child = subprocess.Popen([sys.executable, '-I', '-S', '-B', '-c', sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    print(child.pid, flush=True)
def spin():
    while True:
        for i in range(1000):
            pass
threading.Thread(target=spin, name='Worker', daemon=True).start()
sys.stdin.readline()
";
    let folder = tempfile::tempdir().unwrap();
    let python = interpreters::newest();
    let mut target = Target::python(&python, SPIN, &[SPIN]);
    assert_eq!(target.line(), "ready");
    let child = target.line();
    let pid = target.pid().to_string();
    let record = |name: &str, more: &[&str]| {
        let arguments = [&["record", "--pid", &pid, "-d", "1s", "-o", name], more].concat();
        pyagent(folder.path(), &arguments);
        fs::read_to_string(folder.path().join(name)).unwrap()
    };
    let usual = record("usual.folded", &["--native"]);
    assert!(
        usual.contains("spin (<string>:") && !usual.contains("thread ("),
        "{usual}"
    );
    let threads = record(
        "threads.folded",
        &["--threads", "--function", "--no-native"],
    );
    assert!(
        threads.lines().all(|line| line.starts_with("thread (")),
        "{threads}"
    );
    assert!(threads.contains("): Worker;"), "{threads}");
    // One line of a function: its first one.
    let places = threads
        .split(';')
        .filter_map(|it| it.strip_prefix("spin (")?.split(')').next());
    let places: std::collections::BTreeSet<&str> = places.collect();
    assert_eq!(Vec::from_iter(places), ["<string>:7"], "{threads}");
    let bare = record("bare.folded", &["--nolineno"]);
    assert!(
        bare.contains("spin (<string>)") && !bare.contains("<string>:"),
        "{bare}"
    );
    let dump = |more: &[&str]| run("dump", &[&["--pid", &pid], more].concat(), b"");
    assert_eq!(text(&dump(&[])).matches("\nthread ").count(), 2);
    let dumped = text(&dump(&["--subprocesses"]));
    assert!(dumped.contains(&format!("process {child}: ")), "{dumped}");
    let output = dump(&["--native"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be answered yet"));
}
