//! The Go toolchain, as far as programs for the tests are built with it.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::command;

/// Go, in a folder of modules of its own. An error where there is none.
pub(crate) fn go(folder: &Path) -> Result<Command> {
    ensure!(
        command::exists("go"),
        "it is built by Go 1.26 or newer, which is not on the PATH"
    );
    let mut go = command::program("go");
    go.current_dir(folder)
        .env("GOFLAGS", "-mod=mod -buildvcs=false");
    Ok(go)
}

/// `go install`: builds a program of a module at a version, and puts it into `folder`. `scratch` is an empty folder.
pub(crate) fn install(package: &str, scratch: &Path, folder: &Path) -> Result<()> {
    let mut install = go(scratch)?;
    install
        .args(["install", "-trimpath", "-ldflags=-s -w", package])
        .env("GOBIN", folder);
    command::output(&mut install)?;
    Ok(())
}
