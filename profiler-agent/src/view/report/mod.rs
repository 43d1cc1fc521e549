//! `pyagent report`: views of a profile that a terminal or a program reads. One file a view, one row of [`VIEWS`] each;
//! text out, no I/O.

mod bytecode;
mod calls;
pub mod diff;
mod functions;
mod groups;
mod lines;
mod select;
mod style;
mod tree;

use std::fmt::Write as _;

use serde_json::Value;

pub use self::bytecode::{bytecode_files, has_bytecode};
pub use self::groups::matches_any_group;
pub use self::lines::{Source, Sources, all_files, files, page};
pub use self::select::{Restriction, RestrictionError, SortKey, matches_any};
pub use self::style::Style;
use self::style::{amount_text, unit_name};
use super::columns::wrapped;
use crate::format::{duration_text, escape, thousands, unix_seconds};
use crate::profile::measure::Measure;
use crate::profile::model::{Profile, ValueType};
use crate::profile::query::n_processes;

/// Columns of the remarks at the end, at most.
const REMARK_WIDTH: usize = 100;

/// Remarks that are shown, at most.
const MAX_REMARKS: usize = 10;

/// A way to look at a profile.
#[derive(Debug)]
pub struct View {
    /// Name, as the flag that chooses it.
    pub name: &'static str,
    /// What it shows, in a few words.
    pub description: &'static str,
    text: fn(&Question<'_>) -> String,
    json: fn(&Question<'_>) -> Value,
}

/// Every view; the first one is the default.
pub static VIEWS: &[View] = &[
    View {
        name: "functions",
        description: "time of each function, alone and with what it calls, as pstats shows it",
        text: functions::text,
        json: functions::json,
    },
    View {
        name: "callers",
        description: "who calls each function",
        text: calls::callers_text,
        json: calls::callers_json,
    },
    View {
        name: "callees",
        description: "whom each function calls",
        text: calls::callees_text,
        json: calls::callees_json,
    },
    View {
        name: "tree",
        description: "the call tree, with the frames of libraries folded",
        text: tree::text,
        json: tree::json,
    },
    View {
        name: "lines",
        description: "the source of functions, with what each line takes in Python, machine code and the kernel",
        text: lines::text,
        json: lines::json,
    },
    View {
        name: "bytecode",
        description: "the instructions of functions, below their lines, of a profile that was recorded with them",
        text: bytecode::text,
        json: bytecode::json,
    },
    View {
        name: "by",
        description: "how much each value of a label has",
        text: groups::text,
        json: groups::json,
    },
];

/// What is looked at, and how.
#[derive(Debug)]
pub struct Question<'a> {
    /// The profile.
    pub profile: &'a Profile,
    /// Which of its values.
    pub measure: Measure,
    /// What is in the order first.
    pub sort: SortKey,
    /// Lines, at most; of trees functions.
    pub top: Option<usize>,
    /// Which functions, one restriction after the other.
    pub restrictions: &'a [Restriction],
    /// The labels of [`VIEWS`]' `by`.
    pub labels: &'a [&'a str],
    /// Which frames of the tree are folded.
    pub folding: &'a Folding,
    /// The source of files by their names, for the view of lines.
    pub sources: &'a Sources,
    /// How it looks.
    pub style: Style,
}

/// Which frames of a call tree are shown as a number only.
#[derive(Debug, Default)]
pub struct Folding {
    /// None.
    pub shows_all: bool,
    /// Those of files that match, beside those of libraries.
    pub hide: Vec<regex::Regex>,
    /// None of files that match.
    pub show: Vec<regex::Regex>,
}

impl View {
    /// The view of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        VIEWS.iter().find(|view| view.name == name)
    }

    /// As text: what is looked at, the view, and what is missing from it.
    #[must_use]
    pub fn text(&self, question: &Question<'_>) -> String {
        let style = question.style;
        let mut text = style.prose(&sentence(question.profile, question.measure));
        text.push_str(note(question.profile));
        if question.measure.whole(question.profile).weight != 0 {
            text.push('\n');
            text.push_str(&style.bounded((self.text)(question)));
        }
        text.push_str(&remarks(
            style,
            "not in the profile, or not complete:",
            &question.profile.comments,
        ));
        text
    }

    /// As one document of JSON.
    #[must_use]
    pub fn json(&self, question: &Question<'_>) -> Value {
        let profile = question.profile;
        let whole = question.measure.whole(profile);
        let mut document = serde_json::json!({
            "view": self.name,
            "value": profile.sample_types.get(question.measure.idx).map(|it| it.kind),
            "unit": profile.sample_types.get(question.measure.idx).map(|it| it.unit),
            "samples": whole.n_samples,
            "total": whole.weight,
            "processes": n_processes(profile),
            "start": unix_seconds(profile.start),
            "duration": profile.duration.as_secs_f64(),
            "remarks": profile.comments,
        });
        document[self.name] = (self.json)(question);
        document
    }
}

/// What is missing from a profile, below a title; nothing when nothing is.
fn remarks(style: Style, title: &str, comments: &[String]) -> String {
    if comments.is_empty() {
        return String::new();
    }
    let width = style.width.map_or(REMARK_WIDTH, |it| it.min(REMARK_WIDTH));
    let mut text = format!("\n{title}\n");
    for comment in comments.iter().take(MAX_REMARKS) {
        text.push_str(&wrapped(&escape(comment), 2, width));
    }
    if comments.len() > MAX_REMARKS {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  and {} more", comments.len() - MAX_REMARKS);
    }
    text
}

/// What is looked at: `2,970 samples of 3 processes in 30 s: 29.702 s of CPU time`.
fn sentence(profile: &Profile, measure: Measure) -> String {
    let whole = measure.whole(profile);
    let n_processes = n_processes(profile);
    let processes = match n_processes {
        1 => "1 process".to_owned(),
        n => format!("{} processes", thousands(n as i64)),
    };
    let counted = match profile.sample_types.first().map_or("samples", |it| it.kind) {
        "samples" if whole.n_samples == 1 => "sample".to_owned(),
        kind => kind.replace('_', " "),
    };
    let mut head = format!("{} {counted} of {processes}", thousands(whole.n_samples));
    if !profile.duration.is_zero() {
        // Writing to a String does not fail.
        let _ = write!(head, " in {}", duration_text(profile.duration));
    }
    if measure.idx != 0 {
        let amount = amount_text(measure.unit, whole.weight);
        let _ = write!(head, ": {amount} {}", unit_name(profile, measure));
    }
    head.push('\n');
    head
}

/// What a reader could expect in the profile that is not in it.
fn note(profile: &Profile) -> &'static str {
    let is_of_cpu = |it: &ValueType| it.kind == ValueType::CPU.kind;
    if profile.sample_types.iter().any(is_of_cpu) {
        "time on the CPU; waiting is not in it\n"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests;
