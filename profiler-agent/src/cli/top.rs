//! `pyagent top`: which functions use the CPU, live or as a report.

mod feed;
mod screen;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::sync::mpsc;

use self::feed::{Feed, Origin, Seen};
use self::screen::{Input, Screen};
use super::cluster::{self, ClusterArgs, ClusterQuestion};
use super::connect::ShownArgs;
use super::ending::Ending;
use super::exit::ExitError;
use super::gil::GilArgs;
use super::log::LogArgs;
use super::output::print;
use super::pods::PodSelectionArgs;
use super::pull::SUBPROCESSES_OF_AGENT;
use super::{SamplingArgs, SelectionArgs, own_agent, parse_duration};
use crate::ids::Pid;
use crate::process::facts;
use crate::profile::model::ProfileType;
use crate::profile::query::ProcessFilter;
use crate::serve::client::{AgentAddress, PullTime};
use crate::view::top::{Choice, Outcome, SortKey, Top, Ui, json, text};

/// What a pipe or a file gets is of so much time.
const DEFAULT_DURATION: Duration = Duration::from_secs(5);

/// A clock cannot be asked for much more; ten years.
const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);

/// `pyagent top`.
#[derive(Debug, Args, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
#[command(
    mut_args(|arg| arg.hide_env(true)),
    mut_arg("all_python", |arg| arg.hide_short_help(true)),
    mut_arg("cgroup", |arg| arg.hide_short_help(true)),
    after_help = "Examples:\n  sudo pyagent top                      every Python process of this host\n  sudo pyagent top --pid 1234 --threads\n  pyagent top web1:7099                 by an agent\n  pyagent top --k8s -n shop deploy/web  of a workload, on all nodes of its pods\n  sudo pyagent top --json -d 10s | jq '.functions[:3]'\n\nKeys: 1-5 order, l lines or functions, t threads, Tab processes, / filter, p pause, r reset, ? all keys, q quit.\n\
    Percent are of one CPU in the last second, times since the begin; waiting is in neither."
)]
pub struct TopArgs {
    /// An agent that is asked: host:port, https://host:port, unix:/path [default: this host]
    #[arg(value_name = "ADDR")]
    pub address: Option<String>,
    /// The agents of a cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Which processes; all when none is chosen.
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Of an agent: which pods.
    #[command(flatten)]
    pub pod_selection: PodSelectionArgs,
    /// How to sample.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How often to look
    #[arg(long, alias = "delay", value_name = "TIME", default_value = "1s", env = "PYAGENT_EVERY", value_parser = parse_duration,
          hide_short_help = true)]
    pub every: Duration,
    /// How long (default: until q; 5s where standard output is no terminal)
    #[arg(long, short, value_name = "TIME", env = "PYAGENT_DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Order: own_percent, total_percent, own_time, total_time, gil_percent
    #[arg(long, value_name = "KEY", default_value = "own_percent")]
    pub sort: SortKey,
    /// Rows, at most
    #[arg(long, value_name = "N", env = "PYAGENT_TOP")]
    pub top: Option<usize>,
    /// Each thread for itself
    #[arg(long)]
    pub threads: bool,
    /// Functions, not lines
    #[arg(long)]
    pub function: bool,
    /// Without line numbers
    #[arg(long)]
    pub nolineno: bool,
    /// Files with their whole paths
    #[arg(long)]
    pub full_filenames: bool,
    /// Frames of machine code and of the kernel too
    #[arg(long)]
    pub native: bool,
    /// Print one report as JSON
    #[arg(long)]
    pub json: bool,
    /// Which samples.
    #[command(flatten)]
    pub gil: GilArgs,
    /// What the agent is shown.
    #[command(flatten)]
    pub shown: ShownArgs,
}

/// Runs the command until its time is over, or the user ends it.
pub async fn run(args: TopArgs, log: &LogArgs) -> Result<ExitCode> {
    args.check()?;
    let top = match &args.address {
        _ if args.cluster.k8s => of_cluster(&args).await?,
        Some(address) => {
            let agent = args.shown.agent(address);
            let agent = agent.map_err(|error| ExitError::Usage(error.to_string()))?;
            of_agent(&args, agent).await?
        }
        None => of_host(&args, log).await?,
    };
    if !args.is_live() {
        if !top.has_looked() {
            bail!("interrupted");
        }
        if !top.has_processes() {
            let message = "no Python process that was selected ran meanwhile; `pyagent doctor PID` says why one is not seen";
            return Err(ExitError::NothingMatched(message.to_owned()).into());
        }
        let ui = args.ui();
        let shown = if args.json {
            format!("{}\n", json(&top, &ui))
        } else {
            text(&top, &ui)
        };
        print(&shown)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl TopArgs {
    fn check(&self) -> Result<(), ExitError> {
        self.gil.check(ProfileType::Cpu)?;
        let has_agent = self.address.is_some() || self.cluster.k8s;
        let not_yet = if has_agent && self.selection.subprocesses {
            Some(SUBPROCESSES_OF_AGENT)
        } else if !has_agent && self.pod_selection.first_flag().is_some() {
            Some("pods are known to an agent: `pyagent top ADDR --namespace NAME`")
        } else if self.every < Duration::from_millis(100) {
            Some("--every: at least 100ms")
        } else {
            None
        };
        not_yet.map_or(Ok(()), |message| Err(ExitError::Usage(message.to_owned())))
    }

    /// On a terminal that can be drawn on.
    fn is_live(&self) -> bool {
        let has_screen =
            std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        !self.json && has_screen && std::io::stdout().is_terminal()
    }

    fn ui(&self) -> Ui {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let choice = Choice {
            sort: self.sort,
            by_function: self.function,
            by_thread: self.threads,
            has_full_filenames: self.full_filenames,
            has_no_lines: self.nolineno,
            ..Choice::default()
        };
        let place = self.address.clone().unwrap_or_default();
        Ui::new(choice, self.top, !no_color, place)
    }

    fn feed(&self, origin: Origin) -> Feed {
        let duration = match (self.duration, self.is_live()) {
            (None, false) => Some(DEFAULT_DURATION),
            (duration, _) => duration,
        };
        // The agent in this process follows nothing else anyway, and children where they are meant.
        let filter = match origin {
            Origin::Host(_) | Origin::Cluster(_) => ProcessFilter::default(),
            Origin::Agent(_) => {
                let mut filter = self.selection.filter();
                self.pod_selection.add_to(&mut filter);
                filter
            }
        };
        Feed {
            origin,
            filter,
            every: self.every.min(LONGEST),
            duration: duration.map(|duration| duration.min(LONGEST)),
            has_native: self.native,
            gil: self.gil,
        }
    }
}

async fn of_agent(args: &TopArgs, address: AgentAddress) -> Result<Top> {
    let feed = args.feed(Origin::Agent(address));
    watch(args, feed, &|_| false).await
}

async fn of_cluster(args: &TopArgs) -> Result<Top> {
    let object = args.address.as_deref().map(cluster::object).transpose()?;
    let asked = ClusterQuestion {
        profile_type: ProfileType::Cpu,
        filter: args.selection.filter(),
        pods: &args.pod_selection,
        object: object.flatten(),
        labels: Vec::new(),
        time: PullTime::Next(args.every),
    };
    let fleet = args.cluster.fleet(&args.shown, asked).await?;
    let feed = args.feed(Origin::Cluster(Arc::new(fleet)));
    watch(args, feed, &|_| false).await
}

async fn of_host(args: &TopArgs, log: &LogArgs) -> Result<Top> {
    let pids = &args.selection.pid;
    let agent = own_agent::start(&args.selection, &args.sampling, &[ProfileType::Cpu], log).await?;
    let feed = args.feed(Origin::Host(agent.asker()));
    let follows_children = args.selection.subprocesses;
    let has_ended = |seen: &Seen| {
        let is_any_alive = pids.iter().any(|pid| facts::is_alive(Pid(*pid)));
        let has_others = seen.processes.as_ref().is_some_and(|them| !them.is_empty());
        let is_followed = is_any_alive || (follows_children && has_others);
        !pids.is_empty() && !is_followed
    };
    let watched = watch(args, feed, &has_ended).await;
    tokio::task::spawn_blocking(|| agent.stop())
        .await
        .context("the agent did not stop")?;
    watched
}

/// Looks again and again; shows what it sees when there is a screen.
async fn watch(args: &TopArgs, feed: Feed, has_ended: &dyn Fn(&Seen) -> bool) -> Result<Top> {
    let mut ending = Ending::new()?;
    let mut ui = args.ui();
    let mut top = Top::new(SystemTime::now(), feed.vitals().await?);
    let mut screen = args.is_live().then(Screen::open).transpose()?;
    let (sender, mut looks) = mpsc::channel(1);
    let is_of_agent = args.address.is_some();
    let feeding = tokio::spawn(feed.run(sender));
    // Looks in which nothing matched, and why.
    let (mut n_looks, mut unmatched) = (0_u32, (0_u32, String::new()));
    let watched = async {
        let mut is_first = true;
        loop {
            if let Some(screen) = &mut screen {
                screen.draw(&top, &mut ui)?;
            }
            let is_over = top.ended().is_some();
            tokio::select! {
                look = looks.recv(), if !is_over => match look {
                    None => break,
                    Some(look) => {
                        let seen = look?;
                        if is_first && is_of_agent && let Some(none) = &seen.no_match && !args.selection.is_empty() {
                            return Err(ExitError::NothingMatched(none.clone()).into());
                        }
                        is_first = false;
                        n_looks += 1;
                        if let Some(why) = &seen.no_match {
                            unmatched = (unmatched.0 + 1, why.clone());
                        }
                        let is_gone = has_ended(&seen);
                        let is_unknown = is_of_agent && seen.no_match.is_some() && !args.selection.pid.is_empty();
                        top.add(seen.into_look());
                        if is_gone || is_unknown {
                            top.end(ended_text(&args.selection.pid, is_gone));
                            if screen.is_none() {
                                break;
                            }
                        }
                    }
                },
                input = input(&mut screen) => match input? {
                    Input::Key(key) => match ui.on_key(key, &top) {
                        Outcome::Redraw => {}
                        Outcome::Reset => top.reset(SystemTime::now(), ui.choice.pid),
                        Outcome::Quit => break,
                    },
                    Input::Resized => {}
                    Input::Gone => break,
                },
                () = ending.received() => break,
            }
            if screen.as_ref().is_some_and(Screen::is_closed) {
                bail!("a part of pyagent has failed");
            }
        }
        Ok(())
    };
    let watched: Result<()> = watched.await;
    feeding.abort();
    drop(screen);
    watched?;
    if let (n_unmatched @ 1.., why) = unmatched {
        tell!("in {n_unmatched} of {n_looks} looks: {why}");
    }
    Ok(top)
}

/// The next key; without a screen there is none.
async fn input(screen: &mut Option<Screen>) -> Result<Input> {
    match screen {
        Some(screen) => screen.input().await,
        None => std::future::pending().await,
    }
}

fn ended_text(pids: &[u32], is_gone: bool) -> String {
    let (which, has) = match pids {
        [pid] => (format!("process {pid}"), "has"),
        _ => ("all processes that were named".to_owned(), "have"),
    };
    if is_gone {
        format!("{which} {has} ended")
    } else {
        format!("{which} {has} ended, or the agent does not profile them any more")
    }
}
