//! The interpreter that all tools run in, and the toolbox from PyPI: pinned with hashes in
//! tests/workloads/toolbox/requirements.txt, kept in the cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{cache, command, workspace};

/// Raise it when the way they are got changes.
const RECIPE: &str = "1";

/// Versions that all packages have wheels for, the one to be preferred first.
const VERSIONS: [&str; 3] = ["3.13", "3.12", "3.11"];

/// Prints the version and the executable, and fails without pip.
const QUESTION: &str =
    "import pip, sys; print('%d.%d.%d' % sys.version_info[:3]); print(sys.executable)";

/// A CPython with the toolbox.
#[derive(Debug)]
pub(super) struct Python {
    pub(super) path: PathBuf,
    /// Such as `3.13.0`.
    pub(super) version: String,
    /// Folder of the packages.
    pub(super) packages: PathBuf,
}

/// The first interpreter of this host that can run all of the toolbox; gets what is missing of that.
pub(super) fn python() -> Result<Python> {
    let (path, version) = VERSIONS.iter().find_map(|it| find(it)).with_context(|| {
        format!(
            "no CPython {} with pip, on the PATH or of pyenv's: install one",
            VERSIONS.join(" or ")
        )
    })?;
    let requirements = workspace::root().join("tests/workloads/toolbox/requirements.txt");
    let pinned =
        fs::read_to_string(&requirements).with_context(|| format!("{}", requirements.display()))?;
    let packages = cache::get(&cache::Entry {
        name: "toolbox",
        recipe: &format!("{RECIPE}\n{}\n{version}\n{pinned}", path.display()),
        check: &|folder| {
            let imports = "import django, line_profiler, pyinstrument, yappi";
            let mut python = command::program(&path);
            python.args(["-c", imports]).env("PYTHONPATH", folder);
            command::succeeds(&mut python)
                && command::succeeds(command::program(folder.join("bin/py-spy")).arg("--version"))
        },
        make: &|folder| install(&path, &requirements, folder),
    })?;
    Ok(Python {
        path,
        version,
        packages,
    })
}

/// The interpreter of such a version, behind shims and links: its executable and whole version.
fn find(version: &str) -> Option<(PathBuf, String)> {
    let roots = [
        env::var_os("PYENV_ROOT").map(PathBuf::from),
        env::home_dir().map(|home| home.join(".pyenv")),
    ];
    let of_pyenv = roots
        .into_iter()
        .flatten()
        .filter_map(|root| fs::read_dir(root.join("versions")).ok())
        .flat_map(Iterator::flatten)
        .map(|entry| entry.path().join(format!("bin/python{version}")));
    let on_path = [format!("python{version}"), "python3".to_owned()].map(PathBuf::from);
    let mut all: Vec<PathBuf> = on_path.into_iter().chain(of_pyenv).collect();
    all.dedup();
    all.iter().find_map(|path| ask(path, version))
}

fn ask(path: &Path, version: &str) -> Option<(PathBuf, String)> {
    let answer = command::output(command::program(path).args(["-I", "-c", QUESTION])).ok()?;
    let (found, executable) = answer.trim().split_once('\n')?;
    let is_it = found
        .strip_prefix(version)
        .is_some_and(|rest| rest.starts_with('.'));
    is_it.then(|| (PathBuf::from(executable), found.to_owned()))
}

fn install(python: &Path, requirements: &Path, folder: &Path) -> Result<()> {
    let mut install = command::program(python);
    install
        .args(["-m", "pip", "install", "--quiet", "--no-compile"])
        .args(["--disable-pip-version-check", "--root-user-action=ignore"])
        .args(["--no-deps", "--only-binary=:all:", "--require-hashes"])
        .arg("--target")
        .arg(folder)
        .arg("--requirement")
        .arg(requirements);
    command::output(&mut install).context("pip cannot get the toolbox")?;
    Ok(())
}
