//! A browser without a window, for the tests of pages: Chromium from Debian's packages, with the libraries that it needs.
//! Unpacked into the cache, not installed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{apt::Apt, cache, command};

/// Raise it when the way it is got changes.
const RECIPE: &str = "1";

/// The release of Debian whose packages they are: they need no newer C library than that.
const SUITE: &str = "bookworm";

/// Chromium without what draws windows.
const PACKAGE: &str = "chromium-headless-shell";

/// Of what it depends on: the C library, which is the machine's, and what only drawing by a graphics card needs.
const LEFT_OUT: [&str; 6] = [
    "libc6",
    "libgl1-mesa-dri",
    "libicu72",
    "libllvm15",
    "libxml2",
    "libz3-4",
];

/// Starts it with its own libraries and one font. It is spoken to by its standard input and output: what DevTools takes
/// from file descriptor 3 and gives to 4.
const LAUNCHER: &str = r#"#!/bin/sh
set -eu
here=$(dirname "$(readlink -f "$0")")
for libraries in "$here"/root/usr/lib/*-linux-gnu; do break; done
export LD_LIBRARY_PATH="$libraries:$here/root/lib/${libraries##*/}:$libraries/pulseaudio"
export FONTCONFIG_FILE="$here/fonts.conf"
exec "$here/root/usr/lib/chromium/chromium-headless-shell" --remote-debugging-pipe "$@" 3<&0 4>&1 </dev/null >&2
"#;

/// The launcher; gets what is missing.
pub(crate) fn get() -> Result<PathBuf> {
    let folder = cache::get(&cache::Entry {
        name: "browser",
        recipe: &format!("{RECIPE}\n{SUITE} {PACKAGE} {LEFT_OUT:?}\n{LAUNCHER}"),
        check: &|folder| works(folder),
        make: &|folder| make(folder),
    })?;
    Ok(folder.join("browser"))
}

/// Whether it starts: without a command it ends with the input that it would come from.
fn works(folder: &Path) -> bool {
    let launcher = folder.join("browser");
    let mut version = command::program(&launcher);
    launcher.exists() && command::succeeds(version.arg("--version"))
}

fn make(folder: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let apt = Apt::new(scratch.path(), SUITE)?;
    let mut packages = apt.with_dependencies(PACKAGE)?;
    packages.retain(|package| !LEFT_OUT.contains(&package.as_str()));
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    apt.unpack(&packages, &folder.join("root"))?;
    let fonts = "<?xml version=\"1.0\"?>\n<!DOCTYPE fontconfig SYSTEM \"fonts.dtd\">\n\
        <fontconfig><dir prefix=\"relative\">root/usr/share/fonts/truetype</dir></fontconfig>\n";
    fs::write(folder.join("fonts.conf"), fonts)?;
    let launcher = folder.join("browser");
    fs::write(&launcher, LAUNCHER).with_context(|| format!("{}", launcher.display()))?;
    Ok(fs::set_permissions(
        &launcher,
        fs::Permissions::from_mode(0o755),
    )?)
}
