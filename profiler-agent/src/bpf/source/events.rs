//! Software events of perf, one a CPU, each with the program that takes its samples.

use aya::programs::PerfEvent;
use aya::programs::perf_event::{
    PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};

use super::{SharedEbpf, SourceError};

/// The open events, by CPU.
pub type OpenEvents = Vec<(u32, PerfEventLinkId)>;

/// Opens events, by a thread that may: kernels that restrict perf to CAP_SYS_ADMIN (`kernel.perf_event_paranoid` of 3
/// and more, which Debian's and Ubuntu's have from the start) refuse a thread that has CAP_PERFMON and no more.
pub type EventOpener = Box<dyn Fn(Events) -> Result<OpenEvents, SourceError> + Send>;

/// Events to be opened.
pub struct Events {
    pub(super) ebpf: SharedEbpf,
    pub(super) program: &'static str,
    pub(super) event: SoftwareEvent,
    /// Events from one sample to the next; of a clock nanoseconds.
    pub(super) period: u64,
    pub(super) cpus: Vec<u32>,
}

impl Events {
    /// Opens them with the rights of this thread: all or none.
    pub fn open(&self) -> Result<OpenEvents, SourceError> {
        let mut ebpf = self.ebpf.lock();
        let program = super::program(&mut ebpf, self.program)?;
        let mut opened = Vec::with_capacity(self.cpus.len());
        for &cpu in &self.cpus {
            match self.open_on(program, cpu) {
                Ok(link) => opened.push((cpu, link)),
                Err(error) => {
                    for (_, link) in opened {
                        // Only one of a CPU that went meanwhile is gone already.
                        let _ = program.detach(link);
                    }
                    return Err(error);
                }
            }
        }
        Ok(opened)
    }

    fn open_on(&self, program: &mut PerfEvent, cpu: u32) -> Result<PerfEventLinkId, SourceError> {
        let link = program.attach(
            PerfEventConfig::Software(self.event),
            PerfEventScope::AllProcessesOneCpu { cpu },
            SamplePolicy::Period(self.period),
            false,
        );
        link.map_err(|source| SourceError::Attach {
            cpu,
            source: Box::new(source),
        })
    }
}

/// Closes those that are still there.
pub(super) fn close(
    ebpf: &SharedEbpf,
    program: &'static str,
    links: impl Iterator<Item = PerfEventLinkId>,
) {
    if let Ok(program) = super::program(&mut ebpf.lock(), program) {
        for link in links {
            // The event of a CPU that went offline is gone already.
            let _ = program.detach(link);
        }
    }
}
