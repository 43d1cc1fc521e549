//! What a container is called in its pod, by what the kubelet has mounted into it: each container has a file of its own at
//! least, for its last words, out of `/var/lib/kubelet/pods/UID/containers/NAME/`. So the name is known at once, without
//! the API server.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};

use super::mounts::MAX_BYTES;
use crate::ids::Pid;

/// Longest name of a container (RFC 1123).
const MAX_NAME_BYTES: usize = 63;

/// The name of the container that a process of this pod is in. Who mounts for itself can lie about its own name alone.
pub(super) fn container_name(pid: Pid, pod_uid: &str) -> Option<String> {
    let file = File::open(format!("/proc/{pid}/mountinfo")).ok()?;
    let folder = format!("/pods/{pod_uid}/containers/");
    let lines = BufReader::new(file.take(MAX_BYTES)).split(b'\n');
    lines
        .map_while(Result::ok)
        .find_map(|line| of_mount(std::str::from_utf8(&line).ok()?, &folder).map(str::to_owned))
}

/// Fields are `id parent device root mount_point ...`; `root` is the path in the file system that is mounted, which can
/// begin anywhere below `/`.
fn of_mount<'a>(line: &'a str, folder: &str) -> Option<&'a str> {
    let root = line.split(' ').nth(3)?;
    let (_, after) = root.split_once(folder)?;
    // A file of the container: the folder alone is mounted by nobody but the kubelet's own containers.
    let (name, _) = after.split_once('/')?;
    is_name(name).then_some(name)
}

fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(is_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "9d4a6f0e-23c5-4b7a-8f61-0c1d2e3f4a5b";

    fn found<'a>(root: &str, line: &'a mut String) -> Option<&'a str> {
        *line = format!(
            "912 903 8:1 {} /dev/termination-log rw,relatime - ext4 /dev/sda1 rw",
            root.replace("UID", UID)
        );
        of_mount(line, &format!("/pods/{UID}/containers/"))
    }

    #[test]
    fn the_file_for_last_words_names_the_container() {
        let mut line = String::new();
        let root = "/var/lib/kubelet/pods/UID/containers/web/4fb2c1a0";
        assert_eq!(found(root, &mut line), Some("web"));
        // The kubelet's folder on a file system of its own.
        let root = "/pods/UID/containers/istio-proxy/4fb2c1a0";
        assert_eq!(found(root, &mut line), Some("istio-proxy"));
        // Elsewhere: k3s, microk8s.
        let root = "/var/snap/microk8s/common/var/lib/kubelet/pods/UID/containers/a1/0c";
        assert_eq!(found(root, &mut line), Some("a1"));
    }

    #[test]
    fn other_mounts_name_none() {
        let mut line = String::new();
        for root in [
            "/",
            "/var/lib/kubelet/pods/UID/etc-hosts",
            "/var/lib/kubelet/pods/UID/volumes/kubernetes.io~empty-dir/containers/web",
            "/var/lib/kubelet/pods/UID/containers/web",
            "/var/lib/kubelet/pods/UID/containers//4fb2c1a0",
            "/var/lib/kubelet/pods/UID/containers/We\\040b/4fb2c1a0",
            "/var/lib/kubelet/pods/00000000-0000-0000-0000-000000000000/containers/web/4f",
        ] {
            assert_eq!(found(root, &mut line), None, "{root}");
        }
        let long = format!(
            "/var/lib/kubelet/pods/UID/containers/{}/0c",
            "a".repeat(MAX_NAME_BYTES + 1)
        );
        assert_eq!(found(&long, &mut line), None);
        assert_eq!(of_mount("22 1 0:21", "/pods/"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_line_gives_a_value(line in "\\PC{0,200}") {
            let _ = of_mount(&line, "/pods/");
        }
    }
}
