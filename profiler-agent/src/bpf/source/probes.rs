//! Allocations: probes in the allocators of each process, CPython's and the C library's.
//!
//! A probe is attached to a file, for one process: the kernel puts a breakpoint into that process's private copy of the
//! page, and into no other's. It is gone when its descriptor is closed, however the agent ends.

use std::collections::HashMap as StdHashMap;
use std::num::NonZeroU32;
use std::os::fd::AsRawFd as _;
use std::sync::{Mutex, PoisonError};

use aya::maps::{HashMap, MapData};
use aya::programs::UProbe;
use aya::programs::uprobe::{
    UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeLinkId, UProbeScope,
};
use profiler_common::allocation::{BlockKey, Hits, N_PLACES, Place, cookie};

use super::probe_cost::{self, ProbeCost};
use super::{Build, ProgramName, SharedEbpf, SourceError};
use crate::bpf::tables::{BlockValue, HitsValue};
use crate::ids::Pid;
use crate::process::block::Block;
use crate::process::probe::{Probe, ProbeSite};
use crate::profile::model::ProfileType;

const SIZE_FIRST: ProgramName = ProgramName::One("alloc_size_first");
const SIZE_SECOND: ProgramName = ProgramName::One("alloc_size_second");
const PRODUCT: ProgramName = ProgramName::One("alloc_product");
const INDIRECT: ProgramName = ProgramName::One("alloc_indirect");
const RESIZE: ProgramName = ProgramName::One("alloc_resize");
const RESIZE_PRODUCT: ProgramName = ProgramName::One("alloc_resize_product");
const RESIZE_NESTED: ProgramName = ProgramName::One("alloc_resize_nested");
const RELEASE: ProgramName = ProgramName::One("alloc_release");
const LEAVE: ProgramName = ProgramName::Two("alloc_leave", "alloc_leave_probed");
const POOL_LEAVE: ProgramName = ProgramName::Two("pool_leave", "pool_leave_probed");
const POOL_ENTER: ProgramName = ProgramName::One("pool_enter");
const POOL_LEAVE_ONCE: ProgramName = ProgramName::Two("pool_leave_once", "pool_leave_once_probed");
const ARENA_ENTER: ProgramName = ProgramName::One("arena_enter");
const ARENA_LEAVE: ProgramName = ProgramName::Two("arena_leave", "arena_leave_probed");
const ARENA_RELEASE: ProgramName = ProgramName::One("arena_release");
const ARENA_MAP_ENTER: ProgramName = ProgramName::One("arena_map_enter");
const ARENA_UNMAP: ProgramName = ProgramName::One("arena_unmap");
const MAP_ENTER: ProgramName = ProgramName::One("map_enter");
const MAP_BREAK: ProgramName = ProgramName::One("map_break");
const MAP_RESIZE: ProgramName = ProgramName::One("map_resize");
const MAP_RELEASE: ProgramName = ProgramName::One("map_release");
const MAP_LEAVE: ProgramName = ProgramName::Two("map_leave", "map_leave_probed");

/// The programs of `malloc` and its like.
pub(super) const ALLOC: &[ProgramName] = &[
    LEAVE,
    SIZE_FIRST,
    SIZE_SECOND,
    PRODUCT,
    INDIRECT,
    RESIZE,
    RESIZE_NESTED,
    RESIZE_PRODUCT,
    RELEASE,
];

/// The programs of small objects.
pub(super) const POOLS: &[ProgramName] = &[
    POOL_LEAVE,
    POOL_ENTER,
    POOL_LEAVE_ONCE,
    ARENA_LEAVE,
    ARENA_ENTER,
    ARENA_RELEASE,
    ARENA_MAP_ENTER,
    ARENA_UNMAP,
];

/// The programs of `mmap` and its like.
pub(super) const MMAP: &[ProgramName] = &[MAP_LEAVE, MAP_ENTER, MAP_BREAK, MAP_RESIZE, MAP_RELEASE];

/// The program of a probe.
const fn program(probe: Probe) -> ProgramName {
    match probe {
        Probe::SizeFirst => SIZE_FIRST,
        Probe::SizeSecond => SIZE_SECOND,
        Probe::Product => PRODUCT,
        Probe::Indirect => INDIRECT,
        Probe::Resize => RESIZE,
        Probe::ResizeNested => RESIZE_NESTED,
        Probe::ResizeProduct => RESIZE_PRODUCT,
        Probe::Release => RELEASE,
        Probe::Leave => LEAVE,
        Probe::PoolLeave => POOL_LEAVE,
        Probe::PoolEnter => POOL_ENTER,
        Probe::PoolLeaveOnce => POOL_LEAVE_ONCE,
        Probe::ArenaEnter => ARENA_ENTER,
        Probe::ArenaLeave => ARENA_LEAVE,
        Probe::ArenaRelease => ARENA_RELEASE,
        Probe::ArenaMapEnter => ARENA_MAP_ENTER,
        Probe::ArenaUnmap => ARENA_UNMAP,
        Probe::MapEnter => MAP_ENTER,
        Probe::MapBreak => MAP_BREAK,
        Probe::MapResize => MAP_RESIZE,
        Probe::MapRelease => MAP_RELEASE,
        Probe::MapLeave => MAP_LEAVE,
    }
}

/// Where it stands.
const fn place(probe: Probe) -> Place {
    match probe {
        Probe::Release | Probe::ArenaRelease | Probe::ArenaUnmap | Probe::MapRelease => {
            Place::Release
        }
        Probe::Leave
        | Probe::PoolLeave
        | Probe::PoolLeaveOnce
        | Probe::ArenaLeave
        | Probe::MapLeave => Place::Leave,
        Probe::SizeFirst
        | Probe::SizeSecond
        | Probe::Product
        | Probe::Indirect
        | Probe::Resize
        | Probe::ResizeNested
        | Probe::ResizeProduct
        | Probe::PoolEnter
        | Probe::ArenaEnter
        | Probe::ArenaMapEnter
        | Probe::MapEnter
        | Probe::MapBreak
        | Probe::MapResize => Place::Enter,
    }
}

/// A probe that is attached.
#[derive(Debug)]
struct Link {
    /// Its place among those of the process: functions that are called most often come first.
    rank: usize,
    program: &'static str,
    id: UProbeLinkId,
    probe: Probe,
    is_emulated: bool,
}

/// What is attached to a process.
#[derive(Debug, Default)]
struct Attached {
    links: Vec<Link>,
    /// Number of probes at each place, and how many of them are emulated.
    n_by_place: [(u64, u64); N_PLACES],
}

impl Attached {
    /// Counts the probes at each place anew.
    fn count(&mut self, build: Build) {
        self.n_by_place = <[(u64, u64); N_PLACES]>::default();
        for link in &self.links {
            let place = place(link.probe);
            if place == Place::Leave && !link.is_emulated && build == Build::Typed {
                // Hits of such are counted apart.
                continue;
            }
            let (n_probes, n_emulated) = &mut self.n_by_place[place as usize];
            *n_probes += 1;
            *n_emulated += u64::from(link.is_emulated);
        }
    }
}

/// Places probes.
pub struct Probes {
    ebpf: SharedEbpf,
    build: Build,
    probed: HashMap<MapData, u32, HitsValue>,
    live: HashMap<MapData, BlockValue, u64>,
    attached: StdHashMap<Pid, Attached>,
    cost: Option<ProbeCost>,
}

impl Probes {
    pub(in crate::bpf) fn new(
        ebpf: SharedEbpf,
        build: Build,
        probed: HashMap<MapData, u32, HitsValue>,
        live: HashMap<MapData, BlockValue, u64>,
    ) -> Self {
        Self {
            ebpf,
            build,
            probed,
            live,
            attached: StdHashMap::new(),
            cost: None,
        }
    }

    /// What one probe costs on this machine; measured at the first call, in some 30 ms.
    pub fn cost(&mut self) -> Result<ProbeCost, SourceError> {
        if let Some(cost) = self.cost {
            return Ok(cost);
        }
        let own = Pid(std::process::id());
        self.probed.insert(own.0, HitsValue(Hits::default()), 0)?;
        let mut ebpf = self.ebpf.lock();
        let measured = [RELEASE, ARENA_RELEASE, MAP_RELEASE]
            .into_iter()
            .find_map(|program| {
                let program = uprobe(ebpf.program_mut(program.of(self.build))?)?;
                program.fd().is_ok().then(|| probe_cost::measure(program))
            });
        drop(ebpf);
        let _ = self.probed.remove(&own.0);
        let cost = measured.ok_or(SourceError::Program("alloc_release"))??;
        self.cost = Some(cost);
        Ok(cost)
    }

    /// Places probes in a process, beside those that it has.
    pub fn attach(&mut self, pid: Pid, sites: &[ProbeSite]) -> Result<(), SourceError> {
        let Some(scope) = NonZeroU32::new(pid.0).map(UProbeScope::OneProcess) else {
            return Ok(());
        };
        let attached = self.attached.entry(pid).or_default();
        if attached.links.is_empty() {
            self.probed.insert(pid.0, HitsValue(Hits::default()), 0)?;
        }
        // What gives memory back comes first, and what allocates last: nothing is followed that could be missed.
        let order = |site: &ProbeSite| match place(site.probe) {
            Place::Release => 0,
            Place::Leave | Place::LeaveStepped => 1,
            Place::Enter => 2,
        };
        let mut sites: Vec<(usize, &ProbeSite)> = sites.iter().enumerate().collect();
        sites.sort_by_key(|(_, site)| order(site));
        for (rank, site) in sites {
            let name = program(site.probe).of(self.build);
            // Not held for all of them: the other sources wait for it.
            let mut ebpf = self.ebpf.lock();
            let program = ebpf
                .program_mut(name)
                .and_then(uprobe)
                .ok_or(SourceError::Program(name))?;
            let point = UProbeAttachPoint {
                location: UProbeAttachLocation::AbsoluteOffset(site.offset),
                // Before 5.15 there is no such thing, and no such build.
                cookie: (self.build == Build::Typed).then(|| cookie_of(site)),
            };
            // Whatever lies under the path by now.
            let file = format!("/proc/self/fd/{}", site.file.as_raw_fd());
            let link = program.attach(point, file, scope);
            let link = link.map_err(|source| SourceError::Probe {
                file: site.path.clone(),
                offset: site.offset,
                source: Box::new(source),
            })?;
            attached.links.push(Link {
                rank,
                program: name,
                id: link,
                probe: site.probe,
                is_emulated: site.is_emulated,
            });
        }
        attached.count(self.build);
        Ok(())
    }

    /// Takes the probes of one type away and leaves the others.
    pub fn detach_type(&mut self, pid: Pid, profile_type: ProfileType) {
        let Some(attached) = self.attached.get_mut(&pid) else {
            return;
        };
        let (gone, others) = std::mem::take(&mut attached.links)
            .into_iter()
            .partition(|link| link.probe.profile_type() == profile_type);
        attached.links = others;
        attached.count(self.build);
        self.close(gone);
    }

    /// Takes all probes of a process away; it may have gone.
    pub fn detach(&mut self, pid: Pid) {
        // Without an entry the programs do nothing any more.
        let _ = self.probed.remove(&pid.0);
        let Some(attached) = self.attached.remove(&pid) else {
            return;
        };
        self.close(attached.links);
    }

    /// Number of probes that there are.
    #[must_use]
    pub fn n_attached(&self) -> usize {
        self.attached.values().map(|it| it.links.len()).sum()
    }

    fn close(&self, mut links: Vec<Link>) {
        // Each takes the kernel some 0.1 s. First where most time is lost.
        links.sort_by_key(|link| link.rank);
        let mut ebpf = self.ebpf.lock();
        let links = links.into_iter().filter_map(|link| {
            let program = ebpf.program_mut(link.program).and_then(uprobe)?;
            program.take_link(link.id).ok()
        });
        let links: Vec<UProbeLink> = links.collect();
        drop(ebpf);
        close(links);
    }

    /// Whether a probe can find a function's result in any register, not only in the one of the calling convention.
    #[must_use]
    pub fn have_any_register(&self) -> bool {
        self.build == Build::Typed
    }

    /// How often a process came to its probes since they were placed, and what that cost it, in nanoseconds.
    #[must_use]
    pub fn hits(&self, pid: Pid) -> Option<(u64, u64)> {
        let cost = self.cost?;
        let attached = self.attached.get(&pid)?;
        let HitsValue(hits) = self.probed.get(&pid.0, 0).ok()?;
        let cost_ns = hits.by_place.iter().zip(attached.n_by_place);
        let cost_ns: f64 = cost_ns
            .map(|(n_hits, (n_probes, n_emulated))| {
                // None: they are all single-stepped.
                let share = n_emulated as f64 / n_probes.max(1) as f64;
                *n_hits as f64 * cost.mean_ns(share)
            })
            .sum();
        Some((hits.by_place.iter().sum(), cost_ns as u64))
    }

    /// Forgets sampled allocations that nobody will give back: their process has ended.
    pub fn forget(&mut self, blocks: &[Block]) {
        for block in blocks {
            let key = BlockKey {
                address: block.address.0,
                pid: block.pid.0,
                source: u32::from(block.source),
            };
            // It may have been given back.
            let _ = self.live.remove(&BlockValue(key));
        }
    }
}

/// Closes links. The kernel waits at each until no program runs any more, so several wait at the same time.
fn close(links: Vec<UProbeLink>) {
    const N_THREADS: usize = 8;
    let links = Mutex::new(links.into_iter());
    let next = || links.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for _ in 0..N_THREADS {
            scope.spawn(|| {
                while let Some(link) = next() {
                    drop(link);
                }
            });
        }
    });
}

/// What a probe on a way back is told.
fn cookie_of(site: &ProbeSite) -> u64 {
    let stepped = if site.is_emulated { 0 } else { cookie::STEPPED };
    u64::from(site.result_idx) | stepped
}

fn uprobe(program: &mut aya::programs::Program) -> Option<&mut UProbe> {
    program.try_into().ok()
}
