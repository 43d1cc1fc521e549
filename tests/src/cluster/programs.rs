//! The programs that make up the cluster: how each is told what to do.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::certificates::Authority;
use super::place::{API_ADDRESS, NODE_ADDRESS, Place};

/// Name of the node.
pub const NODE: &str = "node-1";

/// Where pods and services have their addresses.
const POD_NETWORK: &str = "10.88.0.0/24";
const SERVICE_NETWORK: &str = "10.96.0.0/24";

/// The image that holds a pod's namespaces.
pub(super) const PAUSE_IMAGE: &str = "localhost/pause:1";

/// Where the database listens, in the cluster's network.
const DATABASE: &str = "http://127.0.0.1:2379";
const DATABASE_PEERS: &str = "http://127.0.0.1:2380";

/// Where the programs lie.
#[derive(Debug)]
pub(super) struct Programs {
    folders: Vec<PathBuf>,
}

impl Programs {
    /// What `cargo xtask test` made, as it says; `None` where it made nothing.
    pub(super) fn of_environment() -> Option<Self> {
        let folders = env::var_os("PYAGENT_CLUSTER").filter(|folders| !folders.is_empty())?;
        Some(Self {
            folders: env::split_paths(&folders).collect(),
        })
    }

    /// Path of a program, or of a plug-in.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        let mut paths = self.folders.iter().map(|folder| folder.join(name));
        let path = paths.find(|path| path.exists());
        path.unwrap_or_else(|| panic!("PYAGENT_CLUSTER has no {name}"))
    }

    /// The search path, the machine's own behind it.
    pub(super) fn search_path(&self) -> OsString {
        let path = env::var_os("PATH").unwrap_or_default();
        let own = self.folders.iter().cloned();
        let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        let all = own.chain(env::split_paths(&path)).chain(system);
        env::join_paths(all).expect("no folder has a colon")
    }
}

/// The cluster's programs, in the place where they run.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) place: &'a Place,
    pub(super) programs: &'a Programs,
}

impl Parts<'_> {
    /// Writes certificates and keys, and what clients need to know.
    pub(super) fn write_certificates(&self) {
        let folder = self.folder("pki");
        let authority = Authority::new(&folder);
        let services = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            NODE,
        ];
        let addresses = [API_ADDRESS, NODE_ADDRESS, "127.0.0.1"];
        authority.sign("apiserver", ("apiserver", None), &services, &addresses);
        authority.sign("admin", ("admin", Some("system:masters")), &[], &[]);
        for (file, name) in [
            ("controllers", "system:kube-controller-manager"),
            ("scheduler", "system:kube-scheduler"),
        ] {
            authority.sign(file, (name, None), &[], &[]);
        }
        let node = format!("system:node:{NODE}");
        let node = (&*node, Some("system:nodes"));
        authority.sign("node", node, &[NODE], &[NODE_ADDRESS]);
        authority.write_account_key();
        for file in ["admin", "controllers", "scheduler", "node"] {
            authority.write_client(file, &format!("https://{API_ADDRESS}:443"));
        }
    }

    /// What runs containers. Nothing that needs CAP_SYS_RESOURCE is asked of the kernel.
    pub(super) fn start_runtime(&self) {
        let specification = self.tool("ctr").args(["oci", "spec"]).output();
        let specification = specification.expect("it is there").stdout;
        fs::write(self.file("oci.json"), specification).expect("the folder is ours");
        let folder = self.place.folder.display();
        let plugins = self.programs.path("ptp");
        let plugins = plugins.parent().expect("it is in a folder").display();
        let config = format!(
            r#"version = 2
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
                    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{folder}/oci.json"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/network"
"#
        );
        fs::write(self.file("containerd.toml"), config).expect("the folder is ours");
        let network = format!(
            r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [{{"type": "ptp", "ipMasq": false, "mtu": 1400, "ipam": {{
  "type": "host-local", "dataDir": "{folder}/addresses", "ranges": [[{{"subnet": "{POD_NETWORK}"}}]],
  "routes": [{{"dst": "{SERVICE_NETWORK}"}}, {{"dst": "{NODE_ADDRESS}/32"}}]}}}}]}}
"#
        );
        let path = self.folder("network").join("10-pods.conflist");
        fs::write(path, network).expect("the folder is ours");
        let config = self.file("containerd.toml");
        self.start("containerd", &[&format!("--config={}", config.display())]);
    }

    /// Where the API keeps what it is told, and the API.
    pub(super) fn start_api(&self) {
        let data = self.folder("etcd");
        self.start(
            "etcd",
            &[
                &format!("--data-dir={}", data.display()),
                "--unsafe-no-fsync",
                &format!("--listen-client-urls={DATABASE}"),
                &format!("--advertise-client-urls={DATABASE}"),
                &format!("--listen-peer-urls={DATABASE_PEERS}"),
                &format!("--initial-advertise-peer-urls={DATABASE_PEERS}"),
                &format!("--initial-cluster=default={DATABASE_PEERS}"),
            ],
        );
        self.start_api_server();
    }

    /// The API itself, which may have been ended.
    pub(super) fn start_api_server(&self) {
        // Without kube-proxy a service's address is one of the node's own: that of the API is.
        self.start(
            "kube-apiserver",
            &[
                &format!("--etcd-servers={DATABASE}"),
                &format!("--bind-address={API_ADDRESS}"),
                &format!("--advertise-address={API_ADDRESS}"),
                "--secure-port=443",
                "--endpoint-reconciler-type=none",
                &format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
                "--service-account-issuer=https://kubernetes.default.svc",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--requestheader-allowed-names=front-proxy",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                &self.key("--requestheader-client-ca-file", "ca.crt"),
                // It would ask more of etcd than that of Debian can do.
                "--feature-gates=SizeBasedListCostEstimate=false",
                "--kubelet-preferred-address-types=InternalIP",
                &self.key("--client-ca-file", "ca.crt"),
                &self.key("--tls-cert-file", "apiserver.crt"),
                &self.key("--tls-private-key-file", "apiserver.key"),
                &self.key("--service-account-key-file", "accounts.pub"),
                &self.key("--service-account-signing-key-file", "accounts.key"),
                &self.key("--kubelet-certificate-authority", "ca.crt"),
                &self.key("--kubelet-client-certificate", "admin.crt"),
                &self.key("--kubelet-client-key", "admin.key"),
            ],
        );
    }

    /// What makes pods of workloads, and says on which node they run.
    pub(super) fn start_controllers(&self) {
        let common = |file: &str| {
            [
                self.key("--kubeconfig", file),
                self.key("--authentication-kubeconfig", file),
                self.key("--authorization-kubeconfig", file),
                "--bind-address=127.0.0.1".to_owned(),
                "--leader-elect=false".to_owned(),
            ]
        };
        let [scheduler, mut controllers] =
            [common("scheduler.conf"), common("controllers.conf")].map(Vec::from);
        controllers.extend([
            self.key("--root-ca-file", "ca.crt"),
            self.key("--service-account-private-key-file", "accounts.key"),
            "--use-service-account-credentials=true".to_owned(),
        ]);
        for (name, arguments) in [
            ("kube-controller-manager", controllers),
            ("kube-scheduler", scheduler),
        ] {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            self.start(name, &arguments);
        }
    }

    /// What starts pods on the node.
    pub(super) fn start_kubelet(&self) {
        let folder = self.place.folder.display();
        let config = format!(
            r"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {NODE_ADDRESS}
healthzBindAddress: 127.0.0.1
containerRuntimeEndpoint: unix://{folder}/containerd.sock
cgroupDriver: cgroupfs
failSwapOn: false
failCgroupV1: false
oomScoreAdj: 0
enforceNodeAllocatable: []
resolvConf: ''
registerNode: true
makeIPTablesUtilChains: false
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {folder}/pki/ca.crt}}
authorization: {{mode: Webhook}}
tlsCertFile: {folder}/pki/node.crt
tlsPrivateKeyFile: {folder}/pki/node.key
evictionHard: {{memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}}
imageGCHighThresholdPercent: 100
imageMaximumGCAge: 0s
nodeStatusUpdateFrequency: 4s
# Secrets and others that change arrive in seconds, not in a minute.
syncFrequency: 2s
configMapAndSecretChangeDetectionStrategy: Watch
"
        );
        let path = self.file("kubelet.yaml");
        fs::write(&path, config).expect("the folder is ours");
        self.start(
            "kubelet",
            &[
                &format!("--config={}", path.display()),
                &self.key("--kubeconfig", "node.conf"),
                &format!("--hostname-override={NODE}"),
                &format!("--node-ip={NODE_ADDRESS}"),
            ],
        );
    }

    /// Kills a program that was started.
    pub(super) fn end(&self, name: &str) {
        let path = self.programs.path(name).into_os_string();
        let mut n_ended = 0;
        for entry in fs::read_dir("/proc").expect("it is mounted").flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let program = command.split(|byte| *byte == 0).next();
            if program == Some(path.as_encoded_bytes()) {
                let pid = entry.file_name();
                let killed = Command::new("kill").arg("-9").arg(pid).status();
                n_ended += u32::from(killed.is_ok_and(|status| status.success()));
            }
        }
        assert_eq!(n_ended, 1, "{name}");
    }

    /// A command of one of the programs, inside of the cluster.
    pub(super) fn tool(&self, name: &str) -> Command {
        let mut command = self.place.inside();
        command
            .arg(self.programs.path(name))
            .env("PATH", self.programs.search_path());
        command
    }

    /// Starts a program that stays; what it says is in `logs`.
    fn start(&self, name: &str, arguments: &[&str]) {
        let path = self.folder("logs").join(name);
        let log = File::create(path).expect("the folder is ours");
        let mut command = self.tool(name);
        command
            .args(arguments)
            .env("HOME", self.folder("home"))
            // The runtime tells systemd, where that has started the tests.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("it is open"))
            .stderr(log)
            // Ctrl-C is for the tests alone.
            .process_group(0);
        // The place ends it.
        drop(command.spawn().expect("nsenter is there"));
    }

    fn key(&self, flag: &str, file: &str) -> String {
        format!("{flag}={}", self.file("pki").join(file).display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.folder.join(name)
    }

    fn folder(&self, name: &str) -> PathBuf {
        let folder = self.file(name);
        fs::create_dir_all(&folder).expect("the folder is ours");
        folder
    }
}

/// What the programs have said last, for who has to find out why something did not happen.
pub(super) fn last_words(folder: &Path) -> String {
    const MAX_LINES: usize = 4;
    const MAX_CHARACTERS: usize = 400;
    let mut text = String::new();
    for entry in fs::read_dir(folder.join("logs"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let log = fs::read(entry.path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let _ = writeln!(text, "== {}", entry.path().display());
        for line in &lines[lines.len().saturating_sub(MAX_LINES)..] {
            let line: String = line.chars().take(MAX_CHARACTERS).collect();
            let _ = writeln!(text, "{line}");
        }
    }
    text
}
