//! `pyagent record` and `doctor` as a user types them: exit codes, one-line errors, and files that are there
//! whatever happens to the terminal. Root.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::pyagent::binary;
use pyagent_tests::target::Target;

/// Uses the CPU until it is killed.
const SPIN: &str = "
print('ready', flush=True)
def spin():
    while True:
        for i in range(1000):
            pass
spin()
";

/// The same in a second thread, whose id it prints.
const SPIN_IN_A_THREAD: &str = "
import threading
def spin():
    print(threading.get_native_id(), flush=True)
    while True:
        for i in range(1000):
            pass
threading.Thread(target=spin).start()
";

const SPIN_IN_PYTHON_2: &str = "
print('ready')
while True:
    pass
";

fn spinning(python: &Interpreter) -> Target {
    let mut target = Target::python(python, SPIN, &[]);
    assert_eq!(target.line(), "ready");
    target
}

fn pyagent(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.current_dir(folder).args(arguments);
    command.stdin(Stdio::null());
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    pyagent(folder, arguments).output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn assert_refused(output: &Output, exit_code: i32, reason: &str) {
    let errors = errors(output);
    assert_eq!(output.status.code(), Some(exit_code), "{errors}");
    assert!(errors.contains(reason), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn what_cannot_be_recorded_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let python = interpreters::newest();
    let record = |pid: &str| run(folder.path(), &["record", "--pid", pid, "-d", "1"]);
    assert_refused(&record("4194303"), 4, "there is no process 4194303");

    let mut threaded = Target::python(&python, SPIN_IN_A_THREAD, &[]);
    let tid = threaded.line();
    let told = format!("{tid} is a thread of process {}", threaded.pid());
    assert_refused(&record(&tid), 4, &told);
    drop(threaded);

    let other = Target::start(Command::new("sleep").arg("30"));
    assert_refused(&record(&other.pid().to_string()), 4, "runs no CPython");

    let spinning = spinning(&python);
    let pid = spinning.pid().to_string();
    let left_out = run(
        folder.path(),
        &["record", "--pid", &pid, "--exclude-pid", &pid],
    );
    assert_refused(&left_out, 4, "left out");

    if let Some(old) = interpreters::python2() {
        let mut old = Target::start(Command::new(old).args(["-u", "-c", SPIN_IN_PYTHON_2]));
        assert_eq!(old.line(), "ready");
        assert_refused(&record(&old.pid().to_string()), 4, "is not supported");
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_control_group_without_a_process_and_a_folder_in_place_of_a_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let group = "/no/such/group";
    let arguments = ["record", "--cgroup", group, "-d", "1s", "-o", "x.svg"];
    assert_refused(&run(folder.path(), &arguments), 4, group);
    let arguments = ["record", "--all-python", "-d", "1s", "-o", "."];
    assert_refused(&run(folder.path(), &arguments), 2, "is a folder");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_standard_error_that_cannot_be_written_to_costs_neither_the_file_nor_the_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let python = interpreters::newest();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let spinning = spinning(&python);
    let pid = spinning.pid().to_string();
    let mut record = pyagent(
        folder.path(),
        &["record", "--pid", &pid, "-d", "300ms", "-o", "pid.folded"],
    );
    assert!(record.stderr(full()).status().unwrap().success());
    let folded = fs::read_to_string(folder.path().join("pid.folded")).unwrap();
    assert!(folded.contains("spin"), "{folded}");

    let path = python.path.to_str().unwrap();
    let code = "import sys\nfor i in range(3000000): pass\nsys.exit(7)";
    let mut record = pyagent(
        folder.path(),
        &["record", "-o", "cmd.folded", "--", path, "-c", code],
    );
    assert_eq!(record.stderr(full()).status().unwrap().code(), Some(7));
    assert!(folder.path().join("cmd.folded").exists());

    let mut doctor = pyagent(folder.path(), &["doctor"]);
    let output = doctor.stdout(full()).output().unwrap();
    assert_refused(&output, 1, "cannot write to standard output");
}

#[test]
fn a_hang_up_ends_a_recording_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let spinning = spinning(&interpreters::newest());
    let pid = spinning.pid().to_string();
    for signal in [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT] {
        let file = format!("{signal}.folded");
        // As if no `nohup` had started the tests: what is ignored stays so in children.
        let mut record = Command::new("env")
            .arg("--default-signal=HUP")
            .arg(binary())
            .args(["record", "--pid", &pid, "-o", &file])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        kill(
            nix::unistd::Pid::from_raw(record.id().cast_signed()),
            signal,
        )
        .unwrap();
        let status = record.wait().unwrap();
        eprintln!("{signal}: {status} after {:.0?}", begun.elapsed());
        assert!(status.success(), "{signal}: {status}");
        let folded = fs::read_to_string(folder.path().join(file)).unwrap();
        assert!(folded.contains("spin"), "{signal}: {folded}");
    }
}

#[test]
fn the_second_signal_ends_a_recording_whose_command_ignores_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let python = interpreters::newest();
    let path = python.path.to_str().unwrap();
    let code = "import signal, os, time\n\
                signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
                open('pid', 'w').write(str(os.getpid()))\n\
                end = time.monotonic() + 20\n\
                while time.monotonic() < end: pass";
    let mut record = pyagent(
        folder.path(),
        &["record", "-o", "out.folded", "--", path, "-c", code],
    )
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let pid = nix::unistd::Pid::from_raw(record.id().cast_signed());
    kill(pid, Signal::SIGTERM).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(record.try_wait().unwrap().is_none(), "CMD goes on");
    kill(pid, Signal::SIGTERM).unwrap();
    let status = record.wait().unwrap();
    let command: i32 = fs::read_to_string(folder.path().join("pid"))
        .unwrap()
        .parse()
        .unwrap();
    kill(nix::unistd::Pid::from_raw(command), Signal::SIGKILL).unwrap();
    assert!(status.success(), "{status}");
    assert!(folder.path().join("out.folded").exists());
}

#[test]
fn a_script_that_starts_python_is_recorded_with_its_children_or_told() {
    let folder = tempfile::tempdir().unwrap();
    let python = interpreters::newest();
    let script = format!(
        "{} -c 'for i in range(10000000): pass'; exit 3",
        python.path.display()
    );
    let command = ["--", "sh", "-c", &script];
    let alone = ["record", "-o", "alone.folded"];
    let output = run(folder.path(), &[&alone[..], &command].concat());
    assert_eq!(output.status.code(), Some(3), "{}", errors(&output));
    assert!(
        errors(&output).contains("--subprocesses"),
        "{}",
        errors(&output)
    );
    let with_children = ["record", "--subprocesses", "-o", "all.folded"];
    let output = run(folder.path(), &[&with_children[..], &command].concat());
    assert_eq!(output.status.code(), Some(3), "{}", errors(&output));
    let folded = fs::read_to_string(folder.path().join("all.folded")).unwrap();
    assert!(folded.contains("<module>"), "{folded}");
}

#[test]
fn a_pipe_gets_the_whole_profile_and_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let spinning = spinning(&interpreters::newest());
    let pid = spinning.pid().to_string();
    let pipe = folder.path().join("pipe.folded");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || fs::read_to_string(pipe).unwrap())
    };
    let arguments = ["record", "--pid", &pid, "-d", "500ms", "-o", "pipe.folded"];
    let output = run(folder.path(), &arguments);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(reader.join().unwrap().contains("spin"));
    // And nobody reads now.
    let output = run(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert!(
        errors(&output).contains("pipe.folded"),
        "{}",
        errors(&output)
    );
}

/// Starts a child that uses the CPU like itself, until its parent has ended, and says when it has.
const SPIN_WITH_A_CHILD: &str = "
import os, subprocess, sys
def spin_of_child():
    parent = os.getppid()
    while os.getppid() == parent:
        for i in range(100000):
            pass
def spin_of_parent():
    subprocess.Popen([sys.executable, '-I', '-S', '-c', SOURCE, 'child'])
    print('ready', flush=True)
    while True:
        for i in range(1000):
            pass
if len(sys.argv) == 1:
    spin_of_parent()
else:
    spin_of_child()
";

#[test]
fn what_is_left_out_is_left_out_however_it_is_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let python = interpreters::newest();
    let target = spinning(&python);
    let pid = target.pid().to_string();
    for _ in 0..5 {
        let arguments = ["mem", "--pid", &pid, "--exclude-pid", &pid, "--once"];
        let output = run(
            folder.path(),
            &[&arguments[..], &["--every", "300ms"]].concat(),
        );
        assert_eq!(output.status.code(), Some(4), "{}", errors(&output));
    }
    // A child comes with its parent, but not against its name.
    let source = SPIN_WITH_A_CHILD.replace("SOURCE", "''");
    let code = format!("SOURCE = {source:?}\n{SPIN_WITH_A_CHILD}");
    let mut parent = Target::python(&python, &code, &[]);
    assert_eq!(parent.line(), "ready");
    let pid = parent.pid().to_string();
    for (exclude, is_there) in [("xyz", true), ("child$", false)] {
        let arguments = ["record", "--pid", &pid, "--subprocesses", "-d", "1s"];
        let rest = ["--exclude-cmdline", exclude, "-o", "out.folded"];
        let output = run(folder.path(), &[&arguments[..], &rest].concat());
        assert!(output.status.success(), "{}", errors(&output));
        let profile = fs::read_to_string(folder.path().join("out.folded")).unwrap();
        assert!(profile.contains("spin_of_parent"), "{profile}");
        assert_eq!(profile.contains("spin_of_child"), is_there, "{profile}");
    }
}
