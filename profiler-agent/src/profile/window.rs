//! Windows: the spans of some seconds that an agent's samples are cut into, and remarks of several of them.

use super::model::{Profile, ProfileType};

/// A span of time that is over, with all that was sampled in it.
#[derive(Debug)]
pub struct ClosedWindow {
    /// When it began, in nanoseconds since boot.
    pub start_ns: u64,
    /// When it ended, and the next one began, in nanoseconds since boot.
    pub end_ns: u64,
    /// One profile of each type that is sampled, over all processes.
    pub profiles: Vec<(ProfileType, Profile)>,
}

/// Said where a profile is of some processes alone, and something was lost.
pub const OF_ALL_PROCESSES: &str = "what was lost is of all processes of the host together";

/// Whether a remark says something of one process: it is not for who may not see all.
#[must_use]
pub fn names_process(remark: &str) -> bool {
    let mut after = remark.split("process ").skip(1);
    after.any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Remarks of several profiles as those of one. What counts something (`NAME: N (WORDS)`) is added up, the same said twice
/// is said once.
#[derive(Debug, Clone, Default)]
pub struct Remarks {
    /// In the order in which they came.
    lines: Vec<Remark>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Remark {
    Text(String),
    Count {
        name: String,
        count: u64,
        words: String,
    },
}

/// Most remarks that are kept: some name a process.
const MAX_REMARKS: usize = 1000;

impl Remark {
    fn of(line: &str) -> Self {
        let count = || {
            let (name, rest) = line.split_once(": ")?;
            let (count, words) = rest.split_once(" (")?;
            Some(Self::Count {
                name: name.to_owned(),
                count: count.parse().ok()?,
                words: words.strip_suffix(')')?.to_owned(),
            })
        };
        count().unwrap_or_else(|| Self::Text(line.to_owned()))
    }

    /// Takes another one in; false: it says something else.
    fn take(&mut self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Count { name, count, words },
                Self::Count {
                    name: same_name,
                    count: more,
                    words: same_words,
                },
            ) if name == same_name && words == same_words => {
                *count = count.saturating_add(*more);
                true
            }
            (one, other) => one == other,
        }
    }
}

impl Remarks {
    /// Adds those of a profile.
    pub fn add<'a>(&mut self, lines: impl IntoIterator<Item = &'a str>) {
        for line in lines {
            let remark = Remark::of(line);
            let is_said = self.lines.iter_mut().any(|said| said.take(&remark));
            if !is_said && self.lines.len() < MAX_REMARKS {
                self.lines.push(remark);
            }
        }
    }

    /// The lines.
    #[must_use]
    pub fn into_lines(self) -> Vec<String> {
        let line = |remark| match remark {
            Remark::Text(text) => text,
            Remark::Count { name, count, words } => format!("{name}: {count} ({words})"),
        };
        self.lines.into_iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_that_name_a_process_are_told_from_others() {
        for remark in [
            "process 12: no malloc",
            "mappings of process 7 are not sampled any more",
        ] {
            assert!(names_process(remark), "{remark}");
        }
        for remark in [
            "processes that began meanwhile: 3",
            "lost_full: 4 (Samples of a process)",
        ] {
            assert!(!names_process(remark), "{remark}");
        }
    }

    #[test]
    fn counts_are_added_up_and_texts_said_once() {
        let mut remarks = Remarks::default();
        remarks.add(["lost_full: 3 (Samples lost)", "memory was allocated before"]);
        remarks.add([
            "lost_full: 4 (Samples lost)",
            "other: x (y)",
            "lost_full: 1 (else)",
        ]);
        remarks.add(["memory was allocated before"]);
        assert_eq!(
            remarks.into_lines(),
            [
                "lost_full: 7 (Samples lost)",
                "memory was allocated before",
                "other: x (y)",
                "lost_full: 1 (else)"
            ]
        );
    }
}
