//! Who sees which profiles where the API server says so (`auth.kubernetes`): two tenants with service accounts of their own, an
//! operator, and strangers; and what happens to them while the API server is away, or changes its mind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Output;

use pyagent_tests::cluster::agent::label_values;
use pyagent_tests::cluster::{Cluster, Pod};
use pyagent_tests::pyagent::binary;

use super::chart::{SERVER, Values, certificate, chart};

/// Where the agent is.
const NAMESPACE: &str = "gate";

/// Two tenants, each with a namespace of this name.
const TENANTS: [&str; 2] = ["shop", "bank"];

/// Values of the release.
const VALUES: &str = "
image: {pullPolicy: Never}
tls: {existingSecret: certificate}
auth: {kubernetes: true}
";

/// The agent, and how it is asked.
struct Gate<'a> {
    cluster: &'a Cluster,
    address: String,
    /// For TLS.
    options: Vec<String>,
    folder: PathBuf,
}

impl Gate<'_> {
    /// A file with the token of a service account.
    fn token(&self, namespace: &str, account: &str) -> String {
        let create = ["--namespace", namespace, "create", "token", account];
        let token = self.cluster.kubectl(&create);
        self.token_of(&format!("{namespace}-{account}"), token.trim())
    }

    fn token_of(&self, name: &str, token: &str) -> String {
        let path = self.folder.join(name);
        fs::write(&path, token).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    }

    /// What `pyagent VERB ADDRESS ...` says with a token.
    fn ask(&self, verb: &[&str], token: &str) -> Output {
        let mut command = self.cluster.command(binary());
        command.arg(verb[0]).arg(&self.address).args(&verb[1..]);
        command.args(&self.options).args(["--token-file", token]);
        command.output().unwrap()
    }

    /// How a pull of a namespace's processes ends: 0, or 4 where there are none.
    fn pull(&self, namespace: &str, token: &str) -> (Option<i32>, String) {
        let flags = [
            "pull",
            "--duration",
            "300ms",
            "-o",
            "-",
            "--format",
            "folded",
        ];
        let output = self.ask(&[&flags[..], &["--namespace", namespace]].concat(), token);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    }

    /// The body of an answer over HTTP.
    fn get(&self, target: &str, token: &str) -> String {
        let mut curl = self.cluster.command("curl");
        let address = self.address.trim_start_matches("https://");
        let host = address.split(':').next().unwrap();
        let token = fs::read_to_string(token).unwrap();
        curl.args(["-sS", "--cacert", &self.options[1]])
            .args(["--resolve", &format!("{SERVER}:7099:{host}")])
            .args(["-H", &format!("Authorization: Bearer {token}")])
            .arg(format!("https://{SERVER}:7099{target}"));
        let output = curl.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// Installs the agent, and makes the tenants with their rights and programs.
fn start(cluster: &Cluster) -> (Gate<'_>, [Pod; 2]) {
    cluster.make_namespace(NAMESPACE);
    let certificate = certificate(cluster, NAMESPACE);
    let values = Values::new(VALUES);
    let mut helm = cluster.helm();
    helm.args(["--namespace", NAMESPACE, "install", NAMESPACE])
        .arg(chart())
        .args(["--values", &values.path(), "--wait", "--timeout=2m"]);
    let output = helm.output().unwrap();
    assert!(output.status.success(), "{output:?}\n{}", cluster.state());
    cluster.wait_rolled_out(NAMESPACE, "daemonset/gate-pyagent");
    let pods = TENANTS.map(|tenant| {
        cluster.make_namespace(tenant);
        let in_it = ["--namespace", tenant, "create"];
        for object in [
            &["serviceaccount", "reader"][..],
            &["serviceaccount", "stranger"],
            &["role", "profiles", "--verb=get", "--resource=pods/profile"],
            &[
                "rolebinding",
                "profiles",
                "--role=profiles",
                &format!("--serviceaccount={tenant}:reader"),
            ],
        ] {
            cluster.kubectl(&[&in_it[..], object].concat());
        }
        cluster.deploy_program(tenant, "web")
    });
    for object in [
        &[
            "clusterrole",
            "profiles",
            "--verb=get",
            "--resource=pods/profile",
        ][..],
        &[
            "clusterrolebinding",
            "profiles",
            "--clusterrole=profiles",
            "--serviceaccount=gate:operator",
        ],
    ] {
        cluster.kubectl(&[&["create"], object].concat());
    }
    cluster.kubectl(&[
        "--namespace",
        NAMESPACE,
        "create",
        "serviceaccount",
        "operator",
    ]);
    let agent = cluster.pod(NAMESPACE, "app.kubernetes.io/name=pyagent");
    let gate = Gate {
        cluster,
        address: format!("https://{}:7099", agent.address()),
        options: certificate.into(),
        folder: cluster.folder("tenants"),
    };
    (gate, pods)
}

#[test]
fn tenants_see_their_own_namespaces_alone() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let (gate, pods) = start(cluster);
    let operator = gate.token(NAMESPACE, "operator");
    let readers = TENANTS.map(|tenant| gate.token(tenant, "reader"));
    let options = |token: &str| {
        let token = ["--token-file", token].map(str::to_owned);
        [&gate.options[..], &token].concat()
    };
    cluster.wait_until("a window of both is recorded", || {
        let text = gate.get("/debug/pprof/profile?last=5m&format=jsonl", &operator);
        let is_there = |pod: &Pod| text.contains(pod.uid());
        pods.iter().all(is_there).then_some(())
    });
    for (idx, tenant) in TENANTS.into_iter().enumerate() {
        let (other, token) = (TENANTS[1 - idx], &readers[idx]);
        let options = options(token);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let samples = cluster.pull(&gate.address, &pods[idx], &options);
        let only = BTreeSet::from([tenant.to_owned()]);
        assert_eq!(label_values(&samples, "k8s_namespace_name"), only);
        let (code, said) = gate.pull(other, token);
        assert_eq!(code, Some(4), "{tenant} sees {other}: {said}");
        // Everything that they may see is of their namespace, whatever they ask for.
        for target in [
            "/sd",
            "/debug/pprof/profile?seconds=1&format=jsonl",
            "/debug/pprof/profile?last=5m&format=jsonl",
        ] {
            let text = gate.get(target, token);
            assert!(text.contains(pods[idx].uid()), "{target}: {text}");
            assert!(!text.contains(pods[1 - idx].uid()), "{target}: {text}");
            assert!(!text.contains(other), "{target}: {text}");
        }
        let metrics = gate.get("/metrics", token);
        let counted = "pyagent_processes{state=\"profiled\"} 1\n";
        assert!(metrics.contains(counted), "{metrics}");
        let dumped = gate.ask(&["dump", "--all-python", "--json"], token);
        assert!(dumped.status.success(), "{dumped:?}");
        let dumped = String::from_utf8_lossy(&dumped.stdout).into_owned();
        assert!(dumped.contains("spin"), "{dumped}");
    }
    for tenant in TENANTS {
        assert_eq!(gate.pull(tenant, &operator).0, Some(0), "{tenant}");
    }
    let everything = gate.get("/sd", &operator);
    assert!(
        pods.iter().all(|pod| everything.contains(pod.uid())),
        "{everything}"
    );
    // Who has no right sees nothing; who is nobody is told so.
    let stranger = gate.token(TENANTS[0], "stranger");
    assert_eq!(gate.get("/sd", &stranger).trim(), "[]");
    for tenant in TENANTS {
        assert_eq!(gate.pull(tenant, &stranger).0, Some(4));
    }
    let nobody = gate.token_of("nobody", "0123456789abcdef0123456789abcdef");
    let (code, said) = gate.pull(TENANTS[0], &nobody);
    assert!(
        code == Some(1) && said.contains("does not know this token"),
        "{said}"
    );
    // What is taken away is gone within a minute; the watch of a tenant ends.
    let delete = [
        "--namespace",
        TENANTS[1],
        "delete",
        "rolebinding",
        "profiles",
    ];
    cluster.kubectl(&delete);
    cluster.wait_until("the right is gone", || {
        (gate.pull(TENANTS[1], &readers[1]).0 == Some(4)).then_some(())
    });
    assert_eq!(gate.pull(TENANTS[0], &readers[0]).0, Some(0));
    // While nobody can say who asks, nobody is let in who was not before.
    let late = gate.token(TENANTS[0], "reader");
    cluster.without_api(|| {
        let (code, said) = gate.pull(TENANTS[0], &late);
        assert!(
            code == Some(1) && said.contains("does not say who asks"),
            "{said}"
        );
    });
    cluster.wait_until("it says so again", || {
        (gate.pull(TENANTS[0], &late).0 == Some(0)).then_some(())
    });
    // No token stands in what the agent said.
    let logs = cluster.kubectl(&["--namespace", NAMESPACE, "logs", "daemonset/gate-pyagent"]);
    for file in readers.iter().chain([&operator, &late, &nobody]) {
        let token = fs::read_to_string(file).unwrap();
        assert!(!logs.contains(token.trim()));
    }
}
