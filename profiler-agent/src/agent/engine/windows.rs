//! Windows: everything that is sampled, cut into spans of some seconds, for the recorder and for whoever watches.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use tokio::sync::broadcast;

use super::pull::ALLOCATION_NOTE;
use super::{Engine, boot_ns};
use crate::agent::live_blocks::Part;
use crate::profile::aggregate::{Aggregator, ResolvedSample, Taken};
use crate::profile::model::ProfileType;
use crate::profile::window::ClosedWindow;
use crate::recorder::Message;
use crate::serve::query::{CounterValue, WindowSummary};

/// Windows that wait for a slow watcher; it is told how many it missed.
const WATCH_CHANNEL: usize = 4;

/// Where the recorder gets windows.
pub(in crate::agent) type RecorderChannel = SyncSender<Message>;

/// The window that is being filled, and who gets it when it is over.
pub(super) struct Windows {
    filled: Vec<(ProfileType, Aggregator)>,
    begun: Instant,
    begun_ns: u64,
    /// Counters at the begin.
    counters: Vec<CounterValue>,
    /// What the last one held of its first type.
    pub(super) last: Option<WindowSummary>,
    length: Duration,
    recorder: Option<RecorderChannel>,
    watchers: broadcast::Sender<Arc<ClosedWindow>>,
    /// Windows that the recorder had no room for.
    pub(super) n_unrecorded: u64,
}

impl Windows {
    pub(super) fn new(length: Duration, recorder: Option<RecorderChannel>) -> Self {
        Self {
            filled: Vec::new(),
            begun: Instant::now(),
            begun_ns: boot_ns(),
            counters: Vec::new(),
            last: None,
            length,
            recorder,
            watchers: broadcast::Sender::new(WATCH_CHANNEL),
            n_unrecorded: 0,
        }
    }

    /// Windows from now on.
    pub(super) fn watch(&self) -> broadcast::Receiver<Arc<ClosedWindow>> {
        self.watchers.subscribe()
    }

    fn aggregator(&mut self, profile_type: ProfileType) -> Option<&mut Aggregator> {
        let mut filled = self.filled.iter_mut();
        let found = filled.find(|(filled, _)| *filled == profile_type);
        found.map(|(_, aggregator)| aggregator)
    }

    pub(super) fn add(
        &mut self,
        profile_type: ProfileType,
        sample: &ResolvedSample,
        holds_gil: Option<bool>,
    ) {
        if let Some(aggregator) = self.aggregator(profile_type) {
            let taken = Taken {
                holds_gil,
                at_ns: None,
            };
            aggregator.add_taken(sample, taken);
            if profile_type == ProfileType::Cpu {
                aggregator.set_period(sample.values[1]);
            }
        }
    }

    /// Adds to what has the stack of an allocation.
    pub(super) fn add_part(&mut self, part: &Part) {
        if let Some(aggregator) = self.aggregator(part.profile_type) {
            aggregator.add_values(part.frames(), part.labels(), part.own_labels(), part.values);
        }
    }

    /// Whether the window's time was over at this moment.
    fn is_over(&self, at: Instant) -> bool {
        at.saturating_duration_since(self.begun) >= self.length
    }

    fn hand_out(&mut self, window: ClosedWindow) {
        if let Some((_, first)) = window.profiles.first() {
            self.last = Some(WindowSummary::of(first));
        }
        let window = Arc::new(window);
        if let Some(recorder) = &self.recorder {
            match recorder.try_send(Message::Window(window.clone())) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => {}
                Err(TrySendError::Full(_)) => self.n_unrecorded += 1,
            }
        }
        // Nobody may watch.
        let _ = self.watchers.send(window);
    }
}

impl Engine {
    /// Closes the window if its time was over at this moment, until which every sample was delivered.
    pub(super) fn rotate(&mut self, at: Instant) {
        if self
            .windows
            .as_ref()
            .is_some_and(|windows| windows.is_over(at))
        {
            self.close_window(at);
        }
    }

    /// Ends the window at this moment, and begins the next one.
    pub(super) fn close_window(&mut self, at: Instant) {
        let Some(mut windows) = self.windows.take() else {
            return;
        };
        let end_ns = boot_ns() - at.elapsed().as_nanos() as u64;
        let end_ns = end_ns.max(windows.begun_ns);
        if self
            .parts
            .config
            .types
            .iter()
            .any(|it| it.is_of_allocations())
        {
            for part in self.live.parts(boot_ns()) {
                windows.add_part(&part);
            }
        }
        let filled = std::mem::take(&mut windows.filled);
        if !filled.is_empty() {
            let comments = self.comments(&windows.counters);
            let length = Duration::from_nanos(end_ns - windows.begun_ns);
            self.symbolizer.settle_names();
            let names = self.symbolizer.newest_names();
            let profiles = filled.into_iter().map(|(profile_type, mut aggregator)| {
                aggregator.name_threads(&names);
                let mut comments = comments.clone();
                if profile_type.is_of_allocations() {
                    comments.push(ALLOCATION_NOTE.to_owned());
                    comments.extend(self.probe_states.notes());
                }
                (profile_type, aggregator.finish(length, comments))
            });
            let window = ClosedWindow {
                start_ns: windows.begun_ns,
                end_ns,
                profiles: profiles.collect(),
            };
            windows.hand_out(window);
        }
        windows.begun = at;
        windows.begun_ns = end_ns;
        self.windows = Some(windows);
        self.begin_window();
    }

    /// Makes the window ready for samples.
    pub(super) fn begin_window(&mut self) {
        let begun_ns = self.windows.as_ref().map_or_else(boot_ns, |it| it.begun_ns);
        let types = self.parts.config.types.iter();
        let filled =
            types.map(|profile_type| (*profile_type, self.aggregator(*profile_type, begun_ns)));
        let (filled, counters) = (filled.collect(), self.counter_values());
        if let Some(windows) = &mut self.windows {
            (windows.filled, windows.counters) = (filled, counters);
        }
    }
}
