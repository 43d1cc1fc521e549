//! Allocators that programs are started with in place of the C library's, for the tests: jemalloc, tcmalloc and mimalloc,
//! from the packages of this machine's Debian. Unpacked into the cache, not installed.

use std::path::PathBuf;

use anyhow::Result;

use crate::{apt::Apt, cache};

/// Raise it when the way they are got changes.
const RECIPE: &str = "1";

/// The release of Debian whose packages they are: they need no newer C library than that.
const SUITE: &str = "bookworm";

/// Packages.
const PACKAGES: [&str; 3] = ["libjemalloc2", "libtcmalloc-minimal4", "libmimalloc2.0"];

/// A library of each, below `usr/lib` and the folder of the machine's architecture.
const LIBRARIES: [&str; 3] = [
    "libjemalloc.so.2",
    "libtcmalloc_minimal.so.4",
    "libmimalloc.so.2",
];

/// The folder that the libraries are in; gets them if they are missing. `libstdc++`, which two of them need, is that of
/// the machine: apt itself needs it.
pub(crate) fn get() -> Result<PathBuf> {
    let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let folder = cache::get(&cache::Entry {
        name: "allocators",
        recipe: &format!("{RECIPE}\n{SUITE} {PACKAGES:?}"),
        check: &|folder| {
            let folder = folder.join(&libraries);
            LIBRARIES.iter().all(|name| folder.join(name).exists())
        },
        make: &|folder| {
            let scratch = tempfile::tempdir()?;
            Apt::new(scratch.path(), SUITE)?.unpack(&PACKAGES, folder)
        },
    })?;
    Ok(folder.join(libraries))
}
