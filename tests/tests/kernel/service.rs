//! The service of a running agent as others use it: a client that is generated from the .proto, and many clients at once.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use pyagent_tests::interpreters;
use pyagent_tests::push::prepared;
use pyagent_tests::pyagent::Pyagent;
use pyagent_tests::target::Target;
use serde_json::Value;

/// Spins in a function until its standard input closes.
const WORK: &str = "\
import sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), __import__('os')._exit(0)), daemon=True).start()
print('ready', flush=True)
def spin():
    while True:
        sum(range(1000))
spin()
";

/// Clients that pull at the same time.
const N_CLIENTS: usize = 100;

fn start(data: &Path) -> (Target, Pyagent) {
    let mut target = Target::python(&interpreters::newest(), WORK, &[]);
    assert_eq!(target.line(), "ready");
    let (pid, data) = (target.pid().to_string(), data.display().to_string());
    let arguments = [
        "--pid",
        &pid,
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
        "--window",
        "1s",
    ];
    let agent = Pyagent::start(&arguments, "go tool pprof");
    (target, agent)
}

#[test]
fn a_client_that_is_generated_from_the_proto_works() {
    let Some(packages) = prepared("PYAGENT_OTLP_PACKAGES") else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let (target, agent) = start(scratch.path());
    // A window at least.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("python3")
        .arg(root.join("peers/client.py"))
        .arg(root.parent().unwrap().join("proto"))
        .args([agent.address(), target.pid().to_string()])
        .env("PYTHONPATH", packages)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["state"], "PROCESS_STATE_PROFILED");
    let (major, minor, micro) = interpreters::newest().version;
    assert_eq!(said["python_version"], format!("{major}.{minor}.{micro}"));
    assert!(said["n_live"].as_i64().unwrap() > 30, "{said}");
    assert!(said["n_recorded"].as_i64().unwrap() > 30, "{said}");
    assert_eq!(said["is_gzip"], true);
    assert!(said["functions"].as_str().unwrap().contains("spin ("));
    assert_eq!(said["watched"], serde_json::json!(["cpu", "cpu"]));
    assert_eq!(said["refused"], "INVALID_ARGUMENT");
    assert_eq!(said["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(said["recorder"], scratch.path().display().to_string());
    agent.stop();
}

#[test]
fn a_hundred_clients_pull_at_once_and_each_gets_what_was_sampled() {
    let scratch = tempfile::tempdir().unwrap();
    let (target, agent) = start(scratch.path());
    let url = format!(
        "http://{}/debug/pprof/profile?seconds=3&format=folded&pid={}",
        agent.address(),
        target.pid()
    );
    let clients: Vec<Child> = (0..N_CLIENTS)
        .map(|_| {
            Command::new("curl")
                .args(["-sS", "--fail", &url])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let counts: Vec<i64> = clients
        .into_iter()
        .map(|client| {
            let output = client.wait_with_output().unwrap();
            assert!(output.status.success());
            let text = String::from_utf8(output.stdout).unwrap();
            let counts = text.lines().map(|line| line.rsplit_once(' ').unwrap().1);
            counts.map(|count| count.parse::<i64>().unwrap()).sum()
        })
        .collect();
    assert_eq!(counts.len(), N_CLIENTS);
    // They begin one after the other; what they share is the sampling, at 99 Hz and not a hundred times that.
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    println!("{N_CLIENTS} clients: {least} to {most} samples each");
    assert!(*least > 100 && *most <= 3 * 99 + 10, "{counts:?}");
    agent.stop();
}
