//! Lints the kernel programs for their own target, with their own compiler.

use anyhow::Result;

use crate::{command, setup, toolchain::Toolchain, workspace};

const TARGET: &str = "bpfel-unknown-none";

/// The processors that they are built for.
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// clippy over profiler-ebpf; `cargo check` with warnings denied where the compiler comes without clippy.
pub(crate) fn check() -> Result<()> {
    let toolchain = setup::setup()?;
    let has_clippy =
        command::succeeds(command::with_toolchain(toolchain.name, "clippy-driver").arg("-V"));
    let verb = if has_clippy { "clippy" } else { "check" };
    if !has_clippy {
        println!(
            "{} has no clippy: `cargo check` with warnings denied instead",
            toolchain.name
        );
    }
    for arch in ARCHITECTURES {
        command::run(&mut cargo(&toolchain, verb, arch))?;
    }
    Ok(())
}

fn cargo(toolchain: &Toolchain, verb: &str, arch: &str) -> std::process::Command {
    let mut cargo = command::with_toolchain(toolchain.name, "cargo");
    cargo.args([
        verb,
        "--package",
        "profiler-ebpf",
        "--target",
        TARGET,
        "--target-dir",
    ]);
    cargo.arg(workspace::target().join("check-ebpf"));
    if toolchain.builds_core() {
        cargo
            .args(["-Z", "build-std=core"])
            .env_remove("RUSTC_BOOTSTRAP");
    } else {
        // A stable compiler: only aya-ebpf may use unstable features, as in profiler-agent's build script.
        cargo.env("RUSTC_BOOTSTRAP", "aya_ebpf");
    }
    // What aya-build passes, which this must match to see the same code.
    cargo.env(
        "CARGO_ENCODED_RUSTFLAGS",
        format!("--cfg=bpf_target_arch=\"{arch}\"\x1f-Dwarnings"),
    );
    cargo
}
