//! The labels that all samples of a process have: what was found of it, what its pod says, what the user says.

use std::borrow::Cow;

use crate::process::container::{Container, Runtime};
use crate::process::facts::Facts;
use crate::process::pod::{Pod, WorkloadKind};
use crate::process::service::LabelOptions;
use crate::profile::aggregate::ProcessLabels;
use crate::profile::model::label;
use crate::python::process::PythonProcess;

/// Labels, before those that say nothing and those that the user overrides are taken out.
type Found<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// What is known of a process.
pub(super) fn process_labels(
    process: &PythonProcess,
    shows_arguments: bool,
    options: &LabelOptions,
) -> ProcessLabels {
    let facts = &process.facts;
    ProcessLabels {
        pid: process.pid.0,
        started_ns: facts.started_ns,
        owner: facts.owner(),
        cmdline: facts.cmdline(shows_arguments).into(),
        comm: facts.comm.as_str().into(),
        python_version: process.interpreter.version.to_string().into_boxed_str(),
        more: more(facts, options),
    }
}

/// What is found of it, then what the user says, which wins.
fn more(facts: &Facts, options: &LabelOptions) -> Box<[(Cow<'static, str>, Box<str>)]> {
    let mut found = of_service(facts, options);
    found.push((label::CGROUP, facts.cgroup.trim_end_matches('/').into()));
    if let Some(container) = &facts.container {
        found.extend(of_container(container));
        found.extend(of_pod(facts, container, options));
    }
    let is_said = |name: &str| options.labels.iter().any(|(said, _)| said == name);
    let found = found
        .into_iter()
        .filter(|(name, text)| !text.is_empty() && !is_said(name))
        .map(|(name, text)| (name.to_owned().into(), text.into()));
    let said = options.labels.iter();
    let said = said.map(|(name, text)| (name.clone().into(), text.as_str().into()));
    found.chain(said).collect()
}

/// What a process declares counts, then what its pod says.
fn of_service<'a>(facts: &'a Facts, options: &LabelOptions) -> Found<'a> {
    let (declared, pod) = (&facts.declared, facts.pod.as_deref());
    let or = |declared: &'a str, by_pod: Option<&'a str>| match declared {
        "" => by_pod.unwrap_or_default(),
        declared => declared,
    };
    let namespace = or(&declared.namespace, pod.map(Pod::service_namespace));
    let version = or(&declared.version, pod.map(Pod::service_version));
    vec![
        (label::SERVICE_NAME, facts.service_name(options).into()),
        (label::SERVICE_NAMESPACE, namespace.into()),
        (label::SERVICE_VERSION, version.into()),
        (
            label::DEPLOYMENT_ENVIRONMENT,
            declared.environment.as_str().into(),
        ),
    ]
}

fn of_container(container: &Container) -> Found<'_> {
    let name = container.name.as_deref().unwrap_or_default();
    let runtime = container.runtime.map_or("", Runtime::name);
    vec![
        (label::CONTAINER_ID, container.id.as_str().into()),
        (label::CONTAINER_NAME, name.into()),
        (label::CONTAINER_RUNTIME, runtime.into()),
    ]
}

/// Of a pod that the API server has not told of, its UID is known and what its container is called.
fn of_pod<'a>(facts: &'a Facts, container: &'a Container, options: &'a LabelOptions) -> Found<'a> {
    let by_group = container.pod_uid.as_deref().unwrap_or_default();
    let of_container = facts.pod_container().unwrap_or_default();
    let mut found = vec![
        (label::K8S_POD_UID, by_group.into()),
        (label::K8S_CONTAINER_NAME, of_container.into()),
    ];
    let Some(pod) = &facts.pod else {
        return found;
    };
    found[0].1 = pod.uid.as_str().into();
    found.extend([
        (label::K8S_NAMESPACE, pod.namespace.as_str().into()),
        (label::K8S_POD_NAME, pod.name.as_str().into()),
        (label::K8S_NODE_NAME, pod.node.as_str().into()),
    ]);
    let workloads = pod.workloads.iter();
    found.extend(workloads.map(|it| (workload_label(it.kind), it.name.as_str().into())));
    for chosen in &options.pod_labels {
        if let Some(text) = chosen.source.of(pod) {
            found.push((&chosen.name, text.into()));
        }
    }
    found
}

const fn workload_label(kind: WorkloadKind) -> &'static str {
    match kind {
        WorkloadKind::Deployment => label::K8S_DEPLOYMENT_NAME,
        WorkloadKind::ReplicaSet => label::K8S_REPLICASET_NAME,
        WorkloadKind::StatefulSet => label::K8S_STATEFULSET_NAME,
        WorkloadKind::DaemonSet => label::K8S_DAEMONSET_NAME,
        WorkloadKind::CronJob => label::K8S_CRONJOB_NAME,
        WorkloadKind::Job => label::K8S_JOB_NAME,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ids::Pid;
    use crate::process::pod::{PodLabel, PodText, Workload};
    use crate::process::service::Declared;

    fn labels(facts: &Facts, options: &LabelOptions) -> Vec<(String, String)> {
        let more = more(facts, options);
        let more = more.iter();
        more.map(|(name, text)| (name.to_string(), text.to_string()))
            .collect()
    }

    fn text<'a>(labels: &'a [(String, String)], name: &str) -> &'a str {
        let mut found = labels.iter().filter(|(other, _)| other == name);
        let text = found.next().map_or("", |(_, text)| text);
        assert!(found.next().is_none(), "{name} is there twice");
        text
    }

    fn in_pod() -> Facts {
        let mut facts = Facts::read(Pid(std::process::id())).unwrap();
        facts.declared = Declared::default();
        facts.container = Some(Container {
            id: "8a1b2c3d4e5f6071".repeat(4),
            runtime: Some(Runtime::Containerd),
            pod_uid: Some("9d4a".into()),
            pod_container: Some("app".into()),
            name: None,
        });
        facts
    }

    fn pod() -> Pod {
        let workload = |kind, name: &str| Workload {
            kind,
            name: name.to_owned(),
        };
        Pod {
            uid: "9d4a".into(),
            namespace: "shop".into(),
            name: "web-7f-x2".into(),
            node: "node-1".into(),
            workloads: vec![
                workload(WorkloadKind::ReplicaSet, "web-7f"),
                workload(WorkloadKind::Deployment, "web"),
            ],
            labels: [("app".to_owned(), "shop".to_owned())].into(),
            ..Pod::default()
        }
    }

    #[test]
    fn a_process_in_a_pod_has_the_names_of_all_that_it_belongs_to() {
        let mut facts = in_pod();
        facts.pod = Some(Arc::new(pod()));
        let labels = labels(&facts, &LabelOptions::default());
        for (name, expected) in [
            ("k8s_namespace_name", "shop"),
            ("k8s_pod_name", "web-7f-x2"),
            ("k8s_pod_uid", "9d4a"),
            ("k8s_container_name", "app"),
            ("k8s_node_name", "node-1"),
            ("k8s_replicaset_name", "web-7f"),
            ("k8s_deployment_name", "web"),
            ("service_name", "web"),
            ("service_namespace", "shop"),
            ("container_runtime_name", "containerd"),
            ("k8s_job_name", ""),
        ] {
            assert_eq!(text(&labels, name), expected, "{name}");
        }
        let names = labels.iter().map(|(name, _)| name.as_str());
        for name in names {
            assert!(label::ALL.contains(&name), "{name}");
        }
    }

    #[test]
    fn of_a_pod_that_nobody_told_of_its_uid_is_known() {
        let labels = labels(&in_pod(), &LabelOptions::default());
        assert_eq!(text(&labels, "k8s_pod_uid"), "9d4a");
        assert_eq!(text(&labels, "k8s_pod_name"), "");
    }

    #[test]
    fn labels_of_pods_are_given_when_they_are_chosen_and_what_is_said_wins() {
        let mut facts = in_pod();
        facts.pod = Some(Arc::new(pod()));
        let mut options = LabelOptions::default();
        assert_eq!(text(&labels(&facts, &options), "team"), "");
        options.pod_labels = vec![
            PodLabel {
                name: "team".into(),
                source: PodText::Label("app".into()),
            },
            PodLabel {
                name: "owner".into(),
                source: PodText::Annotation("app".into()),
            },
        ];
        let chosen = labels(&facts, &options);
        assert_eq!(
            (text(&chosen, "team"), text(&chosen, "owner")),
            ("shop", "")
        );
        options.labels = vec![
            ("team".into(), "mine".into()),
            ("k8s_pod_name".into(), "x".into()),
        ];
        let said = labels(&facts, &options);
        assert_eq!(
            (text(&said, "team"), text(&said, "k8s_pod_name")),
            ("mine", "x")
        );
    }

    #[test]
    fn what_a_process_declares_counts_more_than_what_its_pod_says() {
        let mut facts = in_pod();
        facts.pod = Some(Arc::new(pod()));
        facts.declared.namespace = "store".into();
        facts.declared.name = "checkout".into();
        let labels = labels(&facts, &LabelOptions::default());
        assert_eq!(text(&labels, "service_namespace"), "store");
        assert_eq!(text(&labels, "service_name"), "checkout");
    }
}
