//! Fields of what was read, each with its bounds checked, and the marks that the allocator's debug hooks leave.

/// The word at an offset.
#[must_use]
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
}

/// The half word at an offset.
#[must_use]
pub(super) fn half(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}

/// Bytes that the debug hooks put in front of each block.
pub(super) const HOOK_BYTES: usize = 16;

/// Whether the allocator's debug hooks (`PYTHONMALLOC=debug`) stand here: a size, the letter of an allocator, and seven
/// times `PYMEM_FORBIDDENBYTE`.
#[must_use]
pub(super) fn is_debug_hook(bytes: &[u8], at: usize) -> bool {
    word(bytes, at + 8).is_some_and(|mark| mark >> 8 == 0x00fd_fdfd_fdfd_fdfd)
}

/// Where the block begins whose user was given `at`: there, or before the debug hooks. Large objects have those of two
/// allocators.
#[must_use]
pub(super) fn start_of_block(bytes: &[u8], at: usize) -> usize {
    let mut start = at;
    for _ in 0..2 {
        match start.checked_sub(HOOK_BYTES) {
            Some(before) if is_debug_hook(bytes, before) => start = before,
            _ => break,
        }
    }
    start
}
