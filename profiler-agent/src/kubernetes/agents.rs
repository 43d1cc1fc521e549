//! Which agents a cluster has: pods by their labels, where each listens, and whether it speaks TLS there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kube::Client;
use serde::Deserialize;

use super::list;
use super::pods::{Metadata, is_name};

/// The labels of the chart's pods, whatever the release and its objects are called.
pub const AGENT_LABELS: &str =
    "app.kubernetes.io/part-of=pyagent,app.kubernetes.io/component=profiler";

/// Most agents: one a node, and a cluster has 5,000 nodes.
pub const MAX_AGENTS: usize = 10_000;

/// The port of an agent that says nothing of it.
const DEFAULT_PORT: u16 = 7099;

/// Where agents are said to listen, and whether with a certificate: the flags that a pod gives as variables.
const LISTEN: (&str, &str) = ("PYAGENT_LISTEN", "--listen");
const CERTIFICATE: (&str, &str) = ("PYAGENT_TLS_CERT", "--tls-cert");

/// The phase of a pod that has a node and has started.
const RUNNING: &str = "Running";

/// An agent's pod that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that it runs on, and profiles.
    pub node: String,
    /// Its address, when it has one.
    pub ip: Option<IpAddr>,
    /// Its port for profiles.
    pub port: u16,
    /// Whether that is open to others, or on its loopback address alone.
    pub is_open: bool,
    /// Whether it speaks TLS.
    pub has_tls: bool,
    /// The DaemonSet that it belongs to; empty: none.
    pub daemon_set: String,
    /// Whether it is ready to be asked.
    is_ready: bool,
}

/// Why it is not known whom to ask.
#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    /// The API server says no, or nothing.
    #[error("pods cannot be listed: {0}")]
    Api(String),
    /// The API server does not know who asks.
    #[error(
        "the API server does not take the credentials: {0}; get new ones, kubectl needs them too"
    )]
    Unknown(String),
    /// Pods that are meant may not be looked for.
    #[error(
        "the pods that are meant cannot be looked for: {0}; it needs the right to list pods there"
    )]
    MayNotList(String),
    /// There may not be asked for them.
    #[error("agents cannot be looked for: {reason}; {remedy}get the right to list pods there")]
    Forbidden {
        /// What the API server says.
        reason: String,
        /// What else helps.
        remedy: &'static str,
    },
    /// There is none.
    #[error(
        "no agent runs {0}: install one (docs/kubernetes.md), or say which pods they are with --k8s-agents-namespace or --k8s-agents-selector"
    )]
    None(String),
    /// There are, but none runs.
    #[error(
        "agents {place} do not run, as {name}: wait, or look why (kubectl --namespace {namespace} describe pod {name})"
    )]
    NotRunning {
        /// Where was looked.
        place: String,
        /// Of one of them.
        namespace: String,
        /// The same.
        name: String,
    },
    /// Each would have profiles of its own.
    #[error(
        "agents of the DaemonSets {0} run on {1}: choose those of one by their labels, as --k8s-agents-selector app.kubernetes.io/instance=RELEASE"
    )]
    SeveralAgents(String, String),
    /// Which one is trusted is the user's to say: any pod can have these labels.
    #[error("agents run in several namespaces, {0}: name one with --k8s-agents-namespace")]
    SeveralNamespaces(String),
}

impl AgentsError {
    /// The same, with where the API server is: a wrong address is what it mostly is.
    pub(super) fn at(self, address: &str) -> Self {
        match self {
            Self::Api(reason) => Self::Api(format!("{reason}; the API server is {address}")),
            other => other,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Pod {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
    containers: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Variable {
    name: String,
    value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
}

/// Looks for agents: in this namespace, or all, by these labels. One a node, by the node's name.
pub(super) async fn agents(
    client: &Client,
    namespace: Option<&str>,
    labels: &str,
) -> Result<BTreeMap<String, AgentPod>, AgentsError> {
    let path = match namespace {
        Some(namespace) => format!("/api/v1/namespaces/{namespace}/pods"),
        None => "/api/v1/pods".to_owned(),
    };
    let query = [("labelSelector", labels)];
    let mut found: BTreeMap<String, AgentPod> = BTreeMap::new();
    let mut namespaces: BTreeMap<String, usize> = BTreeMap::new();
    let mut several = None;
    let mut not_running = None;
    let take = |pod: Pod| {
        if pod.status.phase != RUNNING {
            if is_name(&pod.metadata.namespace) && is_name(&pod.metadata.name) {
                not_running.get_or_insert((pod.metadata.namespace, pod.metadata.name));
            }
            return;
        }
        let Some(agent) = agent(pod) else {
            return;
        };
        *namespaces.entry(agent.namespace.clone()).or_default() += 1;
        match found.get(&agent.node) {
            Some(other) if other.daemon_set != agent.daemon_set => {
                let names = format!("{} and {}", other.daemon_set, agent.daemon_set);
                several.get_or_insert((names, agent.node));
            }
            // While one takes over from another.
            Some(other) if other.is_ready >= agent.is_ready => {}
            Some(_) | None => {
                found.insert(agent.node.clone(), agent);
            }
        }
    };
    let listed = list::each(client, &path, &query, MAX_AGENTS, take).await;
    listed.map_err(|error| match error {
        error if error.is_about_the_user() => AgentsError::Unknown(error.to_string()),
        error if error.is_forbidden() => AgentsError::Forbidden {
            reason: error.to_string(),
            remedy: match namespace {
                Some(_) => "",
                None => "name their namespace with --k8s-agents-namespace, or ",
            },
        },
        error => AgentsError::Api(error.to_string()),
    })?;
    if namespaces.len() > 1 {
        let names = namespaces.into_keys().take(5).collect::<Vec<_>>();
        return Err(AgentsError::SeveralNamespaces(names.join(", ")));
    }
    if let Some((daemon_sets, node)) = several {
        return Err(AgentsError::SeveralAgents(daemon_sets, node));
    }
    if found.is_empty() {
        let place = namespace.map_or_else(
            || "in this cluster".to_owned(),
            |namespace| format!("in the namespace {namespace}"),
        );
        return Err(match not_running {
            Some((namespace, name)) => AgentsError::NotRunning {
                place,
                namespace,
                name,
            },
            None => AgentsError::None(place),
        });
    }
    Ok(found)
}

/// `None`: it cannot be asked.
fn agent(pod: Pod) -> Option<AgentPod> {
    let Pod {
        metadata,
        spec,
        status,
    } = pod;
    let names = [&metadata.namespace, &metadata.name, &spec.node_name];
    if !names.into_iter().all(|name| is_name(name)) {
        return None;
    }
    let listen = spec.said(LISTEN);
    let port = listen.and_then(|it| it.rsplit_once(':')?.1.parse().ok());
    let host = listen.and_then(|it| it.rsplit_once(':')).map(|(it, _)| it);
    let is_loopback = |host: &str| {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    };
    let mut conditions = status.conditions.iter().flatten();
    let is_ready = conditions.any(|it| it.r#type == "Ready" && it.status == "True");
    let owner = metadata.owner();
    Some(AgentPod {
        port: port.unwrap_or(DEFAULT_PORT),
        is_open: host.is_some_and(|host| !is_loopback(host)),
        has_tls: spec.said(CERTIFICATE).is_some(),
        ip: status.pod_ip.and_then(|ip| ip.parse().ok()),
        daemon_set: owner.map(|owner| owner.name).unwrap_or_default(),
        is_ready,
        namespace: metadata.namespace,
        name: metadata.name,
        node: spec.node_name,
    })
}

impl Spec {
    /// What its containers are told by a variable, or by a flag.
    fn said(&self, (variable, flag): (&str, &str)) -> Option<&str> {
        let mut containers = self.containers.iter();
        containers.find_map(|container| {
            let mut variables = container.env.iter().flatten();
            let told = || variables.find(|it| it.name == variable)?.value.as_deref();
            flag_value(container.args.as_deref().unwrap_or_default(), flag).or_else(told)
        })
    }
}

/// The value of a flag, written as one word or as two.
fn flag_value<'a>(arguments: &'a [String], flag: &str) -> Option<&'a str> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let rest = argument.strip_prefix(flag);
        match rest {
            Some("") => return arguments.next().map(String::as_str),
            Some(rest) if rest.starts_with('=') => return Some(&rest[1..]),
            Some(_) | None => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fake::{Answer, FakeServer};
    use super::*;

    fn pod(namespace: &str, name: &str, node: &str, ready: &str) -> Value {
        json!({
            "metadata": {"uid": "u", "name": name, "namespace": namespace, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "pyagent", "controller": true}]},
            "spec": {"nodeName": node, "containers": [{"name": "pyagent", "args": ["--all-python"], "env": [
                {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "PYAGENT_LISTEN", "value": "127.0.0.1:7099"}]}]},
            "status": {"phase": "Running", "podIP": "10.1.0.7",
                       "conditions": [{"type": "Ready", "status": ready}]},
        })
    }

    fn list(items: &[Value]) -> Answer {
        Answer::json(200, &json!({"metadata": {}, "items": items}))
    }

    async fn found(items: &[Value]) -> Result<BTreeMap<String, AgentPod>, AgentsError> {
        let server = FakeServer::start().await;
        server.answer("/api/v1/pods", list(items));
        agents(&server.client(), None, AGENT_LABELS).await
    }

    #[tokio::test]
    async fn agents_that_do_not_run_and_those_of_two_releases_are_told_of() {
        let mut starting = pod("pyagent", "a", "n1", "False");
        starting["status"]["phase"] = json!("Pending");
        let error = found(&[starting]).await.unwrap_err().to_string();
        assert!(error.contains("describe pod a"), "{error}");
        let mut other = pod("pyagent", "b", "n1", "True");
        other["metadata"]["ownerReferences"][0]["name"] = json!("second");
        let pods = [pod("pyagent", "a", "n1", "True"), other];
        let error = found(&pods).await.unwrap_err().to_string();
        assert!(error.contains("pyagent and second run on n1"), "{error}");
    }

    #[tokio::test]
    async fn there_is_one_agent_a_node_the_one_that_is_ready() {
        let pods = [
            pod("pyagent", "old", "n1", "False"),
            pod("pyagent", "new", "n1", "True"),
            pod("pyagent", "other", "n2", "False"),
            pod("pyagent", "nowhere", "", "True"),
        ];
        let found = found(&pods).await.unwrap();
        let names = found
            .iter()
            .map(|(node, agent)| (node.as_str(), agent.name.as_str()));
        assert_eq!(names.collect::<Vec<_>>(), [("n1", "new"), ("n2", "other")]);
        let agent = &found["n1"];
        assert_eq!(
            (agent.port, agent.is_open, agent.has_tls),
            (7099, false, false)
        );
        assert_eq!(agent.daemon_set, "pyagent");
        assert_eq!(agent.ip, "10.1.0.7".parse().ok());
    }

    #[tokio::test]
    async fn a_pod_says_where_it_listens_and_how() {
        let mut open = pod("pyagent", "a", "n1", "True");
        open["spec"]["containers"][0]["env"] = json!([
            {"name": "PYAGENT_LISTEN", "value": "0.0.0.0:7443"},
            {"name": "PYAGENT_TLS_CERT", "value": "/etc/pyagent/tls/tls.crt"}]);
        let mut by_flags = pod("pyagent", "b", "n2", "True");
        by_flags["spec"]["containers"][0]["args"] =
            json!(["--listen=[::1]:7000", "--tls-cert", "/x"]);
        let found = found(&[open, by_flags]).await.unwrap();
        let said = |node: &str| {
            let agent = &found[node];
            (agent.port, agent.is_open, agent.has_tls)
        };
        assert_eq!(said("n1"), (7443, true, true));
        assert_eq!(said("n2"), (7000, false, true));
    }

    #[tokio::test]
    async fn whom_to_trust_is_not_guessed() {
        let pods = [
            pod("pyagent", "a", "n1", "True"),
            pod("evil", "b", "n2", "True"),
        ];
        let error = found(&pods).await.unwrap_err().to_string();
        assert!(error.contains("evil, pyagent"), "{error}");
        assert!(matches!(found(&[]).await, Err(AgentsError::None(_))));
        let server = FakeServer::start().await;
        server.answer("/api/v1/namespaces/x/pods", Answer::status(403, "no"));
        let error = agents(&server.client(), Some("x"), "a=b")
            .await
            .unwrap_err();
        assert!(matches!(error, AgentsError::Forbidden { .. }), "{error}");
        assert!(
            !error.to_string().contains("--k8s-agents-namespace"),
            "{error}"
        );
        server.answer("/api/v1/namespaces/x/pods", Answer::status(401, "no"));
        let error = agents(&server.client(), Some("x"), "a=b")
            .await
            .unwrap_err();
        assert!(matches!(error, AgentsError::Unknown(_)), "{error}");
        server.answer(
            "/api/v1/namespaces/x/pods",
            list(&[pod("x", "a", "n1", "True")]),
        );
        assert_eq!(
            agents(&server.client(), Some("x"), "a=b")
                .await
                .unwrap()
                .len(),
            1
        );
        let asked = server.asked_in_full().pop().unwrap();
        assert!(asked.contains("labelSelector=a%3Db"), "{asked}");
    }
}
