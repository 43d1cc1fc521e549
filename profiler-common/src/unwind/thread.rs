//! From an OS thread to its `PyThreadState`.
//!
//! The interpreter's own "current thread state" is no way: it is NULL, or another thread's, whenever the GIL
//! is released. First the thread's own storage (the slot of CPython's `autoTSSkey`, calibrated by the agent)
//! is looked at; where there is none, the lists of all interpreters are walked. Either way the state's
//! `thread_id` (a pthread_t) must be that of the thread pointer, see [`crate::arch`].

use super::{Fault, ReadUser, Window};
use crate::arch;
use crate::event::{PythonStatus, sample_flags};
use crate::layout::{ABSENT, FrameRoot, GilKind, PyLayout};
use crate::process::ProcessEntry;

/// Most thread states and interpreters that one walk over the lists visits.
pub const MAX_LISTED: u32 = 4096;

/// What was found of a thread.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Thread {
    /// Address of its `PyThreadState`; 0 when none was found.
    pub state: u64,
    /// Its `thread_id`: the `pthread_t` of the thread.
    pub ident: u64,
    /// Its current frame; 0 between calls into Python.
    pub frame: u64,
    /// Its `_PyCFrame` for [`FrameRoot::CFrame`], else 0.
    pub cframe: u64,
    /// `_PyCFrame.previous` for [`FrameRoot::CFrame`], else 0.
    pub previous_cframe: u64,
    /// Its current data stack chunk; 0 where the version has none.
    pub datastack_chunk: u64,
    /// Bits of [`sample_flags`]: GIL and how the state was found.
    pub flags: u32,
}

/// Looks a thread up in its own storage. `Ok(None)`: there is no calibrated slot, walk the lists.
#[inline(always)]
pub fn own_storage<R: ReadUser>(
    reader: &mut R,
    process: &ProcessEntry,
    thread_pointer: u64,
) -> Result<Option<u64>, PythonStatus> {
    let slot = &process.thread_slot;
    if slot.known == 0 {
        return Ok(None);
    }
    let address = thread_pointer.wrapping_add_signed(i64::from(slot.offset));
    let mut state = reader
        .u64(address)
        .map_err(|Fault| PythonStatus::ThreadStateFault)?;
    if slot.indirect >= 0 && state != 0 {
        let address = state.wrapping_add_signed(i64::from(slot.indirect));
        state = reader
            .u64(address)
            .map_err(|Fault| PythonStatus::ThreadStateFault)?;
    }
    // A slot without a state: the thread has never called into Python.
    if state == 0 {
        Err(PythonStatus::NoThreadState)
    } else {
        Ok(Some(state))
    }
}

/// Reads the thread state at `state` and fills `thread`. False: it is not this thread's.
#[inline(always)]
pub fn accept<R: ReadUser>(
    reader: &mut R,
    window: &mut Window,
    layout: &PyLayout,
    state: u64,
    thread_pointer: u64,
    thread: &mut Thread,
) -> Result<bool, Fault> {
    reader.window(state, u64::from(layout.tstate_bytes & 0x3f8), window)?;
    let ident = window.word_at(layout.tstate_thread_id);
    if !arch::THIS.is_id_of_thread(ident, thread_pointer) {
        return Ok(false);
    }
    thread.state = state;
    thread.ident = ident;
    thread.frame = window.word_at(layout.tstate_frame);
    thread.cframe = 0;
    thread.previous_cframe = 0;
    thread.datastack_chunk = 0;
    if layout.has_data_stack() {
        thread.datastack_chunk = window.word_at(layout.tstate_datastack_chunk);
    }
    if matches!(layout.frame_root, FrameRoot::CFrame) && thread.frame != 0 {
        // _PyCFrame: current_frame, then previous.
        let cframe = thread
            .frame
            .wrapping_add(u64::from(layout.cframe_current_frame));
        let [frame, previous] = reader.words::<2>(cframe)?;
        thread.cframe = thread.frame;
        thread.frame = frame;
        thread.previous_cframe = previous;
    }
    Ok(true)
}

/// Finds out whether `thread` holds the GIL. Returns the thread state that does: what the runtime calls current, where
/// the version keeps one for the whole runtime (<= 3.11), else the holder of the GIL of the thread's interpreter. 0: none.
///
/// Must be called while `window` still holds the thread state that [`accept`] read.
#[inline(always)]
pub fn gil<R: ReadUser>(
    reader: &mut R,
    window: &Window,
    layout: &PyLayout,
    process: &ProcessEntry,
    thread: &mut Thread,
) -> u64 {
    match layout.gil_kind {
        GilKind::Unknown => 0,
        GilKind::RuntimeCurrent => {
            let Ok(current) = reader.u64(process.runtime.wrapping_add(u64::from(layout.gil)))
            else {
                return 0;
            };
            thread.flags |= sample_flags::GIL_KNOWN;
            if current == thread.state {
                thread.flags |= sample_flags::GIL_HELD;
            }
            current
        }
        GilKind::Interpreter | GilKind::Switchable => {
            let interp = window.word_at(layout.tstate_interp);
            let Ok(gil) = reader.u64(interp.wrapping_add(u64::from(layout.gil))) else {
                return 0;
            };
            // struct _gil_runtime_state: interval, last_holder, locked (int), ...; in front of them enabled (int), where
            // it can be switched on.
            let Ok([first, second, third, fourth]) = reader.words::<4>(gil) else {
                return 0;
            };
            let (last_holder, locked) = match layout.gil_kind {
                GilKind::Switchable if first as u32 == 0 => return 0,
                GilKind::Switchable => (third, fourth),
                GilKind::Unknown | GilKind::RuntimeCurrent | GilKind::Interpreter => {
                    (second, third)
                }
            };
            thread.flags |= sample_flags::GIL_KNOWN;
            if locked as u32 != 1 {
                return 0;
            }
            if last_holder == thread.state {
                thread.flags |= sample_flags::GIL_HELD;
            }
            last_holder
        }
    }
}

/// Finds out whether `thread`, which holds the GIL, collects garbage: [`sample_flags::COLLECTING`].
///
/// Must be called while `window` still holds the thread state that [`accept`] read.
#[inline(always)]
pub fn collecting<R: ReadUser>(
    reader: &mut R,
    window: &Window,
    layout: &PyLayout,
    process: &ProcessEntry,
    thread: &mut Thread,
) {
    if thread.flags & sample_flags::GIL_HELD == 0 || layout.gc_collecting == ABSENT {
        return;
    }
    let start = if layout.gc_is_of_runtime == 0 {
        window.word_at(layout.tstate_interp)
    } else {
        process.runtime
    };
    // int collecting.
    if reader.u32(start.wrapping_add(u64::from(layout.gc_collecting))) == Ok(1) {
        thread.flags |= sample_flags::COLLECTING;
    }
}

/// The current frame of the thread state at `state`; 0 when it has none.
#[inline(always)]
fn first_frame<R: ReadUser>(reader: &mut R, layout: &PyLayout, state: u64) -> Result<u64, Fault> {
    let frame = reader.u64(state.wrapping_add(u64::from(layout.tstate_frame)))?;
    if frame == 0 || matches!(layout.frame_root, FrameRoot::Direct) {
        return Ok(frame);
    }
    reader.u64(frame.wrapping_add(u64::from(layout.cframe_current_frame)))
}

/// A walk over the thread states of all interpreters.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ListWalk {
    interp: u64,
    state: u64,
    /// The match that has a frame; 0 while there is none.
    pub found: u64,
    /// A match without a frame. In 3.8 to 3.11 the state of a thread that is about to start carries its
    /// parent's `thread_id`, and stands first in the list.
    pub idle: u64,
    /// Number of matches that have a frame.
    pub n_found: u32,
    /// Interpreters seen.
    n_interpreters: u32,
}

/// What one step over the lists found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListStep {
    /// Go on.
    More,
    /// Every thread state was seen.
    Done,
    /// The lists could not be read.
    Fault,
}

impl ListWalk {
    /// Begins at the runtime's first interpreter.
    #[inline(always)]
    pub fn new<R: ReadUser>(
        reader: &mut R,
        layout: &PyLayout,
        runtime: u64,
    ) -> Result<Self, PythonStatus> {
        let head = runtime.wrapping_add(u64::from(layout.runtime_interpreters_head));
        let interp = reader
            .u64(head)
            .map_err(|Fault| PythonStatus::ThreadStateFault)?;
        if interp == 0 {
            return Err(PythonStatus::NoInterpreter);
        }
        let head = interp.wrapping_add(u64::from(layout.interp_threads_head));
        let state = reader
            .u64(head)
            .map_err(|Fault| PythonStatus::ThreadStateFault)?;
        Ok(Self {
            interp,
            state,
            n_interpreters: 1,
            ..Self::default()
        })
    }

    /// Looks at one thread state, or moves on to the next interpreter.
    #[inline(always)]
    pub fn step<R: ReadUser>(
        &mut self,
        reader: &mut R,
        layout: &PyLayout,
        thread_pointer: u64,
    ) -> ListStep {
        if self.state == 0 {
            let Ok(next) = reader.u64(self.interp.wrapping_add(u64::from(layout.interp_next)))
            else {
                return ListStep::Fault;
            };
            if next == 0 {
                return ListStep::Done;
            }
            let Ok(state) = reader.u64(next.wrapping_add(u64::from(layout.interp_threads_head)))
            else {
                return ListStep::Fault;
            };
            self.interp = next;
            self.state = state;
            self.n_interpreters += 1;
            return ListStep::More;
        }
        let state = self.state;
        let Ok(thread_id) = reader.u64(state.wrapping_add(u64::from(layout.tstate_thread_id)))
        else {
            return ListStep::Fault;
        };
        if arch::THIS.is_id_of_thread(thread_id, thread_pointer) {
            let Ok(frame) = first_frame(reader, layout, state) else {
                return ListStep::Fault;
            };
            if frame == 0 {
                self.idle = state;
            } else {
                if self.n_found == 0 {
                    self.found = state;
                }
                self.n_found += 1;
            }
        }
        let Ok(next) = reader.u64(state.wrapping_add(u64::from(layout.tstate_next))) else {
            return ListStep::Fault;
        };
        self.state = next;
        ListStep::More
    }

    /// The thread state to take, or why there is none. `n_found > 1` stays to be settled by the GIL's holder.
    #[inline(always)]
    #[must_use]
    pub const fn result(&self) -> Option<u64> {
        if self.n_found > 0 {
            Some(self.found)
        } else if self.idle != 0 {
            Some(self.idle)
        } else {
            None
        }
    }
}
