//! `WatchProfiles`: profiles of windows as they close.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::grpc::{chunks, metadata};
use super::pull::{Pulled, in_format};
use crate::format::Format;
use crate::generated::pyagent::v1 as proto;
use crate::generated::pyagent::v1::watch_profiles_response::Part;
use crate::profile::model::{Profile, ProfileType, Sample};
use crate::profile::query::{LabelFilter, ProcessFilter, Viewer, with_labels};
use crate::profile::window::{ClosedWindow, names_process};

/// Messages that wait for the client: it is its reading that fetches the next window.
const CHANNEL: usize = 2;

/// What goes to the client.
pub(super) type WatchStream =
    Pin<Box<dyn Stream<Item = Result<proto::WatchProfilesResponse, Status>> + Send>>;

/// What a client watches.
#[derive(Debug)]
pub(super) struct Watch {
    /// All when it is empty.
    pub(super) types: Vec<ProfileType>,
    pub(super) filter: ProcessFilter,
    pub(super) labels: Vec<LabelFilter>,
    pub(super) format: &'static Format,
}

impl Watch {
    /// The windows from now on, until the client leaves or the agent ends.
    pub(super) fn stream(
        self,
        windows: Receiver<Arc<ClosedWindow>>,
        place: OwnedSemaphorePermit,
    ) -> WatchStream {
        let (messages, stream) = mpsc::channel(CHANNEL);
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = Arc::new(self).send(windows, &messages) => {}
                () = messages.closed() => {}
            }
        });
        Box::pin(ReceiverStream::new(stream))
    }

    async fn send(
        self: Arc<Self>,
        mut windows: Receiver<Arc<ClosedWindow>>,
        messages: &mpsc::Sender<Result<proto::WatchProfilesResponse, Status>>,
    ) {
        let mut n_missed = 0;
        loop {
            let window = match windows.recv().await {
                Ok(window) => window,
                Err(RecvError::Lagged(n)) => {
                    n_missed += n;
                    continue;
                }
                Err(RecvError::Closed) => {
                    let stopping = Status::unavailable("the agent is stopping");
                    let _ = messages.send(Err(stopping)).await;
                    return;
                }
            };
            let watch = Arc::clone(&self);
            // Writing a large profile takes longer than an asynchronous task may.
            let written = tokio::task::spawn_blocking(move || watch.write(&window)).await;
            let Ok(profiles) = written else { return };
            for (profile_type, pulled) in profiles {
                let profile = proto::WatchedProfile {
                    r#type: profile_type.name().to_owned(),
                    metadata: Some(metadata(&pulled)),
                    n_missed_windows: std::mem::take(&mut n_missed),
                };
                let parts = chunks(pulled.bytes).map(Part::Chunk);
                for part in std::iter::once(Part::Profile(profile)).chain(parts) {
                    let message = proto::WatchProfilesResponse { part: Some(part) };
                    if messages.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn write(&self, window: &ClosedWindow) -> VecDeque<(ProfileType, Pulled)> {
        let is_meant = |profile_type| self.types.is_empty() || self.types.contains(&profile_type);
        let profiles = window.profiles.iter();
        let meant = profiles.filter(|(profile_type, _)| is_meant(*profile_type));
        meant
            .map(|(profile_type, profile)| {
                let profile = with_labels(self.part(profile), &self.labels);
                (*profile_type, in_format(&profile, self.format))
            })
            .collect()
    }

    /// The samples of the processes that are meant.
    fn part(&self, profile: &Profile) -> Profile {
        let processes = profile.processes.iter();
        let is_meant: Vec<bool> = processes
            .map(|process| self.filter.means(profile, process))
            .collect();
        let mut part = profile.part(|sample: &Sample| {
            let set = profile.label_sets.get(sample.labels.0 as usize);
            set.is_some_and(|set| is_meant.get(set.process.0 as usize) == Some(&true))
        });
        if self.filter.viewer != Viewer::All {
            part.comments.retain(|line| !names_process(line));
        }
        part
    }
}
