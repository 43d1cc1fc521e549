//! Profiles: the waist of pyagent. Everything before it knows about processes and memory, everything after
//! it only about profiles. No I/O, no serde, no proto here.

pub mod aggregate;
pub mod calls;
pub mod chance;
pub mod diff;
pub mod gathered;
pub mod groups;
pub mod growth;
pub mod in_use;
pub mod inspect;
pub mod instructions;
mod intern;
pub mod label_selector;
pub mod line_growth;
pub mod lines;
pub mod measure;
pub mod memory;
pub mod merge;
pub mod model;
pub mod moments;
pub mod query;
mod reshape;
pub mod selector;
pub mod tables;
pub mod thread_name;
pub mod time;
pub mod totals;
pub mod tree;
pub mod window;
