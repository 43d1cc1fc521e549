//! The tracker: follows processes from their start to their end and keeps the kernel's process map true.
//!
//! It learns of processes in three ways: the scan at the start, the kernel's fork, exec and exit events, and a
//! slow rescan that finds what loaded Python late and what an event was lost for. It blocks (on /proc, on
//! target files), so it has a thread of its own; it owns all of its state and talks over channels.

mod pods;
mod recheck;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use profiler_common::layout::PyLayout;
use profiler_common::process::{NO_LAYOUT, ProcessEntry, ProcessState};

use super::consent::Consent;
use super::process::{self, ProcessListing, TrackState};
use crate::ids::{Generation, Pid};
use crate::kubernetes::table::PodTable;
use crate::process::facts::{self, Facts};
use crate::process::lifecycle::{Change, Lifecycle};
use crate::profile::query::ProcessFilter;
use crate::python::discover::{Discoverer, Discovery, Interpreter};
use crate::python::layout::Version;
use crate::python::process::PythonProcess;
use crate::python::refusal::{Reason, Refusal};

/// How often processes are looked at again; stretched on hosts where one look takes long.
const RESCAN_INTERVAL: Duration = Duration::from_secs(5);

/// The same while a process that was named is not profiled: somebody waits for it. The kernel tells of those that
/// are, if it can.
const NAMED_RESCAN_INTERVAL: Duration = Duration::from_millis(20);

/// A rescan takes at most this share of the tracker's time.
const RESCAN_SHARE: u32 = 200;

/// Waits between attempts on a process that is about to load or to initialise Python.
const EXPECTED_DELAYS_MS: &[u64] = &[
    1, 1, 2, 3, 5, 8, 13, 20, 30, 50, 100, 200, 400, 800, 1600, 3200,
];

/// Waits between attempts on a fresh process that shows no sign of Python: a launcher can load it later.
const OTHER_DELAYS_MS: &[u64] = &[50, 500];

/// Attempts on a process that looks like Python and does not fit, until it is refused.
const MAX_ATTEMPTS: usize = 10;

/// A forked child has set its threads up again by then.
const REVALIDATE_AFTER: Duration = Duration::from_millis(200);

/// What the tracker tells the kernel. Implemented over the BPF maps, or as nothing where there are none.
pub trait KernelTable: Send {
    /// Whether the exec and the end of processes in the table are told.
    fn sees_lifecycle(&self) -> bool;
    /// Adds a process that has no entry yet; false when there is one.
    fn add(&mut self, pid: Pid, entry: &ProcessEntry) -> Result<bool, String>;
    /// Replaces the entry of a process that is still of this generation; false when it is not.
    fn update(
        &mut self,
        pid: Pid,
        generation: Generation,
        entry: &ProcessEntry,
    ) -> Result<bool, String>;
    /// Removes the entry of a process if it is still of this generation.
    fn remove(&mut self, pid: Pid, generation: Generation);
    /// The row of a layout.
    fn layout_row(&mut self, layout: &PyLayout) -> Result<u32, String>;
}

/// How many processes there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessCounts {
    /// In each state.
    pub by_state: BTreeMap<TrackState, u32>,
    /// That are refused, by reason.
    pub by_reason: BTreeMap<Reason, u32>,
}

/// What the tracker tells the rest of the agent.
#[derive(Debug, Clone)]
pub enum Update {
    /// A process is profiled from now on.
    Profiled(Arc<PythonProcess>),
    /// Samples of this generation are of no interest.
    Dropped(Generation),
}

/// Which processes are to be profiled.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The filter; empty means every Python process.
    pub filter: ProcessFilter,
    /// Only these processes are looked at, and whatever is forked from them (`--pid`, `-- CMD`).
    pub only_pids: Option<Vec<Pid>>,
    /// The children of these too, those that they have and those to come.
    pub subprocesses: bool,
    /// What pods say of being profiled.
    pub consent: Consent,
}

/// What is known of a process that matters.
struct Tracked {
    status: Status,
}

impl Tracked {
    /// Short programs come and go: only what has something to do with Python is listed.
    fn is_listed(&self) -> bool {
        !matches!(
            self.status,
            Status::Pending {
                is_listed: false,
                ..
            }
        )
    }
}

enum Status {
    /// To be tried again.
    Pending {
        /// Generation of the kernel's entry, if it has one.
        generation: Option<Generation>,
        n_attempts: usize,
        due: Instant,
        /// Something says that it is Python, or somebody named it.
        is_listed: bool,
        facts: Box<Facts>,
    },
    Profiled(Arc<PythonProcess>),
    Refused {
        facts: Box<Facts>,
        version: Option<Version>,
        refusal: Refusal,
        /// When it was looked at.
        looked_at: Instant,
    },
}

/// A process that is not profiled, as far as can be told.
#[derive(Debug, Clone)]
struct Other {
    /// Size of its address space when it was looked at: it changes when something is mapped.
    n_pages: u64,
    /// Generation of its entry in the kernel: a process that was named is followed until it runs Python.
    generation: Option<Generation>,
    /// UID of its pod if it is not selected: what the pod says can change.
    pod_uid: Option<Box<str>>,
}

/// Follows processes; see the module's documentation.
pub struct Tracker<K> {
    selection: Selection,
    /// Processes that those that were named had started already.
    descendants: Vec<Pid>,
    kernel: K,
    discoverer: Discoverer,
    processes: BTreeMap<Pid, Tracked>,
    /// Processes without Python.
    others: HashMap<Pid, Other>,
    pods: PodTable,
    revalidate: Vec<(Instant, Pid, Generation)>,
    updates: Vec<Update>,
    last_generation: u64,
    next_rescan: Instant,
    own_pid: Pid,
}

impl<K: KernelTable> Tracker<K> {
    /// A tracker that knows nothing yet; call [`Tracker::find_descendants`], then [`Tracker::scan`].
    #[must_use]
    pub fn new(selection: Selection, kernel: K) -> Self {
        Self {
            selection,
            descendants: Vec::new(),
            kernel,
            discoverer: Discoverer::default(),
            processes: BTreeMap::new(),
            others: HashMap::new(),
            pods: PodTable::default(),
            revalidate: Vec::new(),
            updates: Vec::new(),
            last_generation: 0,
            next_rescan: Instant::now(),
            own_pid: Pid(std::process::id()),
        }
    }

    /// What has to be told since the last call.
    pub fn take_updates(&mut self) -> Vec<Update> {
        std::mem::take(&mut self.updates)
    }

    /// Finds what the processes that were named have started so far, if that is selected too. Of what they start
    /// from now on the kernel tells.
    pub fn find_descendants(&mut self) {
        if let (Some(pids), true) = (&self.selection.only_pids, self.selection.subprocesses) {
            self.descendants = facts::descendants(pids);
        }
    }

    /// Looks at every process that may matter and is new or has mapped something; forgets what has gone.
    pub fn scan(&mut self) {
        let begun = Instant::now();
        let pids = match &self.selection.only_pids {
            Some(pids) => [&pids[..], &self.descendants].concat(),
            None => facts::all_pids().unwrap_or_default(),
        };
        for pid in pids {
            if pid == self.own_pid || self.processes.contains_key(&pid) {
                continue;
            }
            let Ok(n_pages) = facts::n_mapped_pages(pid) else {
                continue;
            };
            // A kernel thread maps nothing.
            if n_pages == 0
                || self
                    .others
                    .get(&pid)
                    .is_some_and(|other| other.n_pages == n_pages)
            {
                continue;
            }
            let generation = self.others.remove(&pid).and_then(|other| other.generation);
            self.begin(pid, generation);
        }
        self.forget_gone();
        self.recheck_unverified();
        self.retry_refused();
        let is_waited_for = |pid: &Pid| {
            let tracked = self.processes.get(pid).map(|tracked| &tracked.status);
            !self.kernel.sees_lifecycle() || !matches!(tracked, Some(Status::Profiled(_)))
        };
        let interval = match &self.selection.only_pids {
            Some(pids) if pids.iter().any(is_waited_for) => NAMED_RESCAN_INTERVAL,
            Some(_) | None => RESCAN_INTERVAL,
        };
        self.next_rescan = Instant::now() + interval.max(begun.elapsed() * RESCAN_SHARE);
    }

    /// Drops what has ended without an event having reached us.
    fn forget_gone(&mut self) {
        self.others
            .retain(|pid, _| std::path::Path::new(&format!("/proc/{pid}")).exists());
        let gone: Vec<Pid> = self
            .processes
            .keys()
            .copied()
            .filter(|pid| !facts::is_alive(*pid))
            .collect();
        for pid in gone {
            self.forget(pid);
        }
    }

    fn forget(&mut self, pid: Pid) {
        let Some(tracked) = self.processes.remove(&pid) else {
            return;
        };
        let generation = match tracked.status {
            Status::Pending { generation, .. } => generation,
            Status::Profiled(process) => Some(process.generation),
            Status::Refused { .. } => None,
        };
        if let Some(generation) = generation {
            self.drop_generation(pid, generation);
        }
    }

    /// Its samples are of no interest any more.
    fn drop_generation(&mut self, pid: Pid, generation: Generation) {
        self.kernel.remove(pid, generation);
        self.updates.push(Update::Dropped(generation));
    }

    /// Follows an event of the kernel.
    pub fn on_lifecycle(&mut self, event: &Lifecycle) {
        match event.change {
            Change::Fork {
                parent,
                parent_generation,
                generation,
            } => {
                self.on_fork(event.pid, generation, parent, parent_generation);
            }
            Change::Exec { generation, .. } => {
                self.processes.remove(&event.pid);
                self.others.remove(&event.pid);
                self.begin(event.pid, Some(generation));
            }
            // The kernel has removed its entry; the samples before it are on their way or counted.
            Change::Exit { .. } => {
                self.processes.remove(&event.pid);
                self.others.remove(&event.pid);
            }
        }
    }

    fn on_fork(
        &mut self,
        pid: Pid,
        generation: Generation,
        parent: Pid,
        parent_generation: Generation,
    ) {
        let profiled = match self.processes.get(&parent).map(|tracked| &tracked.status) {
            Some(Status::Profiled(process)) if process.generation == parent_generation => {
                Some(process.clone())
            }
            _ => None,
        };
        let Some(process) = profiled else {
            self.begin(pid, Some(generation));
            return;
        };
        let facts = process.facts.of_child(pid, generation);
        let child = PythonProcess {
            pid,
            generation,
            forked_from: Some(parent_generation),
            facts,
            interpreter: process.interpreter.clone(),
        };
        self.profiled(child);
        self.revalidate
            .push((Instant::now() + REVALIDATE_AFTER, pid, generation));
    }

    /// Does what is due, and says when to call again at the latest.
    pub fn on_timer(&mut self) -> Instant {
        let now = Instant::now();
        let due: Vec<Pid> = self
            .processes
            .iter()
            .filter(|(_, tracked)| matches!(&tracked.status, Status::Pending { due, .. } if *due <= now))
            .map(|(pid, _)| *pid)
            .collect();
        for pid in due {
            self.retry(pid);
        }
        let (ready, later) = std::mem::take(&mut self.revalidate)
            .into_iter()
            .partition(|(due, ..)| *due <= now);
        self.revalidate = later;
        let ready: Vec<(Instant, Pid, Generation)> = ready;
        for (_, pid, generation) in ready {
            self.revalidate_slot(pid, generation);
        }
        if self.next_rescan <= now {
            self.scan();
        }
        self.next_due()
    }

    fn next_due(&self) -> Instant {
        let pending = self
            .processes
            .values()
            .filter_map(|tracked| match &tracked.status {
                Status::Pending { due, .. } => Some(*due),
                Status::Profiled(_) | Status::Refused { .. } => None,
            });
        pending
            .chain(self.revalidate.iter().map(|(due, ..)| *due))
            .chain([self.next_rescan])
            .min()
            .unwrap_or(self.next_rescan)
    }

    /// First look at a process.
    fn begin(&mut self, pid: Pid, generation: Option<Generation>) {
        let Ok(mut facts) = Facts::read(pid) else {
            return;
        };
        self.join_pod(&mut facts);
        if pid == self.own_pid || !self.is_selected(&facts, generation.is_some()) {
            self.set_aside(pid, generation, Some(&facts));
            return;
        }
        self.attempt(pid, generation, 0, Box::new(facts));
    }

    fn retry(&mut self, pid: Pid) {
        let Some(Tracked {
            status:
                Status::Pending {
                    generation,
                    n_attempts,
                    facts,
                    ..
                },
        }) = self.processes.remove(&pid)
        else {
            return;
        };
        self.attempt(pid, generation, n_attempts, facts);
    }

    fn attempt(
        &mut self,
        pid: Pid,
        generation: Option<Generation>,
        n_attempts: usize,
        facts: Box<Facts>,
    ) {
        let is_last = n_attempts >= MAX_ATTEMPTS;
        let is_expected = match self.discoverer.discover(pid, &mut |_| {}) {
            Discovery::Python(interpreter) => {
                return self.found(pid, generation, *facts, *interpreter);
            }
            Discovery::Gone => return,
            Discovery::NotPython { expected } => expected,
            // Of a process that cannot be looked into nothing is known.
            Discovery::Refused {
                version: None,
                refusal: Refusal::MemoryUnreadable(_),
            } if !facts.is_called_python() && !self.is_named(pid) => false,
            Discovery::Refused { version, refusal } if is_last => {
                return self.refuse(pid, generation, facts, version, refusal);
            }
            Discovery::NotYet if EXPECTED_DELAYS_MS.get(n_attempts).is_none() => {
                let refusal = Refusal::NotInitialised;
                return self.refuse(pid, generation, facts, None, refusal);
            }
            // Structures that do not fit can be half-initialised.
            Discovery::Refused { .. } | Discovery::NotYet => true,
        };
        let delays = if is_expected {
            EXPECTED_DELAYS_MS
        } else {
            OTHER_DELAYS_MS
        };
        // Without an event the process is not fresh: it has had its time already, and the rescan looks again.
        let is_old = generation.is_none() && !is_expected;
        match delays.get(n_attempts).filter(|_| !is_old) {
            Some(delay) => {
                let due = Instant::now() + Duration::from_millis(*delay);
                let status = Status::Pending {
                    generation,
                    n_attempts: n_attempts + 1,
                    due,
                    is_listed: is_expected || self.is_named(pid),
                    facts,
                };
                self.processes.insert(pid, Tracked { status });
            }
            None => self.set_aside(pid, generation, None),
        }
    }

    /// Not to be profiled, as far as can be told now; `unselected`: since it is not selected.
    fn set_aside(&mut self, pid: Pid, generation: Option<Generation>, unselected: Option<&Facts>) {
        let Ok(n_pages) = facts::n_mapped_pages(pid) else {
            return;
        };
        let generation = if self.is_named(pid) {
            // Its exec is an event only while it has an entry.
            generation.or_else(|| self.add_pending(pid))
        } else {
            if let Some(generation) = generation {
                self.drop_generation(pid, generation);
            }
            None
        };
        self.others.insert(
            pid,
            Other {
                n_pages,
                generation,
                pod_uid: unselected.and_then(Facts::pod_uid).map(Box::from),
            },
        );
    }

    fn is_named(&self, pid: Pid) -> bool {
        let named = self.selection.only_pids.as_ref();
        named.is_some_and(|pids| pids.contains(&pid))
    }

    fn add_pending(&mut self, pid: Pid) -> Option<Generation> {
        let generation = self.new_generation();
        let entry = ProcessEntry {
            generation: generation.0,
            layout: NO_LAYOUT,
            ..ProcessEntry::default()
        };
        matches!(self.kernel.add(pid, &entry), Ok(true)).then_some(generation)
    }

    fn new_generation(&mut self) -> Generation {
        self.last_generation += 1;
        Generation(self.last_generation)
    }

    /// `is_followed`: the kernel told of it, which it does of selected processes and their children only when
    /// the selection is by process id.
    fn is_selected(&self, facts: &Facts, is_followed: bool) -> bool {
        if !self.selection.consent.allows(facts) {
            return false;
        }
        let is_descendant = self.descendants.contains(&facts.pid);
        let cmdline = facts.arguments.join(" ");
        let filter = &self.selection.filter;
        let facts = process::filtered(facts, &cmdline, filter);
        if self.selection.only_pids.is_some() && (is_followed || is_descendant) {
            return !filter.excludes(&facts);
        }
        filter.matches(&facts)
    }

    /// An interpreter was found: tell the kernel, then the agent.
    fn found(
        &mut self,
        pid: Pid,
        generation: Option<Generation>,
        mut facts: Facts,
        interpreter: Interpreter,
    ) {
        Self::name_container(&mut facts);
        let is_new = generation.is_none();
        let generation = generation.unwrap_or_else(|| self.new_generation());
        let process = PythonProcess {
            pid,
            generation,
            forked_from: None,
            facts,
            interpreter,
        };
        let entry = match self.entry(&process) {
            Ok(entry) => entry,
            Err(reason) => return self.refuse_found(process, !is_new, reason),
        };
        let told = if is_new {
            self.kernel.add(pid, &entry)
        } else {
            self.kernel.update(pid, generation, &entry)
        };
        match told {
            // Between the look and the insertion it can have ended, and its entry would stay.
            Ok(true) if is_new && !facts::is_alive(pid) => self.kernel.remove(pid, generation),
            Ok(true) => {
                if process.interpreter.thread_slot.is_none() {
                    self.revalidate
                        .push((Instant::now() + REVALIDATE_AFTER, pid, generation));
                }
                self.profiled(process);
            }
            // It has exec'ed, or ended: an event is on its way.
            Ok(false) => {}
            Err(reason) => self.refuse_found(process, !is_new, reason),
        }
    }

    fn refuse_found(&mut self, process: PythonProcess, has_entry: bool, reason: String) {
        self.refuse(
            process.pid,
            has_entry.then_some(process.generation),
            Box::new(process.facts),
            Some(process.interpreter.version),
            Refusal::NotTracked(reason),
        );
    }

    /// Its entry, where it has one, goes.
    fn refuse(
        &mut self,
        pid: Pid,
        generation: Option<Generation>,
        facts: Box<Facts>,
        version: Option<Version>,
        refusal: Refusal,
    ) {
        if let Some(generation) = generation {
            self.drop_generation(pid, generation);
        }
        let status = Status::Refused {
            facts,
            version,
            refusal,
            looked_at: Instant::now(),
        };
        self.processes.insert(pid, Tracked { status });
    }

    fn profiled(&mut self, process: PythonProcess) {
        let process = Arc::new(process);
        self.others.remove(&process.pid);
        self.updates.push(Update::Profiled(process.clone()));
        self.processes.insert(
            process.pid,
            Tracked {
                status: Status::Profiled(process),
            },
        );
    }

    fn entry(&mut self, process: &PythonProcess) -> Result<ProcessEntry, String> {
        let interpreter = &process.interpreter;
        Ok(ProcessEntry {
            generation: process.generation.0,
            runtime: interpreter.runtime.0,
            eval_start: interpreter.eval.start,
            eval_end: interpreter.eval.end,
            eval_cold_start: interpreter.eval_cold.start,
            eval_cold_end: interpreter.eval_cold.end,
            thread_slot: interpreter.thread_slot.unwrap_or_default(),
            layout: self.kernel.layout_row(&interpreter.layout.walk)?,
            state: ProcessState::Python,
            pool_bytes: interpreter.pool_bytes(),
        })
    }

    /// Every process that is profiled, pending, or a Python that cannot be.
    #[must_use]
    pub fn listing(&mut self) -> Vec<ProcessListing> {
        // The kernel does not tell of the end of those that it has no entry of.
        self.processes.retain(|pid, tracked| {
            !matches!(tracked.status, Status::Refused { .. }) || facts::is_alive(*pid)
        });
        self.processes
            .values()
            .filter(|tracked| tracked.is_listed())
            .map(|tracked| listing(&tracked.status))
            .collect()
    }

    /// How many processes there are in each state.
    #[must_use]
    pub fn counts(&self) -> ProcessCounts {
        let mut counts = ProcessCounts::default();
        for tracked in self.processes.values().filter(|it| it.is_listed()) {
            let state = match &tracked.status {
                Status::Pending { .. } => TrackState::Pending,
                Status::Profiled(_) => TrackState::Profiled,
                Status::Refused { refusal, .. } => {
                    *counts.by_reason.entry(refusal.reason()).or_insert(0) += 1;
                    TrackState::Refused
                }
            };
            *counts.by_state.entry(state).or_insert(0) += 1;
        }
        counts
    }
}

fn listing(status: &Status) -> ProcessListing {
    let (facts, interpreter, version, state, reason, refused) = match status {
        Status::Pending { facts, .. } => (
            &**facts,
            String::new(),
            String::new(),
            TrackState::Pending,
            "not yet discovered".to_owned(),
            None,
        ),
        Status::Profiled(process) => (
            &process.facts,
            process
                .interpreter
                .binary_path
                .to_string_lossy()
                .into_owned(),
            process.interpreter.version.to_string(),
            TrackState::Profiled,
            String::new(),
            None,
        ),
        Status::Refused {
            facts,
            version,
            refusal,
            ..
        } => {
            let version = version
                .map(|version| version.to_string())
                .unwrap_or_default();
            (
                &**facts,
                String::new(),
                version,
                TrackState::Refused,
                refusal.to_string(),
                Some(refusal.reason()),
            )
        }
    };
    ProcessListing {
        facts: facts.clone(),
        interpreter,
        version,
        state,
        reason,
        refused,
        profiled: match status {
            Status::Profiled(process) => Some(process.clone()),
            Status::Pending { .. } | Status::Refused { .. } => None,
        },
    }
}
