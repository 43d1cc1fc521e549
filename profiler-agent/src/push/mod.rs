//! Profiles are sent to where profiles are kept: the OpenTelemetry Collector and what speaks OTLP, Pyroscope, Parca.
//!
//! Each target has a task of its own, which gets each window at least once and in order: one that is slow, hung or down
//! holds nobody else back. One window is under way a target; the others wait in an [`Outbox`].

mod answer;
mod credentials;
mod host;
mod otlp;
mod payload;
mod pprof;
mod sender;
mod target;
mod window;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

pub use self::credentials::{CredentialError, CredentialOptions, Header, Scoped};
pub use self::host::Host;
pub use self::otlp::{OTLP_PROTO_VERSION, OtlpWindow};
pub use self::sender::{Counts, MAX_REQUEST_BYTES, Pace};
pub use self::target::{Protocol, Target, TargetError};
pub use self::window::{MemoryOutbox, Outbox, Window, size_bytes};

use self::credentials::Credentials;
use self::sender::{Counters, Sender};

/// Where to push, and how.
#[derive(Debug, Clone, Default)]
pub struct PushConfig {
    /// The targets.
    pub targets: Vec<Target>,
    /// What they want to see.
    pub credentials: CredentialOptions,
    /// Labels of processes and threads that Pyroscope and Parca get beside those of the service.
    pub labels: Vec<String>,
    /// Labels of processes whose attributes in OTLP are called otherwise: names, and those of the attributes.
    pub attributes: Vec<(String, String)>,
    /// How long things take.
    pub pace: Pace,
}

/// Which labels are told, and what they are called.
#[derive(Debug, Default)]
struct Told {
    /// As [`PushConfig::labels`].
    labels: Vec<String>,
    /// As [`PushConfig::attributes`].
    attributes: Vec<(String, String)>,
}

/// How a target fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetCounts {
    /// The target, as it was given.
    pub target: String,
    /// What it was sent.
    pub counts: Counts,
    /// What does not work now, in words.
    pub trouble: Option<String>,
}

/// The running tasks, one each target. They end when the outbox is closed and empty, or with this.
pub struct Pusher<O: Outbox> {
    outbox: Arc<O>,
    targets: Vec<(String, Arc<Counters>)>,
    tasks: Vec<JoinHandle<()>>,
}

impl<O: Outbox> Pusher<O> {
    /// Reads all files, and begins. What a target says is no reason to fail: it may come up later. Needs a runtime of tokio.
    pub fn start(config: &PushConfig, outbox: Arc<O>) -> Result<Self, CredentialError> {
        let host = Arc::new(Host::of_this_machine());
        let told = Arc::new(Told {
            labels: config.labels.clone(),
            attributes: config.attributes.clone(),
        });
        let mut senders = Vec::new();
        let mut targets = Vec::new();
        for target in &config.targets {
            let mut credentials = Credentials::new(target, &config.credentials)?;
            let link = credentials.link()?;
            if credentials.are_exposed() {
                tracing::warn!("{target} is without TLS: who listens learns the token or password");
            }
            let counters = Arc::new(Counters::default());
            targets.push((target.to_string(), Arc::clone(&counters)));
            senders.push(Sender::new(
                target.clone(),
                credentials,
                link,
                Arc::clone(&host),
                Arc::clone(&told),
                config.pace,
                counters,
            ));
        }
        // Not before all of them are known to be right.
        let senders = senders.into_iter();
        let tasks = senders.map(|sender| tokio::spawn(sender.run(Arc::clone(&outbox))));
        let tasks = tasks.collect();
        Ok(Self {
            outbox,
            targets,
            tasks,
        })
    }

    /// How each target fares.
    #[must_use]
    pub fn counts(&self) -> Vec<TargetCounts> {
        self.watch()()
    }

    /// The same, for who outlives this.
    pub fn watch(&self) -> impl Fn() -> Vec<TargetCounts> + Send + Sync + use<O> {
        let (outbox, targets) = (Arc::clone(&self.outbox), self.targets.clone());
        move || {
            let targets = targets.iter();
            targets
                .map(|(name, counters)| TargetCounts {
                    target: name.clone(),
                    counts: counters.counts(outbox.dropped(name)),
                    trouble: counters.trouble(),
                })
                .collect()
        }
    }

    /// Waits until everything is delivered, but not longer than this. The outbox must be closed. Whether it all was.
    pub async fn finish(mut self, grace: Duration) -> bool {
        let mut tasks = std::mem::take(&mut self.tasks);
        let all = async {
            for task in &mut tasks {
                // A panic of a task was reported already.
                let _ = task.await;
            }
        };
        let is_done = tokio::time::timeout(grace, all).await.is_ok();
        tasks.iter().for_each(JoinHandle::abort);
        is_done
    }
}

impl<O: Outbox> Drop for Pusher<O> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
