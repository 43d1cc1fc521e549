//! Steps of unwinding, generic over how the target's memory is read.
//!
//! The same code runs in the kernel, over recorded memory images, and over `process_vm_readv`. No step
//! loops: the caller does, with a bound.

pub mod link;
pub mod python;
pub mod thread;

/// A read of the target's memory failed: unmapped, or paged out where paging in is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

/// Bytes of a target that one window covers.
pub const WINDOW_BYTES: u64 = 4096;

const WINDOW_WORDS: usize = WINDOW_BYTES as usize / 8;

/// Words behind the window that masked indices can reach; they are never filled.
const SLACK_WORDS: usize = 16;

/// A piece of the target's memory, read at once. Reads of it are masked, so that the verifier (and the
/// compiler, which then needs no bounds check) knows them to lie inside.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Window {
    words: [u64; WINDOW_WORDS + SLACK_WORDS],
}

impl Window {
    /// A window of zeros.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            words: [0; WINDOW_WORDS + SLACK_WORDS],
        }
    }

    /// The word `field` bytes behind `base` bytes; both are cut to what the window has.
    #[must_use]
    #[inline(always)]
    pub fn word(&self, base: u64, field: u16) -> u64 {
        let base_idx = (base >> 3) as usize & (WINDOW_WORDS - 1);
        let field_idx = (field >> 3) as usize & (SLACK_WORDS - 1);
        self.words[base_idx + field_idx]
    }

    /// The word at `offset`, for structures that lie at the window's start.
    #[must_use]
    #[inline(always)]
    pub fn word_at(&self, offset: u16) -> u64 {
        self.words[(offset >> 3) as usize & (WINDOW_WORDS - 1)]
    }

    /// The byte `field` bytes behind `base` bytes.
    #[must_use]
    #[inline(always)]
    pub fn byte(&self, base: u64, field: u16) -> u8 {
        (self.word(base, field) >> ((field & 7) * 8)) as u8
    }

    /// The words to fill, for implementations of [`ReadUser::window`].
    #[must_use]
    pub fn words_mut(&mut self) -> &mut [u64; WINDOW_WORDS + SLACK_WORDS] {
        &mut self.words
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads the memory of a target. Every read is all or nothing.
pub trait ReadUser {
    /// The `N` words from `address` on.
    fn words<const N: usize>(&mut self, address: u64) -> Result<[u64; N], Fault>;

    /// The u32 at `address`.
    fn u32(&mut self, address: u64) -> Result<u32, Fault>;

    /// Fills the first `n_bytes` of `window` from `address`. `n_bytes` is at most [`WINDOW_BYTES`].
    fn window(&mut self, address: u64, n_bytes: u64, window: &mut Window) -> Result<(), Fault>;

    /// The u64 at `address`.
    #[inline(always)]
    fn u64(&mut self, address: u64) -> Result<u64, Fault> {
        let [word] = self.words::<1>(address)?;
        Ok(word)
    }
}
