//! What a kernel is made to lack: each is booted in every mode.

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
}

/// On the kernel's command line: the guest hides its BTF.
pub(super) const HIDE_BTF: &str = "pyagent.hide_btf";

impl Mode {
    pub(super) const ALL: [Self; 4] = [
        Self::Plain,
        Self::WithoutBtf,
        Self::Integrity,
        Self::Confidentiality,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::WithoutBtf => "without BTF",
            Self::Integrity => "lockdown=integrity",
            Self::Confidentiality => "lockdown=confidentiality",
        }
    }

    /// What is added to the kernel's command line.
    pub(super) fn kernel_arguments(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::WithoutBtf => HIDE_BTF,
            Self::Integrity | Self::Confidentiality => self.name(),
        }
    }

    /// Whether the kernel refuses the programs, so that stacks are read from outside.
    pub(super) fn is_remote(self) -> bool {
        self == Self::Confidentiality
    }
}
