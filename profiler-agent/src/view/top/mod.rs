//! `pyagent top`: which functions use the CPU now, and which did since the begin. What was seen ([`Top`]), what the user
//! chose ([`Ui`]), and how it is laid out: on a terminal ([`draw`]), as text, as JSON. No I/O.
//!
//! Percentages are those of py-spy's top: of the time that one CPU has, so that two threads can have 200 % together.

mod draw;
mod kept;
mod keys;
mod table;
mod text;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

pub use self::draw::draw;
use self::kept::Kept;
pub use self::keys::{Outcome, Ui};
pub use self::table::{Choice, Row, SortKey, Span};
pub use self::text::{json, text};
use crate::profile::measure::Measure;
use crate::profile::model::Profile;
use crate::profile::window::Remarks;

/// Looks of which the CPU time is kept for the curve: more than the three minutes that it shows.
const MAX_HISTORY: usize = 200;

/// Processes that are kept; those that have ended go first.
const MAX_PROCESSES: usize = 8192;

/// One look: the samples of some time, and how sampling went.
#[derive(Debug, Default)]
pub struct Look {
    /// The samples; `None`: no process was profiled.
    pub profile: Option<Profile>,
    /// Over so much time.
    pub length: Duration,
    /// How sampling is going; `None`: that is not told.
    pub vitals: Option<Vitals>,
    /// The processes that are profiled now; `None`: that is not told.
    pub processes: Option<Vec<Listed>>,
}

/// How sampling is going. What is counted is counted since the agent's begin.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Vitals {
    /// Samples a second on each CPU.
    pub rate_hz: f64,
    /// CPUs that are online.
    pub n_cpus: u32,
    /// Samples that were lost, of whatever process.
    pub n_lost: u64,
    /// Samples of which it was known whether their thread held the global interpreter lock; `None`: an agent that does not
    /// say so.
    pub n_gil_known: Option<u64>,
    /// Those whose thread held it.
    pub n_gil_held: u64,
}

/// A process that is profiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub pid: u32,
    /// What it runs.
    pub name: String,
    /// Version of its interpreter.
    pub python_version: String,
}

/// A process that was seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Process {
    name: String,
    python_version: String,
    /// It is profiled, as far as that is known.
    is_running: bool,
    /// CPU time of the last look, in nanoseconds.
    current_ns: i64,
    /// The same since the begin.
    whole_ns: i64,
    n_samples: i64,
    n_current_samples: i64,
    history: History,
}

/// The CPU time of the last looks in CPUs: 1.5 is one and a half. The last one is the newest.
#[derive(Debug, Clone, Default)]
pub(super) struct History(VecDeque<f32>);

impl History {
    fn push(&mut self, n_cpus: f64) {
        if self.0.len() == MAX_HISTORY {
            self.0.pop_front();
        }
        self.0.push_back(n_cpus as f32);
    }
}

/// What was seen since the begin, and in the last look.
#[derive(Debug, Clone)]
pub struct Top {
    begun: SystemTime,
    kept: Kept,
    processes: BTreeMap<u32, Process>,
    /// Length of the last look, and of all.
    length: Duration,
    elapsed: Duration,
    current_ns: i64,
    whole_ns: i64,
    n_samples: i64,
    n_current_samples: i64,
    history: History,
    /// Before the first look, before the last one, and now.
    vitals: [Option<Vitals>; 3],
    /// Of the last look, and of all.
    remarks: [Remarks; 2],
    ended: Option<String>,
}

impl Top {
    /// Nothing was seen yet. The vitals are those of this moment.
    #[must_use]
    pub fn new(begun: SystemTime, vitals: Option<Vitals>) -> Self {
        Self {
            begun,
            kept: Kept::default(),
            processes: BTreeMap::new(),
            length: Duration::ZERO,
            elapsed: Duration::ZERO,
            current_ns: 0,
            whole_ns: 0,
            n_samples: 0,
            n_current_samples: 0,
            history: History::default(),
            vitals: [vitals; 3],
            remarks: [Remarks::default(), Remarks::default()],
            ended: None,
        }
    }

    /// Forgets what was seen, but not which processes run, and whose the picture is: that of the process that was chosen, or of
    /// the only one.
    pub fn reset(&mut self, now: SystemTime, chosen: Option<u32>) {
        let mut fresh = Self::new(now, self.vitals[2]);
        fresh.ended = self.ended.take();
        let is_only = self.processes.len() == 1;
        let known = std::mem::take(&mut self.processes).into_iter();
        fresh.processes = known
            .filter(|(pid, process)| process.is_running || is_only || Some(*pid) == chosen)
            .map(|(pid, known)| {
                let process = Process {
                    name: known.name,
                    python_version: known.python_version,
                    is_running: known.is_running,
                    ..Process::default()
                };
                (pid, process)
            })
            .collect();
        *self = fresh;
    }

    /// Adds a look.
    pub fn add(&mut self, look: Look) {
        self.length = look.length;
        self.elapsed += look.length;
        self.vitals[1] = self.vitals[2];
        if look.vitals.is_some() {
            self.vitals[2] = look.vitals;
            for vitals in &mut self.vitals[..2] {
                *vitals = vitals.or(look.vitals);
            }
        }
        for process in self.processes.values_mut() {
            (process.current_ns, process.n_current_samples) = (0, 0);
        }
        (self.current_ns, self.n_current_samples) = (0, 0);
        if let Some(listed) = look.processes {
            self.list(listed);
        }
        self.kept.begin_look();
        self.remarks[0] = Remarks::default();
        if let Some(profile) = &look.profile {
            self.add_profile(profile);
            for remarks in &mut self.remarks {
                remarks.add(profile.comments.iter().map(String::as_str));
            }
        }
        let seconds = look.length.as_secs_f64().max(1e-3);
        for process in self.processes.values_mut() {
            process
                .history
                .push(process.current_ns as f64 / 1e9 / seconds);
        }
        self.history.push(self.current_ns as f64 / 1e9 / seconds);
        self.prune();
    }

    /// What was asked for has ended, in words; the view stays as it is.
    pub fn end(&mut self, why: String) {
        for process in self.processes.values_mut() {
            process.is_running = false;
        }
        self.ended = Some(why);
    }

    /// Whether there was a look.
    #[must_use]
    pub fn has_looked(&self) -> bool {
        !self.elapsed.is_zero()
    }

    /// Whether any process was seen.
    #[must_use]
    pub fn has_processes(&self) -> bool {
        !self.processes.is_empty()
    }

    /// Why there will be nothing more.
    #[must_use]
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    fn list(&mut self, listed: Vec<Listed>) {
        for process in self.processes.values_mut() {
            process.is_running = false;
        }
        for Listed {
            pid,
            name,
            python_version,
        } in listed
        {
            let process = self.processes.entry(pid).or_default();
            process.is_running = true;
            (process.name, process.python_version) = (name, python_version);
        }
    }

    fn add_profile(&mut self, profile: &Profile) {
        let measure = Measure::main(profile);
        for sample in &profile.samples {
            let amount = measure.of(sample);
            let thread = profile.thread(sample.labels);
            let process = self.processes.entry(u32::try_from(thread.pid).unwrap_or(0));
            let process = process.or_insert_with(|| Process {
                // It is not in the list that was made later, or there is none.
                is_running: true,
                ..Process::default()
            });
            if process.name.is_empty() {
                thread.comm.clone_into(&mut process.name);
                thread
                    .python_version
                    .clone_into(&mut process.python_version);
            }
            for (current, whole) in [
                (&mut process.current_ns, &mut process.whole_ns),
                (&mut self.current_ns, &mut self.whole_ns),
            ] {
                *current = current.saturating_add(amount.weight);
                *whole = whole.saturating_add(amount.weight);
            }
            for (current, whole) in [
                (&mut process.n_current_samples, &mut process.n_samples),
                (&mut self.n_current_samples, &mut self.n_samples),
            ] {
                *current = current.saturating_add(amount.n_samples);
                *whole = whole.saturating_add(amount.n_samples);
            }
        }
        self.kept.add(profile, measure);
    }

    /// On a host where processes come and go, those that have gone are forgotten at some time; what they did is kept.
    fn prune(&mut self) {
        let n_more = self.processes.len().saturating_sub(MAX_PROCESSES);
        let gone = self
            .processes
            .iter()
            .filter(|(_, it)| !it.is_running && it.current_ns == 0);
        let gone: Vec<u32> = gone.map(|(pid, _)| *pid).take(n_more).collect();
        for pid in gone {
            self.processes.remove(&pid);
        }
    }

    /// Share of samples whose thread held the global interpreter lock, of those of which that is known.
    fn gil_share(&self, span: Span) -> Gil {
        let before = match span {
            Span::Last => self.vitals[1],
            Span::Whole => self.vitals[0],
        };
        let (Some(before), Some(now)) = (before, self.vitals[2]) else {
            return Gil::NotSaid;
        };
        let (Some(known_before), Some(known)) = (before.n_gil_known, now.n_gil_known) else {
            return Gil::NotSaid;
        };
        match known.saturating_sub(known_before) {
            _ if self.samples(span, None) == 0 => Gil::NoSamples,
            0 => Gil::Unknown,
            n => Gil::Share(now.n_gil_held.saturating_sub(before.n_gil_held) as f64 / n as f64),
        }
    }

    fn samples(&self, span: Span, pid: Option<u32>) -> i64 {
        let process = pid.map(|pid| self.processes.get(&pid));
        match (span, process) {
            (Span::Last, None) => self.n_current_samples,
            (Span::Whole, None) => self.n_samples,
            (Span::Last, Some(process)) => process.map_or(0, |it| it.n_current_samples),
            (Span::Whole, Some(process)) => process.map_or(0, |it| it.n_samples),
        }
    }

    /// CPU time in CPUs: 1.5 is one and a half.
    fn cpus(&self, span: Span, pid: Option<u32>) -> f64 {
        let process = pid.map(|pid| self.processes.get(&pid));
        let ns = match (span, process) {
            (Span::Last, None) => self.current_ns,
            (Span::Whole, None) => self.whole_ns,
            (Span::Last, Some(process)) => process.map_or(0, |it| it.current_ns),
            (Span::Whole, Some(process)) => process.map_or(0, |it| it.whole_ns),
        };
        ns as f64 / 1e9 / self.span_seconds(span)
    }

    /// Length of a span; never 0.
    fn span_seconds(&self, span: Span) -> f64 {
        let length = match span {
            Span::Last => self.length,
            Span::Whole => self.elapsed,
        };
        length.as_secs_f64().max(1e-3)
    }

    /// Samples that were lost since the begin; `None`: that is not told.
    fn n_lost(&self) -> Option<u64> {
        let (before, now) = (self.vitals[0]?, self.vitals[2]?);
        Some(now.n_lost.saturating_sub(before.n_lost))
    }

    /// What was lost, cut or sampled in another way.
    fn remarks(&self, span: Span) -> Vec<String> {
        let [last, whole] = &self.remarks;
        let remarks = match span {
            Span::Last => last,
            Span::Whole => whole,
        };
        remarks.clone().into_lines()
    }

    fn n_running(&self) -> usize {
        self.processes.values().filter(|it| it.is_running).count()
    }
}

/// What is known of the global interpreter lock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Gil {
    /// The share of samples whose thread held it.
    Share(f64),
    /// There was nothing to sample.
    NoSamples,
    /// Interpreters in which it is not known, or that have none.
    Unknown,
    /// The agent does not say.
    NotSaid,
}

#[cfg(test)]
mod tests;
