//! Profiles of several nodes become one, whatever a node sends: what cannot be is refused, what is too much is bounded, and what
//! is right of the others stays so.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use foldhash::fast::RandomState;

use super::merge::Merger;
use super::model::{LabelSetId, LabelValue, Profile, ProfileType, StringId, label};
use super::tables::Head;
use super::window::Remarks;

/// Most different samples of all nodes together. Each takes some 80 bytes.
const MAX_ROWS: usize = 8 << 20;

/// Most sets of labels of all nodes together. Each takes some 500 bytes.
const MAX_LABEL_SETS: usize = 1 << 20;

/// Most bytes of texts of all nodes together, and of one of them.
const MAX_TEXT_BYTES: usize = 256 << 20;
const MAX_NODE_TEXT_BYTES: usize = 32 << 20;

/// Most frames in different stacks of all nodes together: four times what one node can have.
const MAX_STACK_FRAMES: usize = 16 << 20;

/// Longest text. Names of C++ templates are the longest that are true.
const MAX_ONE_TEXT_BYTES: usize = 16 << 10;

/// Most CPUs that a node can have: what Linux can be built for.
const MAX_CPUS: u32 = 8192;

/// Most remarks of a node that are kept, and of how many bytes.
const MAX_REMARKS: usize = 32;
const MAX_REMARK_BYTES: usize = 400;

/// Why what a node sent is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Implausible {
    /// Another type than was asked for.
    #[error("it sent a profile of another type")]
    WrongType,
    /// A value below zero.
    #[error("it sent values below zero")]
    Negative,
    /// Another number of samples than it said.
    #[error("it said {said} samples, and sent {sent}")]
    WrongSum {
        /// What it said.
        said: i64,
        /// What it sent.
        sent: i64,
    },
    /// More time than there was.
    #[error("it sent more CPU time than any host has")]
    TooMuchTime,
    /// Too many texts.
    #[error("it sent more than {} MiB of texts", MAX_NODE_TEXT_BYTES >> 20)]
    TooMuchText,
    /// All nodes together have too much.
    #[error(
        "there is no room for more: narrow what is asked for by namespace, workload or --label"
    )]
    Full,
}

/// What was asked of each node.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The type of profile.
    pub profile_type: ProfileType,
    /// How long a profile of it can be; `None`: that is not known.
    pub max_length: Option<Duration>,
}

/// Profiles that are being put together.
#[derive(Debug)]
pub struct Gathering {
    expected: Expected,
    merger: Merger,
    n_text_bytes: usize,
    n_label_sets: usize,
    period: i64,
    has_several_periods: bool,
    start: Option<SystemTime>,
    duration: Duration,
    remarks: Remarks,
}

impl Gathering {
    /// Of no node yet.
    #[must_use]
    pub fn new(expected: Expected) -> Self {
        Self {
            expected,
            merger: Merger::bounded(MAX_STACK_FRAMES),
            n_text_bytes: 0,
            n_label_sets: 0,
            period: 0,
            has_several_periods: false,
            start: None,
            duration: Duration::ZERO,
            remarks: Remarks::default(),
        }
    }

    /// Adds the samples of a node whose labels are meant; all of them are said to be of this node, whatever they say
    /// themselves. Returns how many samples that are. An error: nothing was added.
    ///
    /// `n_said` is the number of samples that the node says it sends.
    pub fn add(
        &mut self,
        node: Option<&str>,
        n_said: i64,
        mut profile: Profile,
        is_meant: impl Fn(&Profile, LabelSetId) -> bool,
    ) -> Result<i64, Implausible> {
        self.check(&profile, n_said)?;
        let n_text_bytes: usize = profile.strings.iter().map(|text| text.len()).sum();
        let is_full = self.merger.n_rows() + profile.samples.len() > MAX_ROWS
            || self.n_label_sets + profile.label_sets.len() > MAX_LABEL_SETS
            || self.n_text_bytes + n_text_bytes > MAX_TEXT_BYTES;
        if n_text_bytes > MAX_NODE_TEXT_BYTES {
            return Err(Implausible::TooMuchText);
        }
        if is_full {
            return Err(Implausible::Full);
        }
        cut_texts(&mut profile);
        if let Some(node) = node {
            name_node(&mut profile, node);
        }
        let mut known: HashMap<LabelSetId, bool, RandomState> = HashMap::default();
        let mut n_samples = 0_i64;
        self.merger.add(&profile, |sample| {
            let is_meant = known
                .entry(sample.labels)
                .or_insert_with(|| is_meant(&profile, sample.labels));
            is_meant.then(|| {
                n_samples = n_samples.saturating_add(sample.values[0]);
                sample.values
            })
        });
        self.n_text_bytes += n_text_bytes;
        self.n_label_sets += profile.label_sets.len();
        self.has_several_periods |= self.period != 0 && self.period != profile.period;
        if self.period == 0 {
            self.period = profile.period;
        }
        self.start = Some(self.start.map_or(profile.start, |it| it.min(profile.start)));
        let longest = self.expected.max_length.unwrap_or(Duration::MAX);
        self.duration = self.duration.max(profile.duration.min(longest));
        let remarks = profile.comments.iter().take(MAX_REMARKS);
        let remarks = remarks.map(|it| &it[..it.floor_char_boundary(MAX_REMARK_BYTES)]);
        self.remarks.add(remarks);
        Ok(n_samples)
    }

    fn check(&self, profile: &Profile, n_said: i64) -> Result<(), Implausible> {
        let types = self.expected.profile_type.sample_types();
        if profile.sample_types != types {
            return Err(Implausible::WrongType);
        }
        let mut sums = [0_i128; 2];
        for sample in &profile.samples {
            if sample.values.of(types).iter().any(|value| *value < 0) {
                return Err(Implausible::Negative);
            }
            for (sum, idx) in sums.iter_mut().zip(0..) {
                *sum += i128::from(sample.values[idx]);
            }
        }
        if sums[0] != i128::from(n_said) {
            let sent = i64::try_from(sums[0]).unwrap_or(i64::MAX);
            return Err(Implausible::WrongSum { said: n_said, sent });
        }
        let is_time = self.expected.profile_type == ProfileType::Cpu;
        if let Some(length) = self.expected.max_length.filter(|_| is_time) {
            let all = length.as_nanos().saturating_mul(u128::from(MAX_CPUS));
            if sums[1].unsigned_abs() > all {
                return Err(Implausible::TooMuchTime);
            }
        }
        Ok(())
    }

    /// The profile, with further remarks.
    #[must_use]
    pub fn finish(self, remarks: impl IntoIterator<Item = String>) -> Profile {
        let mut comments: Vec<String> = remarks.into_iter().collect();
        comments.extend(self.remarks.into_lines());
        if self.has_several_periods {
            comments.push("nodes sample at different rates: compare time, not samples".to_owned());
        }
        self.merger.finish(Head {
            sample_types: self.expected.profile_type.sample_types(),
            period: self.period,
            start: self.start.unwrap_or(SystemTime::UNIX_EPOCH),
            duration: self.duration,
            comments,
        })
    }
}

/// Nobody has names so long.
fn cut_texts(profile: &mut Profile) {
    for text in &mut profile.strings {
        if text.len() > MAX_ONE_TEXT_BYTES {
            let cut = &text[..text.floor_char_boundary(MAX_ONE_TEXT_BYTES)];
            *text = format!("{cut}…").into();
        }
    }
}

/// Each set of labels says this node, and no other.
fn name_node(profile: &mut Profile, node: &str) {
    let known = profile
        .strings
        .iter()
        .position(|it| &**it == label::K8S_NODE_NAME);
    let name = known.unwrap_or(profile.strings.len());
    if known.is_none() {
        profile.strings.push(label::K8S_NODE_NAME.into());
    }
    let name = StringId(name as u32);
    let value = StringId(profile.strings.len() as u32);
    profile.strings.push(node.into());
    for set in &mut profile.label_sets {
        let labels = set.labels.iter().filter(|(it, _)| *it != name).copied();
        set.labels = labels.chain([(name, LabelValue::Str(value))]).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::profile::aggregate::{
        Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
    };
    use crate::profile::model::ValueType;

    const EXPECTED: Expected = Expected {
        profile_type: ProfileType::Cpu,
        max_length: Some(Duration::from_secs(10)),
    };

    /// A profile of one process with this function.
    fn profile(pid: u32, name: &str, values: [i64; 2]) -> Profile {
        let mut aggregator =
            Aggregator::new(SystemTime::UNIX_EPOCH, &ValueType::CPU_SAMPLES, 10_000_000);
        aggregator.add(&ResolvedSample {
            frames: vec![ResolvedFrame {
                function: Arc::new(ResolvedFunction::python(name, "app.py", 1)),
                line: 2,
                address: 0,
            }],
            labels: Arc::new(ThreadLabels {
                process: Arc::new(ProcessLabels::of_pid(pid)),
                tid: pid,
                started_ns: 0,
                thread_name: "main".into(),
            }),
            instruction: None,
            values: values.into(),
        });
        aggregator.finish(Duration::from_secs(10), vec!["lost_full: 2 (Lost)".into()])
    }

    fn add(gathering: &mut Gathering, node: &str, profile: Profile) -> Result<i64, Implausible> {
        let n_samples = profile.n_samples();
        gathering.add(Some(node), n_samples, profile, |_, _| true)
    }

    fn nodes(profile: &Profile) -> Vec<(String, i64)> {
        let node = |labels| {
            profile
                .label(labels, label::K8S_NODE_NAME)
                .unwrap()
                .to_owned()
        };
        let samples = profile.samples.iter();
        samples.map(|it| (node(it.labels), it.values[0])).collect()
    }

    #[test]
    fn the_same_process_id_on_two_nodes_are_two_processes() {
        let mut gathering = Gathering::new(EXPECTED);
        assert_eq!(
            add(&mut gathering, "n1", profile(7, "spin", [3, 30])),
            Ok(3)
        );
        assert_eq!(
            add(&mut gathering, "n2", profile(7, "spin", [4, 40])),
            Ok(4)
        );
        let together = gathering.finish(["one".to_owned()]);
        assert_eq!(
            nodes(&together),
            [("n1".to_owned(), 3), ("n2".to_owned(), 4)]
        );
        assert_eq!(together.stacks.len(), 1);
        assert_eq!(together.duration, Duration::from_secs(10));
        assert_eq!(together.comments, ["one", "lost_full: 4 (Lost)"]);
    }

    #[test]
    fn a_node_speaks_for_itself_alone() {
        let mut gathering = Gathering::new(EXPECTED);
        let mut other = profile(7, "spin", [3, 30]);
        name_node(&mut other, "n2");
        assert_eq!(add(&mut gathering, "n1", other), Ok(3));
        assert_eq!(nodes(&gathering.finish([])), [("n1".to_owned(), 3)]);
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let mut gathering = Gathering::new(EXPECTED);
        add(&mut gathering, "n1", profile(1, "spin", [3, 30])).unwrap();
        let second = 1_000_000_000;
        for (values, error) in [
            ([-1, 5], Implausible::Negative),
            ([1, -5], Implausible::Negative),
            ([1, 8192 * 10 * second + 1], Implausible::TooMuchTime),
            ([1, i64::MAX], Implausible::TooMuchTime),
        ] {
            assert_eq!(
                add(&mut gathering, "n2", profile(2, "lie", values)),
                Err(error)
            );
        }
        let said = gathering.add(Some("n2"), 9, profile(2, "lie", [1, 1]), |_, _| true);
        assert_eq!(said, Err(Implausible::WrongSum { said: 9, sent: 1 }));
        let mut other = profile(2, "lie", [1, 1]);
        other.sample_types = &ValueType::PAGE_FAULTS;
        assert_eq!(
            add(&mut gathering, "n2", other),
            Err(Implausible::WrongType)
        );
        let mut large = profile(2, "lie", [1, 1]);
        large.strings.push("x".repeat(MAX_NODE_TEXT_BYTES).into());
        assert_eq!(
            add(&mut gathering, "n2", large),
            Err(Implausible::TooMuchText)
        );
        let together = gathering.finish([]);
        assert_eq!(nodes(&together), [("n1".to_owned(), 3)]);
        assert!(!together.strings.iter().any(|text| &**text == "lie"));
    }

    #[test]
    fn long_texts_are_cut_and_what_is_not_meant_is_left_out() {
        let mut gathering = Gathering::new(EXPECTED);
        let long = "é".repeat(MAX_ONE_TEXT_BYTES);
        add(&mut gathering, "n1", profile(1, &long, [3, 30])).unwrap();
        let is_first = |profile: &Profile, labels| profile.thread(labels).pid == 1;
        let n_meant = gathering.add(Some("n2"), 4, profile(2, "other", [4, 40]), is_first);
        assert_eq!(n_meant, Ok(0));
        let together = gathering.finish([]);
        let longest = together.strings.iter().map(|text| text.len()).max();
        assert!(longest <= Some(MAX_ONE_TEXT_BYTES + 3));
        assert_eq!(together.n_samples(), 3);
        assert!(!together.strings.iter().any(|text| &**text == "other"));
    }

    #[test]
    fn remarks_of_a_node_are_few_and_short() {
        let mut gathering = Gathering::new(EXPECTED);
        let mut talks = profile(1, "spin", [3, 30]);
        talks.comments = (0..500)
            .map(|it| format!("{it} {}", "é".repeat(500)))
            .collect();
        add(&mut gathering, "n1", talks).unwrap();
        let comments = gathering.finish([]).comments;
        assert_eq!(comments.len(), MAX_REMARKS);
        assert!(comments.iter().all(|it| it.len() <= MAX_REMARK_BYTES));
    }
}
