//! The tracker's view of the kernel, over the BPF maps.

use profiler_common::layout::PyLayout;
use profiler_common::process::ProcessEntry;

use crate::bpf::tables::{LayoutTable, ProcessTable};
use crate::ids::{Generation, Pid};
use crate::track::tracker::KernelTable;

/// The maps that the tracker writes.
pub(super) struct BpfTables {
    processes: ProcessTable,
    layouts: LayoutTable,
}

impl BpfTables {
    pub(super) fn new(processes: ProcessTable, layouts: LayoutTable) -> Self {
        Self { processes, layouts }
    }
}

impl KernelTable for BpfTables {
    fn sees_lifecycle(&self) -> bool {
        true
    }

    fn add(&mut self, pid: Pid, entry: &ProcessEntry) -> Result<bool, String> {
        self.processes
            .add(pid, entry)
            .map_err(|error| error.to_string())
    }

    fn update(
        &mut self,
        pid: Pid,
        generation: Generation,
        entry: &ProcessEntry,
    ) -> Result<bool, String> {
        self.processes
            .update(pid, generation, entry)
            .map_err(|error| error.to_string())
    }

    fn remove(&mut self, pid: Pid, generation: Generation) {
        self.processes.remove(pid, generation);
    }

    fn layout_row(&mut self, layout: &PyLayout) -> Result<u32, String> {
        self.layouts.row(layout).map_err(|error| error.to_string())
    }
}

/// No kernel programs, no maps: everything is as it should be.
pub(super) struct NoTables;

impl KernelTable for NoTables {
    fn sees_lifecycle(&self) -> bool {
        false
    }

    fn add(&mut self, _pid: Pid, _entry: &ProcessEntry) -> Result<bool, String> {
        Ok(true)
    }

    fn update(
        &mut self,
        _pid: Pid,
        _generation: Generation,
        _entry: &ProcessEntry,
    ) -> Result<bool, String> {
        Ok(true)
    }

    fn remove(&mut self, _pid: Pid, _generation: Generation) {}

    fn layout_row(&mut self, _layout: &PyLayout) -> Result<u32, String> {
        Ok(0)
    }
}
