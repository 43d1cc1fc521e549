//! Looks into processes for somebody who asks: their stacks, their objects. On threads of their own: samples are not kept waiting.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Engine;
use super::pull::matches;
use crate::heap::report::full_name;
use crate::heap::snapshot::{HeapError, Snapshot};
use crate::process::memory::MemoryError;
use crate::profile::inspect::{Census, CensusObject, CensusType, LocalsDetail, ProcessStacks};
use crate::profile::query::ProcessFilter;
use crate::python::layout::Version;
use crate::python::process::PythonProcess;
use crate::sample::dump;
use crate::serve::query::{CensusPart, InspectError};

/// Objects that are named one by one in a census.
const N_LARGEST: usize = 10;

/// How often it is said how far a census is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

impl Engine {
    /// The profiled processes that somebody means and may look into, by their ids.
    fn inspected(&self, filter: &ProcessFilter) -> Vec<Arc<PythonProcess>> {
        let processes = self.symbolizer.processes();
        let is_meant =
            |process: &&Arc<PythonProcess>| matches(filter, process, self.parts.show_cmdline);
        let mut processes: Vec<_> = processes.filter(is_meant).cloned().collect();
        processes.sort_by_key(|process| process.pid);
        processes
    }

    /// Sends the stacks of each process that is meant.
    pub(super) fn dump(
        &self,
        filter: &ProcessFilter,
        locals: LocalsDetail,
        reply: mpsc::Sender<Result<ProcessStacks, InspectError>>,
    ) {
        let processes = self.inspected(filter);
        std::thread::spawn(move || {
            if processes.is_empty() {
                let _ = reply.blocking_send(Err(InspectError::NoMatch));
            }
            for process in processes {
                let message = dump::of_process(&process, locals, &|| reply.is_closed());
                // Whoever asked may have left.
                if reply.blocking_send(Ok(message)).is_err() {
                    return;
                }
            }
        });
    }

    /// Counts the objects of the one process that is meant.
    pub(super) fn census(
        &self,
        filter: &ProcessFilter,
        reply: mpsc::Sender<Result<CensusPart, InspectError>>,
    ) {
        let mut processes = self.inspected(filter);
        std::thread::spawn(move || {
            let taken = match processes.pop() {
                Some(process) => take_census(&process, &reply),
                None => Err(InspectError::NoMatch),
            };
            let _ = reply.blocking_send(taken);
        });
    }
}

fn take_census(
    process: &PythonProcess,
    reply: &mpsc::Sender<Result<CensusPart, InspectError>>,
) -> Result<CensusPart, InspectError> {
    let mut said = Instant::now();
    let mut progress = |n_done, n_all| {
        if reply.is_closed() {
            return ControlFlow::Break(());
        }
        if said.elapsed() > PROGRESS_INTERVAL {
            said = Instant::now();
            // A client that is slow misses some of them.
            let _ = reply.try_send(Ok(CensusPart::Progress { n_done, n_all }));
        }
        ControlFlow::Continue(())
    };
    let interpreter = &process.interpreter;
    if !process.facts.is_there() {
        return Err(InspectError::Gone(process.pid.0));
    }
    let snapshot = Snapshot::take_unless(process.pid, interpreter, N_LARGEST, &mut progress);
    match snapshot {
        Ok(_) if !process.facts.is_there() => Err(InspectError::Gone(process.pid.0)),
        Ok(snapshot) => Ok(CensusPart::Heap(Box::new(census(
            interpreter.version,
            snapshot,
        )))),
        Err(HeapError::Memory(MemoryError::Gone)) => Err(InspectError::Gone(process.pid.0)),
        Err(error @ HeapError::OtherProgram) => Err(InspectError::Changed(error.to_string())),
        Err(error @ (HeapError::Unsupported(_) | HeapError::FreeThreaded(_))) => {
            Err(InspectError::Unsupported(error.to_string()))
        }
        Err(error) => Err(InspectError::Unreadable(error.to_string())),
    }
}

fn census(version: Version, snapshot: Snapshot) -> Census {
    let types = snapshot.types.into_iter().map(|row| CensusType {
        name: full_name(&row.name.module, &row.name.qualname),
        n_objects: row.count.n_objects,
        n_bytes: row.count.n_bytes,
        n_tracked: row.count.n_tracked,
    });
    let largest = snapshot.largest.into_iter().map(|row| CensusObject {
        type_name: full_name(&row.name.module, &row.name.qualname),
        address: row.address.0,
        n_bytes: row.n_bytes,
        length: row.length,
    });
    Census {
        python_version: version.to_string(),
        types: types.collect(),
        largest: largest.collect(),
        n_read: snapshot.n_read,
        n_swapped: snapshot.not_read.swapped,
        n_shared: snapshot.not_read.shared,
        n_of_files: snapshot.not_read.files,
        n_failed: snapshot.not_read.failed,
    }
}
