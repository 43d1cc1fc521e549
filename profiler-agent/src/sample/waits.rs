//! What a thread waited for: by the system call that it was in, by what the call's descriptor is, and by the kernel's
//! functions.

use std::path::Path;

use libc::c_long;
use profiler_common::event::{sample_flags, task_state};

use super::decode::RawSample;
use crate::ids::Pid;
use crate::profile::aggregate::ResolvedFrame;
use crate::profile::model::FrameKind;
use crate::profile::wait::WaitReason;

/// What a system call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// Always the same.
    Known(WaitReason),
    /// What its first argument is a descriptor of.
    Descriptor,
    /// Descriptors whose number is the first argument; without any, time to pass: so sleeps CPython up to 3.10.
    Select,
}

/// System calls that every processor has.
const CALLS: &[(c_long, Call)] = &[
    (libc::SYS_futex, Call::Known(WaitReason::Lock)),
    (libc::SYS_nanosleep, Call::Known(WaitReason::Sleep)),
    (libc::SYS_clock_nanosleep, Call::Known(WaitReason::Sleep)),
    (libc::SYS_ppoll, Call::Known(WaitReason::Poll)),
    (libc::SYS_pselect6, Call::Select),
    (libc::SYS_epoll_pwait, Call::Known(WaitReason::Poll)),
    (SYS_EPOLL_PWAIT2, Call::Known(WaitReason::Poll)),
    (libc::SYS_wait4, Call::Known(WaitReason::Child)),
    (libc::SYS_waitid, Call::Known(WaitReason::Child)),
    // The parent of a `vfork` waits until the child has become another program.
    (libc::SYS_clone, Call::Known(WaitReason::Child)),
    (libc::SYS_clone3, Call::Known(WaitReason::Child)),
    (libc::SYS_read, Call::Descriptor),
    (libc::SYS_write, Call::Descriptor),
    (libc::SYS_readv, Call::Descriptor),
    (libc::SYS_writev, Call::Descriptor),
    (libc::SYS_ioctl, Call::Descriptor),
    (libc::SYS_fcntl, Call::Descriptor),
    (libc::SYS_sendfile, Call::Descriptor),
    (libc::SYS_splice, Call::Descriptor),
    (libc::SYS_close, Call::Descriptor),
    (libc::SYS_pread64, Call::Known(WaitReason::File)),
    (libc::SYS_pwrite64, Call::Known(WaitReason::File)),
    (libc::SYS_preadv, Call::Known(WaitReason::File)),
    (libc::SYS_pwritev, Call::Known(WaitReason::File)),
    (libc::SYS_fsync, Call::Known(WaitReason::File)),
    (libc::SYS_fdatasync, Call::Known(WaitReason::File)),
    (libc::SYS_sync_file_range, Call::Known(WaitReason::File)),
    (libc::SYS_flock, Call::Known(WaitReason::File)),
    (libc::SYS_fallocate, Call::Known(WaitReason::File)),
    (libc::SYS_ftruncate, Call::Known(WaitReason::File)),
    (libc::SYS_getdents64, Call::Known(WaitReason::File)),
    (libc::SYS_copy_file_range, Call::Known(WaitReason::File)),
    (libc::SYS_openat, Call::Known(WaitReason::File)),
    (libc::SYS_newfstatat, Call::Known(WaitReason::File)),
    (libc::SYS_statx, Call::Known(WaitReason::File)),
    (libc::SYS_fstat, Call::Known(WaitReason::File)),
    (libc::SYS_unlinkat, Call::Known(WaitReason::File)),
    (libc::SYS_renameat2, Call::Known(WaitReason::File)),
    (libc::SYS_mkdirat, Call::Known(WaitReason::File)),
    (libc::SYS_readlinkat, Call::Known(WaitReason::File)),
    (libc::SYS_faccessat, Call::Known(WaitReason::File)),
    (libc::SYS_execve, Call::Known(WaitReason::File)),
    (libc::SYS_recvfrom, Call::Known(WaitReason::Socket)),
    (libc::SYS_recvmsg, Call::Known(WaitReason::Socket)),
    (libc::SYS_recvmmsg, Call::Known(WaitReason::Socket)),
    (libc::SYS_sendto, Call::Known(WaitReason::Socket)),
    (libc::SYS_sendmsg, Call::Known(WaitReason::Socket)),
    (libc::SYS_sendmmsg, Call::Known(WaitReason::Socket)),
    (libc::SYS_accept, Call::Known(WaitReason::Socket)),
    (libc::SYS_accept4, Call::Known(WaitReason::Socket)),
    (libc::SYS_connect, Call::Known(WaitReason::Socket)),
    (libc::SYS_mmap, Call::Known(WaitReason::Memory)),
    (libc::SYS_munmap, Call::Known(WaitReason::Memory)),
    (libc::SYS_mremap, Call::Known(WaitReason::Memory)),
    (libc::SYS_mprotect, Call::Known(WaitReason::Memory)),
    (libc::SYS_madvise, Call::Known(WaitReason::Memory)),
    (libc::SYS_brk, Call::Known(WaitReason::Memory)),
    (libc::SYS_rt_sigtimedwait, Call::Known(WaitReason::Signal)),
    (libc::SYS_rt_sigsuspend, Call::Known(WaitReason::Signal)),
];

/// The same number everywhere (5.11+).
const SYS_EPOLL_PWAIT2: c_long = 441;

/// Those that newer processors do without.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[(c_long, Call)] = &[
    (libc::SYS_poll, Call::Known(WaitReason::Poll)),
    (libc::SYS_select, Call::Select),
    (libc::SYS_epoll_wait, Call::Known(WaitReason::Poll)),
    (libc::SYS_fork, Call::Known(WaitReason::Child)),
    (libc::SYS_vfork, Call::Known(WaitReason::Child)),
    (libc::SYS_open, Call::Known(WaitReason::File)),
    (libc::SYS_stat, Call::Known(WaitReason::File)),
    (libc::SYS_lstat, Call::Known(WaitReason::File)),
    (libc::SYS_access, Call::Known(WaitReason::File)),
    (libc::SYS_unlink, Call::Known(WaitReason::File)),
    (libc::SYS_rename, Call::Known(WaitReason::File)),
    (libc::SYS_mkdir, Call::Known(WaitReason::File)),
    (libc::SYS_rmdir, Call::Known(WaitReason::File)),
    (libc::SYS_readlink, Call::Known(WaitReason::File)),
    (libc::SYS_getdents, Call::Known(WaitReason::File)),
    (libc::SYS_pause, Call::Known(WaitReason::Signal)),
];

#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[(c_long, Call)] = &[];

/// How a kernel function's name begins, and what who is in it waits for: the descriptor may be closed by now.
const KERNEL_FUNCTIONS: &[(&str, WaitReason)] = &[
    ("pipe_", WaitReason::Pipe),
    ("anon_pipe_", WaitReason::Pipe),
    ("fifo_", WaitReason::Pipe),
    ("sock_", WaitReason::Socket),
    ("unix_", WaitReason::Socket),
    ("tcp_", WaitReason::Socket),
    ("inet_", WaitReason::Socket),
    ("tty_", WaitReason::Descriptor),
    ("n_tty_", WaitReason::Descriptor),
    ("filemap_", WaitReason::File),
    ("generic_file_", WaitReason::File),
];

/// The function that makes a page present that a program has touched, or the kernel on its behalf.
const PAGE_FAULT: &str = "handle_mm_fault";

/// What the thread of a wait waited for. `frames`: those of its stack, leaf first.
#[must_use]
pub fn reason(sample: &RawSample, frames: &[ResolvedFrame]) -> WaitReason {
    if sample.task_state == task_state::RUNNING {
        return WaitReason::Cpu;
    }
    if sample.task_state & (task_state::STOPPED | task_state::TRACED) != 0 {
        return WaitReason::Stopped;
    }
    if sample.has(sample_flags::GIL_WAITED) {
        return WaitReason::Gil;
    }
    let mut kernel = frames
        .iter()
        .map(|frame| &*frame.function)
        .filter(|function| function.kind == FrameKind::Kernel);
    if sample.system_call.is_none() || kernel.any(|it| &*it.name == PAGE_FAULT) {
        return WaitReason::PageIn;
    }
    match call(sample.system_call) {
        None => WaitReason::Other,
        Some(Call::Known(reason)) => reason,
        Some(Call::Select) if sample.address.0 == 0 => WaitReason::Sleep,
        Some(Call::Select) => WaitReason::Poll,
        Some(Call::Descriptor) => {
            by_function(frames).unwrap_or_else(|| by_descriptor(sample.pid, sample.address.0))
        }
    }
}

fn call(number: Option<u32>) -> Option<Call> {
    let number = c_long::from(i32::try_from(number?).ok()?);
    let mut calls = CALLS.iter().chain(OLD_CALLS);
    calls
        .find(|(known, _)| *known == number)
        .map(|(_, call)| *call)
}

fn by_function(frames: &[ResolvedFrame]) -> Option<WaitReason> {
    let mut kernel = frames
        .iter()
        .map(|frame| &*frame.function)
        .filter(|function| function.kind == FrameKind::Kernel);
    kernel.find_map(|function| {
        let mut known = KERNEL_FUNCTIONS.iter();
        known
            .find(|(start, _)| function.name.starts_with(start))
            .map(|(_, reason)| *reason)
    })
}

/// By what /proc says of a descriptor now. Its file is not touched: that could wait for a file system.
fn by_descriptor(pid: Pid, descriptor: u64) -> WaitReason {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}"));
    link.map_or(WaitReason::Descriptor, |link| by_link(&link))
}

fn by_link(link: &Path) -> WaitReason {
    let text = link.to_string_lossy();
    if text.starts_with("socket:") {
        WaitReason::Socket
    } else if text.starts_with("pipe:") {
        WaitReason::Pipe
    } else if text.starts_with('/') && !text.starts_with("/dev/") {
        WaitReason::File
    } else {
        WaitReason::Descriptor
    }
}

/// How many of a wait's kernel frames are the way from the wait to the program that took the sample.
pub(super) fn n_own_frames(names: impl Iterator<Item = impl AsRef<str>>) -> usize {
    /// The scheduler's function, in which each wait is.
    const SCHEDULER: &str = "__schedule";
    const MAX_OWN: usize = 12;
    let found = names
        .take(MAX_OWN)
        .position(|name| name.as_ref() == SCHEDULER);
    found.map_or(0, |idx| idx + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_listed_twice() {
        let mut numbers: Vec<c_long> = CALLS.iter().chain(OLD_CALLS).map(|it| it.0).collect();
        numbers.sort_unstable();
        let n_listed = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), n_listed);
        assert_eq!(
            call(Some(libc::SYS_futex as u32)),
            Some(Call::Known(WaitReason::Lock))
        );
        assert_eq!(call(Some(libc::SYS_read as u32)), Some(Call::Descriptor));
        assert_eq!(call(Some(u32::MAX)), None);
        assert_eq!(call(None), None);
    }

    #[test]
    fn descriptors_are_known_by_their_links() {
        let known = [
            ("socket:[123]", WaitReason::Socket),
            ("pipe:[7]", WaitReason::Pipe),
            ("/var/lib/x (deleted)", WaitReason::File),
            ("/dev/pts/0", WaitReason::Descriptor),
            ("anon_inode:[eventfd]", WaitReason::Descriptor),
        ];
        for (link, reason) in known {
            assert_eq!(by_link(Path::new(link)), reason, "{link}");
        }
        assert_eq!(by_descriptor(Pid(0), 1), WaitReason::Descriptor);
    }

    #[test]
    fn descriptors_of_this_process_are_known() {
        use std::os::fd::AsRawFd as _;
        let own = Pid(std::process::id());
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(
            by_descriptor(own, file.as_raw_fd() as u64),
            WaitReason::File
        );
        assert_eq!(
            by_descriptor(own, socket.as_raw_fd() as u64),
            WaitReason::Socket
        );
    }

    #[test]
    fn the_way_to_the_program_is_no_part_of_the_wait() {
        let names = ["bpf_prog_7", "__schedule", "schedule", "futex_wait"];
        assert_eq!(n_own_frames(names.iter()), 2);
        assert_eq!(n_own_frames(["futex_wait", "x"].iter()), 0);
    }
}
