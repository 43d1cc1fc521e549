//! Where the samples come from: an agent in this process, or one that runs somewhere. One look after the other, without a
//! gap: the next one begins before the one before is there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::agent::AgentAsker;
use crate::cli::cluster::Fleet;
use crate::cli::gil::GilArgs;
use crate::cli::mem::program;
use crate::format::{Format, read};
use crate::profile::model::{Profile, ProfileType};
use crate::profile::query::ProcessFilter;
use crate::serve::client::{
    AgentAddress, PullFailure, PullQuestion, PullTime, SamplingStatus, overview, pull,
};
use crate::serve::query::{ProcessState, PullError, PullRequest, Query, Status};
use crate::view::top::{Listed, Look, Vitals};

/// The agent answers a question about itself within this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// An agent that takes no question, since it has much to do, is asked so often again.
const N_TRIES: u32 = 40;
const TRY_INTERVAL: Duration = Duration::from_millis(50);

/// The shortest time that an agent can be asked for.
const MIN_LENGTH: Duration = Duration::from_millis(20);

/// Samples that were lost.
const LOST: [&str; 4] = [
    "lost_full",
    "lost_nested",
    "samples_undiscovered_lost",
    "records_undecodable",
];

/// Who is asked.
#[derive(Clone)]
pub(super) enum Origin {
    /// The agent in this process.
    Host(AgentAsker),
    /// One that runs somewhere.
    Agent(AgentAddress),
    /// Those of a cluster.
    Cluster(Arc<Fleet>),
}

/// What is asked for.
pub(super) struct Feed {
    pub(super) origin: Origin,
    pub(super) filter: ProcessFilter,
    /// Length of a look.
    pub(super) every: Duration,
    /// Of all together; `None`: no end.
    pub(super) duration: Option<Duration>,
    pub(super) has_native: bool,
    pub(super) gil: GilArgs,
}

/// What was seen in a look.
pub(super) struct Seen {
    profile: Option<Profile>,
    length: Duration,
    vitals: Option<Vitals>,
    pub(super) processes: Option<Vec<Listed>>,
    /// Why there is no profile: no process is meant that is profiled.
    pub(super) no_match: Option<String>,
}

impl Seen {
    pub(super) fn into_look(self) -> Look {
        Look {
            profile: self.profile,
            length: self.length,
            vitals: self.vitals,
            processes: self.processes,
        }
    }
}

/// A profile, or why there is none.
type Answer = Result<Result<Profile, String>>;

/// A profile that is being taken; nobody waits for it any more when this is dropped.
struct Pulling(JoinHandle<Answer>);

impl Drop for Pulling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Feed {
    /// How sampling is going; `None`: that is not told.
    pub(super) async fn vitals(&self) -> Result<Option<Vitals>> {
        Ok(self.overview().await?.1)
    }

    /// Looks until the time is over, nobody wants to know any more, or something failed.
    pub(super) async fn run(self, looks: mpsc::Sender<Result<Seen>>) {
        if let Err(error) = self.look_on(&looks).await {
            // Whoever asked may have left.
            let _ = looks.send(Err(error)).await;
        }
    }

    async fn look_on(&self, looks: &mpsc::Sender<Result<Seen>>) -> Result<()> {
        let mut begun = Instant::now();
        let end = self.duration.map(|duration| begun + duration);
        let next_after = |begun: Instant| {
            let next = begun + self.every;
            // What is left is not worth a look of its own.
            match end {
                Some(end) if end < next + MIN_LENGTH => end,
                Some(_) | None => next,
            }
        };
        let mut next = next_after(begun);
        let mut pulling = Some(self.begin((next - begun).max(MIN_LENGTH)));
        loop {
            sleep_until(next).await;
            let is_over = end.is_some_and(|end| next >= end);
            let length = next - begun;
            let following = if is_over {
                None
            } else {
                // After a time in which nothing ran there is no look for each second that was missed.
                begun = Instant::now();
                next = next_after(begun);
                Some(self.begin((next - begun).max(MIN_LENGTH)))
            };
            let Some(mut done) = std::mem::replace(&mut pulling, following) else {
                return Ok(());
            };
            let answer = (&mut done.0)
                .await
                .context("a part of pyagent has failed")??;
            let (processes, vitals) = self.overview().await?;
            let (profile, no_match) = match answer {
                Ok(profile) => (Some(profile), None),
                Err(why) => (None, Some(why)),
            };
            let length = profile.as_ref().map_or(length, |it| it.duration);
            let seen = Seen {
                profile: profile.map(|profile| {
                    let profile = self.gil.chosen(profile);
                    if self.has_native {
                        profile
                    } else {
                        profile.without_native()
                    }
                }),
                length,
                vitals,
                processes,
                no_match,
            };
            if looks.send(Ok(seen)).await.is_err() || is_over {
                return Ok(());
            }
        }
    }

    /// The samples from now on.
    fn begin(&self, duration: Duration) -> Pulling {
        let filter = self.filter.clone();
        Pulling(match self.origin.clone() {
            Origin::Host(agent) => {
                // Asked now, not when the task runs.
                let answer = ask(&agent, &filter, duration);
                tokio::spawn(async move {
                    let mut answer = answer;
                    for _ in 0..N_TRIES {
                        if answer.is_some() {
                            break;
                        }
                        tokio::time::sleep(TRY_INTERVAL).await;
                        answer = ask(&agent, &filter, duration);
                    }
                    let answer = answer.context("the agent has ended, or is overwhelmed")?;
                    match answer.await.context("the agent has ended")? {
                        Ok(profile) => Ok(Ok(profile)),
                        Err(error @ PullError::NoMatch) => Ok(Err(error.to_string())),
                        Err(error) => Err(error.into()),
                    }
                })
            }
            Origin::Agent(address) => tokio::spawn(async move {
                let question = PullQuestion {
                    profile_type: ProfileType::Cpu,
                    filter: &filter,
                    labels: &[],
                    time: PullTime::Next(duration),
                    format: Format::default_format(),
                };
                match pull(&address, question).await {
                    Ok(pulled) => {
                        let profile = read::read(&pulled.bytes);
                        let sent = || format!("what {address} sent is no profile");
                        Ok(Ok(profile.with_context(sent)?))
                    }
                    Err(error @ PullFailure::NoMatch { .. }) => Ok(Err(error.to_string())),
                    Err(error) => Err(error.into()),
                }
            }),
            Origin::Cluster(fleet) => tokio::spawn(async move {
                let gathered = fleet.look(duration).await?;
                if gathered.n_with_samples + gathered.n_without == 0 {
                    let why = gathered.failed.first();
                    let why = why.map(|(node, why)| format!("{node}: {why}"));
                    bail!("no agent answers: {}", why.unwrap_or_default());
                }
                Ok(Ok(gathered.profile))
            }),
        })
    }

    /// The processes, and how sampling is going.
    async fn overview(&self) -> Result<(Option<Vec<Listed>>, Option<Vitals>)> {
        match &self.origin {
            Origin::Host(asker) => {
                let (reply, answer) = oneshot::channel();
                let query = Query::ListProcesses {
                    filter: self.filter.clone(),
                    with_memory: false,
                    reply,
                };
                let listed = if asker.ask(query) {
                    let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
                    answer.ok().and_then(Result::ok)
                } else {
                    None
                };
                let listed = listed.map(|listed| {
                    let profiled = listed
                        .into_iter()
                        .filter(|process| process.state == ProcessState::Profiled);
                    let profiled = profiled.map(|process| Listed {
                        pid: process.pid,
                        name: program(&process.program, &process.script),
                        python_version: process.python_version,
                    });
                    profiled.collect()
                });
                let status = asker.status().await;
                Ok((listed, status.as_ref().map(of_status)))
            }
            Origin::Agent(address) => {
                let (listed, status) = overview(address, &self.filter).await?;
                let listed = listed.into_iter().map(|process| Listed {
                    pid: process.pid,
                    name: program(&process.program, &process.script),
                    python_version: process.python_version,
                });
                Ok((Some(listed.collect()), status.as_ref().map(of_answer)))
            }
            // It would be as many questions again. Processes are those with samples.
            Origin::Cluster(_) => Ok((None, None)),
        }
    }
}

/// Asks for the samples from now on; `None`: the agent takes no question now.
fn ask(
    asker: &AgentAsker,
    filter: &ProcessFilter,
    duration: Duration,
) -> Option<oneshot::Receiver<Result<Profile, PullError>>> {
    let (reply, answer) = oneshot::channel();
    let request = PullRequest {
        profile_type: ProfileType::Cpu,
        filter: filter.clone(),
        duration,
    };
    asker.ask(Query::Pull { request, reply }).then_some(answer)
}

fn of_status(status: &Status) -> Vitals {
    let counters: HashMap<&str, u64> = status
        .counters
        .iter()
        .map(|counter| (counter.name, counter.value))
        .collect();
    vitals(status.rate_hz, status.n_cpus_online, |name| {
        counters.get(name).copied()
    })
}

fn of_answer(status: &SamplingStatus) -> Vitals {
    vitals(status.rate_hz, status.n_cpus_online, |name| {
        status.counters.get(name).copied()
    })
}

fn vitals(rate_hz: f64, n_cpus: u32, counter: impl Fn(&str) -> Option<u64>) -> Vitals {
    Vitals {
        rate_hz,
        n_cpus,
        n_lost: LOST
            .into_iter()
            .filter_map(&counter)
            .fold(0, u64::saturating_add),
        n_gil_known: counter("samples_gil_known"),
        n_gil_held: counter("samples_gil_held").unwrap_or(0),
    }
}
