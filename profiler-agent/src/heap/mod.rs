//! The heap of a process by type: how many objects, how many bytes, read from outside and without a pause.
//!
//! Two passes over the pages that are there: the types ([`types`]), then the objects ([`scan`]). What is counted of each
//! object is what `sys.getsizeof` says ([`size`]). Nothing of the heap is kept but counts.

mod bytes;
pub mod chart;
mod chunk;
pub mod layout;
pub mod mark;
pub mod memory;
pub mod names;
pub mod parts;
mod pool;
pub mod report;
pub mod scan;
pub mod show;
pub mod size;
pub mod snapshot;
pub mod stopped;
pub mod tally;
pub mod types;
