//! What the agent can do with which capabilities, in pods with the runtime's own filter of system calls: what
//! docs/kubernetes.md says of each.

use pyagent_tests::cluster::agent::AgentPod;
use pyagent_tests::cluster::{Cluster, PYTHON_IMAGE};
use pyagent_tests::containers::SCRIPT;
use serde_json::{Value, json};

use super::chart::{Values, chart};

const NAMESPACE: &str = "rights";

/// The least.
const LEAST: [&str; 3] = ["BPF", "PERFMON", "SYS_PTRACE"];

/// What it does without, at a loss.
const USEFUL: [&str; 3] = ["DAC_READ_SEARCH", "CHECKPOINT_RESTORE", "SYSLOG"];

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

/// Where the chart's agent is.
const DENIED: &str = "denied";

fn helm(cluster: &Cluster, arguments: &[&str]) {
    let mut helm = cluster.helm();
    helm.args(["--namespace", DENIED]).args(arguments);
    let output = helm.output().unwrap();
    assert!(output.status.success(), "{output:?}\n{}", cluster.state());
}

/// The chart's agent, which has to do without a capability, as soon as `get` finds something in its pod.
fn without<T>(cluster: &Cluster, missing: &str, get: impl Fn(&Value) -> Option<T>) -> (String, T) {
    let left = LEAST.iter().chain(&USEFUL).filter(|it| **it != missing);
    let left: Vec<&str> = left.copied().collect();
    let values = Values::new(&format!(
        "image: {{pullPolicy: Never}}\nrecorder: {{type: none}}\nkubernetes: {{enabled: false}}\ncapabilities: {left:?}\n",
    ));
    let chart = chart().display().to_string();
    let upgrade = ["upgrade", "--install", "it", &chart, "--values"];
    helm(cluster, &[&upgrade[..], &[&values.path()]].concat());
    let list = ["--namespace", DENIED, "get", "pods", "--selector"];
    let list = [&list[..], &["app.kubernetes.io/name=pyagent"]].concat();
    cluster.wait_until(&format!("an agent without {missing}"), || {
        let pods = cluster.json(&list);
        let pod = pods["items"].as_array()?.iter().find(|pod| {
            let context = &pod["spec"]["containers"][0]["securityContext"];
            pod["metadata"]["deletionTimestamp"].is_null()
                && context["capabilities"]["add"] == json!(left)
        })?;
        let name = pod["metadata"]["name"].as_str()?.to_owned();
        Some((name, get(&pod["status"]["containerStatuses"][0])?))
    })
}

#[test]
fn what_is_denied_is_said_where_one_looks() {
    let Some(cluster) = Cluster::get() else {
        return;
    };
    cluster.make_namespace(DENIED);
    for missing in LEAST {
        let (name, message) = without(cluster, missing, |status| {
            let states = [&status["state"], &status["lastState"]];
            let ended = states.iter().map(|state| &state["terminated"]);
            let ended = ended.into_iter().find(|it| !it.is_null())?;
            Some(ended["message"].as_str().unwrap_or_default().to_owned())
        });
        let expected = format!("CAP_{missing} missing");
        assert!(message.contains(&expected), "{message}");
        let described = cluster.kubectl(&["--namespace", DENIED, "describe", "pod", &name]);
        assert!(described.contains(&expected), "{described}");
    }
    for missing in USEFUL {
        let is_ready = |status: &Value| (status["ready"] == true).then_some(());
        let (name, ()) = without(cluster, missing, is_ready);
        let log = cluster.kubectl(&["--namespace", DENIED, "logs", &name]);
        assert!(log.contains(&format!("CAP_{missing}")), "{log}");
    }
    helm(cluster, &["uninstall", "it", "--wait"]);
    cluster.kubectl(&["delete", "namespace", DENIED, "--wait=false"]);
}
