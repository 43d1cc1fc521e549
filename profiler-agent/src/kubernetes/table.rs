//! The pods of this node by UID, those that have just gone too: a process can be found after its pod was removed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::process::pod::Pod;

/// Most pods that are kept. A kubelet takes 110 when nothing is said, and 250 to 500 where it is told to.
pub const MAX_PODS: usize = 1024;

/// How long a pod is kept after it has gone. Its processes keep it for longer.
const KEEP_GONE: Duration = Duration::from_mins(10);

/// What the API server has told of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodEvent {
    /// These are all that there are.
    All(Vec<Arc<Pod>>),
    /// One is new, or different.
    Is(Arc<Pod>),
    /// The one with this UID has gone.
    Gone(String),
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    /// Since when it is not there any more.
    gone: Option<Instant>,
}

/// The pods that are known.
#[derive(Debug, Default)]
pub struct PodTable {
    pods: HashMap<String, Entry>,
    /// UIDs of the kubelet's own pods, with those of their mirrors.
    mirrors: HashMap<String, String>,
}

impl PodTable {
    /// The pod with this UID, as control groups have it.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Arc<Pod>> {
        let mirror = || self.pods.get(self.mirrors.get(uid)?);
        let entry = self.pods.get(uid).or_else(mirror)?;
        Some(&entry.pod)
    }

    /// Pods that are known, those that have gone too.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Follows what was told. Returns the pods that are new or different.
    pub fn apply(&mut self, event: PodEvent, now: Instant) -> Vec<Arc<Pod>> {
        self.forget_old(now);
        match event {
            PodEvent::Is(pod) => self.put(pod, now).into_iter().collect(),
            PodEvent::Gone(uid) => {
                if let Some(entry) = self.pods.get_mut(&uid) {
                    entry.gone.get_or_insert(now);
                }
                Vec::new()
            }
            PodEvent::All(pods) => {
                for entry in self.pods.values_mut() {
                    entry.gone.get_or_insert(now);
                }
                let pods = pods.into_iter();
                pods.filter_map(|pod| self.put(pod, now)).collect()
            }
        }
    }

    /// `None`: it is known as it is, or there is no room for it.
    fn put(&mut self, pod: Arc<Pod>, now: Instant) -> Option<Arc<Pod>> {
        if let Some(entry) = self.pods.get_mut(&pod.uid) {
            entry.gone = None;
            if entry.pod == pod {
                return None;
            }
        } else if self.pods.len() >= MAX_PODS && !self.make_room(now) {
            return None;
        }
        if let Some(uid) = &pod.static_uid {
            // Whoever came first: a mirror can be claimed by any pod.
            let mirror = self.mirrors.entry(uid.clone());
            mirror.or_insert_with(|| pod.uid.clone());
        }
        let entry = Entry {
            pod: Arc::clone(&pod),
            gone: None,
        };
        self.pods.insert(pod.uid.clone(), entry);
        Some(pod)
    }

    /// Drops the pod that went first; false when all are there.
    fn make_room(&mut self, now: Instant) -> bool {
        let gone = self.pods.iter();
        let gone = gone.filter_map(|(uid, entry)| Some((entry.gone?, uid)));
        let Some(uid) = gone.min().map(|(_, uid)| uid.clone()) else {
            return false;
        };
        self.pods.remove(&uid);
        self.forget_old(now);
        true
    }

    fn forget_old(&mut self, now: Instant) {
        self.pods.retain(|_, entry| {
            let gone = entry.gone;
            gone.is_none_or(|gone| now.saturating_duration_since(gone) < KEEP_GONE)
        });
        self.mirrors.retain(|_, uid| self.pods.contains_key(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, name: &str) -> Arc<Pod> {
        Arc::new(Pod {
            uid: uid.into(),
            name: name.into(),
            ..Pod::default()
        })
    }

    fn name(table: &PodTable, uid: &str) -> Option<String> {
        table.get(uid).map(|pod| pod.name.clone())
    }

    #[test]
    fn what_is_new_or_different_is_told_once() {
        let (mut table, now) = (PodTable::default(), Instant::now());
        let all = PodEvent::All(vec![pod("1", "a"), pod("2", "b")]);
        assert_eq!(table.apply(all.clone(), now).len(), 2);
        assert_eq!(table.apply(all, now), []);
        assert_eq!(table.apply(PodEvent::Is(pod("2", "b")), now), []);
        let other = pod("2", "c");
        assert_eq!(table.apply(PodEvent::Is(other.clone()), now), [other]);
        assert_eq!(name(&table, "2"), Some("c".into()));
        assert_eq!(table.get("3"), None);
    }

    #[test]
    fn a_pod_that_has_gone_is_known_for_a_while() {
        let (mut table, now) = (PodTable::default(), Instant::now());
        table.apply(PodEvent::All(vec![pod("1", "a"), pod("2", "b")]), now);
        table.apply(PodEvent::Gone("1".into()), now);
        // The second one's end was missed.
        table.apply(PodEvent::All(Vec::new()), now);
        let later = now + KEEP_GONE / 2;
        table.apply(PodEvent::Gone("9".into()), later);
        assert_eq!(name(&table, "1"), Some("a".into()));
        assert_eq!(name(&table, "2"), Some("b".into()));
        table.apply(PodEvent::Is(pod("2", "b")), later);
        table.apply(PodEvent::Gone("9".into()), now + KEEP_GONE);
        assert_eq!(name(&table, "1"), None);
        assert_eq!(name(&table, "2"), Some("b".into()));
    }

    #[test]
    fn a_pod_of_the_kubelets_own_is_found_by_the_uid_of_its_control_group() {
        let (mut table, now) = (PodTable::default(), Instant::now());
        let mut mirror = Pod::clone(&pod("1", "etcd"));
        mirror.static_uid = Some("5d2b".into());
        table.apply(PodEvent::Is(Arc::new(mirror)), now);
        assert_eq!(name(&table, "5d2b"), Some("etcd".into()));
        assert_eq!(name(&table, "1"), Some("etcd".into()));
        table.apply(PodEvent::Gone("1".into()), now);
        table.apply(PodEvent::All(Vec::new()), now + KEEP_GONE);
        assert_eq!(name(&table, "5d2b"), None);
        assert!(table.is_empty() && table.mirrors.is_empty());
    }

    #[test]
    fn there_is_room_for_so_many_and_those_that_have_gone_make_it() {
        let (mut table, now) = (PodTable::default(), Instant::now());
        let many = (0..MAX_PODS).map(|uid| pod(&uid.to_string(), "a"));
        table.apply(PodEvent::All(many.collect()), now);
        assert_eq!(table.apply(PodEvent::Is(pod("more", "b")), now), []);
        assert_eq!(table.len(), MAX_PODS);
        table.apply(PodEvent::Gone("7".into()), now);
        table.apply(PodEvent::Gone("8".into()), now + Duration::from_secs(1));
        assert_eq!(table.apply(PodEvent::Is(pod("more", "b")), now).len(), 1);
        assert_eq!((name(&table, "7"), table.len()), (None, MAX_PODS));
        assert_eq!(name(&table, "8"), Some("a".into()));
    }
}
