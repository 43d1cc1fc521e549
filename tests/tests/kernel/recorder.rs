//! The recorder of a running agent: what it keeps is what was sampled, and it outlives what happens to agents.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use profiler_agent::generated::pyagent::v1 as proto;
use profiler_agent::generated::pyagent::v1::profile_service_client::ProfileServiceClient;
use profiler_agent::generated::pyagent::v1::watch_profiles_response::Part;
use pyagent_tests::faults::database::{self, windows};
use pyagent_tests::faults::disk::SmallDisk;
use pyagent_tests::faults::killed::killed;
use pyagent_tests::faults::scene::metric;
use pyagent_tests::interpreters;
use pyagent_tests::pyagent::{Pyagent, binary};
use pyagent_tests::target::Target;
use rusqlite::Connection;

/// Spins until its input closes or so many seconds of CPU time have passed, then says how much it has used.
const SPIN: &str = "
import sys, threading, time
def spin(seconds):
    while time.thread_time() < seconds:
        sum(range(1000))
print('ready', flush=True)
spin(float(sys.argv[1]))
print(time.process_time(), flush=True)
sys.stdin.read()
";

/// Windows of a second: a test sees several.
const WINDOW: [&str; 2] = ["--window", "1s"];

fn spinning(seconds: &str) -> Target {
    let mut target = Target::python(&interpreters::newest(), SPIN, &[seconds]);
    assert_eq!(target.line(), "ready");
    target
}

fn start(data: &Path, more: &[&str]) -> Pyagent {
    let data = data.display().to_string();
    let mut arguments = vec![
        "--all-python",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
    ];
    arguments.extend(WINDOW);
    arguments.extend(more);
    Pyagent::start(&arguments, "go tool pprof")
}

/// `pyagent pull` into standard output, as text.
fn pull(agent: &Pyagent, arguments: &[&str]) -> Output {
    Command::new(binary())
        .args(["pull", &agent.address(), "--format", "folded", "-o", "-"])
        .args(arguments)
        .output()
        .unwrap()
}

/// Samples of a folded profile.
fn n_samples(output: &Output) -> i64 {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let counts = text.lines().map(|line| line.rsplit_once(' ').unwrap().1);
    counts.map(|count| count.parse::<i64>().unwrap()).sum()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until this is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "never: {what}");
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_process_that_has_ended_is_pulled_from_the_past() {
    let scratch = tempfile::tempdir().unwrap();
    let agent = start(scratch.path(), &[]);
    let (mut short, long) = (spinning("2"), spinning("100"));
    let cpu_s: f64 = short.line().parse().unwrap();
    let pid = short.pid().to_string();
    short.finish();
    let last_before = windows(scratch.path()).len();
    until("two more windows", || {
        windows(scratch.path()).len() >= last_before + 2
    });

    let live = pull(&agent, &["--pid", &pid, "-d", "100ms"]);
    assert_eq!(live.status.code(), Some(4), "{}", errors(&live));
    let recorded = pull(&agent, &["--pid", &pid, "--last", "1m"]);
    let text = String::from_utf8_lossy(&recorded.stdout).into_owned();
    let n = n_samples(&recorded);
    // Two seconds at 99 Hz; what it did before it was known is not a Python stack, but a sample all the same.
    let expected = cpu_s * 99.0;
    assert!(
        (n as f64 - expected).abs() <= 5.0 + 3.0 * expected.sqrt(),
        "{n} samples of {cpu_s} s"
    );
    assert!(text.contains("spin ("), "{text}");

    let other = long.pid().to_string();
    let both = ["--last", "1m", "--pid", &pid, "--pid", &other];
    let one = pull(&agent, &[&both[..], &["--exclude-pid", &other]].concat());
    let both = pull(&agent, &both);
    assert_eq!(n_samples(&one), n);
    assert!(n_samples(&both) > 2 * n);
    let of_thread = |pattern: &str| {
        let label = format!("thread_name={pattern}");
        let asked = ["--last", "1m", "--pid", &pid, "--label", &label];
        n_samples(&pull(&agent, &asked))
    };
    // Before it has its name it has the kernel's.
    assert!(of_thread("^MainThread$") > n / 2);
    assert_eq!((of_thread("."), of_thread("^nobody$")), (n, 0));
    agent.stop();
}

#[test]
fn ranges_that_touch_have_each_window_once_and_a_wrong_one_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    let agent = start(scratch.path(), &[]);
    let _target = spinning("100");
    until("six windows", || windows(scratch.path()).len() >= 6);
    let windows: Vec<_> = windows(scratch.path()).into_iter().collect();
    for pair in windows.windows(2) {
        assert_eq!(pair[0].2, pair[1].1, "{windows:?}");
    }
    let time = |unix_ns: i64| {
        let script = "import datetime, sys
ns = int(sys.argv[1])
print(datetime.datetime.fromtimestamp(ns // 10**9, datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%S')
    + '.%09dZ' % (ns % 10**9))";
        let python = interpreters::newest();
        let output = Command::new(&python.path)
            .args(["-I", "-S", "-c", script, &unix_ns.to_string()])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    // The clock is adjusted all the time, and with it the stamps: by less than this.
    let slack_ns = 100_000_000;
    let [from, cut, to] = [
        windows[0].2 - slack_ns,
        windows[2].2 + slack_ns,
        windows[5].2 + slack_ns,
    ]
    .map(time);
    let between = |from: &str, to: &str| n_samples(&pull(&agent, &["--from", from, "--to", to]));
    let (first, second) = (between(&from, &cut), between(&cut, &to));
    assert!(first > 0 && second > 0);
    assert_eq!(first + second, between(&from, &to));

    let refused = pull(&agent, &["--from", &to, "--to", &from]);
    assert!(errors(&refused).contains("the time ends before it begins"));
    let refused = pull(&agent, &["--from", "yesterday"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(errors(&refused).contains("2026-03-01T12:00:00Z"));
    let refused = pull(&agent, &["--to", "2001-01-01T00:00:00Z"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(errors(&refused).contains("the recorder has cpu from 2"));
    let http = |query: &str| {
        let url = format!("http://{}/debug/pprof/profile?{query}", agent.address());
        let output = Command::new("curl")
            .args(["-sS", "-w", "%{http_code}", &url])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert!(http("last=1m&format=folded").contains("spin ("));
    assert!(http("last=1m&seconds=3").ends_with("400"));
    assert!(http("last=now").ends_with("400"));
    agent.stop();
}

#[test]
fn an_agent_that_is_killed_loses_the_open_window_only() {
    let n_times = 8;
    let scratch = tempfile::tempdir().unwrap();
    let _target = spinning("250");
    let kept = killed(scratch.path(), n_times, || start(scratch.path(), &[]));
    println!("{n_times} kills: {kept:?}");
    assert_eq!(kept.n_lost, 0);
    assert!(kept.n_windows >= n_times as usize / 2, "{kept:?}");
    // All of it is there for the next agent, and no two windows overlap.
    let agent = start(scratch.path(), &[]);
    assert!(n_samples(&pull(&agent, &["--last", "10m"])) > 0);
    let windows: Vec<_> = windows(scratch.path()).into_iter().collect();
    assert!(
        windows.windows(2).all(|pair| pair[0].2 <= pair[1].1),
        "{windows:?}"
    );
    agent.stop();
}

#[test]
fn the_last_window_is_kept_when_the_agent_ends() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().display().to_string();
    let arguments = [
        "--all-python",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
    ];
    let _target = spinning("100");
    let agent = Pyagent::start(&arguments, "go tool pprof");
    sleep(Duration::from_secs(2));
    assert_eq!(windows(scratch.path()).len(), 0, "windows of ten seconds");
    agent.stop();
    assert_eq!(windows(scratch.path()).len(), 1);
}

#[test]
fn a_second_agent_on_the_same_folder_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let agent = start(scratch.path(), &[]);
    let data = scratch.path().display().to_string();
    let output = Command::new(binary())
        .args([
            "--all-python",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            &data,
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = errors(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("is in use by another pyagent"), "{said}");
    assert!(said.contains(&format!("process {}", agent.pid())), "{said}");
    assert!(said.contains("--data-dir"), "{said}");
    agent.stop();
}

#[test]
fn a_full_disk_costs_windows_and_no_sampling() {
    let disk = SmallDisk::new("size=4m");
    let data = disk.path().join("data");
    let agent = start(&data, &[]);
    let _target = spinning("200");
    /// What is given up at once, so that the next one finds room.
    const GIVEN: u64 = 4;
    until("some windows", || {
        metric(&agent, "pyagent_windows_recorded_total") >= 2 * GIVEN
    });
    let ballast = disk.fill();
    let recorded = metric(&agent, "pyagent_windows_recorded_total");
    until("windows are lost", || {
        metric(&agent, "pyagent_windows_lost_total") >= 2
    });
    // Those that were written in between had the room of those that were given up.
    let written = metric(&agent, "pyagent_windows_recorded_total") - recorded;
    let given = metric(&agent, "pyagent_windows_removed_total");
    assert!(given <= GIVEN * (written + 1), "{given} for {written}");
    let samples = metric(&agent, "pyagent_samples_received_total");
    assert!(n_samples(&pull(&agent, &["-d", "1s"])) > 50);
    assert!(metric(&agent, "pyagent_samples_received_total") > samples);
    // What was there before can be read.
    assert!(n_samples(&pull(&agent, &["--last", "10m"])) > 0);

    fs::remove_file(&ballast).unwrap();
    let recorded = metric(&agent, "pyagent_windows_recorded_total");
    until("windows are recorded again", || {
        metric(&agent, "pyagent_windows_recorded_total") > recorded + 1
    });
    let said = agent.stop();
    assert_eq!(
        said.matches("windows are not recorded: ").count(),
        1,
        "{said}"
    );
    assert!(said.contains("the disk is full"), "{said}");
    assert_eq!(
        said.matches("windows are recorded again").count(),
        1,
        "{said}"
    );
    assert_eq!(database::integrity(&data), "ok");
}

#[test]
fn without_a_folder_to_write_to_the_agent_runs_and_says_so() {
    let disk = SmallDisk::new("size=1m,ro");
    let data = disk.path().join("data");
    let agent = start(&data, &[]);
    assert!(
        agent.greeting.contains("nothing is recorded: "),
        "{}",
        agent.greeting
    );
    let _target = spinning("100");
    until("samples", || {
        n_samples(&pull(&agent, &["-d", "500ms"])) > 10
    });
    let refused = pull(&agent, &["--last", "1m"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        errors(&refused).contains("has no recorder"),
        "{}",
        errors(&refused)
    );
    agent.stop();
}

#[test]
fn a_damaged_database_is_put_aside_with_one_warning() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(database::path(scratch.path()), vec![9; 10_000]).unwrap();
    let agent = start(scratch.path(), &[]);
    until("a window", || {
        metric(&agent, "pyagent_windows_recorded_total") >= 1
    });
    let said = format!("{}{}", agent.greeting.clone(), agent.stop());
    assert_eq!(said.matches("WARN").count(), 1, "{said}");
    assert!(said.contains("pyagent.db.bak"), "{said}");
    let aside = fs::read(scratch.path().join("pyagent.db.bak")).unwrap();
    assert_eq!(aside, vec![9; 10_000]);
}

#[test]
fn windows_that_are_watched_are_those_that_are_recorded() {
    let scratch = tempfile::tempdir().unwrap();
    let agent = start(scratch.path(), &[]);
    let (wanted, other) = (spinning("100"), spinning("100"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let profiles = runtime.block_on(async {
        let address = format!("http://{}", agent.address());
        let mut client = ProfileServiceClient::connect(address).await.unwrap();
        let refused = client.watch_profiles(proto::WatchProfilesRequest {
            types: vec!["nothing".to_owned()],
            ..Default::default()
        });
        assert_eq!(
            refused.await.unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
        let request = proto::WatchProfilesRequest {
            selector: Some(proto::ProcessSelector {
                pids: vec![wanted.pid().0],
                ..Default::default()
            }),
            types: vec!["cpu".to_owned()],
            format: "folded".to_owned(),
            ..Default::default()
        };
        let mut stream = client.watch_profiles(request).await.unwrap().into_inner();
        let mut profiles: Vec<(proto::WatchedProfile, Vec<u8>)> = Vec::new();
        let n_samples = |(head, _): &(proto::WatchedProfile, Vec<u8>)| {
            head.metadata.as_ref().unwrap().n_samples
        };
        while profiles.len() < 4 || profiles.iter().map(n_samples).sum::<i64>() <= 100 || {
            let (head, bytes) = profiles.last().unwrap();
            (bytes.len() as u64) < head.metadata.as_ref().unwrap().size_bytes
        } {
            match stream.message().await.unwrap().unwrap().part.unwrap() {
                Part::Profile(profile) => profiles.push((profile, Vec::new())),
                Part::Chunk(chunk) => profiles.last_mut().unwrap().1.extend(chunk),
            }
        }
        profiles
    });
    drop(other);
    let db = Connection::open(database::path(scratch.path())).unwrap();
    let mut n_compared = 0;
    for (profile, bytes) in &profiles {
        assert_eq!((&*profile.r#type, profile.n_missed_windows), ("cpu", 0));
        let metadata = profile.metadata.as_ref().unwrap();
        assert_eq!(metadata.size_bytes, bytes.len() as u64);
        let text = std::str::from_utf8(bytes).unwrap();
        let counts = text.lines().map(|line| line.rsplit_once(' ').unwrap().1);
        let n: i64 = counts.map(|count| count.parse::<i64>().unwrap()).sum();
        assert_eq!(n, metadata.n_samples);
        let start = metadata.start_time.as_ref().unwrap();
        let start_ns = start.seconds * 1_000_000_000 + i64::from(start.nanos);
        // The same window by its begin: the stamps differ by what the clock was adjusted by.
        let recorded = || -> Option<i64> {
            db.query_row(
                "SELECT sum(value) FROM v1_values JOIN v1_windows USING (window, type)
                 JOIN v1_processes USING (process)
                 WHERE type = 'cpu' AND pid = ?1 AND abs(start_unix_ns - ?2) < 300000000",
                rusqlite::params![wanted.pid().0, start_ns],
                |row| row.get(0),
            )
            .unwrap()
        };
        // It is told of when it closes, and written within moments.
        let begun = Instant::now();
        while recorded().is_none() && n > 0 && begun.elapsed() < Duration::from_secs(10) {
            sleep(Duration::from_millis(20));
        }
        let recorded = recorded();
        assert_eq!(recorded.unwrap_or(0), n, "{metadata:?}");
        n_compared += n;
    }
    assert!(n_compared > 100, "{n_compared}");
    agent.stop();
}
