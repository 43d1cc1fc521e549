//! The C compiler, where a test needs a program of its own or wants to ask CPython's headers.
//!
//! A machine without one skips those tests; where `CI` is `true` that is a failure.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::interpreters::Interpreter;

/// Whether there is a C compiler. Says so on stderr when there is none.
#[must_use]
pub fn is_there() -> bool {
    let is_there = Command::new("cc").arg("--version").output().is_ok();
    if !is_there {
        assert!(
            env::var_os("CI").is_none_or(|ci| ci != "true"),
            "no C compiler, but CI promises one"
        );
        eprintln!("skipped: no C compiler (cc)");
    }
    is_there
}

/// Compiles a C file to `program`, with further arguments of the compiler.
///
/// # Panics
/// With the compiler's messages, when it refuses.
pub fn compile(source: &Path, program: &Path, arguments: &[&str]) {
    let output = Command::new("cc")
        .arg(source)
        .arg("-o")
        .arg(program)
        .args(arguments)
        .output()
        .expect("cc is there");
    assert!(
        output.status.success(),
        "{}: {}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Folder of an interpreter's headers, if they are installed.
#[must_use]
pub fn headers_of(python: &Interpreter) -> Option<PathBuf> {
    let question = "import sysconfig; print(sysconfig.get_path('include'))";
    let answer = Command::new(&python.path)
        .args(["-I", "-c", question])
        .output()
        .ok()?;
    let headers = PathBuf::from(String::from_utf8(answer.stdout).ok()?.trim());
    headers.join("Python.h").exists().then_some(headers)
}

/// A file of `tests/workloads`.
#[must_use]
pub fn workload(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("workloads")
        .join(name)
}
