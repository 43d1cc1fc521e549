//! Facts about one process: its memory, its mappings, its files, its names.

pub mod facts;
pub mod file;
pub mod lifecycle;
pub mod maps;
pub mod memory;
#[cfg(test)]
pub(crate) mod memory_image;
pub mod pages;
mod vdso;
