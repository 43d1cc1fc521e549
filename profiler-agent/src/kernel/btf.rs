//! Offsets of kernel structures from the running kernel's BTF.
//!
//! Only what is needed for that: structures, unions, typedefs and their members. Format:
//! <https://docs.kernel.org/bpf/btf.html>. The file is the kernel's own, but damage is an error, no panic.

use std::path::Path;

/// Where the kernel shows its BTF (5.4+ with CONFIG_DEBUG_INFO_BTF).
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why an offset could not be found.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file is not there or cannot be read.
    #[error("cannot read {path}: {source} (the kernel must be built with CONFIG_DEBUG_INFO_BTF)")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no BTF, or cut.
    #[error("damaged BTF: {0}")]
    Damaged(&'static str),
    /// There is no such structure or member.
    #[error("the kernel's BTF has no {0}")]
    Missing(String),
}

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// Bytes behind the 12-byte type header, by kind (0 to 19); members are counted by `vlen`.
fn extra_bytes(kind: u32, vlen: u32) -> Option<usize> {
    let vlen = vlen as usize;
    Some(match kind {
        0 | 2 | 7..=12 | 16 | 18 => 0, // void, ptr, fwd, typedef, volatile, const, restrict, func, float, type tag
        1 | 14 | 17 => 4,              // int, var, decl tag
        3 => 12,                       // array
        4 | 5 | 15 | 19 => vlen * 12,  // struct, union, datasec, enum64
        6 | 13 => vlen * 8,            // enum, func proto
        _ => return None,
    })
}

/// A parsed BTF.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    strings_at: usize,
    /// Byte offset of each type, by id; id 0 is void.
    types: Vec<u32>,
}

impl Btf {
    /// Reads the running kernel's.
    pub fn of_running_kernel() -> Result<Self, BtfError> {
        Self::read(Path::new(VMLINUX))
    }

    /// Reads a BTF file.
    pub fn read(path: &Path) -> Result<Self, BtfError> {
        let bytes = std::fs::read(path).map_err(|source| BtfError::Read {
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(bytes)
    }

    /// Parses raw BTF.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let magic = bytes
            .get(..2)
            .map(|magic| u16::from_le_bytes([magic[0], magic[1]]));
        if magic != Some(MAGIC) {
            return Err(BtfError::Damaged("no BTF magic"));
        }
        let word = |at| {
            u32_at(&bytes, at)
                .map(|word| word as usize)
                .ok_or(BtfError::Damaged("cut header"))
        };
        let (header_bytes, types_at, types_bytes, strings_at) =
            (word(4)?, word(8)?, word(12)?, word(16)?);
        let mut at = header_bytes + types_at;
        let end = (at + types_bytes).min(bytes.len());
        let mut types = vec![0];
        while at + 12 <= end {
            types.push(at as u32);
            let info = u32_at(&bytes, at + 4).ok_or(BtfError::Damaged("cut type"))?;
            let extra = extra_bytes(info >> 24 & 0x1f, info & 0xffff)
                .ok_or(BtfError::Damaged("unknown kind"))?;
            at += 12 + extra;
        }
        Ok(Self {
            strings_at: header_bytes + strings_at,
            bytes,
            types,
        })
    }

    /// Offset in bytes of `path` (members separated by dots) in the structure `name`; anonymous structures
    /// and unions in between are looked through, as C does.
    pub fn offset_of(&self, name: &str, path: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing(format!("{name}.{path}"));
        let mut id = self.struct_named(name).ok_or_else(missing)?;
        let mut bits = 0;
        for member in path.split('.') {
            let (member_bits, member_type) = self.member(id, member, 0).ok_or_else(missing)?;
            bits += member_bits;
            id = self.resolved(member_type);
        }
        Ok(bits / 8)
    }

    /// Size in bytes of the structure `name`.
    pub fn size_of(&self, name: &str) -> Result<u32, BtfError> {
        self.struct_named(name)
            .and_then(|id| u32_at(&self.bytes, self.at(id)? + 8))
            .ok_or_else(|| BtfError::Missing(name.to_owned()))
    }

    fn struct_named(&self, name: &str) -> Option<u32> {
        (1..self.types.len() as u32)
            .find(|&id| self.kind(id) == Some(KIND_STRUCT) && self.name(id) == name.as_bytes())
    }

    /// Bit offset and type of a member; `depth` bounds the look through anonymous ones.
    fn member(&self, id: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        let at = self.at(id)?;
        let info = u32_at(&self.bytes, at + 4)?;
        if !matches!(info >> 24 & 0x1f, KIND_STRUCT | KIND_UNION) || depth > 8 {
            return None;
        }
        let has_bitfields = info >> 31 == 1;
        for idx in 0..(info & 0xffff) as usize {
            let member_at = at + 12 + idx * 12;
            let name_at = u32_at(&self.bytes, member_at)?;
            let member_type = u32_at(&self.bytes, member_at + 4)?;
            let raw = u32_at(&self.bytes, member_at + 8)?;
            let bits = if has_bitfields {
                raw & 0x00ff_ffff
            } else {
                raw
            };
            if self.string(name_at) == name.as_bytes() {
                return Some((bits, member_type));
            }
            if name_at == 0
                && let Some((inner, inner_type)) =
                    self.member(self.resolved(member_type), name, depth + 1)
            {
                return Some((bits + inner, inner_type));
            }
        }
        None
    }

    /// Looks through typedefs and qualifiers.
    fn resolved(&self, mut id: u32) -> u32 {
        for _ in 0..32 {
            match self.kind(id) {
                Some(8..=11 | 18) => {
                    id = self
                        .at(id)
                        .and_then(|at| u32_at(&self.bytes, at + 8))
                        .unwrap_or(0);
                }
                _ => break,
            }
        }
        id
    }

    fn at(&self, id: u32) -> Option<usize> {
        self.types
            .get(id as usize)
            .filter(|at| **at != 0)
            .map(|at| *at as usize)
    }

    fn kind(&self, id: u32) -> Option<u32> {
        Some(u32_at(&self.bytes, self.at(id)? + 4)? >> 24 & 0x1f)
    }

    fn name(&self, id: u32) -> &[u8] {
        self.at(id)
            .and_then(|at| u32_at(&self.bytes, at))
            .map_or(&[], |name_at| self.string(name_at))
    }

    fn string(&self, at: u32) -> &[u8] {
        let bytes = self
            .bytes
            .get(self.strings_at + at as usize..)
            .unwrap_or(&[]);
        bytes.split(|byte| *byte == 0).next().unwrap_or(&[])
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use profiler_common::arch::IS_ARM64;

    use super::*;

    #[test]
    fn offsets_of_the_running_kernel_are_found_through_nested_members() {
        if !Path::new(VMLINUX).exists() {
            println!("skipped: this kernel shows no BTF");
            return;
        }
        let btf = Btf::of_running_kernel().unwrap();
        let thread = btf.offset_of("task_struct", "thread").unwrap();
        let cpu_context = if IS_ARM64 {
            "thread.uw.tp_value"
        } else {
            "thread.fsbase"
        };
        let thread_pointer = btf.offset_of("task_struct", cpu_context).unwrap();
        assert!(thread_pointer > thread && thread > 0);
        let registers = btf.size_of("pt_regs").unwrap();
        assert!(if IS_ARM64 {
            registers >= 304
        } else {
            registers == 168
        });
        assert!(btf.offset_of("signal_struct", "live").unwrap() > 0);
        assert!(matches!(
            btf.offset_of("task_struct", "no_such_member"),
            Err(BtfError::Missing(_))
        ));
        assert!(matches!(
            btf.offset_of("no_such_struct", "x"),
            Err(BtfError::Missing(_))
        ));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_a_value(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..512)) {
            if bytes.len() > 2 {
                bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
            }
            if let Ok(btf) = Btf::parse(bytes) {
                let _ = btf.offset_of("task_struct", "a.b");
            }
        }
    }
}
