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
mod globals;
mod lifecycle;
mod maps;
mod memory;
mod registers;
mod repair;
mod sample;
mod task;
mod walk;

use aya_ebpf::macros::{btf_tracepoint, perf_event, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, PerfEventContext, RawTracePointContext};

use profiler_common::event::source;

use task::{ProbedTask, TypedTask};

/// CPU samples: the software event `cpu-clock`, one per online CPU.
#[perf_event]
pub fn sample_cpu(ctx: PerfEventContext) -> u32 {
    sample::tick();
    sample::take::<TypedTask>(&ctx, source::CPU);
    0
}

/// The same where the kernel's memory must be read.
#[perf_event]
pub fn sample_cpu_probed(ctx: PerfEventContext) -> u32 {
    sample::tick();
    sample::take::<ProbedTask>(&ctx, source::CPU);
    0
}

/// Memory that is touched: the software event `page-faults`, one per online CPU.
#[perf_event]
pub fn sample_faults(ctx: PerfEventContext) -> u32 {
    sample::take::<TypedTask>(&ctx, source::FAULTS);
    0
}

/// The same where the kernel's memory must be read.
#[perf_event]
pub fn sample_faults_probed(ctx: PerfEventContext) -> u32 {
    sample::take::<ProbedTask>(&ctx, source::FAULTS);
    0
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
