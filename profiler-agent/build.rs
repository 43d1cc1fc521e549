//! Builds the kernel programs and leaves their object in `OUT_DIR/pyagent-bpf`.
//!
//! Which toolchain and which linker is decided in one place, `cargo xtask setup`, which writes them down in
//! `target/bpf-toolchain` (two lines: the rustup toolchain's name, the folder of bpf-linker).

use std::{env, path::Path};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

fn main() -> Result<()> {
    // At run time: the workspace may have moved since this was compiled.
    let package = env::var_os("CARGO_MANIFEST_DIR").context("cargo says where the package is")?;
    let root = Path::new(&package)
        .parent()
        .context("the workspace's root")?;
    let choice_path = root.join("target/bpf-toolchain");
    println!("cargo:rerun-if-changed={}", choice_path.display());
    println!(
        "cargo:rerun-if-changed={}",
        root.join("profiler-common/src").display()
    );
    let Ok(choice) = std::fs::read_to_string(&choice_path) else {
        bail!(
            "no BPF toolchain is set up: run `cargo xtask setup` (or `cargo xtask build`, which does it)"
        );
    };
    let mut lines = choice.lines();
    let (Some(toolchain), Some(linker_dir)) = (lines.next(), lines.next()) else {
        bail!(
            "{} is damaged: delete it and run `cargo xtask setup`",
            choice_path.display()
        );
    };
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(linker_dir.into()).chain(env::split_paths(&path));
    let path = env::join_paths(dirs)?;
    // SAFETY: the build script has one thread here.
    unsafe {
        env::set_var("PATH", path);
        // What it says would come back as warnings of every later build; errors still do.
        env::set_var("CARGO_TERM_QUIET", "true");
        if toolchain == "nightly" {
            env::remove_var("RUSTC_BOOTSTRAP");
        } else {
            // A stable compiler with a prebuilt `core` for the target: only aya-ebpf may use unstable features.
            env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf");
        }
    }
    let ebpf = root.join("profiler-ebpf");
    let package = Package {
        name: "profiler-ebpf",
        root_dir: ebpf.to_str().context("the workspace's path is not UTF-8")?,
        ..Package::default()
    };
    let toolchain = if toolchain == "nightly" {
        Toolchain::Nightly
    } else {
        Toolchain::Custom(toolchain)
    };
    aya_build::build_ebpf([package], toolchain)
}
