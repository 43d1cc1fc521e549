//! Questions to ask of a profile, and of which processes to take one: totals by function, and the filter
//! over processes that the command line and the service share.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use foldhash::fast::RandomState;
use regex::{Regex, RegexBuilder};

use super::label_selector::LabelSelector;
use super::model::{LabelSetId, LabelValue, Process, Profile, ProfileType, label};
use super::selector::{CgroupSelector, ContainerSelector, NamespaceSelector};

/// Longest regular expression that is accepted, in bytes.
pub const MAX_PATTERN_BYTES: usize = 4096;

/// Largest compiled regular expression, in bytes.
const MAX_COMPILED_PATTERN_BYTES: usize = 1 << 20;

/// Which time is meant, of what was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeRange {
    /// So long until now.
    Last(Duration),
    /// From a moment, or the first; to a moment, or the last.
    Between {
        /// Later than this.
        from: Option<SystemTime>,
        /// Not later than this.
        to: Option<SystemTime>,
    },
}

/// What is asked of the recorder.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// Of what.
    pub profile_type: ProfileType,
    /// Of these processes, whether they still run or not.
    pub filter: ProcessFilter,
    /// Of windows that ended in this time.
    pub range: TimeRange,
}

/// Which samples are meant by a label of theirs.
#[derive(Debug, Clone)]
pub struct LabelFilter {
    /// Name of the label.
    pub name: String,
    /// Searched for in its text; numbers are looked at as decimal text.
    pub pattern: Regex,
}

impl LabelFilter {
    /// Whether a set of labels has such a one.
    #[must_use]
    pub fn matches(&self, profile: &Profile, labels: LabelSetId) -> bool {
        profile.labels(labels).any(|(name, value)| {
            profile.str(name) == self.name
                && match value {
                    LabelValue::Str(text) => self.pattern.is_match(profile.str(text)),
                    LabelValue::Num(number) => self.pattern.is_match(&number.to_string()),
                }
        })
    }
}

/// The samples of a profile that have all of these labels.
#[must_use]
pub fn with_labels(profile: Profile, filters: &[LabelFilter]) -> Profile {
    if filters.is_empty() {
        return profile;
    }
    let mut known: HashMap<LabelSetId, bool, RandomState> = HashMap::default();
    profile.part(|sample| {
        *known.entry(sample.labels).or_insert_with(|| {
            filters
                .iter()
                .all(|filter| filter.matches(&profile, sample.labels))
        })
    })
}

/// Which processes are meant.
///
/// Values of one kind are alternatives (`--pid 1 --pid 2`: one of them), kinds narrow each other (`--pid 1
/// --comm python`: both). `exclude` mirrors it: a process is left out when *any* of its kinds has a value
/// that matches. An empty filter means every process.
#[derive(Debug, Clone, Default)]
pub struct ProcessFilter {
    /// What a process must match.
    pub include: Criteria,
    /// What it must not match.
    pub exclude: Criteria,
    /// Who asks: no process beyond is there for them.
    pub viewer: Viewer,
}

/// Whose processes somebody may see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Viewer {
    /// Everybody's.
    #[default]
    All,
    /// Those that are wholly this user's: [`ProcessFacts::owner`].
    User(u32),
    /// Those in containers of these Kubernetes namespaces.
    Namespaces(Vec<String>),
    /// None.
    Nobody,
}

impl Viewer {
    /// Whether they may see this process. Who may not sees the same as if it were not there.
    #[must_use]
    pub fn sees(&self, process: &ProcessFacts<'_>) -> bool {
        match self {
            Self::All => true,
            Self::User(user) => process.owner == Some(*user),
            Self::Namespaces(names) => {
                let namespace = process.k8s_namespace;
                !namespace.is_empty() && names.iter().any(|name| name == namespace)
            }
            Self::Nobody => false,
        }
    }
}

/// One side of a [`ProcessFilter`].
#[derive(Debug, Clone, Default)]
pub struct Criteria {
    /// Process ids.
    pub pids: Vec<u32>,
    /// Searched for in the kernel's name of the process.
    pub comm: Vec<Regex>,
    /// Searched for in the arguments, joined by single spaces.
    pub cmdline: Vec<Regex>,
    /// Control groups.
    pub cgroups: Vec<CgroupSelector>,
    /// Containers.
    pub containers: Vec<ContainerSelector>,
    /// Namespaces of Kubernetes.
    pub namespaces: Vec<NamespaceSelector>,
    /// Labels of pods: known of those that run, not of what was recorded.
    pub pod_labels: Vec<LabelSelector>,
}

/// What a filter looks at.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessFacts<'a> {
    /// Process id.
    pub pid: u32,
    /// The kernel's name of the process.
    pub comm: &'a str,
    /// The arguments, joined by single spaces.
    pub cmdline: &'a str,
    /// Path of its control group.
    pub cgroup: &'a str,
    /// Id of its container; empty when it is in none.
    pub container_id: &'a str,
    /// Name of its container; empty when it is not known.
    pub container_name: &'a str,
    /// Its Kubernetes namespace; empty when it is in none, or when it is not known.
    pub k8s_namespace: &'a str,
    /// Whether it is in a pod of Kubernetes, of which nothing else may be known.
    pub is_in_pod: bool,
    /// The labels of its pod; `None`: it is in none, or they are not known.
    pub pod_labels: Option<&'a BTreeMap<String, String>>,
    /// The user whose it wholly is, so that the kernel would let that user read its memory; `None`: nobody's but root's, or
    /// it was not asked for ([`ProcessFilter::needs_owner`]).
    pub owner: Option<u32>,
}

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Longer than [`MAX_PATTERN_BYTES`].
    #[error("the regular expression, path or name is longer than {MAX_PATTERN_BYTES} bytes")]
    TooLong,
    /// Not a regular expression, or one that needs too much memory.
    #[error("`{pattern}` is not a usable regular expression: {reason}")]
    Invalid {
        /// The text.
        pattern: String,
        /// What is wrong with it, in one line.
        reason: String,
    },
    /// An empty text in place of a container.
    #[error("the container's id or name is empty")]
    NoContainer,
    /// Not the name of a namespace.
    #[error("`{0}` is no name of a Kubernetes namespace")]
    Namespace(String),
    /// Not a selector of labels.
    #[error("`{selector}` is no label selector, such as app=web,tier!=db: {reason}")]
    Selector {
        /// The text.
        selector: String,
        /// What is wrong with it, in one line.
        reason: String,
    },
}

/// Compiles a pattern of a filter, with bounds on its length and on the memory that it takes.
pub fn parse_pattern(pattern: &str) -> Result<Regex, PatternError> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(PatternError::TooLong);
    }
    RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED_PATTERN_BYTES)
        .build()
        .map_err(|error| PatternError::Invalid {
            pattern: pattern.escape_debug().to_string(),
            reason: last_line(&error.to_string()),
        })
}

/// The regex crate draws the pattern over several lines and says what is wrong in the last one.
fn last_line(message: &str) -> String {
    let line = message.lines().last().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

impl ProcessFilter {
    /// A filter for exactly this process.
    #[must_use]
    pub fn pid(pid: u32) -> Self {
        let mut filter = Self::default();
        filter.include.pids.push(pid);
        filter
    }

    /// Whether a process of a profile is meant.
    #[must_use]
    pub fn means(&self, profile: &Profile, process: &Process) -> bool {
        let text = |name| {
            let mut labels = process.labels.iter();
            let found = labels.find(|(known, _)| profile.str(*known) == name);
            match found {
                Some((_, LabelValue::Str(text))) => profile.str(*text),
                Some((_, LabelValue::Num(_))) | None => "",
            }
        };
        self.matches(&ProcessFacts {
            pid: process.pid,
            comm: text(label::COMM),
            cmdline: profile.str(process.cmdline),
            cgroup: text(label::CGROUP),
            container_id: text(label::CONTAINER_ID),
            container_name: text(label::CONTAINER_NAME),
            k8s_namespace: text(label::K8S_NAMESPACE),
            is_in_pod: !text(label::K8S_POD_UID).is_empty(),
            pod_labels: None,
            owner: process.owner,
        })
    }

    /// Whether every process is meant.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty() && self.viewer == Viewer::All
    }

    /// Whether it looks at [`ProcessFacts::owner`].
    #[must_use]
    pub const fn needs_owner(&self) -> bool {
        matches!(self.viewer, Viewer::User(_))
    }

    /// Whether it looks at labels of pods.
    #[must_use]
    pub fn needs_pod_labels(&self) -> bool {
        !self.include.pod_labels.is_empty() || !self.exclude.pod_labels.is_empty()
    }

    /// Whether this process is meant.
    #[must_use]
    pub fn matches(&self, process: &ProcessFacts<'_>) -> bool {
        if !self.viewer.sees(process) {
            return false;
        }
        let is_included = self
            .include
            .answers(process)
            .into_iter()
            .flatten()
            .all(|yes| yes);
        is_included && !self.excludes(process)
    }

    /// Whether this process is left out, whatever else chooses it.
    #[must_use]
    pub fn excludes(&self, process: &ProcessFacts<'_>) -> bool {
        let answers = self.exclude.answers(process);
        answers.into_iter().flatten().any(|yes| yes)
    }
}

impl Criteria {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            pids,
            comm,
            cmdline,
            cgroups,
            containers,
            namespaces,
            pod_labels,
        } = self;
        pids.is_empty()
            && comm.is_empty()
            && cmdline.is_empty()
            && cgroups.is_empty()
            && containers.is_empty()
            && namespaces.is_empty()
            && pod_labels.is_empty()
    }

    /// For each kind: whether one of its values matches; `None` when it has no values.
    fn answers(&self, process: &ProcessFacts<'_>) -> [Option<bool>; 7] {
        [
            any(&self.pids, |pid| *pid == process.pid),
            any(&self.comm, |pattern| pattern.is_match(process.comm)),
            any(&self.cmdline, |pattern| pattern.is_match(process.cmdline)),
            any(&self.cgroups, |cgroup| cgroup.matches(process.cgroup)),
            any(&self.containers, |container| {
                container.matches(process.container_id, process.container_name)
            }),
            any(&self.namespaces, |namespace| {
                namespace.matches(process.k8s_namespace, process.is_in_pod)
            }),
            any(&self.pod_labels, |selector| {
                let labels = process.pod_labels;
                labels.is_some_and(|labels| selector.matches(labels))
            }),
        ]
    }
}

/// Whether one of the values matches; `None` when there are none.
fn any<T>(values: &[T], matches: impl Fn(&T) -> bool) -> Option<bool> {
    (!values.is_empty()).then(|| values.iter().any(matches))
}

/// Number of different processes in a profile.
#[must_use]
pub fn n_processes(profile: &Profile) -> usize {
    let mut pids: Vec<i64> = profile
        .samples
        .iter()
        .map(|sample| profile.thread(sample.labels).pid)
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids.len()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::profile::aggregate::{
        Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
    };
    use crate::profile::calls::hottest;
    use crate::profile::model::ValueType;

    const WEB: ProcessFacts<'_> = ProcessFacts {
        pid: 10,
        comm: "gunicorn",
        cmdline: "gunicorn app:web --workers 4",
        cgroup: "/system.slice/docker-8a1b.scope",
        container_id: "8a1b2c3d4e5f6071",
        container_name: "web",
        k8s_namespace: "shop",
        is_in_pod: true,
        pod_labels: None,
        owner: Some(1000),
    };
    const WORKER: ProcessFacts<'_> = ProcessFacts {
        pid: 11,
        comm: "python3",
        cmdline: "python3 -m celery worker",
        cgroup: "/system.slice/celery.service",
        container_id: "",
        container_name: "",
        k8s_namespace: "",
        is_in_pod: false,
        pod_labels: None,
        owner: None,
    };

    fn patterns(texts: &[&str]) -> Vec<Regex> {
        texts
            .iter()
            .map(|text| parse_pattern(text).unwrap())
            .collect()
    }

    fn matches(include: Criteria, exclude: Criteria) -> [bool; 2] {
        let filter = ProcessFilter {
            include,
            exclude,
            viewer: Viewer::All,
        };
        [filter.matches(&WEB), filter.matches(&WORKER)]
    }

    #[test]
    fn no_filter_means_every_process() {
        assert!(ProcessFilter::default().is_all());
        assert_eq!(
            matches(Criteria::default(), Criteria::default()),
            [true, true]
        );
    }

    #[test]
    fn a_viewer_sees_what_is_theirs_and_nothing_else() {
        let sees = |viewer: Viewer| {
            let filter = ProcessFilter {
                viewer,
                ..ProcessFilter::default()
            };
            [filter.matches(&WEB), filter.matches(&WORKER)]
        };
        let namespaces = |names: &[&str]| {
            Viewer::Namespaces(names.iter().map(|name| (*name).to_owned()).collect())
        };
        assert_eq!(sees(Viewer::All), [true, true]);
        assert_eq!(sees(Viewer::Nobody), [false, false]);
        assert_eq!(sees(Viewer::User(1000)), [true, false]);
        assert_eq!(sees(Viewer::User(0)), [false, false]);
        assert_eq!(sees(namespaces(&["other", "shop"])), [true, false]);
        assert_eq!(sees(namespaces(&["sho", "shopping"])), [false, false]);
        // That nothing is known is no namespace.
        assert_eq!(sees(namespaces(&[""])), [false, false]);
        // What they ask for makes it narrower, never wider.
        let mut filter = ProcessFilter::pid(11);
        filter.viewer = Viewer::User(1000);
        assert!(!filter.matches(&WORKER) && !filter.matches(&WEB) && !filter.is_all());
    }

    #[test]
    fn the_same_flag_repeated_is_or() {
        let pids = Criteria {
            pids: vec![10, 11],
            ..Criteria::default()
        };
        assert_eq!(matches(pids, Criteria::default()), [true, true]);
        let comm = Criteria {
            comm: patterns(&["^gun", "nothing"]),
            ..Criteria::default()
        };
        assert_eq!(matches(comm, Criteria::default()), [true, false]);
    }

    #[test]
    fn different_flags_are_and() {
        let both = Criteria {
            pids: vec![10, 11],
            cmdline: patterns(&["celery"]),
            ..Criteria::default()
        };
        assert_eq!(matches(both, Criteria::default()), [false, true]);
        let neither = Criteria {
            comm: patterns(&["gunicorn"]),
            cmdline: patterns(&["celery"]),
            ..Criteria::default()
        };
        assert_eq!(matches(neither, Criteria::default()), [false, false]);
    }

    #[test]
    fn pods_are_chosen_by_their_namespaces_and_labels() {
        let namespaces = |names: &[&str]| Criteria {
            namespaces: names.iter().map(|name| name.parse().unwrap()).collect(),
            ..Criteria::default()
        };
        let none = Criteria::default;
        assert_eq!(
            matches(namespaces(&["other", "shop"]), none()),
            [true, false]
        );
        assert_eq!(matches(namespaces(&["*"]), none()), [true, false]);
        assert_eq!(matches(none(), namespaces(&["shop"])), [false, true]);
        let by_label = Criteria {
            pod_labels: vec!["app=web".parse().unwrap()],
            ..Criteria::default()
        };
        let filter = ProcessFilter {
            include: by_label,
            ..ProcessFilter::default()
        };
        assert!(filter.needs_pod_labels() && !filter.is_all());
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let known = ProcessFacts {
            pod_labels: Some(&labels),
            ..WEB
        };
        // Of a pod whose labels are not known nothing is true.
        assert_eq!(
            [&known, &WEB, &WORKER].map(|it| filter.matches(it)),
            [true, false, false]
        );
        let absent = ProcessFilter {
            include: Criteria {
                pod_labels: vec!["!zone".parse().unwrap()],
                ..Criteria::default()
            },
            ..ProcessFilter::default()
        };
        assert_eq!(
            [&known, &WEB, &WORKER].map(|it| absent.matches(it)),
            [true, false, false]
        );
    }

    #[test]
    fn control_groups_and_containers_are_kinds_like_the_others() {
        let container = Criteria {
            containers: vec!["other".parse().unwrap(), "web".parse().unwrap()],
            ..Criteria::default()
        };
        assert_eq!(
            matches(container.clone(), Criteria::default()),
            [true, false]
        );
        assert_eq!(
            matches(Criteria::default(), container.clone()),
            [false, true]
        );
        let both = Criteria {
            cgroups: vec!["celery".parse().unwrap()],
            ..container
        };
        assert_eq!(matches(both, Criteria::default()), [false, false]);
        let group = Criteria {
            cgroups: vec!["/system.slice".parse().unwrap()],
            ..Criteria::default()
        };
        assert!(!group.is_empty());
        assert_eq!(matches(group, Criteria::default()), [true, true]);
    }

    #[test]
    fn an_exclusion_wins_and_each_kind_excludes_alone() {
        let excluded = Criteria {
            pids: vec![10],
            cmdline: patterns(&["celery"]),
            ..Criteria::default()
        };
        assert_eq!(
            matches(Criteria::default(), excluded.clone()),
            [false, false]
        );
        let web = Criteria {
            comm: patterns(&["gunicorn"]),
            ..Criteria::default()
        };
        assert_eq!(matches(web, excluded), [false, false]);
    }

    #[test]
    fn patterns_are_bounded_and_their_errors_are_one_line() {
        assert_eq!(
            parse_pattern(&"a".repeat(5000)).unwrap_err(),
            PatternError::TooLong
        );
        let error = parse_pattern("(").unwrap_err().to_string();
        assert_eq!(
            error,
            "`(` is not a usable regular expression: unclosed group"
        );
        let error = parse_pattern(r"(\w{200}){200}").unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn a_recursion_counts_once() {
        let function = |name: &str| Arc::new(ResolvedFunction::python(name, "/app.py", 1));
        let [main, fib, leaf] = ["main", "fib", "leaf"].map(function);
        let labels = Arc::new(ThreadLabels {
            process: Arc::new(ProcessLabels::of_pid(1)),
            tid: 1,
            started_ns: 0,
            thread_name: "".into(),
        });
        let mut aggregator = Aggregator::new(SystemTime::UNIX_EPOCH, &ValueType::CPU_SAMPLES, 1);
        let stacks: [(&[&Arc<ResolvedFunction>], i64); 3] = [
            (&[&fib, &fib, &fib, &main], 5),
            (&[&leaf, &fib, &fib, &main], 3),
            (&[&main], 1),
        ];
        for (stack, n_samples) in stacks {
            let frames = stack
                .iter()
                .map(|function| ResolvedFrame {
                    function: Arc::clone(function),
                    line: 1,
                    address: 0,
                })
                .collect();
            let labels = Arc::clone(&labels);
            aggregator.add(&ResolvedSample {
                frames,
                labels,
                instruction: None,
                values: [n_samples, n_samples].into(),
            });
        }
        let profile = aggregator.finish(Duration::from_secs(1), Vec::new());
        let totals: Vec<_> = hottest(&profile)
            .into_iter()
            .map(|totals| {
                let name = profile.functions[totals.function.0 as usize].name;
                (profile.str(name), totals.own.weight, totals.total.weight)
            })
            .collect();
        assert_eq!(totals, [("fib", 5, 8), ("leaf", 3, 3), ("main", 1, 9)]);
        assert_eq!(n_processes(&profile), 1);
    }
}
