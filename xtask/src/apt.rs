//! Debian packages of any suite, fetched and unpacked without touching the machine's own apt.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::command;

/// Overrides the mirror that the machine's own apt uses.
const MIRROR_VARIABLE: &str = "PYAGENT_DEBIAN_MIRROR";

/// Signs the package lists of every suite.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt of one suite, with state of its own.
pub(crate) struct Apt {
    options: Vec<String>,
    packages: PathBuf,
}

impl Apt {
    /// Sets it up in `dir`, which must exist, and gets the lists of the suite's packages.
    pub(crate) fn new(dir: &Path, suite: &str) -> Result<Self> {
        Self::of_kind("deb", dir, suite)
    }

    /// The same for the packages' sources.
    pub(crate) fn sources(dir: &Path, suite: &str) -> Result<Self> {
        Self::of_kind("deb-src", dir, suite)
    }

    /// The same for the packages of another architecture, as Debian calls it.
    pub(crate) fn of_architecture(dir: &Path, suite: &str, architecture: &str) -> Result<Self> {
        Self::with_sources("deb", dir, Some(suite), Some(architecture))
    }

    /// Packages of another architecture, out of what this machine's own apt reads: its release, with the updates.
    pub(crate) fn of_this_machine(dir: &Path, architecture: &str) -> Result<Self> {
        ensure!(
            command::exists("apt-get"),
            "it is in Debian's packages: that needs apt-get and dpkg"
        );
        Self::with_sources("deb", dir, None, Some(architecture))
    }

    fn of_kind(kind: &str, dir: &Path, suite: &str) -> Result<Self> {
        Self::with_sources(kind, dir, Some(suite), None)
    }

    fn with_sources(
        kind: &str,
        dir: &Path,
        suite: Option<&str>,
        architecture: Option<&str>,
    ) -> Result<Self> {
        for name in ["lists/partial", "cache/archives/partial", "packages"] {
            fs::create_dir_all(dir.join(name))?;
        }
        // What is installed on this machine is of no interest.
        fs::write(dir.join("status"), "")?;
        let at = |key: &str, name: &str| format!("{key}={}", dir.join(name).display());
        let mut options = vec![
            at("Dir::State::lists", "lists"),
            at("Dir::State::status", "status"),
            at("Dir::Cache", "cache"),
            // The sandbox's user may not write below a private folder.
            "APT::Sandbox::User=root".into(),
        ];
        if let Some(suite) = suite {
            let source = format!("{kind} [signed-by={KEYRING}] {} {suite} main\n", mirror()?);
            fs::write(dir.join("sources.list"), source)?;
            options.push(at("Dir::Etc::sourcelist", "sources.list"));
            options.push("Dir::Etc::sourceparts=-".into());
        }
        if let Some(architecture) = architecture {
            options.push(format!("APT::Architecture={architecture}"));
            options.push(format!("APT::Architectures={architecture}"));
        }
        let apt = Self {
            options,
            packages: dir.join("packages"),
        };
        command::output(apt.command("apt-get").args(["-q", "update"]))?;
        Ok(apt)
    }

    /// Names of the packages that `package` depends on.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = command::output(self.command("apt-cache").args(["depends", package]))?;
        Ok(depends_lines(&text).map(str::to_owned).collect())
    }

    /// Names of all packages that a machine without any needs for `package`, and its own.
    pub(crate) fn with_dependencies(&self, package: &str) -> Result<Vec<String>> {
        let mut install = self.command("apt-get");
        install.args(["-q", "--simulate", "--no-install-recommends", "install"]);
        let text = command::output(install.arg(package))?;
        Ok(installed_names(&text).map(str::to_owned).collect())
    }

    /// Fetches `packages` and unpacks them into `into`.
    pub(crate) fn unpack(&self, packages: &[&str], into: &Path) -> Result<()> {
        let mut download = self.command("apt-get");
        command::output(
            download
                .args(["-q", "download"])
                .args(packages)
                .current_dir(&self.packages),
        )?;
        for entry in fs::read_dir(&self.packages)? {
            let path = entry?.path();
            command::output(command::program("dpkg").arg("-x").arg(&path).arg(into))?;
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// Fetches the source of a package, as its archives are, into `into`.
    pub(crate) fn fetch_source(&self, package: &str, into: &Path) -> Result<()> {
        let mut fetch = self.command("apt-get");
        fetch.args(["-q", "source", "--download-only", package]);
        command::output(fetch.current_dir(into)).map(|_| ())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = command::program(program);
        command.args(self.options.iter().flat_map(|option| ["-o", option]));
        command
    }
}

fn depends_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
}

/// Reads `Inst libc6 (2.36-9 Debian:12/stable [amd64])`.
fn installed_names(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
}

/// The Debian mirror that this machine uses.
fn mirror() -> Result<String> {
    if let Ok(mirror) = env::var(MIRROR_VARIABLE) {
        return Ok(mirror);
    }
    ensure!(
        command::exists("apt-get"),
        "this is made of Debian packages: it needs apt-get and dpkg"
    );
    let mut targets = command::program("apt-get");
    targets.args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]);
    let text = command::output(&mut targets)?;
    text.lines()
        .find_map(|line| line.strip_prefix("Debian Debian "))
        .map(str::to_owned)
        .with_context(|| format!("apt knows no Debian mirror: name one in {MIRROR_VARIABLE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_installed_is_read() {
        let text = "Building dependency tree...\nInst a-1 (2:3-4 Debian:12/stable [amd64])\nConf a-1 (2:3-4)\nInst b (1)\n";
        assert_eq!(installed_names(text).collect::<Vec<_>>(), ["a-1", "b"]);
    }

    #[test]
    fn depends_are_read_and_the_package_itself_is_not() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-base\n  Suggests: x\n  Depends: linux-image-1\n";
        assert_eq!(
            depends_lines(text).collect::<Vec<_>>(),
            ["linux-base", "linux-image-1"]
        );
    }
}
