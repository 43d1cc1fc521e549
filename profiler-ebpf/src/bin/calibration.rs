//! The program with which the agent learns where facts of a task lie, on kernels without BTF: a look at the
//! `task_struct` of the agent's own threads, and at what it points to.
#![no_std]
#![no_main]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "aya's macros make each entry point a public function of its own, with its context by value"
)]

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::calibration::{N_PEEKS, PEEK_BYTES, Peek};

/// What is looked at, written by the agent, and what was found.
#[map]
static PEEKS: Array<Peek> = Array::with_max_entries(N_PEEKS, 0);

/// The agent's process id, written before the program is loaded.
#[unsafe(no_mangle)]
static AGENT_PID: u32 = 0;

/// A thread ended.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn calibrate(ctx: RawTracePointContext) -> i32 {
    // SAFETY: the static is initialised; the read is volatile because the agent changes it before load.
    if ctx.tgid() != unsafe { core::ptr::read_volatile(&raw const AGENT_PID) } {
        return 0;
    }
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    for idx in 0..N_PEEKS {
        if let Some(peek) = PEEKS.get_ptr_mut(idx) {
            // SAFETY: the map's memory lives as long as the program, and the agent only looks once `tid` is there.
            look(unsafe { &mut *peek }, task, ctx.pid());
        }
    }
    0
}

/// Fills one of the looks.
fn look(peek: &mut Peek, task: u64, tid: u32) {
    let mut address = task + u64::from(peek.offset);
    if peek.is_pointer != 0 {
        // SAFETY: the buffer has room for a word; the helper checks the address.
        unsafe { bpf_probe_read_kernel((&raw mut peek.pointer).cast(), 8, address as *const _) };
        address = peek.pointer + u64::from(peek.behind);
    }
    // SAFETY: as above.
    let error = unsafe {
        bpf_probe_read_kernel(
            peek.bytes.as_mut_ptr().cast(),
            PEEK_BYTES as u32,
            address as *const _,
        )
    };
    peek.is_read = u32::from(error == 0);
    // SAFETY: last, and whole: the agent waits for it.
    unsafe { core::ptr::write_volatile(&raw mut peek.tid, tid) };
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
