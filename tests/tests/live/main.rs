//! Over the interpreters of this machine, as root, one test at a time: what is sampled, and what is read of other processes'
//! memory.
//!
//! Each module is a stage of its own of `cargo xtask test`, in a process of its own.

mod heap;
mod heap_command;
mod heap_freeze;
mod heap_guppy;
mod images;
mod locals;
mod memory_pictures;
mod parts;
mod probes;
mod versions;
mod viewers;
