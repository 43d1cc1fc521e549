//! Completes stacks that were caught in a frame switch.
//!
//! For a few instructions the evaluation loop's chain of frames is not what it says: 3.11 and 3.12 publish a
//! `_PyCFrame` before they write it, 3.12 unlinks a generator before it leaves it, and compilers publish a new
//! frame before its link to the caller is written. What stands there meanwhile is what an earlier call left, so
//! the chain can look whole. The true caller is in a register.

use profiler_common::arch;
use profiler_common::counters::Counter;
use profiler_common::event::{N_GENERAL_REGISTERS, UserRegisters, sample_flags};
use profiler_common::layout::{FrameRoot, PyLayout};
use profiler_common::process::ProcessEntry;
use profiler_common::unwind::python::{self, WalkEnd};
use profiler_common::unwind::{Fault, ReadUser as _, link};

use crate::maps::{LAYOUTS, Scratch, count, scratch_in, share};
use crate::memory::CurrentTask;
use crate::registers;
use crate::walk::{WalkResult, walk};

/// Bytes at the start of the eval loop in which 3.11 and 3.12 publish a `_PyCFrame` before they write it: by
/// the compilers of the day at most 0xb0.
const PROLOGUE_BYTES: u64 = 256;

/// Bytes of a code object in which its first instructions lie.
const FIRST_INSTRUCTIONS: u64 = 256;

/// What is tried, in this order: the caller that the code is about to link to, the `_PyCFrame` before, each
/// general register as a frame, then each as a `_PyCFrame`.
const N_CANDIDATES: u32 = 2 + 2 * N_REGISTERS;
const N_REGISTERS: u32 = N_GENERAL_REGISTERS as u32;

/// Walks once more, from elsewhere, if the walk with this end went over a chain that was being built.
#[inline(always)]
pub(crate) fn repair(
    process: &ProcessEntry,
    layout: &PyLayout,
    end: WalkResult,
    scratch: &mut Scratch,
) -> WalkResult {
    match n_candidates(process, layout, end, scratch) {
        0 => end,
        n_candidates => complete(end, n_candidates, scratch),
    }
}

/// How many candidates are to be tried.
#[inline(always)]
fn n_candidates(
    process: &ProcessEntry,
    layout: &PyLayout,
    end: WalkResult,
    scratch: &mut Scratch,
) -> u32 {
    // Frame switches happen in the eval loop only, and are repaired from its registers.
    if !python::can_be_caught_in_a_switch(layout)
        || scratch.record.header.flags & sample_flags::USER_REGISTERS == 0
    {
        return 0;
    }
    note_entering(process, layout, scratch);
    note_pending_link(layout, scratch);
    if may_be_half_built(end, scratch) {
        N_CANDIDATES
    } else {
        u32::from(scratch.linked_to != 0)
    }
}

/// Finds out whether the evaluation loop is just being entered: the `_PyCFrame` of the running function is the
/// thread's already, but its fields may be what an earlier loop left there.
#[inline(always)]
fn note_entering(process: &ProcessEntry, layout: &PyLayout, scratch: &mut Scratch) {
    scratch.is_entering = 0;
    let header = &scratch.record.header;
    let is_in_prologue = header.user_ip.wrapping_sub(process.eval_start) < PROLOGUE_BYTES;
    if !is_in_prologue || !matches!(layout.frame_root, FrameRoot::CFrame) {
        return;
    }
    if scratch
        .thread
        .cframe
        .wrapping_sub(scratch.record.registers.sp)
        < arch::THIS.own_cframe_bytes
    {
        scratch.is_entering = 1;
        let previous = scratch.thread.previous_cframe;
        scratch.entered_from = CurrentTask
            .u64(previous.wrapping_add(u64::from(layout.cframe_current_frame)))
            .unwrap_or(0);
    }
}

/// Finds the store that will link the current frame to its caller, if that is still to come.
#[inline(always)]
fn note_pending_link(layout: &PyLayout, scratch: &mut Scratch) {
    scratch.linked_to = 0;
    let is_entering = scratch.is_entering != 0;
    let leaf = &scratch.record.python[0];
    let has_begun = leaf.instr.wrapping_sub(leaf.code) > FIRST_INSTRUCTIONS;
    if scratch.record.header.n_python == 0 || (has_begun && !is_entering) {
        return;
    }
    // The window is free: the walk is over, and another begins with a window of its own.
    let window = &mut scratch.window;
    let n_bytes = u64::from(link::TEXT_BYTES);
    if CurrentTask
        .window(scratch.record.header.user_ip, n_bytes, window)
        .is_err()
    {
        return;
    }
    let Some(store) = link::find_store(window, layout.frame_previous) else {
        return;
    };
    let registers = &scratch.record.registers;
    if is_entering || registers::by_number(registers, store.base) == scratch.thread.frame {
        scratch.linked_to = registers::by_number(registers, store.source);
    }
}

/// Whether a register holds this value.
#[inline(always)]
fn is_in_register(registers: &UserRegisters, value: u64) -> bool {
    let mut is_found = false;
    for register in &registers.general {
        is_found |= *register == value;
    }
    is_found
}

/// Whether a walk with this end can have gone over a chain that is being built.
#[inline(always)]
fn may_be_half_built(end: WalkResult, scratch: &Scratch) -> bool {
    let is_entering = scratch.is_entering != 0;
    if is_entering && !is_written(scratch) {
        return true;
    }
    match end {
        // A chain that begins at a frame that has returned, whose memory is used again, can lead back to itself.
        WalkResult::End(WalkEnd::FrameSwitch | WalkEnd::Loop) => true,
        // Or to nowhere. Else a frame behind the first is paged out, and what was walked before it is right.
        WalkResult::End(WalkEnd::Fault) => scratch.record.header.n_python <= 1 || is_entering,
        WalkResult::End(WalkEnd::Complete) => scratch.walk.is_lone_generator_entry(),
        WalkResult::Full => false,
    }
}

/// Whether the `_PyCFrame` of a loop that begins was written: it works on the frame that is current, which links
/// to what was current before. What an earlier loop left is told by either.
#[inline(always)]
fn is_written(scratch: &Scratch) -> bool {
    scratch.linked_to == 0
        && scratch.walk.is_entered_from(scratch.entered_from) != Some(false)
        && is_in_register(&scratch.record.registers, scratch.thread.frame)
}

#[inline(always)]
fn complete(end: WalkResult, n_candidates: u32, scratch: &mut Scratch) -> WalkResult {
    // A lone generator frame was right and stays; anything else was read from a half-built chain.
    let n_kept = if scratch.walk.is_behind_lone_generator() && scratch.is_entering == 0 {
        scratch.record.header.n_python
    } else {
        0
    };
    scratch.n_kept = n_kept;
    scratch.repaired = 0;
    let slot = share(scratch);
    for index in 0..N_CANDIDATES {
        if index >= n_candidates || try_candidate(slot, index) != 0 {
            break;
        }
    }
    if scratch.repaired != 0 {
        count(Counter::Repaired);
        scratch.record.header.flags |= sample_flags::REPAIRED;
        return WalkResult::End(WalkEnd::Complete);
    }
    if scratch.is_entering != 0 {
        // What was walked is of a call that is over. Without a frame before, this is the thread's first.
        scratch.record.header.n_python = 0;
        if scratch.entered_from == 0 {
            scratch.thread.frame = 0;
        }
        return WalkResult::End(WalkEnd::FrameSwitch);
    }
    match end {
        // The chain was as it should be.
        WalkResult::End(WalkEnd::Complete | WalkEnd::Fault) => {
            scratch.record.header.n_python = 0;
            walk(scratch.thread.frame, scratch)
        }
        WalkResult::End(WalkEnd::FrameSwitch | WalkEnd::Loop) | WalkResult::Full => {
            scratch.record.header.n_python = n_kept;
            end
        }
    }
}

/// What a candidate is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    LinkedTo,
    PreviousCframe,
    Frame,
    Cframe,
}

/// Walks from a candidate; 1 when the stack is complete then. The verifier looks at it once, see `walk`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn try_candidate(slot: u32, index: u32) -> u32 {
    let Some(scratch) = scratch_in(slot) else {
        return 1;
    };
    let Some(layout) = LAYOUTS.get(scratch.layout) else {
        return 1;
    };
    let is_entering = scratch.is_entering != 0;
    let (kind, candidate) = match index {
        0 => (Kind::LinkedTo, scratch.linked_to),
        1 => (Kind::PreviousCframe, scratch.thread.previous_cframe),
        _ if index < 2 + N_REGISTERS => (Kind::Frame, general(scratch, index - 2)),
        _ => (Kind::Cframe, general(scratch, index - 2 - N_REGISTERS)),
    };
    let is_cframe = matches!(kind, Kind::PreviousCframe | Kind::Cframe);
    if is_cframe && !matches!(layout.frame_root, FrameRoot::CFrame) {
        return 0;
    }
    if is_entering && !may_be_entered_from(candidate, kind, scratch) {
        return 0;
    }
    // A generator is mostly resumed by a frame of its own evaluation loop, which a register holds; the
    // `_PyCFrame` before belongs to the loop that called this one, and would skip that frame.
    if kind == Kind::PreviousCframe && scratch.n_kept > 0 {
        return 0;
    }
    // A pointer to a frame is aligned, in user space, and not in the first pages.
    if candidate & 7 != 0 || !arch::THIS.is_user_address(candidate) {
        return 0;
    }
    let mut frame = candidate;
    if is_cframe {
        let address = candidate.wrapping_add(u64::from(layout.cframe_current_frame));
        match CurrentTask.u64(address) {
            Ok(current_frame) if current_frame != 0 && current_frame & 7 == 0 => {
                frame = current_frame;
            }
            Ok(_) | Err(Fault) => return 0,
        }
    }
    // The frame that is about to be linked is the leaf, and was read already.
    let n_kept = if kind == Kind::LinkedTo && !is_entering {
        1
    } else {
        scratch.n_kept
    };
    scratch.record.header.n_python = n_kept;
    if let WalkResult::End(WalkEnd::Complete) = walk(frame, scratch) {
        if scratch.record.header.n_python > n_kept {
            scratch.repaired = 1;
            return 1;
        }
    }
    0
}

/// The register to try at a turn. A loop that begins has just loaded what was current before, into a register
/// that calls do not save: those come last in the record, and then are tried first.
#[inline(always)]
fn general(scratch: &Scratch, turn: u32) -> u64 {
    /// The verifier wants to see a bound.
    const MASK: usize = N_GENERAL_REGISTERS.next_power_of_two() - 1;
    let idx = if scratch.is_entering != 0 {
        N_REGISTERS.wrapping_sub(1).wrapping_sub(turn)
    } else {
        turn
    };
    let registers: &UserRegisters = &scratch.record.registers;
    let idx = core::hint::black_box(idx) as usize & MASK;
    if idx < registers.general.len() {
        registers.general[idx]
    } else {
        0
    }
}

/// Whether a loop that begins can have been entered from this frame or `_PyCFrame`.
#[inline(always)]
fn may_be_entered_from(candidate: u64, kind: Kind, scratch: &Scratch) -> bool {
    /// Second argument of functions: here the frame that is entered.
    const ENTERED: usize = arch::THIS.second_argument;
    /// Frames this far from each other can lie in one chunk of the data stack, where those above are of calls
    /// that are over.
    const NEAR: u64 = 1 << 20;
    let registers = &scratch.record.registers;
    match kind {
        Kind::LinkedTo => candidate != 0,
        // Once it was written a register holds it too, or what was current in it.
        Kind::PreviousCframe => {
            is_in_register(registers, candidate) || is_in_register(registers, scratch.entered_from)
        }
        Kind::Frame => {
            let above = candidate.wrapping_sub(registers.general[ENTERED]);
            above != 0 && above > NEAR
        }
        Kind::Cframe => candidate > registers.sp.wrapping_add(arch::THIS.own_cframe_bytes),
    }
}
