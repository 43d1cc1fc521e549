//! `cargo xtask bench`: measures what pyagent costs and writes the table. Measuring itself is in
//! `pyagent_tests::bench`.
//!
//! Arguments: names of the parts to measure (`kernel`, `slowdown`, `allocation`, `recorder`, `cpu`, `memory`,
//! `start`, `cluster`), all without
//! any; and a version (`3.12`) to measure no other in the kernel. The whole run goes into bench/RESULTS.md,
//! a part of it only to stderr. `faults` alone injects faults, and goes into bench/FAULTS.md.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use pyagent_tests::{
    bench::{
        agent_cost, allocation, cluster, faults, host, kernel_cost, peer::PySpy, recorder, report,
        report::Section, slowdown,
    },
    interpreters::{self, Interpreter},
};

/// The version that the aims are for.
const AIM_VERSION: (u8, u8) = (3, 12);

/// The part that has a report of its own, and is run alone.
const FAULTS: &str = "faults";

const COSTS_HEAD: &str =
    "# What pyagent costs\n\nWritten by `cargo xtask bench`, all of it in one run.";

const FAULTS_HEAD: &str = "# What faults cost pyagent\n\nWritten by `cargo xtask bench faults`, all of it in one run: each \
    fault was really injected.";

const PARTS: [&str; 8] = [
    "kernel",
    "slowdown",
    "allocation",
    "recorder",
    "cpu",
    "memory",
    "start",
    "cluster",
];

fn main() -> Result<()> {
    let asked: Vec<String> = env::args().skip(1).collect();
    if asked == [FAULTS] {
        let host = host::description();
        eprint!("{host}");
        let sections = [faults::measure()?];
        return write(
            "bench/FAULTS.md",
            &report::markdown(FAULTS_HEAD, &host, &sections),
        );
    }
    let (versions, parts): (Vec<&str>, Vec<&str>) = asked
        .iter()
        .map(String::as_str)
        .partition(|argument| argument.starts_with("3."));
    for part in &parts {
        ensure!(
            PARTS.contains(part),
            "there is no part {part}; the parts are {}, and alone {FAULTS}",
            PARTS.join(", ")
        );
    }
    let pyagent = env::var_os("PYAGENT_BIN")
        .map(PathBuf::from)
        .context("PYAGENT_BIN names the binary to measure")?;
    let interpreters = interpreters::found();
    let interpreter = interpreters
        .iter()
        .find(|interpreter| interpreter.minor() == AIM_VERSION && !interpreter.free_threaded)
        .context("the aims are for CPython 3.12, which was not found")?;
    let is_asked = |interpreter: &Interpreter| {
        let (major, minor) = interpreter.minor();
        versions.is_empty() || versions.contains(&format!("{major}.{minor}").as_str())
    };
    let in_kernel: Vec<_> = interpreters
        .iter()
        .filter(|found| is_asked(found))
        .cloned()
        .collect();
    let host = host::description();
    eprint!("{host}");
    let mut sections = Vec::new();
    for part in PARTS {
        if parts.is_empty() || parts.contains(&part) {
            eprintln!("{part}");
            sections.extend(measure(part, &in_kernel, interpreter, &pyagent)?);
        }
    }
    let text = report::markdown(COSTS_HEAD, &host, &sections);
    if asked.is_empty() {
        return write("bench/RESULTS.md", &text);
    }
    eprint!("{text}");
    Ok(())
}

/// Writes a report to a file of the repository.
fn write(path: &str, text: &str) -> Result<()> {
    let path = root().join(path);
    fs::create_dir_all(root().join("bench"))?;
    fs::write(&path, text)?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

fn measure(
    part: &str,
    interpreters: &[Interpreter],
    interpreter: &Interpreter,
    pyagent: &Path,
) -> Result<Vec<Section>> {
    Ok(match part {
        "kernel" => vec![kernel_cost::measure(interpreters)?],
        "slowdown" => {
            let py_spy = PySpy::install(interpreter, &root().join("target/bench-venv"));
            if let Err(error) = &py_spy {
                eprintln!("skipped: py-spy ({error:#})");
            }
            slowdown::measure(interpreter, py_spy.ok().as_ref())?
        }
        "allocation" => {
            let folder = root().join("target/bench-memory-venv");
            vec![allocation::measure(interpreter, pyagent, &folder)?]
        }
        "recorder" => vec![recorder::measure()?],
        "cpu" => vec![agent_cost::cpu(interpreter, pyagent)?],
        "memory" => vec![agent_cost::memory(interpreter, pyagent)?],
        "cluster" => vec![cluster::measure(interpreter, pyagent)?],
        _ => vec![agent_cost::first_sample(interpreter, pyagent)?],
    })
}

/// Root of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace")
}
