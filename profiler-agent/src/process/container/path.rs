//! Which container a control group is that of: the path's grammar, and nothing of processes.
//!
//! Every runtime names the group of a container by its id, 64 hexadecimal digits:
//!
//! | who makes the group | its name |
//! |---|---|
//! | Docker | `docker/ID`, `docker-ID.scope` |
//! | Podman | `libpod-ID`, `libpod-ID.scope`, `libpod-payload-ID` |
//! | CRI-O | `crio-ID`, `crio-ID.scope` |
//! | containerd | `cri-containerd-ID.scope`, `nerdctl-ID.scope`, `NAMESPACE/ID`, `SLICE:cri-containerd:ID` |
//! | the kubelet, above them | `podUID`, `kubepods-burstable-podUID_WITH_UNDERSCORES.slice` |
//!
//! The innermost container counts. What watches a container from outside (`libpod-conmon-ID.scope`) is not in it.

use super::{Container, Runtime, is_digit, is_id};

/// What stands before the id in the name of a group, and who writes it so.
const PREFIXES: &[(&str, Runtime)] = &[
    ("docker-", Runtime::Docker),
    ("libpod-payload-", Runtime::Podman),
    ("libpod-", Runtime::Podman),
    ("crio-", Runtime::CriO),
    ("cri-containerd-", Runtime::Containerd),
    ("nerdctl-", Runtime::Containerd),
];

/// Names of groups right above one that is called by the id alone.
const PARENTS: &[(&str, Runtime)] = &[
    ("docker", Runtime::Docker),
    ("libpod_parent", Runtime::Podman),
    ("k8s.io", Runtime::Containerd),
];

/// The container whose control group has this path.
#[must_use]
pub(super) fn container(path: &str) -> Option<Container> {
    let mut container = None;
    let mut pod_uid = None;
    let mut parent = "";
    for segment in path.split('/') {
        pod_uid = pod_of_segment(segment).or(pod_uid);
        if let Some((id, runtime)) = container_of_segment(segment, parent) {
            container = Some(Container {
                id: id.to_owned(),
                runtime,
                // Of the pod around it, not around a container further out.
                pod_uid: pod_uid.take(),
                pod_container: None,
                name: None,
            });
        }
        parent = segment;
    }
    container
}

fn container_of_segment<'a>(segment: &'a str, parent: &str) -> Option<(&'a str, Option<Runtime>)> {
    // `SLICE:cri-containerd:ID`: a kubelet that uses systemd over a containerd that does not.
    if let Some((rest, id)) = segment.rsplit_once(':') {
        let runtime = rest
            .ends_with(":cri-containerd")
            .then_some(Runtime::Containerd);
        return is_id(id).then_some((id, runtime));
    }
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    if is_id(name) {
        let runtime = PARENTS.iter().find(|(above, _)| *above == parent);
        return Some((name, runtime.map(|(_, runtime)| *runtime)));
    }
    PREFIXES.iter().find_map(|(prefix, runtime)| {
        let id = name.strip_prefix(prefix).filter(|id| is_id(id))?;
        Some((id, Some(*runtime)))
    })
}

/// The UID in the name of a pod's group. A static pod's is a hash: 32 digits without dashes.
fn pod_of_segment(segment: &str) -> Option<String> {
    let slice = segment.split(':').next()?;
    let uid = match slice.strip_suffix(".slice") {
        // systemd reads a dash as a level of the tree, so the UID's own are underscores there.
        Some(name) => name
            .rsplit('-')
            .next()?
            .strip_prefix("pod")?
            .replace('_', "-"),
        None => slice.strip_prefix("pod")?.to_owned(),
    };
    is_uid(&uid).then_some(uid)
}

/// 32 hexadecimal digits, with the four dashes of a UUID or without any.
fn is_uid(text: &str) -> bool {
    const DASHES: [usize; 4] = [8, 13, 18, 23];
    let is_uuid = |(at, byte): (usize, u8)| {
        if DASHES.contains(&at) {
            byte == b'-'
        } else {
            is_digit(byte)
        }
    };
    match text.len() {
        32 => text.bytes().all(is_digit),
        36 => text.bytes().enumerate().all(is_uuid),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "8a1b2c3d4e5f60718293a4b5c6d7e8f9008a1b2c3d4e5f60718293a4b5c6d7e8";
    const OTHER: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
    const UID: &str = "9d4a6f0e-23c5-4b7a-8f61-0c1d2e3f4a5b";
    const UID_: &str = "9d4a6f0e_23c5_4b7a_8f61_0c1d2e3f4a5b";
    const STATIC_UID: &str = "5d2bd0b1b9d7f8ce1c5a0a5b7f8f2c11";

    /// A path with `ID` and so on filled in; whose container that is: runtime and pod.
    const CONTAINERS: &[(&str, Option<Runtime>, Option<&str>)] = &[
        // Docker, with cgroupfs and with systemd; rootless; swarm and compose look the same.
        ("/docker/ID", Some(Runtime::Docker), None),
        ("/system.slice/docker-ID.scope", Some(Runtime::Docker), None),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
            Some(Runtime::Docker),
            None,
        ),
        // A group within the container: systemd in it, or what it made itself.
        (
            "/system.slice/docker-ID.scope/init.scope",
            Some(Runtime::Docker),
            None,
        ),
        (
            "/docker/ID/system.slice/nginx.service",
            Some(Runtime::Docker),
            None,
        ),
        // Podman: cgroupfs, systemd, rootless, `--cgroups=split`, in a pod, with crun's inner group.
        ("/libpod_parent/libpod-ID", Some(Runtime::Podman), None),
        ("/libpod_parent/ID", Some(Runtime::Podman), None),
        (
            "/machine.slice/libpod-ID.scope",
            Some(Runtime::Podman),
            None,
        ),
        (
            "/machine.slice/libpod-ID.scope/container",
            Some(Runtime::Podman),
            None,
        ),
        (
            "/machine.slice/machine-libpod_pod_OTHER.slice/libpod-ID.scope",
            Some(Runtime::Podman),
            None,
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            Some(Runtime::Podman),
            None,
        ),
        (
            "/system.slice/web.service/libpod-payload-ID",
            Some(Runtime::Podman),
            None,
        ),
        // Kubernetes on cgroupfs, by quality of service; the runtime is not told.
        ("/kubepods/besteffort/podUID/ID", None, Some(UID)),
        ("/kubepods/burstable/podUID/ID", None, Some(UID)),
        ("/kubepods/podUID/ID", None, Some(UID)),
        ("/kubepods/burstable/podSTATIC/ID", None, Some(STATIC_UID)),
        (
            "/kubepods/burstable/podUID/crio-ID",
            Some(Runtime::CriO),
            Some(UID),
        ),
        // Kubernetes on systemd.
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/cri-containerd-ID.scope",
            Some(Runtime::Containerd),
            Some(UID),
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/crio-ID.scope/container",
            Some(Runtime::CriO),
            Some(UID),
        ),
        (
            "/kubepods.slice/kubepods-podUID_.slice/cri-containerd-ID.scope",
            Some(Runtime::Containerd),
            Some(UID),
        ),
        (
            "/kubepods.slice/kubepods-podUID_.slice/docker-ID.scope",
            Some(Runtime::Docker),
            Some(UID),
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podSTATIC.slice/cri-containerd-ID.scope",
            Some(Runtime::Containerd),
            Some(STATIC_UID),
        ),
        // A kubelet on systemd, containerd on cgroupfs.
        (
            "/system.slice/containerd.service/kubepods-burstable-podUID_.slice:cri-containerd:ID",
            Some(Runtime::Containerd),
            Some(UID),
        ),
        // kind: Kubernetes in a Docker container. The inner one counts.
        (
            "/docker/OTHER/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
             kubelet-kubepods-besteffort-podUID_.slice/cri-containerd-ID.scope",
            Some(Runtime::Containerd),
            Some(UID),
        ),
        ("/docker/OTHER/docker/ID", Some(Runtime::Docker), None),
        // Docker in a pod: the inner container is in no pod of its own.
        (
            "/kubepods/burstable/podUID/OTHER/docker/ID",
            Some(Runtime::Docker),
            None,
        ),
        // containerd without Kubernetes.
        ("/k8s.io/ID", Some(Runtime::Containerd), None),
        ("/default/ID", None, None),
        (
            "/system.slice/nerdctl-ID.scope",
            Some(Runtime::Containerd),
            None,
        ),
        // ECS.
        ("/ecs/41f2a2f0a0f84b6c8f3a2e1d0c9b8a77/ID", None, None),
        // From a cgroup namespace of one's own.
        ("/../docker-ID.scope", Some(Runtime::Docker), None),
        ("/../../podUID/ID", None, Some(UID)),
        ("/../ID", None, None),
    ];

    const NO_CONTAINERS: &[&str] = &[
        "",
        "/",
        "/..",
        "/init.scope",
        "/system.slice/ssh.service",
        "/system.slice/docker.service",
        "/system.slice/containerd.service",
        "/user.slice/user-1000.slice/session-2.scope",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-UID.scope",
        // What watches containers, not one of them.
        "/machine.slice/libpod-conmon-ID.scope",
        "/kubepods.slice/kubepods-podUID_.slice/crio-conmon-ID.scope",
        "/libpod_parent/conmon",
        // A pod without a container.
        "/kubepods/burstable/podUID",
        "/machine.slice/machine-libpod_pod_ID.slice",
        "/machine.slice/systemd-nspawn@web.service/payload",
        "/lxc.payload.web/system.slice/ssh.service",
        // No ids: too short, not in lower case, no digits, too long.
        "/process_api/41f2a2f0a0f84b6c8f3a2e1d0c9b8a77",
        "/docker/web",
        "/docker/8A1B2C3D4E5F60718293A4B5C6D7E8F9008A1B2C3D4E5F60718293A4B5C6D7E8",
        "/docker/IDff",
        "/docker/build-ID",
    ];

    fn filled(path: &str) -> String {
        let names = [
            ("podUID_", format!("pod{UID_}")),
            ("STATIC", STATIC_UID.to_owned()),
            ("UID", UID.to_owned()),
            ("OTHER", OTHER.to_owned()),
            ("ID", ID.to_owned()),
        ];
        names.iter().fold(path.to_owned(), |path, (name, text)| {
            path.replace(name, text)
        })
    }

    #[test]
    fn the_container_of_each_runtimes_groups_is_found() {
        for (path, runtime, pod_uid) in CONTAINERS {
            let found = container(&filled(path));
            let expected = Container {
                id: ID.to_owned(),
                runtime: *runtime,
                pod_uid: pod_uid.map(str::to_owned),
                pod_container: None,
                name: None,
            };
            assert_eq!(found, Some(expected), "{path}");
        }
    }

    #[test]
    fn what_is_in_no_container_is_in_none() {
        for path in NO_CONTAINERS {
            assert_eq!(container(&filled(path)), None, "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_path_gives_a_value(path in "\\PC{0,200}") {
            let _ = container(&path);
        }

        #[test]
        fn an_id_that_is_found_is_an_id(
            path in "(/(docker|pod|libpod-|\\.slice|\\.scope|:|-|_|[0-9a-f]{32}|[0-9a-f]{64}|é){0,4}){0,5}"
        ) {
            if let Some(found) = container(&path) {
                proptest::prop_assert!(is_id(&found.id));
                proptest::prop_assert!(found.pod_uid.as_deref().is_none_or(is_uid));
            }
        }
    }
}
