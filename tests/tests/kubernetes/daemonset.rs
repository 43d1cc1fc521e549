//! By a plain manifest with the smallest rights: processes of pods have the pod's unique id and their container's, as the API
//! has them.

use std::collections::BTreeSet;

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

    let samples = cluster.pull(&address, &[]);
    let of_shop: Vec<_> = samples
        .into_iter()
        .filter(|sample| sample["labels"]["k8s_pod_uid"] == shop.uid())
        .collect();
    assert!(!of_shop.is_empty(), "{}", cluster.state());
    let only = |value: &str| BTreeSet::from([value.to_owned()]);
    assert_eq!(
        label_values(&of_shop, "container_id"),
        only(shop.container_id())
    );
    let (major, minor, micro) = cluster.python.version;
    assert_eq!(
        label_values(&of_shop, "python_version"),
        only(&format!("{major}.{minor}.{micro}"))
    );
    let spins = of_shop
        .iter()
        .any(|sample| functions(sample).contains(&"spin"));
    assert!(spins, "{of_shop:#?}");
}
