//! The measurements of `cargo xtask bench`: what pyagent costs its targets, the kernel and the host.
//!
//! One file a question. Each returns a [`report::Section`], which says how it was measured; nothing here
//! judges a figure but by the aim that stands beside it. Needs root, `chrt` and a CPU for the target alone:
//! other load on the host shows in the slow-down and in the times, hardly in the kernel's own counters.

pub mod agent_cost;
pub mod agent_run;
pub mod allocation;
pub mod cluster;
pub mod faults;
pub mod host;
pub mod kernel_cost;
pub mod peer;
pub mod proc_files;
pub mod recorder;
pub mod report;
pub mod slowdown;
pub mod target;

/// Median of `values`; 0 when there are none.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
