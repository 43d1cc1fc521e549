//! The thread that places probes in the allocators of processes, and takes them away where they cost too much.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant, SystemTime};

use super::Event;
use crate::bpf::source::probe_cost::ProbeCost;
use crate::bpf::source::probes::Probes;
use crate::config::AllocationConfig;
use crate::ids::{Generation, Pid};
use crate::process::block::Block;
use crate::process::probe::{Probe, ProbeSite};
use crate::process::{cpu_time, facts};
use crate::profile::model::ProfileType;
use crate::python::process::PythonProcess;
use crate::track::allocators::{Allocators, Found, PoolProbes, Wanted};
use crate::track::process::ProcessListing;

/// What the probes cost is compared with the budget this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Allocators in libraries that were loaded later are looked for this often.
const SEARCH_INTERVAL: Duration = Duration::from_secs(5);

/// The budget counts once the probes cost this in an interval: less is nobody's harm.
const MIN_COST: Duration = Duration::from_millis(1);

/// Types of probes in the order in which they are taken away.
const BY_COST: [ProfileType; 3] = [ProfileType::Alloc, ProfileType::Pools, ProfileType::Mmap];

/// Taking away more probes than this is worth a word: it takes seconds.
const MANY_PROBES: usize = 60;

/// A process's own time is known to a tick: it may have used so much more than is said.
const CLOCK_TICK: f64 = 0.01;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum ProbeMessage {
    /// A process is profiled from now on.
    Profiled(Arc<PythonProcess>),
    /// All that were there when the agent began have been told of: to be answered with this, once their probes stand.
    Scanned(Vec<ProcessListing>),
    /// A program has ended, with memory that nobody will give back.
    Ended(Generation, Vec<Block>),
    /// Nothing is sampled any more.
    Stop,
}

/// What the thread tells.
#[derive(Debug)]
pub(super) struct ProbeNews {
    pub(super) pid: Pid,
    pub(super) change: ProbeChange,
}

/// What happened to the probes of a program.
#[derive(Debug)]
pub(super) enum ProbeChange {
    /// They are there.
    Placed {
        /// How long the process had run, if it began after the agent did.
        delay: Option<Duration>,
        /// Of these types.
        types: Vec<ProfileType>,
        /// Small objects are seen by whole arenas.
        has_arenas: bool,
        /// What they stand on.
        names: String,
    },
    /// They, or some, are not there, for a reason.
    Missing(String),
    /// They were taken away, for a reason.
    Removed {
        /// Those of these types; others are there still.
        types: Vec<ProfileType>,
        /// Why.
        reason: String,
    },
}

/// A process that has probes, or could have.
struct Probed {
    process: Arc<PythonProcess>,
    /// How often it came to a probe, the cost of that, its CPU time, and when they were looked at.
    n_hits: u64,
    cost: Duration,
    cpu_time: Duration,
    looked: Instant,
    /// For how many looks in a row the probes cost too much.
    n_above: u32,
    /// Types that have probes there.
    types: Vec<ProfileType>,
    /// Probes were taken away: no more are placed.
    is_removed: bool,
}

/// See the module's documentation.
pub(super) struct Prober {
    probes: Probes,
    allocators: Allocators,
    config: AllocationConfig,
    processes: HashMap<Generation, Probed>,
    events: SyncSender<Event>,
    begun: SystemTime,
}

impl Prober {
    pub(super) fn new(
        probes: Probes,
        cost: ProbeCost,
        types: &[ProfileType],
        config: AllocationConfig,
        events: SyncSender<Event>,
    ) -> Self {
        Self {
            allocators: Allocators::new(Wanted {
                types: types.to_vec(),
                pool_probes: if cost.is_stepping_cheap() && config.pool_probes == PoolProbes::Auto {
                    PoolProbes::Pools
                } else {
                    config.pool_probes
                },
                any_register: probes.have_any_register(),
            }),
            probes,
            config,
            processes: HashMap::new(),
            events,
            begun: SystemTime::now(),
        }
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self, messages: &Receiver<ProbeMessage>) {
        let mut next_look = Instant::now() + LOOK_INTERVAL;
        let mut next_search = Instant::now() + SEARCH_INTERVAL;
        loop {
            let timeout = next_look.saturating_duration_since(Instant::now());
            match messages.recv_timeout(timeout) {
                Ok(ProbeMessage::Profiled(process)) => self.on_profiled(&process),
                Ok(ProbeMessage::Scanned(listing)) => {
                    // The engine ends after this thread was told to.
                    let _ = self.events.send(Event::Probed(listing));
                }
                Ok(ProbeMessage::Ended(generation, blocks)) => {
                    self.on_ended(generation);
                    self.probes.forget(&blocks);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(ProbeMessage::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            if now >= next_look {
                next_look = now + LOOK_INTERVAL;
                self.look();
            }
            if now >= next_search {
                next_search = now + SEARCH_INTERVAL;
                self.search();
            }
        }
        let n_probes = self.probes.n_attached();
        if n_probes > MANY_PROBES {
            tracing::warn!("taking {n_probes} probes away, which takes the kernel a moment each");
        }
        for probed in self.processes.into_values() {
            self.probes.detach(probed.process.pid);
        }
    }

    fn on_profiled(&mut self, process: &Arc<PythonProcess>) {
        // Some are told of again: when more is known of them.
        if self.processes.contains_key(&process.generation) {
            return;
        }
        let probed = Probed {
            n_hits: 0,
            cost: Duration::ZERO,
            cpu_time: cpu_time::read(process.pid).unwrap_or_default(),
            looked: Instant::now(),
            n_above: 0,
            types: Vec::new(),
            is_removed: false,
            process: process.clone(),
        };
        self.processes.insert(process.generation, probed);
        self.place(process);
    }

    fn on_ended(&mut self, generation: Generation) {
        self.allocators.forget(generation);
        if let Some(probed) = self.processes.remove(&generation) {
            self.probes.detach(probed.process.pid);
        }
    }

    /// Places probes in what was not seen in the process before.
    fn place(&mut self, process: &PythonProcess) {
        let Found {
            sites,
            names,
            missing,
        } = self.allocators.find(process);
        let attached = if sites.is_empty() {
            Ok(())
        } else {
            self.probes.attach(process.pid, &sites)
        };
        let news = |change| {
            Event::Probes(ProbeNews {
                pid: process.pid,
                change,
            })
        };
        let changes = match attached {
            Ok(()) if sites.is_empty() => None,
            Ok(()) => {
                let types = types_of(&sites);
                if let Some(probed) = self.processes.get_mut(&process.generation) {
                    let new = types.iter().filter(|it| !probed.types.contains(it));
                    let new: Vec<_> = new.copied().collect();
                    probed.types.extend(new);
                }
                Some(ProbeChange::Placed {
                    delay: self.delay_of(process),
                    types,
                    has_arenas: sites
                        .iter()
                        .any(|site| matches!(site.probe, Probe::ArenaEnter | Probe::ArenaMapEnter)),
                    names: names.join(", "),
                })
            }
            Err(error) => {
                self.probes.detach(process.pid);
                let reason = error.to_string();
                let probed = self.processes.get_mut(&process.generation);
                let types = probed.map_or_else(Vec::new, |it| std::mem::take(&mut it.types));
                Some(if types.is_empty() {
                    ProbeChange::Missing(reason)
                } else {
                    ProbeChange::Removed { types, reason }
                })
            }
        };
        if !facts::is_alive(process.pid) {
            // Nothing is missing then.
            return;
        }
        for change in changes
            .into_iter()
            .chain(missing.into_iter().map(ProbeChange::Missing))
        {
            // The engine ends after this thread was told to.
            let _ = self.events.send(news(change));
        }
    }

    /// How long a program that began meanwhile had run until its probes stood; `None`: it was there before.
    fn delay_of(&self, process: &PythonProcess) -> Option<Duration> {
        let started = process.facts.started;
        let is_new = started > self.begun;
        is_new.then(|| {
            SystemTime::now()
                .duration_since(started)
                .unwrap_or_default()
        })
    }

    /// Looks for allocators that were loaded later.
    fn search(&mut self) {
        let processes: Vec<_> = self
            .processes
            .values()
            .filter(|probed| !probed.is_removed)
            .map(|probed| probed.process.clone())
            .collect();
        for process in processes {
            self.place(&process);
        }
    }

    /// Takes probes away that cost too much.
    fn look(&mut self) {
        let mut removed = Vec::new();
        let is_unlimited = self.config.budget >= 1.0;
        for (generation, probed) in &mut self.processes {
            let pid = probed.process.pid;
            let (Some((n_hits, cost_ns)), Some(cpu_time)) =
                (self.probes.hits(pid), cpu_time::read(pid))
            else {
                continue;
            };
            let cost = Duration::from_nanos(cost_ns);
            let spent = cost.saturating_sub(probed.cost);
            let own = cpu_time.saturating_sub(probed.cpu_time);
            let seconds = probed.looked.elapsed().as_secs_f64();
            let per_second = n_hits.saturating_sub(probed.n_hits) as f64 / seconds;
            probed.n_hits = n_hits;
            probed.cost = cost;
            probed.cpu_time = cpu_time;
            probed.looked = Instant::now();
            let share = spent.as_secs_f64() / (own.as_secs_f64() + CLOCK_TICK);
            let is_above = !is_unlimited && spent >= MIN_COST && share > self.config.budget;
            probed.n_above = if is_above { probed.n_above + 1 } else { 0 };
            // One interval may be an odd one, unless it is far too much.
            if probed.n_above >= 2 || (is_above && share > 2.0 * self.config.budget) {
                let reason = format!(
                    "it came to its probes {per_second:.0} times a second, which cost it some {:.1} % of its CPU time \
                     (above --alloc-budget {:.1}%)",
                    share.min(1.0) * 100.0,
                    self.config.budget * 100.0
                );
                probed.is_removed = true;
                probed.n_above = 0;
                // There are far more calls of `malloc` than pools of small objects, and of those more than mappings: what is
                // left may be cheap enough.
                let dearest = BY_COST.into_iter().find(|it| probed.types.contains(it));
                probed.types.retain(|it| Some(*it) != dearest);
                removed.push((*generation, pid, dearest, !probed.types.is_empty(), reason));
            }
        }
        for (generation, pid, dearest, has_others, reason) in removed {
            if let Some(profile_type) = dearest.filter(|_| has_others) {
                self.probes.detach_type(pid, profile_type);
                // The others' cost differs: what was spent is counted anew.
                if let Some(probed) = self.processes.get_mut(&generation)
                    && let Some((n_hits, cost_ns)) = self.probes.hits(pid)
                {
                    (probed.n_hits, probed.cost) = (n_hits, Duration::from_nanos(cost_ns));
                }
            } else {
                self.probes.detach(pid);
            }
            let types = dearest.into_iter().collect();
            let change = ProbeChange::Removed { types, reason };
            let _ = self.events.send(Event::Probes(ProbeNews { pid, change }));
        }
    }
}

/// What probes at these places show.
fn types_of(sites: &[ProbeSite]) -> Vec<ProfileType> {
    let has = |profile_type: &ProfileType| {
        let mut types = sites.iter().map(|site| site.probe.profile_type());
        types.any(|it| it == *profile_type)
    };
    ProfileType::ALL.into_iter().filter(has).collect()
}
