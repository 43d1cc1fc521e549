//! Allocations: which are sampled, and when what was sampled is given back.
//!
//! These programs run at probes in the allocator, in the context of the thread that allocates; other programs of the
//! same CPU can run in between. A sampled allocation is noted at the function's beginning, by thread, and becomes a
//! sample on its way back, where its address is known.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{
    bpf_get_attach_cookie, bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_boot_ns,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::programs::ProbeContext;
use profiler_common::allocation::{BlockKey, ByteClock, Hits, Place, cookie};
use profiler_common::counters::Counter;
use profiler_common::event::{RECORD_VERSION, RecordHead, RecordKind, ReleaseRecord, source};
use profiler_common::unwind::ReadUser as _;

use crate::globals;
use crate::maps::{EVENTS, PROCESSES, count};
use crate::memory::CurrentTask;
use crate::registers::{self, SavedRegisters};
use crate::sample::{self, Event};
use crate::task::{ProbedTask, Task, TypedTask};

const NO_WAKEUP: u64 = 1; // BPF_RB_NO_WAKEUP

/// How far it is to the next sample, of each source.
#[map]
static BYTE_CLOCKS: PerCpuArray<ByteClock> = PerCpuArray::with_max_entries(3, 0);

/// Sampled calls that have not come back, by thread (lower half) and source: one allocator calls another. Those of threads
/// that ended in a call make room for others. The agent
/// sets the true size.
#[map]
static CALLS: LruHashMap<u64, Call> = LruHashMap::with_max_entries(1, 0);

/// Sampled allocations that are alive. The agent sets the true size.
#[map]
static LIVE: HashMap<BlockKey, u64> = HashMap::with_max_entries(1, 0);

/// Processes that have probes. The agent sets the true size.
#[map]
static PROBED: HashMap<u32, Hits> = HashMap::with_max_entries(1, 0);

/// A sampled call.
#[derive(Clone, Copy)]
#[repr(C)]
struct Call {
    n_bytes: u64,
    /// Where the result is stored; 0: it is returned.
    result: u64,
    /// Stack pointer in the function: on the way back it is there, or above.
    sp: u64,
}

/// Which allocator it is, as an index of [`BYTE_CLOCKS`].
#[inline(always)]
fn clock(source: u8) -> Option<*mut ByteClock> {
    BYTE_CLOCKS.get_ptr_mut(match source {
        source::POOLS => 1,
        source::MMAP => 2,
        _ => 0,
    })
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// Process (upper half) and thread.
#[inline(always)]
fn ids() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_current_pid_tgid() }
}

#[inline(always)]
fn saved(ctx: &ProbeContext) -> &SavedRegisters {
    // SAFETY: the context of a probe is the registers of user space.
    unsafe { &*ctx.as_ptr().cast::<SavedRegisters>() }
}

/// Counts that the current process came to a probe; `None`: it is not to have one.
#[inline(always)]
pub(crate) fn hit(place: Place) -> Option<()> {
    let pid = (ids() >> 32) as u32;
    let hits = PROBED.get_ptr_mut(&pid)?;
    // SAFETY: a value of the map; a count that two threads make at the same time may be lost.
    unsafe { (*hits).by_place[place as usize] += 1 };
    Some(())
}

/// What a function returns, at a probe on its way back: in the register that the agent said when it placed the probe
/// (5.15+), or in that of the calling convention.
pub(crate) trait ProbeResult {
    /// The result.
    fn result_of_probe(ctx: &ProbeContext) -> u64;

    /// Whether the instruction is known to be single-stepped.
    fn is_stepped(ctx: &ProbeContext) -> bool;
}

impl ProbeResult for TypedTask {
    #[inline(always)]
    fn result_of_probe(ctx: &ProbeContext) -> u64 {
        // SAFETY: the context is the program's own.
        let idx = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) } & cookie::REGISTER;
        registers::general(saved(ctx), idx)
    }

    #[inline(always)]
    fn is_stepped(ctx: &ProbeContext) -> bool {
        // SAFETY: the context is the program's own.
        unsafe { bpf_get_attach_cookie(ctx.as_ptr()) & cookie::STEPPED != 0 }
    }
}

impl ProbeResult for ProbedTask {
    #[inline(always)]
    fn result_of_probe(ctx: &ProbeContext) -> u64 {
        registers::result(saved(ctx))
    }

    #[inline(always)]
    fn is_stepped(_ctx: &ProbeContext) -> bool {
        false
    }
}

/// Counts that the current process came to a probe on a way back; `None`: it is not to have one.
#[inline(always)]
pub(crate) fn hit_on_leave<T: ProbeResult>(ctx: &ProbeContext) -> Option<()> {
    hit(if T::is_stepped(ctx) {
        Place::LeaveStepped
    } else {
        Place::Leave
    })
}

/// An allocator's function was entered that will give this many bytes. `result`: where it stores the address, 0 when it
/// returns it.
#[inline(always)]
pub(crate) fn enter(ctx: &ProbeContext, n_bytes: u64, result: u64) {
    if is_sampled(source::ALLOC, n_bytes) {
        note(ctx, source::ALLOC, n_bytes, result);
    }
}

/// The same of a function that maps memory.
#[inline(always)]
pub(crate) fn enter_map(ctx: &ProbeContext, n_bytes: u64) {
    if is_sampled(source::MMAP, n_bytes) {
        note(ctx, source::MMAP, n_bytes, 0);
    }
}

#[inline(always)]
fn is_sampled(source: u8, n_bytes: u64) -> bool {
    let Some(clock) = clock(source) else {
        return false;
    };
    // SAFETY: of this CPU; another program's turn in between costs some bytes of the distance, not more.
    unsafe { (*clock).poisson(n_bytes, globals::alloc_period(), random) }
}

/// The function was entered that moves the end of the heap, forwards or backwards.
#[inline(always)]
pub(crate) fn enter_break(ctx: &ProbeContext, increment: i64) {
    if increment > 0 {
        enter_map(ctx, increment as u64);
    } else if increment < 0 {
        note(ctx, source::MMAP, increment as u64, 0);
    }
}

/// The C library is about to map memory: of the size of an arena it is one, where nothing else tells of them.
#[inline(always)]
pub(crate) fn enter_mapped_arena(ctx: &ProbeContext, n_bytes: u64) {
    /// `ARENA_SIZE / POOL_SIZE` (Objects/obmalloc.c).
    const POOLS_PER_ARENA: u64 = 64;
    let pid = (ids() >> 32) as u32;
    // SAFETY: the entry is only read; an update by the agent replaces the element.
    let pool_bytes = unsafe { PROCESSES.get(&pid) }.map_or(0, |process| process.pool_bytes);
    if n_bytes != 0 && n_bytes == pool_bytes.wrapping_mul(POOLS_PER_ARENA) {
        enter_arena(ctx, n_bytes);
    }
}

/// The same of an arena of small objects.
#[inline(always)]
pub(crate) fn enter_arena(ctx: &ProbeContext, n_bytes: u64) {
    note(ctx, source::POOLS, n_bytes, 0);
}

/// Key of a call of this thread.
#[inline(always)]
fn call_key(source: u8) -> u64 {
    u64::from(source) << 32 | u64::from(ids() as u32)
}

#[inline(always)]
fn note(ctx: &ProbeContext, source: u8, n_bytes: u64, result: u64) {
    let call = Call {
        n_bytes,
        result,
        sp: registers::stack_pointer(saved(ctx)),
    };
    let key = call_key(source);
    // SAFETY: only whether it is there matters.
    if unsafe { CALLS.get(&key) }.is_some() {
        count(Counter::CallsUnseen);
    }
    if CALLS.insert(&key, &call, 0).is_err() {
        count(Counter::LiveFull);
    }
}

/// The function is on its way back: a sample, if the call was chosen.
#[inline(always)]
pub(crate) fn leave<T: Task + ProbeResult>(ctx: &ProbeContext, source: u8) {
    /// Most bytes of stack that the function uses.
    const MAX_STACK: u64 = 1 << 16;
    let key = call_key(source);
    // SAFETY: the call is copied at once; nobody but this thread changes it.
    let Some(call) = (unsafe { CALLS.get(&key) }).copied() else {
        return;
    };
    let saved = saved(ctx);
    let depth = registers::stack_pointer(saved).wrapping_sub(call.sp);
    if depth.wrapping_add(MAX_STACK) > 2 * MAX_STACK {
        // The call had left on another way.
        let _ = CALLS.remove(&key);
        count(Counter::CallsUnseen);
        return;
    }
    let address = if call.result == 0 {
        T::result_of_probe(ctx)
    } else if registers::result(saved) == 0 {
        CurrentTask.u64(call.result).unwrap_or(0)
    } else {
        0
    };
    if address == 0 {
        // It failed, or comes to another probe with what it finds.
        return;
    }
    let _ = CALLS.remove(&key);
    if source == source::MMAP {
        left_map::<T>(ctx, address, call.n_bytes);
        return;
    }
    let period = if source == source::POOLS {
        if address > LAST_ADDRESS {
            return;
        }
        call.n_bytes
    } else {
        globals::alloc_period()
    };
    sampled::<T>(ctx, source, address, call.n_bytes, period);
}

/// Beyond are the errors of system calls, as negative numbers.
const LAST_ADDRESS: u64 = -4096_i64 as u64;

/// Memory was mapped, or the end of the heap moved: `address` is where it was before.
#[inline(always)]
fn left_map<T: Task>(ctx: &ProbeContext, address: u64, n_bytes: u64) {
    if address > LAST_ADDRESS {
        return;
    }
    if (n_bytes as i64) < 0 {
        release_range(address.wrapping_add(n_bytes), n_bytes.wrapping_neg());
        return;
    }
    let event = Event {
        source: source::MMAP,
        period: globals::alloc_period(),
        address,
        n_bytes,
    };
    sample::take_preemptible::<T>(ctx.as_ptr(), event);
}

/// A new pool of small objects is about to be made. Where each way back passes one probe, this is not needed.
#[inline(always)]
pub(crate) fn enter_pool(ctx: &ProbeContext) {
    note(ctx, source::POOLS, 0, 0);
}

/// The same as [`leave_pool`] where a way back may pass several probes: the first counts.
#[inline(always)]
pub(crate) fn leave_pool_once<T: Task + ProbeResult>(ctx: &ProbeContext) {
    let key = call_key(source::POOLS);
    // SAFETY: only whether it is there matters.
    if T::result_of_probe(ctx) != 0 && unsafe { CALLS.get(&key) }.is_some() {
        let _ = CALLS.remove(&key);
        leave_pool::<T>(ctx);
    }
}

/// A new pool of small objects. The result is a block in it.
#[inline(always)]
pub(crate) fn leave_pool<T: Task + ProbeResult>(ctx: &ProbeContext) {
    let pid = (ids() >> 32) as u32;
    // SAFETY: the entry is only read; an update by the agent replaces the element.
    let Some(pool_bytes) = (unsafe { PROCESSES.get(&pid) }).map(|process| process.pool_bytes)
    else {
        return;
    };
    let block = T::result_of_probe(ctx);
    if block == 0 || !pool_bytes.is_power_of_two() {
        return;
    }
    let address = block & !(pool_bytes - 1);
    // What was there before is gone.
    release(source::POOLS, address);
    let Some(clock) = clock(source::POOLS) else {
        return;
    };
    // SAFETY: of this CPU; another program's turn in between costs some bytes of the distance, not more.
    let period = unsafe { (*clock).stratified(pool_bytes, globals::pool_period(), random) };
    if period > 0 {
        sampled::<T>(ctx, source::POOLS, address, pool_bytes, period);
    }
}

#[inline(always)]
fn sampled<T: Task>(ctx: &ProbeContext, source: u8, address: u64, n_bytes: u64, period: u64) {
    let block = BlockKey {
        address,
        pid: (ids() >> 32) as u32,
        source: u32::from(source),
    };
    if LIVE.insert(&block, &n_bytes, 0).is_err() {
        count(Counter::LiveFull);
    }
    let event = Event {
        source,
        period,
        address,
        n_bytes,
    };
    sample::take_preemptible::<T>(ctx.as_ptr(), event);
}

/// Memory is given back: the agent is told if its allocation was sampled.
#[inline(always)]
pub(crate) fn release(source: u8, address: u64) {
    let block = BlockKey {
        address,
        pid: (ids() >> 32) as u32,
        source: u32::from(source),
    };
    // SAFETY: only whether it is there matters.
    if unsafe { LIVE.get(&block) }.is_none() {
        return;
    }
    if tell_release(block, 0) {
        let _ = LIVE.remove(&block);
    }
    // Else it stays in the table: whatever gets this address next is released for it.
}

/// A range of addresses is unmapped. The agent knows what was sampled in it.
#[inline(always)]
pub(crate) fn release_range(address: u64, n_bytes: u64) {
    let block = BlockKey {
        address,
        pid: (ids() >> 32) as u32,
        source: u32::from(source::MMAP),
    };
    if n_bytes != 0 {
        tell_release(block, n_bytes);
    }
}

#[inline(always)]
fn tell_release(block: BlockKey, n_bytes: u64) -> bool {
    let record = ReleaseRecord {
        head: RecordHead {
            version: RECORD_VERSION,
            kind: RecordKind::Release as u16,
            size_bytes: size_of::<ReleaseRecord>() as u32,
            // SAFETY: a helper without arguments.
            time_ns: unsafe { bpf_ktime_get_boot_ns() },
        },
        address: block.address,
        n_bytes,
        pid: block.pid,
        source: block.source,
    };
    let is_told = EVENTS.output::<ReleaseRecord>(&record, NO_WAKEUP).is_ok();
    if !is_told {
        count(Counter::ReleaseLost);
    }
    is_told
}
