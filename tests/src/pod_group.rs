//! A control group that is called as a kubelet calls a container's, on this machine, and processes in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A container's group; gone with the test, when nothing runs in it any more.
#[derive(Debug)]
pub struct PodGroup {
    path: PathBuf,
    /// The container's id.
    pub container_id: String,
}

impl PodGroup {
    /// Makes it: `.../kubepods/burstable/podUID/ID`, in the hierarchy of version 2, or in one that limits nothing.
    ///
    /// # Panics
    /// When it cannot be made: it takes root.
    #[must_use]
    pub fn new(pod_uid: &str) -> Self {
        let container_id = format!("{:064x}", std::process::id());
        let mounts = ["unified", "", "pids"].map(|it| Path::new("/sys/fs/cgroup").join(it));
        let mut mounts = mounts
            .into_iter()
            .filter(|it| it.join("cgroup.procs").is_file());
        let mount = mounts.next().expect("control groups are mounted");
        let path = mount.join(format!(
            "pyagent-test/kubepods/burstable/pod{pod_uid}/{container_id}"
        ));
        fs::create_dir_all(&path).expect("tests with control groups run as root");
        Self { path, container_id }
    }

    /// A command whose process begins in the group, and sees what the kubelet mounts for a container of this name out of
    /// `folder`; program and arguments are to be added.
    ///
    /// # Panics
    /// When the folder cannot be written.
    #[must_use]
    pub fn command(&self, pod_uid: &str, container: &str, folder: &Path) -> Command {
        let of_container = folder.join(format!("pods/{pod_uid}/containers/{container}"));
        fs::create_dir_all(&of_container).expect("a folder of the test");
        let (last_words, place) = (
            of_container.join("0a1b2c3d"),
            folder.join("termination-log"),
        );
        fs::write(&last_words, "").expect("a folder of the test");
        fs::write(&place, "").expect("a folder of the test");
        let script =
            "echo $$ >\"$1/cgroup.procs\" && mount --bind \"$2\" \"$3\" && shift 3 && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]);
        command.arg(&self.path).arg(last_words).arg(place);
        command
    }
}

impl Drop for PodGroup {
    fn drop(&mut self) {
        // Up to the folder that the tests share; what is in use stays.
        for folder in self.path.ancestors().take(4) {
            let _ = fs::remove_dir(folder);
        }
    }
}
