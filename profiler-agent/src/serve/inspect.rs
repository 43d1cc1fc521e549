//! `DumpStacks` and `HeapCensus`: how many may look at a time, and what they are told.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::query::{Asker, CensusPart, InspectError, ProcessInfo, ProcessStacks, ProcessState};
use crate::generated::pyagent::v1 as proto;
use crate::generated::pyagent::v1::heap_census_response::Part;
use crate::heap::report::full_name;
use crate::heap::snapshot::{LargeRow, Snapshot, TypeRow};
use crate::process::task_state::Activity;
use crate::profile::query::{Criteria, ProcessFilter, Viewer};
use crate::python::layout::Version;
use crate::sample::dump::ThreadStack;

/// Most clients that are sent stacks at a time, and most of them that do not see all processes.
const MAX_DUMPS: [usize; 2] = [8, 4];

/// The same of heaps that are read: each keeps a CPU busy.
const MAX_CENSUSES: [usize; 2] = [2, 1];

/// A client that has not fetched all of it by then is cut off.
const DUMP_LIMIT: Duration = Duration::from_mins(1);

/// The same of a heap: 1 GiB takes 2 s or so.
const CENSUS_LIMIT: Duration = Duration::from_mins(10);

/// Types in one message.
const TYPES_IN_MESSAGE: usize = 1000;

/// What goes to a client.
pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers clients that look into processes.
#[derive(Debug)]
pub(super) struct Inspector {
    asker: Asker,
    dumps: Places,
    censuses: Places,
    /// Processes whose heap is being read.
    targets: Arc<Mutex<HashSet<u32>>>,
}

/// A process whose heap is being read, until this is dropped.
#[derive(Debug)]
struct Target {
    targets: Arc<Mutex<HashSet<u32>>>,
    pid: u32,
}

impl Inspector {
    pub(super) fn new(asker: Asker) -> Self {
        Self {
            asker,
            dumps: Places::new(MAX_DUMPS),
            censuses: Places::new(MAX_CENSUSES),
            targets: Arc::default(),
        }
    }

    /// The stacks of the processes that are meant.
    pub(super) async fn dump(
        &self,
        filter: ProcessFilter,
    ) -> Result<Messages<proto::DumpStacksResponse>, Status> {
        let place = self.dumps.take(&filter.viewer)?;
        let answers = self.asker.stacks(filter).await;
        let to_messages = |stacks| vec![dump_response(stacks)];
        Ok(forward(answers, DUMP_LIMIT, place, to_messages).await?)
    }

    /// The objects of a process.
    pub(super) async fn census(
        &self,
        pid: u32,
        max_types: u32,
        viewer: Viewer,
    ) -> Result<Messages<proto::HeapCensusResponse>, Status> {
        let filter = ProcessFilter {
            include: Criteria {
                pids: vec![pid],
                ..Criteria::default()
            },
            viewer,
            ..ProcessFilter::default()
        };
        // First: whoever may not see it learns nothing of it, and takes nobody's place.
        let seen = self.asker.processes(filter.clone(), false).await;
        let is_profiled = |process: &ProcessInfo| process.state == ProcessState::Profiled;
        if !seen.ok_or(InspectError::Stopping)?.iter().any(is_profiled) {
            return Err(InspectError::NoMatch.into());
        }
        let place = self.censuses.take(&filter.viewer)?;
        let target = Target::enter(&self.targets, pid).ok_or(InspectError::Busy(pid))?;
        let answers = self.asker.census(filter).await;
        let to_messages = move |part| census_responses(part, max_types);
        Ok(forward(answers, CENSUS_LIMIT, (place, target), to_messages).await?)
    }
}

/// Places for everybody, of which only some are for those who do not see all processes: no user keeps root out.
#[derive(Debug)]
struct Places {
    all: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Places {
    fn new([n_all, n_others]: [usize; 2]) -> Self {
        Self {
            all: Arc::new(Semaphore::new(n_all)),
            others: Arc::new(Semaphore::new(n_others)),
        }
    }

    fn take(&self, viewer: &Viewer) -> Result<Place, InspectError> {
        let of = |places: &Arc<Semaphore>| {
            let place = places.clone().try_acquire_owned();
            place.map_err(|_| InspectError::TooMany)
        };
        let other = match viewer {
            Viewer::All => None,
            _ => Some(of(&self.others)?),
        };
        Ok(Place {
            _other: other,
            _all: of(&self.all)?,
        })
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
struct Place {
    _other: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
}

impl Target {
    fn enter(targets: &Arc<Mutex<HashSet<u32>>>, pid: u32) -> Option<Self> {
        let mut entered = targets.lock().unwrap_or_else(PoisonError::into_inner);
        entered.insert(pid).then(|| Self {
            targets: targets.clone(),
            pid,
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.remove(&self.pid);
    }
}

/// Sends what is answered until all of it is sent, the client leaves, or the time is over. An answer that is no, and comes
/// first, is that of the call. `places` are held meanwhile.
async fn forward<A: Send + 'static, M: Send + 'static>(
    mut answers: mpsc::Receiver<Result<A, InspectError>>,
    limit: Duration,
    places: impl Send + 'static,
    to_messages: impl Fn(A) -> Vec<M> + Send + Sync + 'static,
) -> Result<Messages<M>, InspectError> {
    let first = answers.recv().await.ok_or(InspectError::Stopping)??;
    let (messages, stream) = mpsc::channel(2);
    tokio::spawn(async move {
        let sending = async {
            let mut answer = Ok(first);
            loop {
                let batch = match answer {
                    Ok(answer) => to_messages(answer).into_iter().map(Ok).collect(),
                    Err(error) => vec![Err(Status::from(error))],
                };
                for message in batch {
                    if messages.send(message).await.is_err() {
                        return;
                    }
                }
                match answers.recv().await {
                    Some(next) => answer = next,
                    None => return,
                }
            }
        };
        tokio::select! {
            () = sending => {}
            () = messages.closed() => {}
            () = tokio::time::sleep(limit) => {
                let error = Status::deadline_exceeded("it was not fetched in time");
                let _ = messages.try_send(Err(error));
            }
        }
        // Whoever reads sees that nobody waits; only then the places are free.
        drop(answers);
        drop(places);
    });
    Ok(Box::pin(ReceiverStream::new(stream)))
}

impl From<InspectError> for Status {
    fn from(error: InspectError) -> Self {
        let message = error.to_string();
        match error {
            InspectError::NoMatch | InspectError::Gone(_) => Self::not_found(message),
            InspectError::Unsupported(_) => Self::failed_precondition(message),
            InspectError::Changed(_) => Self::aborted(message),
            InspectError::Unreadable(_) => Self::internal(message),
            InspectError::Busy(_) | InspectError::TooMany => Self::resource_exhausted(message),
            InspectError::Stopping => Self::unavailable(message),
        }
    }
}

fn dump_response(ProcessStacks { process, stacks }: ProcessStacks) -> proto::DumpStacksResponse {
    let facts = &process.facts;
    let mut response = proto::DumpStacksResponse {
        pid: facts.pid.0,
        start_time: Some(facts.started.into()),
        program: facts.program(),
        python_version: process.interpreter.version.to_string(),
        ..proto::DumpStacksResponse::default()
    };
    match stacks {
        Ok(dump) => {
            response.time = Some(dump.time.into());
            response.threads = dump.threads.into_iter().map(thread).collect();
            response.n_other_threads = dump.n_other_threads;
        }
        Err(error) => response.problem = error.to_string(),
    }
    response
}

fn thread(thread: ThreadStack) -> proto::ThreadStack {
    let state = match thread.activity {
        Activity::Running => proto::ThreadState::Running,
        Activity::Sleeping => proto::ThreadState::Sleeping,
        Activity::Uninterruptible => proto::ThreadState::Uninterruptible,
        Activity::Stopped => proto::ThreadState::Stopped,
    };
    let frames = thread.frames.iter().map(|frame| proto::StackFrame {
        function: frame.function.name.to_string(),
        file: frame.function.filename.to_string(),
        line: frame.line,
        start_line: frame.function.start_line,
    });
    proto::ThreadStack {
        tid: thread.tid.0,
        frames: frames.collect(),
        name: thread.name.into(),
        state: state.into(),
        wait_function: thread.wait_function,
        holds_gil: thread.holds_gil,
        is_uncertain: thread.is_uncertain,
    }
}

fn census_responses(part: CensusPart, max_types: u32) -> Vec<proto::HeapCensusResponse> {
    let (version, snapshot) = match part {
        CensusPart::Progress { n_done, n_all } => {
            let progress = proto::HeapProgress {
                done_bytes: n_done,
                all_bytes: n_all,
            };
            return vec![response(Part::Progress(progress))];
        }
        CensusPart::Heap { version, snapshot } => (version, snapshot),
    };
    let mut responses = vec![response(Part::Summary(summary(version, &snapshot)))];
    let n_types = match max_types {
        0 => snapshot.types.len(),
        max => snapshot.types.len().min(max as usize),
    };
    let types = snapshot.types[..n_types].chunks(TYPES_IN_MESSAGE);
    responses.extend(types.map(|rows| {
        let types = rows.iter().map(heap_type).collect();
        response(Part::Types(proto::HeapTypes { types }))
    }));
    responses
}

fn response(part: Part) -> proto::HeapCensusResponse {
    proto::HeapCensusResponse { part: Some(part) }
}

fn summary(version: Version, snapshot: &Snapshot) -> proto::HeapSummary {
    let total = snapshot.total();
    let not_read = &snapshot.not_read;
    proto::HeapSummary {
        python_version: version.to_string(),
        n_objects: total.n_objects,
        size_bytes: total.n_bytes,
        n_types: u32::try_from(snapshot.types.len()).unwrap_or(u32::MAX),
        read_bytes: snapshot.n_read,
        swapped_bytes: not_read.swapped,
        shared_bytes: not_read.shared,
        file_bytes: not_read.files,
        failed_bytes: not_read.failed,
        largest: snapshot.largest.iter().map(large_object).collect(),
    }
}

fn large_object(row: &LargeRow) -> proto::LargeObject {
    proto::LargeObject {
        r#type: full_name(&row.name.module, &row.name.qualname),
        address: row.address.0,
        size_bytes: row.n_bytes,
        length: row.length,
    }
}

fn heap_type(row: &TypeRow) -> proto::HeapType {
    proto::HeapType {
        name: full_name(&row.name.module, &row.name.qualname),
        n_objects: row.count.n_objects,
        size_bytes: row.count.n_bytes,
        n_tracked: row.count.n_tracked,
    }
}
