//! Walks a thread's Python stack from outside with the steps of `profiler_common::unwind`, within the bounds
//! that the kernel programs keep. Stacks caught in a frame switch are not repaired here: that takes the
//! registers of a sample.

use profiler_common::event::{MAX_PYTHON_FRAMES, PyFrame, PythonStatus, sample_flags};
use profiler_common::layout::PyLayout;
use profiler_common::process::ProcessEntry;
use profiler_common::unwind::python::{Step, Walk, WalkEnd, step};
use profiler_common::unwind::thread::{
    ListStep, ListWalk, MAX_LISTED, Thread, accept, gil, own_storage,
};
use profiler_common::unwind::{Fault, ReadUser, Window};

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    At(WalkEnd),
    /// At the bound of frames or steps.
    Full,
}

/// Most steps of a walk: each Python frame can have an entry frame of its own, and the end takes a step.
const MAX_STEPS: usize = 2 * MAX_PYTHON_FRAMES + 2;

/// The Python frames from `frame` on, leaf first.
pub fn frames(
    reader: &mut impl ReadUser,
    layout: &PyLayout,
    frame: u64,
    chunk: u64,
) -> (Vec<PyFrame>, Ended) {
    let (mut walk, mut window) = (Walk::new(frame, chunk), Window::new());
    let mut frames = Vec::new();
    for _ in 0..MAX_STEPS {
        match step(&mut walk, reader, &mut window, layout) {
            Step::Frame(_) if frames.len() == MAX_PYTHON_FRAMES => break,
            Step::Frame(frame) => frames.push(frame),
            Step::Skipped => {}
            Step::End(end) => return (frames, Ended::At(end)),
        }
    }
    (frames, Ended::Full)
}

/// The thread state of the thread with this thread pointer: from its own storage, else from the lists.
pub fn find_thread(
    reader: &mut impl ReadUser,
    process: &ProcessEntry,
    layout: &PyLayout,
    thread_pointer: u64,
) -> Result<Thread, PythonStatus> {
    let (mut thread, mut window) = (Thread::default(), Window::new());
    let fault = |Fault| PythonStatus::ThreadStateFault;
    let stored = own_storage(reader, process, thread_pointer)?;
    let state = match stored {
        Some(state) => state,
        None => listed(reader, process, layout, thread_pointer)?,
    };
    if !accept(
        reader,
        &mut window,
        layout,
        state,
        thread_pointer,
        &mut thread,
    )
    .map_err(fault)?
    {
        return Err(PythonStatus::NoThreadState);
    }
    thread.flags = match stored {
        Some(_) => sample_flags::THREAD_STATE_DIRECT,
        None => sample_flags::THREAD_STATE_LISTED,
    };
    gil(reader, &window, layout, process, &mut thread);
    Ok(thread)
}

/// The thread state that the interpreters' lists have for a thread.
pub fn listed(
    reader: &mut impl ReadUser,
    process: &ProcessEntry,
    layout: &PyLayout,
    thread_pointer: u64,
) -> Result<u64, PythonStatus> {
    let mut list = ListWalk::new(reader, layout, process.runtime)?;
    let mut ended = None;
    for _ in 0..MAX_LISTED {
        match list.step(reader, layout, thread_pointer) {
            ListStep::More => {}
            end @ (ListStep::Done | ListStep::Fault) => {
                ended = Some(end);
                break;
            }
        }
    }
    match list.result() {
        Some(_) if list.n_found > 1 => Err(PythonStatus::Ambiguous),
        Some(state) => Ok(state),
        None if ended.is_none() => Err(PythonStatus::ThreadListTruncated),
        None => Err(PythonStatus::NoThreadState),
    }
}
