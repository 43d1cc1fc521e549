//! The offsets that the agent believes in, against the headers of every interpreter on this machine, compiled.
//!
//! Up to 3.12 that is the table of layouts; from 3.13 on the word indices of `_Py_DebugOffsets`, and what the
//! table of a running interpreter leads to.

use std::collections::BTreeMap;
use std::process::Command;

use profiler_agent::process::memory::{ProcessMemory, ReadMemory as _};
use profiler_agent::python::layout::debug_offsets::{self, TABLE_BYTES};
use profiler_agent::python::layout::{Layout, Offsets, Version, row};
use profiler_common::layout::{ABSENT, EntryMark, FrameRoot, GilKind, IdentityKind};
use profiler_common::unwind::python::{OWNER_GENERATOR, OWNER_INTERPRETER, STR_HASH};
use pyagent_tests::compiler::{self, compile, headers_of, workload};
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::target::Target;

/// Numbers by name, as the compiled program prints them.
type Numbers = BTreeMap<String, u64>;

/// Every supported interpreter whose headers are installed, with what they say.
fn compiled() -> Vec<(Interpreter, Version, Numbers)> {
    if !compiler::is_there() {
        return Vec::new();
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("offsets");
    let mut compiled = Vec::new();
    for python in interpreters::found() {
        let (major, minor, micro) = python.version;
        let version = Version::new(major, minor, micro);
        if row(version).is_none() {
            continue;
        }
        let Some(headers) = headers_of(&python) else {
            eprintln!("skipped {}: no headers installed", python.path.display());
            continue;
        };
        let include = [
            format!("-I{}", headers.display()),
            format!("-I{}", headers.join("internal").display()),
        ];
        compile(
            &workload("offsets.c"),
            &program,
            &include.each_ref().map(String::as_str),
        );
        let printed = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();
        let numbers = printed.lines().filter_map(|line| line.split_once(' '));
        let numbers = numbers
            .map(|(name, number)| (name.to_owned(), number.parse().unwrap()))
            .collect();
        compiled.push((python, version, numbers));
    }
    compiled
}

/// Every field of a layout that an offset or size in the headers stands for, by its name there. Absent fields
/// are left out.
fn fields(layout: &Layout) -> Numbers {
    let (walk, code) = (&layout.walk, &layout.code);
    let fields = [
        ("runtime_interpreters_head", walk.runtime_interpreters_head),
        ("interp_next", walk.interp_next),
        ("interp_threads_head", walk.interp_threads_head),
        ("gil", walk.gil),
        ("tstate_next", walk.tstate_next),
        ("tstate_interp", walk.tstate_interp),
        ("tstate_thread_id", walk.tstate_thread_id),
        ("tstate_native_thread_id", walk.tstate_native_thread_id),
        ("tstate_frame", walk.tstate_frame),
        ("cframe_current_frame", walk.cframe_current_frame),
        ("tstate_datastack_chunk", walk.tstate_datastack_chunk),
        ("gc_collecting", walk.gc_collecting),
        ("frame_code", walk.frame_code),
        ("frame_previous", walk.frame_previous),
        ("frame_instr", walk.frame_instr),
        ("frame_owner", walk.frame_owner),
        ("frame_is_entry", walk.frame_is_entry),
        ("ob_type", code.ob_type),
        ("filename", code.filename),
        ("name", code.name),
        ("qualname", code.qualname),
        ("first_line", code.first_line),
        ("line_table", code.line_table),
        ("first_instruction", code.first_instruction),
        ("bytecode", code.bytecode),
        ("bytes_size", code.bytes_size),
        ("bytes_data", code.bytes_data),
        ("type_name", code.type_name),
        ("str_length", code.str.length),
        ("str_state", code.str.state),
        ("str_ascii_data", code.str.ascii_data),
        ("str_compact_data", code.str.compact_data),
    ];
    let present = fields.into_iter().filter(|(_, offset)| *offset != ABSENT);
    present
        .map(|(name, offset)| (name.to_owned(), offset.into()))
        .collect()
}

/// What the walk assumes beside the offsets of its layout.
fn assert_assumptions(version: Version, layout: &Layout, headers: &Numbers) {
    let walk = &layout.walk;
    let header = |name: &str| {
        *headers
            .get(name)
            .unwrap_or_else(|| panic!("{version}: the headers have no {name}"))
    };
    if walk.gil != ABSENT {
        let expected = if walk.gil_kind == GilKind::Switchable {
            (16, 24)
        } else {
            (8, 16)
        };
        assert_eq!(
            (header("gil_last_holder"), header("gil_locked")),
            expected,
            "{version}"
        );
    }
    assert!(
        u64::from(walk.tstate_bytes) <= header("tstate_size"),
        "{version}"
    );
    assert!(
        u64::from(walk.frame_bytes) <= header("frame_size").next_multiple_of(8),
        "{version}"
    );
    let is_new = version.minor() >= (3, 11);
    assert_eq!(walk.has_data_stack(), is_new, "{version}");
    if is_new {
        assert_eq!(
            (header("chunk_previous"), header("chunk_size")),
            (0, 8),
            "{version}"
        );
        assert_eq!(
            header("owner_generator"),
            u64::from(OWNER_GENERATOR),
            "{version}"
        );
    }
    match walk.frame_root {
        FrameRoot::CFrame => assert_eq!(
            header("cframe_previous"),
            header("cframe_current_frame") + 8,
            "{version}"
        ),
        FrameRoot::Direct => assert!(!headers.contains_key("cframe_previous"), "{version}"),
    }
    match walk.entry_mark {
        EntryMark::Null => assert!(!is_new, "{version}"),
        EntryMark::IsEntry => assert_eq!(version.minor(), (3, 11)),
        EntryMark::Owner => assert_eq!(
            header("owner_interpreter"),
            u64::from(OWNER_INTERPRETER),
            "{version}"
        ),
    }
    match walk.gil_kind {
        GilKind::RuntimeCurrent => assert!(version.minor() <= (3, 11), "{version}"),
        GilKind::Interpreter => assert!(version.minor() >= (3, 12), "{version}"),
        GilKind::Switchable => assert_eq!(header("gil_enabled"), 0, "{version}"),
        GilKind::Unknown => assert_eq!(version.minor(), (3, 6), "{version}"),
    }
    if walk.identity_kind != IdentityKind::Version {
        assert_eq!(header("str_hash"), STR_HASH, "{version}");
    }
    let identity = u64::from(walk.code_identity);
    let line_table = header("line_table");
    match walk.identity_kind {
        IdentityKind::Version => assert_eq!(identity, header("code_version"), "{version}"),
        IdentityKind::Pointers3 => {
            assert_eq!(
                [identity, identity + 8, identity + 16],
                [header("filename"), header("name"), line_table]
            );
        }
        IdentityKind::Pointers4 => {
            let expected = [
                header("filename"),
                header("name"),
                header("qualname"),
                line_table,
            ];
            assert_eq!(
                [identity, identity + 8, identity + 16, identity + 24],
                expected,
                "{version}"
            );
        }
    }
}

/// The table of offsets of a running interpreter.
fn table_of(python: &Interpreter) -> Vec<u8> {
    let mut target = Target::python(
        python,
        "import sys; print('ready', flush=True); sys.stdin.read()",
        &[],
    );
    assert_eq!(target.line(), "ready", "{}", python.path.display());
    let mut table = vec![0; TABLE_BYTES];
    ProcessMemory::new(target.pid())
        .read(target.interpreter().runtime, &mut table)
        .unwrap();
    table
}

#[test]
fn every_offset_is_that_of_the_headers() {
    for (python, version, headers) in compiled() {
        let layout = match row(version).unwrap().offsets {
            Offsets::Table(layout) => layout,
            Offsets::Debug => debug_offsets::layout(&table_of(&python)).unwrap(),
        };
        let fields = fields(&layout);
        for (name, offset) in &fields {
            assert_eq!(Some(offset), headers.get(name), "{version}: {name}");
        }
        assert_assumptions(version, &layout, &headers);
        assert_eq!(
            u64::from(version.0),
            headers["version"],
            "{}",
            python.path.display()
        );
        eprintln!("{version}: {} offsets compared", fields.len());
    }
}

/// Another value for a word of the table that still makes a layout.
fn changed(name: &str, word: u64) -> u64 {
    match name {
        // The size of what is read follows from these two.
        "tstate_datastack_chunk" => word + 8,
        "frame_owner" => word + 1,
        _ if word == 24 => 32,
        _ => 24,
    }
}

#[test]
fn each_word_of_the_debug_offsets_is_the_field_that_the_headers_call_so() {
    for (python, version, headers) in compiled() {
        let names: BTreeMap<u64, &str> = headers
            .iter()
            .filter_map(|(name, idx)| Some((*idx, name.strip_prefix("words.")?)))
            .filter(|(_, name)| *name != "size")
            .collect();
        if names.is_empty() {
            continue;
        }
        let table = table_of(&python);
        let before = fields(&debug_offsets::layout(&table).unwrap());
        let n_words = headers["words.size"];
        for idx in 0..n_words {
            let name = names.get(&idx).copied().unwrap_or("nothing that is used");
            if ["cookie", "version", "free_threaded"].contains(&name) {
                continue;
            }
            let range = idx as usize * 8..idx as usize * 8 + 8;
            let word = u64::from_le_bytes(table[range.clone()].try_into().unwrap());
            let mut other = table.clone();
            other[range].copy_from_slice(&changed(name, word).to_le_bytes());
            let layout = debug_offsets::layout(&other)
                .unwrap_or_else(|error| panic!("{version}: {name}: {error}"));
            let mut expected = before.clone();
            if let Some(offset) = expected.get_mut(name) {
                *offset = changed(name, word);
            }
            if name == "gc"
                && let Some(offset) = expected.get_mut("gc_collecting")
            {
                // It lies in the structure that begins there.
                *offset = *offset - word + changed(name, word);
            }
            assert_eq!(fields(&layout), expected, "{version}: word {idx}, {name}");
        }
        eprintln!("{version}: {n_words} words, {} used", names.len());
    }
}
