//! Event sources: the registry, one row a source, one file each; and what is attached to every online CPU.

mod cpu;
pub mod events;
mod faults;
pub mod probe_cost;
pub mod probes;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use aya::programs::{PerfEvent, ProgramError};
use aya::util::online_cpus;
use profiler_common::counters::{Counter, N_COUNTERS};
use profiler_common::event::source;

use self::cpu::CpuTimers;
use self::events::EventOpener;
use self::faults::FaultEvents;
use super::tables::CounterTable;
use crate::kernel::hotplug::{CpuMessages, Gone};
use crate::profile::model::ProfileType;

/// A row of [`SOURCES`].
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// What its samples make: the name that `--type` takes, and what their values mean.
    pub profile_type: ProfileType,
    /// Its number in the records.
    pub number: u8,
    /// What it measures, for `--help` and `doctor`.
    pub summary: &'static str,
    /// The programs that take its samples, first; then others that it needs.
    pub(super) programs: &'static [ProgramName],
}

/// A program of the BPF object.
#[derive(Debug, Clone, Copy)]
pub(super) enum ProgramName {
    /// In two builds: the one for typed pointers, and the one where the kernel's memory must be read.
    Two(&'static str, &'static str),
    /// The same everywhere.
    One(&'static str),
}

/// Which build of the programs was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Build {
    /// The kernel's structures are reached through typed pointers.
    Typed,
    /// Its memory is read.
    Probed,
}

impl ProgramName {
    /// The name in the object.
    pub(super) const fn of(self, build: Build) -> &'static str {
        match (self, build) {
            (Self::Two(name, _), Build::Typed)
            | (Self::Two(_, name), Build::Probed)
            | (Self::One(name), _) => name,
        }
    }
}

/// Every event source.
pub const SOURCES: &[Source] = &[
    Source {
        profile_type: ProfileType::Cpu,
        number: source::CPU,
        summary: "time on the CPU (software event cpu-clock, one timer per online CPU)",
        programs: &[ProgramName::Two("sample_cpu", "sample_cpu_probed")],
    },
    Source {
        profile_type: ProfileType::Faults,
        number: source::FAULTS,
        summary: "memory touched for the first time (software event page-faults on each online CPU)",
        programs: &[ProgramName::Two("sample_faults", "sample_faults_probed")],
    },
    Source {
        profile_type: ProfileType::Pools,
        number: source::POOLS,
        summary: "memory for small objects (probes on CPython's allocator in each process, when asked for)",
        programs: probes::POOLS,
    },
    Source {
        profile_type: ProfileType::Alloc,
        number: source::ALLOC,
        summary: "memory from malloc and its like (probes in each process, when asked for)",
        programs: probes::ALLOC,
    },
    Source {
        profile_type: ProfileType::Mmap,
        number: source::MMAP,
        summary: "address space from mmap and its like (probes in each process, when asked for)",
        programs: probes::MMAP,
    },
];

impl Source {
    /// The row of a type.
    #[must_use]
    pub fn of(profile_type: ProfileType) -> &'static Self {
        SOURCES
            .iter()
            .find(|source| source.profile_type == profile_type)
            .expect("every type has a source")
    }

    /// The row of a record's number.
    #[must_use]
    pub fn numbered(number: u8) -> Option<&'static Self> {
        SOURCES.iter().find(|source| source.number == number)
    }
}

/// Why sampling could not be switched on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The program is missing or of another kind.
    #[error("the BPF object has no program {0}: rebuild pyagent")]
    Program(&'static str),
    /// The list of CPUs could not be read.
    #[error("cannot read the list of online CPUs: {0}")]
    Cpus(std::io::Error),
    /// A probe could not be placed.
    #[error("cannot probe {file} at {offset:#x}: {source}")]
    Probe {
        /// The file.
        file: String,
        /// Offset in it.
        offset: u64,
        /// What aya says.
        source: Box<ProgramError>,
    },
    /// The table of processes with probes is full, or could not be written.
    #[error("cannot note the process: {0}")]
    Table(#[from] aya::maps::MapError),
    /// The event could not be opened on a CPU.
    #[error("cannot sample CPU {cpu}")]
    Attach {
        /// The CPU.
        cpu: u32,
        /// What aya says.
        source: Box<ProgramError>,
    },
    /// The thread that opens events has ended.
    #[error("the thread that opens events has ended")]
    NoOpener,
}

/// How often each source takes a sample; `None`: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Periods {
    /// Nanoseconds between two samples of a CPU.
    pub cpu_ns: Option<u64>,
    /// Page faults of a CPU from one sample to the next.
    pub faults: Option<u64>,
}

/// The loaded programs, which two threads attach.
#[derive(Clone)]
pub(super) struct SharedEbpf(Arc<Mutex<Ebpf>>);

impl SharedEbpf {
    pub(super) fn new(ebpf: Ebpf) -> Self {
        Self(Arc::new(Mutex::new(ebpf)))
    }

    fn lock(&self) -> MutexGuard<'_, Ebpf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The attached sources. Dropping the [`Ebpf`] it holds detaches everything.
pub struct Sources {
    ebpf: SharedEbpf,
    counters: CounterTable,
    cpu: Option<CpuTimers>,
    faults: Option<FaultEvents>,
    open: EventOpener,
    /// CPUs that everything is attached to.
    cpus: BTreeSet<u32>,
    /// Tells of CPUs that went offline; `None`: only those count that are offline when the list is read.
    messages: Option<CpuMessages>,
}

impl Sources {
    /// Not attached yet.
    #[must_use]
    pub(super) fn new(
        ebpf: SharedEbpf,
        build: Build,
        counters: CounterTable,
        periods: Periods,
        open: EventOpener,
    ) -> Self {
        let name = |profile_type| Source::of(profile_type).programs[0].of(build);
        Self {
            ebpf,
            counters,
            cpu: periods
                .cpu_ns
                .map(|period_ns| CpuTimers::new(name(ProfileType::Cpu), period_ns)),
            faults: periods
                .faults
                .map(|period| FaultEvents::new(name(ProfileType::Faults), period)),
            open,
            cpus: BTreeSet::new(),
            messages: CpuMessages::listen().ok(),
        }
    }

    /// How often samples are taken now.
    #[must_use]
    pub fn periods(&self) -> Periods {
        Periods {
            cpu_ns: self.cpu.as_ref().map(CpuTimers::period_ns),
            faults: self.faults.as_ref().map(FaultEvents::period),
        }
    }

    /// Number of CPUs that are sampled.
    #[must_use]
    pub fn n_cpus(&self) -> usize {
        self.cpus.len()
    }

    /// Sum over all CPUs of each counter of the kernel programs, in the order of
    /// [`Counter::ALL`].
    #[must_use]
    pub fn totals(&self) -> [u64; N_COUNTERS] {
        self.counters.totals()
    }

    /// Sum over all CPUs of one counter of the kernel programs.
    #[must_use]
    pub fn total(&self, counter: Counter) -> u64 {
        self.counters.total(counter)
    }

    /// How often the timers of the CPU clock did not fire on CPUs that had something to run, since the start.
    #[must_use]
    pub fn n_missed(&self) -> u64 {
        let cpu = self.cpu.as_ref();
        cpu.map_or(0, |cpu| cpu.n_missed(&self.counters))
    }

    /// Attaches to CPUs that came online, or came back, and forgets those that went. Returns how many came.
    pub fn sync(&mut self) -> Result<usize, SourceError> {
        // First the messages: whoever goes after them is not in the list, or in the messages of the next time.
        let went = self.messages.as_ref().map(CpuMessages::gone);
        let online = online_cpus().map_err(|(_, error)| SourceError::Cpus(error))?;
        let is_gone = |cpu: &u32| match &went {
            Some(Gone::Unknown) => true,
            Some(Gone::Cpus(cpus)) => cpus.contains(cpu) || !online.contains(cpu),
            None => !online.contains(cpu),
        };
        let gone: Vec<u32> = self.cpus.iter().copied().filter(is_gone).collect();
        let is_new = |cpu: &u32| !self.cpus.contains(cpu) || gone.contains(cpu);
        let new: Vec<u32> = online.iter().copied().filter(is_new).collect();
        self.detach(&gone);
        self.attach(&new)?;
        Ok(new.len())
    }

    /// Changes how often samples are taken. The period of each sample is in its record, so nothing is misread
    /// meanwhile.
    pub fn set_periods(&mut self, periods: Periods) -> Result<(), SourceError> {
        let cpus: Vec<u32> = self.cpus.iter().copied().collect();
        self.detach(&cpus);
        if let (Some(cpu), Some(period_ns)) = (&mut self.cpu, periods.cpu_ns) {
            cpu.set_period_ns(period_ns);
        }
        if let (Some(faults), Some(period)) = (&mut self.faults, periods.faults) {
            faults.set_period(period);
        }
        self.attach(&cpus)
    }

    /// Stops sampling.
    pub fn detach_all(&mut self) {
        let cpus: Vec<u32> = self.cpus.iter().copied().collect();
        self.detach(&cpus);
    }

    fn attach(&mut self, cpus: &[u32]) -> Result<(), SourceError> {
        if cpus.is_empty() {
            return Ok(());
        }
        let attached = self.attach_sources(cpus);
        if attached.is_err() {
            // What is attached to a part of them would be attached once more at the next try.
            self.detach(cpus);
        } else {
            self.cpus.extend(cpus);
        }
        attached
    }

    fn attach_sources(&mut self, cpus: &[u32]) -> Result<(), SourceError> {
        if let Some(timers) = &mut self.cpu {
            timers.attach(&self.ebpf, &self.counters, cpus, &self.open)?;
        }
        if let Some(faults) = &mut self.faults {
            faults.attach(&self.ebpf, cpus, &self.open)?;
        }
        Ok(())
    }

    fn detach(&mut self, cpus: &[u32]) {
        if cpus.is_empty() {
            return;
        }
        if let Some(timers) = &mut self.cpu {
            timers.detach(&self.ebpf, &self.counters, cpus);
        }
        if let Some(faults) = &mut self.faults {
            faults.detach(&self.ebpf, cpus);
        }
        for cpu in cpus {
            self.cpus.remove(cpu);
        }
    }
}

/// A loaded sampling program.
fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut PerfEvent, SourceError> {
    let program = ebpf.program_mut(name).ok_or(SourceError::Program(name))?;
    program.try_into().map_err(|_| SourceError::Program(name))
}
