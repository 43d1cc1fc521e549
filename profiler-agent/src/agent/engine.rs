//! The engine: samples in, profiles out. One loop over a closed set of events.

mod counters;
mod inspect;
mod listing;
mod pull;
mod totals;
mod windows;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, SyncSender};
use std::time::{Duration, Instant, SystemTime};

use profiler_common::counters::{Counter, N_COUNTERS};
use profiler_common::event::{sample_flags, source};
use tokio::sync::{oneshot, watch};

use self::counters::EngineCounters;
use self::listing::Collecting;
use self::pull::{Consumer, Pull};
use self::totals::Losses;
pub(super) use self::windows::RecorderChannel;
use self::windows::Windows;
use super::health::Health;
use super::huge_faults::{HugeFaults, Rest};
use super::in_use::{ProbeStates, in_use};
use super::live_blocks::{LiveBlocks, Part};
use super::prober::{ProbeChange, ProbeMessage, ProbeNews};
use super::rate::{PeriodLimit, RateLimit};
use super::shedding::{Second, Shedding};
use super::threads::TrackMessage;
use super::throttle::Throttle;
use super::waiting::Waiting;
use super::{Event, PushCounts, boot_ns, raise, receive};
use crate::bpf::source::{Periods, Source, Sources};
use crate::config::{POOL_PERIOD, SamplingConfig};
use crate::ids::{Generation, Pid};
use crate::kubernetes::watch::WatchStatus;
use crate::process::huge_pages::PagemapOpener;
use crate::process::lifecycle::{Change, Lifecycle};
use crate::process::limits::{Limits, MemoryGroup};
use crate::process::memory::give_back;
use crate::profile::aggregate::{Aggregator, ResolvedFrame, ResolvedFunction, ResolvedSample};
use crate::profile::model::{Profile, ProfileType, Rounding};
use crate::profile::query::{ProcessFilter, RecordedRequest};
use crate::python::process::PythonProcess;
use crate::python::refusal::Reason;
use crate::recorder::{self, ReadError};
use crate::sample::decode::RawSample;
use crate::sample::native::KernelSymbols;
use crate::sample::symbolize::Symbolizer;
use crate::serve::query::{PullError, Query};
use crate::track::process::ProcessListing;
use crate::track::tracker::{ProcessCounts, Update};

/// Housekeeping is done this often, and CPUs that come online are found.
const TICK: Duration = Duration::from_millis(250);

/// Profiles that can be taken at the same time.
const MAX_PULLS: usize = 160;

/// After a stop the ring reader delivers its rest within this time.
const STOP_TIMEOUT: Duration = Duration::from_millis(700);

/// A profile of everything that is selected, from the first sample on.
pub struct Recording {
    /// Of what.
    pub profile_type: ProfileType,
    /// Ends it; `None`: when the agent stops.
    pub duration: Option<Duration>,
    /// Whether it keeps when each sample was taken.
    pub keeps_times: bool,
    /// Gets the profile.
    pub reply: oneshot::Sender<Profile>,
}

/// Where samples come from.
pub(super) enum Sampler {
    /// The kernel programs.
    Kernel(Box<Sources>),
    /// Reads from outside; the thread that does it is told of processes here.
    Remote(SyncSender<Update>),
}

impl Sampler {
    /// What one sample of this type stands for, in the unit of its second value.
    fn period(&self, profile_type: ProfileType, rate_hz: u32, alloc_period: u64) -> i64 {
        let periods = match self {
            Self::Kernel(sources) => sources.periods(),
            Self::Remote(_) => Periods {
                cpu_ns: Some(period_ns(rate_hz)),
                faults: None,
            },
        };
        let period = match profile_type {
            ProfileType::Cpu => periods.cpu_ns,
            ProfileType::Faults => periods.faults,
            ProfileType::Pools => return POOL_PERIOD as i64,
            ProfileType::Alloc | ProfileType::Mmap => return alloc_period as i64,
        };
        profile_type.values(period.unwrap_or(0), page_bytes(), &mut Rounding::default())[1]
    }

    fn n_cpus(&self) -> usize {
        match self {
            Self::Kernel(sources) => sources.n_cpus(),
            Self::Remote(_) => 0,
        }
    }

    /// Counters of the kernel programs; zeros without them.
    fn totals(&self) -> [u64; N_COUNTERS] {
        match self {
            Self::Kernel(sources) => sources.totals(),
            Self::Remote(_) => [0; N_COUNTERS],
        }
    }

    /// One of those counters.
    fn total(&self, counter: Counter) -> u64 {
        match self {
            Self::Kernel(sources) => sources.total(counter),
            Self::Remote(_) => 0,
        }
    }

    /// How often the timer should have fired and did not.
    fn n_missed(&self) -> u64 {
        match self {
            Self::Kernel(sources) => sources.n_missed(),
            Self::Remote(_) => 0,
        }
    }

    fn pass_on(&self, update: &Update) {
        if let Self::Remote(sampler) = self {
            // It has ended only when everything ends.
            let _ = sampler.send(update.clone());
        }
    }
}

/// What the engine is built from.
pub(super) struct EngineParts {
    pub(super) sampler: Sampler,
    /// Tells the thread that delivers samples to end.
    pub(super) stop_sampling: Arc<AtomicBool>,
    pub(super) tracker: SyncSender<TrackMessage>,
    /// Places probes; `None`: none are asked for.
    pub(super) prober: Option<Sender<ProbeMessage>>,
    pub(super) config: SamplingConfig,
    pub(super) show_cmdline: bool,
    /// Why nothing is recorded though that was asked for; else empty.
    pub(super) not_recorded: String,
    /// Opens what shows the pages of processes.
    pub(super) open_pagemap: PagemapOpener,
    /// Gets the windows, and says what it kept of them.
    pub(super) recorder: Option<(RecorderChannel, recorder::Reader)>,
    pub(super) pushes: Option<PushCounts>,
    /// How the one who follows the pods of this node is doing; `None`: nobody does.
    pub(super) pods: Option<watch::Receiver<WatchStatus>>,
    /// Told once, after the first scan.
    pub(super) scanned: Option<oneshot::Sender<Vec<ProcessListing>>>,
}

/// See the module's documentation.
pub(super) struct Engine {
    parts: EngineParts,
    symbolizer: Symbolizer,
    waiting: Waiting<RawSample>,
    pulls: Vec<Pull>,
    /// `None` while there is a recording: nobody would look at them.
    windows: Option<Windows>,
    counters: EngineCounters,
    rate: RateLimit,
    fault_period: PeriodLimit,
    shedding: Shedding,
    /// The control group that bounds the memory.
    memory: Option<MemoryGroup>,
    /// In place of what was cut from stacks.
    cut: Arc<ResolvedFunction>,
    lost_before: u64,
    started: Instant,
    second_begun: Instant,
    samples_before: u64,
    faults_before: u64,
    allocations_before: u64,
    samples_per_second: f64,
    stopping: Option<Instant>,
    process_counts: ProcessCounts,
    throttle: Throttle,
    /// Ticks that did not come.
    n_missed: Cell<u64>,
    health: Health,
    huge_faults: HugeFaults,
    live: LiveBlocks,
    losses: Losses,
    probe_states: ProbeStates,
    rounding: Rounding,
    /// Sampled time in which a program collected garbage.
    collecting: Collecting,
}

impl Engine {
    pub(super) fn new(
        parts: EngineParts,
        kernel_symbols: KernelSymbols,
        recording: Option<Recording>,
    ) -> Self {
        let rate = RateLimit::new(parts.config.rate_hz, parts.config.max_samples_per_second);
        let now = Instant::now();
        let fault_period = PeriodLimit::new(
            parts.config.fault_period,
            parts.config.max_samples_per_second,
        );
        let limits = Limits::of_this_process();
        tell_limits(&limits);
        let channel = parts.recorder.as_ref().map(|(channel, _)| channel.clone());
        let window = parts.config.window;
        let mut parts = parts;
        let open_pagemap = std::mem::replace(&mut parts.open_pagemap, Box::new(|_| None));
        let mut engine = Self {
            windows: None,
            live: LiveBlocks::new(parts.config.allocation.temporary, recording.is_none()),
            losses: Losses::default(),
            probe_states: ProbeStates::default(),
            rounding: Rounding::default(),
            collecting: HashMap::new(),
            symbolizer: Symbolizer::new(
                parts.show_cmdline,
                parts.config.has_instructions,
                parts.config.labels.clone(),
                kernel_symbols,
            ),
            parts,
            waiting: Waiting::default(),
            pulls: Vec::new(),
            counters: EngineCounters::default(),
            rate,
            fault_period,
            shedding: Shedding::new(limits.cpus.is_some(), now),
            memory: limits.memory,
            cut: Arc::new(ResolvedFunction::reason("cut for want of memory")),
            lost_before: 0,
            started: now,
            second_begun: now,
            samples_before: 0,
            faults_before: 0,
            allocations_before: 0,
            samples_per_second: 0.0,
            stopping: None,
            process_counts: ProcessCounts::default(),
            throttle: Throttle::default(),
            n_missed: Cell::new(0),
            health: Health::default(),
            huge_faults: HugeFaults::new(open_pagemap),
        };
        match recording {
            Some(recording) => {
                engine.begin(
                    recording.profile_type,
                    ProcessFilter::default(),
                    recording.duration,
                    Consumer::Recording(recording.reply),
                );
                for pull in &mut engine.pulls {
                    pull.clock_ns = recording.keeps_times.then(unix_of_boot_ns);
                }
            }
            None => {
                engine.windows = Some(Windows::new(window, channel));
                engine.begin_window();
            }
        }
        engine
    }

    /// Runs until it was told to stop and the ring is empty.
    pub(super) fn run(mut self, events: &Receiver<Event>) {
        let mut closed = false;
        let mut next_tick = Instant::now() + TICK;
        while !closed {
            let timeout = next_tick.saturating_duration_since(Instant::now());
            match receive(events, timeout, &mut closed) {
                Some(Event::RingClosed) => break,
                Some(event) => self.on_event(event),
                None => {}
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                self.on_tick();
            }
            if self
                .stopping
                .is_some_and(|since| since.elapsed() > STOP_TIMEOUT)
            {
                break;
            }
        }
        let settled = self.huge_faults.settled(u64::MAX);
        self.add_rests(settled);
        self.close_window(Instant::now());
        self.finish_allocations(|_| true);
        self.symbolizer.settle_names();
        for pull in std::mem::take(&mut self.pulls) {
            self.finish(pull);
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Batch(events) => events.into_iter().for_each(|event| self.on_event(event)),
            Event::Sample(sample) => self.on_sample(*sample),
            Event::Lifecycle(lifecycle) => self.on_lifecycle(lifecycle),
            Event::Collapse(time_ns) => self.huge_faults.on_collapse(time_ns),
            Event::Release(release) => {
                let temporary = self.live.release(release);
                self.add_parts(temporary);
            }
            Event::Probes(news) => self.on_probes(&news),
            Event::Undecodable => self.counters.undecodable += 1,
            Event::Drained(at) => self.on_drained(at),
            Event::Process(update) => self.on_update(update),
            Event::Scanned(listing) => self.on_scanned(listing),
            Event::Probed(listing) => self.on_ready(listing),
            Event::Counted(counts) => self.on_counted(counts),
            Event::Query(query) => self.on_query(*query),
            Event::Stop => {
                if let Sampler::Kernel(sources) = &mut self.parts.sampler {
                    sources.detach_all();
                }
                self.tell_prober(ProbeMessage::Stop);
                raise(&self.parts.stop_sampling);
                self.stopping = Some(Instant::now());
            }
            Event::RingClosed => {}
        }
    }

    fn on_drained(&mut self, at: Instant) {
        let at_ns = boot_ns() - at.elapsed().as_nanos() as u64;
        let settled = self.huge_faults.settled(at_ns);
        self.add_rests(settled);
        self.finish_pulls(|pull| pull.is_over(at));
        self.rotate(at);
    }

    /// Every process that is there is known; a recording of allocations waits for their probes.
    fn on_scanned(&mut self, listing: Vec<ProcessListing>) {
        let is_recording = |pull: &Pull| matches!(pull.consumer, Consumer::Recording(_));
        if self.parts.prober.is_some() && self.pulls.iter().any(is_recording) {
            self.tell_prober(ProbeMessage::Scanned(listing));
        } else {
            self.on_ready(listing);
        }
    }

    fn on_ready(&mut self, listing: Vec<ProcessListing>) {
        // What was asked for is time in which the processes are known.
        for pull in &mut self.pulls {
            if let Consumer::Recording(_) = pull.consumer {
                (pull.begun, pull.begun_ns) = (Instant::now(), boot_ns());
                pull.aggregator.set_start(SystemTime::now());
            }
        }
        if let Some(scanned) = self.parts.scanned.take() {
            // Nobody may be waiting for it.
            let _ = scanned.send(listing);
        }
    }

    fn on_sample(&mut self, sample: RawSample) {
        self.counters.samples += 1;
        if let Some(holds_gil) = holds_gil(&sample) {
            self.counters.gil_known += 1;
            self.counters.gil_held += u64::from(holds_gil);
        }
        match type_of(&sample) {
            Some(ProfileType::Faults) => self.counters.faults += 1,
            Some(profile_type) if profile_type.is_of_allocations() => {
                self.counters.allocations += 1;
            }
            Some(ProfileType::Cpu) if sample.has(sample_flags::COLLECTING) => {
                *self.collecting.entry(sample.generation).or_default() +=
                    Duration::from_nanos(sample.period);
            }
            Some(_) | None => {}
        }
        if self.symbolizer.knows(sample.generation) {
            self.judge(&sample);
            self.aggregate(&sample);
        } else {
            let (generation, is_fault) = (sample.generation, sample.source == source::FAULTS);
            let now = Instant::now();
            self.counters.waiting_lost += self.waiting.keep(generation, sample, is_fault, now);
        }
    }

    /// Has the tracker look at a program whose walks fail.
    fn judge(&mut self, sample: &RawSample) {
        let (generation, now) = (sample.generation, Instant::now());
        if self.health.count(generation, sample.python_status, now) {
            // The next look is asked for all the same.
            let message = TrackMessage::Recheck(sample.pid, generation);
            let _ = self.parts.tracker.try_send(message);
        }
    }

    fn on_update(&mut self, update: Update) {
        self.parts.sampler.pass_on(&update);
        match update {
            Update::Profiled(process) => self.on_profiled(process),
            Update::Dropped(generation) => {
                self.waiting.take(generation);
                self.forget(generation);
            }
        }
    }

    fn forget(&mut self, generation: Generation) {
        let rests = self.huge_faults.take(generation);
        self.add_rests(rests);
        let (parts, blocks) = self.live.end(generation, boot_ns());
        self.add_parts(parts);
        self.tell_prober(ProbeMessage::Ended(generation, blocks));
        self.symbolizer.remove(generation);
        self.health.remove(generation);
        self.collecting.remove(&generation);
    }

    fn on_profiled(&mut self, process: Arc<PythonProcess>) {
        let generation = process.generation;
        self.tell_prober(ProbeMessage::Profiled(process.clone()));
        for pull in &mut self.pulls {
            pull.decide_again(&process, self.parts.show_cmdline);
        }
        self.symbolizer.add(process);
        let waited = self.waiting.take(generation);
        self.counters.waiting_lost += waited.n_lost;
        for sample in waited.samples {
            self.aggregate(&sample);
        }
    }

    fn on_lifecycle(&mut self, event: Lifecycle) {
        match event.change {
            Change::Fork {
                parent_generation,
                generation,
                ..
            } => {
                self.symbolizer
                    .fork(parent_generation, generation, event.pid);
            }
            Change::Exec { previous, .. } => self.end(previous),
            Change::Exit { generation } => self.end(generation),
        }
    }

    fn end(&mut self, generation: Generation) {
        self.forget(generation);
        let waited = self.waiting.take(generation);
        self.counters.ended_undiscovered += waited.samples.len() as u64 + waited.n_lost;
        for pull in &mut self.pulls {
            pull.decided.remove(&generation);
        }
    }

    fn aggregate(&mut self, sample: &RawSample) {
        let Some(profile_type) = type_of(sample) else {
            self.counters.undecodable += 1;
            return;
        };
        let Some(mut resolved) = self.symbolizer.resolve(sample) else {
            return;
        };
        self.cut(&mut resolved);
        let mut n_bytes = page_bytes();
        if profile_type.is_of_allocations() {
            n_bytes = sample.n_bytes;
        } else if profile_type == ProfileType::Faults {
            resolved.values = profile_type.values(sample.period, n_bytes, &mut self.rounding);
            n_bytes = self.huge_faults.look(sample, boot_ns(), &resolved);
        }
        resolved.values = profile_type.values(sample.period, n_bytes, &mut self.rounding);
        if profile_type.is_of_allocations() {
            self.live.add(profile_type, sample, &resolved, boot_ns());
        }
        let Some(process) = self.symbolizer.process(sample.generation) else {
            return;
        };
        for pull in &mut self.pulls {
            if pull.profile_type == profile_type {
                pull.add(sample, &resolved, process, self.parts.show_cmdline);
            }
        }
        if let Some(windows) = &mut self.windows {
            windows.add(profile_type, &resolved, holds_gil(sample));
        }
    }

    /// Leaves the inner part of a stack, where there is little memory.
    fn cut(&mut self, sample: &mut ResolvedSample) {
        let max_frames = self.shedding.max_frames();
        if sample.frames.len() > max_frames {
            sample.frames.truncate(max_frames);
            sample.frames.push(ResolvedFrame {
                function: self.cut.clone(),
                line: 0,
                address: 0,
            });
            self.shedding.n_cut += 1;
        }
    }

    /// Looks whether there is memory and CPU time enough, and gives up what can be done without.
    fn shed(&mut self, n_samples: u64) {
        let lost = self.parts.sampler.total(Counter::LostFull);
        let second = Second {
            memory: self.memory.as_ref().and_then(MemoryGroup::read),
            n_samples,
            n_lost: lost.saturating_sub(self.lost_before),
        };
        self.lost_before = lost;
        let (before, now) = (self.shedding.problem(), Instant::now());
        let orders = self.shedding.on_second(second, now);
        if orders.shrink {
            self.symbolizer.shrink();
        }
        if orders.close_window {
            self.close_window(now);
        }
        if orders.shrink {
            give_back();
        }
        let divisor = self.shedding.divisor();
        self.rate.divide(divisor);
        self.fault_period.divide(divisor);
        let problem = self.shedding.problem();
        if problem.is_empty() && !before.is_empty() {
            tracing::info!("there is room again: everything is sampled as it was asked for");
        } else if !problem.is_empty() {
            self.throttle.warn("shedding", &problem);
        }
    }

    /// Adds what was not counted with its sample.
    fn add_rests(&mut self, rests: impl IntoIterator<Item = Rest>) {
        for rest in rests {
            let faults = self
                .pulls
                .iter_mut()
                .filter(|pull| pull.profile_type == ProfileType::Faults);
            for pull in faults {
                pull.add_rest(&rest);
            }
            if let Some(windows) = &mut self.windows {
                windows.add(ProfileType::Faults, &rest.resolved, None);
            }
        }
    }

    /// Adds to the profiles of allocations.
    fn add_parts(&mut self, parts: impl IntoIterator<Item = Part>) {
        for part in parts {
            for pull in &mut self.pulls {
                if pull.profile_type == part.profile_type {
                    pull.add_part(&part);
                }
            }
            if let Some(windows) = &mut self.windows {
                windows.add_part(&part);
            }
        }
    }

    fn tell_prober(&self, message: ProbeMessage) {
        if let Some(prober) = &self.parts.prober {
            // It has ended only when everything ends.
            let _ = prober.send(message);
        }
    }

    fn on_probes(&mut self, news: &ProbeNews) {
        let pid = news.pid;
        let note = match &news.change {
            ProbeChange::Placed { names, .. } => {
                tracing::debug!("process {pid}: probes on {names}");
                self.counters.probes_placed += 1;
                None
            }
            ProbeChange::Missing(reason) => Some(format!("process {pid}: {reason}")),
            ProbeChange::Removed { types, reason } => Some(format!(
                "{} of process {pid} are not sampled any more, and what is in use is what was then: {reason}",
                what_is_removed(types)
            )),
        };
        if let Some(note) = &note {
            tracing::warn!("{note}");
        }
        self.probe_states.change(pid, &news.change, note.as_deref());
    }

    /// An empty profile that begins at this moment, in nanoseconds since boot.
    fn aggregator(&self, profile_type: ProfileType, begun_ns: u64) -> Aggregator {
        let period = self.parts.sampler.period(
            profile_type,
            self.rate.current_hz(),
            self.parts.config.allocation.period,
        );
        let age = Duration::from_nanos(boot_ns().saturating_sub(begun_ns));
        let start = SystemTime::now() - age;
        Aggregator::new(start, profile_type.sample_types(), period)
    }

    fn begin(
        &mut self,
        profile_type: ProfileType,
        filter: ProcessFilter,
        duration: Option<Duration>,
        consumer: Consumer,
    ) {
        let (begun, begun_ns) = (Instant::now(), boot_ns());
        let counters = self.counter_values();
        self.pulls.push(Pull {
            profile_type,
            filter,
            decided: HashMap::new(),
            aggregator: self.aggregator(profile_type, begun_ns),
            begun,
            begun_ns,
            duration,
            clock_ns: None,
            consumer,
            counters,
        });
    }

    fn on_query(&mut self, query: Query) {
        match query {
            Query::ListProcesses {
                filter,
                with_memory,
                reply,
            } => self.list(filter, with_memory, reply),
            Query::DumpStacks {
                filter,
                locals,
                reply,
            } => self.dump(&filter, locals, reply),
            Query::HeapCensus { filter, reply } => self.census(&filter, reply),
            Query::Pull { request, reply } => {
                let refused = if self.pulls.len() >= MAX_PULLS {
                    Some(PullError::TooManyPulls)
                } else {
                    self.why_not(request.profile_type, &request.filter)
                };
                match refused {
                    // Whoever asked may have left.
                    Some(error) => drop(reply.send(Err(error))),
                    None => self.begin(
                        request.profile_type,
                        request.filter,
                        Some(request.duration),
                        Consumer::Pull(reply),
                    ),
                }
            }
            Query::InUse { pid, reply } => {
                let answer = in_use(&mut self.live, &self.probe_states, Pid(pid), boot_ns());
                drop(reply.send(answer));
            }
            Query::Totals { request, reply } => drop(reply.send(self.totals(&request))),
            Query::Status { reply } => drop(reply.send(self.status())),
            Query::PullRecorded { request, reply } => self.pull_recorded(request, reply),
            Query::Watch { reply } => {
                // Without windows the sender is dropped, which is an answer too.
                if let Some(windows) = &self.windows {
                    drop(reply.send(windows.watch()));
                }
            }
        }
    }

    /// On a thread of its own: a day's windows take a while to read.
    fn pull_recorded(
        &self,
        request: RecordedRequest,
        reply: oneshot::Sender<Result<Profile, PullError>>,
    ) {
        let Some((_, reader)) = &self.parts.recorder else {
            return drop(reply.send(Err(PullError::NoRecorder)));
        };
        let reader = reader.clone();
        std::thread::spawn(move || {
            let read = reader.read(&request, &|| reply.is_closed());
            let read = read.map_err(|error| match error {
                ReadError::NoMatch | ReadError::Nothing(_) => {
                    PullError::NotRecorded(error.to_string())
                }
                ReadError::Abandoned | ReadError::Unreadable(_) => {
                    PullError::Unreadable(error.to_string())
                }
            });
            // Whoever asked may have left.
            drop(reply.send(read));
        });
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        self.live.look(boot_ns());
        self.finish_pulls(Pull::is_abandoned);
        self.waiting.expire(now);
        if now.duration_since(self.second_begun) >= Duration::from_secs(1) {
            self.on_second(now);
        }
        if self.stopping.is_none()
            && let Sampler::Kernel(sources) = &mut self.parts.sampler
        {
            match sources.sync() {
                Ok(n_new) => self.counters.cpu_gaps += n_new as u64,
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    self.throttle.warn("cpu", &format_args!("{error:#}"));
                }
            }
        }
    }

    fn on_second(&mut self, now: Instant) {
        let elapsed = now.duration_since(self.second_begun).as_secs_f64();
        let n_samples = self.counters.samples - self.samples_before;
        let n_faults = self.counters.faults - self.faults_before;
        self.samples_per_second = n_samples as f64 / elapsed;
        self.samples_before = self.counters.samples;
        let n_allocations = self.counters.allocations - self.allocations_before;
        self.faults_before = self.counters.faults;
        self.allocations_before = self.counters.allocations;
        self.second_begun = now;
        if self.stopping.is_some() {
            return;
        }
        let n_cpu = n_samples - n_faults - n_allocations;
        self.shed(n_cpu);
        let before_hz = self.rate.current_hz();
        let n_cpu_a_second = n_cpu as f64 / elapsed;
        let n_faults_a_second = n_faults as f64 / elapsed;
        let mut periods = Periods::default();
        if let Some(rate_hz) = self.rate.on_second(n_cpu_a_second as u64) {
            let why = self.why_rate(n_cpu_a_second);
            let message = format!("the sampling rate goes from {before_hz} to {rate_hz} Hz: {why}");
            self.throttle.warn("rate", &message);
            periods.cpu_ns = Some(period_ns(rate_hz));
        }
        let before = self.fault_period.current();
        if let Some(period) = self.fault_period.on_second(n_faults_a_second as u64) {
            let why = self.why_rate(n_faults_a_second);
            let message = format!(
                "one of {period} page faults is sampled from now on, not one of {before}: {why}"
            );
            self.throttle.warn("fault period", &message);
            periods.faults = Some(period);
        }
        if periods != Periods::default()
            && let Sampler::Kernel(sources) = &mut self.parts.sampler
            && let Err(error) = sources.set_periods(periods)
        {
            let error = anyhow::Error::from(error);
            self.throttle
                .warn("rate failed", &format_args!("{error:#}"));
        }
    }

    /// Why more samples are taken, or fewer, after a second with so many.
    fn why_rate(&self, n_a_second: f64) -> String {
        let problem = self.shedding.problem();
        if !problem.is_empty() {
            return problem;
        }
        match self.parts.config.max_samples_per_second {
            Some(_) => {
                format!("the host gave {n_a_second:.0} samples a second (--max-samples-per-second)")
            }
            None => "there is room again".to_owned(),
        }
    }

    fn on_counted(&mut self, counts: ProcessCounts) {
        if let Some(n_processes) = counts.by_reason.get(&Reason::NotTracked) {
            let message = format!(
                "the table of processes is full: {n_processes} that run Python are not profiled (--max-processes)"
            );
            self.throttle.warn("processes", &message);
        }
        self.process_counts = counts;
    }
}

/// Says at the start what the agent may use: it acts by that.
fn tell_limits(limits: &Limits) {
    if let Some(memory) = limits.memory.as_ref().and_then(MemoryGroup::read) {
        tracing::info!("memory is limited to {} MiB", memory.max >> 20);
    }
    if let Some(cpus) = limits.cpus {
        tracing::info!("CPU time is limited to {cpus:.2} CPUs");
    }
}

/// The type of profile that a sample belongs to; `None`: of no source that there is.
fn type_of(sample: &RawSample) -> Option<ProfileType> {
    Source::numbered(sample.source).map(|source| source.profile_type)
}

/// Whether a CPU sample's thread held the global interpreter lock; `None`: that is not known, or of no interest.
fn holds_gil(sample: &RawSample) -> Option<bool> {
    let is_known = type_of(sample) == Some(ProfileType::Cpu) && sample.has(sample_flags::GIL_KNOWN);
    is_known.then(|| sample.has(sample_flags::GIL_HELD))
}

/// What the clock of the samples is behind wall time now, in nanoseconds: when the host was started.
fn unix_of_boot_ns() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = i64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX);
    now.saturating_sub_unsigned(boot_ns())
}

/// What is not seen without the probes of these types.
fn what_is_removed(types: &[ProfileType]) -> &'static str {
    match types {
        [ProfileType::Alloc] => "allocations by malloc and its like",
        [ProfileType::Pools] => "allocations of small objects",
        [ProfileType::Mmap] => "mappings",
        _ => "allocations of all kinds",
    }
}

/// Memory that a page fault makes resident, if it is not a huge page.
fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// Nanoseconds between two samples of a CPU.
pub(super) fn period_ns(rate_hz: u32) -> u64 {
    1_000_000_000 / u64::from(rate_hz.max(1))
}
