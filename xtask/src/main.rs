//! pyagent's own commands: `cargo xtask VERB`. Here: what can be typed. Each verb is a module of its own.

// Its messages are for the person at the terminal.
#![allow(clippy::print_stdout, reason = "a command-line tool speaks on stdout")]

mod allocators;
mod apt;
mod bench;
mod browser;
mod build;
mod cache;
mod check;
mod codegen;
mod collector;
mod command;
mod compare;
mod cross;
mod dist;
mod go;
mod grpc_tools;
mod hosts;
mod image;
mod interpreters;
mod kubernetes;
mod linker;
mod manifests;
mod package;
mod promtool;
mod run;
mod setup;
mod test;
mod timing;
mod toolchain;
mod viewers;
mod vm;
mod wheels;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

/// Builds, runs, checks, tests and measures pyagent.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what is missing of the BPF toolchain, and write down where it is.
    Setup,
    /// Build target/release/pyagent, the kernel programs inside.
    Build,
    /// Build, then run `pyagent ARGS`, with sudo when not root.
    Run {
        /// What to pass to pyagent.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Formatting, lints, import rules, module docs, licences, generated code.
    Check {
        /// Only these steps; all when none is named.
        #[arg(value_enum)]
        only: Vec<check::Step>,
    },
    /// Run the tests: everything but `kubernetes` and `vm` when nothing is named.
    Test(test::Args),
    /// Prepare further versions of CPython for the tests, and list them.
    Interpreters(interpreters::Args),
    /// Measure, into bench/.
    Bench {
        /// What to pass to the benchmark.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Compare pyagent with the profilers of Python's toolbox, into docs/toolbox.md.
    Compare(compare::Args),
    /// Generate profiler-agent/src/generated from the .proto files.
    Codegen,
    /// Build one static binary: target/dist/pyagent, for arm64 target/dist/pyagent-aarch64.
    Dist(dist::Args),
    /// Make deploy/kubernetes/pyagent.yaml out of the chart.
    Manifests,
    /// Build a container image with that binary, as an archive for Docker, Podman, containerd and skopeo.
    Image(image::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup => setup::setup().map(|_| ExitCode::SUCCESS),
        Verb::Build => build::build().map(|()| ExitCode::SUCCESS),
        Verb::Run { args } => run::run(&args),
        Verb::Check { only } => Ok(check::check(&only)),
        Verb::Test(args) => test::test(&args),
        Verb::Interpreters(args) => interpreters::list(&args).map(|()| ExitCode::SUCCESS),
        Verb::Bench { args } => bench::bench(&args).map(|()| ExitCode::SUCCESS),
        Verb::Compare(args) => compare::compare(&args),
        Verb::Codegen => codegen::codegen().map(|()| ExitCode::SUCCESS),
        Verb::Dist(args) => dist::dist(args.target).map(|_| ExitCode::SUCCESS),
        Verb::Manifests => manifests::write().map(|()| ExitCode::SUCCESS),
        Verb::Image(args) => image::image(&args).map(|_| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
