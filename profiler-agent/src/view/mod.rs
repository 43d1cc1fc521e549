//! Views: what a terminal shows of a profile. Text out, no I/O.

mod columns;
pub mod dump;
pub mod memory;
pub mod report;
pub mod stat;
pub mod summary;
pub mod top;
