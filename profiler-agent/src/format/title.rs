//! A profile in one line.

use std::time::Duration;

use super::text::weight_text;
use super::threads::{process_name, with_id};
use crate::profile::model::Profile;
use crate::profile::query;

/// All of it: `2970 samples`, `256.0 MiB touched`.
fn quantity(profile: &Profile) -> String {
    match profile.weight_idx() {
        0 => format!("{} samples", profile.n_samples()),
        _ => weight_text(profile),
    }
}

/// `2970 samples of 3 processes in 30.0 s`; one process is named.
pub(super) fn title(profile: &Profile) -> String {
    let quantity = quantity(profile);
    let whose = match query::n_processes(profile) {
        0 => String::new(),
        1 => {
            let thread = profile.thread(profile.samples[0].labels);
            format!(" of {}", with_id(&process_name(&thread), thread.pid))
        }
        n_processes => format!(" of {n_processes} processes"),
    };
    match profile.duration {
        Duration::ZERO => format!("{quantity}{whose}"),
        duration => format!("{quantity}{whose} in {:.1} s", duration.as_secs_f64()),
    }
}
