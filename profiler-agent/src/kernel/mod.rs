//! Facts of the running kernel: structure offsets, symbols, features.

pub mod btf;
pub mod idle;
pub mod kallsyms;
pub mod probe;
