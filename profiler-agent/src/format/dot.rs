//! A call graph for Graphviz, drawn as gprof2dot does: a box a function with its share in all and its own, an arrow a call,
//! the hotter the redder. What takes less than half a per cent is left out, and calls of less than a tenth of one.

use std::collections::HashSet;
use std::io::{self, Write};

use super::escape::escape;
use super::text::{name_text, short_file};
use crate::profile::calls::{calls, functions};
use crate::profile::measure::Measure;
use crate::profile::model::{FrameKind, FunctionId, Profile};

/// Shares of all that a function, and a call, must take.
const MIN_FUNCTION: f64 = 0.005;
const MIN_CALL: f64 = 0.001;

/// Writes the profile as a call graph.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    let measure = Measure::main(profile);
    let whole = measure.whole(profile).weight.max(1) as f64;
    let share = |weight: i64| weight as f64 / whole;
    let mut rows = functions(profile, measure);
    rows.retain(|row| share(row.total.weight) >= MIN_FUNCTION);
    let shown: HashSet<FunctionId> = rows.iter().map(|row| row.function).collect();
    let mut calls = calls(profile, measure);
    calls.retain(|call| {
        let is_shown = shown.contains(&call.caller) && shown.contains(&call.callee);
        is_shown && share(call.total.weight) >= MIN_CALL
    });
    calls.sort_by_key(|call| (call.caller, call.callee));
    writeln!(out, "digraph {{")?;
    writeln!(
        out,
        "\tgraph [fontname=\"Arial\", nodesep=\"0.125\", ranksep=\"0.25\", label={}];",
        quoted(&super::title::title(profile))
    )?;
    writeln!(
        out,
        "\tnode [fontname=\"Arial\", fontcolor=\"#ffffff\", height=\"0\", width=\"0\", shape=\"box\", style=\"filled\"];"
    )?;
    writeln!(out, "\tedge [fontname=\"Arial\"];")?;
    for row in rows {
        let total = share(row.total.weight);
        let label = format!(
            "{}\n{}\n({})\n{}\u{d7}",
            label(profile, row.function),
            percent(total),
            percent(share(row.own.weight)),
            row.total.n_samples
        );
        writeln!(
            out,
            "\tn{} [color=\"{}\", fontsize=\"{:.2}\", label={}];",
            row.function.0,
            color(total),
            font_size(total),
            quoted(&label)
        )?;
    }
    for call in calls {
        let total = share(call.total.weight);
        let label = format!("{}\n{}\u{d7}", percent(total), call.total.n_samples);
        let color = color(total);
        writeln!(
            out,
            "\tn{} -> n{} [color=\"{color}\", fontcolor=\"{color}\", fontsize=\"{:.2}\", arrowsize=\"{:.2}\", \
             penwidth=\"{:.2}\", label={}];",
            call.caller.0,
            call.callee.0,
            font_size(total),
            (total * 4.0).sqrt().clamp(0.35, 1.0),
            (total * 4.0).max(0.5),
            quoted(&label)
        )?;
    }
    writeln!(out, "}}")
}

/// `json/decoder:JSONDecoder.decode`, as gprof2dot writes `module:function`.
fn label(profile: &Profile, function: FunctionId) -> String {
    match profile.function_frame(function) {
        Some(frame) if frame.kind == FrameKind::Python => {
            let file = short_file(frame.filename);
            let module = file.strip_suffix(".py").unwrap_or(file);
            let module = if module.starts_with('/') {
                module.rsplit('/').next().unwrap_or(module)
            } else {
                module
            };
            let module = escape(module);
            match frame.line {
                0 => format!("{module}:{}", name_text(&frame)),
                line => format!("{module}:{line}:{}", name_text(&frame)),
            }
        }
        Some(frame) => name_text(&frame),
        None => String::new(),
    }
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

fn font_size(share: f64) -> f64 {
    (share.sqrt() * 20.0).clamp(10.0, 20.0)
}

/// From blue over green to red.
fn color(share: f64) -> String {
    let heat = share.clamp(0.0, 1.0).sqrt();
    // Of the colour wheel: a third of a turn is green.
    let turn = (1.0 - heat) * 2.0 / 3.0;
    let channel = |offset: f64| {
        let place = (turn + offset).rem_euclid(1.0) * 6.0;
        let full = match place {
            ..1.0 => place,
            1.0..3.0 => 1.0,
            3.0..4.0 => 4.0 - place,
            _ => 0.0,
        };
        (full * 190.0).round() as u8
    };
    format!(
        "#{:02x}{:02x}{:02x}",
        channel(1.0 / 3.0),
        channel(0.0),
        channel(-1.0 / 3.0)
    )
}

/// As the language wants it: lines are centred at `\n`, quotes and backslashes have one before them.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", text.replace('\n', "\\n"))
}
