//! The kernel programs on the kernel of this machine: they load, fire and report, follow processes through
//! fork, exec and exit, and leave nothing behind. Root, one test at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use profiler_agent::bpf::access::Access;
use profiler_agent::bpf::calibration::calibrate;
use profiler_agent::bpf::inventory;
use profiler_agent::bpf::load::{Programs, Settings};
use profiler_agent::config::DEFAULT_RING_BYTES;
use profiler_agent::ids::Pid;
use profiler_agent::kernel::btf::Btf;
use profiler_agent::kernel::offsets::Offsets;
use profiler_agent::profile::model::{Frame, FrameKind, Profile, ProfileType};
use profiler_common::process::DEFAULT_MAX_PROCESSES;
use pyagent_tests::compiler::{self, compile, workload};
use pyagent_tests::cpu_ticks::CpuTicks;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::pyagent::Pyagent;
use pyagent_tests::recorder::{Recorder, counter, of_cmdline, of_pids, samples};
use pyagent_tests::target::Target;

/// Runs until it is killed; recursion to the depth that it is given. Its functions are `spin` and `descend`.
const SPIN: &str = "
import sys
sys.setrecursionlimit(5000)
def spin():
    while True:
        for i in range(1000):
            pass
def descend(depth):
    if depth == 0:
        spin()
    descend(depth - 1)
print('ready', flush=True)
descend(int(sys.argv[1]))
";

/// Sleeps until its standard input closes.
const IDLE: &str = "
import sys
print('ready', flush=True)
sys.stdin.read()
";

/// Starts Python code and waits until it is ready.
fn start(python: &Interpreter, code: &str, arguments: &[&str]) -> Target {
    let mut target = Target::python(python, code, arguments);
    assert_eq!(target.line(), "ready", "{}", python.path.display());
    target
}

fn own_pid() -> Pid {
    Pid(std::process::id())
}

/// Names of the Python frames, root first.
fn python_names<'a>(frames: &[Frame<'a>]) -> Vec<&'a str> {
    frames
        .iter()
        .rev()
        .filter(|frame| frame.kind == FrameKind::Python)
        .map(|frame| frame.name)
        .collect()
}

/// The remarks in a stack, such as `[incomplete: frame switch]`.
fn remarks<'a>(frames: &[Frame<'a>]) -> Vec<&'a str> {
    frames
        .iter()
        .filter(|frame| frame.kind == FrameKind::Reason)
        .map(|frame| frame.name)
        .collect()
}

/// Waits until something holds.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Resident memory of a process in bytes.
fn resident_bytes(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// CPU time of this process, whose threads do little beside the agent's.
fn agent_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Splits the samples of a process by the letter that ends the names of its functions, and panics where one
/// stack has both.
fn by_letter(profile: &Profile, pid: Pid) -> BTreeMap<(char, String), i64> {
    let mut n_samples = BTreeMap::new();
    for (thread, frames, n, _) in
        samples(profile).filter(|(thread, ..)| thread.pid == i64::from(pid.0))
    {
        let named = frames
            .iter()
            .filter(|frame| frame.kind == FrameKind::Python && frame.name.starts_with("work_"));
        let mut letters: Vec<char> = named
            .filter_map(|frame| frame.name.chars().last())
            .collect();
        letters.dedup();
        assert!(
            letters.len() <= 1,
            "functions of two programs in one stack: {:?}",
            python_names(&frames)
        );
        if let Some(letter) = letters.first() {
            *n_samples
                .entry((*letter, thread.python_version.to_owned()))
                .or_insert(0) += n;
        }
    }
    n_samples
}

/// As an agent that follows everything has it.
const SETTINGS: Settings<'_> = Settings {
    types: &ProfileType::ALL,
    follow_all: true,
    follow_children: true,
    ring_bytes: DEFAULT_RING_BYTES,
    max_processes: DEFAULT_MAX_PROCESSES,
    alloc_period: 1 << 19,
    pool_period: 1 << 17,
    max_allocations: 1 << 17,
    log_level: 0,
};

/// Loads the programs; the names of those that this process holds then. The kernel keeps 15 bytes of each.
fn loaded_by(access: &Access) -> Vec<String> {
    let _programs = Programs::load_by(SETTINGS, access).unwrap();
    let own = inventory::program_ids(own_pid()).unwrap();
    let mut loaded = inventory::programs().unwrap();
    loaded.retain(|program| own.contains(&program.id));
    loaded.sort_by(|a, b| a.name.cmp(&b.name));
    for program in &loaded {
        let n_verified = program
            .verified_instructions
            .map_or("unknown".to_owned(), |n| n.to_string());
        eprintln!("{}: {n_verified} instructions verified", program.name);
        // The kernel's limit is a million; a program near it would not load everywhere.
        assert!(
            program.verified_instructions.is_none_or(|n| n < 500_000),
            "{}",
            program.name
        );
    }
    loaded.into_iter().map(|program| program.name).collect()
}

#[test]
fn each_program_loads_and_verifies() {
    assert_eq!(
        loaded_by(&Access::of_running_kernel().unwrap()),
        [
            "alloc_indirect",
            "alloc_leave",
            "alloc_product",
            "alloc_release",
            "alloc_resize",
            "alloc_resize_ne",
            "alloc_resize_pr",
            "alloc_size_firs",
            "alloc_size_seco",
            "arena_enter",
            "arena_leave",
            "arena_map_enter",
            "arena_release",
            "arena_unmap",
            "collapse",
            "map_break",
            "map_enter",
            "map_leave",
            "map_release",
            "map_resize",
            "pool_enter",
            "pool_leave",
            "pool_leave_once",
            "process_exec",
            "process_exit",
            "process_fork",
            "sample_cpu",
            "sample_faults"
        ]
    );
    assert_eq!(
        loaded_by(&Access::calibrated().unwrap()),
        [
            "alloc_indirect",
            "alloc_leave_pro",
            "alloc_product",
            "alloc_release",
            "alloc_resize",
            "alloc_resize_ne",
            "alloc_resize_pr",
            "alloc_size_firs",
            "alloc_size_seco",
            "arena_enter",
            "arena_leave_pro",
            "arena_map_enter",
            "arena_release",
            "arena_unmap",
            "collapse",
            "map_break",
            "map_enter",
            "map_leave_probe",
            "map_release",
            "map_resize",
            "pool_enter",
            "pool_leave_once",
            "pool_leave_prob",
            "process_exec",
            "process_exit_pr",
            "process_fork_pr",
            "sample_cpu_prob",
            "sample_faults_p"
        ]
    );
}

#[test]
fn calibration_finds_what_btf_says() {
    let by_btf = Offsets::of_btf(&Btf::of_running_kernel().unwrap()).unwrap();
    for _ in 0..20 {
        assert_eq!(calibrate().unwrap(), by_btf);
    }
    // Also while other threads of the process come and go.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::thread::spawn(|| {}).join().unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let found = calibrate();
        stop.store(true, Ordering::Relaxed);
        eprintln!("beside other threads: {found:?}");
        assert!(found.is_err() || found.is_ok_and(|found| found == by_btf));
    });
}

#[test]
fn the_maps_take_at_most_96_kib_for_each_possible_cpu() {
    let _programs = Programs::load(SETTINGS).unwrap();
    let maps = inventory::maps(own_pid()).unwrap();
    let n_cpus = n_cpus_possible();
    let mut per_cpu = 0;
    for map in &maps {
        eprintln!(
            "{}: {} KiB for each CPU, {} KiB in all",
            map.name,
            map.bytes_per_cpu / 1024,
            map.memory_bytes / 1024
        );
        // The kernel's own count is the oracle.
        assert!(
            map.memory_bytes >= map.bytes_per_cpu * n_cpus,
            "{map:?}, {n_cpus} CPUs"
        );
        per_cpu += map.bytes_per_cpu;
    }
    assert!(maps.iter().any(|map| map.name == "SCRATCHES"), "{maps:?}");
    assert!((1..=96 << 10).contains(&per_cpu), "{per_cpu}");
}

/// Number of possible CPUs, counted independently of the agent.
fn n_cpus_possible() -> u64 {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
    let ranges = text.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        last.parse::<u64>().unwrap() - first.parse::<u64>().unwrap() + 1
    });
    ranges.sum()
}

#[test]
fn a_ring_that_overflows_is_counted_and_breaks_nothing() {
    let python = interpreters::supported().pop().unwrap();
    // A record of 100 frames takes most of the ring; one of 900 never fits.
    let shallow: Vec<Target> = (0..3).map(|_| start(&python, SPIN, &["100"])).collect();
    let deep = start(&python, SPIN, &["900"]);
    let pids: Vec<Pid> = shallow.iter().chain([&deep]).map(Target::pid).collect();
    let mut config = of_pids(&pids, 9_999);
    config.ring_bytes = 4096;
    let recorder = Recorder::start(&config);
    recorder.wait_until("2,000 samples received", |status| {
        counter(status, "samples_received") > 2_000
    });
    let deep_pid = deep.pid();
    drop(deep);
    drop(shallow);
    recorder.wait_until("everything accounted for", |status| {
        let of = |name| counter(status, name);
        of("samples") == of("samples_received") + of("lost_full") + of("lost_nested")
    });
    let (n_samples, n_lost) = (recorder.counter("samples"), recorder.counter("lost_full"));
    let n_lifecycle_lost = recorder.counter("lifecycle_lost");
    let n_undecodable = recorder.counter("records_undecodable");
    let profile = recorder.stop();
    eprintln!("{n_samples} samples, {n_lost} lost, {n_lifecycle_lost} lifecycle records lost");
    assert!(
        n_lost > 100,
        "the deep process alone loses more: {n_lost} of {n_samples}"
    );
    assert_eq!(n_undecodable, 0);
    assert!(
        profile
            .comments
            .iter()
            .any(|comment| comment.contains("lost_full")),
        "{:?}",
        profile.comments
    );
    let mut expected = vec!["<module>"];
    expected.extend(["descend"; 101]);
    expected.push("spin");
    let (mut n_right, mut n_all) = (0, 0);
    for (thread, frames, n, _) in samples(&profile) {
        assert_ne!(
            thread.pid,
            i64::from(deep_pid.0),
            "a record of 900 frames cannot have come through"
        );
        n_all += n;
        n_right += if python_names(&frames) == expected && remarks(&frames).is_empty() {
            n
        } else {
            0
        };
    }
    // Some are taken while the process is being killed.
    assert!(
        n_right * 1000 >= n_all * 995,
        "{n_right} of {n_all} stacks are right"
    );
}

#[test]
fn samples_of_processes_that_are_not_selected_are_not_taken() {
    let python = interpreters::supported().pop().unwrap();
    let idle = start(&python, IDLE, &[]);
    let _busy = start(&python, SPIN, &["5"]);
    let recorder = Recorder::start(&of_pids(&[idle.pid()], 999));
    let before = recorder.counter("samples");
    recorder.wait_until("1,000 ticks", |status| {
        counter(status, "timer_ticks") > 1_000
    });
    let n_samples = recorder.counter("samples") - before;
    let profile = recorder.stop();
    assert_eq!((n_samples, profile.n_samples()), (0, 0));
}

/// Uses some CPU time in functions whose names end in the letter that it is given, then says so, and executes
/// what else it is given.
const WORK: &str = "
import os, sys, time
def work_inner_LETTER(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        for i in range(1000):
            pass
def work_outer_LETTER(seconds):
    work_inner_LETTER(seconds)
work_outer_LETTER(0.5)
print('LETTER', flush=True)
if len(sys.argv) > 2:
    os.execv(sys.argv[2], sys.argv[2:])
sys.stdin.read()
";

/// The marker that selects these processes.
const MARKER: &str = "pyagent-kernel-test";

#[test]
fn a_process_that_executes_another_interpreter_has_only_the_functions_of_the_one_that_runs() {
    let mut pythons = interpreters::supported();
    // One becomes the other, which must be in its root.
    pythons.retain(|python| !python.has_own_root());
    let (oldest, newest) = (pythons.first().unwrap(), pythons.last().unwrap());
    let mut counts = Vec::new();
    for (before, after) in [(oldest, newest), (newest, oldest), (newest, newest)] {
        let recorder = Recorder::start(&of_cmdline(MARKER, 499));
        let path = after.path.to_str().unwrap();
        let (first, second) = (WORK.replace("LETTER", "a"), WORK.replace("LETTER", "b"));
        let mut target = Target::python(
            before,
            &first,
            &[MARKER, path, "-I", "-S", "-B", "-c", &second, MARKER],
        );
        assert_eq!((target.line(), target.line()), ("a".into(), "b".into()));
        let pid = target.pid();
        drop(target);
        let profile = recorder.stop();
        let n_samples = by_letter(&profile, pid);
        let of = |letter, python: &Interpreter| {
            let (major, minor, micro) = python.version;
            n_samples
                .get(&(letter, format!("{major}.{minor}.{micro}")))
                .copied()
                .unwrap_or(0)
        };
        counts.extend([of('a', before), of('b', after)]);
        assert_eq!(n_samples.len(), 2, "{n_samples:?}");
        eprintln!("{:?} -> {:?}: {n_samples:?}", before.version, after.version);
    }
    check_counts(counts);
}

/// Samples of half a second at 499 Hz each, of processes that began to work as soon as they were there. Each is known
/// soon: most have all but those of their start, which is in the half second too. A host that stands still for a while, or
/// lets the agent wait, costs one of them more.
fn check_counts(mut counts: Vec<i64>) {
    const ALL: i64 = 250;
    counts.sort_unstable();
    assert!(counts[0] > ALL / 10, "{counts:?}");
    assert!(counts[counts.len() / 4] > ALL * 6 / 10, "{counts:?}");
    assert!(counts[counts.len() / 2] > ALL * 8 / 10, "{counts:?}");
}

/// Starts a process until it gets this id; others on the host take ids too.
fn start_with_pid(pid: Pid, mut start: impl FnMut() -> Target) -> Option<Target> {
    for _ in 0..200 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid.0 - 1).to_string()).ok()?;
        let target = start();
        if target.pid() == pid {
            return Some(target);
        }
    }
    None
}

#[test]
fn a_process_that_gets_the_id_of_another_has_none_of_its_functions() {
    let mut counts = Vec::new();
    for python in interpreters::usual() {
        let recorder = Recorder::start(&of_cmdline(MARKER, 499));
        // Without address randomisation the second has its code objects where the first had them, and the same
        // identities: nothing but the generation tells them apart.
        let work = |letter: &str| {
            let code = WORK.replace("LETTER", letter);
            let mut command = Command::new("setarch");
            command
                .arg("-R")
                .arg(&python.path)
                .args(["-I", "-S", "-B", "-c", &code, MARKER]);
            Target::start(&mut command)
        };
        let mut first = work("a");
        assert_eq!(first.line(), "a");
        let pid = first.pid();
        assert!(first.finish().success());
        let Some(mut second) = start_with_pid(pid, || work("b")) else {
            eprintln!("skipped: process id {pid} could not be had again");
            return;
        };
        assert_eq!(second.line(), "b");
        drop(second);
        let profile = recorder.stop();
        let n_samples = by_letter(&profile, pid);
        assert_eq!(n_samples.len(), 2, "{n_samples:?}");
        counts.extend(n_samples.values());
        eprintln!("{:?}: pid {pid}: {n_samples:?}", python.version);
    }
    check_counts(counts);
}

/// Forks children one after the other; each burns CPU time from its first instruction on, says so, and stays
/// until all have. Prints each child's id, its CPU time in microseconds, and how often it left a CPU.
///
/// The kernel's last steps with a process that has ended, 0.1 ms or so, are counted to it and are nobody's sample: next to what
/// it burns they are little.
const FORKS: &str = "
import os, sys
def burn():
    total = 0
    for i in range(1000000):
        total += i
def child():
    burn()
    os.write(burnt[1], b'.')
    os.read(stay[0], 1)
    os._exit(0)
print('ready', flush=True)
sys.stdin.readline()
burnt, stay = os.pipe(), os.pipe()
pids = []
for i in range(40):
    pids.append(os.fork())
    if pids[-1] == 0:
        os.close(stay[1])
        child()
    os.read(burnt[0], 1)
os.close(stay[1])
for pid in pids:
    pid, status, usage = os.wait4(pid, 0)
    print(pid, int((usage.ru_utime + usage.ru_stime) * 1e6), usage.ru_nvcsw + usage.ru_nivcsw)
print('end', flush=True)
sys.stdin.readline()
";

#[test]
fn forked_children_are_profiled_from_their_first_sample() {
    for python in interpreters::usual() {
        for by_pid in [true, false] {
            let mut parent = Target::python(&python, FORKS, &[MARKER]);
            assert_eq!(parent.line(), "ready");
            let mut config = if by_pid {
                of_pids(&[parent.pid()], 997)
            } else {
                of_cmdline(MARKER, 997)
            };
            config.selection.subprocesses = by_pid;
            let recorder = Recorder::start(&config);
            let ticks = CpuTicks::now();
            parent.tell("go");
            let lines = std::iter::from_fn(|| Some(parent.line()).filter(|line| line != "end"));
            let mut n_stretches = 0;
            let used: HashMap<i64, i64> = lines
                .map(|line| {
                    let mut numbers = line.split(' ').map(|number| number.parse().unwrap());
                    let mut next = || -> i64 { numbers.next().unwrap() };
                    let (pid, micros) = (next(), next());
                    n_stretches += 1 + next();
                    (pid, micros * 1000)
                })
                .collect();
            let untimed_share = ticks.untimed_share();
            // What the hypervisor took is CPU time without samples, unless the kernel could tell it from steal.
            let missed_nanos = recorder.counter("timer_missed") as i64 * 1_000_000_000 / 997;
            let profile = recorder.stop();
            let mut sampled: HashMap<i64, i64> = HashMap::new();
            let (mut n_complete, mut n_all) = (0, 0);
            for (thread, frames, n, nanos) in
                samples(&profile).filter(|(thread, ..)| used.contains_key(&thread.pid))
            {
                *sampled.entry(thread.pid).or_default() += nanos;
                n_all += n;
                n_complete += if remarks(&frames).is_empty() { n } else { 0 };
            }
            let (used_nanos, sampled_nanos): (i64, i64) =
                (used.values().sum(), sampled.values().sum());
            let share = sampled_nanos as f64 / used_nanos as f64;
            eprintln!(
                "{:?} by {}: {} children, {n_all} samples are {:.1} % of their CPU time, {n_complete} complete; {:?}",
                python.version,
                if by_pid { "pid" } else { "cmdline" },
                used.len(),
                share * 100.0,
                profile.comments
            );
            assert_eq!(used.len(), 40);
            // A stretch on a CPU is counted in whole periods, up or down: a sixth is the mean square of the error.
            let deviation = (n_stretches as f64 / 6.0).sqrt() / n_all as f64;
            let allowed = 0.01 + 3.9 * deviation;
            assert!(
                share < 1.0 + allowed + untimed_share,
                "{share}, {untimed_share}, {deviation}"
            );
            assert!(
                share > 1.0 - allowed - missed_nanos as f64 / used_nanos as f64,
                "{share}, {deviation}"
            );
            // Beside that a timer may be late by some periods, now and then: that is one child's, and not all of it.
            let missing = |(pid, used): (&i64, &i64)| used - sampled.get(pid).copied().unwrap_or(0);
            let lacking: Vec<(&i64, &i64)> = used
                .iter()
                .filter(|child| missing(*child) >= 4_000_000 + missed_nanos)
                .collect();
            assert!(
                lacking.len() <= 1 && lacking.iter().all(|child| missing(*child) < child.1 / 2),
                "not in the profile: {:?} of (child, ns) {lacking:?}",
                lacking
                    .iter()
                    .map(|child| missing(*child))
                    .collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn ten_thousand_short_lived_processes_grow_neither_the_process_map_nor_the_agents_memory() {
    let python = interpreters::supported().pop().unwrap();
    let spinning = start(&python, SPIN, &["5", MARKER]);
    let recorder = Recorder::start(&of_cmdline(MARKER, 99));
    let run = |n: u32| {
        let script = format!("i=0; while [ $i -lt {n} ]; do /bin/true; i=$((i+1)); done");
        assert!(
            Command::new("sh")
                .args(["-c", &script])
                .status()
                .unwrap()
                .success()
        );
    };
    let in_map = || inventory::profiled_pids(own_pid()).unwrap();
    let is_gone = |pid: &Pid| !fs::exists(format!("/proc/{pid}")).unwrap();
    run(1_000);
    let (before, cpu_before) = (resident_bytes(own_pid()), agent_cpu_time());
    run(10_000);
    wait_until("no process that has ended is in the map", || {
        !in_map().iter().any(is_gone)
    });
    let after = resident_bytes(own_pid());
    let cpu = agent_cpu_time() - cpu_before;
    let growth = after.saturating_sub(before);
    eprintln!(
        "resident {} KiB, grown by {} KiB; {} processes in the map; the agent took {:.2} s of CPU",
        after / 1024,
        growth / 1024,
        in_map().len(),
        cpu.as_secs_f64()
    );
    assert!(growth < 4 << 20, "{growth} bytes");
    assert!(in_map().contains(&spinning.pid()));
    for name in ["fork_lost", "exec_lost", "lifecycle_lost"] {
        assert_eq!(recorder.counter(name), 0, "{name}");
    }
    let before = recorder.counter("samples_received");
    recorder.wait_until("still sampling", |status| {
        counter(status, "samples_received") > before + 50
    });
    drop(recorder.stop());
}

#[test]
fn a_killed_agent_leaves_no_program_behind() {
    let python = interpreters::supported().pop().unwrap();
    let spinning = start(&python, SPIN, &["5"]);
    let pid = spinning.pid().to_string();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.folded");
    let mut agent = Pyagent::start(
        &[
            "record",
            "--pid",
            &pid,
            "--duration",
            "60s",
            "-o",
            output.to_str().unwrap(),
        ],
        "recording",
    );
    let own = inventory::program_ids(agent.pid()).unwrap();
    let loaded = || {
        inventory::programs()
            .unwrap()
            .into_iter()
            .filter(|program| own.contains(&program.id))
            .count()
    };
    assert_eq!((own.len(), loaded()), (4, 4));
    agent.kill();
    // The kernel frees them a moment after the last reference has gone.
    wait_until("the programs are gone", || loaded() == 0);
    assert!(
        !output.exists(),
        "a file that is not complete is not left behind"
    );
}

#[test]
fn two_agents_at_once_both_see_everything() {
    let python = interpreters::supported().pop().unwrap();
    let spinning = start(&python, SPIN, &["5"]);
    let pid = spinning.pid().to_string();
    let folder = tempfile::tempdir().unwrap();
    let outputs = ["a.folded", "b.folded"].map(|name| folder.path().join(name));
    let mut agents = outputs.each_ref().map(|output| {
        let arguments = [
            "record",
            "--pid",
            &pid,
            "--rate",
            "499",
            "--duration",
            "2s",
            "-o",
            output.to_str().unwrap(),
        ];
        Pyagent::start(&arguments, "recording")
    });
    for (agent, output) in agents.iter_mut().zip(&outputs) {
        let (errors, is_success) = agent.finish();
        assert!(is_success, "{errors}");
        let folded = fs::read_to_string(output).unwrap();
        let n_all: u64 = folded
            .lines()
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum();
        let right = folded
            .lines()
            .filter(|line| line.contains("descend") && line.contains("spin"));
        let n_right: u64 = right
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum();
        eprintln!("{n_right} of {n_all}");
        assert!(n_right * 100 >= n_all * 99 && n_all > 0, "{folded}");
    }
}

/// What `hostile.c` can do, beside `sane`.
const SCENARIOS: [&str; 14] = [
    "frame-self",
    "frame-ring",
    "frame-deep",
    "thread-ring",
    "interp-ring",
    "many-threads",
    "strings",
    "tables",
    "pointers",
    "leaf",
    "chunks",
    "offsets",
    "chaos",
    "flood",
];

/// The hostile program, as something that looks like CPython 3.13 and as something that looks like 3.8.
fn hostile_programs(folder: &Path) -> [PathBuf; 2] {
    [("as_3_13", None), ("as_3_8", Some("-DFAKE_3_8"))].map(|(name, fake)| {
        let program = folder.join(name);
        let arguments: Vec<&str> = ["-O1", "-Wall", "-Werror", "-pthread"]
            .into_iter()
            .chain(fake)
            .collect();
        compile(&workload("hostile.c"), &program, &arguments);
        program
    })
}

/// CPU time of a process, in nanoseconds.
fn cpu_nanos(pid: Pid) -> i64 {
    let schedstat = fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).unwrap();
    schedstat
        .split_ascii_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// How often a process of one thread left a CPU.
fn n_switches(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let counts = status
        .lines()
        .filter(|line| line.contains("ctxt_switches:"));
    counts
        .map(|line| line.split_whitespace().next_back().unwrap())
        .map(|count| count.parse::<u64>().unwrap())
        .sum()
}

/// Samples a second and CPU of both.
const BESIDE_RATE_HZ: u64 = 499;

/// How a profile of a hostile process and an honest one beside it came out.
#[derive(Debug)]
struct Beside {
    /// Share of the honest process's CPU time that is in the profile with the right stack.
    share: f64,
    /// What the periods would be of it in which the timer did not fire, on any CPU.
    missed: f64,
    /// Standard deviation of the share: each stretch on a CPU counts in whole periods, with a mean square error of 1/6.
    deviation: f64,
    n_hostile: i64,
    hostile_remarks: BTreeMap<String, i64>,
    hostile_names: BTreeSet<String>,
    agent_cpu: f64,
    growth_bytes: u64,
    n_lost: u64,
}

fn profile_beside(python: &Interpreter, program: &Path, scenario: &str) -> Beside {
    let honest = start(python, SPIN, &["20"]);
    let mut hostile = Target::start(Command::new(program).arg(scenario));
    assert_eq!(hostile.line(), "ready", "{scenario}");
    let recorder = Recorder::start(&of_pids(
        &[honest.pid(), hostile.pid()],
        BESIDE_RATE_HZ as u32,
    ));
    hostile.tell("go on");
    let (begun, used, agent_before) = (Instant::now(), cpu_nanos(honest.pid()), agent_cpu_time());
    let switched = n_switches(honest.pid());
    let before = resident_bytes(own_pid());
    let mut most = before;
    while cpu_nanos(honest.pid()) - used < 1_500_000_000 {
        // The state of the agent also shows that it lives.
        assert!(recorder.status().n_cpus_attached > 0, "{scenario}");
        most = most.max(resident_bytes(own_pid()));
        std::thread::sleep(Duration::from_millis(50));
    }
    let agent_cpu = (agent_cpu_time() - agent_before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let status = recorder.status();
    let n_lost = ["lost_full", "lost_nested", "samples_undiscovered_lost"]
        .map(|name| counter(&status, name))
        .iter()
        .sum();
    let used = cpu_nanos(honest.pid()) - used;
    let n_stretches = n_switches(honest.pid()) - switched + 1;
    let missed_nanos = counter(&status, "timer_missed") * 1_000_000_000 / BESIDE_RATE_HZ;
    let profile = recorder.stop();
    let right: Vec<&str> = ["<module>"]
        .into_iter()
        .chain(["descend"; 21])
        .chain(["spin"])
        .collect();
    let mut beside = Beside {
        share: 0.0,
        missed: missed_nanos as f64 / used as f64,
        deviation: (n_stretches as f64 / 6.0).sqrt() * 1e9 / BESIDE_RATE_HZ as f64 / used as f64,
        n_hostile: 0,
        hostile_remarks: BTreeMap::new(),
        hostile_names: BTreeSet::new(),
        agent_cpu,
        growth_bytes: most.saturating_sub(before),
        n_lost,
    };
    for (thread, frames, n, nanos) in samples(&profile) {
        if thread.pid == i64::from(honest.pid().0) {
            let is_right = python_names(&frames) == right && remarks(&frames).is_empty();
            beside.share += if is_right {
                nanos as f64 / used as f64
            } else {
                0.0
            };
        } else {
            beside.n_hostile += n;
            let names = frames
                .iter()
                .filter(|frame| frame.kind == FrameKind::Python)
                .map(|frame| frame.name);
            beside
                .hostile_names
                .extend(names.map(|name| name.chars().take(12).collect()));
            for remark in remarks(&frames).into_iter().take(1) {
                *beside.hostile_remarks.entry(remark.to_owned()).or_default() += n;
            }
        }
    }
    beside
}

#[test]
fn a_hostile_process_costs_only_its_own_samples() {
    if !compiler::is_there() {
        return;
    }
    let python = interpreters::supported().pop().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for program in hostile_programs(folder.path()) {
        let name = program.file_name().unwrap().to_str().unwrap();
        let sane = profile_beside(&python, &program, "sane");
        assert!(
            sane.hostile_names.contains("forged"),
            "{name}: the forgery is not even believed: {sane:?}"
        );
        for scenario in SCENARIOS {
            let beside = profile_beside(&python, &program, scenario);
            eprintln!(
                "{name} {scenario}: honest {:.1} %, hostile {} samples {:?}, agent {:.1} % CPU and {} KiB, lost {}",
                beside.share * 100.0,
                beside.n_hostile,
                beside.hostile_remarks,
                beside.agent_cpu * 100.0,
                beside.growth_bytes / 1024,
                beside.n_lost
            );
            assert!(
                beside.share < 1.06 + 4.0 * beside.deviation
                    && beside.share + beside.missed >= 0.97 - 4.0 * beside.deviation,
                "{name} {scenario}: {beside:?}"
            );
            assert!(
                beside.n_hostile > 0,
                "{name} {scenario}: its own samples are there, with a reason"
            );
            assert!(beside.agent_cpu < 0.5, "{name} {scenario}: {beside:?}");
            assert!(
                beside.growth_bytes < 64 << 20,
                "{name} {scenario}: {beside:?}"
            );
            assert_eq!(beside.n_lost, 0, "{name} {scenario}: {beside:?}");
        }
    }
}
