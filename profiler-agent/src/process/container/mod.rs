//! Which container a process is in, learned from /proc alone: no daemon is asked, and nothing has to be there.

mod kubelet;
mod mounts;
mod name;
mod path;

use std::collections::HashSet;
use std::fmt;

use super::{cgroup, facts};
use crate::ids::Pid;

/// Hexadecimal digits of a container's id.
const ID_DIGITS: usize = 64;

/// Digits of an id that listings show: by so many, or more, a container can be chosen.
pub const SHORT_ID_DIGITS: usize = 12;

/// Who runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
    /// CRI-O.
    CriO,
    /// containerd, by itself or under Kubernetes.
    Containerd,
}

impl Runtime {
    /// Name, as `container.runtime.name` of OpenTelemetry has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::CriO => "cri-o",
            Self::Containerd => "containerd",
        }
    }
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id: 64 hexadecimal digits.
    pub id: String,
    /// Who runs it, where that can be told.
    pub runtime: Option<Runtime>,
    /// UID of its Kubernetes pod, with dashes.
    pub pod_uid: Option<String>,
    /// What it is called in its pod, where that was looked for and is known.
    pub pod_container: Option<String>,
    /// The name that its runtime gave it, where it is known. Text from outside, of any kind.
    pub name: Option<String>,
}

impl Container {
    /// The container that a process is in; `groups` are the paths of its control groups.
    #[must_use]
    pub fn of_process(pid: Pid, groups: &[String]) -> Option<Self> {
        let by_group = groups.iter().find_map(|group| path::container(group));
        let mut container = by_group.or_else(|| mounts::container(pid))?;
        container.name = name::of(pid, &container);
        Some(container)
    }

    /// Looks for what it is called in its pod, which takes a reading of all mounts of one of its processes.
    pub fn find_name_in_pod(&mut self, pid: Pid) {
        let pod_uid = self.pod_uid.as_deref();
        self.pod_container = pod_uid.and_then(|uid| kubelet::container_name(pid, uid));
    }

    /// The first digits of its id, as listings show them.
    #[must_use]
    pub fn short_id(&self) -> &str {
        self.id.get(..SHORT_ID_DIGITS).unwrap_or(&self.id)
    }
}

/// `NAME (SHORT ID)`, or the short id alone.
impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.short_id()),
            None => f.write_str(self.short_id()),
        }
    }
}

/// Every container in which a process of this /proc runs, each once.
#[must_use]
pub fn running() -> Vec<Container> {
    let mut ids = HashSet::new();
    let pids = facts::all_pids().into_iter().flatten();
    pids.filter_map(|pid| Container::of_process(pid, &cgroup::paths(pid)))
        .filter(|container| ids.insert(container.id.clone()))
        .collect()
}

/// Whether this is the id of a container.
fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(is_digit)
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_shown_by_its_name_and_the_first_digits_of_its_id() {
        let mut container = Container {
            id: "8a1b2c3d4e5f6071".repeat(4),
            runtime: Some(Runtime::Docker),
            pod_uid: None,
            pod_container: None,
            name: None,
        };
        assert_eq!(container.to_string(), "8a1b2c3d4e5f");
        container.name = Some("web".into());
        assert_eq!(container.to_string(), "web (8a1b2c3d4e5f)");
    }
}
