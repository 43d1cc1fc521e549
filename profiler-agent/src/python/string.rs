//! CPython's `str` objects: where the characters lie and how to read them. It decodes bytes that were read
//! from a process; reading them is not done here.
//!
//! The structures are `PyASCIIObject` and `PyCompactUnicodeObject` of CPython's
//! `Include/cpython/unicodeobject.h`. `tests/tests/offline/strings.rs` checks them against real interpreters.

use thiserror::Error;

/// Most characters that are read of one string. Longer ones are cut, and end with [`ELLIPSIS`].
pub const MAX_STR_CHARS: usize = 4096;

/// Bytes at the start of a string object that [`StrHeader::parse`] needs for every [`StrLayout`].
pub const STR_HEADER_BYTES: usize = 64;

/// Shows where a string was cut.
pub const ELLIPSIS: char = '…';

/// Longest string that CPython can have; a greater length is no string.
const MAX_LENGTH: u64 = i64::MAX as u64;

/// Why bytes are not a string that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StrError {
    /// Fewer bytes than the header has.
    #[error("{got} bytes are no str header, which has {needed}")]
    Short {
        /// Bytes that were there.
        got: usize,
        /// Bytes that the layout needs.
        needed: usize,
    },
    /// `state.compact` is not set: an instance of a subclass, or (up to 3.11) a string that was made through
    /// the old API. Its characters lie elsewhere; names and paths of code objects never are such strings.
    #[error("the str is not compact")]
    NotCompact,
    /// `state.kind` is none of 1, 2 and 4: not a string, or one that changed while it was read.
    #[error("{0} is no kind of a str")]
    Kind(u8),
    /// `state.ascii` is set though a character takes more than one byte.
    #[error("an ASCII str cannot be of kind {0}")]
    WideAscii(u8),
    /// The length is negative.
    #[error("{0:#x} is no length of a str")]
    Length(u64),
}

/// Where the fields of a string lie, in bytes from the object's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrLayout {
    /// `PyASCIIObject.length`: characters, a `Py_ssize_t`.
    pub length: u16,
    /// `PyASCIIObject.state`: a `u32` of bit fields.
    pub state: u16,
    /// Size of `PyASCIIObject`: the characters of an ASCII string.
    pub ascii_data: u16,
    /// Size of `PyCompactUnicodeObject`: the characters of any other compact string.
    pub compact_data: u16,
    /// Bits of `state` below `kind`: the width of `interned`. Behind the three bits of `kind` follow
    /// `compact` and `ascii`, in every version.
    pub kind_shift: u8,
}

impl StrLayout {
    /// 3.6 to 3.11: with `wstr`, and with `wstr_length` in the larger structure.
    pub const V3_6: Self = Self {
        length: 16,
        state: 32,
        ascii_data: 48,
        compact_data: 72,
        kind_shift: 2,
    };
    /// 3.12 and newer: without both.
    pub const V3_12: Self = Self {
        ascii_data: 40,
        compact_data: 56,
        ..Self::V3_6
    };
    /// The layout of an interpreter by its `PY_VERSION_HEX`. A free-threaded build (3.13 and newer) has an
    /// object header of 32 bytes in place of 16, which moves everything. That of 3.14 and newer was read in
    /// CPython's header, not compiled.
    #[must_use]
    pub const fn of_version(version_hex: u32, free_threaded: bool) -> Self {
        match (version_hex >> 16, free_threaded) {
            (..0x030c, _) => Self::V3_6,
            (0x030c.., false) => Self::V3_12,
            (..0x030e, true) => Self::V3_12.moved_by(16),
            // `interned` is a byte of its own.
            (0x030e.., true) => Self {
                kind_shift: 8,
                ..Self::V3_12.moved_by(16)
            },
        }
    }

    /// Bytes at the start of a string that say what it is; at most [`STR_HEADER_BYTES`].
    #[must_use]
    pub const fn header_bytes(self) -> usize {
        self.state as usize + size_of::<u32>()
    }

    /// The same with every field this many bytes further.
    const fn moved_by(self, n_bytes: u16) -> Self {
        Self {
            length: self.length + n_bytes,
            state: self.state + n_bytes,
            ascii_data: self.ascii_data + n_bytes,
            compact_data: self.compact_data + n_bytes,
            kind_shift: self.kind_shift,
        }
    }
}

/// How wide a character is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrKind {
    /// One byte: ASCII or Latin-1.
    Latin1 = 1,
    /// Two bytes: characters of the basic plane. Not UTF-16: there are no pairs.
    Ucs2 = 2,
    /// Four bytes.
    Ucs4 = 4,
}

/// What a string object says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrHeader {
    /// Bytes from the object's start to its characters.
    pub data_offset: u16,
    /// Width of the characters.
    pub kind: StrKind,
    /// Characters to read: at most [`MAX_STR_CHARS`].
    pub n_chars: usize,
    /// Bytes to read: `n_chars` times the width.
    pub byte_len: usize,
    /// The string has more characters than `n_chars`.
    pub cut: bool,
}

impl StrHeader {
    /// Reads a header from the first bytes of an object ([`STR_HEADER_BYTES`] suffice).
    pub fn parse(layout: StrLayout, object: &[u8]) -> Result<Self, StrError> {
        let short = StrError::Short {
            got: object.len(),
            needed: usize::from(layout.state) + 4,
        };
        let length = read(object, layout.length)
            .map(u64::from_le_bytes)
            .ok_or(short)?;
        let state = read(object, layout.state)
            .map(u32::from_le_bytes)
            .ok_or(short)?;
        // A shift that is too large comes from a layout that is no constant of ours.
        let state = state.checked_shr(u32::from(layout.kind_shift)).unwrap_or(0);
        let kind = match state & 7 {
            1 => StrKind::Latin1,
            2 => StrKind::Ucs2,
            4 => StrKind::Ucs4,
            kind => return Err(StrError::Kind(kind as u8)),
        };
        let (is_compact, is_ascii) = (state >> 3 & 1 == 1, state >> 4 & 1 == 1);
        if !is_compact {
            return Err(StrError::NotCompact);
        }
        if is_ascii && kind != StrKind::Latin1 {
            return Err(StrError::WideAscii(kind as u8));
        }
        if length > MAX_LENGTH {
            return Err(StrError::Length(length));
        }
        let n_chars = length.min(MAX_STR_CHARS as u64) as usize;
        Ok(Self {
            data_offset: if is_ascii {
                layout.ascii_data
            } else {
                layout.compact_data
            },
            kind,
            n_chars,
            byte_len: n_chars * kind as usize,
            cut: length > MAX_STR_CHARS as u64,
        })
    }

    /// Text of the characters that were read at [`Self::data_offset`]; an [`ELLIPSIS`] ends it if the string
    /// was cut. Fewer bytes than [`Self::byte_len`] give fewer characters, more are ignored.
    #[must_use]
    pub fn decode(&self, data: &[u8]) -> String {
        let mut text = decode(self.kind, data.get(..self.byte_len).unwrap_or(data));
        if self.cut {
            text.push(ELLIPSIS);
        }
        text
    }
}

/// Text of characters as they lie in memory. Total: what is no character (a lone surrogate, as
/// `surrogateescape` makes them of undecodable file names, or a number that is too large) becomes U+FFFD;
/// an incomplete character at the end is dropped.
#[must_use]
pub fn decode(kind: StrKind, data: &[u8]) -> String {
    let char_of = |code: u32| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    match kind {
        StrKind::Latin1 => data.iter().copied().map(char::from).collect(),
        StrKind::Ucs2 => data
            .as_chunks()
            .0
            .iter()
            .map(|&chunk| char_of(u16::from_le_bytes(chunk).into()))
            .collect(),
        StrKind::Ucs4 => data
            .as_chunks()
            .0
            .iter()
            .map(|&chunk| char_of(u32::from_le_bytes(chunk)))
            .collect(),
    }
}

/// The bytes of a field.
fn read<const N: usize>(object: &[u8], offset: u16) -> Option<[u8; N]> {
    object.get(usize::from(offset)..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COMPACT: u32 = 1 << 3;
    const ASCII: u32 = 1 << 4;

    fn object(layout: StrLayout, length: u64, state_above_interned: u32) -> Vec<u8> {
        let mut object = vec![0xaa; STR_HEADER_BYTES];
        let (length_at, state_at) = (usize::from(layout.length), usize::from(layout.state));
        object[length_at..length_at + 8].copy_from_slice(&length.to_le_bytes());
        // `interned` is 1: it must not matter.
        let state = state_above_interned << layout.kind_shift | 1;
        object[state_at..state_at + 4].copy_from_slice(&state.to_le_bytes());
        object
    }

    fn parse(layout: StrLayout, length: u64, state: u32) -> Result<StrHeader, StrError> {
        StrHeader::parse(layout, &object(layout, length, state))
    }

    #[test]
    fn ascii_strings_lie_behind_the_small_structure_and_others_behind_the_large_one() {
        for (version_hex, free_threaded, ascii_data, compact_data) in [
            (0x0306_0ff0, false, 48, 72),
            (0x030b_07f0, false, 48, 72),
            (0x030c_01f0, false, 40, 56),
            (0x030d_00f0, false, 40, 56),
            (0x030d_00f0, true, 56, 72),
            (0x030e_00f0, false, 40, 56),
        ] {
            let layout = StrLayout::of_version(version_hex, free_threaded);
            let ascii = parse(layout, 5, 1 | COMPACT | ASCII).expect("a header");
            assert_eq!(
                (ascii.data_offset, ascii.kind, ascii.byte_len),
                (ascii_data, StrKind::Latin1, 5)
            );
            for (kind, n_bytes) in [
                (StrKind::Latin1, 5),
                (StrKind::Ucs2, 10),
                (StrKind::Ucs4, 20),
            ] {
                let other = parse(layout, 5, kind as u32 | COMPACT).expect("a header");
                assert_eq!(
                    (other.data_offset, other.kind, other.byte_len),
                    (compact_data, kind, n_bytes)
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let layout = StrLayout::V3_12;
        assert_eq!(parse(layout, 5, 1), Err(StrError::NotCompact));
        assert_eq!(parse(layout, 5, 3 | COMPACT), Err(StrError::Kind(3)));
        assert_eq!(
            parse(layout, 5, 2 | COMPACT | ASCII),
            Err(StrError::WideAscii(2))
        );
        assert_eq!(
            parse(layout, u64::MAX, 1 | COMPACT),
            Err(StrError::Length(u64::MAX))
        );
        assert_eq!(
            StrHeader::parse(layout, &[0; 35]),
            Err(StrError::Short {
                got: 35,
                needed: 36
            })
        );
    }

    #[test]
    fn a_long_string_is_cut_and_ends_with_an_ellipsis() {
        let length = MAX_STR_CHARS as u64;
        let whole = parse(StrLayout::V3_12, length, 2 | COMPACT).expect("a header");
        assert!(!whole.cut && whole.byte_len == 2 * MAX_STR_CHARS);
        let cut = parse(StrLayout::V3_12, length + 1, 2 | COMPACT).expect("a header");
        assert_eq!(cut, StrHeader { cut: true, ..whole });
        let text = cut.decode(&[b'a', 0].repeat(MAX_STR_CHARS + 1));
        assert_eq!(text.chars().count(), MAX_STR_CHARS + 1);
        assert!(text.ends_with("a…"));
    }

    #[test]
    fn characters_of_every_width_are_read_and_what_is_none_is_replaced() {
        assert_eq!(decode(StrKind::Latin1, b"na\xefve"), "naïve");
        // A lone surrogate, as os.fsdecode(b'\xff') makes it; a pair is not joined, CPython never means it.
        assert_eq!(
            decode(StrKind::Ucs2, &[0x3b, 0x04, 0xff, 0xdc, 0x42]),
            "л\u{fffd}"
        );
        assert_eq!(
            decode(StrKind::Ucs4, &[0, 0xf6, 1, 0, 0, 0, 0x11, 0]),
            "😀\u{fffd}"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_bounded_string_or_a_reason(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            version_hex in 0x0306_0000_u32..0x0310_0000,
            free_threaded in any::<bool>(),
        ) {
            let layout = StrLayout::of_version(version_hex, free_threaded);
            if let Ok(header) = StrHeader::parse(layout, &bytes) {
                prop_assert!(header.n_chars <= MAX_STR_CHARS);
                prop_assert!(header.decode(&bytes).chars().count() <= MAX_STR_CHARS + 1);
            }
            for kind in [StrKind::Latin1, StrKind::Ucs2, StrKind::Ucs4] {
                prop_assert_eq!(decode(kind, &bytes).chars().count(), bytes.len() / kind as usize);
            }
        }
    }
}
