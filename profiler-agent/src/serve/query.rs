//! What the server asks of the agent: the only thing that the two know of each other.
//!
//! Questions go through a bounded channel, answers come back through the question's own. A client that leaves
//! drops the receiving half: whoever works for the answer sees it by `reply.is_closed()` and can stop.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{broadcast, mpsc, oneshot};

use super::scope::Scope;
use crate::process::limits::MemoryUse;
use crate::profile::calls::hottest;
use crate::profile::groups::UnknownLabel;
use crate::profile::in_use::InUse;
use crate::profile::inspect::{Census, LocalsDetail, ProcessStacks};
use crate::profile::memory::MemoryInfo;
use crate::profile::model::{Profile, ProfileType};
use crate::profile::query::{ProcessFilter, RecordedRequest, Viewer};
use crate::profile::totals::Totals;
use crate::profile::window::ClosedWindow;

/// A question to the agent.
#[derive(Debug)]
pub enum Query {
    /// Which processes there are.
    ListProcesses {
        /// Only these.
        filter: ProcessFilter,
        /// With their memory, which takes some reads of each.
        with_memory: bool,
        /// Ordered by process id.
        reply: oneshot::Sender<Vec<ProcessInfo>>,
    },
    /// A profile, beginning now.
    Pull {
        /// Of what.
        request: PullRequest,
        /// The profile, when it is complete.
        reply: oneshot::Sender<Result<Profile, PullError>>,
    },
    /// What was allocated since the probes were placed, and what of it is in use.
    Totals {
        /// Of what.
        request: TotalsRequest,
        /// As it is now, or was a moment ago.
        reply: oneshot::Sender<Result<Totals, PullError>>,
    },
    /// A profile of what was recorded.
    PullRecorded {
        /// Of what.
        request: RecordedRequest,
        /// The profile.
        reply: oneshot::Sender<Result<Profile, PullError>>,
    },
    /// The windows that close from now on.
    Watch {
        /// Where they come; a slow one is told how many it missed.
        reply: oneshot::Sender<broadcast::Receiver<Arc<ClosedWindow>>>,
    },
    /// What a process has in use of its sampled allocations.
    InUse {
        /// Process id in the initial pid namespace.
        pid: u32,
        /// By line.
        reply: oneshot::Sender<InUse>,
    },
    /// The stacks of all Python threads, as they are now.
    DumpStacks {
        /// Of these processes.
        filter: ProcessFilter,
        /// Local variables too?
        locals: LocalsDetail,
        /// One process after the other.
        reply: mpsc::Sender<Result<ProcessStacks, InspectError>>,
    },
    /// The objects of a process by type.
    HeapCensus {
        /// It means one process at most.
        filter: ProcessFilter,
        /// Progress, then the heap.
        reply: mpsc::Sender<Result<CensusPart, InspectError>>,
    },
    /// How the agent is doing.
    Status {
        /// The answer.
        reply: oneshot::Sender<Status>,
    },
}

/// A part of what is said of a heap.
#[derive(Debug)]
pub enum CensusPart {
    /// How far the reading is, in bytes.
    Progress {
        /// Done.
        n_done: u64,
        /// Of so many.
        n_all: u64,
    },
    /// All of it.
    Heap(Box<Census>),
}

/// Why a process is not looked into.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// No process is meant that is profiled.
    #[error("no profiled process matches")]
    NoMatch,
    /// It has ended.
    #[error("process {0} has ended")]
    Gone(u32),
    /// It has become another program meanwhile; in words.
    #[error("{0}")]
    Changed(String),
    /// This interpreter's objects are not known; in words.
    #[error("{0}")]
    Unsupported(String),
    /// It cannot be read; in words.
    #[error("{0}")]
    Unreadable(String),
    /// Somebody else looks at it.
    #[error("the heap of process {0} is being read for another client: try again later")]
    Busy(u32),
    /// As many as can be are looked into.
    #[error("too many clients look into processes: try again later")]
    TooMany,
    /// The agent ends, or does not answer any more.
    #[error("the agent is stopping")]
    Stopping,
}

/// Which profile is asked for.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// Of what.
    pub profile_type: ProfileType,
    /// Of these processes.
    pub filter: ProcessFilter,
    /// For so long.
    pub duration: Duration,
}

/// Which totals are asked for.
#[derive(Debug, Clone)]
pub struct TotalsRequest {
    /// Of what: allocations of some kind.
    pub profile_type: ProfileType,
    /// Of these processes.
    pub filter: ProcessFilter,
}

/// Why there is no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The filter matches no process that is profiled.
    #[error("no profiled process matches")]
    NoMatch,
    /// The agent does not sample it.
    #[error("the agent does not sample {name}: start it with --type {name}", name = .0.name())]
    NotSampled(ProfileType),
    /// The agent keeps nothing.
    #[error("the agent has no recorder, so it knows only what comes: ask for a duration")]
    NoRecorder,
    /// There is nothing of that time; in words.
    #[error("{0}")]
    NotRecorded(String),
    /// The recorder cannot answer; in words.
    #[error("{0}")]
    Unreadable(String),
    /// A label that was asked for is none that samples have.
    #[error(transparent)]
    UnknownLabel(#[from] UnknownLabel),
    /// As many profiles as can be are being taken.
    #[error("too many profiles are being taken: try again later")]
    TooManyPulls,
    /// The agent ends, or does not answer any more.
    #[error("the agent is stopping")]
    Stopping,
}

/// A process that runs, or seems to run, CPython.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// When it was started.
    pub start_time: SystemTime,
    /// The kernel's name of the process.
    pub comm: String,
    /// The first argument.
    pub program: String,
    /// Script or module (`-m name`) that the interpreter runs; empty when there is none.
    pub script: String,
    /// Path of the interpreter's binary.
    pub interpreter: String,
    /// Version of the interpreter; empty as long as it is not known.
    pub python_version: String,
    /// Whether it is profiled.
    pub state: ProcessState,
    /// Why it is not profiled, in words; empty when it is.
    pub reason: String,
    /// The same by a name out of a closed list; empty when it is profiled.
    pub reason_name: &'static str,
    /// All arguments; empty unless the agent may show them (`--show-cmdline`).
    pub cmdline: Vec<String>,
    /// Path of its control group; empty when it is not known.
    pub cgroup: String,
    /// Name of the service that it is part of.
    pub service_name: String,
    /// The container that it is in.
    pub container: Option<ContainerInfo>,
    /// The Kubernetes pod that it is in, where that is known.
    pub pod: Option<PodInfo>,
    /// Its memory; `None` when it has ended meanwhile.
    pub memory: Option<MemoryInfo>,
}

/// A container, as far as it is known from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Its id.
    pub id: String,
    /// The name that its runtime gave it; empty when it is not known.
    pub name: String,
    /// Who runs it: `docker`, `podman`, `cri-o`, `containerd`; empty when it is not known.
    pub runtime: &'static str,
    /// UID of its Kubernetes pod, as its control group has it; empty when it is in none.
    pub k8s_pod_uid: String,
    /// What it is called in its pod; empty when that is not known.
    pub k8s_container_name: String,
}

/// A pod, as the API server tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that it runs on.
    pub node: String,
    /// What it belongs to, the nearest first: kinds and names.
    pub workloads: Vec<(&'static str, String)>,
    /// Its labels that processes have, by the names that those have.
    pub labels: Vec<(String, String)>,
}

/// Whether a process is profiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProcessState {
    /// The agent is looking at it.
    Discovering,
    /// Its samples have Python frames.
    Profiled,
    /// It cannot be profiled, or is not selected.
    NotProfiled,
}

impl ProcessState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Discovering, Self::Profiled, Self::NotProfiled];

    /// Name, as `/metrics` shows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Discovering => "discovering",
            Self::Profiled => "profiled",
            Self::NotProfiled => "not_profiled",
        }
    }
}

/// How the agent is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Since when it runs.
    pub uptime: Duration,
    /// Release of the kernel.
    pub kernel_release: String,
    /// Samples a second on each CPU that were asked for.
    pub rate_asked_hz: f64,
    /// Samples a second on each CPU that are taken.
    pub rate_hz: f64,
    /// CPUs that are online.
    pub n_cpus_online: u32,
    /// CPUs that samples are taken on.
    pub n_cpus_attached: u32,
    /// Samples of all processes a second, over the last seconds.
    pub samples_per_second: f64,
    /// The last full window; `None` before the first is over.
    pub last_window: Option<WindowSummary>,
    /// The memory that it may use; `None`: that is not limited.
    pub memory: Option<MemoryUse>,
    /// What is given up for want of memory or CPU time; empty when nothing is.
    pub shedding: String,
    /// The recorder; `None`: there is none.
    pub recorder: Option<RecorderInfo>,
    /// Why there is none though it was asked for; else empty.
    pub not_recorded: String,
    /// What is known of pods; `None`: nobody asks for them.
    pub kubernetes: Option<KubernetesInfo>,
    /// Everything that is counted.
    pub counters: Vec<CounterValue>,
    /// Number of processes in each state.
    pub processes: Vec<(ProcessState, u32)>,
    /// Number of processes that are not profiled, for each reason of the closed list.
    pub not_profiled: Vec<(&'static str, u32)>,
}

impl Status {
    /// Counts these processes in place of all.
    fn count(&mut self, processes: &[ProcessInfo]) {
        let n_of = |is_it: &dyn Fn(&ProcessInfo) -> bool| {
            processes.iter().filter(|process| is_it(process)).count() as u32
        };
        for (state, n_processes) in &mut self.processes {
            *n_processes = n_of(&|process| process.state == *state);
        }
        for (reason, n_processes) in &mut self.not_profiled {
            *n_processes = n_of(&|process| process.reason_name == *reason);
        }
        self.last_window = None;
    }
}

/// How the recorder is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecorderInfo {
    /// Its folder.
    pub folder: String,
    /// Why windows are not written now; empty when they are.
    pub problem: String,
    /// Bytes on the disk.
    pub n_bytes: u64,
    /// What they may be.
    pub keep_bytes: u64,
    /// When the oldest window begins.
    pub oldest: Option<SystemTime>,
}

/// How it goes with asking for the pods of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesInfo {
    /// Why names of pods may be missing or old; empty when they are not.
    pub problem: String,
    /// Pods on this node.
    pub n_pods: u64,
}

/// What one window held, in short.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowSummary {
    /// Wall time of its start.
    pub start: SystemTime,
    /// Its length.
    pub duration: Duration,
    /// Samples in it.
    pub n_samples: i64,
    /// The function that was the leaf most often, and its share of the samples (0 to 1).
    pub hottest: Option<(String, f64)>,
}

impl WindowSummary {
    /// Of a window's profile.
    #[must_use]
    pub fn of(profile: &Profile) -> Self {
        let hottest = hottest(profile).into_iter().next().and_then(|totals| {
            let function = profile.functions.get(totals.function.0 as usize)?;
            let share = totals.own.weight as f64 / profile.total_weight().max(1) as f64;
            Some((profile.str(function.name).to_owned(), share))
        });
        Self {
            start: profile.start,
            duration: profile.duration,
            n_samples: profile.n_samples(),
            hottest,
        }
    }
}

/// A number that only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterValue {
    /// Name in lower case with underscores, without `pyagent_` and `_total`.
    pub name: &'static str,
    /// What is counted, in words.
    pub help: &'static str,
    /// How many since the start.
    pub value: u64,
}

/// Longest time that the agent may take for an answer about itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the agent may take for a profile beyond its duration: symbols, and other profiles of the moment.
const PULL_GRACE: Duration = Duration::from_mins(1);

/// The asking end of the channel.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    queries: mpsc::Sender<Query>,
}

impl Asker {
    pub(super) fn new(queries: mpsc::Sender<Query>) -> Self {
        Self { queries }
    }

    /// The processes; `None` when the agent does not answer.
    pub(super) async fn processes(
        &self,
        filter: ProcessFilter,
        with_memory: bool,
    ) -> Option<Vec<ProcessInfo>> {
        let query = |reply| Query::ListProcesses {
            filter,
            with_memory,
            reply,
        };
        self.ask(ANSWER_TIMEOUT, query).await
    }

    /// The stacks of processes, as they come; the channel ends with them.
    pub(super) async fn stacks(
        &self,
        filter: ProcessFilter,
        locals: LocalsDetail,
    ) -> mpsc::Receiver<Result<ProcessStacks, InspectError>> {
        let query = |reply| Query::DumpStacks {
            filter,
            locals,
            reply,
        };
        self.ask_for_many(query).await
    }

    /// The objects of a process; the channel ends with them.
    pub(super) async fn census(
        &self,
        filter: ProcessFilter,
    ) -> mpsc::Receiver<Result<CensusPart, InspectError>> {
        self.ask_for_many(|reply| Query::HeapCensus { filter, reply })
            .await
    }

    /// The agent's status; `None` when it does not answer.
    pub(super) async fn status(&self) -> Option<Status> {
        self.ask(ANSWER_TIMEOUT, |reply| Query::Status { reply })
            .await
    }

    /// The same for somebody: of processes those alone are counted that they may see. The scope for the status has it whole.
    pub(super) async fn status_for(&self, scope: &Scope) -> Option<Status> {
        let mut status = self.status().await?;
        let viewer = match scope {
            Scope::ReadStatus | Scope::Processes(Viewer::All) => return Some(status),
            Scope::Processes(viewer) => viewer.clone(),
        };
        let filter = ProcessFilter {
            viewer,
            ..ProcessFilter::default()
        };
        status.count(&self.processes(filter, false).await?);
        Some(status)
    }

    /// A profile.
    pub(super) async fn pull(&self, request: PullRequest) -> Result<Profile, PullError> {
        let timeout = request.duration.saturating_add(PULL_GRACE);
        self.ask(timeout, |reply| Query::Pull { request, reply })
            .await
            .unwrap_or(Err(PullError::Stopping))
    }

    /// What was allocated, and what of it is in use.
    pub(super) async fn totals(&self, request: TotalsRequest) -> Result<Totals, PullError> {
        self.ask(PULL_GRACE, |reply| Query::Totals { request, reply })
            .await
            .unwrap_or(Err(PullError::Stopping))
    }

    /// A profile of what was recorded.
    pub(super) async fn pull_recorded(
        &self,
        request: RecordedRequest,
    ) -> Result<Profile, PullError> {
        self.ask(PULL_GRACE, |reply| Query::PullRecorded { request, reply })
            .await
            .unwrap_or(Err(PullError::Stopping))
    }

    /// The windows that close from now on; `None` when the agent does not answer, or has none.
    pub(super) async fn watch(&self) -> Option<broadcast::Receiver<Arc<ClosedWindow>>> {
        self.ask(ANSWER_TIMEOUT, |reply| Query::Watch { reply })
            .await
    }

    /// Answers wait until they are fetched. Without any the agent has not answered.
    async fn ask_for_many<T>(
        &self,
        query: impl FnOnce(mpsc::Sender<T>) -> Query,
    ) -> mpsc::Receiver<T> {
        let (reply, answers) = mpsc::channel(1);
        let asking = self.queries.send(query(reply));
        // When it fails the reply is dropped with the question.
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, asking).await;
        answers
    }

    async fn ask<T>(
        &self,
        timeout: Duration,
        query: impl FnOnce(oneshot::Sender<T>) -> Query,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let answered = async {
            self.queries.send(query(reply)).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(timeout, answered).await.ok()?
    }
}
