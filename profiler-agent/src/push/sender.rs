//! The task of one target: takes windows in their order, cuts them into requests, and sends each until there is an answer.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};

use super::Told;
use super::answer::Failure;
use super::credentials::{Credentials, Link};
use super::host::Host;
use super::payload::{Parcel, Payload, Remark};
use super::target::Target;
use super::window::{Outbox, Window};
use crate::format::escape;

/// Largest request: what receivers of gRPC take when nothing else is said.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Where a target finds requests of this size too large, size is not what it means.
const MIN_REQUEST_BYTES: usize = 64 << 10;

/// Most samples of a request, before its size is known: Pyroscope takes 16,000 at most, and while it is made a request takes
/// several times the memory that it has on the wire.
const MAX_REQUEST_SAMPLES: usize = 8_000;

/// How long things take. Tests have less time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Longest time for an answer.
    pub deadline: Duration,
    /// Wait after the first failure; each further one doubles it.
    pub first_wait: Duration,
    /// Longest wait.
    pub last_wait: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            first_wait: Duration::from_secs(1),
            last_wait: Duration::from_mins(1),
        }
    }
}

/// What a target was sent, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Requests that were taken.
    pub sent: u64,
    /// Attempts after the first one of a request.
    pub retried: u64,
    /// Requests that were refused for good, and profiles that were refused out of requests.
    pub rejected: u64,
    /// Windows that were dropped before they could be sent.
    pub dropped: u64,
}

/// The same, while it is counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    sent: AtomicU64,
    retried: AtomicU64,
    rejected: AtomicU64,
    /// What was said last of what does not work; `None`: it works.
    trouble: Mutex<Option<String>>,
}

impl Counters {
    /// What does not work, in words.
    pub(super) fn trouble(&self) -> Option<String> {
        self.lock_trouble().clone()
    }

    fn lock_trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self, dropped: u64) -> Counts {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            sent: value(&self.sent),
            retried: value(&self.retried),
            rejected: value(&self.rejected),
            dropped,
        }
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// What one target is sent with.
pub(super) struct Sender {
    target: Target,
    /// The target, as it is shown.
    name: String,
    credentials: Credentials,
    link: Link,
    host: Arc<Host>,
    told: Arc<Told>,
    pace: Pace,
    counters: Arc<Counters>,
    /// Requests are not larger; less than [`MAX_REQUEST_BYTES`] once the target has found one too large.
    max_bytes: usize,
    is_compressed: bool,
    /// What was said last of what the target remarked.
    remark: String,
}

/// How a request ended.
enum Outcome {
    Accepted,
    TooLarge(String),
    Refused { is_for_all: bool },
}

impl Sender {
    pub(super) fn new(
        target: Target,
        credentials: Credentials,
        link: Link,
        host: Arc<Host>,
        told: Arc<Told>,
        pace: Pace,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            name: target.to_string(),
            target,
            credentials,
            link,
            host,
            told,
            pace,
            counters,
            max_bytes: MAX_REQUEST_BYTES,
            is_compressed: true,
            remark: String::new(),
        }
    }

    /// Until the outbox is closed and empty.
    pub(super) async fn run(mut self, outbox: Arc<impl Outbox>) {
        while let Some(window) = outbox.next(&self.name).await {
            self.deliver(&window).await;
            outbox.acknowledge(&self.name, window.seq).await;
        }
    }

    async fn deliver(&mut self, window: &Window) {
        let (host, told) = (Arc::clone(&self.host), Arc::clone(&self.told));
        let protocol = self.target.protocol;
        let parcel = working(|| Parcel::new(protocol, window, &host, &told));
        let mut rest = chunks(parcel.n_samples());
        while let Some(samples) = rest.pop_front() {
            match self.send(&parcel, samples.clone(), &mut rest).await {
                Outcome::Accepted => {}
                Outcome::TooLarge(reason) => self.too_large(samples, &mut rest, &reason),
                Outcome::Refused { is_for_all } => {
                    let n_more = if is_for_all { rest.len() as u64 } else { 0 };
                    add(&self.counters.rejected, 1 + n_more);
                    if is_for_all {
                        return;
                    }
                }
            }
        }
    }

    /// Sends the request with these samples, until there is an answer that is no call to try again.
    async fn send(
        &mut self,
        parcel: &Parcel<'_>,
        samples: Range<usize>,
        rest: &mut VecDeque<Range<usize>>,
    ) -> Outcome {
        let mut n_attempts = 0_u32;
        loop {
            // Made anew each time: while it waits for a target that is down, a request takes no memory.
            let Some(payload) = working(|| parcel.payload(samples.clone())) else {
                return Outcome::Accepted;
            };
            if payload.n_bytes() > self.max_bytes
                && let Some(halves) = halves(&samples)
            {
                for half in halves.into_iter().rev() {
                    rest.push_front(half);
                }
                return Outcome::Accepted;
            }
            if n_attempts > 0 {
                add(&self.counters.retried, 1);
            }
            n_attempts = n_attempts.saturating_add(1);
            let failure = match self.attempt(payload).await {
                Ok(remark) => {
                    self.accepted(&remark);
                    return Outcome::Accepted;
                }
                Err(failure) => failure,
            };
            match failure {
                Failure::Retry { after, reason } => {
                    self.say_trouble(&reason, "it is tried again");
                    // A connection that gave no answer may be none any more.
                    self.renew();
                    let wait = backoff(self.pace, n_attempts).max(after.unwrap_or_default());
                    tokio::time::sleep(wait).await;
                }
                Failure::Refused { reason, .. }
                    if self.is_compressed && reason.contains("grpc-encoding") =>
                {
                    self.is_compressed = false;
                }
                Failure::Refused { reason, is_for_all } => {
                    self.say_trouble(&reason, "what it refuses is dropped");
                    return Outcome::Refused { is_for_all };
                }
                Failure::TooLarge { reason } => return Outcome::TooLarge(reason),
            }
        }
    }

    async fn attempt(&mut self, payload: Payload) -> Result<Remark, Failure> {
        if self.credentials.have_changed() {
            self.renew();
        }
        let deadline = self.pace.deadline;
        let answer = payload.send(&self.link, self.is_compressed, deadline);
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(remark)) => Ok(remark),
            Ok(Err(status)) => Err(Failure::of(&status)),
            Err(_) => Err(Failure::timeout(deadline)),
        }
    }

    /// Reads the files again and connects anew. What cannot be read now, such as a file that is being replaced, leaves what
    /// was.
    fn renew(&mut self) {
        match self.credentials.link() {
            Ok(link) => self.link = link,
            Err(error) => tracing::warn!("push: {error}; what was read before is used"),
        }
    }

    fn accepted(&mut self, remark: &Remark) {
        add(&self.counters.sent, 1);
        add(&self.counters.rejected, remark.n_rejected);
        if self.counters.lock_trouble().take().is_some() {
            tracing::info!("push to {} works again", self.name);
        }
        let is_new = self.remark != remark.text || remark.n_rejected > 0 && self.remark.is_empty();
        if is_new && (remark.n_rejected > 0 || !remark.text.is_empty()) {
            let text: String = remark.text.chars().take(300).collect();
            tracing::warn!(
                "{} took a push with {} profiles less: {}",
                self.name,
                remark.n_rejected,
                escape(&text)
            );
        }
        self.remark.clone_from(&remark.text);
    }

    /// Cuts what was too large in two; what is small is dropped.
    fn too_large(
        &mut self,
        samples: Range<usize>,
        rest: &mut VecDeque<Range<usize>>,
        reason: &str,
    ) {
        if self.max_bytes > MIN_REQUEST_BYTES
            && let Some(halves) = halves(&samples)
        {
            self.max_bytes = (self.max_bytes / 2).max(MIN_REQUEST_BYTES);
            tracing::info!(
                "{} finds a push too large: {reason}; from now on at most {} KiB",
                self.name,
                self.max_bytes >> 10
            );
            for half in halves.into_iter().rev() {
                rest.push_front(half);
            }
            return;
        }
        // It was not the size then, or cannot be helped.
        self.say_trouble(reason, "what it refuses is dropped");
        add(&self.counters.rejected, 1 + rest.len() as u64);
        rest.clear();
        self.max_bytes = MAX_REQUEST_BYTES;
    }

    /// Says what is wrong, once for each reason.
    fn say_trouble(&mut self, reason: &str, consequence: &str) {
        let mut trouble = self.counters.lock_trouble();
        if trouble.as_deref() != Some(reason) {
            tracing::warn!("cannot push to {}: {reason}; {consequence}", self.name);
            *trouble = Some(reason.to_owned());
        }
    }
}

/// Does what takes the processor for a while, so that other tasks of the runtime go on where it has several threads.
fn working<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// All samples, in ranges that make one request each if they are not too large.
fn chunks(n_samples: usize) -> VecDeque<Range<usize>> {
    let starts = (0..n_samples).step_by(MAX_REQUEST_SAMPLES);
    starts
        .map(|start| start..n_samples.min(start + MAX_REQUEST_SAMPLES))
        .collect()
}

fn halves(samples: &Range<usize>) -> Option<[Range<usize>; 2]> {
    let middle = samples.start + samples.len() / 2;
    (samples.len() > 1).then_some([samples.start..middle, middle..samples.end])
}

/// How long to wait after so many attempts: twice as long each time, and a part of it by chance, so that those who lost
/// the same target do not come back at once.
fn backoff(pace: Pace, n_attempts: u32) -> Duration {
    let doublings = n_attempts.saturating_sub(1).min(16);
    let longest = pace.first_wait.saturating_mul(1 << doublings);
    let longest = longest.min(pace.last_wait);
    // Between a half and the whole.
    let random = RandomState::new().hash_one(n_attempts) as f64 / u64::MAX as f64;
    longest.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_differ() {
        let pace = Pace::default();
        for (n_attempts, seconds) in [(1, 1.0), (2, 2.0), (6, 32.0), (7, 60.0), (u32::MAX, 60.0)] {
            let waits: Vec<f64> = (0..20)
                .map(|_| backoff(pace, n_attempts).as_secs_f64())
                .collect();
            let fits = |wait: &f64| (seconds / 2.0..=seconds).contains(wait);
            assert!(waits.iter().all(fits), "{n_attempts}: {waits:?}");
            assert!(
                waits
                    .iter()
                    .any(|wait| wait.to_bits() != waits[0].to_bits())
            );
        }
    }

    #[test]
    fn ranges_cover_everything_once() {
        for n in [0, 1, MAX_REQUEST_SAMPLES, MAX_REQUEST_SAMPLES + 1, 50_000] {
            let covered: Vec<usize> = chunks(n).into_iter().flatten().collect();
            assert!(covered.iter().copied().eq(0..n));
        }
        assert_eq!(halves(&(3..6)), Some([3..4, 4..6]));
        assert_eq!(halves(&(3..4)), None);
    }
}
