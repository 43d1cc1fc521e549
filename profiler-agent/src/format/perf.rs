//! The text of `perf script`, for what reads perf's stacks: the FlameGraph tools, inferno, the Firefox Profiler.
//!
//! Of time each sample is an event (of more than some millions each stack), the distance between two of them its period; the events of a thread follow each other as
//! its stacks do, not as they were taken. Of memory each stack is one event, its bytes the period. Python functions are named
//! as CPython's own support for perf names them, `py::name:file`, and the line behind.

use std::io::{self, Write};
use std::time::Duration;

use super::escape::escape;
use super::threads::{by_thread, id};
use crate::profile::measure::{Measure, Unit};
use crate::profile::model::{Frame, FrameKind, Profile};

/// Most samples that are written one by one.
pub(super) const MAX_EVENTS: i64 = 4_000_000;

/// Time from one event to the next; a millisecond where samples were not taken by time.
pub(super) fn step(profile: &Profile) -> Duration {
    match u64::try_from(profile.period) {
        Ok(period @ 1..) if profile.period_type.unit == "nanoseconds" => {
            Duration::from_nanos(period)
        }
        _ => Duration::from_millis(1),
    }
}

/// Writes the profile as `perf script` would.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let measure = Measure::main(profile);
    let is_one_by_one = measure.unit != Unit::Bytes && profile.n_samples() <= MAX_EVENTS;
    let kind = profile
        .sample_types
        .get(measure.idx)
        .map_or("", |it| it.kind);
    let event = word(if kind == "cpu" { "cpu-clock" } else { kind }, "samples");
    let step = step(profile);
    for group in by_thread(profile) {
        let name = match group.thread.thread_name {
            "" => group.thread.comm,
            name => name,
        };
        let head = format!(
            "{} {}/{}",
            word(name, "unknown"),
            id(group.thread.pid),
            id(group.thread.tid)
        );
        let mut time = Duration::ZERO;
        for (stack, values) in group.stacks {
            let weight = values[measure.idx];
            let n_events = if is_one_by_one {
                values[0]
            } else {
                i64::from(weight > 0)
            };
            if n_events <= 0 {
                continue;
            }
            let mut frames = String::new();
            for frame in profile.frames(stack) {
                frames.push_str(&line(&frame));
            }
            for _ in 0..n_events {
                let (seconds, micros) = (time.as_secs(), time.subsec_micros());
                let period = weight / n_events;
                writeln!(
                    out,
                    "{head} {seconds}.{micros:06}: {period} {event}:\n{frames}"
                )?;
                time = time.saturating_add(step);
            }
        }
    }
    Ok(())
}

/// `\t    7f12 deflate+0x0 (/lib/libz.so.1)`, but for the distance from the function's begin, which is not known.
fn line(frame: &Frame<'_>) -> String {
    let name = escape(frame.name);
    let (symbol, module) = match frame.kind {
        FrameKind::Python => {
            let file = escape(frame.filename);
            let symbol = match frame.line {
                0 => format!("py::{name}:{file}"),
                line => format!("py::{name}:{file}:{line}"),
            };
            (symbol, "[python]".to_owned())
        }
        FrameKind::Native => (name.into_owned(), word(frame.filename, "[unknown]")),
        FrameKind::Kernel => (name.into_owned(), "[kernel.kallsyms]".to_owned()),
        FrameKind::Reason => (name.into_owned(), "[pyagent]".to_owned()),
    };
    format!("\t{:16x} {symbol} ({module})\n", frame.address)
}

/// One word: readers split at spaces.
fn word(text: &str, otherwise: &str) -> String {
    match escape(text).replace(char::is_whitespace, "_") {
        text if text.is_empty() => otherwise.to_owned(),
        text => text,
    }
}
