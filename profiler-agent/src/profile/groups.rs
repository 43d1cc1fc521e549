//! A profile by its labels: how much is whose.

use indexmap::IndexMap;

use foldhash::fast::RandomState;

use super::measure::{Amount, Measure};
use super::model::{LabelSetId, LabelValue, Profile};

/// What the samples with the same values of some labels count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The values, in the order in which their labels were named; empty where a sample has none.
    pub values: Vec<String>,
    /// What they count.
    pub amount: Amount,
}

/// The samples by these labels, most weight first.
#[must_use]
pub fn groups(profile: &Profile, measure: Measure, labels: &[&str]) -> Vec<Group> {
    let mut by_set: IndexMap<LabelSetId, Amount, RandomState> = IndexMap::default();
    for sample in &profile.samples {
        by_set
            .entry(sample.labels)
            .or_default()
            .add(measure.of(sample));
    }
    let mut groups: IndexMap<Vec<String>, Amount, RandomState> = IndexMap::default();
    for (set, amount) in by_set {
        let values = labels.iter().map(|name| text(profile, set, name)).collect();
        groups.entry(values).or_default().add(amount);
    }
    let mut groups: Vec<Group> = groups
        .into_iter()
        .map(|(values, amount)| Group { values, amount })
        .collect();
    groups.sort_by(|a, b| {
        let key = |group: &Group| std::cmp::Reverse(group.amount.weight);
        (key(a), &a.values).cmp(&(key(b), &b.values))
    });
    groups
}

/// The names of all labels that samples have.
#[must_use]
pub fn label_names(profile: &Profile) -> Vec<&str> {
    let sets = (0..profile.label_sets.len()).map(|idx| LabelSetId(idx as u32));
    let mut names: Vec<&str> = sets
        .flat_map(|set| profile.labels(set))
        .map(|(name, _)| profile.str(name))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn text(profile: &Profile, set: LabelSetId, label: &str) -> String {
    let found = profile
        .labels(set)
        .find(|(name, _)| profile.str(*name) == label);
    match found {
        Some((_, LabelValue::Str(text))) => profile.str(text).to_owned(),
        Some((_, LabelValue::Num(number))) => number.to_string(),
        None => String::new(),
    }
}
