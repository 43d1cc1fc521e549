//! Where probes on the allocators of a process are to stand: in each file that it has mapped as code and that defines
//! functions which allocate.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;

use crate::ids::Generation;
use crate::native::allocator::{self, AllocatorFunction, AllocatorKind};
use crate::native::elf::ElfReader;
use crate::native::probe_points::{Code, FunctionProbes};
use crate::process::file::{FileKey, open_mapped};
use crate::process::maps::{self, FileId, Mapping};
use crate::process::probe::{Probe, ProbeSite};
use crate::python::process::PythonProcess;

/// Index of the register of the calling convention: rax.
#[cfg(target_arch = "x86_64")]
const RESULT_IDX: u8 = 10;

/// x0.
#[cfg(target_arch = "aarch64")]
const RESULT_IDX: u8 = 0;

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
    /// Small objects are asked for.
    has_pools: bool,
    /// `malloc` and its like are.
    has_alloc: bool,
    /// Results can be found in any register.
    any_register: bool,
    files: HashMap<FileKey, Arc<FileProbes>>,
    seen: HashMap<Generation, HashSet<FileId>>,
}

impl Allocators {
    /// For what is asked for. `any_register`: results can be found in other registers than that of the calling
    /// convention.
    #[must_use]
    pub fn new(has_pools: bool, has_alloc: bool, any_register: bool) -> Self {
        Self {
            has_pools,
            has_alloc,
            any_register,
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
        if is_first && self.has_alloc && !found.names.iter().any(|name| name.contains("malloc")) {
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
        if self.has_alloc {
            let probes = match self.files.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let probes = Arc::new(probes_of_file(&file, self.any_register));
                    self.files.insert(key, probes.clone());
                    probes
                }
            };
            found.sites.extend(probes.probes.iter().map(|it| ProbeSite {
                probe: it.probe,
                file: file.clone(),
                path: path.to_string(),
                offset: it.offset,
                result_idx: it.result_idx,
                is_emulated: it.is_emulated,
            }));
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
fn probes_of_file(file: &Arc<File>, any_register: bool) -> FileProbes {
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
        let Some(enter) = enter_probe(&function) else {
            continue;
        };
        match &function.probes {
            Ok(probes) => {
                let n_stepped = probes
                    .returns
                    .iter()
                    .filter(|it| !it.point.is_emulated)
                    .count();
                let is_stepped = !probes.enter.is_emulated;
                tracing::debug!(
                    "{}: {} probes on its ways back, {n_stepped} single-stepped; at its beginning: {}",
                    function.name,
                    probes.returns.len(),
                    if is_stepped {
                        "single-stepped"
                    } else {
                        "emulated"
                    },
                );
                let Some(placed) = place(enter, probes, any_register) else {
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
    let mut allocating = function.calls.iter().filter(|call| !is_release(call.name));
    let releases = function.calls.iter().any(|call| is_release(call.name));
    let probe = match function.kind {
        AllocatorKind::SizeFirst => Probe::SizeFirst,
        AllocatorKind::SizeSecond => Probe::SizeSecond,
        AllocatorKind::Product => Probe::Product,
        AllocatorKind::Indirect => Probe::Indirect,
        AllocatorKind::Release => return (!releases).then_some(Probe::Release),
        AllocatorKind::Resize => {
            // What ends in `malloc` when there is nothing to resize is counted there; what calls it in between does so
            // for other sizes too.
            return match (
                allocating.next(),
                function.calls.iter().all(|call| call.is_tail),
            ) {
                (None, _) => Some(Probe::Resize),
                (Some(_), true) => Some(Probe::ResizeNested),
                (Some(_), false) => None,
            };
        }
        AllocatorKind::ResizeProduct => Probe::ResizeProduct,
    };
    allocating.next().is_none().then_some(probe)
}

/// All probes of a function; `None` when a way back cannot be told.
fn place(
    enter: Probe,
    probes: &FunctionProbes,
    any_register: bool,
) -> Option<impl Iterator<Item = FileProbe>> {
    let is_told = |idx: u8| any_register || idx == RESULT_IDX;
    if !probes.returns.iter().all(|it| is_told(it.general_idx)) {
        return None;
    }
    let first = FileProbe {
        probe: enter,
        offset: probes.enter.file_offset,
        result_idx: RESULT_IDX,
        is_emulated: probes.enter.is_emulated,
    };
    let returns = probes.returns.clone().into_iter().map(|it| FileProbe {
        probe: Probe::Leave,
        offset: it.point.file_offset,
        result_idx: it.general_idx,
        is_emulated: it.point.is_emulated,
    });
    Some(std::iter::once(first).chain(returns))
}
