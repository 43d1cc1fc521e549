//! Images of folders, for a runtime that has no registry to ask: archives as `docker save` writes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

/// A folder that becomes a part of an image.
#[derive(Debug)]
pub struct Part<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// What of it: names in it.
    pub names: &'a [&'a str],
}

/// Writes an image of one layer, which runs a command when nothing else is said, into `scratch`, an empty folder, and returns
/// the archive's path.
///
/// # Panics
/// When `tar` fails.
pub(super) fn archive(name: &str, command: &[&str], parts: &[Part<'_>], scratch: &Path) -> PathBuf {
    let layer = scratch.join("layer.tar");
    let mut tar = Command::new("tar");
    tar.args(["--create", "--numeric-owner", "--one-file-system"])
        .args([
            "--exclude=./proc/*",
            "--exclude=./sys/*",
            "--exclude=./dev/*",
        ])
        .arg("--file")
        .arg(&layer);
    for part in parts {
        tar.arg("--directory").arg(part.folder).args(part.names);
    }
    succeeded(&mut tar);
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": command,
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    for (file, content) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(scratch.join(file), content.to_string()).expect("the folder is ours");
    }
    let archive = scratch.join("image.tar");
    let mut tar = Command::new("tar");
    tar.arg("--create")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(scratch)
        .args(["manifest.json", "config.json", "layer.tar"]);
    succeeded(&mut tar);
    archive
}

fn digest(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output();
    let text = String::from_utf8(output.expect("coreutils are there").stdout);
    let text = text.expect("digits");
    text.split(' ').next().expect("a digest").to_owned()
}

fn succeeded(command: &mut Command) {
    let output = command.output().expect("tar is there");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
}
