//! `/sd`: the processes as targets of a scraper, in the JSON of Prometheus's HTTP service discovery, see
//! <https://prometheus.io/docs/prometheus/latest/http_sd/>.
//!
//! A target is this agent with the process's id as a parameter, so that a scraper of profiles has a target each process, under
//! the name of its service, and not one an agent.

use std::collections::BTreeMap;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};
use serde::Serialize;

use super::query::{ContainerInfo, PodInfo, ProcessInfo, ProcessState};

/// Media type of the answer.
pub(super) const CONTENT_TYPE: &str = "application/json";

/// A group of targets with the labels that they share.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct TargetGroup {
    targets: [String; 1],
    labels: BTreeMap<String, String>,
}

/// Where the client found this agent: host and port.
pub(super) fn authority(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let host = headers.get(header::HOST);
    let of_host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let authority = uri.authority().cloned().or(of_host)?;
    // A name and password before the host are nobody's business.
    let (host, port) = (authority.host(), authority.port_u16());
    Some(port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// The processes that are profiled.
pub(super) fn groups(processes: &[ProcessInfo], authority: &str) -> Vec<TargetGroup> {
    let profiled = processes
        .iter()
        .filter(|process| process.state == ProcessState::Profiled);
    profiled.map(|process| group(process, authority)).collect()
}

fn group(process: &ProcessInfo, authority: &str) -> TargetGroup {
    let container = process.container.as_ref();
    let of_container = |text: fn(&ContainerInfo) -> &str| {
        container.map_or_else(String::new, |container| text(container).to_owned())
    };
    let pod = process.pod.as_ref();
    let of_pod =
        |text: fn(&PodInfo) -> &str| pod.map_or_else(String::new, |pod| text(pod).to_owned());
    let labels = [
        // What the scraper asks this agent for.
        ("__param_pid", process.pid.to_string()),
        // A label as it is.
        ("service_name", process.service_name.clone()),
        // What relabelling can use.
        ("__meta_pyagent_pid", process.pid.to_string()),
        ("__meta_pyagent_comm", process.comm.clone()),
        ("__meta_pyagent_program", process.program.clone()),
        ("__meta_pyagent_script", process.script.clone()),
        (
            "__meta_pyagent_python_version",
            process.python_version.clone(),
        ),
        ("__meta_pyagent_cgroup", process.cgroup.clone()),
        ("__meta_pyagent_container_id", of_container(|it| &it.id)),
        ("__meta_pyagent_container_name", of_container(|it| &it.name)),
        (
            "__meta_pyagent_k8s_pod_uid",
            of_container(|it| &it.k8s_pod_uid),
        ),
        (
            "__meta_pyagent_k8s_container_name",
            of_container(|it| &it.k8s_container_name),
        ),
        (
            "__meta_pyagent_k8s_namespace_name",
            of_pod(|it| &it.namespace),
        ),
        ("__meta_pyagent_k8s_pod_name", of_pod(|it| &it.name)),
        ("__meta_pyagent_k8s_node_name", of_pod(|it| &it.node)),
    ];
    let labels = labels.into_iter();
    let labels = labels.map(|(name, text)| (name.to_owned(), text));
    TargetGroup {
        targets: [authority.to_owned()],
        labels: labels
            .chain(pod.into_iter().flat_map(more_of_pod))
            .filter(|(_, text)| !text.is_empty())
            .collect(),
    }
}

/// What a pod belongs to, and its labels that were chosen.
fn more_of_pod(pod: &PodInfo) -> impl Iterator<Item = (String, String)> {
    let workloads = pod.workloads.iter().map(|(kind, name)| {
        let kind = kind.to_ascii_lowercase();
        (format!("__meta_pyagent_k8s_{kind}_name"), name.clone())
    });
    let labels = pod.labels.iter();
    let labels = labels.map(|(name, text)| (format!("__meta_pyagent_{name}"), text.clone()));
    workloads.chain(labels)
}
