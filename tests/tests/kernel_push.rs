//! The agent pushes what it samples: real processes, each under the name of its service, to the real Collector.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pyagent_tests::interpreters;
use pyagent_tests::push::{Collector, CollectorSetup, resource_attributes, wait_for};
use pyagent_tests::pyagent::Pyagent;
use pyagent_tests::target::Target;

/// Says that it is ready, and works until its standard input closes.
const WORK: &str = "\
import sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), __import__('os')._exit(0)), daemon=True).start()
print('ready', flush=True)
def spin():
    while True:
        sum(range(1000))
spin()
";

/// The attributes of the resource of a process among what the Collector has written, and whether `spin` is there.
fn resource(collector: &Collector, pid: u32) -> Option<(BTreeMap<String, String>, bool)> {
    let pid = pid.to_string();
    for data in collector.written() {
        for of_resource in data["resourceProfiles"].as_array()? {
            let attributes = resource_attributes(&data, of_resource);
            if attributes["process.pid"] == pid {
                let strings = data["dictionary"]["stringTable"].to_string();
                return Some((attributes, strings.contains("\"spin\"")));
            }
        }
    }
    None
}

#[test]
fn the_agent_pushes_each_process_under_the_name_of_its_service() {
    let folder = tempfile::tempdir().unwrap();
    let Some(collector) = Collector::start(folder.path(), &CollectorSetup::default()) else {
        return;
    };
    let script = folder.path().join("orders.py");
    std::fs::write(&script, WORK).unwrap();
    let python = interpreters::newest();
    let start = |variables: &[(&str, &str)]| {
        let mut command = Command::new(&python.path);
        command
            .args(["-I", "-S", "-B"])
            .arg(&script)
            .arg("--password=hidden");
        command
            .env_remove("OTEL_SERVICE_NAME")
            .env_remove("OTEL_RESOURCE_ATTRIBUTES");
        let mut target = Target::start(command.envs(variables.iter().copied()));
        assert_eq!(target.line(), "ready");
        target
    };
    let declared = start(&[
        ("OTEL_SERVICE_NAME", "shop front"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "service.name=other,service.version=1%2E5,secret=hidden",
        ),
        ("SECRET", "hidden"),
    ]);
    let silent = start(&[]);
    let pids = [declared.pid().0, silent.pid().0];
    let pid_list = format!("{},{}", pids[0], pids[1]);
    let target = format!("otlp=http://127.0.0.1:{}", collector.port);
    let mut agent = Pyagent::start(
        &[
            "--pid",
            &pid_list,
            "--type",
            "cpu",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            "none",
            "--push",
            &target,
            "--label",
            "team=web",
        ],
        "go tool pprof",
    );
    // Some samples; the agent delivers the rest when it ends.
    std::thread::sleep(Duration::from_secs(2));
    kill(Pid::from_raw(agent.pid().0.cast_signed()), Signal::SIGTERM).unwrap();
    let (said, is_fine) = agent.finish();
    assert!(is_fine, "{said}");
    let name = |pid: u32| {
        let (attributes, has_function) =
            wait_for("the process's profile", || resource(&collector, pid));
        assert!(has_function, "{attributes:?}");
        assert!(
            !format!("{attributes:?}").contains("hidden"),
            "{attributes:?}"
        );
        assert_eq!(attributes["team"], "web");
        assert_eq!(attributes["process.runtime.name"], "cpython");
        let version = attributes.get("service.version").cloned();
        (attributes["service.name"].clone(), version)
    };
    assert_eq!(
        name(pids[0]),
        ("shop front".to_owned(), Some("1.5".to_owned()))
    );
    assert_eq!(name(pids[1]), ("orders".to_owned(), None));
}
