//! The maps that the agent writes (processes, layouts) and reads (counters).

use std::collections::HashMap as StdHashMap;

use aya::Pod;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use profiler_common::allocation::{BlockKey, Hits};
use profiler_common::counters::{Counter, N_COUNTERS};
use profiler_common::layout::PyLayout;
use profiler_common::process::{MAX_LAYOUTS, ProcessEntry};

use crate::ids::{Generation, Pid};
use crate::kernel::cpus::PossibleCpus;

/// A process entry as the map holds it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct EntryValue(ProcessEntry);

// SAFETY: `repr(C)` and `Copy`; all of its bytes are initialised (its fields leave no padding), and the map's
// values are only ever written by this program and by the kernel programs built from the same definition.
unsafe impl Pod for EntryValue {}

/// A layout as the map holds it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct LayoutValue(PyLayout);

// SAFETY: as above; only ever written by this program, and never read back.
unsafe impl Pod for LayoutValue {}

/// Counts of a process's probes as the map holds them.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct HitsValue(pub(super) Hits);

// SAFETY: `repr(C)` and `Copy`, of words only.
unsafe impl Pod for HitsValue {}

/// Key of a sampled allocation as the map holds it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct BlockValue(pub(super) BlockKey);

// SAFETY: `repr(C)` and `Copy`; its fields leave no padding.
unsafe impl Pod for BlockValue {}

/// Why a table could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// No room for a further process.
    #[error("{0} processes are profiled: raise --max-processes")]
    ProcessesFull(u32),
    /// No room for a further layout.
    #[error("more than {MAX_LAYOUTS} different interpreter builds")]
    LayoutsFull,
    /// The kernel refused.
    #[error("map: {0}")]
    Map(#[from] MapError),
}

/// The processes that the kernel programs sample.
pub struct ProcessTable {
    map: HashMap<MapData, u32, EntryValue>,
    /// How many it can hold.
    max_processes: u32,
}

impl ProcessTable {
    pub(super) fn new(map: HashMap<MapData, u32, EntryValue>, max_processes: u32) -> Self {
        Self { map, max_processes }
    }

    /// The entry of a process.
    #[must_use]
    pub fn get(&self, pid: Pid) -> Option<ProcessEntry> {
        self.map.get(&pid.0, 0).ok().map(|value| value.0)
    }

    /// Adds a process that has no entry yet; false when it has one.
    pub fn add(&mut self, pid: Pid, entry: &ProcessEntry) -> Result<bool, TableError> {
        // BPF_NOEXIST
        match self.map.insert(pid.0, EntryValue(*entry), 1) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EEXIST) =>
            {
                Ok(false)
            }
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
            {
                Err(TableError::ProcessesFull(self.max_processes))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Writes an entry only if the process is still of this generation: it may have exec'ed or gone since.
    /// Returns whether it was.
    pub fn update(
        &mut self,
        pid: Pid,
        generation: Generation,
        entry: &ProcessEntry,
    ) -> Result<bool, TableError> {
        if self.get(pid).map(|entry| entry.generation) != Some(generation.0) {
            return Ok(false);
        }
        // BPF_EXIST: an exit in between must not leave an entry behind.
        match self.map.insert(pid.0, EntryValue(*entry), 2) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an entry if it is still of this generation.
    pub fn remove(&mut self, pid: Pid, generation: Generation) {
        if self.get(pid).map(|entry| entry.generation) == Some(generation.0) {
            // It can have gone by itself.
            let _ = self.map.remove(&pid.0);
        }
    }

    /// Every process in the table.
    pub fn pids(&self) -> impl Iterator<Item = Pid> + '_ {
        self.map.keys().filter_map(Result::ok).map(Pid)
    }
}

/// Layouts of interpreter builds; equal ones share a row.
pub struct LayoutTable {
    map: Array<MapData, LayoutValue>,
    rows: StdHashMap<PyLayoutKey, u32>,
}

/// A layout, compared by its bytes' meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PyLayoutKey(PyLayout);

impl std::hash::Hash for PyLayoutKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.0.version_hex, self.0.tstate_frame, self.0.frame_instr).hash(state);
    }
}

impl LayoutTable {
    pub(super) fn new(map: Array<MapData, LayoutValue>) -> Self {
        Self {
            map,
            rows: StdHashMap::new(),
        }
    }

    /// The row of a layout; writes it when it is new.
    pub fn row(&mut self, layout: &PyLayout) -> Result<u32, TableError> {
        if let Some(row) = self.rows.get(&PyLayoutKey(*layout)) {
            return Ok(*row);
        }
        let row = self.rows.len() as u32;
        if row >= MAX_LAYOUTS {
            return Err(TableError::LayoutsFull);
        }
        self.map.set(row, LayoutValue(*layout), 0)?;
        self.rows.insert(PyLayoutKey(*layout), row);
        Ok(row)
    }
}

/// The counters of the kernel programs.
pub struct CounterTable {
    map: PerCpuArray<MapData, u64>,
    cpus: PossibleCpus,
}

impl CounterTable {
    pub(super) fn new(map: PerCpuArray<MapData, u64>) -> Self {
        Self {
            map,
            cpus: PossibleCpus::of_running_kernel(),
        }
    }

    /// A counter on one CPU.
    #[must_use]
    pub(super) fn of_cpu(&self, cpu: u32, counter: Counter) -> u64 {
        let values = self.map.get(&(counter as u32), 0).ok();
        values
            .and_then(|values| values.get(self.cpus.position(cpu)?).copied())
            .unwrap_or(0)
    }

    /// Sum over all CPUs of each counter, in the order of [`Counter::ALL`].
    #[must_use]
    pub fn totals(&self) -> [u64; N_COUNTERS] {
        Counter::ALL.map(|counter| self.total(counter))
    }

    /// Sum over all CPUs of one counter.
    #[must_use]
    pub fn total(&self, counter: Counter) -> u64 {
        self.map
            .get(&(counter as u32), 0)
            .map_or(0, |values| values.iter().sum())
    }
}
