//! Memory that an allocator gave to a process, and what is told of it.

use crate::ids::{Address, Pid};

/// Memory that an allocator gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    /// Whose.
    pub pid: Pid,
    /// Which allocator: a row of the source table.
    pub source: u8,
    /// Where it begins.
    pub address: Address,
}

/// Memory was given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// Nanoseconds since boot.
    pub time_ns: u64,
    /// Which memory.
    pub block: Block,
    /// Bytes of a range, of which anything may have been sampled; 0: what was sampled at the address.
    pub n_bytes: u64,
}
