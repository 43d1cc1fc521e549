//! Waits: from the moment when a thread is switched out to the one when it runs again.
//!
//! What happens at each switch of the host must cost next to nothing: at the first moment the time is noted, at the second
//! it is decided whether the wait is taken, with a probability in proportion to its length. Only then is the stack walked.
//! It is that of the wait still: the thread is back in its own address space, and has not left the kernel.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_boot_ns,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
use profiler_common::counters::Counter;
use profiler_common::event::{source, task_state};
use profiler_common::off_cpu::OffCpuThread;

use crate::globals;
use crate::maps::{PROCESSES, count, count_more};
use crate::sample::{self, Event, Interrupted, Wait};
use crate::task::Task;

/// Waits of at least so many nanoseconds are all taken; 0: none is.
#[map]
static OFF_CPU_THRESHOLD: Array<u64> = Array::with_max_entries(1, 0);

/// Threads of profiled processes, by id. Only the scheduler's turns with a thread change what is noted of it, one after the
/// other. The agent sets the true size.
#[map]
static OFF_CPU_THREADS: HashMap<u32, OffCpuThread> = HashMap::with_max_entries(1, 0);

/// The current thread is about to be switched out. `is_preempted`: in the kernel, whatever its state says.
#[inline(always)]
pub(crate) fn switched_out<T: Task>(is_preempted: bool) {
    // SAFETY: a helper without arguments.
    let ids = unsafe { bpf_get_current_pid_tgid() };
    let (pid, tid) = ((ids >> 32) as u32, ids as u32);
    // SAFETY: only whether it is there matters.
    if pid == 0 || unsafe { PROCESSES.get(&pid) }.is_none() {
        return;
    }
    let task = T::current();
    let mut state = T::u32_at(task, globals::task_state()).unwrap_or(task_state::RUNNING);
    if state & task_state::DEAD != 0 {
        let _ = OFF_CPU_THREADS.remove(&tid);
        return;
    }
    if is_preempted {
        state = task_state::RUNNING;
    }
    let out = OffCpuThread {
        // SAFETY: a helper without arguments.
        since_ns: unsafe { bpf_ktime_get_boot_ns() },
        run_delay: run_delay::<T>(task),
        state,
        pid,
    };
    if let Some(thread) = OFF_CPU_THREADS.get_ptr_mut(&tid) {
        // SAFETY: a value of the map, of this thread.
        unsafe { *thread = out };
    } else if OFF_CPU_THREADS.insert(&tid, &out, 0).is_err() {
        count(Counter::OffCpuFull);
    }
}

/// The current thread runs again.
#[inline(always)]
pub(crate) fn switched_in<T: Task, I: Interrupted>(ctx: *mut c_void) {
    // SAFETY: a helper without arguments.
    let ids = unsafe { bpf_get_current_pid_tgid() };
    let tid = ids as u32;
    if tid == 0 {
        return;
    }
    let out = match OFF_CPU_THREADS.get_ptr_mut(&tid) {
        Some(thread) => {
            // SAFETY: a value of the map, of this thread.
            let thread = unsafe { &mut *thread };
            let out = *thread;
            thread.since_ns = 0;
            out
        }
        None => match seen_first::<T>(ids) {
            Some(out) => out,
            None => return,
        },
    };
    if out.since_ns != 0 {
        waited::<T, I>(ctx, &out);
    }
}

/// A thread runs of which nothing was noted. If it is older than what is known of its process, it has waited since then.
#[inline(always)]
fn seen_first<T: Task>(ids: u64) -> Option<OffCpuThread> {
    let (pid, tid) = ((ids >> 32) as u32, ids as u32);
    // SAFETY: the entry is only read.
    let known_ns = unsafe { PROCESSES.get(&pid) }?.known_ns;
    let runs = OffCpuThread {
        since_ns: 0,
        run_delay: 0,
        state: task_state::INTERRUPTIBLE,
        pid,
    };
    if OFF_CPU_THREADS.insert(&tid, &runs, 0).is_err() {
        // Then it may have been seen before.
        count(Counter::OffCpuFull);
        return None;
    }
    let task = T::current();
    let started_ns = T::started_ns(task);
    let is_older = started_ns != 0 && started_ns < known_ns;
    is_older.then(|| OffCpuThread {
        since_ns: known_ns,
        run_delay: run_delay::<T>(task),
        ..runs
    })
}

/// Takes the wait that is over, or not.
#[inline(always)]
fn waited<T: Task, I: Interrupted>(ctx: *mut c_void, out: &OffCpuThread) {
    let threshold = OFF_CPU_THRESHOLD.get(0).copied().unwrap_or(0);
    // SAFETY: a helper without arguments.
    let length = unsafe { bpf_ktime_get_boot_ns() }.saturating_sub(out.since_ns);
    if threshold == 0 || length == 0 {
        return;
    }
    let mut period = length;
    if length < threshold {
        // SAFETY: a helper without arguments.
        let random = u64::from(unsafe { bpf_get_prandom_u32() });
        if (random * (threshold & 0xffff_ffff)) >> 32 >= length {
            return;
        }
        period = threshold;
    }
    let ready = if out.state == task_state::RUNNING {
        length
    } else {
        let delay = run_delay::<T>(T::current()).saturating_sub(out.run_delay);
        if delay < length { delay } else { length }
    };
    // Of a short wait the same part of what it stands for.
    let ready_ns = if length < threshold {
        ready * period / length
    } else {
        ready
    };
    let (system_call, argument) = T::system_call();
    let event = Event {
        source: source::OFF_CPU,
        period,
        address: argument,
        n_bytes: 0,
    };
    let wait = Wait {
        ready_ns,
        system_call,
        state: out.state,
    };
    if !sample::take_wait::<T, I>(ctx, event, wait) {
        count_more(Counter::OffCpuLostNs, period);
    }
}

/// Nanoseconds in all that the task has waited for a CPU; 0 where that is not known.
#[inline(always)]
fn run_delay<T: Task>(task: u64) -> u64 {
    let offset = globals::task_run_delay();
    if offset == 0 {
        return 0;
    }
    T::u64_at(task, offset).unwrap_or(0)
}
