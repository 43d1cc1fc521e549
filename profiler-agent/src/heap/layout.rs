//! Where CPython's objects and types keep what a heap is counted by, and how the allocator arranges its pools.
//!
//! Sources: `Include/cpython/object.h`, `Include/internal/pycore_gc.h` and `Objects/obmalloc.c` of each version; the
//! offsets were compiled from the headers of 3.8.18, 3.9.18, 3.10.13, 3.11.7, 3.12.1 and 3.13.0, and checked in 3.14.10
//! and 3.15.2 by the tests, which compare the counts with what the process itself says.

use profiler_common::layout::PyLayout;

use crate::python::layout::{CodeLayout, Layout, Version};
use crate::python::string::StrLayout;

/// Offsets in `PyTypeObject` that are the same from 3.8 to 3.15.
pub mod type_object {
    /// `tp_name`.
    pub const NAME: usize = 24;
    /// `tp_basicsize`.
    pub const BASICSIZE: usize = 32;
    /// `tp_itemsize`.
    pub const ITEMSIZE: usize = 40;
    /// `tp_flags`.
    pub const FLAGS: usize = 168;
    /// `tp_base`.
    pub const BASE: usize = 256;
    /// `tp_dict`.
    pub const DICT: usize = 264;
    /// Bytes that hold all of these.
    pub const BYTES: usize = 272;
}

/// Bits of `tp_flags`.
pub mod flags {
    /// `Py_TPFLAGS_INLINE_VALUES` (3.13+): the attributes' values lie behind the instance.
    pub const INLINE_VALUES: u64 = 1 << 2;
    /// `Py_TPFLAGS_MANAGED_WEAKREF` (3.12+).
    pub const MANAGED_WEAKREF: u64 = 1 << 3;
    /// `Py_TPFLAGS_MANAGED_DICT` (3.11+).
    pub const MANAGED_DICT: u64 = 1 << 4;
    /// `Py_TPFLAGS_HEAPTYPE`.
    pub const HEAPTYPE: u64 = 1 << 9;
    /// `Py_TPFLAGS_READY`.
    pub const READY: u64 = 1 << 12;
    /// `Py_TPFLAGS_READYING`.
    pub const READYING: u64 = 1 << 13;
    /// `Py_TPFLAGS_HAVE_GC`.
    pub const HAVE_GC: u64 = 1 << 14;
    /// `Py_TPFLAGS_LONG_SUBCLASS`.
    pub const INT: u64 = 1 << 24;
    /// `Py_TPFLAGS_LIST_SUBCLASS`.
    pub const LIST: u64 = 1 << 25;
    /// `Py_TPFLAGS_UNICODE_SUBCLASS`.
    pub const STR: u64 = 1 << 28;
    /// `Py_TPFLAGS_DICT_SUBCLASS`.
    pub const DICT: u64 = 1 << 29;
    /// `Py_TPFLAGS_TYPE_SUBCLASS`.
    pub const TYPE: u64 = 1 << 31;
}

/// Bytes of a `PyGC_Head`, in front of each object that the collector can follow.
pub const GC_HEAD_BYTES: u64 = 16;

/// Bytes that managed dicts and weak references take in front of the `PyGC_Head`.
const MANAGED_BYTES: u64 = 16;

/// How an object counts its references.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refcount {
    /// All of the first word; what cannot die has 32 set bits at most.
    Word,
    /// The lower half of the first word (3.14+); a half word of overflow and one of flags follow.
    LowerHalf,
}

impl Refcount {
    /// Whether a word can be the first one of a live object. A link of a list of free blocks is none, nor is the 0 that
    /// an object had when it was freed.
    #[must_use]
    pub const fn is_live(self, word: u64) -> bool {
        match self {
            Self::Word => word != 0 && word >> 32 == 0,
            // Flags stand in few of the highest bits, and nothing counts so far that the lower half overflows.
            Self::LowerHalf => {
                word & 0xffff_ffff != 0 && word >> 32 & 0xffff == 0 && word >> 56 == 0
            }
        }
    }
}

/// How the key table of a dict says its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysLayout {
    /// `dk_size` 8, `dk_usable` 24, `dk_nentries` 32, indices from 40 (<= 3.10).
    Sized,
    /// `dk_log2_size` 8, `dk_log2_index_bytes` 9, `dk_kind` 10, `dk_usable` 16, `dk_nentries` 24, indices from 32.
    Log2,
}

/// How an int says how many digits it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigitCount {
    /// `ob_size`, negative for negative numbers (<= 3.11).
    Size,
    /// `lv_tag` without its lowest three bits (3.12+).
    Tag,
}

/// Offsets in the frames of the interpreter, `struct _PyInterpreterFrame` (3.11+), and in their code objects. Generators
/// and frame objects have such a frame at their end: room for the variables and the stack of its code follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLayout {
    /// Bytes up to the variables (`localsplus`).
    pub n_bytes: u64,
    /// `f_code` or `f_executable`.
    pub code: u64,
    /// Bits to clear in it.
    pub code_tag_mask: u64,
    /// `co_stacksize`, in code objects; `co_firstlineno` and `co_nlocalsplus` follow it, all of them ints.
    pub code_stack_size: u64,
}

impl FrameLayout {
    /// `None`: frames are objects (up to 3.10).
    const fn new(walk: &PyLayout, code: &CodeLayout) -> Option<Self> {
        const INT_BYTES: u16 = 4;
        if !walk.has_data_stack() || code.first_line < INT_BYTES {
            return None;
        }
        Some(Self {
            n_bytes: walk.frame_bytes as u64,
            code: walk.frame_code as u64,
            code_tag_mask: walk.code_tag_mask as u64,
            code_stack_size: (code.first_line - INT_BYTES) as u64,
        })
    }
}

/// All of it for one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeapLayout {
    /// Major and minor version.
    pub version: (u8, u8),
    /// Bytes of a pool of pymalloc, and the alignment of pools.
    pub pool_bytes: usize,
    /// References.
    pub refcount: Refcount,
    /// Flags of types whose instances have [`MANAGED_BYTES`] in front of their `PyGC_Head`.
    pub managed_flags: u64,
    /// `PyHeapTypeObject.ht_qualname`.
    pub qualname: u64,
    /// `PyHeapTypeObject.ht_cached_keys`.
    pub cached_keys: u64,
    /// `sizeof(PyTypeObject)`: a type that is a variable of a program or library.
    pub static_type_bytes: u64,
    /// Key tables.
    pub keys: KeysLayout,
    /// Digits.
    pub digits: DigitCount,
    /// Strings.
    pub str: StrLayout,
    /// Frames, where they are no objects.
    pub frame: Option<FrameLayout>,
}

/// Versions that can be read.
pub const SUPPORTED: &str = "3.8 to 3.15";

impl HeapLayout {
    /// That of an interpreter with the GIL; `None`: its version has none.
    #[must_use]
    pub const fn of_interpreter(layout: &Layout) -> Option<Self> {
        let version = Version(layout.walk.version_hex);
        let (3, minor) = version.minor() else {
            return None;
        };
        let (static_type_bytes, qualname) = match minor {
            8 => (416, 864),
            9 => (408, 856),
            10 | 11 => (408, 864),
            12..=14 => (416, 872),
            15 => (424, 880),
            _ => return None,
        };
        Some(Self {
            version: (3, minor),
            pool_bytes: version.pool_bytes() as usize,
            refcount: if minor < 14 {
                Refcount::Word
            } else {
                Refcount::LowerHalf
            },
            managed_flags: match minor {
                ..11 => 0,
                11 => flags::MANAGED_DICT,
                _ => flags::MANAGED_DICT | flags::MANAGED_WEAKREF,
            },
            qualname,
            cached_keys: qualname + 8,
            static_type_bytes,
            keys: if minor < 11 {
                KeysLayout::Sized
            } else {
                KeysLayout::Log2
            },
            digits: if minor < 12 {
                DigitCount::Size
            } else {
                DigitCount::Tag
            },
            str: StrLayout::of_version(version.0, false),
            frame: FrameLayout::new(&layout.walk, &layout.code),
        })
    }

    /// Bytes in front of the instances of a type with these flags.
    #[must_use]
    pub const fn bytes_before(&self, flags: u64) -> u64 {
        let head = if flags & flags::HAVE_GC == 0 {
            0
        } else {
            GC_HEAD_BYTES
        };
        let managed = if flags & self.managed_flags == 0 {
            0
        } else {
            MANAGED_BYTES
        };
        head + managed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::layout::{Offsets, row};

    #[test]
    fn versions_without_a_layout_have_none() {
        let Some(Offsets::Table(mut layout)) = row(Version::of_minor(3, 12)).map(|row| row.offsets)
        else {
            panic!("a table has the offsets of 3.12");
        };
        let mut of_minor = |major, minor| {
            layout.walk.version_hex = Version::of_minor(major, minor).0;
            HeapLayout::of_interpreter(&layout)
        };
        for minor in 8..=15 {
            assert!(of_minor(3, minor).is_some());
        }
        for (major, minor) in [(3, 7), (3, 16), (2, 7), (4, 8)] {
            assert_eq!(of_minor(major, minor), None);
        }
    }

    #[test]
    fn pointers_and_zero_are_no_reference_counts() {
        for refcount in [Refcount::Word, Refcount::LowerHalf] {
            assert!(refcount.is_live(1) && refcount.is_live(0xffff_ffff));
            assert!(!refcount.is_live(0) && !refcount.is_live(0x7f12_3456_7890));
        }
        assert!(Refcount::LowerHalf.is_live(0x0005_0000_7000_0000));
    }
}
