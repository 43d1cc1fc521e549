//! How large an object is, as `sys.getsizeof` means it: the object, what it alone owns of plain memory (the characters
//! of a str, the table of a dict), and the `PyGC_Head` in front of it. Not what it refers to.
//!
//! `__sizeof__` that a library or a program defines is not run: of such objects only what their type says is counted.

use super::bytes::{half, word};
use super::layout::{DigitCount, HeapLayout, flags, type_object};
use super::types::{MAX_INLINE_VALUES, SizeRule, TypeInfo, TypeTable, is_pointer};
use crate::ids::Address;

/// Most bytes of an object's start that its size is told by.
pub const OBJECT_BYTES: usize = type_object::BYTES;

/// Bytes of an int without its digits.
const INT_BYTES: u64 = 24;

/// Bytes of an empty bytes object.
const BYTES_BYTES: u64 = 33;

/// Largest number of items that is believed.
const MAX_ITEMS: u64 = 1 << 40;

/// The size of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Bytes, all but those of a key table.
    pub n_bytes: u64,
    /// Bytes of its own block of memory, from the object on: without what stands in front of it.
    pub own_bytes: u64,
    /// Length, as `len` gives it, where that is written in the object.
    pub length: Option<u64>,
    /// What says how much memory it has elsewhere.
    pub elsewhere: Option<Elsewhere>,
}

/// Memory of an object whose size is written somewhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// The key table of a dict.
    Keys {
        /// Where it is.
        table: Address,
        /// The values are apart from it.
        has_values: bool,
    },
    /// The items of an `array.array`.
    Items {
        /// Where their kind is described (`struct arraydescr`).
        kind: Address,
        /// How many there is room for.
        n_items: u64,
    },
    /// The variables and the stack of a frame, as many as this code object says.
    Slots {
        /// Where it is.
        code: Address,
    },
    /// The same of a frame that is elsewhere, and says there which code object that is.
    SlotsOfFrame {
        /// Where it is.
        frame: Address,
    },
}

/// The size of an object of a type whose memory begins with `object`; `None`: its fields make no sense, so that it is
/// none.
#[must_use]
pub fn size(
    layout: &HeapLayout,
    types: &TypeTable,
    info: &TypeInfo,
    address: Address,
    object: &[u8],
) -> Option<Size> {
    let field = |at: usize| word(object, at);
    let in_block = |own_bytes: u64| Size {
        n_bytes: own_bytes,
        own_bytes,
        length: None,
        elsewhere: None,
    };
    // `object.__sizeof__` leaves the attributes' values out.
    let basic = Size {
        n_bytes: info.basicsize,
        ..in_block(info.basicsize + inline_bytes(info, object)?)
    };
    let size = match info.size_rule {
        SizeRule::Items if info.itemsize == 0 => basic,
        SizeRule::Items => {
            let n_items = bounded(field(16)?.cast_signed().unsigned_abs())?;
            let item_bytes = n_items * info.itemsize;
            Size {
                n_bytes: basic.n_bytes + item_bytes,
                length: Some(n_items),
                ..in_block(basic.own_bytes + item_bytes)
            }
        }
        SizeRule::Int => {
            let n_digits = match layout.digits {
                DigitCount::Size => {
                    // From 3.11 on 0 has a digit too.
                    let min = u64::from(layout.version >= (3, 11));
                    field(16)?.cast_signed().unsigned_abs().max(min)
                }
                DigitCount::Tag => (field(16)? >> 3).max(1),
            };
            let digit_bytes = bounded(n_digits)? * 4;
            Size {
                // `int.__sizeof__` leaves out what a subclass adds.
                n_bytes: INT_BYTES + digit_bytes,
                ..in_block(basic.own_bytes + digit_bytes)
            }
        }
        SizeRule::Str => text_size(layout, info, object)?,
        SizeRule::List
        | SizeRule::Dict
        | SizeRule::Set
        | SizeRule::ByteArray
        | SizeRule::Array
        | SizeRule::Deque => container_size(layout, info, basic, object)?,
        SizeRule::Frame if layout.frame.is_none() => {
            // The first item is in `tp_basicsize` too.
            let n_more = bounded(field(16)?)?.saturating_sub(1);
            in_block(basic.own_bytes + n_more * info.itemsize)
        }
        SizeRule::Generator | SizeRule::Frame => Size {
            elsewhere: Some(slots(layout, info, address, object)?),
            ..basic
        },
        // What is no type that is known is none.
        SizeRule::Type => {
            let n_bytes = types.bytes_of_type(address)?;
            Size {
                n_bytes,
                ..in_block(n_bytes.min(layout.static_type_bytes))
            }
        }
    };
    Some(size)
}

/// The size of what has memory elsewhere.
fn container_size(
    layout: &HeapLayout,
    info: &TypeInfo,
    basic: Size,
    object: &[u8],
) -> Option<Size> {
    let field = |at: usize| word(object, at);
    let size = match info.size_rule {
        SizeRule::List => {
            let (n_items, items, n_allocated) = (field(16)?, field(24)?, bounded(field(32)?)?);
            if n_items > n_allocated || !is_pointer_or_null(items) {
                return None;
            }
            Size {
                n_bytes: basic.n_bytes + n_allocated * 8,
                length: Some(n_items),
                ..basic
            }
        }
        SizeRule::Dict => {
            let (n_used, keys, values) = (bounded(field(16)?)?, field(32)?, field(40)?);
            if !is_pointer(keys) {
                return None;
            }
            Size {
                length: Some(n_used),
                elsewhere: Some(Elsewhere::Keys {
                    table: Address(keys),
                    has_values: values != 0,
                }),
                ..basic
            }
        }
        SizeRule::Set => {
            let n_slots = bounded(field(32)?)? + 1;
            if !n_slots.is_power_of_two() || field(24)? > n_slots || !is_pointer(field(40)?) {
                return None;
            }
            // Eight slots lie in the object.
            let apart = if n_slots > 8 { n_slots * 16 } else { 0 };
            Size {
                n_bytes: basic.n_bytes + apart,
                length: field(24),
                ..basic
            }
        }
        SizeRule::ByteArray => {
            let (n_used, n_allocated) = (field(16)?, bounded(field(24)?)?);
            if n_used > n_allocated {
                return None;
            }
            // From 3.15 on they are a bytes object, which is counted as one too.
            let header = if layout.version >= (3, 15) && n_allocated > 0 {
                BYTES_BYTES
            } else {
                0
            };
            Size {
                n_bytes: basic.n_bytes + n_allocated + header,
                length: Some(n_used),
                ..basic
            }
        }
        SizeRule::Array => {
            let (n_items, n_allocated) = (field(16)?, bounded(field(32)?)?);
            if n_items > n_allocated || !is_pointer_or_null(field(24)?) {
                return None;
            }
            Size {
                length: Some(n_items),
                elsewhere: Some(Elsewhere::Items {
                    kind: Address(field(40)?),
                    n_items: n_allocated,
                }),
                ..basic
            }
        }
        SizeRule::Deque => {
            // `BLOCKLEN`, and a block with its two links.
            const ITEMS: u64 = 64;
            const BLOCK_BYTES: u64 = (ITEMS + 2) * 8;
            let (n_items, first) = (bounded(field(16)?)?, field(40)?);
            let n_blocks = first.checked_add(n_items)?.div_ceil(ITEMS);
            Size {
                n_bytes: basic.n_bytes + n_blocks * BLOCK_BYTES,
                length: Some(n_items),
                ..basic
            }
        }
        SizeRule::Items
        | SizeRule::Int
        | SizeRule::Str
        | SizeRule::Generator
        | SizeRule::Frame
        | SizeRule::Type => return None,
    };
    Some(size)
}

/// What says how many variables there is room for at the end of a generator or frame object. Its own frame ends where
/// they begin; that of a frame object is in use when `f_frame` points to it, and else the call still runs.
fn slots(
    layout: &HeapLayout,
    info: &TypeInfo,
    address: Address,
    object: &[u8],
) -> Option<Elsewhere> {
    const F_FRAME: usize = 24;
    let frame = layout.frame?;
    let own = info.basicsize.checked_sub(frame.n_bytes)?;
    if info.size_rule == SizeRule::Frame {
        let used = word(object, F_FRAME)?;
        if !is_pointer(used) {
            return None;
        }
        if used != address.add(own).0 {
            let frame = Address(used);
            return Some(Elsewhere::SlotsOfFrame { frame });
        }
    }
    let code = word(object, usize::try_from(own + frame.code).ok()?)? & !frame.code_tag_mask;
    is_pointer(code).then_some(Elsewhere::Slots {
        code: Address(code),
    })
}

/// `_PyInlineValuesSize` of an object: its `PyDictValues` begin with how many there are, which differs from instance to
/// instance; a word each, one for that, and a byte of order each, in whole words. `None`: more than there can be.
fn inline_bytes(info: &TypeInfo, object: &[u8]) -> Option<u64> {
    if !info.has_inline_values {
        return Some(0);
    }
    let capacity = usize::try_from(info.basicsize)
        .ok()
        .and_then(|at| object.get(at))
        .map_or(info.n_values, |capacity| u64::from(*capacity));
    (capacity <= MAX_INLINE_VALUES).then(|| capacity.next_multiple_of(8) + (capacity + 1) * 8)
}

/// Whether an object has what stands in front of the instances of its type: a type that is no class has not.
#[must_use]
pub fn has_front(info: &TypeInfo, object: &[u8]) -> bool {
    info.size_rule != SizeRule::Type
        || word(object, type_object::FLAGS).is_some_and(|flags| flags & flags::HEAPTYPE != 0)
}

fn is_pointer_or_null(word: u64) -> bool {
    word == 0 || is_pointer(word)
}

fn bounded(n_items: u64) -> Option<u64> {
    (n_items <= MAX_ITEMS).then_some(n_items)
}

/// `unicode.__sizeof__`.
fn text_size(layout: &HeapLayout, info: &TypeInfo, object: &[u8]) -> Option<Size> {
    let str = &layout.str;
    let length = bounded(word(object, str.length.into())?)?;
    let state = half(object, str.state.into())?.checked_shr(str.kind_shift.into())?;
    let (kind, is_compact, is_ascii) = (
        u64::from(state & 7),
        state >> 3 & 1 == 1,
        state >> 4 & 1 == 1,
    );
    // Kind 0 is a string of the old API that nobody looked at yet (<= 3.11).
    if !matches!(kind, 0 | 1 | 2 | 4) || (is_ascii && kind != 1) || (kind == 0 && is_compact) {
        return None;
    }
    let (ascii_data, compact_data) = (u64::from(str.ascii_data), u64::from(str.compact_data));
    let n_char_bytes = (length + 1) * kind;
    let size = |n_bytes, own_bytes| Size {
        n_bytes,
        own_bytes,
        length: Some(length),
        elsewhere: None,
    };
    let size = match (is_compact, is_ascii) {
        (true, true) => size(ascii_data + n_char_bytes, ascii_data + n_char_bytes),
        (true, false) => {
            let utf8 = word(object, str.compact_data as usize - compact_utf8(layout))?;
            let n_utf8 = word(object, str.compact_data as usize - compact_utf8(layout) - 8)?;
            let own = compact_data + n_char_bytes;
            let cached = if utf8 == 0 { 0 } else { bounded(n_utf8)? + 1 };
            size(own + cached, own)
        }
        // `PyUnicodeObject`: a pointer to the characters behind the rest.
        (false, _) => size(compact_data + 8 + n_char_bytes, info.basicsize),
    };
    Some(size)
}

/// Bytes from `PyCompactUnicodeObject.utf8` to the structure's end: `wstr_length` follows it until 3.11.
const fn compact_utf8(layout: &HeapLayout) -> usize {
    if layout.version.1 < 12 { 16 } else { 8 }
}
