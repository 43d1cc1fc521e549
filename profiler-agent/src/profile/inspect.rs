//! What a look into a process finds: its stacks at one moment, its objects by type.

use std::time::SystemTime;

use super::aggregate::ResolvedFrame;

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadState {
    /// On a CPU, or ready to be.
    Running,
    /// Waits; a signal can wake it.
    Sleeping,
    /// Waits, and nothing else can wake it.
    Uninterruptible,
    /// Stopped by a signal or a debugger.
    Stopped,
}

/// How much of local variables is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LocalsDetail {
    /// Nothing.
    #[default]
    None,
    /// Each value up to [`Self::max_chars`] characters: some 128.
    Short,
    /// Some 1024.
    Long,
}

impl LocalsDetail {
    /// Characters of a value, after which it is cut.
    #[must_use]
    pub const fn max_chars(self) -> usize {
        match self {
            Self::None => 0,
            Self::Short => 128,
            Self::Long => 1024,
        }
    }
}

/// A local variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalVariable {
    /// Its name.
    pub name: Box<str>,
    /// It is an argument of the function.
    pub is_argument: bool,
    /// What it was bound to; `None`: no two readings said the same, or what is there makes no sense.
    pub value: Option<LocalValue>,
}

/// What a variable was bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalValue {
    /// Module and qualified name of its type; without the module for the interpreter's own.
    pub type_name: Box<str>,
    /// As `repr` would write it, or `<module.Type object at 0x...>`. Whatever the program says: to be escaped.
    pub text: String,
    /// There is more than the text says.
    pub is_truncated: bool,
}

/// The local variables of a frame.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameLocals {
    /// Those that are bound, arguments first.
    pub variables: Vec<LocalVariable>,
    /// Why some are missing, in words; empty: none is.
    pub problem: Box<str>,
}

/// The stack of a thread.
#[derive(Debug, Clone)]
pub struct ThreadStack {
    /// Its id, in the initial pid namespace.
    pub tid: u32,
    /// Its name in Python, else the kernel's.
    pub name: Box<str>,
    /// What it does.
    pub state: ThreadState,
    /// Function of the kernel that it waits in; empty when it runs, or when that is not known.
    pub wait_function: String,
    /// Whether it holds the GIL; `None`: there is none, or it is not known.
    pub holds_gil: Option<bool>,
    /// Leaf first; empty between calls into Python.
    pub frames: Vec<ResolvedFrame>,
    /// The local variables of each of them, in the same order; empty when they were not asked for.
    pub locals: Vec<FrameLocals>,
    /// It ran on, and no two readings said the same.
    pub is_uncertain: bool,
    /// Outer frames are missing.
    pub is_truncated: bool,
}

/// The stacks of a process.
#[derive(Debug, Clone)]
pub struct Stacks {
    /// When they were read.
    pub time: SystemTime,
    /// The main thread first, then by id.
    pub threads: Vec<ThreadStack>,
    /// Threads that are none of Python's.
    pub n_other_threads: u32,
}

/// The stacks of one process.
#[derive(Debug, Clone)]
pub struct ProcessStacks {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// When it was started.
    pub start_time: SystemTime,
    /// The program, and what it runs.
    pub program: String,
    /// Version of the interpreter.
    pub python_version: String,
    /// The stacks, or why there are none, in words.
    pub stacks: Result<Stacks, String>,
}

/// What is counted of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CensusType {
    /// Module and qualified name, made harmless.
    pub name: String,
    /// Objects.
    pub n_objects: u64,
    /// Their bytes.
    pub n_bytes: u64,
    /// Those that the collector follows.
    pub n_tracked: u64,
}

/// A large object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CensusObject {
    /// Name of its type.
    pub type_name: String,
    /// Where it is.
    pub address: u64,
    /// Its bytes.
    pub n_bytes: u64,
    /// Its length, where it has one.
    pub length: Option<u64>,
}

/// The objects of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Version of the interpreter.
    pub python_version: String,
    /// All types of which there are objects, most bytes first.
    pub types: Vec<CensusType>,
    /// The largest objects, largest first.
    pub largest: Vec<CensusObject>,
    /// Bytes that were read.
    pub n_read: u64,
    /// Bytes that were not: swapped out,
    pub n_swapped: u64,
    /// shared with other processes, or could be,
    pub n_shared: u64,
    /// private views of files,
    pub n_of_files: u64,
    /// or changed meanwhile.
    pub n_failed: u64,
}
