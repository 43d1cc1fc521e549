//! The agent inside of the test: it records, can be asked for its counters, and hands out the profile.
//!
//! Only one at a time where counters are compared: the programs see the whole host.

use std::time::{Duration, Instant};

use profiler_agent::agent::{Agent, Purpose, Recording};
use profiler_agent::config::{
    AllocationConfig, DEFAULT_FAULT_PERIOD, DEFAULT_RING_BYTES, DEFAULT_WINDOW, SamplingConfig,
};
use profiler_agent::ids::Pid;
use profiler_agent::process::service::LabelOptions;
use profiler_agent::profile::model::{Frame, Profile, ProfileType, Thread};
use profiler_agent::profile::query::{Criteria, ProcessFilter, parse_pattern};
use profiler_agent::serve::query::{ProcessInfo, PullError, PullRequest, Query, Status};
use profiler_agent::track::tracker::Selection;
use profiler_common::process::DEFAULT_MAX_PROCESSES;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// A running agent with a recording of everything it samples.
pub struct Recorder {
    runtime: Runtime,
    agent: Agent,
    profile: oneshot::Receiver<Profile>,
}

/// A profile of another type that is taken at the same time.
pub struct Beside(oneshot::Receiver<Result<Profile, PullError>>);

impl Beside {
    /// The profile, once the recorder was stopped.
    ///
    /// # Panics
    /// When the agent refused it.
    #[must_use]
    pub fn profile(self) -> Profile {
        let profile = self.0.blocking_recv();
        profile
            .expect("the agent delivers what it has")
            .expect("the agent samples it")
    }
}

/// Samples these processes and no other, `rate_hz` times a second and CPU.
#[must_use]
pub fn of_pids(pids: &[Pid], rate_hz: u32) -> SamplingConfig {
    config(
        Selection {
            only_pids: Some(pids.to_vec()),
            ..Selection::default()
        },
        rate_hz,
    )
}

/// Samples every Python process, now and later, whose arguments contain `marker`.
///
/// # Panics
/// When the marker is no regular expression.
#[must_use]
pub fn of_cmdline(marker: &str, rate_hz: u32) -> SamplingConfig {
    let cmdline = vec![parse_pattern(marker).expect("a marker is a pattern")];
    let criteria = Criteria {
        cmdline,
        ..Criteria::default()
    };
    config(every_process(criteria), rate_hz)
}

/// Samples every Python process, now and later, of these containers.
///
/// # Panics
/// When a name is empty.
#[must_use]
pub fn of_containers(names: &[&str], rate_hz: u32) -> SamplingConfig {
    let names = names.iter().map(|name| name.parse().expect("a name"));
    let criteria = Criteria {
        containers: names.collect(),
        ..Criteria::default()
    };
    config(every_process(criteria), rate_hz)
}

fn every_process(include: Criteria) -> Selection {
    Selection {
        filter: ProcessFilter {
            include,
            ..ProcessFilter::default()
        },
        ..Selection::default()
    }
}

fn config(selection: Selection, rate_hz: u32) -> SamplingConfig {
    SamplingConfig {
        selection,
        types: vec![ProfileType::Cpu],
        rate_hz,
        fault_period: DEFAULT_FAULT_PERIOD,
        max_samples_per_second: None,
        ring_bytes: DEFAULT_RING_BYTES,
        max_processes: DEFAULT_MAX_PROCESSES,
        window: DEFAULT_WINDOW,
        allocation: AllocationConfig::default(),
        labels: LabelOptions::default(),
        has_instructions: false,
        bpf_debug: false,
    }
}

impl Recorder {
    /// Starts, and waits until every process that is there was looked at.
    ///
    /// # Panics
    /// When the programs cannot be loaded.
    #[must_use]
    pub fn start(config: &SamplingConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (reply, profile) = oneshot::channel();
        let recording = Recording {
            profile_type: config.types[0],
            duration: None,
            keeps_times: false,
            reply,
        };
        let mut agent =
            Agent::start(config, Purpose::Record(recording)).expect("root, on a kernel with BPF");
        runtime.block_on(agent.scanned());
        Self {
            runtime,
            agent,
            profile,
        }
    }

    /// How it is doing. Where it has too much to do to be asked, it is asked again.
    ///
    /// # Panics
    /// When the agent has ended, or does not answer for a minute.
    #[must_use]
    pub fn status(&self) -> Status {
        let asker = self.agent.asker();
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            if let Some(status) = self.runtime.block_on(asker.status()) {
                return status;
            }
            assert!(
                !self.agent.has_ended() && Instant::now() < deadline,
                "the agent does not answer"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The processes that it sees.
    ///
    /// # Panics
    /// When the agent has ended.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessInfo> {
        let (reply, answer) = oneshot::channel();
        let query = Query::ListProcesses {
            filter: ProcessFilter::default(),
            with_memory: true,
            reply,
        };
        assert!(self.agent.asker().ask(query), "the agent runs");
        self.runtime.block_on(answer).expect("the agent runs")
    }

    /// Takes a profile of another type too, until the recorder stops. Some process must be profiled already.
    ///
    /// # Panics
    /// When the agent does not take the question.
    #[must_use]
    pub fn beside(&self, profile_type: ProfileType) -> Beside {
        let (reply, profile) = oneshot::channel();
        let request = PullRequest {
            profile_type,
            filter: ProcessFilter::default(),
            duration: Duration::from_hours(1),
        };
        let is_taken = self.agent.asker().ask(Query::Pull { request, reply });
        assert!(is_taken, "the agent runs");
        // Questions are answered one after the other: it has begun when the next one is.
        drop(self.status());
        Beside(profile)
    }

    /// The value of a counter.
    ///
    /// # Panics
    /// When there is no such counter.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        counter(&self.status(), name)
    }

    /// Waits until the agent's state is as asked for.
    ///
    /// # Panics
    /// When that takes longer than a minute.
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&Status) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while !is_so(&self.status()) {
            assert!(Instant::now() < deadline, "not within a minute: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until what was sampled has arrived: an agent that is stopped with too much to do leaves the rest.
    ///
    /// # Panics
    /// When that takes longer than a minute.
    pub fn settle(&self) {
        const QUIET: Duration = Duration::from_millis(300);
        let deadline = Instant::now() + Duration::from_mins(1);
        let mut n_samples = self.counter("samples");
        let mut since = Instant::now();
        while since.elapsed() < QUIET {
            assert!(Instant::now() < deadline, "samples come and come");
            std::thread::sleep(Duration::from_millis(20));
            let now = self.counter("samples");
            if now != n_samples {
                (n_samples, since) = (now, Instant::now());
            }
        }
    }

    /// Stops sampling; the profile of everything since the start.
    ///
    /// # Panics
    /// When the agent ended without a profile.
    #[must_use]
    pub fn stop(self) -> Profile {
        let Self {
            runtime,
            agent,
            profile,
        } = self;
        agent.stop();
        runtime
            .block_on(profile)
            .expect("the agent delivers what it has")
    }
}

/// The value of a counter.
///
/// # Panics
/// When there is no such counter.
#[must_use]
pub fn counter(status: &Status, name: &str) -> u64 {
    let counter = status.counters.iter().find(|counter| counter.name == name);
    counter
        .unwrap_or_else(|| panic!("there is no counter {name}"))
        .value
}

/// Every sample of a profile: its thread, its frames (leaf first), how many there were, and their time on the
/// CPU in nanoseconds.
pub fn samples(profile: &Profile) -> impl Iterator<Item = (Thread<'_>, Vec<Frame<'_>>, i64, i64)> {
    profile.samples.iter().map(|sample| {
        let frames = profile.frames(sample.stack).collect();
        (
            profile.thread(sample.labels),
            frames,
            sample.values[0],
            sample.values[1],
        )
    })
}
