//! What the resident memory of a process is made of: small objects, `malloc`, `mmap`, stacks, files, programs.
//!
//! `/proc/PID/smaps` says how much of each mapping is resident, and most mappings are one thing. Those without a file can
//! be several, side by side: the kernel makes one of neighbours. There the first bytes of each page that is present tell:
//!
//! - a pool of small objects has a header (`pool`);
//! - a chunk that glibc's `malloc` has mapped begins with its size, a multiple of the page, and the bit `IS_MMAPPED`
//!   (malloc/malloc.c);
//! - the heap of a thread's arena begins at a multiple of 64 MiB with its size (`struct _heap_info`, malloc/arena.c).
//!
//! What is none of these counts as mapped by other means. Where another allocator than the C library's is loaded, whose
//! memory has no such marks, it counts as that one's.

use std::collections::HashSet;
use std::fs;
use std::ops::Range;

use super::bytes::word;
use super::chunk;
use super::pool::PoolHeader;
use crate::ids::{Address, Pid};
use crate::process::maps::FileId;
use crate::process::memory::{MAX_RANGES, ProcessMemory};
use crate::process::regions::{Page, PageMap};
use crate::process::resident;
use crate::process::smaps::{self, MappedRegion};
use crate::profile::memory::Parts;
use crate::python::discover::Interpreter;

/// Most pages whose first bytes are read, over all: what is beyond them counts as mapped by other means.
const MAX_LOOKS: usize = 1 << 20;

/// Pages that are looked at with one system call.
const N_AT_ONCE: usize = 256;

/// Of a mapping so much is looked at before what is known of its pages is forgotten again.
const SLICE_BYTES: u64 = 64 << 20;

/// Most threads whose stacks are looked for.
const MAX_THREADS: usize = 4096;

/// `HEAP_MAX_SIZE` of glibc where it does not map huge pages: heaps begin at its multiples.
const THREAD_HEAP_BYTES: u64 = 64 << 20;

/// Pools of an arena (`Objects/obmalloc.c`): 256 KiB of 4 KiB, or from 3.10 on 1 MiB of 16 KiB.
const POOLS_PER_ARENA: u64 = 64;

/// Allocators other than the C library's, by what their files are called.
const ALLOCATORS: [&[u8]; 3] = [b"jemalloc", b"tcmalloc", b"mimalloc"];

/// Looks at a process. An error: it has gone, or may not be read.
pub fn of_process(pid: Pid, interpreter: &Interpreter) -> std::io::Result<Parts> {
    let regions = smaps::of_process(pid)?;
    let resident = resident::total(pid).unwrap_or_default();
    let programs: HashSet<FileId> = regions
        .iter()
        .filter(|region| region.is_executable)
        .filter_map(|region| region.file)
        .collect();
    let stacks = stack_pointers(pid);
    let has_other_allocator =
        interpreter.binary.free_threaded || regions.iter().any(is_other_allocator);
    let mut looker = Looker {
        memory: ProcessMemory::new(pid),
        pages: PageMap::of_process(pid)?,
        pool_bytes: interpreter.pool_bytes(),
        n_looks: 0,
        parts: Parts {
            resident,
            ..Parts::default()
        },
    };
    let mut end_of_program = None;
    for region in &regions {
        let follows_program = end_of_program == Some(region.start);
        let is_of_program = region.file.is_some_and(|file| programs.contains(&file));
        if is_of_program {
            end_of_program = Some(region.end);
        }
        let has_stack = || {
            let idx = stacks.partition_point(|sp| *sp < region.start);
            stacks.get(idx).is_some_and(|sp| *sp < region.end)
        };
        let parts = &mut looker.parts;
        let part = if region.resident == 0 {
            continue;
        } else if is_of_program || region.name.starts_with(b"[v") {
            &mut parts.programs
        } else if is_shared_memory(region) {
            &mut parts.shared
        } else if region.file.is_some() {
            &mut parts.files
        } else if region.name == b"[heap]" {
            &mut parts.malloc
        } else if region.name.starts_with(b"[stack") || has_stack() {
            &mut parts.stacks
        } else {
            let rest = looker.look(region)?;
            let parts = &mut looker.parts;
            let part = if follows_program {
                // Variables that begin as zero.
                &mut parts.programs
            } else if has_other_allocator {
                &mut parts.malloc
            } else {
                &mut parts.mmap
            };
            *part += rest;
            continue;
        };
        *part += region.resident;
    }
    Ok(looker.parts)
}

fn is_other_allocator(region: &MappedRegion) -> bool {
    let name = region.name.rsplit(|byte| *byte == b'/').next();
    region.is_executable
        && name.is_some_and(|name| {
            ALLOCATORS
                .iter()
                .any(|known| name.windows(known.len()).any(|part| part == *known))
        })
}

/// Memory behind which no file of a disk stands, though the kernel gives it an inode.
fn is_shared_memory(region: &MappedRegion) -> bool {
    let of_shmem: [&[u8]; 4] = [b"/dev/shm/", b"/memfd:", b"/SYSV", b"/dev/zero"];
    of_shmem.iter().any(|name| region.name.starts_with(name))
        || (region.is_shared && region.file.is_none())
}

/// Where the stacks of the threads end, sorted; of threads that run just now it is not known.
fn stack_pointers(pid: Pid) -> Vec<u64> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    // proc_pid_syscall(5): the last but one field; `running` alone when it runs.
    let stack_pointer = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("syscall")).ok()?;
        let field = text.split_ascii_whitespace().rev().nth(1)?.to_owned();
        u64::from_str_radix(field.strip_prefix("0x")?, 16).ok()
    };
    let mut found: Vec<u64> = tasks
        .flatten()
        .take(MAX_THREADS)
        .filter_map(stack_pointer)
        .collect();
    found.sort_unstable();
    found
}

/// What the first bytes of a page tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// A pool of this arena begins here; bytes in use.
    Pool {
        arena_idx: u32,
        in_use: u64,
    },
    /// A chunk or a heap of `malloc` of this size begins here.
    Malloc(u64),
    Nothing,
}

/// Goes through memory without a file.
struct Looker {
    memory: ProcessMemory,
    pages: PageMap,
    /// 0: there are none.
    pool_bytes: u64,
    n_looks: usize,
    parts: Parts,
}

/// An arena as far as it is known: where its first pool lies, and its index.
#[derive(Debug, Clone, Copy)]
struct Arena {
    idx: u32,
    start: u64,
}

/// What the pages before were.
#[derive(Debug, Clone, Copy, Default)]
struct Last {
    /// Up to here all pages are of one pool, or of one chunk or heap of `malloc`.
    end: u64,
    is_pool: bool,
    arena: Option<Arena>,
}

impl Last {
    fn part<'a>(&self, parts: &'a mut Parts) -> &'a mut u64 {
        if self.is_pool {
            &mut parts.small_objects
        } else {
            &mut parts.malloc
        }
    }
}

impl Looker {
    /// Adds what is in a mapping to the parts, and returns how many of its resident bytes are nothing that is known. It goes
    /// slice by slice, so that what is kept does not grow with the mapping.
    fn look(&mut self, region: &MappedRegion) -> std::io::Result<u64> {
        let mut rest = 0;
        let mut last = Last::default();
        let mut present = Vec::new();
        let mut at = region.start;
        while at < region.end {
            let end = region.end.min(at.saturating_add(SLICE_BYTES));
            present.clear();
            let seen = self.pages.look(at, end, &mut |at, page| {
                if page == Page::Present {
                    present.push(at);
                }
            })?;
            rest += self.look_at_pages(&present, region.end, &mut last);
            if seen < end {
                // It was unmapped meanwhile.
                break;
            }
            at = end;
        }
        Ok(rest)
    }

    /// The same of some of its pages that are present; `end` is that of the mapping.
    fn look_at_pages(&mut self, present: &[u64], end: u64, last: &mut Last) -> u64 {
        let mut rest = 0;
        let mut idx = 0;
        // Of the pages from `first_mark` on.
        let mut marks: Vec<Mark> = Vec::new();
        let mut first_mark = 0;
        while let Some(&at) = present.get(idx) {
            if at < last.end {
                let n = present[idx..].partition_point(|page| *page < last.end);
                let n_bytes = self.bytes_of(n);
                *last.part(&mut self.parts) += n_bytes;
                idx += n;
                continue;
            }
            if idx >= first_mark + marks.len() {
                first_mark = idx;
                marks = self.marks(&present[idx..], end);
                if marks.is_empty() {
                    return rest + self.bytes_of(present.len() - idx);
                }
            }
            match marks[idx - first_mark] {
                Mark::Pool { arena_idx, in_use } => {
                    if last.arena.is_none_or(|arena| arena.idx != arena_idx) {
                        last.arena = Some(Arena {
                            idx: arena_idx,
                            start: at,
                        });
                    }
                    self.parts.small_objects_in_use += in_use;
                    (last.end, last.is_pool) = (at + self.pool_bytes, true);
                }
                Mark::Malloc(n_bytes) => (last.end, last.is_pool) = (at + n_bytes, false),
                Mark::Nothing => {
                    // Pools of an arena that were never used can be there, on a huge page.
                    let arena_bytes = POOLS_PER_ARENA * self.pool_bytes;
                    let n_bytes = self.bytes_of(1);
                    if last
                        .arena
                        .is_some_and(|arena| at < arena.start + arena_bytes)
                    {
                        self.parts.small_objects += n_bytes;
                    } else {
                        rest += n_bytes;
                    }
                    idx += 1;
                }
            }
        }
        rest
    }

    fn bytes_of(&self, n_pages: usize) -> u64 {
        n_pages as u64 * self.pages.page_bytes
    }

    /// What the next pages of a mapping that ends at `end` tell; none when enough was read, or nothing can be.
    fn marks(&mut self, pages: &[u64], end: u64) -> Vec<Mark> {
        const PIECE: usize = PoolHeader::N_BYTES;
        const _: () = assert!(N_AT_ONCE <= MAX_RANGES);
        if self.n_looks >= MAX_LOOKS {
            return Vec::new();
        }
        let wanted: Vec<Address> = pages.iter().take(N_AT_ONCE).copied().map(Address).collect();
        self.n_looks += wanted.len();
        let mut buffer = vec![0; wanted.len() * PIECE];
        let Ok(n_read) = self.memory.read_pieces(&wanted, PIECE, &mut buffer) else {
            return Vec::new();
        };
        let pieces = buffer.chunks_exact(PIECE).take(n_read);
        let read = wanted.iter().zip(pieces);
        let mut marks: Vec<Mark> = read
            .map(|(at, bytes)| mark(at.0..end, bytes, self.pool_bytes))
            .collect();
        if marks.len() < wanted.len() {
            // The one that ended the reading.
            marks.push(Mark::Nothing);
        }
        marks
    }
}

/// What the first bytes of a page tell; it begins `range`, which ends with the mapping.
fn mark(range: Range<u64>, bytes: &[u8], pool_bytes: u64) -> Mark {
    if pool_bytes > 0
        && range.start.is_multiple_of(pool_bytes)
        && let Some(header) = PoolHeader::parse(pool_bytes as usize, bytes)
    {
        return Mark::Pool {
            arena_idx: header.arena_idx,
            in_use: (header.n_used * header.block_bytes) as u64,
        };
    }
    let n_bytes = range.end - range.start;
    chunk::of_mapping(n_bytes, bytes)
        .or_else(|| thread_heap(&range, bytes))
        .map_or(Mark::Nothing, Mark::Malloc)
}

/// Bytes of the heap of a thread's arena: `ar_ptr`, `prev`, `size`, `mprotect_size`.
fn thread_heap(range: &Range<u64>, bytes: &[u8]) -> Option<u64> {
    if !range.start.is_multiple_of(THREAD_HEAP_BYTES) {
        return None;
    }
    let arena = word(bytes, 0)?;
    let (size, protected) = (word(bytes, 16)?, word(bytes, 24)?);
    let is_heap = arena != 0
        && arena % THREAD_HEAP_BYTES < 4096
        && size.is_multiple_of(4096)
        && (1..=THREAD_HEAP_BYTES).contains(&size)
        && (size..=THREAD_HEAP_BYTES).contains(&protected);
    // What was given back to the kernel in part is still there behind the size.
    is_heap.then_some(protected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: [u64; 6]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn chunks_heaps_and_pools_are_known_by_their_first_bytes() {
        let at = 0x7f00_0000_0000_u64;
        let mark = |start: u64, words| mark(start..start + (1 << 20), &bytes(words), 16_384);
        assert_eq!(mark(at, [0, 0x21002, 0, 0, 0, 0]), Mark::Malloc(0x21000));
        assert_eq!(mark(at, [0, 0x20ff2, 0, 0, 0, 0]), Mark::Malloc(0x21000));
        // Larger than the mapping; not whole pages; another kind of chunk.
        assert_eq!(mark(at, [0, 0x0200_0002, 0, 0, 0, 0]), Mark::Nothing);
        assert_eq!(mark(at, [0, 0x2_1012, 0, 0, 0, 0]), Mark::Nothing);
        assert_eq!(mark(at, [0, 0x2_1001, 0, 0, 0, 0]), Mark::Nothing);
        let heap = [at + 0x30, 0, 0x21000, 0x21000, 4096, 0];
        assert_eq!(mark(at, heap), Mark::Malloc(0x21000));
        assert_eq!(mark(at + 4096, heap), Mark::Nothing);
        // 5 blocks of 64 bytes in use of 7 that were ever used, in arena 9.
        let pool = [5, 0, 0, 0, 9 | 3 << 32, (48 + 7 * 64) | (16_384 - 64) << 32];
        let expected = Mark::Pool {
            arena_idx: 9,
            in_use: 320,
        };
        assert_eq!(mark(at, pool), expected);
        assert_eq!(mark(at + 4096, pool), Mark::Nothing);
        assert_eq!(mark(at, [0; 6]), Mark::Nothing);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_mark(words in proptest::array::uniform6(proptest::num::u64::ANY), start in 0_u64..1 << 40) {
            let start = start << 12;
            let mut words = words;
            for word in [words[1], words[1] & !7 | 2, words[1] >> 30 << 12 | 2] {
                words[1] = word;
                if let Mark::Malloc(n_bytes) = mark(start..start + (1 << 30), &bytes(words), 4096) {
                    proptest::prop_assert!(n_bytes <= 1 << 30);
                }
            }
        }
    }
}
