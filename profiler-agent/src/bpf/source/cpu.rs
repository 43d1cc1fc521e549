//! CPU samples: the software event `cpu-clock` on every online CPU, which needs no hardware counters.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::programs::perf_event::{
    PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};
use aya::programs::{PerfEvent, ProgramError};
use aya::util::online_cpus;
use profiler_common::counters::{Counter, N_COUNTERS};

use crate::bpf::tables::CounterTable;
use crate::kernel::hotplug::{CpuMessages, Gone};
use crate::kernel::idle::idle_by_cpu;

const NANOSECONDS: u64 = 1_000_000_000;

/// Why sampling could not be switched on.
#[derive(Debug, thiserror::Error)]
pub enum CpuSourceError {
    /// The program is missing or of another kind.
    #[error("the BPF object has no program {0}: rebuild pyagent")]
    Program(&'static str),
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
pub struct CpuSource {
    ebpf: Ebpf,
    /// Name of the program that takes the samples.
    program: &'static str,
    counters: CounterTable,
    period_ns: u64,
    timers: BTreeMap<u32, Timer>,
    /// Tells of CPUs that went offline; `None`: only those count that are offline when the list is read.
    messages: Option<CpuMessages>,
    /// What the timers missed that were detached.
    n_missed_past: u64,
}

/// The timer of a CPU.
#[derive(Debug)]
struct Timer {
    link: PerfEventLinkId,
    attached: CpuState,
}

/// What a CPU had done up to a moment.
#[derive(Debug, Clone, Copy)]
struct CpuState {
    at: Instant,
    /// Time without a task; zero where the kernel does not say it.
    idle: Duration,
    n_ticks: u64,
    n_idle_ticks: u64,
}

impl CpuState {
    /// How often a timer of this period should have fired on the CPU since `before`, and did not, while there was
    /// something to run. Some hosts stop the timers of a CPU that has nothing to run: nothing is lost then.
    fn n_missed_since(&self, before: &Self, period: Duration) -> u64 {
        let n_periods = |time: Duration| (time.as_nanos() / period.as_nanos().max(1)) as u64;
        let elapsed = self.at.saturating_duration_since(before.at);
        let busy = elapsed.saturating_sub(self.idle.saturating_sub(before.idle));
        let n_ticks = self.n_ticks - before.n_ticks;
        let n_busy_ticks = n_ticks.saturating_sub(self.n_idle_ticks - before.n_idle_ticks);
        let n_missed = n_periods(elapsed).saturating_sub(n_ticks);
        n_missed.min(n_periods(busy).saturating_sub(n_busy_ticks))
    }
}

impl CpuSource {
    /// Not attached yet; `rate_hz` samples a second and CPU.
    #[must_use]
    pub(in crate::bpf) fn new(
        ebpf: Ebpf,
        program: &'static str,
        counters: CounterTable,
        rate_hz: u32,
    ) -> Self {
        Self {
            ebpf,
            program,
            counters,
            period_ns: period_ns(rate_hz),
            timers: BTreeMap::new(),
            messages: CpuMessages::listen().ok(),
            n_missed_past: 0,
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

    /// Sum over all CPUs of each counter of the kernel programs, in the order of [`Counter::ALL`].
    #[must_use]
    pub fn totals(&self) -> [u64; N_COUNTERS] {
        self.counters.totals()
    }

    /// How often the timers did not fire on CPUs that had something to run, since the start. A timer that is late
    /// fires once however many periods went by: the rest is time in which the hypervisor had the CPU, or
    /// interrupts were off (`perf_swevent_hrtimer` ignores the overrun). Can fall by a few: a timer may be about
    /// to fire, and the time without a task is known to 10 ms.
    #[must_use]
    pub fn n_missed(&self) -> u64 {
        let idle = idle_by_cpu();
        let of = |(&cpu, timer): (&u32, &Timer)| {
            self.state(cpu, idle.get(&cpu))
                .n_missed_since(&timer.attached, self.period())
        };
        self.n_missed_past + self.timers.iter().map(of).sum::<u64>()
    }

    fn state(&self, cpu: u32, idle: Option<&Duration>) -> CpuState {
        CpuState {
            at: Instant::now(),
            idle: idle.copied().unwrap_or_default(),
            n_ticks: self.counters.of_cpu(cpu, Counter::Ticks),
            n_idle_ticks: self.counters.of_cpu(cpu, Counter::IdleTicks),
        }
    }

    fn period(&self) -> Duration {
        Duration::from_nanos(self.period_ns)
    }

    /// Attaches to CPUs that came online, or came back, and forgets those that went. Returns how many came.
    pub fn sync(&mut self) -> Result<usize, CpuSourceError> {
        // First the messages: whoever goes after them is not in the list, or in the messages of the next time.
        let went = self.messages.as_ref().map(CpuMessages::gone);
        let online = online_cpus().map_err(|(_, error)| CpuSourceError::Cpus(error))?;
        let is_gone = |cpu: &u32| match &went {
            Some(Gone::Unknown) => true,
            Some(Gone::Cpus(cpus)) => cpus.contains(cpu) || !online.contains(cpu),
            None => !online.contains(cpu),
        };
        let gone: Vec<u32> = self.timers.keys().copied().filter(is_gone).collect();
        let is_new = |cpu: &u32| !self.timers.contains_key(cpu) || gone.contains(cpu);
        let new: Vec<u32> = online.iter().copied().filter(is_new).collect();
        if gone.is_empty() && new.is_empty() {
            return Ok(0);
        }
        let idle = idle_by_cpu();
        for cpu in gone {
            self.detach(cpu, &idle);
        }
        for cpu in &new {
            self.attach(*cpu, &idle)?;
        }
        Ok(new.len())
    }

    /// Changes the rate. The period of each sample is in its record, so nothing is misread meanwhile.
    pub fn set_rate(&mut self, rate_hz: u32) -> Result<(), CpuSourceError> {
        let cpus: Vec<u32> = self.timers.keys().copied().collect();
        self.detach_all();
        self.period_ns = period_ns(rate_hz);
        let idle = idle_by_cpu();
        cpus.into_iter().try_for_each(|cpu| self.attach(cpu, &idle))
    }

    /// Stops sampling.
    pub fn detach_all(&mut self) {
        let cpus: Vec<u32> = self.timers.keys().copied().collect();
        let idle = idle_by_cpu();
        for cpu in cpus {
            self.detach(cpu, &idle);
        }
    }

    fn program(&mut self) -> Result<&mut PerfEvent, CpuSourceError> {
        let program = self
            .ebpf
            .program_mut(self.program)
            .ok_or(CpuSourceError::Program(self.program))?;
        program
            .try_into()
            .map_err(|_| CpuSourceError::Program(self.program))
    }

    fn attach(&mut self, cpu: u32, idle: &HashMap<u32, Duration>) -> Result<(), CpuSourceError> {
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
        let attached = self.state(cpu, idle.get(&cpu));
        self.timers.insert(cpu, Timer { link, attached });
        Ok(())
    }

    fn detach(&mut self, cpu: u32, idle: &HashMap<u32, Duration>) {
        let Some(timer) = self.timers.remove(&cpu) else {
            return;
        };
        let now = self.state(cpu, idle.get(&cpu));
        self.n_missed_past += now.n_missed_since(&timer.attached, self.period());
        if let Ok(program) = self.program() {
            // The event of a CPU that went offline is gone already.
            let _ = program.detach(timer.link);
        }
    }
}

fn period_ns(rate_hz: u32) -> u64 {
    NANOSECONDS / u64::from(rate_hz.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(10);

    /// What is missed in 10 s of which `idle_s` are idle, with so many ticks on tasks and on nothing.
    fn n_missed(idle_s: u64, n_busy_ticks: u64, n_idle_ticks: u64) -> u64 {
        let at = Instant::now();
        let before = CpuState {
            at,
            idle: Duration::from_secs(100),
            n_ticks: 7,
            n_idle_ticks: 3,
        };
        let now = CpuState {
            at: at + Duration::from_secs(10),
            idle: Duration::from_secs(100 + idle_s),
            n_ticks: 7 + n_busy_ticks + n_idle_ticks,
            n_idle_ticks: 3 + n_idle_ticks,
        };
        now.n_missed_since(&before, PERIOD)
    }

    #[test]
    fn a_busy_cpu_misses_what_did_not_come() {
        assert_eq!(n_missed(0, 1000, 0), 0);
        assert_eq!(n_missed(0, 900, 0), 100);
    }

    #[test]
    fn an_idle_cpu_whose_timer_stands_still_misses_nothing() {
        assert_eq!(n_missed(10, 0, 0), 0);
        assert_eq!(n_missed(8, 200, 0), 0);
        assert_eq!(n_missed(8, 150, 0), 50);
    }

    #[test]
    fn chance_is_not_a_miss_where_the_timer_never_stands_still() {
        // 490 of 1,000 ticks met the task that ran half of the time.
        assert_eq!(n_missed(5, 490, 510), 0);
    }
}
