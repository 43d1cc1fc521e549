//! What an object is, by its type: which of the interpreter's own it is or is derived from, and what its class is called.

use std::collections::HashMap;
use std::rc::Rc;

use super::layout::ObjectLayout;
use super::{Unreadable, read_word};
use crate::ids::Address;
use crate::process::memory::ReadMemory;
use crate::python::thread_name::{FLAG_HEAPTYPE, FLAG_IMMUTABLE, TYPE_FLAGS, word};

/// Most types that are remembered.
const MAX_TYPES: usize = 4096;

/// Most bases of a class that are looked at.
const MAX_BASES: usize = 32;

/// Most bytes of a name in C.
pub(super) const MAX_NAME_BYTES: usize = 256;

/// `tp_base`, behind the object header; the others of a type are beside [`TYPE_FLAGS`].
const TYPE_BASE: u64 = 240;
/// `tp_dict`.
const TYPE_DICT: u64 = 248;
/// `tp_name`.
const TYPE_NAME: u64 = 8;

/// Types of the interpreter whose instances are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    None,
    Ellipsis,
    NotImplemented,
    Bool,
    Int,
    Float,
    Complex,
    Str,
    Bytes,
    ByteArray,
    List,
    Tuple,
    Dict,
    FrozenDict,
    Set,
    FrozenSet,
    Exception,
    Type,
    Cell,
    Decimal,
    /// Of a class that is derived from `enum.Enum` first.
    Enum,
    Named(Named),
    Collection(Collection),
    Calendar(Calendar),
    Other,
}

/// Kinds that `repr` gives the name of, and mostly the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    Function,
    BuiltinFunction,
    Method,
    /// Coroutines and asynchronous generators too.
    Generator,
    Module,
    Code,
    Lock,
    ReentrantLock,
    /// `staticmethod`, `classmethod`.
    Wrapper,
}

/// Kinds that have other objects in them, beside list, tuple, dict and set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collection {
    Range,
    Slice,
    Keys,
    Values,
    Items,
    MappingProxy,
    Namespace,
    DefaultDict,
    OrderedDict,
    Deque,
    Partial,
}

/// Kinds of the module `datetime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calendar {
    Date,
    DateTime,
    Time,
    TimeDelta,
    TimeZone,
}

/// The interpreter's names of them.
const KINDS: [(&str, Kind); 49] = [
    ("NoneType", Kind::None),
    ("ellipsis", Kind::Ellipsis),
    ("NotImplementedType", Kind::NotImplemented),
    ("bool", Kind::Bool),
    ("int", Kind::Int),
    ("float", Kind::Float),
    ("complex", Kind::Complex),
    ("str", Kind::Str),
    ("bytes", Kind::Bytes),
    ("bytearray", Kind::ByteArray),
    ("list", Kind::List),
    ("tuple", Kind::Tuple),
    ("dict", Kind::Dict),
    ("frozendict", Kind::FrozenDict),
    ("set", Kind::Set),
    ("frozenset", Kind::FrozenSet),
    ("BaseException", Kind::Exception),
    ("type", Kind::Type),
    ("cell", Kind::Cell),
    ("decimal.Decimal", Kind::Decimal),
    ("function", Kind::Named(Named::Function)),
    (
        "builtin_function_or_method",
        Kind::Named(Named::BuiltinFunction),
    ),
    ("method", Kind::Named(Named::Method)),
    ("generator", Kind::Named(Named::Generator)),
    ("coroutine", Kind::Named(Named::Generator)),
    ("async_generator", Kind::Named(Named::Generator)),
    ("module", Kind::Named(Named::Module)),
    ("code", Kind::Named(Named::Code)),
    ("_thread.lock", Kind::Named(Named::Lock)),
    ("_thread.RLock", Kind::Named(Named::ReentrantLock)),
    ("staticmethod", Kind::Named(Named::Wrapper)),
    ("classmethod", Kind::Named(Named::Wrapper)),
    ("range", Kind::Collection(Collection::Range)),
    ("slice", Kind::Collection(Collection::Slice)),
    ("dict_keys", Kind::Collection(Collection::Keys)),
    ("dict_values", Kind::Collection(Collection::Values)),
    ("dict_items", Kind::Collection(Collection::Items)),
    ("mappingproxy", Kind::Collection(Collection::MappingProxy)),
    (
        "types.SimpleNamespace",
        Kind::Collection(Collection::Namespace),
    ),
    (
        "collections.defaultdict",
        Kind::Collection(Collection::DefaultDict),
    ),
    (
        "collections.OrderedDict",
        Kind::Collection(Collection::OrderedDict),
    ),
    ("collections.deque", Kind::Collection(Collection::Deque)),
    ("functools.partial", Kind::Collection(Collection::Partial)),
    ("datetime.date", Kind::Calendar(Calendar::Date)),
    ("datetime.datetime", Kind::Calendar(Calendar::DateTime)),
    ("datetime.time", Kind::Calendar(Calendar::Time)),
    ("datetime.timedelta", Kind::Calendar(Calendar::TimeDelta)),
    ("datetime.timezone", Kind::Calendar(Calendar::TimeZone)),
    ("enum.Enum", Kind::Enum),
];

/// What is known of a type.
#[derive(Debug)]
pub(super) struct TypeFacts {
    /// What its instances are.
    pub(super) kind: Kind,
    /// It is that type itself, not one that is derived from it.
    pub(super) is_exact: bool,
    /// Module and qualified name; without the module for the interpreter's own.
    pub(super) name: Box<str>,
    /// `tp_name`: that of C; a class of the program has it without its module.
    pub(super) c_name: Box<str>,
}

impl TypeFacts {
    /// The name without its module, as `repr` of many begins.
    pub(super) fn own_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }

    /// What stands before the brackets of a collection: `deque`, and `app.Queue` for what is derived from it.
    pub(super) fn shown_name(&self) -> &str {
        if self.is_exact {
            self.own_name()
        } else {
            &self.name
        }
    }
}

/// The types that were met.
#[derive(Debug, Default)]
pub(super) struct Types {
    known: HashMap<u64, Rc<TypeFacts>>,
}

impl Types {
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// What is known of the type at an address.
    pub(super) fn of(
        &mut self,
        memory: &impl ReadMemory,
        layout: &ObjectLayout,
        address: Address,
        n_objects_left: &mut u64,
    ) -> Result<Rc<TypeFacts>, Unreadable> {
        /// What a type costs, in objects: its bases and its namespace are looked at.
        const COST: u64 = 32;
        if let Some(facts) = self.known.get(&address.0) {
            return Ok(facts.clone());
        }
        *n_objects_left = n_objects_left.saturating_sub(COST);
        let facts = Rc::new(facts(memory, layout, address)?);
        if self.known.len() >= MAX_TYPES {
            self.known.clear();
        }
        self.known.insert(address.0, facts.clone());
        Ok(facts)
    }
}

fn facts(
    memory: &impl ReadMemory,
    layout: &ObjectLayout,
    address: Address,
) -> Result<TypeFacts, Unreadable> {
    let field = |of: Address, offset: u64| read_word(memory, of.add(layout.header + offset));
    let own = c_text(memory, Address(field(address, TYPE_NAME)?))?;
    let mut at = address;
    let mut kind = Kind::Other;
    for _ in 0..MAX_BASES {
        if let Some(known) = kind_of(&type_of_c(memory, layout, at)?) {
            kind = known;
            break;
        }
        at = Address(field(at, TYPE_BASE)?);
        if at.is_null() {
            break;
        }
    }
    let name = if field(address, TYPE_FLAGS)? & FLAG_HEAPTYPE != 0 {
        class_name(memory, layout, address, &own)
    } else {
        own.strip_prefix("builtins.").unwrap_or(&own).to_owned()
    };
    Ok(TypeFacts {
        kind,
        is_exact: at == address,
        name: name.into(),
        c_name: own.into(),
    })
}

fn kind_of(name: &str) -> Option<Kind> {
    let known = KINDS.iter().find(|(known, _)| *known == name);
    known.map(|(_, kind)| *kind)
}

/// The name of a type that is defined in C, or of the one class of the library that counts; else none.
fn type_of_c(
    memory: &impl ReadMemory,
    layout: &ObjectLayout,
    address: Address,
) -> Result<String, Unreadable> {
    let field = |offset: u64| read_word(memory, address.add(layout.header + offset));
    let flags = field(TYPE_FLAGS)?;
    let name = c_text(memory, Address(field(TYPE_NAME)?))?;
    let may_be_changed = layout.minor < 10 || flags & FLAG_IMMUTABLE == 0;
    if flags & FLAG_HEAPTYPE == 0 || !may_be_changed {
        return Ok(name);
    }
    Ok(match &*name {
        "Enum" => class_name(memory, layout, address, &name),
        // A class of the program may be called as one of these.
        _ => String::new(),
    })
}

/// `module.Qualname` of a class; what cannot be read of that is left out.
fn class_name(
    memory: &impl ReadMemory,
    layout: &ObjectLayout,
    class: Address,
    own: &str,
) -> String {
    let pointer = |offset: u64| read_word(memory, class.add(offset)).map(Address);
    let qualname =
        pointer(layout.type_qualname).and_then(|text| layout.text(memory, text, MAX_NAME_BYTES));
    let module = pointer(layout.header + TYPE_DICT)
        .and_then(|namespace| module_of(memory, layout, namespace));
    match (module, qualname) {
        (Ok(module), Ok(qualname)) if module == "builtins" => qualname,
        (Ok(module), Ok(qualname)) => format!("{module}.{qualname}"),
        // The one of C has the module too, if there is any.
        (Err(_), Ok(qualname)) if !own.contains('.') => qualname,
        (_, _) => own.to_owned(),
    }
}

/// `__module__`, by the namespace of a class.
fn module_of(
    memory: &impl ReadMemory,
    layout: &ObjectLayout,
    namespace: Address,
) -> Result<String, Unreadable> {
    /// It is among the first.
    const MAX_LOOKED_AT: usize = 256;
    let entries = layout.entries(memory, namespace)?;
    let mut at = 0;
    while at < entries.len.min(MAX_LOOKED_AT) {
        let mut pair = [0; 16];
        let start = entries
            .start
            .add((at * entries.stride + entries.key) as u64);
        memory.read(start, &mut pair)?;
        let (key, value) = (Address(word(&pair, 0)), Address(word(&pair, 8)));
        if !key.is_null()
            && !value.is_null()
            && layout.text(memory, key, MAX_NAME_BYTES).as_deref() == Ok("__module__")
        {
            return layout.text(memory, value, MAX_NAME_BYTES);
        }
        at += 1;
    }
    Err(Unreadable)
}

/// A text in C, lossily decoded.
pub(super) fn c_text(memory: &impl ReadMemory, address: Address) -> Result<String, Unreadable> {
    /// No piece crosses a page.
    const PIECE_BYTES: u64 = 64;
    let mut text = Vec::new();
    let mut at = address;
    while text.len() < MAX_NAME_BYTES {
        let n_bytes = PIECE_BYTES - at.0 % PIECE_BYTES;
        let mut piece = [0; PIECE_BYTES as usize];
        let piece = &mut piece[..n_bytes as usize];
        memory.read(at, piece)?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            text.extend_from_slice(&piece[..end]);
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        text.extend_from_slice(piece);
        at = at.add(n_bytes);
    }
    Err(Unreadable)
}
