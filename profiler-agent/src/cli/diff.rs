//! `pyagent diff`: what became slower, and what faster.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::exit::{self, ExitError};
use super::input::InputArgs;
use super::output::print;
use super::report::check_matches;
use super::rows::RowsArgs;
use crate::config::{parse_duration, parse_percent};
use crate::format::file::Target;
use crate::format::{diff as format, escape};
use crate::profile::diff::{Basis, Diff, Grain, with_files_of};
use crate::profile::measure::Measure;
use crate::profile::model::Profile;
use crate::view::report::diff::{DiffQuestion, json, text};
use crate::view::report::{Restriction, SortKey};

/// `pyagent diff`.
#[derive(Debug, Args, Clone)]
#[command(
    mut_arg("input", |arg| arg
        .index(1)
        .value_name("BEFORE")
        .env(None::<&str>)
        .default_value(None::<&str>)
        .required(true)
        .help("File (.pb.gz, .folded; `-`: standard input), or agent, as `report` takes it")),
    mut_arg("sort", |arg| arg.help("What comes first: tottime, or cumtime")),
    after_help = DIFF_EXAMPLES,
    after_long_help = DIFF_HELP
)]
pub struct DiffArgs {
    /// The profile before, and how both are taken.
    #[command(flatten)]
    pub input: InputArgs,
    /// The same, of what it became
    #[arg(value_name = "AFTER", index = 2)]
    pub after: String,
    /// Which rows: a number of them, a part (0.1), or a regex on file:line(name), name or module.name
    #[arg(value_name = "RESTRICTION", index = 3)]
    pub restrictions: Vec<Restriction>,
    /// Lines of Python functions, by their numbers, in place of functions
    #[arg(long)]
    pub lines: bool,
    /// Both did the same work: compare amounts, not shares of the total
    #[arg(long)]
    pub same_work: bool,
    /// End with 5 when something grew by more than this part of the total, and than chance
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    pub fail_over: Option<f64>,
    /// Samples that are closer together than this tell the same
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = parse_duration, hide_short_help = true)]
    pub correlation: Duration,
    /// In which order and how many, of which value.
    #[command(flatten)]
    pub rows: RowsArgs,
    /// Write a differential flame graph (.svg), or folded stacks with two counts (.folded, `-`)
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

const DIFF_EXAMPLES: &str = "\
Examples:
  pyagent diff old.pb.gz new.pb.gz                        what takes another share of the time
  pyagent diff old.pb.gz new.pb.gz --same-work            of a command that did the same: seconds
  pyagent diff old.pb.gz new.pb.gz -o diff.svg            red grew, blue shrank
  pyagent diff old.pb.gz new.pb.gz --fail-over 5%         for CI: exit code 5
  pyagent diff --k8s -n shop deploy/web deploy/canary --last 10m   two workloads of a cluster";

/// What `--fail-over` means.
const DIFF_HELP: &str = "\
Examples:
  pyagent diff old.pb.gz new.pb.gz                        what takes another share of the time
  pyagent diff old.pb.gz new.pb.gz --same-work            of a command that did the same: seconds
  pyagent diff old.pb.gz new.pb.gz -o diff.svg            red grew, blue shrank
  pyagent diff old.pb.gz new.pb.gz --fail-over 5%         for CI: exit code 5
  pyagent diff --k8s -n shop deploy/web deploy/canary --last 10m   two workloads of a cluster

What is compared. Of two runs of a service: shares of each profile's total, so that length and load do not count; what \
became faster makes the shares of all else grow. Of two runs of the same work (--same-work): amounts, in % of the total \
before, which tell faster from slower. Totals are compared with --same-work, and where both profiles have the same length \
(within 2 %). Functions are the same by name and file, whatever the folder of the release; lines by their numbers.

--fail-over 5% fails (exit code 5) when a function with what it calls, a line with --lines, or the total where totals are \
compared, grew by more than 5 % of the total and by more than the error. What it never does is to fail because something shrank. \
Lines are compared by their numbers, so inserting one above makes all below it others: for CI compare functions.

The error is that of the numbers of samples: 1 of 10,000 comparisons of a program with itself has a row beyond it, in all its \
rows together (Bonferroni). Samples closer together than --correlation count as one, since they come from one visit of a \
function: raise it where a program stays with one thing for longer than 100 ms, or record several rounds of its work. What differs \
between machines, or between a busy and an idle one, is no error of samples: with --same-work compare runs of one machine. \
With less than 100 samples in a profile nothing fails; with fewer than a change of the size asked for takes, that is said. \
The profiles must be of different times: two that share samples are not independent. Folded stacks count as samples, 100 a second.";

/// Runs the command.
pub async fn run(args: DiffArgs) -> Result<ExitCode> {
    let by_total = match args.rows.sort {
        SortKey::Own => false,
        SortKey::Total => true,
        _ => {
            let message = "changes are sorted by tottime or by cumtime";
            return Err(ExitError::Usage(message.to_owned()).into());
        }
    };
    if args.input.input == "-" && args.after == "-" {
        let message = "standard input is one profile: name a file for the other";
        return Err(ExitError::Usage(message.to_owned()).into());
    }
    let output = args.output.clone().map(Output::new).transpose()?;
    let ([before, after], code) = args.profiles().await?;
    let measures = [args.rows.measure(&before)?, args.rows.measure(&after)?];
    check_comparable([&before, &after], measures)?;
    check_matches(&args.restrictions, &[&before, &after])?;
    let grain = if args.lines {
        Grain::Lines
    } else {
        Grain::Functions
    };
    let basis = if args.same_work {
        Basis::SameWork
    } else {
        Basis::Shares
    };
    let diff = Diff::new([&before, &after], measures, grain, basis, args.correlation);
    let verdict = args
        .fail_over
        .map(|allowed| (allowed, diff.verdict(allowed)));
    let has_failed = verdict
        .as_ref()
        .is_some_and(|(_, verdict)| verdict.has_failed());
    let question = DiffQuestion {
        profiles: [&before, &after],
        measures,
        diff: &diff,
        grain,
        by_total,
        top: args.rows.top,
        restrictions: &args.restrictions,
        verdict,
        style: args.rows.style(),
    };
    if let Some(output) = &output {
        output.write(&args, &question)?;
    }
    if !output.is_some_and(|output| output.is_stdout()) {
        let printed = if args.rows.json {
            format!("{}\n", json(&question))
        } else {
            text(&question)
        };
        print(&printed)?;
    }
    Ok(if has_failed {
        ExitCode::from(exit::THRESHOLD)
    } else {
        ExitCode::from(code)
    })
}

impl DiffArgs {
    /// Both profiles, with the same filters; functions of files that only moved are the same.
    async fn profiles(&self) -> Result<([Profile; 2], u8)> {
        let mut before = self.input.clone();
        let mut after = InputArgs {
            input: self.after.clone(),
            ..self.input.clone()
        };
        // Times are meant for the agent where the other one is a file.
        match (before.is_agent(), after.is_agent()) {
            (true, false) => after.forget_time(),
            (false, true) => before.forget_time(),
            (true, true) | (false, false) => {}
        }
        // Of two workloads it is the same time.
        let (before, after) =
            if before.is_live_workload() && after.is_live_workload() && before.input != after.input
            {
                tokio::try_join!(before.profile(), after.profile())?
            } else {
                (before.profile().await?, after.profile().await?)
            };
        let code = before.code.max(after.code);
        let (before, after) = (before.profile, after.profile);
        // Rows say where to look now.
        let before = with_files_of(&after, before);
        let profiles = [before, after].map(|profile| {
            let mut profile = self.rows.frames(profile, self.lines);
            profile.has_full_filenames = self.rows.full_filenames;
            profile
        });
        Ok((profiles, code))
    }
}

/// Two profiles of different things have no difference.
fn check_comparable(profiles: [&Profile; 2], measures: [Measure; 2]) -> Result<(), ExitError> {
    let [before, after] = [0, 1].map(|side| {
        let types = profiles[side].sample_types;
        types.get(measures[side].idx).copied()
    });
    let is_same = before.map(|it| it.unit) == after.map(|it| it.unit)
        && before.map(|it| it.kind) == after.map(|it| it.kind);
    if is_same {
        return Ok(());
    }
    let name = |it: Option<crate::profile::model::ValueType>| {
        it.map_or_else(String::new, |it| {
            format!("{} ({})", escape(it.kind), escape(it.unit))
        })
    };
    Err(ExitError::Usage(format!(
        "the profiles are of different values: {} and {}; --value KIND names one that both have",
        name(before),
        name(after)
    )))
}

/// A file for both profiles.
struct Output {
    target: Target,
    is_svg: bool,
}

impl Output {
    fn new(path: PathBuf) -> Result<Self> {
        let name = path.to_string_lossy();
        let is_svg = name.ends_with(".svg");
        if !is_svg && !name.ends_with(".folded") && name != "-" {
            let message = format!(
                "`{}` does not tell the format: end it with .svg or .folded",
                escape(&name)
            );
            return Err(ExitError::Usage(message).into());
        }
        let target = Target::named(path);
        target.check()?;
        Ok(Self { target, is_svg })
    }

    fn is_stdout(&self) -> bool {
        self.target == Target::Stdout
    }

    fn write(&self, args: &DiffArgs, question: &DiffQuestion<'_>) -> Result<()> {
        let stacks: BTreeMap<String, [i64; 2]> =
            format::stacks(question.profiles, question.measures);
        let unit = question.profiles[1]
            .sample_types
            .get(question.measures[1].idx)
            .map_or("samples", |it| match it.unit {
                "count" => it.kind,
                unit => unit,
            });
        let shown = |name: &str| {
            let path = Path::new(name).file_name().unwrap_or_default();
            path.to_string_lossy().into_owned()
        };
        let subtitle = format!(
            "{} against {}",
            shown(&args.after),
            shown(&args.input.input)
        );
        self.target.write_with(|out: &mut dyn Write| {
            if self.is_svg {
                format::write_svg(&stacks, !args.same_work, unit, &subtitle, out)
            } else {
                format::write_folded(&stacks, out)
            }
        })?;
        if let Target::Named(path) | Target::Default(path) = &self.target {
            tell!("wrote {}", escape(&path.to_string_lossy()));
        }
        Ok(())
    }
}
