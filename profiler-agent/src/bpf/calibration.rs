//! Looks at threads of this process with a kernel program, to learn [`Offsets`] where the kernel has no BTF.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aya::maps::{Array, MapData, MapError};
use aya::programs::{ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfLoader, Pod};
use profiler_common::calibration::{N_PEEKS, PEEK_BYTES, Peek};
use rustix::time::{ClockId, clock_gettime};

use crate::kernel::calibration::{
    Ambiguous, Began, Number, STACK_BYTES, ThreadFacts, Votes, are_equal, are_stacks,
    living_threads, only, places_of, places_of_start, pointers, process_id_beside,
    registers_of_exit,
};
use crate::kernel::offsets::Offsets;

/// The program's object file, linked into the binary.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pyagent-calibration"));

const PROGRAM: &str = "calibrate";

/// Threads that are looked at. Each has other facts, and others beside it.
const N_THREADS: usize = 4;

/// How long the kernel may take until a thread that has ended was looked at.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Long enough for a thread that sleeps to be switched out.
const SWITCH_TIME: Duration = Duration::from_millis(1);

/// How often what is missing is looked for: threads of the process can come and go meanwhile.
const N_TRIES: u32 = 40;

/// Why the offsets could not be learned.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The object was refused.
    #[error("the kernel refused the calibration program: {0}")]
    Object(#[from] aya::EbpfError),
    /// The program was refused.
    #[error("the kernel refused the calibration program: {0}")]
    Program(#[from] ProgramError),
    /// The map could not be used.
    #[error("map: {0}")]
    Map(#[from] MapError),
    /// The object lacks a part.
    #[error("the calibration object has no {0}: rebuild pyagent")]
    Part(&'static str),
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The program did not run.
    #[error("the kernel did not report the end of a thread")]
    NotReported,
    /// A fact was found at no place, or at several.
    #[error(transparent)]
    Ambiguous(#[from] Ambiguous),
}

/// A look as the map holds it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct PeekValue(Peek);

// SAFETY: `repr(C)` and `Copy`, integers without padding; written only by this program and by the kernel program
// built from the same definition.
unsafe impl Pod for PeekValue {}

/// Learns the offsets. Needs the rights to load programs; takes some milliseconds and threads.
pub fn calibrate() -> Result<Offsets, CalibrationError> {
    let mut calibration = Calibration::load()?;
    let mut known = Known::default();
    let mut result = calibration.run(&mut known);
    for _ in 1..N_TRIES {
        match result {
            Err(CalibrationError::Ambiguous(_)) => result = calibration.run(&mut known),
            Ok(_) | Err(_) => break,
        }
    }
    result
}

/// What was learned in the tries so far.
#[derive(Default)]
struct Known {
    thread_pointers: Votes,
    /// Thread id and process id.
    ids: Option<(u32, u32)>,
    /// The pointer to the signal structure, and the number of living threads there.
    signal: Option<(u32, u32)>,
    /// The pointer to the kernel stack, and the registers there.
    stack: Option<(u32, u32)>,
    /// When a thread began.
    start: Option<u32>,
}

/// The attached program, and its map.
struct Calibration {
    _ebpf: Ebpf,
    peeks: Array<MapData, PeekValue>,
}

/// What was seen of a thread that has ended.
struct Seen {
    facts: ThreadFacts,
    peeks: Vec<Peek>,
}

impl Seen {
    /// Looks that lie side by side, as far as they could be read.
    fn structure(&self) -> Vec<u8> {
        let read = self.peeks.iter().take_while(|peek| peek.is_read != 0);
        read.flat_map(|peek| peek.bytes).collect()
    }
}

impl Calibration {
    fn load() -> Result<Self, CalibrationError> {
        let agent_pid = std::process::id();
        let mut ebpf = EbpfLoader::new()
            .override_global("AGENT_PID", &agent_pid, true)
            .load(OBJECT)?;
        let program = ebpf
            .program_mut(PROGRAM)
            .ok_or(CalibrationError::Part(PROGRAM))?;
        let program: &mut RawTracePoint = program.try_into()?;
        program.load()?;
        program.attach("sched_process_exit")?;
        let peeks = ebpf
            .take_map("PEEKS")
            .ok_or(CalibrationError::Part("PEEKS"))?;
        Ok(Self {
            peeks: Array::try_from(peeks)?,
            _ebpf: ebpf,
        })
    }

    fn run(&mut self, known: &mut Known) -> Result<Offsets, CalibrationError> {
        let side_by_side: Vec<Peek> = (0..N_PEEKS)
            .map(|idx| Peek::at(idx * PEEK_BYTES as u32))
            .collect();
        let seen = self.look(&side_by_side)?;
        let structures: Vec<Vec<u8>> = seen.iter().map(Seen::structure).collect();
        let tasks: Vec<&[u8]> = structures.iter().map(Vec::as_slice).collect();
        let agent_pid = std::process::id();
        for (seen, task) in seen.iter().zip(&tasks) {
            let thread_pointer = seen.facts.thread_pointer;
            known
                .thread_pointers
                .add(&places_of(&[(task, thread_pointer)]));
        }
        if known.ids.is_none() {
            let tid = only("thread id", &places(&seen, &tasks, |facts| facts.tid))?;
            let pids = places(&seen, &tasks, |_| agent_pid);
            known.ids = Some((tid, process_id_beside(tid, &pids)?));
        }
        if known.start.is_none() {
            let began = seen.iter().map(|seen| seen.facts.began);
            let expected: Vec<_> = tasks.iter().copied().zip(began).collect();
            known.start = only("start", &places_of_start(&expected)).ok();
        }
        if known.signal.is_none() {
            known.signal = Some(self.signal(&pointers(&tasks, are_equal))?);
        }
        if known.stack.is_none() {
            known.stack = Some(self.stack(&pointers(&tasks, are_stacks))?);
        }
        let thread_pointer = known.thread_pointers.winner("thread pointer")?;
        let missing = |what| Ambiguous { what, n_found: 0 };
        let (pid, tgid) = known.ids.ok_or(missing("ids"))?;
        let (signal, signal_live) = known.signal.ok_or(missing("signal structure"))?;
        let (stack, stack_registers) = known.stack.ok_or(missing("kernel stack"))?;
        Ok(Offsets {
            thread_pointer,
            pid,
            tgid,
            signal,
            signal_live,
            // Threads are told apart by their ids alone where it is not found.
            start: known.start.unwrap_or(0),
            stack,
            stack_registers,
        })
    }

    /// Which of the pointers leads to the number of living threads, and where it lies there.
    fn signal(&mut self, candidates: &[u32]) -> Result<(u32, u32), CalibrationError> {
        let mut found = Vec::new();
        for chunk in candidates.chunks(N_PEEKS as usize) {
            let peeks: Vec<Peek> = chunk
                .iter()
                .map(|offset| Peek::through(*offset, 0))
                .collect();
            let seen = self.look(&peeks)?;
            for (idx, offset) in chunk.iter().enumerate() {
                let behind: Vec<&[u8]> =
                    seen.iter().map(|seen| &seen.peeks[idx].bytes[..]).collect();
                let counts = places(&seen, &behind, living_threads);
                found.extend(counts.into_iter().map(|at| (*offset, at)));
            }
        }
        Ok(only("number of living threads", &found)?)
    }

    /// Which of the pointers leads to the kernel stack, and where the registers lie there.
    fn stack(&mut self, candidates: &[u32]) -> Result<(u32, u32), CalibrationError> {
        let places: Vec<(u32, u32)> = candidates
            .iter()
            .flat_map(|offset| {
                STACK_BYTES
                    .iter()
                    .map(|stack_bytes| (*offset, *stack_bytes))
            })
            .collect();
        let mut found = Vec::new();
        for chunk in places.chunks(N_PEEKS as usize) {
            let peeks: Vec<Peek> = chunk
                .iter()
                // Nothing is mapped behind a stack.
                .map(|(offset, stack_bytes)| {
                    Peek::through(*offset, stack_bytes - PEEK_BYTES as u32)
                })
                .collect();
            let seen = self.look(&peeks)?;
            // The same in all threads.
            let registers_bytes = |idx: usize| -> Option<u32> {
                let mut bytes = seen
                    .iter()
                    .map(|seen| registers_of_exit(&seen.peeks[idx].bytes, &seen.facts));
                let first = bytes.next()??;
                bytes.all(|bytes| bytes == Some(first)).then_some(first)
            };
            let stacks = chunk.iter().enumerate();
            found.extend(stacks.filter_map(|(idx, (offset, stack_bytes))| {
                Some((*offset, stack_bytes - registers_bytes(idx)?))
            }));
        }
        Ok(only("kernel stack", &found)?)
    }

    /// Looks at threads with different facts, one after the other.
    fn look(&mut self, peeks: &[Peek]) -> Result<Vec<Seen>, CalibrationError> {
        let mut threads = Vec::new();
        for _ in 0..N_THREADS {
            threads.push(Waiting::start()?);
        }
        let mut seen = Vec::new();
        while let Some(thread) = threads.pop() {
            for (idx, peek) in peeks.iter().enumerate() {
                self.peeks.set(idx as u32, PeekValue(*peek), 0)?;
            }
            let facts = thread.facts()?;
            drop(thread);
            seen.push(Seen {
                facts,
                peeks: self.result(peeks.len(), facts.tid)?,
            });
        }
        Ok(seen)
    }

    /// Waits for what the program saw of a thread.
    fn result(&self, n_peeks: usize, tid: u32) -> Result<Vec<Peek>, CalibrationError> {
        let deadline = Instant::now() + LOOK_TIMEOUT;
        while Instant::now() < deadline {
            let peeks = (0..n_peeks as u32).map(|idx| Ok(self.peeks.get(&idx, 0)?.0));
            let peeks = peeks.collect::<Result<Vec<_>, MapError>>()?;
            // It still counts as a thread for a moment after it was looked at.
            let is_gone = !Path::new(&format!("/proc/self/task/{tid}")).exists();
            if is_gone && peeks.iter().all(|peek| peek.tid == tid) {
                return Ok(peeks);
            }
            thread::sleep(Duration::from_micros(100));
        }
        Err(CalibrationError::NotReported)
    }
}

/// Where every structure has a fact of the thread that it belongs to.
fn places<N: Number>(
    seen: &[Seen],
    structures: &[&[u8]],
    fact: impl Fn(&ThreadFacts) -> N,
) -> Vec<u32> {
    let facts = seen.iter().map(|seen| fact(&seen.facts));
    let expected: Vec<(&[u8], N)> = structures.iter().copied().zip(facts).collect();
    places_of(&expected)
}

/// A thread that waits, and ends when this is dropped.
struct Waiting {
    tid: u32,
    thread_pointer: u64,
    began: Began,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Waiting {
    fn start() -> Result<Self, CalibrationError> {
        let (tell, told) = channel();
        let (stop, stopped) = channel::<()>();
        let before = now();
        let thread = thread::Builder::new()
            .name("pyagent-calibr".to_owned())
            .spawn(move || {
                // What the task_struct has of its registers is that of the last switch to another thread.
                thread::sleep(SWITCH_TIME);
                let tid = rustix::thread::gettid().as_raw_nonzero().get();
                // Whoever started it waits for both.
                let _ = tell.send((tid as u32, own_thread_pointer()));
                let _ = stopped.recv();
            })
            .map_err(CalibrationError::Thread)?;
        let after = now();
        let (tid, thread_pointer) = told.recv().map_err(|_| CalibrationError::NotReported)?;
        Ok(Self {
            tid,
            thread_pointer,
            began: Began {
                monotonic: (before.0, after.0),
                boot: (before.1, after.1),
            },
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    fn facts(&self) -> Result<ThreadFacts, CalibrationError> {
        let tasks = std::fs::read_dir("/proc/self/task").map_err(CalibrationError::Thread)?;
        Ok(ThreadFacts {
            tid: self.tid,
            thread_pointer: self.thread_pointer,
            n_others: (tasks.count() as u32).saturating_sub(1),
            began: self.began,
        })
    }
}

/// The moment by `CLOCK_MONOTONIC` and by `CLOCK_BOOTTIME`, in nanoseconds.
fn now() -> (u64, u64) {
    let ns = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
    };
    (ns(ClockId::Monotonic), ns(ClockId::Boottime))
}

/// The thread pointer of the calling thread: on x86-64 what the C library calls the thread by.
#[cfg(not(target_arch = "aarch64"))]
fn own_thread_pointer() -> u64 {
    // SAFETY: a function without arguments, which cannot fail.
    unsafe { libc::pthread_self() as u64 }
}

/// The thread pointer of the calling thread.
#[cfg(target_arch = "aarch64")]
fn own_thread_pointer() -> u64 {
    let thread_pointer: u64;
    // SAFETY: it reads a register that every program may read, and touches nothing else.
    unsafe {
        std::arch::asm!("mrs {}, tpidr_el0", out(reg) thread_pointer, options(nomem, nostack, preserves_flags));
    }
    thread_pointer
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}
