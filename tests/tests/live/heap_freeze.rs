//! `--freeze`: a process stands while it is looked at, all of it, not longer than it may, and goes on as if nothing had been.
//! Root.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use profiler_agent::heap::snapshot::Snapshot;
use profiler_agent::ids::Pid;
use profiler_agent::process::freeze::{End, Freeze, FreezeError, MAX_LIMIT, Release};
use pyagent_tests::interpreters;
use pyagent_tests::pyagent::binary;
use pyagent_tests::target::Target;
use serde_json::Value;

/// Counts in memory that it shares with the test: three threads that compete for the GIL, two that work without it, one that
/// starts others. Then it reads lines: what to do.
const BUSY: &str = "\
import hashlib, mmap, os, signal, sys, threading
file = open(sys.argv[1], 'r+b')
shared = memoryview(mmap.mmap(file.fileno(), 4096)).cast('Q')
def count(at):
    while True:
        shared[at] += 1
def digest(at):
    data = bytes(1 << 16)
    while True:
        hashlib.sha256(data)
        shared[at] += 1
def once():
    shared[5] += 1
def start(at):
    while True:
        thread = threading.Thread(target=once)
        thread.start()
        thread.join()
kept = [object() for _ in range(int(sys.argv[2]))]
received, wakeup = os.pipe()
os.set_blocking(received, False)
os.set_blocking(wakeup, False)
signal.set_wakeup_fd(wakeup)
for number in (signal.SIGUSR1, signal.SIGRTMIN + 3):
    signal.signal(number, lambda *_: None)
for at, what in enumerate([count, count, count, digest, digest, start]):
    threading.Thread(target=what, args=(at,), daemon=True).start()
print('ready', flush=True)
for line in sys.stdin:
    if line == 'signals\\n':
        numbers = b''
        try:
            while True:
                numbers += os.read(received, 1 << 16)
        except BlockingIOError:
            pass
        print(numbers.count(signal.SIGUSR1), numbers.count(signal.SIGRTMIN + 3), flush=True)
    else:
        print('alive', flush=True)
";

/// Counters of [`BUSY`].
const N_COUNTERS: usize = 6;

/// Makes and drops objects of a class, 20,000 to 150,000 at a time, and says how many there are: before one more is made, and
/// after. A second thread churns other objects.
const CHURNING: &str = "\
import mmap, sys, threading
file = open(sys.argv[1], 'r+b')
shared = memoryview(mmap.mmap(file.fileno(), 4096)).cast('Q')
class Node:
    __slots__ = ('value',)
kept = []
def other():
    while True:
        table = {str(number): [number] for number in range(500)}
def churn():
    while True:
        while len(kept) < 150_000:
            shared[0] += 1
            kept.append(Node())
            shared[1] += 1
        while len(kept) > 20_000:
            shared[1] -= 1
            kept.pop()
            shared[0] -= 1
threading.Thread(target=other, daemon=True).start()
threading.Thread(target=churn, daemon=True).start()
print('ready', flush=True)
input()
";

/// A program with memory that the test reads too.
struct Shared {
    target: Target,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Shared {
    fn start(code: &str, n_objects: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shared");
        fs::write(&path, [0; 4096]).unwrap();
        let arguments = [path.to_str().unwrap(), &n_objects.to_string()];
        let mut target = Target::python(&interpreters::newest(), code, &arguments);
        assert_eq!(target.line(), "ready");
        Self {
            target,
            path,
            _folder: folder,
        }
    }

    fn pid(&self) -> Pid {
        self.target.pid()
    }

    fn words<const N: usize>(&self) -> [u64; N] {
        let bytes = fs::read(&self.path).unwrap();
        std::array::from_fn(|idx| {
            u64::from_le_bytes(bytes[idx * 8..idx * 8 + 8].try_into().unwrap())
        })
    }

    /// Whether a counter moves within a moment.
    fn moves(&self) -> bool {
        let before: [u64; N_COUNTERS] = self.words();
        sleep(Duration::from_millis(50));
        self.words() != before
    }

    /// Waits until every counter has moved.
    fn assert_goes_on(&self) {
        let before: [u64; N_COUNTERS] = self.words();
        let have_moved = || {
            let now: [u64; N_COUNTERS] = self.words();
            now.iter().zip(&before).all(|(now, before)| now > before)
        };
        assert!(within_seconds(20, have_moved), "{before:?}");
        assert_eq!(tracer(self.pid()), 0);
    }

    fn signal(&self, signal: Signal) {
        kill(raw(self.pid()), signal).unwrap();
    }

    fn interpreter(&self) -> profiler_agent::python::discover::Interpreter {
        self.target.interpreter()
    }
}

fn raw(pid: Pid) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(pid.0.cast_signed())
}

fn within_seconds(n_seconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(n_seconds) {
        if condition() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().to_owned())
}

/// The thread that traces a process; 0: none does.
fn tracer(pid: Pid) -> u32 {
    status_field(pid.0, "TracerPid:").map_or(0, |tracer| tracer.parse().unwrap())
}

fn state(pid: u32) -> char {
    status_field(pid, "State:")
        .and_then(|state| state.chars().next())
        .unwrap_or('?')
}

/// Whether each thread is held by its tracer.
fn stands(pid: Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut stats = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("stat")));
    stats.all(|stat| stat.is_ok_and(|stat| stat.contains(") t ")))
}

fn freeze(pid: Pid) -> Freeze {
    Freeze::begin(pid, MAX_LIMIT, Release::default()).unwrap()
}

fn heap(pid: Pid, arguments: &[&str]) -> Command {
    let mut command = Command::new("env");
    command
        .arg("--default-signal=HUP,INT,TERM,TSTP")
        .arg(binary())
        .args(["heap", "--pid", &pid.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn refusal(output: &Output) -> (String, Option<i32>) {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(message.lines().count(), 1, "{output:?}");
    (message, output.status.code())
}

/// Starts pyagent with a freeze of ten seconds and waits until the process is held by it.
fn caught_while_frozen(shared: &Shared) -> Child {
    let mut child = heap(shared.pid(), &["--freeze=10s"]).spawn().unwrap();
    let mut has_ended = false;
    let is_held = within_seconds(60, || {
        has_ended = child.try_wait().unwrap().is_some();
        has_ended || stands(shared.pid())
    });
    if has_ended || !is_held {
        let mut errors = String::new();
        child.stderr.unwrap().read_to_string(&mut errors).unwrap();
        panic!("not seen while it was held: {errors}");
    }
    child
}

#[test]
fn while_frozen_no_thread_moves_and_afterwards_all_do() {
    let shared = Shared::start(BUSY, 0);
    for _ in 0..20 {
        shared.assert_goes_on();
        let freeze = freeze(shared.pid());
        assert!(!shared.moves(), "{:?}", shared.words::<N_COUNTERS>());
        assert!(!freeze.is_over());
        let stop = freeze.end();
        assert_eq!(stop.end, End::Asked);
        assert!(stop.lasted >= Duration::from_millis(50), "{stop:?}");
        assert_eq!(tracer(shared.pid()), 0);
    }
    shared.assert_goes_on();
}

#[test]
fn what_churns_is_counted_to_the_object_when_it_stands() {
    let mut shared = Shared::start(CHURNING, 0);
    let interpreter = shared.interpreter();
    let count = || {
        let snapshot = Snapshot::take(shared.target.pid(), &interpreter, 0, &mut |_, _| {});
        let types = snapshot.unwrap().types;
        let nodes = types.iter().find(|row| row.name.qualname == "Node");
        nodes.map_or(0, |row| row.count.n_objects)
    };
    let mut seen = Vec::new();
    for _ in 0..30 {
        // It has churned since the last time.
        let [before, _] = shared.words::<2>();
        let is_far = || shared.words::<2>()[0].abs_diff(before) > 5000;
        assert!(within_seconds(20, is_far));
        let freeze = freeze(shared.pid());
        let [most, least] = shared.words();
        let counted = count();
        assert!(!freeze.is_over(), "it stands for all of the look");
        drop(freeze);
        assert!(
            (least..=most).contains(&counted),
            "{counted}, truly {least} to {most}; before: {seen:?}"
        );
        assert!(most - least <= 1);
        seen.push(counted);
    }
    // The control: while it runs a count is of no moment, so of some looks it is not what it was before or after.
    let is_off = || {
        let [_, before] = shared.words::<2>();
        let counted = count();
        let [most, _] = shared.words::<2>();
        !(before.min(most)..=before.max(most)).contains(&counted)
    };
    let n_off = (0..30).filter(|_| is_off()).count();
    eprintln!(
        "30 of 30 exact while it stands ({seen:?}), {n_off} of 30 outside of all that was while it runs"
    );
    shared.target.tell("");
}

#[test]
fn signals_that_come_meanwhile_are_delivered_each_once() {
    const N: u32 = 300;
    let mut shared = Shared::start(BUSY, 0);
    let pid = shared.pid();
    // Some come while it stops, some while it stands, some while it is let go. Real-time signals are queued, each counts.
    let mut sender = Command::new("sh")
        .args([
            "-c",
            "for i in $(seq $2); do kill -$3 $1; sleep 0.001; done",
            "sh",
        ])
        .args([pid.to_string(), N.to_string(), "37".into()])
        .spawn()
        .unwrap();
    let mut n_freezes = 0;
    while sender.try_wait().unwrap().is_none() {
        let freeze = freeze(pid);
        shared.signal(Signal::SIGUSR1);
        sleep(Duration::from_millis(n_freezes % 7));
        drop(freeze);
        n_freezes += 1;
    }
    shared.assert_goes_on();
    // What was sent before is received before what is done next.
    let (mut usr1, mut real_time) = (0, 0);
    let all_came = within_seconds(10, || {
        shared.target.tell("signals");
        let line = shared.target.line();
        let (some, others) = line.split_once(' ').unwrap();
        usr1 += some.parse::<u64>().unwrap();
        real_time += others.parse::<u32>().unwrap();
        real_time >= N && usr1 > 0
    });
    eprintln!("{n_freezes} freezes, {real_time} of {N} real-time signals, {usr1} others");
    assert!(
        all_came && real_time == N,
        "{real_time} of {N}, {usr1} of {n_freezes}"
    );
    assert!(usr1 <= n_freezes);
}

#[test]
fn a_stopped_process_stays_stopped_and_its_parent_hears_nothing() {
    let shared = Shared::start(BUSY, 0);
    let pid = raw(shared.pid());
    let news = || {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED;
        waitpid(pid, Some(flags)).unwrap()
    };
    // Of a process that runs there is no news either.
    drop(freeze(shared.pid()));
    assert_eq!(news(), WaitStatus::StillAlive);
    shared.signal(Signal::SIGSTOP);
    let told = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(told, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    for _ in 0..5 {
        let freeze = freeze(shared.pid());
        assert!(!shared.moves());
        drop(freeze);
        assert!(within_seconds(10, || state(shared.pid().0) == 'T'));
        assert!(!shared.moves());
    }
    assert_eq!(news(), WaitStatus::StillAlive);
    shared.signal(Signal::SIGCONT);
    shared.assert_goes_on();
    // What comes while it stands is obeyed afterwards.
    let freeze = freeze(shared.pid());
    shared.signal(Signal::SIGSTOP);
    drop(freeze);
    assert!(within_seconds(10, || state(shared.pid().0) == 'T'));
    shared.signal(Signal::SIGCONT);
    shared.assert_goes_on();
}

#[test]
fn the_limit_ends_it_and_the_report_says_so() {
    let shared = Shared::start(BUSY, 1_000_000);
    let freeze = Freeze::begin(shared.pid(), Duration::from_secs(1), Release::default());
    let freeze = freeze.unwrap();
    assert!(within_seconds(10, || freeze.is_over()));
    shared.assert_goes_on();
    let stop = freeze.end();
    assert_eq!(stop.end, End::Limit);
    assert!(stop.lasted >= Duration::from_secs(1), "{stop:?}");
    // A million objects are not read in a millisecond.
    let output = heap(shared.pid(), &["--freeze=1ms", "--json"])
        .output()
        .unwrap();
    let counts: Value = serde_json::from_slice(&output.stdout).unwrap();
    let stopped = &counts["stopped"];
    assert_eq!(stopped["complete"], false, "{stopped}");
    assert!(stopped["why"].is_string(), "{stopped}");
    let table = heap(shared.pid(), &["--freeze=1ms"]).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert_eq!(table.matches("target stopped for").count(), 1, "{table}");
    shared.assert_goes_on();
}

#[test]
fn every_form_of_a_look_can_be_frozen_and_says_how_long_it_was() {
    let state = tempfile::tempdir().unwrap();
    let shared = Shared::start(BUSY, 10_000);
    let run = |arguments: &[&str]| {
        let output = heap(shared.pid(), arguments)
            .env("XDG_STATE_HOME", state.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8(text).unwrap()
    };
    for arguments in [
        &["--freeze"][..],
        &["--freeze", "--mark"],
        &["--freeze", "--diff"],
        &["--freeze=5s", "--show", "object"],
    ] {
        let text = run(arguments);
        assert_eq!(text.matches("target stopped for").count(), 1, "{text}");
        assert!(!text.contains("limit"), "{text}");
    }
    for arguments in [
        &["--freeze=10s", "--json"][..],
        &["--freeze=10s", "--json", "--diff"],
        &["--freeze=10s", "--json", "--show", "object"],
    ] {
        let value: Value = serde_json::from_str(&run(arguments)).unwrap();
        let stopped = &value["stopped"];
        assert_eq!(stopped["complete"], true, "{stopped}");
        assert!(stopped["microseconds"].as_u64().unwrap() > 0, "{stopped}");
    }
    let without: Value = serde_json::from_str(&run(&["--json"])).unwrap();
    assert!(without.get("stopped").is_none());
    shared.assert_goes_on();
    // Not longer than it may, and not without saying how long.
    for wrong in ["--freeze=11s", "--freeze=0", "--freeze=x"] {
        let output = heap(shared.pid(), &[wrong]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[test]
fn each_look_of_a_chart_stops_the_process_and_ctrl_c_lets_it_go() {
    use std::io::{BufRead as _, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("heap.html");
    let shared = Shared::start(BUSY, 2_000_000);
    let arguments = [
        "--freeze=10s",
        "--every",
        "100ms",
        "-o",
        page.to_str().unwrap(),
    ];
    let mut child = heap(shared.pid(), &arguments).spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    for _ in 0..2 {
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        assert!(line.contains("target stopped for"), "{line}");
    }
    assert!(within_seconds(60, || tracer(shared.pid()) != 0));
    kill(
        nix::unistd::Pid::from_raw(child.id().cast_signed()),
        Signal::SIGINT,
    )
    .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    shared.assert_goes_on();
}

#[test]
fn when_pyagent_dies_in_the_middle_the_process_goes_on() {
    let shared = Shared::start(BUSY, 3_000_000);
    for signal in [
        Signal::SIGKILL,
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
    ] {
        let mut child = caught_while_frozen(&shared);
        let pyagent = nix::unistd::Pid::from_raw(child.id().cast_signed());
        // Held for as long as the test wants: whoever stops pyagent has the process stand longer.
        kill(pyagent, Signal::SIGSTOP).unwrap();
        assert!(within_seconds(10, || state(child.id()) == 'T'));
        assert_ne!(
            tracer(shared.pid()),
            0,
            "it was let go too early for this test"
        );
        assert!(within_seconds(10, || !shared.moves()));
        kill(pyagent, signal).unwrap();
        if signal != Signal::SIGKILL {
            kill(pyagent, Signal::SIGCONT).unwrap();
        }
        assert_eq!(child.wait().unwrap().signal(), Some(signal as i32));
        shared.assert_goes_on();
    }
}

#[test]
fn ctrl_z_does_not_make_it_stand_longer() {
    let shared = Shared::start(BUSY, 1_000_000);
    let child = caught_while_frozen(&shared);
    kill(
        nix::unistd::Pid::from_raw(child.id().cast_signed()),
        Signal::SIGTSTP,
    )
    .unwrap();
    // It is not stopped, so it comes to its end.
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    shared.assert_goes_on();
}

#[test]
fn a_process_that_is_traced_is_refused_and_nothing_of_it_is_stopped() {
    let shared = Shared::start(BUSY, 0);
    let freeze = freeze(shared.pid());
    let second = Freeze::begin(shared.pid(), MAX_LIMIT, Release::default());
    let Err(FreezeError::Traced { tracer: owner, .. }) = second else {
        panic!("{second:?}");
    };
    assert_eq!(
        status_field(owner.0, "Tgid:"),
        Some(std::process::id().to_string())
    );
    let (message, code) = refusal(&heap(shared.pid(), &["--freeze"]).output().unwrap());
    assert_eq!(code, Some(1), "{message}");
    assert!(
        message.contains(&format!("traced already by process {owner}")),
        "{message}"
    );
    drop(freeze);
    shared.assert_goes_on();
    // A debugger that lets it run.
    let strace = Command::new("strace")
        .args(["-f", "-e", "trace=none", "-p", &shared.pid().to_string()])
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut strace) = strace else {
        assert!(std::env::var_os("CI").is_none(), "strace is promised");
        eprintln!("left out: there is no strace");
        return;
    };
    assert!(within_seconds(10, || tracer_of_all(&shared) == Some(strace.id())));
    let (message, code) = refusal(&heap(shared.pid(), &["--freeze"]).output().unwrap());
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("(strace)"), "{message}");
    assert_eq!(tracer(shared.pid()), strace.id());
    assert!(shared.moves());
    kill(
        nix::unistd::Pid::from_raw(strace.id().cast_signed()),
        Signal::SIGINT,
    )
    .unwrap();
    strace.wait().unwrap();
    shared.assert_goes_on();
}

/// Who traces the main thread.
fn tracer_of_all(shared: &Shared) -> Option<u32> {
    Some(tracer(shared.pid())).filter(|tracer| *tracer != 0)
}

#[test]
fn a_process_that_is_killed_while_it_stands_ends_at_once() {
    let mut shared = Shared::start(BUSY, 0);
    let freeze = freeze(shared.pid());
    shared.signal(Signal::SIGKILL);
    assert!(within_seconds(5, || freeze.is_over()));
    assert_eq!(freeze.end().end, End::Gone);
    let status = shared.target.finish();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    let gone = Freeze::begin(shared.pid(), MAX_LIMIT, Release::default());
    assert_eq!(gone.unwrap_err(), FreezeError::Gone);
}

#[test]
fn a_process_that_execs_all_the_time_is_frozen_or_not_and_never_hangs() {
    // Each program has threads when it becomes the next one.
    let mut target = Target::python(
        &interpreters::newest(),
        "\
import os, sys, threading, time
left = int(sys.argv[1])
for _ in range(8):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
if left:
    os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', sys.argv[2], str(left - 1), sys.argv[2]])
print('done', flush=True)
os._exit(0)
",
        &["0", ""],
    );
    assert_eq!(target.line(), "done");
    let code = "\
import os, sys, threading, time
left = int(sys.argv[1])
for _ in range(8):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
if left:
    threading.Thread(target=os.execv, args=(sys.executable, [sys.executable, '-I', '-S', '-c', sys.argv[2], str(left - 1), sys.argv[2]])).start()
    time.sleep(60)
print('done', flush=True)
os._exit(0)
";
    let mut target = Target::python(&interpreters::newest(), code, &["60", code]);
    let pid = target.pid();
    let end = std::thread::spawn(move || target.line());
    let (mut n_frozen, mut n_not) = (0, 0);
    while !end.is_finished() {
        match Freeze::begin(pid, MAX_LIMIT, Release::default()) {
            Ok(freeze) => {
                n_frozen += 1;
                drop(freeze);
            }
            Err(_) => n_not += 1,
        }
        sleep(Duration::from_millis(1));
    }
    eprintln!("{n_frozen} freezes between and in 60 execs, {n_not} that did not come about");
    assert_eq!(end.join().unwrap(), "done");
    assert!(n_frozen > 0);
}

#[test]
fn a_process_whose_parent_waits_for_a_vfork_is_let_go_in_time() {
    // The kernel has the caller of vfork wait, uninterruptibly, until the child has become another program.
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("vfork.c");
    fs::write(
        &source,
        "#include <stdio.h>\n#include <unistd.h>\nint main(void) { puts(\"ready\"); fflush(stdout); if (vfork() == 0) { \
         char byte; read(0, &byte, 1); _exit(0); } puts(\"on\"); fflush(stdout); pause(); }\n",
    )
    .unwrap();
    let program = folder.path().join("vfork");
    let compiled = Command::new("cc")
        .arg("-w")
        .arg("-o")
        .args([&program, &source])
        .status();
    assert!(compiled.unwrap().success());
    let mut target = Target::start(&mut Command::new(&program));
    assert_eq!(target.line(), "ready");
    let pid = target.pid();
    assert!(within_seconds(10, || state(pid.0) == 'D'));
    let begun = Instant::now();
    let error = Freeze::begin(pid, MAX_LIMIT, Release::default()).unwrap_err();
    assert!(
        matches!(error, FreezeError::Unstoppable { state: 'D', .. }),
        "{error:?}"
    );
    assert!(begun.elapsed() < MAX_LIMIT);
    assert_eq!(tracer(pid), 0);
    target.tell("");
    assert_eq!(target.line(), "on");
}

#[test]
fn without_the_right_nothing_is_stopped() {
    let shared = Shared::start(BUSY, 0);
    let mut command = heap(shared.pid(), &["--freeze"]);
    let (message, code) = refusal(&command.uid(65534).gid(65534).output().unwrap());
    assert_eq!(code, Some(3), "{message}");
    shared.assert_goes_on();
}
