//! What `faults` says of programs whose memory is known: by the program, and by the kernel's own counts. Root, one test
//! at a time.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use profiler_agent::profile::model::{Profile, ProfileType, Sample};
use pyagent_tests::compiler::workload;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::picture::{Image, texts_of_svg};
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
        let (more_count, more_bytes) = (sample.values[0], sample.values[1]);
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

/// Keeps 512 KiB more ten times a second, and makes garbage for the collector.
const LEAK: &str = "
import time
kept = []
def leak():
    kept.append(bytearray(b'1' * (512 << 10)))
print('ready', flush=True)
start = time.monotonic()
while True:
    leak()
    for _ in range(1000):
        cycle = []
        cycle.append(cycle)
    time.sleep(max(0, start + len(kept) / 10 - time.monotonic()))
";

/// What LEAK keeps, in bytes a minute.
const LEAK_PER_MINUTE: f64 = 10.0 * 60.0 * 524_288.0;

/// Runs `pyagent mem` on a process, for so many seconds.
fn mem(pid: u32, seconds: u32, arguments: &[&str]) -> std::process::Output {
    Command::new(binary())
        .args(["mem", "--pid", &pid.to_string(), "--every", "500ms"])
        .args(["-d", &format!("{seconds}s")])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_process_that_grows_is_shown_with_its_slope_and_its_line_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let mut target = Target::python(&interpreters::newest(), LEAK, &[]);
    assert_eq!(target.line(), "ready");
    let pid = target.pid().0;
    let output = mem(pid, 8, &["--json", "-o", &file("all.json")]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let process = &last[0];
    assert_eq!(process["pid"], pid);
    let slope = process["slope_bytes_per_minute"].as_f64().unwrap();
    eprintln!("slope {:.3} of the truth", slope / LEAK_PER_MINUTE);
    assert!((slope / LEAK_PER_MINUTE - 1.0).abs() < 0.1, "{process:#}");
    let line = process["lines"][0]["line"].as_str().unwrap();
    assert!(line.starts_with("leak ("), "{process:#}");
    assert!(
        process["collections_per_second"].as_f64().unwrap() > 1.0,
        "{process:#}"
    );
    // By line it is what became resident while it was watched.
    let all: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file("all.json")).unwrap()).unwrap();
    let points = all["processes"][0]["points"].as_array().unwrap();
    let anon = |point: &serde_json::Value| point["memory"]["anon_bytes"].as_f64().unwrap();
    let grown = anon(&points[points.len() - 1]) - anon(&points[0]);
    let touched = all["processes"][0]["lines"][0]["touched_bytes"]
        .as_f64()
        .unwrap();
    eprintln!("{touched} bytes by line, {grown} resident");
    assert!(
        (touched / grown - 1.0).abs() < 0.1,
        "{touched} bytes by line, {grown} resident"
    );

    let plain = mem(pid, 2, &[]);
    let table = String::from_utf8(plain.stdout).unwrap();
    assert!(
        !table.contains('\x1b') && table.contains("leak ("),
        "{table}"
    );
    assert!(mem(pid, 2, &["-o", &file("a.svg")]).status.success());
    let svg = std::fs::read_to_string(file("a.svg")).unwrap();
    assert!(svg.contains("<polyline") && svg.contains("leak ("), "{svg}");
    let texts = texts_of_svg(&folder.path().join("a.svg"));
    assert!(
        texts.iter().any(|text| text.starts_with("leak (")),
        "{texts:?}"
    );
    assert!(mem(pid, 2, &["-o", &file("a.png")]).status.success());
    let image = Image::of_png(&folder.path().join("a.png"));
    // The four curves of one process: all, anonymous, files; what is shared may be hidden at the bottom.
    for colour in [[0x00, 0x72, 0xb2], [0xd5, 0x5e, 0x00], [0x00, 0x9e, 0x73]] {
        assert!(image.pixels.contains(&colour), "{colour:?}");
    }
    assert!(mem(pid, 2, &["-o", &file("a.dat")]).status.success());
    let dat = std::fs::read_to_string(file("a.dat")).unwrap();
    // As `read_mprofile_file` of mprof.py takes them.
    let memory: Vec<f64> = dat
        .lines()
        .filter_map(|line| line.strip_prefix("MEM ")?.split(' ').next()?.parse().ok())
        .collect();
    assert!(dat.starts_with("CMDLINE ") && memory.len() >= 4, "{dat}");
    assert!(memory.is_sorted() && memory[0] > 5.0, "{dat}");
}

#[test]
fn mem_says_what_it_cannot_do_and_ends_with_its_target() {
    let code = |arguments: &[&str]| {
        let output = Command::new(binary())
            .arg("mem")
            .args(arguments)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(errors.lines().count(), 1, "{errors}");
        output.status.code()
    };
    assert_eq!(code(&["--pid", "4194305"]), Some(4));
    assert_eq!(code(&["-o", "memory.gif"]), Some(2));
    assert_eq!(code(&["-o", "memory.dat"]), Some(2));
    let mut sleep = Command::new("sleep").arg("60").spawn().unwrap();
    assert_eq!(code(&["--pid", &sleep.id().to_string()]), Some(4));
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    let mut target = Target::python(
        &interpreters::newest(),
        "import time; print('ready', flush=True); time.sleep(4)",
        &[],
    );
    assert_eq!(target.line(), "ready");
    let output = mem(target.pid().0, 600, &[]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn mem_ends_in_time_and_when_it_is_told_to_and_loses_nothing_silently() {
    let mut target = Target::python(
        &interpreters::newest(),
        "print('ready', flush=True); input()",
        &[],
    );
    assert_eq!(target.line(), "ready");
    let pid = target.pid().to_string();
    let mem = |arguments: &[&str]| {
        // As if no `nohup` had started the tests: what is ignored stays so in children.
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP").arg(binary());
        command.args(["mem", "--pid", &pid]).args(arguments);
        command
    };
    // The interval is longer than all the time that there is.
    for arguments in [
        ["--every", "1h", "-d", "1s"],
        ["--once", "--every=1h", "-d", "1s"],
    ] {
        let begun = Instant::now();
        let output = mem(&arguments).output().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30), "{arguments:?}");
        let table = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && table.contains(&pid), "{table}");
    }
    for arguments in [&["-d", "1s"][..], &["-d", "1s", "--json"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = mem(arguments).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = mem(&["--every", "100ms"]).stdout(writer).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // The terminal ends.
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("memory.svg");
    let mut watching = mem(&["--json", "--every", "100ms", "-o"])
        .arg(&picture)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    let watching_pid = nix::unistd::Pid::from_raw(watching.id().cast_signed());
    nix::sys::signal::kill(watching_pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    lines.for_each(drop);
    assert!(watching.wait().unwrap().success());
    assert!(
        std::fs::read_to_string(&picture)
            .unwrap()
            .ends_with("</svg>\n")
    );
    // Nothing is selected.
    let output = Command::new(binary())
        .args(["mem", "--comm", "no such name", "--every", "1s", "--once"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

/// Keeps 1,000 more objects of a class a second.
const KEEPS: &str = "
import time
class Row:
    def __init__(self, n):
        self.name = 'row %d' % n
kept = []
def remember(n):
    kept.append(Row(n))
print('ready', flush=True)
start = time.monotonic()
n = 0
while True:
    for _ in range(100):
        remember(n)
        n += 1
    time.sleep(max(0, start + n / 1000 - time.monotonic()))
";

/// Fills within five seconds and stays full.
const FILLS: &str = "
import random, time
cache = {}
print('ready', flush=True)
while True:
    for _ in range(2000):
        key = random.randrange(20000)
        if key not in cache:
            cache[key] = bytes(2000)
    time.sleep(0.1)
";

/// Allocates and frees, more and less, small and large, in cycles.
const CHURNS: &str = "
import random, time
class Node:
    pass
def work():
    rows = [{'id': n, 'values': [n] * random.randrange(50)} for n in range(random.randrange(20000))]
    large = bytearray(random.randrange(20 << 20))
    return len(rows) + len(large)
print('ready', flush=True)
while True:
    work()
    node = Node()
    node.itself = node
    time.sleep(random.random() * 0.2)
";

#[test]
fn leaks_finds_what_only_grows_and_nothing_else() {
    let python = interpreters::newest();
    let look = |code: &str| {
        let mut target = Target::python(&python, code, &[]);
        assert_eq!(target.line(), "ready");
        let output = Command::new(binary())
            .args(["leaks", "--json", "-d", "30s", "--pid"])
            .arg(target.pid().to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    std::thread::scope(|scope| {
        let others = [FILLS, CHURNS].map(|code| scope.spawn(move || look(code)));
        let found = look(KEEPS);
        let types = found["types"].as_array().unwrap();
        let row = types
            .iter()
            .find(|of| of["type"] == "Row")
            .expect("Row only grows");
        assert_eq!(row["module"], "__main__");
        let per_second = row["objects_per_second"].as_f64().unwrap();
        eprintln!("{per_second:.0} objects a second, p {}", row["p"]);
        assert!((per_second / 1000.0 - 1.0).abs() < 0.05, "{found:#}");
        let line = found["touched"][0]["line"].as_str().unwrap();
        assert!(
            line.starts_with("Row.__init__ (") || line.starts_with("remember ("),
            "{found:#}"
        );
        assert_eq!(found["conclusive"], true);
        for other in others {
            let found = other.join().unwrap();
            assert_eq!(found["conclusive"], true);
            assert!(found["types"].as_array().unwrap().is_empty(), "{found:#}");
        }
    });
}

#[test]
fn leaks_says_when_the_time_was_too_short_to_tell() {
    let mut target = Target::python(&interpreters::newest(), KEEPS, &[]);
    assert_eq!(target.line(), "ready");
    let leaks = |arguments: &[&str]| {
        let pid = target.pid().to_string();
        let mut command = Command::new(binary());
        let output = command
            .args(["leaks", "--pid", &pid])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let errors = String::from_utf8(output.stderr).unwrap();
        (String::from_utf8(output.stdout).unwrap(), errors)
    };
    let (report, errors) = leaks(&["-d", "2s"]);
    assert!(report.contains("too few looks"), "{report}");
    assert!(!report.contains("nothing only grows"), "{report}");
    assert!(
        errors.contains("too short") && errors.contains("--duration"),
        "{errors}"
    );
    let (report, _) = leaks(&["-d", "2s", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["conclusive"], false);
    assert!(
        report["inconclusive_because"]
            .as_str()
            .unwrap()
            .contains("too few looks")
    );
    // What it says is needed suffices, with a little more.
    let (report, _) = leaks(&["-d", "8s"]);
    assert!(report.contains("__main__.Row"), "{report}");
}
