//! Local variables: their names, which a code object has, and the words of a frame that point to their values.
//!
//! Sources: `Include/cpython/code.h`, `Include/internal/pycore_code.h` (`CO_FAST_*`) and `Include/internal/pycore_frame.h`
//! (3.11+), `Include/code.h` and `Include/frameobject.h` before. Not here: what the values are ([`super::value`]).

use super::layout::{Layout, LocalNames};
use super::string::{STR_HEADER_BYTES, StrHeader, StrKind, decode};
use crate::ids::Address;
use crate::process::memory::{MemoryError, ReadMemory};

/// Most variables of a frame that are read.
pub const MAX_VARIABLES: usize = 256;

/// Most characters of a variable's name.
const MAX_NAME_CHARS: usize = 80;

/// Most arguments: what says more is damaged.
const MAX_ARGUMENTS: u32 = 1 << 16;

/// What a word of a frame points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// The value.
    Plain,
    /// A cell with the value; the value itself before the function has made the cell (3.11+).
    Cell,
}

/// A variable of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: Box<str>,
    /// Which word of the frame is its.
    pub slot: usize,
    /// What that word points to.
    pub kind: SlotKind,
    /// It is an argument.
    pub is_argument: bool,
}

/// The variables of a code object, arguments first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables {
    /// At most [`MAX_VARIABLES`].
    pub variables: Vec<Variable>,
    /// Words of a frame that have to be read for them.
    pub n_slots: usize,
    /// There are more.
    pub is_cut: bool,
}

/// Bits of `co_flags`.
mod code_flags {
    /// `CO_OPTIMIZED`: a function, not the body of a module or class.
    pub(super) const OPTIMIZED: u32 = 1;
    /// `CO_VARARGS`.
    pub(super) const VARARGS: u32 = 4;
    /// `CO_VARKEYWORDS`.
    pub(super) const VARKEYWORDS: u32 = 8;
}

/// Bits of `co_localspluskinds` (3.11+).
mod kinds {
    /// `CO_FAST_CELL`.
    pub(super) const CELL: u8 = 0x40;
    /// `CO_FAST_FREE`.
    pub(super) const FREE: u8 = 0x80;
}

impl Variables {
    /// Reads those of a code object.
    pub fn read(
        memory: &impl ReadMemory,
        layout: &Layout,
        code: Address,
    ) -> Result<Self, MemoryError> {
        let at = &layout.locals;
        let int = |offset: u16| memory.read_u32(code.add(offset.into()));
        let flags = int(at.flags)?;
        let has = |flag: u32| u32::from(flags & flag != 0);
        let n_arguments = int(at.n_arguments)?
            .saturating_add(int(at.n_keywords)?)
            .min(MAX_ARGUMENTS)
            + has(code_flags::VARARGS)
            + has(code_flags::VARKEYWORDS);
        let is_function = flags & code_flags::OPTIMIZED != 0;
        let tuples = Tuples {
            memory,
            layout,
            code,
        };
        let mut found = match at.names {
            LocalNames::ByKind { variables } => tuples.by_kind(variables, is_function)?,
            LocalNames::Together { names } => tuples.together(names, is_function)?,
        };
        let arguments: Vec<Box<str>> = found
            .variables
            .iter()
            .filter(|variable| variable.slot < n_arguments as usize)
            .map(|variable| variable.name.clone())
            .collect();
        for variable in &mut found.variables {
            // One that an inner function uses too has a word of its own among the cells (up to 3.10).
            variable.is_argument = arguments.contains(&variable.name);
        }
        let order = |variable: &Variable| {
            let argument = arguments.iter().position(|name| *name == variable.name);
            argument.unwrap_or(usize::MAX)
        };
        found.variables.sort_by_key(order);
        Ok(found)
    }
}

struct Tuples<'a, M> {
    memory: &'a M,
    layout: &'a Layout,
    code: Address,
}

impl<M: ReadMemory> Tuples<'_, M> {
    /// Up to 3.10: variables, cells, free variables.
    fn by_kind(&self, offset: u16, is_function: bool) -> Result<Variables, MemoryError> {
        const CELLS_BEHIND: u16 = 16;
        const FREE_BEHIND: u16 = 8;
        let mut found = Variables::default();
        let plain = self.names(offset)?;
        found.add(plain.all(), SlotKind::Plain);
        let cells = self.names(offset + CELLS_BEHIND)?;
        found.add(cells.all(), SlotKind::Cell);
        if is_function {
            let free = self.names(offset + FREE_BEHIND)?;
            found.add(free.all(), SlotKind::Cell);
        }
        Ok(found)
    }

    /// From 3.11 on: one list, and what each is.
    fn together(&self, offset: u16, is_function: bool) -> Result<Variables, MemoryError> {
        const KINDS_BEHIND: u16 = 8;
        let mut found = Variables::default();
        let names = self.names(offset)?;
        let kinds = self.pointer(offset.saturating_add(KINDS_BEHIND))?;
        let n_kinds = self.size(kinds)?.min(names.n_all) as usize;
        let mut bytes = vec![0; n_kinds.min(MAX_VARIABLES)];
        let data = kinds.add(self.layout.code.bytes_data.into());
        self.memory.read(data, &mut bytes)?;
        for (name, kind) in names.names.iter().zip(&bytes) {
            let slot_kind = if kind & (kinds::CELL | kinds::FREE) == 0 {
                SlotKind::Plain
            } else {
                SlotKind::Cell
            };
            // The interpreter does not show what the body of a class takes from a function around it either.
            if kind & kinds::FREE == 0 || is_function {
                found.push(name, found.n_slots, slot_kind);
            }
            found.n_slots += 1;
        }
        found.is_cut |= n_kinds > MAX_VARIABLES;
        Ok(found)
    }

    /// The texts of a tuple of str, [`MAX_VARIABLES`] at most.
    fn names(&self, offset: u16) -> Result<Names, MemoryError> {
        let tuple = self.pointer(offset)?;
        let n_all = self.size(tuple)?;
        let mut words = vec![0; (n_all as usize).min(MAX_VARIABLES) * 8];
        let items = tuple.add(self.items_offset());
        self.memory.read(items, &mut words)?;
        let words = words.as_chunks::<8>().0.iter();
        let names = words.map(|word| self.name(Address(u64::from_le_bytes(*word))));
        Ok(Names {
            names: names.collect::<Result<_, _>>()?,
            n_all,
        })
    }

    /// `PyTupleObject.ob_item`: from 3.14 on a hash stands in front.
    fn items_offset(&self) -> u64 {
        const WITH_HASH: u32 = 0x030e_0000;
        let size = u64::from(self.layout.code.bytes_size);
        if self.layout.walk.version_hex < WITH_HASH {
            size + 8
        } else {
            size + 16
        }
    }

    fn name(&self, object: Address) -> Result<Box<str>, MemoryError> {
        let layout = self.layout.code.str;
        let mut header = [0; STR_HEADER_BYTES];
        let header = &mut header[..layout.header_bytes()];
        self.memory.read(object, header)?;
        let damaged = MemoryError::Unmapped(object);
        let header = StrHeader::parse(layout, header).map_err(|_| damaged)?;
        let width = match header.kind {
            StrKind::Latin1 => 1,
            StrKind::Ucs2 => 2,
            StrKind::Ucs4 => 4,
        };
        let mut bytes = vec![0; header.byte_len.min(MAX_NAME_CHARS * width)];
        let data = object.add(header.data_offset.into());
        self.memory.read(data, &mut bytes)?;
        Ok(decode(header.kind, &bytes).into())
    }

    fn pointer(&self, offset: u16) -> Result<Address, MemoryError> {
        self.memory
            .read_u64(self.code.add(offset.into()))
            .map(Address)
    }

    /// `ob_size`; what is more than there can be is damaged.
    fn size(&self, object: Address) -> Result<u64, MemoryError> {
        const MAX_SIZE: u64 = 1 << 20;
        let at = object.add(self.layout.code.bytes_size.into());
        match self.memory.read_u64(at)? {
            size @ ..MAX_SIZE => Ok(size),
            _ => Err(MemoryError::Unmapped(object)),
        }
    }
}

/// A tuple of names.
struct Names {
    names: Vec<Box<str>>,
    /// How many there are.
    n_all: u64,
}

impl Names {
    fn all(&self) -> (&[Box<str>], u64) {
        (&self.names, self.n_all)
    }
}

impl Variables {
    /// Variables of one kind, that lie behind those before.
    fn add(&mut self, (names, n_all): (&[Box<str>], u64), kind: SlotKind) {
        let first = self.n_slots;
        for (idx, name) in names.iter().enumerate() {
            self.push(name, first + idx, kind);
        }
        self.n_slots = first + n_all as usize;
        self.is_cut |= n_all > names.len() as u64;
    }

    fn push(&mut self, name: &str, slot: usize, kind: SlotKind) {
        if self.variables.len() >= MAX_VARIABLES {
            self.is_cut = true;
            return;
        }
        self.variables.push(Variable {
            name: name.into(),
            slot,
            kind,
            is_argument: false,
        });
    }
}
