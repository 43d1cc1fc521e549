//! Pools of pymalloc: which of their blocks are in use.
//!
//! A pool begins with a `struct pool_header` (`Include/internal/pycore_obmalloc.h`; before 3.12 `Objects/obmalloc.c`):
//! count of used blocks, list of free blocks, two links, index of the arena, size class, offset of the first block that
//! was never used, and the largest offset of a block. A stretch of memory counts as a pool only if all of it agrees:
//! blocks in use are those that were ever used, less those in the list, and that is the count.
//!
//! A process that was stopped can stand in the middle of taking a block or giving one back (`pymalloc_alloc`,
//! `pymalloc_pool_extend`, `pymalloc_free`). Then one pool of each allocator differs by one step, and has hundreds of objects
//! all the same: these steps are known too.

use super::bytes::{half, word};

/// `POOL_OVERHEAD`: bytes of the header.
const HEADER_BYTES: usize = 48;

/// `ALIGNMENT`: sizes of blocks are its multiples (3.7+).
const ALIGNMENT: usize = 16;

/// `SMALL_REQUEST_THRESHOLD`: the largest block.
pub(super) const MAX_BLOCK_BYTES: usize = 512;

/// Blocks of the largest pool, at most.
const MAX_BLOCKS: usize = 16384 / ALIGNMENT;

/// A pool that is what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pool {
    /// Bytes of each block.
    pub(super) block_bytes: usize,
    n_carved: usize,
    free: [u64; MAX_BLOCKS / 64],
}

/// The header of a pool alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PoolHeader {
    /// Blocks in use.
    pub(super) n_used: usize,
    /// Bytes of each.
    pub(super) block_bytes: usize,
    /// Index of the arena that the pool is part of.
    pub(super) arena_idx: u32,
    /// Offset of the first block that was never used.
    next_offset: usize,
}

impl PoolHeader {
    /// Bytes that are read for it.
    pub(super) const N_BYTES: usize = HEADER_BYTES;

    /// Reads the header of a pool of `pool_bytes`; `None`: it is none.
    pub(super) fn parse(pool_bytes: usize, bytes: &[u8]) -> Option<Self> {
        let n_used = half(bytes, 0)? as usize;
        let arena_idx = half(bytes, 32)?;
        let size_class = half(bytes, 36)? as usize;
        let next_offset = half(bytes, 40)? as usize;
        let max_next_offset = half(bytes, 44)? as usize;
        let block_bytes = size_class.checked_add(1)?.checked_mul(ALIGNMENT)?;
        let is_one = block_bytes <= MAX_BLOCK_BYTES
            && max_next_offset == pool_bytes.checked_sub(block_bytes)?
            && next_offset > HEADER_BYTES
            && next_offset <= pool_bytes
            && (next_offset - HEADER_BYTES).is_multiple_of(block_bytes)
            && n_used <= (next_offset - HEADER_BYTES) / block_bytes;
        is_one.then_some(Self {
            n_used,
            block_bytes,
            arena_idx,
            next_offset,
        })
    }
}

impl Pool {
    /// Reads a pool of `pool_bytes` that begins at `address`; `None`: it is none, or it changed while it was read. `bytes`
    /// are those that are there: pages on which nothing was ever written are not, though blocks that are free may reach
    /// into them.
    pub(super) fn parse(address: u64, pool_bytes: usize, bytes: &[u8]) -> Option<Self> {
        let PoolHeader {
            n_used,
            block_bytes,
            next_offset,
            ..
        } = PoolHeader::parse(pool_bytes, bytes)?;
        let n_carved = (next_offset - HEADER_BYTES) / block_bytes;
        let mut pool = Self {
            block_bytes,
            n_carved,
            free: [0; MAX_BLOCKS / 64],
        };
        let mut n_free = 0;
        let mut next = word(bytes, 8)?;
        // The next block is at the head of the list already, and not yet counted as ever used.
        if next == address.checked_add(next_offset as u64)? && n_used == n_carved {
            next = 0;
        }
        while next != 0 {
            let offset = usize::try_from(next.checked_sub(address)?).ok()?;
            let from_first = offset.checked_sub(HEADER_BYTES)?;
            let idx = from_first / block_bytes;
            if !from_first.is_multiple_of(block_bytes) || idx >= n_carved || pool.is_free(idx) {
                return None;
            }
            *pool.free.get_mut(idx / 64)? |= 1 << (idx % 64);
            n_free += 1;
            // It is counted, and its link is not yet written: it is the only one.
            if n_free == 1 && idx + 1 == n_carved && n_used == idx {
                break;
            }
            next = word(bytes, offset)?;
        }
        // A block is counted before it is taken out of the list, and as long as it is put back.
        let n_taken = n_carved - n_free;
        (n_used == n_taken || n_used == n_taken + 1).then_some(pool)
    }

    /// Offsets in the pool of the blocks in use.
    pub(super) fn used(&self) -> impl Iterator<Item = usize> {
        (0..self.n_carved)
            .filter(|idx| !self.is_free(*idx))
            .map(|idx| HEADER_BYTES + idx * self.block_bytes)
    }

    fn is_free(&self, idx: usize) -> bool {
        self.free
            .get(idx / 64)
            .is_some_and(|bits| bits >> (idx % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: u64 = 0x7f00_0000_4000;

    /// A pool of 4 KiB with blocks of 64 bytes: five ever used, the second and the fourth free.
    fn pool() -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let mut put = |at: usize, value: u64, n: usize| {
            bytes[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
        };
        let block = |idx: u64| 48 + 64 * idx;
        put(0, 3, 4);
        put(8, AT + block(3), 8);
        put(36, 3, 4);
        put(40, block(5), 4);
        put(44, 4096 - 64, 4);
        put(block(3) as usize, AT + block(1), 8);
        bytes
    }

    #[test]
    fn blocks_in_the_list_of_free_ones_are_not_used() {
        let found = Pool::parse(AT, 4096, &pool()).unwrap();
        assert_eq!(found.block_bytes, 64);
        assert_eq!(found.used().collect::<Vec<_>>(), [48, 176, 304]);
    }

    #[test]
    fn a_count_that_does_not_agree_and_a_list_that_leads_out_or_round_are_no_pool() {
        for count in [2, 5] {
            let mut wrong_count = pool();
            wrong_count[0] = count;
            assert_eq!(Pool::parse(AT, 4096, &wrong_count), None);
        }
        let mut round = pool();
        round[48 + 64..48 + 72].copy_from_slice(&(AT + 48 + 192).to_le_bytes());
        assert_eq!(Pool::parse(AT, 4096, &round), None);
        let mut out = pool();
        out[48 + 64..48 + 72].copy_from_slice(&(AT + 4096).to_le_bytes());
        assert_eq!(Pool::parse(AT, 4096, &out), None);
        assert_eq!(Pool::parse(AT, 4096, &[0; 4096]), None);
    }

    #[test]
    fn a_pool_in_the_middle_of_a_step_is_one() {
        let used = |bytes: &[u8]| {
            let found = Pool::parse(AT, 4096, bytes)?;
            Some(found.used().collect::<Vec<_>>())
        };
        // Counted, and still in the list.
        let mut counted = pool();
        counted[0] = 4;
        assert_eq!(used(&counted), Some(vec![48, 176, 304]));
        // All five are used, and the sixth is put into the list: at first only its address, ...
        let mut extended = pool();
        extended[0] = 5;
        extended[8..16].copy_from_slice(&(AT + 48 + 64 * 5).to_le_bytes());
        extended[48 + 64 * 5..48 + 64 * 5 + 8].copy_from_slice(&[0xdb; 8]);
        let all = Some(vec![48, 112, 176, 240, 304]);
        assert_eq!(used(&extended), all);
        // ... then the offset of the next, and at last its link.
        extended[40..44].copy_from_slice(&(48 + 64 * 6_u32).to_le_bytes());
        assert_eq!(used(&extended), all);
        extended[48 + 64 * 5..48 + 64 * 5 + 8].copy_from_slice(&[0; 8]);
        assert_eq!(used(&extended), all);
    }

    #[test]
    fn a_free_block_may_reach_into_a_page_that_is_not_there() {
        let mut bytes = pool();
        bytes[40..44].copy_from_slice(&(48 + 64 * 6_u32).to_le_bytes());
        let last = 48 + 64 * 5;
        bytes[48 + 64..48 + 72].copy_from_slice(&(AT + last).to_le_bytes());
        let there = &bytes[..last as usize + 16];
        let found = Pool::parse(AT, 4096, there).unwrap();
        assert_eq!(found.used().collect::<Vec<_>>(), [48, 176, 304]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_pool_or_none(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            size_class in 0_u32..40,
            link in 0_u64..5000,
        ) {
            let mut whole = pool();
            whole[..bytes.len()].copy_from_slice(&bytes);
            let _ = Pool::parse(AT, 4096, &whole);
            whole[36..40].copy_from_slice(&size_class.to_le_bytes());
            whole[8..16].copy_from_slice(&(AT + link).to_le_bytes());
            if let Some(pool) = Pool::parse(AT, 4096, &whole) {
                prop_assert!(pool.used().all(|offset| offset + pool.block_bytes <= 4096));
            }
        }
    }
}
