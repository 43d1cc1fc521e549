//! Facts of a binary: is there a CPython in it, which version, and where are its runtime and its eval loop?
//!
//! Content decides, never the file's name: uwsgi, PyInstaller and embedding programs are called anything.

use std::fs::File;
use std::sync::Arc;

use profiler_common::arch::IS_ARM64;

use super::layout::{Version, debug_offsets};
use crate::native::elf::{AddressRange, Elf, ElfError, ElfReader, Segment};

/// A binary that contains a CPython runtime. Addresses are as linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PythonBinary {
    /// Its version.
    pub version: Version,
    /// Built without the GIL.
    pub free_threaded: bool,
    /// `_PyRuntime`.
    pub runtime: u64,
    /// How the runtime was found, in words.
    pub runtime_found_by: &'static str,
    /// Code of the eval loop; the whole `.text` when there is no symbol for it, or it is spread over functions (each
    /// instruction's handler is one where CPython was built with `--with-tail-call-interp`, 3.14+).
    pub eval: AddressRange,
    /// Code that the compiler split off the eval loop.
    pub eval_cold: AddressRange,
    /// Whether `eval` is the eval loop itself, not the whole text.
    pub eval_is_exact: bool,
    /// Loaded segments.
    pub segments: Vec<Segment>,
}

/// Why a binary with a runtime in it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// No ELF, or damaged.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// There is a runtime, but nothing tells its version.
    #[error("it has a _PyRuntime, but neither debug offsets, Py_Version nor a version string")]
    NoVersion,
}

/// What a binary is with regard to CPython.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binary {
    /// It holds a runtime.
    Python(Arc<PythonBinary>),
    /// It names libpython: it will load one soon after its start.
    LoadsPython,
    /// Neither. It may still load one, at any time.
    Other,
}

/// Looks for a CPython in a file.
pub fn inspect(file: File) -> Result<Binary, BinaryError> {
    let reader = ElfReader::new(file);
    let elf = reader.parse()?;
    let section = elf
        .section(".PyRuntime")
        .filter(|section| !section.is_empty());
    if section.is_none() && !elf.dynamic_strings_contain("_PyRuntime\0") {
        if elf.dynamic_strings_contain("_PyThreadState_Current\0")
            && let Some(binary) = without_runtime(&elf)
        {
            return Ok(binary);
        }
        let loads = |name| elf.dynamic_strings_contain(name);
        let loads_python = loads("libpython3.") || loads("libpython2.");
        return Ok(if loads_python {
            Binary::LoadsPython
        } else {
            Binary::Other
        });
    }
    let names = [
        "_PyRuntime",
        "Py_Version",
        "_PyEval_EvalFrameDefault",
        "_PyEval_EvalFrameDefault.cold",
    ];
    let [runtime_symbol, version_symbol, eval, eval_cold] = elf.symbols(names);
    let (runtime, runtime_found_by) = match (section, runtime_symbol) {
        (Some(section), _) => (section.start, "section .PyRuntime"),
        (None, Some(symbol)) => (symbol.start, "symbol _PyRuntime"),
        // Only a reference: an extension module.
        (None, None) => return Ok(Binary::Other),
    };
    let (version, free_threaded) =
        version(&elf, runtime, version_symbol).ok_or(BinaryError::NoVersion)?;
    let runtime = (runtime, runtime_found_by);
    let eval = [eval, eval_cold];
    Ok(python(&elf, (version, free_threaded), runtime, eval))
}

/// `eval` is the symbol of the eval loop, and of the code that was split off it.
fn python(
    elf: &Elf<'_>,
    (version, free_threaded): (Version, bool),
    (runtime, runtime_found_by): (u64, &'static str),
    [eval, eval_cold]: [Option<AddressRange>; 2],
) -> Binary {
    let text = elf.section(".text").unwrap_or_default();
    let exact = eval.filter(|eval| eval.end - eval.start >= MIN_EVAL_BYTES);
    Binary::Python(Arc::new(PythonBinary {
        version,
        free_threaded,
        runtime,
        runtime_found_by,
        eval: exact.unwrap_or(text),
        // BOLT puts what it takes for cold into a section of its own.
        eval_cold: eval_cold
            .or_else(|| elf.section(".text.cold").filter(|_| exact.is_none()))
            .unwrap_or_default(),
        eval_is_exact: exact.is_some(),
        segments: elf.segments(),
    }))
}

/// CPython 3.6: its list of interpreters begins at the static variable `interp_head`. Stripped binaries have it in the
/// code of the function that returns it. `None`: only a reference to a CPython, or another version of it.
fn without_runtime(elf: &Elf<'_>) -> Option<Binary> {
    let names = [
        "interp_head",
        "PyInterpreterState_Head",
        "_PyEval_EvalFrameDefault",
        "_PyEval_EvalFrameDefault.cold",
    ];
    let [variable, function, eval, eval_cold] = elf.symbols(names);
    let version = version_string(elf.section_bytes(".rodata", 64 << 20)?)?;
    if version.minor() != (3, 6) {
        return None;
    }
    let runtime = match (variable, function) {
        (Some(variable), _) => (variable.start, "symbol interp_head"),
        (None, Some(function)) => {
            let code = elf.bytes_at(function.start, RETURN_BYTES)?;
            (
                returned_variable(function.start, code)?,
                "code of PyInterpreterState_Head",
            )
        }
        (None, None) => return None,
    };
    Some(python(elf, (version, false), runtime, [eval, eval_cold]))
}

/// Smallest evaluation loop, in bytes: gcc's have 45,000 to 60,000. What only calls the first handler has 1,000.
const MIN_EVAL_BYTES: u64 = 8192;

/// Bytes of a function that returns a variable, with what may stand in front.
const RETURN_BYTES: u64 = 16;

/// The variable whose value the code at `address` returns.
fn returned_variable(address: u64, code: &[u8]) -> Option<u64> {
    if IS_ARM64 {
        returned_by_arm64(address, code)
    } else {
        returned_by_x86_64(address, code)
    }
}

/// `bti c`, or nothing; `adrp x0, page`; `ldr x0, [x0, #n]`; `ret`.
fn returned_by_arm64(address: u64, code: &[u8]) -> Option<u64> {
    const BTI_C: u32 = 0xd503_245f;
    const RET: u32 = 0xd65f_03c0;
    /// Without the number of the page, or the offset, and with register 0.
    const ADRP: (u32, u32) = (0x9f00_001f, 0x9000_0000);
    const LDR: (u32, u32) = (0xffc0_03ff, 0xf940_0000);
    /// Pages of `adrp`, whatever those of the kernel have.
    const PAGE_BYTES: u64 = 4096;
    let (words, _) = code.as_chunks::<4>();
    let mut words = words
        .iter()
        .map(|word| u32::from_le_bytes(*word))
        .peekable();
    let mut address = address;
    if words.next_if_eq(&BTI_C).is_some() {
        address = address.wrapping_add(4);
    }
    let mut next_like =
        |(mask, pattern): (u32, u32)| words.next().filter(|word| word & mask == pattern);
    let (adrp, ldr) = (next_like(ADRP)?, next_like(LDR)?);
    next_like((u32::MAX, RET))?;
    // 21 bits with a sign: the lower two stand apart.
    let n_pages = (adrp >> 5 & 0x7_ffff) << 2 | adrp >> 29 & 3;
    let n_pages = (n_pages << 11).cast_signed() >> 11;
    let page = address & !(PAGE_BYTES - 1);
    let page = page.wrapping_add_signed(i64::from(n_pages) * PAGE_BYTES as i64);
    Some(page.wrapping_add(u64::from(ldr >> 10 & 0xfff) * 8))
}

/// `endbr64`, or nothing; `mov rax, [rip + n]`; `ret`.
fn returned_by_x86_64(address: u64, code: &[u8]) -> Option<u64> {
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    const MOV_BYTES: u64 = 7;
    let n_before = if code.starts_with(&ENDBR64) {
        ENDBR64.len()
    } else {
        0
    };
    let [0x48, 0x8b, 0x05, a, b, c, d, 0xc3, ..] = *code.get(n_before..)? else {
        return None;
    };
    let next = address.wrapping_add(n_before as u64 + MOV_BYTES);
    Some(next.wrapping_add_signed(i32::from_le_bytes([a, b, c, d]).into()))
}

/// The version by, in this order: the debug offsets (3.13+), `Py_Version` (3.11+), the version string.
fn version(
    elf: &Elf<'_>,
    runtime: u64,
    version_symbol: Option<AddressRange>,
) -> Option<(Version, bool)> {
    if let Some(table) = elf.bytes_at(runtime, debug_offsets::TABLE_BYTES as u64)
        && let Some(found) = debug_offsets::version(table)
    {
        return Some(found);
    }
    if let Some(symbol) = version_symbol
        && let Some(bytes) = elf.bytes_at(symbol.start, 4)
    {
        let version = Version(u32::from_le_bytes(bytes.try_into().ok()?));
        if version.minor().0 == 3 {
            return Some((version, false));
        }
    }
    let version = version_string(elf.section_bytes(".rodata", 64 << 20)?)?;
    Some((version, false))
}

/// `PY_VERSION`, such as `3.8.18`, in read-only data that also names the library folder.
///
/// Linkers merge a string into a longer one that ends like it (`/opt/python/3.8.18`), so it need not stand
/// alone. Where there is none, the folder tells the minor version.
fn version_string(read_only: &[u8]) -> Option<Version> {
    let minor = library_minor(read_only)?;
    let wanted = format!("3.{minor}.");
    let full = memchr::memmem::find_iter(read_only, &wanted).find_map(|at| {
        let is_part_of_number = at > 0 && matches!(read_only[at - 1], b'0'..=b'9' | b'.');
        let text = &read_only[at..];
        let end = text.iter().take(16).position(|byte| *byte == 0)?;
        let text = std::str::from_utf8(&text[..end]).ok()?;
        if is_part_of_number {
            None
        } else {
            parse_version(text)
        }
    });
    Some(full.unwrap_or(Version::of_minor(3, minor)))
}

/// The minor version in the name of the library folder, `lib/python3.8` or (3.9+) `python3.9`.
fn library_minor(read_only: &[u8]) -> Option<u8> {
    const FOLDER: &[u8] = b"python3.";
    memchr::memmem::find_iter(read_only, FOLDER).find_map(|at| {
        let digits = &read_only[at + FOLDER.len()..];
        let end = digits
            .iter()
            .take(3)
            .position(|byte| !byte.is_ascii_digit())?;
        let stands_alone = digits[end] == 0 && (at == 0 || matches!(read_only[at - 1], 0 | b'/'));
        if stands_alone {
            std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
        } else {
            None
        }
    })
}

/// `3.8.18`, `3.8.18+`, `3.13.0rc1`.
fn parse_version(text: &str) -> Option<Version> {
    let mut parts = text.trim_end_matches('+').splitn(3, '.');
    let (major, minor) = (parts.next()?, parts.next()?);
    let micro = parts.next()?;
    let digits = micro
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(micro.len());
    let (micro, rest) = micro.split_at(digits);
    if !matches!(rest.as_bytes().first(), None | Some(b'a' | b'b' | b'r')) {
        return None;
    }
    let minor: u8 = minor.parse().ok()?;
    // Other libraries have versions 3.x too: SQLite 3.40, libffi 3.4, OpenSSL 3.0.
    (major == "3" && (6..=20).contains(&minor)).then_some(())?;
    Some(Version::new(3, minor, micro.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_string_is_told_from_other_libraries_versions() {
        let data = b"x\x003.40.1\x003.4.4\x00lib/python3.8\x0013.8.1\x00/opt/3.8.18\x00";
        assert_eq!(version_string(data), Some(Version::new(3, 8, 18)));
        assert_eq!(version_string(b"\x003.8.18\x00"), None);
        assert_eq!(
            version_string(b"lib/python3.10\x00"),
            Some(Version::of_minor(3, 10))
        );
        assert_eq!(parse_version("3.10.0rc2"), Some(Version::new(3, 10, 0)));
        assert_eq!(parse_version("3.10.x"), None);
    }

    #[test]
    fn the_variable_that_a_function_returns_is_read_from_its_code() {
        // PyInterpreterState_Head of a CPython 3.6.15, as objdump shows it: `# 2feee0 <interp_head>`.
        let code = [0x48, 0x8b, 0x05, 0x49, 0xa3, 0x18, 0x00, 0xc3, 0x90];
        assert_eq!(returned_by_x86_64(0x17_4b90, &code), Some(0x2f_eee0));
        let marked = [&[0xf3, 0x0f, 0x1e, 0xfa][..], &code].concat();
        assert_eq!(returned_by_x86_64(0x17_4b8c, &marked), Some(0x2f_eee0));
        assert_eq!(returned_by_x86_64(0x17_4b90, &code[1..]), None);
        assert_eq!(returned_by_x86_64(0x17_4b90, &code[..7]), None);
    }

    #[test]
    fn the_variable_that_a_function_of_arm64_returns_is_read_from_its_code() {
        // At 0x4003f8: adrp x0, 0x42f000; ldr x0, [x0, #3560]; ret; nop, by GNU's assembler.
        let code: Vec<u8> = [0xf000_0160_u32, 0xf946_f400, 0xd65f_03c0, 0xd503_201f]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        assert_eq!(returned_by_arm64(0x40_03f8, &code), Some(0x42_fde8));
        let marked = [&0xd503_245f_u32.to_le_bytes()[..], &code].concat();
        assert_eq!(returned_by_arm64(0x40_03f4, &marked), Some(0x42_fde8));
        assert_eq!(returned_by_arm64(0x40_03f8, &code[4..]), None);
        assert_eq!(returned_by_arm64(0x40_03f8, &code[..8]), None);
        // Pages below: adrp x0, 0x3ff000.
        let below = [&0xf0ff_ffe0_u32.to_le_bytes()[..], &code[4..]].concat();
        assert_eq!(returned_by_arm64(0x40_03f8, &below), Some(0x3f_fde8));
    }

    #[test]
    fn a_program_without_python_is_told_so() {
        let file = File::open("/proc/self/exe").unwrap();
        assert!(!matches!(inspect(file), Ok(Binary::Python(_))));
    }
}
