//! Lines of Python functions: what each takes by itself, in machine code and in the kernel, and with what it calls.

use std::collections::{BTreeMap, HashMap, HashSet};

use foldhash::fast::RandomState;

use super::calls::by_stack;
use super::measure::{Amount, Measure};
use super::model::{FrameKind, FunctionId, Profile};

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
    let mut functions: HashMap<FunctionId, Lines, RandomState> = HashMap::default();
    let mut seen = HashSet::new();
    for (stack, amount) in by_stack(profile, measure) {
        seen.clear();
        let leaf = profile.frames(stack).next().map(|frame| frame.kind);
        let python = profile
            .frames(stack)
            .filter(|frame| frame.kind == FrameKind::Python);
        for (depth, frame) in python.enumerate() {
            let place = (frame.function, frame.line);
            let line = functions
                .entry(frame.function)
                .or_default()
                .entry(frame.line)
                .or_default();
            if depth == 0 {
                let own = match leaf {
                    Some(FrameKind::Native) => &mut line.native,
                    Some(FrameKind::Kernel) => &mut line.kernel,
                    Some(FrameKind::Python | FrameKind::Reason) | None => &mut line.python,
                };
                own.add(amount);
            }
            if seen.insert(place) {
                line.total.add(amount);
            }
        }
    }
    functions
}
