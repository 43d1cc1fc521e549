//! The stacks of all Python threads of a process at one moment, read from outside without a pause.
//!
//! A thread that sleeps before and after, and did not run in between, stood still: its stack is exact. That of a thread which
//! runs is read until two readings in a row say the same; when they never do, the last one counts, and it is said.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use profiler_common::event::{PythonStatus, sample_flags};
use profiler_common::layout::ABSENT;
use profiler_common::unwind::python::WalkEnd;

use super::locals::{LocalsReader, n_unmoved};
use super::remote::{Listed, RemoteSampler, RemoteStack, listed_threads, raw_sample};
use super::symbolize::Symbolizer;
use crate::ids::{Pid, Tid};
use crate::process::facts;
use crate::process::memory::ProcessMemory;
use crate::process::program::ProgramId;
use crate::process::task_state::{Activity, TaskState};
use crate::process::thread_ids::ThreadIds;
use crate::profile::aggregate::ResolvedFrame;
use crate::profile::inspect::{
    FrameLocals, LocalsDetail, ProcessStacks, Stacks, ThreadStack, ThreadState,
};
use crate::profile::model::FrameKind;
use crate::python::native_ids;
use crate::python::process::PythonProcess;

/// How often the stack of a thread that runs is read until it is taken as it is. Each takes some 20 us.
const MAX_READINGS: usize = 50;

/// How often a stack of which a frame cannot be named is looked at again.
const MAX_LOOKS: usize = 10;

/// Most frames of all stacks together: those of 256 threads that are as deep as can be read.
const MAX_FRAMES: usize = 1 << 18;

/// Why there are no variables of any frame.
const NO_LAYOUT: &str = "how this version of CPython keeps them is not known";

/// Why there are no variables of a frame.
const MOVED: &str = "the thread ran on while they were read";

/// Why there are no stacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DumpError {
    /// It is not there any more.
    #[error("the process has ended")]
    Gone,
    /// What is known of it is of another program.
    #[error("the process runs another program now")]
    OtherProgram,
    /// There is no thread state that can be read.
    #[error("no thread state can be read: the interpreter is not initialised, or has ended")]
    NoThreads,
    /// There are thread states, and the interpreter does not say whose (before 3.11).
    #[error("which threads these are cannot be told: the records of its C library are not known")]
    UnknownThreads,
}

/// Reads the stacks of a process, and says whose they are. `is_over` is asked between threads: whether somebody still waits.
pub fn of_process(
    process: &Arc<PythonProcess>,
    detail: LocalsDetail,
    is_over: &dyn Fn() -> bool,
) -> ProcessStacks {
    let stacks = dump(process, detail, is_over);
    let facts = &process.facts;
    ProcessStacks {
        pid: facts.pid.0,
        start_time: facts.started,
        program: facts.program(),
        python_version: process.interpreter.version.to_string(),
        stacks: stacks.map_err(|error| error.to_string()),
    }
}

/// Reads the stacks of a process. `is_over` is asked between threads: whether somebody still waits.
pub fn dump(
    process: &Arc<PythonProcess>,
    detail: LocalsDetail,
    is_over: &dyn Fn() -> bool,
) -> Result<Stacks, DumpError> {
    let pid = process.pid;
    let program = ProgramId::of_process(pid).map_err(|_| DumpError::Gone)?;
    if !process.facts.is_there() {
        return Err(DumpError::Gone);
    }
    let memory = ProcessMemory::new(pid);
    let interpreter = &process.interpreter;
    let tids = facts::tids(pid).map_err(|_| DumpError::Gone)?;
    let listed = listed_threads(memory, &interpreter.layout.walk, interpreter.runtime);
    let listed = with_native_ids(process, memory, listed, &tids);
    let mut reading = Reading {
        process,
        memory,
        sampler: RemoteSampler::default(),
        thread_ids: ThreadIds::default(),
        // What it reads costs the profiles nothing.
        symbolizer: Symbolizer::of_process(process.clone()),
        detail,
        locals: LocalsReader::new(&memory, &interpreter.layout, detail),
    };
    let time = SystemTime::now();
    let mut threads: HashMap<Tid, ThreadStack> = HashMap::new();
    let mut n_frames = 0;
    for thread in &listed {
        if is_over() {
            break;
        }
        let Some(mut stack) = reading.thread(thread) else {
            continue;
        };
        if stack.frames.len() > MAX_FRAMES - n_frames {
            stack.frames.truncate(MAX_FRAMES - n_frames);
            stack.locals.truncate(MAX_FRAMES - n_frames);
            stack.is_truncated = true;
        }
        n_frames += stack.frames.len();
        // A state that is about to be another thread's, or another interpreter's, has no frame.
        let tid = Tid(stack.tid);
        let known = threads.get(&tid);
        if known.is_none_or(|known| known.frames.is_empty()) {
            threads.insert(tid, stack);
        }
    }
    match ProgramId::of_process(pid) {
        Ok(now) if now == program && process.facts.is_there() => {}
        Ok(_) if process.facts.is_there() => return Err(DumpError::OtherProgram),
        _ => return Err(DumpError::Gone),
    }
    if threads.is_empty() {
        let is_known = listed.iter().all(|thread| thread.native_thread_id != 0);
        return Err(if is_known {
            DumpError::NoThreads
        } else {
            DumpError::UnknownThreads
        });
    }
    let n_other = tids.iter().filter(|tid| !threads.contains_key(tid)).count();
    let mut threads: Vec<ThreadStack> = threads.into_values().collect();
    threads.sort_by_key(|thread| (thread.tid != pid.0, thread.tid));
    Ok(Stacks {
        time,
        threads,
        n_other_threads: u32::try_from(n_other).unwrap_or(u32::MAX),
    })
}

/// The same thread states, with the ids of their threads also where the interpreter does not have them (before 3.11).
fn with_native_ids(
    process: &PythonProcess,
    memory: ProcessMemory,
    mut listed: Vec<Listed>,
    tids: &[Tid],
) -> Vec<Listed> {
    if process.interpreter.layout.walk.tstate_native_thread_id != ABSENT {
        return listed;
    }
    let idents: HashSet<u64> = listed.iter().map(|thread| thread.thread_id).collect();
    let inner: HashSet<Tid> = ThreadIds::inner_ids(process.pid, tids);
    let found = native_ids::of_idents(&memory, &idents, &inner);
    let only = inner.iter().next().filter(|_| inner.len() == 1);
    for thread in &mut listed {
        let tid = found.get(&thread.thread_id).or(only);
        thread.native_thread_id = tid.map_or(0, |tid| tid.0);
    }
    listed
}

struct Reading<'a> {
    process: &'a Arc<PythonProcess>,
    memory: ProcessMemory,
    sampler: RemoteSampler,
    thread_ids: ThreadIds,
    symbolizer: Symbolizer,
    detail: LocalsDetail,
    /// `None`: they were not asked for, or cannot be read.
    locals: Option<LocalsReader<'a, ProcessMemory>>,
}

impl Reading<'_> {
    /// `None`: the thread has ended, or has no state any more.
    fn thread(&mut self, listed: &Listed) -> Option<ThreadStack> {
        let mut stack = self.look(listed)?;
        // A call that was just being made or ended: what it was of cannot be read.
        for _ in 0..MAX_LOOKS {
            let mut frames = stack.frames.iter();
            let has_moved = stack.locals.iter().any(|it| &*it.problem == MOVED);
            if stack.state != ThreadState::Running
                || (!has_moved && frames.all(|frame| frame.function.kind == FrameKind::Python))
            {
                return Some(stack);
            }
            stack = self.look(listed)?;
        }
        // That variables are missing is said where they are.
        let is_named = |frame: &ResolvedFrame| frame.function.kind == FrameKind::Python;
        stack.is_uncertain |=
            stack.state == ThreadState::Running && !stack.frames.iter().all(is_named);
        Some(stack)
    }

    fn look(&mut self, listed: &Listed) -> Option<ThreadStack> {
        let pid = self.process.pid;
        let tid = self
            .thread_ids
            .outer(pid, Tid(listed.native_thread_id))
            .filter(|tid| tid.0 != 0)?;
        let (stack, task, is_uncertain) = self.settled(pid, tid, listed)?;
        let flags = stack.thread.flags;
        let knows_gil = flags & sample_flags::GIL_KNOWN != 0;
        let status = match stack.end {
            _ if stack.frames.is_empty() => PythonStatus::NoFrame,
            Some(WalkEnd::Complete) => PythonStatus::Complete,
            Some(WalkEnd::FrameSwitch) => PythonStatus::FrameSwitch,
            Some(WalkEnd::Fault) => PythonStatus::FrameFault,
            Some(WalkEnd::Loop) => PythonStatus::FrameLoop,
            None => PythonStatus::Truncated,
        };
        let read = self.locals(pid, tid, listed, &stack, &task);
        let mut sample = raw_sample(self.process, tid, &stack.thread, stack.frames.clone());
        sample.python_status = status;
        let resolved = self.symbolizer.resolve(&sample)?;
        let mut frames = resolved.frames;
        let is_empty = frames
            .iter()
            .all(|frame| frame.function.kind != FrameKind::Python);
        if is_empty && status == PythonStatus::NoFrame {
            frames.clear();
        }
        Some(ThreadStack {
            tid: tid.0,
            name: resolved.labels.thread_name.text.clone(),
            wait_function: if task.activity == Activity::Running {
                String::new()
            } else {
                TaskState::wait_function(pid, tid)
            },
            state: thread_state(task.activity),
            holds_gil: knows_gil.then_some(flags & sample_flags::GIL_HELD != 0),
            locals: self.of_shown(&stack, read, frames.len()),
            frames,
            is_uncertain,
            is_truncated: matches!(
                status,
                PythonStatus::Truncated | PythonStatus::FrameFault | PythonStatus::FrameLoop
            ),
        })
    }

    /// The variables of each frame of a stack, if they were asked for. Of a frame that was left while they were read there
    /// are none: others may be in its place.
    fn locals(
        &mut self,
        pid: Pid,
        tid: Tid,
        listed: &Listed,
        stack: &RemoteStack,
        task: &TaskState,
    ) -> Vec<FrameLocals> {
        let Some(reader) = &mut self.locals else {
            let n_frames = match self.detail {
                LocalsDetail::None => 0,
                LocalsDetail::Short | LocalsDetail::Long => stack.frames.len(),
            };
            return vec![without(NO_LAYOUT); n_frames];
        };
        let mut locals = reader.read(stack);
        let stood_still = TaskState::read(pid, tid).is_ok_and(|now| now.stood_still_since(task));
        if !stood_still {
            let now = self.sampler.read_stack(self.memory, self.process, listed);
            let n_same = now.map_or(0, |now| n_unmoved(stack, &now));
            let n_moved = locals.len().saturating_sub(n_same);
            for frame in &mut locals[..n_moved] {
                *frame = without(MOVED);
            }
        }
        locals
    }

    /// Those of the frames that are shown, which come in the same order; none are for the remark at the root.
    fn of_shown(
        &mut self,
        stack: &RemoteStack,
        locals: Vec<FrameLocals>,
        n_shown: usize,
    ) -> Vec<FrameLocals> {
        if locals.is_empty() {
            return locals;
        }
        let generation = self.process.generation;
        let mut shown: Vec<FrameLocals> = Vec::new();
        for (frame, locals) in stack.frames.iter().zip(locals) {
            if self.symbolizer.shows(generation, frame) {
                shown.push(locals);
            }
        }
        shown.resize(n_shown, FrameLocals::default());
        shown
    }

    /// A stack that was the same for a moment at least, if there is such a moment, and what the thread did then.
    fn settled(
        &mut self,
        pid: Pid,
        tid: Tid,
        listed: &Listed,
    ) -> Option<(RemoteStack, TaskState, bool)> {
        let mut last: Option<RemoteStack> = None;
        for _ in 0..MAX_READINGS {
            let before = TaskState::read(pid, tid).ok()?;
            let stack = self.sampler.read_stack(self.memory, self.process, listed)?;
            let after = TaskState::read(pid, tid).ok()?;
            if after.stood_still_since(&before) {
                return Some((stack, after, false));
            }
            let is_whole =
                stack.is_same && (stack.end == Some(WalkEnd::Complete) || stack.frames.is_empty());
            if is_whole && last.as_ref().is_some_and(|last| is_alike(last, &stack)) {
                return Some((stack, after, false));
            }
            // What is whole is better than what is not.
            if is_whole || last.is_none() {
                last = Some(stack);
            }
        }
        let task = TaskState::read(pid, tid).ok()?;
        Some((last?, task, true))
    }
}

fn without(problem: &str) -> FrameLocals {
    FrameLocals {
        variables: Vec::new(),
        problem: problem.into(),
    }
}

/// Whether two readings of a stack show the same calls; the leaf may have gone on.
fn is_alike(one: &RemoteStack, other: &RemoteStack) -> bool {
    let calls = |stack: &RemoteStack| -> Vec<(u64, u64)> {
        let frames = stack.frames.iter().enumerate();
        frames
            .map(|(idx, frame)| (frame.code, if idx == 0 { 0 } else { frame.instr }))
            .collect()
    };
    one.thread.frame == other.thread.frame && calls(one) == calls(other)
}

const fn thread_state(activity: Activity) -> ThreadState {
    match activity {
        Activity::Running => ThreadState::Running,
        Activity::Sleeping => ThreadState::Sleeping,
        Activity::Uninterruptible => ThreadState::Uninterruptible,
        Activity::Stopped => ThreadState::Stopped,
    }
}
