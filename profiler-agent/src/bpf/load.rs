//! Loads the kernel programs: settings in, verified programs and their maps out.

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, Program, ProgramError, RawTracePoint};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};

use super::access::{Access, AccessError};
use super::log;
use super::ring::EventRing;
use super::source::events::EventOpener;
use super::source::probes::Probes;
use super::source::{Build, Periods, SharedEbpf, Source, Sources};
use super::tables::{BlockValue, CounterTable, HitsValue, LayoutTable, ProcessTable};
use crate::process::huge_pages::has_huge_pages;
use crate::profile::model::ProfileType;

/// The programs' object file, linked into the binary.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pyagent-bpf"));

/// Scratches of each CPU where probes take samples: one more than without.
const N_SCRATCHES: u32 = 3;

/// Most sampled allocations that are under way at the same time: one for each thread.
const MAX_CALLS: u32 = 4096;

/// What the kernel programs are told before they are loaded.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// What is to be sampled: the programs of others are not loaded.
    pub types: &'a [ProfileType],
    /// Every exec makes a pending entry, so that new processes are found.
    pub follow_all: bool,
    /// A child of a profiled process is profiled.
    pub follow_children: bool,
    /// Size of the ring buffer in bytes: a power of two, at least one page.
    pub ring_bytes: u32,
    /// Entries of the process map.
    pub max_processes: u32,
    /// Mean distance of sampled allocations, in bytes.
    pub alloc_period: u64,
    /// Distance of sampled pools of small objects, in bytes.
    pub pool_period: u64,
    /// Most sampled allocations that are followed until they are given back; 80 bytes of kernel memory each.
    pub max_allocations: u32,
    /// Level of the programs' own log: 0 is off, 4 is debug.
    pub log_level: u8,
}

/// Why the programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel's structures cannot be read.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The object, or a map of it, was refused.
    #[error("the kernel refused the BPF object: {0}")]
    Object(#[from] aya::EbpfError),
    /// A program was refused.
    #[error("the kernel refused the BPF program {program}: {source}")]
    Program {
        /// Name of the program.
        program: &'static str,
        /// What aya says.
        source: Box<ProgramError>,
    },
    /// The object lacks a part; it is of another build.
    #[error("the BPF object has no {0}: rebuild pyagent")]
    Part(&'static str),
    /// A map is of another kind.
    #[error("map: {0}")]
    Map(#[from] aya::maps::MapError),
}

/// The loaded programs.
pub struct Programs {
    /// Keeps programs and links alive; detaches when dropped.
    ebpf: Ebpf,
    /// The build of the sampling programs that was loaded.
    build: Build,
    /// Records from the kernel.
    pub ring: EventRing,
    /// Processes that are profiled.
    pub processes: ProcessTable,
    /// Layouts of their interpreters.
    pub layouts: LayoutTable,
    /// The kernel's counters.
    pub counters: CounterTable,
    /// Processes that have probes.
    probed: HashMap<MapData, u32, HitsValue>,
    /// Sampled allocations that are alive.
    live: HashMap<MapData, BlockValue, u64>,
}

impl Programs {
    /// Loads the programs and attaches those that follow processes. Needs CAP_BPF and CAP_PERFMON (5.8+), or
    /// CAP_SYS_ADMIN.
    pub fn load(settings: Settings<'_>) -> Result<Self, LoadError> {
        Self::load_by(settings, &Access::of_running_kernel()?)
    }

    /// The same with a way to read the kernel's structures that was chosen.
    pub fn load_by(settings: Settings<'_>, access: &Access) -> Result<Self, LoadError> {
        let offsets = access.offsets();
        let agent_pid = std::process::id();
        let (follow_all, follow_children) = (
            u32::from(settings.follow_all),
            u32::from(settings.follow_children),
        );
        let wakeup_bytes = u64::from(settings.ring_bytes / 4);
        let mut loader = EbpfLoader::new();
        loader
            .override_global("TASK_THREAD_POINTER", &offsets.thread_pointer, true)
            .override_global("TASK_PID", &offsets.pid, true)
            .override_global("TASK_TGID", &offsets.tgid, true)
            .override_global("TASK_SIGNAL", &offsets.signal, true)
            .override_global("SIGNAL_LIVE", &offsets.signal_live, true)
            .override_global("TASK_START", &offsets.start, true)
            .override_global("TASK_STACK", &offsets.stack, true)
            .override_global("STACK_REGISTERS", &offsets.stack_registers, true)
            .override_global("FOLLOW_ALL", &follow_all, true)
            .override_global("FOLLOW_CHILDREN", &follow_children, true)
            .override_global("AGENT_PID", &agent_pid, true)
            .override_global("WAKEUP_BYTES", &wakeup_bytes, true)
            .override_global("ALLOC_PERIOD", &settings.alloc_period, true)
            .override_global("POOL_PERIOD", &settings.pool_period, true)
            .override_global(aya_log::LEVEL, &settings.log_level, false)
            .map_max_entries("EVENTS", settings.ring_bytes)
            .map_max_entries("PROCESSES", settings.max_processes);
        if settings.types.iter().any(|it| it.is_of_allocations()) {
            let n_cpus = nr_cpus().map_or(1, |n_cpus| n_cpus as u32).max(1);
            loader
                .map_max_entries("SCRATCHES", N_SCRATCHES)
                .map_max_entries("PREEMPTIBLE", n_cpus)
                .map_max_entries("PROBED", settings.max_processes)
                .map_max_entries("CALLS", MAX_CALLS)
                .map_max_entries("LIVE", settings.max_allocations);
        }
        if settings.log_level == 0 {
            loader.map_max_entries("AYA_LOGS", rustix::param::page_size() as u32);
        }
        let mut ebpf = loader.load(OBJECT)?;
        drop(loader);
        if settings.log_level > 0 {
            log::forward(&mut ebpf);
        }
        attach(&mut ebpf, "process_exec", "sched_process_exec")?;
        let build = match access {
            Access::Typed { btf, .. } => {
                attach_typed(&mut ebpf, "process_fork", "sched_process_fork", btf)?;
                attach(&mut ebpf, "process_exit", "sched_process_exit")?;
                Build::Typed
            }
            Access::Probed { .. } => {
                attach(&mut ebpf, "process_fork_probed", "sched_process_fork")?;
                attach(&mut ebpf, "process_exit_probed", "sched_process_exit")?;
                Build::Probed
            }
        };
        for profile_type in settings.types {
            for name in Source::of(*profile_type).programs {
                load_sampler(&mut ebpf, name.of(build))?;
            }
        }
        if settings.types.contains(&ProfileType::Faults) && has_huge_pages() {
            // Without it some small pages count as huge ones.
            if let Err(error) = attach(&mut ebpf, "collapse", "mm_collapse_huge_page") {
                tracing::warn!("{error}");
            }
        }
        let ring = RingBuf::try_from(take(&mut ebpf, "EVENTS")?)?;
        let processes = HashMap::try_from(take(&mut ebpf, "PROCESSES")?)?;
        let layouts = Array::try_from(take(&mut ebpf, "LAYOUTS")?)?;
        let counters = PerCpuArray::<MapData, u64>::try_from(take(&mut ebpf, "COUNTERS")?)?;
        let probed = HashMap::try_from(take(&mut ebpf, "PROBED")?)?;
        let live = HashMap::try_from(take(&mut ebpf, "LIVE")?)?;
        Ok(Self {
            ring: EventRing::new(ring),
            processes: ProcessTable::new(processes, settings.max_processes),
            layouts: LayoutTable::new(layouts),
            counters: CounterTable::new(counters),
            probed,
            live,
            build,
            ebpf,
        })
    }

    /// Splits into what takes samples (and keeps all programs alive) of events that `open` opens, and what the tasks of the
    /// agent take.
    #[must_use]
    pub fn split(
        self,
        periods: Periods,
        open: EventOpener,
    ) -> (Sources, Probes, EventRing, ProcessTable, LayoutTable) {
        let ebpf = SharedEbpf::new(self.ebpf);
        (
            Sources::new(ebpf.clone(), self.build, self.counters, periods, open),
            Probes::new(ebpf, self.build, self.probed, self.live),
            self.ring,
            self.processes,
            self.layouts,
        )
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Part(name))
}

/// Loads a program and attaches it to a raw tracepoint.
fn attach(ebpf: &mut Ebpf, name: &'static str, tracepoint: &str) -> Result<(), LoadError> {
    let program: &mut RawTracePoint = program(ebpf, name)?;
    let loaded = program.load().and_then(|()| program.attach(tracepoint));
    loaded.map(drop).map_err(refused(name))
}

/// The same for one whose arguments have types.
fn attach_typed(
    ebpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &str,
    btf: &aya::Btf,
) -> Result<(), LoadError> {
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    let loaded = program
        .load(tracepoint, btf)
        .and_then(|()| program.attach());
    loaded.map(drop).map_err(refused(name))
}

fn load_sampler(ebpf: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
    let loaded = match ebpf.program_mut(name).ok_or(LoadError::Part(name))? {
        Program::PerfEvent(program) => program.load(),
        Program::UProbe(program) => program.load(),
        _ => return Err(LoadError::Part(name)),
    };
    loaded.map_err(refused(name))
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(LoadError::Part(name))?;
    program.try_into().map_err(refused(name))
}

fn refused(program: &'static str) -> impl Fn(ProgramError) -> LoadError {
    move |source| LoadError::Program {
        program,
        source: Box::new(source),
    }
}
