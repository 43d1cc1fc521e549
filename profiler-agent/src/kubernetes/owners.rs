//! What pods belong to: the ReplicaSet or Job that a pod names, and the Deployment or CronJob which that one names.
//!
//! An owner's owner never changes, so each is asked for once. Without the right to ask, a Deployment is still known by its
//! ReplicaSet's name, which the controller makes of the Deployment's and a hash that it puts on the pods as well.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use kube::Client;

use super::pods::{Metadata, Object, is_name};
use super::request::{self, ApiError, METADATA};
use crate::process::pod::{Workload, WorkloadKind};

/// Most owners that are remembered.
const MAX_KNOWN: usize = 2048;

/// How long nothing is asked after the right to ask was found missing.
const FORBIDDEN_PAUSE: Duration = Duration::from_mins(5);

/// The label that a Deployment's controller puts on its pods.
const HASH_LABEL: &str = "pod-template-hash";

/// An owner that can have an owner itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    kind: WorkloadKind,
    namespace: String,
    name: String,
}

/// What is known of owners.
#[derive(Debug, Default)]
pub(super) struct Owners {
    known: HashMap<Key, Option<Workload>>,
    /// Since when it is known that it may not ask.
    forbidden: Option<(Instant, ApiError)>,
}

/// What a pod belongs to, as far as that could be told.
#[derive(Debug)]
pub(super) struct Owned {
    /// The nearest first.
    pub(super) workloads: Vec<Workload>,
    /// To be asked again: the server did not answer.
    pub(super) is_to_be_asked: bool,
}

impl Owners {
    /// What a pod belongs to. `may_ask`: whether there is time to ask the server.
    pub(super) async fn of(&mut self, client: &Client, pod: &Metadata, may_ask: bool) -> Owned {
        let Some(owner) = pod.owner() else {
            return Owned {
                workloads: Vec::new(),
                is_to_be_asked: false,
            };
        };
        let outer = match outer_kind(owner.kind) {
            Some(_) if is_name(&pod.namespace) => self.outer(client, pod, &owner, may_ask).await,
            Some(_) | None => Ok(None),
        };
        let is_to_be_asked = outer.is_err();
        let outer = outer.unwrap_or_else(|()| by_hash(pod, &owner));
        Owned {
            workloads: std::iter::once(owner).chain(outer).collect(),
            is_to_be_asked,
        }
    }

    /// Why owners are not asked for; `None`: they are.
    pub(super) fn problem(&self) -> Option<&ApiError> {
        self.forbidden.as_ref().map(|(_, error)| error)
    }

    /// An error: it is not known, and to be asked again.
    async fn outer(
        &mut self,
        client: &Client,
        pod: &Metadata,
        owner: &Workload,
        may_ask: bool,
    ) -> Result<Option<Workload>, ()> {
        let key = Key {
            kind: owner.kind,
            namespace: pod.namespace.clone(),
            name: owner.name.clone(),
        };
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let forbidden = self.forbidden.as_ref();
        if forbidden.is_some_and(|(since, _)| since.elapsed() < FORBIDDEN_PAUSE) {
            return Ok(by_hash(pod, owner));
        }
        if !may_ask {
            return Err(());
        }
        let path = path(&key);
        let asked = request::get::<Object>(client, &path, METADATA).await;
        let outer = match asked {
            Ok(object) => {
                self.forbidden = None;
                object.metadata.owner()
            }
            // It has gone before its pods.
            Err(error) if error.is_not_found() => by_hash(pod, owner),
            Err(error) if error.is_forbidden() => {
                self.forbidden = Some((Instant::now(), error));
                return Ok(by_hash(pod, owner));
            }
            Err(_) => return Err(()),
        };
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(key, outer.clone());
        Ok(outer)
    }
}

/// What an owner of this kind can belong to.
const fn outer_kind(kind: WorkloadKind) -> Option<WorkloadKind> {
    match kind {
        WorkloadKind::ReplicaSet => Some(WorkloadKind::Deployment),
        WorkloadKind::Job => Some(WorkloadKind::CronJob),
        WorkloadKind::Deployment
        | WorkloadKind::StatefulSet
        | WorkloadKind::DaemonSet
        | WorkloadKind::CronJob => None,
    }
}

/// Where the API has it. The name of a resource is its kind's in lower case, with an `s`.
fn path(key: &Key) -> String {
    let resource = key.kind.name().to_ascii_lowercase();
    format!(
        "/apis/{}/v1/namespaces/{}/{resource}s/{}",
        key.kind.group(),
        key.namespace,
        key.name
    )
}

/// The Deployment whose ReplicaSet this is, by their names.
pub(super) fn by_hash(pod: &Metadata, owner: &Workload) -> Option<Workload> {
    if owner.kind != WorkloadKind::ReplicaSet {
        return None;
    }
    let hash = pod.label(HASH_LABEL).filter(|hash| !hash.is_empty())?;
    let name = owner.name.strip_suffix(hash)?.strip_suffix('-')?;
    is_name(name).then(|| Workload {
        kind: WorkloadKind::Deployment,
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake::{Answer, FakeServer};
    use super::*;

    fn pod(kind: &str, group: &str, owner: &str) -> Metadata {
        let metadata = json!({
            "namespace": "shop",
            "labels": {"pod-template-hash": "7f"},
            "ownerReferences": [{"apiVersion": format!("{group}/v1"), "kind": kind, "name": owner, "controller": true}],
        });
        serde_json::from_value(metadata).unwrap()
    }

    fn names(owned: &Owned) -> Vec<&str> {
        owned.workloads.iter().map(|it| it.name.as_str()).collect()
    }

    fn owned_by(api_version: &str, kind: &str, name: &str) -> Answer {
        let owner =
            json!({"apiVersion": api_version, "kind": kind, "name": name, "controller": true});
        Answer::json(200, &json!({"metadata": {"ownerReferences": [owner]}}))
    }

    #[tokio::test]
    async fn an_owner_is_asked_for_once() {
        let server = FakeServer::start().await;
        let replica_set = "/apis/apps/v1/namespaces/shop/replicasets/web-7f";
        server.answer(replica_set, owned_by("apps/v1", "Deployment", "web"));
        let job = "/apis/batch/v1/namespaces/shop/jobs/report-28";
        server.answer(job, owned_by("batch/v1", "CronJob", "report"));
        let mut owners = Owners::default();
        for _ in 0..3 {
            let owned = owners
                .of(&server.client(), &pod("ReplicaSet", "apps", "web-7f"), true)
                .await;
            assert_eq!(names(&owned), ["web-7f", "web"]);
            let owned = owners
                .of(&server.client(), &pod("Job", "batch", "report-28"), true)
                .await;
            assert_eq!(names(&owned), ["report-28", "report"]);
            assert!(!owned.is_to_be_asked);
        }
        assert_eq!(server.asked(), [replica_set, job]);
        let accept = server.accepted();
        assert!(accept.iter().all(|it| it.contains("PartialObjectMetadata")));
    }

    #[tokio::test]
    async fn what_has_no_further_owner_is_not_asked_for() {
        let server = FakeServer::start().await;
        let mut owners = Owners::default();
        let client = server.client();
        let owned = owners.of(&client, &Metadata::default(), true).await;
        assert!(owned.workloads.is_empty());
        let owned = owners
            .of(&client, &pod("StatefulSet", "apps", "db"), true)
            .await;
        assert_eq!(names(&owned), ["db"]);
        assert!(server.asked().is_empty());
    }

    #[tokio::test]
    async fn a_deployment_is_told_by_its_hash_when_it_may_not_be_asked_for() {
        let server = FakeServer::start().await;
        let replica_set = "/apis/apps/v1/namespaces/shop/replicasets/web-7f";
        server.answer(replica_set, Answer::status(403, "no"));
        let mut owners = Owners::default();
        let client = server.client();
        for _ in 0..2 {
            let owned = owners
                .of(&client, &pod("ReplicaSet", "apps", "web-7f"), true)
                .await;
            assert_eq!(names(&owned), ["web-7f", "web"]);
            assert!(!owned.is_to_be_asked);
        }
        assert_eq!(server.asked().len(), 1);
        assert!(owners.problem().is_some());
        // Made by hand: its name does not end so.
        let owned = owners
            .of(&client, &pod("ReplicaSet", "apps", "by-hand"), true)
            .await;
        assert_eq!(names(&owned), ["by-hand"]);
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_asked_again() {
        let server = FakeServer::start().await;
        let replica_set = "/apis/apps/v1/namespaces/shop/replicasets/web-7f";
        server.answer(replica_set, Answer::status(503, "later"));
        let mut owners = Owners::default();
        let (client, web) = (server.client(), pod("ReplicaSet", "apps", "web-7f"));
        let owned = owners.of(&client, &web, true).await;
        assert!(owned.is_to_be_asked);
        assert_eq!(names(&owned), ["web-7f", "web"]);
        // Without time for a question nothing is asked.
        assert!(owners.of(&client, &web, false).await.is_to_be_asked);
        assert_eq!(server.asked().len(), 1);
        server.answer(replica_set, owned_by("apps/v1", "Deployment", "other"));
        let owned = owners.of(&client, &web, true).await;
        assert_eq!(names(&owned), ["web-7f", "other"]);
        assert!(!owned.is_to_be_asked);
    }
}
