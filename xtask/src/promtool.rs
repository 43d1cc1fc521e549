//! Prometheus's own check of metrics, for the tests: out of Debian's package, which is not installed (it would start a
//! server). Fetched once, kept in the cache.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{apt::Apt, cache, command};

/// Raise it when the way it is made changes.
const RECIPE: &str = "1";

/// What is fetched.
const PACKAGE: &str = "prometheus";

/// Where it lies in the package.
const PROGRAM: &str = "usr/bin/promtool";

/// Path of the program. `None`, said on standard output, where it cannot be had; in CI that is an error.
pub(crate) fn get() -> Result<Option<PathBuf>> {
    match program() {
        Ok(program) => Ok(Some(program)),
        Err(error) if env::var("CI").is_ok_and(|ci| ci == "true") => Err(error),
        Err(error) => {
            println!("Prometheus's own check is left out: {error:#}");
            Ok(None)
        }
    }
}

fn program() -> Result<PathBuf> {
    let works = |folder: &Path| {
        let mut version = command::program(folder.join(PROGRAM));
        command::output(version.arg("--version")).is_ok()
    };
    let folder = cache::get(&cache::Entry {
        name: "promtool",
        recipe: RECIPE,
        check: &works,
        make: &make,
    })?;
    Ok(folder.join(PROGRAM))
}

fn make(folder: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let architecture = command::output(command::program("dpkg").arg("--print-architecture"))
        .context("it is in Debian's packages: that needs dpkg and apt-get")?;
    let apt = Apt::of_this_machine(scratch.path(), architecture.trim())?;
    apt.unpack(&[PACKAGE], folder)
}
