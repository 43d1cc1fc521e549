//! What the resident memory of a process is made of, against programs that make memory of every kind and say how much.

use std::collections::BTreeMap;
use std::process::Command;

use profiler_agent::heap::parts;
use profiler_agent::process::resident;
use profiler_agent::profile::memory::Parts;
use pyagent_tests::compiler::workload;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::target::Target;

/// Largest error of a part that has its own mark, and of the sum.
const MAX_ERROR: f64 = 0.05;

/// What the interpreter needs for itself between two looks.
const BESIDE: u64 = 1 << 20;

fn by_name(parts: &Parts) -> BTreeMap<&'static str, u64> {
    BTreeMap::from([
        ("small_objects", parts.small_objects),
        ("small_objects_in_use", parts.small_objects_in_use),
        ("malloc", parts.malloc),
        ("mmap", parts.mmap),
        ("shared_memory", parts.shared),
        ("mapped_files", parts.files),
    ])
}

/// Where an allocator leaves no marks, its memory counts with that of others: what to count together.
fn groups(python: &Interpreter) -> Vec<Vec<&'static str>> {
    let mut groups = vec![vec!["shared_memory"], vec!["mapped_files"]];
    if python.free_threaded {
        groups.push(vec!["small_objects", "malloc", "mmap"]);
    } else if python.build.contains("musl") {
        groups.push(vec!["small_objects"]);
        groups.push(vec!["malloc", "mmap"]);
    } else {
        groups.push(vec!["small_objects"]);
        groups.push(vec!["small_objects_in_use"]);
        groups.push(vec!["malloc"]);
        groups.push(vec!["mmap"]);
    }
    groups
}

#[test]
fn each_part_is_what_the_program_made_and_together_they_are_what_is_resident() {
    let folder = tempfile::tempdir().unwrap();
    let script = workload("parts.py");
    let mut wrong = Vec::new();
    let mut n_builds = 0;
    for python in interpreters::supported() {
        // The debug hooks put 32 bytes around each block.
        if !python.has_libraries() || python.is_debug() {
            continue;
        }
        let name = format!("{:?} {}", python.version, python.build);
        let mut command = Command::new(&python.path);
        command.args(["-I", "-S", "-B"]).arg(&script);
        // Behind the root of the interpreter there may be no such folder.
        let mut target = Target::start(command.arg(if python.has_own_root() {
            "/tmp".as_ref()
        } else {
            folder.path().as_os_str()
        }));
        assert_eq!(target.line(), "ready", "{name}");
        let interpreter = target.interpreter();
        let before = by_name(&parts::of_process(target.pid(), &interpreter).unwrap());
        target.tell("");
        let said = target.line();
        let said: BTreeMap<String, u64> =
            serde_json::from_str(&said).unwrap_or_else(|error| panic!("{name}: {error}: {said}"));
        let parts = parts::of_process(target.pid(), &interpreter).unwrap();
        let after = by_name(&parts);
        for group in groups(&python) {
            let found: u64 = group
                .iter()
                .map(|part| after[part] - before[part].min(after[part]))
                .sum();
            let expected: u64 = group.iter().map(|part| said[*part]).sum();
            eprintln!("{name}: {} {found} of {expected}", group.join(" + "));
            let allowed = (expected as f64 * MAX_ERROR) as u64 + BESIDE;
            // mimalloc keeps pages for sizes and threads that come.
            let is_kept = python.free_threaded && found > expected;
            if found.abs_diff(expected) > allowed && !is_kept {
                wrong.push(format!("{name}: {group:?} grew by {found}, not {expected}"));
            }
        }
        let total = resident::read(target.pid()).unwrap().total();
        eprintln!("{name}: {} of {total} resident", parts.total());
        if parts.total().abs_diff(total) as f64 > total as f64 * MAX_ERROR {
            wrong.push(format!("{name}: {parts:?} are not {total} together"));
        }
        n_builds += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(n_builds > 0);
}

/// A thread that waits in a deep recursion of C: its stack is large.
const DEEP: &str = "
import sys, threading
sys.setrecursionlimit(100000)
threading.stack_size(256 << 20)
def wait(*args):
    print('ready', flush=True)
    sys.stdin.readline()
    return 'x'
def recurse(n, key=None):
    if n == 0:
        return wait()
    return sorted([n], key=lambda it: recurse(n - 1))
threading.Thread(target=recurse, args=(int(sys.argv[1]),)).start()
";

#[test]
fn stacks_of_threads_are_a_part() {
    for python in interpreters::usual() {
        if python.has_own_root() {
            continue;
        }
        let mut target = Target::python(&python, DEEP, &["400"]);
        assert_eq!(target.line(), "ready", "{python:?}");
        let interpreter = target.interpreter();
        let parts = parts::of_process(target.pid(), &interpreter).unwrap();
        eprintln!("{:?}: {parts:?}", python.version);
        // `sorted` calls the key function from C: at least 200 bytes a call, on any compiler.
        assert!(parts.stacks > 400 * 200, "{:?}: {parts:?}", python.version);
        let total = resident::read(target.pid()).unwrap().total();
        assert!(parts.total().abs_diff(total) as f64 <= total as f64 * MAX_ERROR);
        target.tell("");
    }
}
