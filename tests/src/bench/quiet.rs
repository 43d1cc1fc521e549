//! Keeps the rest of the host off the CPU beside the target for moments: what runs there shares caches, and
//! often the core, with the target and with the kernel's programs.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

/// This thread runs before all others on the last CPU but one, while this lives. Threads that are started
/// meanwhile would do so too.
#[derive(Debug)]
pub struct Quiet {
    thread: String,
    n_cpus: usize,
}

impl Quiet {
    /// Needs root and `chrt`. A host with one CPU has no CPU to keep quiet.
    pub fn begin() -> Result<Self> {
        let quiet = Self {
            thread: nix::unistd::gettid().to_string(),
            n_cpus: std::thread::available_parallelism().map_or(1, usize::from),
        };
        ensure!(quiet.n_cpus > 1, "needs a CPU beside the target's");
        let cpu = (quiet.n_cpus - 2).to_string();
        run(Command::new("taskset").args(["-p", "-c", &cpu, &quiet.thread]))?;
        run(Command::new("chrt").args(["-f", "-p", "10", &quiet.thread]))?;
        Ok(quiet)
    }

    /// Waits without leaving the CPU to anybody.
    pub fn wait(&self, duration: Duration) {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            for _ in 0..1000 {
                std::hint::spin_loop();
            }
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let all = format!("0-{}", self.n_cpus - 1);
        // It worked at the begin; if not now, only the figures suffer.
        let _ = run(Command::new("chrt").args(["-o", "-p", "0", &self.thread]));
        let _ = run(Command::new("taskset").args(["-p", "-c", &all, &self.thread]));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
