//! Folded stacks: `root;...;leaf count`, a line each. Frames as [`crate::format::frame_text`] writes them are taken apart, as
//! are py-spy's `name (file:line)`; others are names and no more.

use std::time::{Duration, SystemTime};

use super::ReadError;
use crate::format::escape;
use crate::profile::model::{
    FrameKind, Function, LabelSet, LabelValue, Location, Mapping, MappingId, Process, Profile,
    ValueType, label,
};
use crate::profile::tables::{Head, Tables};

/// What is counted: it is not said, and mostly samples.
const TYPES: [ValueType; 1] = [ValueType::SAMPLES];

/// A frame's text, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Parts<'a> {
    kind: FrameKind,
    name: &'a str,
    filename: &'a str,
    line: u32,
}

pub(super) fn parse(text: &str) -> Result<Profile, ReadError> {
    let mut tables = Tables::default();
    let mut n_lines = 0_usize;
    for (line, number) in text.lines().zip(1..) {
        if line.trim().is_empty() || line.starts_with("# ") {
            continue;
        }
        let (stack, count) = line
            .trim_end()
            .rsplit_once(' ')
            .and_then(|(stack, count)| Some((stack, parse_count(count)?)))
            .ok_or_else(|| {
                let begin: String = line.chars().take(40).collect();
                ReadError::Unknown(format!(
                    "line {number} does not end with a count: `{}`",
                    escape(&begin)
                ))
            })?;
        n_lines += 1;
        add(&mut tables, stack, count);
    }
    if n_lines == 0 {
        return Err(ReadError::Empty);
    }
    let profile = tables.finish(Head {
        sample_types: &TYPES,
        period: 1,
        start: SystemTime::UNIX_EPOCH,
        duration: Duration::ZERO,
        comments: Vec::new(),
    });
    Ok(profile)
}

/// Whole numbers, and those with a point, as some tools write them.
fn parse_count(text: &str) -> Option<i64> {
    text.parse::<i64>()
        .ok()
        .filter(|count| *count >= 0)
        .or_else(|| {
            let is_number = text
                .chars()
                .all(|char| char.is_ascii_digit() || char == '.');
            let count: f64 = text.parse().ok().filter(|_| is_number)?;
            (count < 9e18).then_some(count.round() as i64)
        })
}

fn add(tables: &mut Tables, stack: &str, count: i64) {
    let mut frames: Vec<&str> = stack.split(';').collect();
    let mut labels = Vec::new();
    // The process, where there are several.
    let process = frames.first().copied().and_then(process_of);
    if let Some((comm, pid)) = process {
        frames.remove(0);
        labels.push((tables.string(label::PID), LabelValue::Num(pid.into())));
        labels.push(tables.text_label(label::COMM, comm));
    }
    let is_none = |frame: &&str| frame.is_empty() || *frame == "[no stack]";
    if frames.iter().all(is_none) {
        frames.clear();
    }
    let locations: Vec<_> = frames
        .iter()
        .rev()
        .map(|text| {
            let parts = parts(text);
            let function = Function {
                kind: parts.kind,
                name: tables.string(parts.name),
                filename: tables.string(parts.filename),
                start_line: 0,
            };
            let mapping = match parts.kind {
                FrameKind::Python | FrameKind::Reason => MappingId(0),
                FrameKind::Native | FrameKind::Kernel => {
                    let mapping = Mapping {
                        filename: tables.string(parts.filename),
                        build_id: tables.string(""),
                    };
                    tables.mapping(mapping)
                }
            };
            let location = Location {
                function: tables.function(function),
                line: parts.line,
                mapping,
                address: 0,
            };
            tables.location(location)
        })
        .collect();
    let process = Process {
        pid: process.map_or(0, |(_, pid)| pid),
        started_ns: 0,
        owner: None,
        cmdline: tables.string(""),
        labels: Box::default(),
    };
    let set = LabelSet {
        process: tables.process(process),
        thread_started_ns: 0,
        labels: labels.into(),
    };
    let set = tables.label_set(set);
    let stack = if tables.is_full() && tables.known_stack(&locations).is_none() {
        tables.no_stack(count)
    } else {
        tables.stack(&locations)
    };
    tables.add(stack, set, [count].into());
}

/// `comm (pid)`.
fn process_of(frame: &str) -> Option<(&str, u32)> {
    let (comm, pid) = frame.strip_suffix(')')?.rsplit_once(" (")?;
    Some((comm, pid.parse().ok()?))
}

fn parts(text: &str) -> Parts<'_> {
    let named = |kind, name| Parts {
        kind,
        name,
        filename: "",
        line: 0,
    };
    if let Some(name) = text.strip_suffix("_[k]") {
        return Parts {
            filename: "vmlinux",
            ..named(FrameKind::Kernel, name)
        };
    }
    if let Some(rest) = text.strip_prefix('[') {
        return match rest.split_once("] ") {
            Some((module, name)) => Parts {
                filename: module,
                ..named(FrameKind::Native, name)
            },
            None if text.ends_with(']') => named(FrameKind::Reason, text),
            None => named(FrameKind::Native, text),
        };
    }
    let file = text
        .strip_suffix(')')
        .and_then(|text| text.rsplit_once(" ("));
    let Some((name, file)) = file else {
        return named(FrameKind::Native, text);
    };
    let (filename, line) = match file.rsplit_once(':') {
        Some((filename, line)) if line.parse::<u32>().is_ok() => {
            (filename, line.parse().unwrap_or(0))
        }
        _ => (file, 0),
    };
    Parts {
        filename,
        line,
        ..named(FrameKind::Python, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_apart() {
        let check = |text: &str, kind, name: &str, filename: &str, line| {
            let expected = Parts {
                kind,
                name,
                filename,
                line,
            };
            assert_eq!(parts(text), expected, "{text}");
        };
        check("f (a.py:7)", FrameKind::Python, "f", "a.py", 7);
        check(
            "A.<lambda> (/x/a.py)",
            FrameKind::Python,
            "A.<lambda>",
            "/x/a.py",
            0,
        );
        check(
            "[libz.so.1] deflate",
            FrameKind::Native,
            "deflate",
            "libz.so.1",
            0,
        );
        check(
            "do_sys_poll_[k]",
            FrameKind::Kernel,
            "do_sys_poll",
            "vmlinux",
            0,
        );
        check(
            "[incomplete: loop]",
            FrameKind::Reason,
            "[incomplete: loop]",
            "",
            0,
        );
        check("main", FrameKind::Native, "main", "", 0);
    }

    #[test]
    fn the_process_is_no_frame() {
        let profile = parse("python3 (12);f (a.py:1) 3\npython3 (13);f (a.py:1) 4\n").unwrap();
        let pids: Vec<i64> = profile
            .samples
            .iter()
            .map(|sample| profile.thread(sample.labels).pid)
            .collect();
        assert_eq!(pids, [12, 13]);
        assert_eq!(profile.stacks.len(), 1);
    }

    #[test]
    fn counts_are_whole_or_have_a_point_and_are_not_negative() {
        assert_eq!(parse_count("12"), Some(12));
        assert_eq!(parse_count("12.6"), Some(13));
        for text in ["-1", "1e5", "inf", "", "x"] {
            assert_eq!(parse_count(text), None, "{text}");
        }
    }
}
