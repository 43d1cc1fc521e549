//! The list and the watch: they go on for ever, whatever the API server does.
//!
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>: a list has a version, a watch
//! tells what changed since, and a version that is too old means to list again. The first list may come from the server's
//! cache, so that the agents of a large cluster that start together cost it little.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::connect::ApiServer;
use super::namespaces::Namespaces;
use super::owners::Owners;
pub use super::pods::Annotations;
use super::pods::{Change, Metadata, Object, ObjectList, WatchLine};
use super::request::{self, ApiError, METADATA_LIST, encoded};
use super::review::Reviewer;
use super::table::{MAX_PODS, PodEvent};
use crate::process::pod::Pod;

/// Events that wait for whoever follows them.
const EVENT_CHANNEL: usize = 64;

/// Most parts of a list that are asked for: an answer can say for ever that there is more.
const MAX_PAGES: usize = 1000;

/// Pods in one answer, where a larger one was too long.
const PAGES: [Page; 3] = [Page::Cached, Page::Of(100), Page::Of(5)];

/// What is asked of the server to end a watch after, in seconds: some more or less, so that not all agents come at once.
const WATCH_SECONDS: std::ops::Range<u64> = 240..300;

/// Beyond that a watch ends here.
const WATCH_GRACE: Duration = Duration::from_secs(30);

/// Watches that are refused before all pods are listed anew.
const MAX_REFUSED: u32 = 3;

/// A watch that was shorter than this was none: the next one waits.
const SHORT_WATCH: Duration = Duration::from_secs(5);

/// Which pods, and what of them.
#[derive(Debug, Clone)]
pub struct WatchConfig {
    /// Those of this node.
    pub node: String,
    /// Which of their annotations are kept.
    pub annotations: Annotations,
    /// How long to wait for what.
    pub pace: WatchPace,
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct WatchPace {
    /// After a first failure; each further one doubles it,
    pub first_pause: Duration,
    /// up to this.
    pub longest_pause: Duration,
    /// A watch in which nothing comes for so long is taken for a broken connection. The server sends a bookmark a minute.
    pub silence: Duration,
    /// Owners that could not be asked for are asked for again this often.
    pub owners: Duration,
    /// What asking for owners may take at once, before pods are told without them.
    pub owners_budget: Duration,
}

impl Default for WatchPace {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_mins(1),
            silence: Duration::from_secs(150),
            owners: Duration::from_secs(30),
            owners_budget: Duration::from_secs(2),
        }
    }
}

/// How the watch is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WatchStatus {
    /// Why names may be missing or old; empty: all is well.
    pub problem: String,
    /// Pods that are on the node.
    pub n_pods: usize,
    /// Lists that were read.
    pub n_lists: u64,
    /// Changes that were told.
    pub n_changes: u64,
    /// Questions that failed.
    pub n_failed: u64,
    /// Pods that could not be taken: unreadable, or too many.
    pub n_untaken: u64,
}

/// A watch that goes on until it is dropped.
#[derive(Debug)]
pub struct PodWatch {
    events: mpsc::Receiver<PodEvent>,
    status: watch::Receiver<WatchStatus>,
    server: ApiServer,
    namespaces: watch::Receiver<Namespaces>,
    task: JoinHandle<()>,
}

impl PodWatch {
    /// Begins. Needs a runtime of tokio.
    #[must_use]
    pub fn start(server: ApiServer, config: WatchConfig) -> Self {
        let (sender, events) = mpsc::channel(EVENT_CHANNEL);
        let (status_sender, status) = watch::channel(WatchStatus::default());
        let (namespaces_sender, namespaces) = watch::channel(Namespaces::default());
        let watcher = Watcher {
            server: server.clone(),
            namespaces: namespaces_sender,
            config,
            owners: Owners::default(),
            events: sender,
            status: status_sender,
            present: HashSet::new(),
            unresolved: HashMap::new(),
            next_resolving: Instant::now(),
            pause: Pause::default(),
        };
        Self {
            events,
            status,
            server,
            namespaces,
            task: tokio::spawn(watcher.run()),
        }
    }

    /// What is told next.
    pub async fn next(&mut self) -> Option<PodEvent> {
        self.events.recv().await
    }

    /// Something that says who may see which of these pods.
    #[must_use]
    pub fn reviewer(&self) -> Reviewer {
        Reviewer::new(self.server.clone(), self.namespaces.clone())
    }

    /// How it is doing, now and later.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<WatchStatus> {
        self.status.clone()
    }
}

impl Drop for PodWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks once how many pods there are on a node, as a watch begins.
///
/// # Errors
/// Why there is no answer, in words.
pub async fn count(server: &ApiServer, node: &str) -> Result<usize, String> {
    let path = format!("{}&resourceVersion=0", path_of(node));
    let list = request::get::<ObjectList>(&server.client, &path, METADATA_LIST).await;
    list.map(|list| list.items.len())
        .map_err(|error| error.to_string())
}

fn path_of(node: &str) -> String {
    format!(
        "/api/v1/pods?fieldSelector=spec.nodeName%3D{}",
        encoded(node)
    )
}

/// Why a list or a watch ended.
#[derive(Debug)]
enum End {
    Failed(ApiError),
    /// Nobody follows any more.
    Unwanted,
}

impl From<ApiError> for End {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

/// How much of a list is asked for at once.
#[derive(Debug, Clone, Copy)]
enum Page {
    /// All, as the server's cache has it.
    Cached,
    /// So many, as they are now.
    Of(u32),
}

/// What is done about failures.
#[derive(Debug, Default)]
struct Pause {
    n_failures: u32,
    random: RandomState,
    n_drawn: u64,
}

impl Pause {
    /// How long to wait after a failure: longer after each, and never as long as others wait.
    fn next(&mut self, pace: &WatchPace, error: Option<&ApiError>) -> Duration {
        let doubled = 1_u32.checked_shl(self.n_failures).unwrap_or(u32::MAX);
        self.n_failures = self.n_failures.saturating_add(1);
        let pause = pace.first_pause.saturating_mul(doubled);
        let pause = pause.min(pace.longest_pause);
        let pause = pause / 2 + self.part_of(pause / 2);
        let asked = match error {
            Some(ApiError::Refused { retry_after, .. }) => retry_after.unwrap_or_default(),
            Some(_) | None => Duration::ZERO,
        };
        pause.max(asked.min(pace.longest_pause))
    }

    /// Any part of a time.
    fn part_of(&mut self, time: Duration) -> Duration {
        self.n_drawn += 1;
        let random = self.random.hash_one(self.n_drawn) % 1024;
        time * random as u32 / 1024
    }
}

/// The task.
struct Watcher {
    server: ApiServer,
    config: WatchConfig,
    owners: Owners,
    events: mpsc::Sender<PodEvent>,
    status: watch::Sender<WatchStatus>,
    namespaces: watch::Sender<Namespaces>,
    /// UIDs of the pods that are there.
    present: HashSet<String>,
    /// Pods whose owners could not be asked for.
    unresolved: HashMap<String, Metadata>,
    /// When those are asked for again.
    next_resolving: Instant,
    pause: Pause,
}

impl Watcher {
    async fn run(mut self) {
        let mut first_page = 0;
        loop {
            match self.list(first_page).await {
                // What is cached was too old to go on from.
                Ok(version) => {
                    if self.watch_on(version).await.is_err() {
                        return;
                    }
                    first_page = 1;
                }
                Err(End::Failed(error)) => self.wait_after(&error).await,
                Err(End::Unwanted) => return,
            }
        }
    }

    /// One watch after the other, until the version is too old. An error: nobody follows any more.
    async fn watch_on(&mut self, mut version: String) -> Result<(), ()> {
        let mut n_refused = 0;
        loop {
            let begun = Instant::now();
            let ended = self.watch(&mut version).await;
            let is_short = begun.elapsed() < SHORT_WATCH;
            match ended {
                Ok(()) if is_short => {
                    let pause = self.pause.next(&self.config.pace, None);
                    tokio::time::sleep(pause).await;
                }
                Ok(()) => n_refused = 0,
                Err(End::Failed(ApiError::Expired)) => {
                    if is_short {
                        let pause = self.pause.next(&self.config.pace, None);
                        tokio::time::sleep(pause).await;
                    }
                    return Ok(());
                }
                Err(End::Failed(error)) => {
                    n_refused += u32::from(error.is_about_the_question());
                    self.wait_after(&error).await;
                    if n_refused >= MAX_REFUSED {
                        return Ok(());
                    }
                }
                Err(End::Unwanted) => return Err(()),
            }
        }
    }

    async fn wait_after(&mut self, error: &ApiError) {
        let problem = format!(
            "Kubernetes is not followed, so names of pods may be missing or old: {}: {error}",
            self.server.address
        );
        self.change_status(|status| {
            status.n_failed += 1;
            status.problem = problem;
        });
        let pause = self.pause.next(&self.config.pace, Some(error));
        tokio::time::sleep(pause).await;
    }

    /// Changes the status, and logs a problem that comes or goes.
    fn change_status(&self, change: impl FnOnce(&mut WatchStatus)) {
        self.status.send_modify(|status| {
            let had_problem = !status.problem.is_empty();
            change(status);
            match (had_problem, status.problem.as_str()) {
                (false, problem) if !problem.is_empty() => tracing::warn!("{problem}"),
                (true, "") => tracing::info!("Kubernetes is followed again"),
                _ => {}
            }
        });
    }

    /// The server answers as it should.
    fn is_well(&mut self) {
        let node = &self.config.node;
        let problem = match self.owners.problem() {
            _ if self.present.is_empty() => {
                format!("there is no pod on the node {node}: is that its name? (--node-name)")
            }
            Some(error) => format!(
                "what pods belong to cannot be asked for, so CronJobs are not known: {error}"
            ),
            None => String::new(),
        };
        let n_pods = self.present.len();
        self.change_status(|status| {
            status.problem = problem;
            status.n_pods = n_pods;
        });
    }

    /// Reads all pods, tells of them, and returns their version.
    async fn list(&mut self, first_page: usize) -> Result<String, End> {
        let mut pages = PAGES[first_page..].iter();
        let mut page = pages.next().copied().unwrap_or(Page::Of(1));
        let (version, objects) = loop {
            match self.objects(page).await {
                Ok(read) => break read,
                Err(error @ (ApiError::TooLong(_) | ApiError::Expired)) => match pages.next() {
                    Some(next) => page = *next,
                    None => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
        };
        self.present.clear();
        self.unresolved.clear();
        let until = Instant::now() + self.config.pace.owners_budget;
        let mut pods = Vec::with_capacity(objects.len());
        for object in objects {
            pods.extend(self.pod(&object.metadata, until).await);
        }
        self.next_resolving = Instant::now();
        self.pause.n_failures = 0;
        self.status.send_modify(|status| status.n_lists += 1);
        self.is_well();
        self.tell(PodEvent::All(pods)).await?;
        Ok(version)
    }

    async fn objects(&self, page: Page) -> Result<(String, Vec<Object>), ApiError> {
        let mut objects: Vec<Object> = Vec::new();
        let mut next = String::new();
        for _ in 0..MAX_PAGES {
            let mut path = self.path();
            match page {
                Page::Cached => path.push_str("&resourceVersion=0"),
                Page::Of(n_pods) => path = format!("{path}&limit={n_pods}"),
            }
            if !next.is_empty() {
                path = format!("{path}&continue={}", encoded(&next));
            }
            let list: ObjectList = request::get(&self.server.client, &path, METADATA_LIST).await?;
            let room = MAX_PODS.saturating_sub(objects.len());
            let n_beyond = list.items.len().saturating_sub(room);
            if n_beyond > 0 {
                let n_beyond = n_beyond as u64;
                self.status
                    .send_modify(|status| status.n_untaken += n_beyond);
            }
            objects.extend(list.items.into_iter().take(room));
            next = list.metadata.next;
            if next.is_empty() || room == 0 {
                return Ok((list.metadata.resource_version, objects));
            }
        }
        Err(ApiError::Garbled("the list does not end".to_owned()))
    }

    /// Tells what changes, from this version on; it is that of the last change at the end.
    async fn watch(&mut self, version: &mut String) -> Result<(), End> {
        let seconds = WATCH_SECONDS.end - WATCH_SECONDS.start;
        let more = self.pause.part_of(Duration::from_secs(seconds));
        let seconds = WATCH_SECONDS.start + more.as_secs();
        let path = format!(
            "{}&watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}",
            self.path(),
            encoded(version)
        );
        let mut lines = request::watch(&self.server.client, &path).await?;
        self.is_well();
        let silence = self.config.pace.silence;
        let end = Instant::now() + Duration::from_secs(seconds) + WATCH_GRACE;
        let mut garbled = None;
        loop {
            let due = self.next_due(end);
            let line = tokio::select! {
                line = lines.next(silence) => line?,
                () = tokio::time::sleep_until(due.into()) => {
                    if Instant::now() >= end {
                        return Ok(());
                    }
                    self.resolve().await?;
                    continue;
                }
            };
            let Some(line) = line else {
                // Where no line was understood it is something else that answers.
                return garbled.map_or(Ok(()), |error: ApiError| Err(error.into()));
            };
            match request::parse::<WatchLine>(&line) {
                Ok(line) => {
                    if let Some(change) = line.change()? {
                        self.on_change(change, version).await?;
                    }
                    garbled = None;
                    self.pause.n_failures = 0;
                }
                Err(error) => {
                    self.status.send_modify(|status| status.n_untaken += 1);
                    garbled = Some(error);
                }
            }
        }
    }

    async fn on_change(&mut self, change: Change, version: &mut String) -> Result<(), End> {
        let event = match change {
            Change::Bookmark(of_bookmark) => {
                *version = of_bookmark;
                return Ok(());
            }
            Change::Is(object) => {
                version.clone_from(&object.metadata.resource_version);
                let until = Instant::now() + self.config.pace.owners_budget;
                let pod = self.pod(&object.metadata, until).await;
                pod.map(PodEvent::Is)
            }
            Change::Gone(object) => {
                version.clone_from(&object.metadata.resource_version);
                let uid = object.metadata.uid;
                self.unresolved.remove(&uid);
                self.present.remove(&uid).then_some(PodEvent::Gone(uid))
            }
        };
        let Some(event) = event else {
            return Ok(());
        };
        self.status.send_modify(|status| status.n_changes += 1);
        self.is_well();
        self.tell(event).await
    }

    /// The pod, with what it belongs to; `None`: it cannot be taken, which is counted.
    async fn pod(&mut self, metadata: &Metadata, until: Instant) -> Option<Arc<Pod>> {
        let client = &self.server.client;
        let asked = self.owners.of(client, metadata, Instant::now() < until);
        let owned = match tokio::time::timeout_at(until.into(), asked).await {
            Ok(owned) => owned,
            Err(_) => self.owners.of(client, metadata, false).await,
        };
        let pod = metadata.pod(&self.config.node, owned.workloads, &self.config.annotations);
        let is_known = self.present.contains(&metadata.uid);
        let pod = pod.filter(|_| is_known || self.present.len() < MAX_PODS);
        let Some(pod) = pod else {
            self.status.send_modify(|status| status.n_untaken += 1);
            return None;
        };
        self.present.insert(pod.uid.clone());
        self.namespaces
            .send_if_modified(|namespaces| namespaces.see(&pod.namespace));
        if owned.is_to_be_asked {
            self.unresolved.insert(pod.uid.clone(), metadata.clone());
        } else {
            self.unresolved.remove(&pod.uid);
        }
        Some(Arc::new(pod))
    }

    /// When owners are to be asked for again, or the watch ends.
    fn next_due(&self, end: Instant) -> Instant {
        if self.unresolved.is_empty() {
            end
        } else {
            end.min(self.next_resolving)
        }
    }

    /// Asks again for owners that could not be asked for.
    async fn resolve(&mut self) -> Result<(), End> {
        let until = Instant::now() + self.config.pace.owners_budget;
        for (_, metadata) in std::mem::take(&mut self.unresolved) {
            if let Some(pod) = self.pod(&metadata, until).await
                && !self.unresolved.contains_key(&pod.uid)
            {
                self.tell(PodEvent::Is(pod)).await?;
            }
        }
        self.is_well();
        self.next_resolving = Instant::now() + self.config.pace.owners;
        Ok(())
    }

    async fn tell(&self, event: PodEvent) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Unwanted)
    }

    fn path(&self) -> String {
        path_of(&self.config.node)
    }
}

#[cfg(test)]
mod tests;
