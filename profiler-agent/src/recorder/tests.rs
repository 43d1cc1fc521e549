//! What is written is read, for as long as it is kept, whatever the clock does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::UNIX_EPOCH;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::profile::aggregate::{
    Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
};
use crate::profile::model::{ProfileType, ValueType, label};
use crate::profile::query::{ProcessFilter, TimeRange, parse_pattern};

const SECOND_NS: i64 = 1_000_000_000;

/// Length of the windows of these tests.
const WINDOW_NS: i64 = 10 * SECOND_NS;

const HOUR_NS: i64 = 3600 * SECOND_NS;

/// Wall time at the begin of the first boot.
const BEGAN_NS: i64 = 1_700_000_000 * SECOND_NS;

/// Clocks that the test sets.
#[derive(Default)]
struct Times {
    boot_ns: AtomicI64,
    /// By how much the wall clock was set.
    step_ns: AtomicI64,
}

/// A database, and clocks that stand still.
struct Bench {
    folder: TempDir,
    times: Arc<Times>,
    clock: Clock,
    limits: Limits,
}

fn clock(boot_id: &str, began_ns: i64, times: &Arc<Times>) -> Clock {
    let (boot, wall) = (Arc::clone(times), Arc::clone(times));
    Clock::of(
        boot_id,
        move || boot.boot_ns.load(Ordering::Relaxed),
        move || {
            began_ns + wall.boot_ns.load(Ordering::Relaxed) + wall.step_ns.load(Ordering::Relaxed)
        },
    )
}

impl Bench {
    fn new(keep: Duration, keep_bytes: u64) -> Self {
        let times = Arc::new(Times::default());
        Self {
            folder: tempfile::tempdir().unwrap(),
            clock: clock("first", BEGAN_NS, &times),
            times,
            limits: Limits { keep, keep_bytes },
        }
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("pyagent.db")
    }

    fn writer(&self) -> Writer {
        Writer::open(&self.database(), self.limits, self.clock.clone()).unwrap()
    }

    /// A window that begins now, with a profile for each type; time goes on to its end.
    fn window(&self, profiles: Vec<(ProfileType, Profile)>) -> ClosedWindow {
        let start = self.times.boot_ns.fetch_add(WINDOW_NS, Ordering::Relaxed);
        ClosedWindow {
            start_ns: start.cast_unsigned(),
            end_ns: (start + WINDOW_NS).cast_unsigned(),
            profiles,
        }
    }

    fn step(&self, by_ns: i64) {
        self.times.step_ns.fetch_add(by_ns, Ordering::Relaxed);
    }

    fn now_ns(&self) -> i64 {
        self.clock.wall_ns()
    }

    fn read(&self, request: &RecordedRequest) -> Result<Profile, ReadError> {
        read::read(&self.database(), &self.clock, request, &|| false)
    }

    fn between(&self, from_ns: i64, to_ns: i64) -> Result<Profile, ReadError> {
        self.read(&of_all(TimeRange::Between {
            from: Some(clock::wall_time(from_ns)),
            to: Some(clock::wall_time(to_ns)),
        }))
    }
}

fn of_all(range: TimeRange) -> RecordedRequest {
    RecordedRequest {
        profile_type: ProfileType::Cpu,
        filter: ProcessFilter::default(),
        range,
    }
}

const EVER: TimeRange = TimeRange::Between {
    from: None,
    to: None,
};

/// A sample: functions from the leaf, the process, and how many.
type Row<'a> = (&'a [&'a str], u32, i64);

/// The same with all values.
type AllocationRow<'a> = (&'a [&'a str], u32, Vec<i64>);

fn profile_of(sample_types: &'static [ValueType], rows: &[AllocationRow<'_>]) -> Profile {
    let mut aggregator = Aggregator::new(UNIX_EPOCH, sample_types, 10_101_010);
    for (stack, pid, values) in rows {
        let frame = |name: &&str| ResolvedFrame {
            function: Arc::new(ResolvedFunction::python(name, "/srv/app.py", 7)),
            line: name.len() as u32,
            address: 0,
        };
        let process = ProcessLabels {
            comm: format!("app{pid}").into(),
            cmdline: format!("python app{pid}.py").into(),
            more: [(label::CONTAINER_NAME.into(), "web".into())].into(),
            ..ProcessLabels::of_pid(*pid)
        };
        let mut six = [0; 6];
        six[..values.len()].copy_from_slice(values);
        aggregator.add(&ResolvedSample {
            frames: stack.iter().map(frame).collect(),
            labels: Arc::new(ThreadLabels {
                process: Arc::new(process),
                tid: pid + 1,
                started_ns: 0,
                thread_name: "Поток \"1\"".into(),
            }),
            instruction: None,
            values: six.into(),
        });
    }
    let comments = vec!["lost_full: 2 (Samples lost)".to_owned()];
    aggregator.finish(Duration::from_secs(10), comments)
}

fn cpu(rows: &[Row<'_>]) -> Vec<(ProfileType, Profile)> {
    let rows: Vec<_> = rows
        .iter()
        .map(|(stack, pid, count)| (*stack, *pid, vec![*count, count * 10]))
        .collect();
    vec![(
        ProfileType::Cpu,
        profile_of(ProfileType::Cpu.sample_types(), &rows),
    )]
}

/// Samples by stack and process.
fn said(profile: &Profile) -> BTreeMap<(String, i64), i64> {
    let mut said = BTreeMap::new();
    for sample in &profile.samples {
        let frames = profile.frames(sample.stack);
        let names: Vec<String> = frames
            .map(|frame| format!("{}:{} {}", frame.name, frame.line, frame.filename))
            .collect();
        let thread = profile.thread(sample.labels);
        assert_eq!(thread.tid, thread.pid + 1);
        assert_eq!(thread.thread_name, "Поток \"1\"");
        assert_eq!(thread.comm, format!("app{}", thread.pid));
        assert_eq!(
            profile.label(sample.labels, label::CONTAINER_NAME),
            Some("web")
        );
        assert_eq!(sample.values[1], sample.values[0] * 10);
        *said.entry((names.join(";"), thread.pid)).or_default() += sample.values[0];
    }
    said
}

#[test]
fn windows_become_one_profile() {
    let bench = Bench::new(Duration::from_hours(24), 64 << 20);
    let mut writer = bench.writer();
    let first: &[Row<'_>] = &[(&["leaf", "main"], 1, 3), (&["main"], 1, 4), (&[], 2, 5)];
    let second: &[Row<'_>] = &[
        (&["leaf", "main"], 1, 10),
        (&["leaf", "leaf", "main"], 2, 1),
    ];
    for rows in [first, second] {
        writer.commit(&bench.window(cpu(rows))).unwrap();
    }
    let profile = bench.read(&of_all(EVER)).unwrap();
    let main = "main:4 /srv/app.py";
    let leaf = "leaf:4 /srv/app.py";
    let expected = BTreeMap::from([
        ((format!("{leaf};{main}"), 1), 13),
        ((main.to_owned(), 1), 4),
        ((String::new(), 2), 5),
        ((format!("{leaf};{leaf};{main}"), 2), 1),
    ]);
    assert_eq!(said(&profile), expected);
    assert_eq!(profile.duration, Duration::from_secs(20));
    assert_eq!(clock::unix_ns(profile.start), BEGAN_NS);
    assert_eq!(profile.period, 10_101_010);
    assert_eq!(profile.comments, ["lost_full: 4 (Samples lost)"]);
    let pids: Vec<_> = profile.processes.iter().map(|it| it.pid).collect();
    assert_eq!(pids.len(), 2);
}

/// A window's profile of one thread with the id 8.
fn of_thread(started_ns: u64, name: &str) -> Vec<(ProfileType, Profile)> {
    let mut aggregator = Aggregator::new(UNIX_EPOCH, ProfileType::Cpu.sample_types(), 1);
    let process = ProcessLabels {
        comm: "python3".into(),
        ..ProcessLabels::of_pid(7)
    };
    aggregator.add(&ResolvedSample {
        frames: Vec::new(),
        labels: Arc::new(ThreadLabels {
            process: Arc::new(process),
            tid: 8,
            started_ns,
            thread_name: name.into(),
        }),
        instruction: None,
        values: [1, 10].into(),
    });
    let profile = aggregator.finish(Duration::from_secs(10), Vec::new());
    vec![(ProfileType::Cpu, profile)]
}

#[test]
fn a_thread_has_one_name_in_all_windows_and_none_of_who_had_its_id() {
    let bench = Bench::new(Duration::from_hours(24), 64 << 20);
    let mut writer = bench.writer();
    for (started_ns, name) in [
        (100, "python3"),
        (100, "first"),
        (100, "second"),
        (100, "python3"),
        (u64::MAX, "python3"),
        (0, "unknown"),
    ] {
        let window = bench.window(of_thread(started_ns, name));
        writer.commit(&window).unwrap();
    }
    let profile = bench.read(&of_all(EVER)).unwrap();
    let mut said: Vec<_> = profile
        .samples
        .iter()
        .map(|sample| {
            // When the thread began is no label.
            let names = profile
                .labels(sample.labels)
                .map(|(name, _)| profile.str(name));
            let names: Vec<&str> = names.collect();
            assert_eq!(
                names,
                ["pid", "comm", "python_version", "tid", "thread_name"]
            );
            (profile.thread(sample.labels).thread_name, sample.values[0])
        })
        .collect();
    said.sort_unstable();
    assert_eq!(said, [("python3", 1), ("second", 4), ("unknown", 1)]);
}

#[test]
fn processes_are_chosen_as_live_ones_are() {
    let bench = Bench::new(Duration::from_hours(24), 64 << 20);
    let rows: &[Row<'_>] = &[(&["a"], 1, 3), (&["b"], 2, 4)];
    bench.writer().commit(&bench.window(cpu(rows))).unwrap();
    let mut by_cmdline = ProcessFilter::default();
    by_cmdline
        .include
        .cmdline
        .push(parse_pattern("app2").unwrap());
    let mut by_container = ProcessFilter::default();
    by_container.exclude.containers.push("web".parse().unwrap());
    let read = |filter| {
        bench.read(&RecordedRequest {
            filter,
            ..of_all(EVER)
        })
    };
    assert_eq!(read(ProcessFilter::pid(1)).unwrap().n_samples(), 3);
    assert_eq!(read(by_cmdline).unwrap().n_samples(), 4);
    assert!(matches!(read(by_container), Err(ReadError::NoMatch)));
    assert!(matches!(
        read(ProcessFilter::pid(3)),
        Err(ReadError::NoMatch)
    ));
    let faults = RecordedRequest {
        profile_type: ProfileType::Faults,
        ..of_all(EVER)
    };
    let error = bench.read(&faults).unwrap_err().to_string();
    assert!(error.ends_with("the recorder has no faults yet"), "{error}");
}

#[test]
fn what_is_in_use_is_that_of_the_last_window_of_each_process() {
    let bench = Bench::new(Duration::from_hours(24), 64 << 20);
    let mut writer = bench.writer();
    // alloc_objects, alloc_space, inuse_objects, inuse_space, peak_space, temporary_space.
    let windows: [&[AllocationRow<'_>]; 3] = [
        &[
            (&["a"], 1, vec![5, 50, 4, 40, 45, 10]),
            (&["b"], 2, vec![7, 70, 6, 60, 65, 0]),
        ],
        &[(&["a"], 1, vec![1, 10, 5, 50, 55, 3])],
        &[(&["c"], 1, vec![0, 0, 2, 20, 22, 0])],
    ];
    for rows in windows {
        let profile = profile_of(ProfileType::Alloc.sample_types(), rows);
        let window = bench.window(vec![(ProfileType::Alloc, profile)]);
        writer.commit(&window).unwrap();
    }
    let request = RecordedRequest {
        profile_type: ProfileType::Alloc,
        ..of_all(EVER)
    };
    let profile = bench.read(&request).unwrap();
    let mut values: Vec<(&str, Vec<i64>)> = profile
        .samples
        .iter()
        .map(|sample| {
            let leaf = profile.frames(sample.stack).next().unwrap();
            (leaf.name, sample.values.of(profile.sample_types).to_vec())
        })
        .collect();
    values.sort_unstable();
    assert_eq!(
        values,
        [
            ("a", vec![6, 60, 0, 0, 0, 13]),
            ("b", vec![7, 70, 6, 60, 65, 0]),
            ("c", vec![0, 0, 2, 20, 22, 0]),
        ]
    );
}

#[test]
fn a_window_is_in_one_of_two_ranges_that_touch() {
    let bench = Bench::new(Duration::from_hours(24), 64 << 20);
    let mut writer = bench.writer();
    for count in 1..=6 {
        let window = bench.window(cpu(&[(&["a"], 1, count)]));
        writer.commit(&window).unwrap();
    }
    let n_samples = |from_ns, to_ns| {
        bench
            .between(BEGAN_NS + from_ns, BEGAN_NS + to_ns)
            .map_or(0, |profile| profile.n_samples())
    };
    let end = 6 * WINDOW_NS;
    for cut in (0..=end).step_by(SECOND_NS as usize) {
        assert_eq!(n_samples(0, cut) + n_samples(cut, end), 21, "{cut}");
    }
    assert_eq!(n_samples(2 * WINDOW_NS, 4 * WINDOW_NS), 3 + 4);
    let last = of_all(TimeRange::Last(Duration::from_secs(25)));
    assert_eq!(bench.read(&last).unwrap().n_samples(), 4 + 5 + 6);
    assert!(matches!(
        bench.between(0, BEGAN_NS),
        Err(ReadError::Nothing(_))
    ));
}

/// The windows that the views show, by their begin.
fn starts(bench: &Bench) -> Vec<(i64, i64)> {
    let db = Connection::open(bench.database()).unwrap();
    let sql = "SELECT start_unix_ns, end_unix_ns FROM v1_windows ORDER BY window";
    let mut statement = db.prepare(sql).unwrap();
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn a_clock_that_is_set_loses_nothing_and_nothing_overlaps() {
    for step in [HOUR_NS, -HOUR_NS, 7 * SECOND_NS, -7 * SECOND_NS] {
        let bench = Bench::new(Duration::from_hours(24), 64 << 20);
        let mut writer = bench.writer();
        for round in 0..12 {
            if round == 4 || round == 8 {
                bench.step(if round == 4 { step } else { -step });
            }
            let window = bench.window(cpu(&[(&["a"], 1, 1)]));
            writer.commit(&window).unwrap();
            let starts = starts(&bench);
            assert_eq!(starts.len(), round + 1);
            assert!(
                starts.windows(2).all(|pair| pair[0].1 == pair[1].0),
                "{step}: {starts:?}"
            );
            // By the clock as it is now, all of it was in the time until now.
            let length = (round as i64 + 1) * WINDOW_NS;
            let now = bench.now_ns();
            assert_eq!(
                bench.between(now - length, now).unwrap().n_samples(),
                round as i64 + 1,
                "{step} {round}"
            );
            let last = of_all(TimeRange::Last(Duration::from_nanos(
                length.cast_unsigned(),
            )));
            assert_eq!(bench.read(&last).unwrap().n_samples(), round as i64 + 1);
        }
        // Set after the last window, and not written since.
        bench.step(step);
        let now = bench.now_ns();
        assert_eq!(
            bench
                .between(now - 12 * WINDOW_NS, now)
                .unwrap()
                .n_samples(),
            12
        );
        assert!(
            bench
                .between(now - 13 * WINDOW_NS, now - 12 * WINDOW_NS)
                .is_err()
        );
    }
}

#[test]
fn a_suspended_host_makes_one_long_window() {
    let bench = Bench::new(Duration::from_hours(24), 64 << 20);
    let mut writer = bench.writer();
    writer
        .commit(&bench.window(cpu(&[(&["a"], 1, 1)])))
        .unwrap();
    let mut window = bench.window(cpu(&[(&["a"], 1, 2)]));
    bench.times.boot_ns.fetch_add(HOUR_NS, Ordering::Relaxed);
    window.end_ns += HOUR_NS.cast_unsigned();
    writer.commit(&window).unwrap();
    writer
        .commit(&bench.window(cpu(&[(&["a"], 1, 4)])))
        .unwrap();
    let profile = bench.read(&of_all(EVER)).unwrap();
    assert_eq!(profile.n_samples(), 7);
    assert_eq!(profile.duration, Duration::from_secs(3630));
    let starts = starts(&bench);
    assert!(starts.windows(2).all(|pair| pair[0].1 == pair[1].0));
}

#[test]
fn the_boot_before_keeps_its_time_and_a_gap_is_told() {
    let mut bench = Bench::new(Duration::from_hours(24), 64 << 20);
    bench
        .writer()
        .commit(&bench.window(cpu(&[(&["a"], 1, 1)])))
        .unwrap();
    // The host was off for a minute.
    let began_ns = BEGAN_NS + 70 * SECOND_NS;
    bench.times.boot_ns.store(0, Ordering::Relaxed);
    bench.clock = clock("second", began_ns, &bench.times);
    bench
        .writer()
        .commit(&bench.window(cpu(&[(&["a"], 1, 2)])))
        .unwrap();
    let profile = bench.read(&of_all(EVER)).unwrap();
    assert_eq!(profile.n_samples(), 3);
    assert_eq!(profile.duration, Duration::from_secs(80));
    assert_eq!(
        profile.comments.last().unwrap(),
        "not recorded: 60 s of 80 s, when no agent ran or windows could not be kept"
    );
    let of_first = bench.between(BEGAN_NS, BEGAN_NS + WINDOW_NS).unwrap();
    assert_eq!(of_first.n_samples(), 1);
    // The same pid after a reboot is another process.
    assert_eq!(profile.processes.len(), 1, "{:?}", profile.processes);
    let db = Connection::open(bench.database()).unwrap();
    let n: i64 = db
        .query_row("SELECT count(*) FROM v1_processes", [], |row| row.get(0))
        .unwrap();
    assert_eq!(n, 2);
}

/// Writes a window as the recorder does; how many older ones went.
fn commit(writer: &mut Writer, window: &ClosedWindow) -> u64 {
    let n_removed = writer.commit(window).unwrap();
    writer.settle().unwrap();
    n_removed
}

/// A window in which everything is new, of about so many functions.
fn new_code(bench: &Bench, round: usize, n_functions: usize) -> ClosedWindow {
    let names: Vec<String> = (0..n_functions)
        .map(|idx| format!("function_{round}_{idx}_{}", "x".repeat(60)))
        .collect();
    let stacks: Vec<[&str; 3]> = names
        .iter()
        .map(|name| [name.as_str(), "handle", "main"])
        .collect();
    let rows: Vec<Row<'_>> = stacks
        .iter()
        .zip(1..)
        .map(|(stack, number)| (stack.as_slice(), 1 + number % 5, 1))
        .collect();
    bench.window(cpu(&rows))
}

#[test]
fn the_oldest_goes_first_and_the_files_stay_within_their_bound() {
    let bench = Bench::new(Duration::from_hours(24), MIN_KEEP_BYTES);
    let mut writer = bench.writer();
    let mut n_removed = 0;
    for round in 0..400 {
        n_removed += commit(&mut writer, &new_code(&bench, round, 100));
        while writer.tidy().unwrap().is_some() {}
        let n_bytes = folder::n_bytes(&bench.database());
        assert!(n_bytes <= MIN_KEEP_BYTES, "{round}: {n_bytes}");
    }
    let starts = starts(&bench);
    assert_eq!(starts.len() as u64 + n_removed, 400);
    assert!(n_removed > 0 && starts.len() > 20, "{}", starts.len());
    assert_eq!(starts.last().unwrap().1, bench.now_ns());
    assert!(starts.windows(2).all(|pair| pair[0].1 == pair[1].0));
    // What is kept has all its names.
    let profile = bench.read(&of_all(EVER)).unwrap();
    assert_eq!(profile.n_samples(), starts.len() as i64 * 100);
    let names = profile.functions.iter().map(|it| profile.str(it.name));
    let is_known = |name: &str| name.starts_with("function_") || ["handle", "main"].contains(&name);
    assert!(names.into_iter().all(is_known));
}

#[test]
fn what_is_old_goes_with_the_rows_that_it_needed() {
    let bench = Bench::new(
        Duration::from_nanos(20 * WINDOW_NS.cast_unsigned()),
        64 << 20,
    );
    let mut writer = bench.writer();
    for round in 0..500 {
        commit(&mut writer, &new_code(&bench, round, 3));
        while writer.tidy().unwrap().is_some() {}
        let starts = starts(&bench);
        assert!(starts.len() <= 21, "{}", starts.len());
        let profile = bench.read(&of_all(EVER)).unwrap();
        assert_eq!(profile.n_samples(), starts.len() as i64 * 3);
        let reasons = profile.functions.iter();
        let reasons = reasons.filter(|it| profile.str(it.name).starts_with('['));
        assert_eq!(reasons.count(), 0);
    }
    let db = Connection::open(bench.database()).unwrap();
    let count = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        db.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    // 1,500 were written; those of 20 windows are needed, and some more may stay for a while.
    assert!(count("function") < 1000, "{}", count("function"));
    assert!(count("string") < 1500, "{}", count("string"));
    assert_eq!(count("part"), count("window") * 3);
}

#[test]
fn less_room_than_before_is_made_by_and_by() {
    let mut bench = Bench::new(Duration::from_hours(24), 64 << 20);
    let mut writer = bench.writer();
    for round in 0..300 {
        commit(&mut writer, &new_code(&bench, round, 300));
    }
    assert!(folder::n_bytes(&bench.database()) > 2 * MIN_KEEP_BYTES);
    drop(writer);
    bench.limits.keep_bytes = MIN_KEEP_BYTES;
    let mut writer = bench.writer();
    while writer.tidy().unwrap().is_some() {}
    commit(&mut writer, &new_code(&bench, 300, 300));
    while writer.tidy().unwrap().is_some() {}
    let n_bytes = folder::n_bytes(&bench.database());
    assert!(n_bytes <= MIN_KEEP_BYTES, "{n_bytes}");
    assert_eq!(starts(&bench).last().unwrap().1, bench.now_ns());
}

#[test]
fn a_reader_that_stays_costs_windows_and_not_the_bound() {
    let bench = Bench::new(Duration::from_hours(24), MIN_KEEP_BYTES);
    let mut writer = bench.writer();
    commit(&mut writer, &new_code(&bench, 0, 300));
    let reader = Connection::open(bench.database()).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let count = "SELECT count(*) FROM v1_windows";
    let n: i64 = reader.query_row(count, [], |row| row.get(0)).unwrap();
    assert_eq!(n, 1);
    let mut is_held = false;
    for round in 1..40 {
        match writer.commit(&new_code(&bench, round, 300)) {
            Ok(_) => writer.settle().unwrap(),
            Err(WriteError::LogHeld) => is_held = true,
            Err(error) => panic!("{error}"),
        }
        let n_bytes = folder::n_bytes(&bench.database());
        assert!(n_bytes <= MIN_KEEP_BYTES, "{round}: {n_bytes}");
        if is_held {
            break;
        }
    }
    assert!(is_held);
    reader.execute_batch("COMMIT").unwrap();
    commit(&mut writer, &new_code(&bench, 40, 300));
}

/// A recorder over a folder, with the windows that it is to write.
fn running(folder: &Path) -> (Recorder, SyncSender<Message>) {
    let (windows, receiver) = sync_channel(8);
    let config = RecorderConfig {
        folder: folder.to_owned(),
        keep: Duration::from_hours(1),
        keep_bytes: MIN_KEEP_BYTES,
    };
    (Recorder::start(config, receiver).unwrap(), windows)
}

/// A window of the last ten seconds.
fn window_now(count: i64) -> Message {
    let end = Clock::system().boot_ns();
    Message::Window(Arc::new(ClosedWindow {
        start_ns: (end - WINDOW_NS).max(0).cast_unsigned(),
        end_ns: end.cast_unsigned(),
        profiles: cpu(&[(&["a"], 1, count)]),
    }))
}

#[test]
fn a_target_gets_each_window_in_order_also_after_a_restart() {
    let scratch = tempfile::tempdir().unwrap();
    let next = |reader: &Reader, seq| {
        let window = reader.after(seq).unwrap().unwrap();
        (window.seq, window.profile.n_samples(), window.n_missed)
    };
    let (recorder, messages) = running(scratch.path());
    let reader = recorder.reader();
    messages.send(window_now(1)).unwrap();
    while reader.status().n_recorded == 0 {
        std::thread::yield_now();
    }
    // It begins with this recorder.
    let first = reader.acknowledged("a").unwrap().unwrap();
    assert_eq!(next(&reader, first), (first + 1, 1, 0));
    let begin = first + 1;
    for count in [2, 3, 4] {
        messages.send(window_now(count)).unwrap();
    }
    messages
        .send(Message::Acknowledge {
            target: "a".to_owned(),
            seq: begin + 1,
        })
        .unwrap();
    drop(messages);
    recorder.join();
    assert_eq!(next(&reader, begin), (begin + 1, 2, 0));

    let (recorder, messages) = running(scratch.path());
    drop(messages);
    recorder.join();
    let acknowledged = reader.acknowledged("a").unwrap().unwrap();
    assert_eq!(acknowledged, begin + 1);
    // What was there before this recorder is not for one that is new.
    let (recorder, messages) = running(scratch.path());
    let reader_now = recorder.reader();
    drop(messages);
    recorder.join();
    assert_eq!(reader_now.acknowledged("b").unwrap(), Some(begin + 3));
    assert_eq!(next(&reader, acknowledged), (begin + 2, 3, 0));
    assert_eq!(next(&reader, begin + 2), (begin + 3, 4, 0));
    // Those in between have gone.
    let db = Connection::open(scratch.path().join("pyagent.db")).unwrap();
    db.execute("DELETE FROM window WHERE seq = ?1", [begin + 2])
        .unwrap();
    assert_eq!(next(&reader, acknowledged), (begin + 3, 4, 1));
}

fn n_samples(reader: &Reader) -> i64 {
    let read = reader.read(&of_all(EVER), &|| false);
    read.map_or(0, |profile| profile.n_samples())
}

#[test]
fn what_was_written_before_is_read_after_a_restart() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("data");
    for round in 1..=3 {
        let (recorder, windows) = running(&folder);
        let reader = recorder.reader();
        windows.send(window_now(1)).unwrap();
        drop(windows);
        recorder.join();
        assert_eq!(n_samples(&reader), round);
        let status = reader.status();
        assert_eq!((status.n_recorded, status.n_dropped), (1, 0));
        assert_eq!(status.problem, None);
        assert!(status.oldest.is_some());
    }
    for name in ["pyagent.db", "pyagent.lock"] {
        let mode = std::fs::metadata(folder.join(name)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_database_that_cannot_be_used_is_put_aside() {
    let newer = |path: &Path| {
        let db = schema::open(path).unwrap();
        db.pragma_update(None, "user_version", schema::VERSION as i64 + 1)
            .unwrap();
    };
    let garbage = |path: &Path| std::fs::write(path, vec![7; 50_000]).unwrap();
    let makers: [&dyn Fn(&Path); 2] = [&newer, &garbage];
    for make in makers {
        let scratch = tempfile::tempdir().unwrap();
        make(&scratch.path().join("pyagent.db"));
        let (recorder, windows) = running(scratch.path());
        let reader = recorder.reader();
        windows.send(window_now(5)).unwrap();
        drop(windows);
        recorder.join();
        assert_eq!(n_samples(&reader), 5);
        assert!(scratch.path().join("pyagent.db.bak").exists());
    }
}

#[test]
fn a_database_that_is_damaged_or_removed_while_it_is_used_is_begun_anew() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("pyagent.db");
    let (recorder, windows) = running(scratch.path());
    let reader = recorder.reader();
    let record = |count| {
        let before = reader.status().n_recorded;
        windows.send(window_now(count)).unwrap();
        while reader.status().n_recorded == before {
            std::thread::yield_now();
        }
    };
    record(1);
    let length = std::fs::metadata(&path).unwrap().len();
    let garbage = vec![0xa5; length as usize];
    // Who writes has its pages in memory, and may just be writing them; who reads sees it, and says so.
    while n_samples(&reader) != 0 {
        let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, &garbage).unwrap();
    }
    record(2);
    assert_eq!(n_samples(&reader), 2);
    assert!(scratch.path().join("pyagent.db.bak").exists());
    std::fs::remove_file(&path).unwrap();
    record(3);
    assert_eq!(n_samples(&reader), 3);
    drop(windows);
    recorder.join();
    assert_eq!(reader.status().n_dropped, 0);
}
