//! Each Rust file says first what it is responsible for; each package has the workspace's licence.

use std::fs;

use anyhow::{Result, bail};
use serde::Deserialize;
use walkdir::WalkDir;

use crate::{command, workspace};

/// The licence of every package, and what the licence files beside README.md say.
const LICENCE: &str = "Apache-2.0 OR MIT";

/// Checks the workspace.
pub(super) fn check() -> Result<()> {
    let mut violations = Vec::new();
    for path in rust_files()? {
        let text = fs::read_to_string(workspace::root().join(&path))?;
        if !is_generated(&path) && !has_module_docs(&text) {
            violations.push(format!(
                "{path}:1: begins without `//!`: say what it is responsible for"
            ));
        }
    }
    let metadata =
        command::output(command::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    violations.extend(licence_violations(&metadata)?);
    if !violations.is_empty() {
        bail!(
            "{} violations:\n{}",
            violations.len(),
            violations.join("\n")
        );
    }
    Ok(())
}

/// The Rust files of the workspace, below its root, with slashes.
pub(super) fn rust_files() -> Result<Vec<String>> {
    let is_seen = |entry: &walkdir::DirEntry| {
        let name = entry.file_name().to_string_lossy();
        !(entry.file_type().is_dir()
            && (name == "target" || (name.starts_with('.') && entry.depth() > 0)))
    };
    let mut paths = Vec::new();
    for entry in WalkDir::new(workspace::root())
        .sort_by_file_name()
        .into_iter()
        .filter_entry(is_seen)
    {
        let entry = entry?;
        if entry.file_type().is_file()
            && entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "rs")
        {
            paths.push(
                entry
                    .path()
                    .strip_prefix(workspace::root())?
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }
    Ok(paths)
}

fn is_generated(path: &str) -> bool {
    path.starts_with("profiler-agent/src/generated/")
}

fn has_module_docs(text: &str) -> bool {
    text.lines().next().is_some_and(|line| {
        line.strip_prefix("//!")
            .is_some_and(|docs| !docs.trim().is_empty())
    })
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    license: Option<String>,
}

/// `metadata` is what `cargo metadata` prints.
fn licence_violations(metadata: &str) -> Result<Vec<String>> {
    let metadata: Metadata = serde_json::from_str(metadata)?;
    let is_wrong = |package: &Package| package.license.as_deref() != Some(LICENCE);
    let violation = |package: Package| {
        let licence = package.license.unwrap_or_else(|| "none".into());
        format!(
            "{}: Cargo.toml's licence is {licence}, not {LICENCE}",
            package.name
        )
    };
    Ok(metadata
        .packages
        .into_iter()
        .filter(is_wrong)
        .map(violation)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_begins_with_what_it_is_responsible_for() {
        assert!(has_module_docs("//! Reads maps.\n"));
        assert!(!has_module_docs("//!\n//! Reads maps.\n"));
        assert!(!has_module_docs("// Reads maps.\n"));
        assert!(!has_module_docs("use std::fs;\n//! Reads maps.\n"));
        assert!(!has_module_docs(""));
    }

    #[test]
    fn a_package_without_the_licence_is_named() {
        let metadata = r#"{"packages": [
            {"name": "good", "license": "Apache-2.0 OR MIT"},
            {"name": "bare", "license": null},
            {"name": "other", "license": "GPL-3.0"}]}"#;
        let found = licence_violations(metadata).unwrap();
        assert_eq!(found.len(), 2);
        assert!(
            found[0].starts_with("bare: ") && found[1].starts_with("other: "),
            "{found:?}"
        );
    }
}
