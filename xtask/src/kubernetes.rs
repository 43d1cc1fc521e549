//! A Kubernetes of one node for the tests, without a registry: its own programs, built in one out of Go modules; what runs the
//! containers, out of Debian's packages; Helm, and a check of manifests. Made once, kept in the cache.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    apt::Apt,
    cache, collector, command,
    go::{go, install},
    workspace,
};

/// Raise it when the way they are made changes.
const RECIPE: &str = "1";

/// Version of Kubernetes: that of tests/peers/kubernetes/go.mod.
pub(crate) const VERSION: &str = "v1.34.4";

/// The program that has all of Kubernetes' in it, and the names that it is called by.
const PROGRAM: &str = "kubernetes";
const NAMES: [&str; 5] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kubectl",
];

/// What holds a pod's namespaces.
const PAUSE: &str = "pause";

/// What they are made of, in tests/peers/kubernetes.
const SOURCES: [&str; 4] = ["main.go", "pause/main.go", "go.mod", "go.sum"];

/// Where Go's linker writes the version.
const VERSION_PACKAGE: &str = "k8s.io/component-base/version";

/// Debian's packages: their programs, below `usr/bin`, and a file of what has none there.
const PACKAGES: [&str; 3] = ["containerd", "etcd-server", "containernetworking-plugins"];
const PACKAGED_PROGRAMS: [&str; 3] = ["containerd", "ctr", "etcd"];
const NETWORK_PLUGINS: &str = "usr/lib/cni";

/// Other programs of Go's: name, and the package at its version.
const TOOLS: [(&str, &str); 2] = [
    ("helm", "helm.sh/helm/v3/cmd/helm@v3.22.0"),
    (
        "kubeconform",
        "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0",
    ),
];

/// The folders that the programs and the network's plug-ins are in, joined as in a search path. `None`, said on standard
/// output, where they cannot be made; in CI that is an error.
pub(crate) fn get() -> Result<Option<OsString>> {
    collector::unless_in_ci("Kubernetes", folders())
}

fn folders() -> Result<OsString> {
    let (programs, packaged, tools) = (programs()?, packaged()?, tools()?);
    let folders = [
        programs,
        packaged.join("usr/bin"),
        packaged.join(NETWORK_PLUGINS),
        tools,
    ];
    Ok(env::join_paths(folders)?)
}

/// Kubernetes' own.
fn programs() -> Result<PathBuf> {
    let source = workspace::root().join("tests/peers/kubernetes");
    let sources = SOURCES.map(|name| fs::read_to_string(source.join(name)));
    let sources: Vec<String> = sources.into_iter().collect::<Result<_, _>>()?;
    cache::get(&cache::Entry {
        name: "kubernetes",
        recipe: &format!("{RECIPE}\n{VERSION}\n{sources:?}"),
        check: &|folder| {
            let version =
                command::output(command::program(folder.join("kubelet")).arg("--version"));
            version.is_ok_and(|text| text.trim() == format!("Kubernetes {VERSION}"))
                && NAMES.iter().all(|name| folder.join(name).exists())
                && folder.join(PAUSE).exists()
        },
        make: &|folder| make(&source, folder),
    })
}

fn make(source: &Path, folder: &Path) -> Result<()> {
    let build = |package: &str, name: &str| -> Result<Command> {
        let mut build = go(source)?;
        build
            .args(["build", "-trimpath", "-o"])
            .arg(folder.join(name))
            .arg(format!("-ldflags={}", linker_flags()))
            .arg(package)
            // What is written down is what is built.
            .env("GOFLAGS", "-mod=readonly -buildvcs=false")
            .env("CGO_ENABLED", "0");
        Ok(build)
    };
    command::output(&mut build(".", PROGRAM)?).context("Go cannot build Kubernetes")?;
    command::output(&mut build("./pause", PAUSE)?)?;
    for name in NAMES {
        symlink(PROGRAM, folder.join(name))?;
    }
    Ok(())
}

/// The programs take features from their version.
fn linker_flags() -> String {
    let mut numbers = VERSION.trim_start_matches('v').split('.');
    let (major, minor) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    let set = [
        ("gitVersion", VERSION),
        ("gitMajor", major),
        ("gitMinor", minor),
    ];
    let set = set.map(|(name, value)| format!(" -X {VERSION_PACKAGE}.{name}={value}"));
    format!("-s -w{}", set.concat())
}

/// Of Debian's packages, unpacked and not installed: installed they would start services.
fn packaged() -> Result<PathBuf> {
    cache::get(&cache::Entry {
        name: "kubernetes-packages",
        recipe: &format!("{RECIPE}\n{PACKAGES:?}"),
        check: &|folder| {
            let works = |name| {
                let mut version = command::program(folder.join("usr/bin").join(name));
                command::succeeds(version.arg("--version"))
            };
            PACKAGED_PROGRAMS.into_iter().all(works)
                && folder.join(NETWORK_PLUGINS).join("ptp").exists()
        },
        make: &|folder| {
            let scratch = tempfile::tempdir()?;
            let mut architecture = command::program("dpkg");
            let architecture = command::output(architecture.arg("--print-architecture"))
                .context("it is in Debian's packages: that needs dpkg and apt-get")?;
            let apt = Apt::of_this_machine(scratch.path(), architecture.trim())?;
            apt.unpack(&PACKAGES, folder)
        },
    })
}

/// Folder of what installs and checks manifests: `helm` and `kubeconform`.
pub(crate) fn tools() -> Result<PathBuf> {
    cache::get(&cache::Entry {
        name: "kubernetes-tools",
        recipe: &format!("{RECIPE}\n{TOOLS:?}"),
        check: &|folder| {
            let works = |name: &str, question| {
                command::succeeds(command::program(folder.join(name)).arg(question))
            };
            works("helm", "version") && works("kubeconform", "-v")
        },
        make: &|folder| {
            let scratch = tempfile::tempdir()?;
            for (name, package) in TOOLS {
                install(package, scratch.path(), folder)
                    .with_context(|| format!("Go cannot build {name}"))?;
            }
            Ok(())
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_modules() {
        let modules = workspace::root().join("tests/peers/kubernetes/go.mod");
        let modules = fs::read_to_string(modules).unwrap();
        assert!(modules.contains(&format!("\tk8s.io/kubernetes {VERSION}\n")));
    }
}
