//! Namespaces of the pods of this node, those that have gone too: there can be profiles of them.

use std::collections::VecDeque;

/// Most namespaces that are known.
const MAX_NAMESPACES: usize = 512;

/// Names of namespaces, each once; the one that a pod was seen of most recently is the last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Namespaces {
    names: VecDeque<String>,
}

impl Namespaces {
    /// A pod of this namespace was seen. True: it is new; of too many the one that was not seen for longest is forgotten.
    pub(super) fn see(&mut self, name: &str) -> bool {
        let known = self.names.iter().position(|other| other == name);
        let seen = known.and_then(|idx| self.names.remove(idx));
        let is_new = seen.is_none();
        if is_new && self.names.len() >= MAX_NAMESPACES {
            self.names.pop_front();
        }
        self.names
            .push_back(seen.unwrap_or_else(|| name.to_owned()));
        is_new
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_the_one_not_seen_for_longest_goes() {
        let mut namespaces = Namespaces::default();
        for n in 0..MAX_NAMESPACES {
            assert!(namespaces.see(&format!("n{n}")));
        }
        assert!(!namespaces.see("n0"));
        assert!(namespaces.see("new"));
        assert_eq!(namespaces.iter().count(), MAX_NAMESPACES);
        assert!(namespaces.iter().all(|name| name != "n1"));
        assert!(namespaces.iter().any(|name| name == "n0"));
    }
}
