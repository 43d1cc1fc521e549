//! Processes come, replace their program and go: the process map follows, and the agent is told. So it is of pages that
//! are put together.
//!
//! These programs run in process context (raw tracepoints), where updating maps is safe. What is unknown is
//! reported and learned: an exec makes a pending entry, which the agent turns into a Python or removes.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns};
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::debug;
use profiler_common::counters::Counter;
use profiler_common::event::{LifecycleRecord, RECORD_VERSION, RecordHead, RecordKind};
use profiler_common::process::{NO_LAYOUT, ProcessEntry, ProcessState};

use crate::globals;
use crate::maps::{EVENTS, PROCESSES, count};
use crate::task::{self, Task};

const FORCE_WAKEUP: u64 = 2; // BPF_RB_FORCE_WAKEUP

/// A generation that no other process has or had: time of the event and CPU. The agent's own generations are
/// small numbers.
#[inline(always)]
fn new_generation() -> u64 {
    // SAFETY: helpers without arguments.
    unsafe { (bpf_ktime_get_boot_ns() << 10) ^ u64::from(bpf_get_smp_processor_id()) }
}

/// `sched_process_fork`, in the parent. A new thread is no new process.
#[inline(always)]
pub(crate) fn fork<T: Task>(ctx: &impl EbpfContext, child: u64) -> Option<()> {
    if globals::follow_children() == 0 && globals::follow_all() == 0 {
        return None;
    }
    let (child_tid, child_pid) = T::ids(child)?;
    if child_tid != child_pid {
        return None;
    }
    let parent_pid = ctx.tgid();
    // SAFETY: the entry is copied at once.
    let mut entry: ProcessEntry = unsafe { *PROCESSES.get(&parent_pid)? };
    let previous_generation = entry.generation;
    entry.generation = new_generation();
    if PROCESSES.insert(&child_pid, &entry, 0).is_err() {
        count(Counter::ForkLost);
        return None;
    }
    debug!(ctx, "fork {} -> {}", parent_pid, child_pid);
    tell(
        RecordKind::Fork,
        child_pid,
        parent_pid,
        entry.generation,
        previous_generation,
    );
    Some(())
}

/// `sched_process_exec`: task, old pid, binary. Also the exec of a thread, which then is the process.
#[inline(always)]
pub(crate) fn exec(ctx: &RawTracePointContext) -> Option<()> {
    let pid = ctx.tgid();
    // SAFETY: the generation is copied at once.
    let previous = unsafe { PROCESSES.get(&pid) }.map(|entry| entry.generation);
    if (previous.is_none() && globals::follow_all() == 0) || pid == globals::agent_pid() {
        return None;
    }
    let entry = ProcessEntry {
        generation: new_generation(),
        layout: NO_LAYOUT,
        state: ProcessState::Pending,
        ..ProcessEntry::default()
    };
    if PROCESSES.insert(&pid, &entry, 0).is_err() {
        count(Counter::ExecLost);
        let _ = PROCESSES.remove(&pid);
        return None;
    }
    debug!(ctx, "exec {}", pid);
    tell(
        RecordKind::Exec,
        pid,
        0,
        entry.generation,
        previous.unwrap_or(0),
    );
    Some(())
}

/// `sched_process_exit`: each thread; the entry goes with the last one.
#[inline(always)]
pub(crate) fn exit<T: Task>(ctx: &impl EbpfContext) -> Option<()> {
    let pid = ctx.tgid();
    // SAFETY: the generation is copied at once.
    let generation = unsafe { PROCESSES.get(&pid)? }.generation;
    if T::n_living_threads(T::current())? > 0 {
        return None;
    }
    let _ = PROCESSES.remove(&pid);
    debug!(ctx, "exit {}", pid);
    tell(RecordKind::Exit, pid, 0, 0, generation);
    Some(())
}

/// `mm_collapse_huge_page`, in khugepaged or in a program that asks for it: what is a huge page now was none when it was
/// touched.
#[inline(always)]
pub(crate) fn collapse() {
    const NO_WAKEUP: u64 = 1; // BPF_RB_NO_WAKEUP
    let head = RecordHead {
        version: RECORD_VERSION,
        kind: RecordKind::Collapse as u16,
        size_bytes: size_of::<RecordHead>() as u32,
        // SAFETY: a helper without arguments.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
    };
    if EVENTS.output::<RecordHead>(&head, NO_WAKEUP).is_err() {
        count(Counter::LifecycleLost);
    }
}

/// Sends a record and wakes the agent: it has to look while the process is still there.
#[inline(always)]
fn tell(kind: RecordKind, pid: u32, parent_pid: u32, generation: u64, previous_generation: u64) {
    let mut record = LifecycleRecord {
        head: RecordHead {
            version: RECORD_VERSION,
            kind: kind as u16,
            size_bytes: size_of::<LifecycleRecord>() as u32,
            // SAFETY: a helper without arguments.
            time_ns: unsafe { bpf_ktime_get_boot_ns() },
        },
        generation,
        previous_generation,
        pid,
        parent_pid,
        // A child has its parent's.
        comm: [0; 16],
    };
    task::comm(&mut record.comm);
    if EVENTS
        .output::<LifecycleRecord>(&record, FORCE_WAKEUP)
        .is_err()
    {
        count(Counter::LifecycleLost);
    }
}
