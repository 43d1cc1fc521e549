//! The local variables of a stack that was read: each value at least twice, since the process runs on.
//!
//! A variable has a value here when two readings in a row, with nothing remembered between them, said the same of it.
//! Whether the frames themselves were still there after that is for the caller to find out ([`n_unmoved`]).

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use profiler_common::event::PyFrame;

use super::remote::RemoteStack;
use crate::ids::Address;
use crate::process::memory::ReadMemory;
use crate::profile::inspect::{FrameLocals, LocalValue, LocalVariable, LocalsDetail};
use crate::python::layout::Layout;
use crate::python::locals::{SlotKind, Variable, Variables};
use crate::python::value::{ObjectLayout, Value, Values};

/// Most readings of a frame of which two in a row have to agree about a variable.
const MAX_READINGS: usize = 5;

/// Most objects that are looked at for one process.
const MAX_OBJECTS: u64 = 1 << 20;

/// Most characters of all values of one process, and of one thread.
const MAX_CHARS: usize = 4 << 20;
const MAX_THREAD_CHARS: usize = 512 << 10;

/// Longest time for one process.
const MAX_TIME: Duration = Duration::from_secs(5);

/// Words of a frame that are read.
const MAX_SLOTS: usize = 4096;

/// Most code objects whose variables are remembered.
const MAX_CODES: usize = 256;

/// Why variables are missing.
const TOO_MANY: &str = "there are more than are read";
const UNKNOWN: &str = "they cannot be read";
const BOUND: &str = "not read: all values together are too many";

/// Reads local variables.
pub(super) struct LocalsReader<'a, M> {
    memory: &'a M,
    layout: &'a Layout,
    max_chars: usize,
    values: Values<'a, M>,
    codes: HashMap<(u64, u32), Rc<Variables>>,
    n_chars_left: usize,
    end: Instant,
}

/// One reading of a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reading {
    Unbound,
    /// The word of the frame, and what it leads to.
    Bound(u64, Value),
    Unreadable,
}

impl<'a, M: ReadMemory> LocalsReader<'a, M> {
    /// `None`: nothing is to be read, or how is not known.
    pub(super) fn new(memory: &'a M, layout: &'a Layout, detail: LocalsDetail) -> Option<Self> {
        if detail == LocalsDetail::None {
            return None;
        }
        let objects = ObjectLayout::of_interpreter(layout)?;
        Some(Self {
            memory,
            layout,
            max_chars: detail.max_chars(),
            values: Values::new(memory, objects, MAX_OBJECTS),
            codes: HashMap::new(),
            n_chars_left: MAX_CHARS,
            end: Instant::now() + MAX_TIME,
        })
    }

    /// The variables of each frame of a stack, in its order.
    pub(super) fn read(&mut self, stack: &RemoteStack) -> Vec<FrameLocals> {
        let mut n_chars_left = self.n_chars_left.min(MAX_THREAD_CHARS);
        let n_before = n_chars_left;
        let frames = stack.frames.iter().zip(&stack.addresses);
        let locals = frames
            .map(|(frame, address)| {
                if n_chars_left == 0 || self.values.is_spent() || Instant::now() > self.end {
                    return problem(BOUND);
                }
                let locals = self.frame(frame, *address);
                let n_chars = locals.variables.iter().map(n_chars).sum();
                n_chars_left = n_chars_left.saturating_sub(n_chars);
                locals
            })
            .collect();
        self.n_chars_left -= n_before - n_chars_left;
        locals
    }

    fn frame(&mut self, frame: &PyFrame, address: Address) -> FrameLocals {
        let Some(variables) = self.variables(frame) else {
            return problem(UNKNOWN);
        };
        let n_variables = variables.variables.len();
        let mut settled: Vec<Option<Reading>> = vec![None; n_variables];
        let mut last: Vec<Reading> = Vec::new();
        for _ in 0..MAX_READINGS {
            self.values.forget();
            let Some(slots) = self.slots(&variables, address) else {
                return problem(UNKNOWN);
            };
            let now: Vec<Reading> = variables
                .variables
                .iter()
                .map(|variable| self.variable(variable, &slots))
                .collect();
            for ((before, now), settled) in last.iter().zip(&now).zip(&mut settled) {
                if before == now {
                    *settled = Some(now.clone());
                }
            }
            last = now;
            if settled.iter().all(Option::is_some) {
                break;
            }
        }
        let is_cut = variables.is_cut
            || variables
                .variables
                .iter()
                .any(|variable| variable.slot >= MAX_SLOTS);
        let shown = variables.variables.iter().zip(settled);
        FrameLocals {
            variables: shown
                .filter_map(|(variable, reading)| local(variable, reading))
                .collect(),
            problem: if is_cut { TOO_MANY } else { "" }.into(),
        }
    }

    fn slots(&self, variables: &Variables, frame: Address) -> Option<Vec<u64>> {
        let mut bytes = vec![0; variables.n_slots.min(MAX_SLOTS) * 8];
        let at = frame.add(self.layout.locals.slots.into());
        self.memory.read(at, &mut bytes).ok()?;
        let words = bytes.as_chunks::<8>().0.iter();
        Some(words.map(|word| u64::from_le_bytes(*word)).collect())
    }

    fn variable(&mut self, variable: &Variable, slots: &[u64]) -> Reading {
        let slot = slots.get(variable.slot).copied().unwrap_or(0);
        let Some(object) = self.values.object_of(slot) else {
            return Reading::Unbound;
        };
        let object = match variable.kind {
            SlotKind::Plain => Ok(Some(object)),
            SlotKind::Cell => self.values.in_cell(object),
        };
        match object {
            Ok(Some(object)) => match self.values.read(object, self.max_chars) {
                Ok(value) => Reading::Bound(slot, value),
                Err(_) => Reading::Unreadable,
            },
            Ok(None) => Reading::Unbound,
            Err(_) => Reading::Unreadable,
        }
    }

    fn variables(&mut self, frame: &PyFrame) -> Option<Rc<Variables>> {
        let key = (frame.code, frame.identity);
        if let Some(known) = self.codes.get(&key) {
            return Some(known.clone());
        }
        let read = Variables::read(self.memory, self.layout, Address(frame.code)).ok()?;
        let read = Rc::new(read);
        if self.codes.len() >= MAX_CODES {
            self.codes.clear();
        }
        self.codes.insert(key, read.clone());
        Some(read)
    }
}

fn problem(problem: &str) -> FrameLocals {
    FrameLocals {
        variables: Vec::new(),
        problem: problem.into(),
    }
}

/// What is said of a variable; `None`: it is not bound.
fn local(variable: &Variable, settled: Option<Reading>) -> Option<LocalVariable> {
    let value = match settled {
        Some(Reading::Unbound) => return None,
        Some(Reading::Bound(_, value)) => Some(LocalValue {
            type_name: value.type_name,
            text: value.text,
            is_truncated: value.is_cut,
        }),
        Some(Reading::Unreadable) | None => None,
    };
    Some(LocalVariable {
        name: variable.name.clone(),
        is_argument: variable.is_argument,
        value,
    })
}

fn n_chars(variable: &LocalVariable) -> usize {
    let value = variable.value.as_ref();
    variable.name.len() + value.map_or(0, |value| value.text.len() + value.type_name.len())
}

/// How many frames, from the root on, are the same in two readings of a stack. The innermost of these may have gone on.
pub(super) fn n_unmoved(before: &RemoteStack, now: &RemoteStack) -> usize {
    let rooted = |stack: &RemoteStack| -> Vec<(PyFrame, Address)> {
        let frames = stack.frames.iter().copied();
        frames.zip(stack.addresses.iter().copied()).rev().collect()
    };
    let (before, now) = (rooted(before), rooted(now));
    let is_call = |(before, now): &(&(PyFrame, Address), &(PyFrame, Address))| {
        before.1 == now.1 && before.0.code == now.0.code && before.0.identity == now.0.identity
    };
    let mut n_same = 0;
    for pair in before.iter().zip(&now) {
        if !is_call(&pair) {
            break;
        }
        n_same += 1;
        // It is at another call: what lies further in is of that.
        if pair.0.0.instr != pair.1.0.instr {
            break;
        }
    }
    n_same
}
