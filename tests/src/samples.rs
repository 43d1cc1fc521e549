//! A program of samples whose every count is known, the profile that is built from it, and readers that are run over it.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use profiler_agent::format::Format;
use profiler_agent::profile::aggregate::{
    Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
};
use profiler_agent::profile::model::{FrameKind, Profile, ValueType};

/// Of a sample.
pub const PERIOD_NS: i64 = 10_101_010;
/// Since 1970.
pub const START_S: u64 = 1_767_225_600;
/// Of the profile.
pub const DURATION_S: u64 = 12;

/// A frame of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeFrame {
    /// Kind of code.
    pub kind: FrameKind,
    /// Name, as the process has it.
    pub name: &'static str,
    /// What a reader of pprof must see for `name`.
    pub shown: &'static str,
    /// File, or module.
    pub file: &'static str,
    /// Line, 0 when it is not known.
    pub line: u32,
    /// Where the function begins.
    pub first_line: u32,
    /// What a reader of folded stacks must see for the frame.
    pub folded: &'static str,
}

/// A frame of the program's own file; its function begins on the line before.
#[must_use]
pub const fn python(name: &'static str, line: u32, folded: &'static str) -> CodeFrame {
    CodeFrame {
        kind: FrameKind::Python,
        name,
        shown: name,
        file: "/srv/app.py",
        line,
        first_line: line.saturating_sub(1),
        folded,
    }
}

/// One of other code.
#[must_use]
pub const fn other(
    kind: FrameKind,
    name: &'static str,
    file: &'static str,
    folded: &'static str,
) -> CodeFrame {
    CodeFrame {
        kind,
        name,
        shown: name,
        file,
        line: 0,
        first_line: 0,
        folded,
    }
}

/// Where everything begins.
pub const MAIN: CodeFrame = python("main", 3, "main (/srv/app.py:3)");
/// Calls itself.
pub const FIB: CodeFrame = python(
    "fib.<locals>.step",
    12,
    "fib.<locals>.step (/srv/app.py:12)",
);
/// With letters of two bytes.
pub const CYRILLIC: CodeFrame = python("Счёт.сложить", 30, "Счёт.сложить (/srv/app.py:30)");
/// With characters of several code points, and no line.
pub const EMOJI: CodeFrame = python("函数_👩‍💻", 0, "函数_👩‍💻 (/srv/app.py)");
/// With all that readers and terminals could take for something else.
pub const HOSTILE: CodeFrame = CodeFrame {
    kind: FrameKind::Python,
    name: "a;b\x1b[2J\u{202e}<&\"\n 7",
    shown: "a;b\\u{1b}[2J\\u{202e}<&\"\\n 7",
    file: "",
    line: 1,
    first_line: 0,
    folded: "a:b\\u{1b}[2J\\u{202e}<&\"\\n_7",
};
/// Of a library.
pub const DEFLATE: CodeFrame = other(
    FrameKind::Native,
    "deflate",
    "libz.so.1",
    "[libz.so.1] deflate",
);
/// Of the kernel.
pub const READ: CodeFrame = other(FrameKind::Kernel, "vfs_read", "vmlinux", "vfs_read_[k]");
/// A remark.
pub const CUT: CodeFrame = other(FrameKind::Reason, "[truncated]", "", "[truncated]");

/// One line of the program: how often which stack (leaf first) was seen in which thread.
pub struct Row {
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The stack, leaf first.
    pub frames: Vec<CodeFrame>,
    /// How often.
    pub count: i64,
}

/// The program.
#[must_use]
pub fn program() -> Vec<Row> {
    let row = |pid, tid, frames: &[CodeFrame], count| Row {
        pid,
        tid,
        frames: frames.to_vec(),
        count,
    };
    let mut deep = vec![FIB; 1023];
    deep.push(CUT);
    vec![
        row(7, 7, &[FIB, FIB, FIB, MAIN], 750),
        row(7, 7, &[DEFLATE, CYRILLIC, MAIN], 200),
        row(7, 8, &[DEFLATE, CYRILLIC, MAIN], 50),
        row(7, 8, &[READ, EMOJI, MAIN], 5),
        row(9, 9, &[HOSTILE, MAIN], 31),
        row(9, 9, &deep, 2),
        row(9, 9, &[], 4),
    ]
}

/// Thread 8 has no name.
#[must_use]
pub fn thread_name(tid: u32) -> String {
    match tid {
        8 => String::new(),
        _ => format!("нить {tid}"),
    }
}

/// The profile of a program.
#[must_use]
pub fn build(rows: &[Row]) -> Profile {
    let start = UNIX_EPOCH + Duration::from_secs(START_S);
    let mut aggregator = Aggregator::new(start, &ValueType::CPU_SAMPLES, PERIOD_NS);
    for row in rows {
        let sample = ResolvedSample {
            frames: row.frames.iter().map(resolved).collect(),
            labels: Arc::new(ThreadLabels {
                process: Arc::new(ProcessLabels {
                    comm: "python3".into(),
                    python_version: "3.12.1".into(),
                    ..ProcessLabels::of_pid(row.pid)
                }),
                tid: row.tid,
                started_ns: 0,
                thread_name: thread_name(row.tid).into(),
            }),
            instruction: None,
            values: [1, PERIOD_NS].into(),
        };
        // One by one, as they come: adding up is the aggregation's work.
        (0..row.count).for_each(|_| aggregator.add(&sample));
    }
    let comments = vec!["3 samples lost: ring full".into()];
    aggregator.finish(Duration::from_secs(DURATION_S), comments)
}

/// Where [`memory`] allocates: `fill` keeps what line 2 allocates, gives back what line 3 does, and calls `part` in line 4.
pub const FILLING: &str = "\
def fill(cache):
    cache.append(bytearray(1 << 20))
    bytes(1 << 19)
    part(cache)


def part(cache):
    cache.append(bytes(1 << 21))
";

/// Values of each line of [`FILLING`], as a profile of allocations has them: those of line 4 are all of line 8.
pub const FILLED: [(u32, [i64; 6]); 3] = [
    (2, [10, 10 << 20, 10, 10 << 20, 10 << 20, 0]),
    (3, [100, 50 << 20, 0, 0, 1 << 19, 50 << 20]),
    (8, [3, 6 << 20, 2, 4 << 20, 6 << 20, 0]),
];

/// A profile of the allocations of [`FILLING`], in this file.
#[must_use]
pub fn memory(file: &'static str) -> Profile {
    let start = UNIX_EPOCH + Duration::from_secs(START_S);
    let mut aggregator = Aggregator::new(start, &ValueType::ALLOCATIONS, 1 << 19);
    let frame = |name, line, first_line| CodeFrame {
        file,
        first_line,
        ..python(name, line, "")
    };
    let calloc = other(FrameKind::Native, "calloc", "libc.so.6", "");
    for (line, values) in FILLED {
        let stack = match line {
            8 => vec![calloc, frame("part", 8, 7), frame("fill", 4, 1)],
            line => vec![frame("fill", line, 1)],
        };
        let sample = ResolvedSample {
            frames: stack.iter().map(resolved).collect(),
            labels: Arc::new(ThreadLabels {
                process: Arc::new(ProcessLabels::of_pid(7)),
                tid: 7,
                started_ns: 0,
                thread_name: "MainThread".into(),
            }),
            values: values.into(),
            instruction: None,
        };
        aggregator.add(&sample);
    }
    aggregator.finish(Duration::from_secs(DURATION_S), Vec::new())
}

fn resolved(frame: &CodeFrame) -> ResolvedFrame {
    let (mapping, build_id, address) = match frame.kind {
        FrameKind::Python | FrameKind::Reason => ("[python]", "", 0),
        FrameKind::Native => ("/usr/lib/libz.so.1", "c0ffee", 0x1234),
        FrameKind::Kernel => ("[kernel]", "", 0),
    };
    let function = ResolvedFunction {
        kind: frame.kind,
        name: frame.name.into(),
        filename: frame.file.into(),
        start_line: frame.first_line,
        mapping: mapping.into(),
        build_id: build_id.into(),
    };
    ResolvedFrame {
        function: Arc::new(function),
        line: frame.line,
        address,
    }
}

/// It in a format.
///
/// # Panics
/// When there is no such format.
#[must_use]
pub fn bytes(format: &str, profile: &Profile) -> Vec<u8> {
    let mut bytes = Vec::new();
    let format = Format::from_name(format).expect("a format of ours");
    format
        .write(profile, &mut bytes)
        .expect("memory takes everything");
    bytes
}

/// Runs a reader with the profile on its standard input; what it prints.
///
/// # Panics
/// When it fails.
pub fn read_with(command: &mut Command, input: &[u8]) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    // A reader may begin to answer before it has read everything.
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("the child is ours");
    feeder
        .join()
        .expect("the feeder does not panic")
        .expect("the reader reads all");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).expect("readers print UTF-8")
}

/// What a script in Python prints as JSON.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn python_reader(script: &str, input: &[u8]) -> serde_json::Value {
    let printed = read_with(Command::new("python3").arg("-c").arg(script), input);
    serde_json::from_str(&printed).expect("the script prints JSON")
}
