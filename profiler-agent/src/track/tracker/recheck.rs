//! Second looks: at what has changed since, could not be told at first, or did not fit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use profiler_common::process::ThreadSlot;

use super::{EXPECTED_DELAYS_MS, KernelTable, Status, Tracked, Tracker};
use crate::ids::{Generation, Pid};
use crate::process::memory::ProcessMemory;
use crate::python::discover::Discovery;
use crate::python::process::PythonProcess;
use crate::python::refusal::Reason;
use crate::python::runtime;

/// How often processes are looked at again whose refusal may have been one of its moment.
const REFUSED_INTERVAL: Duration = Duration::from_mins(1);

/// The same where somebody waits for it; the rescan can be slower.
const WAITED_FOR_INTERVAL: Duration = Duration::from_secs(1);

impl<K: KernelTable> Tracker<K> {
    /// A fork can move the slot (`_PyGILState_Reinit` makes its key anew), and a young interpreter may not have
    /// had one yet.
    pub(super) fn revalidate_slot(&mut self, pid: Pid, generation: Generation) {
        let Some(Tracked {
            status: Status::Profiled(process),
        }) = self.processes.get(&pid)
        else {
            return;
        };
        if process.generation != generation {
            return;
        }
        let (memory, interpreter) = (ProcessMemory::new(pid), &process.interpreter);
        let holds = |slot: ThreadSlot| {
            runtime::slot_holds(&memory, &interpreter.layout, interpreter.runtime, slot)
        };
        if interpreter.thread_slot.is_some_and(holds) {
            return;
        }
        let mut process = PythonProcess::clone(process);
        process.interpreter.thread_slot = runtime::calibrate_thread_slot(
            &memory,
            &process.interpreter.layout,
            process.interpreter.runtime,
        );
        // A process that ended meanwhile has no entry to update; other failures leave the list as the way.
        if let Ok(entry) = self.entry(&process)
            && matches!(self.kernel.update(pid, generation, &entry), Ok(true))
        {
            self.processes.insert(
                pid,
                Tracked {
                    status: Status::Profiled(Arc::new(process)),
                },
            );
        }
    }

    /// Looks again at those whose offsets could not be put to the test yet.
    pub(super) fn recheck_unverified(&mut self) {
        let unverified: Vec<(Pid, Generation)> = self
            .processes
            .iter()
            .filter_map(|(pid, tracked)| match &tracked.status {
                Status::Profiled(process) if !process.interpreter.is_verified => {
                    Some((*pid, process.generation))
                }
                Status::Profiled(_) | Status::Pending { .. } | Status::Refused { .. } => None,
            })
            .collect();
        for (pid, generation) in unverified {
            self.recheck(pid, generation);
        }
    }

    /// Looks at a profiled process anew: its interpreter may have been finalized and initialised again, or not be
    /// what it was taken for.
    pub fn recheck(&mut self, pid: Pid, generation: Generation) {
        let known = match self.processes.get(&pid).map(|tracked| &tracked.status) {
            Some(Status::Profiled(process)) if process.generation == generation => process.clone(),
            _ => return,
        };
        match self.discoverer.discover(pid, &mut |_| {}) {
            Discovery::Python(interpreter) if *interpreter != known.interpreter => {
                let process = PythonProcess {
                    interpreter: *interpreter,
                    ..PythonProcess::clone(&known)
                };
                // One that ended meanwhile has no entry to update.
                if let Ok(entry) = self.entry(&process)
                    && matches!(self.kernel.update(pid, generation, &entry), Ok(true))
                {
                    self.profiled(process);
                }
            }
            Discovery::Refused { refusal, .. } => {
                let (facts, version) = (known.facts.clone(), known.interpreter.version);
                self.refuse(
                    pid,
                    Some(generation),
                    Box::new(facts),
                    Some(version),
                    refusal,
                );
            }
            // Between two interpreters, or at the end of the last.
            Discovery::Python(_)
            | Discovery::NotYet
            | Discovery::NotPython { .. }
            | Discovery::Gone => {}
        }
    }

    /// Looks again at those that were refused for what may have passed: a table that was full, memory that was being
    /// changed. What a file is it stays.
    pub(super) fn retry_refused(&mut self) {
        let interval = |reason: Reason| match reason {
            Reason::NotTracked | Reason::NotInitialised => Some(WAITED_FOR_INTERVAL),
            Reason::MemoryUnreadable
            | Reason::RuntimeNotFound
            | Reason::OffsetsUnusable
            | Reason::StructuresInconsistent
            | Reason::FramesUnsound => Some(REFUSED_INTERVAL),
            Reason::BinaryUnreadable
            | Reason::OtherArchitecture
            | Reason::OtherImplementation
            | Reason::VersionUnknown
            | Reason::VersionUnsupported => None,
        };
        let is_due = |reason: Reason, looked_at: Instant| {
            interval(reason).is_some_and(|interval| looked_at.elapsed() >= interval)
        };
        let again: Vec<Pid> = self
            .processes
            .iter()
            .filter_map(|(pid, tracked)| match &tracked.status {
                Status::Refused {
                    refusal, looked_at, ..
                } if is_due(refusal.reason(), *looked_at) => Some(*pid),
                Status::Refused { .. } | Status::Profiled(_) | Status::Pending { .. } => None,
            })
            .collect();
        for pid in again {
            if let Some(Tracked {
                status: Status::Refused { facts, .. },
            }) = self.processes.remove(&pid)
            {
                // Refused once more if nothing has changed, without further attempts.
                self.attempt(pid, None, EXPECTED_DELAYS_MS.len(), facts);
            }
        }
    }
}
