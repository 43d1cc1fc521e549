//! Process ids of several nodes told apart, for views that know processes by them.

use std::collections::HashMap;

use crate::profile::model::{LabelValue, Profile, label};

/// Above every id that Linux gives (`PID_MAX_LIMIT`).
const FIRST_FREE: u32 = (4 << 20) + 1;

/// Most processes that are remembered.
const MAX_KNOWN: usize = 1 << 16;

/// Which number stands for which process.
#[derive(Debug, Default)]
pub(super) struct Pids {
    /// By node and id.
    known: HashMap<(String, i64), u32>,
    /// The node whose process is shown with its own id.
    owners: HashMap<i64, String>,
    n_given: u32,
}

impl Pids {
    /// A process that has an id which another node's had before is given a number that no process has, for good.
    pub(super) fn tell_apart(&mut self, profile: &mut Profile) {
        if self.known.len() > MAX_KNOWN {
            *self = Self::default();
        }
        let position = |name: &str| profile.strings.iter().position(|it| &**it == name);
        let (Some(pid), Some(node)) = (position(label::PID), position(label::K8S_NODE_NAME)) else {
            return;
        };
        for set in &mut profile.label_sets {
            let mut nodes = set
                .labels
                .iter()
                .filter(|(name, _)| name.0 as usize == node);
            let Some((_, LabelValue::Str(id))) = nodes.next().copied() else {
                continue;
            };
            let node = profile.strings.get(id.0 as usize);
            let Some(node) = node else {
                continue;
            };
            let mut pids = set.labels.iter_mut();
            let found = pids.find(|(name, _)| name.0 as usize == pid);
            if let Some((_, LabelValue::Num(number))) = found {
                *number = i64::from(self.shown(node, *number));
            }
        }
    }

    fn shown(&mut self, node: &str, pid: i64) -> u32 {
        if let Some(known) = self.known.get(&(node.to_owned(), pid)) {
            return *known;
        }
        let owner = self.owners.entry(pid).or_insert_with(|| node.to_owned());
        let own = u32::try_from(pid).ok().filter(|_| owner == node);
        let shown = own.unwrap_or_else(|| {
            self.n_given += 1;
            FIRST_FREE + self.n_given
        });
        self.known.insert((node.to_owned(), pid), shown);
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_several_nodes_have_numbers_of_their_own_for_good() {
        let mut pids = Pids::default();
        assert_eq!(pids.shown("n1", 7), 7);
        let other = pids.shown("n2", 7);
        assert!(other > 4 << 20);
        assert_eq!((pids.shown("n2", 7), pids.shown("n1", 7)), (other, 7));
        assert_ne!(pids.shown("n3", 7), other);
        assert_eq!(pids.shown("n2", 8), 8);
        assert!(pids.shown("n2", -1) > 4 << 20);
    }
}
