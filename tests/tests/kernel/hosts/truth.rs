//! What a program said of its stacks, and what was sampled of it.

use std::collections::BTreeMap;
use std::fmt;

use profiler_agent::profile::model::{FrameKind, Profile};
use pyagent_tests::recorder::samples;
use serde::Deserialize;

/// A frame as `workloads/hosts/work.py` notes it: name, file, first line, line, all lines of its code.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Noted(String, String, u32, u32, Vec<u32>);

/// Stacks by process, each leaf first.
pub(crate) type Chains = BTreeMap<i64, Vec<Vec<Noted>>>;

/// What was sampled of a host.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) name: String,
    /// Samples whose stack is one that the program noted, or the outer part of one.
    pub(crate) n_true: u64,
    /// Samples of threads that run no Python then.
    pub(crate) n_outside: u64,
    /// Samples of Python that is not the work: the start of an interpreter, what a server does, the notes themselves.
    pub(crate) n_other: u64,
    /// Samples whose stack is marked as not whole.
    pub(crate) n_incomplete: u64,
    /// Those of them whose functions are those that the program noted, each without a line or with its first one.
    pub(crate) n_unlined: u64,
    /// Stacks that are shown as whole and that the program did not note.
    pub(crate) wrong: Vec<String>,
    /// Stacks that were noted and are in no sample.
    pub(crate) missing: Vec<String>,
    /// Samples by the names in their stack.
    by_name: BTreeMap<String, u64>,
    /// Samples by remark.
    remarks: BTreeMap<String, u64>,
}

/// A sampled Python frame: name, file, first line, line.
type Sampled = (String, String, u32, u32);

impl Seen {
    /// Sorts the samples of the processes that noted stacks.
    pub(crate) fn new(name: &str, chains: &Chains, profile: &Profile) -> Self {
        let mut seen = Self {
            name: name.to_owned(),
            ..Self::default()
        };
        let mut found: BTreeMap<(i64, usize), u64> = BTreeMap::new();
        for (thread, frames, n, _) in samples(profile) {
            let Some(legal) = chains.get(&thread.pid) else {
                continue;
            };
            let n = n as u64;
            let mut remarks = Vec::new();
            let mut stack: Vec<Sampled> = Vec::new();
            for frame in &frames {
                match frame.kind {
                    FrameKind::Python => stack.push((
                        frame.name.to_owned(),
                        frame.filename.to_owned(),
                        profile.functions[frame.function.0 as usize].start_line,
                        frame.line,
                    )),
                    FrameKind::Reason => remarks.push(frame.name),
                    FrameKind::Native | FrameKind::Kernel => {}
                }
            }
            for (name, ..) in &stack {
                *seen.by_name.entry(name.clone()).or_default() += n;
            }
            remarks.dedup();
            for remark in &remarks {
                *seen.remarks.entry((*remark).to_owned()).or_default() += n;
            }
            if stack.is_empty() {
                let is_outside =
                    |remark: &&str| matches!(*remark, "[native thread]" | "[no Python frame]");
                if remarks.iter().all(is_outside) {
                    seen.n_outside += n;
                } else {
                    seen.n_incomplete += n;
                }
            } else if !is_work(&stack) {
                seen.n_other += n;
            } else if !remarks.is_empty() {
                seen.n_incomplete += n;
                seen.n_unlined += if is_unlined(&stack, legal) { n } else { 0 };
            } else if let Some(idx) = legal.iter().position(|noted| is_outer_part(&stack, noted)) {
                seen.n_true += n;
                *found.entry((thread.pid, idx)).or_default() += n;
            } else {
                seen.wrong.push(format!("{n} x {stack:?}"));
            }
        }
        for (pid, legal) in chains {
            for (idx, noted) in legal.iter().enumerate() {
                let is_found = found.contains_key(&(*pid, idx))
                    // The outer part of another one is taken for it.
                    || legal[..idx].contains(noted);
                if !is_found {
                    seen.missing.push(format!("{pid}: {noted:?}"));
                }
            }
        }
        seen
    }

    /// Samples with this remark in their stack.
    pub(crate) fn n_remarked(&self, remark: &str) -> u64 {
        self.remarks.get(remark).copied().unwrap_or(0)
    }

    /// Samples with this name in their stack.
    pub(crate) fn n_with(&self, name: &str) -> u64 {
        self.by_name.get(name).copied().unwrap_or(0)
    }
}

/// Whether a stack is one of those that are noted: it is in a function of the work, and not taking a note.
fn is_work(stack: &[Sampled]) -> bool {
    let is_of_work = |(name, file, ..): &Sampled| file.ends_with("work.py") && name != "<module>";
    let is_note = |sampled: &Sampled| is_of_work(sampled) && sampled.0 == "note";
    stack.iter().any(is_of_work) && !stack.iter().any(is_note)
}

/// Whether a sampled stack is a noted one from some frame on. Its own leaf may be at any line of that function; its
/// callers are where they called.
fn is_outer_part(stack: &[Sampled], noted: &[Noted]) -> bool {
    let Some(n_inner) = noted.len().checked_sub(stack.len()) else {
        return false;
    };
    let is_same = |(name, file, start, _): &Sampled, noted: &Noted| {
        (name, file, start) == (&noted.0, &noted.1, &noted.2)
    };
    let mut pairs = stack.iter().zip(&noted[n_inner..]);
    let is_leaf = |(sampled, noted): (&Sampled, &Noted)| {
        is_same(sampled, noted) && noted.4.contains(&sampled.3)
    };
    pairs.next().is_some_and(is_leaf)
        && pairs.all(|(sampled, noted)| is_same(sampled, noted) && sampled.3 == noted.3)
}

/// Whether a sampled stack has the functions of a noted one from some frame on, and says nothing of their lines.
fn is_unlined(stack: &[Sampled], legal: &[Vec<Noted>]) -> bool {
    let is_named = |(sampled, noted): (&Sampled, &Noted)| {
        (&sampled.0, &sampled.1, sampled.2) == (&noted.0, &noted.1, noted.2)
            && [0, sampled.2].contains(&sampled.3)
    };
    legal.iter().any(|noted| {
        let n_inner = noted.len().checked_sub(stack.len());
        n_inner.is_some_and(|n_inner| stack.iter().zip(&noted[n_inner..]).all(is_named))
    })
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} true, {} outside of Python, {} other, {} incomplete {:?}, {} stacks wrong, {} missing",
            self.name,
            self.n_true,
            self.n_outside,
            self.n_other,
            self.n_incomplete,
            self.remarks,
            self.wrong.len(),
            self.missing.len()
        )?;
        for line in self.wrong.iter().chain(&self.missing).take(6) {
            writeln!(f, "    {}", line.chars().take(900).collect::<String>())?;
        }
        Ok(())
    }
}
