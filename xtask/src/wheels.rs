//! Packages from PyPI that the tests run in interpreters of many versions: guppy3 and numpy, as wheels. Got once with the
//! machine's `python3`, kept in the cache.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{cache, command, package};

/// Raise it when the way they are got changes.
const RECIPE: &str = "1";

/// A package: for a version of Python the newest release that has a wheel for it.
struct Package {
    name: &'static str,
    /// Versions of Python, and of the package.
    releases: &'static [(&'static str, &'static str)],
}

const PACKAGES: [Package; 2] = [
    Package {
        name: "guppy3",
        // None for 3.15.
        releases: &[
            ("3.8", "3.1.4.post1"),
            ("3.9", "3.1.5"),
            ("3.10", "3.1.7"),
            ("3.11", "3.1.7"),
            ("3.12", "3.1.7"),
            ("3.13", "3.1.7"),
            ("3.14", "3.1.7"),
        ],
    },
    Package {
        name: "numpy",
        // 60 MB each: the last one of each generation.
        releases: &[
            ("3.8", "1.24.4"),
            ("3.9", "2.0.2"),
            ("3.11", "2.4.6"),
            ("3.15", "2.5.5"),
        ],
    },
];

/// Folder with one folder for each package and version of Python, such as `guppy3-3.8`; gets what is missing.
///
/// The folders of several packages are joined as in a search path by the caller.
pub(crate) fn get() -> Result<Vec<PathBuf>> {
    PACKAGES.iter().map(get_one).collect()
}

fn get_one(package: &Package) -> Result<PathBuf> {
    let Package { name, releases } = package;
    cache::get(&cache::Entry {
        name: &format!("wheels-{name}"),
        recipe: &format!("{RECIPE}\n{releases:?}"),
        check: &|folder| {
            let mut folders = releases
                .iter()
                .map(|(python, _)| folder.join(format!("{name}-{python}")));
            folders.all(|folder| folder.is_dir())
        },
        make: &|folder| {
            releases
                .iter()
                .try_for_each(|release| install(name, *release, folder))
        },
    })
}

fn install(name: &str, (python, version): (&str, &str), folder: &Path) -> Result<()> {
    package::install(&["python3"], &["python3"])?;
    let target = folder.join(format!("{name}-{python}"));
    let mut install = command::program("python3");
    install
        .args(["-m", "pip", "install", "--quiet", "--no-compile"])
        .args(["--disable-pip-version-check", "--root-user-action=ignore"])
        // What is asked for is for another interpreter than the one that runs pip.
        .args([
            "--no-deps",
            "--only-binary=:all:",
            "--ignore-requires-python",
        ])
        .args(["--implementation", "cp", "--python-version", python])
        .arg("--target")
        .arg(&target)
        .arg(format!("{name}=={version}"));
    command::output(&mut install)
        .with_context(|| format!("pip cannot get {name} {version} for Python {python}"))?;
    ensure!(target.is_dir(), "pip made no {}", target.display());
    remove_tests(&target)
}

/// A package's own tests are a fifth of it.
fn remove_tests(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if !path.is_dir() {
            continue;
        }
        if entry.file_name() == "tests" {
            fs::remove_dir_all(&path).with_context(|| format!("{}", path.display()))?;
        } else {
            remove_tests(&path)?;
        }
    }
    Ok(())
}
