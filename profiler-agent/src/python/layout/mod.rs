//! Layouts: where CPython's fields lie, one row a version.
//!
//! Up to 3.12 a row has every offset; from 3.13 on the offsets are read from the process itself
//! ([`debug_offsets`]), and the row only adds what that table lacks. Sources: the headers of each version
//! (`Include/internal/pycore_*.h`, `Include/cpython/code.h`), compiled; the tests compile them again.

pub mod debug_offsets;

use profiler_common::layout::{
    ABSENT, EntryMark, FrameRoot, GilKind, IdentityKind, InstructionUnit, LayoutError, PyLayout,
};

use super::line_table::LineTableFormat;
use super::string::StrLayout;

/// Everything that unwinding and symbolizing must know of one interpreter build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// For the walk: the kernel and remote reads.
    pub walk: PyLayout,
    /// For symbolizing.
    pub code: CodeLayout,
    /// For local variables.
    pub locals: LocalsLayout,
    /// `imports.modules` of the interpreter, where the process itself says it: releases of 3.14 differ.
    pub interp_modules: Option<u16>,
    /// Statistics of the cyclic garbage collector; `None`: not known of this release.
    pub gc_stats: Option<GcStatsPlace>,
}

/// Where the statistics of the cyclic garbage collector lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GcStatsPlace {
    /// Totals of each generation, at this offset in `_PyRuntime` (up to 3.8).
    Runtime(u16),
    /// The same, in each interpreter state (3.9 to 3.14).
    Interpreter(u16),
    /// A pointer, at this offset in each interpreter state, to the last collections of each generation (3.15).
    Rings(u16),
}

impl GcStatsPlace {
    /// Where `collecting` lies, from the same start: behind three generations with three words each
    /// (`struct _gc_runtime_state`). [`ABSENT`]: it is not needed, or out of reach.
    #[must_use]
    pub const fn collecting(self) -> u16 {
        const BYTES: u16 = 72;
        match self {
            Self::Runtime(stats) | Self::Interpreter(stats) => match stats.checked_add(BYTES) {
                Some(offset) => offset,
                None => ABSENT,
            },
            Self::Rings(_) => ABSENT,
        }
    }

    /// Not 0: in `_PyRuntime`.
    #[must_use]
    pub const fn is_of_runtime(self) -> u8 {
        matches!(self, Self::Runtime(_)) as u8
    }
}

/// Offsets in code objects, and how their parts are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeLayout {
    /// `PyObject.ob_type`.
    pub ob_type: u16,
    /// `co_filename`.
    pub filename: u16,
    /// `co_name`.
    pub name: u16,
    /// `co_qualname` (3.11+), else [`ABSENT`].
    pub qualname: u16,
    /// `co_firstlineno` (int).
    pub first_line: u16,
    /// `co_lnotab` or `co_linetable` (bytes object).
    pub line_table: u16,
    /// `co_code_adaptive` (3.11+): the first instruction; else [`ABSENT`].
    pub first_instruction: u16,
    /// `co_code` (up to 3.10): the bytecode, a bytes object; else [`ABSENT`].
    pub bytecode: u16,
    /// `co_tlbc` (free-threaded 3.14+): the copies of the bytecode, one a thread; else [`ABSENT`].
    pub thread_bytecode: u16,
    /// `PyBytesObject`: `ob_size`.
    pub bytes_size: u16,
    /// `PyBytesObject`: the bytes.
    pub bytes_data: u16,
    /// `PyTypeObject.tp_name`.
    pub type_name: u16,
    /// Encoding of the line table.
    pub line_table_format: LineTableFormat,
    /// Encoding of str objects.
    pub str: StrLayout,
}

/// Where a frame keeps its local variables, and its code object their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalsLayout {
    /// `f_localsplus` of a frame object (up to 3.10), `localsplus` of a frame: the first variable, a word each.
    pub slots: u16,
    /// `co_argcount` (int): positional arguments.
    pub n_arguments: u16,
    /// `co_kwonlyargcount` (int).
    pub n_keywords: u16,
    /// `co_flags` (int).
    pub flags: u16,
    /// The names.
    pub names: LocalNames,
}

/// Where a code object has the names of its variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalNames {
    /// `co_varnames`, which `co_freevars` and `co_cellvars` follow: tuples of str. In a frame the free variables come
    /// last (up to 3.10).
    ByKind {
        /// `co_varnames`.
        variables: u16,
    },
    /// `co_localsplusnames`, a tuple of str, which `co_localspluskinds` follows: bytes, one for each (3.11+).
    Together {
        /// `co_localsplusnames`.
        names: u16,
    },
}

impl LocalsLayout {
    /// Up to 3.10; `first_line` and `filename` are those of the code object.
    const fn of_frame_objects(slots: u16, filename: u16, first_line: u16) -> Self {
        Self {
            slots,
            n_arguments: 16,
            n_keywords: first_line - 16,
            flags: first_line - 4,
            names: LocalNames::ByKind {
                variables: filename - 32,
            },
        }
    }

    /// 3.11 and newer: between both counts of arguments lies that of positional-only ones.
    const fn of_frames(slots: u16, flags: u16, n_arguments: u16, names: u16) -> Self {
        Self {
            slots,
            n_arguments,
            n_keywords: n_arguments.saturating_add(8),
            flags,
            names: LocalNames::Together { names },
        }
    }
}

/// A version of CPython, as `PY_VERSION_HEX` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u32);

/// Stands for a release number that is not known; there is none so high.
const UNKNOWN_MICRO: u8 = 0xff;

impl Version {
    /// Major and minor version.
    #[must_use]
    pub const fn minor(self) -> (u8, u8) {
        ((self.0 >> 24) as u8, (self.0 >> 16) as u8)
    }

    /// Whether it is a release, and neither an alpha, a beta nor a candidate.
    #[must_use]
    pub const fn is_final(self) -> bool {
        self.0 >> 4 & 0xf == 0xf
    }

    /// Bytes of a pool of small objects, and the alignment of pools, in builds with the GIL (`POOL_SIZE` in
    /// Objects/obmalloc.c; from 3.10 on, where it can keep a tree of its arenas, 16 KiB).
    #[must_use]
    pub const fn pool_bytes(self) -> u64 {
        let (_, minor) = self.minor();
        if minor < 10 { 4096 } else { 16_384 }
    }

    /// From numbers of a final release.
    #[must_use]
    pub const fn new(major: u8, minor: u8, micro: u8) -> Self {
        Self((major as u32) << 24 | (minor as u32) << 16 | (micro as u32) << 8 | 0xf0)
    }

    /// Of which only the minor version is known.
    #[must_use]
    pub const fn of_minor(major: u8, minor: u8) -> Self {
        Self::new(major, minor, UNKNOWN_MICRO)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.minor();
        let micro = (self.0 >> 8) as u8;
        if micro == UNKNOWN_MICRO {
            return write!(f, "{major}.{minor}");
        }
        write!(f, "{major}.{minor}.{micro}")?;
        let serial = self.0 & 0xf;
        match self.0 >> 4 & 0xf {
            0xa => write!(f, "a{serial}"),
            0xb => write!(f, "b{serial}"),
            0xc => write!(f, "rc{serial}"),
            _ => Ok(()),
        }
    }
}

/// Why there is no layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutNotFound {
    /// No row.
    #[error("CPython {0} is not supported (supported: {SUPPORTED})")]
    Unsupported(Version),
    /// The process's own offsets make no sense.
    #[error("CPython {version}: its debug offsets are not usable: {reason}")]
    BadOffsets {
        /// The version they claim.
        version: Version,
        /// What is wrong.
        reason: String,
    },
}

/// The versions that have a row, for messages.
pub const SUPPORTED: &str = "3.6 to 3.15";

/// A row of [`LAYOUTS`].
#[derive(Debug, Clone, Copy)]
pub struct LayoutRow {
    /// Major and minor version.
    pub minor: (u8, u8),
    /// Where the offsets come from.
    pub offsets: Offsets,
}

/// Where a version's offsets come from.
#[derive(Debug, Clone, Copy)]
pub enum Offsets {
    /// From this table. Constants, since the structures of a minor version do not change between releases.
    Table(Layout),
    /// From `_Py_DebugOffsets` in the process.
    Debug,
}

const OBJECT_TYPE: u16 = 8;

const fn code(
    filename: u16,
    first_line: u16,
    line_table: u16,
    qualname: u16,
    first_instruction: u16,
    line_table_format: LineTableFormat,
    str: StrLayout,
) -> CodeLayout {
    CodeLayout {
        ob_type: OBJECT_TYPE,
        filename,
        name: filename + 8,
        qualname,
        first_line,
        line_table,
        first_instruction,
        bytecode: ABSENT,
        thread_bytecode: ABSENT,
        bytes_size: 16,
        bytes_data: 32,
        type_name: 24,
        line_table_format,
        str,
    }
}

/// 3.7 to 3.10: frame objects linked by `f_back`.
const fn frame_objects(
    minor: u8,
    lasti: u16,
    unit: InstructionUnit,
    tstate_current: u16,
    gc_stats: GcStatsPlace,
) -> Layout {
    let format = if minor == 10 {
        LineTableFormat::Linetable310
    } else {
        LineTableFormat::Lnotab
    };
    Layout {
        walk: PyLayout {
            version_hex: Version::new(3, minor, 0).0,
            runtime_interpreters_head: 32,
            interp_next: 0,
            interp_threads_head: 8,
            gil: tstate_current,
            tstate_bytes: 184,
            tstate_next: 8,
            tstate_interp: 16,
            tstate_thread_id: 176,
            tstate_native_thread_id: ABSENT,
            tstate_frame: 24,
            cframe_current_frame: ABSENT,
            tstate_datastack_chunk: ABSENT,
            frame_bytes: lasti + 8,
            frame_code: 32,
            frame_previous: 24,
            frame_instr: lasti,
            frame_owner: ABSENT,
            frame_is_entry: ABSENT,
            code_identity: 104,
            frame_root: FrameRoot::Direct,
            entry_mark: EntryMark::Null,
            identity_kind: IdentityKind::Pointers3,
            instruction_unit: unit,
            gil_kind: GilKind::RuntimeCurrent,
            code_tag_mask: 0,
            gc_collecting: gc_stats.collecting(),
            gc_is_of_runtime: gc_stats.is_of_runtime(),
            reserved: 0,
        },
        code: CodeLayout {
            bytecode: 48,
            ..code(
                104,
                40,
                120,
                ABSENT,
                ABSENT,
                format,
                StrLayout::of_version(Version::new(3, minor, 0).0, false),
            )
        },
        locals: LocalsLayout::of_frame_objects(if minor == 10 { 352 } else { 360 }, 104, 40),
        interp_modules: None,
        gc_stats: Some(gc_stats),
    }
}

/// 3.7: code objects have no `co_posonlyargcount` in front yet.
const LAYOUT_3_7: Layout = {
    let gc_stats = GcStatsPlace::Runtime(560);
    let mut layout = frame_objects(7, 104, InstructionUnit::LastiBytes, 1480, gc_stats);
    layout.walk.runtime_interpreters_head = 24;
    layout.walk.code_identity = 96;
    layout.code.filename = 96;
    layout.code.name = 104;
    layout.code.first_line = 36;
    layout.code.line_table = 112;
    layout.locals = LocalsLayout::of_frame_objects(360, 96, 36);
    layout.code.bytecode = 40;
    layout
};

/// 3.6 has no `_PyRuntime`: in its place stands the static variable `interp_head`. Which thread holds the GIL is in a
/// variable of its own, elsewhere.
const LAYOUT_3_6: Layout = {
    let mut layout = LAYOUT_3_7;
    layout.walk.version_hex = Version::new(3, 6, 0).0;
    layout.walk.runtime_interpreters_head = 0;
    layout.walk.tstate_bytes = 160;
    layout.walk.tstate_thread_id = 152;
    layout.walk.frame_instr = 120;
    layout.walk.frame_bytes = 128;
    layout.walk.gil_kind = GilKind::Unknown;
    layout.walk.gil = ABSENT;
    layout.locals = LocalsLayout::of_frame_objects(376, 96, 36);
    layout.gc_stats = None;
    layout.walk.gc_collecting = ABSENT;
    layout
};

const LAYOUT_3_11: Layout = Layout {
    walk: PyLayout {
        version_hex: Version::new(3, 11, 0).0,
        runtime_interpreters_head: 40,
        interp_next: 0,
        interp_threads_head: 16,
        gil: 576,
        tstate_bytes: 304,
        tstate_next: 8,
        tstate_interp: 16,
        tstate_thread_id: 152,
        tstate_native_thread_id: 160,
        tstate_frame: 56,
        cframe_current_frame: 8,
        tstate_datastack_chunk: 296,
        frame_bytes: 72,
        frame_code: 32,
        frame_previous: 48,
        frame_instr: 56,
        frame_owner: 69,
        frame_is_entry: 68,
        code_identity: 112,
        frame_root: FrameRoot::CFrame,
        entry_mark: EntryMark::IsEntry,
        identity_kind: IdentityKind::Pointers4,
        instruction_unit: InstructionUnit::PrevInstr,
        gil_kind: GilKind::RuntimeCurrent,
        code_tag_mask: 0,
        gc_collecting: 848,
        gc_is_of_runtime: 0,
        reserved: 0,
    },
    code: code(
        112,
        72,
        136,
        128,
        184,
        LineTableFormat::Locations,
        StrLayout::of_version(Version::new(3, 11, 0).0, false),
    ),
    locals: LocalsLayout::of_frames(72, 48, 56, 96),
    interp_modules: None,
    gc_stats: Some(GcStatsPlace::Interpreter(776)),
};

const LAYOUT_3_12: Layout = Layout {
    walk: PyLayout {
        version_hex: Version::new(3, 12, 0).0,
        runtime_interpreters_head: 40,
        interp_next: 0,
        interp_threads_head: 72,
        gil: 384,
        tstate_bytes: 240,
        tstate_next: 8,
        tstate_interp: 16,
        tstate_thread_id: 136,
        tstate_native_thread_id: 144,
        tstate_frame: 56,
        cframe_current_frame: 0,
        tstate_datastack_chunk: 232,
        frame_bytes: 72,
        frame_code: 0,
        frame_previous: 8,
        frame_instr: 56,
        frame_owner: 70,
        frame_is_entry: ABSENT,
        code_identity: 92,
        frame_root: FrameRoot::CFrame,
        entry_mark: EntryMark::Owner,
        identity_kind: IdentityKind::Version,
        instruction_unit: InstructionUnit::PrevInstr,
        gil_kind: GilKind::Interpreter,
        code_tag_mask: 0,
        gc_collecting: 312,
        gc_is_of_runtime: 0,
        reserved: 0,
    },
    code: code(
        112,
        68,
        136,
        128,
        192,
        LineTableFormat::Locations,
        StrLayout::of_version(Version::new(3, 12, 0).0, false),
    ),
    locals: LocalsLayout::of_frames(72, 48, 52, 96),
    interp_modules: None,
    gc_stats: Some(GcStatsPlace::Interpreter(240)),
};

/// Every supported version.
pub const LAYOUTS: &[LayoutRow] = &[
    LayoutRow {
        minor: (3, 6),
        offsets: Offsets::Table(LAYOUT_3_6),
    },
    LayoutRow {
        minor: (3, 7),
        offsets: Offsets::Table(LAYOUT_3_7),
    },
    LayoutRow {
        minor: (3, 8),
        offsets: Offsets::Table(frame_objects(
            8,
            104,
            InstructionUnit::LastiBytes,
            1368,
            GcStatsPlace::Runtime(472),
        )),
    },
    LayoutRow {
        minor: (3, 9),
        offsets: Offsets::Table(frame_objects(
            9,
            104,
            InstructionUnit::LastiBytes,
            568,
            GcStatsPlace::Interpreter(744),
        )),
    },
    LayoutRow {
        minor: (3, 10),
        offsets: Offsets::Table(frame_objects(
            10,
            96,
            InstructionUnit::LastiUnits,
            568,
            GcStatsPlace::Interpreter(744),
        )),
    },
    LayoutRow {
        minor: (3, 11),
        offsets: Offsets::Table(LAYOUT_3_11),
    },
    LayoutRow {
        minor: (3, 12),
        offsets: Offsets::Table(LAYOUT_3_12),
    },
    LayoutRow {
        minor: (3, 13),
        offsets: Offsets::Debug,
    },
    LayoutRow {
        minor: (3, 14),
        offsets: Offsets::Debug,
    },
    LayoutRow {
        minor: (3, 15),
        offsets: Offsets::Debug,
    },
];

/// The row of a version.
#[must_use]
pub fn row(version: Version) -> Option<&'static LayoutRow> {
    LAYOUTS.iter().find(|row| row.minor == version.minor())
}

impl From<(Version, LayoutError)> for LayoutNotFound {
    fn from((version, error): (Version, LayoutError)) -> Self {
        Self::BadOffsets {
            version,
            reason: format!("{error:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_passes_the_bounds_that_the_walk_relies_on() {
        for row in LAYOUTS {
            match row.offsets {
                Offsets::Table(layout) => {
                    assert_eq!(layout.walk.check(), Ok(()), "{:?}", row.minor);
                }
                Offsets::Debug => {}
            }
        }
    }

    #[test]
    fn versions_are_shown_as_python_does() {
        assert_eq!(Version::new(3, 12, 1).to_string(), "3.12.1");
        assert_eq!(Version(0x030d_00b2).to_string(), "3.13.0b2");
        assert_eq!(Version(0x030e_00a1).minor(), (3, 14));
    }
}
