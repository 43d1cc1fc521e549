//! The call tree. Frames of libraries are folded: a chain of them between two frames of the program is one row that says
//! how many there are and what they take by themselves. So is a function that calls itself. What rows take by themselves, and
//! what is said to be left out, adds up to the whole.

use std::fmt::Write as _;

use serde_json::Value;

use super::select::{Restriction, texts};
use super::style::{amount_text, function_json, name, not_all, place, share};
use super::{Folding, Question};
use crate::format::{is_of_library, thousands};
use crate::profile::model::{FrameKind, FunctionId, Profile};
use crate::profile::tree::{Node, Tree};
use crate::view::columns::columns;

/// What has less than this part of the tree is not shown.
const MIN_SHARE: f64 = 0.005;

/// Levels that are indented, at most: deeper ones are numbered.
const MAX_LEVELS: usize = 40;

/// Columns that a terminal keeps free of indentation.
const MIN_ROW: usize = 50;

/// A name with less columns than this has no place beside it.
const MIN_NAME: usize = 16;

/// A row: a node, with those above it that are folded.
struct Row {
    node: usize,
    depth: usize,
    /// Nothing follows below its caller.
    is_last: bool,
    folded: Folded,
}

/// Frames above a row's own.
#[derive(Debug, Default, Clone, Copy)]
struct Folded {
    n_frames: u32,
    /// What they take by themselves.
    own: i64,
}

/// What has no rows.
#[derive(Debug, Default)]
struct LeftOut {
    n_branches: usize,
    weight: i64,
}

pub(super) fn text(question: &Question<'_>) -> String {
    let tree = tree_of(question, !question.folding.shows_all);
    let mut view = TreeText {
        question,
        tree: &tree,
        whole: question.measure.whole(question.profile).weight,
        left_out: LeftOut::default(),
    };
    let rows = view.rows();
    let n_shown = limit(question, rows.len());
    let (shown, cut) = rows.split_at(n_shown);
    let mut text = view.drawn(shown);
    text.push_str(&question.style.prose(&view.ending(shown.len(), cut)));
    text
}

/// The tree of the stacks that are asked for.
fn tree_of(question: &Question<'_>, folds_recursion: bool) -> Tree {
    let profile = question.profile;
    let patterns = question
        .restrictions
        .iter()
        .filter_map(Restriction::pattern);
    // Of each pattern which functions match.
    let matching: Vec<Vec<bool>> = patterns
        .map(|pattern| {
            let ids = (0..profile.functions.len()).map(|idx| FunctionId(idx as u32));
            ids.map(|id| texts(profile, id).iter().any(|it| pattern.is_match(it)))
                .collect()
        })
        .collect();
    let is_meant = |stack| {
        matching.iter().all(|matching| {
            profile.frames(stack).any(|frame| {
                let matches = matching.get(frame.function.0 as usize);
                matches.copied().unwrap_or(false)
            })
        })
    };
    let samples = profile.samples.iter().filter(|it| is_meant(it.stack));
    let stacks = samples.map(|it| (it.stack, question.measure.of(it)));
    if folds_recursion {
        Tree::with_folded_recursion(profile, stacks)
    } else {
        Tree::of_stacks(profile, stacks)
    }
}

/// How many of these rows are asked for.
fn limit(question: &Question<'_>, n_rows: usize) -> usize {
    let mut n_left = n_rows;
    for restriction in question.restrictions {
        n_left = match restriction {
            Restriction::Number(number) => n_left.min(*number),
            // As pstats rounds.
            Restriction::Share(share) => ((n_left as f64 * share + 0.5) as usize).min(n_left),
            Restriction::Pattern(_) => n_left,
        };
    }
    n_left.min(question.top.unwrap_or(usize::MAX))
}

struct TreeText<'a> {
    question: &'a Question<'a>,
    tree: &'a Tree,
    whole: i64,
    left_out: LeftOut,
}

impl TreeText<'_> {
    /// All rows, each above those of what it calls.
    fn rows(&mut self) -> Vec<Row> {
        let mut rows = Vec::new();
        // Stacks of other tools can be deeper than that of a thread. The next row is the last one here.
        let mut ahead: Vec<(usize, usize, bool)> = Vec::new();
        let mut children = self.large(0);
        loop {
            let depth = rows.last().map_or(0, |row: &Row| row.depth + 1);
            let n_children = children.len();
            let below = children.into_iter().enumerate();
            let below = below.map(|(idx, child)| (child, depth, idx + 1 == n_children));
            ahead.extend(below.rev());
            let Some((from, depth, is_last)) = ahead.pop() else {
                return rows;
            };
            let (node, folded) = self.unfolded(from);
            children = self.large(node);
            rows.push(Row {
                node,
                depth,
                is_last,
                folded,
            });
        }
    }

    /// The children of a node that are shown; the others are counted.
    fn large(&mut self, at: usize) -> Vec<usize> {
        let tree = self.tree;
        let children = tree.nodes[at].children.iter().copied();
        let (large, small): (Vec<usize>, Vec<usize>) =
            children.partition(|child| self.is_large(&tree.nodes[*child]));
        self.left_out.n_branches += small.len();
        for child in small {
            let weight = tree.nodes[child].total.weight;
            self.left_out.weight = self.left_out.weight.saturating_add(weight);
        }
        large
    }

    fn is_large(&self, node: &Node) -> bool {
        let whole = self.tree.nodes[0].total.weight;
        self.question.folding.shows_all || share(node.total.weight, whole) >= MIN_SHARE
    }

    /// Goes on from a frame of a library to the next frame of the program, as long as there is one way: the frames in
    /// between are folded.
    fn unfolded(&mut self, from: usize) -> (usize, Folded) {
        let (mut at, mut folded) = (from, Folded::default());
        loop {
            let node = &self.tree.nodes[at];
            let is_folded = node
                .function
                .is_some_and(|it| is_folded(self.question.profile, self.question.folding, it));
            let large = |child: &&usize| self.is_large(&self.tree.nodes[**child]);
            let mut large = node.children.iter().filter(large);
            let (Some(next), None) = (large.next(), large.next()) else {
                return (at, folded);
            };
            // What takes much by itself has a row of its own.
            if !is_folded || node.own.weight.saturating_mul(10) > node.total.weight {
                return (at, folded);
            }
            folded.n_frames = folded.n_frames.saturating_add(node.n_deep);
            folded.own = folded.own.saturating_add(node.own.weight);
            let next = *next;
            // Counts what is beside it.
            self.large(at);
            at = next;
        }
    }

    fn percent(&self, weight: i64) -> f64 {
        100.0 * share(weight, self.whole)
    }

    fn drawn(&self, rows: &[Row]) -> String {
        let style = self.question.style;
        let n_levels = style.width.map_or(MAX_LEVELS, |width| {
            (width.saturating_sub(MIN_ROW) / 3).clamp(2, MAX_LEVELS)
        });
        let [bar, tee, corner] = if style.has_colors {
            ["│  ", "├─ ", "└─ "]
        } else {
            ["|  ", "|- ", "`- "]
        };
        let mut text = String::new();
        // Of the levels above a row: whether nothing follows there.
        let mut above: Vec<bool> = Vec::new();
        for (idx, row) in rows.iter().enumerate() {
            above.truncate(row.depth);
            let mut branch = String::new();
            for is_last in above.iter().take(n_levels).skip(1) {
                branch.push_str(if *is_last { "   " } else { bar });
            }
            if row.depth > n_levels {
                // The levels stand above each other from here on.
                let _ = write!(branch, "(level {}) ", row.depth);
            } else if row.depth > 0 {
                branch.push_str(if row.is_last { corner } else { tee });
            }
            above.push(row.is_last);
            // Where no row follows below, all is its own unless that is said.
            let has_children = rows.get(idx + 1).is_some_and(|next| next.depth > row.depth);
            let node = &self.tree.nodes[row.node];
            let own = self.percent(node.own.weight);
            let has_own = if has_children {
                own >= 0.05
            } else {
                node.own.weight != node.total.weight
            };
            let own = if has_own {
                format!("  (self {own:.1}%)")
            } else {
                String::new()
            };
            self.line(&mut text, row, &branch, &own);
        }
        let no_stack = self.tree.nodes[0].own.weight;
        if no_stack != 0 {
            let amount = amount_text(self.question.measure.unit, no_stack);
            let _ = writeln!(text, "{amount}  {:.1}%  [no stack]", self.percent(no_stack));
        }
        text
    }

    fn line(&self, text: &mut String, row: &Row, branch: &str, own: &str) {
        let node = &self.tree.nodes[row.node];
        let Some(function) = node.function else {
            return;
        };
        let style = self.question.style;
        let profile = self.question.profile;
        let amount = amount_text(self.question.measure.unit, node.total.weight);
        let amount = format!("{amount}  {:.1}%", self.percent(node.total.weight));
        let folded = match row.folded.n_frames {
            0 => String::new(),
            n_frames => {
                let s = if n_frames == 1 { "" } else { "s" };
                let own = self.percent(row.folded.own);
                let own = if own >= 0.05 {
                    format!(", self {own:.1}%")
                } else {
                    String::new()
                };
                format!("[{n_frames} frame{s}{own}] ")
            }
        };
        let mut name = name(profile, function);
        if node.n_deep > 1 {
            let _ = write!(name, " × {}", node.n_deep);
        }
        let used = columns(branch) + amount.len() + 2 + folded.len() + own.len();
        if !style.is_narrower(used + MIN_NAME) {
            name = format!("{name}  {}", place(profile, function, style));
        }
        let name = style.fit(name.trim_end(), used);
        let _ = writeln!(
            text,
            "{}{}  {}{name}{}",
            style.dim(branch),
            style.by_share(&amount, share(node.total.weight, self.whole)),
            style.dim(&folded),
            style.dim(own)
        );
    }

    /// What is left out, so that all adds up.
    fn ending(&self, n_shown: usize, cut: &[Row]) -> String {
        let mut text = String::new();
        let LeftOut { n_branches, weight } = self.left_out;
        if n_branches > 0 {
            let branches = match n_branches {
                1 => "1 branch".to_owned(),
                n => format!("{} branches", thousands(n as i64)),
            };
            let _ = writeln!(
                text,
                "not shown: {branches} of less than {} %, together {:.1}% (--show-all shows all)",
                MIN_SHARE * 100.0,
                self.percent(weight)
            );
        }
        if !cut.is_empty() {
            let own: i64 = cut
                .iter()
                .map(|row| row.folded.own + self.tree.nodes[row.node].own.weight)
                .sum();
            text.push_str(&not_all(n_shown, n_shown + cut.len(), "row"));
            let _ = writeln!(
                text,
                "not shown: what the other rows take by themselves, {:.1}%",
                self.percent(own)
            );
        }
        let others = self.whole - self.tree.nodes[0].total.weight;
        if others != 0 {
            let _ = writeln!(
                text,
                "not shown: stacks without what was asked for, {:.1}%",
                self.percent(others)
            );
        }
        text
    }
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

/// The nodes in one list, each with the place of its parent: nested, deep stacks would be too deep for readers of JSON. Each
/// stands before those that it calls.
pub(super) fn json(question: &Question<'_>) -> Value {
    let tree = tree_of(question, false);
    let n_nodes = limit(question, tree.nodes.len() - 1).saturating_add(1);
    let mut nodes = Vec::new();
    let mut ahead = vec![(0, None)];
    while let Some((at, parent)) = ahead.pop() {
        if nodes.len() == n_nodes {
            break;
        }
        let node = &tree.nodes[at];
        let children = node.children.iter().rev();
        ahead.extend(children.map(|child| (*child, Some(nodes.len()))));
        let mut value = match node.function {
            Some(function) => function_json(question.profile, function),
            None => serde_json::json!({ "function": null }),
        };
        value["parent"] = parent.into();
        value["samples"] = node.total.n_samples.into();
        value["self"] = node.own.weight.into();
        value["total"] = node.total.weight.into();
        nodes.push(value);
    }
    nodes.into()
}
