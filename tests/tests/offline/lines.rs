//! Line tables against their oracle: every instruction of the standard library of every interpreter found.
//!
//! Each interpreter compiles its library and says which line each code unit belongs to
//! (`workloads/dump_lines.py`); the decoder has to say the same.

use std::{
    collections::BTreeMap,
    io::{BufReader, Read},
    path::Path,
    process::Stdio,
    sync::Mutex,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use profiler_agent::python::line_table::{LineTable, LineTableFormat};
use pyagent_tests::interpreters::{self, Interpreter};

/// Ends the stream of code objects.
const END: u32 = u32::MAX;

/// What was compared of one interpreter.
#[derive(Default)]
struct Figures {
    n_files: u32,
    n_code_objects: u64,
    n_code_units: u64,
    n_without_line: u64,
    most_runs: u32,
    n_mismatches: u64,
    first_mismatch: Option<String>,
}

#[test]
fn every_instruction_of_the_standard_library_has_the_line_that_the_interpreter_says() {
    // One interpreter of each version, and its free-threaded build: what compiles and decodes is the same in others.
    let by_version: BTreeMap<_, _> = interpreters::found()
        .into_iter()
        .map(|interpreter| {
            let key = (interpreter.version, interpreter.free_threaded);
            (key, interpreter)
        })
        .collect();
    // Newest first: their libraries take the longest.
    let queue = Mutex::new(by_version.into_values().rev());
    let worker = || {
        let mut failures = Vec::new();
        loop {
            let next = queue
                .lock()
                .expect("no worker panics while it holds the queue")
                .next();
            let Some(interpreter) = next else {
                return failures;
            };
            let (major, minor, micro) = interpreter.version;
            let version = format!("{major}.{minor}.{micro}");
            match compare(&interpreter) {
                Ok(figures) => failures.extend(report(&version, &figures)),
                Err(error) => failures.push(format!("{version}: {error:#}")),
            }
        }
    };
    let n_workers = thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..n_workers).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("a worker returns its failures"))
            .collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Prints the figures; gives what is wrong with them.
fn report(version: &str, figures: &Figures) -> Option<String> {
    let Figures {
        n_files,
        n_code_objects,
        n_code_units,
        n_without_line,
        most_runs,
        ..
    } = figures;
    eprintln!(
        "{version}: {n_code_units} code units ({n_without_line} without a line) of {n_code_objects} code \
         objects in {n_files} files, at most {most_runs} ranges each: {} mismatches",
        figures.n_mismatches
    );
    let mismatch = figures.first_mismatch.as_ref();
    mismatch
        .map(|first| {
            format!(
                "{version}: {} mismatches, the first: {first}",
                figures.n_mismatches
            )
        })
        // The smallest library, one without its tests, has 680,000.
        .or_else(|| {
            (*n_code_units < 500_000).then(|| format!("{version}: hardly anything was compared"))
        })
}

/// Lets an interpreter dump its library and decodes it.
fn compare(interpreter: &Interpreter) -> Result<Figures> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/dump_lines.py");
    let mut child = interpreter
        .command(&script)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stream =
        BufReader::with_capacity(1 << 20, child.stdout.take().context("stdout is a pipe")?);
    let (major, minor, _) = interpreter.version;
    let format = LineTableFormat::of_version(u32::from(major) << 24 | u32::from(minor) << 16);
    let figures = compare_stream(&mut stream, format);
    // Whatever went wrong with the stream, the child's end of it says more.
    drop(stream);
    let status = child.wait()?;
    let figures = figures.with_context(|| format!("the dump is incomplete: {status}"))?;
    ensure!(status.success(), "the dump failed: {status}");
    Ok(figures)
}

/// Decodes each code object of a stream and compares it with the runs that follow.
fn compare_stream(stream: &mut impl Read, format: LineTableFormat) -> Result<Figures> {
    let mut figures = Figures::default();
    loop {
        let first_line = read_u32(stream)?;
        if first_line == END {
            figures.n_files = read_u32(stream)?;
            return Ok(figures);
        }
        let mut table = vec![0; read_u32(stream)? as usize];
        stream.read_exact(&mut table)?;
        let decoded = LineTable::decode(format, &table, first_line);
        let n_runs = read_u32(stream)?;
        figures.n_code_objects += 1;
        figures.most_runs = figures.most_runs.max(n_runs);
        let mut offset = 0;
        for _ in 0..n_runs {
            let n_code_units = read_u32(stream)?;
            let expected = u32::try_from(read_u32(stream)?.cast_signed()).ok();
            figures.n_code_units += u64::from(n_code_units);
            figures.n_without_line += if expected.is_none() {
                u64::from(n_code_units)
            } else {
                0
            };
            for _ in 0..n_code_units {
                let line = decoded.line_at(offset);
                if line != expected {
                    figures.n_mismatches += 1;
                    figures.first_mismatch.get_or_insert_with(|| {
                        format!("{line:?} for {expected:?} at {offset} of {table:?}, first line {first_line}")
                    });
                }
                offset += 2;
            }
        }
    }
}

fn read_u32(stream: &mut impl Read) -> Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}
