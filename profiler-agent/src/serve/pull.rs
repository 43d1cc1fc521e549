//! A pull as both protocols serve it: bounds of what may be asked, and the profile in its format.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use regex::Regex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::query::{Asker, PullError, PullRequest, TotalsRequest};
use super::scope::Scope;
use crate::format::{Format, FormatError};
use crate::profile::groups::check_labels;
use crate::profile::model::{Profile, ProfileType, UnknownType};
use crate::profile::query::{
    Criteria, LabelFilter, PatternError, ProcessFilter, RecordedRequest, TimeRange, parse_pattern,
    with_labels,
};
use crate::profile::totals::{HeapView, Totals};

/// Most profiles that are taken for clients at one time.
pub const MAX_CONCURRENT_PULLS: usize = 128;

/// Most profiles of what was recorded that are read at one time; others wait.
const MAX_READERS: usize = 2;

/// Most profiles of what was allocated that are put together at one time; others wait.
const MAX_BUILDERS: usize = 2;

/// Most clients that watch.
const MAX_WATCHERS: usize = 64;

/// Durations that may be asked for.
pub const DURATIONS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(1);

/// Most ids of processes and containers in one selector.
const MAX_IDS: usize = 10_000;

/// Most regular expressions in one selector: each may take a megabyte.
const MAX_PATTERNS: usize = 32;

/// What is wrong with a question.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadRequest {
    #[error("the duration is {0:?}: give 10 ms to 1 h")]
    Duration(Duration),
    #[error(
        "ask for a duration, or for the last so long, or for a time from and to: not for several of them"
    )]
    ManyTimes,
    #[error("the time ends before it begins")]
    EmptyRange,
    #[error(transparent)]
    Type(#[from] UnknownType),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error(
        "the selector has more than {MAX_IDS} processes, containers and namespaces or {MAX_PATTERNS} regular expressions"
    )]
    SelectorTooLong,
    #[error(
        "labels of pods choose among those that run, not in what was recorded: ask for samples by their labels, such as \
         k8s_pod_label_app"
    )]
    PodLabelsOfRecorded,
}

/// A profile that a client wants.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) source: Source,
    /// Only samples with all of these labels.
    pub(super) labels: Vec<LabelFilter>,
    pub(super) format: &'static Format,
}

/// Where it comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// What is sampled from now on.
    Live(PullRequest),
    /// What was recorded.
    Recorded(RecordedRequest),
}

/// A heap profile that a client wants.
#[derive(Debug)]
pub(super) struct HeapWanted {
    /// Of what; `None`: the first of [`HEAP_TYPES`] that the agent samples.
    pub(super) profile_type: Option<ProfileType>,
    pub(super) filter: ProcessFilter,
    /// What was allocated in this time; `None`: since the probes were placed.
    pub(super) duration: Option<Duration>,
    pub(super) labels: Vec<LabelFilter>,
    pub(super) format: &'static Format,
    pub(super) view: HeapView,
}

/// What a heap profile is of, where nothing is said.
const HEAP_TYPES: [ProfileType; 2] = [ProfileType::Alloc, ProfileType::Pools];

/// What a heap profile is made of.
#[derive(Debug)]
enum Heap {
    Since(Totals),
    During(Box<Profile>),
}

/// What a client says of the time that it means.
#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) duration: Option<Duration>,
    pub(super) last: Option<Duration>,
    pub(super) from: Option<SystemTime>,
    pub(super) to: Option<SystemTime>,
}

impl Times {
    /// Where a profile of that time comes from; from now on for `default` when nothing is said.
    pub(super) fn source(
        self,
        profile_type: ProfileType,
        filter: ProcessFilter,
        default: Duration,
    ) -> Result<Source, BadRequest> {
        let range = match self {
            Self {
                last: None,
                from: None,
                to: None,
                duration,
            } => {
                return Ok(Source::Live(PullRequest {
                    profile_type,
                    filter,
                    duration: check_duration(duration.unwrap_or(default))?,
                }));
            }
            Self {
                duration: None,
                last: Some(last),
                from: None,
                to: None,
            } => TimeRange::Last(last),
            Self {
                duration: None,
                last: None,
                from,
                to,
            } => {
                if from.zip(to).is_some_and(|(from, to)| from >= to) {
                    return Err(BadRequest::EmptyRange);
                }
                TimeRange::Between { from, to }
            }
            _ => return Err(BadRequest::ManyTimes),
        };
        check_recorded(&filter)?;
        Ok(Source::Recorded(RecordedRequest {
            profile_type,
            filter,
            range,
        }))
    }
}

/// Refuses a filter that cannot be answered of profiles that are there already.
pub(super) fn check_recorded(filter: &ProcessFilter) -> Result<(), BadRequest> {
    if filter.needs_pod_labels() {
        return Err(BadRequest::PodLabelsOfRecorded);
    }
    Ok(())
}

/// Filters by labels: names, and patterns.
pub(super) fn label_filters(
    labels: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<LabelFilter>, BadRequest> {
    let mut filters = Vec::new();
    for (name, pattern) in labels {
        if filters.len() == MAX_PATTERNS {
            return Err(BadRequest::SelectorTooLong);
        }
        let pattern = parse_pattern(&pattern)?;
        filters.push(LabelFilter { name, pattern });
    }
    Ok(filters)
}

/// A selector as it comes over the wire.
#[derive(Debug, Default)]
pub(super) struct Selector {
    pub(super) include: SelectorSide,
    pub(super) exclude: SelectorSide,
}

/// One side of a [`Selector`].
#[derive(Debug, Default)]
pub(super) struct SelectorSide {
    pub(super) pids: Vec<u32>,
    pub(super) comm: Vec<String>,
    pub(super) cmdline: Vec<String>,
    pub(super) cgroup: Vec<String>,
    pub(super) container: Vec<String>,
    pub(super) namespace: Vec<String>,
    pub(super) pod_labels: Vec<String>,
}

impl Selector {
    /// The filter that it describes, for somebody of this scope.
    pub(super) fn parse(self, scope: &Scope) -> Result<ProcessFilter, BadRequest> {
        let sides = [&self.include, &self.exclude];
        let ids =
            |side: &&SelectorSide| side.pids.len() + side.container.len() + side.namespace.len();
        let n_ids: usize = sides.iter().map(ids).sum();
        let patterns = |side: &&SelectorSide| {
            side.comm.len() + side.cmdline.len() + side.cgroup.len() + side.pod_labels.len()
        };
        let n_patterns: usize = sides.iter().map(patterns).sum();
        if n_ids > MAX_IDS || n_patterns > MAX_PATTERNS {
            return Err(BadRequest::SelectorTooLong);
        }
        Ok(ProcessFilter {
            include: self.include.parse()?,
            exclude: self.exclude.parse()?,
            viewer: scope.viewer(),
        })
    }
}

impl SelectorSide {
    fn parse(self) -> Result<Criteria, PatternError> {
        Ok(Criteria {
            pids: self.pids,
            comm: compile(&self.comm)?,
            cmdline: compile(&self.cmdline)?,
            cgroups: parse(&self.cgroup)?,
            containers: parse(&self.container)?,
            namespaces: parse(&self.namespace)?,
            pod_labels: parse(&self.pod_labels)?,
        })
    }
}

fn compile(patterns: &[String]) -> Result<Vec<Regex>, PatternError> {
    patterns.iter().map(|text| parse_pattern(text)).collect()
}

fn parse<T: FromStr>(texts: &[String]) -> Result<Vec<T>, T::Err> {
    texts.iter().map(|text| text.parse()).collect()
}

/// Checks a duration.
pub(super) fn check_duration(duration: Duration) -> Result<Duration, BadRequest> {
    if DURATIONS.contains(&duration) {
        Ok(duration)
    } else {
        Err(BadRequest::Duration(duration))
    }
}

/// A profile in its format, with what is said about it.
#[derive(Debug)]
pub(super) struct Pulled {
    pub(super) format: &'static Format,
    pub(super) n_samples: i64,
    pub(super) start: SystemTime,
    pub(super) duration: Duration,
    pub(super) comments: Vec<String>,
    pub(super) bytes: Vec<u8>,
}

/// Takes profiles for clients, so many at a time.
#[derive(Debug, Clone)]
pub(super) struct Puller {
    asker: Asker,
    places: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    builders: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
}

impl Puller {
    pub(super) fn new(asker: Asker) -> Self {
        Self {
            asker,
            places: Arc::new(Semaphore::new(MAX_CONCURRENT_PULLS)),
            readers: Arc::new(Semaphore::new(MAX_READERS)),
            builders: Arc::new(Semaphore::new(MAX_BUILDERS)),
            watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
        }
    }

    /// Takes a profile. Dropping the future gives it up.
    pub(super) async fn pull(&self, wanted: Wanted) -> Result<Pulled, PullError> {
        let places = Arc::clone(&self.places);
        let place = places.try_acquire_owned();
        let place = place.map_err(|_| PullError::TooManyPulls)?;
        let (profile, _reader) = match wanted.source {
            Source::Live(request) => (self.asker.pull(request).await?, None),
            Source::Recorded(request) => {
                let readers = Arc::clone(&self.readers);
                let reader = readers.acquire_owned().await;
                let reader = reader.map_err(|_| PullError::Stopping)?;
                (self.asker.pull_recorded(request).await?, Some(reader))
            }
        };
        // Writing a large profile takes longer than an asynchronous task may. The place is given back when it
        // is done, also when the client has left meanwhile.
        let write = move || {
            let _place = place;
            check_labels(&profile, wanted.labels.iter().map(|label| &*label.name))?;
            Ok(in_format(
                &with_labels(profile, &wanted.labels),
                wanted.format,
            ))
        };
        let written = tokio::task::spawn_blocking(write).await;
        written.map_err(|_| PullError::Stopping)?
    }

    /// Takes a heap profile. Dropping the future gives it up.
    pub(super) async fn heap(&self, wanted: HeapWanted) -> Result<Pulled, PullError> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| PullError::TooManyPulls)?;
        let heap = match wanted.profile_type {
            Some(profile_type) => self.heap_of(profile_type, &wanted).await?,
            None => match self.heap_of(HEAP_TYPES[0], &wanted).await {
                Err(PullError::NotSampled(_)) => self.heap_of(HEAP_TYPES[1], &wanted).await?,
                other => other?,
            },
        };
        // Scrapers come for thousands of processes at one time.
        let builder = Arc::clone(&self.builders).acquire_owned().await;
        let builder = builder.map_err(|_| PullError::Stopping)?;
        let write = move || {
            let _both = (place, builder);
            let profile = match heap {
                Heap::Since(totals) => totals.profile(),
                Heap::During(profile) => *profile,
            };
            let profile = with_labels(profile, &wanted.labels).into_heap(wanted.view);
            in_format(&profile, wanted.format)
        };
        let written = tokio::task::spawn_blocking(write).await;
        written.map_err(|_| PullError::Stopping)
    }

    async fn heap_of(
        &self,
        profile_type: ProfileType,
        wanted: &HeapWanted,
    ) -> Result<Heap, PullError> {
        let filter = wanted.filter.clone();
        match wanted.duration {
            Some(duration) => {
                let request = PullRequest {
                    profile_type,
                    filter,
                    duration,
                };
                let pulled = self.asker.pull(request).await;
                pulled.map(|profile| Heap::During(Box::new(profile)))
            }
            None => {
                let request = TotalsRequest {
                    profile_type,
                    filter,
                };
                self.asker.totals(request).await.map(Heap::Since)
            }
        }
    }

    /// A place among those who watch; `None`: there are too many.
    pub(super) fn watch(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.watchers).try_acquire_owned().ok()
    }
}

pub(super) fn in_format(profile: &Profile, format: &'static Format) -> Pulled {
    let mut bytes = Vec::new();
    format
        .write(profile, &mut bytes)
        .expect("writing to memory does not fail");
    Pulled {
        format,
        n_samples: profile.n_samples(),
        start: profile.start,
        duration: profile.duration,
        comments: profile.comments.clone(),
        bytes,
    }
}
