//! Runs the walk over a whole stack, inside the kernel's loop helper.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use profiler_common::event::MAX_PYTHON_FRAMES;
use profiler_common::layout::PyLayout;
use profiler_common::unwind::python::{self, Step, Walk, WalkEnd};

use crate::maps::Scratch;
use crate::memory::CurrentTask;

/// What the callbacks of `bpf_loop` get.
pub(crate) struct Context<'a> {
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) layout: &'a PyLayout,
}

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

/// Walks from `frame`, appending to the record.
#[inline(always)]
pub(crate) fn walk(layout: &PyLayout, frame: u64, scratch: &mut Scratch) -> WalkResult {
    scratch.walk = Walk::new(frame, scratch.thread.datastack_chunk);
    scratch.walk_end = RUNNING;
    let mut context = Context { scratch, layout };
    // SAFETY: the callback gets the context that lives here, and keeps nothing of it.
    unsafe {
        bpf_loop(
            MAX_STEPS,
            walk_step as *mut c_void,
            (&raw mut context).cast::<c_void>(),
            0,
        )
    };
    match context.scratch.walk_end {
        1 => WalkResult::End(WalkEnd::Complete),
        2 => WalkResult::End(WalkEnd::FrameSwitch),
        3 => WalkResult::End(WalkEnd::Fault),
        4 => WalkResult::End(WalkEnd::Loop),
        _ => WalkResult::Full,
    }
}

unsafe extern "C" fn walk_step(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `walk` passes its context.
    let context = unsafe { &mut *context.cast::<Context<'_>>() };
    let Scratch {
        walk,
        window,
        record,
        walk_end,
        ..
    } = &mut *context.scratch;
    match python::step(walk, &mut CurrentTask, window, context.layout) {
        Step::Frame(frame) => {
            let n_python = record.header.n_python;
            if usize::from(n_python) >= MAX_PYTHON_FRAMES {
                return 1;
            }
            record.python[usize::from(n_python) & (MAX_PYTHON_FRAMES - 1)] = frame;
            record.header.n_python = n_python + 1;
            0
        }
        Step::Skipped => 0,
        Step::End(end) => {
            *walk_end = match end {
                WalkEnd::Complete => 1,
                WalkEnd::FrameSwitch => 2,
                WalkEnd::Fault => 3,
                WalkEnd::Loop => 4,
            };
            1
        }
    }
}
