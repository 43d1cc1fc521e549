//! Where the profile comes from that a view shows: a file, standard input, or an agent.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;

use super::cluster::ask::Gathered;
use super::cluster::{self, ClusterArgs, ClusterQuestion};
use super::connect::ShownArgs;
use super::exit::{self, ExitError};
use super::gil::GilArgs;
use super::pods::PodSelectionArgs;
use super::{parse_duration, parse_label, parse_time};
use crate::config::DEFAULT_ADDRESS;
use crate::format::read::{self, MAX_BYTES};
use crate::format::{Format, escape};
use crate::profile::groups;
use crate::profile::model::{Profile, ProfileType, Sample, label};
use crate::profile::query::{
    Criteria, LabelFilter, ProcessFacts, ProcessFilter, TimeRange, with_labels,
};
use crate::serve::client::{PullFailure, PullQuestion, PullTime, pull};

/// Which profile.
#[derive(Debug, Args, Clone)]
pub struct InputArgs {
    /// File (.pb.gz, .folded; `-`: standard input), or agent: host:port, https://host:port, unix:/path
    #[arg(value_name = "FILE|ADDR", env = "PYAGENT_ADDR", default_value = DEFAULT_ADDRESS)]
    pub input: String,
    /// Of an agent: what it recorded in the last minutes, as 10m
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with_all = ["duration", "from", "to"])]
    pub last: Option<Duration>,
    /// Of an agent: so long from now on [default: 10s]
    #[arg(long, short, value_name = "TIME", value_parser = parse_duration, conflicts_with_all = ["from", "to"])]
    pub duration: Option<Duration>,
    /// Of an agent: what it recorded from this time on, as 2026-03-01T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time, hide_short_help = true)]
    pub from: Option<SystemTime>,
    /// Of an agent: what it recorded until this time
    #[arg(long, value_name = "TIME", value_parser = parse_time, hide_short_help = true)]
    pub to: Option<SystemTime>,
    /// Of an agent: cpu, faults, pools, alloc, mmap
    #[arg(
        long = "type",
        value_name = "TYPE",
        default_value = "cpu",
        env = "PYAGENT_TYPE"
    )]
    pub profile_type: ProfileType,
    /// Only of this process (repeatable)
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Only of which pods.
    #[command(flatten)]
    pub pods: PodSelectionArgs,
    /// Only samples with such a label, as thread_name=^Worker (repeatable)
    ///
    /// Of several all must be there.
    #[arg(long = "filter", alias = "label", value_name = "LABEL=REGEX", value_parser = parse_label)]
    pub filters: Vec<LabelFilter>,
    /// Which samples.
    #[command(flatten)]
    pub gil: GilArgs,
    /// The agents of a cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What the agent is shown.
    #[command(flatten)]
    pub shown: ShownArgs,
}

/// A profile, and what a command that has shown it ends with: not all that was asked for may have come.
pub(super) struct Input {
    pub(super) profile: Profile,
    pub(super) code: u8,
}

/// How long an agent samples when nobody says so.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);

impl InputArgs {
    /// The profile; Ctrl-C ends the waiting for it.
    pub(super) async fn profile(&self) -> Result<Input> {
        self.gil.check(self.profile_type)?;
        let mut code = exit::OK;
        let profile = match self.source() {
            Source::Stdin => {
                self.check_no_agent("standard input")?;
                read_all(io::stdin().lock(), "standard input")?
            }
            Source::File(path) => {
                self.check_no_agent(path)?;
                let name = escape(path).into_owned();
                let file = File::open(path).with_context(|| {
                    if path.contains(':') {
                        format!("{name} is no file that can be read, and no address")
                    } else {
                        format!("cannot read {name}")
                    }
                })?;
                read_all(file, &name)?
            }
            Source::Agent(address) => self.pulled(address).await?,
            Source::Cluster(place) => {
                let gathered = self.gathered(place).await?;
                code = gathered.exit_code();
                gathered.profile
            }
        };
        check_labels(&profile, self.filters.iter().map(|filter| &*filter.name))?;
        let had_samples = profile.n_samples() != 0;
        let profile = self.of_pids(profile)?;
        let profile = self.of_namespaces(profile)?;
        let profile = with_labels(profile, &self.filters);
        if had_samples && profile.n_samples() == 0 && !self.filters.is_empty() {
            let names: Vec<String> = self
                .filters
                .iter()
                .map(|it| escape(&it.name).into_owned())
                .collect();
            return Err(ExitError::NothingMatched(format!(
                "no sample has what --filter asks for; `pyagent report --by {}` shows what there is",
                names.join(",")
            ))
            .into());
        }
        Ok(Input {
            profile: self.gil.chosen(profile),
            code,
        })
    }

    /// Whether an agent is asked, or several.
    pub(super) fn is_agent(&self) -> bool {
        matches!(self.source(), Source::Agent(_) | Source::Cluster(_))
    }

    /// Whether it is of a cluster, from now on.
    pub(super) fn is_live_workload(&self) -> bool {
        matches!(self.source(), Source::Cluster(_)) && matches!(self.time(), PullTime::Next(_))
    }

    /// What is said of an agent's time, for an input that is none.
    pub(super) fn forget_time(&mut self) {
        (self.last, self.duration, self.from, self.to) = (None, None, None, None);
    }

    /// A file of this name comes first; what looks like an address is one.
    fn source(&self) -> Source<'_> {
        let input = self.input.as_str();
        let has_scheme = ["http://", "https://", "unix:"]
            .iter()
            .any(|scheme| input.starts_with(scheme));
        if input == "-" {
            Source::Stdin
        } else if self.cluster.k8s && (cluster::is_object(input) || !Path::new(input).exists()) {
            Source::Cluster(input)
        } else if has_scheme {
            Source::Agent(input)
        } else if Path::new(input).exists() {
            Source::File(input)
        } else if is_host_and_port(input) {
            Source::Agent(input)
        } else {
            Source::File(input)
        }
    }

    /// What is said of an agent means nothing for a file.
    fn check_no_agent(&self, path: &str) -> Result<(), ExitError> {
        let named = [
            ("--last", self.last.is_some()),
            ("--duration", self.duration.is_some()),
            ("--from", self.from.is_some()),
            ("--to", self.to.is_some()),
            ("--selector", !self.pods.selector.is_empty()),
        ];
        match named.iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(ExitError::Usage(format!(
                "{flag} is for agents (host:port), and {} is none",
                escape(path)
            ))),
            None => Ok(()),
        }
    }

    fn time(&self) -> PullTime {
        match (self.last, self.from, self.to) {
            (Some(last), ..) => PullTime::Recorded(TimeRange::Last(last)),
            (None, None, None) => PullTime::Next(self.duration.unwrap_or(DEFAULT_DURATION)),
            (None, from, to) => PullTime::Recorded(TimeRange::Between { from, to }),
        }
    }

    /// What all agents of a cluster have that have to be asked.
    async fn gathered(&self, place: &str) -> Result<Gathered> {
        let include = Criteria {
            pids: self.pid.clone(),
            ..Criteria::default()
        };
        let asked = ClusterQuestion {
            profile_type: self.profile_type,
            filter: ProcessFilter {
                include,
                ..ProcessFilter::default()
            },
            pods: &self.pods,
            object: cluster::object(place)?,
            labels: self.filters.clone(),
            time: self.time(),
        };
        let fleet = self.cluster.fleet(&self.shown, asked).await?;
        fleet.gather_and_tell().await
    }

    async fn pulled(&self, address: &str) -> Result<Profile> {
        let agent = self
            .shown
            .agent(address)
            .map_err(|error| ExitError::Usage(error.to_string()))?;
        let time = self.time();
        if let PullTime::Next(duration) = time {
            tell!("pulling {:.1} s from {agent}", duration.as_secs_f64());
        }
        let mut filter = ProcessFilter {
            include: Criteria {
                pids: self.pid.clone(),
                ..Criteria::default()
            },
            ..ProcessFilter::default()
        };
        self.pods.add_to(&mut filter);
        let question = PullQuestion {
            profile_type: self.profile_type,
            filter: &filter,
            labels: &self.filters,
            time,
            format: Format::default_format(),
        };
        let pulled = tokio::select! {
            pulled = pull(&agent, question) => pulled,
            _ = tokio::signal::ctrl_c() => return Err(anyhow!("interrupted")),
        };
        let pulled = match pulled {
            Err(error @ PullFailure::NoMatch { .. }) => {
                return Err(ExitError::NothingMatched(error.to_string()).into());
            }
            pulled => pulled?,
        };
        read::read(&pulled.bytes).with_context(|| format!("what {agent} sent is no profile"))
    }

    /// A file has all namespaces in it that it was recorded of.
    fn of_namespaces(&self, profile: Profile) -> Result<Profile, ExitError> {
        if self.pods.first_flag().is_none() || self.is_agent() {
            return Ok(profile);
        }
        let mut filter = ProcessFilter::default();
        self.pods.add_to(&mut filter);
        let part = profile.part(|sample| {
            let text = |name| profile.label(sample.labels, name).unwrap_or_default();
            filter.matches(&ProcessFacts {
                k8s_namespace: text(label::K8S_NAMESPACE),
                is_in_pod: !text(label::K8S_POD_UID).is_empty(),
                ..ProcessFacts::default()
            })
        });
        if profile.n_samples() != 0 && part.n_samples() == 0 {
            let message = "no sample is of such a namespace; `pyagent report --by k8s_namespace_name` shows what there is";
            return Err(ExitError::NothingMatched(message.to_owned()));
        }
        Ok(part)
    }

    fn of_pids(&self, profile: Profile) -> Result<Profile, ExitError> {
        if self.pid.is_empty() {
            return Ok(profile);
        }
        let pid_of = |sample: &Sample| profile.thread(sample.labels).pid;
        let there: BTreeSet<i64> = profile.samples.iter().map(pid_of).collect();
        let missing = self.pid.iter().find(|it| !there.contains(&i64::from(**it)));
        if let Some(missing) = missing.filter(|_| !there.is_empty()) {
            let shown: Vec<String> = there.iter().take(20).map(ToString::to_string).collect();
            return Err(ExitError::NothingMatched(format!(
                "no sample is of process {missing}: there are samples of {}{}",
                shown.join(", "),
                if there.len() > shown.len() {
                    ", ..."
                } else {
                    ""
                }
            )));
        }
        let is_wanted = |sample: &Sample| {
            let pid = pid_of(sample);
            self.pid.iter().any(|wanted| i64::from(*wanted) == pid)
        };
        Ok(profile.part(is_wanted))
    }
}

/// Refuses names of labels that no sample has, with those that there are.
pub(super) fn check_labels<'a>(
    profile: &Profile,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<(), ExitError> {
    groups::check_labels(profile, names)
        .map_err(|error| ExitError::NothingMatched(error.to_string()))
}

/// Where a profile comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source<'a> {
    Stdin,
    File(&'a str),
    Agent(&'a str),
    /// Of a workload or pod, or what is written where none is meant.
    Cluster(&'a str),
}

/// `localhost:7099`, `[::1]:7099`, but no path.
fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
    })
}

fn read_all(source: impl Read, name: &str) -> Result<Profile> {
    let mut bytes = Vec::new();
    source
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {name}"))?;
    read::read(&bytes).with_context(|| format!("{name} is no profile"))
}
