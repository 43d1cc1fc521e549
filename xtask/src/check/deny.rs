//! cargo-deny over the dependencies: licences, duplicates, sources; deny.toml has the rules. Not advisories:
//! they need a database that changes by itself.

use std::path::Path;

use anyhow::Result;

use crate::{cache, command};

const VERSION: &str = "0.20.2";

/// Runs cargo-deny, built into the cache (some minutes) where it is not there.
pub(crate) fn check() -> Result<()> {
    let folder = cache::get(&cache::Entry {
        name: &format!("cargo-deny-{VERSION}"),
        recipe: &format!("{VERSION}\nprofile dev"),
        check: &|folder| {
            command::succeeds(command::program(folder.join("bin/cargo-deny")).arg("--version"))
        },
        make: &install,
    })?;
    let mut deny = command::program(folder.join("bin/cargo-deny"));
    deny.args([
        "--log-level",
        "error",
        "check",
        "licenses",
        "bans",
        "sources",
    ]);
    command::run(&mut deny)
}

fn install(folder: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut install = command::cargo();
    // Unoptimized: it reads one lock file, and is built in half the time.
    install
        .args([
            "install",
            "cargo-deny",
            "--version",
            VERSION,
            "--locked",
            "--no-default-features",
        ])
        .args(["--profile", "dev", "--no-track", "--root"])
        .arg(folder)
        .env("CARGO_TARGET_DIR", scratch.path());
    command::run(&mut install)
}
