//! What `faults` says of programs whose memory is known: by the program, and by the kernel's own counts. Root, one test
//! at a time.

use std::process::Command;

use profiler_agent::profile::model::{Profile, ProfileType, Sample};
use pyagent_tests::compiler::workload;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::pyagent::{Pyagent, binary};
use pyagent_tests::recorder::{Recorder, of_pids};
use pyagent_tests::target::Target;
use serde::Deserialize;

/// Page faults for one sample.
const PERIOD: u64 = 16;

/// Share of a phase's faults by which the profile may differ.
const MAX_ERROR: f64 = 0.05;

/// Samples more or less that a phase may have: it can begin and end anywhere between two, and move from CPU to CPU.
const MAX_SAMPLES: f64 = 8.0;

/// The same for phases of huge pages, each of whose samples stands for as much as 8,192 pages.
const MAX_HUGE_ERROR: f64 = 0.15;

/// Touches new memory until it is killed.
const GROW_AGAIN_AND_AGAIN: &str = "
def grow():
    return bytearray(64 << 20)
print('ready', flush=True)
while True:
    grow()
";

/// What a program says of one of its functions.
#[derive(Debug, Deserialize)]
struct Phase {
    function: String,
    /// Page faults in it.
    n_faults: f64,
    /// By how much the anonymous resident memory grew.
    grown: f64,
    /// Bytes that it touches; 0 when nobody knows.
    n_bytes: f64,
}

/// Sums of both values over the samples that satisfy a condition.
fn sums(profile: &Profile, condition: impl Fn(&Sample) -> bool) -> [f64; 2] {
    let chosen = profile.samples.iter().filter(|sample| condition(sample));
    chosen.fold([0.0, 0.0], |[count, bytes], sample| {
        let [more_count, more_bytes] = sample.values;
        [count + more_count as f64, bytes + more_bytes as f64]
    })
}

fn is_in(profile: &Profile, sample: &Sample, function: &str) -> bool {
    profile
        .frames(sample.stack)
        .any(|frame| frame.name == function)
}

fn script() -> String {
    workload("memory.py").display().to_string()
}

fn record(python: &Interpreter) -> (Profile, Vec<Phase>) {
    let mut target = Target::start(Command::new(&python.path).args(["-I", "-S", "-B", &script()]));
    assert_eq!(target.line(), "ready", "{}", python.path.display());
    let mut config = of_pids(&[target.pid()], 99);
    config.types = vec![ProfileType::Faults];
    config.fault_period = PERIOD;
    config.selection.subprocesses = true;
    // Where there are no huge pages a gigabyte makes 16,000 samples in a moment.
    config.ring_bytes = 32 << 20;
    let recorder = Recorder::start(&config);
    target.tell("");
    let phases: Vec<(String, f64, f64, f64)> = serde_json::from_str(&target.line()).unwrap();
    assert_eq!(recorder.counter("lost_full"), 0);
    let profile = recorder.stop();
    drop(target);
    let phase = |(function, n_faults, grown, n_bytes)| Phase {
        function,
        n_faults,
        grown,
        n_bytes,
    };
    (profile, phases.into_iter().map(phase).collect())
}

#[test]
fn faults_by_function_are_those_that_the_kernel_counts_and_their_bytes_those_that_are_touched() {
    let mut found = Vec::new();
    for python in interpreters::usual() {
        let (major, minor, micro) = python.version;
        let (profile, phases) = record(&python);
        assert_eq!(profile.sample_types, ProfileType::Faults.sample_types());
        for phase in phases {
            let [n_faults, n_bytes] =
                sums(&profile, |sample| is_in(&profile, sample, &phase.function));
            let name = format!("{major}.{minor}.{micro} {}", phase.function);
            eprintln!(
                "{name}: {n_faults} faults of {}, {:.1} MiB of {:.1}, resident {:.1}",
                phase.n_faults,
                n_bytes / 1048576.0,
                phase.n_bytes / 1048576.0,
                phase.grown / 1048576.0,
            );
            let allowed = MAX_ERROR * phase.n_faults + MAX_SAMPLES * PERIOD as f64;
            if (n_faults - phase.n_faults).abs() > allowed {
                found.push(format!("{name}: {n_faults} faults, not {}", phase.n_faults));
            }
            let page_bytes = rustix::param::page_size() as f64;
            let is_huge = phase.n_faults * page_bytes * 2.0 < phase.n_bytes;
            let expected = phase.n_bytes.max(phase.grown);
            let allowed = match is_huge {
                true => MAX_HUGE_ERROR * expected,
                false => MAX_ERROR * expected + MAX_SAMPLES * PERIOD as f64 * page_bytes,
            };
            if expected > 0.0 && (n_bytes - expected).abs() > allowed {
                found.push(format!("{name}: {n_bytes} bytes, not {expected}"));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_command_is_recorded_by_the_memory_that_it_touches() {
    let folder = tempfile::tempdir().unwrap();
    let python = interpreters::newest();
    // What a program touches before it is discovered has no Python frames yet.
    let code = "import time\ndef grow():\n    return bytearray(64 << 20)\ntime.sleep(0.5)\nkept = grow()\n";
    let output = Command::new(binary())
        .current_dir(folder.path())
        .args(["record", "--type", "faults", "-o", "memory.folded", "--"])
        .arg(&python.path)
        .args(["-I", "-S", "-c", code])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains(" MiB touched of 1 process"), "{errors}");
    let folded = std::fs::read_to_string(folder.path().join("memory.folded")).unwrap();
    let in_grow = folded.lines().filter(|line| line.contains("grow ("));
    let n_bytes: f64 = in_grow
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    let expected = f64::from(64 << 20);
    assert!(
        (n_bytes - expected).abs() < expected * MAX_ERROR,
        "{n_bytes} bytes in grow:\n{folded}"
    );
}

#[test]
fn an_agent_that_samples_one_type_says_so_when_asked_for_the_other() {
    let python = interpreters::newest();
    let mut target = Target::python(&python, GROW_AGAIN_AND_AGAIN, &[]);
    assert_eq!(target.line(), "ready");
    let pid = target.pid().to_string();
    let arguments = ["--pid", &pid, "--type", "faults", "--listen", "127.0.0.1:0"];
    let agent = Pyagent::start(&arguments, "go tool pprof");
    let address = agent
        .greeting
        .split(|char: char| !(char.is_ascii_digit() || char == '.' || char == ':'))
        .find(|word| word.starts_with("127.0.0.1:"))
        .expect("it says where it serves");
    let pull = |arguments: &[&str]| {
        Command::new(binary())
            .arg("pull")
            .arg(address)
            .args(["--duration", "1s", "-o", "-", "--format", "folded"])
            .args(arguments)
            .output()
            .unwrap()
    };
    let refused = pull(&[]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    assert!(errors.contains("does not sample cpu"), "{errors}");
    let pulled = pull(&["--type", "faults"]);
    let folded = String::from_utf8_lossy(&pulled.stdout).into_owned();
    assert!(pulled.status.success(), "{pulled:?}");
    assert!(folded.contains("grow ("), "{folded}");
}
