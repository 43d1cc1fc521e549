//! Chrome's trace events, for Perfetto and chrome://tracing:
//! <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>.
//!
//! Of samples with their times a bar is one run of a function: samples that follow each other and have it and the same
//! callers. A profile without them is a sum: when a function ran is not in it. Each thread's call tree is laid out from the left
//! to the right, what took most first; the length of a bar is the time that it took in all.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Value, json};

use super::escape::escape;
use super::folded::NO_STACK;
use super::text::name_text;
use super::text::unix_seconds;
use super::threads::{by_thread, id, process_name, thread_name};
use super::timeline::{ThreadCourse, Tick, Timeline};
use crate::profile::measure::{Measure, Unit};
use crate::profile::model::{FunctionId, Profile, Thread};
use crate::profile::tree::Tree;

/// A bar.
#[derive(Serialize)]
struct Complete {
    ph: &'static str,
    name: String,
    cat: &'static str,
    /// Microseconds.
    ts: f64,
    dur: f64,
    pid: u32,
    tid: u32,
    args: Value,
}

/// The begin or the end of a bar. Of a complete event a viewer would have to add up begin and length, and bars that end
/// together would not.
#[derive(Serialize)]
struct Border<'a> {
    ph: &'static str,
    name: &'a str,
    cat: &'static str,
    /// Microseconds.
    ts: f64,
    pid: u32,
    tid: u32,
    args: &'a Value,
}

/// Writes the profile as trace events.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let measure = Measure::main(profile);
    let timeline = Timeline::of(profile);
    out.write_all(b"{\"displayTimeUnit\":\"ms\",\"otherData\":")?;
    let other = json!({
        "name": super::title::title(profile),
        "version": concat!("pyagent ", env!("CARGO_PKG_VERSION")),
        "note": match &timeline {
            Some(_) => "sampled: a bar is a run of a function as far as samples show it",
            None => "sums, not a course in time: the longest call first",
        },
        "start": timeline.as_ref().map(|it| unix_seconds(it.start)),
        "samples_without_time": timeline.as_ref().map(|_| profile.n_without_time()),
        "comments": profile.comments.iter().map(|it| escape(it)).collect::<Vec<_>>(),
    });
    serde_json::to_writer(&mut *out, &other)?;
    out.write_all(b",\"traceEvents\":[\n")?;
    let mut events = Events {
        out,
        is_first: true,
        named: None,
    };
    if let Some(timeline) = timeline {
        for course in &timeline.threads {
            let ids = events.names(&course.thread)?;
            events.course(profile, course, ids)?;
        }
        return events.out.write_all(b"\n]}\n");
    }
    for group in by_thread(profile) {
        let (pid, tid) = events.names(&group.thread)?;
        let stacks = group.stacks.into_iter();
        let amounts = stacks.map(|(stack, values)| (stack, measure.amount(values)));
        let tree = Tree::of_stacks(profile, amounts);
        events.tree(profile, measure, &tree, (pid, tid))?;
    }
    events.out.write_all(b"\n]}\n")
}

struct Events<'a> {
    out: &'a mut dyn Write,
    is_first: bool,
    /// The process whose name was written last.
    named: Option<u32>,
}

/// A function that runs.
struct Open {
    /// `None`: nothing is known of the stack.
    function: Option<FunctionId>,
    name: String,
    /// An end has them again: readers take it by both for that of its begin.
    args: Value,
}

impl Events<'_> {
    fn put(&mut self, event: &impl Serialize) -> io::Result<()> {
        if !std::mem::take(&mut self.is_first) {
            self.out.write_all(b",\n")?;
        }
        serde_json::to_writer(&mut *self.out, event)?;
        Ok(())
    }

    fn name(&mut self, what: &str, (pid, tid): (u32, u32), name: &str) -> io::Result<()> {
        self.put(&json!({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}))
    }

    /// Names of a thread, and of its process before the first of its threads.
    fn names(&mut self, thread: &Thread<'_>) -> io::Result<(u32, u32)> {
        let (pid, tid) = (id(thread.pid), id(thread.tid));
        if self.named != Some(pid) {
            self.named = Some(pid);
            self.name("process_name", (pid, tid), &process_name(thread))?;
        }
        self.name("thread_name", (pid, tid), &thread_name(thread))?;
        Ok((pid, tid))
    }

    /// What a thread did, stretch by stretch.
    fn course(
        &mut self,
        profile: &Profile,
        course: &ThreadCourse<'_>,
        ids: (u32, u32),
    ) -> io::Result<()> {
        for stretch in course.stretches() {
            let ticks = course.ticks.get(stretch).unwrap_or_default();
            let mut open: Vec<Open> = Vec::new();
            for tick in ticks {
                let stack = functions_of(profile, tick);
                let running = open.iter().zip(&stack);
                let n_same = running
                    .take_while(|(open, function)| open.function == **function)
                    .count();
                self.close(&mut open, n_same, tick.from, ids)?;
                for function in stack.into_iter().skip(n_same) {
                    open.push(self.open(profile, function, tick.from, ids)?);
                }
            }
            let end = ticks.last().map_or(0, |last| last.to);
            self.close(&mut open, 0, end, ids)?;
        }
        Ok(())
    }

    /// Writes that a function began at this time.
    fn open(
        &mut self,
        profile: &Profile,
        function: Option<FunctionId>,
        from: u64,
        (pid, tid): (u32, u32),
    ) -> io::Result<Open> {
        let frame = function.and_then(|id| profile.function_frame(id));
        let name = frame.map_or_else(|| NO_STACK.to_owned(), |it| name_text(&it));
        let args = json!({
            "file": frame.map(|it| escape(it.filename)),
            "line": frame.map(|it| it.line),
        });
        self.put(&Border {
            ph: "B",
            name: &name,
            cat: "sampled",
            ts: from as f64 / 1e3,
            pid,
            tid,
            args: &args,
        })?;
        Ok(Open {
            function,
            name,
            args,
        })
    }

    /// Writes that the functions beyond so many ended at this time.
    fn close(
        &mut self,
        open: &mut Vec<Open>,
        n_kept: usize,
        to: u64,
        (pid, tid): (u32, u32),
    ) -> io::Result<()> {
        for ended in open.drain(n_kept.min(open.len())..).rev() {
            self.put(&Border {
                ph: "E",
                name: &ended.name,
                cat: "sampled",
                ts: to as f64 / 1e3,
                pid,
                tid,
                args: &ended.args,
            })?;
        }
        Ok(())
    }

    fn tree(
        &mut self,
        profile: &Profile,
        measure: Measure,
        tree: &Tree,
        (pid, tid): (u32, u32),
    ) -> io::Result<()> {
        // Nodes with the place where they begin; not by recursion: stacks are as deep as they like.
        let mut waiting = vec![(0, 0_i64)];
        while let Some((idx, mut start)) = waiting.pop() {
            let node = &tree.nodes[idx];
            let (name, amount, args) = match node.function {
                Some(function) => {
                    let frame = profile.function_frame(function);
                    let name = frame.map_or_else(String::new, |it| name_text(&it));
                    let args = json!({
                        "file": frame.map(|it| escape(it.filename)),
                        "line": frame.map(|it| it.line),
                        "samples": node.total.n_samples,
                    });
                    (name, node.total, args)
                }
                None => (NO_STACK.to_owned(), node.own, json!({})),
            };
            if amount.weight > 0 {
                self.put(&Complete {
                    ph: "X",
                    name,
                    cat: "sampled",
                    ts: shown(measure, start),
                    dur: shown(measure, amount.weight),
                    pid,
                    tid,
                    args,
                })?;
            }
            if node.function.is_none() {
                start = start.saturating_add(node.own.weight);
            }
            let mut places = Vec::with_capacity(node.children.len());
            for child in &node.children {
                places.push((*child, start));
                start = start.saturating_add(tree.nodes[*child].total.weight);
            }
            waiting.extend(places.into_iter().rev());
        }
        Ok(())
    }
}

/// The functions of a sample, root first.
fn functions_of(profile: &Profile, tick: &Tick) -> Vec<Option<FunctionId>> {
    let frames = profile.frames(tick.stack).rev();
    let functions: Vec<_> = frames.map(|frame| Some(frame.function)).collect();
    if functions.is_empty() {
        return vec![None];
    }
    functions
}

/// Microseconds; of bytes and counts one each, so that a bar's length is their number.
fn shown(measure: Measure, weight: i64) -> f64 {
    match measure.unit {
        Unit::Time => weight as f64 / 1e3,
        Unit::Bytes | Unit::Count => weight as f64,
    }
}
