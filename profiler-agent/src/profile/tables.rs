//! The tables of a profile while it is put together: interning, the sums of values, and a bound on both.

use std::time::{Duration, SystemTime};

use foldhash::fast::RandomState;
use indexmap::IndexMap;

use super::intern::Table;
use super::model::{
    FrameKind, Function, FunctionId, LabelSet, LabelSetId, LabelValue, Labels, Location,
    LocationId, Mapping, MappingId, Process, ProcessId, Profile, Sample, StackId, StringId,
    ValueType, Values, label,
};
use super::moments::{MAX_MOMENTS, Moment};
use super::thread_name::{NameRank, ThreadKey, ThreadName, ThreadNames};

/// Most frames in all different stacks of one profile together (4 bytes each, and up to 32 more where the
/// place is new too).
///
/// Samples whose stack is new beyond it are not lost: they are put on one stack that says so, and counted in
/// a comment. 4 million frames are 40,000 different stacks of depth 100.
pub const MAX_STACK_FRAMES: usize = 4 << 20;

/// File name of the mapping of all Python code; element 0 of [`Profile::mappings`].
pub const PYTHON_MAPPING: &str = "[python]";

/// What a profile is beside its tables.
#[derive(Debug, Clone)]
pub struct Head {
    /// What the values mean.
    pub sample_types: &'static [ValueType],
    /// Distance of two samples, in the unit of the second type.
    pub period: i64,
    /// Wall time of the start.
    pub start: SystemTime,
    /// Length of the span.
    pub duration: Duration,
    /// Remarks.
    pub comments: Vec<String>,
}

/// The tables of one profile.
#[derive(Debug)]
pub struct Tables {
    strings: Table<Box<str>>,
    functions: Table<Function>,
    mappings: Table<Mapping>,
    locations: Table<Location>,
    stacks: Table<Box<[LocationId]>>,
    processes: Table<Process>,
    label_sets: Table<LabelSet>,
    thread_names: ThreadNames,
    values: IndexMap<(StackId, LabelSetId), Values, RandomState>,
    n_stack_frames: usize,
    max_stack_frames: usize,
    n_samples: i64,
    n_without_stack: i64,
    moments: Vec<Moment>,
    /// Samples whose time had no room.
    n_without_time: i64,
}

impl Default for Tables {
    fn default() -> Self {
        let mut tables = Self {
            strings: Table::default(),
            functions: Table::default(),
            mappings: Table::default(),
            locations: Table::default(),
            stacks: Table::default(),
            processes: Table::default(),
            label_sets: Table::default(),
            thread_names: ThreadNames::default(),
            values: IndexMap::default(),
            n_stack_frames: 0,
            max_stack_frames: MAX_STACK_FRAMES,
            n_samples: 0,
            n_without_stack: 0,
            moments: Vec::new(),
            n_without_time: 0,
        };
        let build_id = tables.string("");
        let filename = tables.string(PYTHON_MAPPING);
        tables.mapping(Mapping { filename, build_id });
        tables
    }
}

impl Tables {
    /// The id of a text.
    pub fn string(&mut self, text: &str) -> StringId {
        StringId(self.strings.intern_str(text))
    }

    /// The id of a binary.
    pub fn mapping(&mut self, mapping: Mapping) -> MappingId {
        MappingId(self.mappings.intern(mapping))
    }

    /// The id of a function.
    pub fn function(&mut self, function: Function) -> FunctionId {
        FunctionId(self.functions.intern(function))
    }

    /// The id of a place in a function.
    pub fn location(&mut self, location: Location) -> LocationId {
        LocationId(self.locations.intern(location))
    }

    /// The id of a process.
    pub fn process(&mut self, process: Process) -> ProcessId {
        ProcessId(self.processes.intern(process))
    }

    /// The id of a set of labels.
    pub fn label_set(&mut self, set: LabelSet) -> LabelSetId {
        LabelSetId(self.label_sets.intern(set))
    }

    /// Tells a name of the thread of a set, which has it in the finished profile if there is no better one.
    pub(super) fn name_thread(&mut self, set: LabelSetId, name: &ThreadName) {
        if let Some(thread) = self.thread(set) {
            let text = self.string(&name.text);
            self.thread_names.tell(thread, name.rank, text);
        }
    }

    /// The same with the name that the set has, of a profile that was finished. Such a one does not say whose the name is: one
    /// that is not the process's is better. `seen` is when it was true, as in [`NameRank::seen`].
    pub fn name_recorded_thread(&mut self, set: LabelSetId, seen: u64) {
        let value = |labels: &Labels, name| {
            let name = self.strings.number_of_str(name).map(StringId);
            let mut labels = labels.iter();
            let found = labels.find(|(found, _)| Some(*found) == name);
            found.map(|(_, value)| *value)
        };
        let found = self.thread(set).and_then(|thread| {
            let set = self.label_sets.value(set.0)?;
            let process = self.processes.value(set.process.0)?;
            let called = value(&set.labels, label::THREAD_NAME)?;
            let LabelValue::Str(name) = called else {
                return None;
            };
            let is_own = value(&process.labels, label::COMM) != Some(called);
            Some((thread, NameRank { is_own, seen }, name))
        });
        if let Some((thread, rank, name)) = found {
            self.thread_names.tell(thread, rank, name);
        }
    }

    fn thread(&self, set: LabelSetId) -> Option<ThreadKey> {
        let (tid, _) = self.thread_labels()?;
        thread_of(&self.processes, tid, self.label_sets.value(set.0)?)
    }

    /// The ids of the labels of a thread: its id, and its name.
    fn thread_labels(&self) -> Option<(StringId, StringId)> {
        let id = |text| self.strings.number_of_str(text).map(StringId);
        Some((id(label::TID)?, id(label::THREAD_NAME)?))
    }

    /// In the finished profile each thread has one name.
    fn settle_names(&mut self) {
        let Some((tid, label)) = self.thread_labels() else {
            return;
        };
        let thread = |set: &LabelSet| thread_of(&self.processes, tid, set);
        let Some(settled) = self.thread_names.settle(&self.label_sets, label, thread) else {
            return;
        };
        let mut values: IndexMap<(StackId, LabelSetId), Values, RandomState> = IndexMap::default();
        let mut rows = Vec::with_capacity(self.values.len());
        for ((stack, labels), sums) in &self.values {
            let labels = settled.ids.get(labels.0 as usize).unwrap_or(labels);
            let entry = values.entry((*stack, *labels));
            rows.push(entry.index() as u32);
            entry.or_default().add(*sums);
        }
        for moment in &mut self.moments {
            if let Some(row) = rows.get(moment.row as usize) {
                moment.row = *row;
            }
        }
        self.values = values;
        self.label_sets = settled.sets.into_iter().collect();
    }

    /// A label that is a text.
    pub fn text_label(&mut self, name: &str, text: &str) -> (StringId, LabelValue) {
        (self.string(name), LabelValue::Str(self.string(text)))
    }

    /// The set of labels that has one more.
    pub(super) fn with_label(&mut self, labels: LabelSetId, name: &str, text: &str) -> LabelSetId {
        let Some(set) = self.label_sets.value(labels.0).cloned() else {
            return labels;
        };
        let one_more = self.text_label(name, text);
        let labels = set.labels.iter().copied().chain([one_more]).collect();
        self.label_set(LabelSet { labels, ..set })
    }

    /// Whether stacks that are new must go to [`Tables::no_stack`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.n_stack_frames >= self.max_stack_frames
    }

    /// The id of a stack, leaf first. Not to be called with a new one once the tables are full.
    pub fn stack(&mut self, frames: &[LocationId]) -> StackId {
        let (stack, is_new) = self.stacks.intern_slice(frames);
        if is_new {
            self.n_stack_frames += frames.len();
        }
        StackId(stack)
    }

    /// The id of a stack, if there is such a one.
    #[must_use]
    pub fn known_stack(&self, frames: &[LocationId]) -> Option<StackId> {
        self.stacks.get(frames).map(StackId)
    }

    /// The place of another profile, if there is such a one here.
    #[must_use]
    pub fn known_location(&self, profile: &Profile, id: LocationId) -> Option<LocationId> {
        let string = |id| self.strings.number_of_str(profile.str(id)).map(StringId);
        let location = profile.locations.get(id.0 as usize)?;
        let function = profile.functions.get(location.function.0 as usize)?;
        let function = Function {
            name: string(function.name)?,
            filename: string(function.filename)?,
            ..*function
        };
        let mapping = profile.mappings.get(location.mapping.0 as usize)?;
        let mapping = Mapping {
            filename: string(mapping.filename)?,
            build_id: string(mapping.build_id)?,
        };
        let location = Location {
            function: FunctionId(self.functions.number(&function)?),
            mapping: MappingId(self.mappings.number(&mapping)?),
            ..*location
        };
        self.locations.number(&location).map(LocationId)
    }

    /// The stack that stands for all that have no room any more. So many samples are counted as without their stacks.
    pub fn no_stack(&mut self, n_samples: i64) -> StackId {
        self.n_without_stack = self.n_without_stack.saturating_add(n_samples);
        let function = Function {
            kind: FrameKind::Reason,
            name: self.string("[too many different stacks]"),
            filename: self.string(""),
            start_line: 0,
        };
        let location = Location {
            function: self.function(function),
            line: 0,
            mapping: MappingId(0),
            address: 0,
        };
        let location = self.location(location);
        StackId(self.stacks.intern_slice(&[location]).0)
    }

    /// Adds to the values of a stack with these labels. Returns the row.
    pub fn add(&mut self, stack: StackId, labels: LabelSetId, values: Values) -> u32 {
        let entry = self.values.entry((stack, labels));
        let row = entry.index() as u32;
        entry.or_default().add(values);
        self.n_samples = self.n_samples.saturating_add(values[0]);
        row
    }

    /// Notes when so much of a row's first value was sampled, in nanoseconds since 1970.
    pub fn note(&mut self, row: u32, at_ns: i64, count: i64) {
        if self.moments.len() < MAX_MOMENTS {
            let count = u32::try_from(count.max(0)).unwrap_or(u32::MAX);
            self.moments.push(Moment { at_ns, row, count });
        } else {
            self.n_without_time = self.n_without_time.saturating_add(count);
        }
    }

    /// Sum of the first value (samples) of all that was added.
    #[must_use]
    pub fn n_samples(&self) -> i64 {
        self.n_samples
    }

    /// The profile.
    #[must_use]
    pub fn finish(mut self, head: Head) -> Profile {
        self.settle_names();
        let mut comments = head.comments;
        if self.n_without_stack > 0 {
            comments.push(format!(
                "{} samples without their stacks: more than {} frames in different stacks",
                self.n_without_stack, self.max_stack_frames
            ));
        }
        if self.n_without_time > 0 {
            comments.push(format!(
                "{} samples without their time: more than {MAX_MOMENTS} are kept with it",
                self.n_without_time
            ));
        }
        let mut moments = self.moments;
        moments.sort_by_key(|moment| moment.at_ns);
        Profile {
            sample_types: head.sample_types,
            period_type: head
                .sample_types
                .get(1)
                .copied()
                .unwrap_or(head.sample_types[0]),
            main_value: None,
            period: head.period,
            start: head.start,
            duration: head.duration,
            strings: self.strings.into_vec(),
            functions: self.functions.into_vec(),
            mappings: self.mappings.into_vec(),
            locations: self.locations.into_vec(),
            stacks: self.stacks.into_vec(),
            processes: self.processes.into_vec(),
            label_sets: self.label_sets.into_vec(),
            samples: self
                .values
                .into_iter()
                .map(|((stack, labels), values)| Sample {
                    stack,
                    labels,
                    values,
                })
                .collect(),
            moments,
            comments,
            has_full_filenames: false,
        }
    }

    /// Number of different samples.
    pub(super) fn n_rows(&self) -> usize {
        self.values.len()
    }

    pub(super) fn bound(&mut self, max_stack_frames: usize) {
        self.max_stack_frames = max_stack_frames;
    }
}

/// The thread of a set of labels; `None`: it is of none, or it is not known when that began.
fn thread_of(processes: &Table<Process>, tid: StringId, set: &LabelSet) -> Option<ThreadKey> {
    let mut labels = set.labels.iter();
    let (_, LabelValue::Num(tid)) = labels.find(|(found, _)| *found == tid)? else {
        return None;
    };
    (set.thread_started_ns != 0).then_some(ThreadKey {
        pid: processes.value(set.process.0)?.pid,
        tid: *tid,
        started_ns: set.thread_started_ns,
    })
}
