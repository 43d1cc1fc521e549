//! Goes through a process's memory and shows every object to a [`Visitor`].
//!
//! In pools of pymalloc the blocks in use are known; each holds one object, behind what its type puts in front, or plain
//! memory. Elsewhere each pair of a count of references and a pointer to a known type is looked at: its fields, its
//! `PyGC_Head`, and the chunk of memory that it begins, where that is glibc's.
//!
//! The process runs on meanwhile. What is freed or made during the scan is seen or not.

use std::ops::{ControlFlow, Range};

use super::bytes::{HOOK_BYTES, is_debug_hook, start_of_block, word};
use super::chunk;
use super::layout::{GC_HEAD_BYTES, HeapLayout, type_object};
use super::memory::QuietMemory;
use super::pool::{MAX_BLOCK_BYTES, Pool};
use super::size::{self, OBJECT_BYTES, Size};
use super::types::{Allocator, SizeRule, TypeFinder, TypeInfo, TypeTable};
use crate::ids::Address;
use crate::process::memory::{MemoryError, ReadMemory as _};
use crate::process::regions::{RegionKind, Run};

/// Bytes that are read at once, a multiple of each pool's.
const WINDOW_BYTES: u64 = 1 << 20;

/// Bytes that are read in front of a window, for what stands in front of its first object.
const LEAD_BYTES: u64 = 64;

/// Bytes that are read behind a window, for the fields of its last object.
const TAIL_BYTES: u64 = 512;

/// When a window cannot be read as a whole, it is read by pieces of this size.
const PIECE_BYTES: u64 = 4096;

/// Objects begin at multiples of this, among the variables of programs at multiples of half of it.
const ALIGNMENT: usize = 16;

/// Largest object among the variables of programs that is believed.
const MAX_STATIC_BYTES: u64 = 1 << 16;

/// A part of the memory, with a little of what is around it.
#[derive(Debug)]
struct Window<'a> {
    /// Address of the first byte.
    base: u64,
    bytes: &'a [u8],
    /// Where objects are looked for: offsets.
    from: usize,
    to: usize,
    kind: RegionKind,
}

/// An object that was found.
#[derive(Debug)]
pub struct Object<'a> {
    /// Where it is.
    pub address: Address,
    /// Index of its type.
    pub type_idx: u32,
    /// Its size, without a key table.
    pub size: Size,
    /// Bytes in front of it.
    pub bytes_before: u64,
    /// Whether the collector follows it now.
    pub is_tracked: bool,
    /// Those bytes.
    pub front: &'a [u8],
    /// The first bytes of it, [`OBJECT_BYTES`] where that many can be read.
    pub bytes: &'a [u8],
}

/// Who is shown the objects.
pub trait Visitor {
    /// An object.
    fn object(&mut self, info: &TypeInfo, object: &Object<'_>);

    /// All objects of about 1 MiB have been shown: time to read what they point to, many at a time.
    fn end_of_window(&mut self, memory: &QuietMemory) -> Result<(), MemoryError>;

    /// The words of a window, before its objects.
    fn words(&mut self, _address: Address, _bytes: &[u8]) {}
}

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScanCounts {
    /// Bytes.
    pub n_read: u64,
    /// Bytes that were there and could not be read.
    pub n_failed: u64,
}

/// Told of bytes that are done; says whether to go on.
pub type Progress<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// Why a scan has not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The memory cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Nobody waits for it any more.
    #[error("given up")]
    Abandoned,
}

/// First pass: the types.
pub fn find_types(
    memory: &QuietMemory,
    layout: &HeapLayout,
    progress: Progress<'_>,
) -> Result<Option<TypeTable>, ScanError> {
    let mut finder = TypeFinder::new(*layout);
    for_windows(memory, progress, &mut |window| {
        find_types_in(window, layout, &mut finder);
        Ok(())
    })?;
    Ok(finder.finish(memory))
}

fn find_types_in(window: &Window<'_>, layout: &HeapLayout, finder: &mut TypeFinder) {
    let step = window.step();
    let mut at = window.from;
    while at < window.to {
        // Types are larger than the blocks of a pool.
        if window.pool(layout, at).is_some() {
            finder.add_pool();
            at += layout.pool_bytes;
            continue;
        }
        let end = window.end_of_stretch(layout, at);
        for at in (at..end).step_by(step) {
            finder.look(window.base, window.bytes, at);
        }
        at = end;
    }
}

/// Second pass: the objects.
pub fn scan(
    memory: &QuietMemory,
    layout: &HeapLayout,
    types: &TypeTable,
    visitor: &mut dyn Visitor,
    progress: Progress<'_>,
) -> Result<ScanCounts, ScanError> {
    let mut scanner = Scanner {
        memory,
        layout,
        types,
        low_variables: low_variables(&memory.resident.runs),
        end_of_object: 0,
    };
    for_windows(memory, progress, &mut |window| {
        visitor.words(
            Address(window.base + window.from as u64),
            &window.bytes[window.from..window.to],
        );
        scanner.window(window, visitor);
        visitor.end_of_window(memory)
    })
}

struct Scanner<'a> {
    memory: &'a QuietMemory,
    layout: &'a HeapLayout,
    types: &'a TypeTable,
    /// Where the variables of a program lie that is loaded at low addresses, so that pointers to them look like counts.
    low_variables: Range<u64>,
    /// Address of the end of the last object outside of pools: what lies in it is no object.
    end_of_object: u64,
}

/// From the first to the last of the variables that lie where 32 bits reach.
fn low_variables(runs: &[Run]) -> Range<u64> {
    let is_low = |run: &&Run| run.kind == RegionKind::Data && run.end >> 32 == 0;
    let low = || runs.iter().filter(is_low);
    match (low().next(), low().next_back()) {
        (Some(first), Some(last)) => first.start..last.end,
        _ => 0..0,
    }
}

impl<'a> Scanner<'a> {
    fn window(&mut self, window: &Window<'_>, visitor: &mut dyn Visitor) {
        let mut at = window.from;
        while at < window.to {
            if let Some(pool) = window.pool(self.layout, at) {
                for block in pool.used() {
                    self.block(window, at + block, pool.block_bytes, visitor);
                }
                at += self.layout.pool_bytes;
                continue;
            }
            let end = window.end_of_stretch(self.layout, at);
            self.stretch(window, at, end, visitor);
            at = end;
        }
    }

    /// A block of a pool that is in use.
    fn block(
        &self,
        window: &Window<'_>,
        start: usize,
        block_bytes: usize,
        visitor: &mut dyn Visitor,
    ) {
        // The allocator's own debug hooks put a size and a mark in front.
        let hooks = if is_debug_hook(window.bytes, start) {
            HOOK_BYTES
        } else {
            0
        };
        for before in [0, 16, 32] {
            let at = start + hooks + before;
            let Some((type_idx, info)) = self.typed(window, at) else {
                continue;
            };
            if info.bytes_before != before as u64 {
                continue;
            }
            let Some(object) = self.object(window, at, (type_idx, info), true) else {
                continue;
            };
            if hooks + before + object.size.own_bytes as usize <= block_bytes {
                visitor.object(info, &object);
                return;
            }
        }
    }

    /// Memory of which nothing is known.
    fn stretch(&mut self, window: &Window<'_>, from: usize, to: usize, visitor: &mut dyn Visitor) {
        if self.end_of_object >= window.base + to as u64 {
            return;
        }
        for at in (from..to).step_by(window.step()) {
            if window.base + (at as u64) < self.end_of_object {
                continue;
            }
            let Some((type_idx, info)) = self.typed(window, at) else {
                continue;
            };
            let may_be_variable = info.may_be_static || info.is_metatype();
            if window.kind == RegionKind::Data && !may_be_variable {
                continue;
            }
            let Some(object) = self.object(window, at, (type_idx, info), false) else {
                continue;
            };
            let is_believed = match (window.kind, self.types.allocator) {
                (RegionKind::Data, _) => object.size.own_bytes <= MAX_STATIC_BYTES,
                (RegionKind::Anonymous, Allocator::Glibc) => self.is_chunk(window, at, &object),
                (RegionKind::DataAndMore, Allocator::Glibc) => {
                    may_be_variable && object.size.own_bytes <= MAX_STATIC_BYTES
                        || self.is_chunk(window, at, &object)
                }
                (RegionKind::Anonymous | RegionKind::DataAndMore, Allocator::Other) => {
                    may_be_variable || !self.belongs_in_pool(info, &object)
                }
            };
            let own_bytes = object.size.own_bytes;
            if !is_believed
                || own_bytes > TAIL_BYTES
                    && !self.memory.resident.is_mapped(object.address, own_bytes)
            {
                continue;
            }
            // What may be a mistake must not hide much.
            if own_bytes <= MAX_STATIC_BYTES || self.types.allocator == Allocator::Glibc {
                self.end_of_object = object.address.0.saturating_add(own_bytes);
            }
            visitor.object(info, &object);
        }
    }

    /// What has a live count and a known type.
    #[inline]
    fn typed(&self, window: &Window<'_>, at: usize) -> Option<(u32, &'a TypeInfo)> {
        let pair: &[u8; 16] = window.bytes.get(at..)?.first_chunk()?;
        let [count, type_address] = [0, 8].map(|at| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&pair[at..at + 8]);
            u64::from_le_bytes(bytes)
        });
        if !self.layout.refcount.is_live(count) {
            return None;
        }
        let type_idx = self.types.find(type_address)?;
        if self.low_variables.contains(&count) || self.types.find(count).is_some() {
            return None;
        }
        let info = self.types.all().get(type_idx as usize)?;
        Some((type_idx, info))
    }

    fn object<'w>(
        &self,
        window: &Window<'w>,
        at: usize,
        (type_idx, info): (u32, &TypeInfo),
        in_pool: bool,
    ) -> Option<Object<'w>> {
        let bytes = &window.bytes[at..window.bytes.len().min(at + OBJECT_BYTES)];
        let address = Address(window.base + at as u64);
        let mut size = size::size(self.layout, self.types, info, address, bytes)?;
        let has_front = size::has_front(info, bytes);
        let bytes_before = if has_front { info.bytes_before } else { 0 };
        let is_variable = match window.kind {
            RegionKind::Anonymous => false,
            RegionKind::Data => true,
            // In blocks of pools and in chunks there are objects of types that are never variables, and tuples.
            RegionKind::DataAndMore => info.may_be_static && !in_pool,
        };
        let is_tracked = has_front && info.has_gc() && !is_variable && {
            let head = at.checked_sub(GC_HEAD_BYTES as usize)?;
            let next = word(window.bytes, head)?;
            // The lowest bits are flags.
            if next != 0 && !(0x1000..1 << 47).contains(&next) {
                return None;
            }
            next != 0
        };
        size.n_bytes += bytes_before;
        Some(Object {
            address,
            type_idx,
            size,
            bytes_before,
            is_tracked,
            front: &window.bytes[at.saturating_sub(bytes_before as usize)..at],
            bytes,
        })
    }

    /// Whether an object would lie in a pool. What has items can have become smaller where it was.
    fn belongs_in_pool(&self, info: &TypeInfo, object: &Object<'_>) -> bool {
        let n_bytes = object.bytes_before + object.size.own_bytes + 2 * HOOK_BYTES as u64;
        let may_shrink = info.itemsize != 0 || info.size_rule == SizeRule::Str;
        self.types.has_pools && !may_shrink && n_bytes <= MAX_BLOCK_BYTES as u64
    }

    /// Whether an object begins a chunk of glibc's that is in use and fits it.
    fn is_chunk(&self, window: &Window<'_>, at: usize, object: &Object<'_>) -> bool {
        let Some(start) = at.checked_sub(object.bytes_before as usize) else {
            return false;
        };
        let start = start_of_block(window.bytes, start);
        let n_bytes = object.bytes_before + object.size.own_bytes;
        chunk::is_in_use(window.base + start as u64, n_bytes, |address| {
            let at = address.checked_sub(window.base);
            at.and_then(|at| word(window.bytes, usize::try_from(at).ok()?))
                .or_else(|| self.memory.read_u64(Address(address)).ok())
        })
    }
}

impl Window<'_> {
    fn step(&self) -> usize {
        match self.kind {
            RegionKind::Anonymous => ALIGNMENT,
            RegionKind::Data | RegionKind::DataAndMore => ALIGNMENT / 2,
        }
    }

    /// The pool that begins at an offset.
    fn pool(&self, layout: &HeapLayout, at: usize) -> Option<Pool> {
        let address = self.base + at as u64;
        if self.kind == RegionKind::Data || !address.is_multiple_of(layout.pool_bytes as u64) {
            return None;
        }
        let end = self.to.min(at + layout.pool_bytes);
        Pool::parse(address, layout.pool_bytes, self.bytes.get(at..end)?)
    }

    /// Where the next pool can begin.
    fn end_of_stretch(&self, layout: &HeapLayout, at: usize) -> usize {
        let in_pool = (self.base + at as u64) % layout.pool_bytes as u64;
        self.to.min(at + layout.pool_bytes - in_pool as usize)
    }
}

/// Reads all that is there, window by window.
fn for_windows(
    memory: &QuietMemory,
    progress: Progress<'_>,
    take: &mut dyn FnMut(&Window<'_>) -> Result<(), MemoryError>,
) -> Result<ScanCounts, ScanError> {
    let mut counts = ScanCounts::default();
    let mut buffer = vec![0; (LEAD_BYTES + WINDOW_BYTES + TAIL_BYTES) as usize];
    for run in &memory.resident.runs {
        let mut at = run.start;
        while at < run.end {
            let end = run.end.min((at + 1).next_multiple_of(WINDOW_BYTES));
            read_window(memory, run, (at, end), &mut buffer, &mut counts, take)?;
            if progress(end - at).is_break() {
                return Err(ScanError::Abandoned);
            }
            at = end;
        }
    }
    Ok(counts)
}

fn read_window(
    memory: &QuietMemory,
    run: &Run,
    (start, end): (u64, u64),
    buffer: &mut [u8],
    counts: &mut ScanCounts,
    take: &mut dyn FnMut(&Window<'_>) -> Result<(), MemoryError>,
) -> Result<(), MemoryError> {
    let base = run.start.max(start - LEAD_BYTES.min(start));
    let limit = run.end.min(end + TAIL_BYTES);
    let Some(bytes) = buffer.get_mut(..(limit - base) as usize) else {
        return Ok(());
    };
    match memory.read(Address(base), bytes) {
        Ok(()) => {}
        Err(MemoryError::Unmapped(_)) if end - start > PIECE_BYTES => {
            // Some of it has gone.
            let mut at = start;
            while at < end {
                let piece_end = end.min((at + 1).next_multiple_of(PIECE_BYTES));
                let alone = Run {
                    start: at,
                    end: piece_end,
                    kind: run.kind,
                };
                read_window(memory, &alone, (at, piece_end), buffer, counts, take)?;
                at = piece_end;
            }
            return Ok(());
        }
        Err(MemoryError::Unmapped(_)) => {
            counts.n_failed += end - start;
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    counts.n_read += end - start;
    take(&Window {
        base,
        bytes,
        from: (start - base) as usize,
        to: (end - base) as usize,
        kind: run.kind,
    })
}

const _: () = assert!(TAIL_BYTES as usize >= OBJECT_BYTES + type_object::BYTES / 2);
