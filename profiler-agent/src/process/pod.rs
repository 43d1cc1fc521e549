//! A pod of Kubernetes, as profiles need it: its names, what it belongs to, and what it is called as a service.
//!
//! No I/O here: `kubernetes` asks the API server, and `track` says which process is in which pod.

use std::collections::BTreeMap;

/// What runs pods. The API has more kinds, and people add theirs: those are not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkloadKind {
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` ReplicaSet.
    ReplicaSet,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet.
    DaemonSet,
    /// `batch/v1` CronJob.
    CronJob,
    /// `batch/v1` Job.
    Job,
}

impl WorkloadKind {
    /// Every kind, in the order in which OpenTelemetry takes the name of a service from them.
    pub const ALL: [Self; 6] = [
        Self::Deployment,
        Self::ReplicaSet,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::CronJob,
        Self::Job,
    ];

    /// Its name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::ReplicaSet => "ReplicaSet",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::CronJob => "CronJob",
            Self::Job => "Job",
        }
    }

    /// The group of the API that it is part of.
    #[must_use]
    pub const fn group(self) -> &'static str {
        match self {
            Self::Deployment | Self::ReplicaSet | Self::StatefulSet | Self::DaemonSet => "apps",
            Self::CronJob | Self::Job => "batch",
        }
    }

    /// The kind of this name in this group (`apps/v1`, `batch/v1`); `None`: another's.
    #[must_use]
    pub fn of(api_version: &str, name: &str) -> Option<Self> {
        let (group, _) = api_version.split_once('/')?;
        let mut kinds = Self::ALL.into_iter();
        kinds.find(|kind| kind.group() == group && kind.name() == name)
    }
}

/// What a pod belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its kind.
    pub kind: WorkloadKind,
    /// Its name, within the pod's namespace.
    pub name: String,
}

/// A pod. All texts are from the API server, and of bounded length.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod {
    /// Its UID, with dashes.
    pub uid: String,
    /// The UID that the kubelet calls it by when it runs it from a file: the control group's. The API server's pod is a
    /// mirror of that one, with a UID of its own.
    pub static_uid: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that it runs on.
    pub node: String,
    /// What it belongs to, the nearest first: its ReplicaSet, then the Deployment of that.
    pub workloads: Vec<Workload>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Those of its annotations that somebody looks at.
    pub annotations: BTreeMap<String, String>,
}

/// Before the name of a resource's attribute in the annotations of OpenTelemetry.
pub const RESOURCE_ANNOTATION: &str = "resource.opentelemetry.io/";

const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
const NAME_LABEL: &str = "app.kubernetes.io/name";
const VERSION_LABEL: &str = "app.kubernetes.io/version";

impl Pod {
    /// The name of its workload of this kind.
    #[must_use]
    pub fn workload(&self, kind: WorkloadKind) -> Option<&str> {
        let mut workloads = self.workloads.iter();
        let workload = workloads.find(|workload| workload.kind == kind)?;
        Some(&workload.name)
    }

    /// The name of the service that it is part of, as OpenTelemetry has it made of what Kubernetes knows: the annotation
    /// for it, the labels `app.kubernetes.io/instance` and `name`, the workload from the outermost on, the pod itself
    /// (<https://opentelemetry.io/docs/specs/semconv/non-normative/k8s-attributes/>). The container's name would be last,
    /// but each pod has a name.
    #[must_use]
    pub fn service_name(&self) -> &str {
        let by_label = |key: &str| self.labels.get(key).map(String::as_str);
        let by_workload = || {
            let mut kinds = WorkloadKind::ALL.into_iter();
            kinds.find_map(|kind| self.workload(kind))
        };
        let names = [
            self.attribute("service.name"),
            by_label(INSTANCE_LABEL),
            by_label(NAME_LABEL),
            by_workload(),
        ];
        let mut names = names.into_iter().flatten();
        names.find(|name| !name.is_empty()).unwrap_or(&self.name)
    }

    /// `service.namespace`: the annotation for it, else the pod's namespace.
    #[must_use]
    pub fn service_namespace(&self) -> &str {
        let said = self.attribute("service.namespace");
        said.filter(|name| !name.is_empty())
            .unwrap_or(&self.namespace)
    }

    /// `service.version`: the annotation for it, else the label `app.kubernetes.io/version`; empty without.
    #[must_use]
    pub fn service_version(&self) -> &str {
        let said = self.attribute("service.version");
        let labelled = || self.labels.get(VERSION_LABEL).map(String::as_str);
        said.filter(|version| !version.is_empty())
            .or_else(labelled)
            .unwrap_or_default()
    }

    /// What an annotation of OpenTelemetry says of an attribute.
    fn attribute(&self, name: &str) -> Option<&str> {
        let key = format!("{RESOURCE_ANNOTATION}{name}");
        self.annotations.get(&key).map(String::as_str)
    }
}

/// A label or an annotation of pods that the processes in them get as a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLabel {
    /// Name of the label that processes get.
    pub name: String,
    /// Where its text comes from.
    pub source: PodText,
}

/// A text of a pod, by its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodText {
    /// A label.
    Label(String),
    /// An annotation.
    Annotation(String),
}

impl PodText {
    /// What a pod says there.
    #[must_use]
    pub fn of<'a>(&self, pod: &'a Pod) -> Option<&'a str> {
        match self {
            Self::Label(key) => pod.labels.get(key).map(String::as_str),
            Self::Annotation(key) => pod.annotations.get(key).map(String::as_str),
        }
    }

    /// The attribute of OpenTelemetry that it is: `k8s.pod.label.KEY`.
    #[must_use]
    pub fn attribute(&self) -> String {
        match self {
            Self::Label(key) => format!("k8s.pod.label.{key}"),
            Self::Annotation(key) => format!("k8s.pod.annotation.{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(workloads: &[(WorkloadKind, &str)]) -> Pod {
        let workloads = workloads.iter().map(|(kind, name)| Workload {
            kind: *kind,
            name: (*name).to_owned(),
        });
        Pod {
            namespace: "shop".into(),
            name: "web-7f-x2".into(),
            workloads: workloads.collect(),
            ..Pod::default()
        }
    }

    #[test]
    fn kinds_are_known_by_group_and_name() {
        for kind in WorkloadKind::ALL {
            let api_version = format!("{}/v1", kind.group());
            assert_eq!(WorkloadKind::of(&api_version, kind.name()), Some(kind));
            assert_eq!(WorkloadKind::of("v1", kind.name()), None);
            assert_eq!(WorkloadKind::of("example.com/v1", kind.name()), None);
        }
        assert_eq!(WorkloadKind::of("apps/v1", "Rollout"), None);
        assert_eq!(WorkloadKind::of("batch/v1", "Deployment"), None);
    }

    #[test]
    fn a_service_is_called_by_the_first_name_in_the_order_of_opentelemetry() {
        let mut web = pod(&[
            (WorkloadKind::ReplicaSet, "web-7f"),
            (WorkloadKind::Deployment, "web"),
        ]);
        assert_eq!(web.service_name(), "web");
        web.labels.insert(NAME_LABEL.into(), "frontend".into());
        assert_eq!(web.service_name(), "frontend");
        web.labels.insert(INSTANCE_LABEL.into(), "shop-1".into());
        assert_eq!(web.service_name(), "shop-1");
        let key = format!("{RESOURCE_ANNOTATION}service.name");
        web.annotations.insert(key.clone(), "checkout".into());
        assert_eq!(web.service_name(), "checkout");
        // An empty text names nothing.
        web.annotations.insert(key, String::new());
        assert_eq!(web.service_name(), "shop-1");

        let of = |workloads: &[_]| pod(workloads).service_name().to_owned();
        assert_eq!(of(&[]), "web-7f-x2");
        assert_eq!(of(&[(WorkloadKind::ReplicaSet, "web-7f")]), "web-7f");
        assert_eq!(of(&[(WorkloadKind::StatefulSet, "db")]), "db");
        assert_eq!(of(&[(WorkloadKind::DaemonSet, "log")]), "log");
        assert_eq!(of(&[(WorkloadKind::Job, "report-1")]), "report-1");
        let of_cron = [
            (WorkloadKind::Job, "report-28"),
            (WorkloadKind::CronJob, "report"),
        ];
        assert_eq!(of(&of_cron), "report");
    }

    #[test]
    fn namespace_and_version_of_a_service_are_annotated_or_the_pods_own() {
        let mut web = pod(&[]);
        assert_eq!(
            (web.service_namespace(), web.service_version()),
            ("shop", "")
        );
        web.labels.insert(VERSION_LABEL.into(), "1.2".into());
        assert_eq!(web.service_version(), "1.2");
        for (name, text) in [("namespace", "store"), ("version", "1.3")] {
            let key = format!("{RESOURCE_ANNOTATION}service.{name}");
            web.annotations.insert(key, text.into());
        }
        assert_eq!(
            (web.service_namespace(), web.service_version()),
            ("store", "1.3")
        );
    }

    #[test]
    fn texts_are_found_by_their_key() {
        let mut web = pod(&[]);
        web.labels.insert("app".into(), "shop".into());
        let label = PodText::Label("app".into());
        assert_eq!(label.of(&web), Some("shop"));
        assert_eq!(label.attribute(), "k8s.pod.label.app");
        let annotation = PodText::Annotation("app".into());
        assert_eq!(annotation.of(&web), None);
        assert_eq!(annotation.attribute(), "k8s.pod.annotation.app");
    }
}
