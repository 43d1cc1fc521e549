//! `alloc`, `pools` and `faults` of programs whose memory is not made of Python's own objects, all in one run: a C extension,
//! numpy's arrays, a mapped file, a forked worker. What is expected is said by the program, and checked against what
//! tracemalloc says of the same program, as far as that can see it. Root, one test at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use profiler_agent::config::AllocationConfig;
use profiler_agent::profile::model::{Profile, ProfileType};
use profiler_agent::track::allocators::PoolProbes;
use pyagent_tests::compiler::{self, workload};
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::packages;
use pyagent_tests::recorder::{Recorder, counter, of_pids};
use pyagent_tests::target::Target;
use serde::Deserialize;

/// Mean distance of samples, in bytes: what is expected is then known to less than a tenth.
const PERIOD: u64 = 32 << 10;

/// Standard deviations that a sum may be off: 99.99 %, since there are hundreds of sums.
const MAX_DEVIATIONS: f64 = 3.9;

/// What the interpreter allocates beside, and what is not to be told apart from nothing: a sample or two.
const SLACK: f64 = 2.0 * PERIOD as f64;

/// Share that a line of 64 MiB or more may be off, and any other.
const MAX_LARGE_ERROR: f64 = 0.05;
const MAX_ERROR: f64 = 0.1;

/// Bytes of small objects that importing numpy leaves free.
const MAX_FREE: f64 = 2_097_152.0;

/// Bytes of the file that is mapped.
const FILE_BYTES: usize = 64 << 20;

/// What the program says of one of its functions; see there.
#[derive(Debug, Deserialize)]
struct Phase {
    function: String,
    /// How many, of how many bytes, and how many of them are kept.
    calls: Vec<[f64; 3]>,
    n_faults: f64,
    touched: Option<f64>,
    pool_bytes: f64,
    pid: i64,
    traced: Option<f64>,
    is_traced: bool,
}

impl Phase {
    fn n_bytes(&self) -> f64 {
        self.calls.iter().map(|[n, size, _]| n * size).sum()
    }

    fn n_bytes_kept(&self) -> f64 {
        self.calls.iter().map(|[_, size, kept]| size * kept).sum()
    }

    /// Standard deviation of what is found in place of so many calls of each size, which are sampled each by itself.
    fn deviation(&self, n: impl Fn(&[f64; 3]) -> f64) -> f64 {
        let variance = |call: &[f64; 3]| {
            let [_, size, _] = call;
            let p = 1.0 - (-size / PERIOD as f64).exp();
            size * size * n(call) * (1.0 - p) / p
        };
        self.calls.iter().map(variance).sum::<f64>().sqrt()
    }
}

/// What is found wrong, and a line for each thing that was compared.
#[derive(Debug, Default)]
struct Found {
    wrong: Vec<String>,
}

impl Found {
    fn compare(&mut self, what: &str, found: f64, expected: f64, allowed: f64) {
        let line = format!("{what}: {found:.0} of {expected:.0} +- {allowed:.0}");
        eprintln!("  {line}");
        if (found - expected).abs() > allowed {
            self.wrong.push(line);
        }
    }
}

/// Sum of a value over the samples of a process in a function.
fn sum(profile: &Profile, phase: &Phase, kind: &str) -> f64 {
    let mut kinds = profile.sample_types.iter();
    let idx = kinds.position(|it| it.kind == kind).expect("a kind of it");
    let samples = profile.samples.iter().filter(|sample| {
        let mut frames = profile.frames(sample.stack);
        profile.thread(sample.labels).pid == phase.pid
            && frames.any(|frame| frame.name == phase.function)
    });
    samples.map(|sample| sample.values[idx] as f64).sum()
}

/// The command that runs the program, and what it runs with.
struct Program {
    python: Interpreter,
    extension: Option<PathBuf>,
    numpy: Option<PathBuf>,
    file: PathBuf,
}

impl Program {
    fn start(&self, trace: bool) -> Target {
        let options = serde_json::json!({
            "extension": self.extension,
            "numpy": self.numpy,
            "file": self.file,
            "trace": trace,
        });
        let mut command = Command::new(&self.python.path);
        command
            .args(["-I", "-S", "-B"])
            .arg(workload("native_memory.py"))
            .arg(options.to_string());
        let mut target = Target::start(&mut command);
        assert_eq!(target.line(), "ready", "{}", self.python.path.display());
        target
    }

    /// Lets it work, with `at_fork` before its child does.
    fn work(target: &mut Target, at_fork: impl FnOnce()) -> Vec<Phase> {
        target.tell("");
        let line = target.line();
        assert!(line.starts_with("forked "), "{line}");
        at_fork();
        target.tell("");
        serde_json::from_str(&target.line()).unwrap()
    }
}

/// Compiles the extension against the interpreter's own headers; without those the module of the oldest interpreter that
/// has them is used, whose binary interface later versions keep.
fn extension(python: &Interpreter, folder: &Path, oldest: &mut Option<PathBuf>) -> Option<PathBuf> {
    let Some(headers) = compiler::headers_of(python) else {
        eprintln!("  no headers: the extension is the one of the oldest version that has them");
        return oldest.clone();
    };
    let (major, minor) = python.minor();
    let made = folder.join(format!("{major}.{minor}"));
    fs::create_dir(&made).unwrap();
    let include = format!("-I{}", headers.display());
    let arguments = ["-shared", "-fPIC", "-O1", &include];
    let module = made.join("native_memory.so");
    compiler::compile(&workload("native_memory.c"), &module, &arguments);
    oldest.get_or_insert(made.clone());
    Some(made)
}

/// Everything that one run says against what it is to say.
fn check(program: &Program, found: &mut Found) {
    let (major, minor, micro) = program.python.version;
    let mut target = program.start(false);
    let mut config = of_pids(&[target.pid()], 99);
    config.types = vec![ProfileType::Alloc, ProfileType::Pools, ProfileType::Faults];
    // Each fault, so that the few of huge pages are all there.
    config.fault_period = 1;
    config.ring_bytes = 64 << 20;
    config.selection.subprocesses = true;
    config.allocation = AllocationConfig {
        period: PERIOD,
        // The program does nothing but allocate.
        budget: 1000.0,
        pool_probes: PoolProbes::Pools,
        ..AllocationConfig::default()
    };
    let recorder = Recorder::start(&config);
    let wait_for_probes = |n_processes: u64| {
        recorder.wait_until("probes are placed", |status| {
            counter(status, "probes_placed") >= n_processes
        });
    };
    wait_for_probes(1);
    let (pools, faults) = (
        recorder.beside(ProfileType::Pools),
        recorder.beside(ProfileType::Faults),
    );
    let phases = Program::work(&mut target, || wait_for_probes(2));
    for counter in [
        "lost_full",
        "lost_nested",
        "allocations_not_followed",
        "releases_lost",
    ] {
        let value = recorder.counter(counter);
        found.compare(
            &format!("{major}.{minor}.{micro} {counter}"),
            value as f64,
            0.0,
            0.0,
        );
    }
    recorder.settle();
    let alloc = recorder.stop();
    let (pools, faults) = (pools.profile(), faults.profile());
    drop(target);

    let mut watched = program.start(true);
    let traced = Program::work(&mut watched, || {});
    drop(watched);

    let page_bytes = rustix::param::page_size() as f64;
    for (phase, traced) in phases.iter().zip(&traced) {
        let name = |what: &str| format!("{major}.{minor}.{micro} {} {what}", phase.function);
        let (n_bytes, n_kept) = (phase.n_bytes(), phase.n_bytes_kept());
        let sampling = MAX_DEVIATIONS * phase.deviation(|[n, ..]| *n);
        found.compare(
            &name("alloc_space"),
            sum(&alloc, phase, "alloc_space"),
            n_bytes,
            sampling + 0.01 * n_bytes + SLACK,
        );
        let sampling = MAX_DEVIATIONS * phase.deviation(|[.., kept]| *kept);
        let kept = sum(&alloc, phase, "inuse_space");
        found.compare(
            &name("inuse_space"),
            kept,
            n_kept,
            sampling + 0.01 * n_kept + SLACK,
        );
        if phase.is_traced
            && let Some(n_bytes) = traced.traced
        {
            let share = if n_bytes >= f64::from(64 << 20) {
                MAX_LARGE_ERROR
            } else {
                MAX_ERROR
            };
            found.compare(
                &name("inuse_space as tracemalloc has it"),
                kept,
                n_bytes,
                share * n_bytes + SLACK,
            );
        }
        if phase.pool_bytes > 0.0 {
            for kind in ["alloc_space", "inuse_space"] {
                let n_bytes = phase.pool_bytes;
                // Where only arenas are seen, what was free in those that are there is not.
                let unseen = if program.python.minor() < (3, 9) {
                    MAX_FREE
                } else {
                    0.0
                };
                found.compare(
                    &name(&format!("{kind} of pools")),
                    sum(&pools, phase, kind),
                    n_bytes,
                    MAX_ERROR * n_bytes + unseen,
                );
            }
        }
        let n_faults = sum(&faults, phase, "page_faults");
        found.compare(
            &name("page_faults"),
            n_faults,
            phase.n_faults,
            // What it touches to say how many there are.
            MAX_ERROR * phase.n_faults + 16.0,
        );
        let touched = sum(&faults, phase, "fault_space");
        if let Some(n_bytes) = phase.touched {
            found.compare(
                &name("fault_space"),
                touched,
                n_bytes,
                MAX_LARGE_ERROR * n_bytes + 16.0 * page_bytes,
            );
        } else if phase.function == "mapped_file" {
            // A page for each fault: the kernel shows those beside it too, which are in its cache already.
            found.compare(&name("fault_space"), touched, n_faults * page_bytes, 0.0);
        }
    }
}

#[test]
fn memory_of_extensions_arrays_files_and_workers_is_what_the_program_says() {
    assert!(compiler::is_there(), "a C compiler is needed");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, vec![1; FILE_BYTES]).unwrap();
    let mut found = Found::default();
    let mut oldest = None;
    let mut pythons = interpreters::usual();
    pythons.reverse();
    let (mut n_extensions, mut n_arrays) = (0, 0);
    for python in pythons {
        let (major, minor, micro) = python.version;
        eprintln!("{major}.{minor}.{micro} {}", python.path.display());
        let extension = extension(&python, folder.path(), &mut oldest);
        let numpy = packages::of_pypi("numpy", python.minor());
        if numpy.is_none() {
            eprintln!("  without numpy: it is got for one version of each of its generations");
        }
        n_extensions += usize::from(extension.is_some());
        n_arrays += usize::from(numpy.is_some());
        let program = Program {
            python,
            extension,
            numpy,
            file: file.clone(),
        };
        check(&program, &mut found);
    }
    assert!(found.wrong.is_empty(), "{}", found.wrong.join("\n"));
    assert!(
        n_extensions > 0 && n_arrays > 0,
        "{n_extensions} ran the extension, {n_arrays} numpy"
    );
}
