//! `cargo xtask build`: one optimized binary, target/release/pyagent, the kernel programs inside.

use anyhow::Result;

use crate::{command, setup};

/// Sets up what is missing and builds. A second run with nothing changed does no work.
pub(crate) fn build() -> Result<()> {
    setup::setup()?;
    binary()
}

/// Builds only; for who has set up already.
pub(crate) fn binary() -> Result<()> {
    let mut build = command::cargo();
    command::run(build.args([
        "build",
        "--release",
        "--package",
        "profiler-agent",
        "--bin",
        "pyagent",
    ]))
}
