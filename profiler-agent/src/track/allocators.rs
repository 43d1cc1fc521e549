//! Where probes on the allocators of a process are to stand: in each file that it has mapped as code and that defines
//! functions which allocate.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use crate::ids::{Address, Generation, Pid};
use crate::native::allocator::{self, AllocatorFunction, AllocatorKind, NestedCall};
use crate::native::elf::{Elf, ElfError, ElfReader, load_bias};
use crate::native::probe_points::{self, Code, FunctionProbes, ProbeError, ResultRegisters};
use crate::process::file::{FileKey, open_mapped};
use crate::process::maps::{self, FileId, Mapping};
use crate::process::memory::{MemoryError, ProcessMemory, ReadMemory as _};
use crate::process::probe::{Probe, ProbeSite};
use crate::profile::model::ProfileType;
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
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What the probes are to make samples for.
    pub types: Vec<ProfileType>,
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
    /// Each arena, where the C library maps it: what is done where CPython's functions cannot be found.
    Mmap,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// Functions of a kind, and the probes on them.
struct Functions {
    find: fn(&Elf<'_>, &Code<'_>) -> Vec<AllocatorFunction>,
    /// The one at the beginning; `None`: there is nothing to see at this function.
    enter: fn(&AllocatorFunction) -> Option<Probe>,
    leave: Probe,
}

/// `malloc` and its like.
const MALLOC: Functions = Functions {
    find: allocator::functions,
    enter: enter_probe,
    leave: Probe::Leave,
};

/// The same of the file that CPython is in, but for its own copy of mimalloc: that is not used at all, or by functions of
/// its own (3.13+ without the GIL).
const MALLOC_OF_PYTHON: Functions = Functions {
    find: allocator::functions,
    enter: |function| {
        if function.name.starts_with(MIMALLOC) {
            None
        } else {
            enter_probe(function)
        }
    },
    leave: Probe::Leave,
};

/// `mmap` and its like.
const MMAP: Functions = Functions {
    find: allocator::mappers,
    enter: |function| match function.kind {
        AllocatorKind::Map => Some(Probe::MapEnter),
        AllocatorKind::Unmap => Some(Probe::MapRelease),
        AllocatorKind::Remap => Some(Probe::MapResize),
        AllocatorKind::Break => Some(Probe::MapBreak),
        _ => None,
    },
    leave: Probe::MapLeave,
};

/// The same, for arenas of small objects alone.
const MAPPED_ARENAS: Functions = Functions {
    find: allocator::mappers,
    enter: |function| match function.kind {
        AllocatorKind::Map => Some(Probe::ArenaMapEnter),
        AllocatorKind::Unmap => Some(Probe::ArenaUnmap),
        _ => None,
    },
    leave: Probe::ArenaLeave,
};

/// Looks for allocators. Each file is looked at once.
pub struct Allocators {
    wanted: Wanted,
    /// By the file and what is on the ways back.
    files: HashMap<(FileKey, Probe), Arc<FileProbes>>,
    seen: HashMap<Generation, HashSet<FileId>>,
    /// Programs whose arenas are seen where they are mapped.
    mapped_arenas: HashSet<Generation>,
}

impl Allocators {
    /// For what is asked for.
    #[must_use]
    pub fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            files: HashMap::new(),
            seen: HashMap::new(),
            mapped_arenas: HashSet::new(),
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
        if self.mapped_arenas.contains(&process.generation) {
            self.find_mapped_arenas(process, &new, &mut found);
        }
        if is_first
            && self.is_wanted(ProfileType::Alloc)
            && !found.names.iter().any(|name| name.contains("malloc"))
        {
            let message = "no malloc was found in its files: what it allocates is not seen";
            found.missing.push(message.to_owned());
        }
        if is_first
            && self.is_wanted(ProfileType::Mmap)
            && !found.names.iter().any(|name| name.contains("mmap"))
        {
            let message = "no mmap was found in its files: what it maps is not seen";
            found.missing.push(message.to_owned());
        }
        found
    }

    /// Probes on the C library's `mmap`, for arenas of small objects.
    fn find_mapped_arenas(&mut self, process: &PythonProcess, new: &[Mapping], found: &mut Found) {
        let n_before = found.sites.len();
        for mapping in new {
            if let Ok((file, key)) = open_mapped(process.pid, mapping) {
                self.add_functions(&MAPPED_ARENAS, key, &Arc::new(file), mapping, found);
            }
        }
        if found.sites.len() == n_before {
            let message = "small objects are not seen: no mmap was found in its files";
            found.missing.push(message.to_owned());
        }
    }

    /// The probes on the functions of a file.
    fn add_functions(
        &mut self,
        functions: &Functions,
        key: FileKey,
        file: &Arc<File>,
        mapping: &Mapping,
        found: &mut Found,
    ) {
        let any_register = self.wanted.any_register;
        let known = self.files.entry((key, functions.leave));
        let probes = known
            .or_insert_with(|| Arc::new(probes_of_file(file, functions, any_register)))
            .clone();
        found.add(mapping, file, &probes.probes);
        let path = mapping.path.display();
        let names = probes.names.iter();
        found
            .names
            .extend(names.map(|name| format!("{name} in {path}")));
        let missing = probes.missing.iter();
        found
            .missing
            .extend(missing.map(|reason| format!("{path}: {reason}")));
    }

    fn is_wanted(&self, profile_type: ProfileType) -> bool {
        self.wanted.types.contains(&profile_type)
    }

    /// Forgets a program that has ended.
    pub fn forget(&mut self, generation: Generation) {
        self.seen.remove(&generation);
        self.mapped_arenas.remove(&generation);
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
        let has_pools = is_python && self.is_wanted(ProfileType::Pools) && !has_own_allocator;
        if has_pools && self.wanted.pool_probes == PoolProbes::Mmap {
            self.mapped_arenas.insert(process.generation);
        } else if has_pools {
            match small_object_probes(process.pid, mapping, &file, &self.wanted) {
                Ok((probes, name)) => {
                    found.add(mapping, &file, &probes);
                    found.names.push(format!("{name} in {path}"));
                }
                Err(SmallObjectError::NotFound(error)) => {
                    let message = format!(
                        "{error} ({path}): small objects are seen an arena at a time, where mmap is called"
                    );
                    found.missing.push(message);
                    self.mapped_arenas.insert(process.generation);
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
        if self.is_wanted(ProfileType::Alloc) {
            let functions = if is_python {
                &MALLOC_OF_PYTHON
            } else {
                &MALLOC
            };
            self.add_functions(functions, key, &file, mapping, found);
        }
        if self.is_wanted(ProfileType::Mmap) {
            self.add_functions(&MMAP, key, &file, mapping, found);
        }
    }
}

/// The probes on the functions of a kind that a file defines.
fn probes_of_file(file: &Arc<File>, functions: &Functions, any_register: bool) -> FileProbes {
    let mut found = FileProbes::default();
    let Ok(reader) = file.try_clone().map(ElfReader::new) else {
        return found;
    };
    // What is no ELF file has no functions.
    let Ok(elf) = reader.parse() else {
        return found;
    };
    let code = Code::of(&elf, file);
    for function in (functions.find)(&elf, &code) {
        if function.is_jump() {
            if !function.is_nested() {
                found.missing.push(format!(
                    "{}: it ends in a function that is not known to allocate",
                    function.name
                ));
            }
            continue;
        }
        let Some(enter) = (functions.enter)(&function) else {
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
                let Some(placed) = place(Some(enter), functions.leave, probes, any_register) else {
                    found.missing.push(format!(
                        "{}: the result is in a register that this kernel's probes cannot be told of",
                        function.name
                    ));
                    continue;
                };
                // Functions that end in the same code share the probes there.
                for probe in placed {
                    if !found.probes.contains(&probe) {
                        found.probes.push(probe);
                    }
                }
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
    let releases = |call: &NestedCall| call.is_certain && is_release(call.name);
    let allocating: Vec<_> = function
        .calls
        .iter()
        .filter(|call| !is_release(call.name))
        .collect();
    let has_tails_alone = allocating.iter().all(|call| call.is_tail);
    // What it does is seen there, and would be counted twice. The operators of C++ that are left have a way of their own.
    let is_operator = function.is_operator();
    let is_elsewhere = allocating
        .iter()
        .any(|call| call.is_certain || (!call.is_tail && !is_operator));
    let probe = match function.kind {
        AllocatorKind::SizeFirst => return (!is_elsewhere).then_some(Probe::SizeFirst),
        AllocatorKind::Product => return (!is_elsewhere).then_some(Probe::Product),
        // They end in `malloc` for small alignments alone, which is counted there too: few ask for such.
        AllocatorKind::SizeSecond if has_tails_alone => return Some(Probe::SizeSecond),
        AllocatorKind::Indirect if has_tails_alone => return Some(Probe::Indirect),
        AllocatorKind::SizeSecond => Probe::SizeSecond,
        AllocatorKind::Indirect => Probe::Indirect,
        AllocatorKind::Release => {
            let is_elsewhere = function.calls.iter().any(releases);
            return (!is_elsewhere).then_some(Probe::Release);
        }
        // What ends in `malloc` when there is nothing to resize is counted there. What calls it on the way does so for
        // most sizes (musl), or hardly ever (glibc, which then has both).
        AllocatorKind::Resize if allocating.iter().any(|call| call.is_tail) => {
            return Some(Probe::ResizeNested);
        }
        AllocatorKind::Resize => Probe::Resize,
        AllocatorKind::ResizeProduct => Probe::ResizeProduct,
        AllocatorKind::Map | AllocatorKind::Unmap | AllocatorKind::Remap | AllocatorKind::Break => {
            return None;
        }
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
    wanted: &Wanted,
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
        PoolProbes::Arenas | PoolProbes::Mmap => true,
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
