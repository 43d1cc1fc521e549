//! Starting other programs: with an environment free of what `cargo run` put there, and errors that quote
//! the command line.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// `program` in the workspace's root, without the variables that `cargo run` sets for xtask alone.
///
/// `LD_LIBRARY_PATH` would lead other toolchains' programs to this toolchain's libraries.
pub(crate) fn program(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace::root());
    for (name, _) in env::vars_os() {
        if is_for_xtask_alone(&name) {
            command.env_remove(name);
        }
    }
    if let Some(paths) = env::var_os("LD_LIBRARY_PATH") {
        match user_library_path(&paths) {
            Some(paths) => command.env("LD_LIBRARY_PATH", paths),
            None => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
    command
}

/// `cargo` with the toolchain that runs xtask.
pub(crate) fn cargo() -> Command {
    program("cargo")
}

/// `program` with the rustup toolchain `toolchain`.
pub(crate) fn with_toolchain(toolchain: &str, name: &str) -> Command {
    let mut command = program("rustup");
    // A look at what there is must not begin a download.
    command
        .args(["run", toolchain, name])
        .env("RUSTUP_AUTO_INSTALL", "0")
        .env_remove("RUST_BACKTRACE");
    command
}

/// Runs `command`, its output shown. An exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Lines of a program's stderr that are shown when it failed.
const MAX_ERROR_LINES: usize = 40;

/// Runs `command` and returns what it wrote to stdout; what it wrote to stderr is part of the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = stderr.trim_end().lines().collect();
        // The reason stands at the end, behind a compiler's warnings.
        let end = &lines[lines.len().saturating_sub(MAX_ERROR_LINES)..];
        bail!(
            "`{}` failed: {}\n{}",
            line(command),
            output.status,
            end.join("\n")
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `command` starts and exits with 0; its output is not shown.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether a program of this name is on the PATH.
pub(crate) fn exists(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// `command` as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| quoted(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:+,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", line(command))
}

fn is_for_xtask_alone(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    name.starts_with("CARGO_PKG_")
        || matches!(
            name,
            "CARGO" | "CARGO_MANIFEST_DIR" | "CARGO_MANIFEST_PATH" | "RUST_RECURSION_COUNT"
                // All that is built lies in the workspace's own folder: `workspace::target`.
                | "CARGO_TARGET_DIR" | "CARGO_BUILD_TARGET_DIR"
        )
}

/// What is left of a library path when the folders that `cargo run` adds are taken out.
fn user_library_path(paths: &OsStr) -> Option<OsString> {
    let target = workspace::target();
    let is_users = |dir: &Path| {
        let text = dir.to_string_lossy();
        !dir.starts_with(&target) && !text.contains("/rustlib/") && !text.contains("/toolchains/")
    };
    let kept: Vec<_> = env::split_paths(paths)
        .filter(|dir| is_users(dir))
        .collect();
    if kept.is_empty() {
        None
    } else {
        env::join_paths(kept).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_shown_as_one_would_type_it() {
        let mut command = Command::new("apt-get");
        command.args(["install", "-o", "A::B=c", "it's", ""]);
        assert_eq!(line(&command), r"apt-get install -o A::B=c 'it'\''s' ''");
    }

    #[test]
    fn what_cargo_run_adds_to_the_library_path_is_taken_out() {
        let added = workspace::target().join("debug/deps");
        let paths = format!("{}:/x/toolchains/stable/lib:/opt/lib", added.display());
        assert_eq!(user_library_path(OsStr::new(&paths)).unwrap(), "/opt/lib");
        assert_eq!(user_library_path(added.as_os_str()), None);
    }

    #[test]
    fn a_failing_command_is_an_error_with_its_stderr() {
        let error =
            output(Command::new("sh").args(["-c", "echo because >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("because") && text.contains("exit status: 3"),
            "{text}"
        );
    }
}
