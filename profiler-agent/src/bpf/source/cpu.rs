//! CPU samples: the software event `cpu-clock` on every online CPU, which needs no hardware counters.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use aya::programs::perf_event::{PerfEventLinkId, SoftwareEvent};
use profiler_common::counters::Counter;

use super::events::{EventOpener, Events, close};
use super::{SharedEbpf, SourceError};
use crate::bpf::tables::CounterTable;
use crate::kernel::idle::idle_by_cpu;

/// The attached timers.
#[derive(Debug)]
pub(super) struct CpuTimers {
    /// Name of the program that takes the samples.
    program: &'static str,
    period_ns: u64,
    timers: BTreeMap<u32, Timer>,
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
    fn now(counters: &CounterTable, cpu: u32, idle: &HashMap<u32, Duration>) -> Self {
        Self {
            at: Instant::now(),
            idle: idle.get(&cpu).copied().unwrap_or_default(),
            n_ticks: counters.of_cpu(cpu, Counter::Ticks),
            n_idle_ticks: counters.of_cpu(cpu, Counter::IdleTicks),
        }
    }

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

impl CpuTimers {
    pub(super) fn new(program: &'static str, period_ns: u64) -> Self {
        Self {
            program,
            period_ns: period_ns.max(1),
            timers: BTreeMap::new(),
            n_missed_past: 0,
        }
    }

    pub(super) fn period_ns(&self) -> u64 {
        self.period_ns
    }

    /// For what is attached from now on.
    pub(super) fn set_period_ns(&mut self, period_ns: u64) {
        self.period_ns = period_ns.max(1);
    }

    /// How often the timers did not fire on CPUs that had something to run, since the start. A timer that is late
    /// fires once however many periods went by: the rest is time in which the hypervisor had the CPU, or
    /// interrupts were off (`perf_swevent_hrtimer` ignores the overrun). Can fall by a few: a timer may be about
    /// to fire, and the time without a task is known to 10 ms.
    pub(super) fn n_missed(&self, counters: &CounterTable) -> u64 {
        let idle = idle_by_cpu();
        let of = |(&cpu, timer): (&u32, &Timer)| {
            CpuState::now(counters, cpu, &idle).n_missed_since(&timer.attached, self.period())
        };
        self.n_missed_past + self.timers.iter().map(of).sum::<u64>()
    }

    fn period(&self) -> Duration {
        Duration::from_nanos(self.period_ns)
    }

    pub(super) fn attach(
        &mut self,
        ebpf: &SharedEbpf,
        counters: &CounterTable,
        cpus: &[u32],
        open: &EventOpener,
    ) -> Result<(), SourceError> {
        let idle = idle_by_cpu();
        let opened = open(Events {
            ebpf: ebpf.clone(),
            program: self.program,
            event: SoftwareEvent::CpuClock,
            period: self.period_ns,
            cpus: cpus.to_vec(),
        })?;
        for (cpu, link) in opened {
            let attached = CpuState::now(counters, cpu, &idle);
            self.timers.insert(cpu, Timer { link, attached });
        }
        Ok(())
    }

    pub(super) fn detach(&mut self, ebpf: &SharedEbpf, counters: &CounterTable, cpus: &[u32]) {
        let idle = idle_by_cpu();
        let mut links = Vec::with_capacity(cpus.len());
        for &cpu in cpus {
            let Some(timer) = self.timers.remove(&cpu) else {
                continue;
            };
            let now = CpuState::now(counters, cpu, &idle);
            self.n_missed_past += now.n_missed_since(&timer.attached, self.period());
            links.push(timer.link);
        }
        close(ebpf, self.program, links.into_iter());
    }
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
