//! What the guests are made of, kept in the cache: a kernel each, and one root with busybox and CPython.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result};
use walkdir::{DirEntry, WalkDir};

use super::{Kernel, guest};
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

/// Folders of the packages that no guest reads.
const NOT_NEEDED: [&str; 3] = ["usr/share", "usr/lib/x86_64-linux-gnu/gconv", "var"];

/// The root's archive, and a kernel image for each of `kernels`, all made side by side.
pub(super) fn get(kernels: &[Kernel]) -> Result<(PathBuf, Vec<PathBuf>)> {
    thread::scope(|scope| {
        let base = scope.spawn(base);
        let images: Vec<_> = kernels
            .iter()
            .map(|kernel| scope.spawn(|| kernel_image(*kernel)))
            .collect();
        let images = images
            .into_iter()
            .map(|image| image.join().expect("no panic in xtask"));
        let images = images.collect::<Result<Vec<_>>>();
        Ok((base.join().expect("no panic in xtask")?, images?))
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
    let apt = Apt::new(scratch.path(), kernel.suite())?;
    let package = kernel_package(&apt)?;
    println!("kernel {}: {package}", kernel.series());
    let root = scratch.path().join("root");
    apt.unpack(&[&package], &root)?;
    let image = find_image(&root)?;
    fs::copy(&image, folder.join("vmlinuz")).with_context(|| format!("{}", image.display()))?;
    Ok(())
}

/// The package with the image that Debian's meta-package for cloud kernels leads to. In newer suites it is a
/// step further away, in `linux-binary-*`.
fn kernel_package(apt: &Apt) -> Result<String> {
    let next = |package: &str, prefix: &str| -> Result<Option<String>> {
        let is_versioned = |name: &String| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        };
        Ok(apt.depends(package)?.into_iter().find(is_versioned))
    };
    let image = next("linux-image-cloud-amd64", "linux-image-")?
        .context("linux-image-cloud-amd64 names no kernel")?;
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

fn base() -> Result<PathBuf> {
    let folder = cache::get(&cache::Entry {
        name: "vm-root",
        recipe: &format!("{RECIPE}\n{BASE_SUITE}\n{BASE_PACKAGES:?}\n{NOT_NEEDED:?}"),
        check: &has("root.cpio"),
        make: &make_base,
    })?;
    Ok(folder)
}

fn make_base(folder: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let apt = Apt::new(scratch.path(), BASE_SUITE)?;
    let root = scratch.path().join("root");
    apt.unpack(&BASE_PACKAGES, &root)?;
    for path in NOT_NEEDED {
        let path = root.join(path);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("{}", path.display()))?;
        }
    }
    fs::copy(root.join("bin/busybox"), folder.join("busybox"))?;
    guest::archive(&folder.join("busybox"), &root, &folder.join("root.cpio"))
}
