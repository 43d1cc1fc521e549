//! Aggregation: resolved samples in, a [`Profile`] out. Interns everything on the way.
//!
//! The hot path is a stack that was seen before: one look-up by address for each frame ([`FrameKey`]), one by
//! content for the stack, one for the sample. Nothing is allocated on it. What happens at first sight
//! (interning of texts, functions, locations) is paid once.
//!
//! Targets decide how many different stacks there are, so the tables are bounded: see [`super::tables::MAX_STACK_FRAMES`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use foldhash::fast::RandomState;

use super::instructions::Instruction;
use super::intern::{SharedTable, address_of};
use super::model::{
    FrameKind, Function, FunctionId, LabelSet, LabelSetId, LabelValue, Location, LocationId,
    Mapping, MappingId, Process, ProcessId, Profile, StackId, ValueType, Values, label,
};
use super::tables::{Head, Tables};
use super::thread_name::ThreadName;

pub use super::tables::PYTHON_MAPPING;

/// File name of the mapping of kernel code.
pub const KERNEL_MAPPING: &str = "[kernel]";

/// A function with its names resolved; what the symbolizer hands over. Shared: the same function comes again
/// and again, and aggregation compares by pointer first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ResolvedFunction {
    /// Kind of code.
    pub kind: FrameKind,
    /// Name to show.
    pub name: Box<str>,
    /// Source file (Python) or module (native, kernel).
    pub filename: Box<str>,
    /// First line, 0 when there is none.
    pub start_line: u32,
    /// Path of the binary for native frames, [`PYTHON_MAPPING`] and [`KERNEL_MAPPING`] else.
    pub mapping: Box<str>,
    /// Hexadecimal build id of the mapping; may be empty.
    pub build_id: Box<str>,
}

impl ResolvedFunction {
    /// A Python function.
    #[must_use]
    pub fn python(name: &str, filename: &str, start_line: u32) -> Self {
        Self {
            kind: FrameKind::Python,
            name: name.into(),
            filename: filename.into(),
            start_line,
            mapping: PYTHON_MAPPING.into(),
            build_id: "".into(),
        }
    }

    /// A remark in place of a frame; `reason` without brackets.
    #[must_use]
    pub fn reason(reason: &str) -> Self {
        Self {
            kind: FrameKind::Reason,
            name: format!("[{reason}]").into(),
            filename: "".into(),
            start_line: 0,
            mapping: PYTHON_MAPPING.into(),
            build_id: "".into(),
        }
    }
}

/// A resolved frame of one sample.
#[derive(Debug, Clone)]
pub struct ResolvedFrame {
    /// The function.
    pub function: Arc<ResolvedFunction>,
    /// Line, 0 when not known.
    pub line: u32,
    /// Address for native and kernel frames, else 0.
    pub address: u64,
}

/// Labels of one thread: the same names in every format, see [`label`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ThreadLabels {
    /// The process that it belongs to.
    pub process: Arc<ProcessLabels>,
    /// `tid`: the kernel's.
    pub tid: u32,
    /// When it began, in nanoseconds since boot; 0: not known.
    pub started_ns: u64,
    /// `thread_name`: from `threading` where it has one, else the kernel's name of the thread. The finished profile has the best
    /// one that was told of the thread.
    pub thread_name: ThreadName,
}

/// What is known of a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessLabels {
    /// `pid`.
    pub pid: u32,
    /// When it was started, in nanoseconds since boot.
    pub started_ns: u64,
    /// The user whose it wholly is; `None`: nobody's but root's.
    pub owner: Option<u32>,
    /// What it runs, as far as it may be shown.
    pub cmdline: Box<str>,
    /// `comm`.
    pub comm: Box<str>,
    /// `python_version`, such as `3.12.1`.
    pub python_version: Box<str>,
    /// What else there is: names of labels, and texts that are not empty.
    pub more: Box<[(Cow<'static, str>, Box<str>)]>,
}

impl ProcessLabels {
    /// A process of which nothing but its id is known.
    #[must_use]
    pub fn of_pid(pid: u32) -> Self {
        Self {
            pid,
            started_ns: 0,
            owner: None,
            cmdline: "".into(),
            comm: "".into(),
            python_version: "".into(),
            more: [].into(),
        }
    }
}

/// A sample ready to be aggregated.
#[derive(Debug, Clone)]
pub struct ResolvedSample {
    /// Leaf first.
    pub frames: Vec<ResolvedFrame>,
    /// Whose sample it is.
    pub labels: Arc<ThreadLabels>,
    /// Where its innermost Python frame stands, if it was asked for.
    pub instruction: Option<Instruction>,
    /// In the order of the profile's sample types.
    pub values: Values,
}

/// How a sample was taken, beside what it shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    /// Whether its thread held the global interpreter lock; `None`: that is not known.
    pub holds_gil: Option<bool>,
    /// When, in nanoseconds since 1970; `None`: that is not to be kept.
    pub at_ns: Option<i64>,
}

/// Labels that a sample has beside those of its thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnLabels {
    /// How old it is, of memory that is in use.
    pub age: Option<&'static str>,
    /// See [`ResolvedSample::instruction`].
    pub instruction: Option<Instruction>,
}

/// Most pairs of a thread and an instruction in one profile; 250 bytes each. What is beyond has no such label, and is counted.
pub const MAX_INSTRUCTIONS: usize = 1 << 16;

/// A frame without its texts: the function by its address (see [`SharedTable`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FrameKey {
    function: usize,
    line: u32,
    address: u64,
}

/// Collects samples into a profile.
#[derive(Debug)]
pub struct Aggregator {
    start: SystemTime,
    sample_types: &'static [ValueType],
    period: i64,
    tables: Tables,
    shared_functions: SharedTable<ResolvedFunction, (FunctionId, MappingId)>,
    shared_processes: SharedTable<ProcessLabels, ProcessId>,
    shared_labels: SharedTable<ThreadLabels, LabelSetId>,
    /// Those of a thread with the state of the interpreter lock.
    gil_labels: HashMap<(LabelSetId, bool), LabelSetId, RandomState>,
    frames: HashMap<FrameKey, LocationId, RandomState>,
    /// Threads at an instruction.
    instructions: HashMap<(LabelSetId, Instruction), LabelSetId, RandomState>,
    max_instructions: usize,
    n_without_instruction: i64,
    /// The stack that is being added; kept for its allocation.
    scratch: Vec<LocationId>,
}

impl Aggregator {
    /// Begins a profile at `start`. `period` is the distance of two samples in the unit of the second type.
    #[must_use]
    pub fn new(start: SystemTime, sample_types: &'static [ValueType], period: i64) -> Self {
        Self {
            start,
            sample_types,
            period,
            tables: Tables::default(),
            shared_functions: SharedTable::default(),
            shared_processes: SharedTable::default(),
            shared_labels: SharedTable::default(),
            gil_labels: HashMap::default(),
            frames: HashMap::default(),
            instructions: HashMap::default(),
            max_instructions: MAX_INSTRUCTIONS,
            n_without_instruction: 0,
            scratch: Vec::new(),
        }
    }

    /// Adds a sample.
    pub fn add(&mut self, sample: &ResolvedSample) {
        self.add_taken(sample, Taken::default());
    }

    /// Adds a sample of which it is known how it was taken.
    pub fn add_taken(&mut self, sample: &ResolvedSample, taken: Taken) {
        let mut labels = self.intern_labels(&sample.labels);
        if let Some(holds_gil) = taken.holds_gil {
            let tables = &mut self.tables;
            let with_gil = || {
                let text = if holds_gil {
                    label::GIL_HELD
                } else {
                    label::GIL_RELEASED
                };
                tables.with_label(labels, label::GIL, text)
            };
            labels = *self
                .gil_labels
                .entry((labels, holds_gil))
                .or_insert_with(with_gil);
        }
        if let Some(instruction) = sample.instruction {
            labels = self.at_instruction(labels, instruction, sample.values[0]);
        }
        let stack = self.intern_stack(&sample.frames, sample.values[0]);
        let row = self.tables.add(stack, labels, sample.values);
        if let Some(at_ns) = taken.at_ns {
            self.tables.note(row, at_ns, sample.values[0]);
        }
    }

    /// Adds values to what has this stack, leaf first, and these labels.
    pub fn add_values(
        &mut self,
        frames: &[ResolvedFrame],
        labels: &Arc<ThreadLabels>,
        own: OwnLabels,
        values: Values,
    ) {
        let mut labels = self.intern_labels(labels);
        if let Some(instruction) = own.instruction {
            labels = self.at_instruction(labels, instruction, values[0]);
        }
        if let Some(age) = own.age {
            labels = self.tables.with_label(labels, label::AGE, age);
        }
        let stack = self.intern_stack(frames, values[0]);
        self.tables.add(stack, labels, values);
    }

    /// Adds values to what has this stack, leaf first, in this process, in whatever thread.
    pub fn add_of_process(
        &mut self,
        frames: &[ResolvedFrame],
        process: &Arc<ProcessLabels>,
        values: Values,
    ) {
        let process = intern_process(&mut self.tables, &mut self.shared_processes, process);
        let labels = self.tables.label_set(LabelSet {
            process,
            thread_started_ns: 0,
            labels: [].into(),
        });
        let stack = self.intern_stack(frames, values[0]);
        self.tables.add(stack, labels, values);
    }

    /// Asks of each thread whether there is a name of it that no sample had.
    pub fn name_threads<'a>(&mut self, newest: impl Fn(&ThreadLabels) -> Option<&'a ThreadName>) {
        for (labels, id) in self.shared_labels.iter() {
            if let Some(name) = newest(labels) {
                self.tables.name_thread(id, name);
            }
        }
    }

    /// Sum of the first value (samples) of all that was added.
    #[must_use]
    pub fn n_samples(&self) -> i64 {
        self.tables.n_samples()
    }

    /// Sets the distance of two samples: the sampling rate may be lowered while the profile is taken.
    pub fn set_period(&mut self, period: i64) {
        self.period = period;
    }

    /// Sets when it began: what comes before some time is not asked for.
    pub fn set_start(&mut self, start: SystemTime) {
        self.start = start;
    }

    /// Ends the profile.
    #[must_use]
    pub fn finish(self, duration: Duration, mut comments: Vec<String>) -> Profile {
        if self.n_without_instruction > 0 {
            comments.push(format!(
                "{} samples without their instructions: threads were at more than {} different ones",
                self.n_without_instruction, self.max_instructions
            ));
        }
        self.tables.finish(Head {
            sample_types: self.sample_types,
            period: self.period,
            start: self.start,
            duration,
            comments,
        })
    }

    fn intern_stack(&mut self, frames: &[ResolvedFrame], n_samples: i64) -> StackId {
        if self.tables.is_full() {
            return self.intern_stack_when_full(frames, n_samples);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend(frames.iter().map(|frame| self.intern_frame(frame)));
        let stack = self.tables.stack(&scratch);
        self.scratch = scratch;
        stack
    }

    /// The stack if every part of it is known already; else the one stack that stands for all others.
    fn intern_stack_when_full(&mut self, frames: &[ResolvedFrame], n_samples: i64) -> StackId {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend(
            frames
                .iter()
                .map_while(|frame| self.frames.get(&FrameKey::of(frame))),
        );
        let known = if scratch.len() == frames.len() {
            self.tables.known_stack(&scratch)
        } else {
            None
        };
        self.scratch = scratch;
        known.unwrap_or_else(|| self.tables.no_stack(n_samples))
    }

    fn intern_frame(&mut self, frame: &ResolvedFrame) -> LocationId {
        let key = FrameKey::of(frame);
        if let Some(location) = self.frames.get(&key) {
            return *location;
        }
        // The table of shared functions keeps the address in `key` from being reused.
        let tables = &mut self.tables;
        let (function, mapping) = self
            .shared_functions
            .get_or_insert_with(&frame.function, |function| {
                intern_function(tables, function)
            });
        let location = self.tables.location(Location {
            function,
            line: frame.line,
            mapping,
            address: frame.address,
        });
        self.frames.insert(key, location);
        location
    }

    /// The labels with that of an instruction, as long as there is room for it.
    fn at_instruction(
        &mut self,
        labels: LabelSetId,
        instruction: Instruction,
        n_samples: i64,
    ) -> LabelSetId {
        let key = (labels, instruction);
        if let Some(known) = self.instructions.get(&key) {
            return *known;
        }
        if self.instructions.len() >= self.max_instructions {
            self.n_without_instruction = self.n_without_instruction.saturating_add(n_samples);
            return labels;
        }
        let text = instruction.to_string();
        let labels = self.tables.with_label(labels, label::INSTRUCTION, &text);
        self.instructions.insert(key, labels);
        labels
    }

    fn intern_labels(&mut self, labels: &Arc<ThreadLabels>) -> LabelSetId {
        let Self {
            shared_processes,
            shared_labels,
            tables,
            ..
        } = self;
        shared_labels.get_or_insert_with(labels, |thread| {
            let process = intern_process(tables, shared_processes, &thread.process);
            let tid = LabelValue::Num(i64::from(thread.tid));
            let labels = [
                (tables.string(label::TID), tid),
                tables.text_label(label::THREAD_NAME, &thread.thread_name.text),
            ];
            let set = tables.label_set(LabelSet {
                process,
                thread_started_ns: thread.started_ns,
                labels: labels.into(),
            });
            tables.name_thread(set, &thread.thread_name);
            set
        })
    }
}

fn intern_function(tables: &mut Tables, function: &ResolvedFunction) -> (FunctionId, MappingId) {
    let mapping = Mapping {
        filename: tables.string(&function.mapping),
        build_id: tables.string(&function.build_id),
    };
    let mapping = tables.mapping(mapping);
    let function = Function {
        kind: function.kind,
        name: tables.string(&function.name),
        filename: tables.string(&function.filename),
        start_line: function.start_line,
    };
    (tables.function(function), mapping)
}

fn intern_process(
    tables: &mut Tables,
    shared: &mut SharedTable<ProcessLabels, ProcessId>,
    labels: &Arc<ProcessLabels>,
) -> ProcessId {
    shared.get_or_insert_with(labels, |labels| {
        let process = process_of(tables, labels);
        tables.process(process)
    })
}

fn process_of(tables: &mut Tables, process: &ProcessLabels) -> Process {
    let pid = LabelValue::Num(i64::from(process.pid));
    let mut labels = vec![(tables.string(label::PID), pid)];
    let own = [
        (label::COMM, &process.comm),
        (label::PYTHON_VERSION, &process.python_version),
    ];
    let more = process.more.iter().map(|(name, text)| (&**name, text));
    let texts = own.into_iter().chain(more);
    labels.extend(texts.map(|(name, text)| tables.text_label(name, text)));
    Process {
        pid: process.pid,
        started_ns: process.started_ns,
        owner: process.owner,
        cmdline: tables.string(&process.cmdline),
        labels: labels.into(),
    }
}

impl FrameKey {
    fn of(frame: &ResolvedFrame) -> Self {
        Self {
            function: address_of(&frame.function),
            line: frame.line,
            address: frame.address,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::profile::model::{Sample, StringId};
    use crate::profile::thread_name::NameRank;

    fn thread(pid: u32, tid: u32) -> Arc<ThreadLabels> {
        let process = ProcessLabels {
            comm: "python3".into(),
            python_version: "3.12.1".into(),
            ..ProcessLabels::of_pid(pid)
        };
        Arc::new(ThreadLabels {
            process: Arc::new(process),
            tid,
            started_ns: 0,
            thread_name: "MainThread".into(),
        })
    }

    fn frame(function: &Arc<ResolvedFunction>, line: u32) -> ResolvedFrame {
        ResolvedFrame {
            function: Arc::clone(function),
            line,
            address: 0,
        }
    }

    fn aggregator() -> Aggregator {
        Aggregator::new(SystemTime::UNIX_EPOCH, &ValueType::CPU_SAMPLES, 10_101_010)
    }

    fn names(profile: &Profile, sample: &Sample) -> Vec<String> {
        profile
            .frames(sample.stack)
            .map(|frame| format!("{}:{}", frame.name, frame.line))
            .collect()
    }

    #[test]
    fn equal_stacks_of_one_thread_become_one_sample() {
        let main = Arc::new(ResolvedFunction::python("main", "/app.py", 1));
        let spin = Arc::new(ResolvedFunction::python("spin", "/app.py", 5));
        // Equal content at another address: as after the symbolizer's cache was cleared.
        let spin_again = Arc::new((*spin).clone());
        let mut aggregator = aggregator();
        let labels = thread(7, 7);
        for function in [&spin, &spin_again, &spin] {
            aggregator.add(&ResolvedSample {
                frames: vec![frame(function, 6), frame(&main, 2)],
                labels: Arc::clone(&labels),
                instruction: None,
                values: [1, 100].into(),
            });
        }
        aggregator.add(&ResolvedSample {
            frames: vec![frame(&spin, 7), frame(&main, 2)],
            labels: thread(7, 7),
            instruction: None,
            values: [1, 100].into(),
        });
        assert_eq!(aggregator.n_samples(), 4);
        let profile = aggregator.finish(Duration::from_secs(1), Vec::new());
        assert_eq!(profile.samples.len(), 2);
        assert_eq!(profile.samples[0].values, [3, 300].into());
        assert_eq!(names(&profile, &profile.samples[0]), ["spin:6", "main:2"]);
        assert_eq!(names(&profile, &profile.samples[1]), ["spin:7", "main:2"]);
        assert_eq!(profile.functions.len(), 2);
        assert_eq!(profile.label_sets.len(), 1);
        assert!(profile.comments.is_empty());
    }

    #[test]
    fn threads_are_kept_apart_and_their_labels_can_be_read() {
        let main = Arc::new(ResolvedFunction::python("main", "/app.py", 1));
        let mut aggregator = aggregator();
        for tid in [7, 8] {
            aggregator.add(&ResolvedSample {
                frames: vec![frame(&main, 2)],
                labels: thread(7, tid),
                instruction: None,
                values: [1, 100].into(),
            });
        }
        let profile = aggregator.finish(Duration::from_secs(1), Vec::new());
        assert_eq!(profile.samples.len(), 2);
        assert_eq!(profile.stacks.len(), 1);
        let labels = profile.thread(profile.samples[1].labels);
        assert_eq!((labels.pid, labels.tid), (7, 8));
        assert_eq!((labels.comm, labels.python_version), ("python3", "3.12.1"));
    }

    /// Begin, name, whether that is `threading`'s, and when it was seen.
    type Called<'a> = (u64, &'a str, bool, u64);

    fn called(tid: u32, (started_ns, name, is_own, seen): Called<'_>) -> Arc<ThreadLabels> {
        Arc::new(ThreadLabels {
            started_ns,
            thread_name: ThreadName {
                text: name.into(),
                rank: NameRank { is_own, seen },
            },
            ..(*thread(7, tid)).clone()
        })
    }

    #[test]
    fn a_thread_has_one_name_in_all_of_a_profile() {
        let main = Arc::new(ResolvedFunction::python("main", "/app.py", 1));
        let mut aggregator = aggregator();
        let told = [
            (8, (100, "python3", false, 1)),
            (9, (100, "python3", false, 1)),
            (8, (100, "worker 8", true, 2)),
            // It has the id of the one before.
            (8, (900, "python3", false, 3)),
            // Told again by what was sampled long ago.
            (8, (100, "python3", false, 4)),
        ];
        for (idx, (tid, called_so)) in (0_i64..).zip(told) {
            let sample = ResolvedSample {
                frames: vec![frame(&main, 2)],
                labels: called(tid, called_so),
                instruction: None,
                values: [1, 100].into(),
            };
            let taken = Taken {
                holds_gil: None,
                at_ns: Some(idx),
            };
            aggregator.add_taken(&sample, taken);
        }
        // Nine's is known since its last sample.
        let late = called(9, (100, "worker 9", true, 9));
        aggregator.name_threads(|thread| (thread.tid == 9).then_some(&late.thread_name));
        let profile = aggregator.finish(Duration::from_secs(1), Vec::new());
        check_tables(&profile);
        let said: Vec<_> = profile
            .samples
            .iter()
            .map(|sample| {
                let thread = profile.thread(sample.labels);
                (thread.tid, thread.thread_name, sample.values[0])
            })
            .collect();
        let expected = [(8, "worker 8", 3), (9, "worker 9", 1), (8, "python3", 1)];
        assert_eq!(said, expected);
        let rows: Vec<_> = profile.moments.iter().map(|moment| moment.row).collect();
        assert_eq!(rows, [0, 1, 0, 2, 0]);
    }

    #[test]
    fn labels_of_a_sample_stay_when_its_thread_is_renamed() {
        let mut aggregator = aggregator();
        for (name, is_own) in [("python3", false), ("worker", true)] {
            for holds_gil in [true, false] {
                let sample = ResolvedSample {
                    frames: Vec::new(),
                    labels: called(8, (100, name, is_own, 1)),
                    instruction: None,
                    values: [1, 100].into(),
                };
                let taken = Taken {
                    holds_gil: Some(holds_gil),
                    at_ns: None,
                };
                aggregator.add_taken(&sample, taken);
            }
        }
        let profile = aggregator.finish(Duration::from_secs(1), Vec::new());
        check_tables(&profile);
        let said: Vec<_> = profile
            .samples
            .iter()
            .map(|sample| {
                let text = |name| profile.label(sample.labels, name);
                (text(label::THREAD_NAME), text(label::GIL), sample.values[0])
            })
            .collect();
        let expected =
            [label::GIL_HELD, label::GIL_RELEASED].map(|gil| (Some("worker"), Some(gil), 2));
        assert_eq!(said, expected);
    }

    #[test]
    fn a_sample_without_frames_is_kept() {
        let mut aggregator = aggregator();
        aggregator.add(&ResolvedSample {
            frames: Vec::new(),
            labels: thread(1, 1),
            instruction: None,
            values: [1, 100].into(),
        });
        let profile = aggregator.finish(Duration::from_secs(1), Vec::new());
        assert_eq!(profile.n_samples(), 1);
        assert!(profile.stacks[0].is_empty());
    }

    #[test]
    fn beyond_the_bound_known_stacks_still_count_and_new_ones_are_told() {
        let main = Arc::new(ResolvedFunction::python("main", "/app.py", 1));
        let mut aggregator = aggregator();
        aggregator.tables.bound(4);
        let labels = thread(1, 1);
        for line in [1, 2, 3, 4, 1, 2, 3, 9] {
            aggregator.add(&ResolvedSample {
                frames: vec![frame(&main, line), frame(&main, 50)],
                labels: Arc::clone(&labels),
                instruction: None,
                values: [1, 100].into(),
            });
        }
        let profile = aggregator.finish(Duration::from_secs(1), Vec::new());
        let told: Vec<_> = profile
            .samples
            .iter()
            .map(|sample| (names(&profile, sample)[0].clone(), sample.values))
            .collect();
        assert_eq!(
            told,
            [
                ("main:1".to_owned(), [2, 200].into()),
                ("main:2".to_owned(), [2, 200].into()),
                ("[too many different stacks]:0".to_owned(), [4, 400].into()),
            ]
        );
        assert_eq!(profile.comments.len(), 1);
        assert!(profile.comments[0].starts_with("4 samples"));
    }

    #[test]
    fn beyond_their_bound_instructions_are_left_out_and_that_is_told() {
        let main = Arc::new(ResolvedFunction::python("main", "/app.py", 1));
        let mut aggregator = aggregator();
        aggregator.max_instructions = 2;
        let labels = thread(1, 1);
        for offset in [2, 4, 2, 6, 4, 8] {
            aggregator.add(&ResolvedSample {
                frames: vec![frame(&main, 2)],
                labels: Arc::clone(&labels),
                instruction: Some(Instruction {
                    offset,
                    opcode: 1,
                    name: Some("NOP"),
                }),
                values: [1, 100].into(),
            });
        }
        let profile = aggregator.finish(Duration::from_secs(1), Vec::new());
        let told: Vec<_> = profile
            .samples
            .iter()
            .map(|sample| {
                let text = profile.label(sample.labels, label::INSTRUCTION);
                (text, sample.values)
            })
            .collect();
        assert_eq!(
            told,
            [
                (Some("2 NOP"), [2, 200].into()),
                (Some("4 NOP"), [2, 200].into()),
                (None, [2, 200].into()),
            ]
        );
        assert_eq!(
            profile.comments,
            ["2 samples without their instructions: threads were at more than 2 different ones"]
        );
    }

    #[test]
    fn sums_saturate() {
        let mut aggregator = aggregator();
        let labels = thread(1, 1);
        for _ in 0..2 {
            aggregator.add(&ResolvedSample {
                frames: Vec::new(),
                labels: Arc::clone(&labels),
                instruction: None,
                values: [i64::MAX, i64::MIN].into(),
            });
        }
        let profile = aggregator.finish(Duration::ZERO, Vec::new());
        assert_eq!(profile.samples[0].values, [i64::MAX, i64::MIN].into());
    }

    /// Shows the price of an add in a release build: `cargo test --release -- --nocapture the_price`. Only the
    /// sums are asserted: time is not, since a loaded machine would make the test fail.
    #[test]
    fn the_price_of_a_known_stack_of_30_frames_is_shown() {
        let functions: Vec<_> = (0..300)
            .map(|idx| Arc::new(ResolvedFunction::python(&format!("f{idx}"), "/app.py", idx)))
            .collect();
        let labels: Vec<_> = (0..8).map(|tid| thread(1, tid)).collect();
        let samples: Vec<_> = (0..1000_usize)
            .map(|idx| ResolvedSample {
                frames: (0..30)
                    .map(|depth| frame(&functions[(idx * 7 + depth * 11) % 300], depth as u32))
                    .collect(),
                labels: Arc::clone(&labels[idx % labels.len()]),
                instruction: None,
                values: [1, 100].into(),
            })
            .collect();
        let mut aggregator = aggregator();
        for sample in &samples {
            aggregator.add(sample);
        }
        let mut best = Duration::MAX;
        for _ in 0..20 {
            let begin = Instant::now();
            for sample in &samples {
                aggregator.add(sample);
            }
            best = best.min(begin.elapsed());
        }
        println!(
            "add of a known stack of 30 frames: {} ns",
            best.as_nanos() / 1000
        );
        assert_eq!(aggregator.n_samples(), 21_000);
    }

    #[derive(Debug, Clone)]
    struct Case {
        frames: Vec<(usize, u32)>,
        thread: usize,
        count: i64,
    }

    fn cases() -> impl Strategy<Value = Vec<Case>> {
        let frames = prop::collection::vec((0_usize..6, 0_u32..3), 0..5);
        let case = (frames, 0_usize..4, 1_i64..5).prop_map(|(frames, thread, count)| Case {
            frames,
            thread,
            count,
        });
        prop::collection::vec(case, 0..60)
    }

    proptest! {
        #[test]
        fn tables_are_valid_and_nothing_is_lost(cases in cases(), bound in 1_usize..400) {
            // Functions 3 to 5 equal 0 to 2: interning by address must not tell them apart.
            let functions: Vec<_> = (0..6_u32)
                .map(|idx| Arc::new(ResolvedFunction::python(&format!("f{}", idx % 3), "f.py", idx % 3)))
                .collect();
            let threads: Vec<_> = (0..4).map(|idx| thread(idx / 2, idx)).collect();
            let mut aggregator = aggregator();
            aggregator.tables.bound(bound);
            let mut expected: BTreeMap<(Vec<String>, i64), i64> = BTreeMap::new();
            for case in &cases {
                let frames: Vec<_> =
                    case.frames.iter().map(|(idx, line)| frame(&functions[*idx], *line)).collect();
                let names = case.frames.iter().map(|(idx, line)| format!("f{}:{line}", idx % 3)).collect();
                *expected.entry((names, case.thread as i64)).or_default() += case.count;
                aggregator.add(&ResolvedSample {
                    frames,
                    labels: Arc::clone(&threads[case.thread]),
                    instruction: None,
                    values: [case.count, case.count * 10].into(),
                });
            }
            let profile = aggregator.finish(Duration::from_secs(1), Vec::new());
            check_tables(&profile);
            prop_assert_eq!(profile.n_samples(), cases.iter().map(|case| case.count).sum::<i64>());
            prop_assert!(profile.samples.iter().all(|sample| sample.values[1] == sample.values[0] * 10));
            if profile.comments.is_empty() {
                let got: BTreeMap<_, _> = profile
                    .samples
                    .iter()
                    .map(|sample| {
                        let key = (names(&profile, sample), profile.thread(sample.labels).tid);
                        (key, sample.values[0])
                    })
                    .collect();
                prop_assert_eq!(got, expected);
            }
        }
    }

    /// No dangling id, no duplicate in any table.
    fn check_tables(profile: &Profile) {
        fn distinct<T: Eq + std::hash::Hash>(values: &[T]) -> bool {
            values.iter().collect::<HashSet<_>>().len() == values.len()
        }
        let string = |id: StringId| assert!((id.0 as usize) < profile.strings.len());
        assert_eq!(&*profile.strings[0], "");
        assert_eq!(profile.str(profile.mappings[0].filename), PYTHON_MAPPING);
        assert!(distinct(&profile.strings) && distinct(&profile.functions));
        assert!(distinct(&profile.mappings) && distinct(&profile.locations));
        assert!(distinct(&profile.stacks) && distinct(&profile.label_sets));
        assert!(distinct(&profile.processes));
        for set in &profile.label_sets {
            assert!((set.process.0 as usize) < profile.processes.len());
        }
        for function in &profile.functions {
            string(function.name);
            string(function.filename);
        }
        for mapping in &profile.mappings {
            string(mapping.filename);
            string(mapping.build_id);
        }
        for location in &profile.locations {
            assert!((location.function.0 as usize) < profile.functions.len());
            assert!((location.mapping.0 as usize) < profile.mappings.len());
        }
        for location in profile.stacks.iter().flatten() {
            assert!((location.0 as usize) < profile.locations.len());
        }
        let keys: Vec<_> = profile
            .samples
            .iter()
            .map(|sample| (sample.stack, sample.labels))
            .collect();
        assert!(distinct(&keys));
        for sample in &profile.samples {
            assert!((sample.stack.0 as usize) < profile.stacks.len());
            assert!((sample.labels.0 as usize) < profile.label_sets.len());
        }
    }
}
