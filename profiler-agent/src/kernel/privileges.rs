//! What the agent gives up for good: rights that it no longer needs, and system calls that it never makes.
//!
//! Capabilities belong to threads. The main thread keeps what the start needs (ports, groups of sockets, the addresses of
//! kernel functions) until everything is attached; every other thread begins by giving it up.
//!
//! Landlock is not used: it forbids a process to look into any other one that is not below itself (ptrace access), which is
//! what a profiler does.

use std::collections::BTreeMap;

use nix::libc;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// A capability that the agent keeps while it runs, and what for.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Name, as capabilities(7) has it.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    set: CapabilitySet,
}

/// What the agent keeps, of what it was given.
pub const KEPT: [Kept; 5] = [
    Kept {
        name: "CAP_BPF",
        purpose: "tell the kernel programs of new processes",
        set: CapabilitySet::BPF,
    },
    Kept {
        name: "CAP_PERFMON",
        purpose: "sample CPUs that come online",
        set: CapabilitySet::PERFMON,
    },
    Kept {
        name: "CAP_SYS_PTRACE",
        purpose: "read the memory of new processes",
        set: CapabilitySet::SYS_PTRACE,
    },
    Kept {
        name: "CAP_DAC_READ_SEARCH",
        purpose: "open their files in folders of others",
        set: CapabilitySet::DAC_READ_SEARCH,
    },
    Kept {
        name: "CAP_CHECKPOINT_RESTORE",
        purpose: "open their files that were deleted or replaced",
        set: CapabilitySet::CHECKPOINT_RESTORE,
    },
];

/// Why CAP_SYS_ADMIN is kept where one of those is missing that took its place (Linux 5.8 and 5.9).
pub const ADMIN_PURPOSE: &str =
    "stands for CAP_BPF, CAP_PERFMON or CAP_CHECKPOINT_RESTORE, which were not given";

/// What is kept of `permitted`.
fn kept(permitted: CapabilitySet) -> CapabilitySet {
    let stands_for =
        CapabilitySet::BPF | CapabilitySet::PERFMON | CapabilitySet::CHECKPOINT_RESTORE;
    let mut kept: CapabilitySet = KEPT.iter().map(|kept| kept.set).collect();
    if !permitted.contains(stands_for) {
        kept |= CapabilitySet::SYS_ADMIN;
    }
    kept & permitted
}

/// Why two threads keep CAP_SYS_ADMIN.
pub const PRIVILEGED_PURPOSE: &str = "kept by two threads alone: one opens what shows huge pages (--type faults) and the events of CPUs that come \
     online, which some kernels want it for, one places probes in new processes (pools, alloc, mmap)";

/// Which of [`KEPT`] an agent with the rights of this thread would keep, and why CAP_SYS_ADMIN too if it would.
#[must_use]
pub fn would_keep() -> (Vec<Kept>, Option<&'static str>) {
    let permitted = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted);
    let kept = kept(permitted);
    let names = KEPT.into_iter().filter(|it| kept.contains(it.set));
    let admin = if kept.contains(CapabilitySet::SYS_ADMIN) {
        Some(ADMIN_PURPOSE)
    } else {
        Some(PRIVILEGED_PURPOSE).filter(|_| permitted.contains(CapabilitySet::SYS_ADMIN))
    };
    (names.collect(), admin)
}

/// From here on no program that this process would start could have more rights than it has itself.
pub fn forbid_more() {
    if let Err(error) = set_no_new_privs(true) {
        tracing::warn!("no_new_privs cannot be set: {error}");
    }
}

/// This thread, and those that it starts, have from here on what a running agent needs. Where that fails it goes on with
/// what it has, and says so.
pub fn reduce_thread() {
    reduce(CapabilitySet::empty());
}

/// The same for the thread that places probes in processes, and for the one that opens what shows their pages, and events: the
/// kernel lets CAP_SYS_ADMIN do that and no other.
pub fn reduce_privileged_thread() {
    reduce(CapabilitySet::SYS_ADMIN);
}

fn reduce(more: CapabilitySet) {
    let reduced = || -> rustix::io::Result<()> {
        let sets = capabilities(None)?;
        let kept = kept(sets.permitted) | more & sets.permitted;
        let reduced = CapabilitySets {
            effective: sets.effective & kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        if sets == reduced {
            return Ok(());
        }
        for capability in (CapabilitySet::all() - kept).iter() {
            // One that this kernel does not know, or no right to it: nothing is started here anyway.
            let _ = remove_capability_from_bounding_set(capability);
        }
        set_capabilities(None, reduced)
    };
    if let Err(error) = reduced() {
        tracing::warn!("rights that are no longer needed could not be given up: {error}");
    }
}

/// System calls that the agent never makes once it runs: those that start programs, change other processes, or change
/// the host. They fail with EPERM.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_personality,
];

/// How many they are.
#[must_use]
pub const fn n_forbidden_calls() -> usize {
    FORBIDDEN.len()
}

/// Forbids them to all threads of this process, for good.
pub fn forbid_calls() -> Result<(), seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        FORBIDDEN.iter().map(|call| (*call, Vec::new())).collect();
    // A panic that aborts sends a signal to this process itself.
    let own = u64::from(std::process::id());
    let elsewhere = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, own)?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![elsewhere])?]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter_all_threads(&program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_the_place_of_sys_admin_makes_it_unnecessary() {
        let all = CapabilitySet::all();
        let expected: CapabilitySet = KEPT.iter().map(|kept| kept.set).collect();
        assert_eq!(kept(all), expected);
        let old = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE | CapabilitySet::CHOWN;
        let expected = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
        assert_eq!(kept(old), expected);
        assert_eq!(kept(CapabilitySet::CHOWN), CapabilitySet::empty());
    }
}
