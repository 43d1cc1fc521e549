//! Programs from PyPI that run Python in ways of their own, for the tests: a one-file program of PyInstaller, one that
//! Nuitka compiled, and greenlets. Made once with the machine's `python3`, kept in the cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};

use crate::{cache, command, package, workspace};

/// Raise it when the way they are made changes.
const RECIPE: &str = "1";

/// What is installed, each at a version that these machines can have.
const PACKAGES: [&str; 3] = ["greenlet==3.1.1", "pyinstaller==6.11.1", "nuitka==2.5.9"];

/// What is packed and compiled, in `tests/workloads/hosts`.
const SOURCES: [&str; 2] = ["packed.py", "work.py"];

/// What compiling takes: programs, and Debian's packages that bring them.
const COMPILE_PROGRAMS: [&str; 3] = ["python3", "gcc", "patchelf"];

/// Folder with `packages` (greenlet for the interpreter that `python` names), `onefile` and `compiled`. `None`, said on
/// standard output, where they cannot be made; in CI that is an error.
pub(crate) fn get() -> Result<Option<PathBuf>> {
    match folder() {
        Ok(folder) => Ok(Some(folder)),
        Err(error) if env::var("CI").is_ok_and(|ci| ci == "true") => Err(error),
        Err(error) => {
            println!("packed programs are left out: {error:#}");
            Ok(None)
        }
    }
}

fn folder() -> Result<PathBuf> {
    let question = "import sys; print(sys.executable, sys.version)";
    package::install(&COMPILE_PROGRAMS, &COMPILE_PROGRAMS)?;
    let python = command::output(command::program("python3").args(["-I", "-c", question]))?;
    let source = workspace::root().join("tests/workloads/hosts");
    let sources = SOURCES.map(|name| fs::read_to_string(source.join(name)));
    let sources: Vec<String> = sources.into_iter().collect::<Result<_, _>>()?;
    cache::get(&cache::Entry {
        name: "hosts",
        recipe: &format!("{RECIPE}\n{python}\n{PACKAGES:?}\n{sources:?}"),
        check: &|folder| {
            let made = ["python", "onefile", "compiled", "packages/greenlet"];
            made.iter().all(|made| folder.join(made).exists())
        },
        make: &|folder| make(&source, folder),
    })
}

fn make(source: &Path, folder: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let packages = folder.join("packages");
    for name in SOURCES {
        fs::copy(source.join(name), scratch.path().join(name))?;
    }
    let python = || {
        let mut python = command::program("python3");
        python
            .current_dir(scratch.path())
            .env("PYTHONPATH", &packages)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("HOME", scratch.path());
        python
    };
    let mut install = python();
    install
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--root-user-action=ignore",
        ])
        .arg("--disable-pip-version-check")
        .arg("--target")
        .arg(&packages)
        .args(PACKAGES);
    command::output(&mut install).context("pip cannot install what is packed with")?;
    let executable = command::output(python().args(["-c", "import sys; print(sys.executable)"]))?;
    fs::write(folder.join("python"), executable)?;
    let mut pack = python();
    pack.args([
        "-m",
        "PyInstaller",
        "--onefile",
        "--log-level",
        "ERROR",
        "--name",
        "onefile",
    ])
    .arg("packed.py");
    command::output(&mut pack).context("PyInstaller")?;
    let mut compile = python();
    compile
        .args([
            "-m",
            "nuitka",
            "--quiet",
            "--assume-yes-for-downloads",
            "--remove-output",
        ])
        .args([
            "--follow-import-to=work",
            "--output-filename=compiled",
            "packed.py",
        ]);
    command::output(&mut compile).context("Nuitka")?;
    for (from, to) in [("dist/onefile", "onefile"), ("compiled", "compiled")] {
        fs::copy(scratch.path().join(from), folder.join(to))
            .map_err(|error| anyhow!("{from} was not made: {error}"))?;
    }
    Ok(())
}
