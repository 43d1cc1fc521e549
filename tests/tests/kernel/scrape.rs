//! What scrapers of Go's heap profiles ask for, of a running agent, and what they make of the answers: Alloy's
//! `pyroscope.scrape`, Parca, and `go tool pprof` itself. Their request sequences, from their sources; root, one test at a
//! time.
//!
//! Alloy (`internal/component/pyroscope/scrape`) gets `/sd` for `discovery.http`, then of each target
//! `/debug/pprof/allocs?pid=P` again and again, by default each 15 s; `pid` comes from `__param_pid`. From each profile but the
//! first it takes the one before (`fastdelta`): `alloc_objects` and `alloc_space` become differences, the others stay. Stacks
//! are the same to it if they have the same addresses and labels, and a profile may have four values a sample.
//!
//! Parca (`pkg/scrape`) asks for `/debug/pprof/allocs` too, or what its `path` says, and stores it as it is; with `delta: true`
//! it adds `seconds=N`, its interval. Both take every status but 200 for a failure.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use profiler_agent::generated::perftools::profiles::{Label, Profile, Sample};
use prost::Message as _;
use pyagent_tests::allocated::{
    ALLOC_OBJECTS, ALLOC_SPACE, INUSE_SPACE, PERIOD, Phase, allowed, expected_values,
};
use pyagent_tests::compiler::workload;
use pyagent_tests::interpreters;
use pyagent_tests::pyagent::Pyagent;
use pyagent_tests::target::Target;
use serde_json::Value;

/// A profile is a second old at most.
const FRESH: Duration = Duration::from_millis(1100);

/// Samples are 50 ms under way, on a host that is not overwhelmed.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// The program, which waits, under an agent whose probes stand.
fn start() -> (Target, Pyagent) {
    let script = workload("allocated.py").display().to_string();
    let python = interpreters::newest();
    let mut target = Target::start(Command::new(&python.path).args(["-I", "-S", "-B", &script]));
    assert_eq!(target.line(), "ready");
    let (pid, period) = (target.pid().to_string(), PERIOD.to_string());
    let arguments = [
        "--pid",
        &pid,
        "--type",
        "cpu,alloc",
        "--alloc-period",
        &period,
        // The program does nothing but allocate.
        "--alloc-budget",
        "100%",
        "--listen",
        "127.0.0.1:0",
    ];
    let agent = Pyagent::start(&arguments, "go tool pprof");
    let begun = Instant::now();
    while counter(&agent, "probes_placed") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "no probes");
        std::thread::sleep(Duration::from_millis(50));
    }
    (target, agent)
}

/// One of the agent's counters.
fn counter(agent: &Pyagent, name: &str) -> u64 {
    let metrics = String::from_utf8(get(agent, "/metrics")).unwrap();
    let name = format!("pyagent_{name}_total ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    value.expect("it is counted").parse().unwrap()
}

/// Waits until everything that the program did before it waited has reached the agent, and an answer that was given before is
/// not given again.
fn settle(agent: &Pyagent) {
    let mut before = counter(agent, "samples_received");
    loop {
        std::thread::sleep(UNDER_WAY);
        let now = counter(agent, "samples_received");
        if now == before {
            break;
        }
        before = now;
    }
    std::thread::sleep(FRESH);
}

fn curl(agent: &Pyagent, path: &str) -> Child {
    Command::new("curl")
        .args(["--silent", "--write-out", "%{stderr}%{http_code}"])
        .arg(format!("http://{}{path}", agent.address()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl is there")
}

/// The body of an answer, and its status.
fn answer(child: Child) -> (Vec<u8>, String) {
    let output = child.wait_with_output().unwrap();
    let status = String::from_utf8(output.stderr).unwrap();
    (output.stdout, status)
}

fn get(agent: &Pyagent, path: &str) -> Vec<u8> {
    let (body, status) = answer(curl(agent, path));
    assert_eq!(status, "200", "{path}: {}", String::from_utf8_lossy(&body));
    body
}

fn decode(body: &[u8]) -> Profile {
    let mut bytes = Vec::new();
    GzDecoder::new(body).read_to_end(&mut bytes).unwrap();
    Profile::decode(bytes.as_slice()).unwrap()
}

/// Has the program allocate, and say what.
fn allocate(target: &mut Target) -> Vec<Phase> {
    target.tell("");
    let phases: Vec<Phase> = serde_json::from_str(&target.line()).unwrap();
    assert!(phases.len() > 5);
    // Small objects are another type.
    phases
        .into_iter()
        .filter(|(name, _)| name != "small")
        .collect()
}

/// What a sample is to Alloy: addresses and labels.
type Key = (Vec<u64>, Vec<(String, String, i64)>);

/// Functions from the leaf, and values.
type Seen = (Vec<String>, [i64; 4]);

fn text(profile: &Profile, idx: i64) -> String {
    profile.string_table[idx as usize].clone()
}

fn key(profile: &Profile, sample: &Sample) -> Key {
    let address = |id: &u64| profile.location[*id as usize - 1].address;
    let label = |it: &Label| (text(profile, it.key), text(profile, it.str), it.num);
    let mut labels: Vec<_> = sample.label.iter().map(label).collect();
    labels.sort();
    (sample.location_id.iter().map(address).collect(), labels)
}

fn functions(profile: &Profile, sample: &Sample) -> Vec<String> {
    let name = |id: &u64| {
        let function = profile.location[*id as usize - 1].line[0].function_id;
        text(profile, profile.function[function as usize - 1].name)
    };
    sample.location_id.iter().map(name).collect()
}

/// The samples of a profile as Alloy tells them apart.
fn samples(profile: &Profile) -> BTreeMap<Key, Seen> {
    let mut samples: BTreeMap<Key, Seen> = BTreeMap::new();
    for sample in &profile.sample {
        let values = <[i64; 4]>::try_from(&*sample.value).expect("Alloy has room for four values");
        let functions = functions(profile, sample);
        let before = samples.insert(key(profile, sample), (functions.clone(), values));
        assert!(before.is_none(), "{functions:?} is {before:?} to Alloy");
    }
    samples
}

/// What Alloy passes on of a profile: what was allocated since the one before, and what is in use.
fn delta(before: &BTreeMap<Key, Seen>, now: &BTreeMap<Key, Seen>) -> Vec<Seen> {
    let zeros = (Vec::new(), [0; 4]);
    for key in before.keys() {
        assert!(now.contains_key(key), "{:?} is gone", before[key]);
    }
    let delta = now.iter().map(|(key, (functions, values))| {
        let (_, old) = before.get(key).unwrap_or(&zeros);
        let mut values = *values;
        for (value, old) in values.iter_mut().zip(old).take(2) {
            *value -= old;
            assert!(*value >= 0, "{functions:?} fell by {value}");
        }
        (functions.clone(), values)
    });
    delta.collect()
}

fn sum(seen: &[Seen], function: &str, value_idx: usize) -> f64 {
    let is_in = |(functions, _): &&Seen| functions.iter().any(|name| name == function);
    let seen = seen.iter().filter(is_in);
    seen.map(|(_, values)| values[value_idx] as f64).sum()
}

/// What is wrong with what was seen of a program that says what it allocated.
fn errors(seen: &[Seen], phases: &[Phase]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (function, amounts) in phases {
        for (value_idx, expected, deviation) in expected_values(*amounts) {
            if function == "grow" && value_idx == ALLOC_OBJECTS {
                // The deviation is that of objects of one size, and these are of many.
                continue;
            }
            let found = sum(seen, function, value_idx);
            let allowed = allowed(*amounts, value_idx, expected, deviation);
            println!("{function} {value_idx}: {found:.0} of {expected:.0} +- {allowed:.0}");
            if (found - expected).abs() > allowed {
                wrong.push(format!(
                    "{function} {value_idx}: {found:.0}, not {expected:.0} +- {allowed:.0}"
                ));
            }
        }
    }
    wrong
}

#[test]
fn alloy_gets_what_was_allocated_between_two_scrapes() {
    const N_SCRAPERS: usize = 50;
    let (mut target, agent) = start();
    // discovery.http
    let groups: Value = serde_json::from_slice(&get(&agent, "/sd")).unwrap();
    let [group] = groups.as_array().unwrap().as_slice() else {
        panic!("{groups}");
    };
    assert_eq!(group["targets"][0], agent.address());
    let pid = group["labels"]["__param_pid"].as_str().unwrap();
    assert_eq!(pid, target.pid().to_string());
    let path = format!("/debug/pprof/allocs?pid={pid}");
    let scrape = || samples(&decode(&get(&agent, &path)));
    // pyroscope.scrape
    let first = scrape();
    let phases = allocate(&mut target);
    settle(&agent);
    let second = scrape();
    let wrong = errors(&delta(&first, &second), &phases);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Meanwhile it waits; what is in use stays.
    settle(&agent);
    let scrapers: Vec<Child> = (0..N_SCRAPERS).map(|_| curl(&agent, &path)).collect();
    for scraper in scrapers {
        let (body, status) = answer(scraper);
        assert_eq!(status, "200");
        let third = samples(&decode(&body));
        let delta = delta(&second, &third);
        for (function, _) in &phases {
            assert!(sum(&delta, function, ALLOC_SPACE) == 0.0, "{function}");
            let in_use = sum(&delta, function, INUSE_SPACE);
            let before: Vec<Seen> = second.values().cloned().collect();
            assert!(in_use == sum(&before, function, INUSE_SPACE), "{function}");
        }
    }
    // The other profile that it asks for.
    let cpu = decode(&get(
        &agent,
        &format!("/debug/pprof/profile?pid={pid}&seconds=1"),
    ));
    assert_eq!(cpu.sample_type.len(), 2);
    // A process that has ended is a target that fails, until /sd has it no more.
    drop(target);
    let begun = Instant::now();
    while answer(curl(&agent, &path)).1 != "404" {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(get(&agent, "/sd"), b"[]");
    agent.stop();
}

#[test]
fn parca_gets_what_is_in_use_and_what_was_allocated_in_its_interval() {
    const INTERVAL: Duration = Duration::from_secs(30);
    let (mut target, agent) = start();
    let pid = target.pid();
    let begun = Instant::now();
    let path = format!(
        "/debug/pprof/allocs?pid={pid}&seconds={}",
        INTERVAL.as_secs()
    );
    let interval = curl(&agent, &path);
    // It has begun long before, since nothing tells that it has.
    std::thread::sleep(Duration::from_secs(1));
    let phases = allocate(&mut target);
    assert!(
        begun.elapsed() < INTERVAL,
        "the program is too slow for this test"
    );
    settle(&agent);
    let heap = decode(&get(&agent, &format!("/debug/pprof/heap?pid={pid}")));
    let since: Vec<Seen> = samples(&heap).into_values().collect();
    let mut wrong = errors(&since, &phases);
    let (body, status) = answer(interval);
    assert_eq!(status, "200");
    let profile = decode(&body);
    assert_eq!(profile.duration_nanos, INTERVAL.as_nanos() as i64);
    let during = profile.sample.iter().map(|sample| {
        let values = <[i64; 4]>::try_from(&*sample.value).unwrap();
        (functions(&profile, sample), values)
    });
    let during: Vec<Seen> = during.collect();
    wrong.extend(errors(&during, &phases));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    agent.stop();
}

#[test]
fn go_tool_pprof_fetches_both() {
    if Command::new("go").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI has Go");
        println!("skipped: no `go` on this machine");
        return;
    }
    let (mut target, agent) = start();
    allocate(&mut target);
    settle(&agent);
    let folder = tempfile::tempdir().unwrap();
    let top = |arguments: &[&str], path: &str| {
        let mut command = Command::new("go");
        command
            .args(["tool", "pprof", "-top"])
            .args(arguments)
            .arg(format!("http://{}{path}", agent.address()))
            .env("PPROF_TMPDIR", folder.path());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    // What it shows when nothing is said.
    let heap = top(&[], "/debug/pprof/heap");
    assert!(heap.contains("Type: inuse_space\n"), "{heap}");
    let allocs = top(&[], "/debug/pprof/allocs");
    assert!(allocs.contains("Type: alloc_space\n"), "{allocs}");
    let in_use = top(&["-sample_index=inuse_space"], "/debug/pprof/heap");
    let line = |text: &str, function: &str| {
        let ends = |line: &&str| line.split_whitespace().last() == Some(function);
        text.lines().find(ends).map(str::to_owned)
    };
    // One array of 256 MiB is always sampled, and stands for itself: flat, flat %, sum %, with what it calls.
    let big = line(&in_use, "big").expect("it is among the first");
    assert_eq!(big.split_whitespace().nth(3), Some("256MB"), "{in_use}");
    // What is allocated and dropped is in the one and not in the other.
    assert!(line(&allocs, "churn").is_some(), "{allocs}");
    assert!(line(&in_use, "churn").is_none(), "{in_use}");
    // `-seconds` asks for the difference.
    let nothing = top(
        &["-seconds=1", "-sample_index=alloc_space"],
        "/debug/pprof/allocs",
    );
    assert!(line(&nothing, "churn").is_none(), "{nothing}");
    agent.stop();
}
