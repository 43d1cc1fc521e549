//! `cargo xtask interpreters`: CPython versions that few machines have, for the tests, from Debian's packages.
//!
//! They are linked against their own release's libc, so each is started by a launcher that first makes that
//! release's folders its root, in a mount namespace of its own. The launcher becomes the interpreter: its
//! process id is that of the Python process.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{apt::Apt, cache, command};

/// Raise it when the way the entry is made changes.
const RECIPE: &str = "1";

const SUITE: &str = "sid";

/// Minor versions of CPython in [`SUITE`].
const MINORS: [&str; 3] = ["3.13", "3.14", "3.15"];

/// Packages of each version, by prefix and suffix.
const PACKAGES: [(&str, &str); 3] = [
    ("python", "-minimal"),
    ("libpython", "-minimal"),
    ("libpython", "-stdlib"),
];

/// What they are linked against, and what modules of the standard library that the tests use need.
const LIBRARIES: [&str; 9] = [
    "libbz2-1.0",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libssl3t64",
    "libzstd1",
    "zlib1g",
];

/// Folders at the top that Debian keeps in `usr`.
const IN_USR: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Folder of the launchers, `python3.N`; makes what is missing (some 10 s). Needs root's rights to be used.
pub(crate) fn get() -> Result<PathBuf> {
    let folder = cache::get(&cache::Entry {
        name: &format!("interpreters-{SUITE}"),
        recipe: &format!("{RECIPE}\n{MINORS:?}\n{PACKAGES:?}\n{LIBRARIES:?}\n{LAUNCHER}"),
        check: &works,
        make: &make,
    })?;
    Ok(folder.join("bin"))
}

/// Lists what was found.
pub(crate) fn list() -> Result<()> {
    let bin = get()?;
    for minor in MINORS {
        let path = bin.join(format!("python{minor}"));
        let question = "import sys; print(sys.version)";
        let mut ask = command::program(&path);
        let version = command::output(ask.args(["-I", "-S", "-c", question]))
            .unwrap_or_else(|error| format!("does not start: {error:#}"));
        println!("{}: {}", path.display(), version.trim());
    }
    Ok(())
}

/// Whether each starts; without root's rights, whether it is there.
fn works(folder: &Path) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    MINORS.iter().all(|minor| {
        let launcher = folder.join(format!("bin/python{minor}"));
        let mut start = command::program(&launcher);
        start.args(["-I", "-S", "-c", "import zlib, hashlib, ctypes"]);
        launcher.exists() && (!is_root || command::succeeds(&mut start))
    })
}

fn make(folder: &Path) -> Result<()> {
    let names = MINORS
        .iter()
        .flat_map(|minor| PACKAGES.map(|(before, after)| format!("{before}{minor}{after}")));
    let names: Vec<String> = names.collect();
    let packages: Vec<&str> = names.iter().map(String::as_str).chain(LIBRARIES).collect();
    let scratch = tempfile::tempdir()?;
    let root = folder.join("root");
    Apt::new(scratch.path(), SUITE)?.unpack(&packages, &root)?;
    for name in IN_USR {
        let link = root.join(name);
        match fs::symlink_metadata(&link) {
            Ok(metadata) if metadata.is_symlink() => {}
            Ok(_) => bail!("a package has files in /{name}, not in /usr/{name}"),
            Err(_) => symlink(format!("usr/{name}"), link)?,
        }
    }
    let bin = folder.join("bin");
    fs::create_dir(&bin)?;
    for minor in MINORS {
        let path = bin.join(format!("python{minor}"));
        fs::write(&path, LAUNCHER).with_context(|| format!("{}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Becomes the interpreter of its own name in `../root`, where every folder of the machine that the release does
/// not bring is seen too.
const LAUNCHER: &str = r#"#!/bin/sh
set -eu
self=$(readlink -f "$0")
exec unshare --mount --propagation private /bin/sh -c '
    set -eu
    root=$1 name=$2
    shift 2
    for dir in /*; do
        case $dir in /bin|/etc|/lib|/lib32|/lib64|/libx32|/sbin|/usr) continue ;; esac
        if [ -d "$dir" ] && [ ! -L "$dir" ]; then
            mkdir -p "$root$dir"
            mount --bind "$dir" "$root$dir"
        fi
    done
    exec chroot "$root" "/usr/bin/$name" "$@"
' sh "${self%/bin/*}/root" "${self##*/}" "$@"
"#;
