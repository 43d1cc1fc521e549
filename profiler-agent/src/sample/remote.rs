//! Samples without the kernel programs: stacks read from outside, through the same steps of unwinding.
//!
//! For hosts where BPF is not allowed. Only threads that run are sampled, as with the kernel's timer. The
//! target is not paused, so a walk can tear: it counts only if it is complete and the thread's frame is the
//! same before and after. Threads are matched by `native_thread_id` (3.11+), which is the id that the process's own
//! pid namespace has for the thread; older versions have none, and there the holder of the GIL alone can be told to
//! run.

use profiler_common::event::{
    KernelStatus, MAX_PYTHON_FRAMES, PyFrame, PythonStatus, sample_flags,
};
use profiler_common::layout::{ABSENT, PyLayout};
use profiler_common::process::ProcessEntry;
use profiler_common::unwind::python::{Step, Walk, WalkEnd, step};
use profiler_common::unwind::thread::{MAX_LISTED, Thread, accept, gil};
use profiler_common::unwind::{ReadUser as _, Window};

use super::decode::RawSample;
use crate::ids::{Address, Pid, Tid};
use crate::process::facts::Stat;
use crate::process::memory::{ProcessMemory, RemoteReader};
use crate::process::thread_ids::ThreadIds;
use crate::python::process::PythonProcess;

/// Reads the stacks of processes from outside.
#[derive(Debug, Default)]
pub struct RemoteSampler {
    window: Box<Window>,
    thread_ids: ThreadIds,
    /// Walks that tore, and were dropped.
    pub n_torn: u64,
}

/// A thread state in the interpreter's list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    pub(super) state: u64,
    pub(super) thread_id: u64,
    /// Thread id in the process's own pid namespace; 0 before 3.11.
    pub(super) native_thread_id: u32,
}

/// A stack as it was read.
#[derive(Debug, Clone)]
pub(super) struct RemoteStack {
    pub(super) thread: Thread,
    /// Leaf first.
    pub(super) frames: Vec<PyFrame>,
    /// Where each of them lies.
    pub(super) addresses: Vec<Address>,
    /// How the walk ended; `None`: at the bound.
    pub(super) end: Option<WalkEnd>,
    /// The thread had the same frame after the walk.
    pub(super) is_same: bool,
}

impl RemoteSampler {
    /// One sample of each running Python thread of a process; `period` is what each of them stands for.
    pub fn sample(&mut self, process: &PythonProcess, time_ns: u64, period: u64) -> Vec<RawSample> {
        let memory = ProcessMemory::new(process.pid);
        let layout = &process.interpreter.layout.walk;
        let mut samples = Vec::new();
        for listed in listed_threads(memory, layout, process.interpreter.runtime) {
            let has_tid = layout.tstate_native_thread_id != ABSENT;
            let (tid, thread_started_ns) = if has_tid {
                let own = self
                    .thread_ids
                    .outer(process.pid, Tid(listed.native_thread_id));
                let running = own.and_then(|tid| Some((tid, running_since(process.pid, tid)?)));
                match running {
                    Some(running) => running,
                    None => continue,
                }
            } else {
                // Whichever thread it is.
                (Tid(process.pid.0), 0)
            };
            let Some(RemoteStack { thread, frames, .. }) =
                self.complete_stack(memory, process, &listed)
            else {
                continue;
            };
            let holds_gil = thread.flags & sample_flags::GIL_HELD != 0;
            if !has_tid && !holds_gil {
                continue;
            }
            samples.push(RawSample {
                time_ns,
                thread_started_ns,
                period,
                ..raw_sample(process, tid, &thread, frames)
            });
        }
        samples
    }

    /// The complete stack of a thread; `None` when it has none or the walk tore.
    fn complete_stack(
        &mut self,
        memory: ProcessMemory,
        process: &PythonProcess,
        listed: &Listed,
    ) -> Option<RemoteStack> {
        let stack = self.read_stack(memory, process, listed)?;
        if stack.thread.frame == 0 {
            return None;
        }
        if stack.end != Some(WalkEnd::Complete) || !stack.is_same {
            self.n_torn += 1;
            return None;
        }
        Some(stack)
    }

    /// The stack of a thread as far as it can be read; `None`: its state has gone.
    pub(super) fn read_stack(
        &mut self,
        memory: ProcessMemory,
        process: &PythonProcess,
        listed: &Listed,
    ) -> Option<RemoteStack> {
        let layout = &process.interpreter.layout.walk;
        let mut reader = RemoteReader(&memory);
        let entry = ProcessEntry {
            runtime: process.interpreter.runtime.0,
            ..ProcessEntry::default()
        };
        let mut thread = Thread::default();
        let window = &mut self.window;
        let (state, id) = (listed.state, listed.thread_id);
        if !matches!(
            accept(&mut reader, window, layout, state, id, &mut thread),
            Ok(true)
        ) {
            return None;
        }
        gil(&mut reader, window, layout, &entry, &mut thread);
        let (end, frames, addresses) = walk(&mut reader, window, layout, &thread);
        let mut after = Thread::default();
        let is_same = matches!(
            accept(&mut reader, window, layout, state, id, &mut after),
            Ok(true)
        ) && after.frame == thread.frame;
        Some(RemoteStack {
            thread,
            frames,
            addresses,
            end,
            is_same,
        })
    }
}

/// What the kernel programs would say of such a stack, but for the time.
pub(super) fn raw_sample(
    process: &PythonProcess,
    tid: Tid,
    thread: &Thread,
    frames: Vec<PyFrame>,
) -> RawSample {
    RawSample {
        time_ns: 0,
        generation: process.generation,
        pid: process.pid,
        tid,
        thread_started_ns: 0,
        cpu: 0,
        source: 0,
        period: 0,
        address: Address(0),
        n_bytes: 0,
        user_ip: Address(0),
        thread_state: Address(thread.state),
        thread_ident: thread.ident,
        frame: Address(thread.frame),
        flags: thread.flags,
        python_status: PythonStatus::Complete,
        kernel_status: KernelStatus::UserMode,
        comm: comm_bytes(&process.facts.comm),
        registers: None,
        python: frames,
        kernel: Vec::new(),
    }
}

/// How the walk ended (`None`: at the bound), the frames, leaf first, and where they lie.
fn walk(
    reader: &mut RemoteReader<'_, ProcessMemory>,
    window: &mut Window,
    layout: &PyLayout,
    thread: &Thread,
) -> (Option<WalkEnd>, Vec<PyFrame>, Vec<Address>) {
    let mut walk = Walk::new(thread.frame, thread.datastack_chunk);
    let mut frames = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..2 * MAX_PYTHON_FRAMES + 2 {
        let address = Address(walk.frame());
        match step(&mut walk, reader, window, layout) {
            Step::Frame(frame) if frames.len() < MAX_PYTHON_FRAMES => {
                frames.push(frame);
                addresses.push(address);
            }
            Step::Frame(_) => break,
            Step::Skipped => {}
            Step::End(end) => return (Some(end), frames, addresses),
        }
    }
    (None, frames, addresses)
}

/// The thread states of all interpreters, at most [`MAX_LISTED`].
pub(super) fn listed_threads(
    memory: ProcessMemory,
    layout: &PyLayout,
    runtime: Address,
) -> Vec<Listed> {
    let mut reader = RemoteReader(&memory);
    let mut listed = Vec::new();
    let head = runtime.add(layout.runtime_interpreters_head.into());
    let mut interp = reader.u64(head.0).unwrap_or(0);
    let mut n_steps = 0;
    while interp != 0 && n_steps < MAX_LISTED {
        let head = interp.wrapping_add(layout.interp_threads_head.into());
        let mut state = reader.u64(head).unwrap_or(0);
        while state != 0 && n_steps < MAX_LISTED {
            n_steps += 1;
            let word = |reader: &mut RemoteReader<'_, ProcessMemory>, offset: u16| {
                reader.u64(state.wrapping_add(offset.into())).unwrap_or(0)
            };
            let native_thread_id = match layout.tstate_native_thread_id {
                ABSENT => 0,
                offset => word(&mut reader, offset) as u32,
            };
            let thread_id = word(&mut reader, layout.tstate_thread_id);
            listed.push(Listed {
                state,
                thread_id,
                native_thread_id,
            });
            state = word(&mut reader, layout.tstate_next);
        }
        n_steps += 1;
        interp = reader
            .u64(interp.wrapping_add(layout.interp_next.into()))
            .unwrap_or(0);
    }
    listed
}

/// When a thread that runs began, in nanoseconds since boot; `None`: it does not run.
fn running_since(pid: Pid, tid: Tid) -> Option<u64> {
    let stat = Stat::read(&format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    (stat.state == 'R').then(|| stat.started_ns())
}

fn comm_bytes(comm: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (byte, from) in bytes.iter_mut().zip(comm.bytes().take(15)) {
        *byte = from;
    }
    bytes
}
