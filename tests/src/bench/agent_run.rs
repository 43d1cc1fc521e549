//! An agent inside this process, for measurements that need its counters: start, ask, stop.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use profiler_agent::{
    agent::{Agent, AgentAsker, Purpose, Recording, RecordingResult},
    config::SamplingConfig,
    ids::Pid,
    profile::model::ProfileType,
};
use tokio::runtime::Runtime;

/// An agent that records one process. Stopped when this is dropped.
pub struct AgentRun {
    agent: Option<Agent>,
    asker: AgentAsker,
    runtime: Runtime,
    _recording: RecordingResult,
}

impl AgentRun {
    /// Starts it and waits until it has looked at the process.
    pub fn of_pid(pid: u32, rate_hz: u32) -> Result<Self> {
        let mut run = Self::starting(pid, rate_hz)?;
        let agent = run.agent.as_mut().context("it was started right now")?;
        let listing = run.runtime.block_on(agent.scanned());
        if listing.is_empty() {
            bail!("the agent does not find process {pid}");
        }
        Ok(run)
    }

    /// Starts it and waits for nothing.
    pub fn starting(pid: u32, rate_hz: u32) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let config = SamplingConfig {
            rate_hz,
            ..SamplingConfig::of_pid(Pid(pid))
        };
        let (reply, recording) = tokio::sync::oneshot::channel();
        let agent = Agent::start(
            &config,
            Purpose::Record(Recording {
                profile_type: ProfileType::Cpu,
                duration: None,
                keeps_times: false,
                reply,
            }),
        )?;
        Ok(Self {
            asker: agent.asker(),
            agent: Some(agent),
            runtime,
            _recording: recording,
        })
    }

    /// The value of a counter.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let status = self
            .runtime
            .block_on(self.asker.status())
            .context("the agent has ended")?;
        let counter = status.counters.iter().find(|counter| counter.name == name);
        Ok(counter
            .with_context(|| format!("there is no counter {name}"))?
            .value)
    }

    /// Waits until a counter is not 0 any more.
    pub fn wait_for(&self, name: &str) -> Result<()> {
        const POLL_INTERVAL: Duration = Duration::from_millis(1);
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.counter(name)? == 0 {
            if Instant::now() > deadline {
                bail!("no {name} within 10 s");
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

impl Drop for AgentRun {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop();
        }
    }
}
