//! pprof: <https://github.com/google/pprof/blob/main/proto/profile.proto>, of pyagent and of others.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, SystemTime};

use foldhash::fast::RandomState;
use prost::Message as _;

use super::super::pprof::TIME_LABEL;
use super::wire::Fields;
use super::{Limits, ReadError};
use crate::generated::perftools::profiles as proto;
use crate::profile::aggregate::KERNEL_MAPPING;
use crate::profile::model::{
    FrameKind, Function, LabelSet, LabelSetId, LabelValue, Location, LocationId, MAX_VALUES,
    Mapping, MappingId, Process, Profile, ProfileType, ValueType, Values, label,
};
use crate::profile::tables::{Head, PYTHON_MAPPING, Tables};

/// Longest name of a type of values.
const MAX_TYPE_BYTES: usize = 64;

/// Most labels of a sample.
const MAX_LABELS: usize = 128;

/// Most frames of a stack, inlined ones included.
const MAX_FRAMES: usize = 1 << 16;

/// Longest sample: one of [`MAX_FRAMES`] has less than a quarter of it.
const MAX_SAMPLE_BYTES: usize = 4 << 20;

/// Numbers of a profile's fields.
const SAMPLE: u64 = 2;
const TABLES: [u64; 4] = [3, 4, 5, 6];
const COMMENT: u64 = 13;

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<Profile, ReadError> {
    let unknown = |error: prost::DecodeError| ReadError::Unknown(format!("as pprof {error}"));
    let mut tables = Vec::new();
    let mut n_entries = 0_usize;
    for field in Fields::new(bytes) {
        // The decoder says what is wrong with it.
        let Ok(field) = field else {
            let error = proto::Profile::decode(bytes).err().map(unknown);
            return Err(error.unwrap_or_else(|| ReadError::Damaged("it has groups".to_owned())));
        };
        n_entries += match field.number {
            SAMPLE => continue,
            COMMENT => field.content.len(),
            number => usize::from(TABLES.contains(&number)),
        };
        tables.extend_from_slice(field.whole);
    }
    if n_entries > limits.entries {
        return Err(ReadError::TooMany(limits.entries));
    }
    let profile = proto::Profile::decode(&*tables).map_err(unknown)?;
    drop(tables);
    if profile
        .string_table
        .first()
        .is_none_or(|text| !text.is_empty())
    {
        let why = "its table of texts does not begin with an empty one";
        return Err(ReadError::Unknown(why.to_owned()));
    }
    let samples = Fields::new(bytes).flatten();
    let samples = samples.filter(|field| field.number == SAMPLE);
    let samples = samples.map(|field| {
        if field.content.len() > MAX_SAMPLE_BYTES {
            return Err(ReadError::Damaged("a sample is too long".to_owned()));
        }
        proto::Sample::decode(field.content).map_err(unknown)
    });
    Reader::new(&profile, limits)?.profile(samples)
}

struct Reader<'a> {
    /// All but the samples.
    proto: &'a proto::Profile,
    limits: &'a Limits,
    tables: Tables,
    /// By their ids.
    functions: HashMap<u64, &'a proto::Function, RandomState>,
    mappings: HashMap<u64, &'a proto::Mapping, RandomState>,
    /// The frames of a location, the innermost first: several where calls were inlined.
    locations: HashMap<u64, Vec<LocationId>, RandomState>,
    label_sets: HashMap<Vec<(i64, i64, i64)>, LabelSetId, RandomState>,
    /// Times that samples can have, in nanoseconds since 1970.
    times: RangeInclusive<i64>,
    /// Samples whose time cannot be right.
    n_wrong_times: i64,
}

impl<'a> Reader<'a> {
    fn new(proto: &'a proto::Profile, limits: &'a Limits) -> Result<Self, ReadError> {
        let n_values = proto.sample_type.len();
        if n_values == 0 {
            return Err(ReadError::Damaged("it has no type of values".to_owned()));
        }
        let mut reader = Self {
            proto,
            limits,
            tables: Tables::default(),
            functions: proto.function.iter().map(|it| (it.id, it)).collect(),
            mappings: proto.mapping.iter().map(|it| (it.id, it)).collect(),
            locations: HashMap::default(),
            label_sets: HashMap::default(),
            times: times(proto),
            n_wrong_times: 0,
        };
        for location in &proto.location {
            let frames = reader.frames(location)?;
            reader.locations.insert(location.id, frames);
        }
        Ok(reader)
    }

    fn text(&self, idx: i64) -> Result<&'a str, ReadError> {
        let text = usize::try_from(idx)
            .ok()
            .and_then(|idx| self.proto.string_table.get(idx));
        text.map(String::as_str)
            .ok_or_else(|| ReadError::Damaged(format!("there is no text {idx}")))
    }

    fn frames(&mut self, location: &proto::Location) -> Result<Vec<LocationId>, ReadError> {
        let mapping = self.mappings.get(&location.mapping_id).copied();
        let mapping_name = match mapping {
            Some(mapping) => self.text(mapping.filename)?,
            None => "",
        };
        let build_id = match mapping {
            Some(mapping) => self.text(mapping.build_id)?,
            None => "",
        };
        let mapping = match mapping_name {
            "" | PYTHON_MAPPING => MappingId(0),
            name => {
                let mapping = Mapping {
                    filename: self.tables.string(name),
                    build_id: self.tables.string(build_id),
                };
                self.tables.mapping(mapping)
            }
        };
        let mut frames = Vec::new();
        for line in &location.line {
            let function = self.functions.get(&line.function_id).copied();
            let function = function.ok_or_else(|| {
                ReadError::Damaged(format!("there is no function {}", line.function_id))
            })?;
            let (name, filename) = (self.text(function.name)?, self.text(function.filename)?);
            frames.push((
                Function {
                    kind: kind(mapping_name, name, filename),
                    name: self.tables.string(name),
                    filename: self.tables.string(filename),
                    start_line: u32::try_from(function.start_line).unwrap_or(0),
                },
                u32::try_from(line.line).unwrap_or(0),
            ));
        }
        if frames.is_empty() {
            // Nobody has looked its name up.
            let module = mapping_name.rsplit('/').next().unwrap_or_default();
            let function = Function {
                kind: FrameKind::Native,
                name: self.tables.string(&format!("{:#x}", location.address)),
                filename: self.tables.string(module),
                start_line: 0,
            };
            frames.push((function, 0));
        }
        let locations = frames.into_iter().map(|(function, line)| {
            let is_code = matches!(function.kind, FrameKind::Native | FrameKind::Kernel);
            let location = Location {
                function: self.tables.function(function),
                line,
                mapping,
                address: if is_code { location.address } else { 0 },
            };
            self.tables.location(location)
        });
        Ok(locations.collect())
    }

    fn labels(&mut self, labels: &[proto::Label]) -> Result<LabelSetId, ReadError> {
        let labels = &labels[..labels.len().min(MAX_LABELS)];
        let labels = || labels.iter().filter(|label| !self.is_time(label));
        let key: Vec<(i64, i64, i64)> = labels().map(|it| (it.key, it.str, it.num)).collect();
        if let Some(known) = self.label_sets.get(&key) {
            return Ok(*known);
        }
        let mut pid = 0;
        let mut read = Vec::new();
        let labels: Vec<proto::Label> = labels().copied().collect();
        for label in &labels {
            let (name, text) = (self.text(label.key)?, self.text(label.str)?);
            if name == label::PID {
                pid = u32::try_from(label.num).unwrap_or(0);
            }
            let value = if text.is_empty() {
                LabelValue::Num(label.num)
            } else {
                LabelValue::Str(self.tables.string(text))
            };
            read.push((self.tables.string(name), value));
        }
        let process = Process {
            pid,
            started_ns: 0,
            owner: None,
            cmdline: self.tables.string(""),
            labels: Box::default(),
        };
        let set = LabelSet {
            process: self.tables.process(process),
            thread_started_ns: 0,
            labels: read.into(),
        };
        let set = self.tables.label_set(set);
        self.label_sets.insert(key, set);
        Ok(set)
    }

    /// Whether a label is the time of its sample.
    fn is_time(&self, label: &proto::Label) -> bool {
        let text = |idx: i64| {
            usize::try_from(idx)
                .ok()
                .and_then(|it| self.proto.string_table.get(it))
        };
        let has_unit = text(label.num_unit)
            .is_some_and(|unit| matches!(unit.as_str(), "" | "nanoseconds" | "ns"));
        label.str == 0 && has_unit && text(label.key).is_some_and(|name| name == TIME_LABEL)
    }

    /// When a sample was taken; `None`: that is not known, or cannot be right.
    fn time(&mut self, sample: &proto::Sample, n_samples: i64) -> Option<i64> {
        let labels = &sample.label[..sample.label.len().min(MAX_LABELS)];
        let time = labels.iter().find(|label| self.is_time(label))?.num;
        if self.times.contains(&time) {
            // What takes something away, as in a difference, was not seen at any time.
            return (n_samples >= 0).then_some(time);
        }
        self.n_wrong_times = self.n_wrong_times.saturating_add(n_samples.max(1));
        None
    }

    fn profile(
        mut self,
        samples: impl Iterator<Item = Result<proto::Sample, ReadError>>,
    ) -> Result<Profile, ReadError> {
        let proto = self.proto;
        let mut types = Vec::new();
        for value_type in proto.sample_type.iter().take(MAX_VALUES) {
            types.push((self.text(value_type.r#type)?, self.text(value_type.unit)?));
        }
        let mut frames = Vec::new();
        for sample in samples {
            let sample = &sample?;
            if sample.value.len() != proto.sample_type.len() {
                let why = "a sample has more or fewer values than there are types";
                return Err(ReadError::Damaged(why.to_owned()));
            }
            frames.clear();
            for id in &sample.location_id {
                let location = self.locations.get(id);
                let location = location
                    .ok_or_else(|| ReadError::Damaged(format!("there is no location {id}")))?;
                if frames.len() < MAX_FRAMES {
                    frames.extend_from_slice(location);
                }
            }
            let labels = self.labels(&sample.label)?;
            let values = values(&sample.value);
            let stack = if self.tables.is_full() && self.tables.known_stack(&frames).is_none() {
                self.tables.no_stack(values[0])
            } else {
                self.tables.stack(&frames)
            };
            let row = self.tables.add(stack, labels, values);
            if row as usize >= self.limits.rows || self.label_sets.len() > self.limits.entries {
                return Err(ReadError::TooMany(self.limits.rows));
            }
            if let Some(at_ns) = self.time(sample, values[0]) {
                self.tables.note(row, at_ns, values[0]);
            }
        }
        let mut comments = Vec::new();
        for comment in &proto.comment {
            comments.push(self.text(*comment)?.to_owned());
        }
        if self.n_wrong_times > 0 {
            comments.push(format!(
                "samples_wrong_time: {} (Samples without their time: it was outside of the profile's)",
                self.n_wrong_times
            ));
        }
        if proto.sample_type.len() > MAX_VALUES {
            comments.push(format!(
                "{} of {} values of each sample are left out",
                proto.sample_type.len() - MAX_VALUES,
                proto.sample_type.len()
            ));
        }
        let default_type = self.text(proto.default_sample_type)?;
        let sample_types = static_types(&types);
        let is_own = ProfileType::ALL
            .iter()
            .any(|known| known.sample_types() == sample_types);
        // Without a default the last value is what other readers show.
        let main_value = types.iter().position(|(kind, _)| *kind == default_type);
        let main_value = (!is_own).then(|| main_value.unwrap_or(types.len() - 1));
        let since_epoch = Duration::from_nanos(u64::try_from(proto.time_nanos).unwrap_or(0));
        let mut profile = self.tables.finish(Head {
            sample_types,
            period: proto.period,
            start: SystemTime::UNIX_EPOCH + since_epoch,
            duration: Duration::from_nanos(u64::try_from(proto.duration_nanos).unwrap_or(0)),
            comments,
        });
        profile.main_value = main_value;
        Ok(profile)
    }
}

/// The times that samples of a profile can have: within an hour of what it says of itself, since clocks are set; of one that
/// does not say when it was, any.
fn times(proto: &proto::Profile) -> RangeInclusive<i64> {
    const SLACK_NS: i64 = 3_600_000_000_000;
    if proto.time_nanos <= 0 {
        return 1..=i64::MAX;
    }
    let end = proto.time_nanos.saturating_add(proto.duration_nanos.max(0));
    (proto.time_nanos - SLACK_NS).max(1)..=end.saturating_add(SLACK_NS)
}

fn values(values: &[i64]) -> Values {
    let mut first = [0; MAX_VALUES];
    for (into, value) in first.iter_mut().zip(values) {
        *into = *value;
    }
    first.into()
}

/// What pyagent writes is told by its mapping; else the file says it.
fn kind(mapping: &str, name: &str, filename: &str) -> FrameKind {
    match mapping {
        PYTHON_MAPPING if filename.is_empty() && name.starts_with('[') => FrameKind::Reason,
        PYTHON_MAPPING => FrameKind::Python,
        KERNEL_MAPPING => FrameKind::Kernel,
        _ if Path::new(filename).extension().is_some_and(|it| it == "py")
            || filename.starts_with("<frozen ") =>
        {
            FrameKind::Python
        }
        _ => FrameKind::Native,
    }
}

/// The types of a profile that was read. Those that pyagent does not know stay in memory until it ends, which is soon: a
/// command reads two profiles at most.
fn static_types(types: &[(&str, &str)]) -> &'static [ValueType] {
    let is_same = |known: &&[ValueType]| {
        known.len() == types.len()
            && known
                .iter()
                .zip(types)
                .all(|(known, (kind, unit))| known.kind == *kind && known.unit == *unit)
    };
    let known = ProfileType::ALL.iter().map(|it| it.sample_types());
    let known = known.chain([&ValueType::HEAP[..]]).find(is_same);
    known.unwrap_or_else(|| {
        let text = |text: &str| -> &'static str {
            let end = text.floor_char_boundary(MAX_TYPE_BYTES);
            Box::leak(text[..end].to_owned().into_boxed_str())
        };
        let types = types.iter().map(|(kind, unit)| ValueType {
            kind: text(kind),
            unit: text(unit),
        });
        Vec::leak(types.collect())
    })
}
