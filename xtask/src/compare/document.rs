//! docs/toolbox.md: what was measured as Markdown. No figure in it is written by hand.

use std::{env, fmt::Write as _, fs, path::Path};

use anyhow::Result;

use super::{
    Bench, Outcome,
    answer::{Account, Share},
    judge::{self, Truth, View},
    tools::{self, RATE, Show, TOOLS, Tool},
};
use crate::{command, workspace};

/// Rows of an output that are shown.
const MAX_LINES: usize = 14;
/// Columns of them.
const MAX_COLUMNS: usize = 150;

/// What pyinstrument says below its tree.
const ADVICE: &str = "To view this report";

/// What the figures were measured on and with.
#[derive(Debug)]
pub(super) struct Facts {
    pyagent: String,
    processor: String,
    n_cpus: usize,
    kernel: String,
    packages: String,
    n_rounds: u32,
}

impl Facts {
    pub(super) fn gather(bench: &Bench, n_rounds: u32) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(": "));
        let versions = "import importlib.metadata as m; \
                        names = 'Django line_profiler py-spy pyinstrument yappi'.split(); \
                        print(', '.join(name + ' ' + m.version(name) for name in names))";
        let mut python = bench.python(&bench.python.path);
        let packages = command::output(python.args(["-c", versions]))?;
        let pyagent = command::output(bench.python(&bench.pyagent).arg("--version"))?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Self {
            pyagent: pyagent.lines().next().unwrap_or_default().to_owned(),
            processor: model.map_or(env::consts::ARCH, |(_, name)| name).to_owned(),
            n_cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
            packages: packages.trim().to_owned(),
            n_rounds,
        })
    }
}

/// The whole document. `views` are those of each of `outcomes`.
pub(super) fn document(
    bench: &Bench,
    facts: &Facts,
    outcomes: &[Outcome],
    views: &[Vec<View>],
) -> Result<String> {
    let mut text = head(bench, facts);
    text.push_str(&summary(outcomes, views));
    for (outcome, views) in outcomes.iter().zip(views) {
        text.push_str(&section(bench, outcome, views)?);
    }
    Ok(text)
}

fn head(bench: &Bench, facts: &Facts) -> String {
    let mut tools = String::new();
    for tool in TOOLS.iter().filter(|tool| **tool != Tool::Plain) {
        // Writing to a String does not fail.
        let _ = writeln!(tools, "| {} | {} |", tool.name(), tool.manner());
    }
    format!(
        "\
# The toolbox, and pyagent

Made by `cargo xtask compare`; no figure here is written by hand.

The same programs under each of the tools that tutorials name, and under pyagent: do they say the same, and where not, who is
right? The programs of `tests/workloads/toolbox` know it: they read the CPU clock of their thread around their own coarse calls.
**True** below is what they say of themselves when no tool is there.

| Tool | Manner |
|---|---|
{tools}
- pyagent reads CPU time, and the head of each of its views says so. Where a program waits, tools that read wall time say
  something else; only the web application waits here, for its requests.
- A share is right if it is at most 3 points from the true one, or if the true one is in the binomial interval of 99.9 %.
  Functions whose true shares differ by 5 points must be in this order. pyagent must be right; where another tool is not, the
  points that it is off stand in bold beside its share.
- What is true is known within an error, which stands beside it and is added to these bounds for all tools alike: a program does
  not take the same shares in each run. Of lines it is also what they are off together, since a line that is run twice takes not
  quite twice as long. Where that is more than 3 points, nothing is said to be true.
- Shares are of the program's main function, so that starts and imports do not count. What functions written in C take counts
  for the Python function that calls it.
- Each program ran in {} under each tool, in turn; shares are of all rounds together, slow-downs are medians. Tools that trace
  got a smaller problem of the same kind. pyagent and py-spy sampled at {RATE} Hz, pyinstrument as it does by default.

{} on {} with {} CPUs, Linux {}; CPython {}; {}.
",
        match facts.n_rounds {
            1 => "1 round".to_owned(),
            n => format!("{n} rounds"),
        },
        facts.pyagent,
        facts.processor,
        facts.n_cpus,
        facts.kernel,
        bench.python.version,
        facts.packages
    )
}

/// Rows of a Markdown table.
fn row(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn heading(cells: &[&str]) -> String {
    let cells: Vec<String> = cells.iter().map(|it| (*it).to_owned()).collect();
    // The first column is text, the others are numbers.
    format!("{}|---|{}\n", row(&cells), "---:|".repeat(cells.len() - 1))
}

fn points(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// What it costs to be looked at, and what comes of it, a row a tool.
fn summary(outcomes: &[Outcome], views: &[Vec<View>]) -> String {
    let mut text = "\n## In short\n\n".to_owned();
    text.push_str(&heading(&[
        "",
        "CPU time ×",
        "wall time ×",
        "right",
        "in order",
        "largest error",
        "moved",
    ]));
    for (outcome, views) in outcomes.iter().zip(views) {
        let title = format!("**{}**", outcome.program.title);
        text.push_str(&row(&[
            title,
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ]));
        for tool in TOOLS.iter().filter(|tool| **tool != Tool::Plain) {
            text.push_str(&row(&summary_of(outcome, views, *tool)));
        }
    }
    text.push_str(
        "\nTimes are those of the program without a tool. *Right* are shares, *in order* are pairs of functions or lines. *Moved* \
         is how far the program's own account is off while the tool looks on, in points: what the tool changes about the program \
         itself, rather than misses. A tracer's error is mostly that.\n",
    );
    text
}

fn summary_of(outcome: &Outcome, views: &[View], tool: Tool) -> Vec<String> {
    let mut n = [0; 4];
    let mut largest: f64 = 0.0;
    for view in views {
        for (_, truth, share) in view.judged(tool) {
            n[0] += usize::from(share.is_right(truth));
            n[1] += 1;
            largest = largest.max((share.value - truth.share).abs());
        }
        let order = view.order(tool);
        n[2] += order.n_pairs - order.wrong.len();
        n[3] += order.n_pairs;
    }
    let [cpu, wall] = slow_down(outcome, tool);
    vec![
        tool.name().to_owned(),
        format!("{cpu:.2}"),
        format!("{wall:.2}"),
        format!("{} of {}", n[0], n[1]),
        format!("{} of {}", n[2], n[3]),
        points(largest),
        points(moved(outcome, tool)),
    ]
}

/// CPU time and wall time under a tool, by those without one: medians of the rounds.
fn slow_down(outcome: &Outcome, tool: Tool) -> [f64; 2] {
    let plain: Vec<&Account> = if tool.is_tracer() {
        outcome.small.iter().collect()
    } else {
        judge::accounts(outcome, Tool::Plain).collect()
    };
    let ratios = |amount: fn(&Account) -> f64| {
        let rounds = judge::accounts(outcome, tool).zip(&plain);
        judge::median(rounds.map(|(a, b)| amount(a) / amount(b)).collect())
    };
    [ratios(Account::seconds), ratios(|account| account.wall)]
}

/// How far the program's own account under a tool is from the one without, at most.
fn moved(outcome: &Outcome, tool: Tool) -> f64 {
    let whats = judge::known(outcome).concat();
    let distances = whats.iter().filter_map(|what| {
        let with = judge::share_of_account(judge::accounts(outcome, tool), what)?;
        let without = judge::share_of_account(judge::accounts(outcome, Tool::Plain), what)?;
        Some((with - without).abs())
    });
    distances.fold(0.0, f64::max)
}

/// How far single runs without a tool are from all of them together, of whatever is furthest.
fn spread(outcome: &Outcome) -> f64 {
    let whats = judge::known(outcome).concat();
    let spreads = whats.iter().map(|what| judge::run_spread(outcome, what));
    spreads.fold(0.0, f64::max)
}

fn section(bench: &Bench, outcome: &Outcome, views: &[View]) -> Result<String> {
    let program = outcome.program;
    let seconds = judge::accounts(outcome, Tool::Plain).map(Account::seconds);
    let seconds = judge::median(seconds.collect());
    let mut text = format!("\n## {}\n\n{}", program.title, program.description);
    // Writing to a String does not fail.
    let _ = write!(
        text,
        " {seconds:.1} s of CPU time; its own account differed by at most {} points from run to run.",
        points(spread(outcome))
    );
    if !outcome.line_costs.is_empty() {
        let sums = outcome.line_costs.iter().map(|it| it.sum).collect();
        let _ = write!(
            text,
            " True shares of the lines of its inner loop are those by which the loop takes longer when a line of it is run more \
             often, and what is then left is the loop's own line; measured like the others as well, all of them are {} % of \
             the loop. They differed by at most {} points from round to round.",
            points(judge::median(sums)),
            points(judge::line_spread(outcome))
        );
    }
    text.push('\n');
    for view in views {
        text.push_str(&table(view));
    }
    for (title, pair) in tools::shows(bench, program) {
        text.push_str(&outputs(bench, title, &pair)?);
    }
    Ok(text)
}

fn table(view: &View) -> String {
    let (_, title) = view.title.split_once(": ").unwrap_or(("", &view.title));
    let mut text = format!("\n### {}\n\n", capitalized(title));
    let mut names = vec!["", "true"];
    names.extend(view.tools.iter().map(|tool| tool.name()));
    let of = format!("% of {}", view.whole);
    names[0] = &of;
    text.push_str(&heading(&names));
    for it in &view.rows {
        let mut cells = vec![
            format!("`{}`", it.what.name()),
            it.truth.map_or_else(
                || "–".to_owned(),
                |it| format!("{} ± {}", points(it.share), points(it.error)),
            ),
        ];
        for (tool, answer) in view.tools.iter().zip(&it.answers) {
            cells.push(answer.map_or_else(|| "–".to_owned(), |it2| cell(*tool, it2, it.truth)));
        }
        text.push_str(&row(&cells));
    }
    text.push('\n');
    text.push_str(&verdict(view));
    text
}

fn cell(tool: Tool, share: Share, truth: Option<Truth>) -> String {
    let mut text = points(share.value);
    if tool == Tool::Pyagent {
        let (low, high) = share.interval();
        // Writing to a String does not fail.
        let _ = write!(text, " ({}–{})", points(low), points(high));
    }
    if let Some(truth) = truth.filter(|truth| !share.is_right(*truth)) {
        let _ = write!(text, " **{:+.1}**", 100.0 * (share.value - truth.share));
    }
    text
}

/// Who is right, in sentences.
fn verdict(view: &View) -> String {
    let failures = judge::failures(view);
    let mut text = if failures.is_empty() {
        let n_pairs = view.order(Tool::Pyagent).n_pairs;
        let order = match n_pairs {
            0 => String::new(),
            1 => ", and so is the order of the pair that differs by 5 points".to_owned(),
            n => format!(", and so is the order of the {n} pairs that differ by 5 points"),
        };
        format!("pyagent: every known share is right{order}.")
    } else {
        let points: Vec<&str> = failures
            .iter()
            .map(|it| it.split_once(": ").map_or(it.as_str(), |(_, rest)| rest))
            .collect();
        format!("pyagent: **beyond its bound**: {}.", points.join("; "))
    };
    let ours = view.order(Tool::Pyagent).wrong;
    for tool in view.tools.iter().filter(|tool| **tool != Tool::Pyagent) {
        let mut wrong = view.order(*tool).wrong;
        wrong.retain(|pair| !ours.contains(pair));
        if let Some((larger, smaller)) = wrong.first() {
            let more = match wrong.len() {
                1 => String::new(),
                n => format!(" ({n} pairs)"),
            };
            // Writing to a String does not fail.
            let _ = write!(
                text,
                " {} has `{smaller}` above `{larger}`{more}; pyagent has the true order.",
                tool.name()
            );
        }
    }
    let unknown: Vec<String> = view
        .rows
        .iter()
        .filter(|row| row.truth.is_none())
        .map(|row| format!("`{}`", row.what.name()))
        .collect();
    if !unknown.is_empty() {
        // Writing to a String does not fail.
        let _ = write!(
            text,
            " What is true of {} is not known: they are too short to be timed, or were not measured well enough.",
            unknown.join(", ")
        );
    }
    text.push('\n');
    text
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

/// A tool's own output and pyagent's, shortened, folded.
fn outputs(bench: &Bench, title: &str, pair: &[Show; 2]) -> Result<String> {
    let mut text = format!("\n<details><summary>{title}</summary>\n");
    for show in pair {
        let output = command::output(&mut bench.words(&show.words))?;
        let shown = show
            .title
            .clone()
            .unwrap_or_else(|| format!("$ {}", command_line(&show.words)));
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "\n```console\n{}\n{}```\n",
            clean(bench, &shown),
            shortened(&clean(bench, &output), show.from)
        );
    }
    text.push_str("\n</details>\n");
    Ok(text)
}

fn command_line(words: &[String]) -> String {
    let mut command = std::process::Command::new(&words[0]);
    command.args(&words[1..]);
    command::line(&command)
}

/// The first lines from the one on that contains `from`, none of them too wide.
fn shortened(output: &str, from: &str) -> String {
    let lines = output.lines().skip_while(|line| !line.contains(from));
    let lines = lines.take_while(|line| !line.contains(ADVICE));
    let mut lines: Vec<&str> = lines.collect();
    while lines.last().is_some_and(|line| line.trim().is_empty()) {
        lines.pop();
    }
    let mut text = String::new();
    for line in lines.iter().take(MAX_LINES) {
        let mut kept: String = line.chars().take(MAX_COLUMNS).collect();
        if kept.len() < line.len() {
            kept.push('…');
        }
        text.push_str(kept.trim_end());
        text.push('\n');
    }
    if lines.len() > MAX_LINES {
        text.push_str("...\n");
    }
    text
}

/// Without the folders of the machine that it was made on.
fn clean(bench: &Bench, text: &str) -> String {
    let folder = |path: &Path| format!("{}/", path.display());
    let prefix = bench.python.path.parent().and_then(Path::parent);
    // The longer ones first: one is in another.
    let replacements = [
        (bench.python.path.display().to_string(), "python"),
        (bench.pyagent.display().to_string(), "pyagent"),
        (folder(&bench.scratch), ""),
        (folder(&bench.programs), ""),
        (folder(&bench.python.packages), ""),
        (folder(workspace::root()), ""),
        (prefix.map_or_else(String::new, folder), ""),
    ];
    let is_folder = |(long, _): &&(String, &str)| long.len() > 1;
    let all = replacements.iter().filter(is_folder);
    all.fold(text.to_owned(), |text, (long, short)| {
        text.replace(long, short)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_of_the_tools_and_programs_of_today() {
        let root = workspace::root();
        let document = fs::read_to_string(root.join("docs/toolbox.md")).unwrap();
        let pinned = fs::read_to_string(root.join("tests/workloads/toolbox/requirements.txt"));
        for tool in TOOLS.iter().filter(|tool| **tool != Tool::Plain) {
            let row = format!("| {} | {} |", tool.name(), tool.manner());
            assert!(document.contains(&row), "{row}");
        }
        for program in super::super::programs::PROGRAMS {
            let heading = format!("\n## {}\n\n{}", program.title, program.description);
            assert!(document.contains(&heading), "{heading}");
        }
        let shown = ["django", "line-profiler", "py-spy", "pyinstrument", "yappi"];
        let document = document.to_lowercase().replace('_', "-");
        for line in pinned.unwrap().lines() {
            let package = line.trim_end_matches(" \\").replace('_', "-");
            if let Some((name, version)) = package.split_once("==")
                && shown.contains(&name)
            {
                assert!(
                    document.contains(&format!("{name} {version}")),
                    "{name} {version}"
                );
            }
        }
        assert!(
            !document.contains("beyond its bound**"),
            "run `cargo xtask compare`"
        );
    }

    #[test]
    fn outputs_begin_where_they_matter_and_end_early() {
        let long = "row\n".repeat(40);
        let text = shortened(&format!("head\nncalls\n{long}"), "ncalls");
        assert!(text.starts_with("ncalls\nrow\n"), "{text}");
        assert!(text.ends_with("\n...\n"), "{text}");
        assert_eq!(text.lines().count(), MAX_LINES + 1);
        let wide = "é".repeat(200);
        assert_eq!(shortened(&wide, "").chars().count(), MAX_COLUMNS + 2);
    }

    #[test]
    fn a_share_that_is_not_right_says_how_far_it_is_off() {
        let share = Share {
            value: 0.5,
            n: None,
        };
        let truth = |share| Some(Truth { share, error: 0.01 });
        assert_eq!(cell(Tool::Yappi, share, truth(0.465)), "50.0");
        assert_eq!(cell(Tool::Yappi, share, truth(0.4)), "50.0 **+10.0**");
        assert_eq!(cell(Tool::Yappi, share, None), "50.0");
    }
}
