//! Programs that only some tests need: installed from Debian's packages when they are missing, once.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};

use crate::{command, timing, toolchain};

/// Debian's packages are installed by one at a time.
static INSTALLING: Mutex<()> = Mutex::new(());

/// Makes sure that all of `programs` are on the PATH; `packages` bring them.
pub(crate) fn install(programs: &[&str], packages: &[&str]) -> Result<()> {
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(missing) = programs.iter().find(|program| !command::exists(program)) else {
        return Ok(());
    };
    let packages_text = packages.join(" ");
    let how = || format!("run as root: apt-get install --no-install-recommends {packages_text}");
    ensure!(
        command::exists("apt-get"),
        "{missing} is not on the PATH, and there is no apt-get to install it"
    );
    let mut install = toolchain::as_root("apt-get").with_context(how)?;
    install
        .args(["-q", "install", "-y", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    timing::timed(&format!("apt-get install {packages_text}"), || {
        command::run(toolchain::as_root("apt-get")?.args(["-q", "update"])).with_context(how)?;
        command::run(&mut install).with_context(how)
    })
}
