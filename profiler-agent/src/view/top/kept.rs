//! What is kept of the samples: by thread and line, and by thread and function. Bounded, since targets decide how many there
//! are.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use indexmap::{IndexMap, IndexSet};

use crate::profile::measure::Measure;
use crate::profile::model::{FrameKind, LocationId, Profile, Thread, label};

/// Places (lines and functions), threads, and pairs of both that are kept. What is beyond them is one place of one thread.
const MAX_PLACES: usize = 1 << 17;
const MAX_THREADS: usize = 1 << 14;
const MAX_CELLS: usize = 1 << 18;

/// A line, or a function.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) kind: FrameKind,
    pub(super) name: Box<str>,
    /// Or a module.
    pub(super) file: Box<str>,
    /// Of a function its first one; 0: none.
    pub(super) line: u32,
}

/// A thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ThreadId {
    pub(super) pid: u32,
    pub(super) tid: u32,
}

/// Nanoseconds in which a place was the leaf, and was in the stack; a recursion counts once. Of those in the stack: of which
/// it is known whether the thread held the global interpreter lock, and in which it did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) own: i64,
    pub(super) total: i64,
    pub(super) gil_known: i64,
    pub(super) gil_held: i64,
}

impl Times {
    pub(super) fn add(&mut self, other: Self) {
        self.own = self.own.saturating_add(other.own);
        self.total = self.total.saturating_add(other.total);
        self.gil_known = self.gil_known.saturating_add(other.gil_known);
        self.gil_held = self.gil_held.saturating_add(other.gil_held);
    }
}

/// What a place has in a thread.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cell {
    pub(super) whole: Times,
    /// Of the look with this number.
    look: u64,
    current: Times,
}

/// By thread and place, as indices of [`Kept`].
pub(super) type Cells = HashMap<(u32, u32), Cell, RandomState>;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) places: IndexSet<Place, RandomState>,
    /// With their names.
    pub(super) threads: IndexMap<ThreadId, Box<str>, RandomState>,
    pub(super) lines: Cells,
    pub(super) functions: Cells,
    /// Whether any sample said whether its thread held the global interpreter lock.
    pub(super) knows_gil: bool,
    look: u64,
}

/// The place and the thread of what is not kept apart.
const REST: u32 = 0;

impl Default for Kept {
    fn default() -> Self {
        let rest = Place {
            kind: FrameKind::Reason,
            name: "[others: more than are kept apart]".into(),
            file: "".into(),
            line: 0,
        };
        let of_all = ThreadId { pid: 0, tid: 0 };
        Self {
            places: [rest].into_iter().collect(),
            threads: [(of_all, "others".into())].into_iter().collect(),
            lines: Cells::default(),
            functions: Cells::default(),
            knows_gil: false,
            look: 0,
        }
    }
}

impl Kept {
    pub(super) fn begin_look(&mut self) {
        self.look += 1;
    }

    /// What a cell has of the last look.
    pub(super) fn current(&self, cell: &Cell) -> Times {
        if cell.look == self.look {
            cell.current
        } else {
            Times::default()
        }
    }

    /// Adds the samples of a look.
    pub(super) fn add(&mut self, profile: &Profile, measure: Measure) {
        // Each location is looked up once.
        let mut known: HashMap<u32, [u32; 2], RandomState> = HashMap::default();
        let mut threads: HashMap<u32, (u32, [i64; 2]), RandomState> = HashMap::default();
        let mut seen: [Vec<u32>; 2] = [Vec::new(), Vec::new()];
        for sample in &profile.samples {
            let weight = measure.of(sample).weight;
            let (thread, [is_known, is_held]) =
                *threads.entry(sample.labels.0).or_insert_with(|| {
                    let gil = profile.label(sample.labels, label::GIL);
                    self.knows_gil |= gil.is_some();
                    let thread = self.thread(profile.thread(sample.labels));
                    let gil = [gil.is_some(), gil == Some(label::GIL_HELD)];
                    (thread, gil.map(i64::from))
                });
            seen.iter_mut().for_each(Vec::clear);
            let stack = profile.stacks.get(sample.stack.0 as usize);
            for location in stack.into_iter().flatten() {
                let places = known
                    .entry(location.0)
                    .or_insert_with(|| self.places_of(profile, *location));
                for (seen, place) in seen.iter_mut().zip(*places) {
                    seen.push(place);
                }
            }
            for (is_function, seen) in [false, true].into_iter().zip(&mut seen) {
                // A place that comes again in the stack counts once, and as the leaf if it is that too.
                let leaf = seen.first().copied();
                seen.sort_unstable();
                seen.dedup();
                for place in seen {
                    let times = Times {
                        own: if Some(*place) == leaf { weight } else { 0 },
                        total: weight,
                        gil_known: weight * is_known,
                        gil_held: weight * is_held,
                    };
                    self.add_times(is_function, (thread, *place), times);
                }
            }
        }
    }

    fn add_times(&mut self, is_function: bool, key: (u32, u32), times: Times) {
        let look = self.look;
        let cells = if is_function {
            &mut self.functions
        } else {
            &mut self.lines
        };
        let key = if cells.len() < MAX_CELLS || cells.contains_key(&key) {
            key
        } else {
            (REST, REST)
        };
        let cell = cells.entry(key).or_default();
        if cell.look != look {
            (cell.look, cell.current) = (look, Times::default());
        }
        cell.current.add(times);
        cell.whole.add(times);
    }

    /// Line and function of a location.
    fn places_of(&mut self, profile: &Profile, location: LocationId) -> [u32; 2] {
        let Some(frame) = profile.frame(location) else {
            return [REST, REST];
        };
        let function = profile.functions.get(frame.function.0 as usize);
        let first_line = function.map_or(0, |function| function.start_line);
        [frame.line, first_line].map(|line| {
            self.place(Place {
                kind: frame.kind,
                name: frame.name.into(),
                file: frame.filename.into(),
                line,
            })
        })
    }

    fn place(&mut self, place: Place) -> u32 {
        if self.places.len() >= MAX_PLACES {
            return self
                .places
                .get_index_of(&place)
                .map_or(REST, |idx| idx as u32);
        }
        self.places.insert_full(place).0 as u32
    }

    fn thread(&mut self, thread: Thread<'_>) -> u32 {
        let id = ThreadId {
            pid: u32::try_from(thread.pid).unwrap_or(0),
            tid: u32::try_from(thread.tid).unwrap_or(0),
        };
        if self.threads.len() >= MAX_THREADS && !self.threads.contains_key(&id) {
            return REST;
        }
        // Names change, and ids are given again.
        self.threads.insert_full(id, thread.thread_name.into()).0 as u32
    }
}
