//! `DumpStacks` and `HeapCensus`: how many may look at a time, and what they are told.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::query::{Asker, CensusPart, InspectError, ProcessInfo, ProcessState};
use crate::generated::pyagent::v1 as proto;
use crate::generated::pyagent::v1::heap_census_response::Part;
use crate::profile::inspect::{
    Census, CensusObject, CensusType, FrameLocals, LocalVariable, LocalsDetail, ProcessStacks,
    ThreadStack, ThreadState,
};
use crate::profile::query::{Criteria, ProcessFilter, Viewer};

/// Most clients that are sent stacks at a time, and most of them that do not see all processes.
const MAX_DUMPS: [usize; 2] = [8, 4];

/// The same of heaps that are read: each keeps a CPU busy.
const MAX_CENSUSES: [usize; 2] = [2, 1];

/// A client that has not fetched all of it by then is cut off.
const DUMP_LIMIT: Duration = Duration::from_mins(1);

/// The same of a heap: 1 GiB takes 2 s or so.
const CENSUS_LIMIT: Duration = Duration::from_mins(10);

/// Bytes of a message, when it is not one item alone: gRPC clients take 4 MiB unless they are told to take more.
const MESSAGE_BYTES: usize = 1 << 20;

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
        locals: LocalsDetail,
    ) -> Result<Messages<proto::DumpStacksResponse>, Status> {
        let place = self.dumps.take(&filter.viewer)?;
        let answers = self.asker.stacks(filter, locals).await;
        let has_locals = locals != LocalsDetail::None;
        let to_messages = move |process| dump_responses(process, has_locals);
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
async fn forward<A: Send + 'static, M: Send + 'static, I: Iterator<Item = M> + Send>(
    mut answers: mpsc::Receiver<Result<A, InspectError>>,
    limit: Duration,
    places: impl Send + 'static,
    to_messages: impl Fn(A) -> I + Send + Sync + 'static,
) -> Result<Messages<M>, InspectError> {
    let first = answers.recv().await.ok_or(InspectError::Stopping)??;
    let (messages, stream) = mpsc::channel(2);
    tokio::spawn(async move {
        let sending = async {
            let mut answer: Result<A, InspectError> = Ok(first);
            loop {
                match answer {
                    Ok(answer) => {
                        for message in to_messages(answer) {
                            if messages.send(Ok(message)).await.is_err() {
                                return;
                            }
                        }
                    }
                    Err(error) => {
                        let _ = messages.send(Err(Status::from(error))).await;
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

fn dump_responses(
    process: ProcessStacks,
    has_locals: bool,
) -> impl Iterator<Item = proto::DumpStacksResponse> {
    let mut header = proto::DumpStacksResponse {
        pid: process.pid,
        start_time: Some(process.start_time.into()),
        program: process.program,
        python_version: process.python_version,
        has_locals,
        ..proto::DumpStacksResponse::default()
    };
    let threads = match process.stacks {
        Ok(stacks) => {
            header.time = Some(stacks.time.into());
            header.n_other_threads = stacks.n_other_threads;
            stacks.threads
        }
        Err(problem) => {
            header.problem = problem;
            Vec::new()
        }
    };
    // One without threads has a message too.
    let mut batches = batches(threads.into_iter().map(thread)).peekable();
    let mut is_first = true;
    std::iter::from_fn(move || {
        let threads = match batches.next() {
            Some(threads) => threads,
            None if is_first => Vec::new(),
            None => return None,
        };
        is_first = false;
        Some(proto::DumpStacksResponse {
            threads,
            has_more: batches.peek().is_some(),
            ..header.clone()
        })
    })
}

/// Items by messages of some [`MESSAGE_BYTES`].
fn batches<T: Message>(items: impl Iterator<Item = T>) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.peekable();
    std::iter::from_fn(move || {
        let mut batch = vec![items.next()?];
        let mut n_bytes = batch[0].encoded_len();
        while let Some(item) = items.next_if(|item| n_bytes + item.encoded_len() <= MESSAGE_BYTES) {
            n_bytes += item.encoded_len();
            batch.push(item);
        }
        Some(batch)
    })
}

fn thread(thread: ThreadStack) -> proto::ThreadStack {
    let state = match thread.state {
        ThreadState::Running => proto::ThreadState::Running,
        ThreadState::Sleeping => proto::ThreadState::Sleeping,
        ThreadState::Uninterruptible => proto::ThreadState::Uninterruptible,
        ThreadState::Stopped => proto::ThreadState::Stopped,
    };
    let mut n_bytes = 0;
    let frames = thread.frames.iter().map_while(|frame| {
        let frame = proto::StackFrame {
            function: frame.function.name.to_string(),
            file: frame.function.filename.to_string(),
            line: frame.line,
            start_line: frame.function.start_line,
            ..proto::StackFrame::default()
        };
        n_bytes += frame.encoded_len();
        (n_bytes <= MESSAGE_BYTES).then_some(frame)
    });
    let mut frames: Vec<proto::StackFrame> = frames.collect();
    add_locals(
        &mut frames,
        thread.locals,
        MESSAGE_BYTES.saturating_sub(n_bytes),
    );
    proto::ThreadStack {
        tid: thread.tid,
        name: thread.name.into(),
        state: state.into(),
        wait_function: thread.wait_function,
        holds_gil: thread.holds_gil,
        is_uncertain: thread.is_uncertain,
        is_truncated: thread.is_truncated || frames.len() < thread.frames.len(),
        frames,
    }
}

/// Adds the variables of each frame, as long as they fit into so many bytes.
fn add_locals(frames: &mut [proto::StackFrame], locals: Vec<FrameLocals>, mut n_bytes_left: usize) {
    const TOO_LARGE: &str = "they are too large for a message";
    for (frame, locals) in frames.iter_mut().zip(locals) {
        let with_locals = proto::StackFrame {
            locals: locals.variables.into_iter().map(local).collect(),
            locals_problem: locals.problem.into(),
            ..proto::StackFrame::default()
        };
        let n_bytes = with_locals.encoded_len();
        if n_bytes <= n_bytes_left {
            n_bytes_left -= n_bytes;
            frame.locals = with_locals.locals;
            frame.locals_problem = with_locals.locals_problem;
        } else {
            TOO_LARGE.clone_into(&mut frame.locals_problem);
        }
    }
}

fn local(variable: LocalVariable) -> proto::LocalVariable {
    let said = proto::LocalVariable {
        name: variable.name.into(),
        is_argument: variable.is_argument,
        ..proto::LocalVariable::default()
    };
    match variable.value {
        Some(value) => proto::LocalVariable {
            r#type: value.type_name.into(),
            value: Some(value.text),
            is_truncated: value.is_truncated,
            ..said
        },
        None => said,
    }
}

fn census_responses(
    part: CensusPart,
    max_types: u32,
) -> impl Iterator<Item = proto::HeapCensusResponse> {
    let (first, types) = match part {
        CensusPart::Progress { n_done, n_all } => {
            let progress = proto::HeapProgress {
                done_bytes: n_done,
                all_bytes: n_all,
            };
            (Part::Progress(progress), Vec::new())
        }
        CensusPart::Heap(mut census) => {
            let summary = summary(&census);
            if max_types > 0 {
                census.types.truncate(max_types as usize);
            }
            (Part::Summary(summary), census.types)
        }
    };
    let types = batches(types.into_iter().map(heap_type))
        .map(|types| Part::Types(proto::HeapTypes { types }));
    std::iter::once(first).chain(types).map(response)
}

fn response(part: Part) -> proto::HeapCensusResponse {
    proto::HeapCensusResponse { part: Some(part) }
}

fn summary(census: &Census) -> proto::HeapSummary {
    let sum = |number: fn(&CensusType) -> u64| census.types.iter().map(number).sum();
    proto::HeapSummary {
        python_version: census.python_version.clone(),
        n_objects: sum(|row| row.n_objects),
        size_bytes: sum(|row| row.n_bytes),
        n_types: u32::try_from(census.types.len()).unwrap_or(u32::MAX),
        read_bytes: census.n_read,
        swapped_bytes: census.n_swapped,
        shared_bytes: census.n_shared,
        file_bytes: census.n_of_files,
        failed_bytes: census.n_failed,
        largest: census.largest.iter().map(large_object).collect(),
    }
}

fn large_object(object: &CensusObject) -> proto::LargeObject {
    proto::LargeObject {
        r#type: object.type_name.clone(),
        address: object.address,
        size_bytes: object.n_bytes,
        length: object.length,
    }
}

fn heap_type(row: CensusType) -> proto::HeapType {
    proto::HeapType {
        name: row.name,
        n_objects: row.n_objects,
        size_bytes: row.n_bytes,
        n_tracked: row.n_tracked,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::profile::aggregate::{ResolvedFrame, ResolvedFunction};
    use crate::profile::inspect::Stacks;

    fn stack(tid: u32, n_frames: usize, name: &str) -> ThreadStack {
        let function = Arc::new(ResolvedFunction::python(name, "/srv/app.py", 1));
        ThreadStack {
            tid,
            name: "worker".into(),
            state: ThreadState::Sleeping,
            wait_function: String::new(),
            holds_gil: None,
            frames: vec![
                ResolvedFrame {
                    function,
                    line: 7,
                    address: 0
                };
                n_frames
            ],
            locals: Vec::new(),
            is_uncertain: false,
            is_truncated: false,
        }
    }

    fn responses(threads: Vec<ThreadStack>) -> Vec<proto::DumpStacksResponse> {
        let process = ProcessStacks {
            pid: 5,
            start_time: SystemTime::UNIX_EPOCH,
            program: "python3 app.py".into(),
            python_version: "3.14.0".into(),
            stacks: Ok(Stacks {
                time: SystemTime::UNIX_EPOCH,
                threads,
                n_other_threads: 2,
            }),
        };
        dump_responses(process, false).collect()
    }

    #[test]
    fn many_threads_take_several_messages_and_none_is_lost() {
        let all = responses((0..300).map(|tid| stack(tid, 1000, "handle")).collect());
        assert!(all.len() > 3);
        let (last, before) = all.split_last().unwrap();
        assert!(before.iter().all(|message| message.has_more) && !last.has_more);
        for message in &all {
            assert!(message.encoded_len() < MESSAGE_BYTES + 1000);
            assert_eq!((message.pid, message.n_other_threads), (5, 2));
        }
        let threads: Vec<_> = all.iter().flat_map(|message| &message.threads).collect();
        assert!(threads.iter().map(|thread| thread.tid).eq(0..300));
        assert!(
            threads
                .iter()
                .all(|thread| thread.frames.len() == 1000 && !thread.is_truncated)
        );
        assert_eq!(responses(vec![stack(1, 3, "f")]).len(), 1);
        assert_eq!(responses(Vec::new()).len(), 1);
    }

    #[test]
    fn a_stack_that_no_message_holds_is_cut_and_says_so() {
        let all = responses(vec![stack(1, 1000, &"long".repeat(4000)), stack(2, 1, "f")]);
        let threads: Vec<_> = all.iter().flat_map(|message| &message.threads).collect();
        assert!(threads[0].is_truncated && (50..80).contains(&threads[0].frames.len()));
        assert!(!threads[1].is_truncated);
        assert!(
            all.iter()
                .all(|message| message.encoded_len() < MESSAGE_BYTES + 1000)
        );
    }
}
