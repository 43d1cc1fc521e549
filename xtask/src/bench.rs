//! `cargo xtask bench -- ARGS`: runs the measurements of the `tests` package on the release binary.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build, command, workspace};

/// Builds pyagent and runs the benchmark with `args`.
pub(crate) fn bench(args: &[OsString]) -> Result<()> {
    build::build()?;
    let mut bench = command::cargo();
    bench
        .args([
            "run",
            "--release",
            "--package",
            "pyagent-tests",
            "--bin",
            "bench",
            "--",
        ])
        .args(args)
        .env("PYAGENT_BIN", workspace::release_binary());
    command::run(&mut bench)
}
