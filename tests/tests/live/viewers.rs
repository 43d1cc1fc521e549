//! Each format opened by a program that is not ours, and its figures compared with those of the samples: speedscope's
//! importer, CPython's pstats of each version, SnakeViz, gprof2dot, pyprof2calltree, callgrind_annotate, Graphviz, inferno.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use inferno::collapse::Collapse as _;
use inferno::collapse::perf::Folder;
use profiler_agent::profile::model::FrameKind;
use pyagent_tests::interpreters;
use pyagent_tests::packages::viewers;
use pyagent_tests::samples::{
    CYRILLIC, CodeFrame, DEFLATE, EMOJI, FIB, HOSTILE, MAIN, PERIOD_NS, Row, build, bytes, program,
    python_reader, read_with,
};
use serde_json::Value;

/// Further on in `main`.
const LATER: CodeFrame = CodeFrame {
    line: 5,
    folded: "main (/srv/app.py:5)",
    ..MAIN
};

/// The program, and some that goes through another line of the same function.
fn rows() -> Vec<Row> {
    let mut rows = program();
    rows.push(Row {
        pid: 7,
        tid: 7,
        frames: vec![CYRILLIC, LATER],
        count: 90,
    });
    rows
}

/// By what a reader calls a function: its own samples, and all that it is in.
type Figures = BTreeMap<String, (i64, i64)>;

/// What a reader must see of the rows, under the names that it has. Frames of the same name are one function.
fn figures<'a>(
    rows: impl Iterator<Item = &'a Row>,
    name: impl Fn(&CodeFrame) -> String,
) -> Figures {
    let mut figures = Figures::new();
    for row in rows {
        let names: Vec<String> = row.frames.iter().map(&name).collect();
        if let Some(leaf) = names.first() {
            figures.entry(leaf.clone()).or_default().0 += row.count;
        }
        let distinct: std::collections::BTreeSet<String> = names.into_iter().collect();
        for name in distinct {
            figures.entry(name).or_default().1 += row.count;
        }
    }
    figures
}

fn n_samples(rows: &[Row]) -> i64 {
    rows.iter().map(|row| row.count).sum()
}

fn seconds(n_samples: i64) -> f64 {
    n_samples as f64 * PERIOD_NS as f64 * 1e-9
}

/// The program in a format, as a file of this name.
fn file(folder: &Path, format: &str, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes(format, &build(&rows()))).unwrap();
    path
}

/// What a number of samples is in what the reader prints.
fn samples_in(value: f64, one: f64) -> i64 {
    let n_samples = value / one;
    let nearest = n_samples.round();
    assert!(
        (n_samples - nearest).abs() < 1e-6,
        "{value} is no multiple of {one}"
    );
    nearest as i64
}

/// How pyagent names what pstats has no name for, as cProfile does.
fn pstats_name(frame: &CodeFrame) -> String {
    match frame.kind {
        FrameKind::Python => format!("{}:{}:{}", frame.file, frame.first_line, frame.shown),
        _ => format!("~:0:{}", frame.folded),
    }
}

/// What pstats makes of a file: by function what it has, and the sums that it prints at the top.
const PSTATS: &str = r"
import io, json, pstats, sys
stats = pstats.Stats(sys.argv[1], stream=io.StringIO())
stats.strip_dirs and stats.calc_callees()
stats.sort_stats('cumulative').print_stats().print_callers().print_callees()
functions = {'%s:%d:%s' % key: [cc, nc, tt, ct, {'%s:%d:%s' % k: list(v) for k, v in callers.items()}]
             for key, (cc, nc, tt, ct, callers) in stats.stats.items()}
sys.stdout.buffer.write(json.dumps({'functions': functions, 'total': stats.total_tt}).encode())
";

#[test]
fn pstats_of_every_version_reads_what_was_sampled() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "pstats", "app.pstats");
    let rows = rows();
    let expected = figures(rows.iter(), pstats_name);
    let mut n_versions = 0;
    for python in interpreters::usual() {
        let mut reader = Command::new(&python.path);
        reader
            .args(["-c", PSTATS])
            .arg(&path)
            .env("PYTHONUTF8", "1");
        let read: Value = serde_json::from_str(&read_with(&mut reader, b"")).unwrap();
        let mut found = Figures::new();
        let functions = read["functions"].as_object().unwrap();
        for (name, row) in functions {
            let (own, total) = (row[2].as_f64().unwrap(), row[3].as_f64().unwrap());
            let of = |value| samples_in(value, seconds(1));
            assert_eq!(row[0], of(total), "{name}: each sample is a call");
            assert_eq!(row[0], row[1]);
            if name != "~:0:[no stack]" {
                found.insert(name.clone(), (of(own), of(total)));
            }
            let callers = row[4].as_object().unwrap();
            assert!(callers.values().all(|it| it.as_array().unwrap().len() == 4));
        }
        assert_eq!(found, expected, "{}", python.path.display());
        assert_eq!(
            samples_in(read["total"].as_f64().unwrap(), seconds(1)),
            n_samples(&rows)
        );
        let callers = &functions["/srv/app.py:11:fib.<locals>.step"][4];
        let by_main = &callers["/srv/app.py:2:main"];
        // 750 times main called what called itself; the leaf was never called by main itself.
        assert_eq!(
            (&by_main[0], by_main[2].as_f64()),
            (&Value::from(750), Some(0.0))
        );
        n_versions += 1;
    }
    assert!(n_versions >= 3, "{n_versions} versions");
}

/// Runs a script of the machine's Python with the viewers on its path.
fn with_viewers(script: &str, arguments: &[&Path]) -> String {
    let mut python = Command::new("python3");
    python
        .args(["-c", script])
        .args(arguments)
        .env("PYTHONPATH", viewers().join("python"))
        .env("PYTHONUTF8", "1");
    read_with(&mut python, b"")
}

/// The rows of SnakeViz's table, and the times of its picture.
const SNAKEVIZ: &str = r"
import json, pstats, sys
from snakeviz.stats import json_stats, table_rows
stats = pstats.Stats(sys.argv[1])
picture = json_stats(stats)
print(json.dumps({'rows': [[row[-1], row[1], row[3]] for row in table_rows(stats)],
                  'picture': {name: [it['stats'][2], it['stats'][3], len(it['callers'])] for name, it in picture.items()}}))
";

#[test]
fn snakeviz_shows_a_row_and_a_box_for_each_function() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "pstats", "app.pstats");
    let read: Value = serde_json::from_str(&with_viewers(SNAKEVIZ, &[&path])).unwrap();
    let expected = figures(rows().iter(), pstats_name);
    assert_eq!(read["rows"].as_array().unwrap().len(), expected.len() + 1);
    let picture = read["picture"].as_object().unwrap();
    let main = picture
        .iter()
        .find(|(name, _)| name.starts_with("/srv/app.py:2(main)"));
    let (_, main) = main.unwrap_or_else(|| panic!("{picture:?}"));
    let (_, total) = expected["/srv/app.py:2:main"];
    assert_eq!(samples_in(main[1].as_f64().unwrap(), seconds(1)), total);
}

/// The boxes of a graph: name, share in all and own share, in hundredths of a per cent.
fn boxes(dot: &str) -> BTreeMap<String, (i64, i64)> {
    let of = regex::Regex::new(
        r#"label="(?<name>(?:[^"\\]|\\.)*?)\\n(?<total>[\d.]+)%\\n\((?<own>[\d.]+)%\)"#,
    )
    .unwrap();
    let hundredths = |text: &str| (text.parse::<f64>().unwrap() * 100.0).round() as i64;
    of.captures_iter(dot)
        .map(|found| {
            // The module and the line are in front: each tool has a way of its own.
            let name = found["name"].rsplit(':').next().unwrap().to_owned();
            (
                name,
                (hundredths(&found["total"]), hundredths(&found["own"])),
            )
        })
        .collect()
}

#[test]
fn the_call_graph_is_that_which_gprof2dot_draws() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "pstats", "app.pstats");
    let script = "import gprof2dot, sys; gprof2dot.main(['-f', 'pstats', sys.argv[1]])";
    let theirs = boxes(&with_viewers(script, &[&path]));
    let ours = fs::read_to_string(file(folder.path(), "dot", "app.dot")).unwrap();
    let ours = boxes(&ours);
    // It has no kernel and no machine code, whose names have brackets and a colon of their own.
    let main = ours["main"];
    let whole = n_samples(&rows()) as f64;
    let expected = figures(rows().iter(), |frame| frame.shown.to_owned())["main"];
    let hundredths = |count: i64| (count as f64 / whole * 1e4).round() as i64;
    assert_eq!(main, (hundredths(expected.1), hundredths(expected.0)));
    for name in ["main", "fib.<locals>.step", CYRILLIC.shown] {
        assert_eq!(theirs.get(name), ours.get(name), "{name}: {theirs:?}");
        assert!(ours.contains_key(name));
    }
}

#[test]
fn graphviz_draws_the_call_graph() {
    let graph = bytes("dot", &build(&rows()));
    let svg = read_with(Command::new("dot").arg("-Tsvg"), &graph);
    let n_boxes = svg.matches("class=\"node\"").count();
    assert_eq!(n_boxes, boxes(&String::from_utf8(graph).unwrap()).len());
    assert!(svg.contains("fib.&lt;locals&gt;.step"), "{svg}");
}

/// What callgrind_annotate says of each function: samples, by `file:function`.
fn annotated(path: &Path, is_inclusive: bool) -> BTreeMap<String, i64> {
    let mut annotate = Command::new("callgrind_annotate");
    annotate
        .args([
            "--auto=no",
            "--threshold=100",
            "--show-percs=no",
            "--show=ns",
        ])
        .arg(format!(
            "--inclusive={}",
            if is_inclusive { "yes" } else { "no" }
        ))
        .arg(path);
    let said = read_with(&mut annotate, b"");
    let row = regex::Regex::new(r"(?m)^ *([\d,]+)  (.*)$").unwrap();
    let rows = row.captures_iter(&said).map(|found| {
        let ns: i64 = found[1].replace(',', "").parse().unwrap();
        // The object is behind the name.
        let name = found[2]
            .rsplit_once(" [")
            .map_or(&found[2], |(name, _)| name);
        (name.trim_start_matches("* ").to_owned(), ns / PERIOD_NS)
    });
    rows.collect()
}

fn callgrind_name(frame: &CodeFrame) -> String {
    let file = match (frame.kind, frame.file) {
        (FrameKind::Python, file @ "/srv/app.py") => file,
        _ => "???",
    };
    let name = if frame.kind == FrameKind::Kernel {
        frame.folded
    } else {
        frame.shown
    };
    format!("{file}:{name}")
}

#[test]
fn callgrind_annotate_has_the_figures_of_each_function() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "callgrind", "app.callgrind");
    let rows = rows();
    let expected = figures(rows.iter(), callgrind_name);
    let own = annotated(&path, false);
    assert_eq!(own["PROGRAM TOTALS"], n_samples(&rows));
    for (name, (n_own, _)) in &expected {
        assert_eq!(
            own.get(name).copied().unwrap_or(0),
            *n_own,
            "{name}: {own:?}"
        );
    }
    // What callees take: of functions that do not call themselves it is the sum.
    let inclusive = annotated(&path, true);
    for name in [
        "/srv/app.py:main",
        &callgrind_name(&CYRILLIC),
        &callgrind_name(&DEFLATE),
    ] {
        assert_eq!(inclusive[name], expected[name].1, "{name}: {inclusive:?}");
    }
}

#[test]
fn callgrind_has_the_true_cost_of_each_line() {
    let text = String::from_utf8(bytes("callgrind", &build(&rows()))).unwrap();
    let mut by_line = BTreeMap::new();
    let mut is_call = false;
    let mut function = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = name.split_once(") ").map_or(function, |(_, name)| name);
        }
        let numbers: Vec<i64> = line.split(' ').map_while(|it| it.parse().ok()).collect();
        if let [place, ns, _] = numbers[..]
            && function == "main"
        {
            *by_line.entry((place, is_call)).or_default() += ns / PERIOD_NS;
        }
        is_call = line.starts_with("calls=");
    }
    // Line 3 calls all that there is but for 90 samples, which line 5 calls.
    let through_main = figures(rows().iter(), |frame| frame.shown.to_owned())["main"].1;
    assert_eq!(
        by_line,
        BTreeMap::from([((3, true), through_main - 90), ((5, true), 90)])
    );
}

#[test]
fn pyprof2calltree_turns_pstats_into_what_callgrind_annotate_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "pstats", "app.pstats");
    let out = folder.path().join("theirs.callgrind");
    let script = "import pstats, pyprof2calltree, sys; pyprof2calltree.convert(pstats.Stats(sys.argv[1]), sys.argv[2])";
    with_viewers(script, &[&path, &out]);
    let mut annotate = Command::new("callgrind_annotate");
    annotate.args(["--auto=no", "--threshold=100"]).arg(&out);
    let said = read_with(&mut annotate, b"");
    assert!(
        said.contains("main") && said.contains("fib.<locals>.step"),
        "{said}"
    );
}

/// What speedscope's importer sees in a file: by the name of a profile its total, and by frame its own weight and all of it.
fn imported(path: &Path) -> BTreeMap<String, (f64, Vec<Value>)> {
    let mut node = Command::new("node");
    node.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/viewers/import.js"))
        .arg(viewers().join("speedscope/node_modules/speedscope/dist/release"))
        .arg(path);
    let read: Value = serde_json::from_str(&read_with(&mut node, b"")).unwrap();
    let profiles = read.as_array().unwrap().iter().map(|profile| {
        let total = profile["total"].as_f64().unwrap();
        let frames = profile["frames"].as_array().unwrap().clone();
        (
            profile["name"].as_str().unwrap().to_owned(),
            (total, frames),
        )
    });
    profiles.collect()
}

/// What must be seen of each thread.
fn by_thread() -> BTreeMap<(u32, u32), Vec<Row>> {
    let mut threads: BTreeMap<_, Vec<Row>> = BTreeMap::new();
    for row in rows() {
        threads.entry((row.pid, row.tid)).or_default().push(row);
    }
    threads
}

/// A reader's frames as figures, by a name that is made of what it says of a frame.
fn read_figures(frames: &[Value], one: f64, name: impl Fn(&Value) -> String) -> Figures {
    let mut figures = Figures::new();
    for frame in frames {
        let of = |idx: usize| samples_in(frame[idx].as_f64().unwrap(), one);
        let sum = figures.entry(name(frame)).or_default();
        sum.0 += of(3);
        sum.1 += of(4);
    }
    figures
}

#[test]
fn speedscope_imports_each_thread_with_its_frames() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "speedscope", "app.speedscope.json");
    let profiles = imported(&path);
    let threads = by_thread();
    assert_eq!(profiles.len(), threads.len());
    for ((pid, tid), rows) in threads {
        let is_it = |name: &String| {
            name.starts_with(&format!("python3 ({pid}) ")) && name.ends_with(&format!("({tid})"))
        };
        let (_, (total, frames)) = profiles.iter().find(|(name, _)| is_it(name)).unwrap();
        assert_eq!(samples_in(*total, PERIOD_NS as f64), n_samples(&rows));
        let expected = figures(rows.iter(), |frame| {
            let name = match frame.kind {
                FrameKind::Python => frame.shown,
                _ => frame.folded,
            };
            format!("{name}|{}|{}", frame.file, frame.line)
        });
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let found = read_figures(frames, PERIOD_NS as f64, |frame| {
            format!("{}|{}|{}", text(&frame[0]), text(&frame[1]), frame[2])
        });
        assert_eq!(found, expected);
    }
}

#[test]
fn speedscope_imports_callgrind_and_trace_events_too() {
    let folder = tempfile::tempdir().unwrap();
    let rows = rows();
    let own = |figures: Figures| -> BTreeMap<String, i64> {
        let own = figures.into_iter().map(|(name, (own, _))| (name, own));
        own.filter(|(_, own)| *own > 0).collect()
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();

    let profiles = imported(&file(folder.path(), "callgrind", "app.callgrind"));
    let (total, frames) = &profiles["app.callgrind -- ns"];
    assert_eq!(samples_in(*total, PERIOD_NS as f64), n_samples(&rows));
    // It spreads what a function calls over those that call it: what is a function's own is exact.
    let mut found = own(read_figures(frames, PERIOD_NS as f64, |frame| {
        format!("{}:{}", text(&frame[1]), text(&frame[0]))
    }));
    assert_eq!(found.remove("???:[no stack]"), Some(4));
    assert_eq!(found, own(figures(rows.iter(), callgrind_name)));

    let profiles = imported(&file(folder.path(), "chrome", "app.trace.json"));
    let threads = by_thread();
    assert_eq!(profiles.len(), threads.len());
    for ((pid, tid), rows) in threads {
        let is_it = |name: &String| {
            name.contains(&format!("(pid {pid})")) && name.ends_with(&format!("(tid {tid})"))
        };
        let (_, (_, frames)) = profiles
            .iter()
            .find(|(name, _)| is_it(name))
            .unwrap_or_else(|| panic!("{:?}", profiles.keys()));
        let mut found = BTreeMap::new();
        for frame in frames {
            // Microseconds, added up with a point.
            let n_samples = frame[3].as_f64().unwrap() * 1e3 / PERIOD_NS as f64;
            assert!((n_samples - n_samples.round()).abs() < 1e-3, "{frame}");
            let name = text(&frame[0]);
            let name = name.split(" {").next().unwrap().to_owned();
            if n_samples.round() > 0.0 && name != "[no stack]" {
                *found.entry(name).or_default() += n_samples.round() as i64;
            }
        }
        let name = |frame: &CodeFrame| match frame.kind {
            FrameKind::Python => frame.shown.to_owned(),
            _ => frame.folded.to_owned(),
        };
        // Before a brace the importer's own remarks begin; no name of the program has one behind a space.
        assert_eq!(found, own(figures(rows.iter(), name)), "{pid} {tid}");
    }
}

#[test]
fn inferno_folds_the_text_of_perf_script() {
    let mut rows = rows();
    // It panics at such names (of characters that are joined).
    rows.retain(|row| !row.frames.contains(&EMOJI));
    let text = bytes("perf", &build(&rows));
    let mut folded = Vec::new();
    Folder::default().collapse(&text[..], &mut folded).unwrap();
    let folded = String::from_utf8(folded).unwrap();
    let mut found: BTreeMap<String, i64> = BTreeMap::new();
    let mut n_found = 0;
    for line in folded.lines() {
        let (stack, count) = line.rsplit_once(' ').unwrap();
        let count: i64 = count.parse().unwrap();
        n_found += count;
        // The first frame is the name of the thread.
        let leaf = stack.split(';').skip(1).last().unwrap_or_default();
        *found.entry(leaf.to_owned()).or_default() += count;
    }
    // It weighs an event by its period, and leaves those without a stack out.
    rows.retain(|row| !row.frames.is_empty());
    assert_eq!(n_found, n_samples(&rows) * PERIOD_NS);
    let own = |frame: &CodeFrame| {
        figures(rows.iter(), |it| it.shown.to_owned())[frame.shown].0 * PERIOD_NS
    };
    assert_eq!(
        found.get("py::fib.<locals>.step:/srv/app.py:12"),
        Some(&own(&FIB)),
        "{found:?}"
    );
    assert_eq!(found.get("deflate"), Some(&own(&DEFLATE)), "{found:?}");
    let hostile = found
        .keys()
        .any(|name| name.starts_with("py::a:b") && !name.contains('\u{1b}'));
    assert!(hostile, "{found:?} has no {}", HOSTILE.shown);
}

/// The tables of a processed profile by their documentation (docs-developer/processed-profile-format.md of the Firefox
/// Profiler), without the crate that wrote them: for each thread the stacks from the leaf on, and their samples.
const FIREFOX: &str = r"
import json, sys
profile = json.load(sys.stdin)
shared = profile.get('shared', {})
threads = []
for thread in profile['threads']:
    strings = thread.get('stringArray') or shared['stringArray']
    frames, functions, stacks = thread['frameTable'], thread['funcTable'], thread['stackTable']
    samples = thread['samples']
    def walk(stack):
        names = []
        while stack is not None:
            names.append(strings[functions['name'][frames['func'][stacks['frame'][stack]]]])
            stack = stacks['prefix'][stack]
        return names
    weights = samples.get('weight') or [1] * samples['length']
    counts = {}
    for stack, weight in zip(samples['stack'], weights):
        key = json.dumps(walk(stack))
        counts[key] = counts.get(key, 0) + weight
    cpu = sum(samples.get('threadCPUDelta') or [])
    threads.append([str(thread['pid']), str(thread['tid']), thread['processName'] if 'processName' in thread else '',
                    thread['name'], [[json.loads(k), n] for k, n in counts.items()], cpu])
print(json.dumps({'threads': threads, 'interval': profile['meta']['interval'],
                  'unit': profile['meta'].get('sampleUnits', {}).get('threadCPUDelta')}))
";

#[test]
fn the_firefox_profilers_tables_say_what_was_sampled() {
    let read = python_reader(FIREFOX, &bytes("firefox", &build(&rows())));
    let interval = read["interval"].as_f64().unwrap();
    assert!(
        (interval - PERIOD_NS as f64 / 1e6).abs() < 1e-6,
        "{interval} ms"
    );
    let threads = by_thread();
    assert_eq!(read["threads"].as_array().unwrap().len(), threads.len());
    for ((pid, tid), rows) in threads {
        let mut found = read["threads"].as_array().unwrap().iter();
        let ids = (pid.to_string(), tid.to_string());
        let is_it = |thread: &&Value| thread[0] == ids.0.as_str() && thread[1] == ids.1.as_str();
        let thread = found.find(is_it).unwrap_or_else(|| panic!("{read}"));
        let mut expected: BTreeMap<Vec<String>, i64> = BTreeMap::new();
        for row in &rows {
            let names = row.frames.iter().map(|frame| match frame.shown {
                // Folded stacks cannot have a semicolon, and no number at their end.
                _ if *frame == HOSTILE => frame.shown.to_owned(),
                _ => frame.folded.to_owned(),
            });
            *expected.entry(names.collect()).or_default() += row.count;
        }
        let stacks = thread[4].as_array().unwrap().iter().map(|row| {
            let names = row[0].as_array().unwrap().iter();
            let names = names.map(|name| name.as_str().unwrap().to_owned());
            (names.collect(), row[1].as_i64().unwrap())
        });
        assert_eq!(stacks.collect::<BTreeMap<Vec<String>, i64>>(), expected);
        let cpu_ns = match read["unit"].as_str() {
            Some("ns") => thread[5].as_f64().unwrap(),
            Some("µs") => thread[5].as_f64().unwrap() * 1e3,
            unit => panic!("{unit:?}"),
        };
        let expected_ns = (n_samples(&rows) * PERIOD_NS) as f64;
        // Whole microseconds are kept.
        assert!(
            (cpu_ns - expected_ns).abs() <= 1e3 * n_samples(&rows) as f64,
            "{cpu_ns}"
        );
    }
}

#[test]
fn json_lines_have_every_sample_with_its_labels() {
    let script = r"
import json, sys
head, *samples = [json.loads(line) for line in sys.stdin.read().splitlines()]
print(json.dumps([head, [[s['labels'].get('pid'), s['labels'].get('tid'), s['labels'].get('thread_name', ''),
      [[f['name'], f.get('file') or f.get('module') or '', f.get('line', 0)] for f in s['stack']], s['values']] for s in samples]]))
";
    let read = python_reader(script, &bytes("jsonl", &build(&rows())));
    assert_eq!(read[0]["period"], PERIOD_NS);
    let mut found = BTreeMap::new();
    for sample in read[1].as_array().unwrap() {
        let count = sample[4]["samples"].as_i64().unwrap();
        assert_eq!(sample[4]["cpu"], count * PERIOD_NS);
        let key = serde_json::json!([sample[0], sample[1], sample[2], sample[3]]).to_string();
        *found.entry(key).or_insert(0) += count;
    }
    let mut expected = BTreeMap::new();
    for row in rows() {
        let stack: Vec<Value> = row
            .frames
            .iter()
            .map(|frame| serde_json::json!([frame.name, frame.file, frame.line]))
            .collect();
        let name = pyagent_tests::samples::thread_name(row.tid);
        let key = serde_json::json!([row.pid, row.tid, name, stack]).to_string();
        *expected.entry(key).or_insert(0) += row.count;
    }
    assert_eq!(found, expected);
}
