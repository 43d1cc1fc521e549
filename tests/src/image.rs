//! Memory of made-up processes: a thread's frames laid out as one version of CPython does it, byte by byte.
//!
//! It follows the layout's offsets and CPython's rules (which frames lie on the data stack, which on the C
//! stack or in a generator), and nothing of the code that walks it.

use std::cell::Cell;
use std::collections::BTreeMap;

use profiler_agent::ids::Address;
use profiler_agent::process::memory::{MemoryError, ReadMemory};
use profiler_common::layout::{ABSENT, EntryMark, FrameRoot, GilKind, PyLayout};

/// `_PyStackChunk`: previous, size, top, then the data.
const CHUNK_HEADER_BYTES: u64 = 24;

/// `DATA_STACK_CHUNK_SIZE` of CPython.
pub const CHUNK_BYTES: u64 = 16 * 1024;

/// Owners of frames (`enum _frameowner`).
const OWNED_BY_THREAD: u8 = 0;
const OWNED_BY_GENERATOR: u8 = 1;
const OWNED_BY_CSTACK: u8 = 3;

/// Pieces of memory at addresses; all else is unmapped. A read must lie within one piece.
#[derive(Debug, Default)]
pub struct Image {
    pieces: BTreeMap<u64, Vec<u8>>,
    n_reads: Cell<u32>,
}

impl Image {
    /// Maps zeros.
    pub fn map(&mut self, address: u64, n_bytes: u64) {
        self.pieces.insert(address, vec![0; n_bytes as usize]);
    }

    /// Unmaps everything from an address on, up to the end of its piece.
    pub fn cut(&mut self, address: u64) {
        if let Some((start, piece)) = self.pieces.range_mut(..=address).next_back() {
            piece.truncate((address - start) as usize);
        }
    }

    /// Writes bytes, which must be mapped.
    ///
    /// # Panics
    /// When they are not: the test is wrong.
    pub fn set(&mut self, address: u64, bytes: &[u8]) {
        let (start, piece) = self
            .pieces
            .range_mut(..=address)
            .next_back()
            .expect("mapped by the test");
        let at = (address - start) as usize;
        piece[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a word.
    pub fn set_word(&mut self, address: u64, word: u64) {
        self.set(address, &word.to_le_bytes());
    }

    /// Number of reads since the last call.
    pub fn take_n_reads(&self) -> u32 {
        self.n_reads.take()
    }
}

impl ReadMemory for Image {
    fn read(&self, address: Address, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.n_reads.set(self.n_reads.get() + 1);
        let unmapped = MemoryError::Unmapped(address);
        let (start, piece) = self
            .pieces
            .range(..=address.0)
            .next_back()
            .ok_or(unmapped)?;
        let at = (address.0 - start) as usize;
        let end = at.checked_add(buffer.len()).ok_or(unmapped)?;
        buffer.copy_from_slice(piece.get(at..end).ok_or(unmapped)?);
        Ok(())
    }
}

/// One Python function that is running, as its caller made it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Call {
    /// C code called it: it begins a new chain of the interpreter.
    pub from_c: bool,
    /// It is a generator or a coroutine: its frame lies in that object.
    pub is_generator: bool,
    /// Local variables and stack, in words behind the frame.
    pub n_slots: u16,
    /// Its frame does not fit the chunk and begins a new one.
    pub begins_chunk: bool,
}

/// A thread's frames in memory.
#[derive(Debug)]
pub struct Stack {
    /// The leaf's frame.
    pub leaf: u64,
    /// The thread's current data stack chunk; 0 where the version has none.
    pub chunk: u64,
    /// Address of each Python function's code object, leaf first.
    pub codes: Vec<u64>,
    /// Address of every frame, shims too, leaf first.
    pub frames: Vec<u64>,
}

/// Builds processes in memory.
#[derive(Debug)]
pub struct Builder<'a> {
    /// The version's layout.
    pub layout: &'a PyLayout,
    /// The memory so far.
    pub image: Image,
    next: u64,
}

impl<'a> Builder<'a> {
    /// An empty process.
    #[must_use]
    pub fn new(layout: &'a PyLayout) -> Self {
        Self {
            layout,
            image: Image::default(),
            next: 0x7f00_0000_0000,
        }
    }

    /// Maps a piece of zeros of its own, with unmapped memory before and behind it.
    pub fn allocate(&mut self, n_bytes: u64) -> u64 {
        let address = self.next;
        self.image.map(address, n_bytes);
        self.next += n_bytes.next_multiple_of(4096) + 4096;
        address
    }

    /// A code object, with an identity of its own.
    fn code(&mut self) -> u64 {
        let code = self.allocate(256);
        // What stands at the place of the name is read as one.
        for word in 0..4 {
            self.image.set_word(
                code + u64::from(self.layout.code_identity) + word * 8,
                code + 192 + word,
            );
        }
        code
    }

    /// The frames of these calls, root first.
    pub fn stack(&mut self, calls: &[Call]) -> Stack {
        let mut stack = Stack {
            leaf: 0,
            chunk: 0,
            codes: Vec::new(),
            frames: Vec::new(),
        };
        let mut top = 0;
        for (idx, call) in calls.iter().enumerate() {
            let from_c = call.from_c || idx == 0;
            if from_c && matches!(self.layout.entry_mark, EntryMark::Owner) {
                // The shim that _PyEval_EvalFrameDefault has on the C stack.
                let shim = self.allocate(self.layout.frame_bytes.into());
                let code = self.code();
                self.frame(&mut stack, shim, code, OWNED_BY_CSTACK, false);
            }
            let n_bytes = u64::from(self.layout.frame_bytes) + u64::from(call.n_slots) * 8;
            let owner = if call.is_generator {
                OWNED_BY_GENERATOR
            } else {
                OWNED_BY_THREAD
            };
            let frame = if call.is_generator || !self.layout.has_data_stack() {
                self.allocate(n_bytes)
            } else {
                self.push(&mut stack, &mut top, n_bytes, call.begins_chunk)
            };
            let code = self.code();
            self.frame(&mut stack, frame, code, owner, from_c);
            stack.codes.push(code);
        }
        stack.codes.reverse();
        stack.frames.reverse();
        stack
    }

    /// Room on the data stack, in a new chunk where the current one is full.
    fn push(&mut self, stack: &mut Stack, top: &mut u64, n_bytes: u64, begins_chunk: bool) -> u64 {
        if stack.chunk == 0 || begins_chunk || *top + n_bytes > stack.chunk + CHUNK_BYTES {
            let chunk = self.allocate(CHUNK_BYTES);
            self.image.set_word(chunk, stack.chunk);
            self.image.set_word(chunk + 8, CHUNK_BYTES);
            stack.chunk = chunk;
            *top = chunk + CHUNK_HEADER_BYTES;
        }
        let frame = *top;
        *top += n_bytes;
        frame
    }

    fn frame(&mut self, stack: &mut Stack, frame: u64, code: u64, owner: u8, is_entry: bool) {
        let layout = self.layout;
        self.image
            .set_word(frame + u64::from(layout.frame_code), code);
        self.image
            .set_word(frame + u64::from(layout.frame_previous), stack.leaf);
        self.image
            .set_word(frame + u64::from(layout.frame_instr), code + 2);
        match layout.entry_mark {
            EntryMark::Null => {}
            EntryMark::IsEntry => {
                self.image
                    .set(frame + u64::from(layout.frame_owner), &[owner]);
                self.image
                    .set(frame + u64::from(layout.frame_is_entry), &[is_entry.into()]);
            }
            EntryMark::Owner => self
                .image
                .set(frame + u64::from(layout.frame_owner), &[owner]),
        }
        stack.leaf = frame;
        stack.frames.push(frame);
    }

    /// A runtime with one list of thread states an interpreter. `threads` is (thread pointer, stack) by
    /// interpreter; a thread without a stack runs no Python. Returns the address of `_PyRuntime` and of every
    /// thread state.
    pub fn runtime(&mut self, threads: &[Vec<(u64, Option<&Stack>)>]) -> (u64, Vec<Vec<u64>>) {
        let layout = self.layout;
        let gil_offset = if layout.gil == ABSENT { 0 } else { layout.gil };
        let interp_bytes = layout
            .interp_next
            .max(layout.interp_threads_head)
            .max(gil_offset)
            + 64;
        let runtime_bytes = layout.runtime_interpreters_head.max(gil_offset) + 64;
        let runtime = self.allocate(runtime_bytes.into());
        let gil = self.allocate(64);
        let mut next_interp = 0;
        let mut states = Vec::new();
        for threads in threads.iter().rev() {
            let interp = self.allocate(interp_bytes.into());
            self.image
                .set_word(interp + u64::from(layout.interp_next), next_interp);
            if layout.gil_kind == GilKind::Interpreter {
                self.image.set_word(interp + u64::from(layout.gil), gil);
            }
            let mut next_state = 0;
            let mut own = Vec::new();
            for (thread_pointer, stack) in threads.iter().rev() {
                next_state = self.state(interp, next_state, *thread_pointer, *stack);
                own.push(next_state);
            }
            self.image
                .set_word(interp + u64::from(layout.interp_threads_head), next_state);
            own.reverse();
            states.push(own);
            next_interp = interp;
        }
        self.image.set_word(
            runtime + u64::from(layout.runtime_interpreters_head),
            next_interp,
        );
        states.reverse();
        (runtime, states)
    }

    fn state(&mut self, interp: u64, next: u64, thread_pointer: u64, stack: Option<&Stack>) -> u64 {
        let layout = self.layout;
        let state = self.allocate(layout.tstate_bytes.into());
        let frame = stack.map_or(0, |stack| stack.leaf);
        let root = match layout.frame_root {
            FrameRoot::Direct => frame,
            FrameRoot::CFrame => {
                let cframe = self.allocate(24);
                self.image
                    .set_word(cframe + u64::from(layout.cframe_current_frame), frame);
                cframe
            }
        };
        self.image
            .set_word(state + u64::from(layout.tstate_next), next);
        self.image
            .set_word(state + u64::from(layout.tstate_interp), interp);
        self.image
            .set_word(state + u64::from(layout.tstate_thread_id), thread_pointer);
        self.image
            .set_word(state + u64::from(layout.tstate_frame), root);
        if layout.has_data_stack() {
            let chunk = stack.map_or(0, |stack| stack.chunk);
            self.image
                .set_word(state + u64::from(layout.tstate_datastack_chunk), chunk);
        }
        state
    }
}
