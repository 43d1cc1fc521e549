//! What is said of the processes.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Engine, Sampler};
use crate::agent::threads::TrackMessage;
use crate::ids::Generation;
use crate::process::container::{Container, Runtime};
use crate::process::memory::ProcessMemory;
use crate::process::pod::Pod;
use crate::process::resident;
use crate::process::service::LabelOptions;
use crate::profile::memory::MemoryInfo;
use crate::profile::query::ProcessFilter;
use crate::python::gc;
use crate::python::refusal::Reason;
use crate::serve::query::{ContainerInfo, PodInfo, ProcessInfo, ProcessState};
use crate::track::process::{ProcessListing, TrackState, filtered};

pub(super) fn process_state(state: TrackState) -> ProcessState {
    match state {
        TrackState::Profiled => ProcessState::Profiled,
        TrackState::Pending => ProcessState::Discovering,
        TrackState::Refused => ProcessState::NotProfiled,
    }
}

/// Sampled time in which programs collected garbage.
pub(super) type Collecting = HashMap<Generation, Duration>;

/// Reads what it has resident, and what its garbage collector says.
pub(super) fn memory_info(
    process: &ProcessListing,
    collecting: Option<&Collecting>,
) -> Option<MemoryInfo> {
    let resident = resident::read(process.facts.pid).ok()?;
    let gc = process.profiled.as_ref().and_then(|process| {
        let memory = ProcessMemory::new(process.pid);
        let mut stats = gc::read(&memory, &process.interpreter).ok().flatten()?;
        if stats.duration.is_none() && gc::is_sampled(&process.interpreter) {
            let of_process = |collecting: &Collecting| collecting.get(&process.generation).copied();
            stats.sampled_duration = collecting.map(|all| of_process(all).unwrap_or_default());
        }
        Some(stats)
    });
    Some(MemoryInfo { resident, gc })
}

pub(super) fn process_info(
    process: ProcessListing,
    show_cmdline: bool,
    options: &LabelOptions,
    memory: Option<MemoryInfo>,
) -> ProcessInfo {
    let facts = process.facts;
    let service_name = facts.service_name(options);
    let program = facts.arguments.first().unwrap_or(&facts.comm).clone();
    // Of other programs nobody knows which argument is a secret.
    let script = facts
        .program()
        .strip_prefix(&program)
        .filter(|_| !process.version.is_empty())
        .unwrap_or_default()
        .trim_start()
        .to_owned();
    ProcessInfo {
        pid: facts.pid.0,
        start_time: facts.started,
        comm: facts.comm,
        program,
        script,
        interpreter: process.interpreter,
        python_version: process.version,
        state: process_state(process.state),
        reason: process.reason,
        reason_name: process.refused.map_or("", Reason::name),
        cmdline: if show_cmdline {
            facts.arguments
        } else {
            Vec::new()
        },
        cgroup: facts.cgroup,
        service_name,
        container: facts.container.map(container_info),
        pod: facts.pod.map(|pod| pod_info(&pod, options)),
        memory,
    }
}

fn pod_info(pod: &Pod, options: &LabelOptions) -> PodInfo {
    let workloads = pod.workloads.iter();
    let labels = options.pod_labels.iter();
    PodInfo {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        node: pod.node.clone(),
        workloads: workloads
            .map(|it| (it.kind.name(), it.name.clone()))
            .collect(),
        labels: labels
            .filter_map(|it| Some((it.name.clone(), it.source.of(pod)?.to_owned())))
            .collect(),
    }
}

pub(super) fn container_info(container: Container) -> ContainerInfo {
    ContainerInfo {
        id: container.id,
        name: container.name.unwrap_or_default(),
        runtime: container.runtime.map_or("", Runtime::name),
        k8s_pod_uid: container.pod_uid.unwrap_or_default(),
        k8s_container_name: container.pod_container.unwrap_or_default(),
    }
}

impl Engine {
    /// The tracker knows the processes; it answers through a thread of its own making, so that the engine
    /// never waits.
    pub(super) fn list(
        &self,
        filter: ProcessFilter,
        with_memory: bool,
        reply: oneshot::Sender<Vec<ProcessInfo>>,
    ) {
        let (sender, listing) = oneshot::channel();
        if self
            .parts
            .tracker
            .try_send(TrackMessage::List(sender))
            .is_err()
        {
            return;
        }
        let show_cmdline = self.parts.show_cmdline;
        let options = self.parts.config.labels.clone();
        let collecting = self.samples_cpu().then(|| self.collecting.clone());
        std::thread::spawn(move || {
            let Ok(listing) = listing.blocking_recv() else {
                return;
            };
            let infos = listing
                .into_iter()
                .filter(|process| {
                    // What may not be shown cannot be guessed by asking either.
                    let facts = &process.facts;
                    let cmdline = if process.version.is_empty() && !show_cmdline {
                        facts.comm.clone()
                    } else {
                        facts.cmdline(show_cmdline)
                    };
                    filter.matches(&filtered(&process.facts, &cmdline, &filter))
                })
                .map(|process| {
                    let memory = with_memory
                        .then(|| memory_info(&process, collecting.as_ref()))
                        .flatten();
                    process_info(process, show_cmdline, &options, memory)
                })
                .collect();
            // Whoever asked may have left.
            let _ = reply.send(infos);
        });
    }

    /// Whether the kernel programs take samples of the CPU.
    pub(super) fn samples_cpu(&self) -> bool {
        match &self.parts.sampler {
            Sampler::Kernel(sources) => sources.periods().cpu_ns.is_some(),
            Sampler::Remote(_) => false,
        }
    }
}
