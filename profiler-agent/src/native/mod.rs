//! Native code of a process: ELF files, the eval loop's code, native symbols.

pub mod allocator;
pub mod build_id;
pub mod elf;
pub mod eval_loop;
pub mod function_scan;
pub mod headers;
pub mod probe_points;
#[cfg(target_arch = "x86_64")]
mod registers;
pub mod symbols;
mod unwind_table;
