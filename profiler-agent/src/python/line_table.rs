//! Line tables: which source line each instruction of a code object belongs to, in the three formats that
//! CPython has had. It decodes bytes; reading them from a process is not done here.
//!
//! The formats are described in CPython's `Objects/lnotab_notes.txt` (3.6 to 3.10) and
//! `Objects/locations.md` (3.11 and newer; `InternalDocs/code_objects.md` since 3.14). The oracle of the
//! decoders is the interpreter itself: `tests/tests/offline/lines.rs` compares every instruction of the standard
//! library.

use std::ops::ControlFlow;

/// Most ranges that are kept of one code object: 512 KiB. The largest table of the standard libraries of
/// 3.6 to 3.13, tests included, has 4,962 of them. Instructions behind the last range kept have no line.
pub const MAX_RANGES: usize = 1 << 16;

/// Stands for "no line" in a table; no line number reaches it, because CPython's are C `int`s.
const NO_LINE: u32 = u32::MAX;

/// Line delta that marks a range without a line in [`LineTableFormat::Linetable310`].
const NO_LINE_310: i8 = -128;

/// The encodings of line tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineTableFormat {
    /// `co_lnotab`, 3.9 and older: pairs (bytes, signed lines) to advance by. The line deltas are signed
    /// since 3.6.
    Lnotab,
    /// `co_linetable` of 3.10: pairs (length of the range in bytes, signed line delta), where -128 is a
    /// range without a line and a length of 0 only moves the line.
    Linetable310,
    /// `co_linetable` of 3.11 and newer: the location table, entries of variable length with columns.
    Locations,
}

impl LineTableFormat {
    /// The format of an interpreter by its `PY_VERSION_HEX`.
    #[must_use]
    pub const fn of_version(version_hex: u32) -> Self {
        match version_hex >> 16 {
            ..0x030a => Self::Lnotab,
            0x030a => Self::Linetable310,
            0x030b.. => Self::Locations,
        }
    }
}

/// The lines of one code object: decoded once, looked up for each frame.
///
/// Ranges that touch and have the same line are one. A range is kept as its first offset and its line, and
/// ends where the next one begins, so a table needs 8 bytes a range: about one for each line of source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineTable {
    /// (first offset in bytes, line or [`NO_LINE`]), by ascending offset, neighbours of different lines.
    ranges: Box<[(u32, u32)]>,
}

impl LineTable {
    /// Decodes a table. Total: bytes that no compiler writes give some table, never a panic, and time and
    /// memory grow with `table.len()` alone.
    ///
    /// `first_line` is the code object's `co_firstlineno`.
    #[must_use]
    pub fn decode(format: LineTableFormat, table: &[u8], first_line: u32) -> Self {
        let mut ranges = Ranges::default();
        // The interpreter counts lines in a C int; it never overflows for tables that a compiler wrote.
        let first_line = first_line as i32;
        // A break says that the table is full, which needs no further action.
        let _full = match format {
            LineTableFormat::Lnotab => decode_lnotab(table, first_line, &mut ranges),
            LineTableFormat::Linetable310 => decode_linetable_310(table, first_line, &mut ranges),
            LineTableFormat::Locations => decode_locations(table, first_line, &mut ranges),
        };
        Self {
            ranges: ranges.0.into_boxed_slice(),
        }
    }

    /// Memory that its ranges take.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        size_of_val(&*self.ranges)
    }

    /// Line of the instruction at `offset_bytes` from the code object's first instruction.
    ///
    /// `None` where the interpreter itself says that there is no line (`frame.f_lineno is None`): code that
    /// the compiler made up, such as the end of a `with` block's handler, or an offset outside the table.
    /// Such a frame is to be shown with its function and without a line: the line of a neighbouring
    /// instruction would be a guess, and instructions that are neighbours need not run after each other.
    /// 3.11 and newer give the first instruction of a module line 0.
    ///
    /// A frame that has not begun (`lasti` of -1) is at `co_firstlineno`, which is not in this table.
    #[must_use]
    pub fn line_at(&self, offset_bytes: u32) -> Option<u32> {
        let after = self
            .ranges
            .partition_point(|&(start, _)| start <= offset_bytes);
        let (_, line) = self.ranges.get(after.checked_sub(1)?)?;
        (*line != NO_LINE).then_some(*line)
    }
}

/// A table in the making.
#[derive(Default)]
struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// From `start` on the line is `line` (`None` or negative: there is none). Starts come in ascending
    /// order; a range that begins where the last one began replaces it, for that one was empty.
    fn begin(&mut self, start: u32, line: Option<i32>) -> ControlFlow<()> {
        let line = line
            .and_then(|line| u32::try_from(line).ok())
            .unwrap_or(NO_LINE);
        if self
            .0
            .last()
            .is_some_and(|&(last_start, _)| last_start == start)
        {
            self.0.pop();
        }
        if self
            .0
            .last()
            .is_some_and(|&(_, last_line)| last_line == line)
        {
            return ControlFlow::Continue(());
        }
        if self.0.len() + 1 >= MAX_RANGES {
            self.0.push((start, NO_LINE));
            return ControlFlow::Break(());
        }
        self.0.push((start, line));
        ControlFlow::Continue(())
    }

    /// Nothing behind `end` has a line.
    fn end(&mut self, end: u32) -> ControlFlow<()> {
        self.begin(end, None)
    }
}

/// [`LineTableFormat::Lnotab`]. The last line goes on to the end of the code, which the table does not know.
/// Deltas can lead behind the end of the code (3.8, 3.9: lines optimized away): no instruction lies there.
fn decode_lnotab(table: &[u8], first_line: i32, ranges: &mut Ranges) -> ControlFlow<()> {
    let (mut start, mut line) = (0_u32, first_line);
    ranges.begin(start, Some(line))?;
    for &[length, line_delta] in table.as_chunks().0 {
        start = start.saturating_add(u32::from(length));
        line = line.wrapping_add(i32::from(line_delta.cast_signed()));
        ranges.begin(start, Some(line))?;
    }
    ControlFlow::Continue(())
}

/// [`LineTableFormat::Linetable310`].
fn decode_linetable_310(table: &[u8], first_line: i32, ranges: &mut Ranges) -> ControlFlow<()> {
    let (mut start, mut line) = (0_u32, first_line);
    for &[length, line_delta] in table.as_chunks().0 {
        if line_delta.cast_signed() == NO_LINE_310 {
            ranges.begin(start, None)?;
        } else {
            line = line.wrapping_add(i32::from(line_delta.cast_signed()));
            ranges.begin(start, Some(line))?;
        }
        start = start.saturating_add(u32::from(length));
    }
    ranges.end(start)
}

/// [`LineTableFormat::Locations`]. The first byte of an entry has its top bit set, the others have not: an
/// entry of an unknown shape cannot hide the next one.
fn decode_locations(table: &[u8], first_line: i32, ranges: &mut Ranges) -> ControlFlow<()> {
    let (mut start, mut line) = (0_u32, first_line);
    let entries = table.chunk_by(|_, next| next & 0x80 == 0);
    for entry in entries {
        let Some((head, rest)) = entry.split_first() else {
            continue;
        };
        match LocationKind::of(*head) {
            // The running line stays: the next entry's delta counts from it.
            LocationKind::None => ranges.begin(start, None)?,
            LocationKind::LineDelta(delta) => {
                line = line.wrapping_add(delta);
                ranges.begin(start, Some(line))?;
            }
            LocationKind::LineDeltaVarint => {
                line = line.wrapping_add(signed_varint(rest));
                ranges.begin(start, Some(line))?;
            }
        }
        let n_code_units = u32::from(head & 7) + 1;
        start = start.saturating_add(n_code_units * 2);
    }
    ranges.end(start)
}

/// What an entry of a location table says of the line.
enum LocationKind {
    /// No location at all.
    None,
    /// The line moves by this much.
    LineDelta(i32),
    /// The line moves by the signed varint that follows.
    LineDeltaVarint,
}

impl LocationKind {
    /// From an entry's first byte: bits 3 to 6.
    const fn of(head: u8) -> Self {
        match (head >> 3) & 15 {
            // Short forms: columns only, in one further byte.
            0..=9 => Self::LineDelta(0),
            // One-line forms: the kind is the delta, columns in two further bytes.
            kind @ 10..=12 => Self::LineDelta(kind as i32 - 10),
            // 13 has no columns; 14, the long form, has an end line and columns behind the line's delta.
            13 | 14 => Self::LineDeltaVarint,
            _ => Self::None,
        }
    }
}

/// Reads a signed varint: 6 bits a byte, the low ones first, bit 6 says that another byte follows; bit 0
/// of the value is the sign. Bits beyond 32 are lost, missing bytes are zero.
fn signed_varint(bytes: &[u8]) -> i32 {
    let mut value = 0_u32;
    for (byte_idx, byte) in (0_u32..).zip(bytes) {
        value |= u32::from(byte & 63).checked_shl(byte_idx * 6).unwrap_or(0);
        if byte & 64 == 0 || byte_idx == 5 {
            break;
        }
    }
    let magnitude = (value >> 1) as i32;
    if value & 1 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMATS: [LineTableFormat; 3] = [
        LineTableFormat::Lnotab,
        LineTableFormat::Linetable310,
        LineTableFormat::Locations,
    ];

    fn lines(
        format: LineTableFormat,
        table: &[u8],
        first_line: u32,
        offsets: &[u32],
    ) -> Vec<Option<u32>> {
        let table = LineTable::decode(format, table, first_line);
        offsets
            .iter()
            .map(|&offset| table.line_at(offset))
            .collect()
    }

    #[test]
    fn lnotab_lines_go_backwards_and_the_last_one_goes_on() {
        // 0..4 line 10, 4..6 line 13, 6.. line 8.
        let table = [4, 3, 2, 0xfb];
        assert_eq!(
            lines(LineTableFormat::Lnotab, &table, 10, &[0, 3, 4, 6, 4000]),
            [Some(10), Some(10), Some(13), Some(8), Some(8)]
        );
    }

    #[test]
    fn lnotab_splits_large_steps_over_several_pairs() {
        // 300 bytes: 255 + 45; 200 lines: 127 + 73.
        let table = [255, 0, 45, 127, 0, 73];
        assert_eq!(
            lines(LineTableFormat::Lnotab, &table, 1, &[298, 299, 300]),
            [Some(1), Some(1), Some(201)]
        );
    }

    #[test]
    fn linetable_of_3_10_has_ranges_without_a_line_that_keep_the_running_line() {
        // 0..2 line 5, 2..6 none, 6..8 line 6; behind the end there is nothing.
        let table = [2, 0, 4, 0x80, 2, 1];
        assert_eq!(
            lines(
                LineTableFormat::Linetable310,
                &table,
                5,
                &[0, 2, 5, 6, 7, 8]
            ),
            [Some(5), None, None, Some(6), Some(6), None]
        );
    }

    #[test]
    fn linetable_of_3_10_ranges_of_no_length_only_move_the_line() {
        // 300 lines down in three steps, of which two cover no instruction.
        let table = [0, 127, 0, 127, 4, 46];
        assert_eq!(
            lines(LineTableFormat::Linetable310, &table, 1, &[0, 3]),
            [Some(301), Some(301)]
        );
    }

    #[test]
    fn an_entry_without_a_location_does_not_change_the_running_line() {
        // Kind 11 (delta 1), 1 unit; kind 15, 2 units; kind 0 (delta 0), 1 unit.
        let table = [0x80 | 11 << 3, 0, 0, 0x80 | 15 << 3 | 1, 0x80, 0];
        assert_eq!(
            lines(LineTableFormat::Locations, &table, 5, &[0, 2, 4, 6, 8]),
            [Some(6), None, None, Some(6), None]
        );
    }

    #[test]
    fn the_long_forms_hold_the_delta_as_a_signed_varint() {
        // Kind 14: delta 1000 = varint 2000 = 16 | 64, 31; end line +0, columns 1 and 1.
        // Kind 13: delta -3 = varint 7.
        let table = [0x80 | 14 << 3, 16 | 64, 31, 0, 1, 1, 0x80 | 13 << 3, 7];
        assert_eq!(
            lines(LineTableFormat::Locations, &table, 5, &[0, 2]),
            [Some(1005), Some(1002)]
        );
    }

    #[test]
    fn a_negative_line_is_no_line() {
        assert_eq!(
            lines(LineTableFormat::Lnotab, &[2, 0x80], 5, &[0, 2]),
            [Some(5), None]
        );
    }

    #[test]
    fn a_table_without_entries_knows_only_what_the_format_promises() {
        assert_eq!(
            lines(LineTableFormat::Lnotab, &[], 7, &[0, 100]),
            [Some(7), Some(7)]
        );
        assert_eq!(lines(LineTableFormat::Linetable310, &[], 7, &[0]), [None]);
        assert_eq!(lines(LineTableFormat::Locations, &[], 7, &[0]), [None]);
    }

    #[test]
    fn a_table_of_too_many_ranges_is_cut_and_says_no_line_behind_the_cut() {
        let table = [2, 1].repeat(2 * MAX_RANGES);
        let decoded = LineTable::decode(LineTableFormat::Linetable310, &table, 0);
        assert_eq!(decoded.ranges.len(), MAX_RANGES);
        let n_kept = MAX_RANGES as u32 - 1;
        assert_eq!(decoded.line_at((n_kept - 1) * 2), Some(n_kept));
        assert_eq!(decoded.line_at(n_kept * 2), None);
    }

    #[test]
    fn the_version_decides_the_format() {
        assert_eq!(
            LineTableFormat::of_version(0x0306_0ff0),
            LineTableFormat::Lnotab
        );
        assert_eq!(
            LineTableFormat::of_version(0x0309_12f0),
            LineTableFormat::Lnotab
        );
        assert_eq!(
            LineTableFormat::of_version(0x030a_0df0),
            LineTableFormat::Linetable310
        );
        assert_eq!(
            LineTableFormat::of_version(0x030b_0000),
            LineTableFormat::Locations
        );
        assert_eq!(
            LineTableFormat::of_version(0x030f_00a1),
            LineTableFormat::Locations
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_table_of_ascending_ranges(
            table in proptest::collection::vec(any::<u8>(), 0..600),
            first_line in any::<u32>(),
            offset in any::<u32>(),
        ) {
            for format in FORMATS {
                let decoded = LineTable::decode(format, &table, first_line);
                prop_assert!(decoded.ranges.is_sorted_by(|a, b| a.0 < b.0 && a.1 != b.1));
                prop_assert!(decoded.ranges.len() <= table.len() + 1);
                prop_assert!(decoded.line_at(offset).is_none_or(|line| i32::try_from(line).is_ok()));
            }
        }
    }
}
