//! What the page of [`super`] is told: the profile as tables of numbers, each text and each part of a stack once.
//!
//! Columns and not rows, since a profile of many processes has hundreds of thousands of samples; the script beside this
//! file (`data.js`) reads them.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;
use serde::Serialize;

use crate::format::escape;
use crate::format::text::{Origin, origin, short_file, unix_seconds};
use crate::profile::measure::Measure;
use crate::profile::model::{
    Frame, FrameKind, FunctionId, LabelSetId, LabelValue, LocationId, ProcessId, Profile, Sample,
    ValueType, Values, label,
};

/// A profile for the page. Ids are places in the tables beside it.
#[derive(Debug, Serialize)]
pub(super) struct Data {
    version: &'static str,
    types: Vec<Type>,
    /// The type that is shown first.
    main: usize,
    period: i64,
    period_type: Type,
    /// Seconds since 1970.
    start: f64,
    seconds: f64,
    comments: Vec<String>,
    strings: Vec<String>,
    functions: Functions,
    frames: Frames,
    nodes: Nodes,
    processes: Vec<Process>,
    threads: Threads,
    samples: Samples,
}

#[derive(Debug, Serialize)]
struct Type {
    kind: String,
    unit: String,
}

/// Columns; file and short file are texts as name is.
#[derive(Debug, Default, Serialize)]
struct Functions {
    name: Vec<u32>,
    file: Vec<u32>,
    short: Vec<u32>,
    line: Vec<u32>,
    /// As [`origin_number`] says.
    origin: Vec<u8>,
}

/// Functions, each with a line that it was at; 0: it is not known.
#[derive(Debug, Default, Serialize)]
struct Frames {
    function: Vec<u32>,
    line: Vec<u32>,
}

/// The stacks as a tree from their roots on, each node before those above it. Its parent is so many levels below the node
/// before it: 0, the node before it. Node 0, which is not here, is the root of all.
#[derive(Debug, Default, Serialize)]
struct Nodes {
    up: Vec<u32>,
    frame: Vec<u32>,
}

#[derive(Debug, Serialize)]
struct Process {
    pid: i64,
    name: String,
    /// What it runs, and its labels.
    about: String,
}

/// In the order of their processes.
#[derive(Debug, Default, Serialize)]
struct Threads {
    process: Vec<u32>,
    tid: Vec<i64>,
    name: Vec<u32>,
}

/// In the order of their threads and nodes.
#[derive(Debug, Default, Serialize)]
struct Samples {
    /// How many each thread has.
    per_thread: Vec<u32>,
    /// The nodes: of a thread's first sample itself, of others the distance from the one before.
    node: Vec<u32>,
    /// Of each type.
    values: Vec<Column>,
}

/// The values of one type.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Column {
    Values(Vec<i64>),
    /// So many times those of the first type.
    Times(i64),
}

/// Things by their place in a list.
struct Ids<T> {
    of: HashMap<T, u32, RandomState>,
}

impl<T: Hash + Eq> Ids<T> {
    fn new() -> Self {
        Self {
            of: HashMap::default(),
        }
    }

    /// The id, and whether it is a new one: the length so far.
    fn id(&mut self, thing: T) -> (u32, bool) {
        let next = self.of.len() as u32;
        let id = *self.of.entry(thing).or_insert(next);
        (id, id == next)
    }
}

impl Data {
    pub(super) fn of(profile: &Profile) -> Self {
        let mut tables = Tables::new(profile);
        let nodes_of_stacks = tables.stacks();
        let (threads, thread_of_labels, processes) = tables.threads();
        let samples = samples(profile, &threads, |sample| {
            let thread = thread_of_labels[sample.labels.0 as usize];
            let node = nodes_of_stacks.get(sample.stack.0 as usize).copied();
            (thread, node.unwrap_or(0))
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            types: profile.sample_types.iter().map(Type::of).collect(),
            main: Measure::main(profile).idx,
            period: profile.period,
            period_type: Type::of(&profile.period_type),
            start: unix_seconds(profile.start),
            seconds: profile.duration.as_secs_f64(),
            comments: profile
                .comments
                .iter()
                .map(|comment| escape(comment).into_owned())
                .collect(),
            strings: tables.strings,
            functions: tables.functions,
            frames: tables.frames,
            nodes: tables.nodes,
            processes,
            threads,
            samples,
        }
    }
}

impl Type {
    fn of(value_type: &ValueType) -> Self {
        Self {
            kind: escape(value_type.kind).into_owned(),
            unit: escape(value_type.unit).into_owned(),
        }
    }
}

/// The tables while they are filled.
struct Tables<'a> {
    profile: &'a Profile,
    strings: Vec<String>,
    string_ids: Ids<String>,
    functions: Functions,
    /// What a function is known by: two of the profile may differ in nothing that is shown.
    function_ids: Ids<[u32; 4]>,
    frames: Frames,
    frame_ids: Ids<(u32, u32)>,
    nodes: Nodes,
}

impl<'a> Tables<'a> {
    fn new(profile: &'a Profile) -> Self {
        Self {
            profile,
            strings: Vec::new(),
            string_ids: Ids::new(),
            functions: Functions::default(),
            function_ids: Ids::new(),
            frames: Frames::default(),
            frame_ids: Ids::new(),
            nodes: Nodes::default(),
        }
    }

    fn string(&mut self, text: &str) -> u32 {
        let text = escape(text).into_owned();
        let (id, is_new) = self.string_ids.id(text.clone());
        if is_new {
            self.strings.push(text);
        }
        id
    }

    fn frame(&mut self, frame: &Frame<'_>, start_line: u32) -> u32 {
        let name = match frame.name {
            "" => "<no name>",
            name => name,
        };
        let origin = origin_number(frame);
        let name = self.string(name);
        let file = self.string(frame.filename);
        let short = match frame.kind {
            FrameKind::Python if !self.profile.has_full_filenames => {
                self.string(short_file(frame.filename))
            }
            FrameKind::Python | FrameKind::Native | FrameKind::Kernel | FrameKind::Reason => file,
        };
        let key = [name, file, start_line, origin.into()];
        let (function, is_new) = self.function_ids.id(key);
        if is_new {
            self.functions.name.push(name);
            self.functions.file.push(file);
            self.functions.short.push(short);
            self.functions.line.push(start_line);
            self.functions.origin.push(origin);
        }
        let (id, is_new) = self.frame_ids.id((function, frame.line));
        if is_new {
            self.frames.function.push(function);
            self.frames.line.push(frame.line);
        }
        id
    }

    /// Fills the tree of nodes; the node of each stack.
    fn stacks(&mut self) -> Vec<u32> {
        let profile = self.profile;
        // Of each location the frame; `None`, of what leads nowhere, is left out as elsewhere.
        let frames: Vec<Option<u32>> = (0..profile.locations.len())
            .map(|idx| {
                let frame = profile.frame(LocationId(idx as u32))?;
                let function = &profile.functions[frame.function.0 as usize];
                Some(self.frame(&frame, function.start_line))
            })
            .collect();
        let mut stacks: Vec<(Vec<u32>, usize)> = Vec::with_capacity(profile.stacks.len());
        for (idx, stack) in profile.stacks.iter().enumerate() {
            let frame = |id: &LocationId| frames.get(id.0 as usize).copied().flatten();
            let mut from_root: Vec<u32> = stack.iter().rev().filter_map(frame).collect();
            if from_root.is_empty() {
                from_root.push(self.no_stack());
            }
            stacks.push((from_root, idx));
        }
        stacks.sort_unstable();
        let mut nodes_of_stacks = vec![0; stacks.len()];
        let mut before: &[u32] = &[];
        for (stack, idx) in &stacks {
            let same = before.iter().zip(stack).take_while(|(a, b)| a == b).count();
            let mut up = before.len() - same;
            for frame in &stack[same..] {
                self.nodes.up.push(up as u32);
                self.nodes.frame.push(*frame);
                up = 0;
            }
            // In this order a stack comes before those that begin with it, so that the last node is its own.
            nodes_of_stacks[*idx] = self.nodes.frame.len() as u32;
            before = stack;
        }
        nodes_of_stacks
    }

    /// What stands for a stack of no frames.
    fn no_stack(&mut self) -> u32 {
        let nothing = Frame {
            function: FunctionId(0),
            kind: FrameKind::Reason,
            name: "[no stack]",
            filename: "",
            line: 0,
            address: 0,
        };
        self.frame(&nothing, 0)
    }

    /// The threads, that of each set of labels, and the processes; only those that have samples.
    fn threads(&mut self) -> (Threads, Vec<u32>, Vec<Process>) {
        let profile = self.profile;
        let mut is_used = vec![false; profile.label_sets.len()];
        for sample in &profile.samples {
            if let Some(is_used) = is_used.get_mut(sample.labels.0 as usize) {
                *is_used = true;
            }
        }
        let mut sets: Vec<_> = (0..profile.label_sets.len())
            .filter(|idx| is_used[*idx])
            .map(|idx| {
                let id = LabelSetId(idx as u32);
                let thread = profile.thread(id);
                let process = profile.label_sets[idx].process;
                (process, thread.tid, thread.thread_name, id)
            })
            .collect();
        sets.sort_unstable();
        let mut threads = Threads::default();
        let mut thread_ids = Ids::new();
        let mut known = Ids::new();
        let mut processes = Vec::new();
        let mut thread_of_labels = vec![0; profile.label_sets.len()];
        for (process, tid, name, set) in sets {
            let (process_idx, is_new) = known.id(process);
            if is_new {
                let thread = profile.thread(set);
                processes.push(Process {
                    pid: thread.pid,
                    name: escape(thread.comm).into_owned(),
                    about: about(profile, process),
                });
            }
            let (thread, is_new) = thread_ids.id((process, tid, name));
            if is_new {
                threads.process.push(process_idx);
                threads.tid.push(tid);
                threads.name.push(self.string(name));
            }
            thread_of_labels[set.0 as usize] = thread;
        }
        (threads, thread_of_labels, processes)
    }
}

/// What a process runs, and its labels but those that stand elsewhere.
fn about(profile: &Profile, process: ProcessId) -> String {
    let Some(process) = profile.processes.get(process.0 as usize) else {
        return String::new();
    };
    let mut lines = vec![escape(profile.str(process.cmdline)).into_owned()];
    for (name, value) in &process.labels {
        let name = profile.str(*name);
        if let LabelValue::Str(value) = value
            && name != label::COMM
        {
            let value = profile.str(*value);
            lines.push(format!("{}={}", escape(name), escape(value)));
        }
    }
    lines.retain(|line| !line.is_empty());
    lines.join("\n")
}

/// The number of where a function comes from; the script has their names in this order.
fn origin_number(frame: &Frame<'_>) -> u8 {
    match frame.kind {
        FrameKind::Python => match origin(frame.filename) {
            Origin::Program => 0,
            Origin::Package => 1,
            Origin::StandardLibrary => 2,
        },
        FrameKind::Native => 3,
        FrameKind::Kernel => 4,
        FrameKind::Reason => 5,
    }
}

fn samples(profile: &Profile, threads: &Threads, place: impl Fn(&Sample) -> (u32, u32)) -> Samples {
    let mut rows: Vec<((u32, u32), Values)> = profile
        .samples
        .iter()
        .filter(|sample| (sample.labels.0 as usize) < profile.label_sets.len())
        .map(|sample| (place(sample), sample.values))
        .collect();
    rows.sort_by_key(|(place, _)| *place);
    rows.dedup_by(|(place, values), (known, sum)| {
        let is_same = place == known;
        if is_same {
            sum.add(*values);
        }
        is_same
    });
    let mut samples = Samples {
        per_thread: vec![0; threads.tid.len()],
        ..Samples::default()
    };
    let mut before = (u32::MAX, 0);
    for ((thread, node), _) in &rows {
        if let Some(n_samples) = samples.per_thread.get_mut(*thread as usize) {
            *n_samples += 1;
        }
        let from = if before.0 == *thread { before.1 } else { 0 };
        samples.node.push(node - from);
        before = (*thread, *node);
    }
    let columns = (0..profile.sample_types.len()).map(|idx| column(&rows, idx));
    samples.values = columns.collect();
    samples
}

fn column(rows: &[((u32, u32), Values)], idx: usize) -> Column {
    if idx > 0
        && let Some((_, first)) = rows.first()
        && let Some(times) = first[idx].checked_div(first[0])
        && rows
            .iter()
            .all(|(_, values)| values[0].checked_mul(times) == Some(values[idx]))
    {
        return Column::Times(times);
    }
    Column::Values(rows.iter().map(|(_, values)| values[idx]).collect())
}
