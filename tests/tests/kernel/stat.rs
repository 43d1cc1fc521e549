//! `pyagent stat`: its figures against those of programs that know what they use and against another program's, its JSON by a
//! reader in Python, and how it ends. Root.

use std::process::{Command, Output, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use pyagent_tests::interpreters;
use pyagent_tests::pyagent::binary;
use serde_json::Value;

/// Burns CPU time, touches memory, and waits; then prints what the kernel counted for it until here.
const USES: &str = "
import json, resource, sys, time
begun = time.monotonic()
def burn():
    x = 0
    while sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) < 0.5:
        for _ in range(1000): x += 1
def touch():
    return bytearray(200 << 20)
burn()
kept = touch()
for _ in range(60):
    time.sleep(0.001)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    'wall': time.monotonic() - begun, 'cpu': used.ru_utime + used.ru_stime, 'rss': used.ru_maxrss * 1024,
    'minor': used.ru_minflt, 'voluntary': used.ru_nvcsw, 'involuntary': used.ru_nivcsw}))
";

/// Runs a command as a child of its own, and prints what the kernel counted for all children.
const MEASURES: &str = "
import json, os, resource, sys
pid = os.fork()
if not pid:
    os.dup2(2, 1)
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(pid, 0)
print(json.dumps({'rss': used.ru_maxrss * 1024, 'minor': used.ru_minflt}))
";

/// Reads what hyperfine documents of its JSON, and checks its figures against each other.
const READER: &str = "
import json, math, statistics, sys
result, = json.load(open(sys.argv[1]))['results']
assert isinstance(result['command'], str)
for key in 'mean stddev median user system min max'.split():
    assert isinstance(result[key], float) and math.isfinite(result[key]), key
times = result['times']
assert all(isinstance(it, float) for it in times)
assert all(isinstance(it, int) for it in result['memory_usage_byte'] + result['exit_codes'])
assert len(times) == len(result['memory_usage_byte']) == len(result['exit_codes']) == int(sys.argv[2])
close = lambda a, b: math.isclose(a, b, rel_tol=1e-9)
assert close(result['mean'], statistics.mean(times)) and close(result['median'], statistics.median(times))
assert close(result['stddev'], statistics.stdev(times))
assert close(result['min'], min(times)) and close(result['max'], max(times))
print('read')
";

fn stat(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("stat").args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

fn json(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    document["results"][0].clone()
}

fn python() -> String {
    interpreters::newest().path.to_str().unwrap().to_owned()
}

fn column(result: &Value, name: &str) -> Vec<f64> {
    let values = result[name].as_array().unwrap().iter();
    values.map(|value| value.as_f64().unwrap()).collect()
}

#[test]
fn figures_are_those_of_programs_that_know_what_they_use() {
    let python = python();
    let begun = Instant::now();
    let output = stat(&["-r", "3", "--json", "--", &python, "-I", "-S", "-c", USES]);
    let elapsed = begun.elapsed().as_secs_f64();
    let result = json(&output);
    // What the program printed is on standard error: standard output is the document's.
    let own: Vec<Value> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    assert_eq!(own.len(), 3);
    let of_own = |name: &str| {
        own.iter()
            .map(|run| run[name].as_f64().unwrap())
            .collect::<Vec<_>>()
    };
    let user = column(&result, "user_times");
    let system = column(&result, "system_times");
    let cpu: Vec<f64> = user
        .iter()
        .zip(&system)
        .map(|(user, system)| user + system)
        .collect();
    let walls = column(&result, "times");
    // The start and the end of the interpreter are in it, so it is never less; and not more than there was.
    for (name, seen, known) in [
        ("wall", &walls, of_own("wall")),
        ("cpu", &cpu, of_own("cpu")),
        (
            "voluntary",
            &column(&result, "voluntary_switches"),
            of_own("voluntary"),
        ),
        (
            "involuntary",
            &column(&result, "involuntary_switches"),
            of_own("involuntary"),
        ),
        ("minor", &column(&result, "minor_faults"), of_own("minor")),
        ("rss", &column(&result, "memory_usage_byte"), of_own("rss")),
    ] {
        for (seen, known) in seen.iter().zip(known) {
            // Microseconds of two readings of one clock.
            assert!(*seen >= known - 1e-5, "{name}: {seen} {known}");
        }
    }
    assert!(walls.iter().sum::<f64>() <= elapsed);
    for (cpu, wall) in cpu.iter().zip(&walls) {
        // One thread, and the clock tick of the kernel's accounting at both ends.
        assert!(*cpu <= wall + 0.02, "{cpu} {wall}");
    }
    assert!(
        column(&result, "voluntary_switches")
            .iter()
            .all(|n| *n >= 60.0)
    );
    // What was touched, and not twice that: the interpreter is a tenth of it.
    for rss in column(&result, "memory_usage_byte") {
        assert!((200.0..240.0).contains(&(rss / 1048576.0)), "{rss}");
    }
    // All of them, since pyagent is root here: the function that burns and the one that touches.
    let functions = result["profile"]["functions"].to_string();
    assert!(
        functions.contains("\"burn\"") && functions.contains("\"touch\""),
        "{result}"
    );
}

#[test]
fn memory_and_faults_are_those_that_another_parent_is_told() {
    let python = python();
    let command = [&*python, "-I", "-S", "-c", "x = bytearray(50 << 20)"];
    let measured = Command::new(&python)
        .args(["-I", "-S", "-c", MEASURES])
        .args(command)
        .output()
        .unwrap();
    let measured: Value = serde_json::from_slice(&measured.stdout).unwrap();
    let result = json(&stat(
        &[&["--no-profile", "--json", "--"][..], &command].concat(),
    ));
    for (name, known) in [("memory_usage_byte", "rss"), ("minor_faults", "minor")] {
        let (seen, known) = (column(&result, name)[0], measured[known].as_f64().unwrap());
        // A page here and there: addresses are chosen at random, and copies of two different parents begin with other pages.
        assert!((seen / known - 1.0).abs() < 0.05, "{name}: {seen} {known}");
    }
    // A small command does not have the memory of pyagent: less than pyagent's binary alone.
    let small = column(
        &json(&stat(&["--no-profile", "--json", "--", "true"])),
        "memory_usage_byte",
    )[0];
    assert!(small < 10.0 * 1048576.0, "{small}");
}

#[test]
fn what_a_command_waits_for_counts_and_its_functions_too() {
    let python = python();
    let shell = format!("'{python}' -I -S -c \"$1\" & wait");
    let result = json(&stat(&["--json", "--", "sh", "-c", &shell, "sh", USES]));
    assert!(result["user"].as_f64().unwrap() + result["system"].as_f64().unwrap() >= 0.5);
    assert!(
        result["profile"]["functions"]
            .to_string()
            .contains("\"burn\""),
        "{result}"
    );
}

#[test]
fn the_json_is_hyperfines() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.json");
    let file = file.to_str().unwrap();
    let arguments = [
        "-r",
        "4",
        "--warmup",
        "1",
        "--no-profile",
        "--export-json",
        file,
        "--",
        "sh",
        "-c",
        "echo x",
    ];
    let output = stat(&arguments);
    assert!(output.status.success());
    // The warm-up prints as well.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "x\n".repeat(5));
    let read = Command::new(python())
        .args(["-c", READER, file, "4"])
        .output()
        .unwrap();
    assert_eq!(
        read.stdout,
        b"read\n",
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );
}

#[test]
fn a_command_that_fails_ends_it_with_its_exit_code() {
    for (arguments, code, parts) in [
        (
            &["-r", "3", "--", "sh", "-c", "echo x; exit 7"][..],
            7,
            &[
                "1 run of",
                "of 3 that were asked for",
                "run 1 of 3",
                "exit code 7",
            ][..],
        ),
        (
            &["-r", "3", "-i", "--", "sh", "-c", "echo x; exit 7"],
            0,
            &["exit code 7 (3 times)"],
        ),
        (&["--", "sh", "-c", "kill -9 $$"], 137, &["signal 9"]),
        (&["--warmup", "1", "--", "false"], 1, &["warm-up 1 of 1"]),
        (&["--", "/nosuch/command"], 127, &["No such file"]),
        (&["--", "/etc"], 126, &["denied"]),
        (&["-o", "x.what", "--", "true"], 2, &[".pb.gz"]),
        (&["-r", "0", "--", "true"], 2, &["1..=1000000"]),
        (&["--"], 2, &["CMD"]),
    ] {
        let is_profiled = arguments.contains(&"-o");
        let no_profile = if is_profiled {
            &[][..]
        } else {
            &["--no-profile"]
        };
        let output = stat(&[no_profile, arguments].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        for part in parts {
            assert!(errors.contains(part), "{arguments:?}: {errors}");
        }
    }
}

#[test]
fn what_a_command_prints_is_shown_unless_it_is_thrown_away() {
    let run = |flag: &str| {
        let output = stat(&[
            flag,
            "--no-profile",
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2",
        ]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    };
    let (out, errors) = run("--ignore-failure");
    assert!(
        out == "out\n" && errors.starts_with("err\n1 run of sh"),
        "{errors}"
    );
    let (out, errors) = run("--discard");
    assert!(
        out.is_empty() && errors.starts_with("1 run of sh"),
        "{errors}"
    );
    let (out, errors) = run("--json");
    assert!(out.starts_with('{') && errors == "out\nerr\n", "{errors}");
}

#[test]
fn one_run_reads_what_is_typed_and_several_read_nothing() {
    for (runs, expected) in [("1", "typed\n"), ("2", "")] {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new(binary());
        command.args(["stat", "--no-profile", "-r", runs, "--", "cat"]);
        let child = command
            .stdin(reader)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(command);
        std::io::Write::write_all(&mut &writer, b"typed\n").unwrap();
        drop(writer);
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
}

#[test]
fn a_signal_ends_it_with_what_there_is() {
    // The second run says that it is there, and waits.
    let script = "if [ -e \"$0\" ]; then echo ready; sleep 60; else : > \"$0\"; fi";
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let mut child = Command::new(binary())
            .args([
                "stat",
                "--no-profile",
                "-r",
                "5",
                "--",
                "sh",
                "-c",
                &format!("exec 2>&1; {script}"),
            ])
            .arg(&mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        kill(pid, signal).unwrap();
        let mut errors = String::new();
        std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut errors).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{errors}");
        assert!(errors.starts_with("1 run of sh"), "{errors}");
        assert!(errors.contains(", of 5 that were asked for"), "{errors}");
    }
}

#[test]
fn without_rights_it_times_and_says_why_there_are_no_functions() {
    let output = Command::new("setpriv")
        .args(["--reuid", "4243", "--regid", "4243", "--clear-groups"])
        .arg(binary())
        .args(["stat", "--", "true"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("wall time"), "{errors}");
    assert!(errors.contains("no functions: CAP_BPF"), "{errors}");
}

#[test]
fn the_help_fits_a_screen_and_the_long_one_teaches() {
    let help = stat(&["-h"]);
    let help = String::from_utf8_lossy(&help.stdout);
    assert!(
        help.lines().count() <= 40 && help.contains("Examples:"),
        "{help}"
    );
    let help = stat(&["--help"]);
    assert!(String::from_utf8_lossy(&help.stdout).contains("It times whole commands"));
}
