//! What is known of CPython: how to find its structures in a process and what their bytes mean.

pub mod line_table;
pub mod string;
