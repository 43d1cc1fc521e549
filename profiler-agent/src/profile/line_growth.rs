//! Whether a line only grows: by when the memory was allocated that it still has at the end.
//!
//! What is seen of a line is a sample of its allocations since the watch began, each with the time of its begin and, once it
//! was given back, gone. In-use bytes over time are no good series for a test of steps:
//!
//! - They begin with nothing, since what was allocated before is not seen. A line whose memory lives for 20 s and whose true
//!   in-use bytes never change goes up for 20 s and more.
//! - They are a sum of what came and went: one large value is followed by large ones. Steps are not alike, nor independent;
//!   in a batch that grows for 30 s and is freed at once 29 of 30 go up.
//!
//! The times of what is *kept* have neither fault. A line that only grows keeps as much of each part of the watch as of any
//! other. One whose memory comes and goes, however it varies, keeps little of the older parts; a cache that fills and stops
//! keeps nothing of the late parts; one that was emptied, and a batch that was freed, nothing of those before. Allocations
//! are sampled independently of each other, so the parts are independent as far as the program's own allocations are; no
//! part's value contains another's.
//!
//! The test compares two spans, the first half of the watch, and what follows without its last tenth, in which memory is that
//! would be given back soon. The null hypothesis: the line keeps of one of them, per second, at most a third ([`MARGIN`]) of
//! what it keeps of the other. That holds for each line that fills and stops before 6 tenths of the time, and for all memory
//! that lives for less than 0.41 of the watch on average (exponentially; 25 s of 60 s, two minutes of 5): the spans' middles
//! are 0.45 of the watch apart, and exp(-0.45 / 0.41) is a third. Both spans are cut into parts of a sixtieth. Their sums
//! have a variance of their own, between the parts, which has bursts and all the line's habits in it; it is taken for no less
//! than that of the sampling alone (Horvitz and Thompson): a sample of weight `w` for an allocation of `s` bytes, which is
//! chosen with probability `s / w`, adds `w * (w - s)`. Arenas of small objects are all seen and add nothing. So the
//! difference of the means is judged by Student's distribution with Welch's degrees of freedom, which needs neither a known
//! distribution nor a known rate. `p` is the larger one of both directions, and is to be multiplied by the number of lines
//! that were looked at ([`is_judged`]): which are is decided by how much they keep, not by when it was allocated.
//!
//! What the null hypothesis does not exclude is by rule: at least 8 of 10 tenths of the watch have half of the mean, and the
//! first and the last have a third. So a cache that stops at nine tenths is not reported, and neither is one that began
//! then, or is filled in two bursts. What lives longer than the watch cannot be told from what is never freed by looking at
//! it: a cache that is full and replaces its entries, each after ten minutes. But the process does not grow then. So growth
//! that the process as a whole does not show, in the bytes of its objects or in what it has resident, is not reported
//! ([`confirmed`]).

use super::growth::Growth;

/// One of the spans has at most so large a share of the other's rate: the null hypothesis.
const MARGIN: f64 = 1.0 / 3.0;

/// Parts of the watch, ...
const N_PARTS: usize = 60;

/// ... of which the first span has so many, ...
const N_OLD: usize = 30;

/// ... and the second one those from there to here.
const END_NEW: usize = 54;

/// Tenths of the watch that have [`MIN_SHARE`] of the mean at least.
const MIN_TENTHS: usize = 8;

/// See [`MIN_TENTHS`].
const MIN_SHARE: f64 = 0.5;

/// What the first and the last tenth have of the mean, at least.
const MIN_SHARE_AT_ENDS: f64 = 1.0 / 3.0;

/// Fewer samples say nothing.
pub const MIN_KEPT: usize = 20;

/// So many samples tell even growth from chance in 99 of 100 cases, where 10 lines are looked at.
pub const ENOUGH_KEPT: usize = 280;

/// The same of memory that is seen without sampling and comes evenly, as arenas of small objects do.
pub const ENOUGH_UNSAMPLED: usize = 60;

/// The process as a whole has grown by this share of the line's growth, at least.
const MIN_CONFIRMED: f64 = 0.5;

/// Memory of a line that was sampled and is in use at the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// When it was allocated, in seconds since the begin of the watch.
    pub at: f64,
    /// What the sample stands for.
    pub n_bytes: f64,
    /// The allocation's own size.
    pub size: f64,
}

/// Whether enough is kept for a line to be judged; it counts among those that were looked at then.
#[must_use]
pub fn is_judged(kept: &[Kept], seconds: f64) -> bool {
    let is_old = |it: &&Kept| (0.0..seconds * END_NEW as f64 / N_PARTS as f64).contains(&it.at);
    kept.iter().filter(is_old).count() >= MIN_KEPT
}

/// Growth of a line of which this is kept after a watch of so many seconds; `None`: it does not only grow, or too little is
/// kept. The slope is that of the watch without its last tenth.
#[must_use]
pub fn growth(kept: &[Kept], seconds: f64) -> Option<Growth> {
    if !is_judged(kept, seconds) {
        return None;
    }
    let mut parts = [Part::default(); N_PARTS];
    for it in kept {
        let part = it.at / seconds * N_PARTS as f64;
        if part >= 0.0
            && let Some(part) = parts.get_mut(part as usize)
        {
            part.n_bytes += it.n_bytes;
            part.variance += it.n_bytes * (it.n_bytes - it.size).max(0.0);
        }
    }
    if !is_even(&parts) {
        return None;
    }
    let (old, new) = (Span::of(&parts[..N_OLD]), Span::of(&parts[N_OLD..END_NEW]));
    let p = exceeds(&old, &new).max(exceeds(&new, &old));
    let n_bytes: f64 = parts[..END_NEW].iter().map(|part| part.n_bytes).sum();
    Some(Growth {
        per_second: n_bytes / (seconds * END_NEW as f64 / N_PARTS as f64),
        p,
    })
}

/// Whether a process has grown enough for a line's growth to be believed. `totals`: seconds and bytes, of all that it has, in
/// the order of the times. What it had most in the first tenth counts: a batch may just have been freed.
#[must_use]
pub fn confirmed(line: Growth, totals: &[(f64, f64)]) -> bool {
    let ([(begin, _), .., (end, last)], Some(first)) = (totals, first_tenth(totals)) else {
        return false;
    };
    last - first >= MIN_CONFIRMED * line.per_second * (end - begin)
}

fn first_tenth(totals: &[(f64, f64)]) -> Option<f64> {
    let ((begin, _), (end, _)) = (totals.first()?, totals.last()?);
    let early = totals
        .iter()
        .take_while(|(at, _)| at - begin <= (end - begin) / 10.0);
    early.map(|(_, n_bytes)| *n_bytes).reduce(f64::max)
}

/// What is kept of a part of the watch.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    n_bytes: f64,
    /// Of the sampling.
    variance: f64,
}

/// Whether there is something of each time.
fn is_even(parts: &[Part; N_PARTS]) -> bool {
    let tenths: Vec<f64> = parts
        .chunks(N_PARTS / 10)
        .map(|parts| parts.iter().map(|part| part.n_bytes).sum())
        .collect();
    let ([first, .., last], Some(settled)) = (tenths.as_slice(), tenths.get(..9)) else {
        return false;
    };
    let mean = settled.iter().sum::<f64>() / settled.len() as f64;
    let n_enough = tenths.iter().filter(|it| **it >= MIN_SHARE * mean).count();
    n_enough >= MIN_TENTHS && first.min(*last) >= MIN_SHARE_AT_ENDS * mean
}

/// Several parts in a row.
#[derive(Debug)]
struct Span {
    mean: f64,
    /// Of the mean.
    variance: f64,
    n_parts: f64,
}

impl Span {
    fn of(parts: &[Part]) -> Self {
        let n_parts = parts.len() as f64;
        let mean = parts.iter().map(|part| part.n_bytes).sum::<f64>() / n_parts;
        let off = |part: &Part| (part.n_bytes - mean).powi(2);
        let seen = parts.iter().map(off).sum::<f64>() / (n_parts - 1.0);
        let sampling = parts.iter().map(|part| part.variance).sum::<f64>() / n_parts;
        Self {
            mean,
            variance: seen.max(sampling) / n_parts,
            n_parts,
        }
    }
}

/// How probable it is that `more` has so much by chance, where it has [`MARGIN`] of what `less` has at most.
fn exceeds(more: &Span, less: &Span) -> f64 {
    let (own, others) = (more.variance, MARGIN * MARGIN * less.variance);
    let variance = own + others;
    let t = (more.mean - MARGIN * less.mean) / variance.sqrt();
    let share = |of: f64, span: &Span| (of / variance).powi(2) / (span.n_parts - 1.0);
    let freedom = 1.0 / (share(own, more) + share(others, less));
    if t.is_nan() || more.mean <= 0.0 {
        return 1.0;
    }
    // Without any variance every value is certain.
    let freedom = if freedom.is_finite() { freedom } else { 2.0 };
    student_tail(t, (freedom / 2.0) as u32 * 2)
}

/// How probable it is that a value of Student's distribution with `freedom` degrees, an even number, is above `t`
/// (Abramowitz and Stegun 26.7.4).
fn student_tail(t: f64, freedom: u32) -> f64 {
    let n = f64::from(freedom);
    let sine = t / (n + t * t).sqrt();
    let cosine_squared = n / (n + t * t);
    let (mut term, mut sum) = (1.0, 1.0);
    for k in 1..freedom / 2 {
        let k = f64::from(k);
        term *= cosine_squared * (2.0 * k - 1.0) / (2.0 * k);
        sum += term;
    }
    // What is left of the sum by rounding is no probability.
    ((1.0 - sine * sum) / 2.0).clamp(1e-15, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random numbers of known quality (xorshift64*), so that the tests' outcomes are the same each time.
    struct Random(u64);

    impl Random {
        /// From 0 to 1.
        fn share(&mut self) -> f64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
            (bits as f64 + 0.5) / (1_u64 << 53) as f64
        }

        fn exponential(&mut self, mean: f64) -> f64 {
            -self.share().ln() * mean
        }
    }

    /// What is kept of sampled allocations of a watch of 1 s, `n` of them on average, that live as long as `life` says of
    /// the time at which they are made.
    fn kept(
        random: &mut Random,
        n: f64,
        mut life: impl FnMut(&mut Random, f64) -> f64,
    ) -> Vec<Kept> {
        let mut at = 0.0;
        let mut kept = Vec::new();
        loop {
            at += random.exponential(1.0 / n);
            if at >= 1.0 {
                return kept;
            }
            if at + life(random, at) > 1.0 {
                kept.push(Kept {
                    at,
                    n_bytes: 1.0,
                    size: 0.01,
                });
            }
        }
    }

    /// In how many of `n_runs` runs growth is found, if at most one of 1,000 may be by chance.
    fn found(n_runs: usize, mut run: impl FnMut(&mut Random) -> Vec<Kept>) -> usize {
        let mut random = Random(9);
        (0..n_runs)
            .filter(|_| growth(&run(&mut random), 1.0).is_some_and(|growth| growth.p <= 1e-3))
            .count()
    }

    #[test]
    fn what_is_kept_is_found_with_its_rate() {
        let leak = |random: &mut Random| kept(random, 480.0, |_, _| f64::INFINITY);
        assert_eq!(found(2000, leak), 2000);
        // Beneath ten times as much that is temporary.
        let both = |random: &mut Random| {
            kept(random, 4800.0, |random, _| {
                if random.share() < 0.1 {
                    f64::INFINITY
                } else {
                    random.exponential(0.01)
                }
            })
        };
        assert!(found(2000, both) >= 1998);
        let enough = |random: &mut Random| kept(random, ENOUGH_KEPT as f64, |_, _| f64::INFINITY);
        let n_found = found(2000, enough);
        assert!(n_found >= 1980, "{n_found}");
        let growth = growth(&leak(&mut Random(5)), 1.0).unwrap();
        assert!((growth.per_second / 480.0 - 1.0).abs() < 0.15, "{growth:?}");
    }

    #[test]
    fn arenas_are_found_though_others_began_one_of_ten() {
        let arenas = |random: &mut Random| {
            let n = ENOUGH_UNSAMPLED;
            let begin = random.share();
            let all = (0..n).map(|idx| (begin + idx as f64) / n as f64);
            let own = all.filter(|_| random.share() > 0.1);
            own.map(|at| Kept {
                at,
                n_bytes: 1.0,
                size: 1.0,
            })
            .collect()
        };
        let n_found = found(2000, arenas);
        assert!(n_found >= 1980, "{n_found}");
    }

    #[test]
    fn what_comes_and_goes_is_not_found_whatever_its_rate_and_life() {
        for n in [100.0, 1000.0, 10_000.0] {
            for life in [0.003, 0.03, 0.1, 0.2, 0.3, 0.4] {
                let exponential =
                    |random: &mut Random| kept(random, n, |random, _| random.exponential(life));
                let n_found = found(400, exponential);
                assert!(n_found <= 2, "{n} {life}: {n_found}");
                // All of the same age.
                let constant = |random: &mut Random| kept(random, n, |_, _| 2.0 * life);
                let n_found = found(200, constant);
                assert_eq!(n_found, 0, "{n} {life}");
            }
        }
    }

    #[test]
    fn what_comes_in_bursts_and_goes_is_not_found() {
        // 40 allocations at a time, which live and die together: many samples, few events.
        let bursts = |random: &mut Random| {
            let mut all = Vec::new();
            for one in kept(random, 40.0, |random, _| random.exponential(0.35)) {
                all.extend([one; 40]);
            }
            all
        };
        let n_found = found(1000, bursts);
        assert!(n_found <= 4, "{n_found}");
    }

    #[test]
    fn what_fills_and_stops_or_begins_late_is_not_found() {
        for n in [100.0, 1000.0, 10_000.0] {
            for stop in [0.1, 0.3, 0.5, 0.7, 0.8, 0.9] {
                let fills = |random: &mut Random| {
                    let life =
                        |_: &mut Random, at: f64| if at < stop { f64::INFINITY } else { 0.0 };
                    kept(random, n, life)
                };
                assert_eq!(found(300, fills), 0, "{n} {stop}");
                let begins = |random: &mut Random| {
                    let life =
                        |_: &mut Random, at: f64| if at > 1.0 - stop { f64::INFINITY } else { 0.0 };
                    kept(random, n, life)
                };
                // Also what was freed once, as a batch.
                assert_eq!(found(300, begins), 0, "{n} {stop}");
            }
            // Filled, emptied by half in the middle, and filled again.
            let refills = |random: &mut Random| {
                let life = |random: &mut Random, at: f64| match at {
                    at if at < 0.2 && random.share() < 0.5 => f64::INFINITY,
                    at if (0.7..0.9).contains(&at) => f64::INFINITY,
                    _ => 0.0,
                };
                kept(random, n, life)
            };
            assert_eq!(found(300, refills), 0, "{n}");
        }
    }

    #[test]
    fn the_probability_holds_at_the_edge_of_the_null_hypothesis() {
        // Without the rules: three times as much of one half as of the other.
        for n in [200.0, 2000.0] {
            for old_is_more in [true, false] {
                let mut random = Random(3);
                let mut n_below = [0; 3];
                let n_runs = 10_000;
                for _ in 0..n_runs {
                    let life = |random: &mut Random, at: f64| {
                        let is_more = (at < 0.5) == old_is_more;
                        if is_more || random.share() < MARGIN {
                            f64::INFINITY
                        } else {
                            0.0
                        }
                    };
                    let kept = kept(&mut random, n, life);
                    let mut parts = [Part::default(); N_PARTS];
                    for it in &kept {
                        let part = &mut parts[(it.at * N_PARTS as f64) as usize];
                        part.n_bytes += 1.0;
                        part.variance += 0.99;
                    }
                    let (old, new) = (Span::of(&parts[..N_OLD]), Span::of(&parts[N_OLD..END_NEW]));
                    let p = if old_is_more {
                        exceeds(&new, &old)
                    } else {
                        exceeds(&old, &new)
                    };
                    for (n_below, limit) in n_below.iter_mut().zip([0.1, 0.01, 0.001]) {
                        *n_below += usize::from(p <= limit);
                    }
                }
                eprintln!("{n} {old_is_more} {n_below:?} of {n_runs}");
                for (n_below, limit) in n_below.into_iter().zip([0.1, 0.01, 0.001]) {
                    let expected = f64::from(n_runs) * limit;
                    let allowed = expected + 4.0 * expected.sqrt();
                    assert!((n_below as f64) < allowed, "{n} {limit}: {n_below}");
                }
            }
        }
    }

    #[test]
    fn growth_that_the_process_does_not_show_is_not_believed() {
        let line = Growth {
            per_second: 10.0,
            p: 0.0,
        };
        let of = |value: fn(f64) -> f64| -> Vec<(f64, f64)> {
            (0..31)
                .map(|n| (f64::from(n), value(f64::from(n))))
                .collect()
        };
        assert!(confirmed(line, &of(|at| 500.0 + 9.0 * at)));
        assert!(!confirmed(line, &of(|at| 500.0 + 2.0 * at)));
        assert!(!confirmed(line, &of(|_| 500.0)));
        // A batch that is freed at the begin, and is as large again at the end.
        assert!(!confirmed(
            line,
            &of(|at| if at < 2.0 { 300.0 } else { 10.0 * at })
        ));
        assert!(!confirmed(line, &[]));
        assert!(!confirmed(line, &[(0.0, 5.0)]));
    }

    #[test]
    fn the_tail_is_that_of_students_distribution() {
        // Quantiles of its tables.
        for (freedom, t, p) in [
            (2, 2.920, 0.05),
            (10, 2.764, 0.01),
            (38, 3.319, 0.001),
            (10, 4.144, 0.001),
        ] {
            let error = student_tail(t, freedom) / p - 1.0;
            assert!(error.abs() < 2e-3, "{freedom} {t}: {error}");
        }
        assert!((student_tail(0.0, 38) - 0.5).abs() < 1e-12);
        assert!(student_tail(-50.0, 38) > 0.999 && student_tail(1e9, 38) > 0.0);
    }

    #[test]
    fn any_times_and_sizes_give_finite_numbers_or_nothing() {
        let strange = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300];
        for at in strange {
            for n_bytes in strange {
                let mut all = vec![
                    Kept {
                        at,
                        n_bytes,
                        size: at
                    };
                    50
                ];
                all.extend((0..100).map(|n| Kept {
                    at: f64::from(n) / 100.0,
                    n_bytes: 1.0,
                    size: 1.0,
                }));
                for seconds in [0.0, 1.0, f64::NAN, f64::INFINITY] {
                    let p = growth(&all, seconds).map_or(0.0, |growth| growth.p);
                    assert!((0.0..=1.0).contains(&p), "{at} {n_bytes} {seconds}: {p}");
                }
            }
        }
    }
}
