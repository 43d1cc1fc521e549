//! The receiver answers with a code of gRPC in place of taking a request.

use std::path::Path;
use std::process::Command;

use super::account::{Account, of_server};
use super::scene::{Scene, metric, wait};
use crate::push::{Peer, prepared};

/// Codes after which the same is sent again: by OTLP's table (<https://opentelemetry.io/docs/specs/otlp/#failures>), and three
/// more. Who is not let in may be let in later, and what is exhausted is there again.
pub const RETRYABLE: [&str; 9] = [
    "cancelled",
    "deadline_exceeded",
    "aborted",
    "out_of_range",
    "unavailable",
    "data_loss",
    "resource_exhausted",
    "permission_denied",
    "unauthenticated",
];

/// Codes after which it must not be sent again.
pub const PERMANENT: [&str; 7] = [
    "unknown",
    "invalid_argument",
    "not_found",
    "already_exists",
    "failed_precondition",
    "unimplemented",
    "internal",
];

/// Each code is answered once, with a request that is taken before and after each. `None`, said: there is no receiver.
///
/// # Panics
/// When the agent or the receiver fails.
#[must_use]
pub fn are_answered(codes: &[&str]) -> Option<Account> {
    let packages = prepared("PYAGENT_OTLP_PACKAGES")?;
    let scene = Scene::new();
    let received = scene.folder.path().join("received");
    std::fs::create_dir(&received).expect("the folder is ours");
    let answers: Vec<&str> = codes.iter().flat_map(|code| ["ok", code]).collect();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/otlp_server.py");
    let mut server = Command::new("python3");
    server.arg(script).arg(&received).args(&answers).arg("ok");
    let server = Peer::start(server.env("PYTHONPATH", packages));
    let agent = scene.agent(&format!("otlp=http://{}", server.greeting), &[]);
    let n_received = || std::fs::read_dir(&received).map_or(0, Iterator::count);
    wait("all answers", || n_received() >= answers.len() + 2);
    let refused = metric(&agent, "pyagent_push_requests_rejected_total");
    agent.stop();
    let requests = server.finish();
    let n_answered = |code: &&&str| requests.iter().any(|it| it["answer"] == **code);
    let n_faults = codes.iter().filter(n_answered).count();
    let account = scene.account(n_faults, &of_server(&requests));
    Some(account.refused(usize::try_from(refused).expect("a small number")))
}
