//! The walk over CPython's frames and thread states: over memory images of every layout (what it must find,
//! where it must stop, and that no memory makes it do anything else), and over real interpreters that sleep in
//! a known stack.

use profiler_agent::ids::{Address, Generation, Pid};
use profiler_agent::process::facts::Facts;
use profiler_agent::process::maps::{self, Mapping};
use profiler_agent::process::memory::{ProcessMemory, RemoteReader};
use profiler_agent::python::code::{self, Code};
use profiler_agent::python::discover::Interpreter;
use profiler_agent::python::layout::{LAYOUTS, Offsets, Version, debug_offsets};
use profiler_agent::python::process::PythonProcess;
use profiler_agent::sample::native::NativeSymbolizer;
use profiler_common::event::{MAX_PYTHON_FRAMES, PyFrame, PythonStatus, frame_flags, sample_flags};
use profiler_common::layout::{
    ABSENT, EntryMark, FrameRoot, GilKind, IdentityKind, InstructionUnit, PyLayout,
};
use profiler_common::process::{ProcessEntry, ThreadSlot};
use profiler_common::unwind::python::WalkEnd;
use profiler_common::unwind::thread::MAX_LISTED;
use profiler_common::unwind::{Fault, ReadUser, Window};
use proptest::prelude::*;
use pyagent_tests::compiler::workload;
use pyagent_tests::image::{Builder, Call, Stack};
use pyagent_tests::interpreters;
use pyagent_tests::target::Target;
use pyagent_tests::unwind::{Ended, find_thread, frames};

/// Words of `_Py_DebugOffsets` of CPython 3.13, by index; those that are not used are left out.
const DEBUG_OFFSETS_3_13: [(usize, u64); 24] = [
    (5, 632),
    (8, 7264),
    (9, 7344),
    (14, 16),
    (21, 8),
    (22, 16),
    (23, 72),
    (24, 152),
    (25, 160),
    (26, 232),
    (29, 8),
    (30, 0),
    (31, 56),
    (33, 70),
    (35, 112),
    (36, 120),
    (37, 128),
    (38, 136),
    (39, 68),
    (43, 200),
    (45, 8),
    (47, 24),
    (65, 16),
    (66, 32),
];

/// The layout of every row of the table.
fn layouts() -> Vec<PyLayout> {
    let of_row = |offsets| match offsets {
        Offsets::Table(layout) => layout.walk,
        Offsets::Debug => {
            let mut words = [0_u64; 128];
            words[..2].copy_from_slice(&[
                u64::from_le_bytes(*debug_offsets::COOKIE),
                Version::new(3, 13, 0).0.into(),
            ]);
            for (idx, word) in DEBUG_OFFSETS_3_13 {
                words[idx] = word;
            }
            let table: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            debug_offsets::layout(&table).unwrap().walk
        }
    };
    LAYOUTS.iter().map(|row| of_row(row.offsets)).collect()
}

fn shown(layout: &PyLayout) -> Version {
    Version(layout.version_hex)
}

/// Walks a stack from its leaf.
fn walked(builder: &Builder<'_>, stack: &Stack) -> (Vec<PyFrame>, Ended) {
    frames(
        &mut RemoteReader(&builder.image),
        builder.layout,
        stack.leaf,
        stack.chunk,
    )
}

fn codes(frames: &[PyFrame]) -> Vec<u64> {
    frames.iter().map(|frame| frame.code).collect()
}

/// `n` functions that call each other in Python.
fn calls(n: usize) -> Vec<Call> {
    vec![
        Call {
            n_slots: 10,
            ..Call::default()
        };
        n
    ]
}

/// Every kind of frame, over several chunks.
fn mixed() -> Vec<Call> {
    let plain = Call {
        n_slots: 12,
        ..Call::default()
    };
    let from_c = Call {
        from_c: true,
        ..plain
    };
    let generator = Call {
        is_generator: true,
        n_slots: 7,
        ..plain
    };
    let begins_chunk = Call {
        begins_chunk: true,
        ..plain
    };
    let generator_from_c = Call {
        from_c: true,
        ..generator
    };
    [
        vec![plain; 100],
        vec![
            generator,
            plain,
            generator_from_c,
            from_c,
            begins_chunk,
            from_c,
        ],
        vec![plain; 90],
        vec![generator; 3],
    ]
    .concat()
}

#[test]
fn frames_are_found_leaf_first_across_chunks_generators_and_calls_from_c() {
    for layout in layouts() {
        let mut builder = Builder::new(&layout);
        let stack = builder.stack(&mixed());
        let (found, ended) = walked(&builder, &stack);
        assert_eq!(codes(&found), stack.codes, "{}", shown(&layout));
        assert_eq!(ended, Ended::At(WalkEnd::Complete), "{}", shown(&layout));
        assert!(
            found.iter().all(|frame| frame.instr == frame.code + 2),
            "{}",
            shown(&layout)
        );
        assert!(
            found
                .iter()
                .all(|frame| frame.flags & frame_flags::NO_IDENTITY == 0),
            "{}",
            shown(&layout)
        );
        let mut identities: Vec<u32> = found.iter().map(|frame| frame.identity).collect();
        identities.sort_unstable();
        identities.dedup();
        assert_eq!(
            identities.len(),
            found.len(),
            "{}: two code objects, one identity",
            shown(&layout)
        );
    }
}

#[test]
fn frames_on_the_data_stack_are_read_by_windows() {
    for layout in layouts().into_iter().filter(PyLayout::has_data_stack) {
        let mut builder = Builder::new(&layout);
        let stack = builder.stack(&calls(90));
        builder.image.take_n_reads();
        let (found, _) = walked(&builder, &stack);
        // The name's text is a read of its own.
        let n_identity_reads = match layout.identity_kind {
            IdentityKind::Version => found.len() as u32,
            IdentityKind::Pointers3 | IdentityKind::Pointers4 => 2 * found.len() as u32,
        };
        let n_frame_reads = builder.image.take_n_reads() - n_identity_reads;
        // 90 frames of 152 bytes are four windows; the chunk's header and the shim are one read each.
        assert!(
            n_frame_reads <= 7,
            "{}: {n_frame_reads} reads",
            shown(&layout)
        );
    }
}

#[test]
fn a_chain_that_does_not_end_at_the_entry_is_not_complete() {
    for layout in layouts()
        .into_iter()
        .filter(|layout| layout.entry_mark != EntryMark::Null)
    {
        for cut in 0..20 {
            let mut builder = Builder::new(&layout);
            let stack = builder.stack(&calls(20));
            builder
                .image
                .set_word(stack.frames[cut] + u64::from(layout.frame_previous), 0);
            let (found, ended) = walked(&builder, &stack);
            assert_eq!(codes(&found), stack.codes[..=cut], "{}", shown(&layout));
            let is_root = layout.entry_mark == EntryMark::IsEntry && cut == 19;
            let expected = if is_root {
                WalkEnd::Complete
            } else {
                WalkEnd::FrameSwitch
            };
            assert_eq!(
                ended,
                Ended::At(expected),
                "{}: cut behind frame {cut}",
                shown(&layout)
            );
        }
    }
}

#[test]
fn a_chain_that_comes_back_to_itself_ends() {
    for layout in layouts() {
        for (from, to) in [(0, 0), (1, 0), (30, 29), (99, 0), (99, 98), (60, 3)] {
            let mut builder = Builder::new(&layout);
            let stack = builder.stack(&calls(100));
            builder.image.set_word(
                stack.frames[from] + u64::from(layout.frame_previous),
                stack.frames[to],
            );
            let (found, ended) = walked(&builder, &stack);
            assert_eq!(
                ended,
                Ended::At(WalkEnd::Loop),
                "{}: {from} -> {to}",
                shown(&layout)
            );
            assert_eq!(
                found[..=from]
                    .iter()
                    .map(|frame| frame.code)
                    .collect::<Vec<_>>(),
                stack.codes[..=from]
            );
            assert!(
                found.len() <= 300,
                "{}: {} frames of a loop {from} -> {to}",
                shown(&layout),
                found.len()
            );
        }
    }
}

#[test]
fn a_stack_that_is_too_deep_keeps_its_leaf_side() {
    for layout in layouts() {
        for n_calls in [MAX_PYTHON_FRAMES, MAX_PYTHON_FRAMES + 1, 5000] {
            let mut builder = Builder::new(&layout);
            // Every call from C: as many shims as functions.
            let stack = builder.stack(&vec![
                Call {
                    from_c: true,
                    ..Call::default()
                };
                n_calls
            ]);
            let (found, ended) = walked(&builder, &stack);
            assert_eq!(
                codes(&found),
                stack.codes[..MAX_PYTHON_FRAMES],
                "{}",
                shown(&layout)
            );
            let expected = if n_calls > MAX_PYTHON_FRAMES {
                Ended::Full
            } else {
                Ended::At(WalkEnd::Complete)
            };
            assert_eq!(ended, expected, "{}: {n_calls} calls", shown(&layout));
        }
    }
}

#[test]
fn memory_that_ends_is_a_fault_and_what_was_read_before_stays() {
    for layout in layouts() {
        let mut builder = Builder::new(&layout);
        let stack = builder.stack(&mixed());
        for (idx, frame) in stack.frames.iter().enumerate() {
            let mut builder = Builder::new(&layout);
            builder.stack(&mixed());
            builder.image.cut(frame + u64::from(layout.frame_bytes) - 8);
            let (found, ended) = walked(&builder, &stack);
            assert!(
                stack.codes.starts_with(&codes(&found)),
                "{}: cut at frame {idx}",
                shown(&layout)
            );
            assert_eq!(
                ended,
                Ended::At(WalkEnd::Fault),
                "{}: cut at frame {idx}",
                shown(&layout)
            );
        }
    }
}

#[test]
fn a_code_object_that_cannot_be_read_is_marked_and_costs_no_other_frame() {
    for layout in layouts() {
        let mut builder = Builder::new(&layout);
        let stack = builder.stack(&calls(5));
        builder.image.cut(stack.codes[2]);
        let (found, ended) = walked(&builder, &stack);
        assert_eq!(
            (codes(&found), ended),
            (stack.codes.clone(), Ended::At(WalkEnd::Complete))
        );
        let marked: Vec<bool> = found
            .iter()
            .map(|frame| frame.flags & frame_flags::NO_IDENTITY != 0)
            .collect();
        assert_eq!(
            marked,
            [false, false, true, false, false],
            "{}",
            shown(&layout)
        );
    }
}

/// A process whose lists have these threads.
fn process(runtime: u64) -> ProcessEntry {
    ProcessEntry {
        runtime,
        ..ProcessEntry::default()
    }
}

const THREAD_POINTER: u64 = 0x7e00_0000_1000;

#[test]
fn every_thread_of_every_interpreter_is_found_in_the_lists() {
    for layout in layouts() {
        let mut builder = Builder::new(&layout);
        let stack = builder.stack(&calls(3));
        let pointer = |interp: u64, idx: u64| THREAD_POINTER + interp * 0x10_0000 + idx * 0x100;
        let threads: Vec<Vec<_>> = (0..3)
            .map(|interp| {
                (0..200)
                    .map(|idx| (pointer(interp, idx), Some(&stack)))
                    .collect()
            })
            .collect();
        let (runtime, states) = builder.runtime(&threads);
        let reader = &mut RemoteReader(&builder.image);
        for (threads, states) in threads.iter().zip(&states) {
            for ((pointer, _), state) in threads.iter().zip(states) {
                let thread = find_thread(reader, &process(runtime), &layout, *pointer).unwrap();
                assert_eq!(
                    (thread.state, thread.frame),
                    (*state, stack.leaf),
                    "{}",
                    shown(&layout)
                );
                assert_eq!(thread.datastack_chunk, stack.chunk, "{}", shown(&layout));
            }
        }
        let stranger = find_thread(reader, &process(runtime), &layout, THREAD_POINTER + 8);
        assert_eq!(
            stranger.map(|thread| thread.state),
            Err(PythonStatus::NoThreadState),
            "{}",
            shown(&layout)
        );
    }
}

#[test]
fn a_state_with_a_frame_wins_over_one_that_is_about_to_start_and_two_are_ambiguous() {
    for layout in layouts() {
        let mut builder = Builder::new(&layout);
        let stack = builder.stack(&calls(3));
        let other = builder.stack(&calls(2));
        // 3.8 to 3.11: a thread that is about to start carries its parent's id, and stands first.
        let (runtime, states) =
            builder.runtime(&[vec![(THREAD_POINTER, None), (THREAD_POINTER, Some(&stack))]]);
        let found = find_thread(
            &mut RemoteReader(&builder.image),
            &process(runtime),
            &layout,
            THREAD_POINTER,
        );
        assert_eq!(
            found.map(|thread| thread.state),
            Ok(states[0][1]),
            "{}",
            shown(&layout)
        );
        let both = [
            vec![(THREAD_POINTER, Some(&stack))],
            vec![(THREAD_POINTER, Some(&other))],
        ];
        let (runtime, _) = builder.runtime(&both);
        let found = find_thread(
            &mut RemoteReader(&builder.image),
            &process(runtime),
            &layout,
            THREAD_POINTER,
        );
        assert_eq!(
            found.map(|thread| thread.state),
            Err(PythonStatus::Ambiguous),
            "{}",
            shown(&layout)
        );
    }
}

#[test]
fn lists_that_come_back_to_themselves_end_with_a_reason() {
    for layout in layouts() {
        let mut builder = Builder::new(&layout);
        let (runtime, states) = builder.runtime(&[vec![(1, None), (2, None)], vec![(3, None)]]);
        let interp_of = |builder: &Builder<'_>, state: u64| {
            let reader = &mut RemoteReader(&builder.image);
            reader.u64(state + u64::from(layout.tstate_interp)).unwrap()
        };
        let first = interp_of(&builder, states[0][0]);
        let second = interp_of(&builder, states[1][0]);
        let missing = |builder: &Builder<'_>| {
            find_thread(
                &mut RemoteReader(&builder.image),
                &process(runtime),
                &layout,
                THREAD_POINTER,
            )
            .map(|_| ())
        };
        builder
            .image
            .set_word(second + u64::from(layout.interp_next), first);
        assert_eq!(
            missing(&builder),
            Err(PythonStatus::ThreadListTruncated),
            "{}: interpreters",
            shown(&layout)
        );
        builder
            .image
            .set_word(second + u64::from(layout.interp_next), 0);
        assert_eq!(
            missing(&builder),
            Err(PythonStatus::NoThreadState),
            "{}",
            shown(&layout)
        );
        builder
            .image
            .set_word(states[0][1] + u64::from(layout.tstate_next), states[0][0]);
        assert_eq!(
            missing(&builder),
            Err(PythonStatus::ThreadListTruncated),
            "{}: thread states",
            shown(&layout)
        );
        const { assert!(MAX_LISTED <= 4096) };
    }
}

#[test]
fn the_slot_in_a_threads_own_storage_is_used_directly_and_through_a_pointer() {
    for layout in layouts() {
        let mut builder = Builder::new(&layout);
        let stack = builder.stack(&calls(3));
        let storage = builder.allocate(1024);
        let second_level = builder.allocate(512);
        let (runtime, states) = builder.runtime(&[vec![(storage, Some(&stack))]]);
        builder.image.set_word(storage + 0x310, states[0][0]);
        builder.image.set_word(storage + 0x80, second_level);
        builder.image.set_word(second_level + 40, states[0][0]);
        let find = |offset, indirect| {
            let thread_slot = ThreadSlot {
                offset,
                indirect,
                known: 1,
                reserved: 0,
            };
            let process = ProcessEntry {
                thread_slot,
                ..process(runtime)
            };
            find_thread(
                &mut RemoteReader(&builder.image),
                &process,
                &layout,
                storage,
            )
            .map(|thread| thread.state)
        };
        assert_eq!(find(0x310, -1), Ok(states[0][0]), "{}", shown(&layout));
        assert_eq!(find(0x80, 40), Ok(states[0][0]), "{}", shown(&layout));
        assert_eq!(
            find(0x80, 48),
            Err(PythonStatus::NoThreadState),
            "{}: an empty slot",
            shown(&layout)
        );
        assert_eq!(
            find(0x88, -1),
            Err(PythonStatus::NoThreadState),
            "{}: an empty slot",
            shown(&layout)
        );
        assert_eq!(
            find(0x80, 4096),
            Err(PythonStatus::ThreadStateFault),
            "{}: unmapped",
            shown(&layout)
        );
    }
}

/// Memory where every address can be read: its words depend on the address alone, and many of them point to
/// others in a small arena, so that walks go on.
#[derive(Debug)]
struct AnyMemory {
    seed: u64,
    /// Of 256 words so many point into the arena.
    n_pointers: u8,
    /// Of 256 reads so many fail.
    n_faults: u8,
}

impl AnyMemory {
    fn word_at(&self, address: u64) -> u64 {
        let hash = (address ^ self.seed)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29)
            .wrapping_mul(0xBF58_476D_1CE4_E5B9);
        if hash as u8 >= self.n_pointers {
            hash >> 3
        } else {
            0x1_0000 + (hash >> 40 & 0xfff8)
        }
    }

    fn faults(&self, address: u64) -> bool {
        self.word_at(!address) >> 9 & 0xff < u64::from(self.n_faults)
    }
}

impl ReadUser for AnyMemory {
    fn words<const N: usize>(&mut self, address: u64) -> Result<[u64; N], Fault> {
        if self.faults(address) {
            return Err(Fault);
        }
        Ok(std::array::from_fn(|idx| {
            self.word_at(address.wrapping_add(idx as u64 * 8))
        }))
    }

    fn u32(&mut self, address: u64) -> Result<u32, Fault> {
        self.words::<1>(address).map(|[word]| word as u32)
    }

    fn window(&mut self, address: u64, n_bytes: u64, window: &mut Window) -> Result<(), Fault> {
        assert!(n_bytes <= profiler_common::unwind::WINDOW_BYTES);
        if self.faults(address) {
            return Err(Fault);
        }
        let words = &mut window.words_mut()[..n_bytes as usize / 8];
        for (idx, word) in words.iter_mut().enumerate() {
            *word = self.word_at(address.wrapping_add(idx as u64 * 8));
        }
        Ok(())
    }
}

fn any_memory() -> impl Strategy<Value = AnyMemory> {
    (any::<u64>(), any::<u8>(), 0_u8..40).prop_map(|(seed, n_pointers, n_faults)| AnyMemory {
        seed,
        n_pointers,
        n_faults,
    })
}

/// Offsets as hostile as [`PyLayout::check`] lets through.
fn any_layout() -> impl Strategy<Value = PyLayout> {
    let marks = prop_oneof![
        Just(EntryMark::Null),
        Just(EntryMark::IsEntry),
        Just(EntryMark::Owner)
    ];
    let roots = prop_oneof![Just(FrameRoot::Direct), Just(FrameRoot::CFrame)];
    let identities = prop_oneof![
        Just(IdentityKind::Version),
        Just(IdentityKind::Pointers3),
        Just(IdentityKind::Pointers4)
    ];
    let gils = prop_oneof![
        Just(GilKind::Unknown),
        Just(GilKind::RuntimeCurrent),
        Just(GilKind::Interpreter)
    ];
    let tstate = prop::array::uniform5(0_u16..64);
    let frame = prop::array::uniform3(0_u16..16);
    let anywhere = prop::array::uniform6(any::<u16>());
    (
        marks,
        roots,
        identities,
        gils,
        tstate,
        frame,
        anywhere,
        0_u16..128,
        any::<bool>(),
    )
        .prop_map(
            |(
                entry_mark,
                frame_root,
                identity_kind,
                gil_kind,
                tstate,
                frame,
                anywhere,
                byte,
                has_chunk,
            )| PyLayout {
                version_hex: 0,
                runtime_interpreters_head: anywhere[0],
                interp_next: anywhere[1],
                interp_threads_head: anywhere[2],
                gil: anywhere[3],
                tstate_bytes: 512,
                tstate_next: tstate[0] * 8,
                tstate_interp: tstate[1] * 8,
                tstate_thread_id: tstate[2] * 8,
                tstate_native_thread_id: ABSENT,
                tstate_frame: tstate[3] * 8,
                cframe_current_frame: anywhere[4],
                tstate_datastack_chunk: if has_chunk { tstate[4] * 8 } else { ABSENT },
                frame_bytes: 128,
                frame_code: frame[0] * 8,
                frame_previous: frame[1] * 8,
                frame_instr: frame[2] * 8,
                frame_owner: byte,
                frame_is_entry: byte,
                code_identity: anywhere[5] & 0x7fff,
                frame_root,
                entry_mark,
                identity_kind,
                instruction_unit: InstructionUnit::InstrPtr,
                gil_kind,
                code_tag_mask: 7,
                gc_collecting: ABSENT,
                gc_is_of_runtime: 0,
                reserved: 0,
            },
        )
}

fn any_call() -> impl Strategy<Value = Call> {
    (
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        0_u16..40,
        prop::bool::weighted(0.05),
    )
        .prop_map(|(from_c, is_generator, n_slots, begins_chunk)| Call {
            from_c,
            is_generator,
            n_slots,
            begins_chunk,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_calls_are_walked_as_they_were_made(calls in prop::collection::vec(any_call(), 1..300)) {
        for layout in layouts() {
            let mut builder = Builder::new(&layout);
            let stack = builder.stack(&calls);
            let (found, ended) = walked(&builder, &stack);
            prop_assert_eq!(codes(&found), stack.codes);
            prop_assert_eq!(ended, Ended::At(WalkEnd::Complete));
        }
    }

    #[test]
    fn damaged_pointers_never_make_a_shim_a_frame(
        calls in prop::collection::vec(any_call(), 1..60),
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..4),
    ) {
        for layout in layouts() {
            let mut builder = Builder::new(&layout);
            let stack = builder.stack(&calls);
            for (from, to) in &damages {
                let (from, to) = (from.get(&stack.frames), to.get(&stack.frames));
                builder.image.set_word(from + u64::from(layout.frame_previous), *to);
            }
            let (found, _) = walked(&builder, &stack);
            prop_assert!(found.len() <= MAX_PYTHON_FRAMES);
            prop_assert!(found.iter().all(|frame| stack.codes.contains(&frame.code)));
        }
    }

    #[test]
    fn any_memory_and_any_checked_layout_end_within_the_bounds(
        mut memory in any_memory(),
        hostile in any_layout(),
        frame in any::<u64>(),
        chunk in any::<u64>(),
        slot in any::<(i32, i32, bool)>(),
    ) {
        prop_assert_eq!(hostile.check(), Ok(()));
        let thread_slot = ThreadSlot { offset: slot.0, indirect: slot.1, known: slot.2.into(), reserved: 0 };
        let entry = ProcessEntry { runtime: chunk, thread_slot, ..ProcessEntry::default() };
        for layout in layouts().into_iter().chain([hostile]) {
            for frame in [frame, 0x1_0000 | frame & 0xfff8] {
                let (found, _) = frames(&mut memory, &layout, frame, chunk);
                prop_assert!(found.len() <= MAX_PYTHON_FRAMES);
            }
            let _ = find_thread(&mut memory, &entry, &layout, frame);
        }
    }
}

/// A thread's stack as the interpreter itself prints it: file, line and name of each frame, leaf first.
#[derive(serde::Deserialize)]
struct Printed {
    ident: u64,
    stack: Vec<(String, u32, String)>,
}

#[test]
fn the_stacks_of_every_real_interpreter_are_those_that_it_prints() {
    for python in interpreters::supported() {
        let mut target = Target::start(&mut python.command(&workload("own_stack.py")));
        for _ in 0..2 {
            let printed: Printed = serde_json::from_str(&target.line()).unwrap();
            let interpreter = target.interpreter();
            let (frames, names) = remote_stack(&target, &interpreter, printed.ident);
            assert_eq!(names, printed.stack, "{}", python.path.display());
            eprintln!(
                "{}: {} frames, {} of them shown",
                interpreter.version,
                frames.len(),
                names.len()
            );
        }
    }
}

/// No process has this id: it is above the largest that Linux gives out.
const GONE: Pid = Pid(4_194_305);

#[test]
fn native_code_of_a_child_that_has_ended_is_named_by_its_parent_and_by_no_other_program() {
    let start = |python: &interpreters::Interpreter| {
        let mut target = Target::start(&mut python.command(&workload("own_stack.py")));
        assert!(!target.line().is_empty());
        target
    };
    let newest = interpreters::newest();
    let is_other = |python: &interpreters::Interpreter| python.executable != newest.executable;
    let other = interpreters::supported().into_iter().find(is_other);
    let (parent, other) = (start(&newest), start(&other.expect("two CPythons")));
    let libc = maps::of_process(parent.pid()).unwrap();
    let is_libc = |mapping: &&Mapping| {
        mapping.executable && mapping.path.to_string_lossy().contains("/libc.so")
    };
    let libc = libc.iter().find(is_libc).expect("it has a C library");
    let address = Address(libc.start.0 + 0x1000);
    let name = |found: Option<Pid>| {
        let child = PythonProcess {
            pid: GONE,
            generation: Generation(1),
            forked_from: Some(Generation(2)),
            facts: Facts::read(parent.pid()).unwrap(),
            interpreter: parent.interpreter(),
        };
        let mut frames = Vec::new();
        NativeSymbolizer::default().leaf_frame(&child, found, address, &mut frames);
        let function = frames.pop().expect("a native frame").function;
        (function.name.to_string(), function.mapping.to_string())
    };
    let (_, mapping) = name(Some(parent.pid()));
    assert!(mapping.contains("/libc.so"), "{mapping}");
    let nobody_knows = (
        "native code of a process that ended".to_owned(),
        String::new(),
    );
    assert_eq!(name(None), nobody_knows);
    assert_eq!(name(Some(GONE)), nobody_knows);
    // Another program that has the number by now.
    assert_eq!(name(Some(other.pid())), nobody_knows);
}

/// The stack of a thread, read from outside: the frames of the walk, and the file, line and name of those that
/// are shown.
fn remote_stack(
    target: &Target,
    interpreter: &Interpreter,
    ident: u64,
) -> (Vec<PyFrame>, Vec<(String, u32, String)>) {
    let memory = ProcessMemory::new(target.pid());
    let reader = &mut RemoteReader(&memory);
    let layout = &interpreter.layout;
    let listed = process(interpreter.runtime.0);
    let stored = ProcessEntry {
        thread_slot: interpreter.thread_slot.expect("threads have a slot"),
        ..listed
    };
    let thread = find_thread(reader, &stored, &layout.walk, ident).unwrap();
    let from_list = find_thread(reader, &listed, &layout.walk, ident).unwrap();
    assert_eq!(
        (thread.state, thread.frame),
        (from_list.state, from_list.frame),
        "{}",
        interpreter.version
    );
    assert_eq!(
        thread.flags & sample_flags::GIL_HELD,
        0,
        "{}: it sleeps without the GIL",
        interpreter.version
    );
    let (frames, ended) = frames(reader, &layout.walk, thread.frame, thread.datastack_chunk);
    assert_eq!(
        ended,
        Ended::At(WalkEnd::Complete),
        "{}",
        interpreter.version
    );
    let mut shown = Vec::new();
    for frame in &frames {
        match code::read(&memory, layout, frame).unwrap() {
            Code::Function(symbol) => {
                let line = symbol.line(frame.instr, layout.walk.instruction_unit);
                shown.push((
                    symbol.function.filename.to_string(),
                    line,
                    symbol.function.name.to_string(),
                ));
            }
            Code::Internal => {}
        }
    }
    (frames, shown)
}
