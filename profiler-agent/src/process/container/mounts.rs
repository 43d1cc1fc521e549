//! Which container a process is in by what its runtime has mounted for it, where the control group does not tell: when
//! the container has no group of its own, or when it is the root of the cgroup namespace that pyagent runs in.
//!
//! Podman mounts a marker, Docker the host's name, each from a folder that is called by the container's id
//! (`/proc/PID/mountinfo`, proc_pid_mountinfo(5)).

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};

use super::{Container, Runtime, is_id};
use crate::ids::Pid;

/// Most bytes of a mountinfo file that are read; a process in a namespace of its own can mount as it likes.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// A file that a runtime mounts into its containers.
struct Marker {
    /// Where the container sees it.
    mount_point: &'static str,
    /// What its path on the host ends with: `before`, the id, `after`.
    before: &'static str,
    after: &'static str,
    runtime: Runtime,
}

const MARKERS: &[Marker] = &[
    Marker {
        mount_point: "/run/.containerenv",
        before: "/overlay-containers/",
        after: "/userdata/.containerenv",
        runtime: Runtime::Podman,
    },
    Marker {
        mount_point: "/etc/hostname",
        before: "/containers/",
        after: "/hostname",
        runtime: Runtime::Docker,
    },
];

/// The container that a process is in; `None` when it shares the mounts of the host's first process.
pub(super) fn container(pid: Pid) -> Option<Container> {
    let namespace = |pid: Pid| fs::read_link(format!("/proc/{pid}/ns/mnt"));
    // Where the first process hides its own, the mounts decide alone.
    if namespace(Pid(1)).is_ok_and(|first| namespace(pid).is_ok_and(|own| own == first)) {
        return None;
    }
    let file = File::open(format!("/proc/{pid}/mountinfo")).ok()?;
    let lines = BufReader::new(file.take(MAX_BYTES)).split(b'\n');
    lines
        .map_while(Result::ok)
        .find_map(|line| of_mount(std::str::from_utf8(&line).ok()?))
}

/// Fields are `id parent device root mount_point ...`; `root` is the path in the file system that is mounted.
fn of_mount(line: &str) -> Option<Container> {
    let mut fields = line.split(' ').skip(3);
    let (root, mount_point) = (fields.next()?, fields.next()?);
    let marker = MARKERS
        .iter()
        .find(|marker| marker.mount_point == mount_point)?;
    let (_, id) = root
        .strip_suffix(marker.after)?
        .rsplit_once(marker.before)?;
    is_id(id).then(|| Container {
        id: id.to_owned(),
        runtime: Some(marker.runtime),
        pod_uid: None,
        pod_container: None,
        name: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "81250a144a4b05a2124770c75c6bddccf7d752595203ca7984cd0df20726b921";

    fn found(root: &str, mount_point: &str) -> Option<Runtime> {
        let line = format!("82 73 254:0 {root} {mount_point} rw,relatime - ext4 /dev/vda rw");
        let container = of_mount(&line.replace("ID", ID))?;
        assert_eq!(container.id, ID);
        container.runtime
    }

    #[test]
    fn what_podman_and_docker_mount_names_their_container() {
        let root = "/var/lib/containers/storage/overlay-containers/ID/userdata/.containerenv";
        assert_eq!(found(root, "/run/.containerenv"), Some(Runtime::Podman));
        let root =
            "/home/a/.local/share/containers/storage/overlay-containers/ID/userdata/.containerenv";
        assert_eq!(found(root, "/run/.containerenv"), Some(Runtime::Podman));
        let root = "/var/lib/docker/containers/ID/hostname";
        assert_eq!(found(root, "/etc/hostname"), Some(Runtime::Docker));
    }

    #[test]
    fn other_mounts_name_none() {
        let podman = "/var/lib/containers/storage/overlay-containers/ID/userdata/hostname";
        assert_eq!(found(podman, "/etc/hostname"), None);
        // The sandbox of a pod is not the container.
        let sandbox = "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/ID/hostname";
        assert_eq!(found(sandbox, "/etc/hostname"), None);
        assert_eq!(
            found("/var/lib/docker/containers/web/hostname", "/etc/hostname"),
            None
        );
        assert_eq!(
            found("/var/lib/docker/containers/ID/hostname", "/etc/hosts"),
            None
        );
        assert_eq!(of_mount("22 1 0:21 /"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_line_gives_a_value(line in "\\PC{0,200}") {
            let _ = of_mount(&line);
        }
    }
}
