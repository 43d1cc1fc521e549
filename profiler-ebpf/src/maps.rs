//! The maps, and counting.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use profiler_common::counters::{Counter, N_COUNTERS};
use profiler_common::event::SampleRecord;
use profiler_common::layout::PyLayout;
use profiler_common::process::{DEFAULT_MAX_PROCESSES, MAX_LAYOUTS, ProcessEntry};
use profiler_common::unwind::Window;
use profiler_common::unwind::python::Walk;
use profiler_common::unwind::thread::{ListWalk, Thread};

/// Records for the agent. The agent sets the true size when it loads the programs.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Processes by tgid. Sampling programs only look up.
#[map]
pub(crate) static PROCESSES: HashMap<u32, ProcessEntry> =
    HashMap::with_max_entries(DEFAULT_MAX_PROCESSES, 0);

/// Layouts of the interpreters, by `ProcessEntry::layout`.
#[map]
pub(crate) static LAYOUTS: Array<PyLayout> = Array::with_max_entries(MAX_LAYOUTS, 0);

/// Counters, by [`Counter`].
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(N_COUNTERS as u32, 0);

/// Two scratches a CPU: a sampler can fire inside a program that was itself interrupted. The agent adds a third one for
/// programs that can be preempted.
#[map]
static SCRATCHES: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(N_NESTED, 0);

/// Scratches for programs that nest.
const N_NESTED: u32 = 2;

/// CPUs on which a program that can be preempted has its scratch.
#[map]
static PREEMPTIBLE: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

const NO_EXIST: u64 = 1; // BPF_NOEXIST

/// What a sample is built in; too large for the stack.
#[repr(C)]
pub(crate) struct Scratch {
    /// 1 while a program uses it.
    busy: u32,
    /// Its index in the map.
    slot: u32,
    /// Index of the layout of the process that is sampled.
    pub(crate) layout: u32,
    /// How the walk ended, by `sample::walk`.
    pub(crate) walk_end: u32,
    /// Frames of the first walk that a repair keeps.
    pub(crate) n_kept: u16,
    /// 1 when a repair succeeded.
    pub(crate) repaired: u16,
    /// Whether the evaluation loop is just being entered.
    pub(crate) is_entering: u32,
    /// Then the frame that was current before.
    pub(crate) entered_from: u64,
    /// The frame that the current one is about to be linked to; 0 when no such store is near.
    pub(crate) linked_to: u64,
    /// Of the thread that is looked for in the lists.
    pub(crate) thread_pointer: u64,
    /// 1 when the lists were seen to their end.
    pub(crate) list_ended: u32,
    pub(crate) thread: Thread,
    pub(crate) walk: Walk,
    pub(crate) list: ListWalk,
    pub(crate) window: Window,
    pub(crate) record: SampleRecord,
}

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a value of this CPU; a lost update by an interrupting program is a lost count, not more.
        unsafe { *value += 1 };
    }
}

/// Takes a free scratch of this CPU, for a program that can only be interrupted. It must be given back with
/// [`release`].
#[inline(always)]
pub(crate) fn claim() -> Option<&'static mut Scratch> {
    for slot in 0..N_NESTED {
        let scratch = SCRATCHES.get_ptr_mut(slot)?;
        // SAFETY: the map's memory lives as long as the program; programs on one CPU nest, they do not run
        // side by side, so a plain test and set is atomic with regard to those that interrupt.
        unsafe {
            if core::ptr::read_volatile(&raw const (*scratch).busy) == 0 {
                core::ptr::write_volatile(&raw mut (*scratch).busy, 1);
                (*scratch).slot = slot;
                return Some(&mut *scratch);
            }
        }
    }
    None
}

/// Takes the scratch of this CPU for programs that can be preempted, by others of their kind too. Looking and taking
/// must be one then: a map's insertion is, on every kernel. It must be given back with [`release_preemptible`].
#[inline(always)]
pub(crate) fn claim_preemptible() -> Option<&'static mut Scratch> {
    // SAFETY: a helper without arguments. Until it ends the program stays on this CPU.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    PREEMPTIBLE.insert(&cpu, &1, NO_EXIST).ok()?;
    let scratch = scratch_in(N_NESTED)?;
    scratch.slot = N_NESTED;
    Some(scratch)
}

/// Gives it back.
#[inline(always)]
pub(crate) fn release_preemptible() {
    // SAFETY: as above.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let _ = PREEMPTIBLE.remove(&cpu);
}

/// The slot by which functions that take numbers only find a scratch. What they write there is seen behind the
/// call.
#[inline(always)]
pub(crate) fn share(scratch: &mut Scratch) -> u32 {
    // The compiler must not keep values of the scratch in registers over the call.
    core::hint::black_box(&raw mut *scratch);
    scratch.slot
}

/// The scratch of this CPU in a slot, which the caller's caller has claimed.
#[inline(always)]
pub(crate) fn scratch_in(slot: u32) -> Option<&'static mut Scratch> {
    let scratch = SCRATCHES.get_ptr_mut(slot)?;
    // SAFETY: the map's memory lives as long as the program, and the caller does not look at it meanwhile.
    Some(unsafe { &mut *scratch })
}

/// Gives a scratch back.
#[inline(always)]
pub(crate) fn release(scratch: &mut Scratch) {
    // SAFETY: a plain write to memory that this program owns.
    unsafe { core::ptr::write_volatile(&raw mut scratch.busy, 0) };
}
