//! The threads of one program, and what each is called: as `threading` calls it, else as the kernel does.
//!
//! `threading` knows a thread only some time after it began, and reading its names is not for free, so the first samples of a
//! thread may have the kernel's name. Each sample says whose it is by id and begin; the name is settled when a profile is
//! finished ([`crate::profile::thread_name`]).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;

use super::decode::{RawSample, comm_text};
use crate::ids::Tid;
use crate::process::facts;
use crate::process::memory::ProcessMemory;
use crate::profile::aggregate::{ProcessLabels, ThreadLabels};
use crate::profile::thread_name::{NameRank, ThreadName};
use crate::python::process::PythonProcess;
use crate::python::thread_name::{ThreadNameLayout, thread_names};

/// Names are read again after this long: threads can be renamed. What was not sampled for as long is forgotten.
const ROUND: Duration = Duration::from_secs(10);

/// A thread without a known name makes the names be read again after this long; twice as long after each reading that does
/// not have it, up to the longest.
const NAMES_WAIT: Duration = Duration::from_millis(10);
const MAX_NAMES_WAIT: Duration = Duration::from_secs(1);

/// Reading names takes at most one part in so many of a CPU.
const NAMES_REST: u64 = 100;

/// The starts of threads are known to so much where `/proc` says them.
const TICK_NS: u64 = 10_000_000;

/// Threads of one program that are remembered.
const MAX_THREADS: usize = 65_536;

/// Where the facts of a program's threads come from.
pub(super) trait ThreadFacts {
    /// Nanoseconds since boot.
    fn now_ns(&self) -> u64;

    /// The names as `threading` has them now, by ident (`pthread_t`); none where they cannot be read.
    fn names(&self) -> HashMap<u64, Box<str>>;

    /// When a thread began, in nanoseconds since boot, by ticks of 10 ms; `None`: it has ended.
    fn started_ns(&self, tid: Tid) -> Option<u64>;
}

/// The facts of a running program.
pub(super) struct OfProgram<'a> {
    pub(super) process: &'a PythonProcess,
    pub(super) memory: &'a ProcessMemory,
}

impl ThreadFacts for OfProgram<'_> {
    fn now_ns(&self) -> u64 {
        facts::boot_ns()
    }

    fn names(&self) -> HashMap<u64, Box<str>> {
        let interpreter = &self.process.interpreter;
        let layout = ThreadNameLayout::of_interpreter(
            interpreter.version,
            interpreter.binary.free_threaded,
            interpreter.layout.interp_modules,
        );
        layout
            .and_then(|layout| thread_names(self.memory, &layout, interpreter.main).ok())
            .unwrap_or_default()
    }

    fn started_ns(&self, tid: Tid) -> Option<u64> {
        facts::thread_started_ns(self.process.pid, tid)
    }
}

/// A thread of the program, among all that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Thread {
    tid: Tid,
    /// 0: not known.
    started_ns: u64,
    /// Where its begin is not known its thread state tells it from others; else 0.
    state: u64,
}

impl Thread {
    fn of(sample: &RawSample) -> Self {
        let started_ns = sample.thread_started_ns;
        Self {
            tid: sample.tid,
            started_ns,
            state: if started_ns == 0 {
                sample.thread_state.0
            } else {
                0
            },
        }
    }

    /// Whether it is there still, by what is known of the thread that has its id now.
    fn is_there(&self, now: Option<u64>) -> bool {
        now.is_some_and(|tick_ns| {
            self.started_ns == 0 || self.started_ns.abs_diff(tick_ns) <= TICK_NS
        })
    }
}

/// What is known of a thread.
struct Known {
    labels: Arc<ThreadLabels>,
    /// Its name as the kernel had it last.
    comm: [u8; 16],
    /// Its ident; 0: it was not yet seen with one.
    ident: u64,
    /// It may get a name that it does not have, or another one.
    is_open: bool,
    /// When it was sampled last.
    round: u64,
}

impl Known {
    fn rename(&mut self, text: &str, rank: NameRank) {
        let known = &self.labels.thread_name;
        if *known.text != *text || known.rank.is_own != rank.is_own {
            let text = text.into();
            self.labels = Arc::new(ThreadLabels {
                thread_name: ThreadName { text, rank },
                process: self.labels.process.clone(),
                ..*self.labels
            });
        }
    }

    fn has_own_name(&self) -> bool {
        self.labels.thread_name.rank.is_own
    }
}

/// The names of a program's threads, as `threading` has them.
struct Names {
    by_ident: HashMap<u64, Box<str>>,
    /// When their reading began.
    read_ns: u64,
}

/// What a look for a name found.
enum Found {
    /// This is it, and when it was read.
    Name(Box<str>, u64),
    /// The thread has ended before its name was read.
    Ended,
    /// It is not in the names as they are now.
    Absent,
    /// They were read a moment ago, and are not read again yet.
    TooEarly,
}

/// The threads of one program.
pub(super) struct Threads {
    known: HashMap<Thread, Known, RandomState>,
    /// Those without a name of their own that may get one.
    open: HashSet<Thread, RandomState>,
    names: Option<Names>,
    /// Nanoseconds until the names may be read again.
    wait_ns: u64,
    round: u64,
    round_began_ns: u64,
}

impl Default for Threads {
    fn default() -> Self {
        Self {
            known: HashMap::default(),
            open: HashSet::default(),
            names: None,
            wait_ns: ns(NAMES_WAIT),
            round: 0,
            round_began_ns: 0,
        }
    }
}

impl Threads {
    /// The labels of the thread of a sample, with the best name that is known of it.
    pub(super) fn labels(
        &mut self,
        sample: &RawSample,
        process: &Arc<ProcessLabels>,
        facts: &impl ThreadFacts,
    ) -> Arc<ThreadLabels> {
        let now_ns = facts.now_ns();
        self.turn(now_ns);
        let (thread, round) = (Thread::of(sample), self.round);
        if self.known.len() >= MAX_THREADS && !self.known.contains_key(&thread) {
            self.known.clear();
            self.open.clear();
        }
        let of_kernel = NameRank {
            is_own: false,
            seen: now_ns,
        };
        let known = self.known.entry(thread).or_insert_with(|| Known {
            labels: Arc::new(ThreadLabels {
                process: process.clone(),
                tid: thread.tid.0,
                started_ns: thread.started_ns,
                thread_name: ThreadName {
                    text: comm_text(&sample.comm).into(),
                    rank: of_kernel,
                },
            }),
            comm: sample.comm,
            ident: 0,
            is_open: true,
            round,
        });
        if known.comm != sample.comm {
            known.comm = sample.comm;
            if !known.has_own_name() {
                known.rename(&comm_text(&sample.comm), of_kernel);
            }
        }
        if sample.thread_ident != 0 {
            known.ident = sample.thread_ident;
        }
        known.is_open |= known.round != round;
        known.round = round;
        let ident = known.ident;
        if !known.is_open || ident == 0 {
            return known.labels.clone();
        }
        let labels = known.labels.clone();
        let found = self.look(thread, ident, facts);
        self.take(thread, found).unwrap_or(labels)
    }

    /// Has the other labels of the process, once more is known of it.
    pub(super) fn relabel(&mut self, process: &Arc<ProcessLabels>) {
        for known in self.known.values_mut() {
            known.labels = Arc::new(ThreadLabels {
                process: process.clone(),
                ..ThreadLabels::clone(&known.labels)
            });
        }
    }

    /// Looks once more for the names of threads that have none yet, if it is time to.
    pub(super) fn settle(&mut self, facts: &impl ThreadFacts) {
        if !self.open.is_empty() && !self.is_too_early(facts) {
            self.read(facts);
        }
    }

    /// The best name that is known of a thread by now; `None`: none, or it is not known when it began.
    pub(super) fn name(&self, tid: Tid, started_ns: u64) -> Option<&ThreadName> {
        let thread = Thread {
            tid,
            started_ns,
            state: 0,
        };
        let known = self.known.get(&thread).filter(|_| started_ns != 0)?;
        Some(&known.labels.thread_name)
    }

    /// Begins a round if it is time to.
    fn turn(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.round_began_ns) <= ns(ROUND) {
            return;
        }
        let ended = self.round;
        self.round += 1;
        self.round_began_ns = now_ns;
        self.names = None;
        self.known.retain(|_, known| known.round == ended);
        let known = &self.known;
        self.open.retain(|thread| known.contains_key(thread));
    }

    /// Keeps what was found of a thread. `None`: the thread is not known.
    fn take(&mut self, thread: Thread, found: Found) -> Option<Arc<ThreadLabels>> {
        let known = self.known.get_mut(&thread)?;
        let has_own_name = known.has_own_name();
        known.is_open = match found {
            Found::Name(text, seen) => {
                let rank = NameRank { is_own: true, seen };
                known.rename(&text, rank);
                false
            }
            Found::Ended => false,
            // `threading` forgets a thread that is about to end: it keeps its name.
            Found::Absent => !has_own_name,
            Found::TooEarly => true,
        };
        let labels = known.labels.clone();
        if known.is_open && !has_own_name {
            self.open.insert(thread);
        } else {
            self.open.remove(&thread);
        }
        Some(labels)
    }

    /// Looks for the name of a thread that was seen with this ident. The C library gives the ident of a thread that has ended to
    /// the next one: a name is the thread's if it was there before the names were read, and is there still.
    fn look(&mut self, thread: Thread, ident: u64, facts: &impl ThreadFacts) -> Found {
        if let Some((name, read_ns)) = self.name_of(ident) {
            let now = facts.started_ns(thread.tid);
            if !thread.is_there(now) {
                return Found::Ended;
            }
            if now.is_some_and(|tick_ns| tick_ns + TICK_NS < read_ns) {
                return Found::Name(name, read_ns);
            }
        }
        if self.is_too_early(facts) {
            return Found::TooEarly;
        }
        let wait_ns = self.wait_ns;
        self.read(facts);
        let found = self.name_of(ident);
        let wait_ns = match found {
            Some(_) => ns(NAMES_WAIT),
            None => (wait_ns * 2).min(ns(MAX_NAMES_WAIT)),
        };
        self.rest(wait_ns, facts);
        let is_there = thread.is_there(facts.started_ns(thread.tid));
        match found {
            _ if !is_there => Found::Ended,
            Some((name, read_ns)) => Found::Name(name, read_ns),
            None => Found::Absent,
        }
    }

    /// The name of this ident, and when it was read.
    fn name_of(&self, ident: u64) -> Option<(Box<str>, u64)> {
        let names = self.names.as_ref()?;
        Some((names.by_ident.get(&ident)?.clone(), names.read_ns))
    }

    fn is_too_early(&self, facts: &impl ThreadFacts) -> bool {
        let names = self.names.as_ref();
        names.is_some_and(|names| facts.now_ns().saturating_sub(names.read_ns) <= self.wait_ns)
    }

    /// Waits for the next reading at least so long, and as long as this one was worth.
    fn rest(&mut self, wait_ns: u64, facts: &impl ThreadFacts) {
        let read_ns = self.names.as_ref().map_or(0, |names| names.read_ns);
        let cost_ns = facts.now_ns().saturating_sub(read_ns);
        self.wait_ns = wait_ns.max(cost_ns.saturating_mul(NAMES_REST));
    }

    /// Reads the names, and gives them to all threads that wait for one.
    fn read(&mut self, facts: &impl ThreadFacts) {
        let read_ns = facts.now_ns();
        let by_ident = facts.names();
        self.names = Some(Names { by_ident, read_ns });
        for thread in std::mem::take(&mut self.open) {
            let Some(known) = self.known.get(&thread) else {
                continue;
            };
            let name = self.name_of(known.ident);
            // It was sampled before the names were read.
            let is_there = thread.is_there(facts.started_ns(thread.tid));
            let found = match name {
                _ if !is_there => Found::Ended,
                Some((name, read_ns)) => Found::Name(name, read_ns),
                None => Found::Absent,
            };
            self.take(thread, found);
        }
        self.rest(self.wait_ns, facts);
    }
}

const fn ns(length: Duration) -> u64 {
    length.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use profiler_common::event::{KernelStatus, PythonStatus};

    use super::*;
    use crate::ids::{Address, Generation, Pid};

    const SECOND: u64 = 1_000_000_000;

    /// A program whose threads and names a test sets.
    #[derive(Default)]
    struct Fake {
        now_ns: Cell<u64>,
        names: RefCell<HashMap<u64, Box<str>>>,
        started_ns: RefCell<HashMap<Tid, u64>>,
        n_read: Cell<u32>,
    }

    impl Fake {
        fn at(now_ns: u64) -> Self {
            let fake = Self::default();
            fake.now_ns.set(now_ns);
            fake
        }

        fn wait(&self, length_ns: u64) {
            self.now_ns.set(self.now_ns.get() + length_ns);
        }

        /// A thread begins; the sample is one of it.
        fn begin(&self, tid: u32, ident: u64) -> RawSample {
            let started_ns = self.now_ns.get();
            let tick_ns = started_ns / TICK_NS * TICK_NS;
            self.started_ns.borrow_mut().insert(Tid(tid), tick_ns);
            sample(tid, started_ns, ident)
        }

        fn end(&self, tid: u32) {
            self.started_ns.borrow_mut().remove(&Tid(tid));
        }

        fn call(&self, ident: u64, name: &str) {
            self.names.borrow_mut().insert(ident, name.into());
        }

        fn forget(&self, ident: u64) {
            self.names.borrow_mut().remove(&ident);
        }
    }

    impl ThreadFacts for Fake {
        fn now_ns(&self) -> u64 {
            self.now_ns.get()
        }

        fn names(&self) -> HashMap<u64, Box<str>> {
            self.n_read.set(self.n_read.get() + 1);
            self.names.borrow().clone()
        }

        fn started_ns(&self, tid: Tid) -> Option<u64> {
            self.started_ns.borrow().get(&tid).copied()
        }
    }

    fn comm(text: &str) -> [u8; 16] {
        let mut comm = [0; 16];
        comm[..text.len()].copy_from_slice(text.as_bytes());
        comm
    }

    fn sample(tid: u32, started_ns: u64, ident: u64) -> RawSample {
        RawSample {
            time_ns: started_ns,
            generation: Generation(1),
            pid: Pid(1),
            tid: Tid(tid),
            thread_started_ns: started_ns,
            cpu: 0,
            source: 0,
            period: 1,
            address: Address(0),
            n_bytes: 0,
            user_ip: Address(0),
            thread_state: Address(ident),
            thread_ident: ident,
            frame: Address(0),
            flags: 0,
            python_status: PythonStatus::Complete,
            kernel_status: KernelStatus::UserMode,
            comm: comm("python3"),
            registers: None,
            python: Vec::new(),
            kernel: Vec::new(),
        }
    }

    fn process() -> Arc<ProcessLabels> {
        Arc::new(ProcessLabels::of_pid(1))
    }

    /// What the sample's thread is called, and whether the name is its own.
    fn called(threads: &mut Threads, sample: &RawSample, facts: &Fake) -> (String, bool) {
        let name = threads
            .labels(sample, &process(), facts)
            .thread_name
            .clone();
        (name.text.into(), name.rank.is_own)
    }

    fn own(name: &str) -> (String, bool) {
        (name.to_owned(), true)
    }

    fn of_kernel(name: &str) -> (String, bool) {
        (name.to_owned(), false)
    }

    #[test]
    fn a_name_that_comes_late_is_found_and_kept_when_it_goes() {
        let facts = Fake::at(100 * SECOND);
        let mut threads = Threads::default();
        let sample = facts.begin(7, 70);
        assert_eq!(called(&mut threads, &sample, &facts), of_kernel("python3"));
        facts.call(70, "worker");
        facts.wait(SECOND + 1);
        assert_eq!(called(&mut threads, &sample, &facts), own("worker"));
        // `threading` forgets it before the thread has ended.
        facts.forget(70);
        for _ in 0..3 {
            facts.wait(11 * SECOND);
            assert_eq!(called(&mut threads, &sample, &facts), own("worker"));
        }
    }

    #[test]
    fn a_thread_that_is_renamed_has_its_new_name_within_a_round() {
        let facts = Fake::at(100 * SECOND);
        let mut threads = Threads::default();
        facts.call(70, "before");
        let sample = facts.begin(7, 70);
        assert_eq!(called(&mut threads, &sample, &facts), own("before"));
        facts.call(70, "after");
        facts.wait(11 * SECOND);
        assert_eq!(called(&mut threads, &sample, &facts), own("after"));
        let (name, rank) = {
            let name = threads.name(Tid(7), sample.thread_started_ns).unwrap();
            (name.text.clone(), name.rank)
        };
        assert_eq!((&*name, rank.seen), ("after", 111 * SECOND));
    }

    #[test]
    fn a_thread_with_the_id_and_the_ident_of_one_before_it_does_not_get_its_name() {
        let facts = Fake::at(100 * SECOND);
        let mut threads = Threads::default();
        facts.call(70, "first");
        let first = facts.begin(7, 70);
        assert_eq!(called(&mut threads, &first, &facts), own("first"));
        facts.end(7);
        facts.forget(70);
        facts.wait(SECOND);
        let second = facts.begin(7, 70);
        assert_eq!(called(&mut threads, &second, &facts), of_kernel("python3"));
        // What is left of the first one in the ring is still the first one's.
        assert_eq!(called(&mut threads, &first, &facts), own("first"));
        facts.call(70, "second");
        facts.wait(SECOND + 1);
        assert_eq!(called(&mut threads, &second, &facts), own("second"));
        assert_eq!(called(&mut threads, &first, &facts), own("first"));
    }

    #[test]
    fn a_thread_that_has_ended_does_not_get_the_name_of_who_has_its_id_now() {
        let facts = Fake::at(100 * SECOND);
        let mut threads = Threads::default();
        let first = facts.begin(7, 70);
        assert_eq!(called(&mut threads, &first, &facts), of_kernel("python3"));
        facts.wait(2 * SECOND);
        facts.begin(7, 70);
        facts.call(70, "second");
        facts.wait(SECOND);
        // It was sampled before, and its sample comes now.
        assert_eq!(called(&mut threads, &first, &facts), of_kernel("python3"));
        threads.settle(&facts);
        assert_eq!(called(&mut threads, &first, &facts), of_kernel("python3"));
    }

    #[test]
    fn one_reading_names_all_threads_that_wait_for_it() {
        let facts = Fake::at(100 * SECOND);
        let mut threads = Threads::default();
        let samples: Vec<RawSample> = (1..=25).map(|tid| facts.begin(tid, tid.into())).collect();
        for sample in &samples {
            assert!(!called(&mut threads, sample, &facts).1);
        }
        let n_read = facts.n_read.get();
        for tid in 1..=25 {
            facts.call(tid, &format!("worker {tid}"));
        }
        facts.end(25);
        threads.settle(&facts);
        facts.wait(2 * SECOND);
        threads.settle(&facts);
        assert_eq!(facts.n_read.get(), n_read + 1);
        for sample in &samples[..24] {
            let name = threads.name(sample.tid, sample.thread_started_ns).unwrap();
            assert_eq!(*name.text, format!("worker {}", sample.tid));
        }
        let ended = threads.name(Tid(25), samples[24].thread_started_ns);
        assert_eq!(&*ended.unwrap().text, "python3");
        // Nobody is left who waits.
        facts.wait(2 * SECOND);
        threads.settle(&facts);
        assert_eq!(facts.n_read.get(), n_read + 1);
    }

    #[test]
    fn a_thread_without_python_has_its_last_name_of_the_kernel() {
        let facts = Fake::at(100 * SECOND);
        let mut threads = Threads::default();
        let mut sample = facts.begin(7, 0);
        assert_eq!(called(&mut threads, &sample, &facts), of_kernel("python3"));
        sample.comm = comm("grpc_poller");
        assert_eq!(
            called(&mut threads, &sample, &facts),
            of_kernel("grpc_poller")
        );
        assert_eq!(facts.n_read.get(), 0);
        // It calls Python, and has a name there.
        facts.call(70, "Dummy-1");
        sample.thread_ident = 70;
        assert_eq!(called(&mut threads, &sample, &facts), own("Dummy-1"));
        sample.thread_ident = 0;
        sample.comm = comm("other");
        assert_eq!(called(&mut threads, &sample, &facts), own("Dummy-1"));
    }

    #[test]
    fn where_the_begin_is_not_known_thread_states_tell_threads_apart() {
        let facts = Fake::at(100 * SECOND);
        let mut threads = Threads::default();
        facts.call(70, "first");
        let mut first = facts.begin(7, 70);
        first.thread_started_ns = 0;
        assert_eq!(called(&mut threads, &first, &facts), own("first"));
        facts.call(71, "second");
        facts.wait(2 * SECOND);
        let second = RawSample {
            thread_state: Address(71),
            thread_ident: 71,
            ..first.clone()
        };
        assert_eq!(called(&mut threads, &second, &facts), own("second"));
        assert_eq!(called(&mut threads, &first, &facts), own("first"));
        assert!(threads.name(Tid(7), 0).is_none());
    }

    #[test]
    fn threads_that_come_and_go_do_not_pile_up() {
        let facts = Fake::at(100 * SECOND);
        let mut threads = Threads::default();
        for tid in 0..100_000 {
            let sample = facts.begin(tid, 70);
            called(&mut threads, &sample, &facts);
            facts.end(tid);
            facts.wait(SECOND / 1000);
        }
        // Those of this round and the one before.
        assert!(threads.known.len() <= 20_002, "{}", threads.known.len());
        assert!(threads.open.len() <= threads.known.len());
    }
}
