//! Sampled allocations that are alive: what is in use now, and what was when a process had most memory resident.
//!
//! What was alive at the peak is not copied: it is what was allocated before the peak and is alive still, and what was
//! given back since.

mod ranges;
mod totals;

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::ranges::{Divide, Ranges};
pub(super) use self::totals::FRESH;
use self::totals::{Allocated, MAX_FRAMES, Room};
use crate::ids::{Address, Generation, Pid};
use crate::process::block::{Block, Release};
use crate::process::memory::{ProcessMemory, ReadMemory as _};
use crate::process::resident;
use crate::profile::aggregate::{
    OwnLabels, ProcessLabels, ResolvedFrame, ResolvedSample, ThreadLabels,
};
use crate::profile::in_use::BlockInUse;
use crate::profile::instructions::Instruction;
use crate::profile::model::{ProfileType, Values, age_class};
use crate::profile::totals::ProgramTotals;
use crate::sample::decode::RawSample;

/// The resident memory is looked at as often as this at most, when allocations come.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Whether pools are still in use is looked at as often as this at most, and whenever a profile ends.
const POOL_INTERVAL: Duration = Duration::from_secs(1);

/// A stack with its thread; equal ones are shared.
#[derive(Debug)]
struct Stack {
    frames: Vec<ResolvedFrame>,
    labels: Arc<ThreadLabels>,
    instruction: Option<Instruction>,
}

impl Stack {
    fn keys(&self) -> impl Iterator<Item = (usize, u32, u64)> {
        let key = |it: &ResolvedFrame| (Arc::as_ptr(&it.function) as usize, it.line, it.address);
        self.frames.iter().map(key)
    }
}

impl PartialEq for Stack {
    /// By the addresses of functions and labels, which it keeps alive.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.labels, &other.labels)
            && self.instruction == other.instruction
            && self.keys().eq(other.keys())
    }
}

impl Eq for Stack {}

impl Hash for Stack {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.labels) as usize, self.instruction).hash(state);
        self.keys().for_each(|key| key.hash(state));
    }
}

/// A sampled allocation.
#[derive(Debug)]
struct Live {
    profile_type: ProfileType,
    stack: Arc<Stack>,
    /// What it stands for.
    n_objects: i64,
    n_bytes: i64,
    /// Its own size.
    size: u64,
    allocated_ns: u64,
}

impl Divide for Live {
    /// A mapping is one object as long as any of it is there.
    fn take(&mut self, part: u64, whole: u64) -> Self {
        let n_bytes = i128::from(self.n_bytes) * i128::from(part) / i128::from(whole.max(1));
        let n_bytes = n_bytes as i64;
        self.n_bytes -= n_bytes;
        Self {
            profile_type: self.profile_type,
            stack: self.stack.clone(),
            n_objects: 0,
            n_bytes,
            size: part,
            allocated_ns: self.allocated_ns,
        }
    }
}

/// The allocations of one program.
#[derive(Debug)]
struct Program {
    generation: Generation,
    blocks: HashMap<(u8, Address), Live>,
    /// What it has mapped, which may go in parts.
    mappings: Ranges<Live>,
    peak: Peak,
    looked: Option<Instant>,
    pools_looked: Option<Instant>,
    allocated: Allocated,
}

/// When a program had most memory resident.
#[derive(Debug, Default)]
struct Peak {
    n_bytes: u64,
    at_ns: u64,
    /// What was alive then and was given back since.
    released: HashMap<Arc<Stack>, (ProfileType, i64)>,
}

impl Peak {
    fn release(&mut self, live: &Live, released_ns: u64) {
        // What is told late was given back before the peak, for all that.
        if live.allocated_ns <= self.at_ns && released_ns > self.at_ns {
            let entry = self.released.entry(live.stack.clone());
            entry.or_insert((live.profile_type, 0)).1 += live.n_bytes;
        }
    }
}

/// Values that are to be added to a profile.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) generation: Generation,
    pub(super) profile_type: ProfileType,
    stack: Arc<Stack>,
    /// How old it is, if it is in use.
    age: Option<&'static str>,
    pub(super) values: Values,
}

impl Part {
    /// Leaf first.
    pub(super) fn frames(&self) -> &[ResolvedFrame] {
        &self.stack.frames
    }

    pub(super) fn labels(&self) -> &Arc<ThreadLabels> {
        &self.stack.labels
    }

    /// Those beside the thread's.
    pub(super) fn own_labels(&self) -> OwnLabels {
        OwnLabels {
            age: self.age,
            instruction: self.stack.instruction,
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct LiveBlocks {
    programs: HashMap<Pid, Program>,
    stacks: HashSet<Arc<Stack>>,
    /// Number of stacks at which those that nobody needs any more are dropped.
    max_stacks: usize,
    /// What is given back within this time is temporary.
    temporary: Duration,
    /// For the stacks of all that was allocated.
    room: Room,
}

impl LiveBlocks {
    /// `has_totals`: whether somebody may ask for [`Self::totals`].
    pub(super) fn new(temporary: Duration, has_totals: bool) -> Self {
        Self {
            room: Room::new(if has_totals { MAX_FRAMES } else { 0 }),
            programs: HashMap::new(),
            stacks: HashSet::new(),
            max_stacks: 1024,
            temporary,
        }
    }

    /// An allocation was sampled; the first two of its values are known.
    pub(super) fn add(
        &mut self,
        profile_type: ProfileType,
        sample: &RawSample,
        resolved: &ResolvedSample,
        now_ns: u64,
    ) {
        let stack = self.shared(resolved);
        let process = &resolved.labels.process;
        let new = || Program::new(sample.generation, process.clone(), self.room.share());
        let program = self.programs.entry(sample.pid).or_insert_with(new);
        if program.generation != sample.generation {
            // The end of the one before was not told.
            *program = new();
        }
        program.allocated.add(profile_type, resolved);
        let live = Live {
            profile_type,
            stack,
            n_objects: resolved.values[0],
            n_bytes: resolved.values[1],
            size: sample.n_bytes,
            allocated_ns: sample.time_ns,
        };
        let replaced = if profile_type == ProfileType::Mmap {
            let start = sample.address.0;
            program.mappings.insert(start, sample.n_bytes, live)
        } else {
            let unnoticed = program.blocks.insert((sample.source, sample.address), live);
            unnoticed.into_iter().collect()
        };
        for live in replaced {
            // Its release was not seen, or is this.
            program.peak.release(&live, sample.time_ns);
        }
        if program
            .looked
            .is_none_or(|at| at.elapsed() >= LOOK_INTERVAL)
        {
            program.look(sample.pid, now_ns);
        }
    }

    /// Memory was given back. What was temporary is to be added to the profiles.
    pub(super) fn release(&mut self, release: Release) -> Vec<Part> {
        let Block {
            pid,
            source,
            address,
        } = release.block;
        let Some(program) = self.programs.get_mut(&pid) else {
            return Vec::new();
        };
        let released = if release.n_bytes > 0 {
            program.mappings.remove(address.0, release.n_bytes)
        } else {
            program
                .blocks
                .remove(&(source, address))
                .into_iter()
                .collect()
        };
        let temporary = self.temporary;
        let generation = program.generation;
        for live in &released {
            program.peak.release(live, release.time_ns);
        }
        let age =
            |live: &Live| Duration::from_nanos(release.time_ns.saturating_sub(live.allocated_ns));
        let temporary = released.into_iter().filter(|live| age(live) <= temporary);
        let part = |live: Live| Part {
            generation,
            profile_type: live.profile_type,
            stack: live.stack,
            age: None,
            values: [0, 0, 0, 0, 0, live.n_bytes].into(),
        };
        temporary.map(part).collect()
    }

    /// Looks at the resident memory of all.
    pub(super) fn look(&mut self, now_ns: u64) {
        for (pid, program) in &mut self.programs {
            program.look(*pid, now_ns);
            program.allocated.forget_answers();
        }
    }

    /// What programs have allocated since their probes were placed, and what of it is in use, in the order of their process
    /// ids; none but these, where there are any.
    pub(super) fn totals(
        &mut self,
        profile_type: ProfileType,
        pids: &[u32],
        now_ns: u64,
        mut is_meant: impl FnMut(Generation) -> bool,
    ) -> Vec<Arc<ProgramTotals>> {
        let mut pids: Vec<Pid> = if pids.is_empty() {
            self.programs.keys().copied().collect()
        } else {
            pids.iter().copied().map(Pid).collect()
        };
        pids.sort_unstable();
        pids.dedup();
        let totals = pids.into_iter().filter_map(|pid| {
            let program = self.programs.get_mut(&pid)?;
            is_meant(program.generation).then(|| program.totals(pid, profile_type, now_ns))
        });
        totals.collect()
    }

    /// What is in use now, and what was at the peaks.
    pub(super) fn parts(&mut self, now_ns: u64) -> Vec<Part> {
        let mut parts = Vec::new();
        for (pid, program) in &mut self.programs {
            program.look(*pid, now_ns);
            program.look_at_pools(*pid, now_ns);
            parts.extend(program.parts(Some(now_ns)));
        }
        parts
    }

    /// What is in use now of one process, each with its frames, leaf first. Those who share a stack have their frames at the
    /// same address.
    pub(super) fn blocks(
        &mut self,
        pid: Pid,
        now_ns: u64,
    ) -> impl Iterator<Item = (ProfileType, &[ResolvedFrame], BlockInUse)> {
        let program = self.programs.get_mut(&pid);
        let program = program.map(|program| {
            program.look_at_pools(pid, now_ns);
            &*program
        });
        let blocks = program.into_iter().flat_map(|it| it.blocks.values());
        blocks.map(|live| {
            let block = BlockInUse {
                at_ns: live.allocated_ns,
                n_bytes: live.n_bytes,
                size: live.size,
            };
            (live.profile_type, live.stack.frames.as_slice(), block)
        })
    }

    /// Forgets a program that has ended: what was alive at its peak, and the memory that nobody will give back.
    pub(super) fn end(&mut self, generation: Generation, now_ns: u64) -> (Vec<Part>, Vec<Block>) {
        let ended: Vec<Pid> = self
            .programs
            .iter()
            .filter(|(_, program)| program.generation == generation)
            .map(|(pid, _)| *pid)
            .collect();
        let (mut parts, mut blocks) = (Vec::new(), Vec::new());
        for pid in ended {
            let Some(mut program) = self.programs.remove(&pid) else {
                continue;
            };
            if program.peak.at_ns == 0 {
                // It was too short to be looked at.
                program.peak.at_ns = now_ns;
            }
            parts.extend(program.parts(None));
            blocks.extend(program.blocks.keys().map(|(source, address)| Block {
                pid,
                source: *source,
                address: *address,
            }));
        }
        (parts, blocks)
    }

    fn shared(&mut self, resolved: &ResolvedSample) -> Arc<Stack> {
        let stack = Stack {
            frames: resolved.frames.clone(),
            labels: resolved.labels.clone(),
            instruction: resolved.instruction,
        };
        if let Some(shared) = self.stacks.get(&stack) {
            return shared.clone();
        }
        if self.stacks.len() >= self.max_stacks {
            self.stacks.retain(|stack| Arc::strong_count(stack) > 1);
            self.max_stacks = (2 * self.stacks.len()).max(1024);
        }
        let stack = Arc::new(stack);
        self.stacks.insert(stack.clone());
        stack
    }
}

impl Program {
    fn new(generation: Generation, process: Arc<ProcessLabels>, room: Room) -> Self {
        Self {
            generation,
            blocks: HashMap::new(),
            mappings: Ranges::default(),
            peak: Peak::default(),
            looked: None,
            pools_looked: None,
            allocated: Allocated::new(room, process),
        }
    }

    fn totals(&mut self, pid: Pid, profile_type: ProfileType, now_ns: u64) -> Arc<ProgramTotals> {
        if let Some(answer) = self.allocated.answer(profile_type) {
            return answer;
        }
        if profile_type == ProfileType::Pools {
            self.look_at_pools(pid, now_ns);
        }
        let alive = self.blocks.values().chain(self.mappings.values());
        self.allocated.totals(profile_type, alive)
    }

    fn look(&mut self, pid: Pid, now_ns: u64) {
        self.looked = Some(Instant::now());
        let is_more = |n_bytes: &u64| *n_bytes > self.peak.n_bytes;
        let Some(n_bytes) = resident::total(pid).filter(is_more) else {
            return;
        };
        if self
            .pools_looked
            .is_none_or(|at| at.elapsed() >= POOL_INTERVAL)
        {
            self.look_at_pools(pid, now_ns);
        }
        self.peak = Peak {
            n_bytes,
            at_ns: now_ns,
            released: HashMap::new(),
        };
    }

    /// Releases pools that have no object any more: no function is called for that. Their first word counts the objects
    /// (`pool_header.ref.count`).
    fn look_at_pools(&mut self, pid: Pid, now_ns: u64) {
        /// Arenas are larger: they are given back at a probe.
        const MAX_POOL_BYTES: u64 = 1 << 14;
        self.pools_looked = Some(Instant::now());
        let memory = ProcessMemory::new(pid);
        let peak = &mut self.peak;
        self.blocks.retain(|(_, address), live| {
            let is_pool = live.profile_type == ProfileType::Pools && live.size <= MAX_POOL_BYTES;
            if !is_pool {
                return true;
            }
            let is_in_use = memory
                .read_u32(*address)
                .is_ok_and(|n_objects| n_objects > 0);
            if !is_in_use {
                peak.release(live, now_ns);
            }
            is_in_use
        });
    }

    /// What is alive, and what was at the peak. `in_use_at`: nanoseconds since boot; `None`: it has ended, so that nothing is
    /// in use any more.
    fn parts(&self, in_use_at: Option<u64>) -> Vec<Part> {
        let alive = self.blocks.values().chain(self.mappings.values());
        let alive = alive.map(|live| {
            let age = in_use_at.map(|now_ns| {
                let age_ns = now_ns.saturating_sub(live.allocated_ns);
                age_class(Duration::from_nanos(age_ns))
            });
            let (n_objects, n_bytes) = age.map_or((0, 0), |_| (live.n_objects, live.n_bytes));
            let peak = if live.allocated_ns <= self.peak.at_ns {
                live.n_bytes
            } else {
                0
            };
            (
                live.profile_type,
                &live.stack,
                age,
                [0, 0, n_objects, n_bytes, peak, 0],
            )
        });
        let released = self.peak.released.iter();
        let released = released.map(|(stack, (profile_type, n_bytes))| {
            (*profile_type, stack, None, [0, 0, 0, 0, *n_bytes, 0])
        });
        alive
            .chain(released)
            .map(|(profile_type, stack, age, values)| Part {
                generation: self.generation,
                profile_type,
                stack: stack.clone(),
                age,
                values: values.into(),
            })
            .collect()
    }
}
