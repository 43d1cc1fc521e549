//! What of a process's sampled allocations is in use, by line.

use super::line_growth::Kept;
use super::model::ProfileType;

/// An answer to the question what is in use now.
#[derive(Debug, Clone, Default)]
pub struct InUse {
    /// Nanoseconds since boot, at which it was so.
    pub at_ns: u64,
    /// Lines that have something in use, in no order.
    pub lines: Vec<LineInUse>,
    /// What is known of the process's probes.
    pub probes: ProbeState,
}

/// The probes of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeState {
    /// What was placed, or it is known why it was not.
    pub is_settled: bool,
    /// Allocators that are seen.
    pub seen: Vec<ProfileType>,
    /// What is not seen, in words.
    pub notes: Vec<String>,
}

/// What a line has in use of what was allocated since the agent began.
#[derive(Debug, Clone)]
pub struct LineInUse {
    /// Which allocator it came from: [`ProfileType::Pools`] or [`ProfileType::Alloc`].
    pub source: ProfileType,
    /// Function, file and line of the leaf-most Python frame; not escaped.
    pub line: LineName,
    /// The stack, leaf first, with which most bytes are in use; Python frames alone.
    pub stack: Vec<LineName>,
    /// Nanoseconds since boot, and what the sample stands for in bytes, of each sampled allocation.
    pub blocks: Vec<(u64, i64)>,
}

/// A line of a function; without a name: of none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineName {
    /// Name of the function.
    pub function: String,
    /// Source file.
    pub file: String,
    /// Line, 0 when not known.
    pub line: u32,
}

impl LineInUse {
    /// Bytes in use.
    #[must_use]
    pub fn n_bytes(&self) -> i64 {
        let sum = |sum: i64, block: &(u64, i64)| sum.saturating_add(block.1);
        self.blocks.iter().fold(0, sum)
    }

    /// What was allocated since `begin_ns`, by seconds since then.
    #[must_use]
    pub fn since(&self, begin_ns: u64) -> Vec<Kept> {
        let since = |(at_ns, n_bytes): &(u64, i64)| {
            Some(Kept {
                at: at_ns.checked_sub(begin_ns)? as f64 / 1e9,
                n_bytes: *n_bytes as f64,
            })
        };
        self.blocks.iter().filter_map(since).collect()
    }
}
