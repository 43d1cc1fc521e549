//! Where CPython takes new pools for small objects, seldom enough for a probe (Objects/obmalloc.c).
//!
//! `allocate_from_new_pool` (3.9 and later) is called when no pool of a size class has a free block: for one in 63 objects of
//! 64 bytes where pools have 4 KiB (up to 3.9), for one in 255 where they have 16 KiB. In older versions, and where a
//! compiler has put it into its caller, that caller runs for each object, and is never chosen. Then only arenas are
//! left, which are taken through a table of pointers that `PyObject_GetArenaAllocator` copies.

use std::collections::BTreeSet;
use std::fs::File;

use crate::native::elf::{AddressRange, Elf};
use crate::native::function_scan::{FunctionScan, References};
use crate::native::probe_points::{
    self, Code, FunctionProbes, ProbeError, ResultRegisters, Wanted,
};

/// Names of the function, also where the compiler has changed how it is called.
const NAMES: [&str; 5] = [
    "allocate_from_new_pool",
    "allocate_from_new_pool.isra.0",
    "allocate_from_new_pool.part.0",
    "allocate_from_new_pool.constprop.0",
    "allocate_from_new_pool.lto_priv.0",
];

/// `ARENA_SIZE`: 256 KiB up to 3.9, 1 MiB from 3.10 on.
const ARENA_BYTES: [u64; 2] = [256 << 10, 1 << 20];

/// What `SMALL_REQUEST_THRESHOLD` (512) is compared with: what gives blocks out does so for each object.
const THRESHOLDS: [u64; 2] = [511, 512];

/// Offset of `alloc` in `PyObjectArenaAllocator`: `{ctx, alloc, free}`.
const ALLOC_OFFSET: u64 = 8;

/// Bytes of `ctx` and `alloc`, which compilers copy at once, and of `free`.
const COPIES: [(u64, usize); 2] = [(0, 16), (16, 8)];

/// How a place for probes was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundBy {
    /// By the function's symbol.
    Symbol,
    /// By what the function and its callers do.
    Signature,
}

/// Where probes for small objects can stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SmallObjects {
    /// On the function that takes a new pool; it returns a block in the pool.
    Pools {
        /// The function's address, as linked.
        address: u64,
        /// Its probes.
        probes: FunctionProbes,
        /// How it was found.
        found_by: FoundBy,
    },
    /// On the functions that the process's arena allocator points to.
    Arenas {
        /// Address of the `PyObjectArenaAllocator`, as linked.
        allocator: u64,
    },
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SmallObjectsError {
    /// No symbol, and nothing to start from.
    #[error("neither allocate_from_new_pool nor the arena allocator is found")]
    NotFound,
    /// The function is there, but has no place for probes.
    #[error("allocate_from_new_pool: {0}")]
    Probes(#[from] ProbeError),
}

/// Finds the place in the file that holds CPython.
pub fn find(elf: &Elf<'_>, file: &File) -> Result<SmallObjects, SmallObjectsError> {
    let by_symbol = by_symbol(elf).map(|address| (address, FoundBy::Symbol));
    let found = by_symbol.or_else(|| Some((by_signature(elf, file)?, FoundBy::Signature)));
    if let Some((address, found_by)) = found {
        return Ok(SmallObjects::Pools {
            address,
            probes: probes_at(&Code::of(elf, file), address)?,
            found_by,
        });
    }
    find_arenas(elf, file)
}

/// Finds the arena allocator, which is called for each 16th to 64th pool.
pub fn find_arenas(elf: &Elf<'_>, file: &File) -> Result<SmallObjects, SmallObjectsError> {
    let scan = FunctionScan::of(elf, file, RUNTIME).ok_or(SmallObjectsError::NotFound)?;
    let allocator = arena_allocator(elf, &scan).ok_or(SmallObjectsError::NotFound)?;
    Ok(SmallObjects::Arenas { allocator })
}

/// The probes on the function at an address: `allocate_from_new_pool`, or what an arena allocator's `alloc` points to.
pub fn probes_at(code: &Code<'_>, address: u64) -> Result<FunctionProbes, ProbeError> {
    let wanted = Wanted {
        n_arguments: 2,
        results: ResultRegisters::Any,
    };
    probe_points::probes_at(code, address, wanted, &[])
}

/// `allocate_from_new_pool`, by its symbol.
#[must_use]
pub fn by_symbol(elf: &Elf<'_>) -> Option<u64> {
    let symbols = elf.symbols(NAMES);
    symbols
        .into_iter()
        .flatten()
        .next()
        .map(|range| range.start)
}

/// The symbol that the arena allocator is a part of from 3.12 on.
const RUNTIME: &str = "_PyRuntime";

/// `allocate_from_new_pool`, by what it does: it asks the arena allocator for an arena, or calls the one function that does; it
/// does not look at the size of requests; one of its callers does.
#[must_use]
pub fn by_signature(elf: &Elf<'_>, file: &File) -> Option<u64> {
    let scan = FunctionScan::of(elf, file, RUNTIME)?;
    let alloc = arena_allocator(elf, &scan)?.checked_add(ALLOC_OFFSET)?;
    let functions: Vec<(AddressRange, References)> = scan
        .functions()
        .iter()
        .map(|&function| (function, scan.references(function)))
        .collect();
    let takes_arenas = |references: &References| {
        references.calls_through.contains(&alloc)
            && ARENA_BYTES
                .iter()
                .any(|bytes| references.constants.contains(bytes))
    };
    let looks_at_size = |references: &References| {
        THRESHOLDS
            .iter()
            .any(|size| references.compared.contains(size))
    };
    let mut candidates: BTreeSet<u64> = functions
        .iter()
        .filter(|(_, references)| takes_arenas(references))
        .map(|(function, _)| function.start)
        .collect();
    // `new_arena` is a function of its own in builds that are not optimized: then it is its caller.
    for _ in 0..2 {
        let [candidate] = Vec::from_iter(candidates)[..] else {
            return None;
        };
        let (_, own) = functions
            .iter()
            .find(|(function, _)| function.start == candidate)?;
        if looks_at_size(own) {
            return None;
        }
        let callers = || {
            let is_caller = |references: &References| references.calls.contains(&candidate);
            functions
                .iter()
                .filter(move |(_, references)| is_caller(references))
        };
        if callers().any(|(_, references)| looks_at_size(references)) {
            return Some(candidate);
        }
        candidates = callers().map(|(function, _)| function.start).collect();
    }
    None
}

/// The address of the `PyObjectArenaAllocator` in use, from the code of the exported function that copies it.
fn arena_allocator(elf: &Elf<'_>, scan: &FunctionScan<'_>) -> Option<u64> {
    let [function] = elf.symbols(["PyObject_GetArenaAllocator"]);
    let loads = scan.references(function?).loads;
    let is_copied = |start: u64| {
        COPIES
            .iter()
            .all(|&(offset, n_bytes)| loads.contains(&(start.wrapping_add(offset), n_bytes)))
    };
    let mut starts = loads.iter().map(|&(address, _)| address);
    starts.find(|&start| is_copied(start))
}
