//! Where the cluster is: a folder, and namespaces of mounts and of the network, so that nothing of the host is touched. And its
//! end, which comes however the tests end: what was started there is killed and its folder removed.
//!
//! Every process of the cluster, those in pods too, has mounts below the folder, and no other process has: that is how they are
//! known. What a start after a crash finds is cleaned up in the same way.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Name of the folder in the one for temporary files: one cluster at a time on a machine, since pods have one control group.
const FOLDER: &str = "pyagent-kubernetes";

/// The node's address, and that at which the API is a service.
pub(super) const NODE_ADDRESS: &str = "10.77.0.1";
pub(super) const API_ADDRESS: &str = "10.96.0.1";

/// What the kubelet wants of the kernel, which it would else set for the whole machine: it is shown files that say so.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Folders of the host in whose place the cluster has its own, so that it finds and leaves nothing there.
const OWN_FOLDERS: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// Makes the namespaces what they are, says so, and stays.
const SETUP: &str = r#"
set -e
folder=$1
shift
mount --make-rshared /
mount --bind "$folder" "$folder"
for own in "$@"; do
    mkdir -p "$folder/own$own"
    mount --bind "$folder/own$own" "$own"
done
cd "$folder/settings"
find . -type f | while read -r setting; do
    mount --bind "$setting" "/proc/sys/$setting"
done
cd /
ip link set lo up
ip addr add "$NODE_ADDRESS/32" dev lo
ip addr add "$API_ADDRESS/32" dev lo
echo ready
exec sleep infinity
"#;

/// Ends every process that has mounts below the folder, then removes the pods' control groups and the folder.
const CLEAN_UP: &str = r#"
folder=$1
members() { grep -ls -e " $folder[ /]" -e "=$folder/" /proc/[0-9]*/mountinfo | cut -d/ -f3; }
for turn in $(seq 100); do
    left=$(members)
    [ -n "$left" ] || break
    kill -9 $left
    sleep 0.1
done
# What a process of theirs has open can take seconds to close after its end.
for turn in $(seq 300); do
    groups=$(find /sys/fs/cgroup -depth -type d -path '*/kubepods*')
    [ -n "$groups" ] || break
    echo "$groups" | xargs rmdir
    sleep 0.1
done
rm -rf --one-file-system "$folder"
"#;

/// The folder and the namespaces; they go with it, or with this process.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
    /// What the namespaces are of.
    holder: Child,
    /// Cleans up when its standard input closes.
    _janitor: Child,
}

impl Place {
    /// Makes it, once what was there before has gone: it waits for another cluster to end.
    pub(super) fn new() -> Self {
        let folder = env::temp_dir().join(FOLDER);
        let lock = lock(&folder);
        if folder.exists() {
            let status = clean_up(&folder).status().expect("a shell is there");
            assert!(!folder.exists(), "{} is left: {status}", folder.display());
        }
        refuse_other_nodes();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .expect("it has gone");
        let mut janitor = janitor(&folder);
        // It keeps the lock until it has cleaned up.
        let janitor = janitor.stdout(lock).spawn().expect("a shell is there");
        for (setting, value) in KERNEL_SETTINGS {
            let path = folder.join("settings").join(setting);
            fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is ours");
            fs::write(path, format!("{value}\n")).expect("the folder is ours");
        }
        let holder = hold(&folder);
        Self {
            folder,
            holder,
            _janitor: janitor,
        }
    }

    /// A command that runs in the cluster's network.
    pub(super) fn in_network(&self) -> Command {
        self.enter(&["--net"])
    }

    /// A command that runs in the cluster's network, and sees its mounts: what the cluster is made of.
    pub(super) fn inside(&self) -> Command {
        self.enter(&["--net", "--mount"])
    }

    fn enter(&self, namespaces: &[&str]) -> Command {
        let mut enter = Command::new("nsenter");
        enter
            .args(["--target", &self.holder.id().to_string()])
            .args(namespaces)
            .arg("--");
        enter
    }
}

/// Only one cluster at a time.
fn lock(folder: &Path) -> File {
    let path = folder.with_extension("lock");
    let lock = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let owner = lock.metadata().expect("it is open").uid();
    assert_eq!(owner, 0, "{} is another user's", path.display());
    if lock.try_lock().is_err() {
        eprintln!("waits for another cluster on this machine to end");
        lock.lock().expect("locks are known");
    }
    lock
}

/// A second kubelet would end the pods of the first.
fn refuse_other_nodes() {
    let mut find = Command::new("find");
    find.arg("/sys/fs/cgroup")
        .args(["-path", "*/kubepods*", "-name", "cgroup.procs"])
        .args(["-exec", "cat", "{}", "+"]);
    let pids = find.output().expect("findutils are there").stdout;
    let pids = String::from_utf8_lossy(&pids);
    assert!(
        pids.is_empty(),
        "this machine is a node of another cluster, whose pods have the processes {pids}"
    );
}

/// The process that has the namespaces.
fn hold(folder: &Path) -> Child {
    let mut holder = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private"])
        .args(["sh", "-c", SETUP, "holder"])
        .arg(folder)
        .args(OWN_FOLDERS)
        .env("NODE_ADDRESS", NODE_ADDRESS)
        .env("API_ADDRESS", API_ADDRESS)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Ctrl-C is for the tests alone.
        .process_group(0)
        .spawn()
        .expect("util-linux is there");
    let mut line = String::new();
    let output = holder.stdout.as_mut().expect("it is piped");
    let read = BufReader::new(output).read_line(&mut line);
    assert!(
        read.is_ok() && line == "ready\n",
        "the namespaces cannot be made; the reason stands above"
    );
    holder
}

fn clean_up(folder: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", CLEAN_UP, "janitor"]).arg(folder);
    shell
}

/// A shell that outlives this process and then cleans up.
fn janitor(folder: &Path) -> Command {
    let script = format!("cat\n{CLEAN_UP}");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script, "janitor"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0);
    shell
}
