//! Finds the real CPython interpreters that the tests run against: those of pyenv, those on `PATH`, and those
//! that `cargo xtask interpreters` prepared.
//!
//! It decides nothing about what a test does with them. Launchers that are scripts (pyenv's shims) are
//! skipped, but for those in the folders that `PYAGENT_INTERPRETERS` lists, which become the interpreter. Two
//! names of one file are one interpreter.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use profiler_agent::python::layout::{Version, row};

/// Oldest version that the project supports.
const OLDEST: (u8, u8) = (3, 6);

/// What an interpreter is asked: version, whether it is built without the GIL, its library's folder, what it is, its
/// executable, and how it was built.
const QUESTION: &str = "\
import os, sys, sysconfig
print(*sys.version_info[:3])
print(1 if sysconfig.get_config_var('Py_GIL_DISABLED') else 0)
print(os.path.dirname(os.__file__))
print(sys.implementation.name)
print(sys.executable)
var = lambda name: sysconfig.get_config_var(name) or ''
words = [
    ('free-threaded', var('Py_GIL_DISABLED')),
    ('debug', hasattr(sys, 'gettotalrefcount')),
    ('shared', var('Py_ENABLE_SHARED')),
    ('static', not var('Py_ENABLE_SHARED')),
    ('musl', 'musl' in var('HOST_GNU_TYPE')),
    ('clang', 'Clang' in sys.version),
    ('LTO', '--with-lto' in var('CONFIG_ARGS')),
    ('BOLT', '--enable-bolt' in var('CONFIG_ARGS')),
]
print(' '.join(word for word, is_so in words if is_so))
";

/// One interpreter, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interpreter {
    /// Version: major, minor, micro.
    pub version: (u8, u8, u8),
    /// The executable, symbolic links resolved.
    pub path: PathBuf,
    /// Folder of the standard library.
    pub stdlib: PathBuf,
    /// Built without the GIL (`python3.13t`).
    pub free_threaded: bool,
    /// The executable, as it is called in the interpreter's own root.
    pub executable: PathBuf,
    /// How it was built, in words: `free-threaded`, `debug`, `shared` or `static`, and others.
    pub build: String,
}

impl Interpreter {
    /// Major and minor version: what layouts and formats depend on.
    #[must_use]
    pub fn minor(&self) -> (u8, u8) {
        (self.version.0, self.version.1)
    }

    /// A command that runs a script with this interpreter, undisturbed by the caller's environment and by
    /// installed packages: `-I -S`, so neither `PYTHON*` variables nor `site` count.
    #[must_use]
    pub fn command(&self, script: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command.args(["-I", "-S", "-B", "-W", "ignore"]).arg(script);
        command
    }

    /// Asks the executable at `path`; `None` if it is no CPython that is old enough to be supported.
    fn ask(path: &Path) -> Option<Self> {
        let output = Command::new(path)
            .args(["-I", "-S", "-c", QUESTION])
            .output()
            .ok()?;
        let answer = String::from_utf8(output.stdout).ok()?;
        let mut lines = answer.lines();
        let mut numbers = lines.next()?.split(' ').map(str::parse);
        let version = (
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
            numbers.next()?.ok()?,
        );
        let free_threaded = lines.next()? == "1";
        let stdlib = PathBuf::from(lines.next()?);
        let known = lines.next()? == "cpython" && (version.0, version.1) >= OLDEST;
        let executable = PathBuf::from(lines.next()?);
        let build = lines.next()?.to_owned();
        known.then(|| Self {
            version,
            path: path.to_owned(),
            stdlib,
            free_threaded,
            executable,
            build,
        })
    }

    /// Whether it has the modules of the standard library that are linked against other libraries, as `ctypes` is. A
    /// static build on musl has not.
    #[must_use]
    pub fn has_libraries(&self) -> bool {
        !self.is_on_musl()
    }

    /// Whether it runs without glibc.
    #[must_use]
    pub fn is_on_musl(&self) -> bool {
        self.build.split(' ').any(|word| word == "musl")
    }

    /// Whether it is built for those who work on CPython itself.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.build.split(' ').any(|word| word == "debug")
    }

    /// The root that it runs in.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        let launchers = self.path.parent().filter(|_| self.has_own_root());
        launchers.map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
    }

    /// Whether it runs in a root of its own, where the other interpreters of this host are not.
    #[must_use]
    pub fn has_own_root(&self) -> bool {
        !is_elf(&self.path)
    }
}

/// Every interpreter of this host, oldest first. Where none is found this says so on stderr, so that a
/// test that loops over the result shows why it did nothing; where `CI` is `true` that is a failure.
#[must_use]
pub fn found() -> Vec<Interpreter> {
    let paths: BTreeSet<PathBuf> = candidates()
        .into_iter()
        .filter_map(|path| fs::canonicalize(path).ok())
        .filter(|path| is_elf(path))
        .chain(prepared())
        .collect();
    let mut interpreters: Vec<_> = paths
        .iter()
        .filter_map(|path| Interpreter::ask(path))
        .collect();
    interpreters.sort();
    if interpreters.is_empty() {
        assert!(
            env::var_os("CI").is_none_or(|ci| ci != "true"),
            "no CPython found, but CI promises some"
        );
        eprintln!("skipped: no CPython interpreter found under pyenv's root or on PATH");
    }
    interpreters
}

/// Those of them that pyagent profiles: whose version has a layout.
#[must_use]
pub fn supported() -> Vec<Interpreter> {
    let has_layout = |python: &Interpreter| {
        let (major, minor) = python.minor();
        row(Version::of_minor(major, minor)).is_some()
    };
    found().into_iter().filter(has_layout).collect()
}

/// Of each version the newest release that has the GIL and all of its library, newest version first.
#[must_use]
pub fn usual() -> Vec<Interpreter> {
    let is_usual = |python: &Interpreter| {
        python.has_libraries() && !python.is_debug() && !python.free_threaded
    };
    let mut usual: Vec<_> = supported().into_iter().filter(is_usual).collect();
    usual.reverse();
    usual.dedup_by_key(|python| python.minor());
    usual
}

/// The newest release build with the GIL that runs in the host's own root.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn newest() -> Interpreter {
    let newest = supported().into_iter().rfind(|python| {
        !python.has_own_root()
            && !python.is_debug()
            && !python.free_threaded
            && python.has_libraries()
    });
    newest.expect("a CPython of the host")
}

/// A CPython 2, which is too old, if this host has one.
#[must_use]
pub fn python2() -> Option<PathBuf> {
    let paths = dirs().map(|dir| dir.join("python2"));
    paths
        .filter_map(|path| fs::canonicalize(path).ok())
        .find(|path| is_elf(path))
}

/// What `cargo xtask interpreters` prepared, as `cargo xtask test` says.
fn prepared() -> Vec<PathBuf> {
    let dirs = env::var_os("PYAGENT_INTERPRETERS").unwrap_or_default();
    env::split_paths(&dirs)
        .flat_map(|dir| entries(&dir))
        .collect()
}

/// Files that may be interpreters.
fn candidates() -> Vec<PathBuf> {
    let is_python = |path: &PathBuf| path.file_name().is_some_and(is_python_name);
    dirs()
        .flat_map(|dir| entries(&dir))
        .filter(is_python)
        .collect()
}

/// Folders that interpreters may be in: those of pyenv's versions, then `PATH`.
fn dirs() -> impl Iterator<Item = PathBuf> {
    let pyenv_roots = [
        env::var_os("PYENV_ROOT").map(PathBuf::from),
        env::home_dir().map(|home| home.join(".pyenv")),
    ];
    let of_pyenv = pyenv_roots
        .into_iter()
        .flatten()
        .flat_map(|root| entries(&root.join("versions")))
        .map(|version| version.join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = env::split_paths(&path).collect();
    of_pyenv.chain(on_path)
}

/// Whether this is `python3`, `python3.N` or `python3.Nt`.
fn is_python_name(name: &OsStr) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix("python3"));
    rest.is_some_and(|rest| {
        let minor = rest
            .strip_prefix('.')
            .map(|rest| rest.strip_suffix('t').unwrap_or(rest));
        rest.is_empty() || minor.is_some_and(|minor| minor.parse::<u8>().is_ok())
    })
}

/// What a folder holds; nothing where it cannot be read.
fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// Whether the file is a program and not a script that starts one.
fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok()
        && magic == *b"\x7fELF"
}
