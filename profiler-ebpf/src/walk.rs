//! Runs the walk over a whole stack.
//!
//! The steps are a function that the verifier looks at once (a global function, 5.6+), and the loop over it is all
//! that it follows turn by turn. So no helper for loops is needed (`bpf_loop` came with 5.17). Before 5.12 such a
//! function takes numbers only: it finds what it works on by the scratch's slot.

use profiler_common::event::MAX_PYTHON_FRAMES;
use profiler_common::layout::PyLayout;
use profiler_common::unwind::python::{self, Step, Walk, WalkEnd};

use crate::maps::{LAYOUTS, Scratch, scratch_in, share};
use crate::memory::CurrentTask;

/// How a whole walk ended.
#[derive(Clone, Copy)]
pub(crate) enum WalkResult {
    End(WalkEnd),
    /// The record is full.
    Full,
}

const RUNNING: u32 = 0;

/// Each Python frame can have an entry frame of its own, and the end takes a step.
const MAX_STEPS: u32 = 2 * MAX_PYTHON_FRAMES as u32 + 2;

/// Steps of one call: few enough for the verifier, enough for the call not to cost.
const STEPS_PER_CALL: u32 = 8;

/// Walks from `frame`, appending to the record.
#[inline(always)]
pub(crate) fn walk(frame: u64, scratch: &mut Scratch) -> WalkResult {
    scratch.walk = Walk::new(frame, scratch.thread.datastack_chunk);
    scratch.walk_end = RUNNING;
    let slot = share(scratch);
    for _ in 0..MAX_STEPS.div_ceil(STEPS_PER_CALL) {
        if walk_steps(slot) != 0 {
            break;
        }
    }
    match scratch.walk_end {
        1 => WalkResult::End(WalkEnd::Complete),
        2 => WalkResult::End(WalkEnd::FrameSwitch),
        3 => WalkResult::End(WalkEnd::Fault),
        4 => WalkResult::End(WalkEnd::Loop),
        _ => WalkResult::Full,
    }
}

/// Takes some steps of the walk in a scratch; 1 when it has ended.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn walk_steps(slot: u32) -> u32 {
    let Some(scratch) = scratch_in(slot) else {
        return 1;
    };
    let Some(layout) = LAYOUTS.get(scratch.layout) else {
        return 1;
    };
    for _ in 0..STEPS_PER_CALL {
        if walk_step(scratch, layout) {
            return 1;
        }
    }
    0
}

/// Whether the walk has ended.
#[inline(always)]
fn walk_step(scratch: &mut Scratch, layout: &PyLayout) -> bool {
    let Scratch {
        walk,
        window,
        record,
        walk_end,
        ..
    } = scratch;
    match python::step(walk, &mut CurrentTask, window, layout) {
        Step::Frame(frame) => {
            let n_python = record.header.n_python;
            if usize::from(n_python) >= MAX_PYTHON_FRAMES {
                return true;
            }
            record.python[usize::from(n_python) & (MAX_PYTHON_FRAMES - 1)] = frame;
            record.header.n_python = n_python + 1;
            false
        }
        Step::Skipped => false,
        Step::End(end) => {
            *walk_end = match end {
                WalkEnd::Complete => 1,
                WalkEnd::FrameSwitch => 2,
                WalkEnd::Fault => 3,
                WalkEnd::Loop => 4,
            };
            true
        }
    }
}
