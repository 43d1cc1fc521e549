//! What the guests are made of, kept in the cache: a kernel each, and one root with busybox and CPython.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result};
use walkdir::{DirEntry, WalkDir};

use super::{Kernel, guest, machine::Machine};
use crate::{apt::Apt, cache};

/// Raise it when the way an image is made changes.
const RECIPE: &str = "1";

/// Suite of the root's packages.
const BASE_SUITE: &str = "bookworm";

/// busybox, CPython and what that links against.
const BASE_PACKAGES: [&str; 6] = [
    "busybox-static",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libc6",
    "libexpat1",
    "zlib1g",
];

/// A kernel image for each of `kernels`, all made side by side.
pub(super) fn get(kernels: &[Kernel]) -> Result<Vec<PathBuf>> {
    thread::scope(|scope| {
        let images: Vec<_> = kernels
            .iter()
            .map(|kernel| scope.spawn(|| kernel_image(*kernel)))
            .collect();
        let images = images
            .into_iter()
            .map(|image| image.join().expect("no panic in xtask"));
        images.collect()
    })
}

fn has(file: &str) -> impl Fn(&Path) -> bool {
    move |folder| fs::metadata(folder.join(file)).is_ok_and(|metadata| metadata.len() > 0)
}

fn kernel_image(kernel: Kernel) -> Result<PathBuf> {
    let folder = cache::get(&cache::Entry {
        name: &format!("kernel-{}", kernel.series()),
        recipe: &format!("{RECIPE}\n{}", kernel.suite()),
        check: &has("vmlinuz"),
        make: &|folder| make_kernel(kernel, folder),
    })?;
    Ok(folder.join("vmlinuz"))
}

fn make_kernel(kernel: Kernel, folder: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let architecture = kernel.machine().facts().debian;
    let apt = Apt::of_architecture(scratch.path(), kernel.suite(), architecture)?;
    let package = kernel_package(&apt, architecture)?;
    println!("kernel {}: {package}", kernel.series());
    let root = scratch.path().join("root");
    apt.unpack(&[&package], &root)?;
    let image = find_image(&root)?;
    fs::copy(&image, folder.join("vmlinuz")).with_context(|| format!("{}", image.display()))?;
    Ok(())
}

/// The package with the image that Debian's meta-package for cloud kernels leads to. In newer suites it is a
/// step further away, in `linux-binary-*`.
fn kernel_package(apt: &Apt, architecture: &str) -> Result<String> {
    let next = |package: &str, prefix: &str| -> Result<Option<String>> {
        let is_versioned = |name: &String| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        };
        Ok(apt.depends(package)?.into_iter().find(is_versioned))
    };
    let meta = format!("linux-image-cloud-{architecture}");
    let image = next(&meta, "linux-image-")?.with_context(|| format!("{meta} names no kernel"))?;
    Ok(next(&image, "linux-binary-")?.unwrap_or(image))
}

/// `boot/vmlinuz-*` or, in newer suites, `usr/lib/modules/*/vmlinuz`.
fn find_image(root: &Path) -> Result<PathBuf> {
    let is_image = |entry: &DirEntry| {
        entry.file_type().is_file() && entry.file_name().to_string_lossy().starts_with("vmlinuz")
    };
    let mut entries = WalkDir::new(root).into_iter().filter_map(Result::ok);
    let image = entries
        .find(is_image)
        .context("the kernel package has no vmlinuz")?;
    Ok(image.into_path())
}

/// Folder with the root's archive.
pub(super) fn base(machine: Machine) -> Result<PathBuf> {
    let not_needed = ["usr/share", machine.facts().conversions, "var"];
    let name = match machine {
        Machine::X86_64 => "vm-root".to_owned(),
        Machine::Arm64 => format!("vm-root-{}", machine.facts().debian),
    };
    let folder = cache::get(&cache::Entry {
        name: &name,
        recipe: &format!("{RECIPE}\n{BASE_SUITE}\n{BASE_PACKAGES:?}\n{not_needed:?}"),
        check: &has("root.cpio"),
        make: &|folder| make_base(machine, &not_needed, folder),
    })?;
    Ok(folder)
}

/// A busybox that runs here.
pub(super) fn busybox() -> Result<PathBuf> {
    Ok(base(Machine::own())?.join("busybox"))
}

fn make_base(machine: Machine, not_needed: &[&str], folder: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let apt = Apt::of_architecture(scratch.path(), BASE_SUITE, machine.facts().debian)?;
    let root = scratch.path().join("root");
    apt.unpack(&BASE_PACKAGES, &root)?;
    for path in not_needed {
        let path = root.join(path);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("{}", path.display()))?;
        }
    }
    fs::copy(root.join("bin/busybox"), folder.join("busybox"))?;
    // Another machine's busybox packs the root: this one runs there only.
    let packer = if machine == Machine::own() {
        folder.join("busybox")
    } else {
        busybox()?
    };
    guest::archive(&packer, &root, &folder.join("root.cpio"))
}
