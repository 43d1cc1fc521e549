//! `--push` and what goes with it: where profiles are sent, and what is said of processes.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::exit::ExitError;
use crate::agent::outbox::WindowOutbox;
use crate::agent::{AgentAsker, PushCounts, WindowRecorder};
use crate::format::escape;
use crate::process::pod::PodLabel;
use crate::process::service::LabelOptions;
use crate::profile::model::label;
use crate::profile::window::ClosedWindow;
use crate::push::{
    CredentialOptions, Header, MemoryOutbox, Pace, PushConfig, Pusher, Scoped, Target,
};
use crate::track::tracker::Selection;

/// Where profiles are sent.
#[derive(Debug, Args, Clone, Default)]
pub struct PushArgs {
    /// Send profiles on: otlp=URL, pyroscope=URL, parca=URL (repeatable)
    ///
    /// All speak gRPC: http://HOST:PORT, or https:// with TLS. Without a port: 4317, 4040, 7070; 443 with TLS. A target that
    /// is down is tried again; windows wait for it as long as they are kept (--keep), or in memory with --data-dir none.
    #[arg(
        long,
        value_name = "TARGET",
        env = "PYAGENT_PUSH",
        value_delimiter = ','
    )]
    pub push: Vec<Typed<Target>>,
    /// Authorities (PEM) that a target's certificate is checked with, in place of the system's
    ///
    /// As with the other --push-* options `otlp=FILE` is for targets of that kind alone.
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_PUSH_CA",
        hide_short_help = true
    )]
    pub push_ca: Vec<Scoped<PathBuf>>,
    /// Certificate (PEM) to show to targets
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_PUSH_CERT",
        hide_short_help = true
    )]
    pub push_cert: Vec<Scoped<PathBuf>>,
    /// Its key (PEM)
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_PUSH_KEY",
        hide_short_help = true
    )]
    pub push_key: Vec<Scoped<PathBuf>>,
    /// File with a token, sent as `authorization: Bearer`; read again when it changes
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_PUSH_TOKEN_FILE",
        hide_short_help = true
    )]
    pub push_token_file: Vec<Scoped<PathBuf>>,
    /// File with user:password, sent as `authorization: Basic`
    #[arg(
        long,
        value_name = "FILE",
        env = "PYAGENT_PUSH_BASIC_AUTH_FILE",
        hide_short_help = true
    )]
    pub push_basic_auth_file: Vec<Scoped<PathBuf>>,
    /// Header to send, such as X-Scope-OrgID=team (repeatable)
    ///
    /// `pyroscope=X-Scope-OrgID=team` is for targets of that kind alone.
    #[arg(
        long,
        value_name = "NAME=VALUE",
        env = "PYAGENT_PUSH_HEADER",
        value_delimiter = ',',
        hide_env_values = true,
        hide_short_help = true
    )]
    pub push_header: Vec<Typed<Scoped<Header>>>,
    /// Labels that Pyroscope and Parca get beside those of the service: pid, tid, thread_name, ...
    ///
    /// Each combination of their values becomes a series of its own over there.
    #[arg(
        long,
        value_name = "LABEL",
        env = "PYAGENT_PUSH_LABEL",
        value_delimiter = ',',
        hide_short_help = true
    )]
    pub push_label: Vec<LabelName>,
}

/// What was typed, or what is wrong with it, which is told later and without it: clap repeats what it refuses, and that
/// can hold a secret.
#[derive(Debug, Clone)]
pub struct Typed<T>(Result<T, String>);

impl<T: FromStr<Err: fmt::Display>> FromStr for Typed<T> {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(
            text.parse().map_err(|error: T::Err| error.to_string()),
        ))
    }
}

impl<T: Clone> Typed<T> {
    /// What was typed after this flag.
    fn get(&self, flag: &str) -> Result<T, ExitError> {
        let error = |error: &String| ExitError::Usage(format!("{flag}: {error}"));
        self.0.clone().map_err(|it| error(&it))
    }
}

/// What is said of processes.
#[derive(Debug, Args, Clone, Default)]
pub struct LabelArgs {
    /// Name of the service of processes that declare none (OTEL_SERVICE_NAME); with one --pid, its name
    #[arg(long, value_name = "NAME", env = "PYAGENT_SERVICE_NAME", value_parser = parse_text, hide_short_help = true)]
    pub service_name: Option<String>,
    /// Label of every process, such as team=web (repeatable)
    #[arg(
        long,
        value_name = "NAME=VALUE",
        env = "PYAGENT_LABEL",
        value_delimiter = ',',
        hide_short_help = true
    )]
    pub label: Vec<Label>,
}

/// Most windows that wait for targets in memory: an hour.
const MAX_WINDOWS: usize = 360;

/// Most bytes of them.
const MAX_WINDOW_BYTES: usize = 32 << 20;

/// What targets may take for the rest once the agent ends.
const GRACE: Duration = Duration::from_secs(5);

/// The tasks that push, and what waits for them.
pub(super) struct Pushing {
    pusher: Pusher<WindowOutbox>,
    outbox: Arc<WindowOutbox>,
}

impl Pushing {
    /// Says how the targets fare.
    pub(super) fn counts(&self) -> PushCounts {
        Box::new(self.pusher.watch())
    }

    /// Passes on what closes from now on, where the recorder does not.
    pub(super) fn feed(&self, asker: AgentAsker) {
        let outbox = Arc::clone(&self.outbox);
        tokio::spawn(async move {
            let WindowOutbox::Memory(outbox) = &*outbox else {
                return;
            };
            if let Some(mut windows) = windows(&asker).await {
                loop {
                    match windows.recv().await {
                        Ok(window) => {
                            outbox.push(window);
                        }
                        Err(RecvError::Lagged(n_missed)) => outbox.miss(n_missed),
                        Err(RecvError::Closed) => break,
                    }
                }
            }
            outbox.close();
        });
    }

    /// Delivers the rest, as far as that goes quickly. The agent must have ended.
    pub(super) async fn finish(self) {
        if let WindowOutbox::Recorded(outbox) = &*self.outbox {
            outbox.close();
        }
        if self.pusher.finish(GRACE).await {
            return;
        }
        match &*self.outbox {
            WindowOutbox::Memory(outbox) => {
                let n_windows = outbox.n_windows();
                tell!("{n_windows} windows were not pushed: not every target takes them");
            }
            WindowOutbox::Recorded(_) => {
                tell!(
                    "not every target takes windows: what it lacks is pushed after the next start"
                );
            }
        }
    }
}

/// What the agent closes. It can have no time for the question.
async fn windows(asker: &AgentAsker) -> Option<Receiver<Arc<ClosedWindow>>> {
    for _ in 0..100 {
        if let Some(windows) = asker.windows().await {
            return Some(windows);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tracing::error!("nothing is pushed: the agent does not answer");
    None
}

/// Name of a label: letters, digits and underscores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelName(pub(super) String);

/// A label that the user gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    name: String,
    value: String,
}

/// Most characters of a label's value: what stores of profiles take.
const MAX_VALUE_CHARS: usize = 1024;

/// Labels that pyagent fills in, each sample with its own.
pub(super) const RESERVED: [&str; 8] = [
    label::PID,
    label::TID,
    label::THREAD_NAME,
    label::COMM,
    label::PYTHON_VERSION,
    label::CGROUP,
    label::AGE,
    label::INSTRUCTION,
];

impl FromStr for LabelName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let mut chars = name.chars();
        let is_name = chars
            .next()
            .is_some_and(|it| it.is_ascii_alphabetic() || it == '_')
            && chars.all(|it| it.is_ascii_alphanumeric() || it == '_');
        if !is_name || name.starts_with("__") || name.len() > 64 {
            let shown: String = name.chars().take(64).collect();
            return Err(format!(
                "`{}` is no name of a label: use letters, digits and single underscores, at most 64",
                escape(&shown)
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once('=')
            .ok_or("a label is NAME=VALUE, such as team=web")?;
        let LabelName(name) = name.parse()?;
        if RESERVED.contains(&name.as_str()) {
            return Err(format!("`{name}` is found by pyagent itself"));
        }
        Ok(Self {
            name,
            value: parse_text(value)?,
        })
    }
}

fn parse_text(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.chars().count() > MAX_VALUE_CHARS {
        return Err(format!("write 1 to {MAX_VALUE_CHARS} characters"));
    }
    Ok(text.to_owned())
}

impl PushArgs {
    /// Begins to push what is recorded, or what comes where nothing is; `None`: there is nobody to push to. Needs a runtime of
    /// tokio.
    pub(super) fn start(
        &self,
        recorder: Option<&WindowRecorder>,
        own: &LabelArgs,
        of_pods: &[PodLabel],
    ) -> anyhow::Result<Option<Pushing>> {
        let config = self.config(own, of_pods)?;
        if config.targets.is_empty() {
            return Ok(None);
        }
        let outbox = match recorder {
            Some(recorder) => WindowOutbox::Recorded(recorder.outbox()),
            None => {
                let names = config.targets.iter().map(ToString::to_string);
                WindowOutbox::Memory(MemoryOutbox::new(names, MAX_WINDOWS, MAX_WINDOW_BYTES))
            }
        };
        let outbox = Arc::new(outbox);
        let pusher = Pusher::start(&config, Arc::clone(&outbox))?;
        Ok(Some(Pushing { pusher, outbox }))
    }

    /// As the tasks take it; the same target twice is one. A label to push is one of pyagent's, of the user's `own`, or one that
    /// processes have `of_pods`.
    pub fn config(&self, own: &LabelArgs, of_pods: &[PodLabel]) -> Result<PushConfig, ExitError> {
        let is_there = |name: &str| {
            label::ALL.contains(&name)
                || own.label.iter().any(|label| label.name == name)
                || of_pods.iter().any(|label| label.name == name)
        };
        if let Some(LabelName(name)) = self.push_label.iter().find(|it| !is_there(&it.0)) {
            return Err(ExitError::Usage(format!(
                "--push-label: no sample has a label `{name}`: there are {}, and those of --label and --k8s-label",
                label::ALL.join(", ")
            )));
        }
        let mut targets: Vec<Target> = Vec::new();
        for target in &self.push {
            let target = target.get("--push")?;
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        let headers = self.push_header.iter();
        let headers: Result<_, _> = headers.map(|it| it.get("--push-header")).collect();
        Ok(PushConfig {
            targets,
            credentials: CredentialOptions {
                ca: self.push_ca.clone(),
                certificate: self.push_cert.clone(),
                key: self.push_key.clone(),
                token: self.push_token_file.clone(),
                basic_auth: self.push_basic_auth_file.clone(),
                headers: headers?,
            },
            labels: self.push_label.iter().map(|it| it.0.clone()).collect(),
            attributes: of_pods
                .iter()
                .map(|label| (label.name.clone(), label.source.attribute()))
                .collect(),
            pace: Pace::default(),
        })
    }
}

impl LabelArgs {
    /// As the agent takes it.
    #[must_use]
    pub fn options(&self, selection: &Selection) -> LabelOptions {
        let n_pids = selection.only_pids.as_ref().map_or(0, Vec::len);
        let labels = self.label.iter();
        LabelOptions {
            service_name: self.service_name.clone(),
            is_for_all: n_pids == 1 && !selection.subprocesses,
            labels: labels
                .map(|it| (it.name.clone(), it.value.clone()))
                .collect(),
            pod_labels: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_names_that_every_store_takes() {
        let label: Label = "team=web=1".parse().unwrap();
        assert_eq!((&*label.name, &*label.value), ("team", "web=1"));
        for wrong in [
            "team",
            "=x",
            "1a=x",
            "a-b=x",
            "__name__=x",
            "pid=1",
            "a=",
            "a= ",
            "\u{1b}=x",
        ] {
            let error = wrong.parse::<Label>().unwrap_err();
            assert!(!error.contains(['\n', '\u{1b}']), "{error}");
        }
        assert!(format!("a={}", "x".repeat(2000)).parse::<Label>().is_err());
    }

    #[test]
    fn what_is_wrong_with_a_target_or_header_is_told_without_its_secret() {
        use clap::Parser as _;
        for wrong in [
            "--push=otlp=http://me:secret@a:1",
            "--push=http://me:secret@a:1",
            "--push-header=secret",
            "--push-header=otlp=bad name=secret",
        ] {
            let cli = super::super::Cli::try_parse_from(["pyagent", "--all-python", wrong]);
            let own = LabelArgs::default();
            let error = cli
                .unwrap()
                .agent
                .push
                .config(&own, &[])
                .unwrap_err()
                .to_string();
            assert!(!error.contains("secret"), "{error}");
            assert!(error.starts_with("--push") && error.lines().count() == 1);
        }
        let header: Header = "authorization=secret".parse().unwrap();
        assert!(!format!("{header:?}").contains("secret"));
    }

    #[test]
    fn labels_to_push_are_those_that_there_are() {
        use clap::Parser as _;
        let config = |arguments: &[&str]| {
            let all = ["pyagent", "--all-python"].iter().chain(arguments);
            let agent = super::super::Cli::try_parse_from(all).unwrap().agent;
            agent
                .push
                .config(&agent.sampling.labels, &agent.pods.labels())
        };
        let pushed = config(&["--push-label=tid,team", "--label=team=web"]).unwrap();
        assert_eq!(pushed.labels, ["tid", "team"]);
        let of_pods = config(&["--push-label=team", "--k8s-label=team=example.com/team"]).unwrap();
        let attribute = (
            "team".to_owned(),
            "k8s.pod.label.example.com/team".to_owned(),
        );
        assert_eq!(
            (of_pods.labels, of_pods.attributes),
            (vec!["team".to_owned()], vec![attribute])
        );
        let error = config(&["--push-label=team"]).unwrap_err().to_string();
        assert!(
            error.contains("`team`") && error.contains("thread_name"),
            "{error}"
        );
    }

    #[test]
    fn a_name_is_for_all_only_where_there_is_one() {
        use crate::ids::Pid;
        let labels = LabelArgs::default();
        let of = |pids: Option<Vec<u32>>, subprocesses| {
            let selection = Selection {
                only_pids: pids.map(|pids| pids.into_iter().map(Pid).collect()),
                subprocesses,
                ..Selection::default()
            };
            labels.options(&selection).is_for_all
        };
        assert!(of(Some(vec![1]), false));
        assert!(!of(Some(vec![1]), true) && !of(Some(vec![1, 2]), false) && !of(None, false));
    }
}
