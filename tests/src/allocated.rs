//! What `workloads/allocated.py` and its like say that they allocate, and how far a sample of it may be off.

/// Mean distance of samples in the tests, in bytes: each call of the larger ones is sampled with a probability of about a
/// quarter, so that one kind of call which is counted twice, or not at all, is outside of the sampling error.
pub const PERIOD: u64 = 64 << 10;

/// Place of a value in a profile of allocations.
pub const ALLOC_OBJECTS: usize = 0;
/// Place of a value in a profile of allocations.
pub const ALLOC_SPACE: usize = 1;
/// Place of a value in a profile of allocations.
pub const INUSE_OBJECTS: usize = 2;
/// Place of a value in a profile of allocations.
pub const INUSE_SPACE: usize = 3;
/// Place of a value in a profile of allocations.
pub const PEAK_SPACE: usize = 4;
/// Place of a value in a profile of allocations.
pub const TEMPORARY_SPACE: usize = 5;

/// What a program says of one of its functions: allocations and their bytes, those that are kept, bytes of small objects
/// that are kept, bytes of arenas that were taken (-1: not known).
pub type Phase = (String, [f64; 6]);

/// Deviation of a sum over `n` allocations of `n_bytes` together, if each is sampled with its probability: that of
/// `n` times a binomial with the weight `1 / p`.
fn deviation(n: f64, n_bytes: f64) -> f64 {
    if n == 0.0 {
        return 0.0;
    }
    let size = n_bytes / n;
    let p = 1.0 - (-size / PERIOD as f64).exp();
    size * (n * (1.0 - p) / p).sqrt()
}

/// What a program says of a function, as values of a profile: which, how much, and the deviation of the sampling.
#[must_use]
pub fn expected_values([n, n_bytes, n_kept, n_bytes_kept, ..]: [f64; 6]) -> [(usize, f64, f64); 4] {
    let (all, kept) = (deviation(n, n_bytes), deviation(n_kept, n_bytes_kept));
    [
        (ALLOC_OBJECTS, n, all * n / n_bytes.max(1.0)),
        (ALLOC_SPACE, n_bytes, all),
        (INUSE_OBJECTS, n_kept, kept * n_kept / n_bytes_kept.max(1.0)),
        (INUSE_SPACE, n_bytes_kept, kept),
    ]
}

/// How far a value of [`expected_values`] may be off: 99.99 % of the sampling error, and what the interpreter allocates beside
/// the objects.
#[must_use]
pub fn allowed(amounts: [f64; 6], value_idx: usize, expected: f64, deviation: f64) -> f64 {
    let [n, n_bytes, ..] = amounts;
    let is_count = matches!(value_idx, ALLOC_OBJECTS | INUSE_OBJECTS);
    let beside = if is_count {
        // Each sample stands for a whole number of objects, half of one more or less.
        let share = n_bytes / n.max(1.0) / PERIOD as f64;
        let n_samples = expected * (1.0 - (-share).exp());
        10.0 + 3.9 * 0.5 * n_samples.sqrt()
    } else {
        f64::from(1 << 16)
    };
    3.9 * deviation + 0.01 * expected + beside
}
