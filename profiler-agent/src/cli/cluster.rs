//! `--k8s`: which agents of a cluster are asked, and for what of their nodes.

pub(super) mod ask;
mod pids;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;
use http::HeaderValue;
use regex::Regex;

use self::ask::{Gathered, Member, Question, ask};
use self::pids::Pids;
use self::way::{Direct, Forwarded};
use super::connect::ShownArgs;
use super::exit::{self, ExitError};
use super::parse_duration;
use super::pods::PodSelectionArgs;
use crate::config::DEFAULT_ADDRESS;
use crate::format::escape;
use crate::kubernetes::agents::{AGENT_LABELS, AgentPod, AgentsError};
use crate::kubernetes::connect::{ApiServer, ConnectError, Identity};
use crate::kubernetes::object::{ObjectKind, ObjectName};
use crate::kubernetes::places::{Choice, Places, When};
use crate::process::pod::WorkloadKind;
use crate::profile::label_selector::LabelSelector;
use crate::profile::model::{ProfileType, label};
use crate::profile::query::{LabelFilter, ProcessFilter, TimeRange, parse_pattern};
use crate::profile::selector::NamespaceSelector;
use crate::serve::client::{AgentAddress, Dial, PullTime};

/// The port of agents that a service's name leads to.
const DEFAULT_PORT: u16 = 7099;

/// A view that goes on waits so long for an agent that is slow, and then shows what the others have.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// Most nodes whose failure is told in a line of its own.
const MAX_TOLD: usize = 20;

/// Most pods of a node that its agent is told of by their UIDs: a pattern has a bound.
const MAX_NAMED_PODS: usize = 100;

/// Which cluster, and which of its agents.
#[derive(Debug, Args, Clone)]
pub struct ClusterArgs {
    /// Ask a Kubernetes cluster's agents; ADDR is a workload: deploy/web
    ///
    /// All agents that have to be are asked at the same time, and what they send becomes one profile. The cluster is found as
    /// kubectl finds it, and agents are reached through its API server, as kubectl port-forward does. Namespaces (-n, -A) and labels
    /// (-l) are those of kubectl too; without -n it is the context's.
    #[arg(long)]
    pub k8s: bool,
    /// With --k8s: this context of the kubeconfig
    #[arg(long, value_name = "NAME", requires = "k8s", hide_short_help = true)]
    pub context: Option<String>,
    /// With --k8s: this kubeconfig [default: $KUBECONFIG, ~/.kube/config, the pod's service account]
    #[arg(long, value_name = "FILE", requires = "k8s", hide_short_help = true)]
    pub kubeconfig: Option<PathBuf>,
    /// With --k8s: the namespace of the agents [default: looked for in all]
    #[arg(long, value_name = "NAME", requires = "k8s", hide_short_help = true)]
    pub k8s_agents_namespace: Option<NamespaceSelector>,
    /// With --k8s: the labels of the agents' pods, where they are not the chart's
    #[arg(long, value_name = "LABELS", default_value = AGENT_LABELS, requires = "k8s", hide_short_help = true)]
    pub k8s_agents_selector: LabelSelector,
    /// With --k8s: connect to the addresses of the agents' pods, not through the API server [default: in a pod]
    #[arg(long, requires = "k8s", hide_short_help = true)]
    pub k8s_direct: bool,
    /// With --k8s: ask all agents that the name of a headless service leads to, as pyagent.pyagent.svc:7099
    ///
    /// Needs no rights of the API server. They are spoken to by TLS, unless it begins with http://.
    #[arg(
        long,
        value_name = "HOST[:PORT]",
        requires = "k8s",
        conflicts_with_all = ["k8s_direct", "k8s_agents_namespace"],
        hide_short_help = true
    )]
    pub k8s_service: Option<String>,
    /// With --k8s: how long an agent may take to answer, and to send its profile
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration, requires = "k8s", hide_short_help = true)]
    pub k8s_timeout: Duration,
}

/// What is asked of a cluster.
pub(super) struct ClusterQuestion<'a> {
    pub(super) profile_type: ProfileType,
    /// Without what is said of pods.
    pub(super) filter: ProcessFilter,
    pub(super) pods: &'a PodSelectionArgs,
    pub(super) object: Option<ObjectName>,
    pub(super) labels: Vec<LabelFilter>,
    pub(super) time: PullTime,
}

/// The agents that are asked, and what they are asked for.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) members: Vec<Arc<Member>>,
    pub(super) question: Question,
    /// Nodes with pods that are meant, and no agent.
    without_agent: Vec<String>,
    remarks: Vec<String>,
    pids: Mutex<Pids>,
    /// What is meant, in words.
    pub(super) shown: String,
}

/// The object that is meant by what stands in the place of an address.
pub(super) fn object(address: &str) -> Result<Option<ObjectName>, ExitError> {
    let of_environment = std::env::var("PYAGENT_ADDR").ok();
    if address == DEFAULT_ADDRESS || of_environment.as_deref() == Some(address) || address == "pods"
    {
        return Ok(None);
    }
    address.parse().map(Some).map_err(ExitError::Usage)
}

/// Whether a text names an object with its kind, so that it is no file.
pub(super) fn is_object(text: &str) -> bool {
    text.contains('/') && text.parse::<ObjectName>().is_ok()
}

impl ClusterArgs {
    /// Finds who is to be asked.
    pub(super) async fn fleet(
        &self,
        shown: &ShownArgs,
        asked: ClusterQuestion<'_>,
    ) -> Result<Fleet> {
        allow_many_connections();
        let ClusterQuestion {
            profile_type,
            mut filter,
            pods,
            object,
            mut labels,
            time,
        } = asked;
        let cluster = match &self.k8s_service {
            None => Some(self.cluster().await?),
            Some(_) => None,
        };
        pods.add_to(&mut filter);
        let default = cluster.as_ref().map(|it| it.server.namespace.as_str());
        let choice = choice(pods, object, default)?;
        if filter.include.namespaces.is_empty() {
            let names = choice.namespaces.iter().cloned();
            filter.include.namespaces = names.map(NamespaceSelector::Named).collect();
        }
        labels.extend(choice.object.as_ref().map(of_object));
        let when = match time {
            PullTime::Next(_) => When::Now,
            PullTime::Recorded(range) => When::Since(since(range)),
        };
        let mut question = Question {
            profile_type,
            filter,
            labels,
            time,
            pods: None,
            limit: self.k8s_timeout,
            look: None,
        };
        let shown_choice = shown_choice(&choice);
        let Some(cluster) = cluster else {
            if when != When::Now && !choice.selectors.is_empty() {
                let message = "--selector in what was recorded needs the API server, which --k8s-service does not ask: name a workload, or leave --k8s-service out";
                return Err(ExitError::Usage(message.to_owned()).into());
            }
            return Ok(Fleet {
                members: self.of_service(shown).await?,
                question,
                without_agent: Vec::new(),
                remarks: Vec::new(),
                pids: Mutex::default(),
                shown: shown_choice,
            });
        };
        let server = &cluster.server;
        let namespace = match &self.k8s_agents_namespace {
            Some(NamespaceSelector::Named(name)) => Some(name.as_str()),
            Some(NamespaceSelector::Any) | None => None,
        };
        let selector = self.k8s_agents_selector.to_string();
        let (places, agents) = tokio::try_join!(
            server.places(&choice, when),
            server.agents(namespace, &selector)
        )
        .map_err(with_code)?;
        if when != When::Now && !choice.selectors.is_empty() {
            // Labels of pods are known of those that run; an agent cannot tell them of what it recorded.
            question.filter.include.pod_labels.clear();
            let uids = places.pods.iter().map(|(uid, _)| uid.clone());
            question.pods = Some(uids.collect());
        }
        let (members, without_agent) = self.members(shown, &cluster, agents, &places, &question)?;
        if members.is_empty() && without_agent.is_empty() {
            return Err(
                ExitError::NothingMatched(format!("there is no pod of {shown_choice}")).into(),
            );
        }
        Ok(Fleet {
            members,
            question,
            without_agent,
            remarks: places.remarks,
            pids: Mutex::default(),
            shown: shown_choice,
        })
    }

    async fn cluster(&self) -> Result<Cluster> {
        let identity = Identity::of_user(self.kubeconfig.as_deref());
        let usage = |error: ConnectError| ExitError::Usage(error.to_string());
        let identity = identity.ok_or_else(|| usage(ConnectError::NoCluster))?;
        let asked = ApiServer::of_user(&identity, self.context.as_deref()).await;
        let (server, bearer) = asked.map_err(usage)?;
        Ok(Cluster {
            is_inside: identity == Identity::ServiceAccount,
            server: Arc::new(server),
            bearer,
        })
    }

    /// The agents of the nodes that are meant, and the nodes that have none.
    fn members(
        &self,
        shown: &ShownArgs,
        cluster: &Cluster,
        mut agents: BTreeMap<String, AgentPod>,
        places: &Places,
        question: &Question,
    ) -> Result<(Vec<Arc<Member>>, Vec<String>)> {
        let mut without_agent = Vec::new();
        if let Some(nodes) = &places.nodes {
            agents.retain(|node, _| nodes.contains(node));
            let missing = nodes.iter().filter(|node| !agents.contains_key(*node));
            without_agent.extend(missing.cloned());
        }
        let mut members = Vec::new();
        let mut first: Option<AgentAddress> = None;
        for (node, pod) in agents {
            let host = format!("{}.{}.svc", daemon_set(&pod), pod.namespace);
            let has_tls = pod.has_tls;
            let is_direct = self.k8s_direct || (cluster.is_inside && pod.is_open);
            let dial: Arc<dyn Dial> = match pod.ip.filter(|_| is_direct) {
                Some(ip) => Arc::new(Direct(SocketAddr::new(ip, pod.port))),
                None => Arc::new(Forwarded {
                    server: Arc::clone(&cluster.server),
                    pod,
                }),
            };
            let alike = first
                .as_ref()
                .filter(|first| first.has_tls() == has_tls || shown.is_about_tls());
            let address = match alike {
                Some(first) => first.sibling(node.clone(), host, dial),
                None => {
                    let address = AgentAddress::through(node.clone(), host, dial, has_tls);
                    shown.show(address).map(|address| match &cluster.bearer {
                        Some(bearer) => address.with_bearer(bearer),
                        None => address,
                    })
                }
            };
            let address = address.map_err(|error| ExitError::Usage(error.to_string()))?;
            first.get_or_insert_with(|| address.clone());
            let mut member = Member::new(node, true, address);
            if question.pods.is_some() {
                member.labels.extend(of_pods(places, &member.node));
            }
            members.push(Arc::new(member));
        }
        Ok((members, without_agent))
    }

    /// The agents that the name of a service leads to.
    async fn of_service(&self, shown: &ShownArgs) -> Result<Vec<Arc<Member>>> {
        let service = self.k8s_service.as_deref().unwrap_or_default();
        let (has_tls, place) = match service.split_once("://") {
            Some(("http", place)) => (false, place),
            Some(("https", place)) => (true, place),
            Some(_) | None => (true, service),
        };
        let (host, port) = place.split_once(':').unwrap_or((place, ""));
        let port = if port.is_empty() {
            Ok(DEFAULT_PORT)
        } else {
            port.parse()
        };
        let Ok(port) = port else {
            let message = format!("`{}` is no host and port of a service", escape(service));
            return Err(ExitError::Usage(message).into());
        };
        let found = tokio::net::lookup_host((host, port)).await;
        let found = found.map_err(|error| {
            anyhow::anyhow!(
                "the service {} is not known here: {}",
                escape(host),
                escape(&error.to_string())
            )
        })?;
        let addresses: BTreeSet<SocketAddr> = found.collect();
        let mut members = Vec::new();
        let mut first: Option<AgentAddress> = None;
        for address in addresses {
            let (name, host) = (address.to_string(), host.to_owned());
            let dial: Arc<dyn Dial> = Arc::new(Direct(address));
            let agent = match &first {
                Some(first) => first.sibling(name.clone(), host, dial),
                None => shown.show(AgentAddress::through(name.clone(), host, dial, has_tls)),
            };
            let agent = agent.map_err(|error| ExitError::Usage(error.to_string()))?;
            first.get_or_insert_with(|| agent.clone());
            members.push(Arc::new(Member::new(name, false, agent)));
        }
        Ok(members)
    }
}

/// A cluster, and as whom it is asked.
struct Cluster {
    server: Arc<ApiServer>,
    bearer: Option<HeaderValue>,
    /// This is one of its pods.
    is_inside: bool,
}

impl Fleet {
    /// Asks all of them, and tells who did not answer. An error: nobody did, or nobody has what was asked for.
    pub(super) async fn gather(&self) -> Result<Gathered> {
        let question = self.question.clone();
        self.ask(question).await
    }

    async fn ask(&self, question: Question) -> Result<Gathered> {
        let missing = self.without_agent.iter();
        let no_agent = || "pods that are meant run there, and no agent does".to_owned();
        let missing = missing.map(|node| (node.clone(), no_agent()));
        ask(
            &self.members,
            question,
            self.remarks.clone(),
            missing.collect(),
        )
        .await
    }

    /// Samples from now on, for a view that goes on: process ids are told apart, those of nodes that have the same too.
    pub(super) async fn look(&self, length: Duration) -> Result<Gathered> {
        let mut question = self.question.clone();
        question.time = PullTime::Next(length);
        question.look = Some(length + LOOK_LIMIT);
        let mut gathered = self.ask(question).await?;
        let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        pids.tell_apart(&mut gathered.profile);
        Ok(gathered)
    }

    /// The same for a command that ends with it: tells in a line each who did not answer.
    pub(super) async fn gather_and_tell(&self) -> Result<Gathered> {
        if let PullTime::Next(duration) = self.question.time {
            tell!(
                "pulling {:.1} s of {} from {}",
                duration.as_secs_f64(),
                self.shown,
                nodes(self.members.len())
            );
        }
        let gathered = tokio::select! {
            gathered = self.gather() => gathered?,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        };
        for (node, why) in gathered.failed.iter().take(MAX_TOLD) {
            tell!("  {node}: {why}");
        }
        let n_more = gathered.failed.len().saturating_sub(MAX_TOLD);
        if n_more > 0 {
            tell!("  {} did not answer either", nodes(n_more));
        }
        if gathered.n_with_samples + gathered.n_without == 0 {
            anyhow::bail!("none of {} answered", nodes(gathered.failed.len()));
        }
        if gathered.n_with_samples == 0 && gathered.failed.is_empty() {
            let message = format!(
                "no agent has samples of {}: {} answered",
                self.shown,
                nodes(gathered.n_without)
            );
            return Err(ExitError::NothingMatched(message).into());
        }
        Ok(gathered)
    }
}

impl Gathered {
    /// The code that a command ends with which has shown it: something failed when somebody did not answer.
    pub(super) fn exit_code(&self) -> u8 {
        if self.failed.is_empty() {
            exit::OK
        } else {
            exit::FAILED
        }
    }

    /// How many nodes are in it, in words.
    pub(super) fn nodes(&self) -> String {
        nodes(self.n_with_samples)
    }
}

fn nodes(n: usize) -> String {
    match n {
        1 => "1 node".to_owned(),
        n => format!("{n} nodes"),
    }
}

/// What is wrong, with the code that it ends with.
fn with_code(error: AgentsError) -> anyhow::Error {
    match error {
        AgentsError::Unknown(_) | AgentsError::Forbidden { .. } | AgentsError::MayNotList(_) => {
            ExitError::Forbidden(error.to_string()).into()
        }
        AgentsError::SeveralNamespaces(_) | AgentsError::SeveralAgents(..) => {
            ExitError::Usage(error.to_string()).into()
        }
        AgentsError::Api(_) | AgentsError::None(_) | AgentsError::NotRunning { .. } => error.into(),
    }
}

/// The name that the chart's service has too, which certificates are for.
fn daemon_set(pod: &AgentPod) -> &str {
    match pod.daemon_set.as_str() {
        "" => "pyagent",
        name => name,
    }
}

fn choice(
    pods: &PodSelectionArgs,
    object: Option<ObjectName>,
    default: Option<&str>,
) -> Result<Choice, ExitError> {
    let named = |selectors: &[NamespaceSelector]| -> Vec<String> {
        let names = selectors.iter().filter_map(|it| match it {
            NamespaceSelector::Named(name) => Some(name.clone()),
            NamespaceSelector::Any => None,
        });
        names.collect()
    };
    let is_any = pods.all_namespaces || pods.namespace.contains(&NamespaceSelector::Any);
    if is_any && object.is_some() {
        let message = "a name is of one namespace: leave -A out, and give it with -n";
        return Err(ExitError::Usage(message.to_owned()));
    }
    let mut namespaces = if is_any {
        Vec::new()
    } else {
        named(&pods.namespace)
    };
    if namespaces.is_empty() && !is_any && pods.exclude_namespace.is_empty() {
        namespaces.extend(default.map(str::to_owned));
    }
    Ok(Choice {
        namespaces,
        not_namespaces: named(&pods.exclude_namespace),
        selectors: pods.selector.iter().map(ToString::to_string).collect(),
        object,
    })
}

fn shown_choice(choice: &Choice) -> String {
    let mut text = match &choice.object {
        Some(object) => object.to_string(),
        None => "all pods".to_owned(),
    };
    if !choice.selectors.is_empty() {
        text.extend([" with ", &choice.selectors.join(",")]);
    }
    match choice.namespaces.as_slice() {
        [] => {}
        names => text.extend([" in ", &names.join(", ")]),
    }
    escape(&text).into_owned()
}

/// The label that samples of an object have.
fn of_object(object: &ObjectName) -> LabelFilter {
    let name = match object.kind {
        ObjectKind::Pod => label::K8S_POD_NAME,
        ObjectKind::Workload(kind) => match kind {
            WorkloadKind::Deployment => label::K8S_DEPLOYMENT_NAME,
            WorkloadKind::ReplicaSet => label::K8S_REPLICASET_NAME,
            WorkloadKind::StatefulSet => label::K8S_STATEFULSET_NAME,
            WorkloadKind::DaemonSet => label::K8S_DAEMONSET_NAME,
            WorkloadKind::CronJob => label::K8S_CRONJOB_NAME,
            WorkloadKind::Job => label::K8S_JOB_NAME,
        },
    };
    LabelFilter {
        name: name.to_owned(),
        pattern: exactly([object.name.as_str()]).expect("a name is at most 253 bytes long"),
    }
}

/// The label that samples of the pods of a node have; `None`: they are too many to be said.
fn of_pods(places: &Places, node: &str) -> Option<LabelFilter> {
    let here = places.pods.iter().filter(|(_, it)| it == node);
    let uids: Vec<&str> = here.map(|(uid, _)| uid.as_str()).collect();
    let pattern = (uids.len() <= MAX_NAMED_PODS).then(|| exactly(uids))??;
    Some(LabelFilter {
        name: label::K8S_POD_UID.to_owned(),
        pattern,
    })
}

/// A pattern that is one of these texts.
fn exactly<'a>(texts: impl IntoIterator<Item = &'a str>) -> Option<Regex> {
    let texts: Vec<String> = texts.into_iter().map(regex::escape).collect();
    parse_pattern(&format!("^({})$", texts.join("|"))).ok()
}

/// From how long ago on.
fn since(range: TimeRange) -> Duration {
    match range {
        TimeRange::Last(last) => last,
        TimeRange::Between { from, .. } => from.map_or(Duration::MAX, |from| {
            SystemTime::now().duration_since(from).unwrap_or_default()
        }),
    }
}

/// A connection is a descriptor, and shells allow 1,024 of them.
fn allow_many_connections() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With fewer it works for fewer nodes.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
