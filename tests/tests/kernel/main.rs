//! Over this machine's kernel, as root, one test at a time.
//!
//! Each module is a stage of its own of `cargo xtask test`, in a process of its own.

mod access;
mod allocations;
mod bytecode;
mod commands;
mod diff;
mod gc;
mod gil;
mod grpc_tools;
mod hosts;
mod inspect;
mod leaks;
mod limits;
mod lines;
mod memory;
mod native_memory;
mod pods;
mod programs;
mod push;
mod push_faults;
mod recorder;
mod scale;
mod scrape;
mod service;
mod stat;
mod thread_names;
mod timeline;
mod toolbox;
mod top;
mod versions;
