//! One step of the CPython frame walk.
//!
//! Frames of 3.11 and newer lie side by side on the thread's data stack, so the walk reads that by windows
//! that end at the frame at hand; frames on the C stack (entry frames, shims) and in generators stand alone.
//! CPython 3.10 and older link frame objects, which are read one by one.
//!
//! A walk is complete only if its last frame is the interpreter's entry. 3.11 and 3.12 publish half-built
//! chains for a few instructions, and a chain that merely ends at NULL looks complete: [`WalkEnd::FrameSwitch`].

use super::{Fault, ReadUser, WINDOW_BYTES, Window};
use crate::event::{PyFrame, frame_flags};
use crate::layout::{ABSENT, EntryMark, IdentityKind, PyLayout};

/// `FRAME_OWNED_BY_CSTACK` (3.12, 3.13) and the values above it: frames of the interpreter itself.
pub const OWNER_INTERPRETER: u8 = 3;

/// `FRAME_OWNED_BY_GENERATOR` (3.11+).
pub const OWNER_GENERATOR: u8 = 1;

/// No frame lies there.
const NO_ENTRY: u64 = 1;

/// Offset of `PyASCIIObject.hash` (3.6 to 3.13), which interning has computed: names are interned.
pub const STR_HASH: u64 = 24;

/// Where a walk stands.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Walk {
    /// Address of the next frame; 0 at the end of the chain.
    frame: u64,
    /// Address of the window's first byte.
    window_address: u64,
    /// Bytes of the window that are filled; 0 before the first read.
    window_bytes: u64,
    /// Data stack chunk that the frames lie in, 0 before the first is known.
    chunk: u64,
    /// Its size in bytes.
    chunk_bytes: u64,
    /// The chunk towards the root.
    next_chunk: u64,
    /// Code object of the frame before, and its identity: on the stack it cannot die while the sample is taken.
    last_code: u64,
    last_identity: u32,
    last_flags: u32,
    /// Frame that a loop would come back to, moved at steps that are powers of two (Brent).
    anchor: u64,
    /// What the first frame that marks an entry links to; [`NO_ENTRY`] before it was seen.
    entry_link: u64,
    n_steps: u32,
    /// Owner of the frame before.
    last_owner: u8,
    /// The frame before marks the entry into the interpreter.
    last_is_entry: bool,
}

/// What one step found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A frame of a Python function.
    Frame(PyFrame),
    /// A frame of the interpreter itself, which is not shown.
    Skipped,
    /// There is no further frame.
    End(WalkEnd),
}

/// Why a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkEnd {
    /// At the entry of the interpreter.
    Complete,
    /// At NULL, but not at the entry.
    FrameSwitch,
    /// A frame could not be read.
    Fault,
    /// It came back to a frame it had been at.
    Loop,
}

impl Walk {
    /// A walk that begins at `frame`, with the thread's current data stack chunk (0 where there is none).
    #[must_use]
    #[inline(always)]
    pub const fn new(frame: u64, datastack_chunk: u64) -> Self {
        Self {
            frame,
            window_address: 0,
            window_bytes: 0,
            chunk: 0,
            chunk_bytes: 0,
            next_chunk: datastack_chunk,
            last_code: 0,
            last_identity: 0,
            last_flags: 0,
            anchor: 0,
            entry_link: NO_ENTRY,
            n_steps: 0,
            last_owner: 0,
            last_is_entry: false,
        }
    }

    /// Address of the frame that the next step looks at; 0 at the end of the chain.
    #[must_use]
    #[inline(always)]
    pub const fn frame(&self) -> u64 {
        self.frame
    }

    /// Whether the walk stands behind a single generator frame that was unlinked from its caller: what was
    /// walked is right, and only the rest is missing (3.12 clears `previous` before `current_frame` moves).
    #[must_use]
    #[inline(always)]
    pub const fn is_behind_lone_generator(&self) -> bool {
        self.frame == 0 && self.n_steps == 1 && self.last_owner == OWNER_GENERATOR
    }

    /// Whether the walk consists of a single generator frame that is an entry. 3.11 marks generators that C code
    /// has resumed as entries, and they stay so when they are suspended: an evaluation loop that begins can still
    /// point to one from before. A generator that is the first frame of a thread looks the same.
    #[must_use]
    #[inline(always)]
    pub const fn is_lone_generator_entry(&self) -> bool {
        self.n_steps == 1 && self.last_is_entry && self.last_owner == OWNER_GENERATOR
    }

    /// Whether what was walked is the chain of an evaluation loop that began while `frame` was the current one:
    /// its entry frame links to that. `None`: no entry was met.
    #[must_use]
    #[inline(always)]
    pub const fn is_entered_from(&self, frame: u64) -> Option<bool> {
        if self.entry_link == NO_ENTRY {
            None
        } else {
            Some(self.entry_link == frame)
        }
    }
}

/// Takes one step towards the root.
#[inline(always)]
pub fn step<R: ReadUser>(
    walk: &mut Walk,
    reader: &mut R,
    window: &mut Window,
    layout: &PyLayout,
) -> Step {
    let frame = walk.frame;
    if frame == 0 {
        return Step::End(if walk.last_is_entry {
            WalkEnd::Complete
        } else {
            WalkEnd::FrameSwitch
        });
    }
    if frame == walk.anchor {
        return Step::End(WalkEnd::Loop);
    }
    walk.n_steps += 1;
    if walk.n_steps.is_power_of_two() {
        walk.anchor = frame;
    }
    let Ok(offset) = locate(walk, reader, window, layout) else {
        return Step::End(WalkEnd::Fault);
    };
    let code = window.word(offset, layout.frame_code) & !u64::from(layout.code_tag_mask);
    let instr = window.word(offset, layout.frame_instr);
    walk.frame = window.word(offset, layout.frame_previous);
    let mut flags = 0;
    match layout.entry_mark {
        EntryMark::Null => walk.last_is_entry = true,
        EntryMark::IsEntry => {
            walk.last_owner = window.byte(offset, layout.frame_owner);
            walk.last_is_entry = window.byte(offset, layout.frame_is_entry) != 0;
        }
        EntryMark::Owner => {
            walk.last_owner = window.byte(offset, layout.frame_owner);
            walk.last_is_entry = walk.last_owner >= OWNER_INTERPRETER;
        }
    }
    if walk.last_is_entry {
        if walk.entry_link == NO_ENTRY {
            walk.entry_link = walk.frame;
        }
        if matches!(layout.entry_mark, EntryMark::Owner) {
            return Step::Skipped;
        }
        flags |= frame_flags::ENTRY;
    }
    if code != walk.last_code {
        let identity = identity(reader, code, layout);
        walk.last_flags = if identity.is_ok() {
            0
        } else {
            frame_flags::NO_IDENTITY
        };
        walk.last_identity = identity.unwrap_or(0);
        walk.last_code = code;
    }
    Step::Frame(PyFrame {
        code,
        instr,
        identity: walk.last_identity,
        flags: flags | walk.last_flags,
    })
}

/// Offset of the frame in the window; reads a new window when it does not lie in it.
#[inline(always)]
fn locate<R: ReadUser>(
    walk: &mut Walk,
    reader: &mut R,
    window: &mut Window,
    layout: &PyLayout,
) -> Result<u64, Fault> {
    let frame = walk.frame;
    let frame_bytes = u64::from(layout.frame_bytes & 0xf8);
    let offset = frame.wrapping_sub(walk.window_address);
    if offset < walk.window_bytes && walk.window_bytes - offset >= frame_bytes && frame & 7 == 0 {
        return Ok(offset);
    }
    if frame & 7 != 0 {
        return Err(Fault);
    }
    if frame.wrapping_sub(walk.chunk) >= walk.chunk_bytes && walk.next_chunk != 0 {
        // _PyStackChunk: previous at 0, size at 8 (3.11+).
        if let Ok([previous, size]) = reader.words::<2>(walk.next_chunk)
            && frame.wrapping_sub(walk.next_chunk) < size
        {
            walk.chunk = walk.next_chunk;
            walk.chunk_bytes = size;
            walk.next_chunk = previous;
        }
    }
    let end = frame.wrapping_add(frame_bytes);
    let mut start = frame;
    if frame.wrapping_sub(walk.chunk) < walk.chunk_bytes {
        start = end.wrapping_sub(WINDOW_BYTES);
        // What lies below the chunk may not be mapped, and a read that faults is dear.
        if start < walk.chunk {
            start = walk.chunk;
        }
    }
    let n_bytes = end.wrapping_sub(start);
    if n_bytes > WINDOW_BYTES || n_bytes < frame_bytes {
        return Err(Fault);
    }
    walk.window_bytes = 0;
    reader.window(start, n_bytes, window)?;
    walk.window_address = start;
    walk.window_bytes = n_bytes;
    Ok(n_bytes - frame_bytes)
}

/// Reads what tells the code object at `code` from others that lived or will live there.
#[inline(always)]
pub fn identity<R: ReadUser>(reader: &mut R, code: u64, layout: &PyLayout) -> Result<u32, Fault> {
    let address = code.wrapping_add(u64::from(layout.code_identity));
    match layout.identity_kind {
        IdentityKind::Version => reader.u32(address),
        // file name, name, line table
        IdentityKind::Pointers3 => {
            let [filename, name, line_table] = reader.words::<3>(address)?;
            Ok(mix(filename, name_identity(reader, name)?, line_table))
        }
        // file name, name, qualified name, line table
        IdentityKind::Pointers4 => {
            let [filename, name, _, line_table] = reader.words::<4>(address)?;
            Ok(mix(filename, name_identity(reader, name)?, line_table))
        }
    }
}

/// A name by its place and its text: a new name can lie where that of a dead code object lay, and its code
/// object where that one was.
#[inline(always)]
fn name_identity<R: ReadUser>(reader: &mut R, name: u64) -> Result<u64, Fault> {
    Ok(name ^ reader.u64(name.wrapping_add(STR_HASH))?)
}

/// Hash of three pointers.
#[inline(always)]
fn mix(filename: u64, name: u64, line_table: u64) -> u32 {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let hash = (filename.wrapping_mul(ODD) ^ name)
        .wrapping_mul(ODD)
        .rotate_left(31)
        ^ line_table;
    (hash.wrapping_mul(ODD) >> 32) as u32
}

/// Whether a layout has frames whose chain can be caught half-built.
#[must_use]
#[inline(always)]
pub const fn can_be_caught_in_a_switch(layout: &PyLayout) -> bool {
    layout.frame_owner != ABSENT
}
