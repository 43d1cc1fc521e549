//! Profiles that are being taken, and how they end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Engine, holds_gil};
use crate::agent::boot_ns;
use crate::agent::huge_faults::Rest;
use crate::agent::live_blocks::Part;
use crate::heap::parts;
use crate::ids::Generation;
use crate::process::resident;
use crate::profile::aggregate::{Aggregator, ResolvedSample, Taken};
use crate::profile::model::{Profile, ProfileType};
use crate::profile::query::{ProcessFilter, Viewer};
use crate::profile::window::OF_ALL_PROCESSES;
use crate::python::process::PythonProcess;
use crate::sample::decode::RawSample;
use crate::serve::query::{CounterValue, PullError};
use crate::track::process::filtered;
use crate::view::memory::parts::parts_text;

/// Processes of a profile of memory of which it is said what their memory is made of: those that have most.
const MAX_PARTS_NOTES: usize = 5;

/// Remark in profiles of allocations.
pub(super) const ALLOCATION_NOTE: &str =
    "memory that was allocated before the probes were placed is not in it";

/// Who gets a profile.
pub(super) enum Consumer {
    Pull(oneshot::Sender<Result<Profile, PullError>>),
    Recording(oneshot::Sender<Profile>),
}

impl Consumer {
    pub(super) fn reply(self, profile: Profile) {
        // Whoever asked may have left.
        match self {
            Self::Pull(reply) => drop(reply.send(Ok(profile))),
            Self::Recording(reply) => drop(reply.send(profile)),
        }
    }
}

/// A profile that is being taken.
pub(super) struct Pull {
    pub(super) profile_type: ProfileType,
    pub(super) filter: ProcessFilter,
    /// What the filter said of each program.
    pub(super) decided: HashMap<Generation, bool>,
    pub(super) aggregator: Aggregator,
    pub(super) begun: Instant,
    /// The same on the clock of the samples.
    pub(super) begun_ns: u64,
    pub(super) duration: Option<Duration>,
    /// Wall time of the samples' clock at its 0; `None`: when samples were taken is not kept.
    pub(super) clock_ns: Option<i64>,
    pub(super) consumer: Consumer,
    /// Counters at the begin; what grew since goes into the profile's comments.
    pub(super) counters: Vec<CounterValue>,
}

impl Pull {
    pub(super) fn add(
        &mut self,
        sample: &RawSample,
        resolved: &ResolvedSample,
        process: &PythonProcess,
        show_cmdline: bool,
    ) {
        let is_meant = self.means(sample.generation, process, show_cmdline);
        if is_meant && self.contains(sample.time_ns) {
            let at_ns = self.clock_ns;
            let taken = Taken {
                holds_gil: holds_gil(sample),
                at_ns: at_ns.map(|clock_ns| clock_ns.saturating_add_unsigned(sample.time_ns)),
            };
            self.aggregator.add_taken(resolved, taken);
            if self.profile_type == ProfileType::Cpu {
                self.aggregator.set_period(resolved.values[1]);
            }
        }
    }

    /// Whether the filter means this program.
    pub(super) fn means(
        &mut self,
        generation: Generation,
        process: &PythonProcess,
        show_cmdline: bool,
    ) -> bool {
        let filter = &self.filter;
        *self
            .decided
            .entry(generation)
            .or_insert_with(|| matches(filter, process, show_cmdline))
    }

    /// More is known of a program than when it was decided whether it is meant, such as its pod.
    pub(super) fn decide_again(&mut self, process: &PythonProcess, show_cmdline: bool) {
        if let Some(is_meant) = self.decided.get_mut(&process.generation) {
            *is_meant = matches(&self.filter, process, show_cmdline);
        }
    }

    /// Adds to what has the stack of an allocation.
    pub(super) fn add_part(&mut self, part: &Part) {
        if self.decided.get(&part.generation) == Some(&true) {
            self.aggregator.add_values(
                part.frames(),
                part.labels(),
                part.own_labels(),
                part.values,
            );
        }
    }

    /// Adds to a sample that was added before.
    pub(super) fn add_rest(&mut self, rest: &Rest) {
        if self.decided.get(&rest.generation) == Some(&true) && self.contains(rest.time_ns) {
            self.aggregator.add(&rest.resolved);
        }
    }

    /// Whether a moment belongs to it, by the clock of the samples.
    pub(super) fn contains(&self, time_ns: u64) -> bool {
        let length_ns = self.duration.map_or(u128::MAX, |length| length.as_nanos());
        time_ns
            .checked_sub(self.begun_ns)
            .is_some_and(|age_ns| u128::from(age_ns) <= length_ns)
    }

    /// Whether its time was over at this moment. It is finished when the samples until then were delivered, late
    /// as they may be: the host can be busy, and symbols can take seconds to read.
    pub(super) fn is_over(&self, at: Instant) -> bool {
        let age = at.saturating_duration_since(self.begun);
        self.duration.is_some_and(|length| age >= length)
    }

    /// Nobody waits for it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.consumer {
            Consumer::Pull(reply) => reply.is_closed(),
            Consumer::Recording(reply) => reply.is_closed(),
        }
    }
}

/// What the memory of a process is made of, in words; `None`: it has ended, or cannot be read.
pub(super) fn parts_of(process: &PythonProcess) -> Option<String> {
    let parts = parts::of_process(process.pid, &process.interpreter).ok()?;
    Some(format!(
        "process {} has {}",
        process.pid,
        parts_text(&parts)
    ))
}

/// Whether a client's filter means this process; without `show_cmdline` it sees program and script alone.
pub(super) fn matches(filter: &ProcessFilter, process: &PythonProcess, show_cmdline: bool) -> bool {
    let pids = &filter.include.pids;
    if !pids.is_empty() && !pids.contains(&process.pid.0) {
        // Looked at first, since scrapers ask for one process of thousands again and again.
        return false;
    }
    let facts = &process.facts;
    filter.matches(&filtered(facts, &facts.cmdline(show_cmdline), filter))
}

impl Engine {
    /// Why there can be no profile of this type and these processes; `None`: there can be.
    pub(super) fn why_not(
        &self,
        profile_type: ProfileType,
        filter: &ProcessFilter,
    ) -> Option<PullError> {
        let is_meant = |process| matches(filter, process, self.parts.show_cmdline);
        if self.stopping.is_some() {
            Some(PullError::Stopping)
        } else if !self.parts.config.types.contains(&profile_type) {
            Some(PullError::NotSampled(profile_type))
        } else if !self.symbolizer.processes().any(|it| is_meant(it)) {
            Some(PullError::NoMatch)
        } else {
            None
        }
    }

    pub(super) fn finish_pulls(&mut self, is_done: impl Fn(&Pull) -> bool) {
        if !self.pulls.iter().any(&is_done) {
            return;
        }
        let settled = self.huge_faults.settled(u64::MAX);
        self.add_rests(settled);
        self.finish_allocations(&is_done);
        self.symbolizer.settle_names();
        let (done, going): (Vec<Pull>, Vec<Pull>) = std::mem::take(&mut self.pulls)
            .into_iter()
            .partition(is_done);
        self.pulls = going;
        for pull in done {
            self.finish(pull);
        }
    }

    /// Adds what is in use, and was at the peak, to the profiles that end.
    pub(super) fn finish_allocations(&mut self, is_done: impl Fn(&Pull) -> bool) {
        let is_meant = |pull: &Pull| pull.profile_type.is_of_allocations() && is_done(pull);
        if !self.pulls.iter().any(is_meant) {
            return;
        }
        let parts = self.live.parts(boot_ns());
        for pull in self.pulls.iter_mut().filter(|pull| is_meant(pull)) {
            for part in &parts {
                let process = self.symbolizer.process(part.generation);
                if let Some(process) = process.filter(|_| part.profile_type == pull.profile_type)
                    && pull.means(part.generation, process, self.parts.show_cmdline)
                {
                    pull.add_part(part);
                }
            }
        }
    }

    pub(super) fn finish(&self, pull: Pull) {
        let mut comments = self.comments(&pull.counters);
        if !pull.filter.is_all() && !comments.is_empty() {
            comments.push(OF_ALL_PROCESSES.to_owned());
        }
        if pull.profile_type.is_of_allocations() {
            comments.push(ALLOCATION_NOTE.to_owned());
            // They name processes.
            if pull.filter.viewer == Viewer::All {
                comments.extend(self.probe_states.notes());
            }
        }
        let elapsed = pull.begun.elapsed();
        let length = pull.duration.map_or(elapsed, |length| length.min(elapsed));
        if pull.duration.is_some_and(|wanted| length < wanted) {
            comments.push(format!(
                "the agent was stopped after {:.1} s",
                length.as_secs_f64()
            ));
        }
        let is_of_memory = pull.profile_type != ProfileType::Cpu;
        let processes = if is_of_memory {
            self.largest(&pull)
        } else {
            Vec::new()
        };
        let mut pull = pull;
        pull.aggregator.name_threads(self.symbolizer.newest_names());
        let profile = pull.aggregator.finish(length, comments);
        if processes.is_empty() {
            pull.consumer.reply(profile);
            return;
        }
        // That takes a while for large ones: samples are not kept waiting.
        std::thread::spawn(move || {
            let mut profile = profile;
            let parts = processes.iter().filter_map(|process| parts_of(process));
            profile.comments.extend(parts);
            pull.consumer.reply(profile);
        });
    }

    /// The processes of a profile that have most memory resident.
    pub(super) fn largest(&self, pull: &Pull) -> Vec<Arc<PythonProcess>> {
        let is_meant =
            |process: &&Arc<PythonProcess>| pull.decided.get(&process.generation) == Some(&true);
        let mut processes: Vec<(u64, &Arc<PythonProcess>)> = self
            .symbolizer
            .processes()
            .filter(is_meant)
            .filter_map(|process| Some((resident::total(process.pid)?, process)))
            .collect();
        processes.sort_unstable_by_key(|(n_bytes, _)| std::cmp::Reverse(*n_bytes));
        processes.truncate(MAX_PARTS_NOTES);
        processes
            .into_iter()
            .map(|(_, process)| process.clone())
            .collect()
    }
}
