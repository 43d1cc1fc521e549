//! `pyagent heap` as a command: what it writes where, how it ends, and what it says when it cannot. Root.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use pyagent_tests::interpreters;
use pyagent_tests::pyagent::binary;
use pyagent_tests::target::Target;
use serde_json::Value;

/// Waits for a line, and becomes itself then.
const BECOMES_ITSELF: &str = "\
import os, sys
print('ready', flush=True)
sys.stdin.readline()
os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', 'print(\"again\", flush=True); input()'])
";

fn start(code: &str) -> Target {
    let mut target = Target::python(&interpreters::newest(), code, &[]);
    assert_eq!(target.line(), "ready");
    target
}

fn idle() -> Target {
    start("print('ready', flush=True); input()")
}

fn heap(target: &Target, arguments: &[&str]) -> Command {
    // Whoever runs the tests may ignore what a terminal sends when it ends, as nohup does.
    let mut command = Command::new("env");
    command
        .arg("--default-signal=HUP")
        .arg(binary())
        .args(["heap", "--pid", &target.pid().to_string()])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// What was said on standard error, which is one line, and the exit code.
fn refusal(output: &Output) -> (String, Option<i32>) {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
    (message, output.status.code())
}

/// A chart that is being drawn every 100 ms.
struct Drawing {
    child: Child,
    errors: BufReader<ChildStderr>,
}

impl Drawing {
    fn start(target: &Target, page: &Path) -> Self {
        let mut child = heap(target, &["--every", "100ms", "-o"])
            .arg(page)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        Self { child, errors }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.errors.read_line(&mut line).unwrap();
        line
    }

    /// The lines until there is one with these words, some ten seconds at most.
    fn lines_until(&mut self, words: &str) -> Vec<String> {
        let mut lines = Vec::new();
        while !lines
            .last()
            .is_some_and(|line: &String| line.contains(words))
        {
            lines.push(self.line());
            assert_ne!(lines.last().unwrap(), "", "{lines:?}");
            assert!(lines.len() < 100, "{lines:?}");
        }
        lines
    }

    fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

#[test]
fn a_chart_is_ended_by_each_signal_that_ends_a_program_and_is_complete_then() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("heap.html");
    let target = idle();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut drawing = Drawing::start(&target, &page);
        let first = drawing.line();
        assert!(first.contains("1 look\n"), "{first}");
        drawing.signal(signal);
        drawing.lines_until("complete");
        assert_eq!(drawing.code(), Some(0), "{signal}");
        assert!(fs::read_to_string(&page).unwrap().contains("</html>"));
    }
}

#[test]
fn a_chart_that_cannot_be_written_is_written_with_the_next_look() {
    let folder = tempfile::tempdir().unwrap();
    let (here, away) = (folder.path().join("here"), folder.path().join("away"));
    fs::create_dir(&here).unwrap();
    let target = idle();
    let mut drawing = Drawing::start(&target, &here.join("heap.html"));
    drawing.line();
    fs::rename(&here, &away).unwrap();
    drawing.lines_until("tried again");
    fs::rename(&away, &here).unwrap();
    // Once it was said that it failed; then it works.
    let lines = drawing.lines_until("looks");
    assert_eq!(lines.len(), 1, "{lines:?}");
    fs::rename(&here, &away).unwrap();
    drawing.lines_until("tried again");
    drawing.signal(Signal::SIGINT);
    drawing.lines_until("cannot write");
    assert_eq!(drawing.code(), Some(1));
}

#[test]
fn a_chart_ends_when_the_process_becomes_another_program() {
    let folder = tempfile::tempdir().unwrap();
    let mut target = start(BECOMES_ITSELF);
    let mut drawing = Drawing::start(&target, &folder.path().join("heap.html"));
    drawing.line();
    target.tell("");
    assert_eq!(target.line(), "again");
    let lines = drawing.lines_until("complete");
    assert!(
        lines.last().unwrap().contains("another program"),
        "{lines:?}"
    );
    assert_eq!(drawing.code(), Some(0));
}

#[test]
fn counts_of_another_program_are_compared_with_a_warning() {
    let state = tempfile::tempdir().unwrap();
    let run = |target: &Target, arguments: &[&str]| {
        let output = heap(target, arguments)
            .env("XDG_STATE_HOME", state.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output
    };
    let mut target = start(BECOMES_ITSELF);
    run(&target, &["--mark"]);
    assert_eq!(run(&target, &["--diff"]).stderr, b"");
    target.tell("");
    assert_eq!(target.line(), "again");
    let changes = run(&target, &["--diff", "--json"]);
    let (message, _) = refusal(&changes);
    assert!(message.contains("another program"), "{message}");
    let changes: Value = serde_json::from_slice(&changes.stdout).unwrap();
    assert_eq!(changes["warnings"].as_array().unwrap().len(), 1);
    // Another process, from the file of this one.
    let file = state.path().join("counts.json");
    fs::write(&file, run(&target, &["--json"]).stdout).unwrap();
    let other = run(&idle(), &["--diff", file.to_str().unwrap()]);
    let (message, _) = refusal(&other);
    assert!(message.contains(&target.pid().to_string()), "{message}");
}

#[test]
fn what_cannot_be_written_is_an_error_and_a_reader_that_has_gone_is_none() {
    let target = idle();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = heap(&target, &[]).stdout(full).output().unwrap();
    assert_eq!(refusal(&output).1, Some(1));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = heap(&target, &[]).stdout(writer).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn refusals_name_what_is_missing_once_and_have_their_codes() {
    let target = idle();
    let run = |arguments: &[&str]| refusal(&heap(&target, arguments).output().unwrap());
    let (message, code) = run(&["--diff", "/nonexistent.json"]);
    assert_eq!(code, Some(1));
    assert_eq!(message.matches("No such file").count(), 1, "{message}");
    let (message, code) = run(&["--every", "1s", "-o", "heap.txt"]);
    assert_eq!(code, Some(2));
    assert!(message.contains(".html"), "{message}");
    let nobody = heap(&target, &[]).uid(65534).gid(65534).output().unwrap();
    let (message, code) = refusal(&nobody);
    assert_eq!(code, Some(3), "{message}");
    assert!(message.contains("CAP_SYS_PTRACE"), "{message}");
    let mut ended = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    // Its end of the pipe is closed at its end.
    std::io::copy(ended.stdout.as_mut().unwrap(), &mut std::io::sink()).unwrap();
    let pid = ended.id();
    while !fs::read_to_string(format!("/proc/{pid}/stat"))
        .unwrap()
        .contains(") Z")
    {
        std::thread::yield_now();
    }
    let zombie = Command::new(binary())
        .args(["heap", "--pid", &pid.to_string()])
        .output();
    let (message, code) = refusal(&zombie.unwrap());
    assert_eq!(code, Some(4));
    assert!(message.contains("zombie"), "{message}");
    ended.wait().unwrap();
}

#[test]
fn a_class_is_called_by_its_module_however_long_and_whatever_it_is() {
    let target = start(
        "\
class Long: pass
Long.__module__ = 'm' * 3000
class NoStr: pass
NoStr.__module__ = 5
kept = [Long(), NoStr()]
print('ready', flush=True)
input()
",
    );
    let output = heap(&target, &["--json"]).output().unwrap();
    let counts: Value = serde_json::from_slice(&output.stdout).unwrap();
    let module = |name: &str| {
        let mut types = counts["types"].as_array().unwrap().iter();
        let found = types.find(|of| of["type"] == name).unwrap();
        found["module"].as_str().unwrap().to_owned()
    };
    assert_eq!(module("Long"), "m".repeat(3000));
    assert_eq!(module("NoStr"), "[no str]");
}
