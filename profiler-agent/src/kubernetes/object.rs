//! Which object of a cluster is meant, as kubectl takes it: `deploy/web`, `pod/x`, or a pod's name alone.

use std::fmt;
use std::str::FromStr;

use super::pods::is_name;
use crate::process::pod::WorkloadKind;

/// What runs, or is run by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// A pod.
    Pod,
    /// What runs pods.
    Workload(WorkloadKind),
}

/// Kinds with the words that kubectl has for them, its own first.
const KINDS: [(ObjectKind, &[&str]); 7] = [
    (ObjectKind::Pod, &["pod", "pods", "po"]),
    (
        ObjectKind::Workload(WorkloadKind::Deployment),
        &["deployment", "deployments", "deploy"],
    ),
    (
        ObjectKind::Workload(WorkloadKind::ReplicaSet),
        &["replicaset", "replicasets", "rs"],
    ),
    (
        ObjectKind::Workload(WorkloadKind::StatefulSet),
        &["statefulset", "statefulsets", "sts"],
    ),
    (
        ObjectKind::Workload(WorkloadKind::DaemonSet),
        &["daemonset", "daemonsets", "ds"],
    ),
    (
        ObjectKind::Workload(WorkloadKind::CronJob),
        &["cronjob", "cronjobs", "cj"],
    ),
    (ObjectKind::Workload(WorkloadKind::Job), &["job", "jobs"]),
];

/// An object by its kind and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its name, within a namespace.
    pub name: String,
}

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown: String = text.chars().take(64).collect();
            format!(
                "`{}` is no pod or workload: write deploy/NAME, statefulset/NAME, daemonset/NAME, job/NAME, cronjob/NAME, \
                 replicaset/NAME or pod/NAME",
                shown.escape_debug()
            )
        };
        let (kind, name) = text.split_once('/').unwrap_or(("pod", text));
        // As in `deployment.apps/web`.
        let (kind, group) = kind.split_once('.').unwrap_or((kind, ""));
        let kind = kind.to_ascii_lowercase();
        let mut kinds = KINDS.into_iter();
        let found = kinds.find(|(_, words)| words.contains(&kind.as_str()));
        let (kind, _) = found.ok_or_else(wrong)?;
        let of_kind = match kind {
            ObjectKind::Pod => "",
            ObjectKind::Workload(kind) => kind.group(),
        };
        let is_of_group = group.is_empty() || group.split('.').next_back() == Some(of_kind);
        if !is_of_group || !is_name(name) || name != name.to_ascii_lowercase() {
            return Err(wrong());
        }
        Ok(Self {
            kind,
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds = KINDS.into_iter();
        let words = kinds.find(|(kind, _)| *kind == self.kind);
        let word = words.and_then(|(_, words)| words.first().copied());
        write!(f, "{}/{}", word.unwrap_or_default(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_in_kubectls_words() {
        let named = |text: &str| text.parse::<ObjectName>().unwrap().to_string();
        for (text, expected) in [
            ("deploy/web", "deployment/web"),
            ("deployments/web", "deployment/web"),
            ("deployment.apps/web", "deployment/web"),
            ("Deployment/web", "deployment/web"),
            ("deployment.v1.apps/web", "deployment/web"),
            ("sts/db", "statefulset/db"),
            ("ds/log", "daemonset/log"),
            ("cj/report", "cronjob/report"),
            ("job.batch/report-28", "job/report-28"),
            ("rs/web-7f", "replicaset/web-7f"),
            ("pod/web-7f-x2", "pod/web-7f-x2"),
            ("web-7f-x2", "pod/web-7f-x2"),
        ] {
            assert_eq!(named(text), expected);
        }
        for wrong in [
            "",
            "deploy/",
            "deploy/a/b",
            "node/x",
            "deployment.batch/web",
            "deploy/Web",
            "web1:7099",
            "a b",
            "../x",
            "pod/\u{1b}",
        ] {
            let error = wrong.parse::<ObjectName>().unwrap_err();
            assert!(
                !error.contains('\u{1b}') && error.lines().count() == 1,
                "{error}"
            );
        }
    }
}
