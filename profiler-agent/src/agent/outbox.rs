//! Where windows wait for the targets of pushes: in the recorder's database, or in memory where there is no recorder.
//!
//! The recorder is the outbox. It keeps of each target only which window it has had, so a window waits for a target that is
//! down for as long as windows are kept, across restarts, and takes no memory.

use std::collections::HashMap;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::profile::window::ClosedWindow;
use crate::push::{MemoryOutbox, Outbox, Window};
use crate::recorder::{Message, ReadError, Reader, RecordedWindow};

/// A look at the database that failed is repeated after this; it may not be made yet.
const RETRY: Duration = Duration::from_secs(1);

/// An outbox.
pub enum WindowOutbox {
    /// In memory.
    Memory(MemoryOutbox),
    /// In the recorder.
    Recorded(RecordedOutbox),
}

/// The recorder as an outbox.
pub struct RecordedOutbox {
    reader: Reader,
    messages: SyncSender<Message>,
    cursors: Mutex<HashMap<String, Cursor>>,
    is_closed: watch::Sender<bool>,
}

/// How far a target is.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    /// The last window that it needs no more.
    done: i64,
    /// The last window that was counted as missed or given.
    seen: i64,
    n_dropped: u64,
}

impl RecordedOutbox {
    pub(super) fn new(reader: Reader, messages: SyncSender<Message>) -> Self {
        Self {
            reader,
            messages,
            cursors: Mutex::default(),
            is_closed: watch::Sender::new(false),
        }
    }

    /// No more windows come: who asks for one gets what is left, then `None`.
    pub fn close(&self) {
        self.is_closed.send_replace(true);
    }

    fn cursors(&self) -> MutexGuard<'_, HashMap<String, Cursor>> {
        // Nothing is left half done by a panic: each change is one assignment.
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, target: &str, seq: i64) {
        // One that has no room is made up for by the next one.
        let _ = self.messages.try_send(Message::Acknowledge {
            target: target.to_owned(),
            seq,
        });
    }

    /// The last window that a target needs no more; `None`: the recorder has not begun.
    async fn done(&self, target: &str) -> Result<Option<i64>, ReadError> {
        if let Some(cursor) = self.cursors().get(target) {
            return Ok(Some(cursor.done));
        }
        let (reader, name) = (self.reader.clone(), target.to_owned());
        let Some(done) = blocking(move || reader.acknowledged(&name)).await? else {
            return Ok(None);
        };
        self.cursors().insert(
            target.to_owned(),
            Cursor {
                done,
                seen: done,
                n_dropped: 0,
            },
        );
        // A new target gets what closes from now on, also after a restart.
        self.tell(target, done);
        Ok(Some(done))
    }

    async fn look(&self, target: &str) -> Result<Option<RecordedWindow>, ReadError> {
        let Some(done) = self.done(target).await? else {
            return Ok(None);
        };
        let reader = self.reader.clone();
        let found = blocking(move || reader.after(done)).await?;
        if let Some(window) = &found
            && let Some(cursor) = self.cursors().get_mut(target)
            && cursor.seen < window.seq
        {
            cursor.seen = window.seq;
            cursor.n_dropped += window.n_missed;
        }
        Ok(found)
    }

    async fn next(&self, target: &str) -> Option<Arc<Window>> {
        let (mut written, mut is_closed) = (self.reader.written(), self.is_closed.subscribe());
        loop {
            // Before the look: what comes after it is not missed.
            written.borrow_and_update();
            let was_closed = *is_closed.borrow_and_update();
            match self.look(target).await {
                Ok(Some(window)) => {
                    return Some(Arc::new(Window {
                        seq: window.seq.cast_unsigned(),
                        content: Arc::new(ClosedWindow {
                            start_ns: window.start_ns,
                            end_ns: window.end_ns,
                            profiles: vec![(window.profile_type, window.profile)],
                        }),
                    }));
                }
                Ok(None) | Err(_) if was_closed => return None,
                Ok(None) => {
                    tokio::select! {
                        _ = written.changed() => {}
                        _ = is_closed.changed() => {}
                    }
                }
                Err(error) => {
                    tracing::debug!("windows for {target} cannot be read: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

impl Outbox for WindowOutbox {
    async fn next(&self, target: &str) -> Option<Arc<Window>> {
        match self {
            Self::Memory(outbox) => outbox.next(target).await,
            Self::Recorded(outbox) => outbox.next(target).await,
        }
    }

    async fn acknowledge(&self, target: &str, seq: u64) {
        match self {
            Self::Memory(outbox) => outbox.acknowledge(target, seq).await,
            Self::Recorded(outbox) => {
                let seq = seq.cast_signed();
                if let Some(cursor) = outbox.cursors().get_mut(target) {
                    cursor.done = cursor.done.max(seq);
                }
                outbox.tell(target, seq);
            }
        }
    }

    fn dropped(&self, target: &str) -> u64 {
        match self {
            Self::Memory(outbox) => outbox.dropped(target),
            Self::Recorded(outbox) => outbox.cursors().get(target).map_or(0, |it| it.n_dropped),
        }
    }
}

/// Reads on a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    let read = tokio::task::spawn_blocking(read).await;
    // The runtime ends.
    read.unwrap_or(Err(ReadError::Abandoned))
}
