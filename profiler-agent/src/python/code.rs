//! Code objects: from an address in the target to a function and its lines.
//!
//! A code object can die between the sample and the look at it, and its memory be used again. The kernel
//! took an identity with the sample; here it is read before and after the strings, and must be the same. Memory
//! that was freed and not used again still has the identity, but pointers to strings that may be others' by now:
//! the reference count, which every allocator overwrites, tells it.

use std::ops::Range;
use std::sync::Arc;

use profiler_common::event::PyFrame;
use profiler_common::layout::{ABSENT, InstructionUnit};
use profiler_common::unwind::python::identity;

use super::layout::{CodeLayout, Layout};
use super::line_table::LineTable;
use super::string::{STR_HEADER_BYTES, StrError, StrHeader};
use crate::ids::Address;
use crate::process::memory::{MemoryError, ReadMemory, RemoteReader};
use crate::profile::aggregate::ResolvedFunction;

/// Longest line table that is read. The largest of the standard library has some 60 KiB.
const MAX_LINE_TABLE_BYTES: u64 = 1 << 20;

/// A code object's function and lines.
#[derive(Debug, Clone)]
pub struct CodeSymbol {
    /// The function; shared by all of its frames.
    pub function: Arc<ResolvedFunction>,
    /// Lines by bytecode offset.
    lines: LineTable,
    /// Address of the first instruction (3.11+), else 0.
    first_instruction: u64,
    /// Bytes of code behind it.
    code_bytes: u64,
    /// Where its bytecode lies, in every version; empty where that is not known.
    text: Range<Address>,
    first_line: u32,
}

/// What a frame's executable turned out to be.
#[derive(Debug, Clone)]
pub enum Code {
    /// A Python function.
    Function(Arc<CodeSymbol>),
    /// Code of the interpreter itself (`_Py_InitCleanup`), or an executable that is no code object: not shown.
    Internal,
}

impl Code {
    /// Memory that it takes, beside the value itself; an estimate.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Function(symbol) => {
                let texts = symbol.function.name.len() + symbol.function.filename.len();
                size_of::<CodeSymbol>()
                    + size_of::<ResolvedFunction>()
                    + texts
                    + symbol.lines.size_bytes()
            }
            Self::Internal => 0,
        }
    }
}

/// Why a code object could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// Its memory holds another code object, or none, by now.
    #[error("code object gone")]
    Gone,
    /// The process has ended before it was looked at.
    #[error("process gone")]
    ProcessGone,
    /// The rights are missing.
    #[error("memory not readable")]
    Denied,
    /// One of its strings is damaged.
    #[error("damaged code object")]
    Damaged,
    /// Its program has used up the time that is spent on reading its code objects.
    #[error("not read: too many new ones")]
    OverBudget,
}

impl From<MemoryError> for CodeError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Gone => Self::ProcessGone,
            MemoryError::Denied => Self::Denied,
            MemoryError::Unmapped(_) => Self::Gone,
        }
    }
}

impl From<StrError> for CodeError {
    fn from(_: StrError) -> Self {
        Self::Damaged
    }
}

/// Reads the code object of a frame.
pub fn read(memory: &impl ReadMemory, layout: &Layout, frame: &PyFrame) -> Result<Code, CodeError> {
    check_same(memory, layout, frame)?;
    let result = read_unchecked(memory, &layout.code, Address(frame.code));
    // What was read of memory that changed meanwhile means nothing, errors included.
    check_same(memory, layout, frame)?;
    result
}

/// Whether the code object that the frame executed is still there.
pub fn check_same(
    memory: &impl ReadMemory,
    layout: &Layout,
    frame: &PyFrame,
) -> Result<(), CodeError> {
    check_identity(memory, layout, frame)?;
    check_alive(memory, layout, frame)
}

/// Whether the object is allocated: a freed one has a pointer to another free block, its complement or 0 in the
/// place of its reference count (pymalloc, glibc, musl). Immortal objects count to less than 2^32 (3.12+). 3.14 and
/// newer keep the overflow of a count of 32 bits, and flags, in the upper half: of a pointer the middle is not 0.
/// Free-threaded builds have two counts, and both are 0 when the object is freed; mimalloc's pointer to another free
/// block lies in front of them.
fn check_alive(
    memory: &impl ReadMemory,
    layout: &Layout,
    frame: &PyFrame,
) -> Result<(), CodeError> {
    /// `ob_refcnt` 32 bits, `ob_overflow` 16, `ob_flags` 16 (3.14, `Include/object.h`).
    const SPLIT_COUNT: u32 = 0x030e_0000;
    /// `ob_type` behind the count; free-threaded builds have it further on.
    const ONE_WORD: u16 = 8;
    /// `ob_tid` 8 bytes, 4 of others, `ob_ref_local` 4, `ob_ref_shared` 8 (3.13, `Include/object.h`).
    const LOCAL_COUNT: u64 = 12;
    /// Flags in the lowest bits of `ob_ref_shared`.
    const SHARED_SHIFT: u32 = 2;
    if layout.code.ob_type != ONE_WORD {
        let local = memory.read_u32(Address(frame.code).add(LOCAL_COUNT))?;
        let shared = memory.read_u64(Address(frame.code).add(LOCAL_COUNT + 4))?;
        let is_counted = local != 0 || shared >> SHARED_SHIFT != 0;
        return if is_counted {
            Ok(())
        } else {
            Err(CodeError::Gone)
        };
    }
    let mut count = memory.read_u64(Address(frame.code))?;
    if layout.walk.version_hex >= SPLIT_COUNT {
        count &= 0x0000_ffff_ffff_ffff;
    }
    match count {
        1..=0xffff_ffff => Ok(()),
        _ => Err(CodeError::Gone),
    }
}

fn check_identity(
    memory: &impl ReadMemory,
    layout: &Layout,
    frame: &PyFrame,
) -> Result<(), CodeError> {
    match identity(&mut RemoteReader(memory), frame.code, &layout.walk) {
        Ok(identity) if identity == frame.identity => Ok(()),
        Ok(_) => Err(CodeError::Gone),
        // Find out why it cannot be read.
        Err(_) => memory
            .read_u64(Address(frame.code))
            .map_err(CodeError::from)
            .and(Err(CodeError::Gone)),
    }
}

fn read_unchecked(
    memory: &impl ReadMemory,
    layout: &CodeLayout,
    code: Address,
) -> Result<Code, CodeError> {
    if !is_code_object(memory, layout, code)? {
        return Ok(Code::Internal);
    }
    let pointer = |offset: u16| memory.read_u64(code.add(offset.into())).map(Address);
    let filename = read_str(memory, layout, pointer(layout.filename)?)?;
    let name_at = if layout.qualname == ABSENT {
        layout.name
    } else {
        layout.qualname
    };
    let name = read_str(memory, layout, pointer(name_at)?)?;
    // Real code objects of the interpreter (3.12+): _Py_InitCleanup, called like its file; that of the frame
    // through which C enters, whose owner may not be written yet.
    let is_internal = matches!(
        (&*filename, &*name),
        ("__init__", "__init__") | ("<shim>", "<interpreter trampoline>")
    );
    if is_internal {
        return Ok(Code::Internal);
    }
    // A negative first line is no line.
    let first_line = memory.read_u32(code.add(layout.first_line.into()))?;
    let first_line = if first_line > i32::MAX as u32 {
        0
    } else {
        first_line
    };
    let table = read_bytes(memory, layout, pointer(layout.line_table)?)?;
    let first_instruction = if layout.first_instruction == ABSENT {
        0
    } else {
        code.add(layout.first_instruction.into()).0
    };
    // PyVarObject.ob_size counts code units of 2 bytes (3.11+).
    let n_units = memory.read_u64(code.add(layout.bytes_size.into()))?;
    let code_bytes = if first_instruction == 0 {
        0
    } else {
        n_units.saturating_mul(2)
    };
    let text = if first_instruction == 0 {
        bytes_of(memory, layout, pointer(layout.bytecode)?).unwrap_or(Address(0)..Address(0))
    } else {
        Address(first_instruction)..Address(first_instruction).add(code_bytes)
    };
    Ok(Code::Function(Arc::new(CodeSymbol {
        function: Arc::new(ResolvedFunction::python(&name, &filename, first_line)),
        lines: LineTable::decode(layout.line_table_format, &table, first_line),
        first_instruction,
        code_bytes,
        text,
        first_line,
    })))
}

/// Where the bytes of a bytes object lie.
fn bytes_of(
    memory: &impl ReadMemory,
    layout: &CodeLayout,
    object: Address,
) -> Option<Range<Address>> {
    let n_bytes = memory.read_u64(object.add(layout.bytes_size.into())).ok()?;
    let start = object.add(layout.bytes_data.into());
    Some(start..Address(start.0.checked_add(n_bytes)?))
}

/// Whether the object's type is called `code`.
fn is_code_object(
    memory: &impl ReadMemory,
    layout: &CodeLayout,
    code: Address,
) -> Result<bool, CodeError> {
    Ok(is_instance(memory, layout, code, b"code\0")?)
}

/// Whether the object's type has this name, which ends with its NUL.
fn is_instance<const N: usize>(
    memory: &impl ReadMemory,
    layout: &CodeLayout,
    object: Address,
    type_name: &[u8; N],
) -> Result<bool, MemoryError> {
    let object_type = Address(memory.read_u64(object.add(layout.ob_type.into()))?);
    let name = Address(memory.read_u64(object_type.add(layout.type_name.into()))?);
    let mut bytes = [0; N];
    memory.read(name, &mut bytes)?;
    Ok(bytes == *type_name)
}

/// What of a frame does not look as its version's would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// A pointer leads nowhere.
    #[error("a pointer of a frame or code object leads nowhere")]
    Unreadable,
    /// What is executed is no code object.
    #[error("a frame executes what is no code object")]
    NotCode,
    /// The function's name or file is no str.
    #[error("the name or the file of a code object is no str")]
    NotStr,
    /// The line table is no bytes object.
    #[error("the line table of a code object is no bytes object")]
    NotBytes,
    /// The instruction lies outside of the bytecode.
    #[error("a frame's instruction lies outside of its code object")]
    Instruction,
}

impl From<MemoryError> for Unsound {
    fn from(_: MemoryError) -> Self {
        Self::Unreadable
    }
}

/// Whether a frame leads to a function as the layout says; false for what the interpreter itself runs.
pub fn check(memory: &impl ReadMemory, layout: &Layout, frame: &PyFrame) -> Result<bool, Unsound> {
    let (code, offsets) = (Address(frame.code), &layout.code);
    if is_instance(memory, offsets, code, b"NoneType\0")? {
        return Ok(false);
    }
    if !is_instance(memory, offsets, code, b"code\0")? {
        return Err(Unsound::NotCode);
    }
    let pointer = |offset: u16| memory.read_u64(code.add(offset.into())).map(Address);
    let names = [offsets.filename, offsets.name, offsets.qualname];
    for offset in names.into_iter().filter(|offset| *offset != ABSENT) {
        let object = pointer(offset)?;
        let is_str = is_instance(memory, offsets, object, b"str\0")?;
        if !is_str || read_str(memory, offsets, object).is_err() {
            return Err(Unsound::NotStr);
        }
    }
    let table = pointer(offsets.line_table)?;
    let is_bytes = is_instance(memory, offsets, table, b"bytes\0")?;
    if !is_bytes || read_bytes(memory, offsets, table).is_err() {
        return Err(Unsound::NotBytes);
    }
    let first = code.0.wrapping_add(offsets.first_instruction.into());
    let n_bytes = memory.read_u64(code.add(offsets.bytes_size.into()))?;
    let n_bytes = n_bytes.saturating_mul(2);
    let executed = frame.instr.wrapping_sub(first);
    let is_inside = match layout.walk.instruction_unit {
        // One before the first: the frame has not begun.
        InstructionUnit::LastiBytes | InstructionUnit::LastiUnits => {
            (frame.instr as u32).cast_signed() >= -1
        }
        InstructionUnit::PrevInstr => executed.wrapping_add(2) < n_bytes.saturating_add(2),
        InstructionUnit::InstrPtr => executed < n_bytes || offsets.thread_bytecode != ABSENT,
    };
    if is_inside {
        Ok(true)
    } else {
        Err(Unsound::Instruction)
    }
}

/// Reads a str object.
pub fn read_str(
    memory: &impl ReadMemory,
    layout: &CodeLayout,
    object: Address,
) -> Result<String, CodeError> {
    let mut header = [0; STR_HEADER_BYTES];
    // Not a byte more than is needed: a short str can lie at the end of a mapping.
    let header = &mut header[..layout.str.header_bytes()];
    memory.read(object, header)?;
    let header = StrHeader::parse(layout.str, header)?;
    let mut bytes = vec![0; header.byte_len];
    memory.read(object.add(header.data_offset.into()), &mut bytes)?;
    Ok(header.decode(&bytes))
}

fn read_bytes(
    memory: &impl ReadMemory,
    layout: &CodeLayout,
    object: Address,
) -> Result<Vec<u8>, CodeError> {
    let size = memory.read_u64(object.add(layout.bytes_size.into()))?;
    if size > MAX_LINE_TABLE_BYTES {
        return Err(CodeError::Damaged);
    }
    let mut bytes = vec![0; size as usize];
    memory.read(object.add(layout.bytes_data.into()), &mut bytes)?;
    Ok(bytes)
}

impl CodeSymbol {
    /// The line of a frame of this code: the interpreter's own for its instruction, the first line before the
    /// first instruction, 0 where the interpreter itself names none. From 3.11 on `instr` lies in
    /// [`CodeSymbol::instructions`].
    #[must_use]
    pub fn line(&self, instr: u64, unit: InstructionUnit) -> u32 {
        match self.offset(instr, unit) {
            Some(offset) => self.lines.line_at(offset).unwrap_or(0),
            None => self.first_line,
        }
    }

    /// Where its instructions lie (3.11+); empty before.
    #[must_use]
    pub fn instructions(&self) -> Range<Address> {
        Address(self.first_instruction)..Address(self.first_instruction).add(self.code_bytes)
    }

    /// Where its bytecode lies; empty where that is not known.
    #[must_use]
    pub fn text(&self) -> Range<Address> {
        self.text.clone()
    }

    /// Offset in bytes of the instruction, or of what belongs to one; `None` before the first.
    #[must_use]
    pub fn offset(&self, instr: u64, unit: InstructionUnit) -> Option<u32> {
        // f_lasti is an int; -1 before the first instruction.
        let lasti = u32::try_from((instr as u32).cast_signed()).ok();
        match unit {
            InstructionUnit::LastiBytes => lasti,
            InstructionUnit::LastiUnits => lasti.and_then(|lasti| lasti.checked_mul(2)),
            InstructionUnit::PrevInstr | InstructionUnit::InstrPtr => {
                u32::try_from(instr.wrapping_sub(self.first_instruction)).ok()
            }
        }
    }
}
