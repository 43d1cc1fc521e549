//! Attributes of instances of classes that are written in Python, where how they are kept is the interpreter's affair, and
//! the few objects of the library that are shown by them: members of enumerations.
//!
//! Where they lie: see [`AttributesLayout`].

use super::table::Table;
use super::types::{Kind, MAX_NAME_BYTES, TypeFacts};
use super::{Out, Unreadable, Values, read_word};
use crate::ids::Address;
use crate::process::memory::ReadMemory;
use crate::python::thread_name::{
    AttributesLayout, FLAG_HEAPTYPE, FLAG_INLINE_VALUES, FLAG_MANAGED_DICT, TYPE_BASICSIZE,
    TYPE_DICTOFFSET, TYPE_FLAGS,
};

/// Where an object has them.
enum Held {
    Dict(Address),
    /// Values apart from the keys that its class has for all instances.
    Values(Address),
}

impl<M: ReadMemory> Values<'_, M> {
    /// Attributes that an object has itself, by their names.
    pub(super) fn attributes<const N: usize>(
        &mut self,
        object: Address,
        names: [&str; N],
    ) -> Result<[Option<Address>; N], Unreadable> {
        // What is no object has none.
        self.facts(object)?;
        let class = Address(read_word(&self.memory, object.add(self.layout.header - 8))?);
        match self.held(object, class)? {
            Some(Held::Dict(dict)) if !dict.is_null() => self.find_in_dict(dict, names),
            Some(Held::Values(values)) if !values.is_null() => {
                let keys = class.add(self.layout.type_qualname + 8);
                let keys = Address(read_word(&self.memory, keys)?);
                let entries = self.layout.entries_of_keys(&self.memory, keys)?;
                let values = values.add(self.layout.values_header);
                self.find(Table::new(entries, Some(values)), names)
            }
            Some(Held::Dict(_) | Held::Values(_)) | None => Ok([None; N]),
        }
    }

    fn held(&self, object: Address, class: Address) -> Result<Option<Held>, Unreadable> {
        let pointer = |at: Address| read_word(&self.memory, at).map(Address);
        let flags = self.field(class, TYPE_FLAGS)?;
        if flags & FLAG_HEAPTYPE == 0 {
            return Ok(None);
        }
        let layout = self.layout.attributes;
        if layout == AttributesLayout::DictOffset || flags & FLAG_MANAGED_DICT == 0 {
            // Negative for objects of variable size: these are not looked at.
            let offset = self.field(class, TYPE_DICTOFFSET)?;
            return match offset.cast_signed() {
                1.. => Ok(Some(Held::Dict(pointer(object.add(offset))?))),
                _ => Ok(None),
            };
        }
        let before = |n_bytes: u64| pointer(Address(object.0.wrapping_sub(n_bytes)));
        let dict = before(self.layout.managed_dict)?;
        Ok(Some(match layout {
            AttributesLayout::DictBesideValues if dict.is_null() => {
                Held::Values(before(self.layout.managed_dict + 8)?)
            }
            AttributesLayout::DictOrValues if dict.0 & 1 == 1 => Held::Values(dict.add(1)),
            AttributesLayout::ValuesBehind if dict.is_null() && flags & FLAG_INLINE_VALUES != 0 => {
                Held::Values(object.add(self.field(class, TYPE_BASICSIZE)?))
            }
            AttributesLayout::DictOffset
            | AttributesLayout::DictBesideValues
            | AttributesLayout::DictOrValues
            | AttributesLayout::ValuesBehind => Held::Dict(dict),
        }))
    }

    /// A member of an enumeration: `<Color.RED: 1>`.
    pub(super) fn member(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        facts: &TypeFacts,
    ) -> Result<(), Unreadable> {
        let [name, value] = self.attributes(object, ["_name_", "_value_"])?;
        let (Some(name), Some(value)) = (name, value) else {
            // One that is being made.
            out.push(&format!("<{} object at {object}>", facts.name));
            return Ok(());
        };
        out.push(&format!("<{}", facts.own_name()));
        // Flags that are set together have none in some versions.
        if self.facts(name)?.kind == Kind::Str {
            let name = self.layout.text(&self.memory, name, MAX_NAME_BYTES)?;
            out.push(&format!(".{name}"));
        }
        out.push(": ");
        if !out.is_full {
            self.within(out, path, value)?;
        }
        out.close(">");
        Ok(())
    }
}
