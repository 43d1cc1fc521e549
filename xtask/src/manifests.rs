//! `cargo xtask manifests`: deploy/kubernetes/pyagent.yaml, for who has no Helm, out of the chart.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{command, kubernetes, workspace};

/// Name and namespace of the release that it would be.
const RELEASE: &str = "pyagent";

/// What stands above.
const HEAD: &str = "\
# pyagent on every node: kubectl apply -f deploy/kubernetes/pyagent.yaml
# Made of deploy/helm/pyagent by `cargo xtask manifests`: change it there.
";

/// Labels that say that Helm manages an object, which is not so here.
const LABELS_OF_HELM: [&str; 2] = ["helm.sh/chart:", "app.kubernetes.io/managed-by:"];

/// Writes it.
pub(crate) fn write() -> Result<()> {
    let path = path();
    let folder = path.parent().context("it is in the checkout")?;
    fs::create_dir_all(folder)?;
    fs::write(&path, rendered()?).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// Whether what is committed is what the chart makes now.
pub(crate) fn is_current() -> Result<bool> {
    let made = rendered()?;
    Ok(fs::read_to_string(path()).is_ok_and(|written| written == made))
}

fn path() -> PathBuf {
    workspace::root().join("deploy/kubernetes/pyagent.yaml")
}

fn rendered() -> Result<String> {
    let mut helm = command::program(kubernetes::tools()?.join("helm"));
    helm.args(["template", RELEASE, "deploy/helm/pyagent"])
        .args(["--namespace", RELEASE])
        .args(["--values", "deploy/kubernetes/values.yaml"])
        // Without a cluster to ask.
        .args(["--kube-version", kubernetes::VERSION])
        .args(["--skip-tests"]);
    Ok(format!("{HEAD}{}", plain(&command::output(&mut helm)?)))
}

/// Without what only Helm's own have.
fn plain(rendered: &str) -> String {
    let is_helms = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("# Source: ") || LABELS_OF_HELM.iter().any(|label| line.starts_with(label))
    };
    let lines = rendered.lines().filter(|line| !is_helms(line));
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_helm_manages_is_not_said() {
        let rendered = "---\n# Source: pyagent/templates/x.yaml\nmetadata:\n  labels:\n    helm.sh/chart: a-1\n    \
                        app.kubernetes.io/name: a\n    app.kubernetes.io/managed-by: Helm\n";
        assert_eq!(
            plain(rendered),
            "---\nmetadata:\n  labels:\n    app.kubernetes.io/name: a\n"
        );
    }
}
