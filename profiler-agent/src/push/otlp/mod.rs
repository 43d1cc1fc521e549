//! Windows as requests of OTLP profiles (<https://opentelemetry.io/docs/specs/otlp/>): a resource each process, a profile each
//! sample type, and one dictionary for all of a request.

mod dictionary;
mod resource;

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use foldhash::fast::RandomState;
use indexmap::IndexSet;

use self::dictionary::{Attribute, Dictionary, Place};
use self::resource::Resource;
use super::host::Host;
use super::window::Window;
use crate::format::escape;
use crate::generated::opentelemetry::proto::collector::profiles::v1development::ExportProfilesServiceRequest;
use crate::generated::opentelemetry::proto::common::v1::InstrumentationScope;
use crate::generated::opentelemetry::proto::profiles::v1development as proto;
use crate::generated::opentelemetry::proto::resource::v1::Resource as ResourceMessage;
use crate::profile::model::{
    FrameKind, LabelSetId, LocationId, MappingId, Profile, ProfileType, Sample, StackId,
};

/// Version of opentelemetry-proto that is spoken. An older receiver can take it for something else.
pub const OTLP_PROTO_VERSION: &str = "1.11.0";

/// Name of the attribute that says what kind of code a location is of.
const FRAME_TYPE: &str = "profile.frame.type";

/// A sample on its way: of which resource, of which profile of the window, and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Entry {
    resource: u32,
    profile: u32,
    sample: u32,
}

/// A window, ready to be cut into requests.
pub struct OtlpWindow<'a> {
    window: &'a Window,
    host: &'a Host,
    resources: IndexSet<Resource, RandomState>,
    /// By resource, then by profile.
    entries: Vec<Entry>,
}

impl<'a> OtlpWindow<'a> {
    /// Sorts the samples of a window by process.
    #[must_use]
    pub fn new(window: &'a Window, host: &'a Host) -> Self {
        Self::named(window, host, &[])
    }

    /// The same; labels of these names have attributes that are called so.
    pub(super) fn named(
        window: &'a Window,
        host: &'a Host,
        attributes: &[(String, String)],
    ) -> Self {
        let mut resources = IndexSet::default();
        let mut entries = Vec::new();
        for ((_, profile), idx) in window.profiles().iter().zip(0..) {
            let processes = profile.processes.iter();
            let of_process: Vec<u32> = processes
                .map(|it| {
                    resources
                        .insert_full(Resource::new(profile, it, host, attributes))
                        .0 as u32
                })
                .collect();
            let resource = |sample: &Sample| {
                let set = profile.label_sets.get(sample.labels.0 as usize)?;
                of_process.get(set.process.0 as usize).copied()
            };
            let samples = profile.samples.iter().zip(0..);
            entries.extend(samples.filter_map(|(it, sample)| {
                Some(Entry {
                    resource: resource(it)?,
                    profile: idx,
                    sample,
                })
            }));
        }
        entries.sort_unstable();
        Self {
            window,
            host,
            resources,
            entries,
        }
    }

    /// Number of its samples. A request has a range of them.
    #[must_use]
    pub fn n_samples(&self) -> usize {
        self.entries.len()
    }

    /// The request with these samples; it can be made again and is the same then.
    #[must_use]
    pub fn request(&self, samples: Range<usize>) -> ExportProfilesServiceRequest {
        let mut dictionary = Dictionary::new();
        let entries = self.entries.get(samples).unwrap_or_default();
        let by_resource = entries.chunk_by(|one, other| one.resource == other.resource);
        let resource_profiles = by_resource.filter_map(|entries| {
            let resource = self
                .resources
                .get_index(entries.first()?.resource as usize)?;
            let by_profile = entries.chunk_by(|one, other| one.profile == other.profile);
            let profiles: Vec<_> = by_profile
                .flat_map(|entries| self.profiles(resource, entries, &mut dictionary))
                .collect();
            (!profiles.is_empty()).then(|| resource_profiles(resource, profiles))
        });
        ExportProfilesServiceRequest {
            resource_profiles: resource_profiles.collect(),
            dictionary: Some(dictionary.finish()),
        }
    }

    /// The profiles of samples of one resource and one profile of the window: one each sample type.
    fn profiles(
        &self,
        resource: &Resource,
        entries: &[Entry],
        dictionary: &mut Dictionary,
    ) -> Vec<proto::Profile> {
        let Some(first) = entries.first() else {
            return Vec::new();
        };
        let Some((profile_type, profile)) = self.window.profiles().get(first.profile as usize)
        else {
            return Vec::new();
        };
        let mut encoder = Encoder {
            profile,
            dictionary,
            locations: HashMap::default(),
            stacks: HashMap::default(),
            label_sets: HashMap::default(),
        };
        let n_types = profile.sample_types.len();
        let mut samples = vec![Vec::new(); n_types];
        for entry in entries {
            let Some(sample) = profile.samples.get(entry.sample as usize) else {
                continue;
            };
            let values = sample.values.of(profile.sample_types);
            if values.iter().all(|value| *value == 0) {
                continue;
            }
            let stack_index = encoder.stack(sample.stack);
            let attributes = encoder.attributes(sample.labels);
            for (samples, value) in samples.iter_mut().zip(values) {
                if *value != 0 {
                    samples.push(proto::Sample {
                        stack_index,
                        attribute_indices: attributes.to_vec(),
                        link_index: 0,
                        values: vec![*value],
                        timestamps_unix_nano: Vec::new(),
                    });
                }
            }
        }
        let types = profile.sample_types.iter().zip(samples);
        types
            .filter(|(_, samples)| !samples.is_empty())
            .map(|(sample_type, samples)| {
                let identity = (resource.process(), first, *profile_type, sample_type.kind);
                proto::Profile {
                    sample_type: Some(dictionary.value_type(sample_type.kind, sample_type.unit)),
                    samples,
                    time_unix_nano: unix_nanos(profile.start),
                    duration_nano: u64::try_from(profile.duration.as_nanos()).unwrap_or(u64::MAX),
                    period_type: Some(
                        dictionary.value_type(profile.period_type.kind, profile.period_type.unit),
                    ),
                    period: profile.period,
                    profile_id: self.profile_id(profile, &identity),
                    attribute_indices: remarks(profile, *profile_type, dictionary),
                    ..proto::Profile::default()
                }
            })
            .collect()
    }

    /// The same for the same samples, also when they are sent again, or by an agent that was started anew.
    fn profile_id(&self, profile: &Profile, identity: &impl Hash) -> Vec<u8> {
        let half = |seed: u8| {
            let mut hasher = Fnv1a::new();
            (seed, &self.host.name, self.window.seq).hash(&mut hasher);
            (unix_nanos(profile.start), identity).hash(&mut hasher);
            hasher.finish().to_le_bytes()
        };
        [half(1), half(2)].concat()
    }
}

fn resource_profiles(
    resource: &Resource,
    profiles: Vec<proto::Profile>,
) -> proto::ResourceProfiles {
    let scope = InstrumentationScope {
        name: "pyagent".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    proto::ResourceProfiles {
        resource: Some(ResourceMessage {
            attributes: resource.key_values(),
            dropped_attributes_count: 0,
        }),
        scope_profiles: vec![proto::ScopeProfiles {
            scope: Some(scope),
            profiles,
            schema_url: String::new(),
        }],
        schema_url: String::new(),
    }
}

/// Attributes of a profile: what it is about, and what was lost.
fn remarks(profile: &Profile, of: ProfileType, dictionary: &mut Dictionary) -> Vec<i32> {
    let text = |text: &str| Attribute::Text(escape(text).into_owned());
    let mut attributes = vec![dictionary.attribute("pyagent.profile.type", text(of.name()))];
    if !profile.comments.is_empty() {
        let comments = text(&profile.comments.join("; "));
        attributes.push(dictionary.attribute("pyagent.profile.comments", comments));
    }
    attributes
}

/// Puts what samples of one profile refer to into the dictionary, each once.
struct Encoder<'a> {
    profile: &'a Profile,
    dictionary: &'a mut Dictionary,
    locations: HashMap<LocationId, i32, RandomState>,
    stacks: HashMap<StackId, i32, RandomState>,
    label_sets: HashMap<LabelSetId, Arc<[i32]>, RandomState>,
}

impl Encoder<'_> {
    fn stack(&mut self, id: StackId) -> i32 {
        if let Some(known) = self.stacks.get(&id) {
            return *known;
        }
        let profile = self.profile;
        let locations = profile.stacks.get(id.0 as usize).into_iter().flatten();
        let locations = locations
            .filter_map(|location| self.location(*location))
            .collect();
        let idx = self.dictionary.stack(locations);
        self.stacks.insert(id, idx);
        idx
    }

    fn location(&mut self, id: LocationId) -> Option<i32> {
        if let Some(known) = self.locations.get(&id) {
            return Some(*known);
        }
        let location = self.profile.locations.get(id.0 as usize)?;
        let frame = self.profile.frame(id)?;
        let start_line = self.profile.functions.get(frame.function.0 as usize);
        let name_strindex = self.dictionary.string(&escape(frame.name));
        let is_symbol = matches!(frame.kind, FrameKind::Native | FrameKind::Kernel);
        let function = proto::Function {
            name_strindex,
            system_name_strindex: if is_symbol { name_strindex } else { 0 },
            filename_strindex: self.dictionary.string(&escape(frame.filename)),
            start_line: start_line.map_or(0, |it| i64::from(it.start_line)),
        };
        let line = proto::Line {
            function_index: self.dictionary.function(function),
            line: i64::from(frame.line),
            column: 0,
        };
        let kind = match frame.kind {
            FrameKind::Python => Some("cpython"),
            FrameKind::Native => Some("native"),
            FrameKind::Kernel => Some("kernel"),
            // A remark is no code.
            FrameKind::Reason => None,
        };
        let kind = kind.map(|kind| {
            self.dictionary
                .attribute(FRAME_TYPE, Attribute::Text(kind.to_owned()))
        });
        let place = Place {
            mapping: if is_symbol {
                self.mapping(location.mapping)
            } else {
                0
            },
            address: frame.address,
            line,
            frame_type: kind,
        };
        let idx = self.dictionary.location(place);
        self.locations.insert(id, idx);
        Some(idx)
    }

    /// The binary that native code is of. Python code has none.
    fn mapping(&mut self, id: MappingId) -> i32 {
        let Some(mapping) = self.profile.mappings.get(id.0 as usize) else {
            return 0;
        };
        let filename = escape(self.profile.str(mapping.filename));
        let build_id = self.profile.str(mapping.build_id);
        let build_id = (!build_id.is_empty()).then(|| {
            let build_id = Attribute::Text(escape(build_id).into_owned());
            self.dictionary
                .attribute("process.executable.build_id.gnu", build_id)
        });
        let message = proto::Mapping {
            filename_strindex: self.dictionary.string(&filename),
            attribute_indices: build_id.into_iter().collect(),
            ..proto::Mapping::default()
        };
        self.dictionary.mapping(message)
    }

    /// What is said of a sample beyond its process.
    fn attributes(&mut self, id: LabelSetId) -> Arc<[i32]> {
        if let Some(known) = self.label_sets.get(&id) {
            return Arc::clone(known);
        }
        let profile = self.profile;
        let set = profile.label_sets.get(id.0 as usize);
        let labels = set.into_iter().flat_map(|set| &set.labels);
        let attributes: Arc<[i32]> = labels
            .filter_map(|(name, value)| {
                let value = resource::attribute(profile, *value)?;
                let name = resource::sample_name(profile.str(*name));
                Some(self.dictionary.attribute(&name, value))
            })
            .collect();
        self.label_sets.insert(id, Arc::clone(&attributes));
        attributes
    }
}

/// The hash FNV-1a of 64 bits: the same in each build and run.
struct Fnv1a(u64);

impl Fnv1a {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv1a {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Nanoseconds since 1970; 0 for a clock that is before it.
fn unix_nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
