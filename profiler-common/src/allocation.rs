//! Which allocations are sampled: by their bytes, so that the sample is without bias whatever their sizes are.
//!
//! Two ways. *Poisson* ([`ByteClock::poisson`]): each byte is a sample's begin with the same small probability,
//! independent of all others; an allocation of `n` bytes is sampled with probability `1 - exp(-n / period)`. *Stratified*
//! ([`ByteClock::stratified`]): each `period` bytes in a row have one point in them, at random; less noise, for
//! allocations of one size.

/// How far it is to the next sample, in bytes. One for each CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ByteClock {
    /// Bytes to the next point; 0: not drawn yet.
    pub left: u64,
    /// Stratified: bytes from that point to the end of its stratum.
    pub behind: u64,
}

/// How often a process came to its probes, by [`Place`]. An entry of a map, keyed by process id; programs at probes do
/// nothing in a process that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Hits {
    /// In the order of [`Place`]. Some are missing where two threads counted at the same time.
    pub by_place: [u64; N_PLACES],
}

/// Where in an allocator a probe stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Place {
    /// At the beginning of a function that allocates.
    Enter = 0,
    /// On its way back.
    Leave = 1,
    /// At the beginning of a function that gives memory back.
    Release = 2,
    /// On the way back, on an instruction that is known to be single-stepped.
    LeaveStepped = 3,
}

/// Number of [`Place`]s.
pub const N_PLACES: usize = 4;

/// What a probe on a way back is told when it is placed (its attach cookie): in the lower bits the register that holds the
/// result, as an index into [`crate::event::UserRegisters::general`].
pub mod cookie {
    /// The register.
    pub const REGISTER: u64 = 0xff;
    /// The instruction is single-stepped.
    pub const STEPPED: u64 = 1 << 8;
}

/// Key of the map of sampled allocations that are alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct BlockKey {
    /// Where the memory begins.
    pub address: u64,
    /// Whose.
    pub pid: u32,
    /// One of [`crate::event::source`].
    pub source: u32,
}

/// Longest distance of samples, in bytes.
pub const MAX_PERIOD: u64 = 1 << 32;

impl ByteClock {
    /// Whether an allocation is sampled. `random` has 32 random bits.
    #[inline(always)]
    pub fn poisson(&mut self, n_bytes: u64, period: u64, random: impl FnOnce() -> u32) -> bool {
        if self.left > n_bytes {
            self.left -= n_bytes;
            return false;
        }
        let is_first = self.left == 0;
        self.left = exponential(random(), period).max(1);
        if is_first && self.left > n_bytes {
            self.left -= n_bytes;
            return false;
        }
        true
    }

    /// Bytes that an allocation stands for; 0 when it is not sampled. One that is as large as the period stands for
    /// itself.
    #[inline(always)]
    pub fn stratified(
        &mut self,
        n_bytes: u64,
        period: u64,
        mut random: impl FnMut() -> u32,
    ) -> u64 {
        if n_bytes >= period {
            return n_bytes;
        }
        if self.left == 0 {
            let point = share(random(), period).max(1);
            (self.left, self.behind) = (point, period - point);
        }
        if self.left > n_bytes {
            self.left -= n_bytes;
            return 0;
        }
        let mut weight = period;
        let mut over = n_bytes - self.left;
        let mut next = share(random(), period);
        if self.behind + next <= over {
            // The next stratum's point lies in the same allocation. A third one cannot.
            weight += period;
            over -= self.behind + next;
            self.behind = period - next;
            next = share(random(), period);
        }
        self.left = (self.behind + next).saturating_sub(over).max(1);
        self.behind = period - next;
        weight
    }
}

/// A part of `period`, evenly distributed, less than the whole.
#[inline(always)]
fn share(random: u32, period: u64) -> u64 {
    (period.min(MAX_PERIOD) * (u64::from(random) >> 1)) >> 31
}

/// Steps of [`LOGARITHMS`].
const N_STEPS: usize = 64;

/// `log2(1 + i / 64)`, times 2^32.
const LOGARITHMS: [u64; N_STEPS + 1] = logarithms();

/// By repeated squaring: each square that passes 2 gives a binary digit of the logarithm.
const fn logarithms() -> [u64; N_STEPS + 1] {
    const ONE: u128 = 1 << 62;
    let mut table = [0; N_STEPS + 1];
    let mut idx = 0;
    while idx <= N_STEPS {
        let mut value = ONE + (ONE / N_STEPS as u128) * idx as u128;
        let mut digits = 0_u64;
        let mut whole = 0_u64;
        if value >= 2 * ONE {
            value /= 2;
            whole = 1;
        }
        let mut n_digits = 0;
        while n_digits < 32 {
            value = value * value / ONE;
            digits <<= 1;
            if value >= 2 * ONE {
                value /= 2;
                digits |= 1;
            }
            n_digits += 1;
        }
        table[idx] = (whole << 32) + digits;
        idx += 1;
    }
    table
}

/// An exponentially distributed number with this mean, from 32 random bits: `-ln((random + 1) / 2^32) * mean`.
/// The logarithm is interpolated: the error is below 5 parts in 100,000 of the mean.
#[inline(always)]
#[must_use]
pub fn exponential(random: u32, mean: u64) -> u64 {
    /// ln(2), times 2^16.
    const LN_2: u64 = 45_426;
    let number = u64::from(random) + 1;
    let n_zeros = number.leading_zeros();
    let normalized = number << (n_zeros & 63);
    let idx = (normalized >> 57) as usize & (N_STEPS - 1);
    let rest = (normalized >> 41) & 0xffff;
    let step = LOGARITHMS[idx + 1] - LOGARITHMS[idx];
    let fraction = LOGARITHMS[idx] + ((step * rest) >> 16);
    let logarithm = (u64::from(63 - n_zeros) << 32) + fraction;
    let distance = (32_u64 << 32).saturating_sub(logarithm) >> 12;
    (((mean.min(MAX_PERIOD) * LN_2) >> 16) * distance) >> 20
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    /// Random bits of known quality (xorshift64*), so that the tests' outcomes are the same each time.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u32 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
        }
    }

    #[test]
    fn the_exponential_is_the_logarithm() {
        for random in [
            0,
            1,
            2,
            1000,
            1 << 20,
            1 << 31,
            0xdead_beef,
            u32::MAX - 5000,
        ] {
            let truth = -((f64::from(random) + 1.0) / 4_294_967_296.0).ln() * 1e9;
            let error = exponential(random, 1_000_000_000) as f64 - truth;
            assert!(error.abs() <= 5e-5 * 1e9, "{random}: {error} of {truth}");
        }
        assert_eq!(exponential(u32::MAX, 1 << 20), 0);
        assert!(exponential(0, u64::MAX) > 20 * MAX_PERIOD);
    }

    #[test]
    fn poisson_samples_each_size_with_its_probability() {
        const PERIOD: u64 = 512 << 10;
        let mut random = Random(1);
        for n_bytes in [600_u64, 4096, 100_000, 524_288, 2 << 20] {
            let mut clock = ByteClock::default();
            let n = 40_000_000_000 / n_bytes / 20;
            let n_sampled = (0..n)
                .filter(|_| clock.poisson(n_bytes, PERIOD, || random.next()))
                .count() as f64;
            let p = 1.0 - (-(n_bytes as f64) / PERIOD as f64).exp();
            let (mean, deviation) = (n as f64 * p, (n as f64 * p * (1.0 - p)).sqrt());
            let off = (n_sampled - mean) / deviation;
            assert!(
                off.abs() < 4.0,
                "{n_bytes}: {n_sampled} of {mean} +- {deviation}"
            );
        }
    }

    #[test]
    fn stratified_samples_stand_for_all_bytes_with_little_noise() {
        const PERIOD: u64 = 128 << 10;
        for n_bytes in [4096_u64, 16_384, 100_000, PERIOD - 1, PERIOD, 1 << 20] {
            let mut random = Random(n_bytes);
            let mut clock = ByteClock::default();
            let n = 10_000;
            let sum: u64 = (0..n)
                .map(|_| clock.stratified(n_bytes, PERIOD, || random.next()))
                .sum();
            let error = sum.abs_diff(n * n_bytes);
            assert!(error <= 2 * PERIOD, "{n_bytes}: {error}");
        }
    }

    #[test]
    fn stratified_samples_do_not_beat_with_a_pattern() {
        // Every eighth is of another kind: each kind gets its share.
        const PERIOD: u64 = 128 << 10;
        let mut random = Random(7);
        let mut clock = ByteClock::default();
        let n = 80_000_u64;
        let mut of_kind = 0;
        for idx in 0..n {
            let weight = clock.stratified(16 << 10, PERIOD, || random.next());
            of_kind += if idx % 8 == 3 { weight } else { 0 };
        }
        let share = of_kind as f64 / (n * (16 << 10)) as f64;
        // The binomial's deviation is 0.0033.
        assert!((share - 0.125).abs() < 0.013, "{share}");
    }
}
