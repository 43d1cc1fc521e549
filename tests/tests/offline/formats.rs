//! Each format read back by a reader that is not ours: pprof by Go's tool and by a decoder in Python, folded
//! stacks by their definition, the flame graph by Python's XML parser.
//!
//! One program of samples is the truth: the profile is built from it, and so is what the readers must see.

#![expect(clippy::print_stdout, reason = "a test says why it is skipped")]

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use profiler_agent::format::{FORMATS, Format, read};
use profiler_agent::profile::aggregate::Aggregator;
use profiler_agent::profile::measure::Measure;
use profiler_agent::profile::model::{Profile, ProfileType, ValueType};
use profiler_agent::view::report::{Folding, Question, SortKey, Style, View};
use pyagent_tests::samples::{
    CYRILLIC, CodeFrame, DEFLATE, DURATION_S, EMOJI, FIB, HOSTILE, MAIN, PERIOD_NS, READ, Row,
    START_S, build, bytes, program, python, python_reader, read_with, thread_name,
};
use serde_json::json;

/// Go's pprof over the profile; `None`, with a line that says so, on a machine without Go.
fn go_pprof(arguments: &[&str], profile: &Profile) -> Option<String> {
    if Command::new("go").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI has Go");
        println!("skipped: no `go` on this machine");
        return None;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("profile.pb.gz");
    fs::write(&path, bytes("pprof", profile)).expect("the folder is ours");
    let mut command = Command::new("go");
    command.args(["tool", "pprof"]).args(arguments).arg(&path);
    command.env("PPROF_TMPDIR", folder.path());
    Some(read_with(&mut command, b""))
}

/// The wire format by its specification, without any protobuf library; fields by their numbers.
const PPROF_DECODER: &str = r"
import gzip, json, sys
def varint(b, i):
    n = shift = 0
    while True:
        n |= (b[i] & 127) << shift; shift += 7; i += 1
        if b[i - 1] < 128: return n, i
def message(b):
    fields, i = {}, 0
    while i < len(b):
        key, i = varint(b, i)
        if key & 7 == 0: value, i = varint(b, i)
        else:
            assert key & 7 == 2, key
            n, i = varint(b, i); value = b[i:i + n]; i += n
        fields.setdefault(key >> 3, []).append(value)
    return fields
def packed(chunks):
    for chunk in chunks:
        if isinstance(chunk, int): yield chunk; continue
        i = 0
        while i < len(chunk):
            n, i = varint(chunk, i); yield n
def one(m, field): return m.get(field, [0])[0]
p = message(gzip.decompress(sys.stdin.buffer.read()))
s = [t.decode() for t in p[6]]
def kind(b): m = message(b); return s[one(m, 1)] + '/' + s[one(m, 2)]
functions = {one(f, 1): f for f in map(message, p[5])}
mappings = {one(m, 1): m for m in map(message, p[3])}
locations = {one(l, 1): l for l in map(message, p[4])}
def frame(id):
    lines = list(map(message, locations[id][4])); assert len(lines) == 1
    return [s[one(functions[one(lines[0], 1)], 2)], one(lines[0], 2)]
def label(b):
    m = message(b)
    return s[one(m, 1)], (s[m[2][0]] if 2 in m else one(m, 3))
print(json.dumps({
    'types': [kind(t) for t in p[1]], 'period_type': kind(p[11][0]), 'period': one(p, 12),
    'time': one(p, 9), 'duration': one(p, 10), 'default': s[one(p, 14)],
    'comments': [s[c] for c in packed(p[13])], 'first': s[0],
    'samples': [[[frame(l) for l in packed(m.get(1, []))], list(packed(m[2])),
                 dict(map(label, m.get(3, [])))] for m in map(message, p[2])],
    'mappings': [[s[one(m, 5)], s[one(m, 6)], one(m, 7), one(m, 8), one(m, 9)] for m in mappings.values()],
    'dangling': [one(l, 1) for l in locations.values() if one(l, 2) not in mappings],
}))
";

/// Stack (names and lines, leaf first), process, thread and its name.
type Key = (Vec<(String, u32)>, u32, u32, String);

fn expected_samples(rows: &[Row]) -> BTreeMap<Key, i64> {
    let mut expected = BTreeMap::new();
    for row in rows {
        let frames = row.frames.iter();
        let stack = frames
            .map(|frame| (frame.shown.to_owned(), frame.line))
            .collect();
        let key = (stack, row.pid, row.tid, thread_name(row.tid));
        *expected.entry(key).or_default() += row.count;
    }
    expected
}

#[test]
fn pprof_says_to_a_decoder_by_the_specification_what_was_put_in() {
    let rows = program();
    let read = python_reader(PPROF_DECODER, &bytes("pprof", &build(&rows)));
    assert_eq!(read["types"], json!(["samples/count", "cpu/nanoseconds"]));
    assert_eq!(read["default"], "cpu");
    assert_eq!(read["period_type"], "cpu/nanoseconds");
    assert_eq!(read["period"], PERIOD_NS);
    assert_eq!(read["time"], START_S * 1_000_000_000);
    assert_eq!(read["duration"], DURATION_S * 1_000_000_000);
    assert_eq!(read["comments"], json!(["3 samples lost: ring full"]));
    assert_eq!(read["first"], "");
    assert_eq!(read["dangling"], json!([]));
    let mappings = json!([
        ["[python]", "", 1, 1, 1],
        ["/usr/lib/libz.so.1", "c0ffee", 1, 1, 1],
        ["[kernel]", "", 1, 1, 1]
    ]);
    assert_eq!(read["mappings"], mappings);
    let mut got = BTreeMap::new();
    for sample in read["samples"].as_array().expect("a list") {
        let (key, count) = decoded_sample(sample);
        assert!(
            got.insert(key, count).is_none(),
            "a sample that comes twice"
        );
    }
    assert_eq!(got, expected_samples(&rows));
}

fn decoded_sample(sample: &serde_json::Value) -> (Key, i64) {
    let (stack, values, labels) = (&sample[0], &sample[1], &sample[2]);
    let frame = |frame: &serde_json::Value| {
        let name = frame[0].as_str().expect("text").to_owned();
        (name, frame[1].as_u64().expect("a line") as u32)
    };
    let stack = stack
        .as_array()
        .expect("a list")
        .iter()
        .map(frame)
        .collect();
    let number = |name: &str| labels[name].as_u64().expect("a number") as u32;
    let thread_name = labels
        .get("thread_name")
        .map_or("", |name| name.as_str().expect("text"));
    assert_eq!(labels["comm"], "python3");
    assert_eq!(labels["python_version"], "3.12.1");
    let count = values[0].as_i64().expect("a number");
    assert_eq!(values[1], count * PERIOD_NS);
    (
        (stack, number("pid"), number("tid"), thread_name.to_owned()),
        count,
    )
}

#[test]
fn go_reads_the_samples_of_a_pprof_file() {
    let rows = program();
    let Some(raw) = go_pprof(&["-raw"], &build(&rows)) else {
        return;
    };
    for head in [
        "PeriodType: cpu nanoseconds\n",
        "Period: 10101010\n",
        "Duration: 12s\n",
        "3 samples lost",
    ] {
        assert!(raw.contains(head), "{head} in {raw}");
    }
    let (_, samples) = raw.split_once("Samples:\n").expect("a section");
    let (samples, locations) = samples.split_once("Locations\n").expect("a section");
    let (locations, _) = locations.split_once("Mappings\n").expect("a section");
    // `   3: 0x1234 M=2 deflate libz.so.1:0:0 s=0`; of a name with spaces the first word.
    let mut names = BTreeMap::new();
    for line in locations.lines() {
        let (id, rest) = line.trim().split_once(": ").expect("an id");
        names.insert(id, rest.split(' ').nth(2).expect("a name"));
    }
    let mut samples = samples.lines();
    assert_eq!(samples.next(), Some("samples/count cpu/nanoseconds[dflt]"));
    let mut got: BTreeMap<(Vec<&str>, String), i64> = BTreeMap::new();
    let mut last = None;
    for line in samples {
        // `  50  505050500: 5 6 4`, then a line of text labels and one of numbers.
        let count = line
            .split_whitespace()
            .next()
            .and_then(|count| count.parse::<i64>().ok());
        if let Some(count) = count {
            let (_, ids) = line.split_once(':').expect("values end with a colon");
            last = Some((
                ids.split_whitespace()
                    .map(|id| names[id])
                    .collect::<Vec<_>>(),
                count,
            ));
        } else if line.trim_start().starts_with("pid:[") {
            let (stack, count) = last.take().expect("labels follow a sample");
            *got.entry((stack, line.trim().to_owned())).or_default() += count;
        }
    }
    let mut expected = BTreeMap::new();
    for row in &rows {
        let first_word =
            |frame: &CodeFrame| frame.shown.split(' ').next().expect("split gives one");
        let stack = row.frames.iter().map(first_word).collect::<Vec<_>>();
        let labels = format!("pid:[{}] tid:[{}]", row.pid, row.tid);
        *expected.entry((stack, labels)).or_default() += row.count;
    }
    assert_eq!(got, expected, "{raw}");
}

#[test]
fn go_shows_cpu_time_by_default_and_flat_and_cumulative_times_are_right() {
    let rows = program();
    let arguments = ["-top", "-nodefraction=0", "-unit=ns"];
    let Some(top) = go_pprof(&arguments, &build(&rows)) else {
        return;
    };
    assert!(top.contains("Type: cpu"), "{top}");
    for name in ["deflate", "main", "fib.<locals>.step", "vfs_read"] {
        let is = |frame: &CodeFrame| frame.name == name;
        let own = rows.iter().filter(|row| row.frames.first().is_some_and(is));
        let total = rows.iter().filter(|row| row.frames.iter().any(is));
        let own = time(own.map(|row| row.count).sum());
        let total = time(total.map(|row| row.count).sum());
        let line = top.lines().find(|line| line.ends_with(&format!(" {name}")));
        let columns: Vec<&str> = line.expect("a line for it").split_whitespace().collect();
        assert_eq!(
            (columns[0], columns[3]),
            (&*own, &*total),
            "{name} in {top}"
        );
    }
}

/// Go's reader takes what stands in angle brackets for the arguments of a C++ template, and drops it.
#[test]
fn go_pprof_shows_names_in_angle_brackets() {
    let names = [
        "<module>",
        "<lambda>",
        "<listcomp>",
        "main.<locals>.<genexpr>",
    ];
    let row = |name| Row {
        pid: 7,
        tid: 7,
        frames: vec![python(name, 4, "")],
        count: 10,
    };
    let Some(top) = go_pprof(&["-top"], &build(&names.map(row))) else {
        return;
    };
    for name in names {
        assert!(top.contains(&format!(" {name}\n")), "{name} in {top}");
    }
}

/// As Go's pprof prints it with `-unit=ns`.
fn time(n_samples: i64) -> String {
    match n_samples {
        0 => "0".to_owned(),
        n_samples => format!("{}ns", n_samples * PERIOD_NS),
    }
}

#[test]
fn folded_stacks_are_those_of_the_program() {
    let rows = program();
    let folded = String::from_utf8(bytes("folded", &build(&rows))).expect("UTF-8");
    let mut got = BTreeMap::new();
    for line in folded.lines() {
        let (stack, count) = line.rsplit_once(' ').expect("a count");
        let stack = stack.split(';').map(str::to_owned).collect::<Vec<_>>();
        let count = count.parse::<i64>().expect("a number");
        assert!(
            got.insert(stack, count).is_none(),
            "a stack that comes twice: {line}"
        );
    }
    let mut expected = BTreeMap::new();
    for row in &rows {
        let mut stack = vec![format!("python3 ({})", row.pid)];
        stack.extend(row.frames.iter().rev().map(|frame| frame.folded.to_owned()));
        *expected.entry(stack).or_default() += row.count;
    }
    assert_eq!(got, expected);
}

#[test]
fn folded_stacks_of_one_process_begin_with_its_first_frame() {
    let mut rows = program();
    rows.retain(|row| row.pid == 7);
    let folded = String::from_utf8(bytes("folded", &build(&rows))).expect("UTF-8");
    assert!(!folded.is_empty());
    let begins = |line: &str| line.starts_with("main (/srv/app.py:3);");
    assert!(folded.lines().all(begins), "{folded}");
}

#[test]
fn what_was_written_as_pprof_is_read_as_it_was() {
    let rows = program();
    let read = read::read(&bytes("pprof", &build(&rows))).expect("a profile");
    let mut got = BTreeMap::new();
    for sample in &read.samples {
        let frames = read.frames(sample.stack);
        let stack = frames
            .map(|frame| (frame.name.to_owned(), frame.line))
            .collect();
        let thread = read.thread(sample.labels);
        assert_eq!((thread.comm, thread.python_version), ("python3", "3.12.1"));
        assert_eq!(sample.values[1], sample.values[0] * PERIOD_NS);
        let name = thread.thread_name.to_owned();
        let key = (stack, thread.pid as u32, thread.tid as u32, name);
        let known = got.insert(key, sample.values[0]);
        assert_eq!(known, None, "a sample that comes twice");
    }
    assert_eq!(got, expected_samples(&rows));
    let frames = rows.iter().flat_map(|row| &row.frames);
    for expected in frames {
        let is_it = |frame: &profiler_agent::profile::model::Frame<'_>| {
            frame.name == expected.shown && frame.line == expected.line
        };
        let ids = (0..read.locations.len() as u32).map(profiler_agent::profile::model::LocationId);
        let found = ids.filter_map(|id| read.frame(id)).find(is_it);
        let found = found.expect("it is there");
        assert_eq!((found.kind, found.filename), (expected.kind, expected.file));
    }
    assert_eq!(read.start, UNIX_EPOCH + Duration::from_secs(START_S));
    assert_eq!(read.duration, Duration::from_secs(DURATION_S));
    assert_eq!(
        (read.period, &read.comments[..]),
        (PERIOD_NS, &["3 samples lost: ring full".to_owned()][..])
    );
    // Written again it is the same to the last byte, but for the compression's own.
    let again = bytes("pprof", &read);
    let twice = read::read(&again).expect("a profile");
    assert_eq!(bytes("pprof", &twice), again);
}

#[test]
fn folded_stacks_are_read_as_they_were_written() {
    let written = bytes("folded", &build(&program()));
    let read = read::read(&written).expect("a profile");
    assert_eq!(
        String::from_utf8(bytes("folded", &read)),
        String::from_utf8(written)
    );
}

/// What `go tool pprof` says of each function, and `pyagent report --native` beside it.
#[test]
fn a_report_has_the_figures_of_gos_pprof() {
    let profile = build(&program());
    let arguments = ["-top", "-nodefraction=0", "-unit=ns"];
    let Some(top) = go_pprof(&arguments, &profile) else {
        return;
    };
    let folding = Folding::default();
    let question = Question {
        profile: &profile,
        measure: Measure::main(&profile),
        sort: SortKey::Own,
        top: Some(usize::MAX),
        restrictions: &[],
        labels: &[],
        folding: &folding,
        sources: &BTreeMap::new(),
        style: Style::default(),
    };
    let document = View::named("functions").expect("a row").json(&question);
    let rows = document["functions"].as_array().expect("a list");
    let mut n_compared = 0;
    for row in rows {
        let name = row["function"].as_str().expect("text");
        let line = top.lines().find(|line| line.ends_with(&format!(" {name}")));
        let Some(columns) = line.map(|line| line.split_whitespace().collect::<Vec<_>>()) else {
            // Its name has line breaks and the like.
            assert_eq!(name, HOSTILE.name);
            continue;
        };
        let text = |key: &str| match row[key].as_i64().expect("a number") {
            0 => "0".to_owned(),
            weight => format!("{weight}ns"),
        };
        assert_eq!(
            (columns[0], columns[3]),
            (&*text("self"), &*text("total")),
            "{name} in {top}"
        );
        n_compared += 1;
    }
    assert!(n_compared >= 7, "{top}");
}

const SVG_READER: &str = r"
import json, sys, xml.etree.ElementTree as ET
root = ET.parse(sys.stdin.buffer).getroot()
tag = lambda name: '{http://www.w3.org/2000/svg}' + name
print(json.dumps({'root': root.tag, 'titles': [t.text for t in root.iter(tag('title'))],
                  'texts': [t.text for t in root.iter(tag('text'))]}))
";

#[test]
fn the_flame_graph_is_well_formed_and_its_frames_have_their_counts() {
    let rows = program();
    let svg = bytes("svg", &build(&rows));
    let read = python_reader(SVG_READER, &svg);
    assert_eq!(read["root"], "{http://www.w3.org/2000/svg}svg");
    let titles = read["titles"].as_array().expect("a list");
    let all: i64 = rows.iter().map(|row| row.count).sum();
    let title = format!("all ({} samples, 100%)", thousands(all));
    assert!(titles.contains(&title.into()), "{titles:?}");
    for (frame, pid) in [
        (MAIN, 7),
        (DEFLATE, 7),
        (CYRILLIC, 7),
        (EMOJI, 7),
        (HOSTILE, 9),
    ] {
        let has = |row: &&Row| row.pid == pid && row.frames.contains(&frame);
        let count: i64 = rows.iter().filter(has).map(|row| row.count).sum();
        let percent = 100.0 * count as f64 / all as f64;
        let text = frame.folded.strip_suffix("_[k]").unwrap_or(frame.folded);
        let title = format!("{text} ({} samples, {percent:.2}%)", thousands(count));
        assert!(
            titles.contains(&title.clone().into()),
            "{title} in {titles:?}"
        );
    }
    assert!(
        svg == bytes("svg", &build(&rows)),
        "the same profile gives the same picture"
    );
}

#[test]
fn the_inverted_flame_graph_begins_with_what_took_the_time() {
    let rows = program();
    let read = python_reader(SVG_READER, &bytes("svg-inverted", &build(&rows)));
    let titles = read["titles"].as_array().expect("a list");
    let all: i64 = rows.iter().map(|row| row.count).sum();
    let count = |frames: &[CodeFrame]| {
        let has = |row: &&Row| row.frames.starts_with(frames);
        rows.iter().filter(has).map(|row| row.count).sum::<i64>()
    };
    // The last of each is a box beneath the others: as often as what took the time was called so.
    for frames in [
        &[FIB][..],
        &[DEFLATE],
        &[DEFLATE, CYRILLIC],
        &[DEFLATE, CYRILLIC, MAIN],
        &[READ, EMOJI],
    ] {
        let count = count(frames);
        let percent = 100.0 * count as f64 / all as f64;
        let text = frames.last().expect("one at least").folded;
        let text = text.strip_suffix("_[k]").unwrap_or(text);
        let title = format!("{text} ({} samples, {percent:.2}%)", thousands(count));
        assert!(titles.contains(&title.clone().into()), "{title}");
    }
}

fn thousands(count: i64) -> String {
    match count {
        0..1000 => count.to_string(),
        _ => format!("{},{:03}", count / 1000, count % 1000),
    }
}

#[test]
fn go_reads_each_type_of_profile_and_shows_the_value_that_matters_most() {
    for profile_type in ProfileType::ALL {
        let types = profile_type.sample_types();
        let mut profile = build(&program());
        profile.sample_types = types;
        profile.period_type = types[1];
        let Some(top) = go_pprof(&["-top"], &profile) else {
            return;
        };
        // Time, memory that was touched, memory that was in use at the peak.
        let kind = match profile_type {
            ProfileType::Cpu => "cpu",
            ProfileType::Faults => "fault_space",
            ProfileType::Pools | ProfileType::Alloc | ProfileType::Mmap => "peak_space",
        };
        let shown = format!("Type: {kind}\n");
        assert!(top.contains(&shown), "{profile_type:?}: {top}");
    }
}

/// How many JSON values, a line each or one over all.
const JSON_READER: &str = r"
import json, sys
text, n = sys.stdin.read(), 0
while text.strip():
    value, end = json.JSONDecoder().raw_decode(text.lstrip())
    text, n = text.lstrip()[end:], n + 1
print(n)
";

/// How many functions.
const MARSHAL_READER: &str = r"
import marshal, sys
print(len(marshal.loads(sys.stdin.buffer.read())))
";

#[test]
fn an_empty_profile_is_a_valid_file_in_each_format() {
    let profile = Aggregator::new(SystemTime::now(), &ValueType::CPU_SAMPLES, PERIOD_NS)
        .finish(Duration::from_secs(1), Vec::new());
    for format in FORMATS {
        let bytes = bytes(format.name, &profile);
        match format.name {
            "pprof" => {
                let head = "Samples:\nsamples/count cpu/nanoseconds[dflt]\n";
                if let Some(raw) = go_pprof(&["-raw"], &profile) {
                    assert!(raw.contains(head), "{raw}");
                }
            }
            "folded" | "perf" => assert!(bytes.is_empty()),
            "speedscope" | "firefox" | "chrome" | "jsonl" => {
                let read = python_reader(JSON_READER, &bytes);
                assert_eq!(read, json!(1), "{} has one value", format.name);
            }
            // pstats takes none without a row.
            "pstats" => assert_eq!(python_reader(MARSHAL_READER, &bytes), json!(1)),
            "callgrind" => {
                let text = String::from_utf8(bytes).expect("UTF-8");
                assert!(
                    text.contains("\nevents: ns samples\nsummary: 0 0\n"),
                    "{text}"
                );
            }
            "dot" => {
                let text = String::from_utf8(bytes).expect("UTF-8");
                assert!(
                    text.starts_with("digraph {\n") && text.ends_with("}\n"),
                    "{text}"
                );
                assert!(!text.contains("->"), "{text}");
            }
            "svg" | "svg-inverted" => {
                let read = python_reader(SVG_READER, &bytes);
                let text = read["texts"][0].as_str().expect("a text");
                assert!(text.starts_with("No samples"), "{text}");
            }
            // What a browser says of it is in `pages.rs`.
            "html" => assert!(bytes.starts_with(b"<!DOCTYPE html>")),
            name => panic!("no independent reader for the format {name}: add one here"),
        }
    }
}

#[test]
fn files_belong_to_the_user_who_called_sudo() {
    use std::os::unix::fs::MetadataExt as _;

    use profiler_agent::format::file::Target;

    const WRITE_TO: &str = "PYAGENT_TEST_WRITE_TO";
    if let Some(path) = std::env::var_os(WRITE_TO) {
        let target = Target::named(path.into());
        target
            .write(&build(&program()), Format::default_format())
            .expect("the folder is ours");
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can give files away");
        return;
    }
    // sudo's variables belong to a whole process, so another one writes the file.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.pb.gz");
    let status = Command::new(std::env::current_exe().expect("the test's binary"))
        .args([
            "--exact",
            "formats::files_belong_to_the_user_who_called_sudo",
        ])
        .envs([("SUDO_UID", "12345"), ("SUDO_GID", "54321")])
        .env(WRITE_TO, &path)
        .stdout(Stdio::null())
        .status()
        .expect("the test's binary runs");
    assert!(status.success());
    let metadata = fs::metadata(&path).expect("it was written");
    assert_eq!((metadata.uid(), metadata.gid()), (12345, 54321));
}
