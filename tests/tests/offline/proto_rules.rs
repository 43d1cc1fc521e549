//! The .proto files of the service by the rules of buf: how they are written, and that nothing is changed that a client of the
//! last release (proto/baseline) knows. That the rules find what they are there for is shown too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pyagent_tests::push::prepared;
use tempfile::TempDir;

/// The service, below a folder of .proto files.
const SERVICE: &str = "pyagent/v1/profile_service.proto";

/// What buf exits with when it has something to say.
const FOUND: i32 = 100;

fn protos() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace")
        .join("proto")
}

/// Runs buf; its exit status and what it says. `None`, said, where there is none.
fn buf(arguments: &[&str], against: Option<&Path>, folder: &Path) -> Option<(Option<i32>, String)> {
    let program = PathBuf::from(prepared("PYAGENT_GRPC_TOOLS")?).join("buf");
    // It keeps nothing of one run for another, and asks nobody.
    let cache = tempfile::tempdir().unwrap();
    let mut buf = Command::new(program);
    buf.args(arguments).arg(folder);
    if let Some(against) = against {
        buf.arg("--against").arg(against);
    }
    let output = buf.env("BUF_CACHE_DIR", cache.path()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some((
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

/// A copy of the service's .proto files, with one text in place of another one.
fn changed(from: &str, to: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(protos().join(SERVICE)).unwrap();
    assert_eq!(text.matches(from).count(), 1, "`{from}`");
    let copy = folder.path().join(SERVICE);
    fs::create_dir_all(copy.parent().unwrap()).unwrap();
    fs::write(copy, text.replace(from, to)).unwrap();
    let rules = "buf.yaml";
    fs::copy(protos().join(rules), folder.path().join(rules)).unwrap();
    folder
}

#[test]
fn the_service_is_written_by_the_rules_and_compatible_with_the_last_release() {
    let Some(lint) = buf(&["lint"], None, &protos()) else {
        return;
    };
    assert_eq!(lint, (Some(0), String::new()));
    let baseline = protos().join("baseline");
    let breaking = buf(&["breaking"], Some(&baseline), &protos());
    assert_eq!(breaking, Some((Some(0), String::new())));
}

#[test]
fn what_would_break_a_client_is_found() {
    let baseline = protos().join("baseline");
    for (from, to, said) in [
        // Another number,
        (
            "string python_version = 7;",
            "string python_version = 70;",
            "field \"7\" with name \"python_version\" on message \"Process\" was deleted",
        ),
        // another type,
        (
            "int64 n_samples = 3;",
            "string n_samples = 3;",
            "changed type from \"int64\" to \"string\"",
        ),
        // a value that is gone,
        (
            "  PROCESS_STATE_NOT_PROFILED = 3;",
            "  PROCESS_STATE_LEFT_OUT = 3;",
            "PROCESS_STATE_NOT_PROFILED",
        ),
        // and a call that is gone.
        (
            "rpc GetStatus(GetStatusRequest) returns (GetStatusResponse);",
            "",
            "Previously present RPC \"GetStatus\"",
        ),
    ] {
        let folder = changed(from, to);
        let Some((code, text)) = buf(&["breaking"], Some(&baseline), folder.path()) else {
            return;
        };
        assert_eq!(code, Some(FOUND), "{from}: {text}");
        assert!(text.contains(said), "{from}: {text}");
    }
}

#[test]
fn what_may_be_added_is_no_break_and_what_is_written_otherwise_is_found() {
    let baseline = protos().join("baseline");
    let field = "string python_version = 7;";
    let added = changed(field, &format!("{field}\n  string future = 1000;"));
    let Some(breaking) = buf(&["breaking"], Some(&baseline), added.path()) else {
        return;
    };
    assert_eq!(breaking, (Some(0), String::new()));
    let renamed = changed(field, &format!("{field}\n  string inFuture = 1000;"));
    let (code, said) = buf(&["lint"], None, renamed.path()).unwrap();
    assert_eq!(code, Some(FOUND), "{said}");
    assert!(
        said.contains("\"inFuture\" should be lower_snake_case"),
        "{said}"
    );
}
