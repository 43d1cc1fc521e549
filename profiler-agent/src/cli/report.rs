//! `pyagent report`: views of a profile.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::exit::ExitError;
use super::input::InputArgs;
use super::output::print;
use super::{parse_regex, source};
use crate::format::escape;
use crate::profile::measure::Measure;
use crate::profile::model::{Profile, label};
use crate::view::report::{Folding, Question, Restriction, SortKey, Style, View, files};

/// `pyagent report`.
#[derive(Debug, Args, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
#[command(
    group(clap::ArgGroup::new("view").args(["functions", "callers", "callees", "tree", "lines", "threads", "processes", "by"])),
    after_help = "Examples:\n  pyagent report app.pb.gz                         functions, by their own time\n  pyagent report app.pb.gz --sort cumtime 20 django  twenty of them, of those what matches\n  pyagent report app.pb.gz --callers 'dumps$'      who calls them?\n  pyagent report app.pb.gz --lines view            its source, with the time of each line\n  pyagent report --last 10m --tree                 of the agent on this host\n  pyagent report web1:7099 --by service_name,pid   whose is it?"
)]
pub struct ReportArgs {
    /// Which profile.
    #[command(flatten)]
    pub input: InputArgs,
    /// Which functions, as pstats takes it: a number of them, a part (0.1), or a regex on file:line(name)
    #[arg(value_name = "RESTRICTION")]
    pub restrictions: Vec<Restriction>,
    /// Functions: own and cumulative time (default)
    #[arg(long)]
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
    /// By thread
    #[arg(long)]
    pub threads: bool,
    /// By process
    #[arg(long)]
    pub processes: bool,
    /// By any label, such as service_name, or several
    #[arg(long, value_name = "LABEL", value_delimiter = ',')]
    pub by: Vec<String>,
    /// Order: tottime, cumtime, samples, name, file, line
    #[arg(long, value_name = "KEY", default_value = "tottime")]
    pub sort: SortKey,
    /// Lines, at most
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,
    /// Another value of the profile, such as alloc_space
    #[arg(long, value_name = "KIND")]
    pub value: Option<String>,
    /// Frames of machine code and of the kernel too
    ///
    /// Else what they take is their Python caller's.
    #[arg(long)]
    pub native: bool,
    /// In the tree: fold files that match too
    #[arg(long, value_name = "REGEX", value_parser = parse_regex, hide_short_help = true)]
    pub hide: Vec<regex::Regex>,
    /// In the tree: do not fold files that match
    #[arg(long, value_name = "REGEX", value_parser = parse_regex, hide_short_help = true)]
    pub show: Vec<regex::Regex>,
    /// In the tree: fold nothing, leave nothing out
    #[arg(long)]
    pub show_all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub async fn run(args: ReportArgs) -> Result<ExitCode> {
    let profile = args.input.profile().await?;
    let profile = if args.native || args.lines {
        profile
    } else {
        profile.without_native()
    };
    let (view, labels) = args.view();
    let folding = Folding {
        shows_all: args.show_all,
        hide: args.hide.clone(),
        show: args.show.clone(),
    };
    let none = BTreeMap::new();
    let question = Question {
        profile: &profile,
        measure: measure(&profile, args.value.as_deref())?,
        sort: args.sort,
        top: args.top,
        restrictions: &args.restrictions,
        labels: &labels,
        folding: &folding,
        sources: &none,
        style: style(),
    };
    let sources = if args.lines {
        source::read(&profile, files(&question))
    } else {
        BTreeMap::new()
    };
    let question = Question {
        sources: &sources,
        ..question
    };
    let text = if args.json {
        format!("{}\n", view.json(&question))
    } else {
        view.text(&question)
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

impl ReportArgs {
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
        } else {
            ("functions", Vec::new())
        };
        let view = View::named(name).expect("the names are those of rows");
        (view, labels)
    }
}

/// The value that was named, or the main one.
pub(super) fn measure(profile: &Profile, kind: Option<&str>) -> Result<Measure, ExitError> {
    let Some(kind) = kind else {
        return Ok(Measure::main(profile));
    };
    Measure::named(profile, kind).ok_or_else(|| {
        let kinds = profile.sample_types.iter().map(|it| it.kind);
        ExitError::Usage(format!(
            "the profile has no value `{}`; it has {}",
            escape(kind),
            escape(&kinds.collect::<Vec<_>>().join(", "))
        ))
    })
}

/// A terminal has a width and, unless NO_COLOR says no, colours.
pub(super) fn style() -> Style {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return Style::default();
    }
    let size = rustix::termios::tcgetwinsize(&out).ok();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    Style {
        width: size
            .map(|size| usize::from(size.ws_col))
            .filter(|width| *width > 0),
        has_colors: !no_color && !is_dumb,
    }
}
