//! Processes and containers that were named: whether they can be profiled, and why not, before anything is started.

use std::collections::HashSet;
use std::io::ErrorKind;

use super::exit::ExitError;
use crate::format::escape;
use crate::ids::Pid;
use crate::kernel::probe::{CAP_SYS_PTRACE, Rights, in_initial_pid_namespace};
use crate::process::cgroup;
use crate::process::container::{self, Container};
use crate::process::facts::{self, Stat};
use crate::profile::query::Criteria;
use crate::profile::selector::{CgroupSelector, ContainerSelector};
use crate::python::discover::{Discoverer, Discovery, Interpreter};
use crate::track::process::{ProcessListing, TrackState};

/// What is wrong with some of them, a line each; an error when it is so with all.
pub(super) fn check(pids: &[u32]) -> Result<Vec<String>, ExitError> {
    let problems: Vec<String> = pids.iter().filter_map(|pid| problem(Pid(*pid))).collect();
    if !pids.is_empty() && problems.len() == pids.len() {
        let rights = Rights::of_this_process();
        if !rights.has(CAP_SYS_PTRACE) && pids.iter().any(|pid| is_denied(Pid(*pid))) {
            return Err(ExitError::Rights(vec![CAP_SYS_PTRACE]));
        }
        return Err(ExitError::NothingMatched(problems.join("; ")));
    }
    let stopped = pids.iter().filter(|pid| is_stopped(Pid(**pid)));
    let stopped = stopped.map(|pid| {
        format!("process {pid} is stopped: nothing runs in it until it goes on (kill -CONT {pid})")
    });
    Ok(problems.into_iter().chain(stopped).collect())
}

/// Whether a signal or a debugger has stopped it (proc_pid_stat(5)).
fn is_stopped(pid: Pid) -> bool {
    let stat = Stat::read(&format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| matches!(stat.state, 'T' | 't'))
}

/// Whether the kernel does not let this process read the other's memory.
fn is_denied(pid: Pid) -> bool {
    let opened = std::fs::File::open(format!("/proc/{pid}/mem"));
    opened.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// Containers or control groups that were named and in which nothing runs.
pub(super) struct Missing {
    /// One line: which, and which there are.
    pub(super) message: String,
    /// None of those that were named runs.
    pub(super) is_all: bool,
}

/// What of this selection matches nothing that runs now.
pub(super) fn missing(include: &Criteria) -> Vec<Missing> {
    let containers = missing_containers(&include.containers);
    containers
        .into_iter()
        .chain(missing_cgroups(&include.cgroups))
        .collect()
}

/// Those of the control groups in which no process runs; `None` when there is one in each.
fn missing_cgroups(selectors: &[CgroupSelector]) -> Option<Missing> {
    if selectors.is_empty() {
        return None;
    }
    let pids = facts::all_pids().into_iter().flatten();
    let groups: HashSet<String> = pids
        .map(|pid| cgroup::path(&cgroup::paths(pid)).to_owned())
        .collect();
    let missing: Vec<String> = selectors
        .iter()
        .filter(|selector| !groups.iter().any(|group| selector.matches(group)))
        .map(|selector| format!("`{selector}`"))
        .collect();
    (!missing.is_empty()).then(|| Missing {
        message: format!(
            "no process is in a control group that matches {}; /proc/PID/cgroup says which a process is in",
            escape(&missing.join(", "))
        ),
        is_all: missing.len() == selectors.len(),
    })
}

/// Those of the containers in which no process runs; `None` when all are there.
fn missing_containers(selectors: &[ContainerSelector]) -> Option<Missing> {
    if selectors.is_empty() {
        return None;
    }
    let running = container::running();
    let is_running = |selector: &&ContainerSelector| {
        running.iter().any(|container| {
            let name = container.name.as_deref().unwrap_or_default();
            selector.matches(&container.id, name)
        })
    };
    let missing: Vec<&ContainerSelector> = selectors
        .iter()
        .filter(|selector| !is_running(selector))
        .collect();
    let names: Vec<String> = missing
        .iter()
        .map(|missing| format!("`{missing}`"))
        .collect();
    (!missing.is_empty()).then(|| Missing {
        message: format!(
            "no running container matches {}; {}",
            escape(&names.join(", ")),
            escape(&listed(&running))
        ),
        is_all: missing.len() == selectors.len(),
    })
}

/// The containers that there are, as many as fit a line.
fn listed(running: &[Container]) -> String {
    const MAX_SHOWN: usize = 10;
    if running.is_empty() {
        return "none runs here".to_owned();
    }
    let shown = running.iter().take(MAX_SHOWN).map(ToString::to_string);
    let shown = shown.collect::<Vec<_>>().join(", ");
    match running.len().saturating_sub(MAX_SHOWN) {
        0 => format!("running: {shown}"),
        n_more => format!("running: {shown}, and {n_more} more"),
    }
}

/// The kernel's process ids are those of the initial namespace.
pub(super) fn check_namespace() -> anyhow::Result<()> {
    if in_initial_pid_namespace() == Some(false) {
        anyhow::bail!(
            "this is not the initial pid namespace: run pyagent on the host, or its container with --pid=host \
             (Kubernetes: hostPID)"
        );
    }
    Ok(())
}

fn problem(pid: Pid) -> Option<String> {
    if facts::is_zombie(pid) {
        return Some(format!(
            "process {pid} has ended: what is left of it is a zombie, until its parent asks how it ended"
        ));
    }
    if !facts::is_alive(pid) {
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
        Discovery::Refused { refusal, .. } => refusal.to_string(),
    };
    let comm = facts::comm(pid).unwrap_or_default();
    Some(format!(
        "process {pid} ({}) cannot be profiled: {}; `pyagent doctor {pid}` says more",
        escape(&comm),
        escape(&why)
    ))
}

/// The interpreter of a process, or why there is none.
pub(super) fn interpreter(pid: Pid) -> anyhow::Result<Interpreter> {
    check(&[pid.0])?;
    found(pid, Discoverer::default().discover(pid, &mut |_| {}))
}

/// The interpreter that was found, or why there is none.
pub(super) fn found(pid: Pid, discovery: Discovery) -> anyhow::Result<Interpreter> {
    match discovery {
        Discovery::Python(interpreter) => Ok(*interpreter),
        Discovery::Gone => Err(gone(pid).into()),
        Discovery::NotYet | Discovery::NotPython { .. } => {
            anyhow::bail!(
                "process {pid} does not run Python yet: try again, or ask `pyagent doctor {pid}`"
            )
        }
        Discovery::Refused { refusal, .. } => anyhow::bail!("process {pid}: {refusal}"),
    }
}

/// An error when all processes that were found are refused.
pub(super) fn check_any_tracked(listing: &[ProcessListing]) -> Result<(), ExitError> {
    let is_tracked = |process: &ProcessListing| process.state != TrackState::Refused;
    match listing.first() {
        Some(refused) if !listing.iter().any(is_tracked) => {
            Err(ExitError::NothingMatched(format!(
                "process {} ({}) cannot be profiled: {}; `pyagent doctor {}` says more",
                refused.facts.pid,
                escape(&refused.facts.comm),
                refused.reason,
                refused.facts.pid
            )))
        }
        Some(_) | None => Ok(()),
    }
}

/// A process that is not there any more.
pub(super) fn gone(pid: Pid) -> ExitError {
    ExitError::NothingMatched(format!("process {pid} has ended"))
}
