//! Chrome's trace events, for Perfetto and chrome://tracing:
//! <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>.
//!
//! A profile is a sum: when a function ran is not in it. Each thread's call tree is laid out from the left to the right, what
//! took most first; the length of a bar is the time that it took in all.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Value, json};

use super::escape::escape;
use super::folded::NO_STACK;
use super::text::name_text;
use super::threads::{by_thread, id, process_name, thread_name};
use crate::profile::measure::{Measure, Unit};
use crate::profile::model::Profile;
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

/// Writes the profile as trace events.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let measure = Measure::main(profile);
    out.write_all(b"{\"displayTimeUnit\":\"ms\",\"otherData\":")?;
    let other = json!({
        "name": super::title::title(profile),
        "version": concat!("pyagent ", env!("CARGO_PKG_VERSION")),
        "note": "sums, not a course in time: the longest call first",
        "comments": profile.comments.iter().map(|it| escape(it)).collect::<Vec<_>>(),
    });
    serde_json::to_writer(&mut *out, &other)?;
    out.write_all(b",\"traceEvents\":[\n")?;
    let mut events = Events {
        out,
        is_first: true,
    };
    let mut named = None;
    for group in by_thread(profile) {
        let (pid, tid) = (id(group.thread.pid), id(group.thread.tid));
        if named != Some(pid) {
            named = Some(pid);
            events.name("process_name", (pid, tid), &process_name(&group.thread))?;
        }
        events.name("thread_name", (pid, tid), &thread_name(&group.thread))?;
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

/// Microseconds; of bytes and counts one each, so that a bar's length is their number.
fn shown(measure: Measure, weight: i64) -> f64 {
    match measure.unit {
        Unit::Time => weight as f64 / 1e3,
        Unit::Bytes | Unit::Count => weight as f64,
    }
}
