//! Discovery: from a process to its interpreter, step by step, each step with its result in words.
//!
//! What is learned of a binary is kept by (device, inode, size, time of change): the second process of a
//! binary costs a few reads.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use profiler_common::process::ThreadSlot;

use super::binary::{self, Binary, BinaryError, PythonBinary};
use super::layout::{Layout, LayoutNotFound, Version};
use super::refusal::Refusal;
use super::runtime::{self, RuntimeError};
use super::verify::{Evidence, verify};
use crate::ids::{Address, Pid};
use crate::native::elf::{AddressRange, is_of_this_architecture, load_bias};
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
    /// Its main interpreter's state.
    pub main: Address,
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
    /// Frames of this process, or of another of the binary, were found to be what the offsets say.
    pub is_verified: bool,
}

impl Interpreter {
    /// Bytes of a pool of small objects; 0 where there are none: free-threaded builds use another allocator.
    #[must_use]
    pub fn pool_bytes(&self) -> u64 {
        if self.binary.free_threaded {
            0
        } else {
            self.version.pool_bytes()
        }
    }
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
        /// Why.
        refusal: Refusal,
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
    /// It looks like Python, but cannot be used.
    problem: Option<Refusal>,
    /// A binary names libpython, which is not mapped yet.
    expected: bool,
}

/// Discovers interpreters, with what it remembers of binaries.
#[derive(Debug, Default)]
pub struct Discoverer {
    binaries: HashMap<FileKey, Binary>,
    /// Binaries whose offsets have stood the test.
    verified: HashSet<FileKey>,
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
                return Discovery::Refused {
                    version: None,
                    refusal: Refusal::MemoryUnreadable(error.to_string()),
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
        let mut refused = problem.map(|refusal| Discovery::Refused {
            version: None,
            refusal,
        });
        for candidate in candidates {
            let version = candidate.binary.version;
            match self.interpreter(memory, candidate, &mut step) {
                Ok(interpreter) => return Discovery::Python(Box::new(interpreter)),
                Err(Unusable::NotYet) => not_yet = true,
                Err(Unusable::Gone) => return Discovery::Gone,
                Err(Unusable::Refused(refusal)) => {
                    refused = Some(Discovery::Refused {
                        version: Some(version),
                        refusal,
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
                    if file_name(&mapping).contains("python") {
                        problem = Some(Refusal::BinaryUnreadable(error.to_string()));
                    }
                    continue;
                }
            };
            let binary = match self.binaries.get(&key) {
                Some(binary) => binary.clone(),
                None => match binary::inspect(file) {
                    Ok(binary) => self.remember(key, binary),
                    Err(BinaryError::Elf(_)) => self.remember(key, Binary::Other),
                    Err(BinaryError::NoVersion) => {
                        let refusal = Refusal::VersionUnknown(mapping.path.display().to_string());
                        step("binary", Err(refusal.to_string()));
                        problem = Some(refusal);
                        continue;
                    }
                },
            };
            let binary = match binary {
                Binary::Python(binary) => binary,
                other @ (Binary::LoadsPython | Binary::Other) => {
                    // A program that names libpython is about to map it; libpython itself has the runtime, or none.
                    let loads = matches!(other, Binary::LoadsPython);
                    expected |= loads;
                    let is_library = file_name(&mapping).starts_with("lib");
                    if without_runtime.is_none()
                        && is_called_python(&mapping)
                        && (is_library || !loads)
                    {
                        without_runtime = Some(mapping);
                    }
                    continue;
                }
            };
            let Some(bias) = load_bias(&binary.segments, mapping.start.0, mapping.file_offset)
            else {
                continue;
            };
            let known = |candidate: &Candidate| candidate.key == key && candidate.bias == bias;
            if !candidates.iter().any(known) {
                step(
                    "binary",
                    Ok(format!(
                        "{}: CPython {} by {}",
                        mapping.path.display(),
                        binary.version,
                        binary.runtime_found_by
                    )),
                );
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
            problem =
                problem.or_else(|| without_runtime.and_then(|mapping| no_runtime(pid, &mapping)));
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

impl Discoverer {
    /// Looks at a candidate's runtime in the process.
    fn interpreter(
        &mut self,
        memory: ProcessMemory,
        candidate: Candidate,
        step: &mut dyn FnMut(&'static str, Result<String, String>),
    ) -> Result<Interpreter, Unusable> {
        let Candidate {
            mapping,
            key,
            binary,
            bias,
        } = candidate;
        let runtime = Address(binary.runtime.wrapping_add(bias));
        let layout = runtime::layout(&memory, binary.version, runtime);
        let layout = layout.inspect_err(|error| step("layout", Err(error.to_string())))?;
        let version = Version(layout.walk.version_hex);
        let build = if binary.free_threaded {
            ", free-threaded"
        } else {
            ""
        };
        step("layout", Ok(format!("offsets of CPython {version}{build}")));
        let main = runtime::main_interpreter(&memory, &layout, runtime);
        let main = main.inspect_err(|error| step("runtime", Err(error.to_string())))?;
        step(
            "runtime",
            Ok(format!(
                "_PyRuntime at {runtime}, its main interpreter at {main}"
            )),
        );
        let thread_slot = runtime::calibrate_thread_slot(&memory, &layout, runtime);
        let found = match thread_slot {
            Some(slot) => format!("threads keep their state {}", slot_text(slot)),
            None => "no slot found; threads are looked up in the interpreter's list".to_owned(),
        };
        step("thread state", Ok(found));
        let is_verified = self.verify(memory, &layout, main, key, step)?;
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
        step(
            "eval loop",
            Ok(format!("{:#x} to {:#x} ({exact})", eval.start, eval.end)),
        );
        Ok(Interpreter {
            version,
            layout,
            runtime,
            main,
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
            is_verified,
        })
    }

    /// Whether the offsets have stood the test, in this process or in another of the binary. False: there is
    /// nothing yet to test them on.
    fn verify(
        &mut self,
        memory: ProcessMemory,
        layout: &Layout,
        main: Address,
        key: FileKey,
        step: &mut dyn FnMut(&'static str, Result<String, String>),
    ) -> Result<bool, Unusable> {
        if self.verified.contains(&key) {
            return Ok(true);
        }
        match verify(&memory, layout, main) {
            Evidence::Sound { n_frames } => {
                let found = format!(
                    "{n_frames} looked at; code objects, names and lines are where they should be"
                );
                step("frames", Ok(found));
                if self.verified.len() >= MAX_CACHED {
                    self.verified.clear();
                }
                self.verified.insert(key);
                Ok(true)
            }
            Evidence::None => {
                step(
                    "frames",
                    Ok("no thread runs Python now: not checked".to_owned()),
                );
                Ok(false)
            }
            Evidence::Unsound(unsound) => {
                step("frames", Err(unsound.to_string()));
                let version = Version(layout.walk.version_hex);
                Err(Unusable::Refused(Refusal::FramesUnsound {
                    version,
                    unsound,
                }))
            }
        }
    }
}

/// Where a slot lies, in words.
fn slot_text(slot: ThreadSlot) -> String {
    let side = if slot.offset < 0 { "before" } else { "behind" };
    let place = format!(
        "{:#x} bytes {side} the thread pointer",
        slot.offset.unsigned_abs()
    );
    if slot.indirect < 0 {
        place
    } else {
        format!(
            "{:#x} bytes behind what the pointer {place} points to",
            slot.indirect
        )
    }
}

/// Why a candidate is not the interpreter.
enum Unusable {
    /// It is not initialised.
    NotYet,
    /// The process has ended.
    Gone,
    /// It cannot be unwound.
    Refused(Refusal),
}

impl From<RuntimeError> for Unusable {
    fn from(error: RuntimeError) -> Self {
        Self::Refused(match error {
            RuntimeError::NotInitialised => return Self::NotYet,
            RuntimeError::Memory(MemoryError::Gone) => return Self::Gone,
            RuntimeError::Memory(error) => Refusal::MemoryUnreadable(error.to_string()),
            RuntimeError::Layout(error @ LayoutNotFound::Unsupported(_)) => {
                Refusal::VersionUnsupported(error.to_string())
            }
            RuntimeError::Layout(error @ LayoutNotFound::BadOffsets { .. }) => {
                Refusal::OffsetsUnusable(error)
            }
            RuntimeError::Inconsistent(version) => Refusal::StructuresInconsistent(version),
        })
    }
}

fn file_name(mapping: &Mapping) -> String {
    let name = mapping.path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Whether a binary's name says that there is a Python in it.
fn is_called_python(mapping: &Mapping) -> bool {
    let name = file_name(mapping);
    ["python", "libpython", "pypy", "libpypy"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Why a binary that is called like a Python has no runtime.
fn no_runtime(pid: Pid, mapping: &Mapping) -> Option<Refusal> {
    let (name, path) = (file_name(mapping), mapping.path.display().to_string());
    if name.contains("pypy") {
        return Some(Refusal::OtherImplementation(path));
    }
    let version = name.trim_start_matches("lib").trim_start_matches("python");
    if version.starts_with('2') {
        return Some(Refusal::VersionUnsupported(format!(
            "{path} has no runtime: CPython before 3.6 is not supported"
        )));
    }
    let (file, _) = file::open_mapped(pid, mapping).ok()?;
    if is_of_this_architecture(&file) == Some(false) {
        return Some(Refusal::OtherArchitecture(path));
    }
    // Launchers are called so too: `python3` that loads libpython has it mapped a moment later.
    Some(Refusal::RuntimeNotFound(path))
}
