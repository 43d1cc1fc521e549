//! What happens to processes, as the kernel programs report it.

use crate::ids::{Generation, Pid};

/// What happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifecycle {
    /// What.
    pub change: Change,
    /// The process.
    pub pid: Pid,
    /// `comm` afterwards.
    pub comm: [u8; 16],
}

/// The kinds of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was forked from a profiled process.
    Fork {
        /// The parent.
        parent: Pid,
        /// The parent's generation.
        parent_generation: Generation,
        /// Its own.
        generation: Generation,
    },
    /// It replaced its program.
    Exec {
        /// The generation that ended; 0 when the process was not known.
        previous: Generation,
        /// The new one.
        generation: Generation,
    },
    /// It ended.
    Exit {
        /// The generation that ended.
        generation: Generation,
    },
}
