//! Which of a profile's values is looked at, and in which unit.

use super::model::{MAX_VALUES, Profile, Sample, Values};

/// What a value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds.
    Time,
    /// Bytes.
    Bytes,
    /// Samples, faults, objects: things.
    Count,
}

/// One of a profile's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// Which: an index into [`Profile::sample_types`].
    pub idx: usize,
    /// Its unit.
    pub unit: Unit,
}

/// Of some samples: how many, and what they weigh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Samples: the profile's first value.
    pub n_samples: i64,
    /// What is measured.
    pub weight: i64,
}

impl Amount {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.n_samples = self.n_samples.saturating_add(other.n_samples);
        self.weight = self.weight.saturating_add(other.weight);
    }
}

impl Measure {
    /// The value that is looked at when nobody chooses: of time the nanoseconds, of memory the bytes.
    #[must_use]
    pub fn main(profile: &Profile) -> Self {
        let types = profile.sample_types;
        let weight = profile.weight_idx().min(types.len().saturating_sub(1));
        let idx = match types.iter().position(|it| it.unit == "nanoseconds") {
            Some(time) if weight == 0 => time,
            _ => weight,
        };
        Self::at(profile, idx)
    }

    /// The value that samples are weighed by: [`Profile::weight_idx`].
    #[must_use]
    pub fn weight(profile: &Profile) -> Self {
        Self::at(profile, profile.weight_idx())
    }

    /// The value of this kind, such as `alloc_space`; `None`: the profile has none.
    #[must_use]
    pub fn named(profile: &Profile, kind: &str) -> Option<Self> {
        let mut types = profile.sample_types.iter();
        let idx = types.position(|known| known.kind == kind)?;
        Some(Self::at(profile, idx))
    }

    /// Each of the profile's values, in its order.
    #[must_use]
    pub fn all(profile: &Profile) -> Vec<Self> {
        let n_values = profile.sample_types.len().min(MAX_VALUES);
        (0..n_values).map(|idx| Self::at(profile, idx)).collect()
    }

    fn at(profile: &Profile, idx: usize) -> Self {
        let unit = match profile.sample_types.get(idx).map(|it| it.unit) {
            Some("nanoseconds") => Unit::Time,
            Some("bytes") => Unit::Bytes,
            _ => Unit::Count,
        };
        Self { idx, unit }
    }

    /// What a sample counts.
    #[must_use]
    pub fn of(self, sample: &Sample) -> Amount {
        self.amount(sample.values)
    }

    /// What values count.
    #[must_use]
    pub fn amount(self, values: Values) -> Amount {
        Amount {
            n_samples: values[0],
            weight: values[self.idx],
        }
    }

    /// What all samples count.
    #[must_use]
    pub fn whole(self, profile: &Profile) -> Amount {
        let mut whole = Amount::default();
        for sample in &profile.samples {
            whole.add(self.of(sample));
        }
        whole
    }
}
