//! Offsets put to the test: do the structures of a living process look as they say?
//!
//! A build can differ from what is known of its version (debug builds, patched ones, a version newer than pyagent),
//! and a wrong guess is worse than none. So the frames that the process has now are walked, by the very steps that
//! the kernel takes, and what they lead to must be what it should be: code objects whose names are str, whose line
//! table is bytes, and whose instructions the frames point to.
//!
//! The process runs on meanwhile and a reading can tear. So one sound stack is enough, and only readings that all
//! fail say no.

use profiler_common::unwind::python::{Step, Walk, step};
use profiler_common::unwind::thread::{Thread, accept};
use profiler_common::unwind::{ReadUser as _, Window};

use super::code::{self, Unsound};
use super::layout::Layout;
use crate::ids::Address;
use crate::process::memory::{ReadMemory, RemoteReader};

/// Most thread states that are looked at.
const MAX_THREADS: usize = 64;

/// Most frames of a thread that are looked at, from the leaf on.
const MAX_FRAMES: usize = 16;

/// A stack that looks unsound is read this often before it counts.
const N_READINGS: usize = 5;

/// What the process said of its offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Frames of it lead to sound code objects.
    Sound {
        /// How many.
        n_frames: usize,
    },
    /// No thread runs Python now: there is nothing to look at.
    None,
    /// Every stack that it has is unsound; of one frame this is so.
    Unsound(Unsound),
}

/// Looks at the stacks of an interpreter's threads.
pub fn verify(memory: &impl ReadMemory, layout: &Layout, interp: Address) -> Evidence {
    let mut window = Window::new();
    let mut evidence = Evidence::None;
    for _ in 0..N_READINGS {
        for state in thread_states(memory, layout, interp) {
            match sound_frames(memory, layout, state, &mut window) {
                Ok(0) => {}
                Ok(n_frames) => return Evidence::Sound { n_frames },
                Err(unsound) => evidence = Evidence::Unsound(unsound),
            }
        }
        if evidence == Evidence::None {
            break;
        }
    }
    evidence
}

fn thread_states(memory: &impl ReadMemory, layout: &Layout, interp: Address) -> Vec<Address> {
    let word = |at: Address, offset: u16| memory.read_u64(at.add(offset.into())).unwrap_or(0);
    let mut state = Address(word(interp, layout.walk.interp_threads_head));
    let mut states = Vec::new();
    while !state.is_null() && states.len() < MAX_THREADS {
        states.push(state);
        state = Address(word(state, layout.walk.tstate_next));
    }
    states
}

/// How many frames of a thread were looked at, all of them sound.
fn sound_frames(
    memory: &impl ReadMemory,
    layout: &Layout,
    state: Address,
    window: &mut Window,
) -> Result<usize, Unsound> {
    let mut reader = RemoteReader(memory);
    let walk = &layout.walk;
    let id = reader.u64(state.add(walk.tstate_thread_id.into()).0);
    let id = id.map_err(|_| Unsound::Unreadable)?;
    let mut thread = Thread::default();
    accept(&mut reader, window, walk, state.0, id, &mut thread).map_err(|_| Unsound::Unreadable)?;
    let mut steps = Walk::new(thread.frame, thread.datastack_chunk);
    let mut n_frames = 0;
    for _ in 0..MAX_FRAMES {
        match step(&mut steps, &mut reader, window, walk) {
            Step::Frame(frame) => n_frames += usize::from(code::check(memory, layout, &frame)?),
            Step::Skipped => {}
            Step::End(_) => break,
        }
    }
    Ok(n_frames)
}
