//! The tools, each as its own documentation says to run it.

use std::path::{Path, PathBuf};

use super::{Bench, programs::Program};

/// Samples a second of the samplers whose rate can be chosen: of some three seconds enough for an interval of some points.
pub(super) const RATE: u32 = 999;

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tool {
    /// Nobody: the program by itself.
    Plain,
    Pyagent,
    CProfile,
    /// With the clock of the CPU time.
    CProfileCpu,
    Yappi,
    LineProfiler,
    Pyinstrument,
    PySpy,
}

/// In the order in which they run.
pub(super) const TOOLS: &[Tool] = &[
    Tool::Plain,
    Tool::Pyagent,
    Tool::CProfile,
    Tool::CProfileCpu,
    Tool::Yappi,
    Tool::LineProfiler,
    Tool::Pyinstrument,
    Tool::PySpy,
];

impl Tool {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "nothing",
            Self::Pyagent => "pyagent",
            Self::CProfile => "cProfile",
            Self::CProfileCpu => "cProfile, CPU clock",
            Self::Yappi => "yappi",
            Self::LineProfiler => "line_profiler",
            Self::Pyinstrument => "pyinstrument",
            Self::PySpy => "py-spy",
        }
    }

    /// How it works, in words.
    pub(super) fn manner(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Pyagent => "samples from the kernel, CPU time",
            Self::CProfile => "traces calls, wall time",
            Self::CProfileCpu => "traces calls, CPU time (`timer=time.thread_time`)",
            Self::Yappi => "traces calls, CPU time",
            Self::LineProfiler => "traces lines, wall time",
            Self::Pyinstrument => "samples inside of the program, wall time",
            Self::PySpy => "samples from another process, which stops the program; wall time",
        }
    }

    /// Whether it sees every call or line, and gets less to do.
    pub(super) fn is_tracer(self) -> bool {
        match self {
            Self::CProfile | Self::CProfileCpu | Self::Yappi | Self::LineProfiler => true,
            Self::Plain | Self::Pyagent | Self::Pyinstrument | Self::PySpy => false,
        }
    }

    /// How `answers.py` names what it has written.
    pub(super) fn reader(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::CProfile | Self::CProfileCpu => Some("cProfile"),
            Self::Pyagent | Self::Yappi | Self::LineProfiler | Self::Pyinstrument | Self::PySpy => {
                Some(self.name())
            }
        }
    }

    /// How its file ends.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Plain => ".none",
            Self::Pyagent => ".pb.gz",
            Self::CProfile => ".cprofile",
            Self::CProfileCpu => ".cprofile_cpu",
            Self::Yappi => ".yappi",
            Self::LineProfiler => ".lprof",
            Self::Pyinstrument => ".pyisession",
            Self::PySpy => ".raw",
        }
    }

    /// Whether it can tell what a function takes without what it calls.
    pub(super) fn knows_own(self) -> bool {
        self != Self::LineProfiler
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn words_of<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

/// How a program is run by a tool that writes into `file`.
pub(super) fn words(
    bench: &Bench,
    program: &Program,
    tool: Tool,
    size: u32,
    file: &Path,
) -> Vec<String> {
    let python = text(&bench.python.path);
    let script = text(&bench.programs.join(program.script));
    let file = text(file);
    let rate = RATE.to_string();
    let pyagent = text(&bench.pyagent);
    let py_spy = text(&bench.python.packages.join("bin/py-spy"));
    let cpu = text(&bench.programs.join("cprofile_cpu.py"));
    let mut words = match tool {
        Tool::Plain => words_of([&python]),
        Tool::Pyagent => words_of([
            &pyagent, "record", "--rate", &rate, "-o", &file, "--", &python,
        ]),
        Tool::CProfile => words_of([&python, "-m", "cProfile", "-o", &file]),
        Tool::CProfileCpu => words_of([&python, &cpu, &file]),
        Tool::Yappi => words_of([
            &python, "-m", "yappi", "-b", "-c", "cpu", "-f", "pstat", "-o", &file,
        ]),
        Tool::LineProfiler => words_of([
            &python, "-m", "kernprof", "-q", "-l", "-p", &script, "-o", &file,
        ]),
        Tool::Pyinstrument => {
            words_of([&python, "-m", "pyinstrument", "-r", "session", "-o", &file])
        }
        Tool::PySpy => words_of([
            &py_spy, "record", "-r", &rate, "-f", "raw", "-o", &file, "--", &python,
        ]),
    };
    words.extend([script, size.to_string()]);
    words
}

/// What makes of a tool's file what `answers.py` reads: commands, and where their standard output goes.
pub(super) fn steps_to_read(
    bench: &Bench,
    tool: Tool,
    file: &Path,
) -> Vec<(Vec<String>, Option<PathBuf>)> {
    let python = text(&bench.python.path);
    let pyagent = text(&bench.pyagent);
    let beside = |ending: &str| PathBuf::from(format!("{}{ending}", file.display()));
    let name = text(file);
    match tool {
        Tool::Pyinstrument => {
            let load = ["-m", "pyinstrument", "--load", &name, "-r", "json"];
            let words = [python.as_str()].into_iter().chain(load).map(str::to_owned);
            vec![(words.collect(), Some(beside(".json")))]
        }
        Tool::Pyagent => {
            let [pstats, folded] = [".pstats", ".folded"].map(|ending| text(&beside(ending)));
            let report = |view: &str| {
                words_of([&pyagent, "report", &name, view, "--json", "--top", "100000"])
            };
            vec![
                (
                    words_of([&pyagent, "convert", &name, "--no-native", "-o", &pstats]),
                    None,
                ),
                (
                    words_of([&pyagent, "convert", &name, "--no-native", "-o", &folded]),
                    None,
                ),
                (report("--functions"), Some(beside(".functions.json"))),
                (report("--lines"), Some(beside(".lines.json"))),
            ]
        }
        Tool::Plain
        | Tool::CProfile
        | Tool::CProfileCpu
        | Tool::Yappi
        | Tool::LineProfiler
        | Tool::PySpy => Vec::new(),
    }
}

/// How a tool's answer is looked at.
#[derive(Debug)]
pub(super) struct Show {
    pub(super) words: Vec<String>,
    /// What is shown in place of the words, where these are a program.
    pub(super) title: Option<String>,
    /// A part of the first line that is of interest.
    pub(super) from: &'static str,
}

/// Prints a file of pstats.
const PRINT: &str = "import pstats, sys; \
                     pstats.Stats(sys.argv[1]).strip_dirs().sort_stats(sys.argv[2]).print_stats(8)";
/// Prints the stacks with the most samples: the number, and the last frames.
const PRINT_FOLDED: &str = "import sys
rows = [row.rsplit(None, 1) for row in open(sys.argv[1]) if len(row.split()) > 1]
for stack, n in sorted(rows, key=lambda row: -int(row[1]))[:5]:
    frames = stack.split(';')
    print(n, ';'.join(['...'] * (len(frames) > 3) + frames[-3:]))";

/// Pairs of answers to the same question: what they are of, the tool's and pyagent's.
pub(super) fn shows(bench: &Bench, program: &Program) -> Vec<(&'static str, [Show; 2])> {
    let python = text(&bench.python.path);
    let pyagent = text(&bench.pyagent);
    let file = |tool| text(&bench.file(program, tool));
    let show = |from, words| Show {
        words,
        title: None,
        from,
    };
    let profile = file(Tool::Pyagent);
    let report = |words: &[&str]| {
        let all = [pyagent.as_str(), "report", &profile];
        let all = all.iter().chain(words).map(|it| (*it).to_owned());
        show("", all.collect())
    };
    let pstats = |file: &str, key: &str| Show {
        words: words_of([&python, "-c", PRINT, file, key]),
        title: Some(format!(
            ">>> pstats.Stats('{file}').strip_dirs().sort_stats('{key}').print_stats(8)"
        )),
        from: "ncalls",
    };
    let folded = |file: &str| Show {
        words: words_of([&python, "-c", PRINT_FOLDED, file]),
        title: Some(format!(
            "# The stacks of {file} with the most samples, their last frames"
        )),
        from: "",
    };
    let lines = ["-m", "line_profiler", "-z", &file(Tool::LineProfiler)].map(str::to_owned);
    let tree = ["-m", "pyinstrument", "--load", &file(Tool::Pyinstrument)].map(str::to_owned);
    let by_python =
        |words: [String; 4]| -> Vec<String> { [python.clone()].into_iter().chain(words).collect() };
    let function = format!("\\({}\\)", program.shown);
    vec![
        (
            "cProfile, and pyagent's functions",
            [
                pstats(&file(Tool::CProfile), "tottime"),
                report(&["--functions", "--top", "8"]),
            ],
        ),
        (
            "line_profiler, and pyagent's lines",
            [
                show(program.shown_as, by_python(lines)),
                report(&["--lines", &function]),
            ],
        ),
        (
            "pyinstrument, and pyagent's tree",
            [show("<module>", by_python(tree)), report(&["--tree"])],
        ),
        (
            "yappi, and pyagent's profile as pstats",
            [
                pstats(&file(Tool::Yappi), "cumtime"),
                pstats(&format!("{profile}.pstats"), "cumtime"),
            ],
        ),
        (
            "py-spy, and pyagent's profile as folded stacks",
            [
                folded(&file(Tool::PySpy)),
                folded(&format!("{profile}.folded")),
            ],
        ),
    ]
}
