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
    /// How deep it called itself here, at most, where direct recursion is one node; else 1.
    pub n_deep: u32,
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
        Self::built(profile, stacks, false)
    }

    /// The same, where functions that call themselves directly are one node: what the calls take by themselves is added up.
    pub fn with_folded_recursion(
        profile: &Profile,
        stacks: impl Iterator<Item = (StackId, Amount)>,
    ) -> Self {
        Self::built(profile, stacks, true)
    }

    fn built(
        profile: &Profile,
        stacks: impl Iterator<Item = (StackId, Amount)>,
        folds_recursion: bool,
    ) -> Self {
        let mut nodes = vec![Node::of(None)];
        let mut known: HashMap<(usize, FunctionId), usize, RandomState> = HashMap::default();
        for (stack, amount) in stacks {
            let (mut at, mut n_deep) = (0, 1);
            nodes[at].total.add(amount);
            for frame in profile.frames(stack).rev() {
                if folds_recursion && nodes[at].function == Some(frame.function) {
                    n_deep += 1;
                    nodes[at].n_deep = nodes[at].n_deep.max(n_deep);
                    continue;
                }
                n_deep = 1;
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
            n_deep: 1,
        }
    }
}
