//! Where a probe is placed in a process, and what it is to do.

use std::fs::File;
use std::sync::Arc;

use crate::profile::model::ProfileType;

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
    /// At the beginning of `mmap`: what has the size of an arena is one.
    ArenaMapEnter,
    /// At the beginning of `munmap`, likewise.
    ArenaUnmap,
    /// At the beginning of `mmap`.
    MapEnter,
    /// Of `sbrk`.
    MapBreak,
    /// Of `mremap`.
    MapResize,
    /// Of `munmap`.
    MapRelease,
    /// On the way back of a function that maps memory.
    MapLeave,
}

impl Probe {
    /// The type of profile that it makes samples for.
    #[must_use]
    pub const fn profile_type(self) -> ProfileType {
        match self {
            Self::PoolLeave
            | Self::PoolEnter
            | Self::PoolLeaveOnce
            | Self::ArenaEnter
            | Self::ArenaLeave
            | Self::ArenaRelease
            | Self::ArenaMapEnter
            | Self::ArenaUnmap => ProfileType::Pools,
            Self::SizeFirst
            | Self::SizeSecond
            | Self::Product
            | Self::Indirect
            | Self::Resize
            | Self::ResizeNested
            | Self::ResizeProduct
            | Self::Release
            | Self::Leave => ProfileType::Alloc,
            Self::MapEnter
            | Self::MapBreak
            | Self::MapResize
            | Self::MapRelease
            | Self::MapLeave => ProfileType::Mmap,
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
