//! `_Py_DebugOffsets`: the table of offsets at the start of `_PyRuntime`, CPython 3.13 and newer.
//!
//! Sources: `Include/internal/pycore_runtime.h` (3.13), `Include/internal/pycore_debug_offsets.h` (3.14 on). The table
//! differs in every minor version, so the order of its words is given by version. It is read from the process and
//! hostile: everything is checked before use.

use profiler_common::layout::{
    ABSENT, EntryMark, FrameRoot, GilKind, IdentityKind, InstructionUnit, PyLayout,
};

use super::{CodeLayout, GcStatsPlace, Layout, LayoutNotFound, LocalsLayout, Version};
use crate::python::line_table::LineTableFormat;
use crate::python::string::StrLayout;

/// First bytes of the table.
pub const COOKIE: &[u8; 8] = b"xdebugpy";

/// Bytes to read of the table: the largest known is 888 (3.15).
pub const TABLE_BYTES: usize = 1024;

/// Word indices of the fields that are used, in one minor version's table.
#[derive(Debug, Clone, Copy)]
struct Fields {
    interpreters_head: usize,
    interp_next: usize,
    interp_threads_head: usize,
    interp_gc: usize,
    interp_modules: usize,
    interp_ceval_gil: usize,
    tstate_next: usize,
    tstate_interp: usize,
    tstate_current_frame: usize,
    tstate_thread_id: usize,
    tstate_native_thread_id: usize,
    tstate_datastack_chunk: usize,
    frame_previous: usize,
    frame_executable: usize,
    frame_instr_ptr: usize,
    frame_localsplus: usize,
    frame_owner: usize,
    code_filename: usize,
    code_name: usize,
    code_qualname: usize,
    code_linetable: usize,
    code_firstlineno: usize,
    code_argcount: usize,
    code_localsplusnames: usize,
    code_adaptive: usize,
    /// `co_tlbc` (3.14+); 0 in builds with the GIL.
    code_tlbc: Option<usize>,
    object_type: usize,
    type_name: usize,
    bytes_size: usize,
    bytes_data: usize,
    /// `gc.generation_stats` (3.15).
    gc_stats: Option<usize>,
    /// The last word, where the table ends with `debugger_support.debugger_script_path_size` (3.14+): a constant.
    script_path_bytes: Option<usize>,
}

/// `_Py_MAX_SCRIPT_PATH_SIZE`.
const SCRIPT_PATH_BYTES: u64 = 512;

/// 3.13: cookie, version, free_threaded (3 words), then the structures in the header's order.
const FIELDS_3_13: Fields = Fields {
    interpreters_head: 5,
    interp_next: 8,
    interp_threads_head: 9,
    interp_gc: 10,
    interp_modules: 11,
    interp_ceval_gil: 14,
    tstate_next: 21,
    tstate_interp: 22,
    tstate_current_frame: 23,
    tstate_thread_id: 24,
    tstate_native_thread_id: 25,
    tstate_datastack_chunk: 26,
    frame_previous: 29,
    frame_executable: 30,
    frame_instr_ptr: 31,
    frame_localsplus: 32,
    frame_owner: 33,
    code_filename: 35,
    code_name: 36,
    code_qualname: 37,
    code_linetable: 38,
    code_firstlineno: 39,
    code_argcount: 40,
    code_localsplusnames: 41,
    code_adaptive: 43,
    code_tlbc: None,
    object_type: 45,
    type_name: 47,
    bytes_size: 65,
    bytes_data: 66,
    gc_stats: None,
    script_path_bytes: None,
};

/// 3.14: 95 words.
const FIELDS_3_14: Fields = Fields {
    interpreters_head: 5,
    interp_next: 8,
    interp_threads_head: 9,
    interp_gc: 11,
    interp_modules: 12,
    interp_ceval_gil: 15,
    tstate_next: 24,
    tstate_interp: 25,
    tstate_current_frame: 26,
    tstate_thread_id: 27,
    tstate_native_thread_id: 28,
    tstate_datastack_chunk: 29,
    frame_previous: 32,
    frame_executable: 33,
    frame_instr_ptr: 34,
    frame_localsplus: 35,
    frame_owner: 36,
    code_filename: 40,
    code_name: 41,
    code_qualname: 42,
    code_linetable: 43,
    code_firstlineno: 44,
    code_argcount: 45,
    code_localsplusnames: 46,
    code_adaptive: 48,
    code_tlbc: Some(49),
    object_type: 51,
    type_name: 53,
    bytes_size: 75,
    bytes_data: 76,
    gc_stats: None,
    script_path_bytes: Some(94),
};

/// 3.15: 111 words.
const FIELDS_3_15: Fields = Fields {
    tstate_thread_id: 30,
    tstate_native_thread_id: 31,
    tstate_datastack_chunk: 32,
    frame_previous: 40,
    frame_executable: 41,
    frame_instr_ptr: 42,
    frame_localsplus: 43,
    frame_owner: 44,
    code_filename: 48,
    code_name: 49,
    code_qualname: 50,
    code_linetable: 51,
    code_firstlineno: 52,
    code_argcount: 53,
    code_localsplusnames: 54,
    code_adaptive: 56,
    code_tlbc: Some(57),
    object_type: 59,
    type_name: 61,
    bytes_size: 87,
    bytes_data: 88,
    gc_stats: Some(98),
    script_path_bytes: Some(110),
    ..FIELDS_3_14
};

/// Bytes of `co_version`, which the table lacks; it lies right in front of `co_localsplusnames`
/// (`Include/cpython/code.h`, 3.13 to 3.15).
const CO_VERSION_BYTES: u16 = 4;

/// `Py_TAG_BITS` of the stack reference `f_executable` (3.14+, `Include/internal/pycore_stackref.h`).
const STACK_REFERENCE_TAG: u8 = 3;

/// The version and whether the build is free-threaded, if `table` begins as the table does.
#[must_use]
pub fn version(table: &[u8]) -> Option<(Version, bool)> {
    if !table.starts_with(COOKIE) {
        return None;
    }
    let version = u32::try_from(word(table, 1)?).ok()?;
    let free_threaded = match word(table, 2)? {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some((Version(version), free_threaded))
}

/// The layout that the table describes. A version that is newer than the newest known is taken to have that one's
/// table; what the table says is then to be checked in the process.
pub fn layout(table: &[u8]) -> Result<Layout, LayoutNotFound> {
    let Some((version, free_threaded)) = version(table) else {
        let reason = "no cookie".to_owned();
        return Err(LayoutNotFound::BadOffsets {
            version: Version(0),
            reason,
        });
    };
    let fields = match version.minor() {
        (3, 13) => &FIELDS_3_13,
        (3, 14) => &FIELDS_3_14,
        (3, 15..) => &FIELDS_3_15,
        _ => return Err(LayoutNotFound::Unsupported(version)),
    };
    let ends_as_known = fields
        .script_path_bytes
        .is_none_or(|idx| word(table, idx) == Some(SCRIPT_PATH_BYTES));
    if !ends_as_known {
        let reason = "they are not those of a release that is known".to_owned();
        return Err(LayoutNotFound::BadOffsets { version, reason });
    }
    let table = Table {
        bytes: table,
        version,
        free_threaded,
    };
    let walk = table.walk(fields)?;
    walk.check()
        .map_err(|error| LayoutNotFound::from((version, error)))?;
    let code = table.code(fields)?;
    let locals = table.locals(fields)?;
    let fits = |offset: u16| offset < MAX_CODE_OFFSET;
    if !code.offsets().into_iter().all(fits) || !fits(locals.n_keywords) {
        let reason = "a field of the code object lies too far".to_owned();
        return Err(LayoutNotFound::BadOffsets { version, reason });
    }
    Ok(Layout {
        walk,
        code,
        locals,
        interp_modules: Some(table.offset(fields.interp_modules)?),
        gc_stats: table.gc_stats(fields),
    })
}

/// The table, with what it says of itself.
struct Table<'a> {
    bytes: &'a [u8],
    version: Version,
    free_threaded: bool,
}

impl Table<'_> {
    fn walk(&self, fields: &Fields) -> Result<PyLayout, LayoutNotFound> {
        let tstate_native_thread_id = self.offset(fields.tstate_native_thread_id)?;
        let tstate_datastack_chunk = self.offset(fields.tstate_datastack_chunk)?;
        let frame_owner = self.offset(fields.frame_owner)?;
        let localsplusnames = self.offset(fields.code_localsplusnames)?;
        Ok(PyLayout {
            version_hex: self.version.0,
            runtime_interpreters_head: self.offset(fields.interpreters_head)?,
            interp_next: self.offset(fields.interp_next)?,
            interp_threads_head: self.offset(fields.interp_threads_head)?,
            gil: self.offset(fields.interp_ceval_gil)?,
            tstate_bytes: rounded_up(tstate_datastack_chunk.max(tstate_native_thread_id)),
            tstate_next: self.offset(fields.tstate_next)?,
            tstate_interp: self.offset(fields.tstate_interp)?,
            tstate_thread_id: self.offset(fields.tstate_thread_id)?,
            tstate_native_thread_id,
            tstate_frame: self.offset(fields.tstate_current_frame)?,
            cframe_current_frame: ABSENT,
            tstate_datastack_chunk,
            frame_bytes: rounded_up(frame_owner & !7),
            frame_code: self.offset(fields.frame_executable)?,
            frame_previous: self.offset(fields.frame_previous)?,
            frame_instr: self.offset(fields.frame_instr_ptr)?,
            frame_owner,
            frame_is_entry: ABSENT,
            code_identity: localsplusnames.saturating_sub(CO_VERSION_BYTES),
            frame_root: FrameRoot::Direct,
            entry_mark: EntryMark::Owner,
            identity_kind: IdentityKind::Version,
            instruction_unit: InstructionUnit::InstrPtr,
            gil_kind: if self.free_threaded {
                GilKind::Switchable
            } else {
                GilKind::Interpreter
            },
            code_tag_mask: if self.version.minor() >= (3, 14) {
                STACK_REFERENCE_TAG
            } else {
                0
            },
            gc_collecting: self
                .gc_stats(fields)
                .map_or(ABSENT, GcStatsPlace::collecting),
            gc_is_of_runtime: 0,
            reserved: 0,
        })
    }

    fn code(&self, fields: &Fields) -> Result<CodeLayout, LayoutNotFound> {
        Ok(CodeLayout {
            ob_type: self.offset(fields.object_type)?,
            filename: self.offset(fields.code_filename)?,
            name: self.offset(fields.code_name)?,
            qualname: self.offset(fields.code_qualname)?,
            first_line: self.offset(fields.code_firstlineno)?,
            line_table: self.offset(fields.code_linetable)?,
            first_instruction: self.offset(fields.code_adaptive)?,
            bytecode: ABSENT,
            thread_bytecode: match fields.code_tlbc {
                Some(idx) if self.free_threaded => self.offset(idx)?,
                Some(_) | None => ABSENT,
            },
            bytes_size: self.offset(fields.bytes_size)?,
            bytes_data: self.offset(fields.bytes_data)?,
            type_name: self.offset(fields.type_name)?,
            line_table_format: LineTableFormat::Locations,
            str: StrLayout::of_version(self.version.0, self.free_threaded),
        })
    }

    /// The table lacks `co_flags`, which lies right in front of `co_argcount` (`Include/cpython/code.h`, 3.13 to 3.15).
    fn locals(&self, fields: &Fields) -> Result<LocalsLayout, LayoutNotFound> {
        const FLAGS_BYTES: u16 = 4;
        let n_arguments = self.offset(fields.code_argcount)?;
        Ok(LocalsLayout::of_frames(
            self.offset(fields.frame_localsplus)?,
            n_arguments.saturating_sub(FLAGS_BYTES),
            n_arguments,
            self.offset(fields.code_localsplusnames)?,
        ))
    }

    /// The statistics of the garbage collector, which the table names from 3.15 on; before, they follow the lists of the
    /// generations (`struct _gc_runtime_state`). 3.14.0 to 3.14.4 have other lists.
    fn gc_stats(&self, fields: &Fields) -> Option<GcStatsPlace> {
        const BEHIND_LISTS_3_13: u16 = 128;
        const BEHIND_LISTS_3_14: u16 = 120;
        let gc = self.offset(fields.interp_gc).ok()?;
        let is_regular = !self.free_threaded && self.version >= Version::new(3, 14, 5);
        match (fields.gc_stats, self.version.minor()) {
            (Some(idx), _) => Some(GcStatsPlace::Rings(gc.checked_add(self.offset(idx).ok()?)?)),
            (None, (3, 13)) => Some(GcStatsPlace::Interpreter(
                gc.checked_add(BEHIND_LISTS_3_13)?,
            )),
            (None, _) if is_regular => Some(GcStatsPlace::Interpreter(
                gc.checked_add(BEHIND_LISTS_3_14)?,
            )),
            (None, _) => None,
        }
    }

    /// The offset that a word holds.
    fn offset(&self, idx: usize) -> Result<u16, LayoutNotFound> {
        let value = word(self.bytes, idx).unwrap_or(u64::MAX);
        u16::try_from(value)
            .ok()
            .filter(|value| *value != ABSENT)
            .ok_or_else(|| LayoutNotFound::BadOffsets {
                version: self.version,
                reason: format!("word {idx} is {value}"),
            })
    }
}

/// Code objects of all versions have their fixed fields below this.
const MAX_CODE_OFFSET: u16 = 512;

/// End of the word at `offset`, as a multiple of 8; saturates, and `PyLayout::check` then refuses it.
const fn rounded_up(offset: u16) -> u16 {
    (offset & !7).saturating_add(8)
}

fn word(table: &[u8], idx: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        table.get(idx * 8..idx * 8 + 8)?.try_into().ok()?,
    ))
}

impl CodeLayout {
    /// Every offset in a code object that is present.
    fn offsets(&self) -> [u16; 7] {
        [
            self.filename,
            self.name,
            self.qualname,
            self.first_line,
            self.line_table,
            self.first_instruction,
            if self.thread_bytecode == ABSENT {
                0
            } else {
                self.thread_bytecode
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_table_gives_a_checked_layout_or_a_reason(
            mut words in proptest::collection::vec(0_u64..700, 128),
            minor in 13_u8..18,
        ) {
            words[0] = u64::from_le_bytes(*COOKIE);
            words[1] = u64::from(Version::new(3, minor, 0).0);
            words[2] &= 1;
            words[if minor == 14 { 94 } else { 110 }] = SCRIPT_PATH_BYTES;
            let table: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            if let Ok(layout) = layout(&table) {
                proptest::prop_assert_eq!(layout.walk.check(), Ok(()));
            }
        }
    }
}
