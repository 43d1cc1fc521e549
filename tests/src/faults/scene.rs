//! What all scenarios have: a busy process, an agent that records it, and folders.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use profiler_agent::generated::pyagent::v1::GetStatusRequest;
use profiler_agent::generated::pyagent::v1::profile_service_client::ProfileServiceClient;
use tempfile::TempDir;

use super::account::{Account, Arrival, of_collector};
use super::database;
use crate::interpreters;
use crate::push::Collector;
use crate::pyagent::{Pyagent, binary};
use crate::target::Target;

/// Spins until its standard input closes.
const WORK: &str = "\
import sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), __import__('os')._exit(0)), daemon=True).start()
print('ready', flush=True)
while True:
    sum(range(1000))
";

/// Longest time that a scenario takes to deliver what waits, once it can: twice the longest pause between two attempts.
const PATIENCE: Duration = Duration::from_mins(2);

/// A busy process, and where the agent keeps its windows.
#[derive(Debug)]
pub struct Scene {
    target: Target,
    /// For whatever the scenario needs.
    pub folder: TempDir,
    /// The agent's, for `--data-dir`.
    pub data: PathBuf,
    /// Samples of all windows that were seen in the recorder, by number: it may remove the oldest.
    made: RefCell<BTreeMap<i64, i64>>,
}

impl Scene {
    /// With a process that is busy from now on.
    ///
    /// # Panics
    /// When there is no interpreter for it.
    #[must_use]
    pub fn new() -> Self {
        let mut target = Target::python(&interpreters::newest(), WORK, &[]);
        assert_eq!(target.line(), "ready");
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self {
            target,
            data: folder.path().join("data"),
            folder,
            made: RefCell::default(),
        }
    }

    /// The process that is profiled.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.target.pid().0
    }

    /// An agent that pushes there. `command` is what its arguments are put behind.
    #[must_use]
    pub fn agent_by(&self, command: &mut Command, push: &str, more: &[&str]) -> Pyagent {
        command
            .args(["--pid", &self.pid().to_string(), "--type", "cpu"])
            .args(["--listen", "127.0.0.1:0", "--window", "1s"])
            .arg("--data-dir")
            .arg(&self.data)
            .args(["--push", push])
            .args(more);
        Pyagent::start_by(command, "go tool pprof")
    }

    /// The same, started as usual.
    #[must_use]
    pub fn agent(&self, push: &str, more: &[&str]) -> Pyagent {
        self.agent_by(&mut Command::new(binary()), push, more)
    }

    /// What was delivered to a Collector.
    #[must_use]
    pub fn arrivals(&self, collector: &Collector) -> Vec<Arrival> {
        of_collector(&collector.written(), self.pid())
    }

    /// Looks at what was recorded; how many windows there ever were.
    pub fn look(&self) -> usize {
        let mut made = self.made.borrow_mut();
        made.extend(database::samples(&self.data));
        made.len()
    }

    /// Samples of the windows that were seen, in their order.
    fn made(&self) -> Vec<i64> {
        self.look();
        self.made.borrow().values().copied().collect()
    }

    /// What became of the windows that were seen.
    #[must_use]
    pub fn account(&self, n_faults: usize, arrivals: &[Arrival]) -> Account {
        Account::new(n_faults, &self.made(), arrivals)
    }

    /// Waits until so many windows more were recorded.
    pub fn wait_windows(&self, n: usize) {
        // The database may not be made yet.
        wait("the database", || database::path(&self.data).exists());
        let before = self.look();
        wait("windows", || self.look() >= before + n);
    }

    /// Waits until a Collector has what was recorded until now, ends the agent, and takes the account.
    ///
    /// # Panics
    /// When the agent fails.
    #[must_use]
    pub fn finish(&self, agent: Pyagent, collector: &Collector, n_faults: usize) -> Account {
        let made = self.made();
        let delivered = || Account::new(n_faults, &made, &self.arrivals(collector));
        let begun = Instant::now();
        // What is missing for good shows in the account.
        while delivered().lost > 0 && begun.elapsed() < PATIENCE {
            sleep(Duration::from_millis(200));
            self.look();
        }
        self.look();
        agent.stop();
        // What it was sent last it may not have written yet.
        sleep(Duration::from_secs(1));
        self.account(n_faults, &self.arrivals(collector))
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

/// Waits until this is so.
///
/// # Panics
/// With `what`, when it never is.
pub fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        sleep(Duration::from_millis(50));
    }
}

/// Why an agent's recorder does not write now; `None`: it does.
///
/// # Panics
/// When the agent does not answer, or has no recorder.
#[must_use]
pub fn recorder_problem(agent: &Pyagent) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let status = runtime.block_on(async {
        let address = format!("http://{}", agent.address());
        let mut client = ProfileServiceClient::connect(address)
            .await
            .expect("it serves");
        client.get_status(GetStatusRequest {}).await
    });
    let status = status.expect("it answers").into_inner();
    let problem = status.recorder.expect("it has a recorder").problem;
    (!problem.is_empty()).then_some(problem)
}

/// A counter of an agent's `/metrics`, over all of its labels.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn metric(agent: &Pyagent, name: &str) -> u64 {
    let url = format!("http://{}/metrics", agent.address());
    let output = Command::new("curl").args(["-sS", &url]).output();
    let text = String::from_utf8(output.expect("curl is there").stdout).expect("it is text");
    let values: Vec<u64> = text
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with([' ', '{']))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse().ok())
        .collect();
    assert!(!values.is_empty(), "no {name} in {text}");
    values.iter().sum()
}
