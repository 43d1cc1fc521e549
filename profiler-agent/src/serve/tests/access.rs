//! Who is let in, and what they see: tokens, scopes, foreign pages, probes.

use std::path::Path;

use tonic::Request;

use super::*;

const ALL: &str = "all-all-all-all-all-all";
const STATUS: &str = "status-status-status";
const SHOP: &str = "shop-shop-shop-shop";
const OTHER: &str = "other-other-other-other";

/// A file that only its owner can read.
pub(super) fn secret(folder: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = folder.join(name);
    let mut file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
    path
}

fn tokens() -> String {
    format!("{ALL}\n{STATUS} read-status\n{SHOP} namespaces=shop\n{OTHER} namespaces=other,x\n")
}

fn with_tokens(folder: &Path) -> Running {
    let mut config = config("127.0.0.1:0");
    config.token_file = Some(secret(folder, "tokens", &tokens()));
    serve(Server::bind(&config).unwrap())
}

pub(super) fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

impl Running {
    /// The answer to a request of HTTP/1.1 with a header.
    pub(super) async fn get_with(&self, target: &str, header: &str) -> (u16, String, Vec<u8>) {
        self.http(format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\n{header}\r\nConnection: close\r\n\r\n"
        ))
        .await
    }
}

#[tokio::test]
async fn without_a_token_or_with_a_wrong_one_nothing_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let running = with_tokens(folder.path());
    let targets = [
        "/",
        "/metrics",
        "/livez",
        "/healthz",
        "/nothing",
        "/debug/pprof/profile?seconds=1&pid=42",
        "/debug/pprof/profile?seconds=1&pid=999",
    ];
    let mut answers = BTreeSet::new();
    for target in targets {
        let (status, head, body) = running.get(target).await;
        assert_eq!(status, 401, "{target}");
        assert!(head.contains("www-authenticate: bearer\r\n"), "{head}");
        answers.insert(body);
    }
    // The same whatever is asked for: in one line that says what to do.
    let [answer] = answers.iter().collect::<Vec<_>>()[..] else {
        panic!("{answers:?}");
    };
    let answer = String::from_utf8(answer.clone()).unwrap();
    assert!(answer.contains("Authorization: Bearer TOKEN"), "{answer}");
    assert_eq!(answer.lines().count(), 1);
    for header in [
        "Authorization: Bearer wrong-wrong-wrong",
        "Authorization: Bearer all-all-all-all-all-al",
        "Authorization: Bearer all-all-all-all-all-all-",
        "Authorization: Basic YWxsOmFsbA==",
        "Authorization: Bearer ",
    ] {
        assert_eq!(
            running.get_with("/metrics", header).await.0,
            401,
            "{header}"
        );
    }
    let mut client = running.client().await;
    let error = client.list_processes(proto::ListProcessesRequest::default());
    let error = error.await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated, "{error}");
    assert!(error.message().contains("--token-file"), "{error}");
    let wrong = with_token(proto::GetStatusRequest {}, "wrong-wrong-wrong");
    let error = client.get_status(wrong).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated, "{error}");
    let good = with_token(proto::GetStatusRequest {}, ALL);
    assert!(client.get_status(good).await.is_ok());
    running.stop().await;
}

#[tokio::test]
async fn a_scope_for_the_status_reads_nothing_of_processes() {
    let folder = tempfile::tempdir().unwrap();
    let running = with_tokens(folder.path());
    let header = format!("Authorization: Bearer {STATUS}");
    for (target, status) in [
        ("/metrics", 200),
        ("/livez", 200),
        ("/readyz", 200),
        ("/healthz", 200),
        ("/debug/pprof/profile?seconds=1&pid=42", 403),
        ("/debug/pprof/profile?seconds=1&pid=999", 403),
        ("/nothing", 403),
    ] {
        let answer = running.get_with(target, &header).await;
        assert_eq!(answer.0, status, "{target}");
    }
    let mut client = running.client().await;
    let asked = with_token(proto::GetStatusRequest {}, STATUS);
    assert!(client.get_status(asked).await.is_ok());
    let asked = with_token(proto::ListProcessesRequest::default(), STATUS);
    let error = client.list_processes(asked).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    for pid in [PID, 999] {
        let selector = proto::ProcessSelector {
            pids: vec![pid],
            ..Default::default()
        };
        let request = proto::PullProfileRequest {
            selector: Some(selector),
            ..Default::default()
        };
        let error = client.pull_profile(with_token(request, STATUS)).await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied, "{error}");
        let request = proto::HeapCensusRequest { pid, max_types: 0 };
        let error = client.heap_census(with_token(request, STATUS)).await;
        assert_eq!(error.unwrap_err().code(), Code::PermissionDenied);
    }
    let request = proto::DumpStacksRequest::default();
    let error = client.dump_stacks(with_token(request, STATUS)).await;
    assert_eq!(error.unwrap_err().code(), Code::PermissionDenied);
    let request = proto::WatchProcessesRequest::default();
    let error = client.watch_processes(with_token(request, STATUS)).await;
    assert_eq!(error.unwrap_err().code(), Code::PermissionDenied);
    running.stop().await;
}

#[tokio::test]
async fn local_variables_are_for_who_may_everything_and_only_if_the_agent_allows_it() {
    let folder = tempfile::tempdir().unwrap();
    for allow_locals in [false, true] {
        let config = ServeConfig {
            allow_locals,
            token_file: Some(secret(folder.path(), "tokens", &tokens())),
            ..config("127.0.0.1:0")
        };
        let running = serve(Server::bind(&config).unwrap());
        let mut client = running.client().await;
        for (token, code) in [
            // The agent here has no stacks.
            (ALL, Code::Unavailable),
            (SHOP, Code::PermissionDenied),
            (STATUS, Code::PermissionDenied),
        ] {
            let code = match (allow_locals, code) {
                (false, Code::Unavailable) => Code::FailedPrecondition,
                _ => code,
            };
            let request = proto::DumpStacksRequest {
                locals: proto::LocalsDetail::Short.into(),
                ..Default::default()
            };
            let error = client.dump_stacks(with_token(request, token)).await;
            let error = error.unwrap_err();
            assert_eq!(error.code(), code, "{token}: {error}");
            assert_eq!(error.message().lines().count(), 1);
        }
        let request = proto::DumpStacksRequest {
            locals: 77,
            ..Default::default()
        };
        let error = client.dump_stacks(with_token(request, ALL)).await;
        assert_eq!(error.unwrap_err().code(), Code::InvalidArgument);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_scope_of_namespaces_sees_those_and_others_as_if_they_were_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let running = with_tokens(folder.path());
    let mut client = running.client().await;
    for (token, expected) in [
        (ALL, vec![PID, OTHER_PID]),
        (SHOP, vec![PID]),
        (OTHER, vec![]),
    ] {
        let asked = with_token(proto::ListProcessesRequest::default(), token);
        let listed = client.list_processes(asked).await.unwrap().into_inner();
        let pids: Vec<u32> = listed.processes.iter().map(|process| process.pid).collect();
        assert_eq!(pids, expected, "{token}");
        let header = format!("Authorization: Bearer {token}");
        let there = running
            .get_with("/debug/pprof/profile?seconds=1&pid=42", &header)
            .await;
        assert_eq!(there.0, if expected.is_empty() { 404 } else { 200 });
        let not_there = running
            .get_with("/debug/pprof/profile?seconds=1&pid=999", &header)
            .await;
        assert_eq!(not_there.0, 404);
        if expected.is_empty() {
            assert_eq!(there.2, not_there.2, "the same words for both");
        }
        let request = proto::HeapCensusRequest {
            pid: PID,
            max_types: 0,
        };
        let census = client.heap_census(with_token(request, token)).await;
        assert_eq!(census.is_ok(), !expected.is_empty(), "{token}");
        // Another client may look only when this one has left.
        drop(census);
        let request = proto::DumpStacksRequest::default();
        let error = client.dump_stacks(with_token(request, token)).await;
        let code = if expected.is_empty() {
            Code::NotFound
        } else {
            // The agent here has no stacks.
            Code::Unavailable
        };
        assert_eq!(error.unwrap_err().code(), code, "{token}");
        let request = proto::WatchProcessesRequest::default();
        let watched = client.watch_processes(with_token(request, token)).await;
        let first = watched.unwrap().into_inner().message().await;
        let processes = first.unwrap().unwrap().processes;
        let pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
        assert_eq!(pids, expected, "{token}");
    }
    running.stop().await;
}

#[tokio::test]
async fn tokens_are_read_again_when_they_change_and_broken_ones_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let running = with_tokens(folder.path());
    let mut client = running.client().await;
    let mut until = async |token: &str, is_known: bool| {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        loop {
            let asked = with_token(proto::GetStatusRequest {}, token);
            if client.get_status(asked).await.is_ok() == is_known {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{token} {is_known}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    until(ALL, true).await;
    // Replaced by another file, as most do it.
    let new = secret(folder.path(), "new", "second-second-second\n");
    std::fs::rename(&new, folder.path().join("tokens")).unwrap();
    until("second-second-second", true).await;
    until(ALL, false).await;
    // Too short, then unreadable to be believed, then gone: the last good one holds. That it was looked at is known by
    // the next good one that follows.
    secret(folder.path(), "tokens", "short\n");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    until("second-second-second", true).await;
    std::fs::remove_file(folder.path().join("tokens")).unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    until("second-second-second", true).await;
    secret(folder.path(), "tokens", "third-third-third-third\n");
    until("third-third-third-third", true).await;
    until("second-second-second", false).await;
    running.stop().await;
}

#[tokio::test]
async fn pages_of_other_sites_and_other_names_are_refused() {
    let running = start().await;
    let own = running.address;
    for (headers, status) in [
        (format!("Host: {own}\r\nOrigin: http://{own}"), 200),
        (format!("Host: {own}\r\nOrigin: http://evil.example"), 403),
        (format!("Host: {own}\r\nOrigin: null"), 403),
        (format!("Host: {own}\r\nOrigin: http://localhost:1"), 403),
        ("Host: 192.0.2.1:7099".to_owned(), 403),
        (
            "Host: evil.example\r\nOrigin: http://evil.example".to_owned(),
            403,
        ),
        ("Host: localhost".to_owned(), 200),
    ] {
        let request = format!("GET /metrics HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n");
        assert_eq!(running.http(request).await.0, status, "{headers}");
    }
    // The name in the request line counts too.
    let request =
        "GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(running.http(request.to_owned()).await.0, 403);
    // gRPC-Web from a page, as a browser would send it after CORS.
    let post = format!(
        "POST /pyagent.v1.ProfileService/GetStatus HTTP/1.1\r\nHost: {own}\r\nOrigin: http://evil.example\r\n\
         Content-Type: application/grpc-web\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let (_, head, _) = running.http(post).await;
    assert!(head.contains("grpc-status: 7\r\n"), "{head}");
    // HTTP/2 says the name in `:authority`.
    let endpoint = Channel::from_shared(format!("http://{own}")).unwrap();
    let endpoint = endpoint.origin("http://192.0.2.1:7099".parse().unwrap());
    let mut client = ProfileServiceClient::new(endpoint.connect().await.unwrap());
    let error = client.get_status(proto::GetStatusRequest {}).await;
    assert_eq!(error.unwrap_err().code(), Code::PermissionDenied);
    running.stop().await;
}

#[tokio::test]
async fn probes_are_answered_on_an_address_of_their_own_and_nothing_else_is() {
    let server = HealthServer::bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let address = SocketAddr::new([127, 0, 0, 1].into(), server.address().port());
    let (queries, questions) = mpsc::channel(4);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(server.run(queries, async { drop(stopped.await) }));
    let running = Running {
        address,
        stop,
        server,
        unanswered: mpsc::channel(1).1,
    };
    // Alive, but nothing is attached yet: the agent does not answer.
    assert_eq!(running.get("/livez").await.0, 200);
    let mut health = HealthClient::new(running.channel().await);
    let mut serving = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        health.check(request).await.unwrap().into_inner().status == 1
    };
    assert!(!serving("").await);
    tokio::spawn(answer(questions, mpsc::channel(1).0));
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !serving("").await || !serving("readiness").await {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(serving("liveness").await);
    // In part: it is ready, and the body says what is missing. The name by which it is asked is of no matter.
    let ready = running
        .http("GET /readyz HTTP/1.1\r\nHost: node-1:8080\r\nConnection: close\r\n\r\n".to_owned())
        .await;
    assert_eq!(ready.0, 200);
    let text = String::from_utf8(ready.2).unwrap();
    assert!(text.contains("3 of 4 CPUs"), "{text}");
    assert_eq!(running.get("/metrics").await.0, 200);
    for target in [
        "/",
        "/healthz",
        "/debug/pprof/profile?seconds=1",
        "/debug/pprof/heap",
        "/x",
    ] {
        assert_eq!(running.get(target).await.0, 404, "{target}");
    }
    let mut client = running.client().await;
    let error = client.get_status(proto::GetStatusRequest {}).await;
    assert_eq!(error.unwrap_err().code(), Code::Unimplemented);
    let error = client.list_processes(proto::ListProcessesRequest::default());
    assert_eq!(error.await.unwrap_err().code(), Code::Unimplemented);
    running.stop().await;
}

#[tokio::test]
async fn flags_that_would_do_nothing_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let token_file = Some(secret(folder.path(), "tokens", &tokens()));
    let files = TlsFiles {
        cert: "c".into(),
        key: "k".into(),
        client_ca: None,
    };
    let with_certificate = ServeConfig {
        tls: Some(files.clone()),
        ..config("127.0.0.1:0")
    };
    let local = format!("unix:{}", folder.path().join("s").display());
    let with_token = ServeConfig {
        token_file: token_file.clone(),
        ..config(&local)
    };
    let with_scopes = ServeConfig {
        client_scopes: Some("scopes".into()),
        ..config("127.0.0.1:0")
    };
    for (config, reason) in [
        (with_certificate, "--tls-cert has no effect"),
        (with_token, "--token-file has no effect"),
        (with_scopes, "--tls-client-scopes has no effect"),
        (config("https://127.0.0.1:0"), "needs a certificate"),
        // A token is no secret in the clear.
        (
            ServeConfig {
                token_file: token_file.clone(),
                ..config("0.0.0.0:0")
            },
            "--tls-cert FILE",
        ),
        // TLS alone does not say who asks.
        (
            ServeConfig {
                tls: Some(files),
                ..config("0.0.0.0:0")
            },
            "--token-file FILE",
        ),
    ] {
        let error = Server::bind(&config).err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
