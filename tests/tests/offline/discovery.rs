//! What the agent makes of a process that is no usual CPython: tables of offsets that lie, versions that nobody knows
//! yet, programs of another architecture, a library that comes late. It reads processes, and loads no program.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use profiler_agent::ids::{Generation, Pid};
use profiler_agent::python::discover::{Discoverer, Discovery};
use profiler_agent::python::layout::Version;
use profiler_agent::python::refusal::{Reason, Refusal};
use profiler_agent::track::process::{ProcessListing, TrackState};
use profiler_agent::track::tracker::{KernelTable, Selection, Tracker};
use profiler_common::layout::PyLayout;
use profiler_common::process::ProcessEntry;
use pyagent_tests::compiler;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::target::Target;

/// Works until its standard input closes; its stack has functions to look at.
const WORK: &str = "
import sys, threading
def work():
    while True:
        for i in range(1000):
            pass
def begin():
    work()
threading.Thread(target=begin, daemon=True).start()
print('ready', flush=True)
sys.stdin.read()
";

/// Words of `_Py_DebugOffsets` (`Include/internal/pycore_runtime.h`, later `pycore_debug_offsets.h`).
const VERSION_WORD: usize = 1;

/// `code_object.qualname` and `.linetable`, by minor version.
const QUALNAME_AND_LINE_TABLE: [((u8, u8), usize, usize); 3] =
    [((3, 13), 37, 38), ((3, 14), 42, 43), ((3, 15), 50, 51)];

fn start(python: &Interpreter) -> Target {
    let mut target = Target::python(python, WORK, &[]);
    assert_eq!(target.line(), "ready");
    target
}

fn discover(pid: Pid) -> Discovery {
    Discoverer::default().discover(pid, &mut |_| {})
}

/// A CPython with a table of offsets, and the words of its table that say where names and lines are.
fn with_table() -> Vec<(Interpreter, usize, usize)> {
    let words = |python: &Interpreter| {
        let row = QUALNAME_AND_LINE_TABLE.iter();
        row.copied().find(|(minor, ..)| *minor == python.minor())
    };
    let found: Vec<_> = interpreters::supported()
        .into_iter()
        .filter_map(|python| words(&python).map(|(_, name, lines)| (python, name, lines)))
        .collect();
    if found.is_empty() {
        eprintln!("skipped: no CPython 3.13 or newer");
    }
    found
}

/// The memory of a process, for writing.
fn memory(pid: Pid) -> File {
    File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))
        .unwrap()
}

fn word(memory: &File, address: u64) -> u64 {
    let mut bytes = [0; 8];
    memory.read_exact_at(&mut bytes, address).unwrap();
    u64::from_ne_bytes(bytes)
}

#[test]
fn offsets_that_lie_are_refused_with_the_reason() {
    for (python, name, lines) in with_table() {
        let target = start(&python);
        let interpreter = target.interpreter();
        assert!(interpreter.is_verified, "{}", python.path.display());
        let memory = memory(target.pid());
        let at = |idx: usize| interpreter.runtime.0 + 8 * idx as u64;
        let (old_name, old_lines) = (word(&memory, at(name)), word(&memory, at(lines)));
        assert_eq!(old_name, u64::from(interpreter.layout.code.qualname));
        assert_eq!(old_lines, u64::from(interpreter.layout.code.line_table));
        // Each still looks like an offset into a code object.
        for (idx, wrong) in [(name, old_lines), (lines, old_name)] {
            let right = word(&memory, at(idx));
            memory.write_all_at(&wrong.to_ne_bytes(), at(idx)).unwrap();
            let Discovery::Refused { refusal, .. } = discover(target.pid()) else {
                panic!(
                    "{}: word {idx} lies, and is believed",
                    python.path.display()
                );
            };
            assert_eq!(refusal.reason(), Reason::FramesUnsound, "{refusal}");
            memory.write_all_at(&right.to_ne_bytes(), at(idx)).unwrap();
        }
        // What is no offset at all is seen before any frame is looked at.
        memory
            .write_all_at(&u64::MAX.to_ne_bytes(), at(lines))
            .unwrap();
        let Discovery::Refused { refusal, .. } = discover(target.pid()) else {
            panic!(
                "{}: a word without an offset is believed",
                python.path.display()
            );
        };
        assert_eq!(refusal.reason(), Reason::OffsetsUnusable, "{refusal}");
    }
}

#[test]
fn a_version_that_nobody_knows_is_profiled_when_its_offsets_stand_the_test() {
    let mut newest = with_table().into_iter().map(|(python, ..)| python);
    let Some(python) = newest.rfind(|python| python.minor() == (3, 15)) else {
        eprintln!("skipped: no CPython 3.15");
        return;
    };
    let target = start(&python);
    let interpreter = target.interpreter();
    let version = u64::from(Version::new(3, 16, 0).0);
    let address = interpreter.runtime.0 + 8 * VERSION_WORD as u64;
    memory(target.pid())
        .write_all_at(&version.to_ne_bytes(), address)
        .unwrap();
    let later = target.interpreter();
    assert_eq!(Version(later.layout.walk.version_hex).minor(), (3, 16));
    assert!(later.is_verified);
    assert_eq!(later.layout.code, interpreter.layout.code);
}

#[test]
fn a_program_for_another_architecture_is_named_as_one() {
    if !compiler::is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("pause.s");
    // System call 29 of 32-bit x86: `pause`.
    let text = ".globl _start\n_start: mov $29, %eax\n int $0x80\n jmp _start\n";
    fs::write(&source, text).unwrap();
    let program = folder.path().join("python3.11");
    compiler::compile(&source, &program, &["-m32", "-nostdlib", "-static"]);
    let target = match Command::new(&program).spawn() {
        Ok(child) => Killed(child),
        Err(error) => {
            eprintln!("skipped: this kernel runs no 32-bit programs: {error}");
            return;
        }
    };
    let pid = Pid(target.0.id());
    wait_until_mapped(pid, &program);
    match discover(pid) {
        Discovery::Refused {
            refusal: Refusal::OtherArchitecture(path),
            ..
        } => assert_eq!(Path::new(&path), program),
        other => panic!("{other:?}"),
    }
}

/// A CPython with a shared library that C programs can be made for.
fn with_library() -> Option<Interpreter> {
    let has_library = |python: &Interpreter| {
        python.build.contains("shared")
            && !python.has_own_root()
            && compiler::headers_of(python).is_some()
    };
    let python = interpreters::supported().into_iter().rfind(has_library);
    if python.is_none() {
        eprintln!("skipped: no CPython with a shared library and headers");
    }
    python.filter(|_| compiler::is_there())
}

#[test]
fn a_program_that_is_linked_against_libpython_is_waited_for() {
    let Some(python) = with_library() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("late.c"), folder.path().join("python3"));
    fs::write(
        &source,
        "int Py_BytesMain(int argc, char **argv);\n\
         int main(int argc, char **argv) { return Py_BytesMain(argc, argv); }\n",
    )
    .unwrap();
    let (major, minor) = python.minor();
    let arguments = [
        format!("-L{}", python.stdlib.parent().unwrap().display()),
        format!("-Wl,-rpath,{}", folder.path().display()),
        format!("-lpython{major}.{minor}"),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    compiler::compile(&source, &program, &arguments);
    // A loader that takes its time: it waits until somebody writes to this.
    let library = folder
        .path()
        .join(format!("libpython{major}.{minor}.so.1.0"));
    nix::unistd::mkfifo(&library, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let waiting = Killed(Command::new(&program).spawn().unwrap());
    let pid = Pid(waiting.0.id());
    wait_until_mapped(pid, &program);
    assert_eq!(
        discover(pid),
        Discovery::NotPython { expected: true },
        "libpython is not mapped yet"
    );
}

/// Makes interpreters in one of the ways that there are, once it is told which.
const INTERPRETERS: &str = "
import sys
def low_level(*kind):
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    return [interpreters.create(*kind) for _ in range(3)]
def legacy():
    return low_level('legacy') if sys.version_info >= (3, 13) else low_level()
def module():
    from concurrent import interpreters
    return [interpreters.create() for _ in range(3)]
def pool():
    from concurrent.futures import InterpreterPoolExecutor
    workers = InterpreterPoolExecutor(2)
    workers.submit(int).result()
    return workers
print('ready', flush=True)
made = globals()[sys.stdin.readline().strip()]()
print('made', flush=True)
sys.stdin.read()
";

#[test]
fn interpreters_in_which_nothing_runs_do_not_hide_the_main_one() {
    let has_interpreters = |python: &Interpreter| python.minor() >= (3, 8);
    for python in interpreters::supported()
        .into_iter()
        .filter(has_interpreters)
    {
        let ways: &[&str] = if python.minor() >= (3, 14) {
            &["low_level", "legacy", "module", "pool"]
        } else {
            &["low_level", "legacy"]
        };
        for way in ways {
            let what = format!("{}: {way}", python.path.display());
            let mut target = Target::python(&python, INTERPRETERS, &[]);
            assert_eq!(target.line(), "ready", "{what}");
            let before = target.interpreter();
            target.tell(way);
            assert_eq!(target.line(), "made", "{what}");
            let after = target.interpreter();
            assert!(after.is_verified, "{what}");
            assert_eq!(after.main, before.main, "{what}");
            assert_eq!(after.thread_slot, before.thread_slot, "{what}");
        }
    }
}

/// A program that loads libpython at once and initialises it when it is told to.
const LOADING: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    void *python = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
    void (*initialize)(int) = (void (*)(int))dlsym(python, "Py_InitializeEx");
    int (*run)(const char *) = (int (*)(const char *))dlsym(python, "PyRun_SimpleString");
    puts("loaded");
    fflush(stdout);
    getchar();
    initialize(0);
    return run("while True:\n    pass\n");
}
"#;

#[test]
fn an_interpreter_that_is_not_initialised_is_named_as_one_and_profiled_later() {
    let Some(python) = with_library() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("main.c"), folder.path().join("service"));
    fs::write(&source, LOADING).unwrap();
    compiler::compile(&source, &program, &["-ldl"]);
    let (major, minor) = python.minor();
    let folder = python.stdlib.parent().unwrap();
    let mut target = Target::start(
        Command::new(&program).arg(folder.join(format!("libpython{major}.{minor}.so.1.0"))),
    );
    assert_eq!(target.line(), "loaded");
    let selection = Selection {
        only_pids: Some(vec![target.pid()]),
        ..Selection::default()
    };
    let mut tracker = Tracker::new(selection, AnyTable);
    tracker.scan();
    wait_until(&mut tracker, |process| {
        process.refused == Some(Reason::NotInitialised)
    });
    target.tell("");
    wait_until(&mut tracker, |process| {
        process.state == TrackState::Profiled
    });
}

/// Follows one process until it is as expected.
fn wait_until(tracker: &mut Tracker<AnyTable>, is_so: impl Fn(&ProcessListing) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let listing = tracker.listing();
        let [process] = listing.as_slice() else {
            panic!("{listing:?}");
        };
        if is_so(process) {
            return;
        }
        assert!(Instant::now() < deadline, "{process:?}");
        let due = tracker.on_timer();
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Takes what it is told.
struct AnyTable;

impl KernelTable for AnyTable {
    fn sees_lifecycle(&self) -> bool {
        false
    }

    fn add(&mut self, _: Pid, _: &ProcessEntry) -> Result<bool, String> {
        Ok(true)
    }

    fn update(&mut self, _: Pid, _: Generation, _: &ProcessEntry) -> Result<bool, String> {
        Ok(true)
    }

    fn remove(&mut self, _: Pid, _: Generation) {}

    fn layout_row(&mut self, _: &PyLayout) -> Result<u32, String> {
        Ok(0)
    }
}

/// Killed when dropped.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Between `fork` and `exec` it still is this test.
fn wait_until_mapped(pid: Pid, program: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let is_mapped = || {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.contains(&program.display().to_string())
    };
    while !is_mapped() {
        assert!(
            Instant::now() < deadline,
            "{} did not start",
            program.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
