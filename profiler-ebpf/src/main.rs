//! pyagent's kernel programs: entry points only.
#![no_std]
#![no_main]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "aya's macros make each entry point a public function of its own, with its context by value"
)]
#![allow(
    clippy::inline_always,
    reason = "a call is a subprogram of its own to the verifier, which bounds their number and their stack"
)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    clippy::similar_names,
    clippy::collapsible_if,
    reason = "maps take keys and values by reference: by value they would be copied onto a stack of 512 bytes; \
              pid and tid are the field's words"
)]
mod allocation;
mod globals;
mod lifecycle;
mod maps;
mod memory;
mod registers;
mod repair;
mod sample;
mod task;
mod walk;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::{btf_tracepoint, perf_event, raw_tracepoint, uprobe};
use aya_ebpf::programs::{
    BtfTracePointContext, PerfEventContext, ProbeContext, RawTracePointContext,
};

use profiler_common::allocation::Place;
use profiler_common::event::source;

use sample::Event;
use task::{ProbedTask, Task, TypedTask};

/// CPU samples: the software event `cpu-clock`, one per online CPU.
#[perf_event]
pub fn sample_cpu(ctx: PerfEventContext) -> u32 {
    sample::tick();
    take_of_cpu::<TypedTask>(&ctx);
    0
}

/// The same where the kernel's memory must be read.
#[perf_event]
pub fn sample_cpu_probed(ctx: PerfEventContext) -> u32 {
    sample::tick();
    take_of_cpu::<ProbedTask>(&ctx);
    0
}

/// Memory that is touched: the software event `page-faults`, one per online CPU.
#[perf_event]
pub fn sample_faults(ctx: PerfEventContext) -> u32 {
    take_fault::<TypedTask>(&ctx);
    0
}

/// The same where the kernel's memory must be read.
#[perf_event]
pub fn sample_faults_probed(ctx: PerfEventContext) -> u32 {
    take_fault::<ProbedTask>(&ctx);
    0
}

/// A sample of the time.
#[inline(always)]
fn take_of_cpu<T: Task>(ctx: &PerfEventContext) {
    // SAFETY: the kernel hands the program its context.
    let period = unsafe { (*ctx.ctx).sample_period };
    let event = Event {
        source: source::CPU,
        period,
        address: 0,
        n_bytes: 0,
    };
    sample::take::<T>(ctx.as_ptr(), event);
}

/// A sample of page faults.
#[inline(always)]
fn take_fault<T: Task>(ctx: &PerfEventContext) {
    // SAFETY: the kernel hands the program its context.
    let (period, address) = unsafe { ((*ctx.ctx).sample_period, (*ctx.ctx).addr) };
    let event = Event {
        source: source::FAULTS,
        period,
        address,
        n_bytes: 0,
    };
    sample::take::<T>(ctx.as_ptr(), event);
}

/// Functions that allocate as many bytes as their first argument says: `malloc`.
#[uprobe]
pub fn alloc_size_first(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        allocation::enter(&ctx, argument(&ctx, 0), 0);
    }
    0
}

/// As many as the second says: `aligned_alloc`, `memalign`.
#[uprobe]
pub fn alloc_size_second(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        allocation::enter(&ctx, argument(&ctx, 1), 0);
    }
    0
}

/// As many as the product of the first and the second: `calloc`, which returns nothing when that overflows.
#[uprobe]
pub fn alloc_product(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        allocation::enter(&ctx, argument(&ctx, 0).wrapping_mul(argument(&ctx, 1)), 0);
    }
    0
}

/// Those that store the address where the first argument points, of as many bytes as the third says: `posix_memalign`.
#[uprobe]
pub fn alloc_indirect(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        allocation::enter(&ctx, argument(&ctx, 2), argument(&ctx, 0));
    }
    0
}

/// Those that give the first argument back and as many bytes as the second says: `realloc`.
#[uprobe]
pub fn alloc_resize(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        allocation::release(source::ALLOC, argument(&ctx, 0));
        allocation::enter(&ctx, argument(&ctx, 1), 0);
    }
    0
}

/// Those that give the first argument back and as many bytes as the product of the others: `reallocarray`.
#[uprobe]
pub fn alloc_resize_product(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        allocation::release(source::ALLOC, argument(&ctx, 0));
        allocation::enter(&ctx, argument(&ctx, 1).wrapping_mul(argument(&ctx, 2)), 0);
    }
    0
}

/// Those of `alloc_resize` that call `malloc` by its own entry when there is nothing to give back.
#[uprobe]
pub fn alloc_resize_nested(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        if argument(&ctx, 0) != 0 {
            allocation::release(source::ALLOC, argument(&ctx, 0));
            allocation::enter(&ctx, argument(&ctx, 1), 0);
        }
    }
    0
}

/// Functions that give their first argument back: `free`.
#[uprobe]
pub fn alloc_release(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Release).is_some() {
        allocation::release(source::ALLOC, argument(&ctx, 0));
    }
    0
}

/// A function that allocates is on its way back.
#[uprobe]
pub fn alloc_leave(ctx: ProbeContext) -> u32 {
    if allocation::hit_on_leave::<TypedTask>(&ctx).is_some() {
        allocation::leave::<TypedTask>(&ctx, source::ALLOC);
    }
    0
}

/// The same where the kernel's memory must be read.
#[uprobe]
pub fn alloc_leave_probed(ctx: ProbeContext) -> u32 {
    if allocation::hit_on_leave::<ProbedTask>(&ctx).is_some() {
        allocation::leave::<ProbedTask>(&ctx, source::ALLOC);
    }
    0
}

/// A new pool of small objects was made: on the way back of `allocate_from_new_pool`.
#[uprobe]
pub fn pool_leave(ctx: ProbeContext) -> u32 {
    if allocation::hit_on_leave::<TypedTask>(&ctx).is_some() {
        allocation::leave_pool::<TypedTask>(&ctx);
    }
    0
}

/// The same where the kernel's memory must be read.
#[uprobe]
pub fn pool_leave_probed(ctx: ProbeContext) -> u32 {
    if allocation::hit_on_leave::<ProbedTask>(&ctx).is_some() {
        allocation::leave_pool::<ProbedTask>(&ctx);
    }
    0
}

/// A new pool is about to be made, by a function whose ways back can pass several probes.
#[uprobe]
pub fn pool_enter(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        allocation::enter_pool(&ctx);
    }
    0
}

/// It was made.
#[uprobe]
pub fn pool_leave_once(ctx: ProbeContext) -> u32 {
    if allocation::hit_on_leave::<TypedTask>(&ctx).is_some() {
        allocation::leave_pool_once::<TypedTask>(&ctx);
    }
    0
}

/// The same where the kernel's memory must be read.
#[uprobe]
pub fn pool_leave_once_probed(ctx: ProbeContext) -> u32 {
    if allocation::hit_on_leave::<ProbedTask>(&ctx).is_some() {
        allocation::leave_pool_once::<ProbedTask>(&ctx);
    }
    0
}

/// An arena of small objects is about to be made: context and size.
#[uprobe]
pub fn arena_enter(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        allocation::enter_arena(&ctx, argument(&ctx, 1));
    }
    0
}

/// It was made.
#[uprobe]
pub fn arena_leave(ctx: ProbeContext) -> u32 {
    if allocation::hit_on_leave::<TypedTask>(&ctx).is_some() {
        allocation::leave::<TypedTask>(&ctx, source::POOLS);
    }
    0
}

/// The same where the kernel's memory must be read.
#[uprobe]
pub fn arena_leave_probed(ctx: ProbeContext) -> u32 {
    if allocation::hit_on_leave::<ProbedTask>(&ctx).is_some() {
        allocation::leave::<ProbedTask>(&ctx, source::POOLS);
    }
    0
}

/// An arena is given back: context and address.
#[uprobe]
pub fn arena_release(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Release).is_some() {
        allocation::release(source::POOLS, argument(&ctx, 1));
    }
    0
}

/// An arena may be about to be mapped: address and size, as of `mmap`.
#[uprobe]
pub fn arena_map_enter(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        allocation::enter_mapped_arena(&ctx, argument(&ctx, 1));
    }
    0
}

/// One is unmapped, if it was one: address and size.
#[uprobe]
pub fn arena_unmap(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Release).is_some() {
        allocation::release(source::POOLS, argument(&ctx, 0));
    }
    0
}

/// Memory is about to be mapped: address, size and protection. What may not be touched is no memory yet.
#[uprobe]
pub fn map_enter(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        if argument(&ctx, 2) as u32 != 0 {
            allocation::enter_map(&ctx, argument(&ctx, 1));
        }
    }
    0
}

/// The end of the heap is about to be moved by so many bytes: `sbrk`.
#[uprobe]
pub fn map_break(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        allocation::enter_break(&ctx, argument(&ctx, 0) as i64);
    }
    0
}

/// A mapping is about to get another size: address, the size that it has, the one that it gets.
#[uprobe]
pub fn map_resize(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Enter).is_some() {
        allocation::release_range(argument(&ctx, 0), argument(&ctx, 1));
        allocation::enter_map(&ctx, argument(&ctx, 2));
    }
    0
}

/// Memory is about to be unmapped: address and size.
#[uprobe]
pub fn map_release(ctx: ProbeContext) -> u32 {
    if allocation::hit(Place::Release).is_some() {
        allocation::release_range(argument(&ctx, 0), argument(&ctx, 1));
    }
    0
}

/// Memory was mapped.
#[uprobe]
pub fn map_leave(ctx: ProbeContext) -> u32 {
    if allocation::hit_on_leave::<TypedTask>(&ctx).is_some() {
        allocation::leave::<TypedTask>(&ctx, source::MMAP);
    }
    0
}

/// The same where the kernel's memory must be read.
#[uprobe]
pub fn map_leave_probed(ctx: ProbeContext) -> u32 {
    if allocation::hit_on_leave::<ProbedTask>(&ctx).is_some() {
        allocation::leave::<ProbedTask>(&ctx, source::MMAP);
    }
    0
}

/// An argument of the function at whose beginning a probe stands.
#[inline(always)]
fn argument(ctx: &ProbeContext, idx: usize) -> u64 {
    ctx.arg(idx).unwrap_or(0)
}

/// Small pages were put together into a huge one.
#[raw_tracepoint(tracepoint = "mm_collapse_huge_page")]
pub fn collapse(_ctx: RawTracePointContext) -> i32 {
    lifecycle::collapse();
    0
}

/// A process was forked, or a thread was made.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(ctx: BtfTracePointContext) -> i32 {
    let _ = lifecycle::fork::<TypedTask>(&ctx, ctx.arg(1));
    0
}

/// The same where the kernel's memory must be read.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork_probed(ctx: RawTracePointContext) -> i32 {
    let _ = lifecycle::fork::<ProbedTask>(&ctx, ctx.arg(1));
    0
}

/// A process replaced its program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    let _ = lifecycle::exec(&ctx);
    0
}

/// A thread ended.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(ctx: RawTracePointContext) -> i32 {
    let _ = lifecycle::exit::<TypedTask>(&ctx);
    0
}

/// The same where the kernel's memory must be read.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit_probed(ctx: RawTracePointContext) -> i32 {
    let _ = lifecycle::exit::<ProbedTask>(&ctx);
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
