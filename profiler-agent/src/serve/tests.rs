//! The server over real sockets, with an agent that only answers questions.

mod access;
mod bounds;
mod encrypted;
mod heap;
mod inspected;
mod local;
mod pods;
mod reviewed;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::client::{
    self, AgentAddress, PullFailure, PullQuestion, PullTime, PulledProfile, containers,
};
use super::query::{
    CensusPart, ContainerInfo, CounterValue, InspectError, PodInfo, ProcessInfo, ProcessState,
    PullError, Status,
};
use super::*;
use crate::format::Format;
use crate::generated::pyagent::v1 as proto;
use crate::generated::pyagent::v1::profile_service_client::ProfileServiceClient;
use crate::profile::aggregate::{
    Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
};
use crate::profile::memory::{GcStats, MemoryInfo, Resident};
use crate::profile::model::{Profile, ProfileType, ValueType};
use crate::profile::query::{ProcessFacts, ProcessFilter};

/// The one process that the agent of these tests profiles.
const PID: u32 = 42;

/// The container that it is in.
const CONTAINER_ID: &str = "8a1b2c3d4e5f60718293a4b5c6d7e8f9008a1b2c3d4e5f60718293a4b5c6d7e8";

/// The Kubernetes namespace of that.
const NAMESPACE: &str = "shop";

/// The user whose that process is.
const OWNER: u32 = 1234;

/// Another one that it sees.
const OTHER_PID: u32 = 43;

/// A pull of this duration is not answered: its reply is handed to the test.
const UNANSWERED: Duration = Duration::from_secs(77);

/// A profile of what comes.
async fn pull(
    agent: &AgentAddress,
    profile_type: ProfileType,
    filter: &ProcessFilter,
    duration: Duration,
    format: &Format,
) -> Result<PulledProfile, PullFailure> {
    let question = PullQuestion {
        profile_type,
        filter,
        labels: &[],
        time: PullTime::Next(duration),
        format,
    };
    client::pull(agent, question).await
}

/// A server with its agent.
struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
    /// Replies of pulls of the duration [`UNANSWERED`].
    unanswered: mpsc::Receiver<oneshot::Sender<Result<Profile, PullError>>>,
}

#[expect(clippy::unused_async, reason = "it needs the runtime")]
async fn start() -> Running {
    serve(bind("127.0.0.1:0").unwrap())
}

fn config(listen: &str) -> ServeConfig {
    ServeConfig {
        listen: vec![listen.parse().unwrap()],
        ..ServeConfig::default()
    }
}

fn bind(listen: &str) -> Result<Server, BindError> {
    Server::bind(&config(listen))
}

/// Where it is reached from this host; of local sockets nowhere.
fn address_of(server: &Server) -> SocketAddr {
    let of = |address: &ListenAddress| match address {
        ListenAddress::Tcp { address, .. } => {
            Some(SocketAddr::new([127, 0, 0, 1].into(), address.port()))
        }
        ListenAddress::Unix(_) | ListenAddress::None => None,
    };
    let first = server.addresses().find_map(of);
    first.unwrap_or_else(|| SocketAddr::new([127, 0, 0, 1].into(), 0))
}

fn serve(server: Server) -> Running {
    let address = address_of(&server);
    let (queries, questions) = mpsc::channel(4);
    let (hand_over, unanswered) = mpsc::channel(64);
    tokio::spawn(answer(questions, hand_over));
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { drop(stopped.await) };
    let server = tokio::spawn(server.run(queries, shutdown));
    Running {
        address,
        stop,
        server,
        unanswered,
    }
}

/// The agent: answers until the server goes.
async fn answer(
    mut questions: mpsc::Receiver<Query>,
    hand_over: mpsc::Sender<oneshot::Sender<Result<Profile, PullError>>>,
) {
    while let Some(query) = questions.recv().await {
        match query {
            Query::ListProcesses { filter, reply, .. } => {
                let mut processes = processes();
                processes.retain(|process| is_meant(&filter, process));
                let _ = reply.send(processes);
            }
            Query::Pull { request, reply } => {
                if request.duration == UNANSWERED {
                    hand_over.send(reply).await.unwrap();
                } else if request.profile_type != ProfileType::Cpu {
                    let _ = reply.send(Err(PullError::NotSampled(request.profile_type)));
                } else if is_meant(&request.filter, &processes()[0]) {
                    let _ = reply.send(Ok(profile(request.duration)));
                } else {
                    let _ = reply.send(Err(PullError::NoMatch));
                }
            }
            Query::Status { reply } => {
                let _ = reply.send(status());
            }
            Query::Totals { request, reply } => {
                let _ = reply.send(heap::totals(&request, &[ProfileType::Pools]));
            }
            // The server does not ask for it.
            Query::InUse { .. } | Query::PullRecorded { .. } | Query::Watch { .. } => {}
            Query::DumpStacks { filter, reply, .. } => {
                let is_meant = is_meant(&filter, &processes()[0]);
                // Without an answer the agent is stopping.
                if !is_meant {
                    let _ = reply.send(Err(InspectError::NoMatch)).await;
                }
            }
            Query::HeapCensus { filter, reply } => {
                if is_meant(&filter, &processes()[0]) {
                    tokio::spawn(slow_census(reply));
                } else {
                    let _ = reply.send(Err(InspectError::NoMatch)).await;
                }
            }
        }
    }
}

/// Says how far it is, until nobody listens.
async fn slow_census(reply: mpsc::Sender<Result<CensusPart, InspectError>>) {
    for n_done in 0.. {
        let progress = CensusPart::Progress { n_done, n_all: 100 };
        if reply.send(Ok(progress)).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn is_meant(filter: &ProcessFilter, process: &ProcessInfo) -> bool {
    let pod_labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let pod = process.pod.as_ref();
    filter.matches(&ProcessFacts {
        pid: process.pid,
        comm: &process.comm,
        cmdline: "python3 /srv/app.py --token secret",
        cgroup: &process.cgroup,
        container_id: process
            .container
            .as_ref()
            .map_or("", |container| &container.id),
        container_name: process
            .container
            .as_ref()
            .map_or("", |container| &container.name),
        k8s_namespace: pod.map_or("", |pod| &pod.namespace),
        is_in_pod: pod.is_some(),
        pod_labels: pod.map(|_| &pod_labels),
        owner: (process.pid == PID).then_some(OWNER),
    })
}

fn processes() -> Vec<ProcessInfo> {
    let process = |pid, state, reason: &str| ProcessInfo {
        pid,
        start_time: SystemTime::UNIX_EPOCH,
        comm: "python3".to_owned(),
        program: "python3".to_owned(),
        script: "/srv/app.py".to_owned(),
        interpreter: "/usr/bin/python3.12".to_owned(),
        python_version: "3.12.1".to_owned(),
        state,
        reason: reason.to_owned(),
        reason_name: if reason.is_empty() {
            ""
        } else {
            "version_unsupported"
        },
        cmdline: Vec::new(),
        cgroup: "/user.slice".to_owned(),
        service_name: "shop".to_owned(),
        container: None,
        pod: None,
        memory: Some(MemoryInfo {
            resident: Resident {
                anon: 4096,
                peak: 8192,
                ..Resident::default()
            },
            gc: Some(GcStats {
                collections: [9, 2, 1],
                duration: Some(Duration::from_millis(7)),
                ..GcStats::default()
            }),
        }),
    };
    let contained = ProcessInfo {
        cgroup: format!("/system.slice/docker-{CONTAINER_ID}.scope"),
        container: Some(ContainerInfo {
            id: CONTAINER_ID.to_owned(),
            name: "web".to_owned(),
            runtime: "docker",
            k8s_pod_uid: String::new(),
            k8s_container_name: "app".to_owned(),
        }),
        pod: Some(PodInfo {
            uid: "9d4a6f0e-23c5-4b7a-8f61-0c1d2e3f4a5b".to_owned(),
            namespace: NAMESPACE.to_owned(),
            name: "web-7f-x2".to_owned(),
            node: "node-1".to_owned(),
            workloads: vec![
                ("ReplicaSet", "web-7f".to_owned()),
                ("Deployment", "web".to_owned()),
            ],
            labels: vec![("team".to_owned(), "shop".to_owned())],
        }),
        ..process(PID, ProcessState::Profiled, "")
    };
    vec![
        contained,
        process(OTHER_PID, ProcessState::NotProfiled, "too old"),
    ]
}

pub(super) fn status() -> Status {
    Status {
        uptime: Duration::from_millis(1500),
        kernel_release: "6.12.0".to_owned(),
        rate_asked_hz: 99.0,
        rate_hz: 49.5,
        n_cpus_online: 4,
        n_cpus_attached: 3,
        samples_per_second: 12.5,
        last_window: None,
        memory: None,
        shedding: String::new(),
        recorder: None,
        not_recorded: String::new(),
        kubernetes: None,
        counters: vec![CounterValue {
            name: "lost_full",
            help: "Samples lost because the ring buffer was full",
            value: 7,
        }],
        processes: vec![(ProcessState::Profiled, 1), (ProcessState::NotProfiled, 1)],
        not_profiled: vec![("binary_unreadable", 0), ("version_unsupported", 1)],
    }
}

/// So many functions that pprof needs several chunks.
const N_FUNCTIONS: u32 = 20_000;

fn profile(duration: Duration) -> Profile {
    let mut aggregator = Aggregator::new(SystemTime::now(), &ValueType::CPU_SAMPLES, 1000);
    let labels = Arc::new(ThreadLabels {
        process: Arc::new(ProcessLabels {
            comm: "python3".into(),
            python_version: "3.12.1".into(),
            ..ProcessLabels::of_pid(PID)
        }),
        tid: PID,
        started_ns: 0,
        thread_name: "MainThread".into(),
    });
    for number in 0..N_FUNCTIONS {
        let name = format!(
            "f{:x}",
            u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        );
        let function = ResolvedFunction::python(&name, "/srv/app.py", number);
        let frame = ResolvedFrame {
            function: Arc::new(function),
            line: number,
            address: 0,
        };
        aggregator.add(&ResolvedSample {
            frames: vec![frame],
            labels: Arc::clone(&labels),
            instruction: None,
            values: [1, 1000].into(),
        });
    }
    aggregator.finish(duration, vec!["3 lost".to_owned()])
}

impl Running {
    fn agent(&self) -> AgentAddress {
        self.address.to_string().parse().unwrap()
    }

    async fn client(&self) -> ProfileServiceClient<Channel> {
        ProfileServiceClient::new(self.channel().await)
    }

    async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.address));
        endpoint.unwrap().connect().await.unwrap()
    }

    /// The answer to a request of HTTP/1.1: status, head, body.
    async fn get(&self, target: &str) -> (u16, String, Vec<u8>) {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.address
        );
        self.http(request).await
    }

    async fn http(&self, request: String) -> (u16, String, Vec<u8>) {
        let address = self.address;
        let answer = spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer
        });
        let answer = answer.await.unwrap();
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let (head, body) = answer.split_at(end.expect("an answer has a head") + 4);
        let head = String::from_utf8(head.to_vec()).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head, body.to_vec())
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.server.await.unwrap();
    }
}

#[tokio::test]
async fn processes_are_listed_and_selected() {
    let running = start().await;
    let mut client = running.client().await;
    let all = client
        .list_processes(proto::ListProcessesRequest::default())
        .await;
    let all = all.unwrap().into_inner().processes;
    assert_eq!(all.len(), 2);
    assert_eq!((all[1].pid, all[1].reason.as_str()), (OTHER_PID, "too old"));
    assert_eq!(
        [&*all[0].reason_name, &*all[1].reason_name],
        ["", "version_unsupported"]
    );
    assert_eq!(all[1].state(), proto::ProcessState::NotProfiled);
    assert!(all.iter().all(|process| process.cmdline.is_empty()));

    let selector = proto::ProcessSelector {
        pids: vec![PID],
        comm: vec!["^pyth".to_owned()],
        ..Default::default()
    };
    let request = proto::ListProcessesRequest {
        selector: Some(selector),
    };
    let one = client
        .list_processes(request)
        .await
        .unwrap()
        .into_inner()
        .processes;
    assert_eq!(
        one.iter().map(|process| process.pid).collect::<Vec<_>>(),
        [PID]
    );

    let selector = proto::ProcessSelector {
        exclude_cmdline: vec!["(".to_owned()],
        ..Default::default()
    };
    let request = proto::ListProcessesRequest {
        selector: Some(selector),
    };
    let error = client.list_processes(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("unclosed group"), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn containers_and_control_groups_are_told_and_select() {
    let running = start().await;
    let mut client = running.client().await;
    let web = || vec!["web".to_owned()];
    let selectors = [
        (
            PID,
            proto::ProcessSelector {
                container: web(),
                ..Default::default()
            },
        ),
        (
            OTHER_PID,
            proto::ProcessSelector {
                exclude_container: web(),
                ..Default::default()
            },
        ),
        (
            PID,
            proto::ProcessSelector {
                cgroup: vec!["docker-".to_owned()],
                ..Default::default()
            },
        ),
        (
            OTHER_PID,
            proto::ProcessSelector {
                cgroup: vec!["/user.slice/".to_owned()],
                ..Default::default()
            },
        ),
        (
            OTHER_PID,
            proto::ProcessSelector {
                exclude_cgroup: vec!["/system.slice".to_owned()],
                ..Default::default()
            },
        ),
    ];
    for (pid, selector) in selectors {
        let shown = format!("{selector:?}");
        let request = proto::ListProcessesRequest {
            selector: Some(selector),
        };
        let listed = client.list_processes(request).await.unwrap().into_inner();
        let [process] = listed.processes.as_slice() else {
            panic!("{shown}: {listed:?}");
        };
        assert_eq!(process.pid, pid, "{shown}");
        let name = process.container.as_ref().map(|container| &*container.name);
        assert_eq!(name, (pid == PID).then_some("web"));
    }
    let selector = proto::ProcessSelector {
        container: vec![String::new()],
        ..Default::default()
    };
    let request = proto::ListProcessesRequest {
        selector: Some(selector),
    };
    let error = client.list_processes(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    running.stop().await;
}

#[tokio::test]
async fn a_pull_of_a_container_is_of_that_one() {
    let running = start().await;
    let format = Format::from_name("folded").unwrap();
    for (name, is_there) in [("web", true), (CONTAINER_ID, true), ("other", false)] {
        let mut filter = ProcessFilter::default();
        filter.include.containers.push(name.parse().unwrap());
        let pulled = pull(
            &running.agent(),
            ProfileType::Cpu,
            &filter,
            Duration::from_secs(1),
            format,
        )
        .await;
        assert_eq!(pulled.is_ok(), is_there, "{name}");
        let (status, _, _) = running
            .get(&format!("/debug/pprof/profile?seconds=1&container={name}"))
            .await;
        assert_eq!(status, if is_there { 200 } else { 404 }, "{name}");
    }
    assert_eq!(containers(&running.agent()).await.unwrap(), ["web"]);
    running.stop().await;
}

#[tokio::test]
async fn the_status_comes_over_grpc() {
    let running = start().await;
    let mut client = running.client().await;
    let status = client
        .get_status(proto::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(
        status.uptime.unwrap(),
        Duration::from_millis(1500).try_into().unwrap()
    );
    assert_eq!((status.rate_asked_hz, status.rate_hz), (99.0, 49.5));
    assert_eq!((status.n_cpus_online, status.n_cpus_attached), (4, 3));
    assert_eq!(
        (status.counters[0].name.as_str(), status.counters[0].value),
        ("lost_full", 7)
    );
    assert_eq!(status.processes.len(), 2);
    let not_profiled: Vec<_> = status
        .not_profiled
        .iter()
        .map(|count| (&*count.reason_name, count.n_processes))
        .collect();
    assert_eq!(
        not_profiled,
        [("binary_unreadable", 0), ("version_unsupported", 1)]
    );
    running.stop().await;
}

#[tokio::test]
async fn a_profile_is_pulled_whole() {
    let running = start().await;
    let (filter, format) = (
        ProcessFilter::pid(PID),
        Format::from_name("folded").unwrap(),
    );
    let pulled = pull(
        &running.agent(),
        ProfileType::Cpu,
        &filter,
        Duration::from_secs(1),
        format,
    )
    .await
    .unwrap();
    assert_eq!(
        (&*pulled.format, pulled.n_samples),
        ("folded", i64::from(N_FUNCTIONS))
    );
    assert_eq!(pulled.comments, ["3 lost"]);
    assert!(pulled.bytes.len() > 4 * (64 << 10), "several chunks");
    let text = String::from_utf8(pulled.bytes).unwrap();
    assert_eq!(
        text.lines().collect::<BTreeSet<_>>().len(),
        N_FUNCTIONS as usize
    );
    running.stop().await;
}

#[tokio::test]
async fn the_metadata_comes_first_and_chunks_are_bounded() {
    let running = start().await;
    let mut client = running.client().await;
    let request = proto::PullProfileRequest::default();
    let mut parts = client.pull_profile(request).await.unwrap().into_inner();
    let mut size_bytes = None;
    let mut n_bytes = 0;
    while let Some(message) = parts.message().await.unwrap() {
        match message.part.unwrap() {
            proto::pull_profile_response::Part::Metadata(metadata) => {
                assert_eq!((&*metadata.format, n_bytes), ("pprof", 0));
                assert_eq!(metadata.duration.unwrap().seconds, 10, "the default");
                assert!(size_bytes.replace(metadata.size_bytes).is_none());
            }
            proto::pull_profile_response::Part::Chunk(chunk) => {
                assert!(!chunk.is_empty() && chunk.len() <= 64 << 10);
                n_bytes += chunk.len() as u64;
            }
        }
    }
    assert_eq!(size_bytes, Some(n_bytes));
    running.stop().await;
}

#[tokio::test]
async fn bad_pulls_are_refused_with_the_reason() {
    let running = start().await;
    let mut client = running.client().await;
    let seconds = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let request =
        |duration, format: &str, pids: Vec<u32>, comm: Vec<String>| proto::PullProfileRequest {
            r#type: String::new(),
            selector: Some(proto::ProcessSelector {
                pids,
                comm,
                ..Default::default()
            }),
            duration,
            format: format.to_owned(),
            ..proto::PullProfileRequest::default()
        };
    let of_type = |name: &str| proto::PullProfileRequest {
        r#type: name.to_owned(),
        ..proto::PullProfileRequest::default()
    };
    for (request, code, reason) in [
        (
            of_type("heap"),
            Code::InvalidArgument,
            "`heap` is no profile type: there are cpu, faults",
        ),
        (
            of_type("faults"),
            Code::FailedPrecondition,
            "start it with --type faults",
        ),
        (
            request(seconds(1, 0), "jpeg", vec![], vec![]),
            Code::InvalidArgument,
            "pprof|folded|svg",
        ),
        (
            request(seconds(0, 0), "", vec![], vec![]),
            Code::InvalidArgument,
            "10 ms to 1 h",
        ),
        (
            request(seconds(3601, 0), "", vec![], vec![]),
            Code::InvalidArgument,
            "10 ms to 1 h",
        ),
        (
            request(seconds(-1, 0), "", vec![], vec![]),
            Code::InvalidArgument,
            "negative",
        ),
        (
            request(seconds(i64::MAX, i32::MAX), "", vec![], vec![]),
            Code::InvalidArgument,
            "10 ms",
        ),
        (
            request(None, "", vec![1; 10_001], vec![]),
            Code::InvalidArgument,
            "more than 10000",
        ),
        (
            request(None, "", vec![], vec!["a".to_owned(); 33]),
            Code::InvalidArgument,
            "32 regular",
        ),
        (
            request(None, "", vec![1], vec![]),
            Code::NotFound,
            "no profiled process",
        ),
    ] {
        let error = client.pull_profile(request).await.unwrap_err();
        assert_eq!(error.code(), code);
        assert!(error.message().contains(reason), "{error}");
    }
    // A request that is larger than any selector may be.
    let huge = request(None, "", vec![], vec!["x".repeat(300 << 10)]);
    assert_eq!(
        client.pull_profile(huge).await.unwrap_err().code(),
        Code::OutOfRange
    );
    running.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_pull() {
    let mut running = start().await;
    let agent = running.agent();
    let pulling = tokio::spawn(async move {
        let filter = ProcessFilter::default();
        pull(
            &agent,
            ProfileType::Cpu,
            &filter,
            UNANSWERED,
            Format::default_format(),
        )
        .await
    });
    let mut reply = running.unanswered.recv().await.unwrap();
    assert!(!reply.is_closed());
    pulling.abort();
    reply.closed().await;

    // The same over HTTP.
    let mut stream = TcpStream::connect(running.address).unwrap();
    let seconds = UNANSWERED.as_secs();
    write!(
        stream,
        "GET /debug/pprof/profile?seconds={seconds} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    .unwrap();
    let mut reply = running.unanswered.recv().await.unwrap();
    assert!(!reply.is_closed());
    stream.shutdown(Shutdown::Both).unwrap();
    reply.closed().await;
    running.stop().await;
}

#[tokio::test]
async fn pulls_at_a_time_are_bounded_and_their_places_come_free() {
    let mut running = start().await;
    let agent = running.agent();
    let mut pulls = Vec::new();
    let mut replies = Vec::new();
    for _ in 0..MAX_CONCURRENT_PULLS {
        let agent = agent.clone();
        pulls.push(tokio::spawn(async move {
            let filter = ProcessFilter::default();
            pull(
                &agent,
                ProfileType::Cpu,
                &filter,
                UNANSWERED,
                Format::default_format(),
            )
            .await
        }));
        replies.push(running.unanswered.recv().await.unwrap());
    }
    let (filter, second) = (ProcessFilter::default(), Duration::from_secs(1));
    let refused = pull(
        &agent,
        ProfileType::Cpu,
        &filter,
        second,
        Format::default_format(),
    )
    .await
    .unwrap_err();
    assert!(
        refused.to_string().contains("too many profiles"),
        "{refused}"
    );
    assert_eq!(running.get("/debug/pprof/profile?seconds=1").await.0, 429);
    // The others are not touched, and the agent answers everything else.
    assert_eq!(running.get("/healthz").await.0, 200);

    pulls.pop().unwrap().abort();
    replies.pop().unwrap().closed().await;
    // The place is given back with the reply, in the same step of the server's task or right after it.
    let mut pulled = pull(
        &agent,
        ProfileType::Cpu,
        &filter,
        second,
        Format::default_format(),
    )
    .await;
    while let Err(PullFailure::Refused { .. }) = pulled {
        tokio::task::yield_now().await;
        pulled = pull(
            &agent,
            ProfileType::Cpu,
            &filter,
            second,
            Format::default_format(),
        )
        .await;
    }
    assert_eq!(pulled.unwrap().n_samples, i64::from(N_FUNCTIONS));
    for pull in pulls {
        pull.abort();
    }
    running.stop().await;
}

#[tokio::test]
async fn the_services_are_listed_by_reflection_and_their_health_is_told() {
    let running = start().await;
    let channel = running.channel().await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answer = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap();
    let answer: ServerReflectionResponse = answer.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("no list");
    };
    let names: Vec<_> = services
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for name in ["pyagent.v1.ProfileService", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let mut health = HealthClient::new(channel);
    for service in ["", "pyagent.v1.ProfileService"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(
            answer.status,
            tonic_health::pb::health_check_response::ServingStatus::Serving as i32
        );
    }
    running.stop().await;
}

#[tokio::test]
async fn http_gives_a_pprof_file() {
    let running = start().await;
    let (status, head, body) = running
        .get(&format!("/debug/pprof/profile?seconds=1&pid={PID}"))
        .await;
    assert_eq!(status, 200);
    assert!(
        head.contains("content-type: application/octet-stream\r\n"),
        "{head}"
    );
    assert!(
        head.contains("content-disposition: attachment; filename=\"profile.pb.gz\"\r\n"),
        "{head}"
    );
    assert_eq!(body[..2], [0x1f, 0x8b], "gzip");
    let (status, head, body) = running
        .get("/debug/pprof/profile?seconds=1&format=svg")
        .await;
    assert_eq!((status, body.starts_with(b"<?xml")), (200, true));
    assert!(head.contains("content-type: image/svg+xml\r\n"), "{head}");
    assert!(
        head.contains("attachment"),
        "never a page of this server: {head}"
    );
    running.stop().await;
}

#[tokio::test]
async fn bad_http_requests_get_their_reason() {
    let running = start().await;
    for (query, status, reason) in [
        ("seconds=0", 400, "1 to 3600"),
        ("type=heap", 400, "no profile type"),
        ("seconds=1&type=faults", 404, "start it with --type faults"),
        ("seconds=3601", 400, "1 to 3600"),
        ("seconds=1.5", 400, "1 to 3600"),
        ("seconds=-1", 400, "1 to 3600"),
        ("seconds=", 400, "1 to 3600"),
        ("pid=x", 400, "pid=x is not"),
        ("pid=4294967296", 400, "is not a process id"),
        ("pids=42", 400, "`pids` is not known"),
        ("comm=(", 400, "unclosed group"),
        ("format=jpeg", 400, "pprof|folded|svg"),
        ("seconds=1&pid=1", 404, "no profiled process matches"),
        ("seconds=1&comm=nothing", 404, "no profiled process matches"),
        ("pid=%1b[2J", 400, "pid=\\u{1b}[2J is not"),
    ] {
        let answer = running.get(&format!("/debug/pprof/profile?{query}")).await;
        let text = String::from_utf8(answer.2).unwrap();
        assert_eq!(answer.0, status, "{query}: {text}");
        assert!(text.contains(reason), "{query}: {text}");
        assert!(answer.1.contains("content-type: text/plain"), "{query}");
    }
    assert_eq!(running.get("/nothing").await.0, 404);
    let post = format!(
        "POST /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        running.address
    );
    assert_eq!(running.http(post).await.0, 405);
    running.stop().await;
}

#[tokio::test]
async fn the_index_and_the_health_page_are_there() {
    let running = start().await;
    let (status, _, body) = running.get("/").await;
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, 200);
    assert!(
        text.contains("/debug/pprof/profile?seconds=N&pid=P"),
        "{text}"
    );
    for path in ["/debug/pprof/heap ", "/debug/pprof/allocs "] {
        assert!(text.contains(path), "{text}");
    }
    assert!(text.lines().all(|line| line.len() <= 100), "{text}");
    assert_eq!(running.get("/healthz").await.2, b"ok\n");
    running.stop().await;
}

#[tokio::test]
async fn web_pages_cannot_ask() {
    let running = start().await;
    let ask = |host: &str, more: &str| {
        running.http(format!(
            "GET /metrics HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n"
        ))
    };
    assert_eq!(ask("localhost:7099", "").await.0, 200);
    assert_eq!(ask("evil.example:7099", "").await.0, 403);
    assert_eq!(
        ask("localhost", "Sec-Fetch-Site: cross-site\r\n").await.0,
        403
    );
    // gRPC too.
    let endpoint = Channel::from_shared(format!("http://{}", running.address)).unwrap();
    let endpoint = endpoint.origin("http://evil.example".parse().unwrap());
    let mut client = ProfileServiceClient::new(endpoint.connect().await.unwrap());
    let error = client
        .get_status(proto::GetStatusRequest {})
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    running.stop().await;
}

#[tokio::test]
async fn metrics_have_a_help_a_type_and_no_label_of_a_process() {
    let running = start().await;
    let (status, head, body) = running.get("/metrics").await;
    let text = String::from_utf8(body).unwrap();
    assert_eq!(status, 200);
    assert!(
        head.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"),
        "{head}"
    );
    let mut described = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            described.insert(rest.split(' ').next().unwrap());
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let name = name.split('{').next().unwrap();
            assert!(
                described.contains(name) && name.starts_with("pyagent_"),
                "{line}"
            );
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
        for word in ["python3", "/srv", &PID.to_string()] {
            assert!(!line.contains(word), "{line}");
        }
    }
    for line in [
        "pyagent_lost_full_total 7",
        "pyagent_processes{state=\"profiled\"} 1",
        "pyagent_processes{state=\"discovering\"} 0",
        "pyagent_processes_not_profiled{reason=\"version_unsupported\"} 1",
        "pyagent_processes_not_profiled{reason=\"binary_unreadable\"} 0",
        "pyagent_sampling_rate_hertz 49.5",
        concat!(
            "pyagent_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        ),
    ] {
        assert!(text.lines().any(|other| other == line), "{line} in {text}");
    }
    running.stop().await;
}

/// Prometheus's own tool with these arguments; `None`, said, where there is none.
fn promtool(arguments: &[&str]) -> Option<std::process::Child> {
    // `cargo xtask test` fetches one.
    let program = std::env::var_os("PYAGENT_PROMTOOL").filter(|path| !path.is_empty());
    let child = Command::new(program.unwrap_or_else(|| "promtool".into()))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    if child.is_err() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI has promtool: `cargo xtask test` fetches it"
        );
        println!("skipped: no `promtool` on this machine; `cargo xtask test` fetches it");
    }
    child.ok()
}

#[tokio::test]
async fn prometheus_discovers_a_target_each_process() {
    let running = start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("prometheus.yml");
    let text = format!(
        "scrape_configs:\n- job_name: pyagent\n  metrics_path: /debug/pprof/profile\n  http_sd_configs:\n  \
         - url: http://{}/sd\n",
        running.address
    );
    std::fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    let arguments = [
        "check",
        "service-discovery",
        "--timeout=3s",
        &config,
        "pyagent",
    ];
    let Some(child) = promtool(&arguments) else {
        return;
    };
    let output = spawn_blocking(|| child.wait_with_output());
    let output = output.await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    let found: serde_json::Value = serde_json::from_str(&said).unwrap();
    // The one that is not profiled is none.
    assert_eq!(found.as_array().unwrap().len(), 1, "{said}");
    let discovered = &found[0]["discoveredLabels"];
    assert_eq!(discovered["__address__"], running.address.to_string());
    assert_eq!(discovered["__param_pid"], PID.to_string());
    assert_eq!(discovered["__meta_pyagent_container_name"], "web");
    assert_eq!(discovered["__meta_pyagent_python_version"], "3.12.1");
    assert_eq!(found[0]["labels"]["service_name"], "shop");
    let (code, ..) = running
        .get(&format!("/debug/pprof/profile?seconds=1&pid={PID}"))
        .await;
    assert_eq!(code, 200);
    running.stop().await;
}

#[test]
fn prometheus_own_check_finds_nothing_to_say_about_the_metrics() {
    let Some(mut child) = promtool(&["check", "metrics"]) else {
        return;
    };
    let text = metrics::render(&status());
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[tokio::test]
async fn garbage_does_not_end_the_server() {
    let running = start().await;
    let garbage: [&[u8]; 6] = [
        b"\0\xff\xfe garbage \r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"",
        b"P",
    ];
    for bytes in garbage {
        let address = running.address;
        spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            // The server ends it, with or without an answer.
            let _ = stream.read_to_end(&mut Vec::new());
        })
        .await
        .unwrap();
    }
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "x".repeat(20 << 10)
    );
    let status = running.http(long).await.0;
    assert!((400..500).contains(&status), "{status}");
    assert_eq!(running.get("/healthz").await.0, 200);
    running.stop().await;
}

#[tokio::test]
async fn connections_that_do_not_ask_are_closed() {
    let mut server = bind("127.0.0.1:0").unwrap();
    server.patience.header = Duration::from_millis(50);
    let running = serve(server);
    for beginning in [
        "",
        "P",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: lo",
    ] {
        let address = running.address;
        let ended = spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(beginning.as_bytes()).unwrap();
            // Without the bound this would wait for ever.
            stream
                .set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            stream.read_to_end(&mut Vec::new())
        });
        ended.await.unwrap().unwrap();
    }
    running.stop().await;
}

#[tokio::test]
async fn a_pull_in_flight_ends_with_the_agent() {
    let mut running = start().await;
    let agent = running.agent();
    let pulling = tokio::spawn(async move {
        let filter = ProcessFilter::default();
        pull(
            &agent,
            ProfileType::Cpu,
            &filter,
            UNANSWERED,
            Format::default_format(),
        )
        .await
    });
    let reply = running.unanswered.recv().await.unwrap();
    running.stop.send(()).unwrap();
    reply.send(Err(PullError::Stopping)).unwrap();
    let failure = pulling.await.unwrap().unwrap_err();
    assert!(
        failure.to_string().ends_with("the agent is stopping"),
        "{failure}"
    );
    running.server.await.unwrap();
}

#[tokio::test]
async fn clients_are_told_in_one_line_what_is_wrong() {
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let agent: AgentAddress = free.to_string().parse().unwrap();
    let filter = ProcessFilter::default();
    let second = Duration::from_secs(1);
    let failure = pull(
        &agent,
        ProfileType::Cpu,
        &filter,
        second,
        Format::default_format(),
    )
    .await
    .unwrap_err();
    let expected = format!("no agent answers at {free}; start one with: sudo pyagent --all-python");
    assert_eq!(failure.to_string(), expected);

    let running = start().await;
    let filter = ProcessFilter::pid(1);
    let failure = pull(
        &running.agent(),
        ProfileType::Cpu,
        &filter,
        second,
        Format::default_format(),
    )
    .await;
    assert!(
        matches!(failure, Err(PullFailure::NoMatch { .. })),
        "{failure:?}"
    );
    running.stop().await;

    for address in [
        "",
        "host",
        "host:",
        ":1",
        "host:70000",
        "a b:1",
        "::1:7099",
        "h/x:1",
        "u@h:1",
        "ftp://h:1",
        "https://h",
        "https://h:1/x",
        "unix:",
        "unix:relative",
    ] {
        let failure = address.parse::<AgentAddress>().unwrap_err();
        assert!(failure.to_string().contains("give host:port"), "{failure}");
    }
    for address in [
        "localhost:7099",
        "[::1]:7099",
        DEFAULT_ADDRESS,
        "node-1.example:1",
        "http://h:1",
        "https://[::1]:7099",
        "unix:/run/pyagent/pyagent.sock",
    ] {
        assert_eq!(
            address.parse::<AgentAddress>().unwrap().to_string(),
            address
        );
    }
}

#[tokio::test]
async fn the_port_is_taken_only_on_loopback_and_only_once() {
    let server = bind("127.0.0.1:0").unwrap();
    let address = address_of(&server).to_string();
    let again = bind(&address).err().unwrap();
    let expected = format!("{address} is in use");
    assert!(again.to_string().starts_with(&expected), "{again}");
    assert!(again.to_string().contains("--listen"));
    for address in [
        "0.0.0.0:0",
        "[::]:0",
        "192.0.2.1:0",
        "http://0.0.0.0:0",
        "[::ffff:192.0.2.1]:0",
    ] {
        let error = bind(address).err().unwrap().to_string();
        for way in ["--insecure", "--tls-cert", "--token-file", "unix:/PATH"] {
            assert!(error.contains(way), "{error}");
        }
    }
    let mut everywhere = config("0.0.0.0:0");
    everywhere.insecure = true;
    let everywhere = Server::bind(&everywhere).unwrap();
    assert_eq!(everywhere.open_to_all().count(), 1);
    assert_eq!(server.open_to_all().count(), 0);
}

#[tokio::test]
async fn an_agent_that_is_gone_is_told_as_stopping() {
    let server = bind("127.0.0.1:0").unwrap();
    let address = address_of(&server);
    let (queries, questions) = mpsc::channel(1);
    drop(questions);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(server.run(queries, async { drop(stopped.await) }));
    let running = Running {
        address,
        stop,
        server,
        unanswered: mpsc::channel(1).1,
    };
    for target in ["/healthz", "/metrics", "/debug/pprof/profile?seconds=1"] {
        let (status, _, body) = running.get(target).await;
        assert_eq!(
            (status, &*body),
            (503, &b"the agent is stopping\n"[..]),
            "{target}"
        );
    }
    let error = running
        .client()
        .await
        .get_status(proto::GetStatusRequest {})
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    running.stop().await;
}
