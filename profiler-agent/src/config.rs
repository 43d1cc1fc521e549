//! What the user typed, validated: the one place that decides defaults.

use std::time::Duration;

use profiler_common::process::DEFAULT_MAX_PROCESSES;

use crate::ids::Pid;
use crate::process::service::LabelOptions;
use crate::profile::model::ProfileType;
pub use crate::profile::time::{parse_span as parse_duration, parse_time};
use crate::track::allocators::PoolProbes;
use crate::track::tracker::Selection;

/// Samples a second and CPU when nothing is said: not a divisor of common periods, so that it cannot beat in
/// step with what it samples.
pub const DEFAULT_RATE_HZ: u32 = 99;

/// Page faults for one sample when nothing is said.
pub const DEFAULT_FAULT_PERIOD: u64 = 16;

/// Mean distance of sampled allocations when nothing is said, in bytes.
pub const DEFAULT_ALLOC_PERIOD: u64 = 512 << 10;

/// Distance of sampled pools of small objects, in bytes.
pub const POOL_PERIOD: u64 = 128 << 10;

/// Most sampled allocations that are followed until they are given back: 64 GiB at the default distance.
pub const MAX_ALLOCATIONS: u32 = 1 << 17;

/// The part of a process's CPU time that probes may take when nothing is said.
pub const DEFAULT_ALLOC_BUDGET: f64 = 0.03;

/// What is given back within this time is temporary when nothing is said.
pub const DEFAULT_TEMPORARY: Duration = Duration::from_secs(1);

/// Samples a second of the whole host that the agent takes at most when nothing is said.
pub const DEFAULT_MAX_SAMPLES_PER_SECOND: u32 = 5_000;

/// Length of a window when nothing is said.
pub const DEFAULT_WINDOW: Duration = Duration::from_secs(10);

/// Where the agent serves when nothing is said.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7099";

/// Bytes of the ring buffer when nothing is said, up to [`RING_CPUS`] CPUs: half a second of 5,000 deep stacks.
pub const DEFAULT_RING_BYTES: u32 = 4 << 20;

/// CPUs that the ring buffer's default size is made for.
const RING_CPUS: u32 = 32;

/// Largest size of the ring buffer when nothing is said: that of 512 CPUs.
const MAX_DEFAULT_RING_BYTES: u32 = 64 << 20;

/// Bytes of the ring buffer when nothing is said: in proportion to the CPUs, which all sample at once.
#[must_use]
pub fn default_ring_bytes(n_cpus: u32) -> u32 {
    DEFAULT_RING_BYTES
        .saturating_mul(n_cpus.div_ceil(RING_CPUS).max(1))
        .min(MAX_DEFAULT_RING_BYTES)
        .next_power_of_two()
}

/// How to sample.
#[derive(Debug, Clone)]
pub struct SamplingConfig {
    /// Which processes.
    pub selection: Selection,
    /// What is sampled; never empty.
    pub types: Vec<ProfileType>,
    /// Samples a second and CPU.
    pub rate_hz: u32,
    /// Page faults for one sample.
    pub fault_period: u64,
    /// Above this the rate is lowered; `None`: never.
    pub max_samples_per_second: Option<u32>,
    /// Bytes of the ring buffer.
    pub ring_bytes: u32,
    /// Most processes that are profiled at once.
    pub max_processes: u32,
    /// Length of the windows that are kept and watched.
    pub window: Duration,
    /// How allocations are sampled.
    pub allocation: AllocationConfig,
    /// What is said of processes beside what is found.
    pub labels: LabelOptions,
    /// Whether samples are labelled with the instruction of their innermost Python frame.
    pub has_instructions: bool,
    /// Debug messages of the kernel programs.
    pub bpf_debug: bool,
}

/// How allocations are sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AllocationConfig {
    /// Mean distance of sampled allocations, in bytes.
    pub period: u64,
    /// The part of a process's CPU time that probes may take; above it they are taken away.
    pub budget: f64,
    /// What is given back within this time is temporary.
    pub temporary: Duration,
    /// At which steps small objects are seen.
    pub pool_probes: PoolProbes,
}

impl Default for AllocationConfig {
    fn default() -> Self {
        Self {
            period: DEFAULT_ALLOC_PERIOD,
            budget: DEFAULT_ALLOC_BUDGET,
            temporary: DEFAULT_TEMPORARY,
            pool_probes: PoolProbes::Auto,
        }
    }
}

/// Parses `3%`, as a part of the whole.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let hint = || format!("`{text}` is no part: write 3% or 0.5%, at most 1000%");
    let number: f64 = text
        .strip_suffix('%')
        .unwrap_or(text)
        .trim()
        .parse()
        .map_err(|_| hint())?;
    if (0.0..=1000.0).contains(&number) && number > 0.0 {
        Ok(number / 100.0)
    } else {
        Err(hint())
    }
}

/// Parses `512KiB`, `1GiB`, `4096`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let hint = || format!("`{text}` is no size: write 4096, 512KiB, 64MiB or 1GiB");
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| hint())?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(hint()),
    };
    number.checked_mul(factor).ok_or_else(hint)
}

/// Parses the part of a process's CPU time that probes may cost it.
pub fn parse_budget(text: &str) -> Result<f64, String> {
    match parse_percent(text)? {
        part if part > 1.0 => Err(format!(
            "`{text}` is more than all of the time: write 100% to keep the probes whatever they cost"
        )),
        part => Ok(part),
    }
}

/// Parses the size of the ring buffer: a page to [`LARGEST_RING`].
pub fn parse_ring(text: &str) -> Result<u64, String> {
    let smallest = rustix::param::page_size() as u64;
    match parse_bytes(text)? {
        size if (smallest..=LARGEST_RING).contains(&size) => Ok(size),
        _ => Err(format!(
            "`{text}` is no size of it: write {smallest} to 1GiB"
        )),
    }
}

/// Most bytes of the ring buffer.
const LARGEST_RING: u64 = 1 << 30;

/// The mean distance of sampled allocations, in bytes.
pub fn parse_period(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        0 => {
            Err("a distance of 0 would be each allocation: write 1 for that, or 512KiB".to_owned())
        }
        period => Ok(period),
    }
}

impl SamplingConfig {
    /// The selection of exactly one process, with the defaults for a recording.
    #[must_use]
    pub fn of_pid(pid: Pid) -> Self {
        Self::of(Selection {
            only_pids: Some(vec![pid]),
            ..Selection::default()
        })
    }

    /// A selection, with the defaults for a recording.
    #[must_use]
    pub fn of(selection: Selection) -> Self {
        Self {
            selection,
            types: vec![ProfileType::Cpu],
            rate_hz: DEFAULT_RATE_HZ,
            fault_period: DEFAULT_FAULT_PERIOD,
            max_samples_per_second: None,
            ring_bytes: DEFAULT_RING_BYTES,
            max_processes: DEFAULT_MAX_PROCESSES,
            window: DEFAULT_WINDOW,
            allocation: AllocationConfig::default(),
            labels: LabelOptions::default(),
            has_instructions: false,
            bpf_debug: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_grows_with_the_cpus_by_powers_of_two() {
        let sizes = [0, 1, 32, 33, 64, 96, 240, 512, 8192].map(|n| default_ring_bytes(n) >> 20);
        assert_eq!(sizes, [4, 4, 4, 8, 8, 16, 32, 64, 64]);
    }

    #[test]
    fn sizes_are_parsed_or_refused_with_examples() {
        assert_eq!(parse_bytes("512KiB"), Ok(512 << 10));
        assert_eq!(parse_percent("3%"), Ok(0.03));
        assert!(parse_percent("0").is_err() && parse_percent("NaN%").is_err());
        assert_eq!(parse_budget("100%"), Ok(1.0));
        assert!(parse_budget("101%").unwrap_err().contains("100%"));
        assert_eq!(parse_ring("64KiB"), Ok(65_536));
        assert!(parse_ring("0").is_err() && parse_ring("2GiB").is_err());
        assert!(parse_percent("-1%").is_err() && parse_percent("").is_err());
        assert!(parse_bytes("1kb").is_err() && parse_bytes("99999999999GiB").is_err());
    }
}
