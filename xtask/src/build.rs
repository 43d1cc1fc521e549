//! `cargo xtask build`: one optimized binary, target/release/pyagent, the kernel programs inside.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{command, setup, workspace};

/// What is built.
const BINARY: [&str; 5] = [
    "--release",
    "--package",
    "profiler-agent",
    "--bin",
    "pyagent",
];

/// Sets up what is missing and builds. A second run with nothing changed does no work.
pub(crate) fn build() -> Result<()> {
    setup::setup()?;
    binary()
}

/// Builds only; for who has set up already.
pub(crate) fn binary() -> Result<()> {
    command::run(command::cargo().arg("build").args(BINARY))
}

/// The same, linked statically: of the same parts, so that it costs a second. `cargo xtask dist` makes what is handed out.
pub(crate) fn static_binary() -> Result<PathBuf> {
    let mut build = command::cargo();
    build.arg("rustc").args(BINARY);
    command::run(build.args(["--", "-C", "target-feature=+crt-static"]))?;
    let path = workspace::target().join("static/pyagent");
    fs::create_dir_all(path.parent().context("it lies in target")?)?;
    fs::copy(workspace::release_binary(), &path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    // It lay in that one's place.
    binary()?;
    Ok(path)
}
