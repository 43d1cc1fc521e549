//! CPython versions of other releases of Debian, from its packages.
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
const RECIPE: &str = "2";

/// A release of Debian.
struct Suite {
    name: &'static str,
    interpreters: &'static [&'static str],
    packages: &'static [&'static str],
    /// What the interpreters are linked against, and what modules of the standard library that the tests use need.
    libraries: &'static [&'static str],
}

const SUITES: [Suite; 3] = [
    Suite {
        name: "bullseye",
        interpreters: &["python3.9", "python3.9-dbg"],
        packages: &[
            "python3.9-minimal",
            "libpython3.9-minimal",
            "libpython3.9-stdlib",
            "python3.9-dbg",
            "libpython3.9-dbg",
        ],
        libraries: &[
            "libbz2-1.0",
            "libc6",
            "libcrypt1",
            "libexpat1",
            "libffi7",
            "libgcc-s1",
            "liblzma5",
            "libssl1.1",
            "libuuid1",
            "zlib1g",
        ],
    },
    Suite {
        name: "bookworm",
        interpreters: &["python3.11-dbg"],
        packages: &[
            "libpython3.11-minimal",
            "libpython3.11-stdlib",
            "python3.11-dbg",
            "libpython3.11-dbg",
        ],
        libraries: &[
            "libbz2-1.0",
            "libc6",
            "libcrypt1",
            "libexpat1",
            "libffi8",
            "libgcc-s1",
            "liblzma5",
            "libssl3",
            "libuuid1",
            "zlib1g",
        ],
    },
    Suite {
        name: "sid",
        interpreters: &["python3.13", "python3.14", "python3.15"],
        packages: &[
            "python3.13-minimal",
            "libpython3.13-minimal",
            "libpython3.13-stdlib",
            "python3.14-minimal",
            "libpython3.14-minimal",
            "libpython3.14-stdlib",
            "python3.15-minimal",
            "libpython3.15-minimal",
            "libpython3.15-stdlib",
        ],
        libraries: &[
            "libbz2-1.0",
            "libc6",
            "libexpat1",
            "libffi8",
            "libgcc-s1",
            "liblzma5",
            "libssl3t64",
            "libstdc++6",
            "libzstd1",
            "zlib1g",
        ],
    },
];

/// Folders at the top that Debian keeps in `usr`.
const IN_USR: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Folders of launchers, called as their interpreters; makes what is missing (some 10 s a release). Root's rights are
/// needed to use them.
pub(super) fn get() -> Result<Vec<PathBuf>> {
    SUITES.iter().map(get_one).collect()
}

fn get_one(suite: &Suite) -> Result<PathBuf> {
    let Suite {
        name,
        interpreters,
        packages,
        libraries,
    } = suite;
    let folder = cache::get(&cache::Entry {
        name: &format!("interpreters-{name}"),
        recipe: &format!("{RECIPE}\n{interpreters:?}\n{packages:?}\n{libraries:?}\n{LAUNCHER}"),
        check: &|folder| works(suite, folder),
        make: &|folder| make(suite, folder),
    })?;
    Ok(folder.join("bin"))
}

/// Whether each starts; without root's rights, whether it is there.
fn works(suite: &Suite, folder: &Path) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    suite.interpreters.iter().all(|name| {
        let launcher = folder.join("bin").join(name);
        let mut start = command::program(&launcher);
        start.args(["-I", "-S", "-c", "import zlib, hashlib, ctypes"]);
        launcher.exists() && (!is_root || command::succeeds(&mut start))
    })
}

fn make(suite: &Suite, folder: &Path) -> Result<()> {
    let packages = [suite.packages, suite.libraries].concat();
    let scratch = tempfile::tempdir()?;
    let root = folder.join("root");
    Apt::new(scratch.path(), suite.name)?.unpack(&packages, &root)?;
    for name in IN_USR {
        merge_into_usr(&root, name)?;
    }
    let bin = folder.join("bin");
    fs::create_dir(&bin)?;
    for name in suite.interpreters {
        let path = bin.join(name);
        fs::write(&path, LAUNCHER).with_context(|| format!("{}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Makes `/name` a link to `/usr/name`, as in an installed Debian; older packages have files in both.
fn merge_into_usr(root: &Path, name: &str) -> Result<()> {
    let (link, in_usr) = (root.join(name), root.join("usr").join(name));
    match fs::symlink_metadata(&link) {
        Ok(metadata) if metadata.is_symlink() => return Ok(()),
        Ok(metadata) if metadata.is_dir() => {
            fs::create_dir_all(&in_usr)?;
            let mut copy = command::program("cp");
            copy.arg("--archive").arg(link.join(".")).arg(&in_usr);
            command::output(&mut copy)?;
            fs::remove_dir_all(&link)?;
        }
        Ok(_) => bail!("a package has a file /{name}"),
        Err(_) => {}
    }
    symlink(format!("usr/{name}"), &link).with_context(|| format!("{}", link.display()))
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
