//! Processes that were named by id: whether they can be profiled, and why not, before anything is started.

use super::exit::ExitError;
use crate::format::escape;
use crate::ids::Pid;
use crate::kernel::probe::in_initial_pid_namespace;
use crate::process::facts::{self, Stat};
use crate::python::discover::{Discoverer, Discovery};

/// What is wrong with some of them, a line each; an error when it is so with all.
pub(super) fn check(pids: &[u32]) -> Result<Vec<String>, ExitError> {
    let problems: Vec<String> = pids.iter().filter_map(|pid| problem(Pid(*pid))).collect();
    if !pids.is_empty() && problems.len() == pids.len() {
        return Err(ExitError::NothingMatched(problems.join("; ")));
    }
    Ok(problems)
}

/// The kernel's process ids are those of the initial namespace.
pub(super) fn check_namespace() -> anyhow::Result<()> {
    if in_initial_pid_namespace() == Some(false) {
        anyhow::bail!(
            "this is not the initial pid namespace: run pyagent on the host, or its container with hostPID"
        );
    }
    Ok(())
}

/// Whether it is there and no zombie.
pub(super) fn is_alive(pid: Pid) -> bool {
    Stat::read(&format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.state != 'Z')
}

fn problem(pid: Pid) -> Option<String> {
    if !is_alive(pid) {
        return Some(format!("there is no process {pid}"));
    }
    if let Some(process) = facts::thread_of(pid) {
        return Some(format!(
            "{pid} is a thread of process {process}: use --pid {process}"
        ));
    }
    let why = match Discoverer::default().discover(pid, &mut |_| {}) {
        // It may become Python any moment.
        Discovery::Python(_) | Discovery::NotYet | Discovery::NotPython { expected: true } => {
            return None;
        }
        Discovery::Gone => return Some(format!("there is no process {pid} any more")),
        Discovery::NotPython { expected: false } => "it runs no CPython that can be found".into(),
        Discovery::Refused { reason, .. } => reason,
    };
    let comm = facts::comm(pid).unwrap_or_default();
    Some(format!(
        "process {pid} ({}) cannot be profiled: {}; `pyagent doctor {pid}` says more",
        escape(&comm),
        escape(&why)
    ))
}
