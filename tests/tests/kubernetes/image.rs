//! The image, as other people's tools take it.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
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

/// Podman with a storage of its own, gone with it.
struct Storage(tempfile::TempDir);

impl Storage {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn podman(&self) -> Command {
        podman(self.0.path())
    }

    /// A container that is only told what to do.
    fn run(&self, options: &[&str]) -> Command {
        let mut run = self.podman();
        run.args(["run", "--rm", "--read-only"]).args(RUN_OPTIONS);
        run.args(options);
        run
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // An overlay may be mounted there still.
        let mut umount = Command::new("umount");
        umount
            .arg("--recursive")
            .arg(self.0.path().join("root/overlay"));
        let _ = umount.stderr(Stdio::null()).status();
    }
}

fn check_version(said: &str) {
    let expected = format!("pyagent {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(said.lines().next(), Some(&*expected));
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
    let storage = Storage::new();
    let mut load = storage.podman();
    let loaded = said(load.args(["load", "--quiet", "-i"]).arg(archive));
    assert_eq!(loaded.trim(), format!("Loaded image: {PYAGENT_IMAGE}"));
    check_version(&said(&mut storage.run(&[PYAGENT_IMAGE, "--version"])));

    // Without any right it says which ones it needs.
    let denied = storage.run(&["--cap-drop=all", PYAGENT_IMAGE]).output();
    let denied = denied.unwrap();
    let message = String::from_utf8_lossy(&denied.stderr);
    assert!(message.contains("--cap-add BPF"), "{denied:?}");

    let mut create = storage.podman();
    create.args(["create", "--network", "none", PYAGENT_IMAGE]);
    let container = said(&mut create);
    let mut export = storage.podman();
    export.args(["export", container.trim()]);
    let mut export = export.stdout(Stdio::piped()).spawn().unwrap();
    let mut list = Command::new("tar");
    let listed = said(list.arg("-t").stdin(export.stdout.take().unwrap()));
    assert!(export.wait().unwrap().success());
    let files: BTreeSet<&str> = listed.lines().filter(|it| !it.ends_with('/')).collect();
    assert_eq!(files, BTreeSet::from(FILES));
    said(storage.podman().args(["rm", container.trim()]));
}

#[test]
fn the_dockerfile_makes_one_too() {
    let Some(archive) = archive() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let binary = archive.with_file_name("pyagent");
    fs::copy(binary, folder.path().join("pyagent")).unwrap();
    fs::write(folder.path().join("ca-certificates.crt"), "").unwrap();
    let storage = Storage::new();
    let mut build = storage.podman();
    build
        .args(["build", "--quiet", "--tag", "made", "--file"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/Dockerfile"));
    said(build.arg(folder.path()));
    check_version(&said(&mut storage.run(&["made", "--version"])));
}
