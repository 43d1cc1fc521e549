//! Facts of the running kernel: structure offsets, symbols, features.

pub mod btf;
pub mod calibration;
pub mod cpus;
pub mod hotplug;
pub mod idle;
pub mod kallsyms;
pub mod offsets;
pub mod privileges;
pub mod probe;
pub mod restrictions;
