//! Where probes on the allocators of a process are to stand: in each file that it has mapped as code and that defines
//! functions which allocate.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use crate::ids::{Address, Generation, Pid};
use crate::native::allocator::{self, AllocatorFunction, AllocatorKind};
use crate::native::elf::{ElfError, ElfReader, load_bias};
use crate::native::probe_points::{self, Code, FunctionProbes, ProbeError, ResultRegisters};
use crate::process::file::{FileKey, open_mapped};
use crate::process::maps::{self, FileId, Mapping};
use crate::process::memory::{MemoryError, ProcessMemory, ReadMemory as _};
use crate::process::probe::{Probe, ProbeSite};
use crate::python::process::PythonProcess;
use crate::python::small_objects::{self, FoundBy, SmallObjects, SmallObjectsError};

/// Index of the register of the calling convention: rax.
#[cfg(target_arch = "x86_64")]
const RESULT_IDX: u8 = 10;

/// x0.
#[cfg(target_arch = "aarch64")]
const RESULT_IDX: u8 = 0;

/// Prefix of mimalloc's functions.
const MIMALLOC: &str = "mi_";

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Small objects.
    pub pools: bool,
    /// `malloc` and its like.
    pub alloc: bool,
    /// At which of their steps small objects are seen.
    pub pool_probes: PoolProbes,
    /// Results can be found in other registers than that of the calling convention.
    pub any_register: bool,
}

/// At which of its steps CPython's allocator of small objects is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum PoolProbes {
    /// Each pool where that costs little on this machine, else each arena.
    #[default]
    Auto,
    /// Each pool: 16 KiB, up to 3.9 4 KiB.
    Pools,
    /// Each arena: 1 MiB, up to 3.9 256 KiB.
    Arenas,
}

/// What was found in a process and was not known of it before.
#[derive(Debug, Default)]
pub struct Found {
    /// Where probes are to be placed.
    pub sites: Vec<ProbeSite>,
    /// What they stand on, for the log.
    pub names: Vec<String>,
    /// What cannot be probed, in words.
    pub missing: Vec<String>,
}

impl Found {
    fn add(&mut self, mapping: &Mapping, file: &Arc<File>, probes: &[FileProbe]) {
        self.sites.extend(probes.iter().map(|it| ProbeSite {
            probe: it.probe,
            file: file.clone(),
            path: mapping.path.display().to_string(),
            offset: it.offset,
            result_idx: it.result_idx,
            is_emulated: it.is_emulated,
        }));
    }
}

/// A probe in a file.
#[derive(Debug, Clone, Copy)]
struct FileProbe {
    probe: Probe,
    offset: u64,
    result_idx: u8,
    is_emulated: bool,
}

/// What was found in a file.
#[derive(Debug, Default)]
struct FileProbes {
    probes: Vec<FileProbe>,
    names: Vec<&'static str>,
    missing: Vec<String>,
}

/// Looks for allocators. Each file is looked at once.
pub struct Allocators {
    wanted: Wanted,
    files: HashMap<FileKey, Arc<FileProbes>>,
    seen: HashMap<Generation, HashSet<FileId>>,
}

impl Allocators {
    /// For what is asked for.
    #[must_use]
    pub fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            files: HashMap::new(),
            seen: HashMap::new(),
        }
    }

    /// Looks at the files that a process has mapped since it was looked at last.
    pub fn find(&mut self, process: &PythonProcess) -> Found {
        let mut found = Found::default();
        let seen = self.seen.entry(process.generation).or_default();
        let is_first = seen.is_empty();
        let mappings = maps::of_process(process.pid).unwrap_or_default();
        let new: Vec<Mapping> = mappings
            .into_iter()
            .filter(|it| it.executable && !it.is_vdso() && seen.insert(it.file))
            .collect();
        for mapping in &new {
            self.find_in(process, mapping, &mut found);
        }
        if is_first && self.wanted.alloc && !found.names.iter().any(|name| name.contains("malloc"))
        {
            let message = "no malloc was found in its files: what it allocates is not seen";
            found.missing.push(message.to_owned());
        }
        found
    }

    /// Forgets a program that has ended.
    pub fn forget(&mut self, generation: Generation) {
        self.seen.remove(&generation);
    }

    fn find_in(&mut self, process: &PythonProcess, mapping: &Mapping, found: &mut Found) {
        let path = mapping.path.display();
        let (file, key) = match open_mapped(process.pid, mapping) {
            Ok(opened) => opened,
            Err(error) => {
                found
                    .missing
                    .push(format!("cannot look for allocators in {error}"));
                return;
            }
        };
        let file = Arc::new(file);
        let is_python = key == process.interpreter.binary_key;
        let has_own_allocator = is_python && process.interpreter.binary.free_threaded;
        if is_python && self.wanted.pools && !has_own_allocator {
            match small_object_probes(process.pid, mapping, &file, self.wanted) {
                Ok((probes, name)) => {
                    found.add(mapping, &file, &probes);
                    found.names.push(format!("{name} in {path}"));
                }
                Err(error) => {
                    let message = format!("small objects are not seen: {error} ({path})");
                    found.missing.push(message);
                }
            }
        }
        if has_own_allocator {
            let message = "a build without the GIL has an allocator of its own, which is not seen";
            found.missing.push(message.to_owned());
        }
        if self.wanted.alloc {
            let probes = match self.files.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let probes =
                        Arc::new(probes_of_file(&file, is_python, self.wanted.any_register));
                    self.files.insert(key, probes.clone());
                    probes
                }
            };
            found.add(mapping, &file, &probes.probes);
            let names = probes.names.iter();
            found
                .names
                .extend(names.map(|name| format!("{name} in {path}")));
            let missing = probes.missing.iter();
            found
                .missing
                .extend(missing.map(|reason| format!("{path}: {reason}")));
        }
    }
}

/// The probes on the allocator functions that a file defines.
fn probes_of_file(file: &Arc<File>, is_python: bool, any_register: bool) -> FileProbes {
    let mut found = FileProbes::default();
    let Ok(reader) = file.try_clone().map(ElfReader::new) else {
        return found;
    };
    // What is no ELF file has no functions.
    let Ok(elf) = reader.parse() else {
        return found;
    };
    let code = Code::of(&elf, file);
    for function in allocator::functions(&elf, &code) {
        if is_python && function.name.starts_with(MIMALLOC) {
            // Its own copy: not used at all, or by functions of its own (3.13+ without the GIL).
            continue;
        }
        let Some(enter) = enter_probe(&function) else {
            continue;
        };
        match &function.probes {
            Ok(probes) => {
                let returns = probes.returns.iter();
                tracing::debug!(
                    "{}: at its beginning {}, on its ways back {:?}; calls {:?}",
                    function.name,
                    if probes.enter.is_emulated {
                        "emulated"
                    } else {
                        "single-stepped"
                    },
                    returns.map(|it| it.point.is_emulated).collect::<Vec<_>>(),
                    function.calls,
                );
                let Some(placed) = place(Some(enter), Probe::Leave, probes, any_register) else {
                    found.missing.push(format!(
                        "{}: the result is in a register that this kernel's probes cannot be told of",
                        function.name
                    ));
                    continue;
                };
                found.probes.extend(placed);
                found.names.push(function.name);
                if probes.n_unseen_ways > 0 {
                    tracing::debug!(
                        "{}: {} ways back are not seen",
                        function.name,
                        probes.n_unseen_ways
                    );
                }
            }
            Err(error) => found
                .missing
                .push(format!("{} cannot be probed: {error}", function.name)),
        }
    }
    found
}

/// The probe at a function's beginning; `None` when another function that it calls tells all.
fn enter_probe(function: &AllocatorFunction) -> Option<Probe> {
    let is_release = |name: &str| matches!(name, "free" | "cfree") || name.ends_with("_free");
    let releases = function.calls.iter().any(|call| is_release(call.name));
    let allocating: Vec<_> = function
        .calls
        .iter()
        .filter(|call| !is_release(call.name))
        .collect();
    let has_tails_alone = allocating.iter().all(|call| call.is_tail);
    let probe = match function.kind {
        AllocatorKind::SizeFirst => Probe::SizeFirst,
        AllocatorKind::Product => Probe::Product,
        // They end in `malloc` for small alignments alone, which is counted there too: few ask for such.
        AllocatorKind::SizeSecond if has_tails_alone => return Some(Probe::SizeSecond),
        AllocatorKind::Indirect if has_tails_alone => return Some(Probe::Indirect),
        AllocatorKind::SizeSecond => Probe::SizeSecond,
        AllocatorKind::Indirect => Probe::Indirect,
        AllocatorKind::Release => return (!releases).then_some(Probe::Release),
        // What ends in `malloc` when there is nothing to resize is counted there. What calls it on the way does so for
        // most sizes (musl), or hardly ever (glibc, which then has both).
        AllocatorKind::Resize if allocating.iter().any(|call| call.is_tail) => {
            return Some(Probe::ResizeNested);
        }
        AllocatorKind::Resize => Probe::Resize,
        AllocatorKind::ResizeProduct => Probe::ResizeProduct,
    };
    allocating.is_empty().then_some(probe)
}

/// Why small objects cannot be seen.
#[derive(Debug, thiserror::Error)]
enum SmallObjectError {
    #[error(transparent)]
    File(#[from] std::io::Error),
    #[error(transparent)]
    Elf(#[from] ElfError),
    #[error(transparent)]
    NotFound(#[from] SmallObjectsError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("the arena allocator: {0}")]
    Probes(#[from] ProbeError),
    #[error("the arena allocator is not CPython's own")]
    Foreign,
    #[error("the result is in a register that this kernel's probes cannot be told of")]
    Register,
}

/// Probes on what makes room for small objects, and what they stand on.
fn small_object_probes(
    pid: Pid,
    mapping: &Mapping,
    file: &Arc<File>,
    wanted: Wanted,
) -> Result<(Vec<FileProbe>, String), SmallObjectError> {
    let reader = ElfReader::new(file.try_clone()?);
    let elf = reader.parse()?;
    let found = small_objects::find(&elf, file)?;
    let is_stepped = |found: &SmallObjects| match found {
        SmallObjects::Pools { probes, .. } => probes.returns.iter().any(|it| !it.point.is_emulated),
        SmallObjects::Arenas { .. } => false,
    };
    let has_to_be_arenas = match wanted.pool_probes {
        PoolProbes::Auto => is_stepped(&found),
        PoolProbes::Pools => false,
        PoolProbes::Arenas => true,
    };
    let found = if has_to_be_arenas {
        small_objects::find_arenas(&elf, file)?
    } else {
        found
    };
    let (probes, name) = match found {
        SmallObjects::Pools {
            probes, found_by, ..
        } => {
            let (enter, leave) = if probes.returns.len() == 1 {
                (None, Probe::PoolLeave)
            } else {
                (Some(Probe::PoolEnter), Probe::PoolLeaveOnce)
            };
            let how = match found_by {
                FoundBy::Symbol => "by its symbol",
                FoundBy::Signature => "by what its code does",
            };
            (
                place(enter, leave, &probes, wanted.any_register),
                format!("allocate_from_new_pool ({how})"),
            )
        }
        SmallObjects::Arenas { allocator } => {
            let bias = load_bias(&elf.segments(), mapping.start.0, mapping.file_offset)
                .ok_or(SmallObjectError::Foreign)?;
            let memory = ProcessMemory::new(pid);
            let at = |offset: u64| Address(allocator.wrapping_add(bias).wrapping_add(offset));
            let linked = |address: u64| address.wrapping_sub(bias);
            let alloc = linked(memory.read_u64(at(8))?);
            let free = linked(memory.read_u64(at(16))?);
            let code = Code::of(&elf, file);
            let not_own = |error| match error {
                ProbeError::NotInFile(_) => SmallObjectError::Foreign,
                error => error.into(),
            };
            let probes = small_objects::probes_at(&code, alloc).map_err(not_own)?;
            let arguments = probe_points::Wanted {
                n_arguments: 2,
                results: ResultRegisters::None,
            };
            let release = probe_points::probes_at(&code, free, arguments, &[]).map_err(not_own)?;
            let placed = place(
                Some(Probe::ArenaEnter),
                Probe::ArenaLeave,
                &probes,
                wanted.any_register,
            );
            let placed = placed.map(|mut placed| {
                placed.push(FileProbe::at_enter(Probe::ArenaRelease, &release));
                placed
            });
            (placed, "the arena allocator".to_owned())
        }
    };
    Ok((probes.ok_or(SmallObjectError::Register)?, name))
}

impl FileProbe {
    fn at_enter(probe: Probe, probes: &FunctionProbes) -> Self {
        Self {
            probe,
            offset: probes.enter.file_offset,
            result_idx: RESULT_IDX,
            is_emulated: probes.enter.is_emulated,
        }
    }
}

/// All probes of a function; `None` when a way back cannot be told.
fn place(
    enter: Option<Probe>,
    leave: Probe,
    probes: &FunctionProbes,
    any_register: bool,
) -> Option<Vec<FileProbe>> {
    let is_told = |idx: u8| any_register || idx == RESULT_IDX;
    if !probes.returns.iter().all(|it| is_told(it.general_idx)) {
        return None;
    }
    let first = enter.map(|enter| FileProbe::at_enter(enter, probes));
    let returns = probes.returns.iter().map(|it| FileProbe {
        probe: leave,
        offset: it.point.file_offset,
        result_idx: it.general_idx,
        is_emulated: it.point.is_emulated,
    });
    Some(first.into_iter().chain(returns).collect())
}
