//! The same samples with other stacks: without machine code, or without lines.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::model::{FrameKind, Location, LocationId, Profile, Sample, StackId};

impl Profile {
    /// The profile with other stacks: `change` gets each, leaf first. Samples whose stacks become the same are one.
    #[must_use]
    pub fn with_stacks(
        self,
        mut change: impl FnMut(&Self, &[LocationId]) -> Vec<LocationId>,
    ) -> Self {
        let mut stacks: indexmap::IndexSet<Box<[LocationId]>, RandomState> =
            indexmap::IndexSet::default();
        let mut ids = Vec::with_capacity(self.stacks.len());
        for stack in &self.stacks {
            let changed = change(&self, stack);
            let (idx, _) = stacks.insert_full(changed.into_boxed_slice());
            ids.push(StackId(idx as u32));
        }
        let mut samples: indexmap::IndexMap<_, Sample, RandomState> = indexmap::IndexMap::default();
        for sample in &self.samples {
            let Some(stack) = ids.get(sample.stack.0 as usize).copied() else {
                continue;
            };
            samples
                .entry((stack, sample.labels))
                .and_modify(|known| known.values.add(sample.values))
                .or_insert(Sample { stack, ..*sample });
        }
        Self {
            stacks: stacks.into_iter().collect(),
            samples: samples.into_values().collect(),
            ..self
        }
    }

    /// The profile as Python sees it: what a Python function does in machine code and in the kernel is its own. Stacks
    /// without Python stay as they are.
    #[must_use]
    pub fn without_native(self) -> Self {
        self.with_stacks(|profile, stack| {
            let kind = |id: &LocationId| profile.frame(*id).map(|frame| frame.kind);
            let has_python = stack.iter().any(|id| kind(id) == Some(FrameKind::Python));
            let is_kept = |id: &LocationId| {
                !has_python || !matches!(kind(id), Some(FrameKind::Native | FrameKind::Kernel))
            };
            stack.iter().copied().filter(is_kept).collect()
        })
    }

    /// The profile with one place in each Python function: its first line, or none.
    #[must_use]
    pub fn by_function(mut self, first_line: bool) -> Self {
        for location in &mut self.locations {
            let Some(function) = self.functions.get(location.function.0 as usize) else {
                continue;
            };
            if function.kind == FrameKind::Python {
                location.line = if first_line { function.start_line } else { 0 };
            }
        }
        let mut first: HashMap<Location, LocationId, RandomState> = HashMap::default();
        let same: Vec<LocationId> = self
            .locations
            .iter()
            .enumerate()
            .map(|(idx, location)| *first.entry(*location).or_insert(LocationId(idx as u32)))
            .collect();
        self.with_stacks(|_, stack| {
            let of = |id: &LocationId| same.get(id.0 as usize).copied();
            stack.iter().filter_map(of).collect()
        })
    }
}
