//! The compiler for another architecture than this machine's: its standard library, and a linker. Two routes, the
//! first that the machine has wins:
//!
//! 1. rustup's standard library for the compiler that builds everything else;
//! 2. Debian's compiler (see `toolchain`), with the standard library out of Debian's packages for that
//!    architecture: a standard library fits one version of the compiler only.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{apt::Apt, cache, command, package, timing, toolchain};

/// Seconds that rustup gets to download a standard library: 25 MB.
const RUSTUP_LIMIT_S: &str = "120";

/// Debian's package with the standard library of `rustc-web`.
const DEBIAN_LIBRARY: &str = "libstd-rust-web-dev";

/// How to compile for a target. By default: as for this machine.
#[derive(Debug, Default)]
pub(crate) struct Compiler {
    /// A rustup toolchain other than the one that runs xtask.
    toolchain: Option<&'static str>,
    /// Where the standard library is, if not with the compiler.
    sysroot: Option<PathBuf>,
    /// cargo's variable for the linker, and the linker.
    linker: Option<(String, &'static str)>,
}

impl Compiler {
    /// `cargo` of this compiler.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = match self.toolchain {
            Some(toolchain) => command::with_toolchain(toolchain, "cargo"),
            None => command::cargo(),
        };
        if let Some((variable, linker)) = &self.linker {
            cargo.env(variable, linker);
        }
        cargo
    }

    /// What to add to RUSTFLAGS, a space in front.
    pub(crate) fn flags(&self) -> String {
        self.sysroot
            .as_ref()
            .map(|sysroot| format!(" --sysroot={}", sysroot.display()))
            .unwrap_or_default()
    }
}

/// The compiler for `target`; installs what is missing, saying so.
pub(crate) fn compiler(target: &str) -> Result<Compiler> {
    let packages = Packages::of(target)?;
    package::install(
        &[packages.linker],
        &[packages.linker_package, packages.libc_package],
    )?;
    let linker = Some((linker_variable(target), packages.linker));
    if !has_standard_library(target)? {
        let add = format!("rustup target add {target}");
        let added = timing::timed(&add, || {
            // `timeout`: where downloads are blocked rather than refused, it would try for long.
            command::run(command::program("timeout").args([
                RUSTUP_LIMIT_S,
                "rustup",
                "target",
                "add",
                target,
            ]))
        });
        let added = added.and_then(|()| {
            ensure!(
                has_standard_library(target)?,
                "the compiler does not find what it added"
            );
            Ok(())
        });
        if let Err(error) = added {
            println!("route 1, {add}: {error:#}");
            println!(
                "route 2, Debian's {DEBIAN_LIBRARY} for {}:",
                packages.architecture
            );
            let (toolchain, sysroot) = debian(target, packages.architecture).with_context(|| {
                format!("no Rust standard library for {target} could be had; `{add}` gets it where rustup can download")
            })?;
            return Ok(Compiler {
                toolchain: Some(toolchain),
                sysroot: Some(sysroot),
                linker,
            });
        }
    }
    Ok(Compiler {
        linker,
        ..Compiler::default()
    })
}

/// Whether the compiler that runs xtask has a standard library for `target`.
pub(crate) fn has_standard_library(target: &str) -> Result<bool> {
    let mut print = command::program("rustc");
    print.args(["--print", "target-libdir", "--target", target]);
    Ok(PathBuf::from(command::output(&mut print)?.trim_end()).is_dir())
}

/// What Debian calls the things of a target.
struct Packages {
    architecture: &'static str,
    linker: &'static str,
    linker_package: &'static str,
    /// The C library to link against statically.
    libc_package: &'static str,
}

impl Packages {
    fn of(target: &str) -> Result<Self> {
        Ok(match target {
            "aarch64-unknown-linux-gnu" => Self {
                architecture: "arm64",
                linker: "aarch64-linux-gnu-gcc",
                linker_package: "gcc-aarch64-linux-gnu",
                libc_package: "libc6-dev-arm64-cross",
            },
            "x86_64-unknown-linux-gnu" => Self {
                architecture: "amd64",
                linker: "x86_64-linux-gnu-gcc",
                linker_package: "gcc-x86-64-linux-gnu",
                libc_package: "libc6-dev-amd64-cross",
            },
            _ => bail!("it is not known how to build for {target} here"),
        })
    }
}

/// `CARGO_TARGET_<TRIPLE>_LINKER`.
fn linker_variable(target: &str) -> String {
    let triple = target.replace('-', "_").to_ascii_uppercase();
    format!("CARGO_TARGET_{triple}_LINKER")
}

/// Debian's compiler, and a sysroot with its standard library for the target, kept in the cache.
fn debian(target: &str, architecture: &str) -> Result<(&'static str, PathBuf)> {
    let toolchain = toolchain::debian_or_install()?;
    let version = installed_version(DEBIAN_LIBRARY)?;
    let libraries = format!("usr/lib/rustlib/{target}/lib");
    let folder = cache::get(&cache::Entry {
        name: &format!("rust-std-{architecture}"),
        recipe: &format!("{target}\n{version}"),
        check: &|folder| has_core(&folder.join(&libraries)),
        make: &|folder| {
            let scratch = tempfile::tempdir()?;
            let apt = Apt::of_this_machine(scratch.path(), architecture)?;
            apt.unpack(&[&format!("{DEBIAN_LIBRARY}={version}")], folder)
        },
    })?;
    Ok((toolchain.name, folder.join("usr")))
}

/// The version of an installed package.
fn installed_version(package: &str) -> Result<String> {
    let mut query = command::program("dpkg-query");
    query.args(["--show", "--showformat", "${Version}", package]);
    Ok(command::output(&mut query)?.trim().to_owned())
}

/// Whether a folder has the library `core`.
fn has_core(folder: &Path) -> bool {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    entries
        .into_iter()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_told_the_linker_by_the_targets_name() {
        assert_eq!(
            linker_variable("aarch64-unknown-linux-gnu"),
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER"
        );
    }

    #[test]
    fn only_what_lies_elsewhere_is_named_to_the_compiler() {
        assert_eq!(Compiler::default().flags(), "");
        let compiler = Compiler {
            sysroot: Some("/somewhere".into()),
            ..Compiler::default()
        };
        assert_eq!(compiler.flags(), " --sysroot=/somewhere");
    }
}
