//! The runtime in a process: is it initialised, which offsets hold, and where does a thread keep its state?

use profiler_common::layout::GilKind;
use profiler_common::process::ThreadSlot;

use super::layout::{Layout, LayoutNotFound, Offsets, Version, debug_offsets, row};
use crate::ids::Address;
use crate::process::memory::{MemoryError, ReadMemory};

/// Most thread states that calibration looks at.
const MAX_CALIBRATED: usize = 8;

/// Most thread states of a list that it goes through to find the oldest.
const MAX_STATES: usize = 1024;

/// Bytes behind the thread pointer that can hold pthread keys: glibc's `struct pthread` has 2,304.
const THREAD_BYTES: usize = 2304;

/// Bytes before the thread pointer in which a thread-local variable is looked for.
const THREAD_LOCAL_BYTES: usize = 2048;

/// A thread's storage begins behind the thread control block's own words.
const FIRST_SLOT: usize = 0x40;

/// Pointers to second-level storage: glibc's `specific` array lies right behind its first block of 32 keys
/// (x86-64: 0x310 + 0x200), musl's `tsd` pointer among the first words.
const SECOND_LEVEL: [std::ops::Range<usize>; 2] = [0x510..0x610, 0x60..0xb0];

/// Bytes of second-level storage: 128 keys of 8 bytes (musl), 32 of 16 (glibc).
const SECOND_LEVEL_BYTES: usize = 1024;

/// The first release of 3.7 whose `gilstate` lies where the table says.
const MOVED_GIL: Version = Version::new(3, 7, 4);

/// The first version that keeps the state of a thread in a thread-local variable, in place of a pthread key.
const THREAD_LOCAL_STATE: Version = Version(0x030f_0000);

/// Why a runtime is not usable (yet).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The memory cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// There is no row, or the offsets make no sense.
    #[error(transparent)]
    Layout(#[from] LayoutNotFound),
    /// Before `Py_Initialize` or after `Py_Finalize`; or a copy that nothing uses.
    #[error("the interpreter is not initialised")]
    NotInitialised,
    /// The pointers do not lead back to where they came from.
    #[error("the interpreter's structures do not fit CPython {0}")]
    Inconsistent(Version),
}

/// The offsets for the runtime at `runtime`.
pub fn layout(
    memory: &impl ReadMemory,
    version: Version,
    runtime: Address,
) -> Result<Layout, RuntimeError> {
    match row(version).map(|row| row.offsets) {
        Some(Offsets::Table(mut layout)) => {
            layout.walk.version_hex = version.0;
            if version < MOVED_GIL && version.minor() == MOVED_GIL.minor() {
                layout.walk.gil_kind = GilKind::Unknown;
            }
            Ok(layout)
        }
        Some(Offsets::Debug) => {
            let mut table = [0; debug_offsets::TABLE_BYTES];
            memory.read(runtime, &mut table)?;
            Ok(debug_offsets::layout(&table)?)
        }
        None => Err(LayoutNotFound::Unsupported(version).into()),
    }
}

/// The first interpreter of an initialised runtime: its list of threads is there and leads back to it.
pub fn first_interpreter(
    memory: &impl ReadMemory,
    layout: &Layout,
    runtime: Address,
) -> Result<Address, RuntimeError> {
    let walk = &layout.walk;
    let interp = memory.read_u64(runtime.add(walk.runtime_interpreters_head.into()))?;
    if interp == 0 {
        return Err(RuntimeError::NotInitialised);
    }
    let inconsistent = |_| RuntimeError::Inconsistent(Version(walk.version_hex));
    let state = memory
        .read_u64(Address(interp).add(walk.interp_threads_head.into()))
        .map_err(inconsistent)?;
    if state == 0 {
        return Err(RuntimeError::NotInitialised);
    }
    let back = memory
        .read_u64(Address(state).add(walk.tstate_interp.into()))
        .map_err(inconsistent)?;
    if back == interp {
        Ok(Address(interp))
    } else {
        Err(RuntimeError::Inconsistent(Version(walk.version_hex)))
    }
}

/// Finds where the process's threads keep their `PyThreadState` (the slot of `autoTSSkey`), by looking for it
/// in the storage of threads whose state is known. `None` when it cannot be told.
#[must_use]
pub fn calibrate_thread_slot(
    memory: &impl ReadMemory,
    layout: &Layout,
    interp: Address,
) -> Option<ThreadSlot> {
    let version = Version(layout.walk.version_hex);
    let threads = listed_threads(memory, layout, interp);
    let mut slots: Vec<ThreadSlot> = Vec::new();
    for (thread_pointer, state) in &threads {
        for slot in find_slots(memory, version, *thread_pointer, *state) {
            if !slots.contains(&slot) {
                slots.push(slot);
            }
        }
    }
    let n_right = |slot: &ThreadSlot| {
        let is_right = |(thread_pointer, state): &&(Address, u64)| {
            read_slot(memory, *slot, *thread_pointer) == Some(*state)
        };
        threads.iter().filter(is_right).count()
    };
    // The first of those that are right for the most threads: musl keeps the storage of a thread right behind what the
    // thread pointer points to, but not that of the main thread.
    slots.into_iter().rev().max_by_key(n_right)
}

/// Whether a slot is (still) right for this process.
#[must_use]
pub fn slot_holds(
    memory: &impl ReadMemory,
    layout: &Layout,
    interp: Address,
    slot: ThreadSlot,
) -> bool {
    let threads = listed_threads(memory, layout, interp);
    !threads.is_empty()
        && threads
            .into_iter()
            .all(|(thread_pointer, state)| read_slot(memory, slot, thread_pointer) == Some(state))
}

/// What a thread has in a slot.
fn read_slot(memory: &impl ReadMemory, slot: ThreadSlot, thread_pointer: Address) -> Option<u64> {
    let address = thread_pointer.0.wrapping_add_signed(slot.offset.into());
    let found = memory.read_u64(Address(address)).ok()?;
    if slot.indirect < 0 {
        return Some(found);
    }
    let address = found.wrapping_add_signed(slot.indirect.into());
    memory.read_u64(Address(address)).ok()
}

/// Thread pointer and state of some threads. States that share a thread pointer are left out but for the
/// first with a frame: a thread that is about to start carries its parent's (3.8 to 3.11).
fn listed_threads(
    memory: &impl ReadMemory,
    layout: &Layout,
    interp: Address,
) -> Vec<(Address, u64)> {
    let walk = &layout.walk;
    let mut threads: Vec<(Address, u64)> = Vec::new();
    let mut state = memory
        .read_u64(interp.add(walk.interp_threads_head.into()))
        .unwrap_or(0);
    for _ in 0..MAX_STATES {
        if state == 0 {
            break;
        }
        let word = |offset: u16| {
            memory
                .read_u64(Address(state).add(offset.into()))
                .unwrap_or(0)
        };
        let thread_pointer = word(walk.tstate_thread_id);
        if thread_pointer != 0
            && word(walk.tstate_frame) != 0
            && !threads.iter().any(|(tp, _)| tp.0 == thread_pointer)
        {
            // The last is the oldest: the main thread, whose storage can lie elsewhere.
            threads.truncate(MAX_CALIBRATED - 1);
            threads.push((Address(thread_pointer), state));
        }
        state = word(walk.tstate_next);
    }
    threads
}

/// Every place in a thread's storage that has its state: first those in the first block, then those in others.
fn find_slots(
    memory: &impl ReadMemory,
    version: Version,
    thread_pointer: Address,
    state: u64,
) -> Vec<ThreadSlot> {
    let Some(words) = read_words(memory, thread_pointer, THREAD_BYTES) else {
        return Vec::new();
    };
    let slot = |idx: usize, indirect: i32| ThreadSlot {
        offset: idx as i32 * 8,
        indirect,
        known: 1,
        reserved: 0,
    };
    let words = words.iter().copied().enumerate();
    let own = words.clone().skip(FIRST_SLOT / 8);
    let mut slots: Vec<ThreadSlot> = own
        .filter(|(_, word)| *word == state)
        .map(|(idx, _)| slot(idx, -1))
        .collect();
    // Before, the only thread-local word with the state was that of the thread's current one, which is NULL while the
    // GIL is released.
    if version >= THREAD_LOCAL_STATE {
        slots.extend(find_thread_local(memory, thread_pointer, state));
        return slots;
    }
    for range in SECOND_LEVEL {
        let pointers = words
            .clone()
            .take(range.end / 8)
            .skip(range.start / 8)
            .filter(|(_, pointer)| *pointer != 0 && *pointer != thread_pointer.0);
        for (idx, pointer) in pointers {
            let second = read_words(memory, Address(pointer), SECOND_LEVEL_BYTES)
                .or_else(|| read_words(memory, Address(pointer), SECOND_LEVEL_BYTES / 2));
            let inner = second.and_then(|second| second.iter().position(|word| *word == state));
            slots.extend(inner.map(|inner| slot(idx, inner as i32 * 8)));
        }
    }
    slots
}

/// Finds the variable `_Py_tss_gilstate` (3.15+) among the thread-local ones, which lie before the thread pointer
/// (x86-64, static TLS). `_Py_tss_tstate` is there too, and says the same while the thread is attached to the
/// interpreter, but nothing else: of two words that hold the state it cannot be told which to take.
fn find_thread_local(
    memory: &impl ReadMemory,
    thread_pointer: Address,
    state: u64,
) -> Option<ThreadSlot> {
    let start = Address(thread_pointer.0.wrapping_sub(THREAD_LOCAL_BYTES as u64));
    let words = read_words(memory, start, THREAD_LOCAL_BYTES)?;
    let mut matches = words.iter().enumerate().filter(|(_, word)| **word == state);
    let (idx, _) = matches.next()?;
    if matches.next().is_some() {
        return None;
    }
    Some(ThreadSlot {
        offset: idx as i32 * 8 - THREAD_LOCAL_BYTES as i32,
        indirect: -1,
        known: 1,
        reserved: 0,
    })
}

fn read_words(memory: &impl ReadMemory, address: Address, n_bytes: usize) -> Option<Vec<u64>> {
    let mut bytes = vec![0; n_bytes];
    memory.read(address, &mut bytes).ok()?;
    Some(
        bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word))
            .collect(),
    )
}
