//! What a program has allocated since its probes were placed, by stack: sums that only grow, which scrapers take differences
//! of. Bounded: what has no room is summed up without its stack.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use indexmap::IndexMap;

use super::{Live, Stack};
use crate::profile::aggregate::{ProcessLabels, ResolvedSample};
use crate::profile::model::ProfileType;
use crate::profile::totals::{Frames, FramesRef, ProgramTotals};

/// Frames in the stacks of all programs: 24 bytes each, and what they refer to. 35,000 different stacks of depth 30.
pub(super) const MAX_FRAMES: usize = 1 << 20;

/// How much of that one program may have.
const PROGRAM_SHARE: usize = 4;

/// What a stack takes beside its frames, in frames: its place in the table and its sums.
const STACK_OVERHEAD: usize = 4;

/// Totals are added up as often as this at most; who asks more often gets the same ones again.
pub(in crate::agent) const FRESH: Duration = Duration::from_secs(1);

/// Room for the stacks of all programs, and what of it one program has.
#[derive(Debug)]
pub(super) struct Room {
    taken: Arc<AtomicUsize>,
    own: usize,
    max: usize,
}

impl Room {
    /// Room for so many frames.
    pub(super) fn new(max: usize) -> Self {
        Self {
            taken: Arc::default(),
            own: 0,
            max,
        }
    }

    /// A program's, of the same room.
    pub(super) fn share(&self) -> Self {
        Self {
            taken: self.taken.clone(),
            own: 0,
            max: self.max,
        }
    }

    fn take(&mut self, n_frames: usize) -> bool {
        let n_frames = n_frames + STACK_OVERHEAD;
        let taken = self.taken.load(Ordering::Relaxed);
        let has_room =
            taken + n_frames <= self.max && self.own + n_frames <= self.max / PROGRAM_SHARE;
        if has_room {
            self.taken.store(taken + n_frames, Ordering::Relaxed);
            self.own += n_frames;
        }
        has_room
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.own, Ordering::Relaxed);
    }
}

/// Of one type: objects and bytes.
#[derive(Debug)]
struct OfType {
    profile_type: ProfileType,
    by_stack: IndexMap<Frames, [i64; 2], RandomState>,
    other: [i64; 2],
    /// The last answer, and when it was given.
    answer: Option<(Instant, Arc<ProgramTotals>)>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Allocated {
    room: Room,
    process: Arc<ProcessLabels>,
    by_type: Vec<OfType>,
}

impl Allocated {
    pub(super) fn new(room: Room, process: Arc<ProcessLabels>) -> Self {
        Self {
            room,
            process,
            by_type: Vec::new(),
        }
    }

    /// Adds a sampled allocation; the first two of its values are known.
    pub(super) fn add(&mut self, profile_type: ProfileType, sample: &ResolvedSample) {
        if !Arc::ptr_eq(&self.process, &sample.labels.process) {
            self.process = sample.labels.process.clone();
        }
        let room = &mut self.room;
        let of_type = of_type(&mut self.by_type, profile_type);
        let frames = FramesRef(&sample.frames);
        let sums = if let Some(idx) = of_type.by_stack.get_index_of(&frames) {
            &mut of_type.by_stack[idx]
        } else if room.take(sample.frames.len()) {
            let frames = Frames::from(sample.frames.as_slice());
            of_type.by_stack.entry(frames).or_default()
        } else {
            &mut of_type.other
        };
        for (sum, value) in sums.iter_mut().zip([sample.values[0], sample.values[1]]) {
            *sum = sum.saturating_add(value);
        }
    }

    /// The last answer, if it was given a moment ago.
    pub(super) fn answer(&self, profile_type: ProfileType) -> Option<Arc<ProgramTotals>> {
        let of_type = self.by_type.iter();
        let mut of_type = of_type.filter(|it| it.profile_type == profile_type);
        let (given, answer) = of_type.next()?.answer.as_ref()?;
        (given.elapsed() < FRESH).then(|| answer.clone())
    }

    /// Forgets answers that nobody will get any more.
    pub(super) fn forget_answers(&mut self) {
        for of_type in &mut self.by_type {
            of_type
                .answer
                .take_if(|(given, _)| given.elapsed() >= FRESH);
        }
    }

    /// Puts them together with what is in use.
    pub(super) fn totals<'a>(
        &mut self,
        profile_type: ProfileType,
        alive: impl Iterator<Item = &'a Live>,
    ) -> Arc<ProgramTotals> {
        let process = self.process.clone();
        let of_type = of_type(&mut self.by_type, profile_type);
        let sums = of_type.by_stack.iter();
        let sums = sums
            .map(|(frames, [n_objects, n_bytes])| (frames.clone(), [*n_objects, *n_bytes, 0, 0]));
        let mut stacks: Vec<(Frames, [i64; 4])> = sums.collect();
        // Many blocks share a stack: it is looked up once.
        let mut in_use: HashMap<*const Stack, (&Stack, [i64; 2]), RandomState> = HashMap::default();
        for live in alive.filter(|live| live.profile_type == profile_type) {
            let entry = in_use.entry(Arc::as_ptr(&live.stack));
            let (_, sums) = entry.or_insert((&*live.stack, [0; 2]));
            sums[0] = sums[0].saturating_add(live.n_objects);
            sums[1] = sums[1].saturating_add(live.n_bytes);
        }
        for (stack, [n_objects, n_bytes]) in in_use.into_values() {
            let frames = FramesRef(&stack.frames);
            match of_type.by_stack.get_index_of(&frames) {
                Some(idx) => {
                    let values = &mut stacks[idx].1;
                    values[2] = values[2].saturating_add(n_objects);
                    values[3] = values[3].saturating_add(n_bytes);
                }
                None => {
                    let frames = Frames::from(stack.frames.as_slice());
                    stacks.push((frames, [0, 0, n_objects, n_bytes]));
                }
            }
        }
        let answer = Arc::new(ProgramTotals {
            process,
            stacks,
            other: of_type.other,
        });
        of_type.answer = Some((Instant::now(), answer.clone()));
        answer
    }
}

fn of_type(by_type: &mut Vec<OfType>, profile_type: ProfileType) -> &mut OfType {
    let known = by_type
        .iter()
        .position(|it| it.profile_type == profile_type);
    let idx = known.unwrap_or_else(|| {
        by_type.push(OfType {
            profile_type,
            by_stack: IndexMap::default(),
            other: [0; 2],
            answer: None,
        });
        by_type.len() - 1
    });
    &mut by_type[idx]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::aggregate::{ResolvedFrame, ResolvedFunction, ThreadLabels};

    /// An allocation in `line` of a thread.
    fn sample(tid: u32, line: u32, n_bytes: i64) -> ResolvedSample {
        ResolvedSample {
            // Functions and labels of the same content at other addresses.
            frames: vec![ResolvedFrame {
                function: Arc::new(ResolvedFunction::python("f", "/app.py", 1)),
                line,
                address: 0,
            }],
            labels: Arc::new(ThreadLabels {
                process: Arc::new(ProcessLabels::of_pid(7)),
                tid,
                started_ns: 0,
                thread_name: "MainThread".into(),
            }),
            instruction: None,
            values: [1, n_bytes].into(),
        }
    }

    fn allocated(room: &Room) -> Allocated {
        Allocated::new(room.share(), Arc::new(ProcessLabels::of_pid(7)))
    }

    fn live(sample: &ResolvedSample) -> Live {
        Live {
            profile_type: ProfileType::Alloc,
            stack: Arc::new(Stack {
                frames: sample.frames.clone(),
                labels: sample.labels.clone(),
                instruction: sample.instruction,
            }),
            n_objects: 1,
            n_bytes: sample.values[1],
            size: 0,
            allocated_ns: 0,
        }
    }

    fn values(totals: &ProgramTotals) -> Vec<(u32, [i64; 4])> {
        let line = |frames: &Frames| frames.as_slice()[0].line;
        let stacks = totals.stacks.iter();
        let mut values: Vec<_> = stacks.map(|(it, values)| (line(it), *values)).collect();
        values.sort_unstable();
        values
    }

    #[test]
    fn threads_are_put_together_and_types_are_not() {
        let mut allocated = allocated(&Room::new(MAX_FRAMES));
        for tid in 1..=3 {
            allocated.add(ProfileType::Alloc, &sample(tid, 5, 100));
        }
        allocated.add(ProfileType::Pools, &sample(1, 5, 7));
        let alive = [live(&sample(2, 5, 100)), live(&sample(3, 6, 10))];
        let totals = allocated.totals(ProfileType::Alloc, alive.iter());
        // Line 6 is in use and was never added: as when there was no room for it.
        assert_eq!(values(&totals), [(5, [3, 300, 1, 100]), (6, [0, 0, 1, 10])]);
        let totals = allocated.totals(ProfileType::Pools, alive.iter());
        assert_eq!(values(&totals), [(5, [1, 7, 0, 0])]);
    }

    #[test]
    fn who_asks_at_once_gets_the_same_answer() {
        let mut allocated = allocated(&Room::new(MAX_FRAMES));
        allocated.add(ProfileType::Alloc, &sample(1, 5, 100));
        assert!(allocated.answer(ProfileType::Alloc).is_none());
        let first = allocated.totals(ProfileType::Alloc, [].iter());
        allocated.add(ProfileType::Alloc, &sample(1, 5, 100));
        let again = allocated.answer(ProfileType::Alloc).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert!(allocated.answer(ProfileType::Pools).is_none());
        // As if it was long ago.
        let old = Instant::now().checked_sub(FRESH).unwrap();
        allocated.by_type[0].answer.as_mut().unwrap().0 = old;
        assert!(allocated.answer(ProfileType::Alloc).is_none());
        allocated.forget_answers();
        assert!(allocated.by_type[0].answer.is_none());
        let later = allocated.totals(ProfileType::Alloc, [].iter());
        assert_eq!(values(&later), [(5, [2, 200, 0, 0])]);
    }

    #[test]
    fn what_has_no_room_is_counted_and_what_was_counted_stays() {
        const N_STACKS: u32 = 10_000;
        let room = Room::new(4000);
        let mut first = allocated(&room);
        let mut before = 0;
        for line in 1..=N_STACKS {
            first.add(ProfileType::Alloc, &sample(1, line, 10));
            if line % 1000 == 0 {
                let totals = first.totals(ProfileType::Alloc, [].iter());
                let of_stacks: i64 = totals.stacks.iter().map(|(_, values)| values[1]).sum();
                let sum = of_stacks + totals.other[1];
                assert_eq!(sum, i64::from(line) * 10);
                assert!(sum > before);
                before = sum;
            }
        }
        let totals = first.totals(ProfileType::Alloc, [].iter());
        // A quarter of the room, one frame each.
        assert_eq!(totals.stacks.len(), 4000 / 4 / (1 + STACK_OVERHEAD));
        // Known ones go on.
        first.add(ProfileType::Alloc, &sample(1, 1, 10));
        let totals = first.totals(ProfileType::Alloc, [].iter());
        assert_eq!(values(&totals)[0], (1, [2, 20, 0, 0]));
        // Others have their parts, until nothing is left; who ends gives it back.
        let fill = |program: &mut Allocated| {
            for line in 1..=N_STACKS {
                program.add(ProfileType::Mmap, &sample(1, line, 10));
            }
            program.by_type[0].by_stack.len()
        };
        let mut others: Vec<Allocated> = (0..4).map(|_| allocated(&room)).collect();
        let filled: Vec<usize> = others.iter_mut().map(fill).collect();
        assert_eq!(filled, [200, 200, 200, 0]);
        drop(first);
        assert_eq!(fill(&mut others[3]), 200);
        drop(others);
        assert_eq!(room.taken.load(Ordering::Relaxed), 0);
    }
}
