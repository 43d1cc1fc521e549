//! The memory of a process at a moment: what is resident, and what its garbage collector did.

use std::time::Duration;

/// Generations of the cyclic garbage collector; the last one is that of a full collection.
pub const N_GENERATIONS: usize = 3;

/// Resident memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resident {
    /// Anonymous memory: heaps, stacks, copies of private file pages.
    pub anon: u64,
    /// Pages of files that are mapped.
    pub file: u64,
    /// Shared memory: shmem, shared anonymous maps.
    pub shmem: u64,
    /// Anonymous memory that is swapped out; not resident.
    pub swap: u64,
    /// The most that was ever resident.
    pub peak: u64,
}

impl Resident {
    /// All that is resident.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.anon
            .saturating_add(self.file)
            .saturating_add(self.shmem)
    }
}

/// What the cyclic garbage collectors of a process did since its start (`gc.get_stats()`), summed over its interpreters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GcStats {
    /// Collections of each generation.
    pub collections: [u64; N_GENERATIONS],
    /// Objects that each generation's collections freed.
    pub collected: [u64; N_GENERATIONS],
    /// Objects that they could not free.
    pub uncollectable: [u64; N_GENERATIONS],
    /// Time that they took; `None` where the interpreter does not measure it (before 3.15).
    pub duration: Option<Duration>,
}

/// The memory of a process at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// What is resident.
    pub resident: Resident,
    /// What its garbage collector did; `None` where that is not known of the interpreter, or it is not profiled.
    pub gc: Option<GcStats>,
}
