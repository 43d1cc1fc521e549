//! What threads do that are off the CPU, and who has the interpreter's lock.

use super::model::label;

/// What a thread waits for, as its label says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WaitReason {
    /// The global interpreter lock.
    Gil,
    /// A lock, a condition, a queue: any other futex.
    Lock,
    /// Time to pass.
    Sleep,
    /// One of several descriptors.
    Poll,
    /// A socket.
    Socket,
    /// A pipe.
    Pipe,
    /// A file, or a folder.
    File,
    /// A terminal or another device, or a descriptor of which nothing is known any more.
    Descriptor,
    /// A child process.
    Child,
    /// Memory that has to be read from a file or from swap.
    PageIn,
    /// The address space, which another thread changes.
    Memory,
    /// A signal.
    Signal,
    /// To be let go: stopped by a signal or a debugger.
    Stopped,
    /// A CPU.
    Cpu,
    /// Something else.
    Other,
}

impl WaitReason {
    /// Value of the label [`label::WAIT`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gil => "gil",
            Self::Lock => "lock",
            Self::Sleep => "sleep",
            Self::Poll => "poll",
            Self::Socket => "socket",
            Self::Pipe => "pipe",
            Self::File => "file",
            Self::Descriptor => "descriptor",
            Self::Child => "child",
            Self::PageIn => "page-in",
            Self::Memory => "memory",
            Self::Signal => "signal",
            Self::Stopped => "stopped",
            Self::Cpu => "cpu",
            Self::Other => "other",
        }
    }

    /// Value of the label [`label::THREAD_STATE`].
    #[must_use]
    pub const fn thread_state(self) -> &'static str {
        match self {
            Self::Gil => "gil",
            Self::Cpu => "runnable",
            _ => "waiting",
        }
    }
}

/// What a thread has to do with the global interpreter lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GilState {
    /// It holds it.
    Held,
    /// It waits for it.
    Waiting,
    /// Neither.
    Released,
}

impl GilState {
    /// Value of the label [`label::GIL`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Held => label::GIL_HELD,
            Self::Waiting => label::GIL_WAITING,
            Self::Released => label::GIL_RELEASED,
        }
    }
}

/// A wait, by what passed of it in which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// What it was for.
    pub reason: WaitReason,
    /// Nanoseconds until that was there.
    pub waiting_ns: u64,
    /// Nanoseconds from then on until there was a CPU.
    pub ready_ns: u64,
}

impl Wait {
    /// Shorter times without a CPU are given so much, by chance: each wait would have two rows else, since it always takes
    /// some microseconds until a thread runs.
    const LEAST_READY_NS: u64 = 200_000;

    /// One that stands for `period_ns`, of which `ready_ns` passed without a CPU. `random` is any number.
    #[must_use]
    pub fn new(reason: WaitReason, period_ns: u64, ready_ns: u64, random: u64) -> Self {
        let mut ready_ns = ready_ns.min(period_ns);
        let least_ns = Self::LEAST_READY_NS.min(period_ns);
        if ready_ns < least_ns {
            ready_ns = if random % least_ns < ready_ns {
                least_ns
            } else {
                0
            };
        }
        Self {
            reason,
            waiting_ns: period_ns - ready_ns,
            ready_ns,
        }
    }

    /// What of it lies in its last `length_ns`.
    #[must_use]
    pub fn last(self, length_ns: u64) -> Self {
        let ready_ns = self.ready_ns.min(length_ns);
        Self {
            ready_ns,
            waiting_ns: self.waiting_ns.min(length_ns - ready_ns),
            ..self
        }
    }

    /// What passed in which way: reason, samples, nanoseconds. The wait is one sample.
    pub fn parts(self) -> impl Iterator<Item = (WaitReason, i64, i64)> {
        let ns = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
        let is_all_ready = self.waiting_ns == 0;
        let waiting = (!is_all_ready).then(|| (self.reason, 1, ns(self.waiting_ns)));
        let ready = (self.ready_ns > 0)
            .then(|| (WaitReason::Cpu, i64::from(is_all_ready), ns(self.ready_ns)));
        waiting.into_iter().chain(ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn parts(wait: Wait) -> Vec<(WaitReason, i64, i64)> {
        wait.parts().collect()
    }

    #[test]
    fn a_wait_is_one_sample_and_all_of_its_time() {
        let wait = Wait::new(WaitReason::Lock, 5 * MS, MS, 0);
        let expected = [
            (WaitReason::Lock, 1, 4_000_000),
            (WaitReason::Cpu, 0, 1_000_000),
        ];
        assert_eq!(parts(wait), expected);
        // Its end was spent without a CPU.
        let expected = [
            (WaitReason::Lock, 1, 1_000_000),
            (WaitReason::Cpu, 0, 1_000_000),
        ];
        assert_eq!(parts(wait.last(2 * MS)), expected);
        assert_eq!(parts(wait.last(MS / 2)), [(WaitReason::Cpu, 1, 500_000)]);
        let preempted = Wait::new(WaitReason::Cpu, MS, MS, 7);
        assert_eq!(parts(preempted), [(WaitReason::Cpu, 1, 1_000_000)]);
    }

    #[test]
    fn short_times_without_a_cpu_are_right_on_average() {
        let sum: u64 = (0..200_000)
            .map(|random| Wait::new(WaitReason::Sleep, MS, 10_000, random).ready_ns)
            .sum();
        assert_eq!(sum, 200_000 * 10_000);
    }
}
