//! Where things lie in the checkout.

use std::path::{Path, PathBuf};

/// Root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
}

/// The target folder. Not `CARGO_TARGET_DIR`: profiler-agent's build script reads a file in this one.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The optimized binary that `cargo xtask build` leaves.
pub(crate) fn release_binary() -> PathBuf {
    target().join("release/pyagent")
}
