//! What has other objects in it, beside the list, the tuple, the dict and the set: as `repr` writes it.
//!
//! Fields of `dequeobject` and `defdictobject` are those of `Modules/_collectionsmodule.c`, of `_odictobject`
//! `Objects/odictobject.c`, of `partialobject` `Modules/_functoolsmodule.c`; the same from 3.6 to 3.15.

use super::table::Shape;
use super::types::{Collection, Kind, TypeFacts};
use super::{Out, Unreadable, Values, read_word};
use crate::ids::Address;
use crate::process::memory::ReadMemory;

impl<M: ReadMemory> Values<'_, M> {
    /// One of these.
    pub(super) fn collection(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        facts: &TypeFacts,
        of: Collection,
    ) -> Result<(), Unreadable> {
        let name = facts.shown_name();
        match of {
            Collection::Range => self.bounds(out, path, object, name, true),
            Collection::Slice => self.bounds(out, path, object, name, false),
            Collection::Keys => self.view(out, path, object, name, Shape::Keys),
            Collection::Values => self.view(out, path, object, name, Shape::Values),
            Collection::Items => self.view(out, path, object, name, Shape::Items),
            Collection::MappingProxy => {
                let mapping = Address(self.field(object, 0)?);
                out.push("mappingproxy(");
                self.inside(out, path, mapping)?;
                out.close(")");
                Ok(())
            }
            Collection::Namespace => {
                let name = if facts.is_exact { "namespace" } else { name };
                let fields = Address(self.field(object, 0)?);
                let is_sorted = self.layout.minor < 9;
                let again = format!("{name}(...)");
                self.nested(out, path, object, &again, |values, out, path| {
                    out.push(&format!("{name}("));
                    values.fields(out, path, fields, true, is_sorted)?;
                    out.close(")");
                    Ok(())
                })
            }
            Collection::DefaultDict => self.default_dict(out, path, object, name),
            Collection::OrderedDict => self.nested(out, path, object, "...", |it, out, path| {
                it.ordered_dict(out, path, object, name)
            }),
            Collection::Deque => self.nested(out, path, object, "[...]", |it, out, path| {
                it.deque(out, path, object, name)
            }),
            Collection::Partial => self.nested(out, path, object, "...", |it, out, path| {
                it.partial(out, path, object, &facts.name)
            }),
        }
    }

    /// An object deeper by one, if there is room.
    fn inside(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
    ) -> Result<(), Unreadable> {
        if out.is_full {
            return Ok(());
        }
        self.within(out, path, object)
    }

    /// Start, stop and step of a range or slice.
    fn bounds(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        name: &str,
        is_range: bool,
    ) -> Result<(), Unreadable> {
        const STEP: u64 = 16;
        let step = Address(self.field(object, STEP)?);
        let has_step = !is_range
            || match self.facts(step)?.kind {
                Kind::Int | Kind::Bool => self.int(step)? != "1",
                _ => return Err(Unreadable),
            };
        out.push(&format!("{name}("));
        for offset in [0, 8, STEP] {
            if offset == STEP && !has_step {
                break;
            }
            if offset != 0 && !out.goes_on(false) {
                break;
            }
            let bound = Address(self.field(object, offset)?);
            self.inside(out, path, bound)?;
        }
        out.close(")");
        Ok(())
    }

    /// What `keys()`, `values()` and `items()` of a dict give.
    fn view(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        name: &str,
        shape: Shape,
    ) -> Result<(), Unreadable> {
        let dict = Address(self.field(object, 0)?);
        self.nested(out, path, object, "...", |values, out, path| {
            out.push(&format!("{name}(["));
            values.entries(out, path, dict, shape)?;
            out.close("])");
            Ok(())
        })
    }

    fn default_dict(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        name: &str,
    ) -> Result<(), Unreadable> {
        /// Behind the dict.
        const FACTORY: u64 = 32;
        let factory = Address(self.field(object, FACTORY)?);
        out.push(&format!("{name}("));
        if factory.is_null() {
            out.push("None");
        } else {
            self.inside(out, path, factory)?;
        }
        if out.goes_on(false) {
            self.nested(out, path, object, "{...}", |values, out, path| {
                values.dict(out, path, object)
            })?;
        }
        out.close(")");
        Ok(())
    }

    fn ordered_dict(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        name: &str,
    ) -> Result<(), Unreadable> {
        let n_used = self.field(object, 0)?;
        out.push(&format!("{name}("));
        if n_used != 0 {
            let (shape, [open, close]) = if self.layout.minor < 12 {
                (Shape::Items, ["[", "]"])
            } else {
                (Shape::Pairs, ["{", "}"])
            };
            out.push(open);
            self.entries(out, path, object, shape)?;
            out.close(close);
        }
        out.close(")");
        Ok(())
    }

    fn deque(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        name: &str,
    ) -> Result<(), Unreadable> {
        const LEFT_BLOCK: u64 = 8;
        const LEFT_INDEX: u64 = 24;
        const MAX_LEN: u64 = 48;
        // A block: the link to the left, the objects, the link to the right.
        const N_IN_BLOCK: u64 = 64;
        const RIGHT_LINK: u64 = 8 + N_IN_BLOCK * 8;
        let n_items = self.length(object)?;
        let mut block = Address(self.field(object, LEFT_BLOCK)?);
        let mut idx = self.field(object, LEFT_INDEX)?;
        let max_len = self.field(object, MAX_LEN)?.cast_signed();
        out.push(&format!("{name}(["));
        for nth in 0..n_items {
            if !out.goes_on(nth == 0) {
                break;
            }
            if idx >= N_IN_BLOCK {
                block = Address(read_word(&self.memory, block.add(RIGHT_LINK))?);
                idx = 0;
            }
            let item = Address(read_word(&self.memory, block.add(8 + idx * 8))?);
            self.write(out, path, item)?;
            idx += 1;
        }
        out.close("]");
        if max_len >= 0 {
            out.push(&format!(", maxlen={max_len}"));
        }
        out.close(")");
        Ok(())
    }

    /// `functools.partial`: a function, positional arguments, and those with names.
    fn partial(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        name: &str,
    ) -> Result<(), Unreadable> {
        let function = Address(self.field(object, 0)?);
        let positional = Address(self.field(object, 8)?);
        let named = Address(self.field(object, 16)?);
        if self.facts(positional)?.kind != Kind::Tuple {
            return Err(Unreadable);
        }
        out.push(&format!("{name}("));
        self.inside(out, path, function)?;
        let n_items = self.length(positional)?;
        let items = positional.add(self.layout.header + self.layout.tuple_items);
        for idx in 0..n_items {
            if !out.goes_on(false) {
                break;
            }
            let item = Address(read_word(&self.memory, items.add(idx * 8))?);
            self.inside(out, path, item)?;
        }
        self.fields(out, path, named, false, false)?;
        out.close(")");
        Ok(())
    }
}
