//! What `cargo xtask test` got for the tests from elsewhere: packages from PyPI, and allocators from Debian.
//!
//! A test that needs one cannot do without it: where it could not be got the test fails.

use std::env;
use std::path::PathBuf;

/// Folder to put on the path of an interpreter of this version, so that it can import the package; `None` where there is
/// no release for that version.
///
/// # Panics
/// When no packages were got.
#[must_use]
pub fn of_pypi(name: &str, (major, minor): (u8, u8)) -> Option<PathBuf> {
    let folders = env::var_os("PYAGENT_PACKAGES").filter(|folders| !folders.is_empty());
    let folders = folders
        .expect("PYAGENT_PACKAGES is not set: `cargo xtask test` sets it, or says why it cannot");
    env::split_paths(&folders)
        .map(|folder| folder.join(format!("{name}-{major}.{minor}")))
        .find(|folder| folder.is_dir())
}

/// The library of an allocator, to be preloaded into programs of this host: its name and path.
///
/// # Panics
/// When none were got.
#[must_use]
pub fn allocators() -> [(&'static str, PathBuf); 3] {
    let folder = env::var_os("PYAGENT_ALLOCATORS").filter(|folder| !folder.is_empty());
    let folder = PathBuf::from(folder.expect(
        "PYAGENT_ALLOCATORS is not set: `cargo xtask test` sets it, or says why it cannot",
    ));
    [
        ("jemalloc", "libjemalloc.so.2"),
        ("tcmalloc", "libtcmalloc_minimal.so.4"),
        ("mimalloc", "libmimalloc.so.2"),
    ]
    .map(|(name, file)| (name, folder.join(file)))
}

/// The folder of other people's viewers of profiles: `python`, `speedscope`.
///
/// # Panics
/// When they were not got.
#[must_use]
pub fn viewers() -> PathBuf {
    let folder = env::var_os("PYAGENT_VIEWERS").filter(|folder| !folder.is_empty());
    PathBuf::from(
        folder.expect(
            "PYAGENT_VIEWERS is not set: `cargo xtask test` sets it, or says why it cannot",
        ),
    )
}
