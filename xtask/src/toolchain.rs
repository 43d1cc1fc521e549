//! The compiler that builds the kernel programs: finds one, or gets one. Two routes, the first that the
//! machine has wins:
//!
//! 1. rustup's nightly with `rust-src`, which builds `core` for the BPF target: what every aya user has;
//! 2. Debian's `rustc-web` with its prebuilt `core` for the BPF target, linked into rustup as
//!    [`DEBIAN_NAME`]: for machines where rustup cannot download.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{command, timing};

/// Name of Debian's compiler among rustup's toolchains.
pub(crate) const DEBIAN_NAME: &str = "pyagent-bpf";

/// Name of rustup's nightly.
pub(crate) const NIGHTLY_NAME: &str = "nightly";

/// What route 2 installs.
const DEBIAN_PACKAGES: [&str; 4] = [
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "libstd-rust-web-dev-bpf",
];

/// The LLVM versions that bpf-linker can be built against.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Seconds that rustup gets to download `rust-src`: 3 MB.
const RUSTUP_LIMIT_S: &str = "60";

/// A compiler that can build the kernel programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// Name for `rustup run`.
    pub(crate) name: &'static str,
    /// Its first line of `rustc --version`.
    pub(crate) rustc: String,
    /// Version of its LLVM, such as `22.1.4`.
    pub(crate) llvm: String,
    /// The LLVM library to build the linker against: the compiler's own, so that it reads its bitcode.
    pub(crate) lib_llvm: PathBuf,
}

impl Toolchain {
    /// Major version of its LLVM.
    pub(crate) fn llvm_major(&self) -> &str {
        self.llvm.split('.').next().unwrap_or(&self.llvm)
    }

    /// Whether `core` is built from source with it (`-Z build-std`), not taken prebuilt.
    pub(crate) fn builds_core(&self) -> bool {
        self.name == NIGHTLY_NAME
    }
}

/// The toolchain of this machine; installs what is missing, saying so.
pub(crate) fn get() -> Result<Toolchain> {
    ensure!(
        command::exists("rustup"),
        "rustup is not on the PATH; it is needed to choose the compiler of the kernel programs.\n{}",
        commands_to_run()
    );
    let nightly_reason = match nightly() {
        Ok(toolchain) => return Ok(toolchain),
        Err(error) => error,
    };
    if let Ok(toolchain) = debian() {
        return Ok(toolchain);
    }
    if has_nightly() {
        println!("route 1, rustup's nightly: {nightly_reason:#}");
        let adding = timing::timed(
            "rustup component add rust-src --toolchain nightly",
            add_rust_src,
        );
        match adding.and_then(|()| nightly()) {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => println!("route 1: {error:#}"),
        }
    } else {
        println!("route 1: rustup has no {NIGHTLY_NAME}");
    }
    println!("route 2, Debian's rustc-web:");
    install_debian()
        .and_then(|()| debian())
        .with_context(commands_to_run)
}

/// What a person can run where xtask cannot.
fn commands_to_run() -> String {
    format!(
        "No compiler for the kernel programs could be set up. One of these two does it:\n\
         1. rustup toolchain install nightly --profile minimal --component rust-src\n\
         2. (Debian 12, as root) apt-get update && apt-get install -y --no-install-recommends {}\n   \
            then, as the user who builds: rustup toolchain link {DEBIAN_NAME} /usr\n\
         Then run the same command again",
        DEBIAN_PACKAGES.join(" "),
    )
}

fn has_nightly() -> bool {
    command::succeeds(command::with_toolchain(NIGHTLY_NAME, "rustc").arg("-V"))
}

/// rustup's nightly, if it is complete.
fn nightly() -> Result<Toolchain> {
    let (toolchain, sysroot) = probe(NIGHTLY_NAME)?;
    let core = sysroot.join("lib/rustlib/src/rust/library/core");
    ensure!(core.is_dir(), "nightly has no rust-src");
    Ok(toolchain)
}

/// Debian's compiler, if it is complete and linked.
fn debian() -> Result<Toolchain> {
    let (toolchain, sysroot) = probe(DEBIAN_NAME)?;
    let core = sysroot.join("lib/rustlib/bpfel-unknown-none/lib");
    ensure!(
        core.is_dir(),
        "{DEBIAN_NAME} has no core for the BPF target"
    );
    Ok(toolchain)
}

fn probe(name: &'static str) -> Result<(Toolchain, PathBuf)> {
    let verbose = command::output(command::with_toolchain(name, "rustc").arg("-vV"))?;
    let llvm =
        llvm_version(&verbose).with_context(|| format!("{name} does not say its LLVM version"))?;
    let major: u32 = llvm
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .unwrap_or(0);
    ensure!(
        LINKER_LLVM.contains(&major),
        "{name} uses LLVM {llvm}, bpf-linker works with {} to {}",
        LINKER_LLVM.start(),
        LINKER_LLVM.end()
    );
    let sysroot =
        command::output(command::with_toolchain(name, "rustc").args(["--print", "sysroot"]))?;
    let sysroot = PathBuf::from(sysroot.trim_end());
    let toolchain = Toolchain {
        name,
        rustc: verbose.lines().next().unwrap_or_default().to_owned(),
        lib_llvm: find_lib_llvm(&sysroot, &llvm)?,
        llvm,
    };
    Ok((toolchain, sysroot))
}

fn llvm_version(verbose: &str) -> Option<String> {
    verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .map(|version| version.trim().to_owned())
}

/// The compiler's LLVM library: `libLLVM.so.22.1-rust-1.95.0-stable` (rustup), `libLLVM.so.22.1` (Debian, in
/// the folder of the architecture).
fn find_lib_llvm(sysroot: &Path, llvm: &str) -> Result<PathBuf> {
    let lib = sysroot.join("lib");
    let multiarch = lib.join(concat_arch("-linux-gnu"));
    for dir in [&lib, &multiarch] {
        let Ok(entries) = fs::read_dir(dir) else {
            continue;
        };
        let mut found: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| is_lib_llvm(&name.to_string_lossy(), llvm))
            })
            .collect();
        found.sort();
        if let Some(path) = found.pop() {
            return Ok(path);
        }
    }
    bail!(
        "no libLLVM {llvm} in {} or {}",
        lib.display(),
        multiarch.display()
    )
}

fn concat_arch(rest: &str) -> String {
    format!("{}{rest}", std::env::consts::ARCH)
}

fn is_lib_llvm(file_name: &str, llvm: &str) -> bool {
    let major_minor: String = llvm.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    let Some(rest) = file_name.strip_prefix("libLLVM.so.") else {
        return false;
    };
    rest == major_minor
        || rest
            .strip_prefix(&major_minor)
            .is_some_and(|rest| rest.starts_with("-rust-"))
}

fn add_rust_src() -> Result<()> {
    // `timeout`: where rustup's downloads are blocked rather than refused, it would try for long.
    let mut add = command::program("timeout");
    add.args([
        RUSTUP_LIMIT_S,
        "rustup",
        "component",
        "add",
        "rust-src",
        "--toolchain",
        NIGHTLY_NAME,
    ]);
    command::run(&mut add)
}

/// Debian's compiler, installed where it is missing.
pub(crate) fn debian_or_install() -> Result<Toolchain> {
    debian().or_else(|_| install_debian().and_then(|()| debian()))
}

/// Installs Debian's compiler where it is missing, and links it into rustup.
fn install_debian() -> Result<()> {
    if !Path::new("/usr/lib/rustlib/bpfel-unknown-none/lib").is_dir() {
        ensure!(command::exists("apt-get"), "this machine has no apt-get");
        let install = DEBIAN_PACKAGES.join(" ");
        timing::timed("apt-get update", || {
            command::run(as_root("apt-get")?.args(["-q", "update"]))
        })?;
        timing::timed(&format!("apt-get install {install}"), || {
            let mut command = as_root("apt-get")?;
            command
                .args(["-q", "install", "-y", "--no-install-recommends"])
                .args(DEBIAN_PACKAGES);
            command::run(command.env("DEBIAN_FRONTEND", "noninteractive"))
        })?;
    }
    let mut link = command::program("rustup");
    command::run(link.args(["toolchain", "link", DEBIAN_NAME, "/usr"]))
}

/// `name` with root's rights, if they can be had without a question.
pub(crate) fn as_root(name: &str) -> Result<std::process::Command> {
    if rustix::process::geteuid().is_root() {
        return Ok(command::program(name));
    }
    ensure!(
        command::succeeds(command::program("sudo").args(["-n", "true"])),
        "{name} needs root, and sudo asks for a password"
    );
    let mut sudo = command::program("sudo");
    sudo.args(["-n", name]);
    Ok(sudo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_read_from_rustc() {
        let verbose = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nLLVM version: 22.1.2\n";
        assert_eq!(llvm_version(verbose).unwrap(), "22.1.2");
        assert_eq!(llvm_version("rustc 1.95.0\n"), None);
    }

    #[test]
    fn only_the_compilers_own_llvm_is_taken() {
        assert!(is_lib_llvm("libLLVM.so.22.1-rust-1.95.0-stable", "22.1.2"));
        assert!(is_lib_llvm("libLLVM.so.22.1", "22.1.8"));
        assert!(!is_lib_llvm("libLLVM.so.22.10", "22.1.8"));
        assert!(!is_lib_llvm("libLLVM.so.21.1", "22.1.8"));
        assert!(!is_lib_llvm("libLLVM-14.so.1", "14.0.6"));
    }
}
