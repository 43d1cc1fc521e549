//! Over a Kubernetes of one node, as root, one test at a time: pyagent's own image as a DaemonSet, and what it says of pods,
//! compared with what the API says.
//!
//! Each module is a stage of its own of `cargo xtask test`, in a process of its own.

mod chart;
mod daemonset;
mod guide;
mod image;
mod life;
mod pods;
mod push;
mod rights;
mod scale;
mod tenants;
mod whole;
