//! pprof: <https://github.com/google/pprof/blob/main/proto/profile.proto>, compressed by gzip.
//!
//! Ids are the tables' indices plus one, since pprof's begin with 1. Everything that readers would otherwise
//! look up (symbols, files, lines) is in the profile, and each mapping says so, so that no reader goes looking
//! for binaries. Texts are escaped: readers write them to terminals as they are.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use foldhash::fast::RandomState;
use prost::Message as _;

use super::escape::escape;
use crate::generated::perftools::profiles as proto;
use crate::profile::model::{
    FrameKind, LabelSetId, LabelValue, Profile, Sample, StringId, ValueType, Values,
};

/// The label with the time of a sample, in nanoseconds since 1970. pprof itself has no name for it; this is Datadog's, whose
/// profilers write it and whose timeline reads it: `end_timestamp_ns` in libdatadog, profiling/src/internal/profile/mod.rs.
pub(super) const TIME_LABEL: &str = "end_timestamp_ns";

/// Number of the field `Profile.sample`.
const SAMPLE_FIELD: u32 = 2;

/// Samples that are put together before they are compressed.
const SAMPLE_BYTES: usize = 1 << 16;

/// The texts of [`TIME_LABEL`].
#[derive(Clone, Copy)]
struct TimeLabel {
    key: i64,
    unit: i64,
}

/// Writes the profile as pprof does: one gzip member.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let mut gzip = GzEncoder::new(out, Compression::default());
    let mut strings = Strings::new(profile);
    // One sample each moment can be more than there is memory for: each is written when it was made.
    let time = profile.has_moments().then(|| TimeLabel {
        key: strings.add(TIME_LABEL),
        unit: strings.add("nanoseconds"),
    });
    write_samples(profile, time, &mut gzip)?;
    gzip.write_all(&encode(profile, strings).encode_to_vec())?;
    gzip.finish()?;
    Ok(())
}

fn encode(profile: &Profile, mut strings: Strings) -> proto::Profile {
    let sample_type = profile
        .sample_types
        .iter()
        .map(|kind| strings.value_type(*kind));
    let sample_type = sample_type.collect();
    proto::Profile {
        sample_type,
        sample: Vec::new(),
        mapping: mappings(profile),
        location: locations(profile),
        function: functions(profile),
        time_nanos: unix_nanos(profile.start),
        duration_nanos: i64::try_from(profile.duration.as_nanos()).unwrap_or(i64::MAX),
        period_type: Some(strings.value_type(profile.period_type)),
        period: profile.period,
        comment: profile
            .comments
            .iter()
            .map(|text| strings.add(text))
            .collect(),
        default_sample_type: strings.add(default_type(profile)),
        drop_frames: 0,
        keep_frames: 0,
        doc_url: 0,
        string_table: strings.table,
    }
}

/// The kind of value that readers are to show first: of pyagent's own profiles never the number of samples.
fn default_type(profile: &Profile) -> &'static str {
    let idx = profile.main_value.unwrap_or(profile.weight_idx().max(1));
    let found = profile.sample_types.get(idx);
    found.unwrap_or(&profile.sample_types[0]).kind
}

/// The profile's texts, escaped, and after them those that only pprof needs.
struct Strings {
    table: Vec<String>,
    added: HashMap<String, i64, RandomState>,
}

impl Strings {
    fn new(profile: &Profile) -> Self {
        let texts = profile.strings.iter().map(|text| escape(text).into_owned());
        let mut table: Vec<_> = texts.collect();
        if table.is_empty() {
            table.push(String::new());
        }
        Self {
            table,
            added: HashMap::default(),
        }
    }

    fn add(&mut self, text: &str) -> i64 {
        let text = escape(text).into_owned();
        let Self { table, added } = self;
        *added.entry(text).or_insert_with_key(|text| {
            table.push(text.clone());
            table.len() as i64 - 1
        })
    }

    fn value_type(&mut self, value_type: ValueType) -> proto::ValueType {
        proto::ValueType {
            r#type: self.add(value_type.kind),
            unit: self.add(value_type.unit),
        }
    }
}

/// The fields of a message may come in any order, and those that are repeated in pieces.
fn write_samples(
    profile: &Profile,
    time: Option<TimeLabel>,
    out: &mut impl Write,
) -> io::Result<()> {
    let label_sets: Vec<Vec<proto::Label>> = (0..profile.label_sets.len() as u32)
        .map(|idx| {
            let labels = profile.labels(LabelSetId(idx));
            labels
                .filter_map(|(key, value)| label(key, value))
                .collect()
        })
        .collect();
    let message = |sample: &Sample, values: Values| proto::Sample {
        location_id: profile
            .stacks
            .get(sample.stack.0 as usize)
            .map(|stack| stack.iter().map(|location| id(location.0)).collect())
            .unwrap_or_default(),
        value: values.of(profile.sample_types).to_vec(),
        label: label_sets
            .get(sample.labels.0 as usize)
            .cloned()
            .unwrap_or_default(),
    };
    let rows = profile.samples.iter().map(|it| (None, it, it.values));
    let samples: Box<dyn Iterator<Item = _>> = match time {
        None => Box::new(rows),
        Some(_) => Box::new(profile.one_by_one()),
    };
    let mut bytes = Vec::new();
    for (at_ns, sample, values) in samples {
        let mut message = message(sample, values);
        if let (Some(at_ns), Some(time)) = (at_ns, time) {
            message.label.push(proto::Label {
                key: time.key,
                num: at_ns,
                num_unit: time.unit,
                ..proto::Label::default()
            });
        }
        prost::encoding::message::encode(SAMPLE_FIELD, &message, &mut bytes);
        if bytes.len() >= SAMPLE_BYTES {
            out.write_all(&bytes)?;
            bytes.clear();
        }
    }
    out.write_all(&bytes)
}

/// A label; `None` for an empty text, which readers would take for the number 0.
fn label(key: StringId, value: LabelValue) -> Option<proto::Label> {
    let mut label = proto::Label {
        key: index(key),
        ..proto::Label::default()
    };
    match value {
        LabelValue::Str(StringId(0)) => return None,
        LabelValue::Str(text) => label.str = index(text),
        LabelValue::Num(number) => label.num = number,
    }
    Some(label)
}

fn mappings(profile: &Profile) -> Vec<proto::Mapping> {
    let mappings = profile.mappings.iter().zip(1..);
    mappings
        .map(|(mapping, id)| proto::Mapping {
            id,
            filename: index(mapping.filename),
            build_id: index(mapping.build_id),
            has_functions: true,
            has_filenames: true,
            has_line_numbers: true,
            has_inline_frames: true,
            ..proto::Mapping::default()
        })
        .collect()
}

fn locations(profile: &Profile) -> Vec<proto::Location> {
    let locations = profile.locations.iter().zip(1..);
    locations
        .map(|(location, location_id)| proto::Location {
            id: location_id,
            mapping_id: id(location.mapping.0),
            address: location.address,
            line: vec![proto::Line {
                function_id: id(location.function.0),
                line: i64::from(location.line),
                column: 0,
            }],
            is_folded: false,
        })
        .collect()
}

fn functions(profile: &Profile) -> Vec<proto::Function> {
    let functions = profile.functions.iter().zip(1..);
    functions
        .map(|(function, id)| proto::Function {
            id,
            name: index(function.name),
            system_name: match function.kind {
                FrameKind::Native | FrameKind::Kernel => index(function.name),
                // Go's reader demangles it: of `<module>` nothing would be left (`demangleSingleFunction`).
                FrameKind::Python | FrameKind::Reason => 0,
            },
            filename: index(function.filename),
            start_line: i64::from(function.start_line),
        })
        .collect()
}

fn id(index: u32) -> u64 {
    u64::from(index) + 1
}

fn index(text: StringId) -> i64 {
    i64::from(text.0)
}

/// Nanoseconds since 1970; 0 for a clock that is before it.
fn unix_nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
