//! `pyagent convert`: a profile in another format.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::OutputArgs;
use super::exit::ExitError;
use super::input::InputArgs;
use crate::format::Format;
use crate::format::file::Target;

/// `pyagent convert`.
#[derive(Debug, Args, Clone)]
#[command(
    after_help = "Examples:\n  pyagent convert app.pb.gz -o app.svg               a flame graph of it\n  pyagent convert app.pb.gz -o app.speedscope.json   for speedscope.app\n  pyagent convert app.folded -o app.callgrind        for KCachegrind\n  pyagent convert web1:7099 --last 10m -o web.pstats  of an agent, for SnakeViz\n  pyagent convert app.pb.gz --format dot -o - | dot -Tpng > app.png"
)]
pub struct ConvertArgs {
    /// Which profile.
    #[command(flatten)]
    pub input: InputArgs,
    /// Where to.
    #[command(flatten)]
    pub output: OutputArgs,
    /// One frame a function, at its first line
    #[arg(long)]
    pub function: bool,
    /// One frame a function, without lines
    #[arg(long, conflicts_with = "function")]
    pub nolineno: bool,
    /// Without machine code and the kernel: what they take is their Python caller's
    #[arg(long)]
    pub no_native: bool,
}

/// Runs the command.
pub async fn run(args: ConvertArgs) -> Result<ExitCode> {
    let output = args.output.output.as_deref();
    let format = Format::choose(args.output.format.as_deref(), output)
        .map_err(|error| ExitError::Usage(error.to_string()))?;
    let Some(path) = output else {
        let message = "where to? -o FILE; `-o -` is standard output";
        return Err(ExitError::Usage(message.to_owned()).into());
    };
    let target = Target::named(path.to_owned());
    target.check()?;
    let mut profile = args.input.profile().await?;
    if args.no_native {
        profile = profile.without_native();
    }
    if args.function || args.nolineno {
        profile = profile.by_function(args.function);
    }
    let n_samples = profile.n_samples();
    target.write(&profile, format)?;
    if let Target::Named(_) = target {
        tell!("wrote {target} ({}, {n_samples} samples)", format.name);
    }
    Ok(ExitCode::SUCCESS)
}
