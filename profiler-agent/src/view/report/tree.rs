//! The call tree. Frames of libraries are folded: a chain of them between two frames of the program is one line that says
//! how many there are.

use std::fmt::Write as _;

use serde_json::Value;

use super::style::{amount_text, function_json, name, place, share};
use super::{Folding, Question};
use crate::format::is_of_library;
use crate::profile::model::{FrameKind, FunctionId, Profile};
use crate::profile::tree::{Node, Tree};

/// What has less than this part of the whole is not shown.
const MIN_SHARE: f64 = 0.005;

/// Deepest level of lines.
const MAX_DEPTH: usize = 200;

pub(super) fn text(question: &Question<'_>) -> String {
    let tree = Tree::of(question.profile, question.measure);
    let mut view = TreeText {
        question,
        tree: &tree,
        whole: tree.nodes[0].total.weight,
        n_left: question.top.unwrap_or(usize::MAX),
        text: String::new(),
        n_small: 0,
    };
    view.children(0, "", 0);
    if view.n_small > 0 {
        let _ = writeln!(
            view.text,
            "functions with less than {} % of the whole are not shown (--show-all does)",
            MIN_SHARE * 100.0
        );
    }
    view.text
}

struct TreeText<'a> {
    question: &'a Question<'a>,
    tree: &'a Tree,
    whole: i64,
    n_left: usize,
    text: String,
    n_small: usize,
}

impl TreeText<'_> {
    /// The lines below a node; `indent` is what stands in front of each.
    fn children(&mut self, at: usize, indent: &str, depth: usize) {
        let (shown, small): (Vec<usize>, Vec<usize>) = self.tree.nodes[at]
            .children
            .iter()
            .partition(|child| self.is_large(&self.tree.nodes[**child]));
        self.n_small += small.len();
        let n_shown = shown.len();
        for (number, child) in shown.into_iter().enumerate() {
            if self.n_left == 0 || depth > MAX_DEPTH {
                return;
            }
            self.n_left -= 1;
            let is_last = number + 1 == n_shown;
            let (branch, below) = match (depth, is_last) {
                (0, _) => ("", ""),
                (_, true) => ("`- ", "   "),
                (_, false) => ("|- ", "|  "),
            };
            let (branch, below) = if self.question.style.has_colors {
                (
                    branch.replace("`- ", "└─ ").replace("|- ", "├─ "),
                    below.replace('|', "│"),
                )
            } else {
                (branch.to_owned(), below.to_owned())
            };
            let (end, n_folded) = self.unfolded(child);
            self.line(end, n_folded, &format!("{indent}{branch}"));
            self.children(end, &format!("{indent}{below}"), depth + 1);
        }
    }

    fn is_large(&self, node: &Node) -> bool {
        self.question.folding.shows_all || share(node.total.weight, self.whole) >= MIN_SHARE
    }

    /// Goes on from a frame of a library to the next frame of the program, as long as there is one way: the frames in
    /// between are folded.
    fn unfolded(&self, from: usize) -> (usize, usize) {
        let (mut at, mut n_folded) = (from, 0);
        loop {
            let node = &self.tree.nodes[at];
            let is_folded = node
                .function
                .is_some_and(|it| is_folded(self.question.profile, self.question.folding, it));
            let mut large = node
                .children
                .iter()
                .filter(|child| self.is_large(&self.tree.nodes[**child]));
            let (Some(next), None) = (large.next(), large.next()) else {
                return (at, n_folded);
            };
            let goes_on = self.tree.nodes[*next]
                .function
                .is_some_and(|next| is_folded || !is_folded_at(self.question, next));
            // What is its own would be lost.
            if !is_folded || !goes_on || node.own.weight * 10 > node.total.weight {
                return (at, n_folded);
            }
            at = *next;
            n_folded += 1;
        }
    }

    fn line(&mut self, at: usize, n_folded: usize, branch: &str) {
        let node = &self.tree.nodes[at];
        let Some(function) = node.function else {
            return;
        };
        let style = self.question.style;
        let profile = self.question.profile;
        let of_whole = share(node.total.weight, self.whole);
        let amount = amount_text(self.question.measure.unit, node.total.weight);
        let amount = format!("{amount}  {:.1}%", of_whole * 100.0);
        let folded = match n_folded {
            0 => String::new(),
            1 => "[1 frame] ".to_owned(),
            n => format!("[{n} frames] "),
        };
        let used = branch.chars().count() + amount.len() + folded.len() + 2;
        let (name, place) = (name(profile, function), place(profile, function));
        let own = share(node.own.weight, self.whole);
        let own = if own >= MIN_SHARE && !node.children.is_empty() {
            format!("  (self {:.1}%)", own * 100.0)
        } else {
            String::new()
        };
        let text = style.fit(&format!("{name}  {place}"), used + own.len());
        let _ = writeln!(
            self.text,
            "{}{}  {}{}{}",
            style.dim(branch),
            style.by_share(&amount, of_whole),
            style.dim(&folded),
            text.trim_end(),
            style.dim(&own)
        );
    }
}

fn is_folded_at(question: &Question<'_>, function: FunctionId) -> bool {
    is_folded(question.profile, question.folding, function)
}

/// Whether a function's frames are folded: those of libraries and what is called by them in machine code.
fn is_folded(profile: &Profile, folding: &Folding, function: FunctionId) -> bool {
    let Some(function) = profile.functions.get(function.0 as usize) else {
        return false;
    };
    let file = profile.str(function.filename);
    if folding.shows_all || folding.show.iter().any(|pattern| pattern.is_match(file)) {
        return false;
    }
    let is_hidden = folding.hide.iter().any(|pattern| pattern.is_match(file));
    is_hidden || function.kind == FrameKind::Python && is_of_library(file)
}

/// The nodes in one list, each with the place of its parent: nested, deep stacks would be too deep for readers of JSON.
pub(super) fn json(question: &Question<'_>) -> Value {
    let tree = Tree::of(question.profile, question.measure);
    let mut parents = vec![None; tree.nodes.len()];
    for (idx, node) in tree.nodes.iter().enumerate() {
        for child in &node.children {
            parents[*child] = Some(idx);
        }
    }
    let nodes = tree.nodes.iter().zip(parents).map(|(node, parent)| {
        let mut value = match node.function {
            Some(function) => function_json(question.profile, function),
            None => serde_json::json!({ "function": null }),
        };
        value["parent"] = parent.into();
        value["samples"] = node.total.n_samples.into();
        value["self"] = node.own.weight.into();
        value["total"] = node.total.weight.into();
        value
    });
    nodes.collect()
}
