//! Whether something only grows: a sign test on the steps of a series, which takes nothing for granted of its noise.

/// A series that only grows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Growth {
    /// How fast, by the median of the slopes between any two points (Theil and Sen).
    pub per_second: f64,
    /// How probable so many steps up are by chance, where each is up or down alike (0 to 1).
    pub p: f64,
}

/// Fewer points say nothing.
pub const MIN_POINTS: usize = 8;

/// Points that a series must have for growth in each of its steps to be less probable by chance than `max_chance`, where it is
/// one of `n_series`.
#[must_use]
pub fn points_needed(n_series: usize, max_chance: f64) -> usize {
    let n_steps = (n_series.max(1) as f64 / max_chance).log2().ceil();
    MIN_POINTS.max(n_steps as usize + 1)
}

/// Of a series that only grows so large a share of the steps goes up.
const MIN_UP: f64 = 0.8;

/// What has grown must still grow at the end: its last third has so large a share of what an even growth would have, and
/// besides as much as the growth differs from one third to another. That is small for what grows evenly, whatever the noise
/// of a single look; for what fills, ever slower and with noise, it is not.
const MIN_LATE: f64 = 0.5;

/// The same of its last tenth, in which it may also have gone up and down: its highest value there counts.
const MIN_LAST: f64 = 1.0 / 3.0;

/// What only grows does not fall by more than this share of its whole growth at any time. A batch that is freed falls by more
/// than it can have grown by from the begin to the end of the watch.
const MAX_FALL: f64 = 0.5;

impl Growth {
    /// Of points (seconds, value) in the order of their times; `None`: it does not only grow, or there are too few points.
    #[must_use]
    pub fn of(points: &[(f64, f64)]) -> Option<Self> {
        let ([(begin, first), .., (end, last)], true) = (points, points.len() >= MIN_POINTS) else {
            return None;
        };
        let n_steps = points.len() - 1;
        let n_up = points
            .windows(2)
            .filter(|step| step[1].1 > step[0].1)
            .count();
        let since = |share: f64| {
            let is_later = |(at, _): &(f64, f64)| *at >= begin + (end - begin) * share;
            let idx = points.iter().position(is_later)?;
            // One step at least.
            points.get(idx.min(points.len() - 2)..)
        };
        let even = |from: f64| (last - first) * (end - from) / (end - begin);
        let (late, at_end) = (since(2.0 / 3.0)?, since(0.9)?);
        let differing = deviation_of_growth(points, late.len() - 1);
        let highest = at_end
            .iter()
            .map(|(_, value)| *value)
            .fold(f64::MIN, f64::max);
        let (late, at_end) = (late.first()?, at_end.first()?);
        let is_growing = last > first
            && n_up as f64 >= MIN_UP * n_steps as f64
            && last - late.1 >= MIN_LATE * even(late.0) + differing
            && highest - at_end.1 >= MIN_LAST * even(at_end.0)
            && largest_fall(points) <= MAX_FALL * (last - first);
        is_growing.then(|| Self {
            per_second: median_slope(points),
            p: tail(n_steps, n_up),
        })
    }
}

/// The standard deviation of the growth over so many steps, from any point on.
fn deviation_of_growth(points: &[(f64, f64)], n_steps: usize) -> f64 {
    let ends = points.get(n_steps..).unwrap_or_default();
    let growths = || ends.iter().zip(points).map(|(end, begin)| end.1 - begin.1);
    let n = ends.len().max(1) as f64;
    let mean = growths().sum::<f64>() / n;
    let variance = growths().map(|it| (it - mean).powi(2)).sum::<f64>() / n;
    variance.sqrt()
}

/// From a value to any later one.
fn largest_fall(points: &[(f64, f64)]) -> f64 {
    let (mut highest, mut fall) = (f64::NEG_INFINITY, 0.0_f64);
    for (_, value) in points {
        highest = highest.max(*value);
        fall = fall.max(highest - value);
    }
    fall
}

fn median_slope(points: &[(f64, f64)]) -> f64 {
    let mut slopes: Vec<f64> = Vec::new();
    for (idx, (at, value)) in points.iter().enumerate() {
        let later = points[idx + 1..].iter().filter(|(later, _)| later > at);
        slopes.extend(later.map(|(later, then)| (then - value) / (later - at)));
    }
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0)
}

/// How probable it is that at least `n_up` of `n_steps` fair coins show heads.
fn tail(n_steps: usize, n_up: usize) -> f64 {
    let mut term = 0.5_f64.powi(i32::try_from(n_steps).unwrap_or(i32::MAX));
    let mut sum = 0.0;
    for k in 0..=n_steps {
        if k >= n_up {
            sum += term;
        }
        term *= (n_steps - k) as f64 / (k + 1) as f64;
    }
    sum.min(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn series(values: impl IntoIterator<Item = f64>) -> Vec<(f64, f64)> {
        (0..).map(f64::from).zip(values).collect()
    }

    #[test]
    fn what_only_grows_is_found_with_its_slope() {
        let growth = Growth::of(&series((0..21).map(|n| 7.0 + 3.0 * f64::from(n)))).unwrap();
        assert!((growth.per_second - 3.0).abs() < 1e-9);
        assert!((growth.p - 0.5_f64.powi(20)).abs() < 1e-12);
        // Some steps down, as when a collector runs.
        let sawtooth = (0..21).map(|n| f64::from(n) - if n % 10 == 9 { 2.0 } else { 0.0 });
        assert!(Growth::of(&series(sawtooth)).is_some_and(|growth| growth.p < 1e-3));
    }

    #[test]
    fn what_fills_and_stops_or_comes_and_goes_does_not() {
        let fills = (0..21).map(|n| f64::from(n.min(12)));
        assert_eq!(Growth::of(&series(fills)), None);
        let fills_late = (0..21).map(|n: i32| f64::from(n).min(16.0) + f64::from(n) * 1e-6);
        assert_eq!(Growth::of(&series(fills_late)), None);
        for stop in 0..=27 {
            let fills = (0..31).map(|n: i32| f64::from(n.min(stop)));
            assert_eq!(Growth::of(&series(fills)), None, "{stop}");
        }
        let churn = (0..21).map(|n| f64::from(n % 2));
        assert_eq!(Growth::of(&series(churn)), None);
        assert_eq!(Growth::of(&series((0..5).map(f64::from))), None);
        assert_eq!(Growth::of(&[]), None);
    }

    /// Objects that come evenly and live for `life` looks on average, from none on: an M/M/infinity queue.
    fn fills_up(life: f64, random: &mut impl FnMut() -> f64) -> Vec<(f64, f64)> {
        const N_ALIVE: f64 = 400.0;
        let mut ends: Vec<f64> = Vec::new();
        let mut next = 0.0;
        let mut count = |now: f64| {
            while next < now {
                ends.push(next - random().ln() * life);
                next -= random().ln() * life / N_ALIVE;
            }
            ends.retain(|end| *end > now);
            ends.len() as f64
        };
        (0..30)
            .map(|now| (f64::from(now), count(f64::from(now))))
            .collect()
    }

    #[test]
    fn what_lives_for_a_third_of_the_watch_is_not_taken_for_growth() {
        // xorshift64*, so that the outcome is the same each time.
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            ((state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 + 1.0)
                / 9_007_199_254_740_993.0
        };
        for life in [3.0, 6.0, 10.0] {
            let n_found = (0..1000)
                .filter(|_| Growth::of(&fills_up(life, &mut random)).is_some())
                .count();
            // Of growth that is chance 1 in 1000 would be reported, and here the sign test comes on top.
            assert!(n_found <= 1, "{life}: {n_found} of 1000");
        }
    }

    #[test]
    fn a_batch_that_is_freed_once_while_it_is_watched_does_not() {
        // A period of 20 to 30 steps in a watch of 30, from any time of it.
        for period in 20..=30 {
            for begin in 0..period {
                let batch = (0..31).map(|n| f64::from((begin + n) % period));
                assert_eq!(Growth::of(&series(batch)), None, "{period} {begin}");
            }
        }
    }

    #[test]
    fn so_many_points_are_needed_that_chance_is_excluded() {
        for n_series in [1, 57, 1000, 100_000] {
            let n_points = points_needed(n_series, 1e-3);
            let chance = |n_points: usize| {
                let growth = Growth::of(&series((0_u32..).take(n_points).map(f64::from))).unwrap();
                growth.p * n_series as f64
            };
            assert!(chance(n_points) <= 1e-3, "{n_series}");
            assert!(chance(n_points - 1) > 1e-3, "{n_series}");
        }
        assert_eq!(points_needed(0, 0.5), MIN_POINTS);
    }

    #[test]
    fn the_tail_is_that_of_the_binomial_distribution() {
        assert!((tail(4, 0) - 1.0).abs() < 1e-12);
        assert!((tail(4, 3) - 5.0 / 16.0).abs() < 1e-12);
        assert!((tail(20, 20) - 0.5_f64.powi(20)).abs() < 1e-15);
    }

    proptest! {
        #[test]
        fn any_series_gives_finite_numbers_or_nothing(
            values in proptest::collection::vec(-1e12_f64..1e12, 0..40),
        ) {
            if let Some(growth) = Growth::of(&series(values)) {
                prop_assert!(growth.per_second.is_finite());
                prop_assert!((0.0..=1.0).contains(&growth.p));
            }
        }
    }
}
