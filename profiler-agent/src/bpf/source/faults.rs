//! Memory that is touched for the first time: the software event `page-faults` on every online CPU. Each sample stands
//! for as many faults as its period says; most of them make one page of memory resident.

use std::collections::BTreeMap;

use aya::programs::perf_event::{PerfEventLinkId, SoftwareEvent};

use super::events::{EventOpener, Events, close};
use super::{SharedEbpf, SourceError};

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

    pub(super) fn attach(
        &mut self,
        ebpf: &SharedEbpf,
        cpus: &[u32],
        open: &EventOpener,
    ) -> Result<(), SourceError> {
        let opened = open(Events {
            ebpf: ebpf.clone(),
            program: self.program,
            event: SoftwareEvent::PageFaults,
            period: self.period,
            cpus: cpus.to_vec(),
        })?;
        self.links.extend(opened);
        Ok(())
    }

    pub(super) fn detach(&mut self, ebpf: &SharedEbpf, cpus: &[u32]) {
        let links = cpus.iter().filter_map(|cpu| self.links.remove(cpu));
        close(ebpf, self.program, links);
    }
}
