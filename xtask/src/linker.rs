//! bpf-linker: built once, against the LLVM of the compiler whose bitcode it reads, and kept in the cache.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{cache, command, toolchain::Toolchain};

const VERSION: &str = "0.13.0";

/// The folder that holds `bpf-linker` for `toolchain`; builds it (up to a minute) if it is not there.
pub(crate) fn get(toolchain: &Toolchain) -> Result<PathBuf> {
    let name = format!("bpf-linker-{VERSION}-llvm-{}", toolchain.llvm);
    let recipe = format!(
        "{VERSION}\n{}\n{}\n{}",
        toolchain.rustc,
        toolchain.llvm,
        toolchain.lib_llvm.display()
    );
    let folder = cache::get(&cache::Entry {
        name: &name,
        recipe: &recipe,
        check: &|folder| works(folder),
        make: &|folder| install(toolchain, folder),
    })?;
    Ok(folder.join("bin"))
}

/// Whether it starts, that is, finds its LLVM; the library goes away with an update of the compiler.
fn works(folder: &Path) -> bool {
    command::succeeds(command::program(folder.join("bin/bpf-linker")).arg("--version"))
}

fn install(toolchain: &Toolchain, folder: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let lib = scratch.path().join("lib");
    std::fs::create_dir(&lib)?;
    symlink(&toolchain.lib_llvm, lib.join("libLLVM.so"))?;
    let llvm_dir = toolchain
        .lib_llvm
        .parent()
        .context("libLLVM lies in a folder")?;
    let mut install = command::cargo();
    install
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{}", toolchain.llvm_major())])
        .args(["--no-track", "--root"])
        .arg(folder)
        .env("LLVM_PREFIX", scratch.path())
        // The work is done by LLVM, which is there already; what is built is the little that drives it. With
        // the package's own settings it takes twice as long to build and is six times as large.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env(
            "RUSTFLAGS",
            format!("-C link-arg=-Wl,-rpath,{}", llvm_dir.display()),
        )
        .env("CARGO_TARGET_DIR", scratch.path().join("target"));
    command::run(&mut install)
}
