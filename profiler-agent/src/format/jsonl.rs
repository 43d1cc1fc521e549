//! JSON lines, for programs of one's own: the first line says what the profile is, each other one is a sample with its labels,
//! its values and its stack, leaf first. With the times of samples each is a line of its own.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::text::unix_seconds;
use crate::profile::model::{Frame, FrameKind, LabelValue, Profile};

/// Writes the profile as JSON lines.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let types = profile.sample_types.iter();
    let head = json!({
        "creator": concat!("pyagent ", env!("CARGO_PKG_VERSION")),
        "sample_types": types.map(|it| json!({"kind": it.kind, "unit": it.unit})).collect::<Vec<_>>(),
        "period": profile.period,
        "period_type": {"kind": profile.period_type.kind, "unit": profile.period_type.unit},
        "start": unix_seconds(profile.start),
        "duration": profile.duration.as_secs_f64(),
        "comments": profile.comments,
    });
    put(out, &head)?;
    let rows = profile.samples.iter().map(|it| (None, it, it.values));
    let samples: Box<dyn Iterator<Item = _>> = if profile.has_moments() {
        Box::new(profile.one_by_one())
    } else {
        Box::new(rows)
    };
    for (at_ns, sample, values) in samples {
        let labels = profile.labels(sample.labels).map(|(name, value)| {
            let value = match value {
                LabelValue::Str(text) => Value::from(profile.str(text)),
                LabelValue::Num(number) => Value::from(number),
            };
            (profile.str(name).to_owned(), value)
        });
        let values = values.of(profile.sample_types);
        let values = profile.sample_types.iter().zip(values);
        let mut line = json!({
            "labels": labels.collect::<Map<_, _>>(),
            "values": values.map(|(kind, value)| (kind.kind.to_owned(), Value::from(*value))).collect::<Map<_, _>>(),
            "stack": profile.frames(sample.stack).map(|frame| shown(&frame)).collect::<Vec<_>>(),
        });
        if let Some(at_ns) = at_ns {
            line["timestamp_unix_nano"] = at_ns.into();
        }
        put(out, &line)?;
    }
    Ok(())
}

fn put(out: &mut dyn Write, line: &Value) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

fn shown(frame: &Frame<'_>) -> Value {
    let kind = match frame.kind {
        FrameKind::Python => "python",
        FrameKind::Native => "native",
        FrameKind::Kernel => "kernel",
        FrameKind::Reason => "reason",
    };
    let mut shown = json!({"kind": kind, "name": frame.name});
    if !frame.filename.is_empty() {
        let key = if frame.kind == FrameKind::Python {
            "file"
        } else {
            "module"
        };
        shown[key] = frame.filename.into();
    }
    if frame.line != 0 {
        shown["line"] = frame.line.into();
    }
    if frame.address != 0 {
        shown["address"] = frame.address.into();
    }
    shown
}
