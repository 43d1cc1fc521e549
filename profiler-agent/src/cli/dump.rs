//! `pyagent dump`: the stack of every thread, now.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use clap::{ArgAction, Args};

use super::connect::ShownArgs;
use super::exit::ExitError;
use super::named;
use super::output::print;
use super::pull::SUBPROCESSES_OF_AGENT;
use crate::ids::{Generation, Pid};
use crate::kernel::probe::{CAP_SYS_PTRACE, Rights};
use crate::process::facts::{self, Facts};
use crate::profile::inspect::{LocalsDetail, ProcessStacks};
use crate::profile::query::{Criteria, ProcessFilter};
use crate::python::discover::{Discoverer, Discovery};
use crate::python::process::PythonProcess;
use crate::sample::dump::of_process;
use crate::serve::client::{self, PullFailure};
use crate::view::dump::{DumpStyle, json, text};

/// `pyagent dump`.
#[derive(Debug, Args, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
#[command(
    after_help = "Examples:\n  sudo pyagent dump --pid 1234                 every thread of a process\n  sudo pyagent dump --all-python --json        of every Python process, for a program\n  pyagent dump web1:7099 --pid 1234            by an agent\n  sudo pyagent dump --pid 1234 --locals        with local variables\n\nThe process runs on. A thread that waits is read exactly; of one that runs two readings in a row must say the same, else the\ndump says that it is uncertain."
)]
pub struct DumpArgs {
    /// An agent that is asked: host:port, https://host:port, unix:/path [default: none, this host is looked at]
    #[arg(value_name = "ADDR")]
    pub address: Option<String>,
    /// This process (repeatable)
    #[arg(long, value_name = "PID", env = "PYAGENT_PID", value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Every Python process
    #[arg(long, conflicts_with = "pid")]
    pub all_python: bool,
    /// Children of the processes too; of this host
    #[arg(long, short_alias = 's')]
    pub subprocesses: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Files with their whole paths
    #[arg(long)]
    pub full_filenames: bool,
    /// Functions without line numbers
    #[arg(long)]
    pub nolineno: bool,
    /// Local variables too; twice for longer values
    ///
    /// Values can be secrets. Shown as `repr` would write them, up to 128 characters (-ll: 1024): numbers, texts, the built-in
    /// containers with their views, range and slice, functions, methods, generators, modules, exceptions, locks, members of
    /// enumerations, and what collections, functools, datetime, decimal and types define in C. Instances of the program's own
    /// classes, and anything else, are <module.Type object at 0x...>: no code of the program runs for it. A variable that is
    /// not bound yet, or not any more, is left out. Each value is read until two readings say the same: one that never comes
    /// to rest is not shown, nor are those of a frame that was left meanwhile. An agent gives them only when it was started
    /// with --allow-locals.
    #[arg(short, long, action = ArgAction::Count)]
    pub locals: u8,
    /// Frames of machine code: not yet
    #[arg(long, short_alias = 'n', hide_short_help = true)]
    pub native: bool,
    /// What the agent is shown.
    #[command(flatten)]
    pub shown: ShownArgs,
}

/// What `--native` would take.
const NO_NATIVE: &str = "--native cannot be answered yet: stacks of machine code are walked by the kernel, when it samples; `record` and `top --native` have them";

impl DumpArgs {
    fn detail(&self) -> LocalsDetail {
        match self.locals {
            0 => LocalsDetail::None,
            1 => LocalsDetail::Short,
            2.. => LocalsDetail::Long,
        }
    }
}

/// Runs the command.
pub async fn run(args: DumpArgs) -> Result<ExitCode> {
    if args.pid.is_empty() && !args.all_python {
        let message = "whose stacks? choose --pid PID or --all-python";
        return Err(ExitError::Usage(message.to_owned()).into());
    }
    if args.native {
        return Err(ExitError::Usage(NO_NATIVE.to_owned()).into());
    }
    if args.subprocesses && args.address.is_some() {
        return Err(ExitError::Usage(SUBPROCESSES_OF_AGENT.to_owned()).into());
    }
    let processes = match &args.address {
        Some(address) => asked(&args, address).await?,
        None => {
            let args = args.clone();
            tokio::task::spawn_blocking(move || looked_up(&args)).await??
        }
    };
    let style = DumpStyle {
        has_full_filenames: args.full_filenames,
        has_no_lines: args.nolineno,
    };
    let shown = if args.json {
        format!("{}\n", json(&processes))
    } else {
        let texts: Vec<String> = processes.iter().map(|it| text(it, style)).collect();
        texts.join("\n")
    };
    print(&shown)?;
    // One that was named and cannot be read is a failure; of all, some may have ended meanwhile.
    let is_failed = !args.all_python && processes.iter().any(|process| process.stacks.is_err());
    Ok(ExitCode::from(u8::from(is_failed)))
}

/// As an agent sees them.
async fn asked(args: &DumpArgs, address: &str) -> Result<Vec<ProcessStacks>> {
    let agent = args
        .shown
        .agent(address)
        .map_err(|error| ExitError::Usage(error.to_string()))?;
    let filter = ProcessFilter {
        include: Criteria {
            pids: args.pid.clone(),
            ..Criteria::default()
        },
        ..ProcessFilter::default()
    };
    let dumped = tokio::select! {
        dumped = client::dump(&agent, &filter, args.detail()) => dumped,
        _ = tokio::signal::ctrl_c() => return Err(anyhow!("interrupted")),
    };
    match dumped {
        Err(error @ PullFailure::NoMatch { .. }) => {
            Err(ExitError::NothingMatched(error.to_string()).into())
        }
        dumped => Ok(dumped?),
    }
}

/// As this host shows them.
fn looked_up(args: &DumpArgs) -> Result<Vec<ProcessStacks>> {
    let mut discoverer = Discoverer::default();
    let mut processes = Vec::new();
    if args.all_python {
        if !Rights::of_this_process().has(CAP_SYS_PTRACE) {
            tell!(
                "without CAP_SYS_PTRACE only processes of your own can be read: run pyagent with sudo for all"
            );
        }
        processes = of_pythons(args, &mut discoverer, facts::all_pids()?);
        if processes.is_empty() {
            let message = "no Python process runs that can be read";
            return Err(ExitError::NothingMatched(message.to_owned()).into());
        }
        return Ok(processes);
    }
    // An error when none can be read; else each says below what is wrong with it.
    named::check(&args.pid)?;
    let named: Vec<Pid> = args.pid.iter().copied().map(Pid).collect();
    let children = if args.subprocesses {
        facts::descendants(&named)
    } else {
        Vec::new()
    };
    for pid in named {
        let interpreter = named::found(pid, discoverer.discover(pid, &mut |_| {}));
        match interpreter {
            Ok(interpreter) => {
                let process = python_process(Facts::read(pid)?, interpreter);
                processes.push(of_process(&process, args.detail(), &|| false));
            }
            Err(error) if args.pid.len() == 1 => return Err(error),
            Err(error) => tell!("pyagent: {error:#}"),
        }
    }
    processes.extend(of_pythons(args, &mut discoverer, children));
    Ok(processes)
}

/// Of these processes the stacks of those that run Python.
fn of_pythons(args: &DumpArgs, discoverer: &mut Discoverer, pids: Vec<Pid>) -> Vec<ProcessStacks> {
    let mut processes = Vec::new();
    for pid in pids {
        if let Discovery::Python(interpreter) = discoverer.discover(pid, &mut |_| {})
            && let Ok(facts) = Facts::read(pid)
        {
            let process = python_process(facts, *interpreter);
            processes.push(of_process(&process, args.detail(), &|| false));
        }
    }
    processes
}

fn python_process(
    facts: Facts,
    interpreter: crate::python::discover::Interpreter,
) -> Arc<PythonProcess> {
    Arc::new(PythonProcess {
        pid: facts.pid,
        generation: Generation(1),
        forked_from: None,
        facts,
        interpreter,
    })
}
