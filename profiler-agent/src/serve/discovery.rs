//! `/sd`: the processes as targets of a scraper, in the JSON of Prometheus's HTTP service discovery, see
//! <https://prometheus.io/docs/prometheus/latest/http_sd/>.
//!
//! A target is this agent with the process's id as a parameter, so that a scraper of profiles has a target each process, under
//! the name of its service, and not one an agent.

use std::collections::BTreeMap;

use axum::http::uri::Authority;
use axum::http::{HeaderMap, Uri, header};
use serde::Serialize;

use super::query::{ProcessInfo, ProcessState};

/// Media type of the answer.
pub(super) const CONTENT_TYPE: &str = "application/json";

/// A group of targets with the labels that they share.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct TargetGroup {
    targets: [String; 1],
    labels: BTreeMap<&'static str, String>,
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
    let of_container = |text: fn(&super::query::ContainerInfo) -> &str| {
        container.map_or_else(String::new, |container| text(container).to_owned())
    };
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
    ];
    TargetGroup {
        targets: [authority.to_owned()],
        labels: labels
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .collect(),
    }
}
