//! An agent in a control group with little memory, or little CPU time: it gives up what it can, says so, lives, and comes back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use pyagent_tests::interpreters;
use pyagent_tests::pyagent::{Pyagent, binary};
use pyagent_tests::target::Target;

/// How long something may take that takes seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// A control group of a controller of version 1 or 2; gone with it.
struct Group {
    folder: PathBuf,
    is_version_2: bool,
}

impl Group {
    /// `None`, with the reason on stderr: this machine lets nobody make one.
    fn new(controller: &str) -> Option<Self> {
        let name = format!("pyagent-test-{}-{controller}", std::process::id());
        let first = Path::new("/sys/fs/cgroup").join(controller);
        let is_version_2 = !first.is_dir();
        let root = if is_version_2 {
            PathBuf::from("/sys/fs/cgroup")
        } else {
            first
        };
        let folder = root.join(name);
        if let Err(error) = fs::create_dir(&folder) {
            eprintln!(
                "skipped: no control group can be made at {}: {error}",
                folder.display()
            );
            return None;
        }
        Some(Self {
            folder,
            is_version_2,
        })
    }

    fn write(&self, name: &str, value: &str) {
        let path = self.folder.join(name);
        fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    fn limit_memory(&self, n_bytes: u64) {
        let name = if self.is_version_2 {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        self.write(name, &n_bytes.to_string());
    }

    /// Lets a process have this part of a CPU.
    fn limit_cpu(&self, percent: u64) {
        if self.is_version_2 {
            self.write("cpu.max", &format!("{} 100000", percent * 1000));
        } else {
            self.write("cpu.cfs_period_us", "100000");
            self.write("cpu.cfs_quota_us", &(percent * 1000).to_string());
        }
    }

    /// The agent inside of it.
    fn start_agent(&self, program: &Target) -> Pyagent {
        let script = r#"echo $$ > "$1/cgroup.procs"; shift; exec "$@""#;
        let mut agent = Command::new("sh");
        agent
            .args(["-c", script, "sh"])
            .arg(&self.folder)
            .arg(binary())
            .args(["--pid", &program.pid().to_string(), "--rate", "199"])
            .args(["--listen", "127.0.0.1:0", "--data-dir", "none"])
            .args(["--kubernetes", "off"]);
        Pyagent::start_by(&mut agent, "go tool pprof")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..50 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn get(agent: &Pyagent, page: &str) -> String {
    let url = format!("http://{}/{page}", agent.address());
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "10", &url])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn counter(agent: &Pyagent, name: &str) -> f64 {
    let name = format!("pyagent_{name} ");
    let text = get(agent, "metrics");
    let mut values = text.lines().filter_map(|line| line.strip_prefix(&name));
    values.next().map_or(0.0, |value| value.parse().unwrap())
}

fn wait_until(what: &str, mut is_it: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_it() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// A program with deep stacks of many functions.
fn start_program() -> Target {
    let python = interpreters::newest();
    let code = "
def make(n):
    names = {}
    exec(f'def f{n}(k):\\n    t = 0\\n    for i in range(2000): t += i\\n    return make_next(k - 1) if k else t', globals(), names)
    return names[f'f{n}']
functions = [make(n) for n in range(20000)]
at = 0
def make_next(k):
    global at
    at = (at + 1) % len(functions)
    return functions[at](k)
print('ready', flush=True)
while True: make_next(300)
";
    let mut command = Command::new(&python.path);
    let mut target = Target::start(command.args(["-I", "-S", "-c", code]));
    assert_eq!(target.line(), "ready");
    target
}

#[test]
fn with_little_memory_less_is_kept_and_all_of_it_again_when_there_is_more() {
    let Some(group) = Group::new("memory") else {
        return;
    };
    let program = start_program();
    group.limit_memory(1 << 30);
    let agent = group.start_agent(&program);
    wait_until("it is ready", || get(&agent, "readyz").trim() == "ready");
    wait_until("it has seen the program", || {
        counter(&agent, "samples_received_total") > 500.0
    });
    // Three quarters of what there is are taken now.
    let used = counter(&agent, "memory_used_bytes");
    assert!(used > 0.0);
    let limit = (used / 0.75) as u64;
    group.limit_memory(limit);
    wait_until("stacks are cut", || {
        counter(&agent, "stacks_cut_total") > 0.0
    });
    wait_until("samples are fewer", || {
        counter(&agent, "samples_shed_total") > 0.0
            || counter(&agent, "memory_used_bytes") < 0.7 * limit as f64
    });
    let ready = get(&agent, "readyz");
    assert!(
        ready.contains("degraded") && ready.contains("memory limit"),
        "{ready}"
    );
    assert!(counter(&agent, "shedding_steps_total") >= 1.0);
    // There is room again.
    group.limit_memory(1 << 30);
    let deadline = Instant::now() + Duration::from_secs(200);
    while get(&agent, "readyz").trim() != "ready" {
        assert!(Instant::now() < deadline, "{}", get(&agent, "readyz"));
        thread::sleep(Duration::from_secs(1));
    }
    drop(agent);
}

#[test]
fn with_little_cpu_time_samples_are_counted_that_are_lost_and_the_agent_lives() {
    let Some(group) = Group::new("cpu") else {
        return;
    };
    let program = start_program();
    group.limit_cpu(3);
    let agent = group.start_agent(&program);
    wait_until("it has samples", || {
        counter(&agent, "samples_received_total") > 50.0
    });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(15) {
        thread::sleep(Duration::from_secs(1));
    }
    let figures = |name: &str| counter(&agent, name);
    let (taken, received) = (figures("samples_total"), figures("samples_received_total"));
    let lost = figures("lost_full_total") + figures("lost_nested_total");
    assert!(received > 0.0);
    // What was begun has come, or is counted, or is in the ring.
    assert!(
        received + lost <= taken + 5000.0,
        "{taken} {received} {lost}"
    );
    drop(agent);
}
