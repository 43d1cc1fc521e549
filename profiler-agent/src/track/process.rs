//! A process as listings show it.

use std::sync::Arc;

use crate::process::facts::Facts;
use crate::profile::query::{ProcessFacts, ProcessFilter};
use crate::python::process::PythonProcess;
use crate::python::refusal::Reason;

/// What a process is with regard to profiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrackState {
    /// It is sampled.
    Profiled,
    /// It is being looked at.
    Pending,
    /// It has a CPython that cannot be unwound.
    Refused,
}

impl TrackState {
    /// Word for listings and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Profiled => "profiled",
            Self::Pending => "pending",
            Self::Refused => "not profiled",
        }
    }
}

/// A process as listings show it.
#[derive(Debug, Clone)]
pub struct ProcessListing {
    /// The process.
    pub facts: Facts,
    /// Path of the binary that holds the interpreter; empty when unknown.
    pub interpreter: String,
    /// Version of the interpreter; empty when unknown.
    pub version: String,
    /// State.
    pub state: TrackState,
    /// Why it is not profiled, in words; empty when it is.
    pub reason: String,
    /// Which of the closed list that is; `None` when it is profiled, or being looked at.
    pub refused: Option<Reason>,
    /// What is known of a process that is profiled.
    pub profiled: Option<Arc<PythonProcess>>,
}

/// What a filter looks at; `cmdline` is as much of the arguments as whoever asks may see.
#[must_use]
pub fn filtered<'a>(
    facts: &'a Facts,
    cmdline: &'a str,
    filter: &ProcessFilter,
) -> ProcessFacts<'a> {
    let container = facts.container.as_ref();
    let name = container.and_then(|container| container.name.as_deref());
    ProcessFacts {
        pid: facts.pid.0,
        comm: &facts.comm,
        cmdline,
        cgroup: &facts.cgroup,
        container_id: container.map_or("", |container| &container.id),
        container_name: name.unwrap_or_default(),
        k8s_namespace: facts.pod.as_ref().map_or("", |pod| &pod.namespace),
        is_in_pod: facts.pod_uid().is_some(),
        pod_labels: facts.pod.as_ref().map(|pod| &pod.labels),
        owner: if filter.needs_owner() {
            facts.owner()
        } else {
            None
        },
    }
}
