//! `/debug/pprof/heap` and `/debug/pprof/allocs`, with an agent that only answers.

use std::collections::HashSet;

use flate2::read::GzDecoder;
use prost::Message as _;

use super::access::secret;
use super::*;
use crate::generated::perftools::profiles as pprof;
use crate::profile::totals::{Frames, ProgramTotals, Totals};
use crate::serve::query::TotalsRequest;

/// Values of the one stack that was allocated at.
const VALUES: [i64; 4] = [7, 7000, 3, 3000];

fn frames() -> Vec<ResolvedFrame> {
    ["leaf", "main"]
        .map(|name| ResolvedFrame {
            function: Arc::new(ResolvedFunction::python(name, "/srv/app.py", 1)),
            line: 2,
            address: 0,
        })
        .into()
}

/// What an agent that samples these types answers.
pub(super) fn totals(
    request: &TotalsRequest,
    sampled: &[ProfileType],
) -> Result<Totals, PullError> {
    if !sampled.contains(&request.profile_type) {
        return Err(PullError::NotSampled(request.profile_type));
    }
    if !is_meant(&request.filter, &processes()[0]) {
        return Err(PullError::NoMatch);
    }
    let program = ProgramTotals {
        process: Arc::new(ProcessLabels::of_pid(PID)),
        stacks: vec![(Frames::from(frames().as_slice()), VALUES)],
        other: [1, 10],
    };
    Ok(Totals {
        profile_type: request.profile_type,
        period: 4096,
        taken: SystemTime::now(),
        programs: vec![Arc::new(program)],
        comments: vec![format!("of {}", request.profile_type.name())],
    })
}

/// The same of a profile of some time.
fn pulled(profile_type: ProfileType, duration: Duration) -> Profile {
    let mut aggregator = Aggregator::new(SystemTime::now(), profile_type.sample_types(), 4096);
    aggregator.add(&ResolvedSample {
        frames: frames(),
        labels: Arc::new(ThreadLabels {
            process: Arc::new(ProcessLabels::of_pid(PID)),
            tid: PID,
            started_ns: 0,
            thread_name: "MainThread".into(),
        }),
        instruction: None,
        values: [1, 1000, 1, 1000, 5000, 6].into(),
    });
    aggregator.finish(duration, Vec::new())
}

/// A server whose agent samples these types.
fn sampling(types: &'static [ProfileType]) -> Running {
    let server = bind("127.0.0.1:0").unwrap();
    let address = address_of(&server);
    let (queries, mut questions) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(query) = questions.recv().await {
            match query {
                Query::Totals { request, reply } => {
                    drop(reply.send(totals(&request, types)));
                }
                Query::Pull { request, reply } => {
                    let is_sampled = types.contains(&request.profile_type);
                    drop(reply.send(if is_sampled {
                        Ok(pulled(request.profile_type, request.duration))
                    } else {
                        Err(PullError::NotSampled(request.profile_type))
                    }));
                }
                _ => {}
            }
        }
    });
    let (stop, stopped) = oneshot::channel();
    let server = tokio::spawn(server.run(queries, async { drop(stopped.await) }));
    Running {
        address,
        stop,
        server,
        unanswered: mpsc::channel(1).1,
    }
}

impl Running {
    async fn pprof(&self, target: &str) -> pprof::Profile {
        let (status, head, body) = self.get(target).await;
        assert_eq!(status, 200, "{target}: {}", String::from_utf8_lossy(&body));
        assert!(head.contains("content-type: application/octet-stream\r\n"));
        decode(&body)
    }
}

fn decode(body: &[u8]) -> pprof::Profile {
    let mut bytes = Vec::new();
    GzDecoder::new(body).read_to_end(&mut bytes).unwrap();
    pprof::Profile::decode(bytes.as_slice()).unwrap()
}

fn text(profile: &pprof::Profile, idx: i64) -> &str {
    &profile.string_table[idx as usize]
}

fn types(profile: &pprof::Profile) -> Vec<String> {
    let types = profile.sample_type.iter();
    let name =
        |it: &pprof::ValueType| format!("{}/{}", text(profile, it.r#type), text(profile, it.unit));
    types.map(name).collect()
}

fn labels<'a>(profile: &'a pprof::Profile, sample: &pprof::Sample) -> Vec<&'a str> {
    let labels = sample.label.iter();
    labels.map(|label| text(profile, label.key)).collect()
}

/// What Go's `runtime/pprof` writes, in this order; more than four are too many for Alloy.
const GO_TYPES: [&str; 4] = [
    "alloc_objects/count",
    "alloc_space/bytes",
    "inuse_objects/count",
    "inuse_space/bytes",
];

#[tokio::test]
async fn heap_and_allocs_are_as_gos_and_differ_in_the_value_that_is_shown_first() {
    let running = sampling(&[ProfileType::Cpu, ProfileType::Alloc, ProfileType::Pools]);
    // What scrapers and `go tool pprof` ask for.
    for (target, main) in [
        ("/debug/pprof/heap", "inuse_space"),
        ("/debug/pprof/heap?gc=1", "inuse_space"),
        ("/debug/pprof/heap?debug=0&pid=42", "inuse_space"),
        ("/debug/pprof/allocs", "alloc_space"),
        ("/debug/pprof/allocs?pid=42&comm=^python", "alloc_space"),
    ] {
        let profile = running.pprof(target).await;
        assert_eq!(types(&profile), GO_TYPES, "{target}");
        assert_eq!(text(&profile, profile.default_sample_type), main);
        let period_type = profile.period_type.unwrap();
        assert_eq!(text(&profile, period_type.r#type), "space");
        assert_eq!(text(&profile, period_type.unit), "bytes");
        assert_eq!((profile.period, profile.duration_nanos), (4096, 0));
        assert_eq!(profile.sample[0].value, VALUES);
        // What had no room has a sample of its own.
        assert_eq!(profile.sample[1].value, [1, 10, 0, 0]);
        let comments: Vec<&str> = profile
            .comment
            .iter()
            .map(|it| text(&profile, *it))
            .collect();
        assert_eq!(comments[0], "of alloc");
        assert_eq!(labels(&profile, &profile.sample[0]), ["pid"]);
        // Alloy tells stacks apart by the addresses of their places.
        let addresses: HashSet<u64> = profile.location.iter().map(|it| it.address).collect();
        assert_eq!(addresses.len(), profile.location.len());
        assert!(!addresses.contains(&0));
    }
    // Scrapers with parameters of their own add `seconds` once more for each target.
    for (target, main) in [
        ("/debug/pprof/heap?seconds=1", "inuse_space"),
        (
            "/debug/pprof/allocs?pid=42&seconds=1&seconds=1",
            "alloc_space",
        ),
        (
            "/debug/pprof/allocs?seconds=1&label=thread_name=Main",
            "alloc_space",
        ),
    ] {
        let profile = running.pprof(target).await;
        assert_eq!(types(&profile), GO_TYPES, "{target}");
        assert_eq!(text(&profile, profile.default_sample_type), main);
        assert_eq!(profile.duration_nanos, 1_000_000_000);
        assert_eq!(profile.sample.len(), 1);
        assert_eq!(profile.sample[0].value, [1, 1000, 1, 1000]);
        assert!(labels(&profile, &profile.sample[0]).contains(&"thread_name"));
    }
    let folded = running.get("/debug/pprof/allocs?format=folded").await;
    let folded = String::from_utf8(folded.2).unwrap();
    assert!(
        folded.lines().any(|line| line.ends_with(" 7000")),
        "{folded}"
    );
    running.stop().await;
}

#[tokio::test]
async fn the_first_type_that_is_sampled_is_taken_and_others_are_chosen() {
    let running = sampling(&[ProfileType::Pools, ProfileType::Mmap]);
    for (query, name) in [
        ("", "of pools"),
        ("?type=pools", "of pools"),
        ("?type=mmap", "of mmap"),
    ] {
        let profile = running.pprof(&format!("/debug/pprof/heap{query}")).await;
        assert_eq!(text(&profile, profile.comment[0]), name);
    }
    assert_eq!(running.get("/debug/pprof/heap?seconds=1").await.0, 200);
    let (status, _, body) = running.get("/debug/pprof/heap?type=alloc").await;
    let body = String::from_utf8(body).unwrap();
    assert_eq!(status, 404);
    assert!(body.contains("start it with --type alloc"), "{body}");
    running.stop().await;
}

#[tokio::test]
async fn bad_requests_for_heap_profiles_get_their_reason() {
    let running = sampling(&[ProfileType::Alloc]);
    for (query, status, reason) in [
        ("debug=1", 400, "format=folded for text"),
        ("gc=x", 400, "gc=x is not known"),
        ("type=cpu", 400, "there are alloc, pools and mmap"),
        ("type=heap", 400, "no profile type"),
        ("seconds=0", 400, "1 to 3600"),
        ("last=10m", 400, "`last` is not known"),
        ("label=thread_name=Main", 400, "add seconds=N"),
        ("label=age=.", 400, "add seconds=N"),
        ("label=x", 400, "is not NAME=REGEX"),
        ("comm=(", 400, "unclosed group"),
        ("pids=42", 400, "`pids` is not known"),
        ("pid=1", 404, "no profiled process matches"),
        ("pid=%1b[2J", 400, "pid=\\u{1b}[2J is not"),
        ("debug=%1b[2J", 400, "debug=\\u{1b}[2J is not"),
    ] {
        let answer = running.get(&format!("/debug/pprof/heap?{query}")).await;
        let text = String::from_utf8(answer.2).unwrap();
        assert_eq!(answer.0, status, "{query}: {text}");
        assert!(text.contains(reason), "{query}: {text}");
        assert_eq!(text.lines().count(), 1, "{query}: {text}");
    }
    running.stop().await;
    let running = sampling(&[ProfileType::Cpu, ProfileType::Faults]);
    for target in ["/debug/pprof/heap", "/debug/pprof/allocs?seconds=1"] {
        let (status, _, body) = running.get(target).await;
        let text = String::from_utf8(body).unwrap();
        assert_eq!(status, 404, "{target}");
        assert!(text.contains("--type cpu,faults,alloc"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    running.stop().await;
}

#[tokio::test]
async fn heap_profiles_are_of_the_processes_that_one_may_see() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = "shop-shop-shop-shop namespaces=shop\nother-other-other-other namespaces=other\n\
                  status-status-status read-status\n";
    let mut config = config("127.0.0.1:0");
    config.token_file = Some(secret(folder.path(), "tokens", tokens));
    // Its agent samples small objects.
    let running = serve(Server::bind(&config).unwrap());
    let get = |target: &str, token: &str| {
        running.http(format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        ))
    };
    for path in ["/debug/pprof/heap", "/debug/pprof/allocs"] {
        let (own, not_there) = (format!("{path}?pid={PID}"), format!("{path}?pid=999"));
        assert_eq!(running.get(&own).await.0, 401);
        assert_eq!(get(&own, "shop-shop-shop-shop").await.0, 200);
        assert_eq!(get(path, "status-status-status").await.0, 403);
        let foreign = get(&own, "other-other-other-other").await;
        let absent = get(&not_there, "other-other-other-other").await;
        assert_eq!((foreign.0, absent.0), (404, 404));
        assert_eq!(foreign.2, absent.2, "the same words for both");
    }
    running.stop().await;
}

#[tokio::test]
async fn scrapers_that_come_at_once_get_the_same_figures() {
    let running = Arc::new(sampling(&[ProfileType::Alloc]));
    let scrapes: Vec<_> = (0..20)
        .map(|_| {
            let running = running.clone();
            tokio::spawn(async move { running.pprof("/debug/pprof/allocs").await.sample })
        })
        .collect();
    let mut figures = Vec::new();
    for scrape in scrapes {
        figures.push(scrape.await.unwrap());
    }
    assert!(figures.iter().all(|other| *other == figures[0]));
    Arc::into_inner(running).unwrap().stop().await;
}
