//! `cargo xtask bench -- ARGS`: runs the measurements of the `tests` package on the release binary.

use std::ffi::OsString;

use anyhow::Result;

use crate::{build, collector, command, workspace};

/// The part that pushes to others; run by name only.
const FAULTS: &str = "faults";

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
    if args.iter().any(|argument| argument == FAULTS) {
        bench
            .env("PYAGENT_COLLECTOR", collector::get()?.unwrap_or_default())
            .env(
                "PYAGENT_OTLP_PACKAGES",
                collector::packages()?.unwrap_or_default(),
            );
    }
    command::run(&mut bench)
}
