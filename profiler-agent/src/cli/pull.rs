//! `pyagent pull`: a profile of a running agent into a file.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Result;

use super::PullArgs;
use super::exit::ExitError;
use crate::format::file::Target;
use crate::format::{Format, escape};
use crate::profile::query::TimeRange;
use crate::serve::client::{AgentAddress, PullFailure, PullQuestion, PullTime, containers, pull};

/// Runs the command; Ctrl-C ends it without a file.
pub async fn run(args: PullArgs) -> Result<ExitCode> {
    let address = args
        .agent
        .agent()
        .map_err(|error| ExitError::Usage(error.to_string()))?;
    let format = Format::choose(args.output.format.as_deref(), args.output.output.as_deref())
        .map_err(|error| ExitError::Usage(error.to_string()))?;
    let target = match &args.output.output {
        Some(path) => Target::named(path.clone()),
        None => Target::default_name(None, SystemTime::now(), format),
    };
    let target = if args.output.force {
        target.forced()
    } else {
        target
    };
    target.check()?;
    let (filter, profile_type) = (args.selection.filter(), args.profile_type);
    let time = time(&args);
    if let PullTime::Next(duration) = time {
        tell!("pulling {:.1} s from {address}", duration.as_secs_f64());
    }
    let question = PullQuestion {
        profile_type,
        filter: &filter,
        labels: &args.labels,
        time,
        format,
    };
    let pulled = tokio::select! {
        pulled = pull(&address, question) => pulled,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted: nothing was written"),
    };
    let pulled = match pulled {
        Err(error @ PullFailure::NoMatch { .. }) => {
            let hint = match args.selection.container.as_slice() {
                [] => String::new(),
                _ => profiled_containers(&address).await,
            };
            return Err(ExitError::NothingMatched(format!("{error}{hint}")).into());
        }
        pulled => pulled?,
    };
    target.write_with(|out| out.write_all(&pulled.bytes))?;
    for comment in &pulled.comments {
        tell!("  {comment}");
    }
    if let Target::Named(path) | Target::Default(path) = &target {
        tell!(
            "wrote {} ({}, {} {})",
            escape(&path.to_string_lossy()),
            pulled.format,
            pulled.n_samples,
            profile_type.noun()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The time that is meant; clap lets one kind through.
fn time(args: &PullArgs) -> PullTime {
    match (args.last, args.from, args.to) {
        (None, None, None) => PullTime::Next(args.duration),
        (Some(last), ..) => PullTime::Recorded(TimeRange::Last(last)),
        (None, from, to) => PullTime::Recorded(TimeRange::Between { from, to }),
    }
}

/// What could have been meant; nothing when the agent does not tell.
async fn profiled_containers(address: &AgentAddress) -> String {
    match containers(address).await {
        Ok(names) if names.is_empty() => "; it profiles no process in a container".to_owned(),
        Ok(names) => format!(
            "; the containers that it profiles: {}",
            escape(&names.join(", "))
        ),
        Err(_) => String::new(),
    }
}
