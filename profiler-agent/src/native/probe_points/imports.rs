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
    /// What this file's own [`RETURN_FIRST_ARGUMENT`] are chosen by.
    choosers: Vec<u64>,
}

impl Imports {
    pub(super) fn of(elf: &Elf<'_>) -> Self {
        let choosers = elf.symbols(RETURN_FIRST_ARGUMENT);
        Self {
            slots: elf.imports(MAX_SLOTS),
            choosers: choosers.iter().flatten().map(|range| range.start).collect(),
        }
    }

    pub(super) fn at(&self, slot: u64) -> Option<&Import> {
        self.slots.get(&slot)
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
