//! Native code of a process: ELF files, the eval loop's code, native symbols.

pub mod elf;
pub mod eval_loop;
