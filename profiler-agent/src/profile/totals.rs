//! What programs have allocated since their probes were placed, and what of it is in use, by stack; and profiles in the shape
//! of Go's heap profiles, which scrapers rely on.
//!
//! What they rely on: exactly four values in Go's order (Alloy's `fastdelta` has room for no more), values of what was
//! allocated that never fall, samples that are the same in each scrape, so without threads, which come and go, and without
//! ages, and an address at each location, since `fastdelta` tells stacks apart by addresses alone.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use indexmap::Equivalent;

use super::aggregate::{Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction};
use super::model::{Profile, ProfileType, ValueType, label};

/// Labels that a profile of [`Totals`] does not have: those of threads, of when something was allocated, and of instructions.
pub const LABELS_WITHOUT: [&str; 4] = [
    label::TID,
    label::THREAD_NAME,
    label::AGE,
    label::INSTRUCTION,
];

/// A stack, leaf first. Equal ones have equal content, wherever their functions lie.
#[derive(Debug, Clone)]
pub struct Frames(Arc<[ResolvedFrame]>);

/// The same, borrowed: what a stack is looked up by.
#[derive(Debug, Clone, Copy)]
pub struct FramesRef<'a>(pub &'a [ResolvedFrame]);

impl Frames {
    /// Leaf first.
    #[must_use]
    pub fn as_slice(&self) -> &[ResolvedFrame] {
        &self.0
    }
}

impl From<&[ResolvedFrame]> for Frames {
    fn from(frames: &[ResolvedFrame]) -> Self {
        Self(frames.into())
    }
}

impl Hash for FramesRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for frame in self.0 {
            (&frame.function, frame.line, frame.address).hash(state);
        }
    }
}

impl PartialEq for FramesRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        let is_same = |(one, other): (&ResolvedFrame, &ResolvedFrame)| {
            // Shared functions are compared by their addresses first.
            (one.line, one.address) == (other.line, other.address) && one.function == other.function
        };
        self.0.len() == other.0.len() && self.0.iter().zip(other.0).all(is_same)
    }
}

impl Hash for Frames {
    fn hash<H: Hasher>(&self, state: &mut H) {
        FramesRef(&self.0).hash(state);
    }
}

impl PartialEq for Frames {
    fn eq(&self, other: &Self) -> bool {
        FramesRef(&self.0) == FramesRef(&other.0)
    }
}

impl Eq for Frames {}

impl Equivalent<Frames> for FramesRef<'_> {
    fn equivalent(&self, key: &Frames) -> bool {
        *self == FramesRef(&key.0)
    }
}

/// What one program has allocated of one type, and what of it is in use.
#[derive(Debug)]
pub struct ProgramTotals {
    /// Whose it is.
    pub process: Arc<ProcessLabels>,
    /// By stack, in the order of [`ValueType::HEAP`]; a stack may be there twice.
    pub stacks: Vec<(Frames, [i64; 4])>,
    /// Objects and bytes that were allocated by stacks for which there was no room.
    pub other: [i64; 2],
}

/// What programs have allocated of one type since their probes were placed, at one moment.
#[derive(Debug)]
pub struct Totals {
    /// Of what.
    pub profile_type: ProfileType,
    /// Mean distance of two samples, in bytes.
    pub period: i64,
    /// When that was.
    pub taken: SystemTime,
    /// Whose.
    pub programs: Vec<Arc<ProgramTotals>>,
    /// Remarks for the reader.
    pub comments: Vec<String>,
}

impl Totals {
    /// As a profile, whose samples have the labels of their processes and no others.
    #[must_use]
    pub fn profile(&self) -> Profile {
        let sample_types = self.profile_type.sample_types();
        let mut aggregator = Aggregator::new(self.taken, sample_types, self.period);
        let no_room = ResolvedFrame {
            function: Arc::new(ResolvedFunction::reason("too many different stacks")),
            line: 0,
            address: 0,
        };
        let mut n_bytes_without = 0_i64;
        for program in &self.programs {
            for (frames, values) in &program.stacks {
                aggregator.add_of_process(frames.as_slice(), &program.process, (*values).into());
            }
            if program.other != [0; 2] {
                n_bytes_without = n_bytes_without.saturating_add(program.other[1]);
                let frames = std::slice::from_ref(&no_room);
                aggregator.add_of_process(frames, &program.process, program.other.into());
            }
        }
        let mut comments = self.comments.clone();
        if n_bytes_without > 0 {
            comments.push(format!(
                "{n_bytes_without} bytes that were allocated are without their stacks, since there are too many different ones; \
                 what is in use has its stacks"
            ));
        }
        aggregator.finish(Duration::ZERO, comments)
    }
}

/// Which value of a heap profile readers show first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeapView {
    /// What is in use: `/debug/pprof/heap`.
    InUse,
    /// What was allocated: `/debug/pprof/allocs`.
    Allocated,
}

impl HeapView {
    /// The place of that value, in bytes, in [`ValueType::HEAP`].
    const fn value_idx(self) -> usize {
        match self {
            Self::Allocated => 1,
            Self::InUse => 3,
        }
    }
}

impl Profile {
    /// A profile of allocations in the shape of Go's heap profiles; see the module's documentation.
    #[must_use]
    pub fn into_heap(mut self, view: HeapView) -> Self {
        self.sample_types = &ValueType::HEAP;
        self.period_type = ValueType::SPACE;
        self.main_value = Some(view.value_idx());
        let is_something = |values: &[i64]| values.iter().any(|value| *value != 0);
        self.samples
            .retain(|sample| is_something(sample.values.of(&ValueType::HEAP)));
        for idx in 0..self.locations.len() {
            let address = self.locations[idx].address;
            self.locations[idx].address = if address == 0 {
                self.made_up_address(idx)
            } else {
                address
            };
        }
        self
    }

    /// An address for a location that has none: of what it is, so that it is the same in each profile. Never 0, and none of
    /// the kernel's.
    fn made_up_address(&self, location_idx: usize) -> u64 {
        let location = &self.locations[location_idx];
        let mut hasher = DefaultHasher::new();
        location.line.hash(&mut hasher);
        if let Some(function) = self.functions.get(location.function.0 as usize) {
            self.str(function.name).hash(&mut hasher);
            self.str(function.filename).hash(&mut hasher);
            function.start_line.hash(&mut hasher);
        }
        hasher.finish() >> 1 | 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(name: &str, line: u32) -> ResolvedFrame {
        ResolvedFrame {
            function: Arc::new(ResolvedFunction::python(name, "/app.py", 1)),
            line,
            address: 0,
        }
    }

    fn totals(values: [i64; 4], other: [i64; 2]) -> Totals {
        let program = |pid| {
            Arc::new(ProgramTotals {
                process: Arc::new(ProcessLabels::of_pid(pid)),
                stacks: vec![
                    (
                        Frames::from(&[frame("leaf", 3), frame("main", 9)][..]),
                        values,
                    ),
                    // Of the same content, as when two threads have it.
                    (
                        Frames::from(&[frame("leaf", 3), frame("main", 9)][..]),
                        [0, 0, 1, 2],
                    ),
                    (
                        Frames::from(&[frame("leaf", 4), frame("main", 9)][..]),
                        values,
                    ),
                ],
                other,
            })
        };
        Totals {
            profile_type: ProfileType::Alloc,
            period: 512 << 10,
            taken: SystemTime::UNIX_EPOCH,
            programs: vec![program(7), program(8)],
            comments: vec!["one".to_owned()],
        }
    }

    #[test]
    fn stacks_are_told_apart_by_content() {
        let one = Frames::from(&[frame("leaf", 3)][..]);
        let again = [frame("leaf", 3)];
        let mut known = indexmap::IndexMap::new();
        known.insert(one, 1);
        assert_eq!(known.get(&FramesRef(&again)), Some(&1));
        for other in [[frame("leaf", 4)], [frame("fall", 3)]] {
            assert_eq!(known.get(&FramesRef(&other)), None);
        }
        assert_eq!(known.get(&FramesRef(&[])), None);
    }

    #[test]
    fn a_heap_profile_has_the_shape_of_gos() {
        let profile = totals([5, 50, 3, 30], [0; 2]).profile();
        let profile = profile.into_heap(HeapView::InUse);
        let kinds: Vec<&str> = profile.sample_types.iter().map(|it| it.kind).collect();
        assert_eq!(
            kinds,
            [
                "alloc_objects",
                "alloc_space",
                "inuse_objects",
                "inuse_space"
            ]
        );
        assert_eq!(profile.period_type.kind, "space");
        assert_eq!(
            (profile.period, profile.duration),
            (512 << 10, Duration::ZERO)
        );
        // Two stacks of two processes, without a label of a thread.
        assert_eq!(profile.samples.len(), 4);
        assert_eq!(profile.samples[0].values, [5, 50, 4, 32].into());
        let labels = profile.labels(profile.samples[0].labels);
        let names: Vec<&str> = labels.map(|(name, _)| profile.str(name)).collect();
        assert!(names.contains(&label::PID), "{names:?}");
        assert!(LABELS_WITHOUT.iter().all(|name| !names.contains(name)));
        assert_eq!(profile.total_weight(), 2 * (32 + 30));
        assert_eq!(profile.comments, ["one"]);
    }

    #[test]
    fn each_place_has_an_address_of_its_own_and_the_same_each_time() {
        let addresses = |values| {
            let profile = totals(values, [1, 10])
                .profile()
                .into_heap(HeapView::Allocated);
            let places = profile.locations.iter().map(|it| {
                let name = profile.functions[it.function.0 as usize].name;
                (profile.str(name).to_owned(), it.line, it.address)
            });
            let mut places: Vec<_> = places.collect();
            places.sort();
            places
        };
        let places = addresses([1, 2, 3, 4]);
        let mut distinct: Vec<u64> = places.iter().map(|(.., address)| *address).collect();
        distinct.sort_unstable();
        distinct.dedup();
        // Two lines of one function, its caller, and the one that stands for others.
        assert_eq!((places.len(), distinct.len()), (4, 4), "{places:?}");
        assert!(!distinct.contains(&0));
        assert_eq!(places, addresses([9, 9, 9, 9]));
    }

    #[test]
    fn what_has_no_room_is_one_sample_each_process_and_said() {
        let profile = totals([0; 4], [4, 400]).profile();
        let profile = profile.into_heap(HeapView::Allocated);
        let others: Vec<_> = profile
            .samples
            .iter()
            .filter(|sample| sample.values[1] > 0)
            .collect();
        assert_eq!(others.len(), 2);
        assert_eq!(others[0].values, [4, 400].into());
        let frame = profile.frames(others[0].stack).next().unwrap();
        assert_eq!(frame.name, "[too many different stacks]");
        assert_eq!(profile.total_weight(), 800);
        assert!(
            profile.comments[1].starts_with("800 bytes"),
            "{:?}",
            profile.comments
        );
        // A stack of which nothing is known is none.
        assert_eq!(profile.samples.len(), 4);
    }

    #[test]
    fn a_pulled_profile_loses_what_go_does_not_have() {
        let mut aggregator = Aggregator::new(
            SystemTime::UNIX_EPOCH,
            ProfileType::Alloc.sample_types(),
            1000,
        );
        let process = Arc::new(ProcessLabels::of_pid(7));
        for (line, values) in [(1, [1, 10, 1, 10, 10, 0]), (2, [0, 0, 0, 0, 77, 7])] {
            aggregator.add_of_process(&[frame("leaf", line)], &process, values.into());
        }
        let profile = aggregator.finish(Duration::from_secs(5), Vec::new());
        let profile = profile.into_heap(HeapView::InUse);
        // The peak alone is nothing.
        assert_eq!(profile.samples.len(), 1);
        assert_eq!(
            profile.samples[0].values.of(profile.sample_types),
            [1, 10, 1, 10]
        );
        assert_eq!(profile.total_weight(), 10);
    }
}
