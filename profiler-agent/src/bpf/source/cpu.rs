//! CPU samples: the software event `cpu-clock` on every online CPU, which needs no hardware counters.

use std::collections::BTreeMap;
use std::time::Instant;

use aya::Ebpf;
use aya::programs::perf_event::{
    PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};
use aya::programs::{PerfEvent, ProgramError};
use aya::util::online_cpus;

const NANOSECONDS: u64 = 1_000_000_000;

/// Why sampling could not be switched on.
#[derive(Debug, thiserror::Error)]
pub enum CpuSourceError {
    /// The program is missing or of another kind.
    #[error(
        "the BPF object has no program {}: rebuild pyagent",
        CpuSource::PROGRAM
    )]
    Program,
    /// The list of CPUs could not be read.
    #[error("cannot read the list of online CPUs: {0}")]
    Cpus(std::io::Error),
    /// The event could not be opened on a CPU.
    #[error("cannot sample CPU {cpu}: {source}")]
    Attach {
        /// The CPU.
        cpu: u32,
        /// What aya says.
        source: Box<ProgramError>,
    },
}

/// The attached timers. Dropping the [`Ebpf`] it holds detaches everything.
#[derive(Debug)]
pub struct CpuSource {
    ebpf: Ebpf,
    period_ns: u64,
    timers: BTreeMap<u32, Timer>,
    /// Periods of timers that were detached.
    n_periods_past: u64,
}

/// The timer of a CPU.
#[derive(Debug)]
struct Timer {
    link: PerfEventLinkId,
    attached: Instant,
}

impl CpuSource {
    /// Name of the program in the object.
    pub const PROGRAM: &'static str = "sample_cpu";

    /// Not attached yet; `rate_hz` samples a second and CPU.
    #[must_use]
    pub fn new(ebpf: Ebpf, rate_hz: u32) -> Self {
        Self {
            ebpf,
            period_ns: period_ns(rate_hz),
            timers: BTreeMap::new(),
            n_periods_past: 0,
        }
    }

    /// Time between two samples of a CPU.
    #[must_use]
    pub fn period_ns(&self) -> u64 {
        self.period_ns
    }

    /// Number of CPUs that are sampled.
    #[must_use]
    pub fn n_cpus(&self) -> usize {
        self.timers.len()
    }

    /// How often the timers of all CPUs should have fired since the start. A timer that is late fires once
    /// however many periods went by: the rest is time in which the hypervisor had the CPU, or interrupts were
    /// off (`perf_swevent_hrtimer` ignores the overrun).
    #[must_use]
    pub fn n_periods(&self) -> u64 {
        let of = |timer: &Timer| self.periods_of(timer);
        self.n_periods_past + self.timers.values().map(of).sum::<u64>()
    }

    fn periods_of(&self, timer: &Timer) -> u64 {
        (timer.attached.elapsed().as_nanos() / u128::from(self.period_ns.max(1))) as u64
    }

    /// Attaches to CPUs that came online and forgets those that went. Returns how many came.
    pub fn sync(&mut self) -> Result<usize, CpuSourceError> {
        let online = online_cpus().map_err(|(_, error)| CpuSourceError::Cpus(error))?;
        let gone: Vec<u32> = self
            .timers
            .keys()
            .copied()
            .filter(|cpu| !online.contains(cpu))
            .collect();
        for cpu in gone {
            self.detach(cpu);
        }
        let mut n_new = 0;
        for cpu in online {
            if !self.timers.contains_key(&cpu) {
                self.attach(cpu)?;
                n_new += 1;
            }
        }
        Ok(n_new)
    }

    /// Changes the rate. The period of each sample is in its record, so nothing is misread meanwhile.
    pub fn set_rate(&mut self, rate_hz: u32) -> Result<(), CpuSourceError> {
        let cpus: Vec<u32> = self.timers.keys().copied().collect();
        self.detach_all();
        self.period_ns = period_ns(rate_hz);
        cpus.into_iter().try_for_each(|cpu| self.attach(cpu))
    }

    /// Stops sampling.
    pub fn detach_all(&mut self) {
        let cpus: Vec<u32> = self.timers.keys().copied().collect();
        for cpu in cpus {
            self.detach(cpu);
        }
    }

    fn program(&mut self) -> Result<&mut PerfEvent, CpuSourceError> {
        let program = self
            .ebpf
            .program_mut(Self::PROGRAM)
            .ok_or(CpuSourceError::Program)?;
        program.try_into().map_err(|_| CpuSourceError::Program)
    }

    fn attach(&mut self, cpu: u32) -> Result<(), CpuSourceError> {
        let policy = SamplePolicy::Period(self.period_ns);
        let event = PerfEventConfig::Software(SoftwareEvent::CpuClock);
        let link = self
            .program()?
            .attach(
                event,
                PerfEventScope::AllProcessesOneCpu { cpu },
                policy,
                false,
            )
            .map_err(|source| CpuSourceError::Attach {
                cpu,
                source: Box::new(source),
            })?;
        let attached = Instant::now();
        self.timers.insert(cpu, Timer { link, attached });
        Ok(())
    }

    fn detach(&mut self, cpu: u32) {
        let Some(timer) = self.timers.remove(&cpu) else {
            return;
        };
        self.n_periods_past += self.periods_of(&timer);
        if let Ok(program) = self.program() {
            // The event of a CPU that went offline is gone already.
            let _ = program.detach(timer.link);
        }
    }
}

fn period_ns(rate_hz: u32) -> u64 {
    NANOSECONDS / u64::from(rate_hz.max(1))
}
