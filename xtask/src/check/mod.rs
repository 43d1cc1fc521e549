//! `cargo xtask check`: everything that can be said of the source without running it. Each step runs, also
//! after one that failed.

mod deny;
mod imports;
mod kernel_programs;
mod source;
mod tidy;

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{
    codegen, command, setup,
    timing::{self, Row},
};

/// One step of the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// rustfmt.
    Fmt,
    /// Which module may name which module, aya, tonic and `unsafe`.
    Imports,
    /// Each file says what it is responsible for; each package has its licence.
    Tidy,
    /// The committed generated code is what the .proto files give.
    Generated,
    /// Licences, sources and duplicates of the dependencies.
    Deny,
    /// clippy over everything but the kernel programs.
    Clippy,
    /// clippy over the kernel programs, with their compiler.
    ClippyEbpf,
}

impl Step {
    fn run(self) -> Result<()> {
        match self {
            Self::Fmt => command::run(command::cargo().args(["fmt", "--all", "--check"])),
            Self::Imports => imports::check(),
            Self::Tidy => tidy::check(),
            Self::Generated => generated(),
            Self::Deny => deny::check(),
            Self::Clippy => clippy(),
            Self::ClippyEbpf => kernel_programs::check(),
        }
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// Runs `only`, or all steps.
pub(crate) fn check(only: &[Step]) -> ExitCode {
    let steps = if only.is_empty() {
        Step::value_variants()
    } else {
        only
    };
    let mut rows = Vec::new();
    let mut n_failed = 0;
    for step in steps {
        let name = step.name();
        let start = Instant::now();
        let outcome = match timing::timed(&name, || step.run()) {
            Ok(()) => "ok".to_owned(),
            Err(error) => {
                n_failed += 1;
                eprintln!("{name}: {error:#}");
                "FAILED".to_owned()
            }
        };
        rows.push(Row {
            name,
            duration: start.elapsed(),
            outcome,
        });
    }
    println!("\n{}", timing::table(&rows));
    if n_failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn clippy() -> Result<()> {
    // profiler-agent's build script builds the kernel programs.
    setup::setup()?;
    let mut clippy = command::cargo();
    clippy.args([
        "clippy",
        "--workspace",
        "--exclude",
        "profiler-ebpf",
        "--all-targets",
        "--features",
        "xtask/codegen",
        "--",
        "-D",
        "warnings",
    ]);
    command::run(&mut clippy)
}

fn generated() -> Result<()> {
    if !codegen::proto_dir().exists() {
        println!("there is no {}", codegen::proto_dir().display());
        return Ok(());
    }
    let stale = codegen::stale_files()?;
    if stale.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = stale
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    bail!(
        "not what the .proto files give: {}; run `cargo xtask codegen` and commit",
        names.join(", ")
    )
}
