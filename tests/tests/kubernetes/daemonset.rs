//! By a plain manifest with the smallest rights: processes of pods have the pod's unique id and their container's, as the API
//! has them.

use std::collections::BTreeSet;
use std::path::Path;

use pyagent_tests::cluster::Cluster;
use pyagent_tests::cluster::agent::{AgentPod, PORT, functions, label_values};

/// What docs/kubernetes.md says is the least.
const CAPABILITIES: [&str; 3] = ["BPF", "PERFMON", "SYS_PTRACE"];

#[test]
fn a_pods_process_has_its_pods_id_and_its_containers() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    cluster.make_namespace("plain");
    let shop = cluster.deploy_program("plain", "shop");
    let agent = AgentPod {
        namespace: "plain",
        capabilities: &CAPABILITIES,
        arguments: &["--all-python"],
        seccomp: "RuntimeDefault",
        host_pid: true,
    };
    cluster.apply(&agent.daemonset());
    cluster.wait_rolled_out("plain", "daemonset/pyagent");
    let address = format!("{}:{PORT}", cluster.pod("plain", "app=pyagent").address());

    let samples = cluster.pull(&address, &shop, &[]);
    assert_eq!(
        label_values(&samples, "k8s_pod_uid"),
        BTreeSet::from([shop.uid().to_owned()])
    );
    let only = |value: &str| BTreeSet::from([value.to_owned()]);
    assert_eq!(
        label_values(&samples, "container_id"),
        only(shop.container_id())
    );
    let (major, minor, micro) = cluster.python.version;
    assert_eq!(
        label_values(&samples, "python_version"),
        only(&format!("{major}.{minor}.{micro}"))
    );
    let spins = samples
        .iter()
        .any(|sample| functions(sample).contains(&"spin"));
    assert!(spins, "{samples:#?}");
}

#[test]
fn the_manifest_that_is_handed_out_runs_as_it_is() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
    assert_eq!(cluster.wrong(&folder.join("pyagent.yaml")), "");
    let folder = folder.display().to_string();
    cluster.kubectl(&["apply", "--kustomize", &folder]);
    cluster.wait_rolled_out("pyagent", "daemonset/pyagent");
    let shop = cluster.deploy_program("default", "shop");
    let agent = cluster.pod("pyagent", "app.kubernetes.io/name=pyagent");
    let samples = cluster.pull_forwarded("pyagent", &agent, &shop);
    let only = |value: &str| BTreeSet::from([value.to_owned()]);
    assert_eq!(label_values(&samples, "k8s_deployment_name"), only("shop"));
    assert_eq!(label_values(&samples, "k8s_pod_name"), only(shop.name()));
    cluster.kubectl(&["delete", "--kustomize", &folder]);
}
