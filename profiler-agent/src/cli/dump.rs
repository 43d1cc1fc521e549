//! `pyagent dump`: the stack of every thread, now.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use clap::Args;

use super::connect::ShownArgs;
use super::exit::ExitError;
use super::named;
use super::output::print;
use crate::ids::{Generation, Pid};
use crate::kernel::probe::{CAP_SYS_PTRACE, Rights};
use crate::process::facts::{self, Facts};
use crate::profile::inspect::ProcessStacks;
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
    after_help = "Examples:\n  sudo pyagent dump --pid 1234                 every thread of a process\n  sudo pyagent dump --all-python --json        of every Python process, for a program\n  pyagent dump web1:7099 --pid 1234            by an agent\n\nThe process runs on. A thread that waits is read exactly; of one that runs two readings in a row must say the same, else the\ndump says that it is uncertain."
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
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Files with their whole paths
    #[arg(long)]
    pub full_filenames: bool,
    /// Functions without line numbers
    #[arg(long)]
    pub nolineno: bool,
    /// What the agent is shown.
    #[command(flatten)]
    pub shown: ShownArgs,
}

/// Runs the command.
pub async fn run(args: DumpArgs) -> Result<ExitCode> {
    if args.pid.is_empty() && !args.all_python {
        let message = "whose stacks? choose --pid PID or --all-python";
        return Err(ExitError::Usage(message.to_owned()).into());
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
        dumped = client::dump(&agent, &filter) => dumped,
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
        for pid in facts::all_pids()? {
            if let Discovery::Python(interpreter) = discoverer.discover(pid, &mut |_| {})
                && let Ok(facts) = Facts::read(pid)
            {
                processes.push(of_process(&python_process(facts, *interpreter), &|| false));
            }
        }
        if processes.is_empty() {
            let message = "no Python process runs that can be read";
            return Err(ExitError::NothingMatched(message.to_owned()).into());
        }
        return Ok(processes);
    }
    // An error when none can be read; else each says below what is wrong with it.
    named::check(&args.pid)?;
    for pid in args.pid.iter().copied().map(Pid) {
        let interpreter = named::found(pid, discoverer.discover(pid, &mut |_| {}));
        match interpreter {
            Ok(interpreter) => {
                let process = python_process(Facts::read(pid)?, interpreter);
                processes.push(of_process(&process, &|| false));
            }
            Err(error) if args.pid.len() == 1 => return Err(error),
            Err(error) => tell!("pyagent: {error:#}"),
        }
    }
    Ok(processes)
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
