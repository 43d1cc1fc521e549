//! The service of a running agent by other people's programs that know nothing of it but its address: grpcurl and ghz find
//! their way by reflection, `go tool pprof` reads what is pulled. What they show is compared with the processes themselves.

use std::path::PathBuf;
use std::process::{Command, Output};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pyagent_tests::bench::proc_files::{cpu_ns, status_bytes};
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::push::{int, prepared};
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

const SERVICE: &str = "pyagent.v1.ProfileService";

/// Calls of each kind, and how many at a time, each over a connection of its own.
const N_CALLS: u32 = 5000;
const N_AT_ONCE: u32 = 50;

/// What an agent may take more than before, after a load.
const MAX_GROWTH_BYTES: u64 = 10 << 20;

/// What grpcurl exits with for a status: this and its code.
const STATUS: i32 = 64;

fn start(python: &Interpreter) -> (Target, Pyagent) {
    let mut target = Target::python(python, WORK, &[]);
    assert_eq!(target.line(), "ready");
    let pid = target.pid().to_string();
    let arguments = ["--pid", &pid, "--listen", "127.0.0.1:0"];
    let agent = Pyagent::start(&arguments, "go tool pprof");
    (target, agent)
}

fn tool(name: &str) -> Option<Command> {
    let folder = PathBuf::from(prepared("PYAGENT_GRPC_TOOLS")?);
    Some(Command::new(folder.join(name)))
}

/// grpcurl, asked for what is in `words`, with a request if there is one.
fn grpcurl(agent: &Pyagent, request: Option<&Value>, words: &[&str]) -> Option<Output> {
    let mut grpcurl = tool("grpcurl")?;
    grpcurl.args(["-plaintext", "-format-error", "-emit-defaults"]);
    if let Some(request) = request {
        grpcurl.args(["-d", &request.to_string()]);
    }
    Some(grpcurl.arg(agent.address()).args(words).output().unwrap())
}

fn text(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a method answers: its messages.
fn call(agent: &Pyagent, method: &str, request: &Value) -> Option<Vec<Value>> {
    let output = grpcurl(agent, Some(request), &[&format!("{SERVICE}/{method}")])?;
    let messages = serde_json::Deserializer::from_str(&text(&output))
        .into_iter()
        .collect::<Result<_, _>>();
    Some(messages.unwrap())
}

/// The counters of an agent whose name begins so: their sum.
fn counted(agent: &Pyagent, name: &str) -> i64 {
    let status = call(agent, "GetStatus", &json!({})).unwrap();
    let counters = status[0]["counters"].as_array().unwrap().iter();
    let counters = counters.filter(|it| it["name"].as_str().unwrap().starts_with(name));
    let values: Vec<i64> = counters.map(|it| int(&it["value"])).collect();
    assert!(!values.is_empty(), "no counter {name}");
    values.iter().sum()
}

#[test]
fn grpcurl_finds_its_way_by_reflection_and_what_it_shows_is_true() {
    let python = interpreters::newest();
    let (target, agent) = start(&python);
    let pid = target.pid().0;
    let Some(list) = grpcurl(&agent, None, &["list"]) else {
        return;
    };
    let services = text(&list);
    for service in [SERVICE, "grpc.health.v1.Health"] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let described = text(&grpcurl(&agent, None, &["describe", SERVICE]).unwrap());
    for method in ["ListProcesses", "PullProfile", "WatchProfiles", "GetStatus"] {
        assert!(
            described.contains(&format!("rpc {method} (")),
            "{described}"
        );
    }
    let message = format!("{SERVICE}.PullProfile");
    let described = text(&grpcurl(&agent, None, &["describe", &message]).unwrap());
    assert!(
        described.contains("returns ( stream .pyagent.v1.PullProfileResponse )"),
        "{described}"
    );

    let listed = &call(&agent, "ListProcesses", &json!({})).unwrap()[0]["processes"];
    let processes = listed.as_array().unwrap();
    assert_eq!(processes.len(), 1, "{listed}");
    let (major, minor, micro) = python.version;
    let resident = status_bytes(pid, "VmHWM").unwrap();
    for (name, expected) in [
        ("pid", json!(pid)),
        ("state", json!("PROCESS_STATE_PROFILED")),
        ("pythonVersion", json!(format!("{major}.{minor}.{micro}"))),
        ("program", json!(python.path.to_str().unwrap())),
        // It has done nothing new since.
        (
            "comm",
            json!(
                std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .unwrap()
                    .trim()
            ),
        ),
    ] {
        assert_eq!(processes[0][name], expected, "{name}: {listed}");
    }
    let peak = int(&processes[0]["memory"]["peakBytes"]);
    assert!(peak > 0 && peak.cast_unsigned() <= resident, "{peak}");

    let status = &call(&agent, "GetStatus", &json!({})).unwrap()[0];
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(status["kernelRelease"], release.trim());

    let selector = json!({ "pids": [pid] });
    let request = json!({ "selector": selector, "duration": "1s", "format": "folded" });
    let before_ns = cpu_ns(pid).unwrap();
    let parts = call(&agent, "PullProfile", &request).unwrap();
    let cpu_s = (cpu_ns(pid).unwrap() - before_ns) as f64 / 1e9;
    let metadata = &parts[0]["metadata"];
    let chunks = parts[1..].iter().map(|part| {
        let chunk = part["chunk"].as_str().unwrap();
        BASE64_STANDARD.decode(chunk).unwrap()
    });
    let profile = chunks.collect::<Vec<_>>().concat();
    assert_eq!(int(&metadata["sizeBytes"]), profile.len() as i64);
    let profile = String::from_utf8(profile).unwrap();
    let counts = profile
        .lines()
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<i64>().unwrap());
    let n_samples: i64 = counts.sum();
    assert_eq!(int(&metadata["nSamples"]), n_samples);
    // The call takes a little longer than the second, so it is a bound from above; which ticks of the timer it runs at is chance
    // where it shares its CPU: three standard deviations.
    let expected = cpu_s * 99.0;
    let most = expected + 5.0 + 3.0 * expected.sqrt();
    assert!(
        n_samples > 0 && n_samples as f64 <= most,
        "{n_samples} of {cpu_s} s"
    );
    assert!(profile.contains(";spin ("), "{profile}");
    println!("grpcurl: {n_samples} samples of process {pid} in a second");
    agent.stop();
}

#[test]
fn grpcurl_is_told_what_is_wrong_by_its_code() {
    let (_target, agent) = start(&interpreters::newest());
    for (code, request, said) in [
        (3, json!({ "type": "nothing" }), "`nothing`"),
        (3, json!({ "duration": "0.001s" }), ""),
        (3, json!({ "selector": { "comm": ["("] } }), ""),
        (
            5,
            json!({ "selector": { "pids": [1] } }),
            "no profiled process",
        ),
        (9, json!({ "last": "60s" }), "recorder"),
    ] {
        let method = format!("{SERVICE}/PullProfile");
        let Some(output) = grpcurl(&agent, Some(&request), &[&method]) else {
            return;
        };
        assert_eq!(output.status.code(), Some(STATUS + code), "{request}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["code"], code, "{request}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(said) && !message.is_empty(), "{error}");
    }
    // What the agent does not know at all.
    let Some(output) = grpcurl(&agent, Some(&json!({})), &[&format!("{SERVICE}/Nothing")]) else {
        return;
    };
    assert!(!output.status.success());
    agent.stop();
}

#[test]
fn thousands_of_calls_at_once_are_answered_and_leave_nothing_behind() {
    let (_target, agent) = start(&interpreters::newest());
    let pid = agent.pid().0;
    if tool("ghz").is_none() {
        return;
    }
    // What is loaded at the first call is there before.
    let lost = counted(&agent, "lost_");
    let samples = counted(&agent, "samples");
    call(&agent, "ListProcesses", &json!({}));
    let before = status_bytes(pid, "VmRSS").unwrap();
    for method in ["ListProcesses", "GetStatus"] {
        let mut ghz = tool("ghz").unwrap();
        ghz.args(["--insecure", "-O", "json", "--call"])
            .arg(format!("{SERVICE}.{method}"))
            .args(["-n", &N_CALLS.to_string(), "-c", &N_AT_ONCE.to_string()])
            .args(["--connections", &N_AT_ONCE.to_string()])
            .arg(agent.address());
        let said: Value = serde_json::from_str(&text(&ghz.output().unwrap())).unwrap();
        let answers = &said["statusCodeDistribution"];
        assert_eq!(*answers, json!({ "OK": N_CALLS }), "{method}");
        let percentiles = said["latencyDistribution"].as_array().unwrap();
        let percentile = |percent: i64| {
            let found = percentiles.iter().find(|it| it["percentage"] == percent);
            int(&found.unwrap()["latency"]) as f64 / 1e6
        };
        println!(
            "{N_CALLS} {method}, {N_AT_ONCE} at a time: {:.0} a second, median {:.1} ms, 99th percentile {:.1} ms",
            said["rps"].as_f64().unwrap(),
            percentile(50),
            percentile(99)
        );
    }
    let after = status_bytes(pid, "VmRSS").unwrap();
    println!(
        "resident: {:.1} MiB before, {:.1} MiB after",
        before as f64 / f64::from(1 << 20),
        after as f64 / f64::from(1 << 20)
    );
    assert!(after <= before + MAX_GROWTH_BYTES, "{before} to {after}");
    assert_eq!(counted(&agent, "lost_"), lost, "samples were lost");
    assert!(counted(&agent, "samples") > samples);
    agent.stop();
}

#[test]
fn go_pprof_reads_what_is_pulled_from_a_file_and_by_itself() {
    if Command::new("go").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI has Go");
        println!("skipped: no `go` on this machine");
        return;
    }
    let (target, agent) = start(&interpreters::newest());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cpu.pb.gz").display().to_string();
    let pid = target.pid().to_string();
    let pulled = Command::new(binary())
        .args(["pull", &agent.address(), "--pid", &pid, "-d", "1s"])
        .args(["-o", &file])
        .output()
        .unwrap();
    text(&pulled);
    let url = format!(
        "http://{}/debug/pprof/profile?seconds=1&pid={pid}",
        agent.address()
    );
    for source in [&file, &url] {
        let top = Command::new("go")
            .args([
                "tool",
                "pprof",
                "-top",
                "-cum",
                "-sample_index=samples",
                source,
            ])
            .env("PPROF_TMPDIR", folder.path())
            .output()
            .unwrap();
        let top = text(&top);
        let spin = top.lines().find(|line| line.contains(" spin"));
        let fields: Vec<&str> = spin
            .unwrap_or_else(|| panic!("{top}"))
            .split_whitespace()
            .collect();
        // flat flat% sum% cum cum% name: it is below nearly all, beside what the program did as it began.
        let share: f64 = fields[4].trim_end_matches('%').parse().unwrap();
        assert!(share > 90.0, "{top}");
    }
    agent.stop();
}
