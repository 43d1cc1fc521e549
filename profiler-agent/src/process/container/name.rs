//! The name of a container, where it can be had without asking a daemon: from the command line of conmon, which
//! watches each container of Podman and CRI-O, and from what Docker keeps beside the container's log.

use std::io::Read as _;
use std::path::PathBuf;

use super::{Container, Runtime, path};
use crate::ids::Pid;
use crate::process::facts::{self, Stat};
use crate::process::{cgroup, file};

/// Longest chain of parents that is followed; a container can make it as long as it likes.
const MAX_PARENTS: usize = 64;

/// Longest name that is taken, in bytes; runtimes allow some 60 to 250.
const MAX_NAME_BYTES: usize = 256;

/// Most bytes of Docker's file that are read.
const MAX_STATE_BYTES: u64 = 1 << 20;

/// The name of the container that `pid` is in.
pub(super) fn of(pid: Pid, container: &Container) -> Option<String> {
    let name = match container.runtime {
        Some(Runtime::Docker) => docker(&container.id),
        Some(Runtime::Podman | Runtime::CriO) | None => conmon(pid, &container.id),
        Some(Runtime::Containerd) => None,
    };
    name.filter(|name| !name.is_empty() && name.len() <= MAX_NAME_BYTES)
}

/// conmon is the parent of a container's first process, and of each that `podman exec` starts.
fn conmon(pid: Pid, id: &str) -> Option<String> {
    let mut pid = pid;
    for _ in 0..MAX_PARENTS {
        pid = Stat::read(&format!("/proc/{pid}/stat")).ok()?.parent;
        if pid == Pid(0) {
            return None;
        }
        if facts::comm(pid).is_ok_and(|comm| comm == "conmon")
            && !is_in(pid, id)
            && let Some(name) = name_of_conmon(&facts::arguments(pid).ok()?, id)
        {
            return Some(name);
        }
    }
    None
}

/// Whether a process is in the container itself, where anything can be called conmon.
fn is_in(pid: Pid, id: &str) -> bool {
    let groups = cgroup::paths(pid);
    let mut containers = groups.iter().filter_map(|group| path::container(group));
    containers.any(|container| container.id == id)
}

/// The name that conmon was given, if it watches this container: `conmon -c ID -n NAME ...`.
fn name_of_conmon(arguments: &[String], id: &str) -> Option<String> {
    let value = |short: &str, long: &str| {
        let pairs = arguments.iter().zip(arguments.iter().skip(1));
        pairs
            .filter(|(option, _)| *option == short || *option == long)
            .map(|(_, value)| value)
            .next()
    };
    let is_its = value("-c", "--cid").is_some_and(|watched| watched == id);
    value("-n", "--name").filter(|_| is_its).cloned()
}

/// `Name` of Docker's `config.v2.json`, which begins with a slash.
fn docker(id: &str) -> Option<String> {
    let path = PathBuf::from(format!("/var/lib/docker/containers/{id}/config.v2.json"));
    // The first process sees the host's files, also when pyagent itself runs in a container.
    let (file, _) = file::open_in_root(Pid(1), &path).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_STATE_BYTES).read_to_end(&mut bytes).ok()?;
    name_of_docker(&bytes)
}

fn name_of_docker(state: &[u8]) -> Option<String> {
    let state: serde_json::Value = serde_json::from_slice(state).ok()?;
    let name = state.get("Name")?.as_str()?;
    Some(name.strip_prefix('/').unwrap_or(name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conmon_tells_the_name_of_the_container_that_it_watches_and_of_no_other() {
        let line = "/usr/bin/conmon --api-version 1 -c 81250a -u 81250a -r /usr/bin/runc -b /b -p /p -n web \
                    --exit-dir /run/libpod/exits --exit-command-arg -n --exit-command-arg other";
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        assert_eq!(name_of_conmon(&arguments, "81250a"), Some("web".into()));
        assert_eq!(name_of_conmon(&arguments, "ffffff"), None);
        assert_eq!(name_of_conmon(&arguments[..3], "81250a"), None);
        assert_eq!(name_of_conmon(&[], "81250a"), None);
    }

    #[test]
    fn dockers_state_tells_the_name() {
        let state =
            br#"{"StreamConfig":{},"State":{"Running":true},"Name":"/web","Driver":"overlay2"}"#;
        assert_eq!(name_of_docker(state), Some("web".into()));
        assert_eq!(name_of_docker(b"{\"Name\":7}"), None);
        assert_eq!(name_of_docker(b"{"), None);
    }

    #[test]
    fn a_process_that_no_conmon_started_has_no_name() {
        assert_eq!(conmon(Pid(std::process::id()), "81250a"), None);
    }
}
