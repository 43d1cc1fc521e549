//! The threads that deliver samples (the ring reader, or reads from outside) and the tracker's.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use tokio::sync::oneshot;

use super::{Event, boot_ns};
use crate::bpf::ring::EventRing;
use crate::ids::{Generation, Pid};
use crate::kubernetes::table::PodEvent;
use crate::process::lifecycle::{Change, Lifecycle};
use crate::python::process::PythonProcess;
use crate::sample::decode::{Record, decode};
use crate::sample::remote::RemoteSampler;
use crate::track::process::ProcessListing;
use crate::track::tracker::{KernelTable, ProcessCounts, Selection, Tracker, Update};

/// Samples are at most this old when they are symbolized, unless the host is overwhelmed.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// After a fork they are at most this old: what the child alone runs can be read only while it lives.
const YOUNG_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// For so long.
const YOUTH: Duration = Duration::from_millis(200);

/// Beside that, or after it was woken, the reader waits as long as this at least, and at most three times as long.
/// Waking it costs more than reading a record; and work of the agent that follows each tick of the timer is never under way at
/// the next one, so that its time would be taken for that of the process which it interrupts.
const GATHER_INTERVAL: Duration = Duration::from_micros(700);

/// Records that the engine gets at once.
const MAX_BATCH: usize = 32;

/// What the tracker can be told.
#[derive(Debug)]
pub(super) enum TrackMessage {
    /// The kernel saw a process come, change or go.
    Lifecycle(Lifecycle),
    /// Somebody wants to see the processes.
    List(oneshot::Sender<Vec<ProcessListing>>),
    /// The walks of a program fail: look at it anew.
    Recheck(Pid, Generation),
    /// The API server told of pods.
    Pods(PodEvent),
}

/// Reads the ring until `stop`, then what is left, then says that it is closed.
pub(super) fn read_ring(
    mut ring: EventRing,
    events: &SyncSender<Event>,
    tracker: &SyncSender<TrackMessage>,
    stop: &AtomicBool,
) {
    let random = RandomState::default();
    let mut n_rounds = 0_u32;
    let mut forked = None;
    let mut is_last = false;
    while !is_last {
        // Read before draining: what was sent before the flag was raised is then drained.
        is_last = stop.load(Ordering::Acquire);
        if !is_last {
            n_rounds = n_rounds.wrapping_add(1);
            let share = (random.hash_one(n_rounds) % 1024) as u32;
            let gather = GATHER_INTERVAL + GATHER_INTERVAL * 2 * share / 1024;
            let is_young = forked.is_some_and(|at: Instant| at.elapsed() < YOUTH);
            let poll_interval = if is_young {
                YOUNG_POLL_INTERVAL
            } else {
                POLL_INTERVAL
            };
            if ring.wait(poll_interval + gather) {
                std::thread::sleep(gather);
            }
        }
        let begun = Instant::now();
        let mut batch = Vec::new();
        ring.drain(|bytes| {
            let event = match decode(bytes) {
                Ok(Record::Sample(sample)) => Event::Sample(sample),
                Ok(Record::Lifecycle(lifecycle)) => {
                    if matches!(lifecycle.change, Change::Fork { .. }) {
                        forked = Some(begun);
                    }
                    // The tracker finds by its rescan what it misses here.
                    let _ = tracker.try_send(TrackMessage::Lifecycle(lifecycle));
                    Event::Lifecycle(lifecycle)
                }
                Ok(Record::Collapse(time_ns)) => Event::Collapse(time_ns),
                Ok(Record::Release(release)) => Event::Release(release),
                Err(_) => Event::Undecodable,
            };
            batch.push(event);
            // Waits while the engine is behind; the ring fills up meanwhile, and the kernel counts.
            batch.len() < MAX_BATCH
                || events
                    .send(Event::Batch(std::mem::take(&mut batch)))
                    .is_ok()
        });
        batch.push(Event::Drained(begun));
        // The engine ends after this thread.
        let _ = events.send(Event::Batch(batch));
    }
    let _ = events.send(Event::RingClosed);
}

/// Reads stacks from outside at `rate_hz` until `stop`, then says that it is closed.
pub(super) fn sample_remotely(
    updates: &Receiver<Update>,
    events: &SyncSender<Event>,
    rate_hz: u32,
    stop: &AtomicBool,
) {
    let period = Duration::from_secs(1) / rate_hz.max(1);
    let mut sampler = RemoteSampler::default();
    let mut processes: HashMap<Generation, Arc<PythonProcess>> = HashMap::new();
    let mut last_tick = Instant::now();
    while !stop.load(Ordering::Acquire) {
        // The channel is the clock: it wakes for a new process, or after a period.
        let next_tick = last_tick + period;
        match updates.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
            Ok(Update::Profiled(process)) => drop(processes.insert(process.generation, process)),
            Ok(Update::Dropped(generation)) => drop(processes.remove(&generation)),
            Err(RecvTimeoutError::Timeout) => {
                // What a sample stands for is the time that really passed.
                let period_ns = u64::try_from(last_tick.elapsed().as_nanos()).unwrap_or(u64::MAX);
                last_tick = Instant::now();
                let time_ns = boot_ns();
                for process in processes.values() {
                    for sample in sampler.sample(process, time_ns, period_ns) {
                        // The engine ends after this thread.
                        let _ = events.send(Event::Sample(Box::new(sample)));
                    }
                }
                let _ = events.send(Event::Drained(last_tick));
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let _ = events.send(Event::RingClosed);
}

/// Runs the tracker until the agent drops its channel. `first_pods`: those that are known before it begins.
pub(super) fn track(
    selection: Selection,
    first_pods: Option<PodEvent>,
    kernel: impl KernelTable,
    messages: &Receiver<TrackMessage>,
    events: &SyncSender<Event>,
) {
    let mut tracker = Tracker::new(selection, kernel);
    if let Some(pods) = first_pods {
        tracker.on_pods(pods);
    }
    tracker.find_descendants();
    tracker.scan();
    let mut is_open = deliver(&mut tracker, events);
    is_open &= events.send(Event::Scanned(tracker.listing())).is_ok();
    let mut told = ProcessCounts::default();
    while is_open {
        let due = tracker.on_timer();
        is_open = deliver(&mut tracker, events);
        let counts = tracker.counts();
        if counts != told {
            told.clone_from(&counts);
            is_open &= events.send(Event::Counted(counts)).is_ok();
        }
        match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(message) => on_message(&mut tracker, message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => is_open = false,
        }
        while let Ok(message) = messages.try_recv() {
            on_message(&mut tracker, message);
        }
    }
}

fn on_message(tracker: &mut Tracker<impl KernelTable>, message: TrackMessage) {
    match message {
        TrackMessage::Lifecycle(event) => tracker.on_lifecycle(&event),
        // Whoever asked may have left.
        TrackMessage::List(reply) => drop(reply.send(tracker.listing())),
        TrackMessage::Recheck(pid, generation) => tracker.recheck(pid, generation),
        TrackMessage::Pods(event) => tracker.on_pods(event),
    }
}

/// False when the engine has ended.
fn deliver(tracker: &mut Tracker<impl KernelTable>, events: &SyncSender<Event>) -> bool {
    tracker
        .take_updates()
        .into_iter()
        .all(|update| match events.try_send(Event::Process(update)) {
            Ok(()) => true,
            Err(TrySendError::Full(event)) => events.send(event).is_ok(),
            Err(TrySendError::Disconnected(_)) => false,
        })
}
