//! The image, as other people's tools take it.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use pyagent_tests::cluster::PYAGENT_IMAGE;
use pyagent_tests::containers::{RUN_OPTIONS, podman};
use serde_json::Value;

/// Most bytes of the archive.
const MAX_BYTES: u64 = 20 << 20;

/// All files of a container; folders end with a slash.
const FILES: [&str; 4] = [
    "etc/group",
    "etc/passwd",
    "etc/ssl/certs/ca-certificates.crt",
    "usr/local/bin/pyagent",
];

/// The archive; `None`: only `cargo xtask test kubernetes` makes one.
fn archive() -> Option<PathBuf> {
    let image = env::var_os("PYAGENT_IMAGE").filter(|image| !image.is_empty());
    if image.is_none() {
        assert!(
            env::var_os("CI").is_none_or(|ci| ci != "true"),
            "no image, but CI promises one"
        );
        eprintln!("skipped: PYAGENT_IMAGE is needed (`cargo xtask test kubernetes`)");
    }
    image.map(PathBuf::from)
}

/// What it prints.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn skopeo_knows_what_it_is() {
    let Some(archive) = archive() else {
        return;
    };
    let mut inspect = Command::new("skopeo");
    inspect
        .arg("inspect")
        .arg(format!("oci-archive:{}", archive.display()));
    let known: Value = serde_json::from_str(&said(&mut inspect)).unwrap();
    assert_eq!(known["Os"], "linux");
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    assert_eq!(known["Architecture"], architecture);
    let label = |name: &str| {
        let label = &known["Labels"][format!("org.opencontainers.image.{name}")];
        label.as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(label("title"), "pyagent");
    assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(label("licenses"), "Apache-2.0 OR MIT");
    assert_eq!(label("revision").len(), 40, "{known:#}");
    assert!(fs::metadata(archive).unwrap().len() < MAX_BYTES);
}

#[test]
fn podman_loads_and_runs_it_and_nothing_is_in_it_that_is_not_needed() {
    let Some(archive) = archive() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let podman = || podman(folder.path());
    let loaded = said(podman().args(["load", "--quiet", "-i"]).arg(archive));
    assert_eq!(loaded.trim(), format!("Loaded image: {PYAGENT_IMAGE}"));

    let run = ["run", "--rm", "--read-only"];
    let mut version = podman();
    version.args(run).args(RUN_OPTIONS);
    let version = said(version.args([PYAGENT_IMAGE, "--version"]));
    let expected = format!("pyagent {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(version.lines().next(), Some(&*expected));

    // Without any right it says which ones it needs.
    let mut denied = podman();
    denied.args(run).args(RUN_OPTIONS).arg("--cap-drop=all");
    let denied = denied.arg(PYAGENT_IMAGE).output().unwrap();
    let message = String::from_utf8_lossy(&denied.stderr);
    assert!(message.contains("CAP_BPF missing"), "{denied:?}");

    let mut create = podman();
    create.args(["create", "--network", "none"]);
    let container = said(create.arg(PYAGENT_IMAGE));
    let mut export = podman();
    let mut export = export
        .args(["export", container.trim()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut list = Command::new("tar");
    let listed = said(list.arg("-t").stdin(export.stdout.take().unwrap()));
    assert!(export.wait().unwrap().success());
    let files: BTreeSet<&str> = listed.lines().filter(|it| !it.ends_with('/')).collect();
    assert_eq!(files, BTreeSet::from(FILES));
    said(podman().args(["rm", container.trim()]));
    // An overlay may be mounted there still.
    let storage = folder.path().join("root/overlay");
    let _ = Command::new("umount")
        .arg("--recursive")
        .arg(storage)
        .stderr(Stdio::null())
        .status();
}
