//! What may be by chance: how far a share, or a number, that was sampled twice can differ though nothing changed.
//!
//! Each error is that of a number of *samples*: nanoseconds and bytes are only what a sample stands for, and say nothing about
//! how often was looked. A share of `n` samples is binomial, a number of samples is Poisson's.

/// How often it may happen, for all that is compared together, that a change is claimed where there is none.
pub const MAX_CHANCE: f64 = 1e-4;

/// A value with the interval that it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Estimate {
    /// What was seen.
    pub value: f64,
    /// Not less than this.
    pub low: f64,
    /// Not more than this.
    pub high: f64,
}

impl Estimate {
    /// Whether chance alone does not explain that it is not 0.
    #[must_use]
    pub fn is_change(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }

    /// How far it may be from the value towards 0: a change that is larger than this is none of chance.
    #[must_use]
    pub fn error(&self) -> f64 {
        if self.value >= 0.0 {
            self.value - self.low
        } else {
            self.high - self.value
        }
    }

    /// `after - before`, each with its own interval: the distances to the bounds that face each other are added as
    /// independent errors are (Newcombe's method 10, Statistics in Medicine 17, 1998).
    #[must_use]
    pub fn difference(before: Self, after: Self) -> Self {
        let value = after.value - before.value;
        Self {
            value,
            low: value - (after.value - after.low).hypot(before.high - before.value),
            high: value + (after.high - after.value).hypot(before.value - before.low),
        }
    }

    /// In another unit.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            value: self.value * factor,
            low: self.low * factor,
            high: self.high * factor,
        }
    }
}

/// The number of standard deviations that none of so many comparisons goes beyond, but with a probability of [`MAX_CHANCE`].
///
/// Bonferroni: each of them gets its part, and each has two sides. That holds however they depend on each other, and they do:
/// what a function gets is taken from another one, and is also its caller's. The tail of the normal distribution is bounded by
/// `exp(-z*z/2)/2`, which is above it for every `z`.
#[must_use]
pub fn deviations(n_comparisons: usize) -> f64 {
    let chance = MAX_CHANCE / (2.0 * n_comparisons.max(1) as f64);
    (-2.0 * (2.0 * chance).ln()).sqrt()
}

/// A share that was seen in `n` independent samples: Wilson's interval, which also holds for shares near 0 and 1, and for few
/// samples, where the plain one has no width at all.
#[must_use]
pub fn share(value: f64, n: f64, z: f64) -> Estimate {
    if n <= 0.0 {
        return Estimate {
            value,
            low: 0.0,
            high: 1.0,
        };
    }
    let value = value.clamp(0.0, 1.0);
    let widening = 1.0 + z * z / n;
    let middle = (value + z * z / (2.0 * n)) / widening;
    let half = z * (value * (1.0 - value) / n + z * z / (4.0 * n * n)).sqrt() / widening;
    Estimate {
        value,
        low: (middle - half).clamp(0.0, value),
        high: (middle + half).clamp(value, 1.0),
    }
}

/// A number of independent samples: the score interval of Poisson's distribution.
#[must_use]
pub fn count(n: f64, z: f64) -> Estimate {
    let n = n.max(0.0);
    let middle = n + z * z / 2.0;
    let half = z * (n + z * z / 4.0).sqrt();
    Estimate {
        value: n,
        low: (middle - half).clamp(0.0, n),
        high: middle + half,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_textbooks() {
        // Newcombe 1998, table II, 56/70 and 48/80 at 95 %: 0.2 (0.0524 to 0.3339), by method 10.
        let z = 1.959_964;
        let a = share(48.0 / 80.0, 80.0, z);
        let b = share(56.0 / 70.0, 70.0, z);
        let change = Estimate::difference(a, b);
        assert!((change.low - 0.0524).abs() < 5e-5, "{change:?}");
        assert!((change.high - 0.3339).abs() < 5e-5, "{change:?}");
        assert!(change.is_change() && (change.error() - 0.1476).abs() < 1e-4);
        // Nothing of 10: up to 0.2775.
        let none = share(0.0, 10.0, z);
        assert!(none.low.abs() < 1e-12 && (none.high - 0.2775).abs() < 5e-5);
        // The score interval of a count of 10: 5.4320 to 18.4095.
        let ten = count(10.0, z);
        assert!((ten.low - 5.4320).abs() < 5e-5 && (ten.high - 18.4095).abs() < 5e-5);
    }

    #[test]
    fn more_comparisons_ask_for_more() {
        // The normal distribution has 0.5e-4 above 3.89; the bound is a little farther out.
        assert!((3.89..4.3).contains(&deviations(1)), "{}", deviations(1));
        assert!(deviations(1000) > deviations(10));
        assert!(deviations(usize::MAX).is_finite());
    }

    #[test]
    fn no_samples_tell_nothing() {
        let nothing = share(0.0, 0.0, 4.0);
        assert!(!Estimate::difference(nothing, share(0.9, 30.0, 4.0)).is_change());
        assert!(!Estimate::difference(count(0.0, 4.0), count(3.0, 4.0)).is_change());
    }
}
