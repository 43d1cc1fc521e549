//! The names of Python threads, read from outside, against what each interpreter says of itself; and the
//! offsets that lead there, against each interpreter's own headers.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use profiler_agent::ids::{Address, Pid};
use profiler_agent::native::elf::{ElfReader, load_bias};
use profiler_agent::process::memory::{ProcessMemory, ReadMemory as _};
use profiler_agent::process::{file, maps};
use profiler_agent::python::layout::Version;
use profiler_agent::python::string::{ELLIPSIS, MAX_STR_CHARS};
use profiler_agent::python::thread_name::{ThreadNameLayout, thread_names};
use pyagent_tests::interpreters::{self, Interpreter};

/// Starts the threads, prints `{ident: name}` as JSON, keeps them until stdin closes.
const NAMED: &str = r#"
import json, sys, threading, _thread
leave = threading.Event()
class Wide(threading.Thread):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        for i in range(60):
            setattr(self, "attribute_%d" % i, i)
class Slotted(threading.Thread):
    __slots__ = ("extra",)
class Narrow(threading.Thread):
    extra = 1
names = [None, None, "reader", "x", "\u00e9t\u00e9", "\u041f\u043e\u0442\u043e\u043a", "\u5de5\u4f5c\u7ebf\u7a0b",
         "\U0001f40d snake", "lone \ud800", "with\0null and \x1b[31m", "n" * 2000, "\u00fc" * 5000, ""]
threads = [threading.Thread(target=leave.wait, name=name) for name in names]
threads += [threading.Thread(target=leave.wait, name="many-%d" % i) for i in range(200)]
threads += [kind(target=leave.wait, name=kind.__name__ + " \u00fc") for kind in (Wide, Slotted, Narrow) for _ in range(3)]
renamed = threading.Thread(target=leave.wait, name="before")
looked_at = threading.Thread(target=leave.wait, name="has a dict")
looked_at.__dict__["more"] = 1
trimmed = threading.Thread(target=leave.wait, name="attribute deleted")
del trimmed._kwargs
trimmed._kwargs = {}
replaced = threading.Thread(target=leave.wait, name="old dict")
replaced.__dict__ = dict(replaced.__dict__, _name="new dict")
threads += [renamed, looked_at, trimmed, replaced]
for thread in threads:
    thread.daemon = True
    thread.start()
known = threading.Event()
def foreign():
    threading.current_thread()
    known.set()
    leave.wait()
_thread.start_new_thread(foreign, ())
known.wait()
renamed.name = "after \u2014 renamed"
# Leaves deleted entries in the table.
gone = [threading.Thread(target=int) for _ in range(50)]
for thread in gone:
    thread.start()
for thread in gone:
    thread.join()
def shown(name):
    return "".join("\ufffd" if 0xd800 <= ord(c) <= 0xdfff else c for c in name)
print(json.dumps({t.ident: shown(t.name) for t in threading.enumerate()}), flush=True)
sys.stdin.read()
"#;

/// Threads come, go and are renamed all the time; three stay.
const CHURN: &str = r#"
import sys, threading
leave = threading.Event()
stay = [threading.Thread(target=leave.wait, name="stays %d" % i, daemon=True) for i in range(3)]
for thread in stay:
    thread.start()
def rename():
    me = threading.current_thread()
    while True:
        me.name = "renamed " + "a" * 40
        me.name = "renamed " + "\u540d" * 40
threading.Thread(target=rename, name="renamed ", daemon=True).start()
print(" ".join(str(t.ident) for t in stay), flush=True)
threading.Thread(target=sys.stdin.read, name="reader", daemon=True).start()
n = 0
while True:
    some = [threading.Thread(target=int, name="short-lived %d" % (n + i)) for i in range(20)]
    n += 20
    for thread in some:
        thread.start()
    for thread in some:
        thread.join()
"#;

/// Never imports `threading`.
const BARE: &str = "
import sys
print('threading' in sys.modules, flush=True)
sys.stdin.read()
";

/// A running interpreter; killed at the end of the test.
struct Target {
    child: Child,
    interpreter: Address,
    layout: ThreadNameLayout,
}

impl Target {
    /// Starts a script and waits for the line that says that it is ready, which it returns too.
    fn start(python: &Interpreter, layout: ThreadNameLayout, script: &str) -> (Self, String) {
        let mut child = Command::new(&python.path)
            .args(["-I", "-S", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("stdout is a pipe"))
            .read_line(&mut line)
            .expect("the script says that it is ready");
        let interpreter = main_interpreter(Pid(child.id()), layout.version.1);
        (
            Self {
                child,
                interpreter,
                layout,
            },
            line,
        )
    }

    fn memory(&self) -> ProcessMemory {
        ProcessMemory::new(Pid(self.child.id()))
    }

    fn names(&self) -> HashMap<u64, Box<str>> {
        thread_names(&self.memory(), &self.layout, self.interpreter).expect("the names are there")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }
}

#[test]
fn names_are_those_that_the_interpreter_itself_gives() {
    for (python, layout) in interpreters() {
        let version = python.version;
        let (target, line) = Target::start(&python, layout, NAMED);
        let expected = expected_names(&line);
        assert!(expected.len() > 220, "{version:?}: the script ran");
        assert_eq!(target.names(), expected, "{version:?}");
    }
}

#[test]
fn a_program_without_threading_has_no_names() {
    for (python, layout) in interpreters() {
        let version = python.version;
        let (target, line) = Target::start(&python, layout, BARE);
        let has_threading = line.trim() == "True";
        assert_eq!(target.names().is_empty(), !has_threading, "{version:?}");
    }
}

#[test]
fn no_name_is_torn_while_threads_come_and_go() {
    for (python, layout) in interpreters() {
        let version = python.version;
        let (target, line) = Target::start(&python, layout, CHURN);
        let stay: Vec<u64> = line
            .split_whitespace()
            .map(|ident| ident.parse().unwrap())
            .collect();
        let mut n_complete = 0;
        for _ in 0..2000 {
            let Ok(names) = thread_names(&target.memory(), &target.layout, target.interpreter)
            else {
                continue;
            };
            n_complete += 1;
            for (idx, ident) in stay.iter().enumerate() {
                assert_eq!(names[ident].as_ref(), format!("stays {idx}"), "{version:?}");
            }
            for name in names.values() {
                assert!(is_possible(name), "{version:?}: {name:?}");
            }
        }
        assert!(
            n_complete > 1800,
            "{version:?}: {n_complete} of 2000 reads succeeded"
        );
    }
}

/// What the script printed, cut as long names are.
fn expected_names(line: &str) -> HashMap<u64, Box<str>> {
    let mut names: HashMap<u64, Box<str>> =
        serde_json::from_str(line).expect("the script prints JSON");
    for name in names.values_mut() {
        if name.chars().count() > MAX_STR_CHARS {
            *name = name.chars().take(MAX_STR_CHARS).chain([ELLIPSIS]).collect();
        }
    }
    names
}

/// Whether the churning script ever gives this name.
fn is_possible(name: &str) -> bool {
    let is_numbered =
        |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    match name.split_once(' ') {
        None => name == "MainThread" || name == "reader",
        Some(("renamed", rest)) => ["", &"a".repeat(40), &"名".repeat(40)].contains(&rest),
        Some(("stays" | "short-lived", rest)) => is_numbered(rest),
        Some(_) => false,
    }
}

#[test]
fn a_layout_of_another_version_gives_an_error_or_no_wrong_name() {
    for (python, layout) in interpreters() {
        let version = python.version;
        let (target, line) = Target::start(&python, layout, NAMED);
        let expected = expected_names(&line);
        for other in ThreadNameLayout::all() {
            let Ok(names) = thread_names(&target.memory(), other, target.interpreter) else {
                continue;
            };
            for (ident, name) in names {
                let is_right = expected
                    .get(&ident)
                    .is_some_and(|expected| **expected == *name);
                assert!(
                    is_right,
                    "{version:?} read as {:?}: {ident} {name:?}",
                    other.version
                );
            }
        }
    }
}

/// Prints `field offset` for each field that [`ThreadNameLayout`] has or that is assumed of every version.
const OFFSETS: &str = r#"
#define Py_BUILD_CORE 1
#include <Python.h>
#include <stddef.h>
#if PY_VERSION_HEX >= 0x030b0000
#include "internal/pycore_dict.h"
#endif
#if PY_VERSION_HEX >= 0x03090000
#include "internal/pycore_interp.h"
#elif PY_VERSION_HEX >= 0x03080000
#include "internal/pycore_pystate.h"
#elif PY_VERSION_HEX >= 0x03070000
#include "internal/pystate.h"
#endif
#define SHOW(name, value) printf("%s %zu\n", name, (size_t)(value))
int main(void) {
#if PY_VERSION_HEX >= 0x030c0000
    SHOW("interpreter_modules", offsetof(PyInterpreterState, imports.modules));
    SHOW("digits", offsetof(PyLongObject, long_value.ob_digit));
#else
    SHOW("interpreter_modules", offsetof(PyInterpreterState, modules));
    SHOW("digits", offsetof(PyLongObject, ob_digit));
#endif
    SHOW("object_header", sizeof(PyObject));
    SHOW("heap_type_cached_keys", offsetof(PyHeapTypeObject, ht_cached_keys));
    SHOW("str_ascii_data", sizeof(PyASCIIObject));
    SHOW("str_compact_data", sizeof(PyCompactUnicodeObject));
    SHOW("length", offsetof(PyASCIIObject, length));
    SHOW("state", offsetof(PyASCIIObject, state));
    SHOW("tp_basicsize", offsetof(PyTypeObject, tp_basicsize));
    SHOW("tp_flags", offsetof(PyTypeObject, tp_flags));
    SHOW("tp_dictoffset", offsetof(PyTypeObject, tp_dictoffset));
    SHOW("ma_keys", offsetof(PyDictObject, ma_keys));
    SHOW("ma_values", offsetof(PyDictObject, ma_values));
#if PY_VERSION_HEX >= 0x030b0000
    SHOW("values_header", offsetof(PyDictValues, values));
    SHOW("dk_log2_index_bytes", offsetof(PyDictKeysObject, dk_log2_index_bytes));
    SHOW("dk_kind", offsetof(PyDictKeysObject, dk_kind));
    SHOW("dk_nentries", offsetof(PyDictKeysObject, dk_nentries));
    SHOW("dk_indices", offsetof(PyDictKeysObject, dk_indices));
    SHOW("general_entry", sizeof(PyDictKeyEntry));
    SHOW("unicode_entry", sizeof(PyDictUnicodeEntry));
#endif
    return 0;
}
"#;

#[test]
fn offsets_are_those_of_the_headers() {
    if Command::new("cc").arg("--version").output().is_err() {
        eprintln!("skipped: no C compiler");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("offsets.c");
    fs::write(&source, OFFSETS).unwrap();
    for (python, layout) in interpreters() {
        let version = python.version;
        let Some(headers) = headers_of(&python.path) else {
            eprintln!("skipped {version:?}: no headers installed");
            continue;
        };
        let program = dir.path().join("offsets");
        let internal = headers.join("internal");
        let compiled = Command::new("cc")
            .args([
                &source,
                Path::new("-o"),
                &program,
                Path::new("-I"),
                &headers,
                Path::new("-I"),
                &internal,
            ])
            .output()
            .unwrap();
        assert!(
            compiled.status.success(),
            "{version:?}: {}",
            String::from_utf8_lossy(&compiled.stderr)
        );
        let printed = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();
        let printed = printed.lines().filter_map(|line| line.split_once(' '));
        let offsets: HashMap<&str, u64> = printed
            .map(|(name, at)| (name, at.parse().unwrap()))
            .collect();
        assert_layout(&layout, &offsets);
    }
}

fn assert_layout(layout: &ThreadNameLayout, offsets: &HashMap<&str, u64>) {
    let header = layout.object_header;
    let mut expected = vec![
        ("interpreter_modules", layout.interpreter_modules),
        ("object_header", header),
        ("heap_type_cached_keys", layout.heap_type_cached_keys),
        ("str_ascii_data", layout.string.ascii_data.into()),
        ("str_compact_data", layout.string.compact_data.into()),
        ("digits", header + 8),
        ("length", layout.string.length.into()),
        ("state", layout.string.state.into()),
        ("tp_basicsize", header + 16),
        ("tp_flags", header + 152),
        ("tp_dictoffset", header + 272),
        ("ma_keys", header + 16),
        ("ma_values", header + 24),
    ];
    if layout.version >= (3, 11) {
        expected.extend([
            ("values_header", layout.values_header),
            ("dk_log2_index_bytes", 9),
            ("dk_kind", 10),
            ("dk_nentries", 24),
            ("dk_indices", 32),
            ("general_entry", 24),
            ("unicode_entry", 16),
        ]);
    }
    assert_eq!(
        expected.into_iter().collect::<HashMap<_, _>>(),
        *offsets,
        "{:?}",
        layout.version
    );
}

/// Folder of an interpreter's headers, if they are installed.
fn headers_of(python: &Path) -> Option<PathBuf> {
    let question = "import sysconfig; print(sysconfig.get_path('include'))";
    let answer = Command::new(python)
        .args(["-I", "-c", question])
        .output()
        .expect("the interpreter starts");
    let headers = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
    headers.join("Python.h").exists().then_some(headers)
}

/// The interpreters of the host that have a layout.
fn interpreters() -> impl Iterator<Item = (Interpreter, ThreadNameLayout)> {
    interpreters::found().into_iter().filter_map(|interpreter| {
        let (major, minor) = interpreter.minor();
        let modules = interpreter.free_threaded.then(|| modules_of(&interpreter));
        let version = Version::of_minor(major, minor);
        let layout =
            ThreadNameLayout::of_interpreter(version, interpreter.free_threaded, modules.flatten());
        if layout.is_none() {
            eprintln!("skipped {}: no layout", interpreter.path.display());
        }
        Some((interpreter, layout?))
    })
}

/// Where the debug offsets of an interpreter say that its modules are.
fn modules_of(python: &Interpreter) -> Option<u16> {
    let script = "import sys; print('ready', flush=True); sys.stdin.read()";
    let mut target = pyagent_tests::target::Target::python(python, script, &[]);
    assert_eq!(target.line(), "ready", "{}", python.path.display());
    target.interpreter().layout.interp_modules
}

/// The newest interpreter of a process's runtime: the main one where there are no others.
fn main_interpreter(pid: Pid, minor: u8) -> Address {
    let memory = ProcessMemory::new(pid);
    let word = |at| memory.read_u64(at).expect("the runtime is mapped");
    if minor == 6 {
        return Address(word(symbol_address(pid, "interp_head")));
    }
    let runtime = symbol_address(pid, "_PyRuntime");
    let head = match minor {
        7 => 24,
        8..=10 => 32,
        11 | 12 => 40,
        // _Py_DebugOffsets.runtime_state.interpreters_head
        _ => word(runtime.add(40)),
    };
    Address(word(runtime.add(head)))
}

/// Address of a symbol in the first mapped executable file that has it.
fn symbol_address(pid: Pid, name: &str) -> Address {
    let mappings = maps::of_process(pid).expect("the process lives");
    let address = mappings
        .iter()
        .filter(|mapping| mapping.executable)
        .find_map(|mapping| {
            let (file, _) = file::open_mapped(pid, mapping).expect("its files can be opened");
            let reader = ElfReader::new(file);
            let elf = reader.parse().expect("code is mapped from ELF files");
            let [symbol] = elf.symbols([name]);
            let bias = load_bias(&elf.segments(), mapping.start.0, mapping.file_offset)
                .expect("the mapping is of a segment");
            Some(Address(bias).add(symbol?.start))
        });
    address.expect("the interpreter has its symbols")
}
