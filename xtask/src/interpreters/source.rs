//! Builds of CPython 3.13 that Debian has no packages of, compiled from its source.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{apt::Apt, cache, command, package};

/// Raise it when the way the entries are made changes.
const RECIPE: &str = "1";

/// The suite whose source is compiled, and the package.
const SUITE: &str = "trixie";
const PACKAGE: &str = "python3.13";

/// One way to build it.
struct Build {
    /// Name of the interpreter.
    name: &'static str,
    /// What `configure` is told.
    configure: &'static [&'static str],
    /// Its environment.
    variables: &'static [(&'static str, &'static str)],
    /// A script that stands for the compiler, `./cc`; empty where none is needed.
    compiler: &'static str,
    /// What `make` builds.
    target: &'static str,
    /// Debian packages that it takes, each with a program of it.
    packages: &'static [(&'static str, &'static str)],
    /// Whether all symbols that can be left out are.
    stripped: bool,
    /// It takes so long that it is made only when somebody asks for it.
    takes_long: bool,
}

/// `configure` of every build.
const CONFIGURE: [&str; 4] = [
    "--quiet",
    "--disable-test-modules",
    "--without-ensurepip",
    "--with-pkg-config=no",
];

/// The compiler's flags but for those of the build: no debug information, which would take a third of the time.
const OPT: &str = "OPT=-DNDEBUG -O2 -fwrapv";

const BUILDS: [Build; 4] = [
    Build {
        name: "python3.13t",
        configure: &["--disable-gil", OPT],
        variables: &[],
        compiler: "",
        target: "all",
        packages: &[],
        stripped: false,
        takes_long: false,
    },
    Build {
        name: "python3.13-debug",
        configure: &["--with-pydebug", "--with-trace-refs"],
        variables: &[],
        compiler: "",
        target: "all",
        packages: &[],
        stripped: false,
        takes_long: false,
    },
    // As python-build-standalone's are: clang, link-time optimization, BOLT, stripped. What BOLT is trained on decides
    // only which code lies where.
    Build {
        name: "python3.13-bolt",
        configure: &["--with-lto=thin", "--enable-bolt", "--disable-shared", OPT],
        variables: &[
            ("CC", "clang-16"),
            ("LLVM_AR", "/usr/lib/llvm-16/bin/llvm-ar"),
            ("LLVM_BOLT", "/usr/lib/llvm-16/bin/llvm-bolt"),
            ("MERGE_FDATA", "/usr/lib/llvm-16/bin/merge-fdata"),
            ("LLVM_PROFDATA", "/usr/lib/llvm-16/bin/llvm-profdata"),
            ("LDFLAGS", "-fuse-ld=lld-16"),
            // The defaults but for the order of functions: Debian 12's BOLT does not know `cdsort`.
            (
                "BOLT_APPLY_FLAGS",
                "-reorder-blocks=ext-tsp -reorder-functions=hfsort+ -split-functions -icf=1 -inline-all -split-eh \
                 -reorder-functions-use-hot-size -peepholes=none -jump-tables=aggressive -inline-ap \
                 -indirect-call-promotion=all -dyno-stats -use-gnu-stack -frame-opt=hot",
            ),
            // Without anything that a shell would read.
            ("PROFILE_TASK", "-m tabnanny -q Lib/asyncio"),
        ],
        compiler: "",
        target: "bolt-opt",
        packages: &[
            ("clang-16", "clang-16"),
            ("lld-16", "ld.lld-16"),
            ("llvm-16", "llvm-ar-16"),
            ("bolt-16", "llvm-bolt-16"),
        ],
        stripped: true,
        takes_long: true,
    },
    // As in Alpine's images, but static.
    Build {
        name: "python3.13-musl",
        configure: &["--disable-shared", "MODULE_BUILDTYPE=static", OPT],
        variables: &[
            ("CC", "./cc"),
            ("LINKFORSHARED", " "),
            ("LDFLAGS", "-static"),
        ],
        // musl-gcc calls itself what the machine's own compiler is called, and configure then contradicts itself.
        compiler: "#!/bin/sh\n[ \"$1\" = --print-multiarch ] || exec musl-gcc \"$@\"\n",
        target: "all",
        packages: &[("musl-tools", "musl-gcc")],
        stripped: false,
        takes_long: false,
    },
];

/// What every build takes: Debian's packages, each with a file of it, by its path or on the PATH.
const BUILD_PACKAGES: [(&str, &str); 5] = [
    ("gcc", "gcc"),
    ("libffi-dev", "/usr/include/x86_64-linux-gnu/ffi.h"),
    ("make", "make"),
    ("xz-utils", "xz"),
    ("zlib1g-dev", "/usr/include/zlib.h"),
];

/// Parts of the standard library that no test needs.
const LEFT_OUT: [&str; 5] = ["ensurepip", "idlelib", "test", "tkinter", "turtledemo"];

/// Builds that are made at the same time.
const N_AT_ONCE: usize = 2;

/// Folders with one interpreter each; compiles what is missing. What takes long only with `all`; else it is there if it
/// was made before.
pub(super) fn get(all: bool) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for builds in BUILDS.chunks(N_AT_ONCE) {
        let made: Vec<Result<Option<PathBuf>>> = thread::scope(|scope| {
            let builds: Vec<_> = builds
                .iter()
                .map(|build| scope.spawn(move || get_one(build, all)))
                .collect();
            builds
                .into_iter()
                .map(|build| {
                    let panicked = |_| Err(anyhow!("the thread of a build panicked"));
                    build.join().unwrap_or_else(panicked)
                })
                .collect()
        });
        for folder in made {
            folders.extend(folder?);
        }
    }
    Ok(folders)
}

fn get_one(build: &Build, all: bool) -> Result<Option<PathBuf>> {
    let Build {
        name,
        configure,
        variables,
        compiler,
        target,
        packages,
        stripped,
        takes_long,
    } = build;
    let recipe = format!(
        "{RECIPE}\n{SUITE} {PACKAGE}\n{CONFIGURE:?} {configure:?}\n{variables:?}\n{compiler}\n{target} {packages:?} {stripped}"
    );
    let entry = cache::Entry {
        name,
        recipe: &recipe,
        check: &|folder| starts(&folder.join("bin").join(name)),
        make: &|folder| make(build, folder),
    };
    let folder = if *takes_long && !all {
        cache::find(&entry)?
    } else {
        Some(cache::get(&entry)?)
    };
    Ok(folder.map(|folder| folder.join("bin")))
}

fn starts(python: &Path) -> bool {
    let question = "import threading, json, asyncio, sysconfig";
    python.exists()
        && command::succeeds(command::program(python).args(["-I", "-S", "-c", question]))
}

/// The source's archive, kept so that a build can be made without the network.
fn archive() -> Result<PathBuf> {
    let is_archive = |path: &Path| path.to_string_lossy().ends_with(".orig.tar.xz");
    let find = |folder: &Path| {
        let entries = fs::read_dir(folder).ok()?.flatten();
        entries
            .map(|entry| entry.path())
            .find(|path| is_archive(path))
    };
    let folder = cache::get(&cache::Entry {
        name: "python3.13-source",
        recipe: &format!("{RECIPE}\n{SUITE} {PACKAGE}"),
        check: &|folder| find(folder).is_some(),
        make: &|folder| {
            let scratch = tempfile::tempdir()?;
            Apt::sources(scratch.path(), SUITE)?.fetch_source(PACKAGE, folder)
        },
    })?;
    find(&folder).context("it was there a moment ago")
}

fn make(build: &Build, folder: &Path) -> Result<()> {
    let packages = BUILD_PACKAGES.iter().chain(build.packages).copied();
    let (packages, programs): (Vec<&str>, Vec<&str>) = packages.unzip();
    package::install(&programs, &packages)?;
    let scratch = tempfile::tempdir()?;
    command::output(
        command::program("tar")
            .arg("--extract")
            .arg("--strip-components=1")
            .arg("--file")
            .arg(archive()?)
            .arg("--directory")
            .arg(scratch.path()),
    )?;
    if !build.compiler.is_empty() {
        let path = scratch.path().join("cc");
        fs::write(&path, build.compiler)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let mut configure = command::program("./configure");
    configure
        .args(CONFIGURE)
        .args(build.configure)
        .envs(build.variables.iter().copied())
        .current_dir(scratch.path());
    command::output(&mut configure)?;
    let make = |arguments: &[&str]| {
        let mut make = command::program("make");
        make.args(["--silent", "-j2"])
            .args(arguments)
            .current_dir(scratch.path());
        command::output(&mut make).map(|_| ())
    };
    make(&[build.target])?;
    let prefix = format!("prefix={}", folder.display());
    make(&["altbininstall", "inclinstall", "sharedinstall", &prefix])?;
    install_library(scratch.path(), folder)?;
    let installed = fs::read_dir(folder.join("bin"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.is_file() && !path.to_string_lossy().ends_with("config"))
        .context("make installed no interpreter")?;
    let python = folder.join("bin").join(build.name);
    if build.stripped {
        command::output(command::program("strip").arg("--strip-all").arg(&installed))?;
    }
    for entry in fs::read_dir(folder.join("bin"))?.flatten() {
        if entry.path() != installed {
            fs::remove_file(entry.path())?;
        }
    }
    if installed != python {
        fs::rename(&installed, &python)?;
    }
    Ok(())
}

/// The standard library, as source: `make libinstall` would compile it, which takes longer than the interpreter.
fn install_library(source: &Path, folder: &Path) -> Result<()> {
    let libraries: Vec<PathBuf> = fs::read_dir(folder.join("lib"))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    ensure!(
        libraries.len() == 1,
        "one library is expected: {libraries:?}"
    );
    for entry in fs::read_dir(source.join("Lib"))?.flatten() {
        let name = entry.file_name();
        if LEFT_OUT.iter().any(|left_out| name == *left_out) {
            continue;
        }
        let mut copy = command::program("cp");
        copy.arg("--recursive").arg(entry.path()).arg(&libraries[0]);
        command::output(&mut copy)?;
    }
    // What `sysconfig` knows of the build.
    for entry in fs::read_dir(source.join("build"))?.flatten() {
        for file in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            if file
                .file_name()
                .to_string_lossy()
                .starts_with("_sysconfigdata")
            {
                fs::copy(file.path(), libraries[0].join(file.file_name()))?;
            }
        }
    }
    Ok(())
}
