//! Where probes on a function stand: at its beginning, while the arguments lie in their registers, and on every way back,
//! where a register holds the result. It reads the code in an ELF file; it attaches nothing.
//!
//! A probe on a return address would need a place on the target's stack, which the kernel would have to write. So the
//! code is followed from the function's beginning (`flow`), also where it goes on in another place: a cold part, or a
//! function that it ends in by a jump.
//!
//! The kernel emulates some instructions; all others it single-steps in a copy, which takes two more exceptions. Which
//! ones are emulated is said in `x86_64` and `arm64`. The file is hostile: any bytes give probe points or a reason.

// On x86-64 for its tests.
#[cfg(any(test, target_arch = "aarch64"))]
mod arm64;
mod code;
mod flow;
mod imports;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use self::arm64 as machine;
pub use self::code::Code;
#[cfg(target_arch = "x86_64")]
use self::x86_64 as machine;
use super::elf::Import;

/// Most instructions of a function and of what it jumps to; with 15 bytes each they fit into 64 KiB.
pub const MAX_INSTRUCTIONS: usize = 4096;

/// Most arguments that a probe at the beginning can be asked for.
pub const MAX_ARGUMENTS: usize = 3;

/// An instruction that a probe stands on: the probe is hit before it is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbePoint {
    /// Virtual address, as linked.
    pub address: u64,
    /// Offset in the file.
    pub file_offset: u64,
    /// Whether the kernel emulates the instruction instead of single-stepping a copy of it (Linux 5.10 and later).
    pub is_emulated: bool,
}

/// A probe on a way back.
///
/// If the register is not 0 when the probe is hit, its value is what the function returns. If it is 0 the hit says
/// nothing: the function may yet find a result, and then passes another of the points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReturnPoint {
    /// Where it stands.
    pub point: ProbePoint,
    /// The register that holds the result, as an index into `profiler_common::event::UserRegisters::general`.
    pub general_idx: u8,
}

/// The probes on one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionProbes {
    /// Hit once for each call, before an argument register is written; again where the function ends in a call of itself
    /// that is a jump to its beginning, as glibc's `free` does (2.43) when a thread has no cache yet.
    pub enter: ProbePoint,
    /// Every way from `enter` to a return with a result other than 0 passes at least one, some ways more than one: the
    /// first hit counts. Sorted by address.
    pub returns: Vec<ReturnPoint>,
    /// Jumps to addresses that are only known when the program runs, as glibc's `__malloc_hook` (up to 2.33): a call
    /// that leaves by one of them is seen to return only if the function that it leads to passes a point.
    pub n_unseen_ways: usize,
    /// The functions that it calls and that it ends in by a jump, each once, sorted.
    pub callees: Vec<Callee>,
}

/// A function that is called from the code of another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Callee {
    /// Which one.
    pub function: Target,
    /// Whether it is jumped to, so that it returns to the caller's caller.
    pub is_tail: bool,
    /// Whether each call that returns a result other than 0, or that returns where none is asked for, passes it.
    pub is_certain: bool,
}

/// What a call or a jump leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// An address of the same file.
    Address(u64),
    /// A function that the dynamic linker binds.
    Import(Import),
}

/// What is asked of the probes on a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// How many arguments must still lie in their registers, at most [`MAX_ARGUMENTS`].
    pub n_arguments: usize,
    /// In which registers the result may be.
    pub results: ResultRegisters,
}

/// In which registers a probe on a way back may find the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultRegisters {
    /// The function returns nothing: no probes on its ways back.
    None,
    /// The one that the calling convention names (rax, x0).
    Convention,
    /// Any that holds it already, preferably that one.
    Any,
    /// The function returns whether it succeeded, and what it found through a pointer: the points are its return
    /// instructions, which are not emulated on x86-64. There the register says what the function returns, 0 too.
    AtReturn,
}

/// Why a function cannot be probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The address is not in the file, or a way leads out of it.
    #[error("the code at {0:#x} is not in the file")]
    NotInFile(u64),
    /// The bytes are no instruction.
    #[error("no instruction at {0:#x}")]
    NoInstruction(u64),
    /// More than [`MAX_INSTRUCTIONS`].
    #[error("the function is longer than {MAX_INSTRUCTIONS} instructions")]
    TooLong,
    /// A loop leads back to its first instruction.
    #[error("it has no place that each call passes once")]
    NoEnter,
}

/// The probes on the function that begins at an address. A jump to one of `others` is taken for the end of this
/// function: those have probes of their own.
pub fn probes_at(
    code: &Code<'_>,
    start: u64,
    wanted: Wanted,
    others: &[u64],
) -> Result<FunctionProbes, ProbeError> {
    flow::probes(code, start, wanted, others)
}

/// General registers, as bits by their index into `profiler_common::event::UserRegisters::general`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Registers(u32);

impl Registers {
    const NONE: Self = Self(0);
    const ALL: Self = Self(u32::MAX);

    /// The one; an index beyond 31 is none.
    const fn one(general_idx: u8) -> Self {
        match 1_u32.checked_shl(general_idx as u32) {
            Some(bit) => Self(bit),
            None => Self::NONE,
        }
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn contains(self, general_idx: u8) -> bool {
        !self.and(Self::one(general_idx)).is_empty()
    }

    /// The one with the lowest index.
    fn first(self) -> Option<u8> {
        (!self.is_empty()).then(|| self.0.trailing_zeros() as u8)
    }
}

/// What one instruction does, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    n_bytes: u8,
    is_emulated: bool,
    flow: Flow,
    /// Registers that it writes or may write. What a called function clobbers is not among them.
    writes: Registers,
    /// `(to, from)`: all 64 bits of one register are copied to another.
    copies: Option<(u8, u8)>,
    /// The register that it sets to 0.
    zeroes: Option<u8>,
    /// The constant address that it gives to a register.
    loads_address: Option<u64>,
    /// Whether it does nothing, as what compilers fill gaps with.
    is_padding: bool,
    /// The register whose being 0 decides the next branch, or this one.
    tests: Option<u8>,
}

/// Where an instruction leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Jump(u64),
    Branch {
        target: u64,
        condition: Condition,
    },
    /// `None`: where to is only known when the program runs.
    Call(Option<u64>),
    /// To the address that a slot of the file's memory holds.
    JumpThrough(u64),
    /// To an address that is only known when the program runs.
    JumpAnywhere,
    Return,
    /// It stops the program.
    Stop,
}

/// When a branch is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// The tested register is 0.
    Zero,
    /// It is not 0.
    NotZero,
    /// Something else.
    Other,
}
