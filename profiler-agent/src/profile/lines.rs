//! Lines of Python functions: what each takes by itself, in machine code and in the kernel, and with what it calls.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use foldhash::fast::RandomState;

use super::calls::by_stack;
use super::measure::{Amount, Measure};
use super::model::{FrameKind, FunctionId, Profile, StringId};

/// What a line takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LineAmounts {
    /// While the interpreter ran it.
    pub python: Amount,
    /// While it was in machine code that it called.
    pub native: Amount,
    /// While it was in the kernel.
    pub kernel: Amount,
    /// Of all samples with the line anywhere in their stack; a recursion counts once.
    pub total: Amount,
}

impl LineAmounts {
    /// Adds what it takes by itself, as the kind of the innermost frame has it.
    pub(super) fn add_own(&mut self, leaf: Option<FrameKind>, amount: Amount) {
        let own = match leaf {
            Some(FrameKind::Native) => &mut self.native,
            Some(FrameKind::Kernel) => &mut self.kernel,
            Some(FrameKind::Python | FrameKind::Reason) | None => &mut self.python,
        };
        own.add(amount);
    }

    /// What it takes without the Python functions that it calls.
    #[must_use]
    pub fn own(&self) -> Amount {
        let mut own = self.python;
        own.add(self.native);
        own.add(self.kernel);
        own
    }
}

/// The lines of a function by their numbers; 0 stands for those that are not known.
pub type Lines = BTreeMap<u32, LineAmounts>;

/// The lines of every Python function, of a profile with its native frames.
#[must_use]
pub fn lines(profile: &Profile, measure: Measure) -> HashMap<FunctionId, Lines, RandomState> {
    lines_by(profile, measure, Some)
}

/// The lines of every Python file, by its name: what several of its functions have on one line counts once.
#[must_use]
pub fn lines_of_files(
    profile: &Profile,
    measure: Measure,
) -> HashMap<StringId, Lines, RandomState> {
    lines_by(profile, measure, |function| {
        let function = profile.functions.get(function.0 as usize)?;
        Some(function.filename)
    })
}

/// The lines of what `of` says functions belong to.
fn lines_by<K: Copy + Eq + Hash>(
    profile: &Profile,
    measure: Measure,
    of: impl Fn(FunctionId) -> Option<K>,
) -> HashMap<K, Lines, RandomState> {
    let mut found: HashMap<K, Lines, RandomState> = HashMap::default();
    let mut seen = HashSet::new();
    for (stack, amount) in by_stack(profile, measure) {
        seen.clear();
        let leaf = profile.frames(stack).next().map(|frame| frame.kind);
        let python = profile
            .frames(stack)
            .filter(|frame| frame.kind == FrameKind::Python);
        for (depth, frame) in python.enumerate() {
            let Some(owner) = of(frame.function) else {
                continue;
            };
            let line = found
                .entry(owner)
                .or_default()
                .entry(frame.line)
                .or_default();
            if depth == 0 {
                line.add_own(leaf, amount);
            }
            if seen.insert((owner, frame.line)) {
                line.total.add(amount);
            }
        }
    }
    found
}
