//! Reviews by a server that knows some users, and by one that is slow, away, forbidding or confused.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::fake::{Answer, FakeServer};
use super::*;

/// Who may see which namespaces, by token.
const USERS: [(&str, &str); 4] = [
    ("token-of-shop", "shop"),
    ("token-of-bank", "bank"),
    ("token-of-ops", "*"),
    ("token-of-nobody-special", ""),
];

/// A server that knows them, and how often it was asked about tokens and about access.
async fn cluster() -> (FakeServer, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let server = FakeServer::start().await;
    let (n_tokens, n_access) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    server.answer_by(TOKEN_REVIEWS, {
        let n_tokens = n_tokens.clone();
        move |question| {
            n_tokens.fetch_add(1, Ordering::Relaxed);
            let token = question["spec"]["token"].as_str().unwrap();
            let known = USERS.iter().find(|(known, _)| *known == token);
            Answer::json(201, &review_of(known.map(|(token, _)| *token)))
        }
    });
    server.answer_by(ACCESS_REVIEWS, {
        let n_access = n_access.clone();
        move |question| {
            n_access.fetch_add(1, Ordering::Relaxed);
            Answer::json(201, &json!({"status": {"allowed": is_allowed(question)}}))
        }
    });
    (server, n_tokens, n_access)
}

fn review_of(token: Option<&str>) -> Value {
    match token {
        None => json!({"status": {"authenticated": false, "error": "invalid bearer token"}}),
        Some(token) => json!({"status": {"authenticated": true, "user": {
            "username": format!("user-of-{token}"), "uid": "1", "groups": ["system:authenticated"],
            "extra": {"authentication.kubernetes.io/pod-name": ["p"]},
        }}}),
    }
}

/// What RBAC would say; the question has to be whole.
fn is_allowed(question: &Value) -> bool {
    let spec = &question["spec"];
    assert_eq!(spec["groups"], json!(["system:authenticated"]));
    assert_eq!(spec["uid"], "1");
    assert_eq!(
        spec["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["p"])
    );
    let wanted = &spec["resourceAttributes"];
    for (name, text) in [
        ("verb", "get"),
        ("group", ""),
        ("resource", "pods"),
        ("subresource", "profile"),
    ] {
        assert_eq!(wanted[name], text, "{name}");
    }
    let user = spec["user"].as_str().unwrap();
    let namespace = wanted["namespace"].as_str().unwrap();
    USERS.iter().any(|(token, theirs)| {
        user == format!("user-of-{token}")
            && (*theirs == "*" || *theirs == namespace && !namespace.is_empty())
    })
}

/// Somebody who asks it about pods of these namespaces, and who tells of more.
fn reviewer(server: &FakeServer, names: &[&str]) -> (Reviewer, watch::Sender<Namespaces>) {
    let mut namespaces = Namespaces::default();
    for name in names {
        namespaces.see(name);
    }
    let (sender, receiver) = watch::channel(namespaces);
    (Reviewer::new(server.server(), receiver), sender)
}

fn only(names: &[&str]) -> Access {
    Access::Namespaces(names.iter().map(|name| (*name).to_owned()).collect())
}

#[tokio::test]
async fn everybody_sees_the_namespaces_that_they_may() {
    let (server, ..) = cluster().await;
    let (reviewer, namespaces) = reviewer(&server, &["shop", "bank", "kube-system"]);
    for (token, access) in [
        ("token-of-shop", Ok(only(&["shop"]))),
        ("token-of-bank", Ok(only(&["bank"]))),
        ("token-of-ops", Ok(Access::Everything)),
        ("token-of-nobody-special", Ok(only(&[]))),
        ("token-of-shop ", Err(ReviewError::UnknownToken)),
        ("", Err(ReviewError::UnknownToken)),
    ] {
        assert_eq!(reviewer.access(token.as_bytes()).await, access, "{token}");
    }
    assert_eq!(
        reviewer.access(b"\xff\xfe").await,
        Err(ReviewError::UnknownToken)
    );
    let long = vec![b'x'; MAX_TOKEN_BYTES + 1];
    assert_eq!(reviewer.access(&long).await, Err(ReviewError::UnknownToken));
    // A namespace that comes later, and one of what was recorded.
    namespaces.send_modify(|names| assert!(names.see("new")));
    reviewer.set_recorded(vec!["old".to_owned(), "shop".to_owned()]);
    assert_eq!(reviewer.access(b"token-of-shop").await, Ok(only(&["shop"])));
    // What a token is or whose is shown nowhere.
    assert_eq!(format!("{reviewer:?}"), "Reviewer");
}

#[tokio::test]
async fn answers_are_kept_for_a_while_and_asked_for_again_then() {
    let (server, n_tokens, n_access) = cluster().await;
    let (reviewer, namespaces) = reviewer(&server, &["shop", "bank"]);
    let asked = || {
        (
            n_tokens.load(Ordering::Relaxed),
            n_access.load(Ordering::Relaxed),
        )
    };
    for _ in 0..3 {
        reviewer.access(b"token-of-shop").await.unwrap();
        assert!(reviewer.access(b"no token of anybody").await.is_err());
    }
    // Everywhere, and in each of two.
    assert_eq!(asked(), (2, 3));
    namespaces.send_modify(|names| assert!(names.see("new")));
    reviewer.access(b"token-of-shop").await.unwrap();
    assert_eq!(asked(), (2, 4));
    // While the server is away what is known holds, and ends then.
    for path in [TOKEN_REVIEWS, ACCESS_REVIEWS] {
        server.answer_by(path, |_| Answer::status(503, "away"));
    }
    assert_eq!(reviewer.access(b"token-of-shop").await, Ok(only(&["shop"])));
    for known in lock(&reviewer.0.known).values_mut() {
        known.until = Instant::now();
    }
    assert_eq!(
        reviewer.access(b"token-of-shop").await,
        Err(ReviewError::Unavailable)
    );
}

#[tokio::test]
async fn a_server_that_cannot_or_may_not_be_asked_lets_nobody_in() {
    let server = FakeServer::start().await;
    let (reviewer, _namespaces) = reviewer(&server, &["shop"]);
    for (answer, error) in [
        (
            Answer::status(503, "etcd is away"),
            ReviewError::Unavailable,
        ),
        (
            Answer::status(403, "cannot create resource"),
            ReviewError::NotAllowed,
        ),
        (
            Answer::text(201, "<html>sign in</html>"),
            ReviewError::Unavailable,
        ),
        (Answer::text(201, "{}"), ReviewError::Unavailable),
        (
            Answer::text(201, &"x".repeat(300 << 10)),
            ReviewError::Unavailable,
        ),
        // Somebody without a name, or with too many groups.
        (
            Answer::json(201, &json!({"status": {"authenticated": true}})),
            ReviewError::Unavailable,
        ),
        (
            Answer::json(
                201,
                &json!({"status": {"authenticated": true, "user": {
                    "username": "u", "groups": vec!["group"; 10_000],
                }}}),
            ),
            ReviewError::Unavailable,
        ),
        (
            Answer::json(201, &json!({"status": {"authenticated": "yes"}})),
            ReviewError::Unavailable,
        ),
    ] {
        server.answer(TOKEN_REVIEWS, answer);
        assert_eq!(reviewer.access(b"token-of-shop").await, Err(error));
        assert_eq!(error.to_string().lines().count(), 1);
    }
    // Nothing of it was kept.
    assert!(lock(&reviewer.0.known).is_empty());
    // Who somebody is was told, what they may was not.
    server.answer(
        TOKEN_REVIEWS,
        Answer::json(201, &review_of(Some("token-of-ops"))),
    );
    server.answer(ACCESS_REVIEWS, Answer::status(500, "no"));
    assert_eq!(
        reviewer.access(b"token-of-ops").await,
        Err(ReviewError::Unavailable)
    );
    // Allowed and denied at once is denied.
    let both = json!({"status": {"allowed": true, "denied": true}});
    server.answer(ACCESS_REVIEWS, Answer::json(201, &both));
    assert_eq!(reviewer.access(b"token-of-ops").await, Ok(only(&[])));
}

#[tokio::test]
async fn a_server_that_says_nothing_is_waited_for_for_some_seconds() {
    let server = FakeServer::start().await;
    server.answer(TOKEN_REVIEWS, Answer::Silence);
    let (reviewer, _namespaces) = reviewer(&server, &["shop"]);
    let begun = Instant::now();
    assert_eq!(
        reviewer.access(b"token-of-shop").await,
        Err(ReviewError::Unavailable)
    );
    assert!(begun.elapsed() < 3 * TIMEOUT);
}

#[tokio::test]
async fn tokens_of_nobody_do_not_push_out_those_of_somebody() {
    let (server, n_tokens, _) = cluster().await;
    let (reviewer, _namespaces) = reviewer(&server, &["shop"]);
    reviewer.access(b"token-of-shop").await.unwrap();
    for n in 0..2 * MAX_KNOWN {
        let wrong = format!("wrong-{n}");
        assert!(reviewer.access(wrong.as_bytes()).await.is_err());
    }
    assert_eq!(lock(&reviewer.0.known).len(), MAX_KNOWN);
    let before = n_tokens.load(Ordering::Relaxed);
    reviewer.access(b"token-of-shop").await.unwrap();
    assert_eq!(n_tokens.load(Ordering::Relaxed), before);
    // Only hashes are kept.
    let known: BTreeSet<[u8; 32]> = lock(&reviewer.0.known).keys().copied().collect();
    assert!(known.contains(&<[u8; 32]>::from(Sha256::digest(b"token-of-shop"))));
}

#[test]
fn access_that_covers_another_one_allows_all_of_it() {
    let all = Access::Everything;
    for (wide, narrow, covers) in [
        (&all, &all, true),
        (&all, &only(&["a"]), true),
        (&only(&["a"]), &all, false),
        (&only(&["a", "b"]), &only(&["b"]), true),
        (&only(&["a"]), &only(&["a", "b"]), false),
        (&only(&[]), &only(&[]), true),
    ] {
        assert_eq!(wide.covers(narrow), covers, "{wide:?} {narrow:?}");
    }
}
