//! `pyagent pull`: a profile of a running agent into a file.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result};

use super::PullArgs;
use super::cluster::{self, ClusterQuestion};
use super::exit::ExitError;
use crate::format::file::Target;
use crate::format::read::read;
use crate::format::{Format, escape};
use crate::profile::model::ProfileType;
use crate::profile::query::{LabelFilter, TimeRange};
use crate::serve::client::{AgentAddress, PullFailure, PullQuestion, PullTime, containers, pull};

/// What `--subprocesses` cannot mean of an agent: it does not say whose children its processes are.
pub(super) const SUBPROCESSES_OF_AGENT: &str = "--subprocesses is for this host: of an agent choose the processes by --pid, --comm, --cmdline, --cgroup or --container";

/// Runs the command; Ctrl-C ends it without a file.
pub async fn run(args: PullArgs) -> Result<ExitCode> {
    if args.selection.subprocesses {
        return Err(ExitError::Usage(SUBPROCESSES_OF_AGENT.to_owned()).into());
    }
    args.gil.check(args.profile_type)?;
    if args.cluster.k8s {
        return of_cluster(&args).await;
    }
    let address = args
        .agent
        .agent()
        .map_err(|error| ExitError::Usage(error.to_string()))?;
    let (format, target) = target(&args)?;
    let (mut filter, profile_type) = (args.selection.filter(), args.profile_type);
    args.pod_selection.add_to(&mut filter);
    let time = time(&args);
    if let PullTime::Next(duration) = time {
        tell!("pulling {:.1} s from {address}", duration.as_secs_f64());
    }
    let labels = labels(&args);
    let question = PullQuestion {
        profile_type,
        filter: &filter,
        labels: &labels,
        time,
        format: if args.frames.change_anything() {
            Format::default_format()
        } else {
            format
        },
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
    if args.frames.change_anything() {
        let profile =
            read(&pulled.bytes).with_context(|| format!("what {address} sent is no profile"))?;
        target.write(&args.frames.apply(profile), format)?;
    } else {
        target.write_with(|out| out.write_all(&pulled.bytes))?;
    }
    tell_of(&args, &pulled.comments, pulled.n_samples);
    tell_written(&target, format, pulled.n_samples, profile_type, "");
    Ok(ExitCode::SUCCESS)
}

/// The same of all agents of a cluster that have to be asked.
async fn of_cluster(args: &PullArgs) -> Result<ExitCode> {
    let (format, target) = target(args)?;
    let asked = ClusterQuestion {
        profile_type: args.profile_type,
        filter: args.selection.filter(),
        pods: &args.pod_selection,
        object: cluster::object(&args.agent.address)?,
        labels: labels(args),
        time: time(args),
    };
    let fleet = args.cluster.fleet(&args.agent.shown, asked).await?;
    let gathered = fleet.gather_and_tell().await?;
    let (code, nodes) = (gathered.exit_code(), gathered.nodes());
    let profile = args.frames.apply(gathered.profile);
    target.write(&profile, format)?;
    tell_of(args, &profile.comments, profile.n_samples());
    let nodes = format!(" from {nodes}");
    tell_written(
        &target,
        format,
        profile.n_samples(),
        args.profile_type,
        &nodes,
    );
    Ok(ExitCode::from(code))
}

/// Where it goes, and in which format.
fn target(args: &PullArgs) -> Result<(&'static Format, Target)> {
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
    Ok((format, target))
}

fn labels(args: &PullArgs) -> Vec<LabelFilter> {
    let labels = args.labels.iter().cloned();
    labels.chain(args.gil.filter()).collect()
}

fn tell_of(args: &PullArgs, comments: &[String], n_samples: i64) {
    for comment in comments {
        tell!("  {}", escape(comment));
    }
    if args.gil.gil && n_samples == 0 {
        tell!("no sample says that its thread held the GIL: free-threaded Python has none");
    }
}

fn tell_written(
    target: &Target,
    format: &Format,
    n_samples: i64,
    profile_type: ProfileType,
    nodes: &str,
) {
    if let Target::Named(path) | Target::Default(path) = target {
        tell!(
            "wrote {} ({}, {n_samples} {}{nodes})",
            escape(&path.to_string_lossy()),
            format.name,
            profile_type.noun(),
        );
    }
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
