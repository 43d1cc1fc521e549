//! `cargo xtask compare`: the toolbox of Python's tutorials beside pyagent, over programs that know what they take. Writes
//! docs/toolbox.md. Here: what is run, in which order; `tools` says how, `judge` what comes of it, `document` how it looks.

mod answer;
mod document;
mod judge;
mod packages;
mod programs;
mod tools;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use self::answer::{Account, Answer, LineCosts};
use self::document::Facts;
use self::packages::Python;
use self::programs::{PROGRAMS, Program};
use self::tools::{TOOLS, Tool};
use crate::{build, command, timing, workspace};

/// What `cargo xtask compare` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask compare                                           writes docs/toolbox.md, in some five minutes
  cargo xtask compare --rounds 1 --work 30 --output /tmp/x.md   a quick look
  PYAGENT_BIN=target/debug/pyagent cargo xtask compare --rounds 1 --output /tmp/x.md

Exit code: 1 when an answer of pyagent's is beyond its bound; the document is written all the same. Needs root, as pyagent
and py-spy do.")]
pub(crate) struct Args {
    /// How often each tool runs each program. Shares are of all rounds together, slow-downs are medians.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Where to write the document [default: docs/toolbox.md of the checkout]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How large the programs' work is, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(10..=1000))]
    work: u32,
    /// Only these programs; all when none is named.
    #[arg(long, value_name = "NAME", value_parser = programs::NAMES)]
    program: Vec<String>,
}

/// What is needed to run a tool.
#[derive(Debug)]
struct Bench {
    python: Python,
    pyagent: PathBuf,
    /// Where the programs lie.
    programs: PathBuf,
    /// Where tools write.
    scratch: PathBuf,
}

/// One run of a program.
#[derive(Debug)]
struct Run {
    account: Account,
    /// `None` without a tool.
    answer: Option<Answer>,
}

/// All runs of a program.
#[derive(Debug)]
struct Outcome {
    program: &'static Program,
    runs: BTreeMap<Tool, Vec<Run>>,
    /// Plain runs of the size that tracers get, to compare their time with.
    small: Vec<Account>,
    /// Lines of the inner loop, by running them more often: each round in a process of its own.
    line_costs: Vec<LineCosts>,
}

/// Runs all, writes the document, says what is beyond its bound.
pub(crate) fn compare(args: &Args) -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "py-spy and pyagent need root: run this as root"
    );
    let output = match &args.output {
        Some(path) => std::path::absolute(path)?,
        None => workspace::root().join("docs/toolbox.md"),
    };
    ensure!(!output.is_dir(), "{} is a folder", output.display());
    let bench = Bench {
        pyagent: pyagent()?,
        python: packages::python()?,
        programs: workspace::root().join("tests/workloads/toolbox"),
        scratch: workspace::target().join("compare"),
    };
    println!("comparing on CPython {}", bench.python.version);
    fs::create_dir_all(&bench.scratch)?;
    let start = Instant::now();
    let mut outcomes = Vec::new();
    for program in PROGRAMS {
        if args.program.is_empty() || args.program.iter().any(|name| name == program.name) {
            outcomes.push(bench.outcome(program, args)?);
        }
    }
    let facts = Facts::gather(&bench, args.rounds)?;
    let views: Vec<_> = outcomes.iter().map(judge::views).collect();
    let text = document::document(&bench, &facts, &outcomes, &views)?;
    write(&output, &text)?;
    println!(
        "wrote {} after {}",
        output.display(),
        timing::seconds(start.elapsed())
    );
    let failures: Vec<String> = views.iter().flatten().flat_map(judge::failures).collect();
    for failure in &failures {
        println!("BEYOND ITS BOUND: {failure}");
    }
    Ok(if failures.is_empty() {
        println!("all answers of pyagent's are within their bounds");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `$PYAGENT_BIN`, else the release binary, which is built first.
fn pyagent() -> Result<PathBuf> {
    if let Some(path) = env::var_os("PYAGENT_BIN").filter(|path| !path.is_empty()) {
        return fs::canonicalize(&path)
            .with_context(|| format!("PYAGENT_BIN: {}", Path::new(&path).display()));
    }
    build::build()?;
    Ok(workspace::release_binary())
}

/// All of it or nothing: who is interrupted keeps the old document.
fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("md.new");
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

impl Bench {
    /// Runs a program under each tool in turn, round after round, so that what disturbs meets all of them.
    fn outcome(&self, program: &'static Program, args: &Args) -> Result<Outcome> {
        let n_rounds = args.rounds;
        let [small, full] =
            [program.small, program.size].map(|size| program.scaled(size, args.work));
        let mut outcome = Outcome {
            program,
            runs: BTreeMap::new(),
            small: Vec::new(),
            line_costs: Vec::new(),
        };
        for round in 1..=n_rounds {
            if let Some(script) = program.line_costs {
                println!("{}, round {round} of {n_rounds}, lines", program.title);
                let mut python = self.python(&self.python.path);
                let text = command::output(python.arg(self.programs.join(script)))?;
                let costs = serde_json::from_str(&text).context("the costs of lines")?;
                outcome.line_costs.push(costs);
            }
            outcome
                .small
                .push(self.run(program, Tool::Plain, small)?.account);
            for tool in TOOLS {
                let size = if tool.is_tracer() { small } else { full };
                let run = self.run(program, *tool, size)?;
                println!(
                    "{}, round {round} of {n_rounds}, {}: {} of CPU time",
                    program.title,
                    tool.name(),
                    timing::seconds(run.account.duration())
                );
                outcome.runs.entry(*tool).or_default().push(run);
            }
        }
        Ok(outcome)
    }

    fn run(&self, program: &Program, tool: Tool, size: u32) -> Result<Run> {
        let account = self.scratch.join("account.json");
        let file = self.file(program, tool);
        for old in [&account, &file] {
            if old.exists() {
                fs::remove_file(old).with_context(|| format!("{}", old.display()))?;
            }
        }
        let mut words = tools::words(self, program, tool, size, &file);
        if program.needs_load {
            let load = self.programs.join("load.py").display().to_string();
            let python = self.python.path.display().to_string();
            words.splice(0..0, [python, load, size.to_string()]);
        }
        // Where xtask is killed its children end too.
        let mut run = self.python(Path::new("setpriv"));
        run.args(["--pdeathsig", "TERM"]).args(&words);
        run.env("TOOLBOX_ACCOUNT", &account);
        command::output(&mut run)?;
        let text = fs::read_to_string(&account)
            .with_context(|| format!("{} wrote no account under {}", program.name, tool.name()))?;
        let account = serde_json::from_str(&text).context("the program's account")?;
        let answer = self.answer(program, tool, &file)?;
        Ok(Run { account, answer })
    }

    /// What a tool says of its last run.
    fn answer(&self, program: &Program, tool: Tool, file: &Path) -> Result<Option<Answer>> {
        let Some(reader) = tool.reader() else {
            return Ok(None);
        };
        let mut read = file.to_path_buf();
        for (step, output) in tools::steps_to_read(self, tool, file) {
            let text = command::output(&mut self.words(&step))?;
            if let Some(output) = output {
                fs::write(&output, text)?;
                if tool == Tool::Pyinstrument {
                    read = output;
                }
            }
        }
        let mut python = self.python(&self.python.path);
        python
            .arg(self.programs.join("answers.py"))
            .arg(reader)
            .arg(&read)
            .arg(self.programs.join(program.script))
            .arg(program.root);
        let text = command::output(&mut python)?;
        let answer = serde_json::from_str(&text)
            .with_context(|| format!("the answer of {}", tool.name()))?;
        Ok(Some(answer))
    }

    /// Where a tool writes.
    fn file(&self, program: &Program, tool: Tool) -> PathBuf {
        let name = format!("{}{}", program.name, tool.ending());
        self.scratch.join(name)
    }

    /// A command in the scratch folder, with the packages on Python's path.
    fn python(&self, program: &Path) -> std::process::Command {
        let mut command = command::program(program);
        command
            .current_dir(&self.scratch)
            .env("PYTHONPATH", &self.python.packages)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONHASHSEED", "0")
            .env_remove("PYTHONHOME");
        command
    }

    fn words(&self, words: &[String]) -> std::process::Command {
        let mut command = self.python(Path::new(&words[0]));
        command.args(&words[1..]);
        command
    }
}
