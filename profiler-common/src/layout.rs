//! `PyLayout`: where the fields lie in one build of CPython, as plain data.
//!
//! The agent makes it (table for 3.8 to 3.12, `_Py_DebugOffsets` from 3.13 on), the kernel and the remote
//! reader use it. All offsets are in bytes from the start of the named structure, [`ABSENT`] where the
//! version lacks the field. The bounds below are what the walk relies on; [`PyLayout::check`] proves them.

/// Offset of a field that the version does not have.
pub const ABSENT: u16 = u16::MAX;

/// Most bytes of a thread state that are read at once; all offsets in it lie below.
pub const THREAD_STATE_BYTES: usize = 512;

/// Most bytes of a frame that are read at once; all offsets in it lie below.
pub const FRAME_BYTES: usize = 128;

/// Where the current frame hangs off the thread state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameRoot {
    /// `tstate.frame` is the frame (<= 3.10), or `tstate.current_frame` (3.13+).
    Direct = 0,
    /// `tstate.cframe` points to a `_PyCFrame` that points to the frame (3.11, 3.12).
    CFrame = 1,
}

/// What ends a complete walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryMark {
    /// No mark: the chain ends at NULL (<= 3.10).
    Null = 0,
    /// The last frame has `is_entry` set (3.11).
    IsEntry = 1,
    /// The last frame is owned by the C stack or the interpreter: `owner >= 3` (3.12 to 3.14), and the
    /// base frame in 3.15.
    Owner = 2,
}

/// How code objects at one address are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum IdentityKind {
    /// `co_version`, a u32 that each new code object draws from a counter (3.12+).
    Version = 0,
    /// Hash of the pointers file name, name, line table, which lie side by side, and of the name's text.
    Pointers3 = 1,
    /// The same with the qualified name between (3.11).
    Pointers4 = 2,
}

/// Unit of a frame's instruction field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum InstructionUnit {
    /// `f_lasti` (i32) in bytes (<= 3.9); -1 before the first instruction.
    LastiBytes = 0,
    /// `f_lasti` (i32) in code units of 2 bytes (3.10).
    LastiUnits = 1,
    /// `prev_instr`: address of the last instruction executed (3.11, 3.12).
    PrevInstr = 2,
    /// `instr_ptr`: address of the instruction being executed (3.13+).
    InstrPtr = 3,
}

/// How it is known that a thread holds the GIL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GilKind {
    /// It cannot be known.
    Unknown = 0,
    /// `_PyRuntime + gil` holds the current thread state (<= 3.11: `gilstate.tstate_current`).
    RuntimeCurrent = 1,
    /// `*(interp + gil)` is the GIL: `last_holder` at +8, `locked` at +16 (3.12+).
    Interpreter = 2,
    /// The same in a free-threaded build, where it can be switched on: `enabled` at 0, `last_holder` at +16, `locked`
    /// at +24.
    Switchable = 3,
}

/// Offsets of one interpreter build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct PyLayout {
    /// `PY_VERSION_HEX`, for messages; the walk never branches on it.
    pub version_hex: u32,
    /// `_PyRuntimeState.interpreters.head`.
    pub runtime_interpreters_head: u16,
    /// `PyInterpreterState.next`.
    pub interp_next: u16,
    /// `PyInterpreterState.threads.head`.
    pub interp_threads_head: u16,
    /// [`GilKind::RuntimeCurrent`]: in `_PyRuntime`; else in the interpreter.
    pub gil: u16,
    /// Bytes of a thread state that the walk needs: up to and with its last field, a multiple of 8. No more
    /// are read: what lies behind may not be mapped.
    pub tstate_bytes: u16,
    /// `PyThreadState.next`.
    pub tstate_next: u16,
    /// `PyThreadState.interp`.
    pub tstate_interp: u16,
    /// `PyThreadState.thread_id`: the pthread_t.
    pub tstate_thread_id: u16,
    /// `PyThreadState.native_thread_id` (3.11+).
    pub tstate_native_thread_id: u16,
    /// `frame`, `cframe` or `current_frame`, by [`PyLayout::frame_root`].
    pub tstate_frame: u16,
    /// `_PyCFrame.current_frame`, for [`FrameRoot::CFrame`].
    pub cframe_current_frame: u16,
    /// `PyThreadState.datastack_chunk` (3.11+).
    pub tstate_datastack_chunk: u16,
    /// Bytes of a frame that the walk needs: up to and with `owner`, a multiple of 8.
    pub frame_bytes: u16,
    /// `f_code` or `f_executable`.
    pub frame_code: u16,
    /// `f_back` or `previous`.
    pub frame_previous: u16,
    /// `f_lasti`, `prev_instr` or `instr_ptr`.
    pub frame_instr: u16,
    /// `owner` (3.11+).
    pub frame_owner: u16,
    /// `is_entry` (3.11).
    pub frame_is_entry: u16,
    /// `co_version`, or `co_filename` for the pointer identities.
    pub code_identity: u16,
    /// `gc.collecting` (int): in the interpreter, or in `_PyRuntime`; [`ABSENT`] where the interpreter measures its
    /// collections (3.15+), or where it lies is not known.
    pub gc_collecting: u16,
    /// A [`FrameRoot`].
    pub frame_root: FrameRoot,
    /// An [`EntryMark`].
    pub entry_mark: EntryMark,
    /// An [`IdentityKind`].
    pub identity_kind: IdentityKind,
    /// An [`InstructionUnit`].
    pub instruction_unit: InstructionUnit,
    /// A [`GilKind`].
    pub gil_kind: GilKind,
    /// Bits to clear in `frame_code` (tagged stack references of 3.14+), else 0.
    pub code_tag_mask: u8,
    /// Not 0: [`PyLayout::gc_collecting`] is in `_PyRuntime` (up to 3.8).
    pub gc_is_of_runtime: u8,
    /// Not used; zero.
    pub reserved: u8,
}

/// Why a layout cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayoutError {
    /// A field of the thread state lies beyond `tstate_bytes`, or that beyond [`THREAD_STATE_BYTES`].
    ThreadStateField,
    /// A field of the frame lies beyond `frame_bytes`, or that beyond [`FRAME_BYTES`].
    FrameField,
    /// A field is not aligned.
    Alignment,
    /// A field that this kind of layout needs is absent.
    Missing,
}

impl PyLayout {
    /// Whether frames lie on a data stack (3.11+) and are worth reading by windows.
    #[must_use]
    #[inline(always)]
    pub const fn has_data_stack(&self) -> bool {
        self.tstate_datastack_chunk != ABSENT
    }

    /// Proves what the walk relies on. Offsets may come from a hostile process.
    pub fn check(&self) -> Result<(), LayoutError> {
        let tstate = [
            self.tstate_next,
            self.tstate_interp,
            self.tstate_thread_id,
            self.tstate_frame,
        ];
        let frame = [self.frame_code, self.frame_previous];
        if tstate.contains(&ABSENT) || frame.contains(&ABSENT) || self.frame_instr == ABSENT {
            return Err(LayoutError::Missing);
        }
        let owner_needed =
            matches!(self.entry_mark, EntryMark::Owner) && self.frame_owner == ABSENT;
        let is_entry_needed =
            matches!(self.entry_mark, EntryMark::IsEntry) && self.frame_is_entry == ABSENT;
        if owner_needed || is_entry_needed || self.code_identity == ABSENT {
            return Err(LayoutError::Missing);
        }
        let optional = [self.tstate_native_thread_id, self.tstate_datastack_chunk];
        let present = optional.into_iter().filter(|offset| *offset != ABSENT);
        for offset in tstate.into_iter().chain(present) {
            if offset > self.tstate_bytes.saturating_sub(8) {
                return Err(LayoutError::ThreadStateField);
            }
            if !offset.is_multiple_of(8) {
                return Err(LayoutError::Alignment);
            }
        }
        if usize::from(self.tstate_bytes) > THREAD_STATE_BYTES
            || !self.tstate_bytes.is_multiple_of(8)
        {
            return Err(LayoutError::ThreadStateField);
        }
        if usize::from(self.frame_bytes) > FRAME_BYTES || !self.frame_bytes.is_multiple_of(8) {
            return Err(LayoutError::FrameField);
        }
        let bytes = [self.frame_owner, self.frame_is_entry];
        for offset in bytes.into_iter().filter(|offset| *offset != ABSENT) {
            if offset >= self.frame_bytes {
                return Err(LayoutError::FrameField);
            }
        }
        for offset in frame.into_iter().chain([self.frame_instr]) {
            if offset > self.frame_bytes.saturating_sub(8) {
                return Err(LayoutError::FrameField);
            }
            if !offset.is_multiple_of(8) {
                return Err(LayoutError::Alignment);
            }
        }
        Ok(())
    }
}
