//! Time off the CPU: programs at the scheduler's turns, where threads are switched out, and where they run again.
//!
//! The second of them takes the samples, and must run in the thread that goes on, before it is back in user space. Since
//! 6.15 the scheduler has a tracepoint there (`sched_exit_tp`); before, `finish_task_switch` is called there, which takes a
//! kprobe.

use std::fs::File;
use std::io::{BufRead as _, BufReader};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError};
use aya::programs::{KProbe, Program, ProgramError, RawTracePoint};

use super::{Build, ProgramName};
use crate::bpf::tables::OffCpuValue;
use crate::ids::Pid;

const OUT: ProgramName = ProgramName::Two("switch_out", "switch_out_probed");
const IN: ProgramName = ProgramName::Two("switch_in", "switch_in_probed");
const IN_KPROBE: ProgramName = ProgramName::Two("switch_in_kprobe", "switch_in_kprobe_probed");

/// The function that the scheduler calls in the thread that goes on. Compilers add to its name: `.isra.0`.
const FUNCTION: &str = "finish_task_switch";

/// Why waits cannot be seen.
#[derive(Debug, thiserror::Error)]
pub enum OffCpuError {
    /// The state of a thread cannot be found.
    #[error("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")]
    NoBtf,
    /// The object lacks a program.
    #[error("the BPF object has no {0}: rebuild pyagent")]
    Missing(&'static str),
    /// The kernel refused a program.
    #[error("the kernel refused the BPF program {program}: {source}")]
    Refused {
        /// Its name.
        program: &'static str,
        /// What aya says.
        source: Box<ProgramError>,
    },
    /// There is no place where the thread that goes on can be looked at.
    #[error("it takes a kernel of 6.15 or newer, or one with kprobes (CONFIG_KPROBES): {0}")]
    NoPlace(Box<ProgramError>),
}

/// Loads the programs and attaches them; says where. They take no samples yet: see [`OffCpu`].
pub(in crate::bpf) fn attach(ebpf: &mut Ebpf, build: Build) -> Result<&'static str, OffCpuError> {
    let mut place = "the scheduler's tracepoints sched_switch and sched_exit_tp";
    let name = IN.of(build);
    let at_tracepoint = tracepoint(ebpf, name)?;
    at_tracepoint.load().map_err(refused(name))?;
    if at_tracepoint.attach("sched_exit_tp").is_err() {
        // There is none.
        at_tracepoint.unload().map_err(refused(name))?;
        attach_kprobe(ebpf, IN_KPROBE.of(build))?;
        place = "the scheduler's tracepoint sched_switch and a kprobe on finish_task_switch";
    }
    let name = OUT.of(build);
    let out = tracepoint(ebpf, name)?;
    let attached = out.load().and_then(|()| out.attach("sched_switch"));
    attached.map(|_| place).map_err(refused(name))
}

fn attach_kprobe(ebpf: &mut Ebpf, name: &'static str) -> Result<(), OffCpuError> {
    let program = ebpf.program_mut(name);
    let Some(Program::KProbe(program)) = program else {
        return Err(OffCpuError::Missing(name));
    };
    let program: &mut KProbe = program;
    program.load().map_err(refused(name))?;
    let attached = program.attach(function(), 0);
    attached
        .map(drop)
        .map_err(|source| OffCpuError::NoPlace(Box::new(source)))
}

/// The function as this kernel calls it.
fn function() -> String {
    let found = File::open("/proc/kallsyms").ok().and_then(|file| {
        BufReader::new(file)
            .lines()
            .map_while(Result::ok)
            .find_map(|line| {
                let name = line.split_ascii_whitespace().nth(2)?;
                let rest = name.strip_prefix(FUNCTION)?;
                (rest.is_empty() || rest.starts_with(".isra.")).then(|| name.to_owned())
            })
    });
    found.unwrap_or_else(|| FUNCTION.to_owned())
}

fn tracepoint<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut RawTracePoint, OffCpuError> {
    match ebpf.program_mut(name) {
        Some(Program::RawTracePoint(program)) => Ok(program),
        _ => Err(OffCpuError::Missing(name)),
    }
}

fn refused(program: &'static str) -> impl Fn(ProgramError) -> OffCpuError {
    move |source| OffCpuError::Refused {
        program,
        source: Box::new(source),
    }
}

/// What the agent and the programs tell each other.
pub(in crate::bpf) struct OffCpuMaps {
    /// The length from which on all waits are taken.
    pub(in crate::bpf) threshold: Array<MapData, u64>,
    /// Threads that are known.
    pub(in crate::bpf) threads: HashMap<MapData, u32, OffCpuValue>,
}

/// From which length on all waits are taken; shorter ones are taken with a probability in proportion to their length.
pub(super) struct OffCpu {
    maps: OffCpuMaps,
    ns: u64,
}

impl OffCpu {
    pub(super) fn new(maps: OffCpuMaps, ns: u64) -> Self {
        Self {
            maps,
            ns: ns.max(1),
        }
    }

    pub(super) fn ns(&self) -> u64 {
        self.ns
    }

    /// For waits that end from now on.
    pub(super) fn set_ns(&mut self, ns: u64) {
        self.ns = ns.max(1);
    }

    /// Waits are sampled from now on.
    pub(super) fn open(&mut self) -> Result<(), MapError> {
        self.maps.threshold.set(0, self.ns, 0)
    }

    /// None is sampled any more.
    pub(super) fn close(&mut self) {
        // It is an array's only element.
        let _ = self.maps.threshold.set(0, 0, 0);
    }

    /// Threads that are off the CPU: their processes, and since when.
    pub(super) fn threads(&self) -> Vec<(Pid, u64)> {
        let threads = self.maps.threads.iter().filter_map(Result::ok);
        threads
            .filter(|(_, OffCpuValue(thread))| thread.since_ns != 0)
            .map(|(_, OffCpuValue(thread))| (Pid(thread.pid), thread.since_ns))
            .collect()
    }
}
