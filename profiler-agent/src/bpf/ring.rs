//! The ring buffer's reader.

use std::os::fd::AsFd as _;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Records from the kernel, in the order in which they were begun.
pub struct EventRing {
    ring: RingBuf<MapData>,
}

impl EventRing {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Hands every waiting record to `consume`, which says whether to go on.
    pub fn drain(&mut self, mut consume: impl FnMut(&[u8]) -> bool) {
        while let Some(record) = self.ring.next() {
            if !consume(&record) {
                return;
            }
        }
    }

    /// Waits until the kernel wakes the reader, or `timeout` is over; returns whether it was woken. Samples alone
    /// wake it only when a quarter of the ring is full.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let fd = self.ring.as_fd();
        // An interrupted or failed poll is a short wait: the caller drains and waits again.
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout))
            .is_ok_and(|n_ready| n_ready > 0)
    }
}
