//! A snapshot: one look at a process's heap, with names in place of addresses of types.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::layout::{HeapLayout, SUPPORTED};
use super::memory::QuietMemory;
use super::names::{TypeName, type_name};
use super::scan::{self, Progress, ScanError};
use super::tally::{Tally, TypeCount};
use crate::ids::{Address, Pid};
use crate::process::facts::is_alive;
use crate::process::memory::MemoryError;
use crate::process::program::ProgramId;
use crate::process::regions::NotRead;
use crate::python::discover::Interpreter;
use crate::python::layout::Version;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum HeapError {
    /// A version without a layout.
    #[error("the heap of CPython {0} cannot be read (supported: {SUPPORTED}, with the GIL)")]
    Unsupported(Version),
    /// Built without the GIL: other objects, and another allocator.
    #[error("the heap of a free-threaded CPython ({0}) cannot be read yet")]
    FreeThreaded(Version),
    /// `type` is nowhere: its memory is swapped out, or it is no CPython as it is known.
    #[error("no type object is in the memory that can be read ({0} bytes of it)")]
    NoTypes(u64),
    /// The memory cannot be read.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Nobody waits for it any more.
    #[error("given up")]
    Abandoned,
    /// What was read is of two programs.
    #[error("the process has begun to run another program meanwhile (exec): try again")]
    OtherProgram,
    /// What the kernel shows of it cannot be read.
    #[error("/proc/{pid} cannot be read")]
    Proc {
        /// The process.
        pid: Pid,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What is counted of one type; classes that are called the same are one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeRow {
    /// What it is called.
    pub name: TypeName,
    /// How many.
    pub count: TypeCount,
}

/// A large object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LargeRow {
    /// What its type is called.
    pub name: TypeName,
    /// Where it is.
    pub address: Address,
    /// Its bytes.
    pub n_bytes: u64,
    /// Its length, where it has one.
    pub length: Option<u64>,
}

/// One look.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The types of which there are objects, most bytes first.
    pub types: Vec<TypeRow>,
    /// The largest objects, largest first.
    pub largest: Vec<LargeRow>,
    /// Bytes that were read.
    pub n_read: u64,
    /// What was not.
    pub not_read: NotRead,
}

impl Snapshot {
    /// Looks at a process; `n_largest` objects are named one by one. `progress` gets the bytes that are done, of all
    /// that there are, twice.
    pub fn take(
        pid: Pid,
        interpreter: &Interpreter,
        n_largest: usize,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, HeapError> {
        let go_on = &mut |n_done, n_all| {
            progress(n_done, n_all);
            ControlFlow::Continue(())
        };
        Self::take_unless(pid, interpreter, n_largest, go_on)
    }

    /// The same, as long as `progress` says to go on; else [`HeapError::Abandoned`].
    pub fn take_unless(
        pid: Pid,
        interpreter: &Interpreter,
        n_largest: usize,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Self, HeapError> {
        let layout = layout_of(interpreter)?;
        let program = ProgramId::of_process(pid).ok();
        let memory = QuietMemory::of_process(pid).map_err(|source| proc_error(pid, source))?;
        let n_all = memory.resident.n_bytes() * 2;
        let mut n_done = 0;
        let mut advance = |n_bytes: u64| {
            n_done += n_bytes;
            progress(n_done, n_all)
        };
        let advance: Progress<'_> = &mut advance;
        let is_another = || program != ProgramId::of_process(pid).ok() && is_alive(pid);
        let Some(types) = scan::find_types(&memory, &layout, advance)? else {
            return Err(if is_another() {
                HeapError::OtherProgram
            } else {
                HeapError::NoTypes(memory.resident.n_bytes())
            });
        };
        let mut tally = Tally::new(&layout, types.all().len(), n_largest);
        let counts = scan::scan(&memory, &layout, &types, &mut tally, advance)?;
        if is_another() {
            return Err(HeapError::OtherProgram);
        }
        let mut not_read = memory.resident.not_read;
        not_read.failed += counts.n_failed;
        let mut names = HashMap::new();
        let mut name_of = |idx: usize| {
            names
                .entry(idx)
                .or_insert_with(|| type_name(&memory, &layout, &types.all()[idx]))
                .clone()
        };
        let mut by_name: HashMap<TypeName, TypeCount> = HashMap::new();
        for (idx, count) in tally.counts.iter().enumerate() {
            if count.n_objects > 0 {
                by_name.entry(name_of(idx)).or_default().add(count);
            }
        }
        let mut rows: Vec<TypeRow> = by_name
            .into_iter()
            .map(|(name, count)| TypeRow { name, count })
            .collect();
        rows.sort_by(|a, b| (b.count.n_bytes, &a.name).cmp(&(a.count.n_bytes, &b.name)));
        let largest = tally
            .largest()
            .into_iter()
            .map(|large| LargeRow {
                name: name_of(large.type_idx as usize),
                address: large.address,
                n_bytes: large.n_bytes,
                length: large.length,
            })
            .collect();
        Ok(Self {
            types: rows,
            largest,
            n_read: counts.n_read,
            not_read,
        })
    }

    /// All types together.
    #[must_use]
    pub fn total(&self) -> TypeCount {
        let mut total = TypeCount::default();
        for row in &self.types {
            total.add(&row.count);
        }
        total
    }
}

impl TypeCount {
    fn add(&mut self, other: &Self) {
        self.n_objects += other.n_objects;
        self.n_bytes += other.n_bytes;
        self.n_tracked += other.n_tracked;
    }
}

impl From<ScanError> for HeapError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Memory(error) => Self::Memory(error),
            ScanError::Abandoned => Self::Abandoned,
        }
    }
}

pub(super) fn layout_of(interpreter: &Interpreter) -> Result<HeapLayout, HeapError> {
    if interpreter.binary.free_threaded {
        return Err(HeapError::FreeThreaded(interpreter.version));
    }
    HeapLayout::of_interpreter(&interpreter.layout)
        .ok_or(HeapError::Unsupported(interpreter.version))
}

pub(super) fn proc_error(pid: Pid, source: std::io::Error) -> HeapError {
    match source.kind() {
        std::io::ErrorKind::NotFound => HeapError::Memory(MemoryError::Gone),
        std::io::ErrorKind::PermissionDenied => HeapError::Memory(MemoryError::Denied),
        _ => HeapError::Proc { pid, source },
    }
}
