//! Pushes to Pyroscope and Parca, to a stand-in: Pyroscope's own generated code takes the requests, and pprof's own parser
//! reads and checks the profiles (tests/peers/standin). The servers themselves cannot be had.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use profiler_agent::format::escape;
use profiler_agent::profile::model::{Profile, ProfileType, label};
use profiler_agent::profile::window::ClosedWindow;
use profiler_agent::push::{
    CredentialOptions, MAX_REQUEST_BYTES, MemoryOutbox, Pace, PushConfig, Pusher, Target,
};
use pyagent_tests::push::{Peer, SMALL, Size, prepared, profile, write_secret};
use serde_json::Value;

/// More samples than one request may have.
const MANY: Size = Size {
    n_processes: 6,
    n_threads: 20,
    n_stacks: 250,
    depth: 6,
};

/// Sums by service, kind of profile and function of the leaf, in the order of the sample types.
type Sums = BTreeMap<(String, String, String), Vec<i64>>;

fn expected(profiles: &[(ProfileType, Profile)]) -> Sums {
    let mut sums = Sums::new();
    for (profile_type, profile) in profiles {
        let kind = match profile_type {
            ProfileType::Cpu => "process_cpu",
            ProfileType::Alloc => "memory",
            _ => "page_faults",
        };
        for sample in &profile.samples {
            let leaf = profile.frames(sample.stack).next().map_or("", |it| it.name);
            let service = profile.label(sample.labels, label::SERVICE_NAME).unwrap();
            let key = (
                service.to_owned(),
                kind.to_owned(),
                escape(leaf).into_owned(),
            );
            add(
                sums.entry(key).or_default(),
                sample.values.of(profile.sample_types),
            );
        }
    }
    sums
}

fn add(sums: &mut Vec<i64>, values: &[i64]) {
    sums.resize(values.len(), 0);
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

fn text<'a>(series: &'a Value, label: &str) -> &'a str {
    series["labels"][label].as_str().unwrap_or_default()
}

fn received(series: &[&Value]) -> Sums {
    let mut sums = Sums::new();
    for one in series {
        for (leaf, values) in one["functions"].as_object().unwrap() {
            let key = (
                text(one, "service_name").to_owned(),
                text(one, "__name__").to_owned(),
                leaf.clone(),
            );
            let values = values.as_array().unwrap().iter();
            let values: Vec<i64> = values.map(|it| it.as_i64().unwrap()).collect();
            add(sums.entry(key).or_default(), &values);
        }
    }
    sums
}

/// Pushes windows to the stand-in in both protocols; what it has read, and what was sent.
async fn push(size: Size, labels: &[&str]) -> Option<(Vec<Value>, Sums)> {
    let program = prepared("PYAGENT_PUSH_STAND_IN")?;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    write_secret(&token, "secret");
    let peer = Peer::start(&mut Command::new(program));
    let (pyroscope, parca) = peer.greeting.split_once(' ').unwrap();
    let targets = [
        format!("pyroscope=http://{pyroscope}"),
        format!("parca=http://{parca}"),
    ];
    let targets: Vec<Target> = targets.iter().map(|it| it.parse().unwrap()).collect();
    let names = targets.iter().map(ToString::to_string);
    let outbox = Arc::new(MemoryOutbox::new(names, 10, usize::MAX));
    let config = PushConfig {
        targets,
        credentials: CredentialOptions {
            token: vec![format!("parca={}", token.display()).parse().unwrap()],
            headers: vec!["pyroscope=X-Scope-OrgID=team".parse().unwrap()],
            ..CredentialOptions::default()
        },
        labels: labels.iter().map(|it| (*it).to_owned()).collect(),
        attributes: Vec::new(),
        pace: Pace::default(),
    };
    let types = [ProfileType::Cpu, ProfileType::Faults, ProfileType::Alloc];
    let profiles: Vec<_> = types.map(|it| (it, profile(it, 1, size))).into();
    let expected = expected(&profiles);
    let pusher = Pusher::start(&config, Arc::clone(&outbox)).unwrap();
    outbox.push(Arc::new(ClosedWindow {
        start_ns: 0,
        end_ns: 1,
        profiles,
    }));
    outbox.close();
    let counts = pusher.watch();
    assert!(
        pusher.finish(Duration::from_mins(1)).await,
        "{:?}",
        counts()
    );
    for target in counts() {
        let counts = target.counts;
        assert!(counts.sent > 0, "{target:?}");
        assert_eq!((counts.retried, counts.rejected), (0, 0), "{target:?}");
    }
    Some((peer.finish(), expected))
}

fn of_protocol<'a>(series: &'a [Value], protocol: &str) -> Vec<&'a Value> {
    let series = series.iter();
    series.filter(|it| it["protocol"] == protocol).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_get_a_profile_each_service_and_type_with_labels_of_the_service() {
    let Some((series, expected)) = push(SMALL, &[]).await else {
        return;
    };
    for protocol in ["pyroscope", "parca"] {
        let series = of_protocol(&series, protocol);
        assert_eq!(received(&series), expected, "{protocol}");
        // Two services of three processes, three types.
        assert_eq!(series.len(), 6, "{protocol}");
        for one in series {
            let names: BTreeSet<&str> = one["labels"]
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            let all = [
                "__name__",
                "container_name",
                "host_name",
                "k8s_pod_uid",
                "python_version",
                "service_name",
            ];
            assert_eq!(names, all.into());
            assert_eq!(one["sample_labels"], serde_json::json!({}));
            let (period, types): (&str, &[&str]) = match text(one, "__name__") {
                "process_cpu" => ("cpu/nanoseconds", &["samples/count", "cpu/nanoseconds"]),
                "page_faults" => (
                    "fault_space/bytes",
                    &["page_faults/count", "fault_space/bytes"],
                ),
                "memory" => (
                    "space/bytes",
                    &[
                        "alloc_objects/count",
                        "alloc_space/bytes",
                        "inuse_objects/count",
                        "inuse_space/bytes",
                        "peak_space/bytes",
                        "temporary_space/bytes",
                    ],
                ),
                other => panic!("{other}"),
            };
            assert_eq!(one["period_type"], period);
            assert_eq!(one["sample_types"], serde_json::json!(types));
            // Each kind of target gets what is for it alone.
            let is_pyroscope = protocol == "pyroscope";
            assert_eq!(one["tenant"], if is_pyroscope { "team" } else { "" });
            assert_eq!(
                one["authorization"],
                if is_pyroscope { "" } else { "Bearer secret" }
            );
            assert_eq!(one["normalized"], !is_pyroscope);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_of_threads_are_told_on_request_and_requests_are_cut() {
    let Some((series, expected)) = push(MANY, &["tid", "thread_name"]).await else {
        return;
    };
    for protocol in ["pyroscope", "parca"] {
        let series = of_protocol(&series, protocol);
        assert_eq!(received(&series), expected, "{protocol}");
        let labels = serde_json::json!({"tid": true, "thread_name": true});
        for one in series {
            assert_eq!(one["sample_labels"], labels);
            let n_bytes = one["request_bytes"].as_u64().unwrap();
            assert!(n_bytes <= MAX_REQUEST_BYTES as u64, "{n_bytes}");
            assert!(one["samples"].as_u64().unwrap() <= 8_000);
        }
    }
}
