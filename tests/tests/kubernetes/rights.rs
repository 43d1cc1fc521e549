//! What the agent can do with which capabilities, in pods with the runtime's own filter of system calls: what
//! docs/kubernetes.md says of each.

use pyagent_tests::cluster::agent::AgentPod;
use pyagent_tests::cluster::{Cluster, PYTHON_IMAGE};
use pyagent_tests::containers::SCRIPT;
use serde_json::json;

const NAMESPACE: &str = "rights";

/// The least.
const LEAST: [&str; 3] = ["BPF", "PERFMON", "SYS_PTRACE"];

/// A profile of a second, as text.
const RECORD: [&str; 10] = [
    "record",
    // None but that of the test is called so.
    "--comm",
    "^python$",
    "--native",
    "--duration",
    "1s",
    "--format",
    "folded",
    "-o",
    "-",
];

/// A user of a pod's own.
const USER: u32 = 1000;

fn agent<'a>(capabilities: &'a [&'a str], arguments: &'a [&'a str]) -> AgentPod<'a> {
    AgentPod {
        namespace: NAMESPACE,
        capabilities,
        arguments,
        seccomp: "RuntimeDefault",
        host_pid: true,
    }
}

/// Runs it to its end: whether it succeeded, and what it printed.
fn run(cluster: &Cluster, name: &str, agent: &AgentPod<'_>) -> (bool, String) {
    cluster.apply(&agent.once(name));
    let get = ["--namespace", NAMESPACE, "get", "pod", name];
    let phase = cluster.wait_until("a pod that ran", || {
        let pod = cluster.json(&get);
        let phase = pod["status"]["phase"].as_str()?.to_owned();
        ["Succeeded", "Failed"].contains(&&*phase).then_some(phase)
    });
    let logs = cluster.kubectl(&["--namespace", NAMESPACE, "logs", name]);
    (phase == "Succeeded", logs)
}

/// A program whose interpreter nobody but its user may read.
fn start_private_program(cluster: &Cluster) {
    let python = cluster.python.executable.display().to_string();
    let code = format!(
        "import os, shutil\n\
         shutil.copy('{python}', '/work/python')\n\
         os.chmod('/work/python', 0o700)\n\
         command = ['/work/python', '-S', '-B', '/{SCRIPT}']\n\
         os.execve(command[0], command, {{'PYTHONHOME': '/usr'}})\n"
    );
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "private", "namespace": NAMESPACE},
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": PYTHON_IMAGE,
                "imagePullPolicy": "Never",
                "securityContext": {"runAsUser": USER, "runAsGroup": USER},
                "command": [python, "-I", "-S", "-c", code],
                "resources": {"limits": {"cpu": "200m"}},
                "volumeMounts": [{"name": "work", "mountPath": "/work"}],
            }],
            "volumes": [{"name": "work", "emptyDir": {}}],
        },
    });
    cluster.apply(&pod.to_string());
    cluster.wait_until("the program is ready", || {
        let logs = cluster.try_kubectl(&["--namespace", NAMESPACE, "logs", "private"]);
        logs.is_ok_and(|logs| logs.contains("ready")).then_some(())
    });
}

#[test]
fn each_capability_is_for_what_the_documents_say() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    cluster.make_namespace(NAMESPACE);
    start_private_program(cluster);

    for missing in LEAST {
        let left: Vec<&str> = LEAST.into_iter().filter(|it| *it != missing).collect();
        let name = format!("without-{}", missing.to_lowercase().replace('_', "-"));
        let (is_success, said) = run(cluster, &name, &agent(&left, &RECORD));
        assert!(!is_success, "{missing}: {said}");
        let expected = format!("CAP_{missing} missing");
        assert!(said.contains(&expected), "{missing}: {said}");
    }

    let (is_success, said) = run(cluster, "least", &agent(&LEAST, &RECORD));
    assert!(is_success && said.contains("CAP_SYSLOG"), "{said}");
    assert!(!said.contains("spin (/contained.py"), "{said}");

    let more = [&LEAST[..], &["DAC_READ_SEARCH", "SYSLOG"]].concat();
    let (is_success, said) = run(cluster, "more", &agent(&more, &RECORD));
    assert!(is_success && !said.contains("CAP_SYSLOG"), "{said}");
    assert!(said.contains("spin (/contained.py"), "{said}");

    let probes = [&RECORD[..], &["--type", "pools"]].concat();
    let (is_success, said) = run(cluster, "no-probes", &agent(&more, &probes));
    assert!(
        !is_success && said.contains("cannot place probes"),
        "{said}"
    );
}

#[test]
fn without_the_hosts_process_ids_it_says_so() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    if cluster
        .try_kubectl(&["get", "namespace", NAMESPACE])
        .is_err()
    {
        cluster.make_namespace(NAMESPACE);
    }
    let agent = AgentPod {
        host_pid: false,
        ..agent(&LEAST, &RECORD)
    };
    let (is_success, said) = run(cluster, "own-pids", &agent);
    assert!(!is_success && said.contains("hostPID"), "{said}");
}
