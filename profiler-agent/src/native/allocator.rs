//! The functions of an ELF file that give memory out and take it back, and where probes on them stand: the C library's,
//! and those of jemalloc, tcmalloc and mimalloc.
//!
//! Functions are known by their names, so of a file without symbols only what it exports is found.

use super::elf::{Elf, Import};
use super::probe_points::{
    self, Code, FunctionProbes, ProbeError, ResultRegisters, Target, Wanted,
};

/// How a function says how much memory it is about, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AllocatorKind {
    /// `f(size, ..)` returns the memory.
    SizeFirst,
    /// `f(alignment, size)` returns the memory.
    SizeSecond,
    /// `f(count, size)` returns the memory.
    Product,
    /// `f(old, size)` returns the memory; the old one is gone if that is not NULL.
    Resize,
    /// `f(old, count, size)`, the same.
    ResizeProduct,
    /// `f(where, alignment, size)` returns 0 if the pointer to the memory is at `where`.
    Indirect,
    /// `f(old, ..)` takes the memory back; NULL is none.
    Release,
    /// `f(where, size, protection, ..)` maps memory and returns where.
    Map,
    /// `f(address, size)` unmaps a range.
    Unmap,
    /// `f(address, size, new size, ..)` gives a mapping another size, and returns where it is then.
    Remap,
    /// `f(increment)` moves the end of the heap, and returns where it was.
    Break,
}

/// One function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocatorFunction {
    /// What it is called; one of its names, if it has several.
    pub name: &'static str,
    /// Virtual address, as linked.
    pub address: u64,
    /// How it is called.
    pub kind: AllocatorKind,
    /// Where probes on it stand, or why it has none.
    pub probes: Result<FunctionProbes, ProbeError>,
    /// The functions of this kind that its own code calls, sorted by name. What it does is seen there too; what it calls
    /// indirectly is not said here.
    pub calls: Vec<NestedCall>,
}

/// A call of one allocator function by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NestedCall {
    /// What is called.
    pub name: &'static str,
    /// Whether it is jumped to: then it returns in place of the caller, at the points of the one that is called.
    pub is_tail: bool,
    /// Whether whatever the caller does is done there; else only on some of its ways.
    pub is_certain: bool,
}

impl AllocatorFunction {
    /// Whether what it does is, on some of its ways, seen at another one too.
    #[must_use]
    pub fn is_nested(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Whether it is one of C++.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.name.starts_with(OPERATOR)
    }

    /// Whether all that it does is done by functions that it jumps to, as mimalloc's `posix_memalign` does: then it never
    /// returns by itself, and what it gives out is seen there or nowhere.
    #[must_use]
    pub fn is_jump(&self) -> bool {
        let returns_memory = !matches!(self.kind, AllocatorKind::Release | AllocatorKind::Unmap);
        let probes = self.probes.as_ref();
        returns_memory && probes.is_ok_and(|probes| probes.returns.is_empty())
    }
}

impl AllocatorKind {
    /// What is asked of probes on it.
    #[must_use]
    pub const fn wanted(self) -> Wanted {
        let (n_arguments, results) = match self {
            Self::SizeFirst | Self::Break => (1, ResultRegisters::Any),
            Self::SizeSecond | Self::Product | Self::Resize => (2, ResultRegisters::Any),
            Self::ResizeProduct | Self::Map | Self::Remap => (3, ResultRegisters::Any),
            Self::Indirect => (3, ResultRegisters::AtReturn),
            Self::Release => (1, ResultRegisters::None),
            Self::Unmap => (2, ResultRegisters::None),
        };
        Wanted {
            n_arguments,
            results,
        }
    }
}

/// Names and kinds: C11 7.22.3, POSIX, glibc's manual (3.2.3), the manuals of jemalloc, tcmalloc and mimalloc, and the Itanium
/// C++ ABI's names of `operator new` and `operator delete`. Where two names are one function the first counts.
const FUNCTIONS: [(&str, AllocatorKind); 66] = {
    use AllocatorKind::{Indirect, Product, Release, Resize, ResizeProduct, SizeFirst, SizeSecond};
    [
        ("malloc", SizeFirst),
        ("free", Release),
        ("calloc", Product),
        ("realloc", Resize),
        ("reallocarray", ResizeProduct),
        ("memalign", SizeSecond),
        ("aligned_alloc", SizeSecond),
        ("posix_memalign", Indirect),
        ("valloc", SizeFirst),
        ("pvalloc", SizeFirst),
        ("cfree", Release),
        ("free_sized", Release),
        ("free_aligned_sized", Release),
        ("je_malloc", SizeFirst),
        ("je_calloc", Product),
        ("je_realloc", Resize),
        ("je_memalign", SizeSecond),
        ("je_aligned_alloc", SizeSecond),
        ("je_posix_memalign", Indirect),
        ("je_valloc", SizeFirst),
        ("je_free", Release),
        ("mallocx", SizeFirst),
        ("rallocx", Resize),
        ("dallocx", Release),
        ("sdallocx", Release),
        ("tc_malloc", SizeFirst),
        ("tc_calloc", Product),
        ("tc_realloc", Resize),
        ("tc_memalign", SizeSecond),
        ("tc_posix_memalign", Indirect),
        ("tc_valloc", SizeFirst),
        ("tc_pvalloc", SizeFirst),
        ("tc_free", Release),
        ("tc_free_sized", Release),
        ("mi_malloc", SizeFirst),
        ("mi_zalloc", SizeFirst),
        ("mi_calloc", Product),
        ("mi_realloc", Resize),
        ("mi_reallocarray", ResizeProduct),
        ("mi_memalign", SizeSecond),
        ("mi_aligned_alloc", SizeSecond),
        ("mi_posix_memalign", Indirect),
        ("mi_malloc_aligned", SizeFirst),
        ("mi_valloc", SizeFirst),
        ("mi_pvalloc", SizeFirst),
        ("mi_free", Release),
        ("_Znwm", SizeFirst),
        ("_Znam", SizeFirst),
        ("_ZnwmRKSt9nothrow_t", SizeFirst),
        ("_ZnamRKSt9nothrow_t", SizeFirst),
        ("_ZnwmSt11align_val_t", SizeFirst),
        ("_ZnamSt11align_val_t", SizeFirst),
        ("_ZnwmSt11align_val_tRKSt9nothrow_t", SizeFirst),
        ("_ZnamSt11align_val_tRKSt9nothrow_t", SizeFirst),
        ("_ZdlPv", Release),
        ("_ZdaPv", Release),
        ("_ZdlPvm", Release),
        ("_ZdaPvm", Release),
        ("_ZdlPvRKSt9nothrow_t", Release),
        ("_ZdaPvRKSt9nothrow_t", Release),
        ("_ZdlPvSt11align_val_t", Release),
        ("_ZdaPvSt11align_val_t", Release),
        ("_ZdaPvSt11align_val_tRKSt9nothrow_t", Release),
        ("_ZdlPvSt11align_val_tRKSt9nothrow_t", Release),
        ("_ZdlPvmSt11align_val_t", Release),
        ("_ZdaPvmSt11align_val_t", Release),
    ]
};

/// Functions that map memory and give it back: mmap(2), mremap(2), sbrk(2). The C library's allocators go through them,
/// the dynamic linker has copies of its own.
const MAPPERS: [(&str, AllocatorKind); 5] = [
    ("mmap", AllocatorKind::Map),
    ("mmap64", AllocatorKind::Map),
    ("munmap", AllocatorKind::Unmap),
    ("mremap", AllocatorKind::Remap),
    ("sbrk", AllocatorKind::Break),
];

/// Prefix of the names of C++ operators.
const OPERATOR: &str = "_Z";

/// The allocator functions that a file defines, in the order of the table of names. Those of C++ only where they have a way
/// of their own: libstdc++'s call `malloc`, jemalloc's do so when there is no memory left.
#[must_use]
pub fn functions(elf: &Elf<'_>, code: &Code<'_>) -> Vec<AllocatorFunction> {
    functions_of(FUNCTIONS, elf, code)
}

/// The functions of a file that map memory and give it back, in the order of their table.
#[must_use]
pub fn mappers(elf: &Elf<'_>, code: &Code<'_>) -> Vec<AllocatorFunction> {
    functions_of(MAPPERS, elf, code)
}

fn functions_of<const N: usize>(
    table: [(&'static str, AllocatorKind); N],
    elf: &Elf<'_>,
    code: &Code<'_>,
) -> Vec<AllocatorFunction> {
    let ranges = elf.symbols(table.map(|(name, _)| name));
    let mut defined: Vec<(&'static str, AllocatorKind, u64)> = Vec::new();
    for ((name, kind), range) in table.into_iter().zip(ranges) {
        let Some(range) = range else { continue };
        if defined
            .iter()
            .all(|&(_, _, address)| address != range.start)
        {
            defined.push((name, kind, range.start));
        }
    }
    let starts: Vec<u64> = defined.iter().map(|&(_, _, address)| address).collect();
    let function = |&(name, kind, address): &(&'static str, AllocatorKind, u64)| {
        let probes = probe_points::probes_at(code, address, kind.wanted(), &starts);
        let calls = probes
            .as_ref()
            .map_or_else(|_| Vec::new(), |probes| nested_calls(probes, &defined));
        AllocatorFunction {
            name,
            address,
            kind,
            probes,
            calls,
        }
    };
    let functions = defined.iter().map(function);
    functions
        .filter(|function| {
            let is_elsewhere = function.calls.iter().any(|call| call.is_certain);
            !function.is_operator() || !is_elsewhere
        })
        .collect()
}

/// The allocator functions among those that a function calls. What it imports may be defined in this file or in
/// another.
fn nested_calls(
    probes: &FunctionProbes,
    defined: &[(&'static str, AllocatorKind, u64)],
) -> Vec<NestedCall> {
    let name_of = |target: &Target| match target {
        Target::Address(address) => {
            let mut defined = defined.iter();
            defined.find_map(|&(name, _, start)| (start == *address).then_some(name))
        }
        Target::Import(Import::Symbol(symbol)) => {
            let mut names = FUNCTIONS.iter();
            names.find_map(|&(name, _)| (name == symbol).then_some(name))
        }
        Target::Import(Import::ChosenBy(_)) => None,
    };
    let callees = probes.callees.iter();
    let mut calls: Vec<NestedCall> = callees
        .filter_map(|callee| {
            Some(NestedCall {
                name: name_of(&callee.function)?,
                is_tail: callee.is_tail,
                is_certain: callee.is_certain,
            })
        })
        .collect();
    calls.sort_unstable();
    calls.dedup();
    calls
}
