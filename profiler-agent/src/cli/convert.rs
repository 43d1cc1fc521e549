//! `pyagent convert`: a profile in another format.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::OutputArgs;
use super::exit::ExitError;
use super::frames::FramesArgs;
use super::input::{Input, InputArgs};
use super::report::NO_SUBPROCESSES;
use crate::format::file::Target;
use crate::format::{Format, Times};

/// `pyagent convert`.
#[derive(Debug, Args, Clone)]
#[command(
    mut_arg("function", |arg| arg.hide_short_help(false)),
    mut_arg("nolineno", |arg| arg.hide_short_help(false)),
    mut_arg("threads", |arg| arg.hide_short_help(false)),
    mut_arg("full_filenames", |arg| arg.hide_short_help(false)),
    mut_arg("no_native", |arg| arg.hide_short_help(false)),
    // As in kubectl, and not as in py-spy: -n is a namespace.
    mut_arg("native", |arg| arg.short_alias(None)),
    after_help = "Examples:\n  pyagent convert app.pb.gz -o app.svg               a flame graph of it\n  pyagent convert app.pb.gz -o app.speedscope.json   for speedscope.app\n  pyagent convert app.folded -o app.callgrind        for KCachegrind\n  pyagent convert web1:7099 --last 10m -o web.pstats  of an agent, for SnakeViz\n  pyagent convert app.pb.gz --format dot -o - | dot -Tpng > app.png"
)]
pub struct ConvertArgs {
    /// Which profile.
    #[command(flatten)]
    pub input: InputArgs,
    /// Where to.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which frames.
    #[command(flatten)]
    pub frames: FramesArgs,
    /// Children: a profile has those that were recorded
    #[arg(long, short_alias = 's', hide = true)]
    pub subprocesses: bool,
}

/// Runs the command.
pub async fn run(args: ConvertArgs) -> Result<ExitCode> {
    if args.subprocesses {
        return Err(ExitError::Usage(NO_SUBPROCESSES.to_owned()).into());
    }
    let output = args.output.output.as_deref();
    let format = Format::choose(args.output.format.as_deref(), output)
        .map_err(|error| ExitError::Usage(error.to_string()))?;
    let Some(path) = output else {
        let message = "where to? -o FILE; `-o -` is standard output";
        return Err(ExitError::Usage(message.to_owned()).into());
    };
    let target = Target::named(path.to_owned());
    target.check()?;
    let Input { profile, code } = args.input.profile().await?;
    let profile = args.frames.apply(profile);
    let n_samples = profile.n_samples();
    target.write(&profile, format)?;
    if format.times == Times::Shown && profile.has_moments() && profile.n_without_time() > 0 {
        tell!(
            "{} samples have no time, or a wrong one, and are not in the course",
            profile.n_without_time()
        );
    }
    if let Target::Named(_) = target {
        tell!("wrote {target} ({}, {n_samples} samples)", format.name);
    }
    Ok(ExitCode::from(code))
}
