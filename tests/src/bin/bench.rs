//! `cargo xtask bench`: measures what pyagent costs and writes the table. Measuring itself is in
//! `pyagent_tests::bench`.
//!
//! Arguments: names of the parts to measure (`kernel`, `slowdown`, `cpu`, `memory`, `start`), all without
//! any. All parts go into bench/RESULTS.md; some only to stdout.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use pyagent_tests::{
    bench::{agent_cost, host, kernel_cost, peer::PySpy, report, report::Section, slowdown},
    interpreters::{self, Interpreter},
};

/// The version that the aims are for.
const AIM_VERSION: (u8, u8) = (3, 12);

const PARTS: [&str; 5] = ["kernel", "slowdown", "cpu", "memory", "start"];

fn main() -> Result<()> {
    let asked: Vec<String> = env::args().skip(1).collect();
    for part in &asked {
        ensure!(
            PARTS.contains(&part.as_str()),
            "there is no part {part}; the parts are {}",
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
    let host = host::description();
    let mut sections = Vec::new();
    for part in PARTS {
        if asked.is_empty() || asked.iter().any(|asked| asked == part) {
            eprintln!("{part}");
            sections.extend(measure(part, &interpreters, interpreter, &pyagent)?);
        }
    }
    let text = report::markdown(&host, &sections);
    if asked.is_empty() {
        let path = root().join("bench/RESULTS.md");
        fs::create_dir_all(root().join("bench"))?;
        fs::write(&path, &text)?;
        eprintln!("wrote {}", path.display());
    } else {
        eprint!("{text}");
    }
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
        "cpu" => vec![agent_cost::cpu(interpreter, pyagent)?],
        "memory" => vec![agent_cost::memory(interpreter, pyagent)?],
        _ => vec![agent_cost::first_sample(interpreter, pyagent)?],
    })
}

/// Root of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace")
}
