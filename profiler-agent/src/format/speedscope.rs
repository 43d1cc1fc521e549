//! speedscope: <https://www.speedscope.app/file-format-schema.json>, one profile a thread. The order of a thread's samples is
//! that of their stacks, not that in which they were taken.

use std::io::{self, Write};

use serde::Serialize;

use super::escape::escape;
use super::text::name_text;
use super::threads::{by_thread, process_name, thread_name, with_id};
use crate::profile::measure::{Measure, Unit};
use crate::profile::model::{LocationId, Profile};

#[derive(Serialize)]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'a str,
    exporter: &'a str,
    name: String,
    #[serde(rename = "activeProfileIndex")]
    active_profile_index: usize,
    shared: Shared,
    profiles: Vec<Sampled>,
}

#[derive(Serialize)]
struct Shared {
    frames: Vec<Frame>,
}

#[derive(Serialize)]
struct Frame {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    file: String,
    #[serde(skip_serializing_if = "is_zero")]
    line: u32,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "sampled", rename_all = "camelCase")]
struct Sampled {
    name: String,
    unit: &'static str,
    start_value: i64,
    end_value: i64,
    /// Of frames, root first.
    samples: Vec<Vec<u32>>,
    weights: Vec<i64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(line: &u32) -> bool {
    *line == 0
}

/// Writes the profile for speedscope.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let measure = Measure::main(profile);
    let frames = (0..profile.locations.len()).map(|idx| {
        let frame = profile.frame(LocationId(idx as u32));
        Frame {
            name: frame.map_or_else(String::new, |it| name_text(&it)),
            file: frame.map_or_else(String::new, |it| escape(it.filename).into_owned()),
            line: frame.map_or(0, |it| it.line),
        }
    });
    let profiles: Vec<Sampled> = by_thread(profile)
        .iter()
        .map(|group| {
            let mut sampled = Sampled {
                name: format!(
                    "{} {}",
                    with_id(&process_name(&group.thread), group.thread.pid),
                    with_id(&thread_name(&group.thread), group.thread.tid)
                ),
                unit: match measure.unit {
                    Unit::Time => "nanoseconds",
                    Unit::Bytes => "bytes",
                    Unit::Count => "none",
                },
                start_value: 0,
                end_value: 0,
                samples: Vec::new(),
                weights: Vec::new(),
            };
            for (stack, values) in &group.stacks {
                let weight = values[measure.idx];
                if weight == 0 {
                    continue;
                }
                let locations = profile.stacks.get(stack.0 as usize);
                let from_root = locations.into_iter().flatten().rev();
                sampled.samples.push(from_root.map(|it| it.0).collect());
                sampled.weights.push(weight);
                sampled.end_value = sampled.end_value.saturating_add(weight);
            }
            sampled
        })
        .collect();
    let most = (0..profiles.len()).max_by_key(|idx| profiles[*idx].end_value);
    let file = File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        exporter: concat!("pyagent ", env!("CARGO_PKG_VERSION")),
        name: super::title::title(profile),
        active_profile_index: most.unwrap_or(0),
        shared: Shared {
            frames: frames.collect(),
        },
        profiles,
    };
    serde_json::to_writer(out, &file)?;
    Ok(())
}
