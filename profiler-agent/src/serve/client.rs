//! The client of the service: `pyagent pull`, `pyagent report`, `pyagent top` and `pyagent dump`.

use std::collections::{BTreeSet, HashMap};
use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message as _;
use tonic::Code;

use crate::format::{Format, escape};
use crate::generated::pyagent::v1 as proto;
use crate::generated::pyagent::v1::pull_profile_response::Part;
use crate::profile::aggregate::{ResolvedFrame, ResolvedFunction};
use crate::profile::inspect::{
    FrameLocals, LocalValue, LocalVariable, LocalsDetail, ProcessStacks, Stacks, ThreadStack,
    ThreadState,
};
use crate::profile::model::ProfileType;
use crate::profile::query::{LabelFilter, ProcessFilter, TimeRange};

use super::connect::Client;
pub use super::connect::{
    AgentAddress, ClientConfigFiles, ConnectError, Connection, Dial, Dialling,
};

/// What the agent may take for a profile beyond its duration.
const PULL_GRACE: Duration = Duration::from_secs(70);

/// Most bytes of a profile: an agent that sends more is none of ours.
const MAX_PROFILE_BYTES: u64 = 1 << 30;

/// Why there is no answer. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum PullFailure {
    /// It cannot be reached.
    #[error(transparent)]
    Unreachable(#[from] ConnectError),
    /// The agent profiles no such process, or recorded none.
    #[error("{reason} (the agent at {address})")]
    NoMatch {
        /// The agent.
        address: String,
        /// In its words, escaped.
        reason: String,
    },
    /// It does not know the call.
    #[error(
        "{address} does not know this call: the agent there is older than this pyagent ({}), or none; update it, or use \
         the pyagent that it is of",
        env!("CARGO_PKG_VERSION")
    )]
    Unknown {
        /// The agent.
        address: String,
    },
    /// The agent said no, or the connection broke.
    #[error("the agent at {address} gave no {asked_for}: {reason}")]
    Refused {
        /// The agent.
        address: String,
        /// What it was asked for.
        asked_for: &'static str,
        /// In its words, escaped.
        reason: String,
    },
}

/// A profile as the agent sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct PulledProfile {
    /// Name of the format.
    pub format: String,
    /// Number of samples.
    pub n_samples: i64,
    /// Remarks of the agent: what was lost.
    pub comments: Vec<String>,
    /// The file.
    pub bytes: Vec<u8>,
}

/// Which time is asked for.
#[derive(Debug, Clone, Copy)]
pub enum PullTime {
    /// From now on.
    Next(Duration),
    /// What was recorded.
    Recorded(TimeRange),
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct PullQuestion<'a> {
    /// Of what.
    pub profile_type: ProfileType,
    /// Of these processes.
    pub filter: &'a ProcessFilter,
    /// Of samples with all of these labels.
    pub labels: &'a [LabelFilter],
    /// Of this time.
    pub time: PullTime,
    /// In which format.
    pub format: &'a Format,
}

/// Asks an agent for a profile. Dropping the future ends the sampling for it.
pub async fn pull(
    address: &AgentAddress,
    question: PullQuestion<'_>,
) -> Result<PulledProfile, PullFailure> {
    let client = address.connect().await?;
    let received = receive(client, request(&question));
    let limit = question.length().saturating_add(PULL_GRACE);
    match tokio::time::timeout(limit, received).await {
        Ok(received) => received.map_err(|status| refused(address, "profile", &status)),
        Err(_) => Err(refused(address, "profile", &silent())),
    }
}

fn silent() -> tonic::Status {
    tonic::Status::deadline_exceeded("it does not answer")
}

impl PullQuestion<'_> {
    /// How long the agent samples for it.
    #[must_use]
    pub fn length(&self) -> Duration {
        match self.time {
            PullTime::Next(next) => next,
            PullTime::Recorded(_) => Duration::ZERO,
        }
    }
}

fn request(question: &PullQuestion<'_>) -> proto::PullProfileRequest {
    let mut request = proto::PullProfileRequest {
        selector: Some(selector(question.filter)),
        format: question.format.name.to_owned(),
        r#type: question.profile_type.name().to_owned(),
        labels: question.labels.iter().map(matcher).collect(),
        ..proto::PullProfileRequest::default()
    };
    match question.time {
        PullTime::Next(next) => request.duration = next.try_into().ok(),
        PullTime::Recorded(TimeRange::Last(last)) => request.last = last.try_into().ok(),
        PullTime::Recorded(TimeRange::Between { from, to }) => {
            request.from = from.map(Into::into);
            request.to = to.map(Into::into);
        }
    }
    request
}

/// An agent that is connected to, for several questions.
#[derive(Debug, Clone)]
pub struct ConnectedAgent {
    address: AgentAddress,
    client: Client,
}

/// An agent's answer that has begun to come. Until it is read the agent keeps it back.
#[derive(Debug)]
pub struct BegunPull {
    address: AgentAddress,
    parts: tonic::Streaming<proto::PullProfileResponse>,
    metadata: proto::ProfileMetadata,
}

impl ConnectedAgent {
    /// Connects to an agent.
    pub async fn connect(address: &AgentAddress) -> Result<Self, PullFailure> {
        let client = address.connect().await?;
        Ok(Self {
            address: address.clone(),
            client,
        })
    }

    /// Asks for a profile, and waits until it begins to come: for `limit` beyond its length.
    pub async fn begin(
        &self,
        question: &PullQuestion<'_>,
        limit: Duration,
    ) -> Result<BegunPull, PullFailure> {
        let begun = async {
            let mut client = self.client.clone();
            let parts = client.pull_profile(request(question)).await?;
            let mut parts = parts.into_inner();
            let metadata = metadata(&mut parts).await?;
            Ok((parts, metadata))
        };
        let limit = question.length().saturating_add(limit);
        let begun = tokio::time::timeout(limit, begun).await;
        let begun: Result<_, tonic::Status> = begun.unwrap_or_else(|_| Err(silent()));
        let (parts, metadata) = begun.map_err(|status| self.refused(&status))?;
        Ok(BegunPull {
            address: self.address.clone(),
            parts,
            metadata,
        })
    }

    fn refused(&self, status: &tonic::Status) -> PullFailure {
        refused(&self.address, "profile", status)
    }
}

impl BegunPull {
    /// How many bytes it has, as the agent says.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.metadata.size_bytes
    }

    /// How many samples, as the agent says.
    #[must_use]
    pub fn n_samples(&self) -> i64 {
        self.metadata.n_samples
    }

    /// Reads it, within this time. What has another length than was said is refused.
    pub async fn bytes(mut self, limit: Duration) -> Result<Vec<u8>, PullFailure> {
        let size_bytes = self.metadata.size_bytes;
        let bytes = tokio::time::timeout(limit, chunks(&mut self.parts, size_bytes)).await;
        let bytes = bytes.unwrap_or_else(|_| {
            let message = format!("it was not sent within {} s", limit.as_secs());
            Err(tonic::Status::deadline_exceeded(message))
        });
        bytes.map_err(|status| refused(&self.address, "profile", &status))
    }
}

/// The stacks of the processes that are meant, as they are now. Those of one process come in several messages when they
/// are many.
pub async fn dump(
    address: &AgentAddress,
    filter: &ProcessFilter,
    locals: LocalsDetail,
) -> Result<Vec<ProcessStacks>, PullFailure> {
    let mut client = address.connect().await?;
    let request = proto::DumpStacksRequest {
        selector: Some(selector(filter)),
        locals: match locals {
            LocalsDetail::None => proto::LocalsDetail::Unspecified,
            LocalsDetail::Short => proto::LocalsDetail::Short,
            LocalsDetail::Long => proto::LocalsDetail::Long,
        }
        .into(),
    };
    let received = async {
        let mut messages = client.dump_stacks(request).await?.into_inner();
        let mut processes: Vec<ProcessStacks> = Vec::new();
        let mut has_more = false;
        let mut n_bytes = 0;
        while let Some(message) = messages.message().await? {
            if locals != LocalsDetail::None && !message.has_locals {
                let message = "it is too old to know local variables: update it";
                return Err(tonic::Status::unimplemented(message));
            }
            n_bytes += message.encoded_len() as u64;
            if n_bytes > MAX_PROFILE_BYTES {
                return Err(tonic::Status::data_loss("the stacks are larger than 1 GiB"));
            }
            let goes_on = std::mem::replace(&mut has_more, message.has_more);
            let stacks = process_stacks(message);
            match (processes.last_mut(), stacks) {
                (
                    Some(ProcessStacks {
                        stacks: Ok(known), ..
                    }),
                    ProcessStacks {
                        stacks: Ok(more), ..
                    },
                ) if goes_on => known.threads.extend(more.threads),
                (_, stacks) => processes.push(stacks),
            }
        }
        Ok(processes)
    };
    match tokio::time::timeout(PULL_GRACE, received).await {
        Ok(received) => received.map_err(|status| refused(address, "dump", &status)),
        Err(_) => Err(refused(
            address,
            "dump",
            &tonic::Status::deadline_exceeded("it does not answer"),
        )),
    }
}

fn process_stacks(message: proto::DumpStacksResponse) -> ProcessStacks {
    let time = |time: Option<prost_types::Timestamp>| {
        time.and_then(|time| SystemTime::try_from(time).ok())
            .unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let stacks = Stacks {
        time: time(message.time),
        threads: message.threads.into_iter().map(thread_stack).collect(),
        n_other_threads: message.n_other_threads,
    };
    ProcessStacks {
        pid: message.pid,
        start_time: time(message.start_time),
        program: message.program,
        python_version: message.python_version,
        stacks: if message.problem.is_empty() {
            Ok(stacks)
        } else {
            Err(message.problem)
        },
    }
}

fn thread_stack(thread: proto::ThreadStack) -> ThreadStack {
    let state = match thread.state() {
        proto::ThreadState::Running | proto::ThreadState::Unspecified => ThreadState::Running,
        proto::ThreadState::Sleeping => ThreadState::Sleeping,
        proto::ThreadState::Uninterruptible => ThreadState::Uninterruptible,
        proto::ThreadState::Stopped => ThreadState::Stopped,
    };
    let locals = thread.frames.iter().map(|frame| FrameLocals {
        variables: frame.locals.iter().cloned().map(local).collect(),
        problem: frame.locals_problem.as_str().into(),
    });
    let locals: Vec<FrameLocals> = locals.collect();
    let frames = thread.frames.into_iter().map(|frame| ResolvedFrame {
        function: Arc::new(ResolvedFunction::python(
            &frame.function,
            &frame.file,
            frame.start_line,
        )),
        line: frame.line,
        address: 0,
    });
    ThreadStack {
        tid: thread.tid,
        name: thread.name.into(),
        state,
        wait_function: thread.wait_function,
        holds_gil: thread.holds_gil,
        frames: frames.collect(),
        locals,
        is_uncertain: thread.is_uncertain,
        is_truncated: thread.is_truncated,
    }
}

fn local(variable: proto::LocalVariable) -> LocalVariable {
    LocalVariable {
        name: variable.name.into(),
        is_argument: variable.is_argument,
        value: variable.value.map(|text| LocalValue {
            type_name: variable.r#type.into(),
            text,
            is_truncated: variable.is_truncated,
        }),
    }
}

/// A process that an agent profiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfiledProcess {
    /// Its id.
    pub pid: u32,
    /// The first argument.
    pub program: String,
    /// Script or module (`-m name`); empty when there is none.
    pub script: String,
    /// Version of its interpreter.
    pub python_version: String,
}

/// How an agent samples.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SamplingStatus {
    /// Samples a second on each CPU.
    pub rate_hz: f64,
    /// CPUs that are online.
    pub n_cpus_online: u32,
    /// Numbers that only grow, by name.
    pub counters: HashMap<String, u64>,
}

/// The processes of a filter that an agent profiles now, and how it samples; `None`: who asks may not know the latter.
pub async fn overview(
    address: &AgentAddress,
    filter: &ProcessFilter,
) -> Result<(Vec<ProfiledProcess>, Option<SamplingStatus>), PullFailure> {
    let mut client = address.connect().await?;
    let asked = async {
        let request = proto::ListProcessesRequest {
            selector: Some(selector(filter)),
        };
        let listed = client.list_processes(request).await?.into_inner();
        let status = match client.get_status(proto::GetStatusRequest {}).await {
            Ok(status) => Some(status.into_inner()),
            Err(status) if status.code() == Code::PermissionDenied => None,
            Err(status) => return Err(status),
        };
        Ok((listed, status))
    };
    let asked = tokio::time::timeout(PULL_GRACE, asked).await;
    let silent = |_| Err(tonic::Status::deadline_exceeded("it does not answer"));
    let asked: Result<_, tonic::Status> = asked.unwrap_or_else(silent);
    let (listed, status) =
        asked.map_err(|status| refused(address, "list of processes", &status))?;
    let profiled = listed
        .processes
        .into_iter()
        .filter(|process| process.state() == proto::ProcessState::Profiled)
        .map(|process| ProfiledProcess {
            pid: process.pid,
            program: process.program,
            script: process.script,
            python_version: process.python_version,
        });
    let status = status.map(|status| SamplingStatus {
        rate_hz: status.rate_hz,
        n_cpus_online: status.n_cpus_online,
        counters: status
            .counters
            .into_iter()
            .map(|counter| (counter.name, counter.value))
            .collect(),
    });
    Ok((profiled.collect(), status))
}

/// The containers of the processes that an agent profiles, as people know them; each once.
pub async fn containers(address: &AgentAddress) -> Result<Vec<String>, PullFailure> {
    let mut client = address.connect().await?;
    let listed = client.list_processes(proto::ListProcessesRequest::default());
    let listed = listed
        .await
        .map_err(|status| refused(address, "list of processes", &status))?;
    let processes = listed.into_inner().processes.into_iter();
    let profiled = processes.filter(|process| process.state() == proto::ProcessState::Profiled);
    let containers: BTreeSet<String> = profiled
        .filter_map(|process| process.container)
        .map(|container| match container.name.as_str() {
            "" => container.id,
            name => name.to_owned(),
        })
        .collect();
    Ok(containers.into_iter().collect())
}

async fn receive(
    mut client: Client,
    request: proto::PullProfileRequest,
) -> Result<PulledProfile, tonic::Status> {
    let mut parts = client.pull_profile(request).await?.into_inner();
    let metadata = metadata(&mut parts).await?;
    if metadata.size_bytes > MAX_PROFILE_BYTES {
        return Err(tonic::Status::data_loss("the profile is larger than 1 GiB"));
    }
    let bytes = chunks(&mut parts, metadata.size_bytes).await?;
    Ok(PulledProfile {
        format: metadata.format,
        n_samples: metadata.n_samples,
        comments: metadata.comments,
        bytes,
    })
}

fn broken() -> tonic::Status {
    tonic::Status::data_loss("the answer is not complete")
}

/// What the answer begins with.
async fn metadata(
    parts: &mut tonic::Streaming<proto::PullProfileResponse>,
) -> Result<proto::ProfileMetadata, tonic::Status> {
    loop {
        match parts.message().await?.ok_or_else(broken)?.part {
            Some(Part::Metadata(metadata)) => return Ok(metadata),
            Some(Part::Chunk(_)) => return Err(broken()),
            // What only newer agents and clients know.
            None => {}
        }
    }
}

/// All that follows: exactly so many bytes.
async fn chunks(
    parts: &mut tonic::Streaming<proto::PullProfileResponse>,
    size_bytes: u64,
) -> Result<Vec<u8>, tonic::Status> {
    let mut bytes = Vec::new();
    while let Some(message) = parts.message().await? {
        let chunk = match message.part {
            Some(Part::Chunk(chunk)) => chunk,
            Some(Part::Metadata(_)) => return Err(broken()),
            None => continue,
        };
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > size_bytes {
            return Err(broken());
        }
    }
    if bytes.len() as u64 != size_bytes {
        return Err(broken());
    }
    Ok(bytes)
}

fn selector(filter: &ProcessFilter) -> proto::ProcessSelector {
    let ProcessFilter {
        include,
        exclude,
        // The agent knows by itself who asks.
        viewer: _,
    } = filter;
    proto::ProcessSelector {
        pids: include.pids.clone(),
        comm: texts(&include.comm),
        cmdline: texts(&include.cmdline),
        cgroup: texts(&include.cgroups),
        container: texts(&include.containers),
        exclude_pids: exclude.pids.clone(),
        exclude_comm: texts(&exclude.comm),
        exclude_cmdline: texts(&exclude.cmdline),
        exclude_cgroup: texts(&exclude.cgroups),
        exclude_container: texts(&exclude.containers),
        k8s_namespace: texts(&include.namespaces),
        k8s_labels: texts(&include.pod_labels),
        exclude_k8s_namespace: texts(&exclude.namespaces),
    }
}

fn matcher(label: &LabelFilter) -> proto::LabelMatcher {
    proto::LabelMatcher {
        name: label.name.clone(),
        pattern: label.pattern.to_string(),
    }
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn refused(address: &AgentAddress, asked_for: &'static str, status: &tonic::Status) -> PullFailure {
    let shown = address.to_string();
    if let Some(error) = status.source() {
        return address.broken(error).into();
    }
    match status.code() {
        Code::NotFound => PullFailure::NoMatch {
            address: shown,
            reason: escape(status.message()).into_owned(),
        },
        Code::Unimplemented => PullFailure::Unknown { address: shown },
        code => PullFailure::Refused {
            address: shown,
            asked_for,
            reason: match status.message() {
                "" => code.description().to_owned(),
                message => escape(message).into_owned(),
            },
        },
    }
}
