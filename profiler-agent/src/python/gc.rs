//! What the cyclic garbage collector says of itself (`gc.get_stats()`), read from outside.

use std::time::Duration;

use profiler_common::layout::{ABSENT, GilKind};

use super::discover::Interpreter;
use super::layout::GcStatsPlace;
use crate::ids::Address;
use crate::process::memory::{MemoryError, ReadMemory};
use crate::profile::memory::{GcStats, N_GENERATIONS};

/// Most interpreters of a process that are looked at.
const MAX_INTERPRETERS: usize = 256;

/// Reads them. `None`: their place is not known in this release.
pub fn read(
    memory: &impl ReadMemory,
    interpreter: &Interpreter,
) -> Result<Option<GcStats>, MemoryError> {
    let Some(place) = interpreter.layout.gc_stats else {
        return Ok(None);
    };
    let mut stats = GcStats::default();
    if let GcStatsPlace::Runtime(offset) = place {
        add_totals(&mut stats, memory, at(interpreter.runtime, offset))?;
        return Ok(Some(stats));
    }
    let walk = &interpreter.layout.walk;
    let head = at(interpreter.runtime, walk.runtime_interpreters_head);
    let mut interp = Address(memory.read_u64(head)?);
    for _ in 0..MAX_INTERPRETERS {
        if interp.is_null() {
            break;
        }
        match place {
            GcStatsPlace::Rings(offset) => {
                let rings = Address(memory.read_u64(at(interp, offset))?);
                // One that is being made has none yet.
                if !rings.is_null() {
                    add_rings(&mut stats, memory, rings)?;
                }
            }
            GcStatsPlace::Interpreter(offset) | GcStatsPlace::Runtime(offset) => {
                add_totals(&mut stats, memory, at(interp, offset))?;
            }
        }
        interp = Address(memory.read_u64(at(interp, walk.interp_next))?);
    }
    Ok(Some(stats))
}

/// Whether samples of the CPU tell that the collector is at work: a thread that holds the GIL is seen in it.
#[must_use]
pub fn is_sampled(interpreter: &Interpreter) -> bool {
    let walk = &interpreter.layout.walk;
    let has_gil = matches!(
        walk.gil_kind,
        GilKind::RuntimeCurrent | GilKind::Interpreter
    );
    walk.gc_collecting != ABSENT && has_gil
}

/// `struct gc_generation_stats generation_stats[3]`: collections, collected, uncollectable.
fn add_totals(
    stats: &mut GcStats,
    memory: &impl ReadMemory,
    start: Address,
) -> Result<(), MemoryError> {
    const N_WORDS: u64 = 3;
    for idx in 0..N_GENERATIONS {
        let words = words::<3>(memory, start.add(idx as u64 * N_WORDS * 8))?;
        add(stats, idx, words);
    }
    Ok(())
}

/// `struct gc_stats` (3.15): for each generation its last collections, 11 of the youngest and 3 of the others, each
/// with the totals up to it, and behind them which is the last.
fn add_rings(
    stats: &mut GcStats,
    memory: &impl ReadMemory,
    start: Address,
) -> Result<(), MemoryError> {
    const N_ITEMS: [u64; N_GENERATIONS] = [11, 3, 3];
    const ITEM_BYTES: u64 = 64;
    const TOTALS: u64 = 16;
    const DURATION: u64 = 48;
    let mut ring = start;
    for (idx, n_items) in N_ITEMS.into_iter().enumerate() {
        let last = memory.read_u64(ring.add(n_items * ITEM_BYTES))? & 0xff;
        let item = ring.add(last.min(n_items - 1) * ITEM_BYTES);
        add(stats, idx, words::<3>(memory, item.add(TOTALS))?);
        let seconds = f64::from_bits(memory.read_u64(item.add(DURATION))?);
        let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        stats.duration = Some(stats.duration.unwrap_or_default().saturating_add(duration));
        ring = ring.add(n_items * ITEM_BYTES + 8);
    }
    Ok(())
}

fn add(stats: &mut GcStats, idx: usize, [collections, collected, uncollectable]: [u64; 3]) {
    let more_of = |to: &mut u64, more| *to = to.saturating_add(more);
    more_of(&mut stats.collections[idx], collections);
    more_of(&mut stats.collected[idx], collected);
    more_of(&mut stats.uncollectable[idx], uncollectable);
}

fn at(start: Address, offset: u16) -> Address {
    start.add(u64::from(offset))
}

fn words<const N: usize>(
    memory: &impl ReadMemory,
    address: Address,
) -> Result<[u64; N], MemoryError> {
    let mut words = [0; N];
    for (word, idx) in words.iter_mut().zip(0..) {
        *word = memory.read_u64(address.add(idx * 8))?;
    }
    Ok(words)
}
