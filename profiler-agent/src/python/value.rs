//! Values of a program as `repr` would write them, read from outside: no code of the program runs for it.
//!
//! What the interpreter itself defines is shown, and what is derived from it with the name of its class around it:
//! `app.Point((1, 2))`. Anything else is `<app.Order object at 0x7f3a2c1d4f50>`. All of it is hostile: characters, objects and depth
//! have bounds, what contains itself is `[...]` as in `repr`, and what makes no sense is [`Unreadable`].
//!
//! The program runs on meanwhile. Here everything is read once; whoever wants to know whether it was of one moment reads it
//! again ([`Values::forget`]).

mod attributes;
mod calendar;
mod collection;
mod layout;
mod named;
mod number;
mod table;
mod text;
mod types;

use std::rc::Rc;

pub use self::layout::ObjectLayout;
use self::table::Shape;
use self::text::Quoted;
use self::types::{Kind, TypeFacts, Types};
use super::thread_name::{IntLayout, half_word, word};
use crate::ids::Address;
use crate::process::memory::{MemoryError, ReadMemory};
use crate::process::pages::Pages;

/// Deepest nesting that is shown.
const MAX_DEPTH: usize = 16;

/// Most digits of 30 bits of an int that is written out: 578 decimal ones.
const MAX_DIGITS: u64 = 64;

/// Most entries of a table that are looked at for those in use: a dict or set keeps the places of what was removed.
const MAX_ENTRIES: usize = 8192;

/// Entries of a table that are read at once.
const N_AT_ONCE: usize = 64;

/// Largest address of a program.
const MAX_ADDRESS: u64 = 1 << 56;

/// Largest length of anything.
const MAX_LENGTH: u64 = 1 << 48;

/// What was read is no object, or not one any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no object")]
pub struct Unreadable;

impl From<MemoryError> for Unreadable {
    fn from(_: MemoryError) -> Self {
        Self
    }
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// As `repr` has it, but for what has no representation here.
    pub text: String,
    /// Module and qualified name of its type; without the module for the interpreter's own.
    pub type_name: Box<str>,
    /// There is more than the text says.
    pub is_cut: bool,
}

/// Reads values.
#[derive(Debug)]
pub struct Values<'a, M> {
    memory: Pages<'a, M>,
    layout: ObjectLayout,
    types: Types,
    /// Objects that may still be looked at.
    n_objects_left: u64,
}

impl<'a, M: ReadMemory> Values<'a, M> {
    /// A reader that looks at so many objects at most.
    #[must_use]
    pub fn new(memory: &'a M, layout: ObjectLayout, max_objects: u64) -> Self {
        Self {
            memory: Pages::new(memory),
            layout,
            types: Types::default(),
            n_objects_left: max_objects,
        }
    }

    /// What was read before is not what the next values are read from.
    pub fn forget(&mut self) {
        self.memory.forget();
        self.types.forget();
    }

    /// Whether no further object is looked at.
    #[must_use]
    pub const fn is_spent(&self) -> bool {
        self.n_objects_left == 0
    }

    /// The object that a word of a frame points to; `None`: there is none.
    pub fn object_of(&self, slot: u64) -> Option<Address> {
        let address = slot & !self.layout.slot_tag_mask;
        (address != 0).then_some(Address(address))
    }

    /// What a cell has, or the object itself, if that is none; `None`: the cell is empty.
    pub fn in_cell(&mut self, object: Address) -> Result<Option<Address>, Unreadable> {
        if self.facts(object)?.kind != Kind::Cell {
            return Ok(Some(object));
        }
        let value = Address(self.field(object, 0)?);
        Ok((!value.is_null()).then_some(value))
    }

    /// The value of an object, cut at some `max_chars` characters.
    pub fn read(&mut self, object: Address, max_chars: usize) -> Result<Value, Unreadable> {
        let facts = self.facts(object)?;
        let mut out = Out {
            text: String::new(),
            n_left: max_chars,
            is_full: false,
            is_cut: false,
        };
        self.write(&mut out, &mut Vec::new(), object)?;
        Ok(Value {
            text: out.text,
            type_name: facts.name.clone(),
            is_cut: out.is_cut,
        })
    }

    /// Whether there is still something to spend.
    fn spend(&mut self) -> bool {
        let left = self.n_objects_left.checked_sub(1);
        self.n_objects_left = left.unwrap_or(0);
        left.is_some()
    }

    fn facts(&mut self, object: Address) -> Result<Rc<TypeFacts>, Unreadable> {
        if !object.0.is_multiple_of(8) || object.0 >= MAX_ADDRESS {
            return Err(Unreadable);
        }
        let of = read_word(&self.memory, object.add(self.layout.header - 8))?;
        self.facts_of_type(Address(of))
    }

    fn facts_of_type(&mut self, of: Address) -> Result<Rc<TypeFacts>, Unreadable> {
        let Self {
            memory,
            layout,
            types,
            n_objects_left,
        } = self;
        types.of(memory, layout, of, n_objects_left)
    }

    /// `path` are the containers that it is in.
    fn write(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
    ) -> Result<(), Unreadable> {
        if !self.spend() {
            out.cut();
            return Ok(());
        }
        let facts = self.facts(object)?;
        let (name, is_exact) = (&*facts.name, facts.is_exact);
        match facts.kind {
            Kind::None => out.push("None"),
            Kind::Ellipsis => out.push("Ellipsis"),
            Kind::NotImplemented => out.push("NotImplemented"),
            Kind::Bool => {
                let is_true = self.int(object)? != "0";
                out.push(if is_true { "True" } else { "False" });
            }
            Kind::Type => {
                let class = self.facts_of_type(object)?;
                out.push(&format!("<class '{}'>", class.name));
            }
            Kind::Cell => {
                let holds = match self.in_cell(object)? {
                    Some(value) => {
                        let of = self.facts(value)?;
                        format!("{} object at {value}", of.c_name)
                    }
                    None => "empty".to_owned(),
                };
                out.push(&format!("<cell at {object}: {holds}>"));
            }
            Kind::Decimal => {
                let text = self.decimal(object)?;
                out.push(&format!("{}('{text}')", facts.shown_name()));
            }
            Kind::Enum => self.member(out, path, object, &facts)?,
            Kind::Named(named) => self.named(out, path, object, &facts, named)?,
            Kind::Collection(of) => self.collection(out, path, object, &facts, of)?,
            Kind::Calendar(of) => self.calendar(out, path, object, name, of)?,
            Kind::Other => out.push(&format!("<{name} object at {object}>")),
            Kind::Exception => {
                const ARGS: u64 = 8;
                let args = Address(self.field(object, ARGS)?);
                out.push(name);
                self.nested(out, path, object, "(...)", |values, out, path| {
                    values.arguments(out, path, args)
                })?;
            }
            kind => {
                // `frozenset({1})` says what it is, `frozendict({})` too.
                let is_named = !is_exact || matches!(kind, Kind::FrozenDict);
                if is_named {
                    out.push(name);
                    out.push("(");
                }
                self.builtin(out, path, object, kind, is_exact)?;
                if is_named {
                    out.close(")");
                }
            }
        }
        Ok(())
    }

    /// An object of one of the interpreter's own types, or what a derived one has of it.
    fn builtin(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        kind: Kind,
        is_exact: bool,
    ) -> Result<(), Unreadable> {
        match kind {
            Kind::Int => {
                let text = self.int(object)?;
                out.push(&text);
            }
            Kind::Float => {
                let value = f64::from_bits(self.field(object, 0)?);
                out.push(&number::float(value));
            }
            Kind::Complex => {
                let [real, imag] = [self.field(object, 0)?, self.field(object, 8)?];
                out.push(&number::complex(f64::from_bits(real), f64::from_bits(imag)));
            }
            Kind::Str => {
                let chars = self.layout.chars(&self.memory, object, out.n_left)?;
                out.quoted("", &text::of_str(&chars.codes()), chars.is_cut);
            }
            Kind::Bytes => self.bytes(out, object, object.add(self.layout.header + 16))?,
            Kind::ByteArray => {
                const OB_START: u64 = 24;
                let start = Address(self.field(object, OB_START)?);
                out.push("bytearray(");
                self.bytes(out, object, start)?;
                out.close(")");
            }
            Kind::List => {
                let n_items = self.length(object)?;
                let items = Address(self.field(object, 8)?);
                self.nested(out, path, object, "[...]", |values, out, path| {
                    out.push("[");
                    values.items(out, path, items, n_items)?;
                    out.close("]");
                    Ok(())
                })?;
            }
            Kind::Tuple => {
                self.nested(out, path, object, "(...)", |values, out, path| {
                    values.tuple(out, path, object)
                })?;
            }
            Kind::Dict | Kind::FrozenDict => {
                self.nested(out, path, object, "{...}", |values, out, path| {
                    values.dict(out, path, object)
                })?;
            }
            Kind::Set | Kind::FrozenSet => {
                let name = match (kind, is_exact) {
                    (Kind::FrozenSet, true) => "frozenset",
                    _ => "",
                };
                self.nested(out, path, object, "{...}", |values, out, path| {
                    values.set(out, path, object, name)
                })?;
            }
            _ => out.push(&format!("<object at {object}>")),
        }
        Ok(())
    }

    /// Something that has others in it. `stands_for` is written where it contains itself.
    fn nested(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        stands_for: &str,
        write: impl FnOnce(&mut Self, &mut Out, &mut Vec<Address>) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        if path.contains(&object) {
            out.push(stands_for);
            return Ok(());
        }
        if path.len() >= MAX_DEPTH {
            out.push(stands_for);
            out.is_cut = true;
            return Ok(());
        }
        path.push(object);
        let written = write(self, out, path);
        path.pop();
        written
    }

    /// An object within one that does not stand for itself: deeper by one.
    fn within(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
    ) -> Result<(), Unreadable> {
        const NO_OBJECT: Address = Address(0);
        if path.len() >= MAX_DEPTH {
            out.cut();
            return Ok(());
        }
        path.push(NO_OBJECT);
        let written = self.write(out, path, object);
        path.pop();
        written
    }

    fn tuple(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
    ) -> Result<(), Unreadable> {
        let n_items = self.length(object)?;
        let items = object.add(self.layout.header + self.layout.tuple_items);
        out.push("(");
        self.items(out, path, items, n_items)?;
        out.close(if n_items == 1 && !out.is_full {
            ",)"
        } else {
            ")"
        });
        Ok(())
    }

    /// What an exception was made with.
    fn arguments(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        args: Address,
    ) -> Result<(), Unreadable> {
        if self.facts(args)?.kind != Kind::Tuple {
            return Err(Unreadable);
        }
        let n_items = self.length(args)?;
        let items = args.add(self.layout.header + self.layout.tuple_items);
        out.push("(");
        self.items(out, path, items, n_items)?;
        let is_written_as_tuple = self.layout.minor < 7 && n_items == 1 && !out.is_full;
        out.close(if is_written_as_tuple { ",)" } else { ")" });
        Ok(())
    }

    /// Pointers that lie side by side, with commas.
    fn items(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        items: Address,
        n_items: u64,
    ) -> Result<(), Unreadable> {
        for idx in 0..n_items {
            if !out.goes_on(idx == 0) {
                break;
            }
            let item = read_word(&self.memory, items.add(idx * 8))?;
            if item == 0 {
                // It is being made, which no variable shows: another object was here when it was looked for.
                return Err(Unreadable);
            }
            self.write(out, path, Address(item))?;
        }
        Ok(())
    }

    fn dict(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
    ) -> Result<(), Unreadable> {
        out.push("{");
        self.entries(out, path, object, Shape::Pairs)?;
        out.close("}");
        Ok(())
    }

    fn set(
        &mut self,
        out: &mut Out,
        path: &mut Vec<Address>,
        object: Address,
        name: &str,
    ) -> Result<(), Unreadable> {
        const USED: u64 = 8;
        const MASK: u64 = 16;
        const TABLE: u64 = 24;
        /// The hash of a place where something was removed; no object has it.
        const REMOVED: u64 = u64::MAX;
        let n_used = self.field(object, USED)?;
        let mask = self.field(object, MASK)?;
        let table = Address(self.field(object, TABLE)?);
        if mask >= MAX_LENGTH || n_used > mask + 1 {
            return Err(Unreadable);
        }
        if n_used == 0 {
            out.push(if name.is_empty() {
                "set()"
            } else {
                "frozenset()"
            });
            return Ok(());
        }
        if !name.is_empty() {
            out.push("frozenset(");
        }
        out.push("{");
        let mut n_shown = 0;
        let mut piece = [0; N_AT_ONCE * 16];
        let n_slots = (mask + 1).min(MAX_ENTRIES as u64) as usize;
        'pieces: for first in (0..n_slots).step_by(N_AT_ONCE) {
            let piece = &mut piece[..(n_slots - first).min(N_AT_ONCE) * 16];
            if !self.spend() {
                break;
            }
            self.memory.read(table.add(first as u64 * 16), piece)?;
            for entry in piece.as_chunks::<16>().0 {
                let (key, hash) = (word(entry, 0), word(entry, 8));
                if key == 0 || hash == REMOVED {
                    continue;
                }
                if !out.goes_on(n_shown == 0) {
                    break 'pieces;
                }
                n_shown += 1;
                self.write(out, path, Address(key))?;
            }
        }
        if n_shown < n_used {
            out.cut();
        }
        out.close(if name.is_empty() { "}" } else { "})" });
        Ok(())
    }

    /// `ob_size` bytes that begin at `data`.
    fn bytes(&mut self, out: &mut Out, object: Address, data: Address) -> Result<(), Unreadable> {
        let length = self.length(object)?;
        let n_bytes = length.min(out.n_left as u64) as usize;
        let mut bytes = vec![0; n_bytes];
        if n_bytes > 0 {
            self.memory.read(data, &mut bytes)?;
        }
        out.quoted("b", &text::of_bytes(&bytes), length > n_bytes as u64);
        Ok(())
    }

    /// `str` of a decimal number (`PyDecObject`, and `mpd_t` of libmpdec).
    fn decimal(&mut self, object: Address) -> Result<String, Unreadable> {
        const FLAGS: u64 = 8;
        const EXPONENT: u64 = 16;
        const LENGTH: u64 = 32;
        const DATA: u64 = 48;
        const MAX_WORDS: u64 = 64;
        let flags = self.field(object, FLAGS)? as u8;
        let exponent = self.field(object, EXPONENT)?.cast_signed();
        let n_words = self.field(object, LENGTH)?;
        let data = Address(self.field(object, DATA)?);
        if n_words > MAX_WORDS {
            return Ok(format!("<{n_words} words>"));
        }
        let words: Result<Vec<u64>, _> = (0..n_words)
            .map(|idx| read_word(&self.memory, data.add(idx * 8)))
            .collect();
        number::decimal(flags, exponent, &words?).ok_or(Unreadable)
    }

    fn int(&mut self, object: Address) -> Result<String, Unreadable> {
        const DIGITS: u64 = 8;
        let count = self.field(object, 0)?;
        let (n_digits, is_negative) = match self.layout.int {
            IntLayout::ObSize => (count.cast_signed().unsigned_abs(), count.cast_signed() < 0),
            IntLayout::Tag => match count & 3 {
                0 => (count >> 3, false),
                1 => (0, false),
                2 => (count >> 3, true),
                _ => return Err(Unreadable),
            },
        };
        if n_digits >= MAX_LENGTH {
            return Err(Unreadable);
        }
        let digits = object.add(self.layout.header + DIGITS);
        if n_digits > MAX_DIGITS {
            let top = self.memory.read_u32(digits.add((n_digits - 1) * 4))?;
            let sign = if is_negative { "negative " } else { "" };
            let n_bits = number::n_bits(n_digits, top);
            return Ok(format!("<{sign}int of {n_bits} bits>"));
        }
        let mut bytes = vec![0; n_digits as usize * 4];
        self.memory.read(digits, &mut bytes)?;
        let digits: Vec<u32> = (0..n_digits as usize)
            .map(|idx| half_word(&bytes, idx * 4))
            .collect();
        if digits.iter().any(|digit| digit >> 30 != 0) {
            return Err(Unreadable);
        }
        Ok(number::int(&digits, is_negative))
    }

    /// A word at an offset behind the object header.
    fn field(&self, object: Address, offset: u64) -> Result<u64, Unreadable> {
        read_word(&self.memory, object.add(self.layout.header + offset))
    }

    /// `ob_size`.
    fn length(&self, object: Address) -> Result<u64, Unreadable> {
        let length = self.field(object, 0)?;
        if length > MAX_LENGTH {
            return Err(Unreadable);
        }
        Ok(length)
    }
}

fn read_word(memory: &impl ReadMemory, at: Address) -> Result<u64, Unreadable> {
    Ok(memory.read_u64(at)?)
}

/// A text that grows up to a bound; what closes brackets is always written.
struct Out {
    text: String,
    n_left: usize,
    /// Nothing more is written, but for what closes brackets.
    is_full: bool,
    /// Something was left out.
    is_cut: bool,
}

impl Out {
    fn push(&mut self, text: &str) {
        if self.is_full || text.is_empty() {
            return;
        }
        let n_chars = text.chars().count();
        if n_chars <= self.n_left {
            self.text.push_str(text);
            self.n_left -= n_chars;
        } else {
            // The beginning of a number in a list would look like another one.
            if self.text.is_empty() {
                self.text.extend(text.chars().take(self.n_left));
            }
            self.cut();
        }
    }

    fn close(&mut self, text: &str) {
        self.text.push_str(text);
        self.n_left = self.n_left.saturating_sub(text.len());
    }

    /// Whether there is room for another item; the comma before it is written, or the dots for what is left out.
    fn goes_on(&mut self, is_first: bool) -> bool {
        if is_first {
            return !self.is_full;
        }
        if !self.is_full && self.n_left > 2 {
            self.push(", ");
            return true;
        }
        if !self.is_full || !self.text.ends_with("...") {
            self.is_full = false;
            self.text.push_str(", ");
            self.cut();
        }
        false
    }

    /// Says that something is left out.
    fn cut(&mut self) {
        if !self.is_full {
            self.text.push_str("...");
        }
        self.is_full = true;
        self.is_cut = true;
        self.n_left = 0;
    }

    /// A text in quotes; dots behind them say that it is cut.
    fn quoted(&mut self, prefix: &str, quoted: &Quoted, is_cut: bool) {
        if self.is_full {
            return;
        }
        self.push(prefix);
        if self.is_full {
            return;
        }
        self.text.push(quoted.quote);
        let mut is_cut = is_cut;
        for piece in &quoted.pieces {
            let n_chars = piece.chars().count();
            if n_chars > self.n_left {
                is_cut = true;
                break;
            }
            self.text.push_str(piece);
            self.n_left -= n_chars;
        }
        self.text.push(quoted.quote);
        if is_cut {
            self.cut();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::process::memory_image::MemoryImage;
    use crate::python::layout::{Offsets, Version, row};

    /// Bytes of a type, its name behind it.
    const TYPE_BYTES: u64 = 320;
    const NAME_AT: u64 = 288;
    const OBJECTS: u64 = MemoryImage::BASE + 64 * TYPE_BYTES;
    const N_WORDS: u64 = 256;

    const NAMES: [&str; 44] = [
        "NoneType",
        "bool",
        "int",
        "float",
        "complex",
        "str",
        "bytes",
        "bytearray",
        "list",
        "tuple",
        "dict",
        "set",
        "frozenset",
        "BaseException",
        "function",
        "type",
        "other.Kind",
        "cell",
        "decimal.Decimal",
        "builtin_function_or_method",
        "method",
        "generator",
        "module",
        "code",
        "_thread.lock",
        "_thread.RLock",
        "classmethod",
        "range",
        "slice",
        "dict_keys",
        "dict_values",
        "dict_items",
        "mappingproxy",
        "types.SimpleNamespace",
        "collections.defaultdict",
        "collections.OrderedDict",
        "collections.deque",
        "functools.partial",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "Enum",
    ];

    /// Types with the names of the interpreter's, and behind them words of any kind.
    fn image(words: &[(u8, u64)], is_class: bool) -> MemoryImage {
        let n_bytes = OBJECTS - MemoryImage::BASE + N_WORDS * 8;
        let mut image = MemoryImage {
            bytes: vec![0; n_bytes as usize],
        };
        let type_at = |idx: u64| MemoryImage::BASE + idx * TYPE_BYTES;
        for (idx, name) in (0..).zip(NAMES) {
            let at = type_at(idx);
            image.write_word(at + 24, at + NAME_AT);
            // Half of them are derived from another one.
            if is_class && idx % 2 == 1 {
                image.write_word(at + 168, crate::python::thread_name::FLAG_HEAPTYPE);
                image.write_word(at + 256, type_at(idx - 1));
                image.write_word(at + 264, OBJECTS);
            }
            let start = (at + NAME_AT - MemoryImage::BASE) as usize;
            image.bytes[start..start + name.len()].copy_from_slice(name.as_bytes());
        }
        for (idx, (kind, word)) in (0..N_WORDS).zip(words) {
            let word = match kind {
                0..3 => type_at(word % NAMES.len() as u64),
                3..6 => OBJECTS + word % N_WORDS * 8,
                6..8 => word % 40,
                8 => word % (1 << 40),
                _ => *word,
            };
            image.write_word(OBJECTS + idx * 8, word);
        }
        image
    }

    proptest! {
        #[test]
        fn any_memory_gives_a_bounded_value_or_none(
            words in proptest::collection::vec((0_u8..10, any::<u64>()), N_WORDS as usize),
            is_class in any::<bool>(),
            minor in 6_u8..13,
            max_chars in 1_usize..300,
        ) {
            let known = row(Version::of_minor(3, minor)).expect("it is known");
            let Offsets::Table(layout) = known.offsets else {
                panic!("a table has it")
            };
            let layout = ObjectLayout::of_interpreter(&layout).expect("it is known");
            let image = image(&words, is_class);
            let mut values = Values::new(&image, layout, 1000);
            for idx in 0..N_WORDS {
                if let Ok(value) = values.read(Address(OBJECTS + idx * 8), max_chars) {
                    // Quotes, brackets and dots are not counted.
                    prop_assert!(value.text.chars().count() <= 2 * max_chars + 200, "{}", value.text);
                }
            }
        }
    }
}
