//! What was seen of a process, and what of it only grows.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::POOL_PERIOD;
use crate::format::duration_text;
use crate::heap::names::TypeName;
use crate::heap::snapshot::{HeapError, Snapshot};
use crate::profile::growth::{Growth, points_needed};
use crate::profile::in_use::{InUse, LineInUse};
use crate::profile::line_growth::{self, ENOUGH_KEPT, ENOUGH_UNSAMPLED, Kept};
use crate::profile::memory::Resident;
use crate::profile::model::ProfileType;

/// Growth that may be chance is not reported: the probability that anything of the types is, or of the lines, at most.
pub(super) const MAX_CHANCE: f64 = 0.001;

/// Less is not worth a line, in bytes over the whole time.
const MIN_GROWN_BYTES: f64 = 65_536.0;

/// An arena of small objects; up to 3.9 it is a quarter of that.
const MAX_ARENA_BYTES: u64 = 1 << 20;

/// What was seen of a type.
#[derive(Debug, Default)]
struct Series {
    /// Seconds since the begin, objects.
    counts: Vec<(f64, f64)>,
    bytes: Vec<(f64, f64)>,
}

/// A type whose objects only grow.
#[derive(Debug)]
pub(super) struct GrowingType {
    pub(super) name: TypeName,
    pub(super) count_per_second: f64,
    pub(super) bytes_per_second: f64,
    /// How probable it is by chance, all types that were looked at considered.
    pub(super) p: f64,
}

/// A line whose memory only grows.
#[derive(Debug)]
pub(super) struct GrowingLine<'a> {
    pub(super) in_use: &'a LineInUse,
    pub(super) bytes_per_second: f64,
    /// How probable it is by chance, all lines that were looked at considered.
    pub(super) p: f64,
}

/// What the lines have shown.
#[derive(Debug, Default)]
pub(super) struct Lines<'a> {
    /// Those that take most first.
    pub(super) growing: Vec<GrowingLine<'a>>,
    /// Number of those that keep enough to be judged.
    pub(super) n_judged: usize,
    /// Number of those that keep what they allocate, while the process as a whole does not grow by it.
    pub(super) n_replaced: usize,
}

/// Everything that was seen.
#[derive(Debug)]
pub(super) struct Watched {
    types: HashMap<TypeName, Series>,
    /// Why there are no types, in words.
    no_types: Option<String>,
    /// Seconds since the begin, bytes.
    objects: Vec<(f64, f64)>,
    resident: Vec<(f64, f64)>,
    /// The same of what belongs to the process alone, with what is swapped out.
    private: Vec<(f64, f64)>,
    /// The first and the last answer.
    in_use: Option<(u64, InUse)>,
    alloc_period: u64,
    n_looks: usize,
    pub(super) seconds: f64,
    /// What is not seen, in words.
    pub(super) notes: Vec<String>,
}

impl Watched {
    /// Nothing yet; allocations are sampled once each `alloc_period` bytes.
    pub(super) fn new(alloc_period: u64) -> Self {
        Self {
            types: HashMap::new(),
            no_types: None,
            objects: Vec::new(),
            resident: Vec::new(),
            private: Vec::new(),
            in_use: None,
            alloc_period,
            n_looks: 0,
            seconds: 0.0,
            notes: Vec::new(),
        }
    }

    pub(super) fn n_looks(&self) -> usize {
        self.n_looks
    }

    pub(super) fn n_types(&self) -> usize {
        self.types.len()
    }

    /// Whether objects can be counted.
    pub(super) fn has_types(&self) -> bool {
        self.no_types.is_none()
    }

    /// Objects cannot be counted.
    pub(super) fn has_no_types(&mut self, error: &HeapError) {
        self.no_types = Some(format!("types are not seen: {error}"));
    }

    /// What follows was seen at this time, in seconds since the begin.
    pub(super) fn begin_look(&mut self, at: f64) {
        self.n_looks += 1;
        self.seconds = at;
    }

    pub(super) fn add_types(&mut self, snapshot: Snapshot) {
        let at = self.seconds;
        let mut n_bytes = 0.0;
        for row in snapshot.types {
            let series = self.types.entry(row.name).or_default();
            series.counts.push((at, row.count.n_objects as f64));
            series.bytes.push((at, row.count.n_bytes as f64));
            n_bytes += row.count.n_bytes as f64;
        }
        self.objects.push((at, n_bytes));
        // Of others there is none any more.
        for series in self.types.values_mut() {
            if series.counts.last().is_some_and(|(seen, _)| *seen < at) {
                series.counts.push((at, 0.0));
                series.bytes.push((at, 0.0));
            }
        }
    }

    pub(super) fn add_lines(&mut self, in_use: InUse) {
        let begin_ns = self.in_use.as_ref().map_or(in_use.at_ns, |it| it.0);
        self.in_use = Some((begin_ns, in_use));
    }

    pub(super) fn add_resident(&mut self, resident: Resident) {
        self.resident.push((self.seconds, resident.total() as f64));
        let private = resident.anon.saturating_add(resident.swap);
        self.private.push((self.seconds, private as f64));
    }

    /// Growth of what is resident, in bytes a second.
    pub(super) fn resident_growth(&self) -> Option<f64> {
        Growth::of(&self.resident).map(|growth| growth.per_second)
    }

    /// Looks after which a type that grows in each step is told from chance.
    fn looks_needed(&self) -> usize {
        points_needed(self.types.len(), MAX_CHANCE)
    }

    /// Why it cannot be said that no type grows; `None`: it can.
    pub(super) fn inconclusive(&self) -> Option<String> {
        let needed = self.looks_needed();
        let too_few = || {
            format!(
                "too few looks to tell growth from chance among {} types, {needed} are needed; look longer (--duration)",
                self.types.len()
            )
        };
        let too_few = (self.n_looks < needed).then(too_few);
        self.no_types.clone().or(too_few)
    }

    /// Says so where the time does not suffice for the looks that are needed.
    pub(super) fn too_short(&self, step: Duration, duration: Duration) -> Option<String> {
        let n_steps = u32::try_from(self.looks_needed() - 1).unwrap_or(u32::MAX);
        let needed = step.saturating_mul(n_steps);
        (self.has_types() && needed > duration).then(|| {
            format!(
                "too short to tell growth from chance: {} looks are needed for {} types, at least {} here (--duration)",
                n_steps + 1,
                self.types.len(),
                duration_text(needed)
            )
        })
    }

    /// Types whose objects only grow, those that take most first.
    pub(super) fn growing_types(&self) -> Vec<GrowingType> {
        let mut growing: Vec<GrowingType> = self
            .types
            .iter()
            .filter_map(|(name, series)| {
                let (first, last) = (series.bytes.first()?, series.bytes.last()?);
                let is_worth_it = last.1 - first.1 >= MIN_GROWN_BYTES;
                let (counts, bytes) = (Growth::of(&series.counts), Growth::of(&series.bytes));
                let bytes = bytes.filter(|_| is_worth_it)?;
                Some(GrowingType {
                    name: name.clone(),
                    count_per_second: counts.map_or(0.0, |counts| counts.per_second),
                    bytes_per_second: bytes.per_second,
                    p: (bytes.p * self.types.len() as f64).min(1.0),
                })
            })
            .filter(|it| it.p <= MAX_CHANCE)
            .collect();
        growing.sort_by(|a, b| b.bytes_per_second.total_cmp(&a.bytes_per_second));
        growing
    }

    /// Lines whose memory only grows. Those of an allocator that is not seen any more are not judged.
    pub(super) fn lines(&self) -> Lines<'_> {
        let mut lines = Lines::default();
        let Some((begin_ns, in_use)) = &self.in_use else {
            return lines;
        };
        let seconds = in_use.at_ns.saturating_sub(*begin_ns) as f64 / 1e9;
        let seen = in_use
            .lines
            .iter()
            .filter(|line| in_use.probes.seen.contains(&line.source));
        let mut found = Vec::new();
        for line in seen {
            let kept = line.since(*begin_ns);
            lines.n_judged += usize::from(line_growth::is_judged(&kept, seconds));
            let growth = line_growth::growth(&kept, seconds);
            if line_growth::is_judged(&kept, seconds) {
                tracing::debug!(
                    "{:?}: {growth:?}, tenths of {seconds} s {:?}",
                    line.line,
                    tenths(&kept, seconds)
                );
            }
            found.extend(growth.map(|growth| (line, growth)));
        }
        for (in_use, growth) in found {
            let p = (growth.p * lines.n_judged as f64).min(1.0);
            if p > MAX_CHANCE {
                continue;
            }
            let totals = [&self.objects, &self.private];
            if totals.iter().any(|it| line_growth::confirmed(growth, it)) {
                lines.growing.push(GrowingLine {
                    in_use,
                    bytes_per_second: growth.per_second,
                    p,
                });
            } else {
                lines.n_replaced += 1;
            }
        }
        lines
            .growing
            .sort_by(|a, b| b.bytes_per_second.total_cmp(&a.bytes_per_second));
        lines
    }

    /// Allocators whose lines are seen.
    pub(super) fn seen(&self) -> &[ProfileType] {
        let in_use = self.in_use.as_ref();
        in_use.map_or(&[], |(_, in_use)| &in_use.probes.seen)
    }

    /// What a line must keep over the whole time to be found, in bytes, by the allocators that are seen.
    pub(super) fn limits(&self) -> Vec<(ProfileType, u64)> {
        let has_arenas = self
            .in_use
            .as_ref()
            .is_some_and(|it| it.1.probes.has_arenas);
        let limit = |it: &ProfileType| match it {
            ProfileType::Pools if has_arenas => MAX_ARENA_BYTES * ENOUGH_UNSAMPLED as u64,
            ProfileType::Pools => POOL_PERIOD * ENOUGH_KEPT as u64,
            _ => self.alloc_period.saturating_mul(ENOUGH_KEPT as u64),
        };
        self.seen().iter().map(|it| (*it, limit(it))).collect()
    }

    /// What is not seen, in words.
    pub(super) fn not_seen(&self) -> Vec<&str> {
        let of_probes = self.in_use.as_ref().map(|(_, in_use)| &in_use.probes.notes);
        let notes = self.notes.iter().chain(of_probes.into_iter().flatten());
        notes.map(String::as_str).collect()
    }
}

/// Number of samples of each tenth of the time, for the log.
fn tenths(kept: &[Kept], seconds: f64) -> [usize; 10] {
    let mut tenths = [0; 10];
    for it in kept {
        if let Some(n) = tenths.get_mut((it.at / seconds * 10.0) as usize) {
            *n += 1;
        }
    }
    tenths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::in_use::{BlockInUse, LineName, ProbeState};

    const SECOND_NS: u64 = 1_000_000_000;
    const BEGIN_NS: u64 = 77 * SECOND_NS;

    /// A line that keeps 8 blocks of 128 KiB of each second of a minute, and what was allocated before.
    fn line(source: ProfileType, function: &str) -> LineInUse {
        let block = |n: u64| BlockInUse {
            at_ns: BEGIN_NS - SECOND_NS + n * SECOND_NS / 8,
            n_bytes: 128 << 10,
            size: 16 << 10,
        };
        LineInUse {
            source,
            line: LineName {
                function: function.to_owned(),
                file: "app.py".to_owned(),
                line: 3,
            },
            stack: Vec::new(),
            blocks: (0..488).map(block).collect(),
        }
    }

    /// A process that grows by so many bytes a second, and which has these lines.
    fn watched(bytes_per_second: u64, seen: &[ProfileType], lines: &[LineInUse]) -> Watched {
        let mut watched = Watched::new(128 << 10);
        for second in (0..=60).step_by(2) {
            watched.begin_look(f64::from(second));
            watched.add_resident(Resident {
                anon: 500_000_000 + u64::from(second as u32) * bytes_per_second,
                ..Resident::default()
            });
            watched.add_lines(InUse {
                at_ns: BEGIN_NS + second as u64 * SECOND_NS,
                lines: lines.to_vec(),
                probes: ProbeState {
                    is_settled: true,
                    seen: seen.to_vec(),
                    has_arenas: false,
                    notes: vec!["something\nelse".to_owned()],
                },
            });
        }
        watched
    }

    #[test]
    fn lines_are_reported_if_they_are_seen_and_the_process_grows() {
        let both = [ProfileType::Pools, ProfileType::Alloc];
        let leak = [
            line(ProfileType::Alloc, "leak"),
            line(ProfileType::Pools, "leak"),
        ];
        let grows = watched(1 << 20, &both, &leak);
        let lines = grows.lines();
        assert_eq!(
            (lines.growing.len(), lines.n_judged, lines.n_replaced),
            (2, 2, 0)
        );
        assert!((lines.growing[0].bytes_per_second / f64::from(1 << 20) - 1.0).abs() < 0.02);
        assert!(lines.growing[0].p < MAX_CHANCE);
        let text = grows.as_text(None);
        assert!(text.contains("leak (app.py:3) (malloc)"), "{text}");
        assert!(text.contains("not seen: something\\nelse"), "{text}");
        // The probes on malloc were taken away.
        let one = watched(1 << 20, &both[..1], &leak);
        assert_eq!(one.lines().growing.len(), 1);
        assert!(one.as_text(None).contains("lines of small objects are"));
        // A full cache.
        let replaces = watched(1000, &both, &leak);
        let lines = replaces.lines();
        assert_eq!((lines.growing.len(), lines.n_replaced), (0, 2));
        let json: serde_json::Value = serde_json::from_str(&replaces.as_json(None)).unwrap();
        assert_eq!(json["lines_replaced"], 2);
        assert_eq!(json["lines"].as_array().unwrap().len(), 0);
        // Nothing is known.
        let unknown = Watched::new(1);
        assert!(unknown.lines().growing.is_empty());
        assert!(unknown.as_text(None).contains("too few looks"));
    }
}
