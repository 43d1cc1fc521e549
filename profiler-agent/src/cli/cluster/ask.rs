//! Asks the agents of a cluster, all at a time, and puts what they send together. Bounded whatever they send: how many are
//! connected to at once, how long each may take, how many bytes wait to be put together, and what one profile may be.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::format::Format;
use crate::format::read::{Limits, read_within};
use crate::profile::gathered::{Expected, Gathering};
use crate::profile::model::{LabelSetId, Profile, ProfileType, label};
use crate::profile::query::{LabelFilter, ProcessFilter, TimeRange};
use crate::serve::client::{AgentAddress, ConnectedAgent, PullFailure, PullQuestion, PullTime};

/// Most agents that are connected to at one time, and asked for what they recorded.
const MAX_AT_A_TIME: usize = 256;

/// Bytes of answers that wait in memory, in KiB: all of them together.
const MAX_WAITING_KIB: u32 = 256 << 10;

/// Longest answer of one agent, compressed.
const MAX_ANSWER_BYTES: u64 = 32 << 20;

/// What the profile of one node may be.
const LIMITS: Limits = Limits {
    bytes: 128 << 20,
    entries: 2 << 20,
    rows: 1 << 20,
};

/// How long an agent that did not answer a look is left alone.
const REST: Duration = Duration::from_secs(20);

/// What clocks and windows may add to what was asked for.
const SLACK: Duration = Duration::from_mins(1);

/// An agent, and the node that it is on.
#[derive(Debug)]
pub(in crate::cli) struct Member {
    /// The node's name, or the address of the agent where it is not known.
    pub(super) node: String,
    /// Whether the name is the node's.
    pub(super) is_named: bool,
    pub(super) address: AgentAddress,
    /// Further labels that samples must have there.
    pub(super) labels: Vec<LabelFilter>,
    /// As long as it lasts.
    connection: Mutex<Option<ConnectedAgent>>,
    /// It did not answer a look, and is not asked for looks until then, since all would wait for it.
    rests: Mutex<Option<(Instant, String)>>,
}

impl Member {
    pub(super) fn new(node: String, is_named: bool, address: AgentAddress) -> Self {
        Self {
            node,
            is_named,
            address,
            labels: Vec::new(),
            connection: Mutex::new(None),
            rests: Mutex::new(None),
        }
    }

    /// Why it is not asked for a look.
    async fn rests(&self) -> Option<String> {
        let mut rests = self.rests.lock().await;
        if rests
            .as_ref()
            .is_some_and(|(until, _)| *until <= Instant::now())
        {
            *rests = None;
        }
        rests.as_ref().map(|(_, why)| why.clone())
    }

    async fn rest(&self, why: &str) {
        *self.rests.lock().await = Some((Instant::now() + REST, why.to_owned()));
    }

    async fn connected(&self) -> Result<ConnectedAgent, PullFailure> {
        let mut connection = self.connection.lock().await;
        if let Some(agent) = &*connection {
            return Ok(agent.clone());
        }
        let agent = ConnectedAgent::connect(&self.address).await?;
        Ok(connection.insert(agent).clone())
    }

    async fn forget(&self) {
        *self.connection.lock().await = None;
    }
}

/// What is asked of each.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Question {
    /// Of what.
    pub(in crate::cli) profile_type: ProfileType,
    /// Of these processes.
    pub(in crate::cli) filter: ProcessFilter,
    /// Of samples with all of these labels.
    pub(in crate::cli) labels: Vec<LabelFilter>,
    /// Of this time.
    pub(in crate::cli) time: PullTime,
    /// Of these pods alone, by their UIDs.
    pub(super) pods: Option<HashSet<String>>,
    /// How long an agent may take, beyond the time that is sampled: to answer, and to send.
    pub(super) limit: Duration,
    /// All of it has to be there by then: it is one look of several.
    pub(super) look: Option<Duration>,
}

/// What came of it.
#[derive(Debug)]
pub(in crate::cli) struct Gathered {
    /// All that was sent, put together.
    pub(in crate::cli) profile: Profile,
    /// Nodes that have samples.
    pub(in crate::cli) n_with_samples: usize,
    /// Nodes that have none of what was asked for.
    pub(in crate::cli) n_without: usize,
    /// Nodes that gave no answer, or none that can be used, or one of less time than was asked for; and why.
    pub(in crate::cli) failed: Missing,
}

/// What an agent sent.
struct Sent {
    bytes: Vec<u8>,
    n_samples: i64,
    _room: OwnedSemaphorePermit,
}

/// One's answer; `None`: it has nothing.
type Answer = Result<Option<Sent>, String>;

/// Nodes that are missing, and why.
pub(super) type Missing = Vec<(String, String)>;

/// Asks all of them. Dropping the future ends it. `missing`: who is so before anybody was asked.
pub(super) async fn ask(
    members: &[Arc<Member>],
    question: Question,
    remarks: Vec<String>,
    missing: Missing,
) -> Result<Gathered> {
    let n_expected = members.len() + missing.len();
    let question = Arc::new(question);
    let (sender, answers) = mpsc::channel(16);
    let merging = tokio::task::spawn_blocking({
        let question = Arc::clone(&question);
        move || put_together(answers, &question, remarks, missing)
    });
    let bounds = Arc::new(Bounds {
        dials: Semaphore::new(MAX_AT_A_TIME),
        waiting: Arc::new(Semaphore::new(MAX_WAITING_KIB as usize)),
    });
    let mut asking = JoinSet::new();
    for member in members {
        let (member, question) = (Arc::clone(member), Arc::clone(&question));
        let (bounds, sender) = (Arc::clone(&bounds), sender.clone());
        asking.spawn(async move {
            let answer = match question.look {
                None => answer(&member, &question, &bounds).await,
                Some(limit) => look(&member, &question, &bounds, limit).await,
            };
            if answer.is_err() {
                member.forget().await;
            }
            // It is waited for by who puts it together, until all have been asked.
            let _ = sender.send((member, answer)).await;
        });
    }
    drop(sender);
    while asking.join_next().await.is_some() {}
    let (gathered, n_answers) = merging.await.context("a part of pyagent has failed")?;
    ensure!(n_answers == n_expected, "a part of pyagent has failed");
    Ok(gathered)
}

struct Bounds {
    dials: Semaphore,
    waiting: Arc<Semaphore>,
}

/// An answer that others wait for.
async fn look(member: &Member, question: &Question, bounds: &Bounds, limit: Duration) -> Answer {
    if let Some(why) = member.rests().await {
        return Err(why);
    }
    let answer = tokio::time::timeout(limit, answer(member, question, bounds)).await;
    let answer = answer.unwrap_or_else(|_| Err("it did not answer in time".to_owned()));
    if let Err(why) = &answer {
        member.rest(why).await;
    }
    answer
}

async fn answer(member: &Member, question: &Question, bounds: &Bounds) -> Answer {
    let shown = |failure: PullFailure| failure.to_string();
    let dialling = bounds.dials.acquire().await;
    let dialling = dialling.map_err(|error| error.to_string())?;
    let agent = member.connected().await.map_err(shown)?;
    // What is from now on is sampled everywhere at the same time.
    let dialling = match question.time {
        PullTime::Next(_) => {
            drop(dialling);
            None
        }
        PullTime::Recorded(_) => Some(dialling),
    };
    let labels: Vec<LabelFilter> = question
        .labels
        .iter()
        .chain(&member.labels)
        .cloned()
        .collect();
    let pull = PullQuestion {
        profile_type: question.profile_type,
        filter: &question.filter,
        labels: &labels,
        time: question.time,
        format: Format::default_format(),
    };
    let begun = match agent.begin(&pull, question.limit).await {
        Ok(begun) => begun,
        Err(PullFailure::NoMatch { .. }) => return Ok(None),
        Err(failure) => return Err(shown(failure)),
    };
    drop(dialling);
    let n_bytes = begun.size_bytes();
    if n_bytes > MAX_ANSWER_BYTES {
        return Err(format!(
            "its profile is larger than {} MiB",
            MAX_ANSWER_BYTES >> 20
        ));
    }
    let kib = u32::try_from(n_bytes.div_ceil(1024)).unwrap_or(MAX_WAITING_KIB);
    let room = Arc::clone(&bounds.waiting).acquire_many_owned(kib.max(1));
    let room = room.await.map_err(|error| error.to_string())?;
    let n_samples = begun.n_samples();
    let bytes = begun.bytes(question.limit).await.map_err(shown)?;
    Ok(Some(Sent {
        bytes,
        n_samples,
        _room: room,
    }))
}

/// Puts answers together in the order in which they come. Returns how many there were too.
fn put_together(
    mut answers: mpsc::Receiver<(Arc<Member>, Answer)>,
    question: &Question,
    remarks: Vec<String>,
    mut failed: Missing,
) -> (Gathered, usize) {
    let mut gathering = Gathering::new(Expected {
        profile_type: question.profile_type,
        max_length: max_length(question.time),
    });
    let (mut n_with_samples, mut n_without, mut n_answers) = (0, 0, failed.len());
    while let Some((member, answer)) = answers.blocking_recv() {
        n_answers += 1;
        match answer.and_then(|sent| add(&mut gathering, &member, question, sent)) {
            Ok(Added { n_samples, cut }) => {
                if n_samples > 0 {
                    n_with_samples += 1;
                } else {
                    n_without += 1;
                }
                failed.extend(cut.map(|why| (member.node.clone(), why)));
            }
            Err(why) => failed.push((member.node.clone(), why)),
        }
    }
    failed.sort_unstable();
    let remark = match failed.len() {
        0 => None,
        1 => Some(format!("1 node is missing: {}", failed[0].0)),
        n_failed => {
            let nodes: Vec<&str> = failed
                .iter()
                .take(10)
                .map(|(node, _)| node.as_str())
                .collect();
            let dots = if n_failed > 10 { ", ..." } else { "" };
            Some(format!(
                "{n_failed} nodes are missing: {}{dots}",
                nodes.join(", ")
            ))
        }
    };
    let gathered = Gathered {
        profile: gathering.finish(remark.into_iter().chain(remarks)),
        n_with_samples,
        n_without,
        failed,
    };
    (gathered, n_answers)
}

/// What was added.
#[derive(Default)]
struct Added {
    n_samples: i64,
    /// Why it is of less time than was asked for.
    cut: Option<String>,
}

/// Shorter by this than what was asked for is no profile of that time: its agent has ended.
const MAX_CUT: Duration = Duration::from_millis(500);

/// Adds what one sent.
fn add(
    gathering: &mut Gathering,
    member: &Member,
    question: &Question,
    sent: Option<Sent>,
) -> Result<Added, String> {
    let Some(sent) = sent else {
        return Ok(Added::default());
    };
    let profile = read_within(&sent.bytes, &LIMITS);
    let profile = profile.map_err(|error| format!("what it sent is no profile: {error}"))?;
    let node = member.is_named.then_some(member.node.as_str());
    let is_meant = |profile: &Profile, labels: LabelSetId| {
        let mut filters = question.labels.iter().chain(&member.labels);
        let is_of_pods = question.pods.as_ref().is_none_or(|pods| {
            let uid = profile.label(labels, label::K8S_POD_UID);
            uid.is_some_and(|uid| pods.contains(uid))
        });
        is_of_pods && filters.all(|filter| filter.matches(profile, labels))
    };
    let length = profile.duration;
    let cut = match question.time {
        PullTime::Next(wanted) if length + MAX_CUT < wanted => Some(format!(
            "its agent ended after {:.1} s of {:.1} s; its samples until then are there",
            length.as_secs_f64(),
            wanted.as_secs_f64()
        )),
        PullTime::Next(_) | PullTime::Recorded(_) => None,
    };
    let added = gathering.add(node, sent.n_samples, profile, is_meant);
    let n_samples = added.map_err(|error| error.to_string())?;
    Ok(Added { n_samples, cut })
}

/// How long a profile can be, as far as that is known.
fn max_length(time: PullTime) -> Option<Duration> {
    let asked = match time {
        PullTime::Next(next) => next,
        PullTime::Recorded(TimeRange::Last(last)) => last,
        PullTime::Recorded(TimeRange::Between { from, to }) => to?.duration_since(from?).ok()?,
    };
    Some(asked.saturating_add(SLACK))
}
