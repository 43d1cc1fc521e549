//! What of a process's sampled allocations is in use now, by line; and what is known of its probes.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::live_blocks::LiveBlocks;
use super::prober::ProbeChange;
use crate::format::duration_text;
use crate::ids::Pid;
use crate::profile::aggregate::ResolvedFrame;
use crate::profile::in_use::{BlockInUse, InUse, LineInUse, LineName, ProbeState};
use crate::profile::model::{FrameKind, ProfileType};

/// Processes whose probes are remembered.
const MAX_PROCESSES: usize = 100;

/// Deeper frames are left out of an example.
const MAX_EXAMPLE_FRAMES: usize = 64;

/// What is known of the probes of processes.
#[derive(Debug, Default)]
pub(super) struct ProbeStates {
    by_process: BTreeMap<Pid, ProbeState>,
    /// Processes that began meanwhile, and the longest time that one of them ran without probes.
    n_late: u64,
    longest_delay: Duration,
}

impl ProbeStates {
    /// Takes what happened to a process's probes. A note is in words, for profiles.
    pub(super) fn change(&mut self, pid: Pid, change: &ProbeChange, note: Option<&str>) {
        let state = self.by_process.entry(pid).or_default();
        state.is_settled = true;
        match change {
            ProbeChange::Placed {
                delay,
                types,
                has_arenas,
                ..
            } => {
                if let (Some(delay), true) = (delay, state.seen.is_empty()) {
                    self.n_late += 1;
                    self.longest_delay = self.longest_delay.max(*delay);
                }
                state.has_arenas |= has_arenas;
                for profile_type in types {
                    if !state.seen.contains(profile_type) {
                        state.seen.push(*profile_type);
                    }
                }
            }
            ProbeChange::Removed { types, .. } => state.seen.retain(|it| !types.contains(it)),
            ProbeChange::Missing(_) => {}
        }
        state.notes.extend(note.map(str::to_owned));
        if self.by_process.len() > MAX_PROCESSES {
            self.by_process.pop_first();
        }
    }

    /// What is not seen, of all processes.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        let late = (self.n_late > 0).then(|| {
            format!(
                "processes that began meanwhile: {}; what they allocated before their probes stood, up to {} after their \
                 begin, is not in it",
                self.n_late,
                duration_text(self.longest_delay)
            )
        });
        let notes = self.by_process.values().flat_map(|state| &state.notes);
        late.into_iter().chain(notes.cloned())
    }

    fn of(&self, pid: Pid) -> ProbeState {
        self.by_process.get(&pid).cloned().unwrap_or_default()
    }
}

/// Answers for one process.
pub(super) fn in_use(live: &mut LiveBlocks, probes: &ProbeStates, pid: Pid, at_ns: u64) -> InUse {
    // Many blocks share a stack: its line is looked for once.
    let mut stacks: HashMap<(ProfileType, usize), (Vec<ResolvedFrame>, Vec<BlockInUse>)> =
        HashMap::new();
    for (source, frames, block) in live.blocks(pid, at_ns) {
        let (_, blocks) = stacks
            .entry((source, frames.as_ptr() as usize))
            .or_insert_with(|| (frames.to_vec(), Vec::new()));
        blocks.push(block);
    }
    let mut lines: HashMap<(ProfileType, LineName), (i64, LineInUse)> = HashMap::new();
    for ((source, _), (frames, blocks)) in stacks {
        let stack: Vec<LineName> = frames
            .iter()
            .filter(|frame| frame.function.kind == FrameKind::Python)
            .take(MAX_EXAMPLE_FRAMES)
            .map(line_name)
            .collect();
        let leaf = stack.first().cloned().unwrap_or_default();
        let n_bytes = blocks.iter().map(|block| block.n_bytes).sum();
        let (most, entry) = lines.entry((source, leaf.clone())).or_insert_with(|| {
            let empty = LineInUse {
                source,
                line: leaf,
                stack: Vec::new(),
                blocks: Vec::new(),
            };
            (i64::MIN, empty)
        });
        if n_bytes > *most {
            *most = n_bytes;
            entry.stack = stack;
        }
        entry.blocks.extend(blocks);
    }
    InUse {
        at_ns,
        lines: lines.into_values().map(|(_, line)| line).collect(),
        probes: probes.of(pid),
    }
}

fn line_name(frame: &ResolvedFrame) -> LineName {
    LineName {
        function: frame.function.name.clone().into(),
        file: frame.function.filename.clone().into(),
        line: frame.line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_is_what_was_placed_and_not_taken_away() {
        let mut states = ProbeStates::default();
        let pid = Pid(7);
        assert!(!states.of(pid).is_settled);
        let placed = ProbeChange::Placed {
            types: vec![ProfileType::Pools, ProfileType::Alloc],
            delay: None,
            has_arenas: false,
            names: String::new(),
        };
        states.change(pid, &placed, None);
        states.change(pid, &placed, None);
        assert_eq!(
            states.of(pid).seen,
            [ProfileType::Pools, ProfileType::Alloc]
        );
        let removed = ProbeChange::Removed {
            types: vec![ProfileType::Alloc],
            reason: String::new(),
        };
        states.change(pid, &removed, Some("too dear"));
        let state = states.of(pid);
        assert_eq!(state.seen, [ProfileType::Pools]);
        assert!(state.is_settled);
        assert_eq!(state.notes, ["too dear"]);
        assert_eq!(states.notes().count(), 1);
        for pid in 0..1000 {
            states.change(Pid(pid), &placed, None);
        }
        assert_eq!(states.by_process.len(), MAX_PROCESSES);
    }
}
