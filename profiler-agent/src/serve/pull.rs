//! A pull as both protocols serve it: bounds of what may be asked, and the profile in its format.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use regex::Regex;
use tokio::sync::Semaphore;

use super::query::{Asker, PullError, PullRequest};
use super::scope::Scope;
use crate::format::{Format, FormatError};
use crate::profile::model::{Profile, UnknownType};
use crate::profile::query::{Criteria, PatternError, ProcessFilter, parse_pattern};

/// Most profiles that are taken for clients at one time.
pub const MAX_CONCURRENT_PULLS: usize = 16;

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
    #[error(transparent)]
    Type(#[from] UnknownType),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error(
        "the selector has more than {MAX_IDS} processes and containers or {MAX_PATTERNS} regular expressions"
    )]
    SelectorTooLong,
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
}

impl Selector {
    /// The filter that it describes, for somebody of this scope.
    pub(super) fn parse(self, scope: &Scope) -> Result<ProcessFilter, BadRequest> {
        let sides = [&self.include, &self.exclude];
        let ids = |side: &&SelectorSide| side.pids.len() + side.container.len();
        let n_ids: usize = sides.iter().map(ids).sum();
        let patterns =
            |side: &&SelectorSide| side.comm.len() + side.cmdline.len() + side.cgroup.len();
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
}

impl Puller {
    pub(super) fn new(asker: Asker) -> Self {
        Self {
            asker,
            places: Arc::new(Semaphore::new(MAX_CONCURRENT_PULLS)),
        }
    }

    /// Takes a profile. Dropping the future gives it up.
    pub(super) async fn pull(
        &self,
        request: PullRequest,
        format: &'static Format,
    ) -> Result<Pulled, PullError> {
        let places = Arc::clone(&self.places);
        let place = places.try_acquire_owned();
        let place = place.map_err(|_| PullError::TooManyPulls)?;
        let profile = self.asker.pull(request).await?;
        // Writing a large profile takes longer than an asynchronous task may. The place is given back when it
        // is done, also when the client has left meanwhile.
        let write = move || {
            let _place = place;
            in_format(&profile, format)
        };
        let written = tokio::task::spawn_blocking(write).await;
        written.map_err(|_| PullError::Stopping)
    }
}

fn in_format(profile: &Profile, format: &'static Format) -> Pulled {
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
