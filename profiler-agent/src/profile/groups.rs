//! A profile by its labels: how much is whose.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;

use foldhash::fast::RandomState;

use super::measure::{Amount, Measure};
use super::model::{LabelSetId, LabelValue, Profile, label};

/// What the samples with the same values of some labels count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The values, in the order in which their labels were named; empty where a sample has none.
    pub values: Vec<String>,
    /// What they count.
    pub amount: Amount,
}

/// The samples by these labels, most weight first. A thread by its id is one, whatever names it had.
#[must_use]
pub fn groups(profile: &Profile, measure: Measure, labels: &[&str]) -> Vec<Group> {
    let mut by_set: IndexMap<LabelSetId, Amount, RandomState> = IndexMap::default();
    for sample in &profile.samples {
        by_set
            .entry(sample.labels)
            .or_default()
            .add(measure.of(sample));
    }
    let is_by_id = labels.contains(&label::TID);
    let names = if is_by_id {
        thread_names(profile, by_set.keys().copied())
    } else {
        ThreadNames::default()
    };
    let mut groups: IndexMap<Vec<String>, Amount, RandomState> = IndexMap::default();
    for (set, amount) in by_set {
        let thread = profile.thread(set);
        let value = |name: &&str| match names.get(&(thread.pid, thread.tid)) {
            Some(known) if *name == label::THREAD_NAME => (*known).to_owned(),
            _ => text(profile, set, name),
        };
        let values = labels.iter().map(value).collect();
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

/// By process and thread.
type ThreadNames<'a> = HashMap<(i64, i64), &'a str, RandomState>;

/// A thread has the name of its process before it gets one and when it ends: its name is the last other one.
fn thread_names(profile: &Profile, sets: impl Iterator<Item = LabelSetId>) -> ThreadNames<'_> {
    let mut names = ThreadNames::default();
    for set in sets {
        let thread = profile.thread(set);
        // What has no id may be many.
        if thread.tid == 0 || thread.thread_name.is_empty() {
            continue;
        }
        let name = names.entry((thread.pid, thread.tid)).or_insert("");
        if name.is_empty() || thread.thread_name != thread.comm {
            *name = thread.thread_name;
        }
    }
    names
}

/// The names of all labels that samples have.
#[must_use]
pub fn label_names(profile: &Profile) -> Vec<&str> {
    let sets: HashSet<LabelSetId> = profile.samples.iter().map(|it| it.labels).collect();
    let mut names: Vec<&str> = sets
        .into_iter()
        .flat_map(|set| profile.labels(set))
        .map(|(name, _)| profile.str(name))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A label that was named and that no sample has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no sample has the label `{}`; {}", .name.escape_debug(), known_text(.known))]
pub struct UnknownLabel {
    /// The name.
    pub name: String,
    /// The names that there are.
    pub known: Vec<String>,
}

fn known_text(known: &[String]) -> String {
    if known.is_empty() {
        return "the samples have no labels".to_owned();
    }
    let known: Vec<String> = known
        .iter()
        .map(|it| it.escape_debug().to_string())
        .collect();
    format!("there are {}", known.join(", "))
}

/// Refuses names of labels that no sample has. A profile without samples says nothing about labels: it refuses none.
pub fn check_labels<'a>(
    profile: &Profile,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<(), UnknownLabel> {
    if profile.samples.is_empty() {
        return Ok(());
    }
    let mut names = names.into_iter().peekable();
    if names.peek().is_none() {
        return Ok(());
    }
    let known = label_names(profile);
    match names.find(|name| !known.contains(name)) {
        Some(name) => Err(UnknownLabel {
            name: name.to_owned(),
            known: known.into_iter().map(str::to_owned).collect(),
        }),
        None => Ok(()),
    }
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
