//! Stops a process for a bounded time, so that its memory does not change while it is read. Only on demand.
//!
//! By ptrace(2): each thread is seized and interrupted. No SIGSTOP is sent that a parent or a shell would see, and when a
//! tracer ends, however it does, the kernel lets its tracees go on. So the freeze belongs to a thread of its own, and the
//! end of that thread is the end of the freeze: there is one way out, the same for an end that was asked for, for the limit,
//! for a panic and for `kill -9`.
//!
//! Stops are looked at and never taken (`WNOWAIT`), and no thread is continued by hand. A thread that stopped on its way to
//! take a signal keeps it therefore (`exit_code` in the kernel's `ptrace_signal`), real-time signals and their values too; one
//! of a process that was stopped by a signal before goes back to that stop (`__ptrace_unlink`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::facts::{self, Stat, status_field};
use crate::ids::{Pid, Tid};

/// How long a process stands at most if nothing else is said.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(1);

/// Longest limit.
pub const MAX_LIMIT: Duration = Duration::from_secs(10);

/// All threads must have stopped within this time, else they are let go.
const STOP_LIMIT: Duration = Duration::from_millis(500);

/// Time between two looks at threads that have not stopped yet; it grows to the second one.
const FIRST_POLL: Duration = Duration::from_micros(50);
const LAST_POLL: Duration = Duration::from_millis(1);

/// Time between two looks at whether the freeze is over.
const HOLD_POLL: Duration = Duration::from_millis(5);

/// The kernel lets tracees go a little after the thread has ended for us.
const GONE_LIMIT: Duration = Duration::from_millis(100);

/// Why a process was not stopped. What had stopped was let go at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FreezeError {
    /// The process has ended.
    #[error("no such process")]
    Gone,
    /// A debugger has it. A thread has one tracer at most.
    #[error("it is traced already by process {tracer} ({name}), and the kernel allows one tracer")]
    Traced {
        /// The debugger.
        tracer: Pid,
        /// Its `comm`, as it is.
        name: String,
    },
    /// The rights are missing, or a security module forbids it.
    #[error(
        "not permitted to stop it (needs CAP_SYS_PTRACE; a security module can still forbid it)"
    )]
    Denied,
    /// A thread did not stop in time.
    #[error("thread {tid} did not stop within {} ms (state {state})", waited.as_millis())]
    Unstoppable {
        /// The thread.
        tid: Tid,
        /// Its state as in proc_pid_stat(5): `D` sleeps uninterruptibly.
        state: char,
        /// How long it was waited for: meanwhile others stood.
        waited: Duration,
    },
    /// [`Release::ask`] came before all had stopped.
    #[error("ended before it had stopped")]
    Released,
    /// The kernel did not answer: another thread of the process is in an exec that hangs. Threads may stand until this program
    /// ends.
    #[error("the kernel does not let it be traced, since it is in the middle of an exec")]
    Stuck,
    /// Something else that the system said.
    #[error("cannot stop it: {0}")]
    System(Errno),
}

/// Ends freezes from any thread, whether they have begun or not.
#[derive(Debug, Clone, Default)]
pub struct Release(Arc<AtomicBool>);

impl Release {
    /// Ends it within some milliseconds.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What ended a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The one who began it.
    Asked,
    /// [`Release::ask`].
    Released,
    /// The time was over.
    Limit,
    /// The process was killed.
    Gone,
}

/// A freeze that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// From before the first thread was told to stop until all were let go.
    pub lasted: Duration,
    /// What ended it.
    pub end: End,
}

/// A process that stands still until [`Freeze::end`], until this is dropped, or until the limit.
#[derive(Debug)]
pub struct Freeze {
    owner: Option<JoinHandle<Stop>>,
    over: Release,
    pid: Pid,
    held: Option<Held>,
}

/// What is held by whom.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// The thread that is let go last.
    first: Tid,
    /// The owner's own id.
    owner: Tid,
}

/// What the owner of a freeze tells the one who began it.
enum Progress {
    /// It seizes this thread next.
    Seizing(Tid),
    /// All stand, or they do not.
    Ready(Result<Held, FreezeError>),
}

impl Freeze {
    /// Stops all threads of a process for `limit` at most ([`MAX_LIMIT`]), counted from now on. `release` ends it earlier.
    pub fn begin(pid: Pid, limit: Duration, release: Release) -> Result<Self, FreezeError> {
        let limit = limit.min(MAX_LIMIT);
        let (progress, told) = mpsc::channel();
        let over = Release::default();
        let asked = over.clone();
        let owner = thread::Builder::new()
            .name("freeze".into())
            .spawn(move || own(pid, limit, &asked, &release, &progress))
            .map_err(|_| FreezeError::System(Errno::EAGAIN))?;
        let mut freeze = Self {
            owner: Some(owner),
            over,
            pid,
            held: None,
        };
        let ready = wait_until_ready(pid, &told);
        if matches!(ready, Err(FreezeError::Stuck)) {
            // It cannot be waited for.
            freeze.owner = None;
        }
        freeze.held = Some(ready?);
        Ok(freeze)
    }

    /// Whether the process goes on already.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.owner.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets the process go on. When this returns it does.
    #[must_use]
    pub fn end(mut self) -> Stop {
        self.let_go().unwrap_or(Stop {
            lasted: Duration::ZERO,
            end: End::Gone,
        })
    }

    fn let_go(&mut self) -> Option<Stop> {
        let owner = self.owner.take()?;
        self.over.ask();
        owner.thread().unpark();
        let stop = owner.join().ok()?;
        let begun = Instant::now();
        while let Some(held) = self.held
            && tracer(self.pid, held.first).is_some_and(|tracer| tracer.0 == held.owner.0)
            && begun.elapsed() < GONE_LIMIT
        {
            thread::sleep(FIRST_POLL);
        }
        Some(stop)
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Waits for the owner. A thread that ended by an exec of another one is taken note of here, since the owner can be in a
/// call that waits for that exec, which waits for all threads to have been taken note of.
fn wait_until_ready(pid: Pid, told: &Receiver<Progress>) -> Result<Held, FreezeError> {
    let mut seized = Vec::new();
    let begun = Instant::now();
    loop {
        match told.recv_timeout(HOLD_POLL) {
            Ok(Progress::Seizing(tid)) => seized.push(tid),
            Ok(Progress::Ready(result)) => return result,
            Err(RecvTimeoutError::Timeout) if begun.elapsed() > 2 * STOP_LIMIT => {
                return Err(FreezeError::Stuck);
            }
            Err(RecvTimeoutError::Timeout) => {
                for tid in seized.iter().filter(|tid| tid.0 != pid.0) {
                    reap(*tid);
                }
            }
            // It panicked, which let all go.
            Err(RecvTimeoutError::Disconnected) => return Err(FreezeError::System(Errno::EAGAIN)),
        }
    }
}

/// The life of the owner: stops all, waits for the end. All are let go when this thread has ended.
fn own(
    pid: Pid,
    limit: Duration,
    over: &Release,
    release: &Release,
    progress: &Sender<Progress>,
) -> Stop {
    let begun = Instant::now();
    let mut threads = Threads {
        pid,
        begun,
        limit: limit.min(STOP_LIMIT),
        stopped: HashMap::new(),
        first: None,
    };
    let ready = threads.stop_all(release, progress);
    let is_ready = ready.is_ok();
    // The one who began it waits for this.
    let _ = progress.send(Progress::Ready(ready));
    let end = if is_ready {
        threads.hold(limit, over, release)
    } else {
        End::Asked
    };
    Stop {
        lasted: begun.elapsed(),
        end,
    }
}

/// The threads of a process that this thread traces.
struct Threads {
    pid: Pid,
    begun: Instant,
    /// Within this time they stop.
    limit: Duration,
    /// Whether each one has stopped.
    stopped: HashMap<Tid, bool>,
    first: Option<Tid>,
}

/// What is seen of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Stopped,
    Running,
    /// It has ended.
    Ended,
    /// It is not traced: an exec gave its id to another thread.
    Lost,
}

impl Threads {
    /// Stops them, those too that others make meanwhile: when all that are known stand and no other is there, no more can
    /// come.
    fn stop_all(
        &mut self,
        release: &Release,
        progress: &Sender<Progress>,
    ) -> Result<Held, FreezeError> {
        if let Some(error) = facts::tids(self.pid)
            .map_err(|_| FreezeError::Gone)?
            .into_iter()
            .find_map(|tid| traced(self.pid, tid))
        {
            return Err(error);
        }
        let mut pause = FIRST_POLL;
        loop {
            let is_complete = self.seize_new(progress)?;
            self.look();
            let waits_for = self.stopped.iter().find(|(_, is_stopped)| !**is_stopped);
            match (waits_for, self.first) {
                (None, Some(first)) if is_complete => {
                    let owner = Tid(rustix::thread::gettid()
                        .as_raw_nonzero()
                        .get()
                        .cast_unsigned());
                    return Ok(Held { first, owner });
                }
                _ if release.is_asked() => return Err(FreezeError::Released),
                _ if self.begun.elapsed() < self.limit => {}
                (Some((tid, _)), _) => return Err(self.unstoppable(*tid)),
                (None, _) => return Err(self.unstoppable(Tid(self.pid.0))),
            }
            thread::sleep(pause);
            pause = (2 * pause).min(LAST_POLL);
        }
    }

    /// Seizes the threads that are new and tells them to stop. False: there were some, or there may be more.
    fn seize_new(&mut self, progress: &Sender<Progress>) -> Result<bool, FreezeError> {
        let tids = facts::tids(self.pid).map_err(|_| FreezeError::Gone)?;
        let n_listed = tids.len();
        let mut new = Vec::new();
        for tid in tids {
            if self.stopped.contains_key(&tid) {
                continue;
            }
            let _ = progress.send(Progress::Seizing(tid));
            match ptrace::seize(raw(tid), ptrace::Options::empty()) {
                Ok(()) => {
                    self.first.get_or_insert(tid);
                    self.stopped.insert(tid, false);
                    new.push(tid);
                }
                Err(Errno::ESRCH) => {}
                Err(Errno::EPERM) => match traced(self.pid, tid) {
                    Some(error) => return Err(error),
                    // A thread that has ended cannot be seized.
                    None if has_ended(self.pid, tid) => {}
                    None => return Err(FreezeError::Denied),
                },
                Err(error) => return Err(FreezeError::System(error)),
            }
        }
        // Nothing stands yet while the kernel lets us wait for one of them.
        for tid in &new {
            // One that has ended is seen so.
            let _ = ptrace::interrupt(raw(*tid));
        }
        if self.first.is_none() {
            return Err(FreezeError::Gone);
        }
        // A list that is read while threads end can lack one.
        let n_threads =
            Stat::read(&format!("/proc/{}/stat", self.pid)).map_or(0, |stat| stat.n_threads);
        Ok(new.is_empty() && n_listed >= n_threads as usize)
    }

    /// Looks at all that have not stopped.
    fn look(&mut self) {
        let leader = Tid(self.pid.0);
        let pid = self.pid;
        self.stopped.retain(|tid, is_stopped| {
            if *is_stopped {
                return true;
            }
            match see(*tid) {
                Seen::Stopped => *is_stopped = true,
                // A main thread that has ended is there, and no news to wait for, as long as others go on.
                Seen::Running | Seen::Ended if *tid == leader && has_ended(pid, leader) => {
                    *is_stopped = true;
                }
                Seen::Running => {}
                Seen::Ended => {
                    reap(*tid);
                    return false;
                }
                Seen::Lost => return false,
            }
            true
        });
    }

    fn unstoppable(&self, tid: Tid) -> FreezeError {
        let stat = Stat::read(&format!("/proc/{}/task/{tid}/stat", self.pid));
        FreezeError::Unstoppable {
            tid,
            state: stat.map_or('?', |stat| stat.state),
            waited: self.begun.elapsed(),
        }
    }

    /// Waits for the end.
    fn hold(&self, limit: Duration, over: &Release, release: &Release) -> End {
        // A thread that stands can only be killed, and all others with it.
        let mut standing = self.stopped.keys().copied();
        let witness = standing.find(|tid| see(*tid) == Seen::Stopped);
        loop {
            if over.is_asked() {
                return End::Asked;
            }
            if release.is_asked() {
                return End::Released;
            }
            if !witness.is_some_and(|tid| see(tid) == Seen::Stopped) {
                return End::Gone;
            }
            let left = limit.saturating_sub(self.begun.elapsed());
            if left.is_zero() {
                return End::Limit;
            }
            thread::park_timeout(left.min(HOLD_POLL));
        }
    }
}

/// What a thread that is traced does now, without taking note of it.
fn see(tid: Tid) -> Seen {
    let what = WaitIdOptions::STOPPED | WaitIdOptions::EXITED;
    match wait(tid, what | WaitIdOptions::NOWAIT) {
        Ok(Some(status)) if status.exited() || status.killed() || status.dumped() => Seen::Ended,
        Ok(Some(_)) => Seen::Stopped,
        Ok(None) => Seen::Running,
        Err(_) => Seen::Lost,
    }
}

/// Takes note of the end of a thread, if it has ended. Only then: a wait takes the stop of a thread too, whatever it waits for,
/// and with it the signal that the thread was about to take.
fn reap(tid: Tid) {
    if see(tid) == Seen::Ended {
        // Another thread may have done it.
        let _ = wait(tid, WaitIdOptions::EXITED);
    }
}

fn wait(
    tid: Tid,
    what: WaitIdOptions,
) -> rustix::io::Result<Option<rustix::process::WaitIdStatus>> {
    let id = rustix::process::Pid::from_raw(tid.0.cast_signed()).ok_or(rustix::io::Errno::CHILD)?;
    waitid(WaitId::Pid(id), what | WaitIdOptions::NOHANG)
}

fn raw(tid: Tid) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(tid.0.cast_signed())
}

fn has_ended(pid: Pid, tid: Tid) -> bool {
    Stat::read(&format!("/proc/{pid}/task/{tid}/stat")).is_ok_and(Stat::has_ended)
        || !std::fs::exists(format!("/proc/{pid}/task/{tid}")).unwrap_or(true)
}

/// The thread that traces a thread.
fn tracer(pid: Pid, tid: Tid) -> Option<Pid> {
    let tracer = status_field(&format!("/proc/{pid}/task/{tid}/status"), "TracerPid:")?;
    tracer.parse().ok().filter(|tracer| *tracer != 0).map(Pid)
}

/// The error that names the tracer, if there is one.
fn traced(pid: Pid, tid: Tid) -> Option<FreezeError> {
    let tracer = tracer(pid, tid)?;
    Some(FreezeError::Traced {
        tracer,
        name: facts::comm(tracer).unwrap_or_default(),
    })
}
