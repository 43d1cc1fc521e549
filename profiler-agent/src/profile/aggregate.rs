//! Aggregation: resolved samples in, a [`Profile`] out. Interns everything on the way.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::model::{FrameKind, Profile, ValueType};

/// A frame with its names resolved; what the symbolizer hands over. Shared: the same frame comes again and
/// again, and aggregation compares by pointer first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ResolvedFunction {
    /// Kind of code.
    pub kind: FrameKind,
    /// Name to show.
    pub name: Box<str>,
    /// Source file (Python) or module (native, kernel).
    pub filename: Box<str>,
    /// First line, 0 when there is none.
    pub start_line: u32,
    /// Path of the binary for native frames, `[python]` and `[kernel]` else.
    pub mapping: Box<str>,
    /// Hexadecimal build id of the mapping; may be empty.
    pub build_id: Box<str>,
}

/// A resolved frame of one sample.
#[derive(Debug, Clone)]
pub struct ResolvedFrame {
    /// The function.
    pub function: Arc<ResolvedFunction>,
    /// Line, 0 when not known.
    pub line: u32,
    /// Address for native and kernel frames, else 0.
    pub address: u64,
}

/// Labels of one thread, see FORMATS: the same names in every format.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ThreadLabels {
    /// `pid`.
    pub pid: u32,
    /// `tid`: the kernel's.
    pub tid: u32,
    /// `thread_name`: from `threading` where it has one, else the kernel's name of the thread.
    pub thread_name: Box<str>,
    /// `comm` of the process.
    pub comm: Box<str>,
    /// `python_version`, such as `3.12.1`.
    pub python_version: Box<str>,
}

/// A sample ready to be aggregated.
#[derive(Debug, Clone)]
pub struct ResolvedSample {
    /// Leaf first.
    pub frames: Vec<ResolvedFrame>,
    /// Whose sample it is.
    pub labels: Arc<ThreadLabels>,
    /// Number of samples, and their sum in the second unit (nanoseconds).
    pub values: [i64; 2],
}

/// Collects samples into a profile.
#[derive(Debug)]
pub struct Aggregator {
    start: SystemTime,
}

impl Aggregator {
    /// Begins a profile at `start`.
    #[must_use]
    pub fn new(start: SystemTime, _sample_types: [ValueType; 2], _period: i64) -> Self {
        Self { start }
    }

    /// Adds a sample.
    pub fn add(&mut self, _sample: &ResolvedSample) {}

    /// Ends the profile.
    #[must_use]
    pub fn finish(self, duration: Duration, comments: Vec<String>) -> Profile {
        let _ = (self.start, duration, comments);
        unreachable!("replaced by the aggregation")
    }
}
