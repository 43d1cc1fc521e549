//! Views: what a terminal shows of a profile. Text out, no I/O.

pub mod summary;
