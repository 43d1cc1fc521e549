//! The call tree: the stacks from their roots on, function by function.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::measure::{Amount, Measure};
use super::model::{FunctionId, Profile, StackId};

/// A function under the functions that called it.
#[derive(Debug, Clone)]
pub struct Node {
    /// The function; `None`: the root above all.
    pub function: Option<FunctionId>,
    /// Of the samples in which it was the leaf here.
    pub own: Amount,
    /// Of all that went through here.
    pub total: Amount,
    /// What it called, most weight first: indices into [`Tree::nodes`].
    pub children: Vec<usize>,
}

/// The call tree of a profile.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The root first.
    pub nodes: Vec<Node>,
}

impl Tree {
    /// That of all samples.
    #[must_use]
    pub fn of(profile: &Profile, measure: Measure) -> Self {
        let samples = profile.samples.iter();
        Self::of_stacks(profile, samples.map(|it| (it.stack, measure.of(it))))
    }

    /// That of these stacks.
    pub fn of_stacks(profile: &Profile, stacks: impl Iterator<Item = (StackId, Amount)>) -> Self {
        let mut nodes = vec![Node::of(None)];
        let mut known: HashMap<(usize, FunctionId), usize, RandomState> = HashMap::default();
        for (stack, amount) in stacks {
            let mut at = 0;
            nodes[at].total.add(amount);
            for frame in profile.frames(stack).rev() {
                let next = *known.entry((at, frame.function)).or_insert_with(|| {
                    nodes.push(Node::of(Some(frame.function)));
                    nodes.len() - 1
                });
                if nodes[next].total == Amount::default() {
                    nodes[at].children.push(next);
                }
                at = next;
                nodes[at].total.add(amount);
            }
            nodes[at].own.add(amount);
        }
        let mut tree = Self { nodes };
        tree.sort();
        tree
    }

    fn sort(&mut self) {
        for idx in 0..self.nodes.len() {
            let mut children = std::mem::take(&mut self.nodes[idx].children);
            // A sample of no weight brings a function twice.
            children.sort_unstable();
            children.dedup();
            children.sort_by_key(|child| std::cmp::Reverse(self.nodes[*child].total.weight));
            self.nodes[idx].children = children;
        }
    }
}

impl Node {
    fn of(function: Option<FunctionId>) -> Self {
        Self {
            function,
            own: Amount::default(),
            total: Amount::default(),
            children: Vec::new(),
        }
    }
}
