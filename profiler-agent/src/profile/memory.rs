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

/// What the resident memory of a process is made of, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    /// All that was resident at that moment, as the kernel counts it.
    pub resident: u64,
    /// Pools of CPython's small objects, up to 512 bytes each.
    pub small_objects: u64,
    /// Of them blocks that hold something now.
    pub small_objects_in_use: u64,
    /// What `malloc` and its like have: in use, or kept for later.
    pub malloc: u64,
    /// Other memory without a file: `mmap`, and allocators that are not known.
    pub mmap: u64,
    /// Memory that is shared, or can be: shmem, memfd.
    pub shared: u64,
    /// Files that are mapped and are no program or library.
    pub files: u64,
    /// The stacks of threads.
    pub stacks: u64,
    /// Programs and libraries: code, constants and variables.
    pub programs: u64,
}

impl Parts {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.small_objects
            .saturating_add(self.malloc)
            .saturating_add(self.mmap)
            .saturating_add(self.shared)
            .saturating_add(self.files)
            .saturating_add(self.stacks)
            .saturating_add(self.programs)
    }

    /// Each with its name, in the order in which they are shown.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("small objects", self.small_objects),
            ("malloc", self.malloc),
            ("mmap", self.mmap),
            ("shared memory", self.shared),
            ("mapped files", self.files),
            ("stacks", self.stacks),
            ("programs and libraries", self.programs),
        ]
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
    /// Time that they took since the agent began, estimated from its samples of the CPU: of threads that held the GIL of an
    /// interpreter that was collecting. `None` where `duration` is there, where no such samples are taken, and where it
    /// cannot be known.
    pub sampled_duration: Option<Duration>,
}

impl GcStats {
    /// The time that is known: the measured one, else the estimated one. Of two moments the difference counts.
    #[must_use]
    pub fn time(&self) -> Option<Duration> {
        self.duration.or(self.sampled_duration)
    }
}

/// The memory of a process at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// What is resident.
    pub resident: Resident,
    /// What its garbage collector did; `None` where that is not known of the interpreter, or it is not profiled.
    pub gc: Option<GcStats>,
}
