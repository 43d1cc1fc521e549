//! `cargo xtask codegen`: keeps profiler-agent/src/generated, which is committed, to what the .proto files
//! give. How that is generated is in bin/generator.rs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use walkdir::WalkDir;

use crate::{command, workspace};

/// Folder of the .proto files: the include path.
pub(crate) fn proto_dir() -> PathBuf {
    workspace::root().join("proto")
}

/// Folder of the generated code.
fn generated_dir() -> PathBuf {
    workspace::root().join("profiler-agent/src/generated")
}

/// Writes the generated code, and removes what is no longer generated.
pub(crate) fn codegen() -> Result<()> {
    let fresh = tempfile::tempdir()?;
    generate(fresh.path())?;
    let dir = generated_dir();
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
    }
    fs::create_dir_all(&dir)?;
    let mut n_files = 0;
    for path in files(fresh.path())? {
        fs::copy(fresh.path().join(&path), dir.join(&path))?;
        n_files += 1;
    }
    println!("{n_files} files in {}", dir.display());
    Ok(())
}

/// Names of the files in which the committed code differs from what the .proto files give; empty when fresh.
pub(crate) fn stale_files() -> Result<Vec<PathBuf>> {
    let fresh = tempfile::tempdir()?;
    generate(fresh.path())?;
    let committed = generated_dir();
    let mut names = files(fresh.path())?;
    if committed.exists() {
        names.extend(files(&committed)?);
    }
    names.sort();
    names.dedup();
    let differs = |name: &PathBuf| {
        fs::read(fresh.path().join(name)).ok() != fs::read(committed.join(name)).ok()
    };
    Ok(names.into_iter().filter(differs).collect())
}

/// Generates into `out_dir`, which is empty.
fn generate(out_dir: &Path) -> Result<()> {
    let mut generator = command::cargo();
    generator
        .args([
            "run",
            "--quiet",
            "--package",
            "xtask",
            "--features",
            "codegen",
            "--bin",
            "generator",
            "--",
        ])
        .arg(proto_dir())
        .arg(out_dir);
    command::run(&mut generator)
}

/// Files below `dir`, relative to it, sorted.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in WalkDir::new(dir).sort_by_file_name() {
        let entry = entry?;
        if entry.file_type().is_file() {
            paths.push(entry.path().strip_prefix(dir)?.to_path_buf());
        }
    }
    Ok(paths)
}
