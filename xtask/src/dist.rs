//! `cargo xtask dist`: one static binary that runs on any Linux of its architecture.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use sha2::{Digest as _, Sha256};

use crate::{
    command,
    cross::{self, Compiler},
    setup, timing, workspace,
};

/// What can be typed behind `cargo xtask dist`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// For which machines; this machine's own when it is not given.
    #[arg(long, value_enum)]
    pub(crate) target: Option<Target>,
}

/// A target that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// x86-64.
    #[value(name = "x86_64-unknown-linux-gnu")]
    X86_64,
    /// arm64.
    #[value(name = "aarch64-unknown-linux-gnu")]
    Aarch64,
}

impl Target {
    /// As rustc calls it.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// As rustc calls its architecture, and ELF files do.
    fn arch(self) -> (&'static str, u16) {
        match self {
            Self::X86_64 => ("x86_64", 62),
            Self::Aarch64 => ("aarch64", 183),
        }
    }

    /// Whether it is for machines like this one.
    pub(crate) fn is_this_machines(self) -> bool {
        self.arch().0 == std::env::consts::ARCH
    }

    /// The binary's name in `target/dist`.
    fn file_name(self) -> String {
        if self.is_this_machines() {
            "pyagent".to_owned()
        } else {
            format!("pyagent-{}", self.arch().0)
        }
    }
}

/// Builds it and says what it is; returns its path.
pub(crate) fn dist(target: Option<Target>) -> Result<PathBuf> {
    setup::setup()?;
    let (compiler, triple, file_name) = match target {
        Some(target) if !target.is_this_machines() => (
            cross::compiler(target.triple())?,
            target.triple().to_owned(),
            target.file_name(),
        ),
        Some(target) => (
            Compiler::default(),
            target.triple().to_owned(),
            target.file_name(),
        ),
        None => (Compiler::default(), static_target()?, "pyagent".to_owned()),
    };
    println!("static binary against {triple}");
    timing::timed("cargo build", || {
        command::run(&mut build(&compiler, &triple))
    })?;
    let built = build_dir().join(&triple).join("dist/pyagent");
    let path = workspace::target().join("dist").join(file_name);
    fs::create_dir_all(path.parent().context("dist lies in target")?)?;
    fs::copy(&built, &path).with_context(|| format!("cannot copy {}", built.display()))?;
    let bytes = fs::read(&path)?;
    ensure!(
        is_static(&bytes),
        "{} needs a dynamic loader: it is not static",
        path.display()
    );
    if let Some(target) = target {
        let (arch, machine) = target.arch();
        ensure!(
            elf_machine(&bytes) == Some(machine),
            "{} is not for {arch}",
            path.display()
        );
    }
    println!(
        "{}: {:.1} MiB, static ({triple})",
        path.display(),
        bytes.len() as f64 / f64::from(1 << 20)
    );
    println!("sha256 {:x}", Sha256::digest(&bytes));
    Ok(path)
}

/// musl where rustup has it and a C compiler for it is there (cryptography has parts in C), else glibc.
fn static_target() -> Result<String> {
    let arch = std::env::consts::ARCH;
    let musl = format!("{arch}-unknown-linux-musl");
    let has_compiler = command::program("musl-gcc")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    Ok(if has_compiler && cross::has_standard_library(&musl)? {
        musl
    } else {
        format!("{arch}-unknown-linux-gnu")
    })
}

/// A target folder of its own: other flags would throw away what `cargo xtask build` made.
fn build_dir() -> PathBuf {
    workspace::target().join("dist-build")
}

fn build(compiler: &Compiler, target: &str) -> std::process::Command {
    let mut build = compiler.cargo();
    // With an explicit target the flags do not touch build scripts and procedural macros.
    build
        .args([
            "build",
            "--profile",
            "dist",
            "--package",
            "profiler-agent",
            "--bin",
            "pyagent",
            "--target",
            target,
        ])
        .arg("--target-dir")
        .arg(build_dir())
        .env(
            "RUSTFLAGS",
            format!("-C target-feature=+crt-static{}", compiler.flags()),
        );
    build
}

/// Whether a 64-bit ELF file has no program header `PT_INTERP`, that is, asks for no dynamic loader.
pub(crate) fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?));
    let headers = || {
        Some((
            usize::try_from(u64_at(0x20)?).ok()?,
            usize::from(u16_at(0x36)?),
            usize::from(u16_at(0x38)?),
        ))
    };
    let Some((offset, size, n_headers)) = headers() else {
        return false;
    };
    elf.starts_with(b"\x7fELF\x02")
        && (0..n_headers).all(|header_idx| {
            u32_at(offset + header_idx * size).is_some_and(|kind| kind != PT_INTERP)
        })
}

/// For which processor an ELF file is (`e_machine`).
pub(crate) fn elf_machine(elf: &[u8]) -> Option<u16> {
    let machine = elf.get(18..20)?.try_into().ok()?;
    elf.starts_with(b"\x7fELF")
        .then_some(u16::from_le_bytes(machine))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machines_own_binary_has_the_plain_name() {
        let all = [Target::X86_64, Target::Aarch64];
        let own: Vec<_> = all
            .iter()
            .filter(|target| target.is_this_machines())
            .collect();
        let me = fs::read(std::env::current_exe().unwrap()).unwrap();
        for target in own {
            assert_eq!(target.file_name(), "pyagent");
            assert_eq!(elf_machine(&me), Some(target.arch().1));
        }
        let foreign = all.iter().filter(|target| !target.is_this_machines());
        for target in foreign {
            assert_eq!(target.file_name(), format!("pyagent-{}", target.arch().0));
            assert_ne!(elf_machine(&me), Some(target.arch().1));
        }
    }

    #[test]
    fn a_dynamic_program_is_not_taken_for_a_static_one() {
        let me = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&me));
        assert!(!is_static(b"#!/bin/sh\n"));
    }
}
