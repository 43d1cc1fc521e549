//! The recorder: the windows of the last hours in a database of the agent's own (SQLite), for pulls from the past.
//!
//! One thread writes. A window is one transaction, so it is there as a whole or not at all, whatever happens to the agent.
//! What cannot be written waits for a while, and is then dropped and counted: sampling never waits. Readers have
//! connections of their own.

mod clock;
mod folder;
mod labels;
mod read;
mod samples;
mod schema;
#[cfg(test)]
mod tests;
mod write;

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use self::clock::Clock;
use self::folder::{Folder, shown};
pub use self::folder::{FolderError, default_folder};
pub use self::read::{ReadError, RecordedWindow};
use self::schema::OpenError;
use self::write::{Limits, WriteError, Writer};
use crate::profile::model::Profile;
use crate::profile::query::RecordedRequest;
use crate::profile::window::ClosedWindow;

/// Least size that can be asked for.
pub const MIN_KEEP_BYTES: u64 = 8 << 20;

/// Windows that wait while they cannot be written: a minute of them. Older ones are dropped.
const MAX_WAITING: usize = 6;

/// A pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The pause between two steps of work that can wait.
const TIDY_STEP: Duration = Duration::from_millis(20);

/// How often it is looked whether there is such work, when no window comes.
const TIDY: Duration = Duration::from_secs(5);

/// What is kept, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecorderConfig {
    /// The folder; it is made.
    pub folder: PathBuf,
    /// Windows that ended earlier are removed.
    pub keep: Duration,
    /// Bytes of the database and its log at most; at least [`MIN_KEEP_BYTES`].
    pub keep_bytes: u64,
}

/// How the recorder is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecorderStatus {
    /// The folder.
    pub folder: PathBuf,
    /// Why windows are not written now; `None`: they are.
    pub problem: Option<String>,
    /// Bytes of the database and its log.
    pub n_bytes: u64,
    /// What they may be.
    pub keep_bytes: u64,
    /// When the oldest window begins; `None`: there is none.
    pub oldest: Option<SystemTime>,
    /// Windows that were written since the start.
    pub n_recorded: u64,
    /// Windows that could not be, and were dropped.
    pub n_dropped: u64,
    /// Windows that were removed, for their age or for the room that they took.
    pub n_removed: u64,
}

/// What a recorder is told.
#[derive(Debug)]
pub enum Message {
    /// A window is over.
    Window(Arc<ClosedWindow>),
    /// A target needs this window, and those before it, no more.
    Acknowledge {
        /// Its name.
        target: String,
        /// Number of the window.
        seq: i64,
    },
    /// Everything that came before is to be done; then the sender is dropped.
    Barrier(SyncSender<()>),
}

/// A running recorder.
#[derive(Debug)]
pub struct Recorder {
    reader: Reader,
    thread: JoinHandle<()>,
}

/// Reads what was recorded; cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    database: Arc<Path>,
    shared: Arc<Shared>,
}

/// What the thread tells.
#[derive(Debug)]
struct Shared {
    config: RecorderConfig,
    clock: Clock,
    problem: Mutex<Option<String>>,
    /// A reader found the database damaged.
    is_suspect: AtomicBool,
    /// Wall time in nanoseconds since 1970; 0: there is none.
    oldest_ns: AtomicU64,
    n_recorded: AtomicU64,
    n_dropped: AtomicU64,
    n_removed: AtomicU64,
    /// Changes when a window was written.
    written: watch::Sender<()>,
    /// Number of the last window that was there when the database was first opened.
    last_before: OnceLock<i64>,
}

impl Recorder {
    /// Takes the folder, and begins to write what comes. It ends when every sender of messages is dropped.
    pub fn start(config: RecorderConfig, messages: Receiver<Message>) -> Result<Self, FolderError> {
        let folder = Folder::open(&config.folder)?;
        if let Some(network) = folder.network() {
            let aside = if folder.database().exists() {
                let moved = folder::move_aside(&folder.database());
                moved.map_or_else(
                    |error| format!("; what is there cannot be moved aside: {error}"),
                    |aside| format!("; what was there is {} now", shown(&aside)),
                )
            } else {
                String::new()
            };
            return Err(FolderError::Unusable {
                path: shown(&config.folder),
                reason: format!(
                    "it is on a network file system ({network}), where a database is not safe{aside}"
                ),
            });
        }
        let shared = Arc::new(Shared {
            config,
            clock: Clock::system(),
            problem: Mutex::default(),
            is_suspect: AtomicBool::new(false),
            oldest_ns: AtomicU64::new(0),
            n_recorded: AtomicU64::new(0),
            n_dropped: AtomicU64::new(0),
            n_removed: AtomicU64::new(0),
            written: watch::Sender::new(()),
            last_before: OnceLock::new(),
        });
        let reader = Reader {
            database: folder.database().into(),
            shared: Arc::clone(&shared),
        };
        let work = Work {
            database: folder.database(),
            folder,
            writer: None,
            waiting: VecDeque::new(),
            shared,
            has_more_to_tidy: true,
        };
        let thread = std::thread::Builder::new()
            .name("pyagent-recorder".to_owned())
            .spawn(move || work.run(&messages))
            .map_err(|error| FolderError::Unusable {
                path: shown(&reader.shared.config.folder),
                reason: format!("no thread for it: {error}"),
            })?;
        Ok(Self { reader, thread })
    }

    /// Something that reads.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Waits until everything is written. Every sender of messages must have been dropped.
    pub fn join(self) {
        // A panic was reported by its thread already.
        let _ = self.thread.join();
    }
}

impl Reader {
    /// The profile that is asked for. Blocks; `is_abandoned` is asked from time to time.
    pub fn read(
        &self,
        request: &RecordedRequest,
        is_abandoned: &dyn Fn() -> bool,
    ) -> Result<Profile, ReadError> {
        let profile = read::read(&self.database, &self.shared.clock, request, is_abandoned);
        if let Err(ReadError::Unreadable(error)) = &profile
            && schema::is_damage(error)
        {
            self.shared.is_suspect.store(true, Ordering::Relaxed);
        }
        profile
    }

    /// The oldest window after this one, of any type; `None`: there is none yet. Blocks.
    pub fn after(&self, seq: i64) -> Result<Option<RecordedWindow>, ReadError> {
        read::after(&self.database, seq)
    }

    /// Kubernetes namespaces that there are profiles of, each once. Blocks.
    pub fn namespaces(&self) -> Result<Vec<String>, ReadError> {
        if !self.database.exists() {
            return Ok(Vec::new());
        }
        read::namespaces(&self.database)
    }

    /// The last window that a target needs no more; of one that was not asked for before, the last window before this
    /// recorder began. `None`: it has not begun. Blocks.
    pub fn acknowledged(&self, target: &str) -> Result<Option<i64>, ReadError> {
        let Some(last_before) = self.shared.last_before.get() else {
            return Ok(None);
        };
        let acknowledged = read::acknowledged(&self.database, target)?;
        Ok(acknowledged.or(Some(*last_before)))
    }

    /// Something that changes when a window was written.
    #[must_use]
    pub fn written(&self) -> watch::Receiver<()> {
        self.shared.written.subscribe()
    }

    /// How the recorder is doing.
    #[must_use]
    pub fn status(&self) -> RecorderStatus {
        let shared = &self.shared;
        let number = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let oldest_ns = number(&shared.oldest_ns).cast_signed();
        let problem = shared.problem.lock();
        RecorderStatus {
            folder: shared.config.folder.clone(),
            problem: problem.unwrap_or_else(PoisonError::into_inner).clone(),
            n_bytes: folder::n_bytes(&self.database),
            keep_bytes: shared.config.keep_bytes,
            oldest: (oldest_ns != 0).then(|| clock::wall_time(oldest_ns)),
            n_recorded: number(&shared.n_recorded),
            n_dropped: number(&shared.n_dropped),
            n_removed: number(&shared.n_removed),
        }
    }
}

/// The thread's own.
struct Work {
    folder: Folder,
    database: PathBuf,
    writer: Option<Opened>,
    /// Windows that are not written yet, the oldest first.
    waiting: VecDeque<Arc<ClosedWindow>>,
    shared: Arc<Shared>,
    has_more_to_tidy: bool,
}

struct Opened {
    writer: Writer,
    /// Device and number of the file: somebody may remove it.
    file: (u64, u64),
}

impl Work {
    fn run(mut self, messages: &Receiver<Message>) {
        // Before the first window: what is to be told of the database is told at the start.
        self.flush();
        loop {
            let pause = match (self.waiting.is_empty(), self.has_more_to_tidy) {
                (false, _) => RETRY,
                (true, true) => TIDY_STEP,
                (true, false) => TIDY,
            };
            match messages.recv_timeout(pause) {
                Ok(Message::Window(window)) => {
                    self.waiting.push_back(window);
                    self.flush();
                }
                Ok(Message::Acknowledge { target, seq }) => self.acknowledge(&target, seq),
                Ok(Message::Barrier(reached)) => drop(reached),
                Err(RecvTimeoutError::Timeout) if self.waiting.is_empty() => self.tidy(),
                Err(RecvTimeoutError::Timeout) => self.flush(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.flush();
        self.drop_but(0);
    }

    /// What is not kept is sent again after the next start.
    fn acknowledge(&mut self, target: &str, seq: i64) {
        if let Some(opened) = &mut self.writer
            && let Err(error) = opened.writer.acknowledge(target, seq)
        {
            tracing::debug!("the recorder cannot keep what {target} has: {error}");
        }
    }

    /// Writes what waits, as far as that can be.
    fn flush(&mut self) {
        match self.write_waiting() {
            Ok(()) => self.tell(None),
            Err(problem) => self.tell(Some(problem)),
        }
        self.drop_but(MAX_WAITING);
        self.has_more_to_tidy = true;
    }

    fn drop_but(&mut self, n_kept: usize) {
        while self.waiting.len() > n_kept {
            self.waiting.pop_front();
            self.shared.n_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Says once what is wrong, and once that it is no more.
    fn tell(&self, problem: Option<String>) {
        let mut known = self.shared.problem.lock();
        let known = match &mut known {
            Ok(known) => &mut **known,
            Err(poisoned) => &mut **poisoned.get_mut(),
        };
        match (&*known, &problem) {
            (None, Some(problem)) => tracing::warn!(
                "windows are not recorded: {problem}; they are tried again, the oldest are dropped when more than {MAX_WAITING} wait"
            ),
            (Some(_), None) => tracing::info!("windows are recorded again"),
            _ => {}
        }
        *known = problem;
    }

    fn write_waiting(&mut self) -> Result<(), String> {
        self.open()?;
        while let Some(window) = self.waiting.front().cloned() {
            match self.commit(&window) {
                Ok(()) => {}
                // Another database will take it.
                Err(WriteError::Damaged) => {
                    self.writer = None;
                    self.put_aside("it is damaged")?;
                    self.open()?;
                    self.commit(&window).map_err(|error| error.to_string())?;
                }
                Err(error) => return Err(error.to_string()),
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    fn commit(&mut self, window: &ClosedWindow) -> Result<(), WriteError> {
        let Some(opened) = &mut self.writer else {
            return Ok(());
        };
        let n_removed = opened.writer.commit(window)?;
        self.shared.n_recorded.fetch_add(1, Ordering::Relaxed);
        self.shared.written.send_replace(());
        if let Err(error) = opened.writer.settle() {
            // It is committed all the same, and the next window has the same trouble.
            tracing::debug!("the recorder's log cannot be emptied: {error}");
        }
        self.shared
            .n_removed
            .fetch_add(n_removed, Ordering::Relaxed);
        self.note_oldest();
        Ok(())
    }

    fn note_oldest(&self) {
        if let Some(opened) = &self.writer
            && let Ok(oldest) = opened.writer.oldest_ns()
        {
            let oldest = oldest.unwrap_or(0).cast_unsigned();
            self.shared.oldest_ns.store(oldest, Ordering::Relaxed);
        }
    }

    /// Opens the database where it is not open, or is not the file any more that its name leads to.
    fn open(&mut self) -> Result<(), String> {
        if self.shared.is_suspect.swap(false, Ordering::Relaxed) {
            self.writer = None;
            if !schema::is_sound(&self.database) {
                self.put_aside("it is damaged")?;
            }
        }
        let file = file_of(&self.database);
        let is_same = |opened: &Opened| Some(opened.file) == file;
        if self.writer.as_ref().is_some_and(is_same) {
            return Ok(());
        }
        if self.writer.take().is_some() {
            tracing::warn!(
                "{} was removed or replaced: a new one is begun",
                shown(&self.database)
            );
        }
        // The lock that is held is that of the old one.
        if !self.folder.is_there() {
            let folder = Folder::open(&self.shared.config.folder);
            self.folder = folder.map_err(|error| error.to_string())?;
        }
        let limits = Limits {
            keep: self.shared.config.keep,
            keep_bytes: self.shared.config.keep_bytes,
        };
        let open = || Writer::open(&self.database, limits, self.shared.clock.clone());
        let writer = match open() {
            Err(error @ (OpenError::Newer | OpenError::Damaged)) => {
                self.put_aside(&error.to_string())?;
                open()
            }
            opened => opened,
        };
        let writer = writer.map_err(|error| format!("{}: {error}", shown(&self.database)))?;
        let file = file_of(&self.database).ok_or("the database has gone")?;
        if self.shared.last_before.get().is_none() {
            let last = writer.last_seq().map_err(|error| error.to_string())?;
            let _ = self.shared.last_before.set(last);
        }
        self.writer = Some(Opened { writer, file });
        self.note_oldest();
        Ok(())
    }

    fn put_aside(&self, reason: &str) -> Result<(), String> {
        let database = shown(&self.database);
        match folder::move_aside(&self.database) {
            Ok(aside) => tracing::warn!(
                "{database} is {} now, and a new one is begun: {reason}",
                shown(&aside)
            ),
            Err(error) => {
                return Err(format!(
                    "{database}: {reason}, and cannot be moved aside: {error}"
                ));
            }
        }
        Ok(())
    }

    fn tidy(&mut self) {
        let Some(opened) = &mut self.writer else {
            // It could not be opened: that is tried again, and told.
            return self.flush();
        };
        match opened.writer.tidy() {
            Ok(Some(n_removed)) => {
                self.has_more_to_tidy = true;
                self.shared
                    .n_removed
                    .fetch_add(n_removed, Ordering::Relaxed);
            }
            Ok(None) => {
                self.has_more_to_tidy = false;
                self.note_oldest();
            }
            Err(error) => {
                // The next window will have the same trouble, and say so.
                tracing::debug!("the recorder cannot tidy up: {error}");
                self.has_more_to_tidy = false;
            }
        }
    }
}

fn file_of(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}
