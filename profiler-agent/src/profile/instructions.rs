//! Instructions of Python functions: the label of samples that were taken with theirs, and what each instruction takes.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use foldhash::fast::RandomState;

use super::lines::LineAmounts;
use super::measure::Measure;
use super::model::{FrameKind, FunctionId, Profile, label};

/// An instruction of a code object. Shown as `24 BINARY_OP_ADD_INT`, which is the label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// Bytes from the code object's first instruction on, as `dis` has them; of the instruction itself, not of an
    /// `EXTENDED_ARG` in front of it.
    pub offset: u32,
    /// The byte that stands there.
    pub opcode: u8,
    /// Its name, specialized forms included; `None`: the numbers of this release are not known.
    pub name: Option<&'static str>,
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => write!(f, "{} {name}", self.offset),
            // As `dis` shows what it does not know.
            None => write!(f, "{} <{}>", self.offset, self.opcode),
        }
    }
}

/// Where samples were in a function. In the order of the bytecode, what is not known last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// At an instruction.
    At {
        /// See [`Instruction::offset`].
        offset: u32,
        /// Name; text of the profile, which can be anything.
        name: String,
        /// Line, 0 when it is not known.
        line: u32,
    },
    /// They have no such label: the frame had not begun, or its instruction could not be read.
    Unknown,
}

impl Place {
    fn of(text: Option<&str>, line: u32) -> Self {
        let parsed = text.and_then(|text| {
            let (offset, name) = text.split_once(' ')?;
            Some((offset.parse().ok()?, name.to_owned()))
        });
        match parsed {
            Some((offset, name)) => Self::At { offset, name, line },
            None => Self::Unknown,
        }
    }
}

/// What the instructions of a function take. All of it is their own: a sample has the instruction of its innermost Python
/// frame alone.
pub type Instructions = BTreeMap<Place, LineAmounts>;

/// Whether any sample has an instruction.
#[must_use]
pub fn has_instructions(profile: &Profile) -> bool {
    let mut sets = profile.label_sets.iter();
    sets.any(|set| {
        let mut names = set.labels.iter().map(|(name, _)| profile.str(*name));
        names.any(|name| name == label::INSTRUCTION)
    })
}

/// The instructions of every Python function that is the innermost one of a sample, of a profile with its native frames.
#[must_use]
pub fn instructions(
    profile: &Profile,
    measure: Measure,
) -> HashMap<FunctionId, Instructions, RandomState> {
    let mut functions: HashMap<FunctionId, Instructions, RandomState> = HashMap::default();
    for sample in &profile.samples {
        let mut frames = profile.frames(sample.stack).peekable();
        let leaf = frames.peek().map(|frame| frame.kind);
        let Some(frame) = frames.find(|frame| frame.kind == FrameKind::Python) else {
            continue;
        };
        let text = profile.label(sample.labels, label::INSTRUCTION);
        let place = Place::of(text, frame.line);
        let of_function = functions.entry(frame.function).or_default();
        let amounts = of_function.entry(place).or_default();
        let amount = measure.of(sample);
        amounts.add_own(leaf, amount);
        amounts.total.add(amount);
    }
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_says_offset_and_name_and_is_read_again() {
        let mut instruction = Instruction {
            offset: 24,
            opcode: 122,
            name: Some("BINARY_OP_ADD_INT"),
        };
        assert_eq!(instruction.to_string(), "24 BINARY_OP_ADD_INT");
        let place = |text: &str| Place::of(Some(text), 7);
        let at = |offset, name: &str| Place::At {
            offset,
            name: name.to_owned(),
            line: 7,
        };
        assert_eq!(place(&instruction.to_string()), at(24, "BINARY_OP_ADD_INT"));
        instruction.name = None;
        assert_eq!(place(&instruction.to_string()), at(24, "<122>"));
    }

    #[test]
    fn labels_of_others_are_not_known() {
        for text in [
            "",
            " ",
            "x",
            "24",
            "-1 POP_TOP",
            "4294967296 POP_TOP",
            "BINARY_OP 24",
        ] {
            assert_eq!(Place::of(Some(text), 1), Place::Unknown, "{text}");
        }
        assert_eq!(Place::of(None, 1), Place::Unknown);
        let at = Place::of(Some("4294967295 POP_TOP"), 1);
        assert!(at < Place::Unknown && Place::of(Some("8 X"), 1) < Place::of(Some("10 A"), 1));
    }
}
