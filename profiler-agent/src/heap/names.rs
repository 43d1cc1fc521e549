//! What types are called: `module.Qualname`, as the program itself would say.

use super::bytes::word;
use super::layout::{HeapLayout, KeysLayout, flags, type_object};
use super::types::TypeInfo;
use crate::ids::Address;
use crate::process::memory::ReadMemory;
use crate::python::string::{STR_HEADER_BYTES, StrHeader};

/// Most bytes of a name in C.
const MAX_NAME_BYTES: usize = 512;

/// Bytes that are read at once; no piece crosses a page.
const PIECE_BYTES: u64 = 64;

/// Most entries of a class's namespace that are looked at; `__module__` is among the first.
const MAX_ENTRIES: u64 = 256;

/// Stands for a `__module__` that is no str.
const NO_MODULE_NAME: &str = "[no str]";

/// What a type is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeName {
    /// `__module__`.
    pub module: String,
    /// `__qualname__`.
    pub qualname: String,
}

impl std::fmt::Display for TypeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.module == "builtins" {
            f.write_str(&self.qualname)
        } else {
            write!(f, "{}.{}", self.module, self.qualname)
        }
    }
}

/// The name of a type; what cannot be read is shown by its address.
#[must_use]
pub fn type_name(memory: &impl ReadMemory, layout: &HeapLayout, info: &TypeInfo) -> TypeName {
    let full = c_text(memory, info.name).unwrap_or_else(|| format!("type at {}", info.address));
    let (module, name) = full.rsplit_once('.').unwrap_or(("builtins", &full));
    if !info.is_heap_type() {
        return TypeName {
            module: module.to_owned(),
            qualname: name.to_owned(),
        };
    }
    let qualname = memory
        .read_u64(info.address.add(layout.qualname))
        .ok()
        .and_then(|text| str_text(memory, layout, Address(text)));
    let written = module_of_class(memory, layout, info.dict);
    TypeName {
        module: written.unwrap_or_else(|| module.to_owned()),
        qualname: qualname.unwrap_or_else(|| name.to_owned()),
    }
}

/// A text in C, lossily decoded; `None`: it cannot be read, or has no end.
pub(super) fn c_text(memory: &impl ReadMemory, address: Address) -> Option<String> {
    let mut text = Vec::new();
    let mut at = address.0;
    while text.len() < MAX_NAME_BYTES {
        let n_bytes = PIECE_BYTES - at % PIECE_BYTES;
        let mut piece = [0; PIECE_BYTES as usize];
        let piece = piece.get_mut(..n_bytes as usize)?;
        memory.read(Address(at), piece).ok()?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            text.extend_from_slice(&piece[..end]);
            return Some(String::from_utf8_lossy(&text).into_owned());
        }
        text.extend_from_slice(piece);
        at = at.checked_add(n_bytes)?;
    }
    None
}

/// The text of a str object.
fn str_text(memory: &impl ReadMemory, layout: &HeapLayout, object: Address) -> Option<String> {
    let mut head = [0; STR_HEADER_BYTES];
    let n_bytes = layout.str.header_bytes();
    memory.read(object, &mut head[..n_bytes]).ok()?;
    let header = StrHeader::parse(layout.str, &head[..n_bytes]).ok()?;
    let mut data = vec![0; header.byte_len];
    let start = object.add(header.data_offset.into());
    memory.read(start, &mut data).ok()?;
    Some(header.decode(&data))
}

/// Whether an object is a str, by the flags of its type.
fn is_str(memory: &impl ReadMemory, object: Address) -> bool {
    const TYPE: u64 = 8;
    let type_flags = memory
        .read_u64(object.add(TYPE))
        .and_then(|of| memory.read_u64(Address(of).add(type_object::FLAGS as u64)));
    type_flags.is_ok_and(|type_flags| type_flags & flags::STR != 0)
}

/// `__module__` of a class, by its namespace.
fn module_of_class(
    memory: &impl ReadMemory,
    layout: &HeapLayout,
    namespace: Address,
) -> Option<String> {
    const DICT_KEYS: u64 = 32;
    let keys = Address(memory.read_u64(namespace.add(DICT_KEYS)).ok()?);
    let mut head = [0; 40];
    memory.read(keys, &mut head).ok()?;
    let (entries, entry_bytes, key_at, n_entries) = match layout.keys {
        KeysLayout::Sized => {
            let size = super::types::keys_bytes(layout.keys, &head)?;
            (size.n_bytes - size.n_usable * 24, 24, 8, word(&head, 32)?)
        }
        KeysLayout::Log2 => {
            let index_bytes = 1_u64.checked_shl((*head.get(9)?).into())?;
            let (entry_bytes, key_at) = if *head.get(10)? == 0 {
                (24, 8)
            } else {
                (16, 0)
            };
            (
                32_u64.checked_add(index_bytes)?,
                entry_bytes,
                key_at,
                word(&head, 24)?,
            )
        }
    };
    for idx in 0..n_entries.min(MAX_ENTRIES) {
        let entry = keys.add(entries).add(idx * entry_bytes).add(key_at);
        let mut pair = [0; 16];
        memory.read(entry, &mut pair).ok()?;
        let (key, value) = (word(&pair, 0)?, word(&pair, 8)?);
        if key != 0 && str_text(memory, layout, Address(key)).as_deref() == Some("__module__") {
            if !is_str(memory, Address(value)) {
                return Some(NO_MODULE_NAME.to_owned());
            }
            return str_text(memory, layout, Address(value));
        }
    }
    None
}
