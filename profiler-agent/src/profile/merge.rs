//! Several profiles become one, and a part of one becomes a profile of its own.

use std::time::UNIX_EPOCH;

use super::model::{
    Function, FunctionId, LabelSet, LabelSetId, LabelValue, Labels, Location, LocationId, Mapping,
    MappingId, Process, ProcessId, Profile, Sample, StackId, StringId, Values,
};
use super::tables::{Head, Tables};

/// Puts profiles of one type together.
#[derive(Debug, Default)]
pub struct Merger {
    tables: Tables,
}

impl Merger {
    /// One that keeps so many frames in different stacks, at most.
    #[must_use]
    pub fn bounded(max_stack_frames: usize) -> Self {
        let mut merger = Self::default();
        merger.tables.bound(max_stack_frames);
        merger
    }

    /// Number of different samples.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.tables.n_rows()
    }

    /// Adds the samples for which `choose` gives values, with those values.
    pub fn add(&mut self, profile: &Profile, mut choose: impl FnMut(&Sample) -> Option<Values>) {
        let mut moved = Moved::new(profile, &mut self.tables);
        let mut rows = Vec::new();
        for sample in &profile.samples {
            let row = choose(sample).and_then(|values| moved.add(sample, values));
            if profile.has_moments() {
                rows.push(row);
            }
        }
        for moment in &profile.moments {
            if let Some(Some(row)) = rows.get(moment.row as usize) {
                self.tables
                    .note(*row, moment.at_ns, i64::from(moment.count));
            }
        }
    }

    /// Sum of the first value (samples) of all that was added.
    #[must_use]
    pub fn n_samples(&self) -> i64 {
        self.tables.n_samples()
    }

    /// The profile.
    #[must_use]
    pub fn finish(self, head: Head) -> Profile {
        self.tables.finish(head)
    }
}

impl Profile {
    /// The samples of this profile that are chosen, with the tables that they need.
    #[must_use]
    pub fn part(&self, mut is_chosen: impl FnMut(&Sample) -> bool) -> Profile {
        let mut merger = Merger::default();
        merger.add(self, |sample| is_chosen(sample).then_some(sample.values));
        merger.finish(self.head())
    }

    /// What it is beside its tables.
    #[must_use]
    pub fn head(&self) -> Head {
        Head {
            sample_types: self.sample_types,
            period: self.period,
            start: self.start,
            duration: self.duration,
            comments: self.comments.clone(),
        }
    }
}

/// The ids that what was moved so far has in the new tables.
struct Moved<'a> {
    profile: &'a Profile,
    tables: &'a mut Tables,
    strings: Vec<Option<StringId>>,
    functions: Vec<Option<FunctionId>>,
    mappings: Vec<Option<MappingId>>,
    locations: Vec<Option<LocationId>>,
    stacks: Vec<Option<StackId>>,
    processes: Vec<Option<ProcessId>>,
    label_sets: Vec<Option<LabelSetId>>,
    scratch: Vec<LocationId>,
    /// When the names in it were true, on the clock of the profiles.
    seen: u64,
}

/// The new id of what has this place in the old table; an id of another profile has none.
macro_rules! moved {
    ($self:ident.$table:ident[$id:expr], $value:ident => $new:expr) => {{
        let idx = $id.0 as usize;
        match $self.$table.get(idx).copied()? {
            Some(id) => id,
            None => {
                let $value = $self.profile.$table.get(idx)?;
                let id = $new;
                $self.$table[idx] = Some(id);
                id
            }
        }
    }};
}

impl<'a> Moved<'a> {
    fn new(profile: &'a Profile, tables: &'a mut Tables) -> Self {
        Self {
            tables,
            strings: vec![None; profile.strings.len()],
            functions: vec![None; profile.functions.len()],
            mappings: vec![None; profile.mappings.len()],
            locations: vec![None; profile.locations.len()],
            stacks: vec![None; profile.stacks.len()],
            processes: vec![None; profile.processes.len()],
            label_sets: vec![None; profile.label_sets.len()],
            scratch: Vec::new(),
            seen: profile
                .start
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos() as u64),
            profile,
        }
    }

    fn add(&mut self, sample: &Sample, values: Values) -> Option<u32> {
        let labels = self.label_set(sample.labels)?;
        let stack = match self.stack(sample.stack) {
            Some(stack) => stack,
            None => self.tables.no_stack(values[0]),
        };
        Some(self.tables.add(stack, labels, values))
    }

    /// `None`: there is no room for it.
    fn stack(&mut self, id: StackId) -> Option<StackId> {
        let idx = id.0 as usize;
        if let Some(known) = self.stacks.get(idx).copied()? {
            return Some(known);
        }
        let profile = self.profile;
        let frames = profile.stacks.get(idx)?;
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let is_full = self.tables.is_full();
        for location in frames {
            let location = if is_full {
                self.tables.known_location(profile, *location)
            } else {
                self.location(*location)
            };
            scratch.extend(location);
        }
        let is_whole = scratch.len() == frames.len();
        let stack = if is_full {
            self.tables.known_stack(&scratch).filter(|_| is_whole)
        } else {
            Some(self.tables.stack(&scratch))
        };
        self.scratch = scratch;
        self.stacks[idx] = stack;
        stack
    }

    fn location(&mut self, id: LocationId) -> Option<LocationId> {
        Some(moved!(self.locations[id], location => {
            let location = Location {
                function: self.function(location.function)?,
                mapping: self.mapping(location.mapping)?,
                ..*location
            };
            self.tables.location(location)
        }))
    }

    fn function(&mut self, id: FunctionId) -> Option<FunctionId> {
        Some(moved!(self.functions[id], function => {
            let function = Function {
                name: self.string(function.name)?,
                filename: self.string(function.filename)?,
                ..*function
            };
            self.tables.function(function)
        }))
    }

    fn mapping(&mut self, id: MappingId) -> Option<MappingId> {
        Some(moved!(self.mappings[id], mapping => {
            let mapping = Mapping {
                filename: self.string(mapping.filename)?,
                build_id: self.string(mapping.build_id)?,
            };
            self.tables.mapping(mapping)
        }))
    }

    fn label_set(&mut self, id: LabelSetId) -> Option<LabelSetId> {
        Some(moved!(self.label_sets[id], set => {
            let moved = LabelSet {
                process: self.process(set.process)?,
                thread_started_ns: set.thread_started_ns,
                labels: self.labels(&set.labels)?,
            };
            let moved = self.tables.label_set(moved);
            self.tables.name_recorded_thread(moved, self.seen);
            moved
        }))
    }

    fn process(&mut self, id: ProcessId) -> Option<ProcessId> {
        Some(moved!(self.processes[id], process => {
            let process = Process {
                cmdline: self.string(process.cmdline)?,
                labels: self.labels(&process.labels)?,
                ..*process
            };
            self.tables.process(process)
        }))
    }

    fn labels(&mut self, labels: &Labels) -> Option<Labels> {
        let moved = labels.iter().map(|(name, value)| {
            let value = match value {
                LabelValue::Str(text) => LabelValue::Str(self.string(*text)?),
                LabelValue::Num(number) => LabelValue::Num(*number),
            };
            Some((self.string(*name)?, value))
        });
        moved.collect()
    }

    fn string(&mut self, id: StringId) -> Option<StringId> {
        Some(moved!(self.strings[id], text => self.tables.string(text)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::profile::aggregate::{
        Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
    };
    use crate::profile::model::ValueType;

    /// Functions from the leaf with their lines, the process, and how many samples.
    type Case = (Vec<(u32, u32)>, u32, i64);

    fn profile(cases: &[Case]) -> Profile {
        let mut aggregator = Aggregator::new(SystemTime::UNIX_EPOCH, &ValueType::CPU_SAMPLES, 1);
        for (frames, pid, count) in cases {
            let frames = frames.iter().map(|(name, line)| ResolvedFrame {
                function: Arc::new(ResolvedFunction::python(&format!("f{name}"), "f.py", *name)),
                line: *line,
                address: 0,
            });
            aggregator.add(&ResolvedSample {
                frames: frames.collect(),
                labels: Arc::new(ThreadLabels {
                    process: Arc::new(ProcessLabels::of_pid(*pid)),
                    tid: pid + 1,
                    started_ns: 0,
                    thread_name: format!("thread {pid}").into(),
                }),
                instruction: None,
                values: [*count, count * 10].into(),
            });
        }
        aggregator.finish(Duration::from_secs(1), Vec::new())
    }

    /// What a profile says, whatever its ids are.
    fn said(profiles: &[&Profile]) -> BTreeMap<(Vec<String>, i64, i64, String), [i64; 2]> {
        let mut said = BTreeMap::new();
        for profile in profiles {
            for sample in &profile.samples {
                let frames = profile.frames(sample.stack);
                let frames = frames.map(|frame| format!("{}:{}", frame.name, frame.line));
                let thread = profile.thread(sample.labels);
                let key = (
                    frames.collect(),
                    thread.pid,
                    thread.tid,
                    thread.thread_name.to_owned(),
                );
                let sum: &mut [i64; 2] = said.entry(key).or_default();
                sum[0] += sample.values[0];
                sum[1] += sample.values[1];
            }
        }
        said
    }

    fn cases() -> impl Strategy<Value = Vec<Case>> {
        let frames = prop::collection::vec((0_u32..5, 0_u32..3), 0..5);
        prop::collection::vec((frames, 0_u32..4, 1_i64..5), 0..40)
    }

    proptest! {
        #[test]
        fn what_two_profiles_say_the_merged_one_says(first in cases(), second in cases()) {
            let (first, second) = (profile(&first), profile(&second));
            let mut both = Merger::default();
            both.add(&first, |sample| Some(sample.values));
            both.add(&second, |sample| Some(sample.values));
            let merged = both.finish(first.head());
            prop_assert_eq!(said(&[&merged]), said(&[&first, &second]));
            let keys: std::collections::HashSet<_> =
                merged.samples.iter().map(|sample| (sample.stack, sample.labels)).collect();
            prop_assert_eq!(keys.len(), merged.samples.len());
        }

        #[test]
        fn parts_are_the_whole_and_need_no_more_tables(cases in cases()) {
            let whole = profile(&cases);
            let is_odd = |sample: &Sample| whole.thread(sample.labels).pid % 2 == 1;
            let (odd, even) = (whole.part(is_odd), whole.part(|sample| !is_odd(sample)));
            prop_assert_eq!(said(&[&odd, &even]), said(&[&whole]));
            let pids = odd.processes.iter().map(|process| process.pid);
            prop_assert!(pids.clone().all(|pid| pid % 2 == 1));
            let with_samples: std::collections::HashSet<_> =
                odd.samples.iter().map(|sample| odd.thread(sample.labels).pid).collect();
            prop_assert_eq!(pids.count(), with_samples.len());
        }
    }

    /// A profile of one thread with the id 8.
    fn of_thread(start_s: u64, started_ns: u64, name: &str) -> Profile {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(start_s);
        let mut aggregator = Aggregator::new(start, &ValueType::CPU_SAMPLES, 1);
        let process = ProcessLabels {
            comm: "python3".into(),
            ..ProcessLabels::of_pid(7)
        };
        aggregator.add(&ResolvedSample {
            frames: Vec::new(),
            labels: Arc::new(ThreadLabels {
                process: Arc::new(process),
                tid: 8,
                started_ns,
                thread_name: name.into(),
            }),
            instruction: None,
            values: [1, 10].into(),
        });
        aggregator.finish(Duration::from_secs(1), Vec::new())
    }

    #[test]
    fn a_thread_of_several_profiles_has_its_newest_own_name() {
        let profiles = [
            of_thread(40, 100, "python3"),
            of_thread(20, 100, "first"),
            of_thread(30, 100, "second"),
            of_thread(10, 100, "python3"),
            of_thread(30, 900, "python3"),
            of_thread(30, 0, "unknown"),
        ];
        let mut merger = Merger::default();
        for profile in &profiles {
            merger.add(profile, |sample| Some(sample.values));
        }
        let together = merger.finish(profiles[0].head());
        let said = said(&[&together]);
        let said: BTreeMap<&str, i64> = said
            .iter()
            .map(|((.., name), values)| (&**name, values[0]))
            .collect();
        let expected = BTreeMap::from([("second", 4), ("python3", 1), ("unknown", 1)]);
        assert_eq!(said, expected);
    }

    #[test]
    fn beyond_the_bound_new_stacks_are_told() {
        let whole = profile(&[(vec![(1, 1), (2, 2)], 1, 3), (vec![(3, 3)], 1, 4)]);
        let mut bounded = Merger::bounded(2);
        for _ in 0..2 {
            bounded.add(&whole, |sample| Some(sample.values));
        }
        let merged = bounded.finish(whole.head());
        let said: Vec<_> = merged
            .samples
            .iter()
            .map(|sample| {
                merged
                    .frames(sample.stack)
                    .next()
                    .map(|leaf| (leaf.name, sample.values[0]))
            })
            .collect();
        assert_eq!(
            said,
            [Some(("f1", 6)), Some(("[too many different stacks]", 8))]
        );
        assert_eq!(merged.n_samples(), 14);
    }
}
