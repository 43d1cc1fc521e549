//! `pyagent report`: views of a profile.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Result;
use clap::Args;

use super::exit::ExitError;
use super::input::{self, Input, InputArgs};
use super::output::print;
use super::rows::RowsArgs;
use super::{parse_regex, source};
use crate::format::file::Target;
use crate::format::html::write_lines;
use crate::format::{Format, escape, thousands};
use crate::profile::instructions::has_instructions;
use crate::profile::model::{Profile, Sample, label};
use crate::view::report::{
    Folding, Question, Restriction, Sources, View, all_files, bytecode_files, files, has_bytecode,
    matches_any, matches_any_group, page,
};

/// What `--subprocesses` cannot mean here.
pub(super) const NO_SUBPROCESSES: &str = "--subprocesses is for what is recorded (record, top, dump): a profile has the processes it was recorded of; --pid PID chooses among them";

/// `pyagent report`.
#[derive(Debug, Args, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
#[command(
    group(clap::ArgGroup::new("view").args(["functions", "callers", "callees", "tree", "lines", "bytecode", "threads", "processes", "by"])),
    after_help = "Examples:\n  pyagent report app.pb.gz                         functions, by their own time\n  pyagent report app.pb.gz --sort cumtime 20 django  twenty of them, of those what matches\n  pyagent report app.pb.gz --callers 'dumps$'      who calls them?\n  pyagent report app.pb.gz --lines view            its source with times (--html: a page)\n  pyagent report --last 10m --tree                 of the agent on this host\n  pyagent report --k8s -n shop deploy/web --last 10m   of a workload, on all nodes of its pods"
)]
pub struct ReportArgs {
    /// Which profile.
    #[command(flatten)]
    pub input: InputArgs,
    /// Which functions, as pstats takes it: a number of them, a part (0.1), or a regex on file:line(name)
    ///
    /// A pattern is also searched for in the name alone and in module.name, so that ^spin$ and web.views.index find theirs.
    /// In the tree: stacks with a function that matches, and so many rows. By thread, process or label: rows whose values match.
    #[arg(value_name = "RESTRICTION")]
    pub restrictions: Vec<Restriction>,
    /// Functions: own and cumulative time (default)
    #[arg(long, alias = "function", short_alias = 'F', hide_short_help = true)]
    pub functions: bool,
    /// Who calls each function
    #[arg(long)]
    pub callers: bool,
    /// Whom each function calls
    #[arg(long)]
    pub callees: bool,
    /// The call tree; frames of libraries are folded
    #[arg(long)]
    pub tree: bool,
    /// The source of functions: what each line takes
    ///
    /// In all, and of its own in Python, in machine code and in the kernel.
    #[arg(long)]
    pub lines: bool,
    /// With --lines: a page to browse, offline
    ///
    /// All functions with samples, or those that were chosen, in one file: the most expensive ones first, as long as there is
    /// room for them in some megabytes. What is left out is said in it.
    #[arg(
        long,
        requires = "lines",
        conflicts_with = "json",
        hide_short_help = true
    )]
    pub html: bool,
    /// The instructions of a function, recorded with --bytecode
    ///
    /// What each takes, below the lines that they were compiled from; a function, or several, as RESTRICTION names them (3: the
    /// first three in the order of --sort). The profile must have been recorded with `record --bytecode`, or by an agent that
    /// was started with `--bytecode`. Instructions stand in the order of the code; --top shows those that take most. Names
    /// are those of the forms that stood in memory, such as BINARY_OP_ADD_INT.
    #[arg(long, value_name = "FUNCTION")]
    pub bytecode: Option<Restriction>,
    /// By thread
    #[arg(long, short_alias = 't')]
    pub threads: bool,
    /// By process
    #[arg(long)]
    pub processes: bool,
    /// By any label, such as service_name, or several
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    pub by: Vec<String>,
    /// In which order and how many, of which value.
    #[command(flatten)]
    pub rows: RowsArgs,
    /// In the tree: fold files that match too
    #[arg(long, value_name = "REGEX", value_parser = parse_regex, requires = "tree", hide_short_help = true)]
    pub hide: Vec<regex::Regex>,
    /// In the tree: do not fold files that match
    #[arg(long, value_name = "REGEX", value_parser = parse_regex, requires = "tree", hide_short_help = true)]
    pub show: Vec<regex::Regex>,
    /// In the tree: fold nothing, leave nothing out
    #[arg(long, requires = "tree", hide_short_help = true)]
    pub show_all: bool,
    /// Where the page goes [default: a name with the time]
    #[arg(long, short, value_name = "FILE", hide_short_help = true)]
    pub output: Option<PathBuf>,
    /// Children: a profile has those that were recorded
    #[arg(long, short_alias = 's', hide = true)]
    pub subprocesses: bool,
}

/// Refuses patterns that no function of any of the profiles matches.
pub(super) fn check_matches(
    restrictions: &[Restriction],
    profiles: &[&Profile],
) -> Result<(), ExitError> {
    if profiles
        .iter()
        .any(|profile| matches_any(profile, restrictions))
    {
        return Ok(());
    }
    let patterns = restrictions.iter().filter_map(Restriction::pattern);
    let patterns: Vec<String> = patterns
        .map(|it| format!("`{}`", escape(it.as_str())))
        .collect();
    Err(ExitError::NothingMatched(format!(
        "no function matches {}: patterns are searched for in file:line(name), name and module.name",
        patterns.join(" and ")
    )))
}

/// Runs the command.
pub async fn run(args: ReportArgs) -> Result<ExitCode> {
    if args.subprocesses {
        return Err(ExitError::Usage(NO_SUBPROCESSES.to_owned()).into());
    }
    let is_folding = args.show_all || !args.hide.is_empty() || !args.show.is_empty();
    if is_folding && !args.tree {
        // clap does not say so beside another view.
        let message = "--hide, --show and --show-all are for --tree";
        return Err(ExitError::Usage(message.to_owned()).into());
    }
    let target = args.page()?;
    let Input { profile, code } = args.input.profile().await?;
    input::check_labels(&profile, args.by.iter().map(String::as_str))?;
    let profile = args
        .rows
        .frames(profile, args.lines || args.bytecode.is_some());
    let (view, mut labels) = args.view();
    if (args.threads || args.processes) && is_of_several_nodes(&profile) {
        // Each node has ids of its own.
        labels.splice(..0, [label::K8S_NODE_NAME, label::K8S_POD_NAME]);
    }
    if args.tree {
        // Each may match another function of a stack.
        for restriction in &args.restrictions {
            check_matches(std::slice::from_ref(restriction), &[&profile])?;
        }
    } else if labels.is_empty() {
        check_matches(&args.restrictions, &[&profile])?;
    }
    let folding = Folding {
        shows_all: args.show_all,
        hide: args.hide.clone(),
        show: args.show.clone(),
    };
    let none = Sources::new();
    let restrictions: Vec<Restriction> = args
        .bytecode
        .iter()
        .chain(&args.restrictions)
        .cloned()
        .collect();
    let question = Question {
        profile: &profile,
        measure: args.rows.measure(&profile)?,
        sort: args.rows.sort,
        top: args.rows.top,
        restrictions: &restrictions,
        labels: &labels,
        folding: &folding,
        sources: &none,
        style: args.rows.style(),
    };
    if !labels.is_empty() && !matches_any_group(&question) {
        let message = "no row matches: patterns are searched for in the values of a row, with spaces between them";
        return Err(ExitError::NothingMatched(message.to_owned()).into());
    }
    if args.bytecode.is_some() {
        check_bytecode(&question)?;
    }
    let sources = match &target {
        Some(_) => source::read(&profile, all_files(&question)),
        None if args.lines => source::read(&profile, files(&question)),
        None if args.bytecode.is_some() => source::read(&profile, bytecode_files(&question)),
        None => Sources::new(),
    };
    let question = Question {
        sources: &sources,
        ..question
    };
    if let Some(target) = target {
        let page = page(&question);
        target.write_with(|out| write_lines(&page, out))?;
        if target != Target::Stdout {
            let count = |n: usize, what: &str| match n {
                1 => format!("1 {what}"),
                n => format!("{} {what}s", thousands(n as i64)),
            };
            tell!(
                "wrote {target} ({} of {})",
                count(page.functions.len(), "function"),
                count(page.files.len(), "file")
            );
        }
        return Ok(ExitCode::from(code));
    }
    let text = if args.rows.json {
        format!("{}\n", view.json(&question))
    } else {
        view.text(&question)
    };
    print(&text)?;
    Ok(ExitCode::from(code))
}

impl ReportArgs {
    /// The file of the page, when one is meant.
    fn page(&self) -> Result<Option<Target>> {
        let target = match (&self.output, self.html) {
            (None, false) => return Ok(None),
            (Some(_), false) => {
                let message =
                    "-o is for the page of --lines --html; all else goes to standard output";
                return Err(ExitError::Usage(message.to_owned()).into());
            }
            (Some(path), true) => Target::named(path.clone()),
            (None, true) => {
                let html = Format::from_name("html")?;
                Target::default_name(None, SystemTime::now(), html)
            }
        };
        target.check()?;
        Ok(Some(target))
    }

    /// The view that was chosen, and the labels that it is by.
    fn view(&self) -> (&'static View, Vec<&str>) {
        let (name, labels) = if self.threads {
            (
                "by",
                vec![label::PID, label::COMM, label::TID, label::THREAD_NAME],
            )
        } else if self.processes {
            ("by", vec![label::PID, label::COMM, label::PYTHON_VERSION])
        } else if !self.by.is_empty() {
            ("by", self.by.iter().map(String::as_str).collect())
        } else if self.callers {
            ("callers", Vec::new())
        } else if self.callees {
            ("callees", Vec::new())
        } else if self.tree {
            ("tree", Vec::new())
        } else if self.lines {
            ("lines", Vec::new())
        } else if self.bytecode.is_some() {
            ("bytecode", Vec::new())
        } else {
            ("functions", Vec::new())
        };
        let view = View::named(name).expect("the names are those of rows");
        (view, labels)
    }
}

/// Whether samples are of more than one node.
fn is_of_several_nodes(profile: &Profile) -> bool {
    let node = |sample: &Sample| profile.label(sample.labels, label::K8S_NODE_NAME);
    let mut nodes = profile.samples.iter().map(node);
    let first = nodes.next();
    nodes.any(|node| Some(node) != first)
}

/// An empty table would not say why it is empty.
fn check_bytecode(question: &Question<'_>) -> Result<(), ExitError> {
    if !has_instructions(question.profile) {
        return Err(ExitError::NothingMatched(
            "no sample has an instruction: record with --bytecode, as in pyagent record --bytecode --pid PID -o FILE"
                .to_owned(),
        ));
    }
    if !has_bytecode(question) {
        return Err(ExitError::NothingMatched(
            "no Python function that matches has samples of its own".to_owned(),
        ));
    }
    Ok(())
}
