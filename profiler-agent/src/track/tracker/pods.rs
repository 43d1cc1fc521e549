//! Which process is in which pod, and what follows from it: its names, and whether it is profiled.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::{KernelTable, Status, Tracked, Tracker};
use crate::ids::Pid;
use crate::kubernetes::table::PodEvent;
use crate::process::facts::Facts;
use crate::python::process::PythonProcess;

impl<K: KernelTable> Tracker<K> {
    /// Gives a process the pod that it is in, if that is known. What it has of a pod that has gone stays.
    pub(super) fn join_pod(&self, facts: &mut Facts) {
        let pod = facts.pod_uid().and_then(|uid| self.pods.get(uid));
        if let Some(pod) = pod {
            facts.pod = Some(Arc::clone(pod));
        }
    }

    /// Gives a process that runs Python what its container is called in its pod.
    pub(super) fn name_container(facts: &mut Facts) {
        let pid = facts.pid;
        if let Some(container) = &mut facts.container {
            container.find_name_in_pod(pid);
        }
    }

    /// Follows what the API server told: processes of pods that are new or different get their names from now on, and are
    /// profiled, or not any more, by what the pods say now.
    pub fn on_pods(&mut self, event: PodEvent) {
        let changed = self.pods.apply(event, Instant::now());
        if changed.is_empty() {
            return;
        }
        let uids = changed
            .iter()
            .flat_map(|pod| [Some(pod.uid.as_str()), pod.static_uid.as_deref()]);
        let uids: HashSet<&str> = uids.flatten().collect();
        let is_in = |uid: Option<&str>| uid.is_some_and(|uid| uids.contains(uid));
        let processes = self.processes.iter();
        let known: Vec<Pid> = processes
            .filter(|(_, tracked)| is_in(tracked.facts().pod_uid()))
            .map(|(pid, _)| *pid)
            .collect();
        let others = self.others.iter();
        let others: Vec<Pid> = others
            .filter(|(_, other)| is_in(other.pod_uid.as_deref()))
            .map(|(pid, _)| *pid)
            .collect();
        for pid in known {
            self.rejoin(pid);
        }
        for pid in others {
            let generation = self.others.remove(&pid).and_then(|other| other.generation);
            self.begin(pid, generation);
        }
    }

    /// The pod of a process is another one now, or says something else.
    fn rejoin(&mut self, pid: Pid) {
        let Some(tracked) = self.processes.get(&pid) else {
            return;
        };
        let mut facts = tracked.facts().clone();
        self.join_pod(&mut facts);
        // Those that were named with all that they start are followed by the kernel.
        if !self.is_selected(&facts, true) {
            self.forget(pid);
            self.set_aside(pid, None, Some(&facts));
            return;
        }
        match self
            .processes
            .get_mut(&pid)
            .map(|tracked| &mut tracked.status)
        {
            Some(Status::Profiled(process)) => {
                let process = PythonProcess {
                    facts,
                    ..PythonProcess::clone(process)
                };
                self.profiled(process);
            }
            Some(Status::Pending { facts: known, .. } | Status::Refused { facts: known, .. }) => {
                **known = facts;
            }
            None => {}
        }
    }
}

impl Tracked {
    fn facts(&self) -> &Facts {
        match &self.status {
            Status::Pending { facts, .. } | Status::Refused { facts, .. } => facts,
            Status::Profiled(process) => &process.facts,
        }
    }
}
