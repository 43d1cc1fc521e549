//! Folded stacks: `root;...;leaf count`, one line a stack, sorted; the input of flamegraph.pl and inferno.
//!
//! When the profile has several processes, `comm (pid)` is the root frame of each stack. The count is the
//! number of samples, of memory the number of bytes. The format has no quoting, so three things in names are
//! replaced: `;` by `:`, a space
//! before a last word that is a number by `_` (readers would take it for a count), and one after a leading
//! `#` (inferno would take the line for a comment). Threads are not told apart.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::escape::escape;
use super::text::frame_text_in;
use crate::profile::model::{Profile, Sample};
use crate::profile::query;

/// What stands for samples without frames.
pub(super) const NO_STACK: &str = "[no stack]";

/// Writes the profile as folded stacks.
pub(super) fn write(profile: &Profile, out: &mut dyn Write) -> io::Result<()> {
    for (stack, n_samples) in stacks(profile) {
        writeln!(out, "{stack} {n_samples}")?;
    }
    Ok(())
}

/// The weight of each folded stack: samples, or bytes. A sample without frames counts for its process, or for
/// `[no stack]`.
pub(super) fn stacks(profile: &Profile) -> BTreeMap<String, i64> {
    stacks_of(
        profile,
        profile.weight_idx(),
        query::n_processes(profile) > 1,
    )
}

/// The same of any of the values, below their processes or not.
pub(super) fn stacks_of(
    profile: &Profile,
    value_idx: usize,
    by_process: bool,
) -> BTreeMap<String, i64> {
    // One text for each location: the same ones come in many stacks.
    let mut texts: Vec<Option<Box<str>>> = vec![None; profile.locations.len()];
    let mut stacks = BTreeMap::new();
    for sample in &profile.samples {
        let sum = stacks
            .entry(fold(profile, sample, by_process, &mut texts))
            .or_insert(0_i64);
        *sum = sum.saturating_add(sample.values[value_idx]);
    }
    stacks
}

fn fold(
    profile: &Profile,
    sample: &Sample,
    by_process: bool,
    texts: &mut [Option<Box<str>>],
) -> String {
    let mut folded = String::new();
    if by_process {
        folded.push_str(&process_text(profile, sample));
    }
    let locations = profile.stacks.get(sample.stack.0 as usize);
    for location in locations.into_iter().flatten().rev() {
        let (Some(frame), Some(text)) =
            (profile.frame(*location), texts.get_mut(location.0 as usize))
        else {
            continue;
        };
        if !folded.is_empty() {
            folded.push(';');
        }
        folded.push_str(
            text.get_or_insert_with(|| unambiguous(&frame_text_in(profile, &frame)).into()),
        );
    }
    if folded.is_empty() {
        folded.push_str(NO_STACK);
    }
    folded
}

/// The root frame that stands for the process of a sample.
pub(super) fn process_text(profile: &Profile, sample: &Sample) -> String {
    let thread = profile.thread(sample.labels);
    unambiguous(&format!("{} ({})", escape(thread.comm), thread.pid))
}

/// The text without what readers of the format take for something else.
pub(super) fn unambiguous(text: &str) -> String {
    let mut text = text.replace(';', ":");
    if let Some((before, last)) = text.rsplit_once(' ')
        && last
            .chars()
            .all(|char| char.is_ascii_digit() || char == '.')
    {
        text = format!("{before}_{last}");
    }
    if let Some(rest) = text.strip_prefix("# ") {
        text = format!("#_{rest}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_readers_would_take_for_something_else_is_replaced() {
        let check = unambiguous;
        assert_eq!(check("f (a;b.py:1)"), "f (a:b.py:1)");
        assert_eq!(check("[lib.so] operator 12"), "[lib.so] operator_12");
        assert_eq!(check("odd 1.5"), "odd_1.5");
        assert_eq!(check("odd "), "odd_");
        assert_eq!(check("# python (12)"), "#_python (12)");
        assert_eq!(check("a 1 b"), "a 1 b");
    }
}
