//! `pyagent` without a subcommand: the agent.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::exit::ExitError;
use super::listen::Auth;
use super::push::Pushing;
use super::{AgentArgs, log::LogFormat, named, pods};
use crate::agent::{Agent, AgentAsker, Purpose};
use crate::config::SamplingConfig;
use crate::format::escape;
use crate::kernel::privileges;
use crate::kernel::probe::Rights;
use crate::kubernetes::review::Reviewer;
use crate::kubernetes::watch::PodWatch;
use crate::serve::listen::ListenAddress;
use crate::serve::query::{ProcessState, Query, Status};
use crate::serve::{HealthServer, ServeConfig, Server};
use crate::track::process::{ProcessListing, TrackState};

/// The status line of a terminal is renewed this often.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Without a terminal there is a log line this often.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// Questions of clients that wait for the engine.
const QUERY_CHANNEL: usize = 256;

/// Processes that the start names as not profilable; the rest is counted.
const MAX_REFUSED_SHOWN: usize = 5;

/// Runs until Ctrl-C or SIGTERM.
pub async fn run(args: AgentArgs) -> Result<ExitCode> {
    check(&args)?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut pods = args.pods.follow(&args.pod_selection).await?;
    let reviewer = reviewer(&args, pods.as_ref())?;
    // Before the programs are loaded: a port that is taken is told at once.
    let server = Server::bind(&ServeConfig {
        reviewer: reviewer.clone(),
        ..args.listen.config()
    })?;
    let addresses: Vec<ListenAddress> = server.addresses().cloned().collect();
    for address in server.open_to_all() {
        tracing::warn!(
            "{address} can be reached from other hosts, and everybody who reaches it can read profiles (--insecure)"
        );
    }
    let (queries, receiver) = mpsc::channel(QUERY_CHANNEL);
    for address in server.anonymous().filter(|_| args.listen.allow_locals) {
        tracing::warn!(
            "everybody who reaches {address} can read local variables of all processes (--allow-locals): ask for tokens (--token-file)"
        );
    }
    // It is alive before anything is attached.
    let health = match args.listen.health_listen {
        Some(address) => Some(serve_health(address, queries.clone())?),
        None => None,
    };
    let (recorder, not_recorded) = args.recorder.start()?;
    if let (Some(reviewer), Some(recorder)) = (reviewer, &recorder) {
        reviewer.set_recorded(recorder.namespaces());
    }
    let labels = &args.sampling.labels;
    let pushing = args
        .push
        .start(recorder.as_ref(), labels, &args.pods.labels())?;
    let config = config(&args);
    let followed = match &mut pods {
        Some(watch) => Some(pods::first_of(watch).await),
        None => None,
    };
    let purpose = Purpose::Serve {
        show_cmdline: args.show_cmdline,
        recorder,
        not_recorded,
        pushes: pushing.as_ref().map(Pushing::counts),
        pods: followed,
    };
    let mut agent = Agent::start(&config, purpose)?;
    let (stop_server, server_stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.run(queries, async move {
        // Both a message and a dropped sender mean the end.
        let _ = server_stopped.await;
    }));
    tokio::spawn(pass_queries(receiver, agent.asker()));
    if let Some(watch) = pods {
        tokio::spawn(pods::pass_on(watch, agent.pod_teller()));
    }
    if let Some(pushing) = &pushing {
        pushing.feed(agent.asker());
    }
    let listing = agent.scanned().await;
    // What the start needed and nothing later does.
    privileges::reduce_thread();
    if let Err(error) = privileges::forbid_calls() {
        tracing::warn!("no filter of system calls is in force: {error}");
    }
    let health_address = health.as_ref().map(|(address, ..)| *address);
    print_start(&args, &addresses, health_address, &listing);
    let mut reporter = Reporter::new(args.log.log_format);
    let asker = agent.asker();
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = tokio::time::sleep(STATUS_INTERVAL) => {
                if agent.has_ended() {
                    anyhow::bail!("the engine ended unexpectedly; its message is above");
                }
                reporter.report(&asker).await;
            }
        }
    }
    reporter.clear();
    // First the engine: pulls under way get what there is, then the server closes.
    let recorder = tokio::task::spawn_blocking(|| agent.stop())
        .await
        .context("the agent did not stop")?;
    drop(stop_server);
    if let Some(pushing) = pushing {
        pushing.finish().await;
    }
    if let Some(recorder) = recorder {
        tokio::task::spawn_blocking(|| recorder.join())
            .await
            .context("the recorder did not stop")?;
    }
    serving.await.context("the server failed")?;
    if let Some((_, stop, serving)) = health {
        drop(stop);
        serving.await.context("the server for probes failed")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says who may see which pods; `None`: that is not asked for.
fn reviewer(args: &AgentArgs, pods: Option<&PodWatch>) -> Result<Option<Reviewer>> {
    match (args.listen.auth, pods) {
        (None, _) => Ok(None),
        (Some(Auth::Kubernetes), Some(watch)) => Ok(Some(watch.reviewer())),
        (Some(Auth::Kubernetes), None) => {
            let message = "--auth kubernetes needs the Kubernetes API server: in a pod with a service account, or with KUBECONFIG, and not with --kubernetes off";
            Err(ExitError::Usage(message.to_owned()).into())
        }
    }
}

/// What is sampled, and how.
fn config(args: &AgentArgs) -> SamplingConfig {
    let mut selection = args.selection.selection();
    args.pod_selection.add_to(&mut selection.filter);
    selection.consent = args.pods.consent();
    let max_samples = Some(args.max_samples_per_second);
    let config = args
        .sampling
        .config(&args.types, selection, max_samples, &args.log);
    let mut config = SamplingConfig {
        allocation: args.allocation.config(),
        window: args.recorder.window,
        has_instructions: args.bytecode,
        ..config
    };
    config.labels.pod_labels = args.pods.labels();
    config
}

fn check(args: &AgentArgs) -> Result<()> {
    if args.selection.is_empty() && args.pod_selection.is_empty() {
        let message = "which processes? choose --all-python, --pid PID, --container NAME, --namespace NAME, --comm REGEX, \
                       --cmdline REGEX or --cgroup PATH (`pyagent --help` has examples)";
        return Err(ExitError::Usage(message.to_owned()).into());
    }
    let rights = Rights::of_this_process();
    let missing = rights.missing();
    if !missing.is_empty() {
        return Err(ExitError::Rights(missing).into());
    }
    for useful in rights.without() {
        tracing::warn!("{} is missing: {}", useful.name, useful.loss);
    }
    named::check_namespace()?;
    for problem in named::check(&args.selection.pid)? {
        tell!("{problem}");
    }
    for problem in named::missing(&args.selection.included()) {
        tell!(
            "{}; they are profiled as soon as they start",
            problem.message
        );
    }
    Ok(())
}

/// Begins to answer probes. Returns the address, what ends it when it is dropped, and what ends then.
fn serve_health(
    address: SocketAddr,
    queries: mpsc::Sender<Query>,
) -> Result<(SocketAddr, oneshot::Sender<()>, JoinHandle<()>)> {
    let server = HealthServer::bind(address)?;
    let address = server.address();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.run(queries, async move {
        // Both a message and a dropped sender mean the end.
        let _ = stopped.await;
    }));
    Ok((address, stop, serving))
}

/// From the server's channel to the engine's.
async fn pass_queries(mut queries: mpsc::Receiver<Query>, asker: AgentAsker) {
    while let Some(query) = queries.recv().await {
        // A query that is dropped is an answer too: the client is told that the agent does not answer.
        let _ = asker.ask(query);
    }
}

/// What a newcomer needs next, in at most 20 lines.
fn print_start(
    args: &AgentArgs,
    addresses: &[ListenAddress],
    health: Option<SocketAddr>,
    listing: &[ProcessListing],
) {
    let mut by_version: BTreeMap<&str, usize> = BTreeMap::new();
    for process in listing
        .iter()
        .filter(|process| process.state == TrackState::Profiled)
    {
        *by_version.entry(&process.version).or_default() += 1;
    }
    let n_profiled: usize = by_version.values().sum();
    let versions: Vec<String> = by_version
        .iter()
        .map(|(version, n)| format!("{n} x {version}"))
        .collect();
    let plural = if n_profiled == 1 {
        "process"
    } else {
        "processes"
    };
    let what = if versions.is_empty() {
        String::new()
    } else {
        format!(" ({})", versions.join(", "))
    };
    let version = env!("CARGO_PKG_VERSION");
    tell!(
        "pyagent {version}: profiling {n_profiled} Python {plural}{what} at {} Hz",
        args.sampling.rate
    );
    let refused: Vec<_> = listing
        .iter()
        .filter(|process| process.state == TrackState::Refused)
        .collect();
    for process in refused.iter().take(MAX_REFUSED_SHOWN) {
        tell!(
            "  not {} ({}): {}",
            process.facts.pid,
            escape(&process.facts.comm),
            escape(&process.reason)
        );
    }
    if refused.len() > MAX_REFUSED_SHOWN {
        tell!(
            "  and {} more; `pyagent doctor PID` says why",
            refused.len() - MAX_REFUSED_SHOWN
        );
    }
    if let Some(address) = health {
        tell!("answering probes on http://{address}/livez, /readyz and /metrics");
    }
    let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let Some(first) = addresses.first() else {
        tell!("serving nothing (--listen none)");
        return;
    };
    tell!("serving gRPC and HTTP on {}; try:", shown.join(", "));
    tell!("  pyagent pull {first} --duration 10s -o flame.svg");
    match first {
        ListenAddress::Unix(path) => tell!(
            "  curl --unix-socket {} -o cpu.pb.gz 'http://localhost/debug/pprof/profile?seconds=10'",
            escape(&path.to_string_lossy())
        ),
        ListenAddress::Tcp {
            tls: Some(true), ..
        } => tell!(
            "  curl -H \"Authorization: Bearer $TOKEN\" -o cpu.pb.gz '{first}/debug/pprof/profile?seconds=10'"
        ),
        ListenAddress::Tcp { .. } | ListenAddress::None => {
            tell!("  go tool pprof 'http://{first}/debug/pprof/profile?seconds=10'");
        }
    }
}

/// A quiet line on a terminal, a log line a minute elsewhere.
struct Reporter {
    is_terminal: bool,
    next: Instant,
    is_shown: bool,
}

impl Reporter {
    fn new(format: LogFormat) -> Self {
        let is_terminal = std::io::stderr().is_terminal() && format == LogFormat::Text;
        let next = if is_terminal {
            Instant::now()
        } else {
            Instant::now() + LOG_INTERVAL
        };
        Self {
            is_terminal,
            next,
            is_shown: false,
        }
    }

    async fn report(&mut self, asker: &AgentAsker) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now()
            + if self.is_terminal {
                STATUS_INTERVAL
            } else {
                LOG_INTERVAL
            };
        let Some(status) = asker.status().await else {
            return;
        };
        let line = status_line(&status);
        if self.is_terminal {
            tell_part!("\r\x1b[K{line}");
            self.is_shown = true;
        } else {
            tracing::info!("{line}");
        }
    }

    fn clear(&mut self) {
        if self.is_shown {
            tell_part!("\r\x1b[K");
            self.is_shown = false;
        }
    }
}

fn status_line(status: &Status) -> String {
    let n_profiled = status
        .processes
        .iter()
        .find(|(state, _)| *state == ProcessState::Profiled)
        .map_or(0, |(_, n_processes)| *n_processes);
    let lost: u64 = status
        .counters
        .iter()
        .filter(|counter| counter.name.starts_with("lost_") || counter.name.ends_with("_lost"))
        .map(|counter| counter.value)
        .sum();
    let window = status.last_window.as_ref();
    let hottest = match window.and_then(|window| window.hottest.as_ref()) {
        Some((name, share)) => format!(", most in {} ({:.0} %)", escape(name), share * 100.0),
        None => String::new(),
    };
    format!(
        "{n_profiled} Python processes, {:.0} samples/s{hottest}, {lost} lost, up {} s; Ctrl-C ends",
        status.samples_per_second,
        status.uptime.as_secs()
    )
}
