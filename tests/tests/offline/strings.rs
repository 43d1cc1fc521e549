//! The layout of `str` against real interpreters: strings of every kind, as they lie in memory.

use std::path::Path;

use profiler_agent::python::string::{
    ELLIPSIS, MAX_STR_CHARS, STR_HEADER_BYTES, StrError, StrHeader, StrLayout,
};
use pyagent_tests::interpreters::{self, Interpreter};

#[test]
fn strings_of_every_kind_read_from_memory_are_what_the_interpreter_says() {
    let found = interpreters::found();
    for interpreter in found.into_iter().filter(Interpreter::has_libraries) {
        let dump = dump(&interpreter);
        let mut rest = dump.as_slice();
        let layout = StrLayout::of_version(take_u32(&mut rest), interpreter.free_threaded);
        let (mut n_read, mut n_not_compact) = (0, 0);
        loop {
            let length = take_u32(&mut rest);
            if length == u32::MAX {
                break;
            }
            let text = std::str::from_utf8(take(&mut rest, length)).expect("the dump has UTF-8");
            let object_length = take_u32(&mut rest);
            let object = take(&mut rest, object_length);
            // No more than the reader of a process would have.
            let header_bytes = &object[..object.len().min(STR_HEADER_BYTES)];
            match StrHeader::parse(layout, header_bytes) {
                Ok(header) => {
                    let data = &object[usize::from(header.data_offset)..];
                    assert_eq!(
                        header.decode(&data[..header.byte_len]),
                        shown(text),
                        "{interpreter:?}"
                    );
                    n_read += 1;
                }
                Err(StrError::NotCompact) => {
                    assert_eq!(text, "not compact", "{interpreter:?}");
                    n_not_compact += 1;
                }
                Err(error) => unreachable!("{text:?}: {error} ({interpreter:?})"),
            }
        }
        let (major, minor, micro) = interpreter.version;
        eprintln!(
            "{major}.{minor}.{micro}: {n_read} strings read, {n_not_compact} refused as not compact"
        );
        assert!(n_read >= 50 && n_not_compact == 1, "{interpreter:?}");
    }
}

/// What the agent shows of a text.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_STR_CHARS).collect();
    if shown.len() < text.len() {
        shown.push(ELLIPSIS);
    }
    shown
}

fn dump(interpreter: &Interpreter) -> Vec<u8> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/dump_strings.py");
    let output = interpreter
        .command(&script)
        .output()
        .expect("the interpreter starts");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{interpreter:?}: {messages}");
    output.stdout
}

fn take_u32(rest: &mut &[u8]) -> u32 {
    u32::from_le_bytes(take(rest, 4).try_into().expect("four bytes were taken"))
}

fn take<'a>(rest: &mut &'a [u8], length: u32) -> &'a [u8] {
    rest.split_off(..length as usize)
        .expect("the dump is complete")
}
