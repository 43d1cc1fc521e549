//! The same samples with other stacks: without machine code, or without lines.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::model::{
    FrameKind, Function, FunctionId, LabelSetId, Location, LocationId, MappingId, Profile, Sample,
    StackId, StringId, Thread,
};
use super::moments::Moment;

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
        let mut rows = vec![None; self.samples.len()];
        for (row, sample) in rows.iter_mut().zip(&self.samples) {
            let Some(stack) = ids.get(sample.stack.0 as usize).copied() else {
                continue;
            };
            let entry = samples.entry((stack, sample.labels));
            *row = Some(entry.index() as u32);
            entry
                .and_modify(|known| known.values.add(sample.values))
                .or_insert(Sample { stack, ..*sample });
        }
        let moments = self.moments.iter().filter_map(|moment| {
            let row = rows.get(moment.row as usize).copied().flatten()?;
            Some(Moment { row, ..*moment })
        });
        Self {
            moments: moments.collect(),
            stacks: stacks.into_iter().collect(),
            samples: samples.into_values().collect(),
            ..self
        }
    }

    /// The profile as Python sees it: what a Python function does in machine code and in the kernel is its own, and of a stack
    /// whose Python functions could not be had the reason is left. Stacks of other programs stay as they are.
    #[must_use]
    pub fn without_native(self) -> Self {
        self.with_stacks(|profile, stack| {
            let kind = |id: &LocationId| profile.frame(*id).map(|frame| frame.kind);
            let is_machine =
                |id: &LocationId| matches!(kind(id), Some(FrameKind::Native | FrameKind::Kernel));
            let has_others = !stack.iter().all(is_machine);
            let is_kept = |id: &LocationId| !(has_others && is_machine(id));
            stack.iter().copied().filter(is_kept).collect()
        })
    }

    /// The profile with a frame for the thread at the root of each stack, as py-spy writes it: `thread (1234): MainThread`.
    #[must_use]
    pub fn by_thread(mut self) -> Self {
        let mut ids: HashMap<LabelSetId, LocationId> = HashMap::default();
        let mut of_texts: HashMap<String, LocationId> = HashMap::default();
        let empty = self.text_id(String::new());
        let mut stacks: indexmap::IndexSet<Box<[LocationId]>, RandomState> =
            indexmap::IndexSet::default();
        let mut samples = std::mem::take(&mut self.samples);
        for sample in &mut samples {
            let id = match ids.get(&sample.labels) {
                Some(id) => *id,
                None => {
                    let text = thread_text(&self.thread(sample.labels));
                    let id = match of_texts.get(&text) {
                        Some(id) => *id,
                        None => self.remark(text.clone(), empty),
                    };
                    of_texts.insert(text, id);
                    ids.insert(sample.labels, id);
                    id
                }
            };
            let inner = self.stacks.get(sample.stack.0 as usize);
            let stack: Vec<LocationId> = inner.into_iter().flatten().copied().chain([id]).collect();
            let (idx, _) = stacks.insert_full(stack.into_boxed_slice());
            sample.stack = StackId(idx as u32);
        }
        Self {
            stacks: stacks.into_iter().collect(),
            samples,
            ..self
        }
    }

    /// The id of a new text.
    fn text_id(&mut self, text: String) -> StringId {
        self.strings.push(text.into_boxed_str());
        StringId((self.strings.len() - 1) as u32)
    }

    /// A new place that is none of code.
    fn remark(&mut self, text: String, no_text: StringId) -> LocationId {
        let name = self.text_id(text);
        self.functions.push(Function {
            kind: FrameKind::Reason,
            name,
            filename: no_text,
            start_line: 0,
        });
        self.locations.push(Location {
            function: FunctionId((self.functions.len() - 1) as u32),
            line: 0,
            mapping: MappingId(0),
            address: 0,
        });
        LocationId((self.locations.len() - 1) as u32)
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

fn thread_text(thread: &Thread<'_>) -> String {
    match (thread.tid, thread.thread_name) {
        (0, "") => "thread".to_owned(),
        (0, name) => format!("thread: {name}"),
        (tid, "") => format!("thread ({tid})"),
        (tid, name) => format!("thread ({tid}): {name}"),
    }
}
