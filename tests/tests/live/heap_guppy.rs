//! `pyagent heap` against guppy3, which counts the objects of the same process from inside.
//!
//! guppy leaves its own objects out, and those that no other object leads to; pyagent counts all. Both are there before and
//! after the heap grows, so what is compared is the growth: it must agree type by type. Classes of the program are its
//! alone, so there the whole is compared too. guppy does not see the keys of dicts that have none but str, since the
//! collector is not shown them: the program says how many those are.

use std::collections::BTreeMap;
use std::process::Command;

use pyagent_tests::compiler::workload;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::packages;
use pyagent_tests::pyagent::binary;
use pyagent_tests::target::Target;
use serde_json::Value;

/// The oldest version with a release of guppy3 and a layout here, and the newest with a release.
const OLDEST: (u8, u8) = (3, 8);
const NEWEST: (u8, u8) = (3, 14);

/// Objects are 80 or so for each unit.
const SCALE: &str = "1000";

/// How far off the growth may be, in parts of it: that of classes of the program, and of the interpreter's own types.
const MAX_CLASS_ERROR: f64 = 0.001;
const MAX_BUILTIN_ERROR: f64 = 0.02;

/// Types of the interpreter's own that are compared.
const BUILTINS: [&str; 11] = [
    "builtins.dict",
    "builtins.list",
    "builtins.tuple",
    "builtins.set",
    "builtins.frozenset",
    "builtins.str",
    "builtins.bytes",
    "builtins.bytearray",
    "builtins.int",
    "builtins.float",
    "collections.deque",
];

/// Of what pyagent sees and guppy does not, at most so many: strings that are interned and nothing else leads to (their
/// dict is hidden from the collector), those of guppy's own, and names in the interpreter's static data, which 3.12 and
/// later never free.
const MAX_HIDDEN_STR: i64 = 6000;

/// Count and bytes by the name of the type.
type Counts = BTreeMap<String, [i64; 2]>;

fn of(counts: &Counts, name: &str) -> [i64; 2] {
    counts.get(name).copied().unwrap_or_default()
}

/// What pyagent sees.
fn looked(target: &Target) -> Counts {
    let output = Command::new(binary())
        .args(["heap", "--json", "--pid", &target.pid().to_string()])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let entries = document["types"].as_array().unwrap().iter();
    entries
        .map(|entry| {
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            let figures = ["count", "bytes"].map(|key| entry[key].as_i64().unwrap());
            (format!("{}.{}", text("module"), text("type")), figures)
        })
        .collect()
}

/// What guppy sees.
fn counted(target: &mut Target) -> Counts {
    target.tell("count");
    serde_json::from_str(&target.line()).unwrap()
}

/// What became more.
fn growth(before: &Counts, after: &Counts, name: &str) -> [i64; 2] {
    let (before, after) = (of(before, name), of(after, name));
    [after[0] - before[0], after[1] - before[1]]
}

/// How far off, in parts of the truth.
fn error(ours: i64, truth: i64) -> f64 {
    ours.abs_diff(truth) as f64 / truth.unsigned_abs().max(1) as f64
}

/// What is wrong with what is seen of one interpreter.
fn check(python: &Interpreter, guppy: &str) -> Vec<String> {
    let (major, minor, micro) = python.version;
    let version = format!("{major}.{minor}.{micro}");
    let script = workload("heap_guppy.py").display().to_string();
    let mut command = Command::new(&python.path);
    command.args(["-I", "-S", "-B", &script, guppy, SCALE]);
    let mut target = Target::start(&mut command);
    assert_eq!(target.line(), "ready", "{version}");
    let truth_before = counted(&mut target);
    let before = looked(&target);
    target.tell("grow");
    let hidden_keys: [i64; 2] = serde_json::from_str(&target.line()).unwrap();
    let unasked = looked(&target);
    // guppy makes the dicts of instances that have none yet (3.11+): what it sees is there once it has looked.
    let truth = counted(&mut target);
    let after = looked(&target);

    let mut wrong = Vec::new();
    let mut worst = [0.0_f64; 2];
    let classes = truth.keys().filter(|name| name.starts_with("__main__."));
    let is_builtin = |name: &str| BUILTINS.contains(&name);
    let builtins = truth.keys().filter(|name| is_builtin(name));
    for name in classes.chain(builtins) {
        let (found, mut expected) = (
            growth(&before, &after, name),
            growth(&truth_before, &truth, name),
        );
        if name == "builtins.str" {
            expected = [0, 1].map(|idx| expected[idx] + hidden_keys[idx]);
        }
        let allowed = if is_builtin(name) {
            MAX_BUILTIN_ERROR
        } else {
            MAX_CLASS_ERROR
        };
        let errors = [0, 1].map(|idx| error(found[idx], expected[idx]));
        let place = usize::from(is_builtin(name));
        worst[place] = errors.into_iter().fold(worst[place], f64::max);
        if errors.iter().any(|error| *error > allowed) {
            wrong.push(format!(
                "{version} {name} grew by {found:?}, as guppy says by {expected:?}"
            ));
        }
        if !is_builtin(name) && of(&after, name) != of(&truth, name) {
            let (found, expected) = (of(&after, name), of(&truth, name));
            wrong.push(format!(
                "{version} {name}: {found:?}, as guppy says {expected:?}"
            ));
        }
    }
    let hidden = |name: &str| of(&before, name)[0] - of(&truth_before, name)[0];
    println!(
        "{version}: classes {:.3} %, builtin types {:.3} %; dicts that guppy made {}; without guppy's own: {}",
        worst[0] * 100.0,
        worst[1] * 100.0,
        of(&after, "builtins.dict")[0] - of(&unasked, "builtins.dict")[0],
        ["str", "dict", "list", "tuple", "set", "int"]
            .map(|name| format!("{name} {:+}", hidden(&format!("builtins.{name}"))))
            .join(", "),
    );
    let n_str = hidden("builtins.str");
    if !(0..=MAX_HIDDEN_STR).contains(&n_str) {
        wrong.push(format!("{version}: {n_str} more str than guppy sees"));
    }
    wrong
}

#[test]
fn a_heap_grows_by_what_guppy_says() {
    let mut wrong = Vec::new();
    let mut n_checked = 0;
    for python in interpreters::usual() {
        let (major, minor) = python.minor();
        if python.minor() < OLDEST {
            println!("{major}.{minor}: `heap` does not know its layout");
            continue;
        }
        let Some(guppy) = packages::of_pypi("guppy3", python.minor()) else {
            assert!(
                python.minor() > NEWEST,
                "{major}.{minor}: guppy3 has a release for it, and is not there"
            );
            println!("{major}.{minor}: no release of guppy3 has a wheel for it");
            continue;
        };
        wrong.extend(check(&python, &guppy.display().to_string()));
        n_checked += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(n_checked > 0, "no interpreter that guppy3 is for");
}
