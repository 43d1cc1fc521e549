//! Chunks of glibc's `malloc`: a word in front of what a program was given says how large its chunk is, and one word
//! before that how large the chunk in front of it is, where that is free (`struct malloc_chunk` of its malloc.c).

use super::bytes::word;

/// `PREV_INUSE`, `IS_MMAPPED`, and all flags of a size.
const PREVIOUS_USED: u64 = 1;
const MMAPPED: u64 = 2;
const FLAGS: u64 = 7;

/// Sizes are multiples of this.
const ALIGNMENT: u64 = 16;

/// Bytes of the two words in front of what was given. From 2.43 on, the size of a chunk that was mapped leaves them out.
const HEADER: u64 = 16;

const PAGE: u64 = 4096;

/// What a chunk may be larger than asked for: an object that became smaller stays where it is.
const MAX_SLACK: u64 = 1 << 16;

/// Whether a program was given `given`, in a chunk that is in use and fits `n_bytes`. `word_at` reads a word of its memory.
///
/// Numbers and pointers that chance put there are told from a size by what the chunks around it say of it: an array of
/// pointers to the variables of a program that is loaded at low addresses has both a likely size and a likely object.
pub(super) fn is_in_use(given: u64, n_bytes: u64, word_at: impl Fn(u64) -> Option<u64>) -> bool {
    let Some(chunk) = given.checked_sub(HEADER) else {
        return false;
    };
    let Some(size_word) = word_at(chunk + 8) else {
        return false;
    };
    let chunk_bytes = size_word & !FLAGS;
    let needed = n_bytes.saturating_add(8);
    if !chunk_bytes.is_multiple_of(ALIGNMENT)
        || chunk_bytes < needed
        || chunk_bytes - needed > needed.max(MAX_SLACK)
    {
        return false;
    }
    let Some(next) = chunk.checked_add(chunk_bytes) else {
        return false;
    };
    if size_word & MMAPPED != 0 {
        return next.is_multiple_of(PAGE) || (next + HEADER).is_multiple_of(PAGE);
    }
    is_behind(chunk, size_word, &word_at) && is_before(next, &word_at)
}

/// Whether what stands in front of a chunk is a chunk that is in use, or a free one that knows its size too.
fn is_behind(chunk: u64, size_word: u64, word_at: &impl Fn(u64) -> Option<u64>) -> bool {
    if size_word & PREVIOUS_USED != 0 {
        return true;
    }
    let Some(previous_bytes) = word_at(chunk) else {
        return false;
    };
    let previous = chunk.checked_sub(previous_bytes);
    previous_bytes != 0
        && previous_bytes.is_multiple_of(ALIGNMENT)
        && previous
            .and_then(|previous| word_at(previous.checked_add(8)?))
            .is_some_and(|word| word & !FLAGS == previous_bytes)
}

/// Whether a chunk begins here that says that the one in front of it is in use.
fn is_before(next: u64, word_at: &impl Fn(u64) -> Option<u64>) -> bool {
    next.checked_add(8)
        .and_then(word_at)
        .is_none_or(|word| word & PREVIOUS_USED != 0 && word & !FLAGS & (ALIGNMENT - 1) == 0)
}

/// Bytes of a chunk that `malloc` has mapped; `bytes` are the first of a page, and the mapping has `max_bytes` from there on.
pub(super) fn of_mapping(max_bytes: u64, bytes: &[u8]) -> Option<u64> {
    let (before, size) = (word(bytes, 0)?, word(bytes, 8)?);
    let size_bytes = size & !FLAGS;
    let n_bytes = size_bytes.checked_next_multiple_of(PAGE)?;
    // Of one that was aligned it would say by how much; its begin is not that of a page.
    let is_chunk = size & FLAGS == MMAPPED
        && before < ALIGNMENT
        && n_bytes >= PAGE
        && (n_bytes - size_bytes == 0 || n_bytes - size_bytes == HEADER)
        && n_bytes <= max_bytes;
    is_chunk.then_some(n_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: u64 = 0x5500_0000_0000;

    /// Whether the user's memory behind the words from `chunk` on is one of `n_bytes`.
    fn check(memory: &[(u64, u64)], n_bytes: u64) -> bool {
        is_in_use(AT + HEADER, n_bytes, |at| {
            memory
                .iter()
                .find(|(place, _)| *place == at)
                .map(|(_, word)| *word)
        })
    }

    #[test]
    fn a_chunk_agrees_with_those_around_it() {
        let next = (AT + 0x1000 + 8, 0x91);
        let used = [(AT + 8, 0x1001), next];
        assert!(check(&used, 0x1000 - 8));
        // Too small, and much too large.
        assert!(!check(&used, 0x1000 - 7));
        let large = [(AT + 8, 0x4_0001), (AT + 0x4_0008, 0x91)];
        assert!(!check(&large, 16));
        // Free, as the next one says.
        assert!(!check(&[(AT + 8, 0x1001), (AT + 0x1008, 0x90)], 0x800));
        // The next one cannot be read.
        assert!(check(&[(AT + 8, 0x1001)], 0x800));
        // Behind a free one.
        let behind = |size, its_size| {
            let memory = [
                (AT, size),
                (AT - size + 8, its_size),
                (AT + 8, 0x1000),
                next,
            ];
            check(&memory, 0x800)
        };
        assert!(behind(0x40, 0x41));
        assert!(!behind(0x40, 0x51) && !behind(0x48, 0x49) && !behind(0, 1));
    }

    #[test]
    fn what_was_mapped_ends_with_a_page() {
        for (size, is_one) in [
            (0x30_0002, true),
            (0x2f_fff2, true),
            (0x30_0012, false),
            (0x30_000a, false),
        ] {
            assert_eq!(check(&[(AT + 8, size)], 0x2f_0000), is_one, "{size:#x}");
        }
    }

    #[test]
    fn pointers_to_variables_at_low_addresses_are_no_chunk() {
        // `[&PyFloat_Type, &PyList_Type, a variable's address as the count, &PyBytes_Type, &_Py_NoneStruct]`, the last as the
        // number of bytes.
        for size_word in [0xad_f3e0, 0xad_f3e8] {
            for before in [0xad_ef00, 0, 0x7f00_1234_5670] {
                let memory = [
                    (AT, before),
                    (AT + 8, size_word),
                    (AT + size_word + 8, 0x91),
                ];
                assert!(!check(&memory, 33 + 0xae_01c0) && !check(&memory, 33 + 0xad_0000));
            }
        }
    }

    proptest! {
        #[test]
        fn any_words_are_a_chunk_or_none(words in proptest::collection::vec(any::<u64>(), 4), n_bytes: u64) {
            let _ = is_in_use(words[0], n_bytes, |at| (at % 3 != 0).then_some(words[(at % 4) as usize]));
        }
    }
}
