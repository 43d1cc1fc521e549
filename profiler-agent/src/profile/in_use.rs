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
    /// Small objects are seen by whole arenas, each of them.
    pub has_arenas: bool,
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
    /// Each sampled allocation.
    pub blocks: Vec<BlockInUse>,
}

/// A sampled allocation that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockInUse {
    /// When it was allocated, in nanoseconds since boot.
    pub at_ns: u64,
    /// Bytes that it stands for.
    pub n_bytes: i64,
    /// Its own, at most as many.
    pub size: u64,
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
        let n_bytes = self.blocks.iter().map(|block| block.n_bytes);
        n_bytes.fold(0, i64::saturating_add)
    }

    /// What was allocated since `begin_ns`, by seconds since then.
    #[must_use]
    pub fn since(&self, begin_ns: u64) -> Vec<Kept> {
        let since = |block: &BlockInUse| {
            Some(Kept {
                at: block.at_ns.checked_sub(begin_ns)? as f64 / 1e9,
                n_bytes: block.n_bytes as f64,
                size: block.size as f64,
            })
        };
        self.blocks.iter().filter_map(since).collect()
    }
}
