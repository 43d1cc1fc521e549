//! `cargo xtask dist`: one static binary, target/dist/pyagent, that runs on any x86-64 Linux.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::{command, setup, timing, workspace};

const MUSL: &str = "x86_64-unknown-linux-musl";
const GNU: &str = "x86_64-unknown-linux-gnu";

/// Builds it and says what it is; returns its path.
pub(crate) fn dist() -> Result<PathBuf> {
    setup::setup()?;
    let target = static_target()?;
    println!("static binary against {target}");
    timing::timed("cargo build", || command::run(&mut build(target)))?;
    let built = build_dir().join(target).join("dist/pyagent");
    let path = workspace::target().join("dist/pyagent");
    fs::create_dir_all(path.parent().context("dist lies in target")?)?;
    fs::copy(&built, &path).with_context(|| format!("cannot copy {}", built.display()))?;
    let bytes = fs::read(&path)?;
    ensure!(
        is_static(&bytes),
        "{} needs a dynamic loader: it is not static",
        path.display()
    );
    println!(
        "{}: {:.1} MiB, static ({target})",
        path.display(),
        bytes.len() as f64 / f64::from(1 << 20)
    );
    println!("sha256 {:x}", Sha256::digest(&bytes));
    Ok(path)
}

/// musl where rustup has it, else glibc.
fn static_target() -> Result<&'static str> {
    let libdir = command::output(command::program("rustc").args([
        "--print",
        "target-libdir",
        "--target",
        MUSL,
    ]))?;
    let is_installed = PathBuf::from(libdir.trim_end()).is_dir();
    Ok(if is_installed { MUSL } else { GNU })
}

/// A target folder of its own: other flags would throw away what `cargo xtask build` made.
fn build_dir() -> PathBuf {
    workspace::target().join("dist-build")
}

fn build(target: &str) -> std::process::Command {
    let mut build = command::cargo();
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
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    build
}

/// Whether a 64-bit ELF file has no program header `PT_INTERP`, that is, asks for no dynamic loader.
fn is_static(elf: &[u8]) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_not_taken_for_a_static_one() {
        let me = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&me));
        assert!(!is_static(b"#!/bin/sh\n"));
    }
}
