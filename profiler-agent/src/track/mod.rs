//! Which processes exist, which interpreter each runs, and what the kernel is told of them.

pub mod allocators;
pub mod consent;
pub mod process;
pub mod tracker;
