//! `cargo xtask run -- ARGS`: builds and becomes `pyagent ARGS`.

use std::{env, ffi::OsString, os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{build, command, workspace};

/// Builds, then replaces this process: signals, terminal and exit code are pyagent's own.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode> {
    build::build()?;
    let binary = workspace::release_binary();
    let mut pyagent = if rustix::process::geteuid().is_root() {
        command::program(&binary)
    } else {
        let mut sudo = command::program("sudo");
        sudo.arg(&binary);
        sudo
    };
    // File names among the arguments are relative to where the user is.
    pyagent.args(args).current_dir(env::current_dir()?);
    let error = pyagent.exec();
    Err(error).with_context(|| format!("cannot start `{}`", command::line(&pyagent)))
}
