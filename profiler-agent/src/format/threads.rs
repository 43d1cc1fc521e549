//! A profile thread by thread, for formats that keep threads apart.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::escape::escape;
use crate::profile::model::{LocationId, Profile, StackId, Thread, Values};

/// What a thread was seen to do.
pub(super) struct ThreadStacks<'a> {
    /// Which one.
    pub(super) thread: Thread<'a>,
    /// Its stacks, those with the same callers beside each other, with what they count.
    pub(super) stacks: Vec<(StackId, Values)>,
}

/// Every thread, by process and thread id.
pub(super) fn by_thread(profile: &Profile) -> Vec<ThreadStacks<'_>> {
    let mut threads: BTreeMap<Thread<'_>, BTreeMap<StackId, Values>> = BTreeMap::new();
    for sample in &profile.samples {
        let stacks = threads.entry(profile.thread(sample.labels)).or_default();
        stacks.entry(sample.stack).or_default().add(sample.values);
    }
    let from_root = |stack: StackId| -> Vec<LocationId> {
        let locations = profile.stacks.get(stack.0 as usize);
        locations.into_iter().flatten().rev().copied().collect()
    };
    let sorted = |(thread, stacks): (_, BTreeMap<StackId, Values>)| {
        let mut stacks: Vec<_> = stacks.into_iter().collect();
        stacks.sort_by_cached_key(|(stack, _)| from_root(*stack));
        ThreadStacks { thread, stacks }
    };
    threads.into_iter().map(sorted).collect()
}

/// `python3`, for viewers that show the id beside it; the process of what names none is `all processes`.
pub(super) fn process_name<'a>(thread: &Thread<'a>) -> Cow<'a, str> {
    match (thread.comm, thread.pid) {
        ("", 0) => "all processes".into(),
        ("", _) => "process".into(),
        (comm, _) => escape(comm),
    }
}

/// `MainThread`, as well; the thread of what names none is `all threads`.
pub(super) fn thread_name<'a>(thread: &Thread<'a>) -> Cow<'a, str> {
    match (thread.thread_name, thread.tid) {
        ("", 0) => "all threads".into(),
        ("", _) => "thread".into(),
        (name, _) => escape(name),
    }
}

/// `python3 (12)`: a name with the id that is behind it, if there is one.
pub(super) fn with_id(name: &str, id: i64) -> String {
    match id {
        0 => name.to_owned(),
        id => format!("{name} ({id})"),
    }
}

/// Ids of processes and threads as viewers take them.
pub(super) fn id(number: i64) -> u32 {
    u32::try_from(number).unwrap_or_default()
}
