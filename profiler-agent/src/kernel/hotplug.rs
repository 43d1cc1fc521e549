//! CPUs that go offline: the kernel's messages about devices (`NETLINK_KOBJECT_UEVENT`).
//!
//! A CPU can be back before the next look at the list of those that are online, and its events are dead all the same.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// The multicast group of the kernel's own messages.
const KERNEL_GROUP: u32 = 1;

/// Longer than any message (`UEVENT_BUFFER_SIZE` is 2048).
const MESSAGE_BYTES: usize = 4096;

/// What begins a message that a CPU went offline; its number follows.
const WENT_OFFLINE: &str = "offline@/devices/system/cpu/cpu";

/// What became known of CPUs.
#[derive(Debug, PartialEq, Eq)]
pub enum Gone {
    /// These went offline; they may be back.
    Cpus(BTreeSet<u32>),
    /// Messages were lost: it can be any.
    Unknown,
}

/// Listens to the kernel.
#[derive(Debug)]
pub struct CpuMessages {
    socket: OwnedFd,
}

impl CpuMessages {
    /// Begins to listen.
    pub fn listen() -> Result<Self, Errno> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Self { socket })
    }

    /// The CPUs that went offline since the last call.
    #[must_use]
    pub fn gone(&self) -> Gone {
        let mut gone = BTreeSet::new();
        let mut message = [0; MESSAGE_BYTES];
        loop {
            match recv(
                self.socket.as_raw_fd(),
                &mut message,
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(n_bytes) => gone.extend(gone_cpu(&message[..n_bytes.min(MESSAGE_BYTES)])),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Gone::Cpus(gone),
                // ENOBUFS: more came than fits.
                Err(_) => return Gone::Unknown,
            }
        }
    }
}

/// The CPU that a message says to be offline.
fn gone_cpu(message: &[u8]) -> Option<u32> {
    let header = message.split(|byte| *byte == 0).next()?;
    let header = std::str::from_utf8(header).ok()?;
    header.strip_prefix(WENT_OFFLINE)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_of_cpus_that_went_count() {
        let of = |text: &str| gone_cpu(text.as_bytes());
        assert_eq!(
            of("offline@/devices/system/cpu/cpu17\0ACTION=offline\0"),
            Some(17)
        );
        assert_eq!(of("online@/devices/system/cpu/cpu17\0"), None);
        assert_eq!(of("offline@/devices/system/memory/memory3\0"), None);
        assert_eq!(of("offline@/devices/system/cpu/cpuidle\0"), None);
        assert_eq!(gone_cpu(&[0xff, 0xfe]), None);
        assert_eq!(gone_cpu(&[]), None);
    }

    #[test]
    fn a_quiet_kernel_says_nothing() {
        let messages = CpuMessages::listen().unwrap();
        assert_eq!(messages.gone(), Gone::Cpus(BTreeSet::new()));
    }
}
