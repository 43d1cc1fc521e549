//! The binary `pyagent`: parses the command line and hands over.

use std::process::ExitCode;

use clap::Parser as _;
use profiler_agent::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
