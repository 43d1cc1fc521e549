//! `cargo xtask setup`: sees to it that the kernel programs can be built, and writes down how.
//!
//! What it writes, `target/bpf-toolchain`, has two lines: the rustup toolchain's name and bpf-linker's
//! folder. profiler-agent's build script reads it.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result};

use crate::{
    linker, timing,
    toolchain::{self, Toolchain},
    workspace,
};

/// Installs what is missing; returns the compiler of the kernel programs. Does nothing, in well below a second, when all is there.
pub(crate) fn setup() -> Result<Toolchain> {
    let start = Instant::now();
    let toolchain = toolchain::get()?;
    let linker_dir = linker::get(&toolchain)?;
    write_choice(&toolchain, &linker_dir)?;
    println!(
        "kernel programs: {} ({}, LLVM {}), checked in {}",
        toolchain.name,
        toolchain.rustc,
        toolchain.llvm,
        timing::seconds(start.elapsed())
    );
    Ok(toolchain)
}

/// Writes only what changed: the file's time makes cargo build anew.
fn write_choice(toolchain: &Toolchain, linker_dir: &Path) -> Result<()> {
    let path = workspace::target().join("bpf-toolchain");
    let choice = format!("{}\n{}\n", toolchain.name, linker_dir.display());
    if fs::read_to_string(&path).is_ok_and(|written| written == choice) {
        return Ok(());
    }
    fs::create_dir_all(workspace::target())?;
    fs::write(&path, choice).with_context(|| format!("cannot write {}", path.display()))
}
