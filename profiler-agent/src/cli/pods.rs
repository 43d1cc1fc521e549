//! Kubernetes: whether and as whom the API server is asked, and which pods are meant, in kubectl's words.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::exit::ExitError;
use super::push::{LabelName, RESERVED};
use crate::agent::{FollowedPods, PodTeller};
use crate::kubernetes::connect::{ApiServer, Identity};
use crate::kubernetes::table::PodEvent;
use crate::kubernetes::watch::{self, Annotations, PodWatch, WatchConfig, WatchPace};
use crate::process::pod::{PodLabel, PodText};
use crate::profile::label_selector::{LabelSelector, is_key};
use crate::profile::model::label;
use crate::profile::query::ProcessFilter;
use crate::profile::selector::{NamespaceSelector, is_namespace};
use crate::track::consent::Consent;

/// The start waits so long for the first list, so that the first samples have the names of their pods.
const FIRST_LIST: Duration = Duration::from_secs(3);

/// Variables that charts set to the node's name, beside the flag's own.
const NODE_NAMES: [&str; 2] = ["NODE_NAME", "K8S_NODE_NAME"];

/// Before the key of an annotation, where a label's could stand.
const ANNOTATION: &str = "annotation:";

/// Whether the API server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kubernetes {
    /// Where something says how.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Which pods.
#[derive(Debug, Args, Clone, Default)]
pub struct PodSelectionArgs {
    /// Python processes in pods of this Kubernetes namespace (repeatable)
    #[arg(
        long,
        short,
        value_name = "NAME",
        env = "PYAGENT_NAMESPACE",
        value_delimiter = ',',
        hide_short_help = true
    )]
    pub namespace: Vec<NamespaceSelector>,
    /// Python processes in pods of all namespaces
    #[arg(long, short = 'A', conflicts_with = "namespace", env = "PYAGENT_ALL_NAMESPACES",
          value_parser = clap::builder::BoolishValueParser::new(), hide_short_help = true)]
    pub all_namespaces: bool,
    /// Python processes in pods with such labels, as app=web,tier!=db (repeatable)
    ///
    /// As `kubectl -l` takes them: =, ==, !=, in (a,b), notin (a,b), KEY, !KEY.
    #[arg(
        long,
        short = 'l',
        value_name = "LABELS",
        env = "PYAGENT_SELECTOR",
        hide_short_help = true
    )]
    pub selector: Vec<LabelSelector>,
    /// Not those in pods of this namespace (repeatable)
    #[arg(
        long,
        value_name = "NAME",
        env = "PYAGENT_EXCLUDE_NAMESPACE",
        value_delimiter = ',',
        hide_short_help = true
    )]
    pub exclude_namespace: Vec<NamespaceSelector>,
}

/// How pods are known.
#[derive(Debug, Args, Clone)]
pub struct PodsArgs {
    /// Ask the Kubernetes API server for the pods of this node: auto, on, off
    ///
    /// auto: where KUBECONFIG names a file, or in a pod whose service account's token is mounted. It needs the right to
    /// list and watch pods, and to get replicasets (apps) and jobs (batch). Nothing waits for it: while it is away, profiles
    /// have the names that are known, and /readyz says that they may be old.
    #[arg(
        long,
        value_name = "MODE",
        default_value = "auto",
        env = "PYAGENT_KUBERNETES",
        hide_short_help = true,
        hide_possible_values = true
    )]
    pub kubernetes: Kubernetes,
    /// Name of this node [default: $NODE_NAME, $K8S_NODE_NAME, the host's name]
    #[arg(
        long,
        value_name = "NAME",
        env = "PYAGENT_NODE_NAME",
        hide_short_help = true
    )]
    pub node_name: Option<String>,
    /// Labels of pods that processes get, as app or team=example.com/team (repeatable)
    ///
    /// `app` becomes the label `k8s_pod_label_app`, and `team=example.com/team` the label `team`. `annotation:KEY` in place of KEY is
    /// an annotation.
    #[arg(
        long,
        value_name = "[NAME=]KEY",
        env = "PYAGENT_K8S_LABEL",
        value_delimiter = ',',
        hide_short_help = true
    )]
    pub k8s_label: Vec<PodLabelArg>,
    /// A pod with the annotation PREFIX/profile: "false" is not profiled
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "pyagent.io",
        env = "PYAGENT_K8S_ANNOTATION_PREFIX",
        value_parser = parse_prefix,
        hide_short_help = true
    )]
    pub k8s_annotation_prefix: String,
    /// Only pods with the annotation PREFIX/profile: "true" are profiled
    #[arg(long, env = "PYAGENT_K8S_OPT_IN", value_parser = clap::builder::BoolishValueParser::new(), hide_short_help = true)]
    pub k8s_opt_in: bool,
}

/// A label or annotation of pods that processes get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLabelArg(PodLabel);

impl FromStr for PodLabelArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, source) = text.split_once('=').unzip();
        let source = source.unwrap_or(text);
        let key = source.strip_prefix(ANNOTATION);
        let (kind, key) = key.map_or(("label", source), |key| ("annotation", key));
        if !is_key(key) {
            return Err("write a label of pods, as app, or team=example.com/team".to_owned());
        }
        let name = match name {
            Some(name) => {
                let LabelName(name) = name.parse()?;
                if label::ALL.contains(&name.as_str()) || RESERVED.contains(&name.as_str()) {
                    return Err(format!("`{name}` is found by pyagent itself"));
                }
                name
            }
            None => format!("k8s_pod_{kind}_{}", in_a_name(key)),
        };
        let key = key.to_owned();
        let source = match kind {
            "label" => PodText::Label(key),
            _ => PodText::Annotation(key),
        };
        Ok(Self(PodLabel { name, source }))
    }
}

/// A key with what names of labels may have.
fn in_a_name(key: &str) -> String {
    let chars = key.chars();
    chars
        .map(|it| if it.is_ascii_alphanumeric() { it } else { '_' })
        .collect()
}

fn parse_prefix(text: &str) -> Result<String, String> {
    if is_key(&format!("{text}/profile")) {
        Ok(text.to_owned())
    } else {
        Err("write a domain, as pyagent.io".to_owned())
    }
}

impl PodSelectionArgs {
    /// Whether anything was chosen.
    pub(super) fn is_empty(&self) -> bool {
        self.namespace.is_empty() && !self.all_namespaces && self.selector.is_empty()
    }

    /// The first flag that says something of pods.
    pub(super) fn first_flag(&self) -> Option<&'static str> {
        let flags = [
            ("--namespace", !self.namespace.is_empty()),
            ("--all-namespaces", self.all_namespaces),
            ("--selector", !self.selector.is_empty()),
            ("--exclude-namespace", !self.exclude_namespace.is_empty()),
        ];
        let mut given = flags.into_iter().filter(|(_, is_given)| *is_given);
        given.next().map(|(flag, _)| flag)
    }

    /// Whether only the API server can say which processes are meant.
    fn needs_names(&self) -> bool {
        let is_named = |it: &NamespaceSelector| matches!(it, NamespaceSelector::Named(_));
        let mut namespaces = self.namespace.iter().chain(&self.exclude_namespace);
        namespaces.any(is_named) || !self.selector.is_empty()
    }

    /// Makes a filter narrower by them.
    pub(super) fn add_to(&self, filter: &mut ProcessFilter) {
        let any = self.all_namespaces.then_some(NamespaceSelector::Any);
        filter.include.namespaces = self.namespace.iter().cloned().chain(any).collect();
        filter.include.pod_labels.clone_from(&self.selector);
        filter
            .exclude
            .namespaces
            .clone_from(&self.exclude_namespace);
    }
}

impl PodsArgs {
    /// Labels of pods that processes get.
    pub(super) fn labels(&self) -> Vec<PodLabel> {
        self.k8s_label.iter().map(|it| it.0.clone()).collect()
    }

    /// Whose word counts.
    pub(super) fn consent(&self) -> Consent {
        Consent {
            annotation: Some(self.annotation()),
            is_needed: self.k8s_opt_in,
        }
    }

    fn annotation(&self) -> String {
        format!("{}/profile", self.k8s_annotation_prefix)
    }

    /// Begins to follow the pods of this node; `None`: nobody is asked. An error: it cannot be done as it was asked for.
    pub(super) async fn follow(
        &self,
        selection: &PodSelectionArgs,
    ) -> anyhow::Result<Option<PodWatch>> {
        let identity = match self.kubernetes {
            Kubernetes::Off => None,
            Kubernetes::Auto | Kubernetes::On => Identity::of_environment(),
        };
        let Some(identity) = identity else {
            return match self.kubernetes {
                Kubernetes::On => Err(crate::kubernetes::connect::ConnectError::Nowhere.into()),
                Kubernetes::Auto | Kubernetes::Off => {
                    self.check_unfollowed(selection)?;
                    Ok(None)
                }
            };
        };
        let server = match ApiServer::of(&identity).await {
            Ok(server) => server,
            Err(error) if self.kubernetes == Kubernetes::Auto => {
                self.check_unfollowed(selection)?;
                tracing::warn!("names of pods are not known: {error}");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let labels = self.k8s_label.iter().map(|it| &it.0.source);
        let config = WatchConfig {
            node: self.node()?,
            annotations: Annotations::new(labels, [self.annotation()]),
            pace: WatchPace::default(),
        };
        tracing::info!(
            "following the pods of the node {}, asking {}",
            config.node,
            server.address
        );
        Ok(Some(PodWatch::start(server, config)))
    }

    /// Flags that would do nothing are refused: somebody relies on them.
    fn check_unfollowed(&self, selection: &PodSelectionArgs) -> Result<(), ExitError> {
        let flag = match selection.first_flag() {
            Some(flag) if selection.needs_names() => flag,
            _ if self.k8s_opt_in => "--k8s-opt-in",
            _ if !self.k8s_label.is_empty() => "--k8s-label",
            _ => return Ok(()),
        };
        let why = match self.kubernetes {
            Kubernetes::Off => "--kubernetes is off",
            Kubernetes::Auto | Kubernetes::On => {
                "this is no pod with a service account, and KUBECONFIG names no file that can be used"
            }
        };
        Err(ExitError::Usage(format!(
            "{flag} needs the Kubernetes API server: {why}"
        )))
    }

    fn node(&self) -> Result<String, ExitError> {
        node(self.node_name.clone())
    }
}

/// Name of this node: what is said, else what the environment says, else the host's.
fn node(said: Option<String>) -> Result<String, ExitError> {
    let environment = || NODE_NAMES.iter().find_map(|name| std::env::var(name).ok());
    let name = said.or_else(environment).filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| {
        let uname = rustix::system::uname();
        uname.nodename().to_string_lossy().to_ascii_lowercase()
    });
    // A node's name is a domain's.
    if name.len() <= 253 && name.split('.').all(is_namespace) {
        return Ok(name);
    }
    Err(ExitError::Usage(format!(
        "`{}` is no name of a node: say it with --node-name",
        name.escape_debug()
    )))
}

/// Whether the API server tells of pods, for `doctor`; `None`: nothing says where it is.
pub(super) fn check() -> Option<Result<String, String>> {
    let identity = Identity::of_environment()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let asked = runtime.map(|runtime| runtime.block_on(ask(&identity)));
    Some(asked.unwrap_or_else(|error| Err(error.to_string())))
}

async fn ask(identity: &Identity) -> Result<String, String> {
    let node = node(std::env::var("PYAGENT_NODE_NAME").ok()).map_err(|error| error.to_string())?;
    let server = ApiServer::of(identity).await;
    let server = server.map_err(|error| error.to_string())?;
    let n_pods = watch::count(&server, &node).await;
    let n_pods = n_pods.map_err(|error| format!("{}: {error}", server.address))?;
    if n_pods == 0 {
        return Err(format!(
            "{} knows no pod on the node {node}: is that its name? (--node-name)",
            server.address
        ));
    }
    Ok(format!(
        "{} tells of {n_pods} pods on the node {node}",
        server.address
    ))
}

/// What is known of the pods before the agent begins.
pub(super) async fn first_of(watch: &mut PodWatch) -> FollowedPods {
    let first = tokio::time::timeout(FIRST_LIST, watch.next()).await;
    FollowedPods {
        first: first.ok().flatten(),
        status: watch.status(),
    }
}

/// Passes on what is told, until the agent ends.
pub(super) async fn pass_on(mut watch: PodWatch, teller: PodTeller) {
    while let Some(event) = watch.next().await {
        if let PodEvent::Is(pod) = &event {
            tracing::debug!("pod {}/{} is new or different", pod.namespace, pod.name);
        }
        if !teller.tell(event).await {
            return;
        }
    }
}

impl fmt::Display for PodLabelArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PodLabel { name, source } = &self.0;
        match source {
            PodText::Label(key) => write!(f, "{name}={key}"),
            PodText::Annotation(key) => write!(f, "{name}={ANNOTATION}{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn agent(arguments: &[&str]) -> super::super::AgentArgs {
        let all = ["pyagent"].iter().chain(arguments);
        super::super::Cli::try_parse_from(all).unwrap().agent
    }

    #[test]
    fn labels_of_pods_have_names_that_say_where_they_are_from_or_those_that_are_given() {
        let parse = |text: &str| text.parse::<PodLabelArg>().map(|it| it.0);
        let named = |name: &str, source| {
            Ok(PodLabel {
                name: name.to_owned(),
                source,
            })
        };
        let label = |key: &str| PodText::Label(key.to_owned());
        let annotation = |key: &str| PodText::Annotation(key.to_owned());
        assert_eq!(parse("app"), named("k8s_pod_label_app", label("app")));
        assert_eq!(
            parse("example.com/team"),
            named("k8s_pod_label_example_com_team", label("example.com/team"))
        );
        assert_eq!(
            parse("team=example.com/team"),
            named("team", label("example.com/team"))
        );
        assert_eq!(
            parse("annotation:a/b"),
            named("k8s_pod_annotation_a_b", annotation("a/b"))
        );
        assert_eq!(parse("x=annotation:b"), named("x", annotation("b")));
        for wrong in [
            "",
            "=app",
            "team=",
            "a-b=app",
            "pid=app",
            "service_name=app",
            "a b",
            "team=a=b",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pods_are_chosen_in_kubectls_words() {
        let args = agent(&["-n", "shop,store", "-l", "app in (a,b),tier!=db"]).pod_selection;
        let mut filter = ProcessFilter::default();
        args.add_to(&mut filter);
        let shown: Vec<String> = filter
            .include
            .namespaces
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(shown, ["shop", "store"]);
        assert_eq!(
            filter.include.pod_labels[0].to_string(),
            "app in (a,b),tier!=db"
        );
        assert!(!args.is_empty() && args.needs_names());
        let args = agent(&["-A"]).pod_selection;
        assert!(!args.is_empty() && !args.needs_names());
        args.add_to(&mut filter);
        assert_eq!(filter.include.namespaces, [NamespaceSelector::Any]);
        assert!(super::super::Cli::try_parse_from(["pyagent", "-A", "-n", "shop"]).is_err());
        assert!(agent(&["--all-python"]).pod_selection.is_empty());
    }

    #[test]
    fn flags_that_would_do_nothing_are_refused() {
        let refused = |arguments: &[&str]| {
            let off = ["--kubernetes", "off"].iter().chain(arguments).copied();
            let args = agent(&off.collect::<Vec<_>>());
            args.pods.check_unfollowed(&args.pod_selection).err()
        };
        for flag in [
            &["--namespace", "shop"][..],
            &["--selector", "app=web"],
            &["--k8s-opt-in"],
            &["--k8s-label", "app"],
        ] {
            let error = refused(flag).unwrap().to_string();
            assert!(error.contains(flag[0]) && error.contains("off"), "{error}");
        }
        // What is in a pod is known without it.
        assert!(refused(&["-A"]).is_none());
        assert!(refused(&["--all-python"]).is_none());
    }

    #[test]
    fn a_nodes_name_is_said_or_the_hosts() {
        let node = |arguments: &[&str]| agent(arguments).pods.node();
        assert_eq!(
            node(&["--node-name", "ip-10-0-0-1.ec2.internal"]).unwrap(),
            "ip-10-0-0-1.ec2.internal"
        );
        for wrong in ["a/b", "A", "a b", "a..b"] {
            assert!(node(&["--node-name", wrong]).is_err(), "{wrong}");
        }
        assert!(parse_prefix("example.com").is_ok() && parse_prefix("a/b").is_err());
    }
}
