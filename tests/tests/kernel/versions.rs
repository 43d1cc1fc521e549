//! Clients and agents that are of different versions: what one of them does not know is passed over, and a call that an agent
//! does not know is told as such. The others are made by other people's generator out of protos with less in them than the last
//! release had, and with more than there is today.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pyagent_tests::interpreters;
use pyagent_tests::push::{Peer, prepared};
use pyagent_tests::pyagent::{Pyagent, binary};
use pyagent_tests::target::Target;
use serde_json::{Value, json};

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

/// tests/peers/versions.py over the protos of this folder of the repository.
fn of_version(protos: &str, version: &str, role: &str) -> Option<Command> {
    let packages = prepared("PYAGENT_OTLP_PACKAGES")?;
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos: PathBuf = tests.parent().unwrap().join(protos);
    let mut python = Command::new("python3");
    python
        .arg(tests.join("peers/versions.py"))
        .arg(protos)
        .args([version, role])
        .env("PYTHONPATH", packages);
    Some(python)
}

fn client_says(protos: &str, version: &str) -> Option<Value> {
    let mut client = of_version(protos, version, "client")?;
    let mut target = Target::python(&interpreters::newest(), WORK, &[]);
    assert_eq!(target.line(), "ready");
    let pid = target.pid().to_string();
    let arguments = ["--pid", &pid, "--listen", "127.0.0.1:0"];
    let agent = Pyagent::start(&arguments, "go tool pprof");
    let output = client.args([&agent.address(), &pid]).output().unwrap();
    agent.stop();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (major, minor, micro) = interpreters::newest().version;
    assert_eq!(said["python_version"], format!("{major}.{minor}.{micro}"));
    // A second of a busy process; how busy it could be is the host's affair.
    assert!(said["n_samples"].as_i64().unwrap() > 0, "{said}");
    let profile = said["profile"].as_str().unwrap();
    assert!(profile.contains("spin ("), "{profile}");
    println!("{version}: {} samples", said["n_samples"]);
    Some(said)
}

#[test]
fn a_client_older_than_the_last_release_works() {
    let Some(said) = client_says("proto/baseline", "older") else {
        return;
    };
    // It has never heard of the state that the process is in, nor of fields and methods of today.
    assert_eq!(
        (&said["state"], &said["knows_state"]),
        (&json!(2), &json!(false))
    );
    assert_eq!(said["has_service_name"], false);
    assert_eq!(said["has_watch"], false);
}

#[test]
fn a_newer_client_works_and_sees_which_call_the_agent_does_not_know() {
    let Some(said) = client_says("proto", "newer") else {
        return;
    };
    // What it asks for in fields that the agent does not know is passed over, and what it gets of them is empty.
    assert_eq!(said["future_field"], "");
    assert_eq!(said["future_call"], "UNIMPLEMENTED");
}

fn pull(agent: &Peer, more: &[&str]) -> Output {
    Command::new(binary())
        .args(["pull", &agent.greeting, "--format", "folded", "-o", "-"])
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn pull_passes_over_what_a_newer_agent_says_beside_the_profile() {
    let Some(mut agent) = of_version("proto", "newer", "agent") else {
        return;
    };
    let output = pull(&Peer::start(&mut agent), &["-d", "100ms"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(output.stdout, b"work (app.py:7) 3\n");
}

#[test]
fn pull_says_what_to_do_where_an_agent_does_not_know_the_call() {
    let Some(mut agent) = of_version("proto/baseline", "older", "agent") else {
        return;
    };
    let agent = Peer::start(&mut agent);
    for asked in [&["-d", "100ms"][..], &["--last", "1m"]] {
        let output = pull(&agent, asked);
        assert_eq!(output.status.code(), Some(1));
        let errors = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> = errors
            .lines()
            .filter(|line| !line.contains("pulling"))
            .collect();
        assert_eq!(errors.len(), 1, "{errors:?}");
        for part in ["older", "update", &agent.greeting] {
            assert!(errors[0].contains(part), "{errors:?}");
        }
    }
}
