//! What differs between the machines that are emulated.

use crate::dist;

/// A processor architecture to emulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    X86_64,
    Arm64,
}

/// What QEMU, Debian and the kernel want to know.
pub(super) struct Facts {
    /// The emulator, and the Debian package that brings it.
    pub(super) qemu: &'static str,
    pub(super) qemu_package: &'static str,
    /// The machine, and the processor.
    pub(super) qemu_arguments: &'static [&'static str],
    /// What the kernel calls the serial console.
    pub(super) console: &'static str,
    /// What the kernel calls the architecture.
    pub(super) kernel: &'static str,
    /// What Debian calls the architecture.
    pub(super) debian: &'static str,
    /// Folder of the C library's conversions, which no guest reads.
    pub(super) conversions: &'static str,
    /// For which target the binary inside is built.
    pub(super) target: dist::Target,
}

/// All that QEMU can emulate but `cmpxchg16b`: with QEMU 7.2's, half of all boots of 6.12 end in a double fault
/// in the slab allocator, before anything of ours runs.
const X86_64: Facts = Facts {
    qemu: "qemu-system-x86_64",
    qemu_package: "qemu-system-x86",
    qemu_arguments: &["-cpu", "max,-cx16"],
    console: "ttyS0",
    kernel: "x86-64",
    debian: "amd64",
    conversions: "usr/lib/x86_64-linux-gnu/gconv",
    target: dist::Target::X86_64,
};

/// `pauth-impdef`: QEMU's own way to sign pointers; the architecture's takes most of an emulated CPU's time.
const ARM64: Facts = Facts {
    qemu: "qemu-system-aarch64",
    qemu_package: "qemu-system-arm",
    qemu_arguments: &["-machine", "virt", "-cpu", "max,pauth-impdef=on"],
    console: "ttyAMA0",
    kernel: "arm64",
    debian: "arm64",
    conversions: "usr/lib/aarch64-linux-gnu/gconv",
    target: dist::Target::Aarch64,
};

impl Machine {
    pub(super) const ALL: [Self; 2] = [Self::X86_64, Self::Arm64];

    /// The one that runs here.
    pub(super) fn own() -> Self {
        if dist::Target::Aarch64.is_this_machines() {
            Self::Arm64
        } else {
            Self::X86_64
        }
    }

    pub(super) fn facts(self) -> &'static Facts {
        match self {
            Self::X86_64 => &X86_64,
            Self::Arm64 => &ARM64,
        }
    }
}
