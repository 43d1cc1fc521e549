//! What a running agent has given up, and that it goes on profiling without; who sees what over its local socket. Root.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use profiler_agent::bpf::load::{Programs, Settings};
use profiler_agent::bpf::source::Periods;
use profiler_agent::config::DEFAULT_RING_BYTES;
use profiler_agent::ids::Pid;
use profiler_agent::kernel::privileges::{KEPT, reduce_thread};
use profiler_agent::profile::model::ProfileType;
use profiler_common::process::DEFAULT_MAX_PROCESSES;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::pyagent::{Pyagent, binary};
use pyagent_tests::target::Target;

/// A user that is neither root nor anybody.
const USER: u32 = 1234;

/// Another one.
const OTHER_USER: u32 = 1235;

/// The group of the socket.
const GROUP: u32 = 4321;

/// Uses the CPU until it is killed, in a function of the name that it is given.
const SPIN: &str = "
import sys
print('ready', flush=True)
exec('def ' + sys.argv[1] + '():\\n while True:\\n  for i in range(1000): pass\\n' + sys.argv[1] + '()')
";

/// Becomes another program; forks a child that works.
const EXEC_AND_FORK: &str = "
import os, sys
code = '''
import os
def after_fork():
    while True:
        for i in range(1000): pass
if os.fork() == 0:
    after_fork()
print('ready', flush=True)
os.wait()
'''
os.execv(sys.executable, [sys.executable, '-I', '-S', '-B', '-c', code])
";

/// An agent on a local socket, and its folder.
struct Agent {
    pyagent: Pyagent,
    folder: tempfile::TempDir,
}

impl Agent {
    fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let listen = format!("unix:{}", folder.path().join("s").display());
        let group = GROUP.to_string();
        let mut arguments = vec!["--all-python", "--rate", "199", "--listen", &listen];
        arguments.extend(["--socket-group", &group]);
        arguments.extend(more);
        let pyagent = Pyagent::start(&arguments, "curl --unix-socket");
        Self { pyagent, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// `pyagent pull` of a process as a user; its output, and the stacks.
    fn pull(&self, user: u32, pid: Pid) -> (Output, String) {
        let path = self.folder.path().join(format!("{user}-{pid}.folded"));
        let output = Command::new("setpriv")
            .args(["--reuid", &user.to_string(), "--regid", &GROUP.to_string()])
            .args(["--clear-groups"])
            .arg(binary())
            .args(["pull", &self.address(), "--duration", "1s"])
            .args(["--pid", &pid.to_string(), "-o"])
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stacks = fs::read_to_string(&path).unwrap_or_default();
        (output, stacks)
    }

    /// Pulls until a function is in the stacks.
    fn wait_for(&self, pid: Pid, function: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let (output, stacks) = self.pull(0, pid);
            if stacks.contains(function) {
                return;
            }
            assert!(Instant::now() < deadline, "{output:?} {stacks}");
        }
    }
}

/// A hexadecimal number of a status file.
fn mask(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

fn spinning(python: &Interpreter, function: &str) -> Target {
    let mut target = Target::python(python, SPIN, &[function]);
    assert_eq!(target.line(), "ready");
    target
}

/// The same as another user, who can run it.
fn spinning_as(user: u32, python: &Path, function: &str) -> Target {
    let mut target = Target::start(
        Command::new("setpriv")
            .args(["--reuid", &user.to_string(), "--regid", &user.to_string()])
            .args(["--clear-groups"])
            .arg(python)
            .args(["-I", "-S", "-B", "-c", SPIN, function])
            .current_dir("/"),
    );
    assert_eq!(target.line(), "ready");
    target
}

/// One that every user can run.
fn system_python() -> PathBuf {
    let path = PathBuf::from("/usr/bin/python3");
    assert!(
        path.exists(),
        "Debian's python3 is needed: apt-get install python3"
    );
    path
}

/// Bits of capabilities(7).
fn kept_bits() -> u64 {
    let bit = |name| match name {
        "CAP_BPF" => 39,
        "CAP_PERFMON" => 38,
        "CAP_SYS_PTRACE" => 19,
        "CAP_DAC_READ_SEARCH" => 2,
        "CAP_CHECKPOINT_RESTORE" => 40,
        name => panic!("{name}"),
    };
    KEPT.iter().map(|kept| 1 << bit(kept.name)).sum()
}

/// `CAP_SYS_ADMIN`.
const ADMIN: u64 = 1 << 21;

#[test]
fn no_thread_of_a_running_agent_has_a_right_that_it_does_not_need() {
    let agent = Agent::start(&[
        "--health-listen",
        "127.0.0.1:0",
        "--type",
        "cpu,faults,alloc",
    ]);
    let tasks = format!("/proc/{}/task", agent.pyagent.pid());
    // The one that reads the addresses of kernel functions ends by itself, and the start's last step is after the
    // greeting.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut n_threads = 0;
        let mut wrong = Vec::new();
        for task in fs::read_dir(&tasks).unwrap() {
            let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else {
                continue;
            };
            n_threads += 1;
            // Probes can be placed with no less, huge pages be seen, and on some kernels events be opened.
            let is_privileged = ["prober", "opener"]
                .iter()
                .any(|name| status.starts_with(&format!("Name:\tpyagent-{name}\n")));
            let kept = kept_bits() | if is_privileged { ADMIN } else { 0 };
            let is_reduced = ["CapEff:", "CapPrm:", "CapBnd:"]
                .iter()
                .all(|name| mask(&status, name) == kept)
                && mask(&status, "CapInh:") == 0
                && mask(&status, "CapAmb:") == 0
                && mask(&status, "NoNewPrivs:") == 1
                && mask(&status, "Seccomp:") == 2;
            if !is_reduced {
                wrong.push(status);
            }
        }
        if wrong.is_empty() && n_threads >= 5 {
            break;
        }
        assert!(Instant::now() < deadline, "{n_threads} threads, {wrong:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_unit_gives_what_the_agent_keeps_and_doctor_says_why() {
    let output = Command::new(binary()).arg("doctor").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let unit = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/systemd/pyagent.service"
    );
    let unit = fs::read_to_string(unit).unwrap();
    let given = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap();
    for kept in KEPT {
        let line = format!("the agent keeps     {}: {}", kept.name, kept.purpose);
        assert!(said.contains(&line), "{said}");
        assert!(given.split(' ').any(|name| name == kept.name), "{given}");
    }
    assert!(said.contains("the agent gives up"), "{said}");
    starts_with(given.split(' '));
    // Where the kernel asks for it for nothing that is wanted: what the unit says.
    let paranoia = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
    if paranoia.trim().parse::<i32>().unwrap() <= 2 {
        starts_with(given.split(' ').filter(|name| *name != "CAP_SYS_ADMIN"));
    }
}

/// With those rights, and no others, the agent starts without a warning, and its socket is its group's.
fn starts_with<'a>(given: impl Iterator<Item = &'a str>) {
    let bounds: String = given
        .map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase())
        .map(|name| ",+".to_owned() + &name)
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let mut child = Command::new("setpriv")
        .args([
            "--bounding-set",
            &format!("-all{bounds}"),
            "--inh-caps",
            "-all",
        ])
        .args(["--no-new-privs", "--reset-env"])
        .arg(binary())
        .args([
            "--all-python",
            "--socket-group",
            &GROUP.to_string(),
            "--listen",
        ])
        .arg(format!("unix:{}", path.display()))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    while !said.contains("serving gRPC") && errors.read_line(&mut said).unwrap() > 0 {}
    let facts = fs::symlink_metadata(&path).map(|facts| (facts.mode() & 0o777, facts.gid()));
    let _ = child.kill();
    child.wait().unwrap();
    assert_eq!(facts.ok(), Some((0o660, GROUP)), "{said}");
    assert!(!said.contains("WARN"), "{said}");
}

#[test]
fn an_agent_with_few_rights_goes_on_with_new_processes_execs_and_forks() {
    let agent = Agent::start(&[]);
    for python in interpreters::usual() {
        let target = spinning(&python, "after_start");
        agent.wait_for(target.pid(), "after_start");
    }
    let python = interpreters::newest();
    let mut target = Target::python(&python, EXEC_AND_FORK, &[]);
    assert_eq!(target.line(), "ready");
    let parent = target.pid();
    let children = format!("/proc/{parent}/task/{parent}/children");
    let child = fs::read_to_string(children).unwrap();
    let child = Pid(child.trim().parse().unwrap());
    agent.wait_for(child, "after_fork");
    // Not its child by name: the test ends it.
    let id = nix::unistd::Pid::from_raw(child.0.cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn an_interpreter_in_a_folder_of_another_user_is_profiled() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let python = folder.path().join("python3");
    fs::copy(fs::canonicalize(system_python()).unwrap(), &python).unwrap();
    std::os::unix::fs::chown(&python, Some(USER), Some(USER)).unwrap();
    std::os::unix::fs::chown(folder.path(), Some(USER), Some(USER)).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let agent = Agent::start(&[]);
    let target = spinning_as(USER, &python, "in_a_private_folder");
    agent.wait_for(target.pid(), "in_a_private_folder");
    // Its file is gone; its mapping is not.
    fs::remove_file(&python).unwrap();
    agent.wait_for(target.pid(), "in_a_private_folder");
}

#[test]
fn a_user_pulls_their_own_processes_and_no_others() {
    let agent = Agent::start(&[]);
    let theirs = spinning_as(USER, &system_python(), "theirs");
    let roots = spinning(&interpreters::newest(), "roots");
    agent.wait_for(theirs.pid(), "theirs");
    agent.wait_for(roots.pid(), "roots");
    let (output, stacks) = agent.pull(USER, theirs.pid());
    assert!(
        output.status.success() && stacks.contains("theirs"),
        "{output:?}"
    );
    for (user, pid) in [
        (USER, roots.pid()),
        (OTHER_USER, theirs.pid()),
        (OTHER_USER, roots.pid()),
        (USER, Pid(999_999)),
    ] {
        let (output, stacks) = agent.pull(user, pid);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(stacks.is_empty());
        assert!(said.contains("no profiled process matches"), "{said}");
    }
    // All that there is, which is one of them.
    let path = agent.folder.path().join("all.folded");
    let output = Command::new("setpriv")
        .args(["--reuid", &USER.to_string(), "--regid", &GROUP.to_string()])
        .args(["--clear-groups"])
        .arg(binary())
        .args(["pull", &agent.address(), "--duration", "1s", "-o"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let stacks = fs::read_to_string(&path).unwrap();
    assert!(
        stacks.contains("theirs") && !stacks.contains("roots"),
        "{stacks}"
    );
}

#[test]
fn cpus_are_sampled_by_a_thread_that_has_few_rights() {
    // What happens when a CPU comes online.
    let settings = Settings {
        types: &[ProfileType::Cpu, ProfileType::Faults],
        follow_all: true,
        follow_children: true,
        ring_bytes: DEFAULT_RING_BYTES,
        max_processes: DEFAULT_MAX_PROCESSES,
        alloc_period: 1 << 19,
        pool_period: 1 << 17,
        max_allocations: 1 << 17,
        log_level: 0,
    };
    let programs = Programs::load(settings).unwrap();
    let periods = Periods {
        cpu_ns: Some(10_000_000),
        faults: Some(16),
    };
    let (mut sources, ..) = programs.split(periods, Box::new(|events| events.open()));
    let attached = std::thread::scope(|scope| {
        let attach = scope.spawn(|| {
            reduce_thread();
            sources.sync().map_err(|error| format!("{error:#}"))
        });
        attach.join().unwrap()
    });
    assert!(attached.unwrap() > 0);
}

#[test]
fn a_secret_that_is_mounted_into_a_container_is_read_whatever_its_mode() {
    // As Kubernetes does it: a link to a link to a file of mode 0644, on a tmpfs that is mounted read-only.
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "set -e; d={}; mount -t tmpfs tmpfs $d; mkdir $d/..1; echo 0123456789abcdef > $d/..1/tokens; \
         chmod 644 $d/..1/tokens; ln -s ..1 $d/..data; ln -s ..data/tokens $d/tokens; $1; \
         exec {} --all-python --listen 127.0.0.1:0 --token-file $d/tokens",
        folder.path().display(),
        binary().display()
    );
    let run = |remount: &str| {
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script.replace("$1", remount)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        while !said.contains("serving gRPC") && errors.read_line(&mut said).unwrap() > 0 {}
        let _ = child.kill();
        child.wait().unwrap();
        said
    };
    let said = run("mount -o remount,ro $d");
    assert!(said.contains("serving gRPC"), "{said}");
    // One that can be written to is like any other file.
    let said = run("true");
    assert!(said.contains("chmod 600"), "{said}");
}
