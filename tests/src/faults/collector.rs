//! The Collector is killed, or hangs.

use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Account;
use super::killed::killed;
use super::scene::Scene;
use crate::push::{Collector, CollectorSetup};

fn target(collector: &Collector) -> String {
    format!("otlp=http://127.0.0.1:{}", collector.port)
}

/// It is killed (SIGKILL) so many times, and is down for three windows each. `None`, said: there is no Collector.
///
/// # Panics
/// When the agent fails.
#[must_use]
pub fn is_killed(n_times: u32) -> Option<Account> {
    let scene = Scene::new();
    let mut collector = Collector::start(scene.folder.path(), &CollectorSetup::default())?;
    let agent = scene.agent(&target(&collector), &[]);
    for round in 0..n_times {
        scene.wait_windows(2);
        // Anywhere in a window.
        sleep(Duration::from_millis(u64::from(round) * 7919 % 1000));
        collector.kill();
        scene.wait_windows(3);
        collector.restart();
    }
    Some(scene.finish(agent, &collector, n_times as usize))
}

/// It is stopped (SIGSTOP) for so long: it takes connections and requests, as far as the kernel does it, and answers nothing.
///
/// # Panics
/// When the agent fails.
#[must_use]
pub fn hangs(time: Duration) -> Option<Account> {
    let scene = Scene::new();
    let collector = Collector::start(scene.folder.path(), &CollectorSetup::default())?;
    let agent = scene.agent(&target(&collector), &[]);
    scene.wait_windows(2);
    let pid = Pid::from_raw(collector.pid());
    kill(pid, Signal::SIGSTOP).expect("it runs");
    sleep(time);
    kill(pid, Signal::SIGCONT).expect("it runs");
    Some(scene.finish(agent, &collector, 1))
}

/// The agent is killed (SIGKILL) so many times; the next one goes on. Windows that a kill loses count as lost.
///
/// # Panics
/// When the database is damaged.
#[must_use]
pub fn agent_is_killed(n_times: u32) -> Option<Account> {
    let scene = Scene::new();
    let collector = Collector::start(scene.folder.path(), &CollectorSetup::default())?;
    let start = || scene.agent(&target(&collector), &[]);
    let kept = killed(&scene.data, n_times, start);
    let account = scene.finish(start(), &collector, n_times as usize);
    Some(Account {
        lost: account.lost + kept.n_lost,
        ..account
    })
}
