//! What a kernel is made to lack, or its machine to have: each kernel is booted in every mode that it knows.

use super::Kernel;

/// How a guest is booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// As it is.
    Plain,
    /// Its BTF is hidden, so that offsets must be calibrated.
    WithoutBtf,
    /// Lockdown that forbids to change the kernel.
    Integrity,
    /// Lockdown that forbids to read its memory too.
    Confidentiality,
    /// One of its CPUs goes and comes back while it is sampled.
    Unplugged,
    /// A machine that could have many more CPUs than it has.
    ManyCpus,
}

/// On the kernel's command line: the guest hides its BTF.
pub(super) const HIDE_BTF: &str = "pyagent.hide_btf";

/// On the kernel's command line: the guest takes its second CPU away and brings it back, again and again.
pub(super) const UNPLUG: &str = "pyagent.unplug";

/// CPUs that a machine could have in [`Mode::ManyCpus`].
pub(super) const N_POSSIBLE_CPUS: u64 = 240;

impl Mode {
    const ALL: [Self; 6] = [
        Self::Plain,
        Self::WithoutBtf,
        Self::Integrity,
        Self::Confidentiality,
        Self::Unplugged,
        Self::ManyCpus,
    ];

    /// Those that a kernel can be booted in.
    pub(super) fn of(kernel: Kernel) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |mode| match mode {
            Self::Plain
            | Self::WithoutBtf
            | Self::Integrity
            | Self::Confidentiality
            | Self::Unplugged => true,
            // Newer ones believe only in CPUs that the firmware calls "online capable", which QEMU 7.2's does not; on
            // arm64 QEMU has no CPUs that are not there.
            Self::ManyCpus => matches!(kernel, Kernel::V5_10 | Kernel::V6_1),
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::WithoutBtf => "without BTF",
            Self::Integrity => "lockdown=integrity",
            Self::Confidentiality => "lockdown=confidentiality",
            Self::Unplugged => "CPUs unplugged",
            Self::ManyCpus => "240 possible CPUs",
        }
    }

    /// What is added to the kernel's command line.
    pub(super) fn kernel_arguments(self) -> &'static str {
        match self {
            Self::Plain | Self::ManyCpus => "",
            Self::WithoutBtf => HIDE_BTF,
            Self::Integrity | Self::Confidentiality => self.name(),
            Self::Unplugged => UNPLUG,
        }
    }

    /// What QEMU is told of the machine.
    pub(super) fn qemu_arguments(self) -> &'static [&'static str] {
        match self {
            Self::ManyCpus => &["-smp", "2,maxcpus=240", "-machine", "q35"],
            Self::Plain
            | Self::WithoutBtf
            | Self::Integrity
            | Self::Confidentiality
            | Self::Unplugged => &["-smp", "2"],
        }
    }

    /// Whether the kernel refuses the programs, so that stacks are read from outside.
    pub(super) fn is_remote(self) -> bool {
        self == Self::Confidentiality
    }
}
