//! The watch against a server that does what servers do: change, restart, forget, refuse, stall and talk nonsense.

use axum::body::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::super::fake::{Answer, FakeServer};
use super::*;

const LIST: &str = "/api/v1/pods";
const WATCH: &str = "/api/v1/pods?watch";

/// Longest time that a test waits for what it expects.
const PATIENCE: Duration = Duration::from_secs(20);

fn config() -> WatchConfig {
    WatchConfig {
        node: "node-1".into(),
        annotations: Annotations::default(),
        pace: WatchPace {
            first_pause: Duration::from_millis(5),
            longest_pause: Duration::from_millis(40),
            silence: Duration::from_millis(400),
            owners: Duration::from_millis(50),
            owners_budget: Duration::from_secs(5),
        },
    }
}

fn object(name: &str, version: u32) -> Value {
    json!({"metadata": {
        "uid": format!("uid-{name}"), "name": name, "namespace": "shop", "resourceVersion": version.to_string(),
    }})
}

fn list(version: u32, names: &[&str]) -> Answer {
    let items: Vec<Value> = names.iter().map(|name| object(name, 1)).collect();
    let metadata = json!({"resourceVersion": version.to_string()});
    Answer::json(200, &json!({"metadata": metadata, "items": items}))
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))
}

fn expired() -> Bytes {
    line(
        "ERROR",
        &json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}),
    )
}

/// What is told, in short.
async fn told(watch: &mut PodWatch) -> String {
    let event = tokio::time::timeout(PATIENCE, watch.next()).await;
    match event.expect("nothing is told").expect("it goes on") {
        PodEvent::All(pods) => {
            let names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
            format!("all {}", names.join(" "))
        }
        PodEvent::Is(pod) => format!("is {}", pod.name),
        PodEvent::Gone(uid) => format!("gone {uid}"),
    }
}

/// The status, as soon as it is like this.
async fn status(watch: &PodWatch, is_it: impl FnMut(&WatchStatus) -> bool) -> WatchStatus {
    let mut status = watch.status();
    let waiting = tokio::time::timeout(PATIENCE, status.wait_for(is_it)).await;
    waiting.expect("the status never comes").unwrap().clone()
}

/// The value of a part of a query.
fn part<'a>(asked: &'a str, name: &str) -> Option<&'a str> {
    let (_, query) = asked.split_once('?')?;
    let mut parts = query.split('&').filter_map(|part| part.split_once('='));
    parts.find(|(other, _)| *other == name).map(|(_, it)| it)
}

#[tokio::test]
async fn what_is_there_is_told_and_then_what_changes() {
    let server = FakeServer::start().await;
    server.answer(LIST, list(10, &["a", "b"]));
    let (first, answer) = Answer::stream();
    server.answer(WATCH, answer);
    let (second, answer) = Answer::stream();
    server.then(WATCH, answer);
    let mut watch = PodWatch::start(server.server(), config());
    assert_eq!(told(&mut watch).await, "all a b");
    for (kind, object) in [
        ("ADDED", object("c", 11)),
        ("MODIFIED", object("c", 12)),
        ("DELETED", object("a", 13)),
        // What was never told of is not told to have gone.
        ("DELETED", object("x", 14)),
        ("BOOKMARK", json!({"metadata": {"resourceVersion": "20"}})),
    ] {
        first.send(line(kind, &object)).await.unwrap();
    }
    assert_eq!(told(&mut watch).await, "is c");
    assert_eq!(told(&mut watch).await, "is c");
    assert_eq!(told(&mut watch).await, "gone uid-a");
    // The server ends each watch after a while; the next one goes on where it was.
    drop(first);
    second.send(line("ADDED", &object("d", 21))).await.unwrap();
    assert_eq!(told(&mut watch).await, "is d");
    let status = status(&watch, |status| status.n_pods == 3).await;
    assert_eq!(status.problem, "");
    assert_eq!(
        (status.n_lists, status.n_changes, status.n_untaken),
        (1, 4, 0)
    );
    let asked = server.asked_in_full();
    assert!(
        asked
            .iter()
            .all(|it| part(it, "fieldSelector") == Some("spec.nodeName%3Dnode-1"))
    );
    assert_eq!(part(&asked[0], "resourceVersion"), Some("0"));
    assert_eq!(part(&asked[1], "resourceVersion"), Some("10"));
    assert_eq!(part(&asked[1], "allowWatchBookmarks"), Some("true"));
    let seconds: u64 = part(&asked[1], "timeoutSeconds").unwrap().parse().unwrap();
    assert!(WATCH_SECONDS.contains(&seconds), "{seconds}");
    assert_eq!(part(&asked[2], "resourceVersion"), Some("20"));
    // Nothing but metadata leaves the server.
    let accepted = server.accepted();
    assert!(
        accepted
            .iter()
            .all(|it| it.contains("PartialObjectMetadata"))
    );
}

#[tokio::test]
async fn a_version_that_is_too_old_means_to_list_again_and_not_from_the_cache() {
    let server = FakeServer::start().await;
    server.answer(LIST, list(10, &["a"]));
    server.then(LIST, list(50, &["b"]));
    // One way to say it, and the other one.
    let (stream, answer) = Answer::stream();
    stream.send(expired()).await.unwrap();
    server.answer(WATCH, answer);
    server.then(WATCH, Answer::status(410, "Gone"));
    let (_open, answer) = Answer::stream();
    server.then(WATCH, answer);
    let mut watch = PodWatch::start(server.server(), config());
    assert_eq!(told(&mut watch).await, "all a");
    assert_eq!(told(&mut watch).await, "all b");
    assert_eq!(told(&mut watch).await, "all b");
    server.wait_for(6).await;
    let asked = server.asked_in_full();
    let versions: Vec<Option<&str>> = asked.iter().map(|it| part(it, "resourceVersion")).collect();
    let ten = Some("10");
    assert_eq!(
        versions,
        [Some("0"), ten, None, Some("50"), None, Some("50")]
    );
    assert_eq!(status(&watch, |it| it.n_lists == 3).await.problem, "");
}

#[tokio::test]
async fn a_server_that_is_away_is_asked_again_and_the_reason_is_told_meanwhile() {
    let server = FakeServer::start().await;
    server.answer(LIST, Answer::status(503, "etcd is\nnot there"));
    let mut watch = PodWatch::start(server.server(), config());
    let failed = status(&watch, |status| status.n_failed >= 3).await;
    for part in ["127.0.0.1", "etcd is not there", "503"] {
        assert!(failed.problem.contains(part), "{}", failed.problem);
    }
    assert_eq!(failed.problem.lines().count(), 1);
    server.answer(LIST, list(1, &["a"]));
    let (_open, answer) = Answer::stream();
    server.answer(WATCH, answer);
    assert_eq!(told(&mut watch).await, "all a");
    assert_eq!(status(&watch, |it| it.problem.is_empty()).await.n_pods, 1);
}

#[tokio::test]
async fn a_server_that_does_not_listen_is_told_by_its_address() {
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let config_of = kube::Config::new(format!("http://{address}").parse().unwrap());
    let watch = PodWatch::start(ApiServer::with(&config_of).unwrap(), config());
    let failed = status(&watch, |status| status.n_failed >= 2).await;
    assert!(
        failed.problem.contains(&address.to_string()),
        "{}",
        failed.problem
    );
    assert!(failed.problem.contains("refused"), "{}", failed.problem);
}

#[tokio::test]
async fn a_watch_that_breaks_goes_on_from_its_last_change() {
    let server = FakeServer::start().await;
    server.answer(LIST, list(10, &[]));
    let (stream, answer) = Answer::stream();
    server.answer(WATCH, answer);
    server.then(WATCH, Answer::status(500, "restarting"));
    let (last, answer) = Answer::stream();
    server.then(WATCH, answer);
    let mut watch = PodWatch::start(server.server(), config());
    assert_eq!(told(&mut watch).await, "all ");
    stream.send(line("ADDED", &object("a", 11))).await.unwrap();
    assert_eq!(told(&mut watch).await, "is a");
    // In the middle of a line.
    let half = line("MODIFIED", &object("a", 12)).slice(..30);
    stream.send(half).await.unwrap();
    drop(stream);
    last.send(line("MODIFIED", &object("a", 13))).await.unwrap();
    assert_eq!(told(&mut watch).await, "is a");
    let asked = server.asked_in_full();
    let watches = asked[1..].iter().map(|it| part(it, "resourceVersion"));
    assert_eq!(
        watches.collect::<Vec<_>>(),
        [Some("10"), Some("11"), Some("11")]
    );
    let status = status(&watch, |status| status.problem.is_empty()).await;
    assert_eq!((status.n_lists, status.n_failed), (1, 1));
}

#[tokio::test]
async fn a_server_that_does_not_know_the_version_is_asked_for_all() {
    let server = FakeServer::start().await;
    server.answer(LIST, list(900, &["a"]));
    server.then(LIST, list(10, &["b"]));
    // It was restored from an older state.
    server.answer(
        WATCH,
        Answer::status(504, "Too large resource version: 900, current: 10"),
    );
    let mut watch = PodWatch::start(server.server(), config());
    assert_eq!(told(&mut watch).await, "all a");
    assert_eq!(told(&mut watch).await, "all b");
    let asked = server.asked_in_full();
    assert_eq!(
        asked.iter().filter(|it| it.contains("watch=true")).count(),
        3
    );
}

#[tokio::test]
async fn nonsense_is_counted_and_passed_over() {
    let server = FakeServer::start().await;
    server.answer(LIST, Answer::text(200, "<html>sign in</html>"));
    let mut watch = PodWatch::start(server.server(), config());
    let failed = status(&watch, |status| status.n_failed >= 1).await;
    assert!(
        failed.problem.contains("not understood"),
        "{}",
        failed.problem
    );
    server.answer(LIST, list(10, &["a", "../b"]));
    server.answer(WATCH, Answer::text(200, "<html>\nsign in\n</html>\n"));
    assert_eq!(told(&mut watch).await, "all a");
    // A page is no watch.
    let failed = status(&watch, |status| status.problem.contains("not understood")).await;
    assert!(failed.n_untaken >= 4, "{failed:?}");
    let (stream, answer) = Answer::stream();
    server.answer(WATCH, answer);
    for text in [
        "\n",
        "{}\n",
        "{\"type\":\"ADDED\",\"object\":7}\n",
        "\u{0}\u{1}\n",
    ] {
        stream.send(Bytes::from(text)).await.unwrap();
    }
    stream.send(line("WHAT", &object("x", 1))).await.unwrap();
    stream.send(line("ADDED", &object("c", 11))).await.unwrap();
    assert_eq!(told(&mut watch).await, "is c");
    status(&watch, |status| status.problem.is_empty()).await;
}

#[tokio::test]
async fn a_list_that_is_too_long_is_read_in_parts() {
    let server = FakeServer::start().await;
    server.answer(LIST, Answer::text(200, &"x".repeat(17 << 20)));
    let part_of = |version: u32, name: &str, next: &str| {
        let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
        Answer::json(
            200,
            &json!({"metadata": metadata, "items": [object(name, 1)]}),
        )
    };
    server.then(LIST, part_of(7, "a", "next/1"));
    server.then(LIST, part_of(7, "b", ""));
    let (_open, answer) = Answer::stream();
    server.answer(WATCH, answer);
    let mut watch = PodWatch::start(server.server(), config());
    assert_eq!(told(&mut watch).await, "all a b");
    server.wait_for(4).await;
    let asked = server.asked_in_full();
    assert_eq!(part(&asked[1], "limit"), Some("100"));
    assert_eq!(part(&asked[2], "continue"), Some("next%2F1"));
    assert_eq!(part(&asked[3], "resourceVersion"), Some("7"));
}

#[tokio::test]
async fn a_line_without_end_ends_the_watch_and_not_the_agent() {
    let server = FakeServer::start().await;
    server.answer(LIST, list(10, &["a"]));
    let (stream, answer) = Answer::stream();
    server.answer(WATCH, answer);
    let (last, answer) = Answer::stream();
    server.then(WATCH, answer);
    let mut watch = PodWatch::start(server.server(), config());
    assert_eq!(told(&mut watch).await, "all a");
    let block = Bytes::from(vec![b'x'; 1 << 20]);
    for _ in 0..32 {
        // It is not read to its end.
        if stream.send(block.clone()).await.is_err() {
            break;
        }
    }
    drop(stream);
    last.send(line("ADDED", &object("b", 11))).await.unwrap();
    assert_eq!(told(&mut watch).await, "is b");
    assert!(watch.status().borrow().n_failed >= 1);
}

#[tokio::test]
async fn a_watch_in_which_nothing_comes_is_begun_anew() {
    let server = FakeServer::start().await;
    server.answer(LIST, list(10, &["a"]));
    server.answer(WATCH, Answer::Silence);
    let (stream, answer) = Answer::stream();
    server.then(WATCH, answer);
    let mut watch = PodWatch::start(server.server(), config());
    assert_eq!(told(&mut watch).await, "all a");
    stream.send(line("ADDED", &object("b", 11))).await.unwrap();
    assert_eq!(told(&mut watch).await, "is b");
    assert!(watch.status().borrow().n_failed >= 1);
}

#[tokio::test]
async fn there_is_room_for_so_many_pods_and_the_rest_is_counted() {
    let server = FakeServer::start().await;
    let names: Vec<String> = (0..MAX_PODS + 30).map(|n| format!("pod-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    server.answer(LIST, list(10, &names));
    let (stream, answer) = Answer::stream();
    server.answer(WATCH, answer);
    let mut watch = PodWatch::start(server.server(), config());
    assert_eq!(told(&mut watch).await.split(' ').count(), MAX_PODS + 1);
    stream
        .send(line("ADDED", &object("more", 11)))
        .await
        .unwrap();
    let full = status(&watch, |status| status.n_untaken == 31).await;
    assert_eq!(full.n_pods, MAX_PODS);
    stream
        .send(line("DELETED", &object("pod-3", 12)))
        .await
        .unwrap();
    stream
        .send(line("ADDED", &object("more", 13)))
        .await
        .unwrap();
    assert_eq!(told(&mut watch).await, "gone uid-pod-3");
    assert_eq!(told(&mut watch).await, "is more");
}

#[tokio::test]
async fn owners_that_could_not_be_asked_for_are_told_later() {
    let server = FakeServer::start().await;
    let mut web = object("web-7f-x2", 1);
    web["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "web-7", "controller": true}]);
    let items = json!({"metadata": {"resourceVersion": "10"}, "items": [web]});
    server.answer(LIST, Answer::json(200, &items));
    let (_open, answer) = Answer::stream();
    server.answer(WATCH, answer);
    let job = "/apis/batch/v1/namespaces/shop/jobs/web-7";
    server.answer(job, Answer::status(500, "not now"));
    let mut watch = PodWatch::start(server.server(), config());
    let Some(PodEvent::All(pods)) = watch.next().await else {
        panic!("no list");
    };
    assert_eq!(pods[0].workloads.len(), 1);
    let owner =
        json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": "web", "controller": true}]);
    server.answer(
        job,
        Answer::json(200, &json!({"metadata": {"ownerReferences": owner}})),
    );
    let event = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
    let Some(PodEvent::Is(pod)) = event else {
        panic!("{event:?}");
    };
    assert_eq!(pod.service_name(), "web");
}

#[tokio::test]
async fn a_right_that_is_missing_is_told() {
    let server = FakeServer::start().await;
    server.answer(
        LIST,
        Answer::status(
            403,
            "pods is forbidden: User \"u\" cannot list resource \"pods\"",
        ),
    );
    let watch = PodWatch::start(server.server(), config());
    let failed = status(&watch, |status| status.n_failed >= 1).await;
    assert!(
        failed.problem.contains("cannot list resource"),
        "{}",
        failed.problem
    );
}

#[tokio::test]
async fn a_node_without_pods_is_likely_a_wrong_name() {
    let server = FakeServer::start().await;
    server.answer(LIST, list(10, &[]));
    let (stream, answer) = Answer::stream();
    server.answer(WATCH, answer);
    let watch = PodWatch::start(server.server(), config());
    let empty = status(&watch, |status| {
        status.n_lists == 1 && !status.problem.is_empty()
    })
    .await;
    assert!(empty.problem.contains("node-1") && empty.problem.contains("--node-name"));
    stream.send(line("ADDED", &object("a", 11))).await.unwrap();
    status(&watch, |status| status.problem.is_empty()).await;
}

#[test]
fn pauses_grow_to_a_bound_differ_and_heed_the_server() {
    let pace = WatchPace::default();
    let mut pause = Pause::default();
    let pauses: Vec<Duration> = (0..12).map(|_| pause.next(&pace, None)).collect();
    for (idx, it) in pauses.iter().enumerate() {
        let longest = (pace.first_pause * (1 << idx)).min(pace.longest_pause);
        assert!((longest / 2..=longest).contains(it), "{idx}: {it:?}");
    }
    pause.n_failures = u32::MAX;
    assert!(pause.next(&pace, None) <= pace.longest_pause);
    pause.n_failures = 0;
    let busy = |seconds| ApiError::Refused {
        status: StatusCode::TOO_MANY_REQUESTS,
        message: String::new(),
        retry_after: Some(Duration::from_secs(seconds)),
    };
    assert_eq!(pause.next(&pace, Some(&busy(7))), Duration::from_secs(7));
    assert_eq!(
        pause.next(&pace, Some(&busy(9_999_999))),
        pace.longest_pause
    );
}

#[test]
fn a_query_cannot_be_broken_out_of() {
    assert_eq!(encoded("node-1.example_a~b"), "node-1.example_a~b");
    assert_eq!(encoded("a&b=c/ä%"), "a%26b%3Dc%2F%C3%A4%25");
}
