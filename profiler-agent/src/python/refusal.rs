//! Why a process that looks like Python is not profiled: a closed list, each with what to do.

use super::code::Unsound;
use super::layout::{LayoutNotFound, Version};

/// Why, with the facts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The file that is mapped cannot be opened.
    #[error("its binary cannot be read: {0}")]
    BinaryUnreadable(String),
    /// What it has mapped, or its memory, cannot be read.
    #[error("its memory cannot be read: {0}")]
    MemoryUnreadable(String),
    /// A program for another kind of CPU.
    #[error("{0} is a program for another kind of CPU than this agent")]
    OtherArchitecture(String),
    /// Python, but not CPython.
    #[error("{0} is not CPython")]
    OtherImplementation(String),
    /// A CPython that is called so, but whose runtime is not found.
    #[error("{0} is called like a CPython, but no runtime can be found in it")]
    RuntimeNotFound(String),
    /// A runtime without a version.
    #[error("{0}: it has a runtime, but nothing tells its version")]
    VersionUnknown(String),
    /// Too old.
    #[error("{0}")]
    VersionUnsupported(String),
    /// `_Py_DebugOffsets` that make no sense.
    #[error(transparent)]
    OffsetsUnusable(LayoutNotFound),
    /// The runtime's structures are not linked as they should be.
    #[error("the interpreter's structures do not fit CPython {0}")]
    StructuresInconsistent(Version),
    /// Its frames lead to what is no Python function.
    #[error("its frames do not fit CPython {version}: {unsound}")]
    FramesUnsound {
        /// What was taken to be its version.
        version: Version,
        /// What of them.
        unsound: Unsound,
    },
    /// Nothing runs Python there, though it could.
    #[error("the interpreter in it is not initialised, or has been finalized")]
    NotInitialised,
    /// The kernel's table took no further entry.
    #[error("the kernel's table did not take it: {0}")]
    NotTracked(String),
}

/// The closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// [`Refusal::BinaryUnreadable`].
    BinaryUnreadable,
    /// [`Refusal::MemoryUnreadable`].
    MemoryUnreadable,
    /// [`Refusal::OtherArchitecture`].
    OtherArchitecture,
    /// [`Refusal::OtherImplementation`].
    OtherImplementation,
    /// [`Refusal::RuntimeNotFound`].
    RuntimeNotFound,
    /// [`Refusal::VersionUnknown`].
    VersionUnknown,
    /// [`Refusal::VersionUnsupported`].
    VersionUnsupported,
    /// [`Refusal::OffsetsUnusable`].
    OffsetsUnusable,
    /// [`Refusal::StructuresInconsistent`].
    StructuresInconsistent,
    /// [`Refusal::FramesUnsound`].
    FramesUnsound,
    /// [`Refusal::NotInitialised`].
    NotInitialised,
    /// [`Refusal::NotTracked`].
    NotTracked,
}

impl Refusal {
    /// Which of the list it is.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::BinaryUnreadable(_) => Reason::BinaryUnreadable,
            Self::MemoryUnreadable(_) => Reason::MemoryUnreadable,
            Self::OtherArchitecture(_) => Reason::OtherArchitecture,
            Self::OtherImplementation(_) => Reason::OtherImplementation,
            Self::RuntimeNotFound(_) => Reason::RuntimeNotFound,
            Self::VersionUnknown(_) => Reason::VersionUnknown,
            Self::VersionUnsupported(_) => Reason::VersionUnsupported,
            Self::OffsetsUnusable(_) => Reason::OffsetsUnusable,
            Self::StructuresInconsistent(_) => Reason::StructuresInconsistent,
            Self::FramesUnsound { .. } => Reason::FramesUnsound,
            Self::NotInitialised => Reason::NotInitialised,
            Self::NotTracked(_) => Reason::NotTracked,
        }
    }
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::BinaryUnreadable,
        Self::MemoryUnreadable,
        Self::OtherArchitecture,
        Self::OtherImplementation,
        Self::RuntimeNotFound,
        Self::VersionUnknown,
        Self::VersionUnsupported,
        Self::OffsetsUnusable,
        Self::StructuresInconsistent,
        Self::FramesUnsound,
        Self::NotInitialised,
        Self::NotTracked,
    ];

    /// Name in metrics, in the README, and in listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BinaryUnreadable => "binary_unreadable",
            Self::MemoryUnreadable => "memory_unreadable",
            Self::OtherArchitecture => "other_architecture",
            Self::OtherImplementation => "other_implementation",
            Self::RuntimeNotFound => "runtime_not_found",
            Self::VersionUnknown => "version_unknown",
            Self::VersionUnsupported => "version_unsupported",
            Self::OffsetsUnusable => "offsets_unusable",
            Self::StructuresInconsistent => "structures_inconsistent",
            Self::FramesUnsound => "frames_unsound",
            Self::NotInitialised => "not_initialised",
            Self::NotTracked => "not_tracked",
        }
    }

    /// What the user can do, as a sentence without its period.
    #[must_use]
    pub const fn what_to_do(self) -> &'static str {
        match self {
            Self::BinaryUnreadable => {
                "run pyagent as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH; a file that was replaced \
                 while it runs needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE"
            }
            Self::MemoryUnreadable => {
                "run pyagent as root, or with CAP_SYS_PTRACE; a security module can still forbid it"
            }
            Self::OtherArchitecture => "nothing: only programs of the host's own kind are profiled",
            Self::OtherImplementation => {
                "nothing: use the profiler that comes with that implementation"
            }
            Self::RuntimeNotFound => {
                "use a build that keeps its dynamic symbols or its section .PyRuntime (3.10 and newer keep it when \
                 they are stripped)"
            }
            Self::VersionUnknown => {
                "use a build that keeps its symbol Py_Version or its version string"
            }
            Self::VersionUnsupported => "use CPython 3.6 or newer",
            Self::OffsetsUnusable => {
                "use a newer pyagent: this CPython is newer than it, or a pre-release"
            }
            Self::StructuresInconsistent | Self::FramesUnsound => {
                "use a release build of CPython: debug builds before 3.13 and patched ones lay their structures out \
                 in ways that nothing tells"
            }
            Self::NotInitialised => {
                "nothing: it is looked at again every few seconds, and profiled once it runs Python"
            }
            Self::NotTracked => {
                "raise --max-processes, or profile fewer, by --pid, --comm or --cmdline"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_in_the_readme_with_what_to_do() {
        let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"));
        for reason in Reason::ALL {
            let row = format!("| `{}` | {} |", reason.name(), reason.what_to_do());
            assert!(readme.contains(&row), "the README lacks this row:\n{row}");
        }
    }
}
