//! The vdso: code that the kernel maps into every process, and that no file backs.
//!
//! All 64-bit processes of a kernel have the same one (`vdso64_image`), so this process's own is as good.

use std::fs::File;
use std::io::Write as _;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, memfd_create};

use super::maps;
use super::memory::{ProcessMemory, ReadMemory as _};
use crate::ids::Pid;

/// How `/proc/PID/maps` calls it.
pub(super) const NAME: &str = "[vdso]";

/// More than any kernel's; today's have 8 KiB.
const MAX_BYTES: u64 = 1 << 20;

/// The image as a file, made once; `None` when this process has none.
pub(super) fn image() -> Option<&'static File> {
    static IMAGE: OnceLock<Option<File>> = OnceLock::new();
    IMAGE.get_or_init(copy).as_ref()
}

fn copy() -> Option<File> {
    let own = Pid(std::process::id());
    let mappings = maps::of_process(own).ok()?;
    let mapping = mappings.iter().find(|mapping| mapping.is_vdso())?;
    let n_bytes = (mapping.end.0 - mapping.start.0).min(MAX_BYTES);
    let mut bytes = vec![0; usize::try_from(n_bytes).ok()?];
    ProcessMemory::new(own)
        .read(mapping.start, &mut bytes)
        .ok()?;
    let mut file = File::from(memfd_create("vdso", MemfdFlags::CLOEXEC).ok()?);
    file.write_all(&bytes).ok()?;
    Some(file)
}
