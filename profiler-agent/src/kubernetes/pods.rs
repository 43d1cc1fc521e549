//! Pods as the API server writes them, and what is taken of them: few texts, of bounded length.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::request::ApiError;
use crate::process::pod::{Pod, PodText, RESOURCE_ANNOTATION, Workload, WorkloadKind};

/// Longest name or UID (RFC 1123 allows 253).
const MAX_NAME_BYTES: usize = 253;

/// Most labels of a pod that are kept.
const MAX_LABELS: usize = 128;

/// Longest key of a label or annotation: a prefix of 253, a slash and a name of 63.
const MAX_KEY_BYTES: usize = 317;

/// Longest text of a label; an annotation's is cut here.
const MAX_TEXT_BYTES: usize = 1024;

/// What a mirror says of the kubelet's pod that it is of: the UID there.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Which annotations are kept.
#[derive(Debug, Clone, Default)]
pub struct Annotations {
    /// Those by key.
    pub keys: Vec<String>,
}

impl Annotations {
    /// Those that these labels of processes are made of, and others by key.
    #[must_use]
    pub fn new<'a>(
        labels: impl IntoIterator<Item = &'a PodText>,
        others: impl IntoIterator<Item = String>,
    ) -> Self {
        let of_labels = labels.into_iter().filter_map(|text| match text {
            PodText::Label(_) => None,
            PodText::Annotation(key) => Some(key.clone()),
        });
        Self {
            keys: of_labels.chain(others).collect(),
        }
    }

    fn contains(&self, key: &str) -> bool {
        key.starts_with(RESOURCE_ANNOTATION) || self.keys.iter().any(|other| other == key)
    }
}

/// An answer with several objects.
#[derive(Debug, Deserialize)]
pub(super) struct ObjectList {
    #[serde(default)]
    pub(super) metadata: ListMetadata,
    pub(super) items: Vec<Object>,
}

/// What is said of an answer.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMetadata {
    /// From where a watch goes on.
    #[serde(default)]
    pub(super) resource_version: String,
    /// Where the next part begins; empty at the end.
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}

/// An object's metadata, or a `Status`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Object {
    #[serde(default)]
    pub(super) metadata: Metadata,
    /// Of a `Status`.
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) resource_version: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnerReference {
    api_version: String,
    kind: String,
    name: String,
    #[serde(default)]
    controller: Option<bool>,
}

/// A line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct WatchLine {
    #[serde(rename = "type")]
    kind: String,
    object: Object,
}

/// What a line of a watch tells.
#[derive(Debug)]
pub(super) enum Change {
    /// An object is new, or different.
    Is(Object),
    /// It has gone.
    Gone(Object),
    /// Everything up to this version was told.
    Bookmark(String),
}

impl WatchLine {
    /// `None`: something that nobody knows of yet.
    pub(super) fn change(self) -> Result<Option<Change>, ApiError> {
        let object = self.object;
        Ok(match self.kind.as_str() {
            "ADDED" | "MODIFIED" => Some(Change::Is(object)),
            "DELETED" => Some(Change::Gone(object)),
            "BOOKMARK" => Some(Change::Bookmark(object.metadata.resource_version)),
            "ERROR" => return Err(ApiError::of_status(object.code, &object.message, None)),
            _ => None,
        })
    }
}

impl Metadata {
    /// What it belongs to; `None`: to nothing, or to a kind that is not known.
    pub(super) fn owner(&self) -> Option<Workload> {
        let mut owners = self.owner_references.iter().flatten();
        let owner = owners.find(|owner| owner.controller == Some(true))?;
        let kind = WorkloadKind::of(&owner.api_version, &owner.kind)?;
        is_name(&owner.name).then(|| Workload {
            kind,
            name: owner.name.clone(),
        })
    }

    /// A label of its.
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        let text = self.labels.as_ref()?.get(key)?;
        Some(text)
    }

    /// As a pod, which belongs to these; `None`: it is none that can be.
    pub(super) fn pod(
        &self,
        node: &str,
        workloads: Vec<Workload>,
        annotations: &Annotations,
    ) -> Option<Pod> {
        if ![&self.uid, &self.name, &self.namespace]
            .iter()
            .all(|name| is_name(name))
        {
            return None;
        }
        let labels = self.labels.iter().flatten();
        let labels =
            labels.filter(|(key, text)| key.len() <= MAX_KEY_BYTES && text.len() <= MAX_TEXT_BYTES);
        let kept = self.annotations.iter().flatten();
        let kept = kept.filter(|(key, _)| key.len() <= MAX_KEY_BYTES && annotations.contains(key));
        let mirrored = self.annotations.as_ref();
        let mirrored = mirrored.and_then(|annotations| annotations.get(MIRROR_ANNOTATION));
        Some(Pod {
            uid: self.uid.clone(),
            static_uid: mirrored.filter(|uid| is_name(uid)).cloned(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            node: node.to_owned(),
            workloads,
            labels: labels
                .take(MAX_LABELS)
                .map(|(key, text)| (key.clone(), text.clone()))
                .collect(),
            annotations: kept
                .take(MAX_LABELS)
                .map(|(key, text)| (key.clone(), cut(text).to_owned()))
                .collect(),
        })
    }
}

/// Whether a text can be a name in the API, and a part of a path.
pub(super) fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && text.bytes().all(is_inner)
        && !text.starts_with('.')
}

/// As much of a text as is kept.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata(value: serde_json::Value) -> Metadata {
        serde_json::from_value(value).unwrap()
    }

    fn web() -> serde_json::Value {
        json!({
            "uid": "9d4a6f0e-23c5-4b7a-8f61-0c1d2e3f4a5b",
            "name": "web-7f-x2",
            "namespace": "shop",
            "resourceVersion": "71",
            "labels": {"app": "web", "pod-template-hash": "7f"},
            "annotations": {
                "resource.opentelemetry.io/service.name": "checkout",
                "example.com/owner": "ann",
                "kubectl.kubernetes.io/last-applied-configuration": "{\"secret\":1}",
            },
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "1"},
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7f", "uid": "2",
                 "controller": true, "blockOwnerDeletion": true},
            ],
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:metadata": {}}}],
        })
    }

    #[test]
    fn what_matters_of_a_pod_is_taken_and_nothing_else() {
        let metadata = metadata(web());
        let owner = metadata.owner().unwrap();
        assert_eq!(
            (owner.kind, &*owner.name),
            (WorkloadKind::ReplicaSet, "web-7f")
        );
        let chosen = PodText::Annotation("example.com/owner".into());
        let label = PodText::Label("kubectl.kubernetes.io/last-applied-configuration".into());
        let annotations = Annotations::new([&chosen, &label], []);
        let pod = metadata.pod("node-1", vec![owner], &annotations).unwrap();
        assert_eq!(
            (&*pod.namespace, &*pod.name, &*pod.node),
            ("shop", "web-7f-x2", "node-1")
        );
        assert_eq!(pod.service_name(), "checkout");
        assert_eq!(chosen.of(&pod), Some("ann"));
        assert_eq!(pod.annotations.len(), 2);
        assert_eq!(pod.labels.len(), 2);
        assert_eq!(pod.static_uid, None);
    }

    #[test]
    fn of_owners_the_controller_counts_if_its_kind_is_known() {
        let owner = |api_version: &str, kind: &str, controller: bool| {
            let owner = json!({"apiVersion": api_version, "kind": kind, "name": "x", "controller": controller});
            metadata(json!({ "ownerReferences": [owner] })).owner()
        };
        assert!(owner("apps/v1", "StatefulSet", true).is_some());
        assert!(owner("apps/v1", "StatefulSet", false).is_none());
        assert!(owner("argoproj.io/v1alpha1", "Rollout", true).is_none());
        assert!(metadata(json!({})).owner().is_none());
        let path = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "../secrets/x", "controller": true}]);
        assert!(
            metadata(json!({ "ownerReferences": path }))
                .owner()
                .is_none()
        );
    }

    #[test]
    fn a_mirror_says_which_pod_of_the_kubelet_it_is_of() {
        let mut mirror = web();
        mirror["annotations"][MIRROR_ANNOTATION] = json!("5d2bd0b1b9d7f8ce1c5a0a5b7f8f2c11");
        let pod = metadata(mirror).pod("n", Vec::new(), &Annotations::default());
        assert_eq!(
            pod.unwrap().static_uid.as_deref(),
            Some("5d2bd0b1b9d7f8ce1c5a0a5b7f8f2c11")
        );
    }

    #[test]
    fn texts_are_bounded_and_what_has_no_name_is_no_pod() {
        let pod = |value| metadata(value).pod("n", Vec::new(), &Annotations::default());
        let many: BTreeMap<String, String> = (0..1000)
            .map(|number| (format!("key-{number}"), "x".repeat(60)))
            .collect();
        let mut large = web();
        large["labels"] = json!(many);
        large["annotations"]["resource.opentelemetry.io/service.name"] =
            json!("ä".repeat(MAX_TEXT_BYTES));
        let large = pod(large).unwrap();
        assert_eq!(large.labels.len(), MAX_LABELS);
        assert_eq!(large.service_name().len(), MAX_TEXT_BYTES);
        for field in ["uid", "name", "namespace"] {
            for wrong in [json!(""), json!("a/b"), json!("x".repeat(300))] {
                let mut value = web();
                value[field] = wrong;
                assert_eq!(pod(value), None, "{field}");
            }
        }
    }

    #[test]
    fn lines_of_a_watch_are_changes_errors_or_nothing() {
        let change = |kind: &str, object: serde_json::Value| {
            let line = json!({"type": kind, "object": object}).to_string();
            let line: WatchLine = super::super::request::parse(line.as_bytes())?;
            line.change()
        };
        let object = json!({"kind": "PartialObjectMetadata", "metadata": web()});
        assert!(matches!(
            change("ADDED", object.clone()),
            Ok(Some(Change::Is(_)))
        ));
        assert!(matches!(
            change("MODIFIED", object.clone()),
            Ok(Some(Change::Is(_)))
        ));
        assert!(matches!(
            change("DELETED", object.clone()),
            Ok(Some(Change::Gone(_)))
        ));
        assert!(matches!(change("TOLD", object), Ok(None)));
        let bookmark = json!({"metadata": {"resourceVersion": "12", "creationTimestamp": null}});
        assert!(
            matches!(change("BOOKMARK", bookmark), Ok(Some(Change::Bookmark(version))) if version == "12")
        );
        let expired = json!({"kind": "Status", "metadata": {}, "code": 410, "reason": "Expired", "message": "too old"});
        assert_eq!(change("ERROR", expired).unwrap_err(), ApiError::Expired);
        let error = json!({"kind": "Status", "code": 500, "message": "a\nb\u{1b}"});
        let error = change("ERROR", error).unwrap_err().to_string();
        assert!(error.starts_with("a b\\u{1b} (500"), "{error}");
        assert!(change("ADDED", json!(7)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_line_gives_a_value(line in "\\PC{0,200}|\\{\"type\":\"[A-Z]{0,8}\",\"object\":\\{\"metadata\":\\PC{0,60}\\}\\}") {
            let line = super::super::request::parse::<WatchLine>(line.as_bytes());
            let _ = line.and_then(WatchLine::change);
        }
    }
}
