//! Other people's viewers of profiles, that the tests open files with: speedscope's importer, SnakeViz, gprof2dot,
//! pyprof2calltree; callgrind_annotate and Graphviz from Debian's packages. Got once, kept in the cache.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{cache, collector, command, package};

/// Raise it when the way they are got changes.
const RECIPE: &str = "1";

/// For the machine's `python3`.
const PACKAGES: [&str; 3] = [
    "snakeviz==2.2.2",
    "gprof2dot==2025.4.14",
    "pyprof2calltree==1.4.5",
];

/// The last release whose importer is a file of its own: those after it have one file for all of the page.
const SPEEDSCOPE: &str = "speedscope@1.20.0";

/// Programs, and the packages that bring them.
const PROGRAMS: [&str; 3] = ["callgrind_annotate", "dot", "npm"];
const DEBIAN_PACKAGES: [&str; 3] = ["valgrind", "graphviz", "npm"];

/// Folder with `python` and `speedscope`. `None`, said on standard output, where they cannot be had; in CI that is an error.
pub(crate) fn get() -> Result<Option<PathBuf>> {
    collector::unless_in_ci("other people's viewers", viewers())
}

fn viewers() -> Result<PathBuf> {
    for (program, debian_package) in PROGRAMS.iter().zip(DEBIAN_PACKAGES) {
        package::install(&[program], &[debian_package])?;
    }
    package::install(&["python3"], &["python3"])?;
    let question = "import sys; print(sys.executable, sys.version)";
    let python = command::output(command::program("python3").args(["-I", "-c", question]))?;
    cache::get(&cache::Entry {
        name: "viewers",
        recipe: &format!("{RECIPE}\n{python}\n{PACKAGES:?}\n{SPEEDSCOPE}"),
        check: &|folder| {
            let mut python = command::program("python3");
            python
                .args(["-c", "import snakeviz.stats, gprof2dot, pyprof2calltree"])
                .env("PYTHONPATH", folder.join("python"));
            command::succeeds(&mut python) && importer(folder).is_dir()
        },
        make: &make,
    })
}

/// Where npm puts speedscope's files.
fn importer(folder: &Path) -> PathBuf {
    folder.join("speedscope/node_modules/speedscope/dist/release")
}

fn make(folder: &Path) -> Result<()> {
    let mut python = command::program("python3");
    python
        .args(["-m", "pip", "install", "--quiet", "--no-compile"])
        .args(["--disable-pip-version-check", "--root-user-action=ignore"])
        .arg("--target")
        .arg(folder.join("python"))
        .args(PACKAGES);
    command::output(&mut python).context("pip cannot get the viewers")?;
    let mut npm = command::program("npm");
    npm.args([
        "install",
        "--silent",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--omit=dev",
    ])
    .arg("--prefix")
    .arg(folder.join("speedscope"))
    .arg(SPEEDSCOPE);
    command::output(&mut npm).context("npm cannot get speedscope")?;
    Ok(())
}
