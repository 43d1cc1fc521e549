//! Who is let in, and what they see, where the Kubernetes API server says so: two tenants, an operator, strangers.

use serde_json::{Value, json};

use super::access::{secret, with_token};
use super::*;
use crate::kubernetes::fake::{Answer, FakeServer};
use crate::kubernetes::watch::{Annotations, PodWatch, WatchConfig, WatchPace};

const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// Who may see which namespace, by token.
const USERS: [(&str, &str); 3] = [
    ("token-of-shop-admin", NAMESPACE),
    ("token-of-bank-admin", "bank"),
    ("token-of-operators", "*"),
];

/// A server that says who they are, and a watch of pods in three namespaces.
async fn cluster() -> (FakeServer, PodWatch) {
    let server = FakeServer::start().await;
    server.answer_by(TOKEN_REVIEWS, |question| {
        let token = question["spec"]["token"].as_str().unwrap();
        let known = USERS.iter().any(|(known, _)| *known == token);
        let user = json!({"username": token});
        Answer::json(
            201,
            &json!({"status": {"authenticated": known, "user": user}}),
        )
    });
    server.answer_by(ACCESS_REVIEWS, |question| {
        let spec = &question["spec"];
        let is_allowed = USERS.iter().any(|(user, theirs)| {
            let wanted = &spec["resourceAttributes"]["namespace"];
            spec["user"] == *user && (*theirs == "*" || wanted == *theirs)
        });
        Answer::json(201, &json!({"status": {"allowed": is_allowed}}))
    });
    let pod = |namespace: &str| json!({"metadata": {"uid": format!("uid-{namespace}"), "name": "web", "namespace": namespace, "resourceVersion": "1"}});
    let pods: Vec<Value> = [NAMESPACE, "bank", "kube-system"].map(pod).into();
    let list = json!({"metadata": {"resourceVersion": "1"}, "items": pods});
    server.answer("/api/v1/pods", Answer::json(200, &list));
    let mut watch = PodWatch::start(
        server.server(),
        WatchConfig {
            node: "node-1".to_owned(),
            annotations: Annotations::default(),
            pace: WatchPace::default(),
        },
    );
    watch.next().await.unwrap();
    (server, watch)
}

fn asked_of(watch: &PodWatch) -> ServeConfig {
    ServeConfig {
        reviewer: Some(watch.reviewer()),
        ..config("127.0.0.1:0")
    }
}

#[tokio::test]
async fn two_tenants_do_not_see_each_other() {
    let (_server, watch) = cluster().await;
    let running = serve(Server::bind(&asked_of(&watch)).unwrap());
    let mut client = running.client().await;
    for (token, expected, counted) in [
        ("token-of-operators", vec![PID, OTHER_PID], [1, 1]),
        ("token-of-shop-admin", vec![PID], [1, 0]),
        ("token-of-bank-admin", vec![], [0, 0]),
    ] {
        let asked = with_token(proto::ListProcessesRequest::default(), token);
        let listed = client.list_processes(asked).await.unwrap().into_inner();
        let pids: Vec<u32> = listed.processes.iter().map(|process| process.pid).collect();
        assert_eq!(pids, expected, "{token}");
        let asked = with_token(proto::WatchProcessesRequest::default(), token);
        let watched = client.watch_processes(asked).await;
        let first = watched.unwrap().into_inner().message().await;
        let pids: Vec<u32> = first
            .unwrap()
            .unwrap()
            .processes
            .iter()
            .map(|it| it.pid)
            .collect();
        assert_eq!(pids, expected, "{token}");
        // What they ask for by name is as if it were not there.
        let is_seen = !expected.is_empty();
        let asked = proto::PullProfileRequest {
            duration: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            ..Default::default()
        };
        let pulled = client.pull_profile(with_token(asked, token)).await;
        assert_eq!(pulled.is_ok(), is_seen, "{token}");
        let asked = proto::HeapCensusRequest {
            pid: PID,
            max_types: 0,
        };
        let census = client.heap_census(with_token(asked, token)).await;
        assert_eq!(census.is_ok(), is_seen, "{token}");
        drop(census);
        let asked = with_token(proto::DumpStacksRequest::default(), token);
        let code = client.dump_stacks(asked).await.unwrap_err().code();
        // The agent here has no stacks.
        assert_eq!(
            code,
            if is_seen {
                Code::Unavailable
            } else {
                Code::NotFound
            }
        );
        let header = format!("Authorization: Bearer {token}");
        let profile = running
            .get_with("/debug/pprof/profile?seconds=1&pid=42", &header)
            .await;
        assert_eq!(profile.0, if is_seen { 200 } else { 404 });
        let targets = running.get_with("/sd", &header).await;
        let targets: Value = serde_json::from_slice(&targets.2).unwrap();
        assert_eq!(targets.as_array().unwrap().len(), usize::from(is_seen));
        // Of others not even how many there are.
        let status = client
            .get_status(with_token(proto::GetStatusRequest {}, token))
            .await;
        let status = status.unwrap().into_inner();
        let n_processes: Vec<u32> = status.processes.iter().map(|it| it.n_processes).collect();
        assert_eq!(n_processes, counted, "{token}");
        let metrics = running.get_with("/metrics", &header).await;
        let metrics = String::from_utf8(metrics.2).unwrap();
        let line = format!(
            "pyagent_processes{{state=\"not_profiled\"}} {}\n",
            counted[1]
        );
        assert!(metrics.contains(&line), "{token}: {metrics}");
    }
    running.stop().await;
}

#[tokio::test]
async fn strangers_are_refused_and_while_the_server_is_away_everybody_is_for_now() {
    let (server, watch) = cluster().await;
    let folder = tempfile::tempdir().unwrap();
    let config = ServeConfig {
        token_file: Some(secret(folder.path(), "tokens", "of-a-file-of-a-file all\n")),
        ..asked_of(&watch)
    };
    let running = serve(Server::bind(&config).unwrap());
    let mut client = running.client().await;
    assert_eq!(running.get("/metrics").await.0, 401);
    for (token, status, code) in [
        ("token-of-operators", 200, None),
        ("of-a-file-of-a-file", 200, None),
        ("token-of-a-stranger", 401, Some(Code::Unauthenticated)),
    ] {
        let header = format!("Authorization: Bearer {token}");
        assert_eq!(running.get_with("/metrics", &header).await.0, status);
        let asked = with_token(proto::GetStatusRequest {}, token);
        let error = client.get_status(asked).await.err();
        assert_eq!(error.map(|error| error.code()), code, "{token}");
    }
    for (answer, words) in [
        (Answer::status(503, "etcd"), "does not say who asks"),
        (
            Answer::status(403, "no"),
            "create tokenreviews and subjectaccessreviews",
        ),
    ] {
        // Who is known stays so for a while, others wait; a token of the file needs nobody.
        server.stop_answering_by(TOKEN_REVIEWS);
        server.answer(TOKEN_REVIEWS, answer);
        for (token, status) in [
            ("token-of-operators", 200),
            ("of-a-file-of-a-file", 200),
            ("token-of-shop-admin", 503),
        ] {
            let header = format!("Authorization: Bearer {token}");
            let answer = running.get_with("/metrics", &header).await;
            assert_eq!(answer.0, status, "{token}");
            let text = String::from_utf8(answer.2).unwrap();
            assert!(
                status == 200 || text.contains(words) && text.lines().count() == 1,
                "{text}"
            );
        }
        let asked = with_token(proto::GetStatusRequest {}, "token-of-shop-admin");
        let error = client.get_status(asked).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().contains(words), "{error}");
    }
    running.stop().await;
}

#[tokio::test]
async fn other_hosts_may_ask_where_the_api_server_says_who_they_are_over_tls_alone() {
    let (_server, watch) = cluster().await;
    let config = ServeConfig {
        listen: vec!["0.0.0.0:0".parse().unwrap()],
        ..asked_of(&watch)
    };
    let error = Server::bind(&config).err().unwrap().to_string();
    assert!(error.contains("--tls-cert FILE"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let local = format!("unix:{}", folder.path().join("s").display());
    let config = ServeConfig {
        listen: vec![local.parse().unwrap()],
        ..asked_of(&watch)
    };
    let error = Server::bind(&config).err().unwrap().to_string();
    assert!(error.contains("--auth has no effect"), "{error}");
}
