//! Event sources: the registry, one row a source, one file each.

mod cpu;

pub use cpu::CpuSource;

use crate::profile::model::ValueType;

/// A row of [`SOURCES`].
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Name, as `--type` takes it. Its index in the registry is the number in the records.
    pub name: &'static str,
    /// What it measures, for `--help` and `doctor`.
    pub summary: &'static str,
    /// What the two values of its samples mean.
    pub sample_types: [ValueType; 2],
    /// What its period counts.
    pub period_type: ValueType,
}

/// Every event source.
pub const SOURCES: &[Source] = &[Source {
    name: "cpu",
    summary: "time on the CPU (software event cpu-clock, one timer per online CPU)",
    sample_types: [
        ValueType {
            kind: "samples",
            unit: "count",
        },
        ValueType {
            kind: "cpu",
            unit: "nanoseconds",
        },
    ],
    period_type: ValueType {
        kind: "cpu",
        unit: "nanoseconds",
    },
}];
