//! Fills one sample record: identify the process, unwind each part, submit or count.
//!
//! Each part has a status of its own: a failure in one never costs another.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_get_stack, bpf_ktime_get_boot_ns,
    bpf_ringbuf_output, bpf_ringbuf_query,
};
use profiler_common::arch;
use profiler_common::counters::Counter;
use profiler_common::event::{
    KernelStatus, MAX_KERNEL_FRAMES, MAX_PYTHON_FRAMES, PyFrame, PythonStatus, RECORD_VERSION,
    RecordHead, RecordKind, SampleHeader, SampleRecord, sample_flags,
};
use profiler_common::layout::{GilKind, PyLayout};
use profiler_common::process::{ProcessEntry, ProcessState};
use profiler_common::unwind::python::WalkEnd;
use profiler_common::unwind::thread::{self, ListStep, ListWalk, MAX_LISTED, Thread};
use profiler_common::unwind::{Fault, ReadUser as _, Window};

use crate::globals;
use crate::maps::{
    EVENTS, LAYOUTS, PROCESSES, Scratch, claim, claim_preemptible, count, release,
    release_preemptible, scratch_in, share,
};
use crate::memory::CurrentTask;
use crate::registers::{self, SavedRegisters};
use crate::repair::repair;
use crate::task::{self, Task};
use crate::walk::{WalkResult, walk};

const AVAILABLE_DATA: u64 = 0; // BPF_RB_AVAIL_DATA
const NO_WAKEUP: u64 = 1; // BPF_RB_NO_WAKEUP
const FORCE_WAKEUP: u64 = 2; // BPF_RB_FORCE_WAKEUP

/// Steps of one call of [`list_steps`], see `walk`.
const LIST_STEPS_PER_CALL: u32 = 16;

/// Bytes of a record in front of its Python frames.
const PYTHON_OFFSET: usize = core::mem::offset_of!(SampleRecord, python);

/// The timer has fired.
#[inline(always)]
pub(crate) fn tick() {
    count(Counter::Ticks);
    // SAFETY: a helper without arguments.
    if unsafe { bpf_get_current_pid_tgid() } >> 32 == 0 {
        count(Counter::IdleTicks);
    }
}

/// What a sample is about, see the fields of the same names in [`SampleHeader`].
#[derive(Clone, Copy)]
pub(crate) struct Event {
    pub(crate) source: u8,
    pub(crate) period: u64,
    pub(crate) address: u64,
    pub(crate) n_bytes: u64,
}

/// Takes a sample of the current task if its process is selected. `ctx` begins with the registers that were interrupted,
/// as that of perf events and of probes does.
#[inline(always)]
pub(crate) fn take<T: Task>(ctx: *mut c_void, event: Event) {
    // SAFETY: a helper without arguments.
    let ids = unsafe { bpf_get_current_pid_tgid() };
    let pid = (ids >> 32) as u32;
    if pid == 0 {
        // The idle task: nothing to look up.
        return;
    }
    // SAFETY: the entry is only read; an update by the agent replaces the element.
    let Some(process) = (unsafe { PROCESSES.get(&pid) }) else {
        return;
    };
    count(Counter::Samples);
    let Some(scratch) = claim() else {
        count(Counter::Nested);
        return;
    };
    fill::<T>(ctx, event, ids, process, scratch);
    release(scratch);
}

/// The same in a program that can be preempted: at a probe.
#[inline(always)]
pub(crate) fn take_preemptible<T: Task>(ctx: *mut c_void, event: Event) {
    // SAFETY: a helper without arguments.
    let ids = unsafe { bpf_get_current_pid_tgid() };
    let pid = (ids >> 32) as u32;
    // SAFETY: as in `take`.
    let Some(process) = (unsafe { PROCESSES.get(&pid) }) else {
        return;
    };
    count(Counter::Samples);
    let Some(scratch) = claim_preemptible() else {
        count(Counter::Nested);
        return;
    };
    fill::<T>(ctx, event, ids, process, scratch);
    release_preemptible();
}

/// Fills and submits the record. `ids` are process (upper half) and thread.
#[inline(always)]
fn fill<T: Task>(
    ctx: *mut c_void,
    event: Event,
    ids: u64,
    process: &ProcessEntry,
    scratch: &mut Scratch,
) {
    // SAFETY: the kernel hands the program its context, which begins with registers.
    let interrupted = unsafe { &*ctx.cast::<SavedRegisters>() };
    identify::<T>(interrupted, ids, process, scratch);
    let header = &mut scratch.record.header;
    header.source = event.source;
    header.period = event.period;
    header.address = event.address;
    header.n_bytes = event.n_bytes;
    let status = match process.state {
        ProcessState::Pending => PythonStatus::Pending,
        ProcessState::Python => match LAYOUTS.get_ptr(process.layout) {
            // SAFETY: layouts are written before the process entry that names them, and never after.
            Some(layout) => fill_python::<T>(process, unsafe { &*layout }, scratch),
            None => {
                count(Counter::NoLayout);
                PythonStatus::None
            }
        },
    };
    scratch.record.header.python_status = status as u8;
    // Asked once more: a flag that lives through the walk would double what the verifier looks at.
    if is_in_kernel(interrupted) {
        fill_kernel(ctx, &mut scratch.record);
    }
    submit(&mut scratch.record);
}

/// Begins the record: who was interrupted, when, and where. A subprogram of its own: what it needs of the stack, 300
/// bytes, is free again when the walk runs, whose loops' stacks are added; at most 512 there may be.
#[inline(never)]
fn identify<T: Task>(
    interrupted: &SavedRegisters,
    ids: u64,
    process: &ProcessEntry,
    scratch: &mut Scratch,
) {
    let in_kernel = is_in_kernel(interrupted);
    scratch.record.header = SampleHeader {
        head: RecordHead {
            version: RECORD_VERSION,
            kind: RecordKind::Sample as u16,
            size_bytes: 0,
            // SAFETY: a helper without arguments.
            time_ns: unsafe { bpf_ktime_get_boot_ns() },
        },
        generation: process.generation,
        user_ip: 0,
        thread_state: 0,
        thread_ident: 0,
        frame: 0,
        period: 0,
        address: 0,
        n_bytes: 0,
        thread_started_ns: T::started_ns(T::current()),
        pid: (ids >> 32) as u32,
        tid: ids as u32,
        // SAFETY: a helper without arguments.
        cpu: unsafe { bpf_get_smp_processor_id() },
        flags: 0,
        python_status: PythonStatus::None as u8,
        kernel_status: KernelStatus::UserMode as u8,
        source: 0,
        reserved: 0,
        n_kernel: 0,
        n_python: 0,
        comm: [0; 16],
    };
    task::comm(&mut scratch.record.header.comm);
    fill_registers::<T>(interrupted, in_kernel, process, &mut scratch.record);
}

/// Whether the CPU was in the kernel.
#[inline(always)]
fn is_in_kernel(interrupted: &SavedRegisters) -> bool {
    !registers::is_of_user_space(interrupted)
}

/// The user-space instruction address always; the registers when it lies in the eval loop, where the leaf's
/// instruction may lag and a frame switch may be under way.
#[inline(always)]
fn fill_registers<T: Task>(
    interrupted: &SavedRegisters,
    in_kernel: bool,
    process: &ProcessEntry,
    record: &mut SampleRecord,
) {
    if in_kernel {
        record.header.flags |= sample_flags::IN_KERNEL;
        let Some(ip) = T::saved_user_registers(&mut record.registers) else {
            count(Counter::RegistersFailed);
            return;
        };
        record.header.user_ip = ip;
        if in_eval_loop(process, ip) {
            record.header.flags |= sample_flags::USER_REGISTERS;
        }
        return;
    }
    // What was interrupted is user space: its registers are the context's, which need no helper.
    let ip = registers::instruction_address(interrupted);
    record.header.user_ip = ip;
    if in_eval_loop(process, ip) {
        registers::copy(interrupted, &mut record.registers);
        record.header.flags |= sample_flags::USER_REGISTERS;
    }
}

#[inline(always)]
fn in_eval_loop(process: &ProcessEntry, ip: u64) -> bool {
    (ip >= process.eval_start && ip < process.eval_end)
        || (ip >= process.eval_cold_start && ip < process.eval_cold_end)
}

/// Finds the thread state and walks the frames.
#[inline(always)]
fn fill_python<T: Task>(
    process: &ProcessEntry,
    layout: &PyLayout,
    scratch: &mut Scratch,
) -> PythonStatus {
    let Some(thread_pointer) = T::thread_pointer(T::current()) else {
        return PythonStatus::NoThreadPointer;
    };
    scratch.layout = process.layout;
    scratch.thread = Thread::default();
    if let Err(status) = find_thread(process, layout, thread_pointer, scratch) {
        return status;
    }
    let Scratch { window, thread, .. } = scratch;
    thread::collecting(&mut CurrentTask, window, layout, process, thread);
    scratch.record.header.thread_state = scratch.thread.state;
    scratch.record.header.thread_ident = scratch.thread.ident;
    scratch.record.header.frame = scratch.thread.frame;
    scratch.record.header.flags |= scratch.thread.flags;
    let end = walk(scratch.thread.frame, scratch);
    let end = repair(process, layout, end, scratch);
    match end {
        WalkResult::Full => PythonStatus::Truncated,
        WalkResult::End(WalkEnd::Complete) => PythonStatus::Complete,
        WalkResult::End(WalkEnd::FrameSwitch) if scratch.thread.frame == 0 => PythonStatus::NoFrame,
        WalkResult::End(WalkEnd::FrameSwitch) => PythonStatus::FrameSwitch,
        WalkResult::End(WalkEnd::Fault) => PythonStatus::FrameFault,
        WalkResult::End(WalkEnd::Loop) => PythonStatus::FrameLoop,
    }
}

/// Fills `scratch.thread`.
#[inline(always)]
fn find_thread(
    process: &ProcessEntry,
    layout: &PyLayout,
    thread_pointer: u64,
    scratch: &mut Scratch,
) -> Result<(), PythonStatus> {
    let reader = &mut CurrentTask;
    let mut found = false;
    if let Some(state) = thread::own_storage(reader, process, thread_pointer)? {
        let Scratch { window, thread, .. } = scratch;
        found = thread::accept(reader, window, layout, state, thread_pointer, thread)
            .map_err(|Fault| PythonStatus::ThreadStateFault)?;
        thread.flags |= sample_flags::THREAD_STATE_DIRECT;
    }
    if !found {
        let state = list_thread(process, layout, thread_pointer, scratch)?;
        let Scratch { window, thread, .. } = scratch;
        thread.flags = sample_flags::THREAD_STATE_LISTED;
        found = thread::accept(reader, window, layout, state, thread_pointer, thread)
            .map_err(|Fault| PythonStatus::ThreadStateFault)?;
    }
    if !found {
        return Err(PythonStatus::NoThreadState);
    }
    let Scratch {
        window,
        thread,
        list,
        record,
        ..
    } = scratch;
    let current = thread::gil(reader, window, layout, process, thread);
    if current != 0 && current != thread.state {
        // Several interpreters can take turns in one thread: the state that holds the GIL is then the truth.
        let address = current.wrapping_add(u64::from(layout.tstate_thread_id));
        if let Ok(id) = reader.u64(address)
            && arch::THIS.is_id_of_thread(id, thread_pointer)
            && accept_holder(window, layout, current, thread_pointer, thread)
        {
            return Ok(());
        }
    }
    let executes = record.header.flags & sample_flags::USER_REGISTERS != 0;
    if may_be_lent(process, layout, thread) {
        if !executes || current == 0 || !matches!(layout.gil_kind, GilKind::RuntimeCurrent) {
            return Err(PythonStatus::Ambiguous);
        }
        // Who executes bytecode does so with the state that holds the one GIL.
        let (own, ident) = (thread.state, thread.ident);
        let address = current.wrapping_add(u64::from(layout.tstate_thread_id));
        let id = reader.u64(address).unwrap_or(0);
        if !accept_holder(window, layout, current, id, thread) {
            return Err(PythonStatus::Ambiguous);
        }
        // By its own state the thread has its name.
        (thread.state, thread.ident) = (own, ident);
        return Ok(());
    }
    if list.n_found > 1
        && thread.flags & (sample_flags::GIL_HELD | sample_flags::THREAD_STATE_DIRECT) == 0
    {
        return Err(PythonStatus::Ambiguous);
    }
    Ok(())
}

/// Takes the thread state that holds the GIL for the thread's.
#[inline(always)]
fn accept_holder(
    window: &mut Window,
    layout: &PyLayout,
    holder: u64,
    thread_pointer: u64,
    thread: &mut Thread,
) -> bool {
    let flags = thread.flags | sample_flags::GIL_HELD;
    let reader = &mut CurrentTask;
    let is_accepted =
        thread::accept(reader, window, layout, holder, thread_pointer, thread) == Ok(true);
    thread.flags = flags;
    is_accepted
}

/// Whether a thread may be at work with the state of another. Up to 3.12 a sub-interpreter has the state of the thread
/// that created it, whoever runs code in it (`_xxsubinterpreters`); so where there are several interpreters, the frames
/// of a thread whose own state does not hold the GIL may not be what it is in.
#[inline(always)]
fn may_be_lent(process: &ProcessEntry, layout: &PyLayout, thread: &Thread) -> bool {
    const VERSION_3_13: u32 = 0x030d_0000;
    let gil = thread.flags & (sample_flags::GIL_KNOWN | sample_flags::GIL_HELD);
    if layout.version_hex >= VERSION_3_13 || gil != sample_flags::GIL_KNOWN {
        return false;
    }
    let reader = &mut CurrentTask;
    let head = process
        .runtime
        .wrapping_add(u64::from(layout.runtime_interpreters_head));
    let next = match reader.u64(head) {
        Ok(interp) => reader.u64(interp.wrapping_add(u64::from(layout.interp_next))),
        Err(fault) => Err(fault),
    };
    next != Ok(0)
}

/// Finds the thread state in the lists of all interpreters.
#[inline(always)]
fn list_thread(
    process: &ProcessEntry,
    layout: &PyLayout,
    thread_pointer: u64,
    scratch: &mut Scratch,
) -> Result<u64, PythonStatus> {
    count(Counter::ThreadListWalks);
    scratch.list = ListWalk::new(&mut CurrentTask, layout, process.runtime)?;
    scratch.thread_pointer = thread_pointer;
    scratch.list_ended = 0;
    let slot = share(scratch);
    for _ in 0..MAX_LISTED / LIST_STEPS_PER_CALL {
        if list_steps(slot) != 0 {
            break;
        }
    }
    match scratch.list.result() {
        Some(state) => Ok(state),
        None if scratch.list_ended == 0 => Err(PythonStatus::ThreadListTruncated),
        None => Err(PythonStatus::NoThreadState),
    }
}

/// Takes some steps over the lists; 1 when they have ended.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn list_steps(slot: u32) -> u32 {
    let Some(scratch) = scratch_in(slot) else {
        return 1;
    };
    let Some(layout) = LAYOUTS.get(scratch.layout) else {
        return 1;
    };
    let thread_pointer = scratch.thread_pointer;
    for _ in 0..LIST_STEPS_PER_CALL {
        match scratch.list.step(&mut CurrentTask, layout, thread_pointer) {
            ListStep::More => {}
            ListStep::Done | ListStep::Fault => {
                scratch.list_ended = 1;
                return 1;
            }
        }
    }
    0
}

/// The kernel stack, right behind the Python frames.
#[inline(never)]
fn fill_kernel(ctx: *mut c_void, record: &mut SampleRecord) {
    let n_python = core::hint::black_box(usize::from(record.header.n_python));
    if n_python > MAX_PYTHON_FRAMES {
        return;
    }
    let room = (MAX_KERNEL_FRAMES * size_of::<u64>()) as u32;
    // SAFETY: behind at most MAX_PYTHON_FRAMES frames the record has room for MAX_KERNEL_FRAMES addresses.
    let n_bytes = unsafe {
        let kernel = (&raw mut *record)
            .cast::<u8>()
            .add(PYTHON_OFFSET + n_python * size_of::<PyFrame>());
        bpf_get_stack(ctx, kernel.cast(), room, 0)
    };
    record.header.kernel_status = if n_bytes > 0 {
        record.header.n_kernel = (n_bytes as u64 / 8) as u16;
        if n_bytes as u32 == room {
            KernelStatus::Truncated as u8
        } else {
            KernelStatus::Complete as u8
        }
    } else {
        count(Counter::KernelStackFailed);
        KernelStatus::Failed as u8
    };
}

/// A process that may live for moments only: its code objects must be read while they are there. The
/// generation of one that was forked or exec'ed is the time of that event (`lifecycle::new_generation`).
#[inline(always)]
fn is_young(header: &SampleHeader) -> bool {
    const YOUNG_NS: u64 = 2_000_000_000;
    header.head.time_ns.wrapping_sub(header.generation >> 10) < YOUNG_NS
}

/// Sends the record with its true length.
#[inline(always)]
fn submit(record: &mut SampleRecord) {
    let n_python = usize::from(record.header.n_python);
    let n_kernel = usize::from(record.header.n_kernel);
    let size = PYTHON_OFFSET + n_python * size_of::<PyFrame>() + n_kernel * size_of::<u64>();
    let size = core::hint::black_box(size);
    if size > size_of::<SampleRecord>() {
        return;
    }
    record.header.head.size_bytes = size as u32;
    let ring = (&raw const EVENTS).cast::<c_void>().cast_mut();
    // SAFETY: the record has `size` bytes; the ring is a map.
    unsafe {
        let full = bpf_ringbuf_query(ring, AVAILABLE_DATA) + size as u64 >= globals::wakeup_bytes();
        let wake = full || is_young(&record.header);
        let flags = if wake { FORCE_WAKEUP } else { NO_WAKEUP };
        if bpf_ringbuf_output(ring, (&raw mut *record).cast(), size as u64, flags) != 0 {
            count(Counter::LostFull);
        }
    }
}
