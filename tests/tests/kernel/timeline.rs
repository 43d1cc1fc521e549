//! When samples were taken: a program that does two things in turns and prints when it changed from one to the other, and what
//! files with a course in time say of it, read by others' programs or by the formats' documentation. Root.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pyagent_tests::interpreters;
use pyagent_tests::packages::viewers;
use pyagent_tests::pyagent::{Pyagent, run, text};
use pyagent_tests::samples::{python_reader, read_with};
use pyagent_tests::target::Target;
use serde_json::Value;

/// Runs `f` and `g` in turns of 300 ms, and sleeps in the middle. It does so on one CPU, since each has its own clock for
/// samples, and before all others, so that a busy machine leaves it time to be sampled in. Prints the turns, and the stretches
/// in which it did not run though it wanted to: what waits for a CPU cannot be sampled.
const TURNS: &str = r"
import json, os, sys, threading, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
gaps = []
def f(until):
    last = time.time_ns()
    while last < until:
        for _ in range(100): pass
        now = time.time_ns()
        if now - last > 200_000: gaps.append([last, now])
        last = now
    return last
def g(until):
    last = time.time_ns()
    while last < until:
        for _ in range(100): pass
        now = time.time_ns()
        if now - last > 200_000: gaps.append([last, now])
        last = now
    return last
def main():
    print('ready', flush=True)
    sys.stdin.readline()
    turns = []
    for n in range(10):
        if n == 5: time.sleep(0.5)
        begin = time.time_ns()
        end = (f if n % 2 == 0 else g)(begin + 300_000_000)
        turns.append([f.__name__ if n % 2 == 0 else g.__name__, begin, end])
    print(json.dumps({'turns': turns, 'gaps': gaps}), flush=True)
    sys.stdin.readline()
main()
";

/// Nanoseconds of a sample at the default rate.
const PERIOD_NS: i64 = 1_000_000_000 / 99;

/// What the program did, by its own clock.
struct Told {
    /// Function, begin and end.
    turns: Vec<(String, i64, i64)>,
    gaps: Vec<(i64, i64)>,
}

impl Told {
    /// The stretches of a turn in which the program ran for so long that there must be a sample.
    fn sampled(&self, begin: i64, end: i64) -> Vec<(i64, i64)> {
        // A tick may be handled a little late.
        const LATE_NS: i64 = 1_000_000;
        let mut stretches = Vec::new();
        let mut from = begin;
        for (gap_begin, gap_end) in &self.gaps {
            if (begin..end).contains(gap_begin) {
                stretches.push((from, *gap_begin));
                from = *gap_end;
            }
        }
        stretches.push((from, end));
        stretches.retain(|(from, to)| to - from >= PERIOD_NS + LATE_NS);
        stretches
    }

    fn n_ns(&self, name: &str) -> i64 {
        let turns = self.turns.iter().filter(|turn| turn.0 == name);
        turns.map(|turn| turn.2 - turn.1).sum()
    }

    /// Nanoseconds in which the program did not run in turns of a function.
    fn n_gap_ns(&self, name: &str) -> i64 {
        let is_in = |gap: &&(i64, i64)| {
            let mut turns = self.turns.iter().filter(|turn| turn.0 == name);
            turns.any(|turn| (turn.1..turn.2).contains(&gap.0))
        };
        self.gaps
            .iter()
            .filter(is_in)
            .map(|(from, to)| to - from)
            .sum()
    }

    /// The begin and end of each turn must be that of a span of a file, which may be in pieces. A span never goes further
    /// beyond its turn than `beyond` periods; and it begins and ends within a period of where the program ran for one.
    fn check(&self, what: &str, spans: &[(String, i64, i64)], beyond: f64) {
        let beyond = (beyond * PERIOD_NS as f64) as i64;
        let (mut n_exact, mut worst) = (0, 0);
        for (name, begin, end) in &self.turns {
            let of_turn = || {
                let own = spans.iter().filter(|span| span.0 == *name);
                own.filter(|span| span.2 > begin - 150_000_000 && span.1 < end + 150_000_000)
            };
            let sampled = self.sampled(*begin, *end);
            let (Some(first), Some(last)) = (sampled.first(), sampled.last()) else {
                continue;
            };
            let from = of_turn().map(|span| span.1).min();
            let to = of_turn().map(|span| span.2).max();
            let (Some(from), Some(to)) = (from, to) else {
                panic!("{what}: no {name} at {begin}: {spans:?}");
            };
            assert!(
                from >= begin - beyond,
                "{what}: {name} begins {} ns early",
                begin - from
            );
            assert!(
                to <= end + beyond,
                "{what}: {name} ends {} ns late",
                to - end
            );
            let late = from - (first.0 + PERIOD_NS);
            let early = (last.1 - PERIOD_NS) - to;
            assert!(
                late <= 1_000_000,
                "{what}: {name} begins {late} ns late at {begin}"
            );
            assert!(
                early <= 1_000_000,
                "{what}: {name} ends {early} ns early at {end}"
            );
            for (off, ran) in [
                (from - begin, first.0 == *begin),
                (to - end, last.1 == *end),
            ] {
                if ran {
                    n_exact += 1;
                    worst = worst.max(off.abs());
                }
            }
        }
        assert!(
            n_exact > 0,
            "{what}: the program never ran for a period: {:?}",
            self.gaps
        );
        eprintln!(
            "{what}: where the program ran, {n_exact} of {} borders, at most {:.1} ms off",
            2 * self.turns.len(),
            worst as f64 / 1e6
        );
    }
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("{value}"))
}

/// Records the program into a file, from when its frames are known.
fn record(path: &Path, more: &[&str]) -> Told {
    let mut target = Target::python(&interpreters::newest(), TURNS, &[]);
    assert_eq!(target.line(), "ready");
    let pid = target.pid().to_string();
    let arguments = ["record", "--pid", &pid, "-o", path.to_str().unwrap()];
    let mut recording = Pyagent::start(&[&arguments, more].concat(), "recording");
    target.tell("");
    let said: Value = serde_json::from_str(&target.line()).unwrap();
    assert!(target.finish().success());
    let (errors, is_ok) = recording.finish();
    assert!(is_ok, "{errors}");
    let turns = said["turns"].as_array().unwrap().iter();
    let gaps = said["gaps"].as_array().unwrap().iter();
    Told {
        turns: turns
            .map(|it| {
                let name = it[0].as_str().unwrap();
                (name.to_owned(), number(&it[1]), number(&it[2]))
            })
            .collect(),
        gaps: gaps.map(|it| (number(&it[0]), number(&it[1]))).collect(),
    }
}

/// The spans of `f` and `g` in trace events.
fn of_trace(path: &Path) -> Vec<(String, i64, i64)> {
    let trace: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let start = trace["otherData"]["start"].as_f64().unwrap();
    let start_ns = (start * 1e9) as i64;
    let events = trace["traceEvents"].as_array().unwrap();
    let named =
        |what: &str| events.iter().find(|it| it["name"] == what).unwrap()["args"]["name"].clone();
    assert_eq!(named("thread_name"), "MainThread");
    assert!(
        named("process_name")
            .as_str()
            .unwrap()
            .starts_with("python")
    );
    let (mut open, mut spans) = (Vec::new(), Vec::new());
    for event in events {
        let name = event["name"].as_str().unwrap().to_owned();
        let at = || start_ns + (event["ts"].as_f64().unwrap() * 1e3) as i64;
        match event["ph"].as_str().unwrap() {
            "B" => open.push((name, at())),
            "E" => {
                let (began, from) = open.pop().unwrap();
                assert_eq!(began, name);
                if matches!(name.as_str(), "f" | "g") {
                    spans.push((name, from, at()));
                }
            }
            _ => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
    spans
}

/// The spans of the Firefox Profiler's tables, by their documentation (docs-developer/processed-profile-format.md): a sample
/// holds from its time to the next one's, one without a stack is idle. Times are deltas, or not.
const FIREFOX: &str = r"
import json, sys
profile = json.load(sys.stdin)
shared = profile.get('shared', {})
start = profile['meta']['startTime']
out = []
for thread in profile['threads']:
    strings = thread.get('stringArray') or shared['stringArray']
    frames, functions, stacks = thread['frameTable'], thread['funcTable'], thread['stackTable']
    samples = thread['samples']
    if 'time' in samples:
        times = samples['time']
    else:
        times, now = [], 0
        for delta in samples['timeDeltas']:
            now += delta
            times.append(now)
    def names(stack):
        found = []
        while stack is not None:
            found.append(strings[functions['name'][frames['func'][stacks['frame'][stack]]]].split(' ')[0])
            stack = stacks['prefix'][stack]
        return found
    cpu = samples['threadCPUDelta']
    rows = [[time, names(stack), weight, delta] for time, stack, weight, delta in
            zip(times, samples['stack'], samples['weight'], cpu)]
    markers = thread['markers']
    held = [[markers['startTime'][i], markers['endTime'][i]] for i in range(markers['length'])
            if strings[markers['name'][i]] == 'holds the GIL']
    out.append({'name': thread['name'], 'process': thread.get('processName', ''), 'rows': rows, 'held': held,
                'registered': thread['registerTime'], 'unregistered': thread['unregisterTime'],
                'unit': profile['meta']['sampleUnits']['threadCPUDelta']})
print(json.dumps({'start': start, 'threads': out}))
";

fn of_firefox(path: &Path) -> Vec<(String, i64, i64)> {
    let read = python_reader(FIREFOX, &fs::read(path).unwrap());
    let start_ns = (read["start"].as_f64().unwrap() * 1e6) as i64;
    let thread = &read["threads"][0];
    assert_eq!(read["threads"].as_array().unwrap().len(), 1);
    let ns = |ms: &Value| (ms.as_f64().unwrap() * 1e6) as i64;
    let rows = thread["rows"].as_array().unwrap();
    let times: Vec<i64> = rows.iter().map(|row| ns(&row[0])).collect();
    assert!(times.is_sorted());
    // A stack holds until the next sample.
    let spans = rows
        .iter()
        .zip(times.iter().skip(1))
        .filter_map(|(row, end)| {
            let names = row[1].as_array()?;
            let name = names.iter().find(|name| **name == "f" || **name == "g")?;
            Some((
                name.as_str()?.to_owned(),
                start_ns + ns(&row[0]),
                start_ns + end,
            ))
        });
    let spans = spans.collect();
    // What ran has CPU time, what slept has none: half a second in the middle.
    let unit = match thread["unit"].as_str() {
        Some("ns") => 1.0,
        Some("µs") => 1e3,
        unit => panic!("{unit:?}"),
    };
    let cpu_ns: f64 = rows.iter().map(|row| row[3].as_f64().unwrap() * unit).sum();
    let n_samples: i64 = rows.iter().map(|row| number(&row[2])).sum();
    let sampled_ns = (n_samples * PERIOD_NS) as f64;
    assert!(
        (cpu_ns - sampled_ns).abs() < 0.1 * sampled_ns,
        "{cpu_ns} {sampled_ns}"
    );
    let longest = times
        .windows(2)
        .max_by_key(|pair| pair[1] - pair[0])
        .unwrap();
    assert!(longest[1] - longest[0] > 400_000_000, "{longest:?}");
    let idle = rows.iter().find(|row| ns(&row[0]) == longest[0]).unwrap();
    assert_eq!(idle[1].as_array().unwrap().len(), 0, "{idle}");
    // It is Python without a call that gives the GIL away: it held it whenever it ran.
    let held = thread["held"].as_array().unwrap().iter();
    let held_ns: i64 = held.map(|span| ns(&span[1]) - ns(&span[0])).sum();
    eprintln!("firefox: held {held_ns} of {sampled_ns} ns");
    assert!(
        (held_ns as f64 - sampled_ns).abs() < 0.1 * sampled_ns,
        "{held_ns} {sampled_ns}"
    );
    spans
}

/// What speedscope's importer sees: by name of a frame its weight in nanoseconds.
fn imported(path: &Path, in_ns: f64) -> BTreeMap<String, f64> {
    let mut node = Command::new("node");
    node.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/viewers/import.js"))
        .arg(viewers().join("speedscope/node_modules/speedscope/dist/release"))
        .arg(path);
    let read: Value = serde_json::from_str(&read_with(&mut node, b"")).unwrap();
    let mut sums = BTreeMap::new();
    for frame in read[0]["frames"].as_array().unwrap() {
        let name = frame[0]
            .as_str()
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned();
        *sums.entry(name).or_insert(0.0) += frame[4].as_f64().unwrap() * in_ns;
    }
    sums
}

/// The file's samples in order with the time at which each ends.
fn of_speedscope(path: &Path, start_ns: i64) -> Vec<(String, i64, i64)> {
    let file: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let names = file["shared"]["frames"].as_array().unwrap();
    let profile = &file["profiles"][0];
    let weights = profile["weights"].as_array().unwrap().iter().map(number);
    let mut now = start_ns;
    let mut spans = Vec::new();
    for (stack, weight) in profile["samples"].as_array().unwrap().iter().zip(weights) {
        let stack = stack.as_array().unwrap().iter();
        let names = stack.map(|idx| {
            names[idx.as_u64().unwrap() as usize]["name"]
                .as_str()
                .unwrap()
        });
        let name = names.into_iter().find(|name| matches!(*name, "f" | "g"));
        if let Some(name) = name {
            spans.push((name.to_owned(), now, now + weight));
        }
        now += weight;
    }
    assert_eq!(number(&profile["endValue"]), now - start_ns);
    spans
}

#[test]
fn turns_are_where_the_program_had_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let told = record(&file("app.pb.gz"), &["--timestamps"]);
    assert_eq!(told.turns.len(), 10);
    for name in [
        "app.trace.json",
        "app.firefox.json",
        "app.speedscope.json",
        "again.pb.gz",
    ] {
        let paths = [file("app.pb.gz"), file(name)].map(|it| it.to_str().unwrap().to_owned());
        let _ = text(&run("convert", &[&paths[0], "-o", &paths[1]], b""));
    }
    let trace = of_trace(&file("app.trace.json"));
    // A border is in the middle of two samples that follow each other within one and a half periods.
    told.check("chrome", &trace, 0.75);
    // What touches is one bar.
    let mut bars: Vec<_> = trace.clone();
    bars.sort_by_key(|bar| bar.1);
    for pair in bars.windows(2) {
        assert!(
            pair[0].0 != pair[1].0 || pair[1].1 - pair[0].2 > 1_000,
            "{pair:?}"
        );
    }
    // Here a stack holds until the next sample.
    told.check("firefox", &of_firefox(&file("app.firefox.json")), 1.5);
    let head: Value = serde_json::from_slice(&fs::read(file("app.trace.json")).unwrap()).unwrap();
    let start_ns = (head["otherData"]["start"].as_f64().unwrap() * 1e9) as i64;
    told.check(
        "speedscope",
        &of_speedscope(&file("app.speedscope.json"), start_ns),
        0.75,
    );
    // What has the time keeps it, and the sums are the same as without.
    let folded = |name: &str| {
        text(&run(
            "convert",
            &[
                file(name).to_str().unwrap(),
                "--format",
                "folded",
                "-o",
                "-",
            ],
            b"",
        ))
    };
    assert_eq!(folded("app.pb.gz"), folded("again.pb.gz"));
    for (name, in_ns) in [("app.speedscope.json", 1.0), ("app.trace.json", 1e3)] {
        let sums = imported(&file(name), in_ns);
        for function in ["f", "g"] {
            let seen = sums[function];
            let ran = (told.n_ns(function) - told.n_gap_ns(function)) as f64;
            // Each turn has a begin and an end; ticks that a program that is often interrupted gets are a matter of chance.
            let period = PERIOD_NS as f64;
            let allowed = 5.0 * period + 5.0 * (ran * period).sqrt();
            eprintln!("{name}: {function} {seen} of {ran} ns");
            assert!(
                (seen - ran).abs() <= allowed,
                "{name} {function}: {seen} {ran}"
            );
        }
    }
}

#[test]
fn a_file_with_a_course_needs_no_flag_and_one_without_refuses_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.trace.json");
    let told = record(&path, &[]);
    told.check("chrome", &of_trace(&path), 0.75);
    let refused = run(
        "record",
        &["--timestamps", "-o", "x.svg", "--all-python", "-d", "1s"],
        b"",
    );
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("no place for them; pprof, speedscope, firefox, chrome"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}
