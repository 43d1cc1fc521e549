//! Windows on their way out: what they are, and where they wait for their targets.

use std::collections::{HashMap, VecDeque};
use std::mem::size_of;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::profile::model::{
    Function, LabelSet, Location, LocationId, Mapping, Process, Profile, ProfileType, Sample,
};
use crate::profile::window::ClosedWindow;

/// A window that is to be sent.
#[derive(Debug, Clone)]
pub struct Window {
    /// Its place in the order of windows; later ones have larger ones.
    pub seq: u64,
    /// What it holds.
    pub content: Arc<ClosedWindow>,
}

impl Window {
    /// Its profiles, at most one a type.
    #[must_use]
    pub fn profiles(&self) -> &[(ProfileType, Profile)] {
        &self.content.profiles
    }
}

/// Where windows wait for their targets: each target gets each window, in order, until it has acknowledged it.
pub trait Outbox: Send + Sync + 'static {
    /// The oldest window that this target has not acknowledged; waits for one. `None`: there is none, and none will come.
    fn next(&self, target: &str) -> impl Future<Output = Option<Arc<Window>>> + Send;

    /// This target needs the window no more: it has it, or has refused it for good.
    fn acknowledge(&self, target: &str, seq: u64) -> impl Future<Output = ()> + Send;

    /// Windows that this target will never be given, since there was no room for them.
    fn dropped(&self, target: &str) -> u64;
}

/// An outbox in memory. When it is full the oldest window is dropped, whoever has not had it yet, and counted.
#[derive(Debug)]
pub struct MemoryOutbox {
    max_windows: usize,
    max_bytes: usize,
    state: Mutex<State>,
    /// A window has come, or the end.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first, each with its size.
    windows: VecDeque<(Arc<Window>, usize)>,
    n_bytes: usize,
    last_seq: u64,
    cursors: HashMap<String, Cursor>,
    is_closed: bool,
}

/// How far a target is.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    /// The last window that it needs no more.
    done: u64,
    /// The window that it has been given.
    given: u64,
    n_dropped: u64,
}

impl MemoryOutbox {
    /// An outbox for these targets that keeps so many windows of so many bytes together at most.
    pub fn new(
        targets: impl IntoIterator<Item = String>,
        max_windows: usize,
        max_bytes: usize,
    ) -> Self {
        let cursors = targets
            .into_iter()
            .map(|target| (target, Cursor::default()));
        Self {
            max_windows: max_windows.max(1),
            max_bytes,
            state: Mutex::new(State {
                cursors: cursors.collect(),
                ..State::default()
            }),
            changed: Notify::new(),
        }
    }

    /// Adds a window; its number comes back. The newest one is kept whatever its size.
    pub fn push(&self, content: Arc<ClosedWindow>) -> u64 {
        let profiles = content.profiles.iter();
        let n_bytes = profiles.map(|(_, profile)| size_bytes(profile)).sum();
        let mut state = self.lock();
        state.last_seq += 1;
        let seq = state.last_seq;
        let window = Arc::new(Window { seq, content });
        state.windows.push_back((window, n_bytes));
        state.n_bytes += n_bytes;
        while state.windows.len() > 1
            && (state.windows.len() > self.max_windows || state.n_bytes > self.max_bytes)
        {
            state.drop_oldest();
        }
        state.forget_done();
        drop(state);
        self.changed.notify_waiters();
        seq
    }

    /// Counts windows that did not get this far.
    pub fn miss(&self, n_windows: u64) {
        for cursor in self.lock().cursors.values_mut() {
            cursor.n_dropped += n_windows;
        }
    }

    /// No more windows come: who asks for one gets what is left, then `None`.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_waiters();
    }

    /// Number of windows that wait for a target.
    #[must_use]
    pub fn n_windows(&self) -> usize {
        self.lock().windows.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done by a panic: each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outbox for MemoryOutbox {
    async fn next(&self, target: &str) -> Option<Arc<Window>> {
        loop {
            // Before the look: what comes after it is not missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if let Some(window) = state.next(target) {
                    return Some(window);
                }
                if state.is_closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    async fn acknowledge(&self, target: &str, seq: u64) {
        let mut state = self.lock();
        if let Some(cursor) = state.cursors.get_mut(target) {
            cursor.done = cursor.done.max(seq);
        }
        state.forget_done();
    }

    fn dropped(&self, target: &str) -> u64 {
        let state = self.lock();
        state.cursors.get(target).map_or(0, |it| it.n_dropped)
    }
}

impl State {
    fn next(&mut self, target: &str) -> Option<Arc<Window>> {
        let cursor = self.cursors.get_mut(target)?;
        let mut windows = self.windows.iter().map(|(window, _)| window);
        let window = windows.find(|window| window.seq > cursor.done)?;
        cursor.given = window.seq;
        Some(Arc::clone(window))
    }

    /// Who has been given it may still deliver it.
    fn drop_oldest(&mut self) {
        let Some((window, n_bytes)) = self.windows.pop_front() else {
            return;
        };
        self.n_bytes -= n_bytes;
        for cursor in self.cursors.values_mut() {
            cursor.n_dropped += u64::from(cursor.done.max(cursor.given) < window.seq);
        }
    }

    /// Drops what every target has had.
    fn forget_done(&mut self) {
        let done = self.cursors.values().map(|cursor| cursor.done).min();
        let done = done.unwrap_or(u64::MAX);
        while let Some((_, n_bytes)) = self.windows.pop_front_if(|(it, _)| it.seq <= done) {
            self.n_bytes -= n_bytes;
        }
    }
}

/// About how much memory a profile takes, in bytes.
#[must_use]
pub fn size_bytes(profile: &Profile) -> usize {
    /// Of an allocation, beyond what was asked for.
    const OVERHEAD: usize = 16;
    let strings = profile.strings.iter();
    let strings: usize = strings
        .map(|it| it.len() + size_of::<Box<str>>() + OVERHEAD)
        .sum();
    let stacks = profile.stacks.iter();
    let stacks: usize = stacks
        .map(|it| it.len() * size_of::<LocationId>() + size_of::<Box<[LocationId]>>() + OVERHEAD)
        .sum();
    let labels = |n: usize| n * 32 + OVERHEAD;
    let processes = profile.processes.iter();
    let processes: usize = processes
        .map(|it| size_of::<Process>() + labels(it.labels.len()))
        .sum();
    let label_sets = profile.label_sets.iter();
    let label_sets: usize = label_sets
        .map(|it| size_of::<LabelSet>() + labels(it.labels.len()))
        .sum();
    strings
        + stacks
        + processes
        + label_sets
        + profile.functions.len() * size_of::<Function>()
        + profile.mappings.len() * size_of::<Mapping>()
        + profile.locations.len() * size_of::<Location>()
        + profile.samples.len() * size_of::<Sample>()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::profile::aggregate::Aggregator;
    use crate::profile::model::ValueType;

    fn outbox(max_windows: usize, max_bytes: usize) -> MemoryOutbox {
        MemoryOutbox::new(["a", "b"].map(str::to_owned), max_windows, max_bytes)
    }

    fn window(profiles: Vec<(ProfileType, Profile)>) -> Arc<ClosedWindow> {
        Arc::new(ClosedWindow {
            start_ns: 0,
            end_ns: 1,
            profiles,
        })
    }

    fn empty() -> Arc<ClosedWindow> {
        window(Vec::new())
    }

    fn profile() -> Profile {
        let profile = Aggregator::new(SystemTime::UNIX_EPOCH, &ValueType::CPU_SAMPLES, 1);
        profile.finish(Duration::from_secs(1), Vec::new())
    }

    #[tokio::test]
    async fn each_target_gets_each_window_in_order_until_it_acknowledges() {
        let outbox = outbox(10, usize::MAX);
        for seq in 1..=3 {
            assert_eq!(outbox.push(empty()), seq);
        }
        outbox.close();
        assert_eq!(outbox.next("a").await.unwrap().seq, 1);
        assert_eq!(
            outbox.next("a").await.unwrap().seq,
            1,
            "it was not acknowledged"
        );
        for target in ["a", "b"] {
            for seq in 1..=3 {
                assert_eq!(outbox.next(target).await.unwrap().seq, seq);
                outbox.acknowledge(target, seq).await;
            }
            assert!(outbox.next(target).await.is_none());
        }
        assert_eq!(outbox.n_windows(), 0);
        assert!(outbox.next("nobody").await.is_none());
    }

    #[tokio::test]
    async fn a_target_waits_for_a_window() {
        let outbox = Arc::new(outbox(10, usize::MAX));
        let waiting = tokio::spawn({
            let outbox = Arc::clone(&outbox);
            async move { outbox.next("a").await.map(|window| window.seq) }
        });
        tokio::task::yield_now().await;
        outbox.push(empty());
        assert_eq!(waiting.await.unwrap(), Some(1));
    }

    #[tokio::test]
    async fn the_oldest_is_dropped_and_counted_for_who_was_not_given_it() {
        let outbox = outbox(2, usize::MAX);
        outbox.push(empty());
        // `a` is sending the first one when it is dropped.
        outbox.next("a").await.unwrap();
        for _ in 0..3 {
            outbox.push(empty());
        }
        assert_eq!((outbox.dropped("a"), outbox.dropped("b")), (1, 2));
        outbox.acknowledge("a", 1).await;
        assert_eq!(outbox.next("a").await.unwrap().seq, 3);
    }

    #[tokio::test]
    async fn bytes_are_bounded_and_the_newest_is_kept() {
        let profile = profile();
        let n_bytes = size_bytes(&profile);
        let outbox = outbox(100, 2 * n_bytes);
        let full = window(vec![(ProfileType::Cpu, profile)]);
        for _ in 0..5 {
            outbox.push(Arc::clone(&full));
        }
        assert_eq!((outbox.n_windows(), outbox.dropped("a")), (2, 3));
        let tiny = MemoryOutbox::new(["a".to_owned()], 100, 0);
        tiny.push(full);
        assert_eq!((tiny.n_windows(), tiny.dropped("a")), (1, 0));
    }
}
