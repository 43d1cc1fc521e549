//! Names of opcodes: one table a minor version, in `opcodes/`, as the interpreters themselves have them
//! (`tests/workloads/opcodes.py`).
//!
//! Numbers hold for the final releases of a minor version: no release of one is known that differs from another, and the
//! tests compare those at hand. Alphas, betas and candidates number theirs as they like, so of them no name is known.

use std::sync::LazyLock;

use super::layout::Version;

/// What stands in the bytecode where data of the instruction before it follows (3.11+). No opcode of 3.10 and older is 0.
pub const CACHE: u8 = 0;

/// In front of an instruction whose argument needs more than a byte.
const PREFIX: &str = "EXTENDED_ARG";

/// An opcode of one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opcode {
    /// Name.
    pub name: &'static str,
    /// Code units of data behind it; `None`: it stands in place of another instruction, which is kept elsewhere.
    pub n_cache_entries: Option<u8>,
    /// The opcode of which it is a specialized, instrumented or quickened form, or itself.
    pub base: u8,
}

/// The opcodes of one version.
#[derive(Debug)]
pub struct Opcodes {
    rows: [Option<Opcode>; 256],
}

macro_rules! tables {
    ($($minor:literal),*) => {
        /// The tables by minor version: a line each for number, name, entries of cache or `?`, and base.
        const TEXTS: &[(u8, &str)] =
            &[$(($minor, include_str!(concat!("opcodes/3.", $minor, ".txt")))),*];
    };
}

tables!(8, 9, 10, 11, 12, 13, 14, 15);

static TABLES: LazyLock<Vec<(u8, Opcodes)>> = LazyLock::new(|| {
    let parsed = TEXTS.iter().map(|(minor, text)| (*minor, parse(text)));
    parsed.collect()
});

/// The opcodes of a release; `None`: not known.
#[must_use]
pub fn opcodes(version: Version) -> Option<&'static Opcodes> {
    let (major, minor) = version.minor();
    if major != 3 || !version.is_final() {
        return None;
    }
    let mut tables = TABLES.iter();
    let (_, opcodes) = tables.find(|(known, _)| *known == minor)?;
    Some(opcodes)
}

/// Lines that are none are passed over; the tests see that there are none.
fn parse(text: &'static str) -> Opcodes {
    let mut rows = [None; 256];
    for line in text.lines() {
        if let Some((number, opcode)) = parse_line(line) {
            rows[usize::from(number)] = Some(opcode);
        }
    }
    Opcodes { rows }
}

fn parse_line(line: &'static str) -> Option<(u8, Opcode)> {
    let mut words = line.split(' ');
    let number = words.next()?.parse().ok()?;
    let name = words.next()?;
    let n_cache_entries = match words.next()? {
        "?" => None,
        n => Some(n.parse().ok()?),
    };
    let base = words.next()?.parse().ok()?;
    let opcode = Opcode {
        name,
        n_cache_entries,
        base,
    };
    Some((number, opcode))
}

impl Opcodes {
    /// The opcode of this number; `None`: there is no such one.
    #[must_use]
    pub fn get(&self, number: u8) -> Option<&Opcode> {
        self.rows[usize::from(number)].as_ref()
    }

    /// Whether it belongs to the instruction behind it.
    #[must_use]
    pub fn is_prefix(&self, number: u8) -> bool {
        let base = self.get(number).and_then(|it| self.get(it.base));
        base.is_some_and(|base| base.name == PREFIX)
    }

    /// Whether this can stand where `base` stood: a form of it, or what stands in place of any.
    #[must_use]
    pub fn can_stand_for(&self, number: u8, base: u8) -> bool {
        self.get(number)
            .is_some_and(|it| it.base == base || it.n_cache_entries.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_tables_is_an_opcode() {
        for (minor, text) in TEXTS {
            let mut lines = text.lines();
            let head = format!("# CPython 3.{minor}: number, name, cache entries, form of");
            assert_eq!(lines.next(), Some(head.as_str()));
            let opcodes = opcodes(Version::new(3, *minor, 0)).unwrap();
            let mut n_lines = 0;
            for line in lines {
                let (number, opcode) = parse_line(line).unwrap_or_else(|| panic!("{line}"));
                assert_eq!(opcodes.get(number), Some(&opcode), "{minor}: twice");
                let base = opcodes.get(opcode.base).unwrap();
                assert_eq!(base.base, opcode.base, "{minor}: {line}");
                assert_eq!(base.n_cache_entries, opcode.n_cache_entries, "{line}");
                n_lines += 1;
            }
            assert!(n_lines > 100, "{minor}");
            assert_eq!(opcodes.get(CACHE).is_some(), *minor >= 11);
            assert_eq!(
                (0..=255).filter(|it| opcodes.is_prefix(*it)).count(),
                match minor {
                    11 => 2,
                    _ => 1,
                }
            );
        }
    }

    #[test]
    fn of_releases_that_are_not_final_nothing_is_known() {
        assert!(opcodes(Version::new(3, 12, 1)).is_some());
        assert!(opcodes(Version::of_minor(3, 8)).is_some());
        for version in [
            0x030f_00a1,
            0x030f_00b2,
            0x030f_00c3,
            0x0310_00f0,
            0x0207_12f0,
        ] {
            assert!(opcodes(Version(version)).is_none(), "{version:#x}");
        }
    }
}
