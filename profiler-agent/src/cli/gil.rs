//! `--gil` and `--idle`, py-spy's words for which samples are meant.

use clap::Args;
use regex::Regex;

use super::exit::ExitError;
use crate::profile::model::{Profile, ProfileType, label};
use crate::profile::query::{LabelFilter, with_labels};

/// Which samples, in py-spy's words.
#[derive(Debug, Args, Clone, Copy, Default)]
pub struct GilArgs {
    /// Only samples whose thread held the GIL
    #[arg(long)]
    pub gil: bool,
    /// Threads that wait too: not yet
    #[arg(long, hide_short_help = true)]
    pub idle: bool,
}

impl GilArgs {
    /// What cannot be answered is refused.
    pub fn check(self, profile_type: ProfileType) -> Result<(), ExitError> {
        let why = if self.idle {
            "--idle cannot be answered yet: pyagent samples time on the CPU, not waiting; `pyagent dump` shows where threads wait"
        } else if self.gil && profile_type != ProfileType::Cpu {
            "--gil is for --type cpu: of memory it is not known who held the GIL"
        } else {
            return Ok(());
        };
        Err(ExitError::Usage(why.to_owned()))
    }

    /// The samples that are meant. What is left out since it is not known is counted among the profile's remarks.
    #[must_use]
    pub fn chosen(self, profile: Profile) -> Profile {
        let Some(filter) = self.filter() else {
            return profile;
        };
        let n_unknown = n_unknown(&profile);
        let mut chosen = with_labels(profile, &[filter]);
        if n_unknown > 0 {
            chosen
                .comments
                .push(format!("gil_unknown: {n_unknown} ({UNKNOWN})"));
        }
        chosen
    }

    /// As a filter by label.
    #[must_use]
    pub fn filter(self) -> Option<LabelFilter> {
        let pattern = Regex::new("^held$").ok().filter(|_| self.gil)?;
        debug_assert!(pattern.is_match(label::GIL_HELD), "it is its only value");
        Some(LabelFilter {
            name: label::GIL.to_owned(),
            pattern,
        })
    }
}

/// Why a sample does not say who held the lock.
pub(super) const UNKNOWN: &str =
    "Samples left out that do not say who held the GIL; free-threaded Python has none";

/// Samples of which it is not known whether their threads held the lock.
fn n_unknown(profile: &Profile) -> i64 {
    let unknown = profile
        .samples
        .iter()
        .filter(|sample| profile.label(sample.labels, label::GIL).is_none());
    unknown.fold(0, |sum, sample| sum.saturating_add(sample.values[0]))
}
