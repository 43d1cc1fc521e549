//! Loads the kernel programs: settings in, verified programs and their maps out.

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{PerfEvent, ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfLoader};

use super::log;
use super::ring::EventRing;
use super::source::CpuSource;
use super::tables::{CounterTable, LayoutTable, ProcessTable};
use crate::kernel::btf::{Btf, BtfError};

/// The programs' object file, linked into the binary.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pyagent-bpf"));

/// What the kernel programs are told before they are loaded.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Every exec makes a pending entry, so that new processes are found.
    pub follow_all: bool,
    /// A child of a profiled process is profiled.
    pub follow_children: bool,
    /// Size of the ring buffer in bytes: a power of two, at least one page.
    pub ring_bytes: u32,
    /// Level of the programs' own log: 0 is off, 4 is debug.
    pub log_level: u8,
}

/// Why the programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// An offset is missing.
    #[error(transparent)]
    Btf(#[from] BtfError),
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
    /// Records from the kernel.
    pub ring: EventRing,
    /// Processes that are profiled.
    pub processes: ProcessTable,
    /// Layouts of their interpreters.
    pub layouts: LayoutTable,
    /// The kernel's counters.
    pub counters: CounterTable,
}

/// Raw tracepoints of a process's life, by program.
const LIFECYCLE: [(&str, &str); 3] = [
    ("process_fork", "sched_process_fork"),
    ("process_exec", "sched_process_exec"),
    ("process_exit", "sched_process_exit"),
];

impl Programs {
    /// Loads all programs and attaches those that follow processes. Needs CAP_BPF and CAP_PERFMON (5.8+), or
    /// CAP_SYS_ADMIN.
    pub fn load(settings: Settings) -> Result<Self, LoadError> {
        let offsets = Offsets::of_running_kernel()?;
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
            .override_global("TASK_COMM", &offsets.comm, true)
            .override_global("TASK_SIGNAL", &offsets.signal, true)
            .override_global("SIGNAL_LIVE", &offsets.signal_live, true)
            .override_global("FOLLOW_ALL", &follow_all, true)
            .override_global("FOLLOW_CHILDREN", &follow_children, true)
            .override_global("AGENT_PID", &agent_pid, true)
            .override_global("WAKEUP_BYTES", &wakeup_bytes, true)
            .override_global(aya_log::LEVEL, &settings.log_level, false)
            .map_max_entries("EVENTS", settings.ring_bytes);
        if settings.log_level == 0 {
            loader.map_max_entries("AYA_LOGS", 4096);
        }
        let mut ebpf = loader.load(OBJECT)?;
        drop(loader);
        if settings.log_level > 0 {
            log::forward(&mut ebpf);
        }
        for (program, tracepoint) in LIFECYCLE {
            attach_lifecycle(&mut ebpf, program, tracepoint)?;
        }
        load_sampler(&mut ebpf, CpuSource::PROGRAM)?;
        let ring = RingBuf::try_from(take(&mut ebpf, "EVENTS")?)?;
        let processes = HashMap::try_from(take(&mut ebpf, "PROCESSES")?)?;
        let layouts = Array::try_from(take(&mut ebpf, "LAYOUTS")?)?;
        let counters = PerCpuArray::<MapData, u64>::try_from(take(&mut ebpf, "COUNTERS")?)?;
        Ok(Self {
            ring: EventRing::new(ring),
            processes: ProcessTable::new(processes),
            layouts: LayoutTable::new(layouts),
            counters: CounterTable::new(counters),
            ebpf,
        })
    }

    /// Splits into what samples (and must stay alive), and what the tasks of the agent take.
    #[must_use]
    pub fn split(self) -> (Ebpf, EventRing, ProcessTable, LayoutTable, CounterTable) {
        (
            self.ebpf,
            self.ring,
            self.processes,
            self.layouts,
            self.counters,
        )
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Part(name))
}

fn attach_lifecycle(
    ebpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &str,
) -> Result<(), LoadError> {
    let refused = |source| LoadError::Program {
        program: name,
        source: Box::new(source),
    };
    let program = ebpf.program_mut(name).ok_or(LoadError::Part(name))?;
    let program: &mut RawTracePoint = program.try_into().map_err(refused)?;
    program.load().map_err(refused)?;
    program.attach(tracepoint).map_err(refused)?;
    Ok(())
}

fn load_sampler(ebpf: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
    let refused = |source| LoadError::Program {
        program: name,
        source: Box::new(source),
    };
    let program = ebpf.program_mut(name).ok_or(LoadError::Part(name))?;
    let program: &mut PerfEvent = program.try_into().map_err(refused)?;
    program.load().map_err(refused)
}

/// Offsets of kernel structures, in bytes.
#[derive(Debug, Clone, Copy)]
struct Offsets {
    thread_pointer: u32,
    pid: u32,
    tgid: u32,
    comm: u32,
    signal: u32,
    signal_live: u32,
}

impl Offsets {
    fn of_running_kernel() -> Result<Self, BtfError> {
        let btf = Btf::of_running_kernel()?;
        let task = |path| btf.offset_of("task_struct", path);
        Ok(Self {
            thread_pointer: task("thread.fsbase")?,
            pid: task("pid")?,
            tgid: task("tgid")?,
            comm: task("comm")?,
            signal: task("signal")?,
            signal_live: btf.offset_of("signal_struct", "live")?,
        })
    }
}
