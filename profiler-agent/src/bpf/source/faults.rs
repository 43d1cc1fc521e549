//! Memory that is touched for the first time: the software event `page-faults` on every online CPU. Each sample stands
//! for as many faults as its period says; most of them make one page of memory resident.

use std::collections::BTreeMap;

use aya::Ebpf;
use aya::programs::perf_event::{
    PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent,
};

use super::{SourceError, program};

/// The attached events.
#[derive(Debug)]
pub(super) struct FaultEvents {
    program: &'static str,
    period: u64,
    links: BTreeMap<u32, PerfEventLinkId>,
}

impl FaultEvents {
    pub(super) fn new(program: &'static str, period: u64) -> Self {
        Self {
            program,
            period: period.max(1),
            links: BTreeMap::new(),
        }
    }

    pub(super) fn period(&self) -> u64 {
        self.period
    }

    /// For what is attached from now on.
    pub(super) fn set_period(&mut self, period: u64) {
        self.period = period.max(1);
    }

    pub(super) fn attach(&mut self, ebpf: &mut Ebpf, cpus: &[u32]) -> Result<(), SourceError> {
        let program = program(ebpf, self.program)?;
        for &cpu in cpus {
            let link = program.attach(
                PerfEventConfig::Software(SoftwareEvent::PageFaults),
                PerfEventScope::AllProcessesOneCpu { cpu },
                SamplePolicy::Period(self.period),
                false,
            );
            let link = link.map_err(|source| SourceError::Attach {
                cpu,
                source: Box::new(source),
            })?;
            self.links.insert(cpu, link);
        }
        Ok(())
    }

    pub(super) fn detach(&mut self, ebpf: &mut Ebpf, cpus: &[u32]) {
        for cpu in cpus {
            if let (Some(link), Ok(program)) = (self.links.remove(cpu), program(ebpf, self.program))
            {
                // The event of a CPU that went offline is gone already.
                let _ = program.detach(link);
            }
        }
    }
}
