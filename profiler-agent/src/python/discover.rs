//! Discovery: from a process to its interpreter, step by step, each step with its result in words.
//!
//! What is learned of a binary is kept by (device, inode, size, time of change): the second process of a
//! binary costs a few reads.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use profiler_common::process::ThreadSlot;

use super::binary::{self, Binary, PythonBinary};
use super::layout::{Layout, Version};
use super::runtime::{self, RuntimeError};
use crate::ids::{Address, Pid};
use crate::native::elf::{AddressRange, load_bias};
use crate::process::file::{self, FileKey};
use crate::process::maps::{self, Mapping};
use crate::process::memory::{MemoryError, ProcessMemory};

/// Most binaries that are remembered.
const MAX_CACHED: usize = 16_384;

/// Most executable mappings of one process that are looked at.
const MAX_MAPPINGS: usize = 4096;

/// A process's interpreter, ready to be unwound. Addresses are the process's.
#[derive(Debug, Clone, PartialEq)]
pub struct Interpreter {
    /// Version.
    pub version: Version,
    /// Offsets.
    pub layout: Layout,
    /// `_PyRuntime`.
    pub runtime: Address,
    /// First interpreter state.
    pub first: Address,
    /// Path of the binary that holds it, as the process sees it.
    pub binary_path: PathBuf,
    /// The binary's identity.
    pub binary_key: FileKey,
    /// What is known of the binary.
    pub binary: Arc<PythonBinary>,
    /// Code of the eval loop.
    pub eval: AddressRange,
    /// Split-off code of the eval loop.
    pub eval_cold: AddressRange,
    /// Where threads keep their thread state.
    pub thread_slot: Option<ThreadSlot>,
}

/// What a process turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum Discovery {
    /// A CPython that can be unwound.
    Python(Box<Interpreter>),
    /// No CPython in it (now; it may still load one).
    NotPython {
        /// One of its binaries names libpython: it is about to load it.
        expected: bool,
    },
    /// A CPython that is not initialised yet.
    NotYet,
    /// A CPython that cannot be unwound, and why.
    Refused {
        /// Its version, where that much is known.
        version: Option<Version>,
        /// In words.
        reason: String,
    },
    /// The process has ended.
    Gone,
}

/// One step of discovery, for `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryStep {
    /// What was tried.
    pub what: &'static str,
    /// What came out.
    pub result: Result<String, String>,
}

/// What the mapped binaries of a process hold.
#[derive(Debug)]
struct Candidates {
    /// Binaries with a runtime, likely ones first.
    found: Vec<Candidate>,
    /// A binary with a runtime that cannot be used.
    problem: Option<String>,
    /// A binary names libpython, which is not mapped yet.
    expected: bool,
}

/// Discovers interpreters, with what it remembers of binaries.
#[derive(Debug, Default)]
pub struct Discoverer {
    binaries: HashMap<FileKey, Binary>,
}

/// A binary with a runtime, as it is mapped.
#[derive(Debug)]
struct Candidate {
    mapping: Mapping,
    key: FileKey,
    binary: Arc<PythonBinary>,
    bias: u64,
}

impl Discoverer {
    /// Finds the interpreter of a process. `steps` gets every step, for those who want to know why.
    pub fn discover(&mut self, pid: Pid, steps: &mut dyn FnMut(DiscoveryStep)) -> Discovery {
        let mut step = |what, result| steps(DiscoveryStep { what, result });
        let mappings = match maps::of_process(pid) {
            Ok(mappings) => mappings,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Discovery::Gone,
            Err(error) => {
                step("mappings", Err(format!("/proc/{pid}/maps: {error}")));
                let reason = format!("its mappings cannot be read: {error}");
                return Discovery::Refused {
                    version: None,
                    reason,
                };
            }
        };
        let Candidates {
            found: candidates,
            problem,
            expected,
        } = self.candidates(pid, mappings, &mut step);
        let memory = ProcessMemory::new(pid);
        let mut not_yet = false;
        let mut refused = problem.map(|reason| Discovery::Refused {
            version: None,
            reason,
        });
        for candidate in candidates {
            match interpreter(memory, candidate, &mut step) {
                Ok(interpreter) => return Discovery::Python(Box::new(interpreter)),
                Err((_, RuntimeError::NotInitialised)) => not_yet = true,
                Err((_, RuntimeError::Memory(MemoryError::Gone))) => return Discovery::Gone,
                Err((version, error)) => {
                    refused = Some(Discovery::Refused {
                        version: Some(version),
                        reason: error.to_string(),
                    });
                }
            }
        }
        match refused {
            Some(refused) => refused,
            None if not_yet => Discovery::NotYet,
            None => Discovery::NotPython { expected },
        }
    }

    /// Looks through the mapped binaries.
    fn candidates(
        &mut self,
        pid: Pid,
        mappings: Vec<Mapping>,
        step: &mut dyn FnMut(&'static str, Result<String, String>),
    ) -> Candidates {
        let mut executable: Vec<Mapping> = mappings
            .into_iter()
            .filter(|mapping| mapping.executable && !mapping.is_vdso())
            .take(MAX_MAPPINGS)
            .collect();
        // The name decides nothing but the order.
        executable.sort_by_key(|mapping| !mapping.path.to_string_lossy().contains("python"));
        let n_executable = executable.len();
        let mut candidates = Vec::new();
        let mut problem = None;
        let mut expected = false;
        let mut without_runtime = None;
        for mapping in executable {
            let opened = file::open_mapped(pid, &mapping);
            let (file, key) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    step("binary", Err(error.to_string()));
                    let name = mapping.path.file_name().unwrap_or_default();
                    if name.to_string_lossy().contains("python") {
                        problem = Some(format!("its binary cannot be read: {error}"));
                    }
                    continue;
                }
            };
            let binary = match self.binaries.get(&key) {
                Some(binary) => binary.clone(),
                None => match binary::inspect(file) {
                    Ok(binary) => self.remember(key, binary),
                    Err(binary::BinaryError::Elf(_)) => self.remember(key, Binary::Other),
                    Err(error @ binary::BinaryError::NoVersion) => {
                        let reason = format!("{}: {error}", mapping.path.display());
                        step("binary", Err(reason.clone()));
                        problem = Some(reason);
                        continue;
                    }
                },
            };
            let binary = match binary {
                Binary::Python(binary) => binary,
                other @ (Binary::LoadsPython | Binary::Other) => {
                    expected |= matches!(other, Binary::LoadsPython);
                    let name = mapping.path.file_name().unwrap_or_default();
                    if name.to_string_lossy().starts_with("libpython") {
                        without_runtime = Some(mapping.path.display().to_string());
                    }
                    continue;
                }
            };
            let Some(bias) = load_bias(&binary.segments, mapping.start.0, mapping.file_offset)
            else {
                continue;
            };
            step(
                "binary",
                Ok(format!(
                    "{}: CPython {} by {}",
                    mapping.path.display(),
                    binary.version,
                    binary.runtime_found_by
                )),
            );
            let known = |candidate: &Candidate| candidate.key == key && candidate.bias == bias;
            if !candidates.iter().any(known) {
                candidates.push(Candidate {
                    mapping,
                    key,
                    binary,
                    bias,
                });
            }
        }
        if candidates.is_empty() {
            let reason = format!(
                "none of its {n_executable} mapped binaries holds a CPython runtime (_PyRuntime)"
            );
            step("binary", Err(reason));
            if let (true, Some(path)) = (expected, without_runtime) {
                problem = Some(format!(
                    "{path} has no _PyRuntime: CPython before 3.6 is not supported"
                ));
            }
        }
        Candidates {
            found: candidates,
            problem,
            expected,
        }
    }

    fn remember(&mut self, key: FileKey, binary: Binary) -> Binary {
        if self.binaries.len() >= MAX_CACHED {
            self.binaries.clear();
        }
        self.binaries.insert(key, binary.clone());
        binary
    }
}

/// Looks at a candidate's runtime in the process.
fn interpreter(
    memory: ProcessMemory,
    candidate: Candidate,
    step: &mut dyn FnMut(&'static str, Result<String, String>),
) -> Result<Interpreter, (Version, RuntimeError)> {
    let Candidate {
        mapping,
        key,
        binary,
        bias,
    } = candidate;
    let version = binary.version;
    let runtime = Address(binary.runtime.wrapping_add(bias));
    let mut named = |what, result: Result<String, RuntimeError>| {
        step(what, result.clone().map_err(|error| error.to_string()));
        result.map(|_| ()).map_err(|error| (version, error))
    };
    let layout = runtime::layout(&memory, version, runtime);
    named(
        "layout",
        layout
            .clone()
            .map(|layout| format!("offsets of CPython {}", Version(layout.walk.version_hex))),
    )?;
    let layout = layout.map_err(|error| (version, error))?;
    let first = runtime::first_interpreter(&memory, &layout, runtime);
    named(
        "runtime",
        first
            .clone()
            .map(|first| format!("_PyRuntime at {runtime}, first interpreter at {first}")),
    )?;
    let first = first.map_err(|error| (version, error))?;
    let thread_slot = runtime::calibrate_thread_slot(&memory, &layout, first);
    let found = match thread_slot {
        Some(slot) => format!(
            "threads keep their state at {:#x} behind the thread pointer",
            slot.offset
        ),
        None => "no slot found; threads are looked up in the interpreter's list".to_owned(),
    };
    named("thread state", Ok(found))?;
    let loaded = |range: AddressRange| AddressRange {
        start: range.start.wrapping_add(bias),
        end: range.end.wrapping_add(bias),
    };
    let eval = loaded(binary.eval);
    let exact = if binary.eval_is_exact {
        "by symbol"
    } else {
        "no symbol of its own: the whole text"
    };
    named(
        "eval loop",
        Ok(format!("{:#x} to {:#x} ({exact})", eval.start, eval.end)),
    )?;
    Ok(Interpreter {
        version: Version(layout.walk.version_hex),
        layout,
        runtime,
        first,
        binary_path: mapping.path,
        binary_key: key,
        eval,
        eval_cold: if binary.eval_cold.is_empty() {
            AddressRange::default()
        } else {
            loaded(binary.eval_cold)
        },
        binary,
        thread_slot,
    })
}
