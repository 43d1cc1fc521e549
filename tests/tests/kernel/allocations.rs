//! What `alloc` and `pools` say of a program whose allocations are known: by the program. And that their probes are in
//! the processes that were chosen and in no other, and gone with the agent. Root, one test at a time.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use profiler_agent::config::AllocationConfig;
use profiler_agent::ids::Pid;
use profiler_agent::native::allocator;
use profiler_agent::native::elf::{ElfReader, load_bias};
use profiler_agent::native::probe_points::Code;
use profiler_agent::process::file::open_mapped;
use profiler_agent::process::maps;
use profiler_agent::profile::model::{Profile, ProfileType, Sample, age_class, label};
use profiler_agent::track::allocators::PoolProbes;
use pyagent_tests::allocated::{
    ALLOC_SPACE, INUSE_SPACE, PEAK_SPACE, PERIOD, Phase, TEMPORARY_SPACE, allowed, expected_values,
};
use pyagent_tests::compiler::workload;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::packages;
use pyagent_tests::pyagent::{Pyagent, binary};
use pyagent_tests::recorder::{Recorder, counter, of_pids};
use pyagent_tests::target::Target;

fn version(python: &Interpreter) -> String {
    let (major, minor, micro) = python.version;
    format!("{major}.{minor}.{micro}")
}

fn sum(profile: &Profile, function: &str, value_idx: usize) -> f64 {
    let is_in = |sample: &&Sample| {
        let mut frames = profile.frames(sample.stack);
        frames.any(|frame| frame.name == function)
    };
    let samples = profile.samples.iter().filter(is_in);
    samples.map(|sample| sample.values[value_idx] as f64).sum()
}

/// Runs the program under a recording; the recording ends while the program waits.
fn record(
    python: &Interpreter,
    profile_type: ProfileType,
    pool_probes: PoolProbes,
) -> (Profile, Vec<Phase>) {
    let mut command = Command::new(&python.path);
    record_command("allocated.py", &mut command, profile_type, pool_probes)
}

/// The same of a program and of a command that starts an interpreter.
fn record_command(
    program: &str,
    python: &mut Command,
    profile_type: ProfileType,
    pool_probes: PoolProbes,
) -> (Profile, Vec<Phase>) {
    let script = workload(program).display().to_string();
    let mut target = Target::start(python.args(["-I", "-S", "-B", &script]));
    assert_eq!(target.line(), "ready", "{python:?}");
    let mut config = of_pids(&[target.pid()], 99);
    config.types = vec![profile_type];
    config.ring_bytes = 32 << 20;
    config.allocation = AllocationConfig {
        period: PERIOD,
        // The program does nothing but allocate.
        budget: 1000.0,
        pool_probes,
        ..AllocationConfig::default()
    };
    let recorder = Recorder::start(&config);
    recorder.wait_until("probes are placed", |status| {
        counter(status, "probes_placed") > 0
    });
    target.tell("");
    let phases: Vec<Phase> = serde_json::from_str(&target.line()).unwrap();
    for counter in [
        "lost_full",
        "lost_nested",
        "allocations_not_followed",
        "releases_lost",
    ] {
        assert_eq!(recorder.counter(counter), 0, "{counter}");
    }
    recorder.settle();
    let profile = recorder.stop();
    drop(target);
    (profile, phases)
}

/// What is wrong with a profile of allocations.
fn errors(program: &str, profile: &Profile, phases: Vec<Phase>) -> Vec<String> {
    let mut wrong = Vec::new();
    assert_eq!(profile.sample_types, ProfileType::Alloc.sample_types());
    for (function, amounts) in phases {
        for (value_idx, expected, deviation) in expected_values(amounts) {
            if function == "small" {
                continue;
            }
            let found = sum(profile, &function, value_idx);
            let kind = profile.sample_types[value_idx].kind;
            let name = format!("{program} {function} {kind}");
            eprintln!("{name}: {found:.0} of {expected:.0}");
            let allowed = allowed(amounts, value_idx, expected, deviation);
            if (found - expected).abs() > allowed {
                wrong.push(format!(
                    "{name}: {found:.0}, not {expected:.0} +- {allowed:.0}"
                ));
            }
        }
    }
    // What is kept in the end is most of the memory, and the peak is close to it.
    let (peak, in_use) = (
        sum(profile, "<module>", PEAK_SPACE),
        sum(profile, "<module>", INUSE_SPACE),
    );
    if (peak - in_use).abs() > 0.1 * in_use {
        wrong.push(format!("{program}: {peak:.0} at the peak, {in_use:.0} now"));
    }
    let temporary = sum(profile, "churn", TEMPORARY_SPACE);
    let allocated = sum(profile, "churn", ALLOC_SPACE);
    if temporary < 0.99 * allocated {
        wrong.push(format!(
            "{program}: {temporary:.0} of {allocated:.0} is temporary"
        ));
    }
    wrong
}

/// What is wrong in a recording, and in the same way in a second one.
///
/// Interpreter and C library have blocks of their own in these functions, which the program does not count. A sampled one of
/// 40 bytes stands for [`PERIOD`] / 40 objects: as many as a function makes. That is chance, and seldom; what is wrong in the
/// profile is wrong again.
fn wrong_again(mut measure: impl FnMut() -> Vec<String>) -> Vec<String> {
    let first = measure();
    if first.is_empty() {
        return first;
    }
    eprintln!("again, for: {}", first.join("; "));
    let what = |row: &str| row.split(':').next().map(str::to_owned);
    let mut second = measure();
    second.retain(|row| first.iter().any(|it| what(it) == what(row)));
    second
}

#[test]
fn alloc_says_by_function_what_is_allocated_and_what_is_kept() {
    let mut wrong = Vec::new();
    for python in interpreters::usual() {
        wrong.extend(wrong_again(|| {
            let (profile, phases) = record(&python, ProfileType::Alloc, PoolProbes::Auto);
            errors(&version(&python), &profile, phases)
        }));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn alloc_says_the_same_of_other_allocators() {
    let python = interpreters::newest();
    let mut wrong = Vec::new();
    for (name, library) in packages::allocators() {
        let mut command = Command::new(&python.path);
        command
            .env("LD_PRELOAD", library)
            // What is given back is resident no more, so that most is resident when most is in use.
            .env("MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")
            .env("MIMALLOC_PURGE_DELAY", "0");
        wrong.extend(wrong_again(|| {
            let (profile, phases) = record_command(
                "allocated.py",
                &mut command,
                ProfileType::Alloc,
                PoolProbes::Auto,
            );
            errors(name, &profile, phases)
        }));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pools_say_by_function_what_small_objects_take() {
    const MAX_ERROR: f64 = 0.05;
    let mut wrong = Vec::new();
    for python in interpreters::usual() {
        for probes in [PoolProbes::Pools, PoolProbes::Arenas, PoolProbes::Mmap] {
            if probes == PoolProbes::Mmap && python.build.contains("musl") {
                // Without a dynamic C library nothing says where its mmap is.
                continue;
            }
            let (profile, phases) = record(&python, ProfileType::Pools, probes);
            // The program counts its arenas before and after each function, and may need one more to do so, or to call it.
            let of_works = phases
                .iter()
                .map(|(function, _)| sum(&profile, function, ALLOC_SPACE));
            let to_count = sum(&profile, "measured", ALLOC_SPACE)
                - sum(&profile, "room", ALLOC_SPACE)
                - of_works.sum::<f64>();
            let mut largest_error: f64 = 0.0;
            for (function, [.., n_bytes, arena_bytes]) in phases {
                assert!(arena_bytes >= 0.0, "{}", python.path.display());
                for value_idx in [ALLOC_SPACE, INUSE_SPACE] {
                    let found = sum(&profile, &function, value_idx);
                    let kind = profile.sample_types[value_idx].kind;
                    let name = format!("{} {probes:?} {function} {kind}", version(&python));
                    // An arena is taken for what comes after it too. Of arenas each is seen, and the interpreter counts them.
                    let (n_bytes, allowed) = match (probes, value_idx) {
                        (PoolProbes::Arenas | PoolProbes::Mmap, ALLOC_SPACE) => {
                            (arena_bytes - to_count / 2.0, to_count / 2.0)
                        }
                        _ => (n_bytes, MAX_ERROR * n_bytes + f64::from(1 << 20)),
                    };
                    let error = (found - n_bytes).abs();
                    largest_error = largest_error.max(error / allowed.max(1.0));
                    if error > allowed {
                        wrong.push(format!("{name}: {found:.0}, not {n_bytes:.0}"));
                    }
                }
            }
            eprintln!(
                "{} {probes:?}: the largest error is {:.0} % of what is allowed",
                version(&python),
                largest_error * 100.0
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn mmap_says_by_function_what_is_mapped_and_what_is_kept() {
    let mut wrong = Vec::new();
    for python in interpreters::usual() {
        let (profile, phases) = record_command(
            "mapped.py",
            &mut Command::new(&python.path),
            ProfileType::Mmap,
            PoolProbes::Auto,
        );
        for (function, amounts) in phases {
            for (value_idx, expected, deviation) in expected_values(amounts) {
                let found = sum(&profile, &function, value_idx);
                let kind = profile.sample_types[value_idx].kind;
                let name = format!("{} {function} {kind}", version(&python));
                eprintln!("{name}: {found:.0} of {expected:.0}");
                // The interpreter may need an arena meanwhile, and the C library more of its heap.
                let beside = if profile.sample_types[value_idx].unit == "bytes" {
                    f64::from(5 << 20)
                } else {
                    5.0
                };
                let allowed = 3.9 * deviation + 0.01 * expected + beside;
                if (found - expected).abs() > allowed {
                    wrong.push(format!(
                        "{name}: {found:.0}, not {expected:.0} +- {allowed:.0}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Keeps an old array and a young one.
const TWO_AGES: &str = "
import sys, time
def old():
    return bytearray(64 << 20)
def young():
    return bytearray(32 << 20)
print('ready', flush=True)
sys.stdin.readline()
kept = [old()]
time.sleep(1.5)
kept.append(young())
print('done', flush=True)
sys.stdin.readline()
";

#[test]
fn what_is_in_use_says_how_old_it_is() {
    let mut target = Target::python(&interpreters::newest(), TWO_AGES, &[]);
    assert_eq!(target.line(), "ready");
    let mut config = of_pids(&[target.pid()], 99);
    config.types = vec![ProfileType::Alloc];
    let recorder = Recorder::start(&config);
    recorder.wait_until("probes are placed", |status| {
        counter(status, "probes_placed") > 0
    });
    let begun = Instant::now();
    target.tell("");
    assert_eq!(target.line(), "done");
    let done = Instant::now();
    recorder.settle();
    let profile = recorder.stop();
    // The profile ended between then and now: an age that falls in the class of either is right.
    for (function, n_bytes, since, least) in [
        ("old", 64 << 20, begun, Duration::from_millis(1500)),
        ("young", 32 << 20, done, Duration::ZERO),
    ] {
        let right: Vec<&str> = [least, since.elapsed()].map(age_class).into();
        let mut sum = 0;
        for sample in &profile.samples {
            let is_of_function = profile.frames(sample.stack).any(|it| it.name == function);
            if is_of_function && sample.values[INUSE_SPACE] > 0 {
                let age = profile.label(sample.labels, label::AGE).unwrap();
                assert!(right.contains(&age), "{function}: {age}, not {right:?}");
                sum += sample.values[INUSE_SPACE];
            }
        }
        assert!(
            (n_bytes..n_bytes + 8192).contains(&sum),
            "{function}: {sum}"
        );
    }
}

/// Calls `malloc` again and again.
const ALLOCATES: &str = "
print('ready', flush=True)
while True:
    block = bytearray(5000)
";

/// The addresses in a process at which probes on the C library's allocator are to stand.
fn probe_addresses(pid: Pid) -> Vec<u64> {
    let mappings = maps::of_process(pid).unwrap();
    let libc = mappings
        .iter()
        .find(|it| it.executable && it.path.to_string_lossy().contains("libc"))
        .unwrap();
    let (file, _) = open_mapped(pid, libc).unwrap();
    let reader = ElfReader::new(file.try_clone().unwrap());
    let elf = reader.parse().unwrap();
    let bias = load_bias(&elf.segments(), libc.start.0, libc.file_offset).unwrap();
    let code = Code::of(&elf, &file);
    let functions = allocator::functions(&elf, &code);
    let malloc = functions.iter().find(|it| it.name == "malloc").unwrap();
    let free = functions.iter().find(|it| it.name == "free").unwrap();
    [malloc, free]
        .map(|function| {
            function
                .probes
                .as_ref()
                .unwrap()
                .enter
                .address
                .wrapping_add(bias)
        })
        .into()
}

/// What the process executes there: its own copy of the page.
fn code_at(pid: Pid, address: u64) -> u8 {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut code = [0];
    memory.read_exact_at(&mut code, address).unwrap();
    code[0]
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn probes_are_in_the_chosen_process_alone_and_gone_when_the_agent_is_killed() {
    const BREAKPOINT: u8 = 0xcc;
    let python = interpreters::newest();
    let start = || {
        let mut target = Target::python(&python, ALLOCATES, &[]);
        assert_eq!(target.line(), "ready");
        target
    };
    let (chosen, neighbour) = (start(), start());
    let (pid, neighbour_pid) = (chosen.pid(), neighbour.pid());
    let places = probe_addresses(pid);
    let neighbour_places = probe_addresses(neighbour_pid);
    let before: Vec<u8> = places.iter().map(|place| code_at(pid, *place)).collect();
    assert!(!before.contains(&BREAKPOINT));
    let pid_text = pid.to_string();
    let arguments = [
        "--pid",
        &pid_text,
        "--type",
        "alloc",
        "--alloc-budget",
        "100%",
        "--listen",
        "127.0.0.1:0",
    ];
    let mut agent = Pyagent::start(&arguments, "go tool pprof");
    wait_until("no probes in the chosen process", || {
        places
            .iter()
            .all(|place| code_at(pid, *place) == BREAKPOINT)
    });
    let of_neighbour = neighbour_places
        .iter()
        .map(|place| code_at(neighbour_pid, *place));
    assert!(
        of_neighbour.eq(before.iter().copied()),
        "the neighbour has a breakpoint"
    );
    agent.kill();
    wait_until("breakpoints are left", || {
        places
            .iter()
            .zip(&before)
            .all(|(place, code)| code_at(pid, *place) == *code)
    });
}

#[test]
fn probes_that_cost_too_much_are_taken_away_with_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let mut target = Target::python(&interpreters::newest(), ALLOCATES, &[]);
    assert_eq!(target.line(), "ready");
    let output = Command::new(binary())
        .current_dir(folder.path())
        .args([
            "record", "--type", "alloc", "-d", "4s", "-o", "a.folded", "--pid",
        ])
        .arg(target.pid().to_string())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("a probe costs"), "{errors}");
    assert!(errors.contains("(above --alloc-budget 3.0%)"), "{errors}");
}
