//! What a probe costs on this machine: measured on a function of the agent's own.

use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeScope};

use super::SourceError;

/// Nanoseconds that a process loses at a probe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProbeCost {
    /// On an instruction that the kernel emulates.
    pub emulated_ns: f64,
    /// On one that the processor has to do in a single step.
    pub stepped_ns: f64,
}

/// A pool of small objects takes a process some 20 microseconds to fill.
const CHEAP_STEP_NS: f64 = 1000.0;

impl ProbeCost {
    /// Whether single steps cost so little that each pool of small objects can be seen.
    #[must_use]
    pub fn is_stepping_cheap(self) -> bool {
        self.stepped_ns <= CHEAP_STEP_NS
    }

    /// Of probes of which this share is on instructions that are emulated.
    pub(super) fn mean_ns(self, emulated: f64) -> f64 {
        self.emulated_ns * emulated + self.stepped_ns * (1.0 - emulated)
    }
}

// Two instructions of one function: one that the kernel emulates, and one that it does not.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .text.pyagent_probe_target,\"ax\",@progbits",
    ".globl pyagent_probe_target",
    ".type pyagent_probe_target,@function",
    "pyagent_probe_target:",
    "nop",
    "mov rax, rax",
    "ret",
    ".size pyagent_probe_target, . - pyagent_probe_target",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".pushsection .text.pyagent_probe_target,\"ax\",@progbits",
    ".globl pyagent_probe_target",
    ".type pyagent_probe_target,@function",
    "pyagent_probe_target:",
    "nop",
    "mov x0, x0",
    "ret",
    ".size pyagent_probe_target, . - pyagent_probe_target",
    ".popsection",
);

/// Offset of the second instruction.
#[cfg(target_arch = "x86_64")]
const STEPPED: u64 = 1;
#[cfg(target_arch = "aarch64")]
const STEPPED: u64 = 4;

unsafe extern "C" {
    fn pyagent_probe_target();
}

/// Calls of one measurement.
const N_CALLS: u32 = 1000;

/// Measurements, of which the quickest counts: an interruption makes one longer, nothing makes one shorter.
const N_ROUNDS: usize = 5;

/// Measures with a program that finds nothing to do.
pub(super) fn measure(program: &mut UProbe) -> Result<ProbeCost, SourceError> {
    let offset = own_offset().ok_or(SourceError::Program("probe target"))?;
    let plain = quickest();
    let emulated = with_probe(program, offset)?;
    let stepped = with_probe(program, offset + STEPPED)?;
    let per_call =
        |time: Duration| time.saturating_sub(plain).as_nanos() as f64 / f64::from(N_CALLS);
    Ok(ProbeCost {
        emulated_ns: per_call(emulated),
        stepped_ns: per_call(stepped),
    })
}

fn with_probe(program: &mut UProbe, offset: u64) -> Result<Duration, SourceError> {
    let own = NonZeroU32::new(std::process::id()).ok_or(SourceError::Program("probe target"))?;
    let refused = |source| SourceError::Probe {
        file: "/proc/self/exe".to_owned(),
        offset,
        source: Box::new(source),
    };
    let link = program
        .attach(
            UProbeAttachLocation::AbsoluteOffset(offset),
            Path::new("/proc/self/exe"),
            UProbeScope::OneProcess(own),
        )
        .map_err(refused)?;
    let time = quickest();
    program.detach(link).map_err(refused)?;
    Ok(time)
}

fn quickest() -> Duration {
    let round = || {
        let begun = Instant::now();
        for _ in 0..N_CALLS {
            // SAFETY: it does nothing.
            unsafe { pyagent_probe_target() };
        }
        begun.elapsed()
    };
    (0..N_ROUNDS).map(|_| round()).min().unwrap_or_default()
}

/// Where the function lies in the agent's file.
fn own_offset() -> Option<u64> {
    let address = pyagent_probe_target as *const () as u64;
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let (start, end) = (
            u64::from_str_radix(start, 16).ok()?,
            u64::from_str_radix(end, 16).ok()?,
        );
        let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
        (start..end)
            .contains(&address)
            .then_some(address - start + offset)
    })
}
