//! An agent in the process of a command, which nobody else asks: what `top` and `mem` look at.

use anyhow::Result;

use super::exit::ExitError;
use super::log::LogArgs;
use super::{SamplingArgs, SelectionArgs, named};
use crate::agent::{Agent, Purpose};
use crate::config::DEFAULT_MAX_SAMPLES_PER_SECOND;
use crate::kernel::probe::Rights;
use crate::profile::model::ProfileType;

/// Starts it for the processes that were selected; each of them has been looked at once. An error where there is none, or
/// rights are missing; processes of several that cannot be profiled are told.
pub(super) async fn start(
    selection: &SelectionArgs,
    sampling: &SamplingArgs,
    types: &[ProfileType],
    log: &LogArgs,
) -> Result<Agent> {
    for problem in named::check(&selection.pid)? {
        tell!("{problem}");
    }
    for problem in named::missing(&selection.included()) {
        if problem.is_all {
            return Err(ExitError::NothingMatched(problem.message).into());
        }
        tell!("{}", problem.message);
    }
    let missing = Rights::of_this_process().missing();
    if !missing.is_empty() {
        return Err(ExitError::Rights(missing).into());
    }
    named::check_namespace()?;
    let config = sampling.config(
        types,
        selection.selection(),
        Some(DEFAULT_MAX_SAMPLES_PER_SECOND),
        log,
    );
    let purpose = Purpose::Serve {
        not_recorded: String::new(),
        show_cmdline: false,
        recorder: None,
        pushes: None,
        pods: None,
    };
    let mut agent = Agent::start(&config, purpose)?;
    let listing = agent.scanned().await;
    if !selection.pid.is_empty() {
        named::check_any_tracked(&listing)?;
    }
    Ok(agent)
}
