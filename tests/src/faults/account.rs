//! Windows that were made against windows that arrived: what was lost, and what came twice.

use std::collections::HashSet;

use serde_json::Value;

use crate::push::int;

/// What became of the windows of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// Faults that were injected.
    pub n_faults: usize,
    /// Windows that the agent closed.
    pub made: usize,
    /// Of them, those that are where they should be, with all of their samples.
    pub delivered: usize,
    /// Deliveries beyond the first one of a window.
    pub twice: usize,
    /// Windows that the receiver refused for good, and the agent counted as such.
    pub refused: usize,
    /// Windows that are missing and were counted by the agent.
    pub counted: usize,
    /// Windows that are missing and nobody says so.
    pub lost: usize,
}

/// A profile of CPU samples that a receiver took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Its id, in hexadecimal digits: the same when it is sent again.
    pub id: String,
    /// When it begins, in nanoseconds since 1970.
    pub time_ns: i64,
    /// Number of its samples.
    pub n_samples: i64,
}

impl Account {
    /// What was made against what arrived. `made` has the samples of each window in the order of the windows; a window that
    /// was cut into several requests has the same begin in each. `refused` and `counted` are the agent's own counts.
    #[must_use]
    pub fn new(n_faults: usize, made: &[i64], arrivals: &[Arrival]) -> Self {
        let (windows, twice) = windows(arrivals);
        let delivered = n_common(made, &windows);
        Self {
            n_faults,
            made: made.len(),
            delivered,
            // What arrived and was never made, or is not in its place, was delivered under another id.
            twice: twice + windows.len() - delivered,
            refused: 0,
            counted: 0,
            lost: made.len() - delivered,
        }
    }

    /// The same, of which so many are known to have been refused.
    #[must_use]
    pub fn refused(self, refused: usize) -> Self {
        Self {
            refused,
            lost: self.lost.saturating_sub(refused),
            ..self
        }
    }

    /// The same, with windows that were never kept and that the agent counted.
    #[must_use]
    pub fn counted(self, counted: usize) -> Self {
        Self {
            made: self.made + counted,
            counted,
            ..self
        }
    }
}

/// Samples of each window that arrived, in the order of their first arrival, and how many profiles came again.
fn windows(arrivals: &[Arrival]) -> (Vec<i64>, usize) {
    let mut known = HashSet::new();
    let mut twice = 0;
    let mut windows: Vec<(i64, i64)> = Vec::new();
    for arrival in arrivals {
        if !known.insert(&arrival.id) {
            twice += 1;
            continue;
        }
        match windows.last_mut() {
            Some((time_ns, n_samples)) if *time_ns == arrival.time_ns => {
                *n_samples += arrival.n_samples;
            }
            _ => windows.push((arrival.time_ns, arrival.n_samples)),
        }
    }
    (windows.into_iter().map(|(_, n)| n).collect(), twice)
}

/// Length of the longest common subsequence: a window that is missing, has less samples than it should, or is out of order
/// makes it shorter.
fn n_common(made: &[i64], arrived: &[i64]) -> usize {
    let mut row = vec![0; arrived.len() + 1];
    for of_made in made {
        let mut diagonal = 0;
        for (idx, of_arrived) in arrived.iter().enumerate() {
            let above = row[idx + 1];
            row[idx + 1] = if of_made == of_arrived {
                diagonal + 1
            } else {
                above.max(row[idx])
            };
            diagonal = above;
        }
    }
    row[arrived.len()]
}

/// The CPU samples of a process in what a Collector has written.
///
/// # Panics
/// When it is no OTLP.
#[must_use]
pub fn of_collector(written: &[Value], pid: u32) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    for data in written {
        let strings = &data["dictionary"]["stringTable"];
        for of_resource in data["resourceProfiles"].as_array().into_iter().flatten() {
            let attributes = crate::push::resource_attributes(data, of_resource);
            if attributes["process.pid"] != pid.to_string() {
                continue;
            }
            let scopes = of_resource["scopeProfiles"].as_array();
            let profiles = scopes
                .into_iter()
                .flatten()
                .flat_map(|scope| scope["profiles"].as_array().into_iter().flatten());
            for profile in profiles {
                let kind = int(&profile["sampleType"]["typeStrindex"]);
                if strings[usize::try_from(kind).expect("an index")] != "samples" {
                    continue;
                }
                let samples = profile["samples"].as_array().into_iter().flatten();
                let values = samples.flat_map(|it| it["values"].as_array().into_iter().flatten());
                arrivals.push(Arrival {
                    id: profile["profileId"].as_str().unwrap_or_default().to_owned(),
                    time_ns: int(&profile["timeUnixNano"]),
                    n_samples: values.map(int).sum(),
                });
            }
        }
    }
    arrivals
}

/// The CPU samples in the requests that tests/peers/otlp_server.py has taken.
#[must_use]
pub fn of_server(requests: &[Value]) -> Vec<Arrival> {
    let taken = requests.iter().filter(|it| it["answer"] == "ok");
    let resources = taken.flat_map(|it| it["resources"].as_array().into_iter().flatten());
    let profiles = resources.flat_map(|it| it["profiles"].as_array().into_iter().flatten());
    let of_samples = profiles.filter(|it| it["type"] == "samples/count");
    of_samples
        .map(|profile| {
            let functions = profile["functions"].as_object().into_iter().flatten();
            Arrival {
                id: profile["id"].as_str().unwrap_or_default().to_owned(),
                time_ns: int(&profile["time_ns"]),
                n_samples: functions.map(|(_, sum)| int(sum)).sum(),
            }
        })
        .collect()
}
