//! pyagent: profiles every CPython process of a host from outside, with eBPF.
//!
//! ARCHITECTURE.md has the map. Imports go down only, from `agent` to `ids`; `profile` is the waist.

pub mod agent;
pub mod bpf;
pub mod cli;
pub mod config;
pub mod format;
pub mod generated;
pub mod heap;
pub mod ids;
pub mod inflate;
pub mod kernel;
pub mod kubernetes;
pub mod native;
pub mod process;
pub mod profile;
pub mod push;
pub mod python;
pub mod recorder;
pub mod sample;
pub mod secrets;
pub mod serve;
pub mod track;
pub mod view;
