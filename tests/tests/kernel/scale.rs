//! Many of everything: processes, interpreter binaries, threads, starts in a second, and more processes than the
//! kernel's table holds. Root, one test at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use profiler_agent::bpf::inventory;
use profiler_agent::generated::perftools::profiles::{Label, Profile};
use profiler_agent::ids::Pid;
use profiler_agent::serve::query::Status;
use prost::Message as _;
use pyagent_tests::compiler::workload;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::pyagent::Pyagent;
use pyagent_tests::recorder::{Recorder, of_cmdline, samples};
use pyagent_tests::target::Target;
use tempfile::TempDir;

/// In the command line of everything that a test starts.
const MARKER: &str = "pyagent-scale";

/// Samples a second and CPU; in step with nothing.
const RATE_HZ: u32 = 997;

const PERIOD_MICROS: f64 = 1e6 / RATE_HZ as f64;

fn own_pid() -> Pid {
    Pid(std::process::id())
}

/// The interpreter of the host whose runtime lies in the smallest file: many copies of it fit.
fn smallest() -> Interpreter {
    let of_host = interpreters::supported()
        .into_iter()
        .filter(|python| !python.has_own_root() && !python.is_debug())
        .filter(|python| !python.free_threaded && python.has_libraries());
    of_host
        .min_by_key(|python| fs::metadata(runtime_file(python)).unwrap().len())
        .expect("a CPython of the host")
}

/// The file that holds the interpreter: its executable or its shared library.
fn runtime_file(python: &Interpreter) -> PathBuf {
    let (major, minor) = python.minor();
    let folder = python.stdlib.parent().unwrap();
    let library = folder.join(format!("libpython{major}.{minor}.so.1.0"));
    // Debian's executables are static, and its library lies elsewhere.
    if library.exists() && python.path.starts_with(folder.parent().unwrap()) {
        library
    } else {
        python.path.clone()
    }
}

/// Copies of an interpreter, each a binary of its own.
fn copies(python: &Interpreter, n: usize, folder: &Path) -> Vec<Command> {
    let runtime = runtime_file(python);
    let home = python.stdlib.ancestors().nth(2).unwrap();
    let copy = |idx: usize| {
        let folder = folder.join(idx.to_string());
        fs::create_dir(&folder).unwrap();
        let program = folder.join("python3");
        fs::copy(&python.path, &program).unwrap();
        if runtime != python.path {
            fs::copy(&runtime, folder.join(runtime.file_name().unwrap())).unwrap();
        }
        let mut command = Command::new(program);
        command
            .env("PYTHONHOME", home)
            .env("LD_LIBRARY_PATH", &folder)
            .args(["-S", "-B"]);
        command
    };
    (0..n).map(copy).collect()
}

/// The binary under test at work on everything that carries the marker. A process of its own: its memory is
/// measured, and the tests' own build would be too slow for so many.
struct Recording {
    agent: Pyagent,
    output: TempDir,
}

/// What it recorded.
struct Recorded {
    /// CPU time in microseconds by process.
    micros: HashMap<i64, f64>,
    /// What was lost, in its words.
    comments: Vec<String>,
}

impl Recording {
    /// Starts; every process that is there was looked at.
    fn start() -> Self {
        let output = tempfile::tempdir().unwrap();
        let path = output.path().join("out.pb.gz");
        let rate = RATE_HZ.to_string();
        // The default is made for hosts whose CPUs leave some time for the agent; here they do not.
        let ring = ["--ring-bytes", "32MiB"];
        let arguments = [
            "record",
            "--cmdline",
            MARKER,
            "--rate",
            &rate,
            ring[0],
            ring[1],
            "-o",
        ];
        let arguments = [&arguments[..], &[path.to_str().unwrap()]].concat();
        let agent = Pyagent::start(&arguments, "recording");
        Self { agent, output }
    }

    fn pid(&self) -> Pid {
        self.agent.pid()
    }

    /// Resident memory in KiB, without that of the ring buffer, whose pages count when they were read.
    fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.unwrap().parse().unwrap()
    }

    /// The processes in the kernel's table.
    fn in_table(&self) -> HashSet<Pid> {
        let pids = inventory::profiled_pids(self.pid()).unwrap();
        pids.into_iter().collect()
    }

    fn wait_until(&self, what: &str, is_so: impl Fn(&HashSet<Pid>) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while !is_so(&self.in_table()) {
            assert!(Instant::now() < deadline, "not within a minute: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(mut self) -> Recorded {
        let pid = nix::unistd::Pid::from_raw(self.pid().0.cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let (errors, is_success) = self.agent.finish();
        assert!(is_success, "{errors}");
        let mut bytes = Vec::new();
        let file = fs::File::open(self.output.path().join("out.pb.gz")).unwrap();
        flate2::read::GzDecoder::new(file)
            .read_to_end(&mut bytes)
            .unwrap();
        let profile = Profile::decode(&*bytes).unwrap();
        let text = |idx: i64| profile.string_table[idx as usize].clone();
        let mut micros = HashMap::new();
        for sample in &profile.sample {
            let is_pid = |label: &&Label| text(label.key) == "pid";
            let pid = sample
                .label
                .iter()
                .find(is_pid)
                .expect("every sample has one");
            *micros.entry(pid.num).or_default() += sample.value[1] as f64 / 1e3;
        }
        let comments = profile.comment.iter().map(|idx| text(*idx)).collect();
        Recorded { micros, comments }
    }
}

impl Recorded {
    /// Comments on samples and events that found no room on their way to the agent.
    fn lost(&self) -> Vec<&String> {
        let names = ["fork_lost", "exec_lost", "lifecycle_lost", "lost_full"];
        let is_lost = |comment: &&String| names.iter().any(|name| comment.starts_with(name));
        self.comments.iter().filter(is_lost).collect()
    }
}

/// All processes of `n_binaries` families; each is started and has forked.
fn families(commands: Vec<Command>, n_children: usize, micros: u32) -> Vec<Target> {
    let mut families: Vec<Target> = commands
        .into_iter()
        .map(|mut command| {
            command.arg(workload("scale.py")).arg(MARKER);
            Target::start(command.arg(n_children.to_string()).arg(micros.to_string()))
        })
        .collect();
    for family in &mut families {
        assert_eq!(family.line(), "ready");
    }
    families
}

/// Lets all of them work, some at a time; the CPU time in microseconds of each child, as the kernel says.
fn work(families: &mut [Target]) -> BTreeMap<i64, f64> {
    const N_AT_ONCE: usize = 10;
    let mut used = BTreeMap::new();
    for families in families.chunks_mut(N_AT_ONCE) {
        for family in &mut *families {
            family.tell("go");
        }
        for family in families {
            let lines = std::iter::from_fn(|| Some(family.line()).filter(|line| line != "end"));
            for line in lines {
                let (pid, micros) = line.split_once(' ').unwrap();
                used.insert(pid.parse().unwrap(), micros.parse().unwrap());
            }
        }
    }
    used
}

#[test]
fn five_thousand_processes_of_a_hundred_binaries_are_all_profiled() {
    const N_BINARIES: usize = 100;
    const N_CHILDREN: usize = 49;
    const MICROS: u32 = 5_000;
    let folder = tempfile::tempdir().unwrap();
    let python = smallest();
    let commands = copies(&python, N_BINARIES, folder.path());
    let mut all = families(commands, N_CHILDREN, MICROS);
    let begun = Instant::now();
    let recording = Recording::start();
    let n_all = N_BINARIES * (N_CHILDREN + 1);
    recording.wait_until("all are in the table", |pids| pids.len() == n_all);
    let until_found = begun.elapsed();
    let resident_before = recording.resident_kib();
    let used = work(&mut all);
    assert_eq!(used.len(), N_BINARIES * N_CHILDREN);
    let resident_full = recording.resident_kib();
    for family in &mut all {
        assert!(family.finish().success());
    }
    recording.wait_until("what has ended is not in the table", HashSet::is_empty);
    // As many again: what the first needed is used again.
    let commands = (0..10).map(|idx| {
        let mut command = Command::new(folder.path().join(format!("{idx}/python3")));
        command.env("PYTHONHOME", python.stdlib.ancestors().nth(2).unwrap());
        command.env("LD_LIBRARY_PATH", folder.path().join(idx.to_string()));
        command
    });
    let mut more = families(commands.collect(), 10 * N_CHILDREN, 100);
    drop(work(&mut more));
    for family in &mut more {
        assert!(family.finish().success());
    }
    let resident_after = recording.resident_kib();
    let recorded = recording.stop();
    let sampled = &recorded.micros;
    let missed: Vec<_> = used
        .iter()
        .filter(|(pid, micros)| **micros > 2.0 * PERIOD_MICROS && !sampled.contains_key(pid))
        .collect();
    let (used_micros, sampled_of_used): (f64, f64) = (
        used.values().sum(),
        used.keys().filter_map(|pid| sampled.get(pid)).sum(),
    );
    eprintln!(
        "{n_all} processes found in {:.1} s; resident {resident_before} KiB before they work, {resident_full} KiB with \
         all, {resident_after} KiB after as many again; {} of {} without a sample; samples are {:.1} % of the CPU \
         time; {:?}",
        until_found.as_secs_f64(),
        missed.len(),
        used.len(),
        100.0 * sampled_of_used / used_micros,
        recorded.comments,
    );
    assert!(recorded.lost().is_empty(), "{:?}", recorded.lost());
    assert!(missed.is_empty(), "{missed:?}");
    // A recording keeps of each process what it has seen, until it is written.
    const MAX_KIB_A_PROCESS: u64 = 16;
    let n_more = 10 * (10 * N_CHILDREN + 1);
    let growth = |before: u64, after: u64| after.saturating_sub(before);
    assert!(growth(resident_before, resident_full) < n_all as u64 * MAX_KIB_A_PROCESS);
    assert!(growth(resident_full, resident_after) < n_more as u64 * MAX_KIB_A_PROCESS);
}

#[test]
fn five_hundred_threads_of_a_process_are_told_apart() {
    const N_THREADS: usize = 500;
    const CODE: &str = "
import sys, threading, time
n_threads = int(sys.argv[2])
def work():
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        for i in range(200):
            pass
def run(begin, ended):
    begin.wait()
    work()
    ended.release()
    threading.Event().wait()
begin, ended = threading.Event(), threading.Semaphore(0)
for i in range(n_threads):
    threading.Thread(target=run, args=(begin, ended), name='thread-%d' % i, daemon=True).start()
print('ready', flush=True)
sys.stdin.readline()
begin.set()
for i in range(n_threads):
    ended.acquire()
print('done', flush=True)
sys.stdin.read()
";
    let n_threads = N_THREADS.to_string();
    let mut target = Target::python(&interpreters::newest(), CODE, &[MARKER, &n_threads]);
    assert_eq!(target.line(), "ready");
    let recorder = Recorder::start(&of_cmdline(MARKER, RATE_HZ));
    target.tell("go");
    assert_eq!(target.line(), "done");
    let profile = recorder.stop();
    let mut names = HashSet::new();
    for (thread, frames, ..) in samples(&profile) {
        let is_at_work = frames.iter().any(|frame| frame.name == "work");
        if is_at_work {
            names.insert((thread.tid, thread.thread_name.to_owned()));
        }
    }
    let expected: HashSet<String> = (0..N_THREADS).map(|idx| format!("thread-{idx}")).collect();
    let found: HashSet<String> = names.iter().map(|(_, name)| name.clone()).collect();
    assert_eq!(names.len(), N_THREADS, "a thread has one name");
    assert_eq!(found, expected);
}

#[test]
fn two_hundred_starts_a_second_for_a_minute_miss_nothing_and_leave_nothing() {
    const STARTS_A_SECOND: u32 = 200;
    const SECONDS: u32 = 60;
    const MICROS: u32 = 3_000;
    let arguments = [STARTS_A_SECOND, SECONDS, MICROS].map(|number| number.to_string());
    let mut command = Command::new(&interpreters::newest().path);
    command.args(["-I", "-S", "-B"]).arg(workload("starts.py"));
    let mut target = Target::start(command.arg(MARKER).args(arguments));
    assert_eq!(target.line(), "ready");
    let recording = Recording::start();
    let resident_before = recording.resident_kib();
    target.tell("go");
    let line = target.line();
    let numbers: Vec<f64> = line
        .split(' ')
        .map(|number| number.parse().unwrap())
        .collect();
    let [n_started, used_micros, elapsed_micros] = numbers[..] else {
        panic!("{line}")
    };
    recording.wait_until("only the parent is in the table", |pids| {
        *pids == [target.pid()].into()
    });
    let resident_after = recording.resident_kib();
    let mut recorded = recording.stop();
    recorded.micros.remove(&i64::from(target.pid().0));
    let sampled_of_children: f64 = recorded.micros.values().sum();
    eprintln!(
        "{n_started} starts in {:.1} s; {} have samples, which are {:.1} % of their CPU time; resident \
         {resident_before} KiB before, {resident_after} KiB after; {:?}",
        elapsed_micros / 1e6,
        recorded.micros.len(),
        100.0 * sampled_of_children / used_micros,
        recorded.comments
    );
    assert_eq!(n_started, f64::from(STARTS_A_SECOND * SECONDS));
    assert!(recorded.lost().is_empty(), "{:?}", recorded.lost());
    // Three periods each; the kernel takes a process down behind its last sample.
    assert!(recorded.micros.len() as f64 > 0.97 * n_started);
    assert!(resident_after.saturating_sub(resident_before) < 32 << 10);
}

#[test]
fn a_table_that_is_full_is_told_and_what_leaves_makes_room() {
    const N_PROCESSES: usize = 12;
    const ROOM: u32 = 8;
    const CODE: &str = "import sys; print('ready', flush=True); sys.stdin.read()";
    let python = interpreters::newest();
    let mut targets: Vec<Target> = (0..N_PROCESSES)
        .map(|_| Target::python(&python, CODE, &[MARKER]))
        .collect();
    for target in &mut targets {
        assert_eq!(target.line(), "ready");
    }
    let mut config = of_cmdline(MARKER, RATE_HZ);
    config.max_processes = ROOM;
    let recorder = Recorder::start(&config);
    let not_tracked = |status: &Status| {
        let row = status
            .not_profiled
            .iter()
            .find(|(name, _)| *name == "not_tracked");
        row.expect("it is in the list").1
    };
    recorder.wait_until("those that have no room are counted", |status| {
        not_tracked(status) == N_PROCESSES as u32 - ROOM
    });
    assert_eq!(
        inventory::profiled_pids(own_pid()).unwrap().len(),
        ROOM as usize
    );
    targets.truncate(6);
    recorder.wait_until("all that are left have room", |status| {
        not_tracked(status) == 0
    });
    let left: HashSet<Pid> = targets.iter().map(Target::pid).collect();
    recorder.wait_until("and are profiled", |_| {
        let in_map: HashSet<Pid> = inventory::profiled_pids(own_pid())
            .unwrap()
            .into_iter()
            .collect();
        in_map == left
    });
    drop(recorder.stop());
}
