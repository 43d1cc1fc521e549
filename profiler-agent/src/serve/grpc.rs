//! `pyagent.v1.ProfileService` over gRPC: translates between the messages and [`super::query`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;
use tokio_stream::{Stream, iter};
use tonic::{Request, Response, Status};

use super::inspect::{Inspector, Messages};
use super::process_watch;
use super::pull::{
    BadRequest, Pulled, Puller, Selector, SelectorSide, Times, Wanted, check_recorded,
    label_filters,
};
use super::query::{
    Asker, ContainerInfo, PodInfo, ProcessInfo, ProcessState, PullError, RecorderInfo,
};
use super::scope::Scope;
use super::watching::{Watch, WatchStream};
use crate::format::Format;
use crate::generated::pyagent::v1 as proto;
use crate::generated::pyagent::v1::profile_service_server::ProfileService;
use crate::profile::inspect::LocalsDetail;
use crate::profile::memory::{GcStats, MemoryInfo, N_GENERATIONS};
use crate::profile::model::ProfileType;
use crate::profile::query::Viewer;

/// Bytes of a profile in one message.
const CHUNK_BYTES: usize = 64 << 10;

/// Duration of a pull that says none.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);

/// The service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) asker: Asker,
    pub(super) puller: Puller,
    pub(super) inspector: Inspector,
    pub(super) process_watchers: Arc<Semaphore>,
    /// Local variables may be asked for.
    pub(super) allows_locals: bool,
}

impl Service {
    /// Whether local variables are given to somebody: their values can be secrets.
    fn locals(&self, detail: i32, scope: &Scope) -> Result<LocalsDetail, Status> {
        let detail = match proto::LocalsDetail::try_from(detail) {
            Ok(proto::LocalsDetail::Unspecified) => return Ok(LocalsDetail::None),
            Ok(proto::LocalsDetail::Short) => LocalsDetail::Short,
            Ok(proto::LocalsDetail::Long) => LocalsDetail::Long,
            Err(_) => {
                return Err(Status::invalid_argument(
                    "this detail of locals is not known",
                ));
            }
        };
        // A user of this host sees the processes that are wholly their own: what they could read by themselves.
        if !matches!(scope.viewer(), Viewer::All | Viewer::User(_)) {
            return Err(Status::permission_denied(
                "local variables are given to the scope `all` alone",
            ));
        }
        if !self.allows_locals {
            return Err(Status::failed_precondition(
                "this agent does not give local variables: start it with --allow-locals",
            ));
        }
        Ok(detail)
    }
}

#[tonic::async_trait]
impl ProfileService for Service {
    type PullProfileStream =
        Pin<Box<dyn Stream<Item = Result<proto::PullProfileResponse, Status>> + Send>>;
    type WatchProfilesStream = WatchStream;
    type WatchProcessesStream = Messages<proto::WatchProcessesResponse>;
    type DumpStacksStream = Messages<proto::DumpStacksResponse>;
    type HeapCensusStream = Messages<proto::HeapCensusResponse>;

    async fn list_processes(
        &self,
        request: Request<proto::ListProcessesRequest>,
    ) -> Result<Response<proto::ListProcessesResponse>, Status> {
        let scope = Scope::of(request.extensions());
        let filter = selector(request.into_inner().selector).parse(&scope)?;
        let processes = self.asker.processes(filter, true).await;
        let processes = processes.ok_or(PullError::Stopping)?;
        Ok(Response::new(proto::ListProcessesResponse {
            processes: processes.into_iter().map(process).collect(),
        }))
    }

    async fn pull_profile(
        &self,
        request: Request<proto::PullProfileRequest>,
    ) -> Result<Response<Self::PullProfileStream>, Status> {
        let scope = Scope::of(request.extensions());
        let request = request.into_inner();
        let format = match &*request.format {
            "" => Format::default_format(),
            name => Format::from_name(name).map_err(BadRequest::from)?,
        };
        let profile_type = match &*request.r#type {
            "" => ProfileType::Cpu,
            name => name.parse().map_err(BadRequest::from)?,
        };
        let times = Times {
            duration: request.duration.map(length).transpose()?,
            last: request.last.map(length).transpose()?,
            from: request.from.map(moment).transpose()?,
            to: request.to.map(moment).transpose()?,
        };
        let filter = selector(request.selector).parse(&scope)?;
        let wanted = Wanted {
            source: times.source(profile_type, filter, DEFAULT_DURATION)?,
            labels: label_filters(request.labels.into_iter().map(|it| (it.name, it.pattern)))?,
            format,
        };
        let pulled = self.puller.pull(wanted).await?;
        Ok(Response::new(Box::pin(iter(messages(pulled)))))
    }

    async fn watch_profiles(
        &self,
        request: Request<proto::WatchProfilesRequest>,
    ) -> Result<Response<Self::WatchProfilesStream>, Status> {
        let scope = Scope::of(request.extensions());
        let request = request.into_inner();
        let types: Result<Vec<ProfileType>, _> =
            request.types.iter().map(|name| name.parse()).collect();
        let watch = Watch {
            types: types.map_err(BadRequest::from)?,
            filter: selector(request.selector).parse(&scope)?,
            labels: label_filters(request.labels.into_iter().map(|it| (it.name, it.pattern)))?,
            format: match &*request.format {
                "" => Format::default_format(),
                name => Format::from_name(name).map_err(BadRequest::from)?,
            },
        };
        check_recorded(&watch.filter)?;
        let place = self.puller.watch().ok_or(PullError::TooManyPulls)?;
        let windows = self.asker.watch().await.ok_or(PullError::Stopping)?;
        Ok(Response::new(watch.stream(windows, place)))
    }

    async fn watch_processes(
        &self,
        request: Request<proto::WatchProcessesRequest>,
    ) -> Result<Response<Self::WatchProcessesStream>, Status> {
        let scope = Scope::of(request.extensions());
        let filter = selector(request.into_inner().selector).parse(&scope)?;
        let place = self.process_watchers.clone().try_acquire_owned();
        let place =
            place.map_err(|_| Status::resource_exhausted("too many clients watch processes"))?;
        let asker = self.asker.clone();
        Ok(Response::new(process_watch::watch(asker, filter, place)))
    }

    async fn dump_stacks(
        &self,
        request: Request<proto::DumpStacksRequest>,
    ) -> Result<Response<Self::DumpStacksStream>, Status> {
        let scope = Scope::of(request.extensions());
        let request = request.into_inner();
        let locals = self.locals(request.locals, &scope)?;
        let filter = selector(request.selector).parse(&scope)?;
        Ok(Response::new(self.inspector.dump(filter, locals).await?))
    }

    async fn heap_census(
        &self,
        request: Request<proto::HeapCensusRequest>,
    ) -> Result<Response<Self::HeapCensusStream>, Status> {
        let viewer = Scope::of(request.extensions()).viewer();
        let request = request.into_inner();
        let census = self
            .inspector
            .census(request.pid, request.max_types, viewer);
        Ok(Response::new(census.await?))
    }

    async fn get_status(
        &self,
        request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let scope = Scope::of(request.extensions());
        let status = self
            .asker
            .status_for(&scope)
            .await
            .ok_or(PullError::Stopping)?;
        Ok(Response::new(status_response(status)))
    }
}

impl From<BadRequest> for Status {
    fn from(error: BadRequest) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<PullError> for Status {
    fn from(error: PullError) -> Self {
        let message = error.to_string();
        match error {
            PullError::NoMatch | PullError::NotRecorded(_) | PullError::UnknownLabel(_) => {
                Self::not_found(message)
            }
            PullError::NotSampled(_) | PullError::NoRecorder => Self::failed_precondition(message),
            PullError::Unreadable(_) => Self::internal(message),
            PullError::TooManyPulls => Self::resource_exhausted(message),
            PullError::Stopping => Self::unavailable(message),
        }
    }
}

fn selector(selector: Option<proto::ProcessSelector>) -> Selector {
    let selector = selector.unwrap_or_default();
    Selector {
        include: SelectorSide {
            pids: selector.pids,
            comm: selector.comm,
            cmdline: selector.cmdline,
            cgroup: selector.cgroup,
            container: selector.container,
            namespace: selector.k8s_namespace,
            pod_labels: selector.k8s_labels,
        },
        exclude: SelectorSide {
            pids: selector.exclude_pids,
            comm: selector.exclude_comm,
            cmdline: selector.exclude_cmdline,
            cgroup: selector.exclude_cgroup,
            container: selector.exclude_container,
            namespace: selector.exclude_k8s_namespace,
            pod_labels: Vec::new(),
        },
    }
}

/// A length of time as the wire has it.
fn length(duration: prost_types::Duration) -> Result<Duration, Status> {
    Duration::try_from(duration)
        .map_err(|_| Status::invalid_argument("a duration is negative, or none"))
}

/// A moment as the wire has it.
fn moment(time: prost_types::Timestamp) -> Result<SystemTime, Status> {
    SystemTime::try_from(time).map_err(|_| Status::invalid_argument("a time is none"))
}

/// What is said of a profile besides its bytes.
pub(super) fn metadata(pulled: &Pulled) -> proto::ProfileMetadata {
    proto::ProfileMetadata {
        format: pulled.format.name.to_owned(),
        content_type: pulled.format.content_type.to_owned(),
        n_samples: pulled.n_samples,
        start_time: Some(pulled.start.into()),
        duration: pulled.duration.try_into().ok(),
        size_bytes: pulled.bytes.len() as u64,
        comments: pulled.comments.clone(),
    }
}

/// The bytes of a file, cut as they are sent.
pub(super) fn chunks(bytes: Vec<u8>) -> impl Iterator<Item = Vec<u8>> + Send {
    let starts = (0..bytes.len()).step_by(CHUNK_BYTES);
    starts.map(move |start| {
        let end = bytes.len().min(start + CHUNK_BYTES);
        bytes[start..end].to_vec()
    })
}

/// The metadata, then the bytes in chunks.
fn messages(
    pulled: Pulled,
) -> impl Iterator<Item = Result<proto::PullProfileResponse, Status>> + Send {
    let metadata = metadata(&pulled);
    let chunks = chunks(pulled.bytes).map(proto::pull_profile_response::Part::Chunk);
    let metadata = proto::pull_profile_response::Part::Metadata(metadata);
    let parts = std::iter::once(metadata).chain(chunks);
    parts.map(|part| Ok(proto::PullProfileResponse { part: Some(part) }))
}

pub(super) fn process(process: ProcessInfo) -> proto::Process {
    proto::Process {
        pid: process.pid,
        start_time: Some(process.start_time.into()),
        comm: process.comm,
        program: process.program,
        script: process.script,
        interpreter: process.interpreter,
        python_version: process.python_version,
        service_name: process.service_name,
        state: state(process.state).into(),
        reason: process.reason,
        reason_name: process.reason_name.to_owned(),
        cmdline: process.cmdline,
        cgroup: process.cgroup,
        container: process.container.map(container),
        pod: process.pod.map(pod),
        memory: process.memory.map(memory),
    }
}

fn memory(MemoryInfo { resident, gc }: MemoryInfo) -> proto::ProcessMemory {
    proto::ProcessMemory {
        anon_bytes: resident.anon,
        file_bytes: resident.file,
        shmem_bytes: resident.shmem,
        swap_bytes: resident.swap,
        peak_bytes: resident.peak,
        gc: gc.map(garbage_collector),
    }
}

fn garbage_collector(stats: GcStats) -> proto::GarbageCollector {
    let generations = (0..N_GENERATIONS).map(|idx| proto::GcGeneration {
        collections: stats.collections[idx],
        collected: stats.collected[idx],
        uncollectable: stats.uncollectable[idx],
    });
    proto::GarbageCollector {
        generations: generations.collect(),
        // Longer than 300 billion years it does not get.
        duration: stats.duration.and_then(|duration| duration.try_into().ok()),
        sampled_duration: stats
            .sampled_duration
            .and_then(|duration| duration.try_into().ok()),
    }
}

fn container(container: ContainerInfo) -> proto::Container {
    proto::Container {
        id: container.id,
        name: container.name,
        runtime: container.runtime.to_owned(),
        k8s_pod_uid: container.k8s_pod_uid,
        k8s_container_name: container.k8s_container_name,
    }
}

fn pod(pod: PodInfo) -> proto::Pod {
    let workloads = pod.workloads.into_iter();
    proto::Pod {
        uid: pod.uid,
        namespace: pod.namespace,
        name: pod.name,
        node_name: pod.node,
        workloads: workloads
            .map(|(kind, name)| proto::Workload {
                kind: kind.to_owned(),
                name,
            })
            .collect(),
    }
}

fn state(state: ProcessState) -> proto::ProcessState {
    match state {
        ProcessState::Discovering => proto::ProcessState::Discovering,
        ProcessState::Profiled => proto::ProcessState::Profiled,
        ProcessState::NotProfiled => proto::ProcessState::NotProfiled,
    }
}

fn status_response(status: super::query::Status) -> proto::GetStatusResponse {
    let counters = status.counters.iter().map(|counter| proto::Counter {
        name: counter.name.to_owned(),
        help: counter.help.to_owned(),
        value: counter.value,
    });
    let not_profiled = status.not_profiled.iter();
    let not_profiled = not_profiled.map(|(reason_name, n_processes)| proto::ReasonCount {
        reason_name: (*reason_name).to_owned(),
        n_processes: *n_processes,
    });
    let processes = status.processes.iter();
    let processes = processes.map(|(of_state, n_processes)| proto::ProcessCount {
        state: state(*of_state).into(),
        n_processes: *n_processes,
    });
    proto::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime: status.uptime.try_into().ok(),
        kernel_release: status.kernel_release,
        rate_asked_hz: status.rate_asked_hz,
        rate_hz: status.rate_hz,
        n_cpus_online: status.n_cpus_online,
        n_cpus_attached: status.n_cpus_attached,
        samples_per_second: status.samples_per_second,
        counters: counters.collect(),
        processes: processes.collect(),
        not_profiled: not_profiled.collect(),
        recorder: status.recorder.map(recorder),
        kubernetes: status.kubernetes.map(|kubernetes| proto::Kubernetes {
            problem: kubernetes.problem,
            n_pods: kubernetes.n_pods,
        }),
    }
}

fn recorder(recorder: RecorderInfo) -> proto::Recorder {
    proto::Recorder {
        folder: recorder.folder,
        problem: recorder.problem,
        size_bytes: recorder.n_bytes,
        max_size_bytes: recorder.keep_bytes,
        oldest_time: recorder.oldest.map(Into::into),
    }
}
