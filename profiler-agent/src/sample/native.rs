//! Native leaf frames and kernel frames of samples.
//!
//! The leaf's native function is shown when the PC is outside of the interpreter's loop: C extensions,
//! libraries, the interpreter's own helpers. An address without a symbol is shown as module+offset, the offset of
//! its function's start where that is known.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use crate::ids::{Address, Generation, Pid};
use crate::kernel::kallsyms::Kallsyms;
use crate::native::build_id::BuildId;
use crate::native::elf::{ElfReader, Segment, load_bias};
use crate::native::symbols::SymbolTables;
use crate::process::file::{self, FileKey};
use crate::process::maps::{self, Mapping};
use crate::profile::aggregate::{KERNEL_MAPPING, ResolvedFrame, ResolvedFunction};
use crate::profile::model::FrameKind;
use crate::python::process::PythonProcess;

/// Mappings are read again for an address that lies in none: a library was loaded meanwhile. The first time after this;
/// each time in vain, as with generated code, twice as late.
const MAPPINGS_MIN_AGE: Duration = Duration::from_millis(5);

/// But not later than this.
const MAPPINGS_MAX_PAUSE: Duration = Duration::from_secs(1);

/// Mappings are read again in any case: a library may have taken the place of another.
const MAPPINGS_MAX_AGE: Duration = Duration::from_secs(30);

/// Functions that are remembered by address; a table that is full starts over.
const MAX_FUNCTIONS: usize = 32_768;

/// Files whose facts are remembered.
const MAX_FILES: usize = 1_024;

/// Frame of code that no file backs: generated code.
const ANONYMOUS: &str = "anonymous code";

/// Frame of code of a process that ended before anybody could look where its files are.
const ENDED: &str = "native code of a process that ended";

/// What is known of a mapped file.
#[derive(Debug)]
struct FileInfo {
    /// Its name without folders.
    name: Box<str>,
    path: Box<str>,
    build_id: Box<str>,
    segments: Vec<Segment>,
}

/// An address in a file.
struct Place {
    key: FileKey,
    info: Arc<FileInfo>,
    /// As linked.
    address: u64,
    /// A process that has the file mapped.
    pid: Pid,
}

/// The executable mappings of a program.
#[derive(Debug)]
struct Mapped {
    /// Whose they are: those of the process, or of the one that it was forked from.
    pid: Pid,
    read: Instant,
    /// How old they must be to be read again for an address that lies in none.
    pause: Duration,
    mappings: Vec<Mapping>,
    /// The files behind them, opened at first use; `None` when that failed.
    files: HashMap<usize, Option<FileKey>>,
}

/// The kernel's functions. By default none has a name.
#[derive(Debug, Default)]
pub struct KernelSymbols {
    reading: Option<JoinHandle<Option<Kallsyms>>>,
    read: Option<Kallsyms>,
}

impl KernelSymbols {
    /// Begins to read them, which takes some 100 ms, and as much longer as others want the CPUs: while the first sample
    /// waited for that, processes would end unread. The calling thread must have the right to see their addresses.
    #[must_use]
    pub fn begin() -> Self {
        let read = || match Kallsyms::read() {
            Ok(kallsyms) => Some(kallsyms),
            Err(error) => {
                tracing::warn!("kernel functions have no names: {error}");
                None
            }
        };
        Self {
            reading: Some(std::thread::spawn(read)),
            read: None,
        }
    }

    fn get(&mut self) -> Option<&mut Kallsyms> {
        if let Some(reading) = self.reading.take() {
            self.read = reading.join().unwrap_or_default();
        }
        self.read.as_mut()
    }
}

/// Names native and kernel addresses; owns what it has read of files.
#[derive(Debug, Default)]
pub struct NativeSymbolizer {
    kernel_symbols: KernelSymbols,
    kernel_functions: HashMap<u64, Arc<ResolvedFunction>, RandomState>,
    programs: HashMap<Generation, Mapped>,
    files: HashMap<FileKey, Arc<FileInfo>>,
    tables: SymbolTables<FileKey>,
    /// By file and address as linked; `None`: nothing to show.
    functions: HashMap<(FileKey, u64), Option<Arc<ResolvedFunction>>, RandomState>,
    /// Stand for what no file says.
    nameless: HashMap<&'static str, Arc<ResolvedFunction>>,
}

impl NativeSymbolizer {
    /// One with these functions of the kernel.
    #[must_use]
    pub fn new(kernel_symbols: KernelSymbols) -> Self {
        Self {
            kernel_symbols,
            ..Self::default()
        }
    }

    /// Appends the kernel frames, leaf first.
    pub fn kernel_frames(&mut self, addresses: &[u64], frames: &mut Vec<ResolvedFrame>) {
        for (idx, address) in addresses.iter().enumerate() {
            // Above the leaf these are return addresses: the call lies before.
            let looked_up = if idx == 0 {
                *address
            } else {
                address.wrapping_sub(1)
            };
            let function = self.kernel_function(looked_up);
            frames.push(ResolvedFrame {
                function,
                line: 0,
                address: *address,
            });
        }
    }

    fn kernel_function(&mut self, address: u64) -> Arc<ResolvedFunction> {
        if let Some(function) = self.kernel_functions.get(&address) {
            return function.clone();
        }
        let symbol = self
            .kernel_symbols
            .get()
            .and_then(|kallsyms| kallsyms.lookup(address));
        let (name, module) = match symbol {
            Some(symbol) => (symbol.name, symbol.module.unwrap_or_default()),
            None => (format!("kernel+{address:#x}").into(), Box::default()),
        };
        let function = Arc::new(ResolvedFunction {
            kind: FrameKind::Kernel,
            name,
            filename: module,
            start_line: 0,
            mapping: KERNEL_MAPPING.into(),
            build_id: Box::default(),
        });
        if self.kernel_functions.len() >= MAX_FUNCTIONS {
            self.kernel_functions.clear();
        }
        self.kernel_functions.insert(address, function.clone());
        function
    }

    /// Appends the native leaf, if there is something to show. `parent`: the process that forked this one, as long as
    /// it runs the program that it ran then.
    pub fn leaf_frame(
        &mut self,
        process: &PythonProcess,
        parent: Option<Pid>,
        ip: Address,
        frames: &mut Vec<ResolvedFrame>,
    ) {
        let function = match self.locate(process, parent, ip) {
            Some(place) => self.function(process, &place),
            None => Some(self.nameless(process.generation)),
        };
        if let Some(function) = function {
            frames.push(ResolvedFrame {
                function,
                line: 0,
                address: ip.0,
            });
        }
    }

    /// Forgets a program.
    pub fn remove(&mut self, generation: Generation) {
        self.programs.remove(&generation);
    }

    fn nameless(&mut self, generation: Generation) -> Arc<ResolvedFunction> {
        let is_known = |mapped: &Mapped| !mapped.mappings.is_empty();
        let name = if self.programs.get(&generation).is_some_and(is_known) {
            ANONYMOUS
        } else {
            ENDED
        };
        self.nameless
            .entry(name)
            .or_insert_with(|| {
                Arc::new(ResolvedFunction {
                    kind: FrameKind::Native,
                    name: name.into(),
                    filename: Box::default(),
                    start_line: 0,
                    mapping: Box::default(),
                    build_id: Box::default(),
                })
            })
            .clone()
    }

    /// What is behind an address of a process.
    fn locate(
        &mut self,
        process: &PythonProcess,
        parent: Option<Pid>,
        ip: Address,
    ) -> Option<Place> {
        let generation = process.generation;
        let is_stale = |mapped: &Mapped| {
            let age = mapped.read.elapsed();
            age > MAPPINGS_MAX_AGE || age > mapped.pause && find(&mapped.mappings, ip).is_none()
        };
        match self.programs.get_mut(&generation) {
            None => drop(
                self.programs
                    .insert(generation, Mapped::of_process(process, parent)),
            ),
            Some(mapped) if is_stale(mapped) => mapped.read_again(ip),
            Some(_) => {}
        }
        let mapped = self.programs.get_mut(&generation)?;
        let idx = find(&mapped.mappings, ip)?;
        let (pid, mapping) = (mapped.pid, &mapped.mappings[idx]);
        let files = &mut self.files;
        let key = (*mapped
            .files
            .entry(idx)
            .or_insert_with(|| remember_file(files, pid, mapping)))?;
        let info = files.get(&key)?.clone();
        let bias = load_bias(&info.segments, mapping.start.0, mapping.file_offset)?;
        Some(Place {
            key,
            info,
            address: ip.0.wrapping_sub(bias),
            pid,
        })
    }

    /// The function at a linked address. `None`: the interpreter's own code in a binary without symbols, where
    /// nothing tells its loop from the rest.
    fn function(
        &mut self,
        process: &PythonProcess,
        place: &Place,
    ) -> Option<Arc<ResolvedFunction>> {
        let (key, info, address) = (place.key, &place.info, place.address);
        if let Some(function) = self.functions.get(&(key, address)) {
            return function.clone();
        }
        // The open file is needed at the first look into its table only.
        let open = || reopen(place).ok_or(());
        let table = self.tables.table(&key, open);
        let symbol = table.and_then(|table| table.lookup(address));
        let is_interpreter = key == process.interpreter.binary_key;
        let (name, filename) = match symbol {
            Some(symbol) => (symbol.name, info.name.clone()),
            None => {
                // One frame a function, not one an address, where the file says where functions begin.
                let start = table.and_then(|table| table.start_of_nameless(address));
                let offset = start.unwrap_or(address);
                (format!("{}+{offset:#x}", info.name).into(), Box::default())
            }
        };
        let is_shown = !(is_interpreter && (filename.is_empty() || is_eval_loop(&name)));
        let function = is_shown.then(|| {
            Arc::new(ResolvedFunction {
                kind: FrameKind::Native,
                name,
                filename,
                start_line: 0,
                mapping: info.path.clone(),
                build_id: info.build_id.clone(),
            })
        });
        if self.functions.len() >= MAX_FUNCTIONS {
            self.functions.clear();
        }
        self.functions.insert((key, address), function.clone());
        function
    }
}

impl Mapped {
    /// A child that has ended had what its parent has. The parent may have gone a moment ago, and another process may
    /// have its number: that one has the interpreter elsewhere, or another one.
    fn of_process(process: &PythonProcess, parent: Option<Pid>) -> Self {
        let own = Self::read(process.pid);
        let interpreter = &process.interpreter;
        let is_same_program = |parent: &Self| {
            find(&parent.mappings, Address(interpreter.eval.start)).is_some_and(|idx| {
                parent.mappings[idx].file.inode == interpreter.binary_key.file.inode
            })
        };
        match parent.filter(|_| own.mappings.is_empty()) {
            Some(parent) => Some(Self::read(parent)).filter(is_same_program),
            None => None,
        }
        .unwrap_or(own)
    }

    fn read(pid: Pid) -> Self {
        // A process that has gone has no mappings.
        let mut mappings = maps::of_process(pid).unwrap_or_default();
        mappings.retain(|mapping| mapping.executable);
        Self {
            pid,
            read: Instant::now(),
            pause: MAPPINGS_MIN_AGE,
            mappings,
            files: HashMap::new(),
        }
    }

    /// Reads them again, for the sake of an address. What is known of a process that has gone is kept.
    fn read_again(&mut self, ip: Address) {
        let mut now = Self::read(self.pid);
        if now.mappings.is_empty() {
            now.mappings = std::mem::take(&mut self.mappings);
            now.files = std::mem::take(&mut self.files);
        }
        if find(&now.mappings, ip).is_none() {
            now.pause = (self.pause * 2).min(MAPPINGS_MAX_PAUSE);
        }
        *self = now;
    }
}

/// Whether this is the evaluation loop, or one of the functions that it is made of (`Python/generated_cases.c.h`).
fn is_eval_loop(name: &str) -> bool {
    name.starts_with("_PyEval_EvalFrameDefault") || name.starts_with("_TAIL_CALL_")
}

/// Index of the mapping that holds an address; they are in the order of their addresses.
fn find(mappings: &[Mapping], ip: Address) -> Option<usize> {
    let after = mappings.partition_point(|mapping| mapping.start <= ip);
    let idx = after.checked_sub(1)?;
    (ip < mappings[idx].end).then_some(idx)
}

fn remember_file(
    files: &mut HashMap<FileKey, Arc<FileInfo>>,
    pid: Pid,
    mapping: &Mapping,
) -> Option<FileKey> {
    let (opened, key) = file::open_mapped(pid, mapping).ok()?;
    if files.contains_key(&key) {
        return Some(key);
    }
    if files.len() >= MAX_FILES {
        files.clear();
    }
    let build_id = BuildId::of_file(&opened)
        .ok()
        .flatten()
        .map(|build_id| build_id.to_string())
        .unwrap_or_default();
    let segments = ElfReader::new(opened).parse().ok()?.segments();
    let name = mapping
        .path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let info = FileInfo {
        // The vdso's has brackets already.
        name: name.trim_matches(['[', ']']).into(),
        path: mapping.path.to_string_lossy().into_owned().into(),
        build_id: build_id.into(),
        segments,
    };
    files.insert(key, Arc::new(info));
    Some(key)
}

/// Opens a file once more, through whatever mapping of the process still has it.
fn reopen(place: &Place) -> Option<std::fs::File> {
    let is_it = |mapping: &&Mapping| {
        mapping.executable && *mapping.path.to_string_lossy() == *place.info.path
    };
    maps::of_process(place.pid)
        .ok()?
        .iter()
        .filter(is_it)
        .find_map(|mapping| {
            file::open_mapped(place.pid, mapping)
                .ok()
                .filter(|(_, opened)| *opened == place.key)
        })
        .map(|(file, _)| file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_again_ever_later_while_it_is_in_vain_and_kept_when_the_process_is_gone() {
        let own = Pid(std::process::id());
        let code = Address(Mapped::read as *const () as usize as u64);
        let nowhere = Address(1);
        let mut mapped = Mapped::read(own);
        assert!(find(&mapped.mappings, code).is_some());
        for _ in 0..3 {
            mapped.read_again(nowhere);
        }
        assert_eq!(mapped.pause, MAPPINGS_MIN_AGE * 8);
        for _ in 0..20 {
            mapped.read_again(nowhere);
        }
        assert_eq!(mapped.pause, MAPPINGS_MAX_PAUSE);
        mapped.read_again(code);
        assert_eq!(mapped.pause, MAPPINGS_MIN_AGE);
        mapped.pid = Pid(4_194_305);
        mapped.read_again(code);
        assert!(find(&mapped.mappings, code).is_some());
    }
}
