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
    /// What is known of each function.
    functions: HashMap<Function, Facts>,
    /// Caller, its line, callee.
    calls: HashSet<(Function, u32, Function)>,
    /// Functions that nothing in Python has called.
    roots: HashSet<Function>,
    /// Processes that the workload has started.
    pub(crate) pids: HashSet<i64>,
    /// CPU seconds that interpreters took to start, by their own clock, where they say so.
    pub(crate) started: HashMap<i64, f64>,
}

/// What the interpreter says of a function's code.
#[derive(Debug, Default, Deserialize)]
struct Facts {
    /// Its lines; 0 when an instruction has none.
    lines: BTreeSet<u32>,
    /// The lines that call.
    calling: BTreeSet<u32>,
    /// Of a generator or a coroutine: the lines that are executed until it is made; 0 for none.
    making: BTreeSet<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Record {
    Pid {
        pid: i64,
        started: Option<f64>,
    },
    Function {
        function: Function,
        #[serde(flatten)]
        facts: Facts,
    },
    Call {
        callee: Function,
        caller: Option<Function>,
        line: u32,
    },
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
    Call { caller: Frame, callee: Frame },
    /// Nothing but Python calls this function.
    Root(Function),
}

impl Legal {
    /// Reads the file that the harness wrote.
    pub(crate) fn read(path: &Path) -> Self {
        let mut legal = Self::default();
        for line in fs::read_to_string(path).unwrap().lines() {
            match serde_json::from_str(line).unwrap() {
                Record::Pid { pid, started } => {
                    legal.pids.insert(pid);
                    legal.started.extend(started.map(|started| (pid, started)));
                }
                Record::Function { function, facts } => {
                    let known = legal.functions.entry(function).or_default();
                    known.lines.extend(facts.lines);
                    known.calling.extend(facts.calling);
                    known.making.extend(facts.making);
                }
                Record::Call {
                    callee,
                    caller: Some(caller),
                    line,
                } => {
                    legal.calls.insert((caller, line, callee));
                }
                Record::Call {
                    callee,
                    caller: None,
                    ..
                } => {
                    legal.roots.insert(callee);
                }
            }
        }
        assert!(
            !legal.calls.is_empty(),
            "{}: the harness has traced nothing",
            path.display()
        );
        legal
    }

    /// The first thing that is wrong with a complete stack, leaf first.
    pub(crate) fn judge(&self, frames: &[Frame]) -> Option<Wrong> {
        let facts = |frame: &Frame| {
            self.functions
                .get(&frame.function)
                .ok_or(Wrong::Function(frame.function.clone()))
        };
        self.judge_with(frames, facts).err()
    }

    fn judge_with<'a>(
        &self,
        frames: &[Frame],
        facts: impl Fn(&Frame) -> Result<&'a Facts, Wrong>,
    ) -> Result<(), Wrong> {
        let [leaf, ..] = frames else { return Ok(()) };
        if !facts(leaf)?.lines.contains(&leaf.line) {
            return Err(Wrong::Line(leaf.clone()));
        }
        for (idx, pair) in frames.windows(2).enumerate() {
            let [callee, caller] = pair else { break };
            let call = (
                caller.function.clone(),
                caller.line,
                callee.function.clone(),
            );
            let (callee_facts, caller_facts) = (facts(callee)?, facts(caller)?);
            // The moment in which a generator is made, which the interpreter does not report.
            let is_making = idx == 0 && callee_facts.making.contains(&callee.line);
            if !self.calls.contains(&call)
                && !(is_making && caller_facts.calling.contains(&caller.line))
            {
                return Err(Wrong::Call {
                    caller: caller.clone(),
                    callee: callee.clone(),
                });
            }
        }
        let root = &frames[frames.len() - 1].function;
        if self.roots.contains(root) {
            Ok(())
        } else {
            Err(Wrong::Root(root.clone()))
        }
    }
}
