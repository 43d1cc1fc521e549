//! Where a probe is placed in a process, and what it is to do.

use std::fs::File;
use std::sync::Arc;

/// What a probe is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Probe {
    /// At the beginning of a function whose first argument is the size.
    SizeFirst,
    /// The second is.
    SizeSecond,
    /// The product of the first two is.
    Product,
    /// The third is, and the first says where the address is stored.
    Indirect,
    /// The second is, and the first is given back.
    Resize,
    /// The same of a function that calls `malloc` when it has nothing to give back.
    ResizeNested,
    /// The product of the second and the third is, and the first is given back.
    ResizeProduct,
    /// At the beginning of a function that gives its first argument back.
    Release,
    /// On the way back of a function that allocates.
    Leave,
    /// On the way back of CPython's function that makes a pool of small objects, each of which passes one probe.
    PoolLeave,
    /// At its beginning, where a way back passes several.
    PoolEnter,
    /// Then on its way back.
    PoolLeaveOnce,
    /// At the beginning of CPython's function that makes an arena.
    ArenaEnter,
    /// On its way back.
    ArenaLeave,
    /// At the beginning of the one that gives an arena back.
    ArenaRelease,
}

impl Probe {
    /// Whether it stands in CPython's allocator of small objects; else in `malloc` or its like.
    #[must_use]
    pub const fn is_of_pools(self) -> bool {
        match self {
            Self::PoolLeave
            | Self::PoolEnter
            | Self::PoolLeaveOnce
            | Self::ArenaEnter
            | Self::ArenaLeave
            | Self::ArenaRelease => true,
            Self::SizeFirst
            | Self::SizeSecond
            | Self::Product
            | Self::Indirect
            | Self::Resize
            | Self::ResizeNested
            | Self::ResizeProduct
            | Self::Release
            | Self::Leave => false,
        }
    }
}

/// Where a probe is placed.
#[derive(Debug, Clone)]
pub struct ProbeSite {
    /// What it does.
    pub probe: Probe,
    /// The file.
    pub file: Arc<File>,
    /// Its path, for messages.
    pub path: String,
    /// Offset of the instruction in the file.
    pub offset: u64,
    /// On the way back: the register that holds the result, as an index into
    /// [`UserRegisters::general`](profiler_common::event::UserRegisters).
    pub result_idx: u8,
    /// The kernel does by itself what the instruction does; else it lets the processor do it, in a single step.
    pub is_emulated: bool,
}
