//! The agent pushes what it samples: real processes, each under the name of its service, to the real Collector.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pyagent_tests::interpreters;
use pyagent_tests::push::{Collector, CollectorSetup, int, resource_attributes, wait_for};
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

/// Values of the first sample type, by process, that the Collector has written.
fn n_samples(collector: &Collector, pid: u32) -> i64 {
    let pid = pid.to_string();
    let mut sum = 0;
    for data in collector.written() {
        let strings = &data["dictionary"]["stringTable"];
        for of_resource in data["resourceProfiles"].as_array().into_iter().flatten() {
            if resource_attributes(&data, of_resource)["process.pid"] != pid {
                continue;
            }
            let scopes = of_resource["scopeProfiles"].as_array();
            let profiles = scopes.into_iter().flatten();
            for profile in profiles.flat_map(|scope| scope["profiles"].as_array().unwrap()) {
                let kind = &strings[int(&profile["sampleType"]["typeStrindex"]) as usize];
                if kind == "samples" {
                    let samples = profile["samples"].as_array().into_iter().flatten();
                    let values = samples.flat_map(|sample| sample["values"].as_array().unwrap());
                    sum += values.map(int).sum::<i64>();
                }
            }
        }
    }
    sum
}

#[test]
fn a_collector_that_is_down_gets_what_was_recorded_meanwhile_also_from_the_next_agent() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut collector) = Collector::start(folder.path(), &CollectorSetup::default()) else {
        return;
    };
    collector.kill();
    let mut worker = Target::python(&interpreters::newest(), WORK, &[]);
    assert_eq!(worker.line(), "ready");
    let pid = worker.pid().0;
    let data = folder.path().join("data");
    let start = || {
        let (pid, data) = (pid.to_string(), data.display().to_string());
        let target = format!("otlp=http://127.0.0.1:{}", collector.port);
        let arguments = [
            "--pid",
            &pid,
            "--type",
            "cpu",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            &data,
            "--window",
            "1s",
            "--push",
            &target,
        ];
        Pyagent::start(&arguments, "go tool pprof")
    };
    let mut first = start();
    let recorded = || -> (i64, i64) {
        let db = rusqlite::Connection::open(data.join("pyagent.db")).unwrap();
        let sql = "SELECT count(DISTINCT window), ifnull(sum(value), 0) FROM v1_values";
        db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
    };
    wait_for("windows", || (recorded().0 >= 3).then_some(()));
    first.kill();
    let (_, before) = recorded();
    let mut second = start();
    wait_for("more windows", || (recorded().1 > before).then_some(()));
    collector.restart();
    wait_for("what the first agent recorded", || {
        (n_samples(&collector, pid) >= before).then_some(())
    });
    // It ends when everything is delivered.
    kill(Pid::from_raw(second.pid().0.cast_signed()), Signal::SIGTERM).unwrap();
    let (said, is_fine) = second.finish();
    assert!(is_fine && !said.contains("not every target"), "{said}");
    let (n_windows, all) = recorded();
    wait_for("everything", || {
        (n_samples(&collector, pid) >= all).then_some(())
    });
    // Nothing was in doubt when the first one was killed, so nothing came twice.
    assert_eq!(n_samples(&collector, pid), all);
    println!("{n_windows} windows with {all} samples, all of them delivered once");
}

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
