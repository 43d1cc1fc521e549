//! The chart: what it makes is what the API takes, asks for no more than it needs, and profiles pods when it is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use pyagent_tests::cluster::{Cluster, NODE};
use pyagent_tests::pyagent::binary;
use serde_json::Value;

use super::life::wait_for_windows;

/// A namespace with what a release of the chart needs there.
const NAMESPACE: &str = "profilers";

/// Helm has to be told, where it does not ask.
const KUBERNETES: &str = "--kube-version=1.34";

/// Nothing chosen.
const DEFAULT: &str = "{}";

/// As little as can be.
const LITTLE: &str = "
kubernetes: {enabled: false}
serviceAccount: {create: false}
recorder: {type: none}
selection: [--comm, python3]
types: [cpu]
";

/// Everything at once.
const MUCH: &str = "
global: {imageRegistry: registry.example:5000, imagePullSecrets: [mirror]}
image: {repository: team/pyagent, digest: 'sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef', pullPolicy: Always}
imagePullSecrets: [{name: registry}]
commonLabels: {team: platform}
commonAnnotations: {example.com/owner: platform}
namespace: {create: true, labels: {example.com/zone: a}}
serviceAccount: {name: profiler, annotations: {example.com/role: profiler}}
rate: 49
extraArgs: [--max-processes, '1000']
extraEnv: [{name: PYAGENT_LOG_FORMAT, value: json}]
extraVolumes: [{name: more, emptyDir: {}}]
extraVolumeMounts: [{name: more, mountPath: /more}]
service: {port: 7443, annotations: {example.com/a: b}}
tls: {existingSecret: tls, clientCA: true}
auth: {existingSecret: tokens}
recorder: {type: emptyDir, keep: 6h, keepBytes: 512MiB}
podAnnotations: {example.com/scrape: 'true'}
podLabels: {example.com/tier: node}
podSecurityContext: {fsGroup: 65532}
appArmorProfile: {type: Unconfined}
seLinuxOptions: {type: spc_t}
updateStrategy: {type: OnDelete}
nodeSelector: {kubernetes.io/arch: amd64}
affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [
  {matchExpressions: [{key: example.com/python, operator: Exists}]}]}}}
tolerations: []
priorityClassName: system-node-critical
networkPolicy: {enabled: true, from: [{namespaceSelector: {matchLabels: {team: sre}}}], metricsFrom: [{ipBlock: {cidr: 10.0.0.0/8}}]}
podMonitor: {enabled: true, labels: {release: prometheus}, interval: 1m, scrapeTimeout: 30s}
";

/// Verbs on resources that the agent's account may have: all else is too much.
const ALLOWED: [(&str, &[&str]); 3] = [
    ("pods", &["list", "watch"]),
    ("replicasets.apps", &["get"]),
    ("jobs.batch", &["get"]),
];

pub(super) fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/pyagent")
}

/// Values in a file; gone with it.
pub(super) struct Values(tempfile::NamedTempFile);

impl Values {
    pub(super) fn new(text: &str) -> Self {
        let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
        fs::write(file.path(), text).unwrap();
        Self(file)
    }

    pub(super) fn path(&self) -> String {
        self.0.path().display().to_string()
    }
}

/// What Helm prints, and whether it succeeded.
fn helm(cluster: &Cluster, arguments: &[&str]) -> (String, bool) {
    let mut helm = cluster.helm();
    helm.args(["--namespace", NAMESPACE]).args(arguments);
    let output = helm.output().unwrap();
    let text = [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
    (text.concat(), output.status.success())
}

/// The same with the chart and values.
fn helm_with(cluster: &Cluster, arguments: &[&str], values: &str) -> (String, bool) {
    let values = Values::new(values);
    let (chart, values) = (chart().display().to_string(), values.path());
    helm(
        cluster,
        &[arguments, &[&chart, "--values", &values]].concat(),
    )
}

/// The manifests that the chart makes of values.
fn rendered(cluster: &Cluster, values: &str) -> String {
    let (text, is_success) = helm_with(cluster, &["template", KUBERNETES, "profiler"], values);
    assert!(is_success, "{values}: {text}");
    text
}

#[test]
fn what_the_chart_makes_is_what_the_api_takes() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    for (values, kinds) in [
        (
            DEFAULT,
            &[
                "ClusterRole",
                "ClusterRoleBinding",
                "DaemonSet",
                "Pod",
                "ServiceAccount",
            ][..],
        ),
        (LITTLE, &["DaemonSet", "Pod"]),
        (
            MUCH,
            &[
                "ClusterRole",
                "ClusterRoleBinding",
                "DaemonSet",
                "Namespace",
                "NetworkPolicy",
                "Pod",
                "PodMonitor",
                "Service",
                "ServiceAccount",
            ],
        ),
    ] {
        let (text, is_fine) = helm_with(cluster, &["lint", KUBERNETES, "--strict"], values);
        assert!(is_fine, "{values}: {text}");
        let text = rendered(cluster, values);
        let made: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("kind: "))
            .collect();
        assert_eq!(made, BTreeSet::from_iter(kinds.iter().copied()), "{values}");
        let file = Values::new(&text);
        assert_eq!(cluster.wrong(file.0.path()), "", "{values}\n{text}");
    }
}

#[test]
fn what_pods_are_chosen_by_cannot_be_changed() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let values = "
podLabels: {app.kubernetes.io/name: other, tier: node}
commonLabels: {app.kubernetes.io/instance: other, tier: all}
";
    let text = rendered(cluster, values);
    assert_eq!(cluster.wrong(Values::new(&text).0.path()), "");
    assert!(!text.contains("other"), "{text}");
    // The more special one counts.
    assert_eq!(text.matches("tier: node").count(), 1, "{text}");
}

#[test]
fn the_check_of_manifests_finds_what_is_misspelt() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let text = rendered(cluster, DEFAULT).replace("hostPID: true", "hostPid: true");
    let wrong = cluster.wrong(Values::new(&text).0.path());
    assert!(wrong.contains("hostPid"), "{wrong}");
}

#[test]
fn values_that_do_not_do_what_they_say_are_refused() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    for (values, why) in [
        ("kubernetes: {enable: true}", "enable"),
        ("image: {tags: x}", "tags"),
        ("recorder: {type: memory}", "recorder"),
        ("capabilities: [CAP BPF]", "capabilities"),
        ("tls: {clientCA: true}", "tls.existingSecret"),
        ("tls: {existingSecret: tls}", "lets everybody in"),
        ("auth: {existingSecret: tokens}", "tls.existingSecret"),
        (
            "{auth: {kubernetes: true}, kubernetes: {enabled: false}}",
            "kubernetes.enabled",
        ),
        ("service: {port: 7098}", "health.port"),
        ("service: {port: 80}", "NET_BIND_SERVICE"),
        ("recorder: {keep: 0s}", "keep"),
        ("selection: ['']", "selection"),
        ("recorder: null", "recorder"),
    ] {
        let (text, is_success) = helm_with(cluster, &["template", KUBERNETES, "profiler"], values);
        assert!(!is_success && text.contains(why), "{values}: {text}");
    }
}

#[test]
fn no_right_is_asked_for_that_is_not_needed() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    for values in [DEFAULT, LITTLE, MUCH] {
        let text = rendered(cluster, values);
        for absent in [
            "privileged: true",
            "hostNetwork",
            "hostIPC",
            "SYS_ADMIN",
            "secrets",
            "nodes/proxy",
            "allowPrivilegeEscalation: true",
            "Unconfined\n            seccomp",
        ] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
        for present in [
            "hostPID: true",
            "privileged: false",
            "readOnlyRootFilesystem: true",
            "drop: [ALL]",
            "type: RuntimeDefault",
            "enableServiceLinks: false",
        ] {
            assert!(text.contains(present), "{present}: {text}");
        }
        assert!(!text.contains("reviews"), "{text}");
        let has_token = text.contains("automountServiceAccountToken: true");
        assert_eq!(has_token, values != LITTLE, "{text}");
    }
}

#[test]
fn reviews_are_asked_for_only_where_the_api_server_says_who_asks() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let text = rendered(cluster, "auth: {kubernetes: true}");
    for present in [
        "name: PYAGENT_AUTH\n              value: kubernetes\n",
        "resources: [tokenreviews]\n    verbs: [create]\n",
        "resources: [subjectaccessreviews]\n    verbs: [create]\n",
    ] {
        assert!(text.contains(present), "{present}: {text}");
    }
    assert_eq!(cluster.wrong(Values::new(&text).0.path()), "");
}

/// What the API says that the account may beyond what everybody may.
fn rights(cluster: &Cluster, account: &str) -> BTreeSet<(String, String)> {
    let of = |account: &str| {
        let account = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
        let listed = cluster.kubectl(&["auth", "can-i", "--list", &account, "--no-headers"]);
        let rights = listed.lines().filter_map(|line| {
            let resource = line.split_whitespace().next()?;
            let verbs = line.rsplit('[').next()?.strip_suffix(']')?;
            Some((resource.to_owned(), verbs.to_owned()))
        });
        rights.collect::<BTreeSet<_>>()
    };
    let everybodys = of("nobody");
    of(account).difference(&everybodys).cloned().collect()
}

/// Installs the chart, and waits until it runs.
fn install(cluster: &Cluster, verb: &[&str], values: &str) -> String {
    let arguments = [verb, &["profiler", "--wait", "--timeout=2m"]].concat();
    let (text, is_success) = helm_with(cluster, &arguments, values);
    assert!(is_success, "{text}\n{}", cluster.state());
    let rollout = [
        "--namespace",
        NAMESPACE,
        "rollout",
        "status",
        "--timeout=2m",
    ];
    cluster.kubectl(&[&rollout[..], &["daemonset/profiler-pyagent"]].concat());
    text
}

/// Values of a release that serves profiles on its address.
const SECURE: &str = "
image: {pullPolicy: Never}
service: {port: 7443}
tls: {existingSecret: certificate}
auth: {existingSecret: tokens}
";

/// Name in the agent's certificate.
pub(super) const SERVER: &str = "pyagent.example";

/// A file that only its owner can read.
fn write(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// Makes the Secret `certificate` in a namespace, and says what a client needs for TLS.
pub(super) fn certificate(cluster: &Cluster, namespace: &str) -> [String; 4] {
    let folder = cluster.folder(namespace);
    let certified = rcgen::generate_simple_self_signed([SERVER.to_owned()]).unwrap();
    let certificate = write(&folder, "tls.crt", &certified.cert.pem());
    let key = write(&folder, "tls.key", &certified.signing_key.serialize_pem());
    let (cert, key) = (format!("--cert={certificate}"), format!("--key={key}"));
    let create = ["--namespace", namespace, "create", "secret", "tls"];
    cluster.kubectl(&[&create[..], &["certificate", &cert, &key]].concat());
    [
        "--tls-ca".to_owned(),
        certificate,
        "--tls-server-name".to_owned(),
        SERVER.to_owned(),
    ]
}

/// Makes the Secrets of [`SECURE`], and says what a client needs; its token comes last.
fn secure(cluster: &Cluster) -> Vec<String> {
    let mut options = Vec::from(certificate(cluster, NAMESPACE));
    let folder = cluster.folder(NAMESPACE);
    let token = "0123456789abcdef0123456789abcdef";
    let tokens = write(&folder, "tokens", &format!("{token} all\n"));
    let tokens = format!("--from-file=tokens={tokens}");
    let create = ["--namespace", NAMESPACE, "create", "secret", "generic"];
    cluster.kubectl(&[&create[..], &["tokens", &tokens]].concat());
    options.extend(["--token-file".to_owned(), write(&folder, "token", token)]);
    options
}

/// Whether nothing of the release is left in the API.
fn is_gone(cluster: &Cluster) -> bool {
    let selector = "app.kubernetes.io/instance=profiler";
    let kinds = "daemonsets,services,serviceaccounts,clusterroles,clusterrolebindings,pods";
    let left = cluster.json(&[
        "--namespace",
        NAMESPACE,
        "get",
        kinds,
        "--selector",
        selector,
    ]);
    left["items"].as_array().is_some_and(Vec::is_empty)
}

/// Names in the node's folders, and what is pinned of BPF.
fn on_the_node(cluster: &Cluster) -> BTreeSet<PathBuf> {
    let folders = ["/run", "/var/lib", "/var/log"].map(|it| (cluster.own_folder(it), it));
    let pinned = (PathBuf::from("/sys/fs/bpf"), "/sys/fs/bpf");
    let mut found = BTreeSet::new();
    for (folder, name) in folders.into_iter().chain([pinned]) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            found.insert(Path::new(name).join(entry.file_name()));
        }
    }
    found
}

#[test]
fn installed_it_profiles_pods_and_uninstalled_it_leaves_nothing() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    cluster.make_namespace(NAMESPACE);
    let shop = cluster.deploy_program(NAMESPACE, "shop");
    let before = on_the_node(cluster);
    let values = "image: {pullPolicy: Never}";
    let notes = install(cluster, &["install"], values);
    assert!(notes.contains("daemonset/profiler-pyagent"), "{notes}");

    let allowed = ALLOWED.map(|(resource, verbs)| (resource.to_owned(), verbs.join(" ")));
    assert_eq!(rights(cluster, "profiler-pyagent"), BTreeSet::from(allowed));
    let agent = cluster.pod(NAMESPACE, "app.kubernetes.io/name=pyagent");
    let container = &agent.0["spec"]["containers"][0];
    assert_eq!(container["resources"]["limits"]["cpu"], Value::Null);
    assert_eq!(agent.0["spec"]["nodeName"], NODE);
    // Profiles are not on the pod's address, and who may forward ports reaches them.
    let samples = cluster.pull_forwarded(NAMESPACE, &agent, &shop);
    assert!(!samples.is_empty());
    // It records on the node, where nobody else may look.
    let data = cluster.own_folder("/var/lib/pyagent");
    assert!(data.join("pyagent.db").exists(), "{}", data.display());

    let (text, is_fine) = helm(cluster, &["test", "profiler", "--logs"]);
    assert!(is_fine, "{text}");

    let options = secure(cluster);
    install(cluster, &["upgrade"], SECURE);
    let agent = cluster.pod(NAMESPACE, "app.kubernetes.io/name=pyagent");
    let address = format!("https://{}:7443", agent.address());
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    assert!(!cluster.pull(&address, &shop, &options).is_empty());
    // Without its token nobody gets anything.
    options.truncate(options.len() - 2);
    let mut pull = cluster.command(binary());
    pull.args(["pull", &address, "--duration", "1s", "-o", "-"]);
    let refused = pull.args(options).output().unwrap();
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains("token"), "{message}");

    let (text, is_fine) = helm(cluster, &["uninstall", "profiler", "--wait"]);
    assert!(is_fine, "{text}");
    cluster.kubectl(&[
        "--namespace",
        NAMESPACE,
        "delete",
        "pod",
        "profiler-pyagent-test",
    ]);
    cluster.wait_until("nothing is left", || is_gone(cluster).then_some(()));
    // On the node neither, but what was recorded.
    let after = on_the_node(cluster);
    let new: Vec<&PathBuf> = after.difference(&before).collect();
    assert_eq!(new, [Path::new("/var/lib/pyagent")]);
}

/// The version that was handed out before, as it was.
const BEFORE: &str = "charts/pyagent-0.1.0";

/// What somebody chose then. The folder is no other release's.
const CHOSEN: &str = "
image: {pullPolicy: Never}
rate: 49
extraArgs: [--window, 2s]
recorder: {hostPath: /var/lib/pyagent-upgraded, keep: 6h}
podLabels: {example.com/tier: node}
";

#[test]
fn an_upgrade_from_the_version_before_keeps_what_was_chosen_and_recorded() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let namespace = "upgraded";
    cluster.make_namespace(namespace);
    cluster.deploy_program(namespace, "shop");
    let helm = |arguments: &[&str]| {
        let mut helm = cluster.helm();
        helm.args(["--namespace", namespace]).args(arguments);
        let output = helm.args(["--wait", "--timeout=2m"]).output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", cluster.state());
        cluster.wait_rolled_out(namespace, "daemonset/upgraded-pyagent");
        let get = ["--namespace", namespace, "get", "daemonset"];
        cluster.json(&[&get[..], &["upgraded-pyagent"]].concat())
    };
    let before = Path::new(env!("CARGO_MANIFEST_DIR")).join(BEFORE);
    let (before, values) = (before.display().to_string(), Values::new(CHOSEN));
    // The image of then is that of now.
    let tag = format!("image.tag={}", env!("CARGO_PKG_VERSION"));
    let install = ["install", "upgraded", &before, "--set", &tag, "--values"];
    let installed = helm(&[&install[..], &[&values.path()]].concat());
    let folder = "/var/lib/pyagent-upgraded";
    let recorded = wait_for_windows(cluster, folder, &BTreeMap::new());

    let now = chart().display().to_string();
    let upgraded = helm(&["upgrade", "upgraded", &now, "--reuse-values"]);
    assert_eq!(upgraded["metadata"]["uid"], installed["metadata"]["uid"]);
    let version = |daemonset: &Value| daemonset["metadata"]["labels"]["helm.sh/chart"].clone();
    assert_eq!(version(&installed), "pyagent-0.1.0");
    assert_ne!(version(&upgraded), version(&installed));
    let pod = cluster.pod(namespace, "app.kubernetes.io/name=pyagent");
    assert_eq!(pod.0["metadata"]["labels"]["example.com/tier"], "node");
    let container = pod.0["spec"]["containers"][0].to_string();
    for chosen in ["\"49\"", "\"6h\"", "--window"] {
        assert!(container.contains(chosen), "{chosen}: {container}");
    }
    let more = wait_for_windows(cluster, folder, &recorded);
    for (window, n_samples) in &recorded {
        assert_eq!(more.get(window), Some(n_samples), "window {window}");
    }
    let mut uninstall = cluster.helm();
    uninstall.args(["--namespace", namespace, "uninstall", "upgraded", "--wait"]);
    let output = uninstall.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]);
    fs::remove_dir_all(cluster.own_folder(folder)).unwrap();
}
