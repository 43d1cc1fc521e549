//! What needs neither rights nor BPF programs: formats, views, pages, and what is read of CPython, against the interpreters of
//! this machine and against other people's programs.
//!
//! Each module is a stage of its own of `cargo xtask test`, in a process of its own.

mod cluster;
mod convert;
mod diff;
mod discovery;
mod formats;
mod gc;
mod help;
mod layouts;
mod leaf;
mod lines;
mod opcodes;
mod pages;
mod pages_lines;
mod probe_points;
mod proto_rules;
mod push_checker;
mod push_otlp;
mod push_pprof;
mod report;
mod strings;
mod thread_names;
mod timeline;
mod walk;
