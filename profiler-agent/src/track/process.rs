//! A process as listings show it.

use std::time::SystemTime;

use crate::ids::Pid;

/// What a process is with regard to profiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrackState {
    /// It is sampled.
    Profiled,
    /// It is being looked at.
    Pending,
    /// It has a CPython that cannot be unwound.
    Refused,
}

impl TrackState {
    /// Word for listings and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Profiled => "profiled",
            Self::Pending => "pending",
            Self::Refused => "not profiled",
        }
    }
}

/// A process as listings show it.
#[derive(Debug, Clone)]
pub struct ProcessListing {
    /// The process.
    pub pid: Pid,
    /// Names.
    pub comm: String,
    /// Program with its script or module.
    pub program: String,
    /// All arguments.
    pub arguments: Vec<String>,
    /// Wall time of its start.
    pub started: SystemTime,
    /// Path of the binary that holds the interpreter; empty when unknown.
    pub interpreter: String,
    /// Version of the interpreter; empty when unknown.
    pub version: String,
    /// State.
    pub state: TrackState,
    /// Why it is not profiled; empty when it is.
    pub reason: String,
}
