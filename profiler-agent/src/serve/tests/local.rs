//! Local sockets: their files, and who sees what by the user that the kernel names.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Output;

use prost::Message as _;

use super::*;

/// A group that may open the socket.
const GROUP: &str = "4321";

/// A folder that other users can enter.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    folder
}

fn address(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: only root can ask as another user");
        assert!(std::env::var_os("CI").is_none(), "CI runs as root");
    }
    is_root
}

/// What `curl`, a foreign client, gets as another user.
async fn curl(user: u32, group: &str, path: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &user.to_string(), "--regid", group])
        .args(["--clear-groups", "curl", "--silent", "--show-error"])
        .args(["--write-out", "%{stderr}%{http_code}", "--unix-socket"])
        .arg(path)
        .args(arguments);
    spawn_blocking(move || command.output().expect("setpriv and curl are there"))
        .await
        .unwrap()
}

fn code(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn both_protocols_are_spoken_over_a_local_socket() {
    let folder = folder();
    // Its folder is made too.
    let path = folder.path().join("pyagent/pyagent.sock");
    let running = serve(bind(&address(&path)).unwrap());
    let facts = std::fs::symlink_metadata(&path).unwrap();
    assert!(facts.file_type().is_socket());
    assert_eq!(facts.mode() & 0o7777, 0o660);
    let agent: AgentAddress = address(&path).parse().unwrap();
    let pulled = pull(
        &agent,
        ProfileType::Cpu,
        &ProcessFilter::pid(PID),
        Duration::from_secs(1),
        Format::default_format(),
    )
    .await;
    assert_eq!(pulled.unwrap().n_samples, i64::from(N_FUNCTIONS));
    let own = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw().to_string();
    if is_root() {
        let output = curl(own, &group, &path, &["http://localhost/metrics"]).await;
        assert_eq!(code(&output), "200");
        // Any name will do: web pages cannot reach it.
        let output = curl(own, &group, &path, &["http://pyagent/livez"]).await;
        assert_eq!(code(&output), "200");
    }
    running.stop().await;
    assert!(!path.exists(), "it is removed at the end");
}

#[tokio::test]
async fn a_socket_that_nobody_listens_on_is_replaced_and_no_other() {
    let folder = folder();
    let path = folder.path().join("s");
    // Left behind by one that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let first = bind(&address(&path)).unwrap();
    let error = bind(&address(&path)).err().unwrap().to_string();
    assert!(error.contains("is in use"), "{error}");
    // What took its place meanwhile is not removed.
    std::fs::remove_file(&path).unwrap();
    let second = bind(&address(&path)).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());

    std::fs::write(&path, "kept").unwrap();
    let error = bind(&address(&path)).err().unwrap().to_string();
    assert!(error.contains("is no socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let error = bind(&address(&link)).err().unwrap().to_string();
    assert!(error.contains("is no socket"), "{error}");
    let mut config = config(&address(&folder.path().join("t")));
    config.socket_group = Some("no-such-group".to_owned());
    let error = Server::bind(&config).err().unwrap().to_string();
    assert!(error.contains("no group `no-such-group`"), "{error}");
}

#[tokio::test]
async fn a_user_sees_and_pulls_their_own_processes_alone() {
    if !is_root() {
        return;
    }
    let folder = folder();
    let path = folder.path().join("s");
    let mut config = config(&address(&path));
    config.socket_group = Some(GROUP.to_owned());
    let running = serve(Server::bind(&config).unwrap());
    // An empty message of gRPC.
    let message = folder.path().join("message");
    std::fs::write(&message, [0; 5]).unwrap();
    let data = format!("@{}", message.display());
    let list = [
        "--http2-prior-knowledge",
        "--header",
        "content-type: application/grpc",
        "--header",
        "te: trailers",
        "--data-binary",
        &data,
        "http://localhost/pyagent.v1.ProfileService/ListProcesses",
    ];
    let pid = |pid: u32| format!("http://localhost/debug/pprof/profile?seconds=1&pid={pid}");
    let (own, not_there) = (pid(PID), pid(999));
    for (user, seen) in [
        (0, vec![PID, OTHER_PID]),
        (OWNER, vec![PID]),
        (OWNER + 1, vec![]),
    ] {
        let listed = curl(user, GROUP, &path, &list).await;
        assert_eq!(code(&listed), "200");
        let message = listed.stdout.get(5..).expect("a message of gRPC");
        let message = proto::ListProcessesResponse::decode(message).unwrap();
        let pids: Vec<u32> = message
            .processes
            .iter()
            .map(|process| process.pid)
            .collect();
        assert_eq!(pids, seen, "user {user}");
        let pulled = curl(user, GROUP, &path, &[&own]).await;
        let expected = if seen.is_empty() { "404" } else { "200" };
        assert_eq!(code(&pulled), expected, "user {user}");
        let absent = curl(user, GROUP, &path, &[&not_there]).await;
        assert_eq!(code(&absent), "404");
        if seen.is_empty() {
            assert_eq!(pulled.stdout, absent.stdout, "the same words for both");
        }
        // The status says nothing of processes.
        let status = curl(user, GROUP, &path, &["http://localhost/metrics"]).await;
        assert_eq!(code(&status), "200");
    }
    // Who is not in the group does not get that far.
    let denied = curl(OWNER, "99", &path, &["http://localhost/metrics"]).await;
    assert_eq!(denied.status.code(), Some(7), "{}", code(&denied));
    running.stop().await;
}

#[tokio::test]
async fn a_socket_that_cannot_be_opened_is_told_in_one_line() {
    let folder = folder();
    let path = folder.path().join("s");
    let agent: AgentAddress = address(&path).parse().unwrap();
    let failure = containers(&agent).await.unwrap_err().to_string();
    assert!(failure.contains("there is no socket"), "{failure}");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let failure = containers(&agent).await.unwrap_err().to_string();
    assert!(failure.contains("no agent listens"), "{failure}");
    assert!(failure.contains("--listen unix:"), "{failure}");
    assert_eq!(failure.lines().count(), 1);
}
