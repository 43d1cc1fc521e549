//! The summary at the end of a recording: one screen that says what was sampled, where the time went, and what
//! is missing from it. 80 columns, plain text.

use std::fmt::{self, Write as _};

use super::columns::{cut, wrapped};
use crate::format::{escape, frame_text, thousands, weight_text};
use crate::profile::calls::{FunctionAmounts, hottest};
use crate::profile::model::{Frame, FrameKind, Profile};
use crate::profile::query::n_processes;

/// Columns of a line, at most.
const WIDTH: usize = 80;

/// Functions that are listed, at most.
const MAX_FUNCTIONS: usize = 10;

/// Remarks that are listed, at most.
const MAX_COMMENTS: usize = 10;

/// The summary of a profile; ends with a line break.
///
/// ```text
/// 2,970 samples of 3 processes in 30.0 s
///
///    self   total  function
///   61.2%   98.1%  fib (/srv/app.py)
///   ...
///
/// not in the profile, or not complete:
///   12 samples lost: the ring buffer was full
/// ```
///
/// `self` is the share of samples in which the function was the leaf, `total` the share in which it was
/// anywhere in the stack; a recursion counts once.
#[must_use]
pub fn summary(profile: &Profile) -> String {
    let mut text = String::new();
    write(&mut text, profile).expect("writing to a String does not fail");
    text
}

fn write(out: &mut String, profile: &Profile) -> fmt::Result {
    let whole = profile.total_weight();
    let what = match profile.weight_idx() {
        0 => counted(whole, "sample", "samples"),
        _ => weight_text(profile),
    };
    writeln!(
        out,
        "{what} of {} in {:.1} s",
        counted(n_processes(profile) as i64, "process", "processes"),
        profile.duration.as_secs_f64(),
    )?;
    if whole > 0 {
        writeln!(out, "\n   self   total  function")?;
        let totals = hottest(profile);
        for function in totals.iter().take(MAX_FUNCTIONS) {
            write_function(out, profile, function, whole)?;
        }
        if totals.len() > MAX_FUNCTIONS {
            let n_more = (totals.len() - MAX_FUNCTIONS) as i64;
            writeln!(out, "{:>17}{} more", "", thousands(n_more))?;
        }
    }
    if !profile.comments.is_empty() {
        writeln!(out, "\nnot in the profile, or not complete:")?;
        for comment in profile.comments.iter().take(MAX_COMMENTS) {
            out.push_str(&wrapped(&escape(comment), 2, WIDTH));
        }
        if profile.comments.len() > MAX_COMMENTS {
            writeln!(out, "  and {} more", profile.comments.len() - MAX_COMMENTS)?;
        }
    }
    Ok(())
}

fn write_function(
    out: &mut String,
    profile: &Profile,
    totals: &FunctionAmounts,
    whole: i64,
) -> fmt::Result {
    let Some(function) = profile.functions.get(totals.function.0 as usize) else {
        return Ok(());
    };
    // A function, not a place in it: without a line.
    let name = frame_text(&Frame {
        function: totals.function,
        kind: function.kind,
        name: profile.str(function.name),
        filename: profile.str(function.filename),
        line: match function.kind {
            FrameKind::Python => function.start_line,
            FrameKind::Native | FrameKind::Kernel | FrameKind::Reason => 0,
        },
        address: 0,
    });
    writeln!(
        out,
        " {:>5.1}%  {:>5.1}%  {}",
        percent(totals.own.weight, whole),
        percent(totals.total.weight, whole),
        cut(&name, WIDTH - 17),
    )
}

fn percent(part: i64, whole: i64) -> f64 {
    100.0 * part as f64 / whole as f64
}

fn counted(count: i64, one: &str, many: &str) -> String {
    format!(
        "{} {}",
        thousands(count),
        if count == 1 { one } else { many }
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::super::columns::columns_of;
    use super::*;
    use crate::profile::aggregate::{
        Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
    };
    use crate::profile::model::ValueType;

    /// A profile of stacks (leaf first) with their counts, one process for each stack.
    fn profile(stacks: &[(&[&str], i64)], comments: Vec<String>) -> Profile {
        let mut aggregator = Aggregator::new(SystemTime::now(), &ValueType::CPU_SAMPLES, 1);
        for (pid, (stack, count)) in (1..).zip(stacks) {
            let frame = |name: &&str| ResolvedFrame {
                function: Arc::new(ResolvedFunction::python(name, "/srv/app.py", 7)),
                line: 8,
                address: 0,
            };
            aggregator.add(&ResolvedSample {
                frames: stack.iter().map(frame).collect(),
                labels: Arc::new(ThreadLabels {
                    process: Arc::new(ProcessLabels {
                        comm: "python3".into(),
                        python_version: "3.12.1".into(),
                        ..ProcessLabels::of_pid(pid)
                    }),
                    tid: pid,
                    started_ns: 0,
                    thread_name: "".into(),
                }),
                instruction: None,
                values: [*count, *count].into(),
            });
        }
        aggregator.finish(Duration::from_millis(30_040), comments)
    }

    #[test]
    fn a_screen_says_what_was_sampled_and_what_is_missing() {
        let lost = "12 samples lost: the ring buffer was full".to_owned();
        let stacks: [(&[&str], i64); 2] = [(&["fib", "fib", "main"], 750), (&["main"], 250)];
        assert_eq!(
            summary(&profile(&stacks, vec![lost])),
            "1,000 samples of 2 processes in 30.0 s\n\
             \n\
             \x20  self   total  function\n\
             \x20 75.0%   75.0%  fib (/srv/app.py:7)\n\
             \x20 25.0%  100.0%  main (/srv/app.py:7)\n\
             \n\
             not in the profile, or not complete:\n\
             \x20 12 samples lost: the ring buffer was full\n"
        );
    }

    #[test]
    fn an_empty_profile_is_one_line() {
        assert_eq!(
            summary(&profile(&[], Vec::new())),
            "0 samples of 0 processes in 30.0 s\n"
        );
    }

    #[test]
    fn one_is_not_plural() {
        let text = summary(&profile(&[(&["main"], 1)], Vec::new()));
        assert!(text.starts_with("1 sample of 1 process in"), "{text}");
    }

    #[test]
    fn only_the_top_functions_are_listed_and_the_rest_is_told() {
        let names: Vec<String> = (0..1500).map(|idx| format!("f{idx}")).collect();
        let stacks: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
        let stacks: Vec<(&[&str], i64)> = stacks
            .iter()
            .zip(1..)
            .map(|(stack, count)| (stack.as_slice(), count))
            .collect();
        let comments = (0..40).map(|idx| format!("remark {idx}")).collect();
        let text = summary(&profile(&stacks, comments));
        assert!(
            text.contains("f1499 ") && text.contains("f1490 ") && !text.contains("f1489 "),
            "{text}"
        );
        assert!(
            text.contains("1,490 more\n") && text.contains("and 30 more\n"),
            "{text}"
        );
        assert!(text.lines().count() <= 30, "{text}");
    }

    #[test]
    fn thousands_are_grouped() {
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (-1_234_567, "-1,234,567"),
        ] {
            assert_eq!(thousands(count), text);
        }
    }

    #[test]
    fn a_long_name_keeps_its_beginning_and_its_line() {
        assert_eq!(cut("abcdefghij", 10), "abcdefghij");
        assert_eq!(cut("abcdefghijk", 7), "abc…ijk");
        assert_eq!(cut("函数函数函数", 7), "函…数");
    }

    proptest! {
        #[test]
        fn lines_fit_and_hold_nothing_that_moves_a_cursor(name in ".*", comment in any::<String>()) {
            let text = summary(&profile(&[(&[&name], 1)], vec![comment]));
            for line in text.lines() {
                prop_assert!(line.chars().map(columns_of).sum::<usize>() <= WIDTH, "{}", line);
                prop_assert!(!line.chars().any(char::is_control));
            }
            prop_assert_eq!(text.lines().count(), 7);
        }
    }
}
