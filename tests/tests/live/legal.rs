//! What an interpreter says of a workload's calls: the oracle of stacks. It comes from `workloads/live/harness.py`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::Path;

use serde::Deserialize;

/// A function as both sides name it: name (qualified from 3.11 on), file, first line.
pub(crate) type Function = (String, String, u32);

/// What the interpreter said.
#[derive(Debug, Default)]
pub(crate) struct Legal {
    /// Lines of each function's code.
    pub(crate) lines: HashMap<Function, BTreeSet<u32>>,
    /// Caller, its line, callee.
    calls: HashSet<(Function, u32, Function)>,
    /// Functions that nothing in Python has called.
    roots: HashSet<Function>,
    /// Processes that the workload has started.
    pub(crate) pids: HashSet<i64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Record {
    Pid { pid: i64 },
    Function { function: Function, lines: BTreeSet<u32> },
    Call { callee: Function, caller: Option<Function>, line: u32 },
}

/// A frame of a stack.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Frame {
    pub(crate) function: Function,
    pub(crate) line: u32,
}

/// What is wrong with a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// The program has no such function.
    Function(Function),
    /// The function's code has no such line.
    Line(Frame),
    /// The caller does not call the callee at its line.
    Call { caller: Frame, callee: Function },
    /// Nothing but Python calls this function.
    Root(Function),
}

impl Legal {
    /// Reads the file that the harness wrote.
    pub(crate) fn read(path: &Path) -> Self {
        let mut legal = Self::default();
        for line in fs::read_to_string(path).unwrap().lines() {
            match serde_json::from_str(line).unwrap() {
                Record::Pid { pid } => {
                    legal.pids.insert(pid);
                }
                Record::Function { function, lines } => legal.lines.entry(function).or_default().extend(lines),
                Record::Call { callee, caller: Some(caller), line } => {
                    legal.calls.insert((caller, line, callee));
                }
                Record::Call { callee, caller: None, .. } => {
                    legal.roots.insert(callee);
                }
            }
        }
        assert!(!legal.calls.is_empty(), "{}: the harness has traced nothing", path.display());
        legal
    }

    /// The first thing that is wrong with a complete stack, leaf first.
    pub(crate) fn judge(&self, frames: &[Frame]) -> Option<Wrong> {
        for (idx, frame) in frames.iter().enumerate() {
            let Some(lines) = self.lines.get(&frame.function) else {
                return Some(Wrong::Function(frame.function.clone()));
            };
            let Some(callee) = idx.checked_sub(1).map(|idx| &frames[idx]) else {
                if !lines.contains(&frame.line) {
                    return Some(Wrong::Line(frame.clone()));
                }
                continue;
            };
            let call = (frame.function.clone(), frame.line, callee.function.clone());
            if !self.calls.contains(&call) {
                return Some(Wrong::Call { caller: frame.clone(), callee: call.2 });
            }
        }
        let root = &frames.last()?.function;
        (!self.roots.contains(root)).then(|| Wrong::Root(root.clone()))
    }
}
