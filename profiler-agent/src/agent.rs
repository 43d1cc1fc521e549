//! The composition root: builds the stages and runs the one loop over their events.
//!
//! Three threads, joined by bounded channels and sharing no state: the ring reader decodes records, the
//! tracker follows processes (it blocks on /proc and target files), the engine symbolizes and aggregates.

mod engine;
mod health;
mod huge_faults;
mod in_use;
mod kernel_table;
mod live_blocks;
mod opener;
pub mod outbox;
mod prober;
mod rate;
mod shedding;
mod threads;
mod throttle;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::sync::{broadcast, oneshot, watch};

pub use self::engine::Recording;
use self::engine::{Engine, EngineParts, RecorderChannel, Sampler, period_ns};
use self::kernel_table::{BpfTables, NoTables};
use self::opener::Opener;
use self::outbox::RecordedOutbox;
use self::prober::{ProbeNews, Prober};
use self::threads::{TrackMessage, read_ring, sample_remotely, track};
use crate::bpf::load::{Programs, Settings};
use crate::bpf::source::Periods;
use crate::bpf::source::probe_cost::ProbeCost;
use crate::bpf::source::probes::Probes;
use crate::config::{MAX_ALLOCATIONS, POOL_PERIOD, SamplingConfig};
use crate::ids::Pid;
use crate::kernel::privileges::{reduce_privileged_thread, reduce_thread};
use crate::kernel::probe::has_seccomp_filter;
use crate::kernel::restrictions;
use crate::kubernetes::table::PodEvent;
use crate::kubernetes::watch::WatchStatus;
use crate::process::block::Release;
use crate::process::facts::boot_ns;
use crate::process::lifecycle::Lifecycle;
use crate::profile::in_use::InUse;
use crate::profile::model::{Profile, ProfileType};
use crate::profile::window::ClosedWindow;
use crate::push::TargetCounts;
use crate::recorder::{FolderError, Message, Recorder, RecorderConfig};
use crate::sample::decode::RawSample;
use crate::sample::native::KernelSymbols;
use crate::serve::query::Query;
use crate::track::process::ProcessListing;
use crate::track::tracker::{KernelTable, ProcessCounts, Update};

/// Events that wait for the engine; a full channel holds the ring reader back, and the kernel then counts.
const EVENT_CHANNEL: usize = 64;

/// Messages that wait for the tracker.
const TRACK_CHANNEL: usize = 8192;

/// Windows that wait for the recorder, beside those that it has taken.
const RECORDER_CHANNEL: usize = 4;

/// A tracker that has too much to do is told of pods again after this time.
const TELL_PAUSE: Duration = Duration::from_millis(100);

/// The engine answers a question about what is in use within this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything that can happen to the engine.
#[derive(Debug)]
enum Event {
    /// Several, in their order: waking the engine costs more than a sample.
    Batch(Vec<Event>),
    /// A sample was taken.
    Sample(Box<RawSample>),
    /// A process came, changed or went; in the order of the samples.
    Lifecycle(Lifecycle),
    /// Small pages were put together into a huge one, at this time in nanoseconds since boot.
    Collapse(u64),
    /// Memory whose allocation was sampled was given back.
    Release(Release),
    /// The probes of a program came or went.
    Probes(ProbeNews),
    /// A record could not be decoded.
    Undecodable,
    /// Every sample that was taken until then was delivered.
    Drained(Instant),
    /// The tracker has decided about a process.
    Process(Update),
    /// The tracker has looked at every process once.
    Scanned(Vec<ProcessListing>),
    /// The probes of all of these stand, where they can.
    Probed(Vec<ProcessListing>),
    /// How many processes there are.
    Counted(ProcessCounts),
    /// A question of the server.
    Query(Box<Query>),
    /// Stop sampling, deliver what there is.
    Stop,
    /// The ring reader has delivered the last record.
    RingClosed,
}

/// A running agent.
pub struct Agent {
    events: SyncSender<Event>,
    tracker: SyncSender<TrackMessage>,
    engine: Option<JoinHandle<()>>,
    scanned: Option<oneshot::Receiver<Vec<ProcessListing>>>,
    probe_cost: Option<ProbeCost>,
    recorder: Option<Recorder>,
    windows: Option<RecorderChannel>,
}

/// What an agent is for.
pub enum Purpose {
    /// One profile, from the first sample on; it is delivered when it ends, or the agent stops.
    Record(Recording),
    /// To answer questions, and to keep windows where there is a recorder.
    Serve {
        /// Says of processes all arguments.
        show_cmdline: bool,
        /// Gets the windows.
        recorder: Option<WindowRecorder>,
        /// Why there is none though it was asked for; else empty.
        not_recorded: String,
        /// How they fare who are sent them.
        pushes: Option<PushCounts>,
        /// The pods of this node, where somebody follows them.
        pods: Option<FollowedPods>,
    },
}

/// Pods that somebody follows, who tells of changes by [`Agent::pod_teller`].
#[derive(Debug)]
pub struct FollowedPods {
    /// What is known of them before the agent begins.
    pub first: Option<PodEvent>,
    /// How the one who follows them is doing.
    pub status: watch::Receiver<WatchStatus>,
}

/// Says how the targets of pushes fare.
pub type PushCounts = Box<dyn Fn() -> Vec<TargetCounts> + Send>;

/// A recorder that waits for windows.
pub struct WindowRecorder {
    recorder: Recorder,
    windows: RecorderChannel,
}

impl WindowRecorder {
    /// Starts one.
    pub fn start(config: RecorderConfig) -> Result<Self, FolderError> {
        let (windows, receiver) = sync_channel(RECORDER_CHANNEL);
        let recorder = Recorder::start(config, receiver)?;
        Ok(Self { recorder, windows })
    }

    /// Kubernetes namespaces that it has profiles of; none where that cannot be read.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        let namespaces = self.recorder.reader().namespaces();
        namespaces.unwrap_or_else(|error| {
            tracing::warn!("namespaces of what was recorded are not known: {error}");
            Vec::new()
        })
    }

    /// The windows that it keeps, as an outbox. It must be dropped before the recorder can end.
    #[must_use]
    pub fn outbox(&self) -> RecordedOutbox {
        RecordedOutbox::new(self.recorder.reader(), self.windows.clone())
    }
}

/// A recorder whose agent has ended: everything that it was given is written.
pub struct IdleRecorder {
    recorder: Recorder,
}

impl IdleRecorder {
    /// Ends it. Every outbox of it must have been dropped.
    pub fn join(self) {
        self.recorder.join();
    }
}

/// What there is with the kernel programs only.
#[derive(Default)]
struct KernelParts {
    symbols: KernelSymbols,
    probes: Option<(Probes, ProbeCost)>,
    opener: Option<Opener>,
}

impl Agent {
    /// Loads the programs, attaches them, and begins to look for processes.
    pub fn start(config: &SamplingConfig, purpose: Purpose) -> Result<Self> {
        let follow_all = config.selection.only_pids.is_none();
        let settings = Settings {
            types: &config.types,
            follow_all,
            follow_children: follow_all || config.selection.subprocesses,
            ring_bytes: config.ring_bytes,
            max_processes: config.max_processes,
            alloc_period: config.allocation.period,
            pool_period: POOL_PERIOD,
            max_allocations: MAX_ALLOCATIONS,
            log_level: if config.bpf_debug { 4 } else { 0 },
        };
        // While the programs are loaded.
        let symbols = KernelSymbols::begin();
        let programs = Programs::load(settings).with_context(cannot_load)?;
        let opener = Opener::start()?;
        let is_sampled = |profile_type| config.types.contains(&profile_type);
        let periods = Periods {
            cpu_ns: is_sampled(ProfileType::Cpu).then(|| period_ns(config.rate_hz)),
            faults: is_sampled(ProfileType::Faults).then_some(config.fault_period),
        };
        let (sources, mut probes, ring, processes, layouts) =
            programs.split(periods, opener.clone().events());
        let has_probes = config.types.iter().any(|it| it.is_of_allocations());
        let probes = if has_probes {
            let cost = probes
                .cost()
                .with_context(restrictions::cannot_place_probes)?;
            Some((probes, cost))
        } else {
            None
        };
        let probe_cost = probes.as_ref().map(|(_, cost)| *cost);
        let mut sources = Box::new(sources);
        sources.sync().with_context(restrictions::cannot_sample)?;
        let tables = BpfTables::new(processes, layouts);
        let sampler = Sampler::Kernel(sources);
        let mut agent = Self::spawn(
            config,
            purpose,
            sampler,
            tables,
            |events, tracker, stop| {
                read_ring(ring, &events, &tracker, &stop);
            },
            KernelParts {
                symbols,
                probes,
                opener: Some(opener),
            },
        )?;
        agent.probe_cost = probe_cost;
        Ok(agent)
    }

    /// What a probe in an allocator costs on this machine; `None`: there are none.
    #[must_use]
    pub fn probe_cost(&self) -> Option<ProbeCost> {
        self.probe_cost
    }

    /// The same without the kernel programs: stacks are read from outside. Needs the right to read the
    /// memory of the selected processes, nothing else.
    pub fn start_remote(config: &SamplingConfig, recording: Recording) -> Result<Self> {
        let (updates, receiver) = sync_channel(TRACK_CHANNEL);
        let rate_hz = config.rate_hz;
        let sampler = Sampler::Remote(updates);
        Self::spawn(
            config,
            Purpose::Record(recording),
            sampler,
            NoTables,
            move |events, _, stop| {
                sample_remotely(&receiver, &events, rate_hz, &stop);
            },
            KernelParts::default(),
        )
    }

    fn spawn(
        config: &SamplingConfig,
        purpose: Purpose,
        sampler: Sampler,
        tables: impl KernelTable + 'static,
        deliver_samples: impl FnOnce(SyncSender<Event>, SyncSender<TrackMessage>, Arc<AtomicBool>)
        + Send
        + 'static,
        kernel: KernelParts,
    ) -> Result<Self> {
        let (recording, show_cmdline, recorder, not_recorded, pushes, pods) = match purpose {
            Purpose::Record(recording) => (Some(recording), true, None, String::new(), None, None),
            Purpose::Serve {
                show_cmdline,
                recorder,
                not_recorded,
                pushes,
                pods,
            } => (None, show_cmdline, recorder, not_recorded, pushes, pods),
        };
        let (first_pods, pod_status) = pods.map(|it| (it.first, it.status)).unzip();
        let (events, event_receiver) = sync_channel(EVENT_CHANNEL);
        let (track_sender, track_receiver) = sync_channel(TRACK_CHANNEL);
        let (scanned_sender, scanned) = oneshot::channel();
        let stop_sampling = Arc::new(AtomicBool::new(false));
        spawn("tracker", {
            let (selection, events) = (config.selection.clone(), events.clone());
            let first_pods = first_pods.flatten();
            move || track(selection, first_pods, tables, &track_receiver, &events)
        })?;
        spawn("sampler", {
            let (events, track_sender) = (events.clone(), track_sender.clone());
            let stop = stop_sampling.clone();
            move || deliver_samples(events, track_sender, stop)
        })?;
        let mut probe_sender = None;
        if let Some((probes, cost)) = kernel.probes {
            let (sender, receiver) = channel();
            let work = Prober::new(
                probes,
                cost,
                &config.types,
                config.allocation,
                events.clone(),
            );
            spawn_with_rights("prober", move || {
                reduce_privileged_thread();
                work.run(&receiver);
            })?;
            probe_sender = Some(sender);
        }
        let (recorder, windows) = recorder.map(|it| (it.recorder, it.windows)).unzip();
        let reader = recorder.as_ref().map(Recorder::reader);
        let opener = kernel
            .opener
            .filter(|_| config.types.contains(&ProfileType::Faults));
        let parts = EngineParts {
            open_pagemap: opener.map_or_else(|| Box::new(|_| None) as _, Opener::pagemaps),
            recorder: windows.clone().zip(reader),
            not_recorded,
            pushes,
            pods: pod_status,
            prober: probe_sender,
            sampler,
            stop_sampling,
            tracker: track_sender.clone(),
            config: config.clone(),
            show_cmdline,
            scanned: Some(scanned_sender),
        };
        let engine = spawn("engine", move || {
            Engine::new(parts, kernel.symbols, recording).run(&event_receiver);
        })?;
        Ok(Self {
            events,
            tracker: track_sender,
            engine: Some(engine),
            scanned: Some(scanned),
            probe_cost: None,
            recorder,
            windows,
        })
    }

    /// Waits until every process that is there has been looked at once, and a recording's probes stand in them.
    pub async fn scanned(&mut self) -> Vec<ProcessListing> {
        match self.scanned.take() {
            Some(scanned) => scanned.await.unwrap_or_default(),
            None => Vec::new(),
        }
    }

    /// Something that asks the agent questions.
    #[must_use]
    pub fn asker(&self) -> AgentAsker {
        AgentAsker {
            events: self.events.clone(),
        }
    }

    /// Something that tells the agent of pods.
    #[must_use]
    pub fn pod_teller(&self) -> PodTeller {
        PodTeller {
            tracker: self.tracker.clone(),
        }
    }

    /// Ends sampling; detaches everything; recordings and pulls get what there is, and the recorder the last window. Blocks
    /// until done. What remains is the recorder.
    #[allow(clippy::must_use_candidate, reason = "most agents have no recorder")]
    pub fn stop(mut self) -> Option<IdleRecorder> {
        // A full channel means that the engine works; it will take this too.
        let _ = self.events.send(Event::Stop);
        if let Some(engine) = self.engine.take() {
            // A panic of the engine was reported by its thread already.
            let _ = engine.join();
        }
        let recorder = self.recorder.take()?;
        if let Some(windows) = self.windows.take() {
            let (barrier, reached) = sync_channel(0);
            let _ = windows.send(Message::Barrier(barrier));
            // It is an error when it is reached: nothing is ever sent.
            let _ = reached.recv();
        }
        Some(IdleRecorder { recorder })
    }

    /// Whether the engine has ended by itself.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.engine.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// Tells a running agent of pods.
#[derive(Debug)]
pub struct PodTeller {
    tracker: SyncSender<TrackMessage>,
}

impl PodTeller {
    /// Passes on what the API server told; waits while the agent has too much else to do. False: it has ended.
    pub async fn tell(&self, event: PodEvent) -> bool {
        let mut message = TrackMessage::Pods(event);
        loop {
            message = match self.tracker.try_send(message) {
                Ok(()) => return true,
                Err(TrySendError::Full(message)) => message,
                Err(TrySendError::Disconnected(_)) => return false,
            };
            tokio::time::sleep(TELL_PAUSE).await;
        }
    }
}

/// Asks a running agent.
#[derive(Debug, Clone)]
pub struct AgentAsker {
    events: SyncSender<Event>,
}

impl AgentAsker {
    /// Passes a question on. False: the agent has ended, or is overwhelmed.
    #[must_use]
    pub fn ask(&self, query: Query) -> bool {
        self.events.try_send(Event::Query(Box::new(query))).is_ok()
    }

    /// What a process has in use now, by line; `None` when the agent has ended, or does not answer.
    pub async fn in_use(&self, pid: Pid) -> Option<InUse> {
        let (reply, answer) = oneshot::channel();
        let pid = pid.0;
        self.ask(Query::InUse { pid, reply }).then_some(())?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        answer.ok()?.ok()
    }

    /// The windows that close from now on; `None` when the agent has ended, or has none.
    pub async fn windows(&self) -> Option<broadcast::Receiver<Arc<ClosedWindow>>> {
        let (reply, answer) = oneshot::channel();
        self.ask(Query::Watch { reply }).then_some(())?;
        answer.await.ok()
    }

    /// Its status; `None` when it has ended.
    pub async fn status(&self) -> Option<crate::serve::query::Status> {
        let (reply, answer) = oneshot::channel();
        self.ask(Query::Status { reply }).then_some(())?;
        answer.await.ok()
    }
}

/// What a recording delivers: the profile, when it ends.
pub type RecordingResult = oneshot::Receiver<Profile>;

/// A thread that has the rights that a running agent needs.
fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    spawn_with_rights(name, || {
        reduce_thread();
        work()
    })
}

/// One that has those of its parent.
fn spawn_with_rights<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(format!("pyagent-{name}"))
        .spawn(work)
        .context("cannot start a thread")
}

/// The kernel says the same where the rights are missing and where a filter of system calls forbids it.
fn cannot_load() -> &'static str {
    if has_seccomp_filter() {
        "cannot load the BPF programs (a seccomp filter is in force; in a container add \
         --security-opt seccomp=unconfined)"
    } else {
        "cannot load the BPF programs"
    }
}

/// Tells a flag to the other threads.
fn raise(flag: &AtomicBool) {
    flag.store(true, Ordering::Release);
}

/// Receives with a deadline; `None` on both a time-out and a closed channel, which `closed` tells apart.
fn receive<T>(receiver: &Receiver<T>, timeout: Duration, closed: &mut bool) -> Option<T> {
    match receiver.recv_timeout(timeout) {
        Ok(event) => Some(event),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => None,
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
            *closed = true;
            None
        }
    }
}
