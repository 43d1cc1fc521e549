//! `pyagent completions` and `pyagent man`: for shells and for man(1), out of the definitions of the command line itself.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;
use super::exit::ExitError;
use super::output::print;
use crate::format::escape;

/// `pyagent completions`.
#[derive(Debug, Args, Clone)]
#[command(
    after_help = "Examples:\n  pyagent completions bash > /etc/bash_completion.d/pyagent\n  pyagent completions fish > ~/.config/fish/completions/pyagent.fish"
)]
pub struct CompletionsArgs {
    /// Which shell
    pub shell: Shell,
}

/// `pyagent man`.
#[derive(Debug, Args, Clone)]
#[command(
    after_help = "Examples:\n  pyagent man | man -l -\n  pyagent man record > /usr/local/share/man/man1/pyagent-record.1"
)]
pub struct ManArgs {
    /// Of a subcommand, such as record; without one of pyagent itself
    #[arg(value_name = "COMMAND")]
    pub verb: Option<String>,
}

/// Prints the completions.
pub fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pyagent", &mut text);
    print(&String::from_utf8(text)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the page, for man(1).
pub fn man(args: &ManArgs) -> Result<ExitCode> {
    let mut command = Cli::command();
    command.build();
    let command = match &args.verb {
        None => command,
        Some(verb) => {
            let mut verbs = command.get_subcommands();
            let found = verbs.find(|known| known.get_name() == verb && !known.is_hide_set());
            let found = found.ok_or_else(|| {
                let names = command
                    .get_subcommands()
                    .filter(|known| !known.is_hide_set());
                let names: Vec<&str> = names.map(clap::Command::get_name).collect();
                ExitError::Usage(format!(
                    "there is no `{}`; there are {}",
                    escape(verb),
                    names.join(", ")
                ))
            })?;
            found.clone()
        }
    };
    let mut page = Vec::new();
    Man::new(command).render(&mut page)?;
    print(&String::from_utf8(page)?)?;
    Ok(ExitCode::SUCCESS)
}
