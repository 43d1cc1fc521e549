//! Which functions the dynamic linker binds to which slots of an ELF file's memory, by its relocations.

use std::collections::HashMap;

use super::super::elf::{Elf, Import};

/// Most slots that are kept; libpython has some 1,500.
const MAX_SLOTS: usize = 65_536;

/// Functions that return their first argument (C standard, 7.24: `memset`, `memcpy`, `memmove`).
const RETURN_FIRST_ARGUMENT: [&str; 3] = ["memset", "memcpy", "memmove"];

/// Functions that do not return: of the C library, of the C++ runtime.
const DO_NOT_RETURN: [&str; 8] = [
    "abort",
    "exit",
    "_exit",
    "__assert_fail",
    "__stack_chk_fail",
    "__cxa_throw",
    "_ZSt17__throw_bad_allocv",
    "_Unwind_Resume",
];

/// The slots of one file.
#[derive(Debug, Default)]
pub(super) struct Imports {
    slots: HashMap<u64, Import>,
    /// Those of them that this file defines itself, by name.
    own: HashMap<String, u64>,
    /// What this file's own [`RETURN_FIRST_ARGUMENT`] are chosen by.
    choosers: Vec<u64>,
}

impl Imports {
    pub(super) fn of(elf: &Elf<'_>) -> Self {
        let choosers = elf.symbols(RETURN_FIRST_ARGUMENT);
        let slots = elf.imports(MAX_SLOTS);
        let names = slots.values().filter_map(|import| match import {
            Import::Symbol(name) => Some(name.as_str()),
            Import::ChosenBy(_) => None,
        });
        Self {
            own: elf.defined(&names.collect()),
            slots,
            choosers: choosers.iter().flatten().map(|range| range.start).collect(),
        }
    }

    pub(super) fn at(&self, slot: u64) -> Option<&Import> {
        self.slots.get(&slot)
    }

    /// Where this file defines it, unless another one that comes before it does too.
    pub(super) fn own(&self, import: &Import) -> Option<u64> {
        match import {
            Import::Symbol(name) => self.own.get(name).copied(),
            Import::ChosenBy(_) => None,
        }
    }

    pub(super) fn returns_first_argument(&self, import: &Import) -> bool {
        match import {
            Import::Symbol(name) => RETURN_FIRST_ARGUMENT.contains(&name.as_str()),
            Import::ChosenBy(address) => self.choosers.contains(address),
        }
    }

    pub(super) fn returns(import: &Import) -> bool {
        match import {
            Import::Symbol(name) => !DO_NOT_RETURN.contains(&name.as_str()),
            Import::ChosenBy(_) => true,
        }
    }
}
