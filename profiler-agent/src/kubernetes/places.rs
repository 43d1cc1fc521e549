//! On which nodes the pods that somebody means run, or ran.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use kube::Client;
use serde::Deserialize;

use super::list;
use super::object::{ObjectKind, ObjectName};
use super::owners::by_hash;
use super::pods::{Metadata, is_name};
use super::request::ApiError;
use crate::process::pod::{Workload, WorkloadKind};

/// Most pods that are looked at. The largest clusters that Kubernetes is made for have 150,000.
const MAX_PODS: usize = 200_000;

/// Most events that are looked at.
const MAX_EVENTS: usize = 50_000;

/// How long events are kept, unless the API server is told otherwise (`--event-ttl`), less what clocks may differ.
pub const EVENTS_KEPT: Duration = Duration::from_mins(55);

/// Which pods.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Of these namespaces; of all when there is none.
    pub namespaces: Vec<String>,
    /// Not of these.
    pub not_namespaces: Vec<String>,
    /// With these labels, as kubectl takes them: all of them.
    pub selectors: Vec<String>,
    /// This one, or those of this workload.
    pub object: Option<ObjectName>,
}

impl Choice {
    /// Whether it leaves no pod out.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.namespaces.is_empty()
            && self.not_namespaces.is_empty()
            && self.selectors.is_empty()
            && self.object.is_none()
    }
}

/// Which time is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// From now on.
    Now,
    /// From so long ago on; pods of then may have gone.
    Since(Duration),
}

/// Where the pods are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Names of nodes; `None`: they may be on any.
    pub nodes: Option<BTreeSet<String>>,
    /// UIDs of the pods that are there, with their nodes. Not those of pods that have gone.
    pub pods: Vec<(String, String)>,
    /// What is not known, in words.
    pub remarks: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Pod {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    involved_object: Involved,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Involved {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
}

/// Asks where the pods of a choice run, or ran.
pub(super) async fn places(
    client: &Client,
    choice: &Choice,
    when: When,
) -> Result<Places, ApiError> {
    let mut places = Places::default();
    let must_know_pods = !choice.selectors.is_empty();
    if choice.is_everything() {
        return Ok(places);
    }
    if let When::Since(since) = when
        && since > EVENTS_KEPT
        && !must_know_pods
    {
        // Where pods were that have gone is not known for so long.
        return Ok(places);
    }
    let mut nodes = BTreeSet::new();
    let mut known = HashSet::new();
    let mut is_all = true;
    for namespace in namespaces(choice) {
        let path = path(namespace, "pods");
        let field = field(choice);
        let query = [
            ("labelSelector", &*choice.selectors.join(",")),
            ("fieldSelector", &*field),
        ];
        let take = |pod: Pod| {
            let metadata = &pod.metadata;
            let node = &pod.spec.node_name;
            let is_meant = !choice.not_namespaces.contains(&metadata.namespace)
                && choice
                    .object
                    .as_ref()
                    .is_none_or(|object| is_of(metadata, object));
            if is_meant && is_name(&metadata.uid) && is_name(node) {
                known.insert(metadata.uid.clone());
                nodes.insert(node.clone());
                places.pods.push((metadata.uid.clone(), node.clone()));
            }
        };
        is_all &= list::each(client, &path, &query, MAX_PODS, take).await?;
    }
    if !is_all {
        let remark = format!("there are more than {MAX_PODS} pods: all nodes are asked");
        places.remarks.push(remark);
        return Ok(places);
    }
    let is_whole = match when {
        When::Now => true,
        When::Since(since) => {
            since <= EVENTS_KEPT && gone(client, choice, &known, &mut nodes).await
        }
    };
    if must_know_pods && when != When::Now {
        let remark = "pods that have gone are left out: their labels are not known any more; a workload's name (deploy/NAME) finds them";
        places.remarks.push(remark.to_owned());
        // So where they were does not matter.
        nodes = places.pods.iter().map(|(_, node)| node.clone()).collect();
        places.nodes = Some(nodes);
    } else if is_whole {
        places.nodes = Some(nodes);
    }
    Ok(places)
}

/// Adds the nodes of pods that have gone: the scheduler told where it put them. False: not to be known.
async fn gone(
    client: &Client,
    choice: &Choice,
    known: &HashSet<String>,
    nodes: &mut BTreeSet<String>,
) -> bool {
    for namespace in namespaces(choice) {
        let path = path(namespace, "events");
        let query = [("fieldSelector", "involvedObject.kind=Pod,reason=Scheduled")];
        let take = |event: Event| {
            let pod = &event.involved_object;
            let is_meant = !known.contains(&pod.uid)
                && !choice.not_namespaces.contains(&pod.namespace)
                && choice
                    .object
                    .as_ref()
                    .is_none_or(|object| can_be_of(&pod.name, object));
            if is_meant {
                // "Successfully assigned NAMESPACE/NAME to NODE"
                let message = event.message.as_deref().unwrap_or_default();
                let node = message.rsplit(' ').next();
                nodes.extend(node.filter(|node| is_name(node)).map(str::to_owned));
            }
        };
        let listed = list::each(client, &path, &query, MAX_EVENTS, take).await;
        if !matches!(listed, Ok(true)) {
            return false;
        }
    }
    true
}

fn namespaces(choice: &Choice) -> impl Iterator<Item = Option<&str>> {
    let named = choice.namespaces.iter().map(|name| Some(name.as_str()));
    named.chain(choice.namespaces.is_empty().then_some(None))
}

fn path(namespace: Option<&str>, kind: &str) -> String {
    match namespace {
        Some(namespace) => format!("/api/v1/namespaces/{namespace}/{kind}"),
        None => format!("/api/v1/{kind}"),
    }
}

fn field(choice: &Choice) -> String {
    match &choice.object {
        Some(ObjectName {
            kind: ObjectKind::Pod,
            name,
        }) => format!("metadata.name={name}"),
        Some(ObjectName {
            kind: ObjectKind::Workload(_),
            ..
        })
        | None => String::new(),
    }
}

/// Whether a pod is this object, or belongs to it; by its owner's name where the owner's owner is meant.
fn is_of(pod: &Metadata, object: &ObjectName) -> bool {
    let ObjectKind::Workload(kind) = object.kind else {
        return pod.name == object.name;
    };
    let Some(owner) = pod.owner() else {
        return false;
    };
    let outer = match kind {
        WorkloadKind::Deployment => by_hash(pod, &owner),
        WorkloadKind::CronJob => by_time(&owner),
        WorkloadKind::ReplicaSet
        | WorkloadKind::StatefulSet
        | WorkloadKind::DaemonSet
        | WorkloadKind::Job => None,
    };
    let is_meant = |it: &Workload| it.kind == kind && it.name == object.name;
    is_meant(&owner) || outer.as_ref().is_some_and(is_meant)
}

/// The CronJob whose Job this is: the controller puts the minutes since 1970 behind its name.
fn by_time(owner: &Workload) -> Option<Workload> {
    let (name, minutes) = owner.name.rsplit_once('-')?;
    let is_time = !minutes.is_empty() && minutes.bytes().all(|byte| byte.is_ascii_digit());
    (owner.kind == WorkloadKind::Job && is_time).then(|| Workload {
        kind: WorkloadKind::CronJob,
        name: name.to_owned(),
    })
}

/// Whether a pod of this name can have been this object or have belonged to it: controllers put something behind their names.
fn can_be_of(pod: &str, object: &ObjectName) -> bool {
    let rest = pod.strip_prefix(object.name.as_str());
    match object.kind {
        ObjectKind::Pod => rest == Some(""),
        ObjectKind::Workload(_) => rest.is_some_and(|rest| rest.starts_with('-')),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fake::{Answer, FakeServer};
    use super::*;

    fn pod(name: &str, node: &str, owner: Option<(&str, &str)>) -> Value {
        let owners = owner.map(|(kind, name)| {
            let group = if kind == "Job" { "batch" } else { "apps" };
            json!([{"apiVersion": format!("{group}/v1"), "kind": kind, "name": name, "controller": true}])
        });
        json!({
            "metadata": {"uid": format!("uid-{name}"), "name": name, "namespace": "shop",
                         "labels": {"pod-template-hash": "7f"}, "ownerReferences": owners},
            "spec": {"nodeName": node, "containers": [{"env": [{"name": "SECRET", "value": "x"}]}]},
            "status": {"phase": "Running"},
        })
    }

    fn scheduled(name: &str, node: &str) -> Value {
        json!({
            "involvedObject": {"kind": "Pod", "name": name, "namespace": "shop", "uid": format!("uid-{name}")},
            "message": format!("Successfully assigned shop/{name} to {node}"),
        })
    }

    fn list(items: &[Value]) -> Answer {
        Answer::json(200, &json!({"metadata": {}, "items": items}))
    }

    fn choice(object: &str) -> Choice {
        Choice {
            namespaces: vec!["shop".to_owned()],
            object: (!object.is_empty()).then(|| object.parse().unwrap()),
            ..Choice::default()
        }
    }

    async fn shop() -> FakeServer {
        let server = FakeServer::start().await;
        server.answer(
            "/api/v1/namespaces/shop/pods",
            list(&[
                pod("web-7f-a", "n1", Some(("ReplicaSet", "web-7f"))),
                pod("web-7f-b", "n2", Some(("ReplicaSet", "web-7f"))),
                pod("web-7f-c", "", Some(("ReplicaSet", "web-7f"))),
                pod("db-0", "n3", Some(("StatefulSet", "db"))),
                pod("report-28-x", "n4", Some(("Job", "report-28"))),
                pod("alone", "n5", None),
            ]),
        );
        server.answer(
            "/api/v1/namespaces/shop/events",
            list(&[
                scheduled("web-7f-a", "n1"),
                scheduled("web-6e-z", "n6"),
                scheduled("report-27-y", "n7"),
                scheduled("web-6e-q", "a/b"),
            ]),
        );
        server
    }

    fn nodes(places: &Places) -> Vec<&str> {
        let nodes = places.nodes.as_ref().unwrap();
        nodes.iter().map(String::as_str).collect()
    }

    #[tokio::test]
    async fn pods_of_a_workload_are_where_they_run() {
        let server = shop().await;
        for (object, expected) in [
            ("deploy/web", &["n1", "n2"][..]),
            ("rs/web-7f", &["n1", "n2"]),
            ("deploy/we", &[]),
            ("sts/db", &["n3"]),
            ("deploy/db", &[]),
            ("job/report-28", &["n4"]),
            ("cj/report", &["n4"]),
            ("pod/alone", &["n5"]),
            ("", &["n1", "n2", "n3", "n4", "n5"]),
        ] {
            let places = places(&server.client(), &choice(object), When::Now).await;
            assert_eq!(nodes(&places.unwrap()), expected, "{object}");
        }
        let asked = server.asked_in_full();
        assert!(
            asked[7].ends_with("&fieldSelector=metadata.name%3Dalone"),
            "{asked:?}"
        );
        assert!(!asked.iter().any(|it| it.contains("events")));
    }

    #[tokio::test]
    async fn of_what_was_recorded_nodes_count_where_pods_ran_that_have_gone() {
        let server = shop().await;
        let since = When::Since(Duration::from_mins(10));
        let of = async |object: &str| {
            places(&server.client(), &choice(object), since)
                .await
                .unwrap()
        };
        assert_eq!(nodes(&of("deploy/web").await), ["n1", "n2", "n6"]);
        assert_eq!(nodes(&of("cj/report").await), ["n4", "n7"]);
        assert_eq!(nodes(&of("pod/web-6e-z").await), ["n6"]);
        // Longer ago than events are kept: any node.
        let long = When::Since(Duration::from_hours(2));
        let places_then = places(&server.client(), &choice("deploy/web"), long)
            .await
            .unwrap();
        assert_eq!(places_then.nodes, None);
        // Events may not be listed.
        let events = "/api/v1/namespaces/shop/events";
        server.answer(events, Answer::status(403, "no"));
        assert_eq!(of("deploy/web").await.nodes, None);
    }

    #[tokio::test]
    async fn by_labels_only_pods_that_are_there_are_found_and_that_is_said() {
        let server = shop().await;
        let by_label = Choice {
            selectors: vec!["app=web".to_owned(), "tier!=db".to_owned()],
            ..choice("")
        };
        let since = When::Since(Duration::from_mins(10));
        let places = places(&server.client(), &by_label, since).await.unwrap();
        assert_eq!(nodes(&places), ["n1", "n2", "n3", "n4", "n5"]);
        assert_eq!(places.pods.len(), 5);
        assert!(places.remarks[0].contains("have gone"), "{places:?}");
        let asked = server.asked_in_full();
        assert!(
            asked[0].contains("labelSelector=app%3Dweb%2Ctier%21%3Ddb"),
            "{asked:?}"
        );
    }

    #[tokio::test]
    async fn everything_is_on_every_node_and_nobody_is_asked() {
        let server = FakeServer::start().await;
        let places = places(&server.client(), &Choice::default(), When::Now).await;
        assert_eq!(places.unwrap(), Places::default());
        assert!(server.asked().is_empty());
    }
}
