//! speedscope: <https://www.speedscope.app/file-format-schema.json>, one profile a thread. Samples with their times are in their
//! order, a sample without frames for the time in which the thread was not sampled, so that all threads have one axis; else
//! their order is that of their stacks.

use std::io::{self, Write};

use serde::Serialize;

use super::escape::escape;
use super::text::name_text;
use super::threads::{by_thread, process_name, thread_name, with_id};
use super::timeline::{ThreadCourse, Timeline};
use crate::profile::measure::{Measure, Unit};
use crate::profile::model::{LocationId, Profile, StackId, Thread};

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
    let (profiles, most) = match Timeline::of(profile) {
        Some(timeline) => of_courses(profile, &timeline),
        None => of_sums(profile, measure),
    };
    let file = File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        exporter: concat!("pyagent ", env!("CARGO_PKG_VERSION")),
        name: super::title::title(profile),
        active_profile_index: most,
        shared: Shared {
            frames: frames.collect(),
        },
        profiles,
    };
    serde_json::to_writer(out, &file)?;
    Ok(())
}

/// Each thread by its stacks, and which has most.
fn of_sums(profile: &Profile, measure: Measure) -> (Vec<Sampled>, usize) {
    let threads = by_thread(profile).into_iter().map(|group| {
        let unit = match measure.unit {
            Unit::Time => "nanoseconds",
            Unit::Bytes => "bytes",
            Unit::Count => "none",
        };
        let mut sampled = Sampled::of_thread(&group.thread, unit);
        for (stack, values) in &group.stacks {
            sampled.add(from_root(profile, *stack), values[measure.idx]);
        }
        sampled
    });
    let threads: Vec<Sampled> = threads.collect();
    let most = (0..threads.len()).max_by_key(|idx| threads[*idx].end_value);
    (threads, most.unwrap_or(0))
}

/// Each thread in its order, and which has most samples.
fn of_courses(profile: &Profile, timeline: &Timeline<'_>) -> (Vec<Sampled>, usize) {
    let course = |course: &ThreadCourse<'_>| {
        let mut sampled = Sampled::of_thread(&course.thread, "nanoseconds");
        let mut end = 0;
        for tick in &course.ticks {
            sampled.add(Vec::new(), weight(end, tick.from));
            sampled.add(from_root(profile, tick.stack), weight(tick.from, tick.to));
            end = tick.to;
        }
        sampled
    };
    let threads = timeline.threads.iter().map(course).collect();
    let n_samples = |idx: &usize| timeline.threads[*idx].n_samples();
    let most = (0..timeline.threads.len()).max_by_key(n_samples);
    (threads, most.unwrap_or(0))
}

fn weight(from: u64, to: u64) -> i64 {
    i64::try_from(to.saturating_sub(from)).unwrap_or(i64::MAX)
}

fn from_root(profile: &Profile, stack: StackId) -> Vec<u32> {
    let locations = profile.stacks.get(stack.0 as usize);
    let from_root = locations.into_iter().flatten().rev();
    from_root.map(|it| it.0).collect()
}

impl Sampled {
    fn of_thread(thread: &Thread<'_>, unit: &'static str) -> Self {
        Self {
            name: format!(
                "{} {}",
                with_id(&process_name(thread), thread.pid),
                with_id(&thread_name(thread), thread.tid)
            ),
            unit,
            start_value: 0,
            end_value: 0,
            samples: Vec::new(),
            weights: Vec::new(),
        }
    }

    /// A stack of frames, root first. What weighs nothing is left out.
    fn add(&mut self, frames: Vec<u32>, weight: i64) {
        if weight != 0 {
            self.samples.push(frames);
            self.weights.push(weight);
            self.end_value = self.end_value.saturating_add(weight);
        }
    }
}
