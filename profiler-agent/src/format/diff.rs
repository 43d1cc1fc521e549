//! Two profiles as one file: folded stacks with two counts, `root;...;leaf before after`, as inferno-diff-folded and
//! difffolded.pl write them, and the flame graph that is drawn of them.
//!
//! Frames are functions, without lines, since lines move when code changes, and without the process as their root.

use std::collections::BTreeMap;
use std::io::{self, Write};

use inferno::flamegraph::{self, Options};

use super::{folded, svg};
use crate::profile::measure::Measure;
use crate::profile::model::Profile;

/// Every stack of one of the two, with what both count of it.
#[must_use]
pub fn stacks(profiles: [&Profile; 2], measures: [Measure; 2]) -> BTreeMap<String, [i64; 2]> {
    let mut stacks: BTreeMap<String, [i64; 2]> = BTreeMap::new();
    for (side, (profile, measure)) in profiles.into_iter().zip(measures).enumerate() {
        let mut profile = profile.clone();
        for location in &mut profile.locations {
            location.line = 0;
        }
        for (stack, count) in folded::stacks_of(&profile, measure.idx, false) {
            let counts = stacks.entry(stack).or_default();
            counts[side] = counts[side].saturating_add(count);
        }
    }
    stacks.retain(|_, counts| *counts != [0, 0]);
    stacks
}

/// Writes both counts of each stack as they are.
pub fn write_folded(stacks: &BTreeMap<String, [i64; 2]>, out: &mut dyn Write) -> io::Result<()> {
    for (stack, [before, after]) in stacks {
        writeln!(out, "{stack} {before} {after}")?;
    }
    Ok(())
}

/// Draws what is after: the width is that of a flame graph of it, and the colour what changed in the function itself: red
/// grew, blue shrank. What is `scaled` compares shares: the counts before are brought to the same total.
pub fn write_svg(
    stacks: &BTreeMap<String, [i64; 2]>,
    is_scaled: bool,
    unit: &str,
    subtitle: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    let totals = stacks.values().fold([0.0, 0.0], |sums, counts| {
        [sums[0] + counts[0] as f64, sums[1] + counts[1] as f64]
    });
    if totals[1] <= 0.0 {
        return out.write_all(svg::EMPTY.as_bytes());
    }
    let scale = if is_scaled && totals[0] > 0.0 {
        totals[1] / totals[0]
    } else {
        1.0
    };
    let lines: Vec<String> = stacks
        .iter()
        .filter(|(_, counts)| counts.iter().all(|count| *count >= 0))
        .map(|(stack, [before, after])| {
            let before = (*before as f64 * scale).round() as i64;
            format!("{stack} {before} {after}")
        })
        .collect();
    let mut options = Options::default();
    "pyagent: what changed (red: more, blue: less; width: after)".clone_into(&mut options.title);
    options.subtitle = Some(super::escape(subtitle).into_owned());
    unit.clone_into(&mut options.count_name);
    "Frame:".clone_into(&mut options.name_type);
    options.deterministic = true;
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::read::read;

    fn drawn(before: &str, after: &str) -> String {
        let profiles = [before, after].map(|text| read(text.as_bytes()).unwrap());
        let measures = [Measure::main(&profiles[0]), Measure::main(&profiles[1])];
        let stacks = stacks([&profiles[0], &profiles[1]], measures);
        let mut svg = Vec::new();
        write_svg(&stacks, true, "samples", "a < b", &mut svg).unwrap();
        String::from_utf8(svg).unwrap()
    }

    #[test]
    fn shares_are_drawn_and_what_is_gone_is_no_error() {
        let svg = drawn("main;f 50\nmain;g 50\n", "main;f 150\nmain;g 50\n");
        assert!(svg.contains("f (150 samples, 75.00%; +25.00%)"), "{svg}");
        assert!(svg.contains("g (50 samples, 25.00%; -25.00%)"), "{svg}");
        assert!(drawn("main;f 5\n", "main;f 0\n").contains("No samples"));
        assert!(drawn("main;f 500\nmain;g 100\n", "main;g 100\n").contains("+83.00%"));
    }
}
