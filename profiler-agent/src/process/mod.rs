//! Facts about one process: its memory, its mappings, its files, its names, its container.

pub mod block;
pub mod cgroup;
pub mod container;
pub mod cpu_time;
pub mod facts;
pub mod file;
pub mod freeze;
pub mod huge_pages;
pub mod lifecycle;
pub mod limits;
mod map_line;
pub mod maps;
pub mod memory;
#[cfg(test)]
pub(crate) mod memory_image;
pub mod pages;
pub mod pod;
pub mod probe;
pub mod program;
pub mod regions;
pub mod resident;
pub mod service;
pub mod smaps;
pub mod task_state;
pub mod thread_ids;
mod vdso;
