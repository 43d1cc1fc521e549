//! Windows as profiles of pprof, one each service and container, for Pyroscope and Parca.
//!
//! What differs from process to process and from thread to thread is left out, since each combination would be a series of
//! its own over there: what processes of one service have in common is summed up.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Range;

use foldhash::fast::RandomState;
use indexmap::{IndexMap, IndexSet};

use super::host::Host;
use super::window::Window;
use crate::format::{Format, escape};
use crate::generated::parca::profilestore::v1alpha1 as parca;
use crate::generated::push::v1 as pyroscope;
use crate::generated::types::v1::LabelPair;
use crate::profile::model::{
    Function, FunctionId, LabelSet, LabelSetId, LabelValue, Location, LocationId, Mapping,
    MappingId, Process, ProcessId, Profile, ProfileType, Sample, StackId, StringId, ValueType,
    Values, label,
};

/// Labels of processes that are no part of a series unless they are asked for.
const NOT_OF_SERVICE: [&str; 3] = [label::PID, label::COMM, label::CGROUP];

/// Name of a process's service where none is known.
const UNKNOWN_SERVICE: &str = "unknown_service:python";

/// The labels that all samples of a series have: sorted, no two of one name.
type Series = Vec<(String, String)>;

/// A sample on its way: of which series, of which profile of the window, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    series: u32,
    profile: u32,
    sample: u32,
}

/// A window, ready to be cut into requests.
pub(super) struct PprofWindow<'a> {
    window: &'a Window,
    labels: &'a [String],
    series: IndexSet<Series, RandomState>,
    entries: Vec<Entry>,
}

impl<'a> PprofWindow<'a> {
    /// Sorts the samples of a window by service and container. `labels` are those of processes and threads that are told too.
    pub(super) fn new(window: &'a Window, host: &Host, labels: &'a [String]) -> Self {
        let mut series = IndexSet::default();
        let mut entries = Vec::new();
        for ((_, profile), idx) in window.profiles().iter().zip(0..) {
            let processes = profile.processes.iter();
            let of_process: Vec<u32> = processes
                .map(|it| series.insert_full(series_of(profile, it, host)).0 as u32)
                .collect();
            let series = |sample: &Sample| {
                let set = profile.label_sets.get(sample.labels.0 as usize)?;
                of_process.get(set.process.0 as usize).copied()
            };
            let samples = profile.samples.iter().zip(0..);
            entries.extend(samples.filter_map(|(it, sample)| {
                Some(Entry {
                    series: series(it)?,
                    profile: idx,
                    sample,
                })
            }));
        }
        entries.sort_unstable();
        Self {
            window,
            labels,
            series,
            entries,
        }
    }

    pub(super) fn n_samples(&self) -> usize {
        self.entries.len()
    }

    /// The request to Pyroscope with a range of the samples.
    pub(super) fn pyroscope(&self, samples: Range<usize>) -> pyroscope::PushRequest {
        let series = self.series(samples).map(|(labels, raw_profile)| {
            let labels = labels.into_iter();
            pyroscope::RawProfileSeries {
                labels: labels
                    .map(|(name, value)| LabelPair { name, value })
                    .collect(),
                samples: vec![pyroscope::RawSample {
                    raw_profile,
                    id: String::new(),
                }],
            }
        });
        pyroscope::PushRequest {
            series: series.collect(),
        }
    }

    /// The request to Parca with a range of the samples.
    pub(super) fn parca(&self, samples: Range<usize>) -> parca::WriteRawRequest {
        let series = self.series(samples).map(|(labels, raw_profile)| {
            let labels = labels.into_iter();
            let labels = labels.map(|(name, value)| parca::Label { name, value });
            parca::RawProfileSeries {
                labels: Some(parca::LabelSet {
                    labels: labels.collect(),
                }),
                samples: vec![parca::RawSample { raw_profile }],
            }
        });
        parca::WriteRawRequest {
            series: series.collect(),
            // Functions have their names: nothing is looked up by address.
            normalized: true,
            ..parca::WriteRawRequest::default()
        }
    }

    /// Labels and a compressed profile of each series and type among the samples.
    fn series(&self, samples: Range<usize>) -> impl Iterator<Item = (Series, Vec<u8>)> {
        let entries = self.entries.get(samples).unwrap_or_default();
        let key = |entry: &Entry| (entry.series, entry.profile);
        let parts = entries.chunk_by(move |one, other| key(one) == key(other));
        parts.filter_map(|entries| {
            let first = entries.first()?;
            let (profile_type, profile) = self.window.profiles().get(first.profile as usize)?;
            let mut labels = self.series.get_index(first.series as usize)?.clone();
            labels.push(("__name__".to_owned(), name_of(*profile_type).to_owned()));
            labels.sort();
            let samples = entries.iter();
            let samples = samples.filter_map(|it| profile.samples.get(it.sample as usize));
            let mut part = Part::new(profile, self.labels);
            samples.for_each(|sample| part.add(sample));
            let part = part.finish(*profile_type);
            let mut bytes = Vec::new();
            // Writing to memory does not fail.
            Format::default_format().write(&part, &mut bytes).ok()?;
            (!part.samples.is_empty()).then_some((labels, bytes))
        })
    }
}

/// What their interfaces look for, with the types of [`period_type`].
fn name_of(profile_type: ProfileType) -> &'static str {
    match profile_type {
        ProfileType::Cpu => "process_cpu",
        ProfileType::Alloc => "memory",
        ProfileType::Faults => "page_faults",
        ProfileType::Pools => "memory_pools",
        ProfileType::Mmap => "memory_mmap",
    }
}

fn period_type(profile: &Profile, profile_type: ProfileType) -> ValueType {
    if profile_type.is_of_allocations() {
        // Go's, which they know.
        ValueType::SPACE
    } else {
        profile.period_type
    }
}

fn series_of(profile: &Profile, process: &Process, host: &Host) -> Series {
    let mut labels: Series = Vec::new();
    for (name, value) in &process.labels {
        let name = profile.str(*name);
        let text = match value {
            LabelValue::Str(text) => escape(profile.str(*text)).into_owned(),
            LabelValue::Num(number) => number.to_string(),
        };
        let is_new = labels.iter().all(|(other, _)| other != name);
        if is_new && !text.is_empty() && !NOT_OF_SERVICE.contains(&name) {
            labels.push((name.to_owned(), text));
        }
    }
    let more = [
        (label::SERVICE_NAME, UNKNOWN_SERVICE.to_owned()),
        (label::HOST_NAME, escape(&host.name).into_owned()),
    ];
    for (name, text) in more {
        if labels.iter().all(|(other, _)| other != name) {
            labels.push((name.to_owned(), text));
        }
    }
    labels.sort();
    labels
}

/// A part of a profile: some samples, what they refer to, and of their labels those that are told.
struct Part<'a> {
    whole: &'a Profile,
    told: &'a [String],
    strings: Kept<StringId>,
    functions: Kept<FunctionId>,
    mappings: Kept<MappingId>,
    locations: Kept<LocationId>,
    stacks: Kept<StackId>,
    label_sets: IndexSet<Box<[(StringId, LabelValue)]>, RandomState>,
    /// By the label set of the whole.
    known_sets: HashMap<LabelSetId, LabelSetId, RandomState>,
    values: IndexMap<(StackId, LabelSetId), Values, RandomState>,
}

/// The entries of a table that are in the part, by their places there.
type Kept<Id> = IndexSet<Id, RandomState>;

fn keep<Id: Eq + Hash>(kept: &mut Kept<Id>, id: Id) -> u32 {
    kept.insert_full(id).0 as u32
}

impl<'a> Part<'a> {
    fn new(whole: &'a Profile, told: &'a [String]) -> Self {
        let mut part = Self {
            whole,
            told,
            strings: Kept::default(),
            functions: Kept::default(),
            mappings: Kept::default(),
            locations: Kept::default(),
            stacks: Kept::default(),
            label_sets: IndexSet::default(),
            known_sets: HashMap::default(),
            values: IndexMap::default(),
        };
        // Element 0 of these is always the same.
        keep(&mut part.strings, StringId(0));
        keep(&mut part.mappings, MappingId(0));
        part
    }

    fn add(&mut self, sample: &Sample) {
        if sample.values == Values::default() {
            return;
        }
        let stack = StackId(keep(&mut self.stacks, sample.stack));
        let labels = self.labels(sample.labels);
        let values = self.values.entry((stack, labels)).or_default();
        values.add(sample.values);
    }

    fn labels(&mut self, id: LabelSetId) -> LabelSetId {
        if let Some(known) = self.known_sets.get(&id) {
            return *known;
        }
        let whole = self.whole;
        let mut labels = Vec::new();
        for (name, value) in whole.labels(id) {
            if !self.told.iter().any(|told| told == whole.str(name)) {
                continue;
            }
            let name = StringId(keep(&mut self.strings, name));
            let value = match value {
                LabelValue::Str(text) => LabelValue::Str(StringId(keep(&mut self.strings, text))),
                number @ LabelValue::Num(_) => number,
            };
            labels.push((name, value));
        }
        let kept = self.label_sets.insert_full(labels.into());
        let kept = LabelSetId(kept.0 as u32);
        self.known_sets.insert(id, kept);
        kept
    }

    fn finish(mut self, profile_type: ProfileType) -> Profile {
        let whole = self.whole;
        let mut stacks = Vec::with_capacity(self.stacks.len());
        for id in &self.stacks {
            let locations = whole.stacks.get(id.0 as usize).into_iter().flatten();
            let locations = locations.map(|id| LocationId(keep(&mut self.locations, *id)));
            stacks.push(locations.collect());
        }
        let mut locations = Vec::with_capacity(self.locations.len());
        for id in &self.locations {
            // An id of another profile gives a location that is none: readers refuse a gap.
            let location = whole.locations.get(id.0 as usize).copied();
            let location = location.unwrap_or(Location {
                function: FunctionId(u32::MAX),
                line: 0,
                mapping: MappingId(0),
                address: 0,
            });
            locations.push(Location {
                function: FunctionId(keep(&mut self.functions, location.function)),
                mapping: MappingId(keep(&mut self.mappings, location.mapping)),
                ..location
            });
        }
        let mut string = |id: StringId| StringId(keep(&mut self.strings, id));
        let none = StringId(0);
        let functions = self.functions.iter();
        let functions = functions.map(|id| match whole.functions.get(id.0 as usize) {
            Some(function) => Function {
                name: string(function.name),
                filename: string(function.filename),
                ..*function
            },
            None => Function {
                kind: crate::profile::model::FrameKind::Reason,
                name: none,
                filename: none,
                start_line: 0,
            },
        });
        let functions = functions.collect();
        let mappings = self.mappings.iter();
        let mappings = mappings.map(|id| {
            let mapping = whole.mappings.get(id.0 as usize);
            mapping.map_or(
                Mapping {
                    filename: none,
                    build_id: none,
                },
                |it| Mapping {
                    filename: string(it.filename),
                    build_id: string(it.build_id),
                },
            )
        });
        let mappings = mappings.collect();
        let strings = self.strings.iter();
        let label_sets = self.label_sets.into_iter().map(|labels| LabelSet {
            process: ProcessId(0),
            thread_started_ns: 0,
            labels,
        });
        let samples = self.values.into_iter();
        Profile {
            sample_types: whole.sample_types,
            period_type: period_type(whole, profile_type),
            main_value: None,
            period: whole.period,
            start: whole.start,
            duration: whole.duration,
            strings: strings.map(|id| whole.str(*id).into()).collect(),
            functions,
            mappings,
            locations,
            stacks,
            // Whose samples they are is not told: labels of a series say so.
            processes: Vec::new(),
            label_sets: label_sets.collect(),
            samples: samples
                .map(|((stack, labels), values)| Sample {
                    stack,
                    labels,
                    values,
                })
                .collect(),
            moments: Vec::new(),
            comments: whole.comments.clone(),
            has_full_filenames: false,
        }
    }
}
