//! Finds [`Offsets`] on kernels without BTF, from looks at threads of this process whose facts are known.
//!
//! Here: what is looked for, as pure functions. `bpf::calibration` makes the looks.

use std::collections::BTreeMap;

use profiler_common::arch::{self, IS_ARM64};

use super::offsets::MIN_STACK_BYTES;

/// Why an offset could not be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{n_found} places could be the {what}, where one is expected")]
pub struct Ambiguous {
    /// What was looked for.
    pub what: &'static str,
    /// Places that have it.
    pub n_found: usize,
}

/// What a thread knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadFacts {
    /// Its id.
    pub tid: u32,
    /// Its thread pointer.
    pub thread_pointer: u64,
    /// Living threads of the process, it not included.
    pub n_others: u32,
    /// When it began.
    pub began: Began,
}

/// Between which moments a thread began, by two clocks of the kernel, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Began {
    /// The first and the last by `CLOCK_MONOTONIC`.
    pub monotonic: (u64, u64),
    /// The first and the last by `CLOCK_BOOTTIME`.
    pub boot: (u64, u64),
}

impl Began {
    /// Whether two words that lie side by side can be `task_struct.start_time` and `start_boottime`
    /// (`real_start_time` before 5.5; include/linux/sched.h).
    fn is_said_by(&self, monotonic: u64, boot: u64) -> bool {
        let is_between = |(first, last): (u64, u64), at| first <= at && at <= last;
        is_between(self.monotonic, monotonic) && is_between(self.boot, boot)
    }
}

/// Where every structure has the time since boot at which its thread began, behind the same by the other clock.
#[must_use]
pub fn places_of_start(structures: &[(&[u8], Began)]) -> Vec<u32> {
    const WORD: usize = size_of::<u64>();
    let n_bytes = structures.iter().map(|(bytes, _)| bytes.len()).min();
    let has_all = |at: &usize| {
        structures.iter().all(|(bytes, began)| {
            let words = (u64::at(bytes, at - WORD), u64::at(bytes, *at));
            matches!(words, (Some(monotonic), Some(boot)) if began.is_said_by(monotonic, boot))
        })
    };
    (WORD..n_bytes.unwrap_or(0))
        .step_by(WORD)
        .filter(has_all)
        .map(|at| at as u32)
        .collect()
}

/// The only value; else an error that names `what`.
pub fn only<T: Copy>(what: &'static str, found: &[T]) -> Result<T, Ambiguous> {
    match found {
        [one] => Ok(*one),
        _ => Err(Ambiguous {
            what,
            n_found: found.len(),
        }),
    }
}

/// Where the process id lies: right behind the thread id (`task_struct.pid` and `tgid`, include/linux/sched.h), unless the
/// kernel was built with its fields in random order; then at the only place. What is read of a structure can reach into
/// its neighbour, which may be another thread of the process, and has the process id too.
pub fn process_id_beside(tid_at: u32, process_ids: &[u32]) -> Result<u32, Ambiguous> {
    let behind = tid_at.wrapping_add(4);
    if process_ids.contains(&behind) {
        return Ok(behind);
    }
    only("process id", process_ids)
}

/// Where a number was seen in the structures of one thread after the other, for one that not every thread has: the
/// kernel takes the thread pointer from a thread that ends (`deactivate_mm`, arch/x86/include/asm/mmu_context.h), and
/// from then on what is saved when it is switched out is 0.
#[derive(Debug, Default)]
pub struct Votes {
    n_by_place: BTreeMap<u32, u32>,
}

impl Votes {
    /// Threads that must have it at the same place.
    const MIN_VOTES: u32 = 2;

    /// The places in one thread.
    pub fn add(&mut self, places: &[u32]) {
        for place in places {
            *self.n_by_place.entry(*place).or_default() += 1;
        }
    }

    /// The place that more than twice as many threads have than any other: what is left of a thread that has ended,
    /// with a thread pointer that is used again, can lie behind the structure of another.
    pub fn winner(&self, what: &'static str) -> Result<u32, Ambiguous> {
        let most = self.n_by_place.values().max().copied().unwrap_or(0);
        let near: Vec<u32> = self
            .n_by_place
            .iter()
            .filter(|(_, n_votes)| **n_votes * 2 >= most.max(Self::MIN_VOTES))
            .map(|(place, _)| *place)
            .collect();
        match near[..] {
            [place] if most >= Self::MIN_VOTES => Ok(place),
            _ => Err(Ambiguous {
                what,
                n_found: if most < Self::MIN_VOTES {
                    0
                } else {
                    near.len()
                },
            }),
        }
    }
}

/// Offsets at which every structure has the number that belongs to it: of 4 bytes, or of 8.
pub fn places_of<N: Number>(structures: &[(&[u8], N)]) -> Vec<u32> {
    let n_bytes = structures.iter().map(|(bytes, _)| bytes.len()).min();
    let has_all = |at: &usize| {
        structures
            .iter()
            .all(|(bytes, expected)| N::at(bytes, *at) == Some(*expected))
    };
    (0..n_bytes.unwrap_or(0))
        .step_by(size_of::<u32>())
        .filter(has_all)
        .map(|at| at as u32)
        .collect()
}

/// What can be looked for in a structure.
pub trait Number: PartialEq + Copy {
    /// The number at an offset.
    fn at(bytes: &[u8], at: usize) -> Option<Self>;
}

impl Number for u32 {
    fn at(bytes: &[u8], at: usize) -> Option<Self> {
        let bytes = bytes.get(at..at + size_of::<Self>())?;
        bytes.try_into().map(Self::from_le_bytes).ok()
    }
}

impl Number for u64 {
    fn at(bytes: &[u8], at: usize) -> Option<Self> {
        let bytes = bytes.get(at..at + size_of::<Self>())?;
        bytes.try_into().map(Self::from_le_bytes).ok()
    }
}

/// `signal_struct.live` and `nr_threads` behind it, while a thread ends: the first counts it no longer, the second
/// still does. Alone the first could be the number of users of an `mm_struct` too.
#[must_use]
pub const fn living_threads(thread: &ThreadFacts) -> u64 {
    thread.n_others as u64 | (thread.n_others as u64 + 1) << 32
}

/// Offsets of what looks like a pointer into the kernel in every structure.
pub fn pointers(structures: &[&[u8]], is_one: impl Fn(&[u64]) -> bool) -> Vec<u32> {
    let n_words = structures.iter().map(|bytes| bytes.len() / 8).min();
    let values = |idx: usize| -> Vec<u64> {
        let word = |bytes: &&[u8]| u64::at(bytes, idx * 8);
        structures.iter().filter_map(word).collect()
    };
    (0..n_words.unwrap_or(0))
        .filter(|idx| {
            let values = values(*idx);
            values.iter().all(|value| is_kernel_address(*value)) && is_one(&values)
        })
        .map(|idx| idx as u32 * 8)
        .collect()
}

/// The upper end of the address space is the kernel's.
const fn is_kernel_address(value: u64) -> bool {
    value >= arch::THIS.kernel_addresses && value & 7 == 0
}

/// Whether all are the same: what the threads of a process share.
#[must_use]
pub fn are_equal(values: &[u64]) -> bool {
    values.windows(2).all(|pair| pair[0] == pair[1])
}

/// Whether each can be where a kernel stack begins.
#[must_use]
pub fn are_stacks(values: &[u64]) -> bool {
    values.iter().all(|value| value & 0xfff == 0)
}

/// Bytes that a kernel stack can have: on arm64 as much as the largest page.
pub const STACK_BYTES: &[u32] = if IS_ARM64 {
    &[MIN_STACK_BYTES, 2 * MIN_STACK_BYTES, 4 * MIN_STACK_BYTES]
} else {
    &[MIN_STACK_BYTES, 2 * MIN_STACK_BYTES]
};

/// How far before the end of a kernel stack the `pt_regs` begin, if they are those of a thread that is in the system call
/// `exit`.
#[must_use]
pub fn registers_of_exit(stack_end: &[u8], thread: &ThreadFacts) -> Option<u32> {
    let of_arch: &[RegistersOfExit] = if IS_ARM64 {
        &RegistersOfExit::ARM64
    } else {
        &RegistersOfExit::X86_64
    };
    of_arch
        .iter()
        .find(|registers| registers.are_at_end_of(stack_end, thread))
        .map(|registers| registers.n_bytes)
}

/// What is known of the `pt_regs` of a thread that ends.
struct RegistersOfExit {
    /// From its beginning to the end of the stack.
    n_bytes: u32,
    /// Where the stack pointer lies in it.
    sp_at: usize,
    /// Where else something lies: offset, mask, value.
    words: &'static [(usize, u64, u64)],
}

impl RegistersOfExit {
    /// Kernels built with FRED leave 16 bytes behind them (`TOP_OF_KERNEL_STACK_PADDING`,
    /// arch/x86/include/asm/thread_info.h, 6.9).
    const X86_64: [Self; 2] = [Self::x86_64(168), Self::x86_64(184)];

    /// `orig_ax` is the number of the system call; `cs` and `ss` are `__USER_CS` and `__USER_DS`.
    const fn x86_64(n_bytes: u32) -> Self {
        Self {
            n_bytes,
            sp_at: 152,
            words: &[
                (120, u64::MAX, arch::X86_64.exit_number as u64),
                (136, 0xffff, 0x33),
                (160, 0xffff, 0x2b),
            ],
        }
    }

    /// Kernels differ in what follows `syscallno` (336 bytes from 5.8 to 6.12, arch/arm64/include/asm/ptrace.h).
    const ARM64: [Self; 4] = [
        Self::arm64(304),
        Self::arm64(320),
        Self::arm64(336),
        Self::arm64(352),
    ];

    /// x8 and `syscallno` are the number of the system call; the mode in `pstate` is that of user space.
    const fn arm64(n_bytes: u32) -> Self {
        Self {
            n_bytes,
            sp_at: 248,
            words: &[
                (264, 0xf, 0),
                (280, 0xffff_ffff, arch::ARM64.exit_number as u64),
            ],
        }
    }

    fn are_at_end_of(&self, stack_end: &[u8], thread: &ThreadFacts) -> bool {
        /// A thread's stack lies below what its thread pointer points to; threads here have at most this much.
        const MAX_STACK_BYTES: u64 = 64 << 20;
        // Of the registers the first can lie in front of what was looked at.
        let word = |at: usize| {
            let from_end = (self.n_bytes as usize).checked_sub(at)?;
            u64::at(stack_end, stack_end.len().checked_sub(from_end)?)
        };
        let is_near = |sp: u64| thread.thread_pointer.wrapping_sub(sp) < MAX_STACK_BYTES;
        let has = |(at, mask, value): &(usize, u64, u64)| {
            word(*at).is_some_and(|word| word & mask == *value)
        };
        word(self.sp_at).is_some_and(is_near) && self.words.iter().all(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structure(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn the_process_id_lies_behind_the_thread_id_or_at_the_only_place() {
        assert_eq!(process_id_beside(100, &[104, 5000]), Ok(104));
        assert_eq!(process_id_beside(100, &[48]), Ok(48));
        assert!(process_id_beside(100, &[48, 5000]).is_err());
        assert!(process_id_beside(u32::MAX, &[]).is_err());
    }

    #[test]
    fn only_places_that_hold_for_every_thread_are_found() {
        let first = structure(&[7, 0x1000, 0x2000_0000_0007, 7]);
        let second = structure(&[7, 0x2000, 0x2000_0000_0008, 9]);
        assert_eq!(places_of::<u64>(&[(&first, 7), (&second, 9)]), [24]);
        assert_eq!(places_of::<u32>(&[(&first, 7), (&second, 8)]), [16]);
        assert_eq!(places_of::<u64>(&[(&first, 1)]), [0_u32; 0]);
        // Of structures that were read to different lengths the shorter counts.
        assert_eq!(places_of::<u64>(&[(&first, 7), (&second[..8], 7)]), [0]);
    }

    #[test]
    fn a_place_that_most_threads_have_wins_over_leftovers() {
        let mut votes = Votes::default();
        assert_eq!(votes.winner("x").unwrap_err().n_found, 0);
        votes.add(&[]);
        votes.add(&[16]);
        assert_eq!(votes.winner("x").unwrap_err().n_found, 0);
        votes.add(&[16, 48]);
        assert_eq!(votes.winner("x").unwrap_err().n_found, 2);
        votes.add(&[16]);
        assert_eq!(votes.winner("x"), Ok(16));
        votes.add(&[48]);
        assert_eq!(votes.winner("x").unwrap_err().n_found, 2);
    }

    #[test]
    fn two_places_are_none() {
        assert_eq!(only("x", &[4]), Ok(4));
        for found in [&[][..], &[4, 8]] {
            let error = only("thread id", found).unwrap_err();
            assert_eq!(error.n_found, found.len());
            assert!(
                error
                    .to_string()
                    .ends_with("could be the thread id, where one is expected")
            );
        }
    }

    #[test]
    fn pointers_into_the_kernel_are_told_from_those_of_user_space() {
        let shared = 0xffff_8881_0000_1000;
        let first = structure(&[shared, 0xffff_c900_0001_0000, 0x7f00_0000_1000, u64::MAX]);
        let second = structure(&[shared, 0xffff_c900_0002_0010, 0x7f00_0000_1000, u64::MAX]);
        let both = [&first[..], &second[..]];
        let five_levels = structure(&[0xff30_fc2d_8074_bb00, 0x00ff_ffff_0000_1000]);
        assert_eq!(pointers(&[&five_levels[..]], are_equal), [0]);
        assert_eq!(pointers(&both, are_equal), [0]);
        assert_eq!(pointers(&both, are_stacks), [0]);
        assert_eq!(pointers(&both[..1], are_stacks), [0, 8]);
    }

    #[test]
    fn the_start_of_a_thread_is_told_by_two_clocks_side_by_side() {
        let began = |ns: u64| Began {
            monotonic: (ns, ns + 50),
            boot: (ns + 1000, ns + 1050),
        };
        // A time that is no start, the start by both clocks, and the second of them alone.
        let of = |ns: u64| structure(&[900, ns + 20, ns + 1020, 7, ns + 1030]);
        let (first, second) = (of(5000), of(6000));
        let both = [(&first[..], began(5000)), (&second[..], began(6000))];
        assert_eq!(places_of_start(&both), [16]);
        let swapped = [(&second[..], began(5000)), (&first[..], began(6000))];
        assert_eq!(places_of_start(&swapped), [0_u32; 0]);
        assert_eq!(places_of_start(&[(&first[..12], began(5000))]), [0_u32; 0]);
    }

    #[test]
    fn the_number_of_living_threads_is_told_from_other_counts_of_them() {
        let thread = ThreadFacts {
            tid: 1,
            thread_pointer: 0,
            n_others: 3,
            began: Began::default(),
        };
        // sigcnt, live, nr_threads; then a count that stands alone.
        let mut signal = Vec::new();
        for count in [4_u32, 3, 4, 0, 3, 9] {
            signal.extend(count.to_le_bytes());
        }
        assert_eq!(places_of(&[(&signal, living_threads(&thread))]), [4]);
    }

    #[test]
    fn registers_of_a_thread_that_exits_are_known() {
        let thread = ThreadFacts {
            tid: 1,
            thread_pointer: 0x7f00_0080_0000,
            n_others: 1,
            began: Began::default(),
        };
        let [registers, padded] = RegistersOfExit::X86_64;
        let are_those = |words: &[u64]| registers.are_at_end_of(&structure(words), &thread);
        let mut words = [0_u64; 24];
        (words[18], words[20], words[22], words[23]) = (60, 0x33, 0x7f00_007f_f000, 0x2b);
        assert!(are_those(&words));
        assert!(are_those(&words[3..]));
        assert!(!are_those(&words[19..]));
        let with_padding = [&words[..], &[0; 2]].concat();
        assert!(padded.are_at_end_of(&structure(&with_padding), &thread));
        assert!(!are_those(&with_padding));
        words[22] = 0x7e00_0000_0000;
        assert!(!are_those(&words));
    }

    #[test]
    fn registers_of_arm64_are_known_whatever_follows_them() {
        let thread = ThreadFacts {
            tid: 1,
            thread_pointer: 0xffff_a080_0740,
            n_others: 1,
            began: Began::default(),
        };
        for n_bytes in [304, 320, 336, 352] {
            let mut words = vec![0_u64; n_bytes / 8];
            // sp, pstate with a condition flag, syscallno with another field behind it.
            (words[31], words[33], words[35]) = (0xffff_a07f_f000, 0x4000_0000, (0xe0 << 32) + 93);
            let found = |words: &[u64]| {
                let stack_end = structure(&words[words.len() - 32..]);
                let mut all = RegistersOfExit::ARM64.iter();
                all.find(|registers| registers.are_at_end_of(&stack_end, &thread))
                    .map(|registers| registers.n_bytes as usize)
            };
            assert_eq!(found(&words), Some(n_bytes));
            words[35] = 94;
            assert_eq!(found(&words), None);
        }
    }
}
