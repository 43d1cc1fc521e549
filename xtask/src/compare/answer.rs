//! What programs and tools say: read from JSON, added up over rounds, as shares.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

/// A program's own account of a run, in seconds of its thread's CPU time.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Account {
    /// The function that shares are of.
    pub(super) root: String,
    /// By function, without what it calls.
    pub(super) own: BTreeMap<String, f64>,
    /// By function, with what it calls.
    pub(super) cumulative: BTreeMap<String, f64>,
    /// By function and the text of a line, with what it calls.
    pub(super) lines: BTreeMap<String, BTreeMap<String, f64>>,
    /// Seconds of the wall that the root took.
    pub(super) wall: f64,
}

/// What a tool says of a run, in a unit of its own.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Answer {
    /// Of the function that shares are of.
    root: f64,
    /// Samples of the root; `None` for tools that trace.
    samples: Option<f64>,
    /// By function: without and with what it calls.
    functions: BTreeMap<String, [f64; 2]>,
    /// By function and the text of a line, with what it calls.
    lines: BTreeMap<String, BTreeMap<String, f64>>,
}

/// What the lines of a loop take, as shares of the loop.
#[derive(Debug, Deserialize)]
pub(super) struct LineCosts {
    pub(super) lines: BTreeMap<String, f64>,
    /// What they take together, each measured by itself: how good the measurement is.
    pub(super) sum: f64,
}

/// Something that has a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// A function without what it calls.
    Own(String),
    /// A function with what it calls.
    Cumulative(String),
    /// A line with what it calls: function and text.
    Line(String, String),
}

impl What {
    /// As a row is named.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Own(function) | Self::Cumulative(function) => function,
            Self::Line(_, text) => text,
        }
    }
}

impl Account {
    /// CPU time of the root.
    pub(super) fn duration(&self) -> Duration {
        Duration::try_from_secs_f64(self.seconds()).unwrap_or_default()
    }

    pub(super) fn seconds(&self) -> f64 {
        self.cumulative.get(&self.root).copied().unwrap_or_default()
    }

    /// Seconds; `None` where the program could not tell.
    pub(super) fn amount(&self, what: &What) -> Option<f64> {
        let amount = match what {
            What::Own(function) => self.own.get(function),
            What::Cumulative(function) => self.cumulative.get(function),
            What::Line(function, text) => self.lines.get(function)?.get(text),
        };
        amount.copied()
    }
}

impl Answer {
    /// All of the rounds as one.
    pub(super) fn sum<'a>(answers: impl Iterator<Item = &'a Self>) -> Option<Self> {
        answers.cloned().reduce(|mut sum, answer| {
            sum.root += answer.root;
            sum.samples = sum.samples.zip(answer.samples).map(|(a, b)| a + b);
            for (function, [own, cumulative]) in answer.functions {
                let amounts = sum.functions.entry(function).or_default();
                amounts[0] += own;
                amounts[1] += cumulative;
            }
            for (function, lines) in answer.lines {
                let of_function = sum.lines.entry(function).or_default();
                for (text, amount) in lines {
                    *of_function.entry(text).or_default() += amount;
                }
            }
            sum
        })
    }

    /// Share of the root, 0 for what the tool has not seen; `None` for what it never says.
    pub(super) fn share(&self, what: &What) -> Option<Share> {
        let amount = match what {
            What::Own(function) => self.functions.get(function).map(|it| it[0]),
            What::Cumulative(function) => self.functions.get(function).map(|it| it[1]),
            What::Line(function, text) => {
                if self.lines.is_empty() {
                    return None;
                }
                self.lines
                    .get(function)
                    .and_then(|it| it.get(text))
                    .copied()
            }
        };
        Some(Share {
            value: amount.unwrap_or_default() / self.root,
            n: self.samples,
        })
    }

    /// Shares of `part` in all of `whole`, which are of the root.
    pub(super) fn share_of(&self, part: &What, whole: &[What]) -> Option<Share> {
        let whole: f64 = whole
            .iter()
            .map(|it| self.share(it).map(|it| it.value))
            .sum::<Option<f64>>()?;
        let part = self.share(part)?;
        Some(Share {
            value: part.value / whole,
            n: part.n.map(|n| n * whole),
        })
    }
}

/// A tool's answer about one thing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) value: f64,
    /// Samples that it is a share of; `None` if it was not sampled.
    pub(super) n: Option<f64>,
}
