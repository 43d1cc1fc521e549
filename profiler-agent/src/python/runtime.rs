//! The runtime in a process: is it initialised, which offsets hold, and where does a thread keep its state?

use std::ops::Range;

use profiler_common::arch::{self, IS_ARM64};
use profiler_common::layout::{GilKind, PyLayout};
use profiler_common::process::ThreadSlot;

use super::layout::{Layout, LayoutNotFound, Offsets, Version, debug_offsets, row};
use crate::ids::Address;
use crate::process::memory::{MemoryError, ReadMemory};
use crate::process::pages::Pages;

/// Most thread states that calibration looks at.
const MAX_CALIBRATED: usize = 8;

/// Most thread states of a list that it goes through to find the oldest.
const MAX_STATES: usize = 1024;

/// Most interpreters of a process that are looked at.
const MAX_INTERPRETERS: usize = 4096;

/// Where the C libraries keep what belongs to a thread. Where keys lie is counted from the thread's `pthread_t`.
struct Storage {
    /// Bytes that can hold pthread keys: not the thread control block's own words.
    keys: Range<usize>,
    /// Pointers to second-level storage: glibc's `specific` array lies right behind its first block of 32 keys,
    /// musl's `tsd` pointer among the first words.
    second_level: [Range<usize>; 2],
    /// Where a thread-local variable is looked for: from the thread pointer, in bytes.
    thread_local: Range<i32>,
}

/// glibc's `struct pthread` has 2,304 bytes, and its first block of keys lies at 0x310. Thread-local variables lie
/// before the thread pointer.
const X86_64_STORAGE: Storage = Storage {
    keys: 0x40..2304,
    second_level: [0x510..0x610, 0x60..0xb0],
    thread_local: -2048..0,
};

/// glibc's `struct pthread` has 1,856 bytes, its array `specific` lies at 0x310 (`_thread_db_pthread_specific` of
/// 2.36). Thread-local variables lie behind the two words that the thread pointer points to.
const ARM64_STORAGE: Storage = Storage {
    keys: 0xc0..1856,
    second_level: [0x300..0x410, 0x40..0xb0],
    thread_local: THREAD_CONTROL_BYTES as i32..2048,
};

const STORAGE: Storage = if IS_ARM64 {
    ARM64_STORAGE
} else {
    X86_64_STORAGE
};

/// Bytes that a thread pointer of arm64 points to, in front of the thread-local variables: the vector of the modules'
/// variables (`dtv`), and a word that glibc keeps.
const THREAD_CONTROL_BYTES: u64 = 16;

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

/// The main interpreter of an initialised runtime: it is the oldest, and its list of threads is there and leads back to
/// it. Sub-interpreters come in front of it, and from 3.13 on they have no thread while nothing runs in them.
pub fn main_interpreter(
    memory: &impl ReadMemory,
    layout: &Layout,
    runtime: Address,
) -> Result<Address, RuntimeError> {
    let walk = &layout.walk;
    let head = memory.read_u64(runtime.add(walk.runtime_interpreters_head.into()))?;
    let mut why_not = RuntimeError::NotInitialised;
    for interp in interpreters(memory, layout, Address(head))
        .into_iter()
        .rev()
    {
        let word = |at: Address, offset: u16| memory.read_u64(at.add(offset.into())).ok();
        let state = word(interp, walk.interp_threads_head);
        if state == Some(0) {
            continue;
        }
        if state.and_then(|state| word(Address(state), walk.tstate_interp)) == Some(interp.0) {
            return Ok(interp);
        }
        why_not = RuntimeError::Inconsistent(Version(walk.version_hex));
    }
    Err(why_not)
}

/// The interpreters from this one on, newest first.
fn interpreters(memory: &impl ReadMemory, layout: &Layout, head: Address) -> Vec<Address> {
    let mut interpreters = Vec::new();
    let mut interp = head;
    while !interp.is_null() && interpreters.len() < MAX_INTERPRETERS {
        interpreters.push(interp);
        let next = memory.read_u64(interp.add(layout.walk.interp_next.into()));
        interp = Address(next.unwrap_or(0));
    }
    interpreters
}

/// Finds where the process's threads keep their `PyThreadState` (the slot of `autoTSSkey`), by looking for it
/// in the storage of threads whose state is known. `None` when it cannot be told.
#[must_use]
pub fn calibrate_thread_slot(
    memory: &impl ReadMemory,
    layout: &Layout,
    runtime: Address,
) -> Option<ThreadSlot> {
    let version = Version(layout.walk.version_hex);
    let threads = listed_threads(memory, layout, runtime);
    let mut slots: Vec<ThreadSlot> = Vec::new();
    for thread in &threads {
        for slot in find_slots(memory, version, thread) {
            if !slots.contains(&slot) {
                slots.push(slot);
            }
        }
    }
    let n_right = |slot: &ThreadSlot| {
        let is_right = |thread: &&Thread| thread.is_in(memory, *slot);
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
    runtime: Address,
    slot: ThreadSlot,
) -> bool {
    let threads = listed_threads(memory, layout, runtime);
    !threads.is_empty() && threads.iter().all(|thread| thread.is_in(memory, slot))
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

/// What is known of a thread.
struct Thread {
    /// Its `pthread_t`.
    id: Address,
    /// Its thread pointer.
    pointer: Address,
    /// Its `PyThreadState`: that of the main interpreter, then those of others in which it may be at work.
    states: Vec<u64>,
}

impl Thread {
    /// Whether a slot has one of its states.
    fn is_in(&self, memory: &impl ReadMemory, slot: ThreadSlot) -> bool {
        read_slot(memory, slot, self.pointer).is_some_and(|state| self.states.contains(&state))
    }
}

/// Some threads of the main interpreter whose thread pointer can be told. States that share a `pthread_t` are left out
/// but for the first with a frame: a thread that is about to start carries its parent's (3.8 to 3.11).
fn listed_threads(memory: &impl ReadMemory, layout: &Layout, runtime: Address) -> Vec<Thread> {
    let walk = &layout.walk;
    let Ok(main) = main_interpreter(memory, layout, runtime) else {
        return Vec::new();
    };
    let mut threads: Vec<Thread> = Vec::new();
    for (id, state) in states_with_frames(memory, walk, main) {
        if !threads.iter().any(|thread| thread.id == id) {
            // The last is the oldest: the main thread, whose storage can lie elsewhere.
            threads.truncate(MAX_CALIBRATED - 1);
            threads.push(Thread {
                id,
                pointer: id,
                states: vec![state],
            });
        }
    }
    let head = memory.read_u64(runtime.add(walk.runtime_interpreters_head.into()));
    let others = interpreters(memory, layout, Address(head.unwrap_or(0)));
    let others = others.into_iter().filter(|interp| *interp != main);
    let states = others.flat_map(|interp| states_with_frames(memory, walk, interp));
    for (id, state) in states.take(MAX_STATES) {
        if let Some(thread) = threads.iter_mut().find(|thread| thread.id == id) {
            thread.states.push(state);
        }
    }
    if IS_ARM64 {
        threads.retain_mut(|thread| {
            let pointer = pointer_above(memory, thread.id);
            thread.pointer = pointer.unwrap_or(thread.id);
            pointer.is_some()
        });
    }
    threads
}

/// The thread states of an interpreter that have a frame, newest first, each with its thread's `pthread_t`.
fn states_with_frames(
    memory: &impl ReadMemory,
    walk: &PyLayout,
    interp: Address,
) -> Vec<(Address, u64)> {
    let word = |at: u64, offset: u16| memory.read_u64(Address(at).add(offset.into())).unwrap_or(0);
    let mut states = Vec::new();
    let mut state = word(interp.0, walk.interp_threads_head);
    for _ in 0..MAX_STATES {
        if state == 0 {
            break;
        }
        let id = word(state, walk.tstate_thread_id);
        if id != 0 && word(state, walk.tstate_frame) != 0 {
            states.push((Address(id), state));
        }
        state = word(state, walk.tstate_next);
    }
    states
}

/// The thread pointer of an arm64 thread, by its `pthread_t`, which is the address of the C library's `struct pthread`.
/// It points behind that, to the address of the vector (`dtv`) which tells where each module's thread-local
/// variables lie: those of the modules that were there at the start lie right behind the thread pointer. So it is
/// the one place that leads back to itself.
///
/// `None`: no or several places do. musl keeps that address elsewhere.
fn pointer_above(memory: &impl ReadMemory, thread_id: Address) -> Option<Address> {
    /// Alignment of a thread pointer.
    const STEP: usize = 16;
    let pages = Pages::new(memory);
    let distances = (STEP as u64..=arch::ARM64.max_thread_id_distance).step_by(STEP);
    let mut found = distances
        .map(|distance| Address(thread_id.0.wrapping_add(distance)))
        .filter(|pointer| leads_back(&pages, *pointer));
    let pointer = found.next()?;
    found.next().is_none().then_some(pointer)
}

/// Whether the word at `pointer` is the address of a vector that has variables right behind `pointer`. The vector, as
/// the ABI and the debuggers' interface have it: in front its length; a generation; for each module the address of
/// its variables, and what is to be freed with them, which is nothing where these lie behind a thread pointer.
fn leads_back(memory: &impl ReadMemory, pointer: Address) -> bool {
    /// Entries have two words. The first is the generation.
    const ENTRY_BYTES: u64 = 16;
    /// Most entries that are looked at: the program's own and its libraries' come first.
    const MAX_MODULES: u64 = 16;
    /// More modules with such variables than any program has.
    const MAX_LENGTH: u64 = 1 << 16;
    /// What the libraries of a program keep there in all.
    const MAX_BYTES: u64 = 64 << 10;
    let Ok(vector) = memory.read_u64(pointer) else {
        return false;
    };
    if vector & 7 != 0 || !arch::ARM64.is_user_address(vector) {
        return false;
    }
    let word = |at: u64| memory.read_u64(Address(at)).ok();
    let length = word(vector.wrapping_sub(ENTRY_BYTES));
    let Some(length @ 1..=MAX_LENGTH) = length else {
        return false;
    };
    let is_right_behind = |entry: u64| {
        let at = vector.wrapping_add(entry * ENTRY_BYTES);
        let distance = word(at).map(|variables| variables.wrapping_sub(pointer.0));
        distance.is_some_and(|distance| (THREAD_CONTROL_BYTES..MAX_BYTES).contains(&distance))
            && word(at.wrapping_add(8)) == Some(0)
    };
    (1..=length.min(MAX_MODULES)).any(is_right_behind)
}

/// Every place in a thread's storage that has a state of it: first those in the first block, then those in others.
fn find_slots(memory: &impl ReadMemory, version: Version, thread: &Thread) -> Vec<ThreadSlot> {
    let is_state = |word: &u64| thread.states.contains(word);
    let Some(words) = read_words(memory, thread.id, STORAGE.keys.end) else {
        return Vec::new();
    };
    let distance = thread.pointer.0.wrapping_sub(thread.id.0) as i32;
    let slot = |idx: usize, indirect: i32| ThreadSlot {
        offset: idx as i32 * 8 - distance,
        indirect,
        known: 1,
        reserved: 0,
    };
    let words = words.iter().copied().enumerate();
    let own = words.clone().skip(STORAGE.keys.start / 8);
    let mut slots: Vec<ThreadSlot> = own
        .filter(|(_, word)| is_state(word))
        .map(|(idx, _)| slot(idx, -1))
        .collect();
    // Before, the only thread-local word with the state was that of the thread's current one, which is NULL while the
    // GIL is released.
    if version >= THREAD_LOCAL_STATE {
        slots.extend(find_thread_local(memory, thread));
        return slots;
    }
    for range in STORAGE.second_level {
        let pointers = words
            .clone()
            .take(range.end / 8)
            .skip(range.start / 8)
            .filter(|(_, pointer)| *pointer != 0 && *pointer != thread.id.0);
        for (idx, pointer) in pointers {
            let second = read_words(memory, Address(pointer), SECOND_LEVEL_BYTES)
                .or_else(|| read_words(memory, Address(pointer), SECOND_LEVEL_BYTES / 2));
            let inner = second.and_then(|second| second.iter().position(is_state));
            slots.extend(inner.map(|inner| slot(idx, inner as i32 * 8)));
        }
    }
    slots
}

/// Finds the variable `_Py_tss_gilstate` (3.15+) among the thread-local ones, which lie near the thread pointer (static
/// TLS). `_Py_tss_tstate` is there too, and says the same while the thread is attached to the
/// interpreter, but nothing else: of two words that hold the state it cannot be told which to take.
fn find_thread_local(memory: &impl ReadMemory, thread: &Thread) -> Option<ThreadSlot> {
    let Range { start, end } = STORAGE.thread_local;
    let address = Address(thread.pointer.0.wrapping_add_signed(start.into()));
    let words = read_words(memory, address, (end - start) as usize)?;
    let is_state = |(_, word): &(usize, &u64)| thread.states.contains(word);
    let mut matches = words.iter().enumerate().filter(is_state);
    let (idx, _) = matches.next()?;
    if matches.next().is_some() {
        return None;
    }
    Some(ThreadSlot {
        offset: start + idx as i32 * 8,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::memory_image::MemoryImage;

    /// Where things lie in the image, in bytes from its start: as glibc 2.36 has them on arm64.
    const THREAD: usize = 0x400;
    const POINTER: usize = THREAD + 1856;
    const VECTOR: usize = 0x2000;

    fn image(words: &[(usize, u64)]) -> MemoryImage {
        let mut bytes = vec![0; 0x3000];
        for (at, word) in words {
            bytes[*at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        MemoryImage { bytes }
    }

    fn at(offset: usize) -> u64 {
        MemoryImage::BASE + offset as u64
    }

    #[test]
    fn the_thread_pointer_of_arm64_is_the_one_that_leads_back_to_itself() {
        let found = |words: &[(usize, u64)]| pointer_above(&image(words), Address(at(THREAD)));
        // Length, generation, the first module's variables, the second's which were made when they were used.
        let mut words = vec![
            (POINTER, at(VECTOR)),
            (VECTOR - 16, 17),
            (VECTOR, 1),
            (VECTOR + 16, at(POINTER + 16)),
            (VECTOR + 32, at(0x100)),
            (VECTOR + 40, at(0x100)),
            // A pointer in the thread's own structure.
            (THREAD + 0x110, at(VECTOR - 0x100)),
        ];
        assert_eq!(found(&words), Some(Address(at(POINTER))));
        // Variables that are to be freed do not lie behind the thread pointer.
        words.push((VECTOR + 24, at(POINTER)));
        assert_eq!(found(&words), None);
        words.pop();
        // Of two places none is believed.
        words.push((POINTER - 64, at(VECTOR)));
        assert_eq!(found(&words), None);
        words.pop();
        words.push((VECTOR - 16, u64::MAX));
        assert_eq!(found(&words), None);
        assert_eq!(found(&[]), None);
    }
}
