//! What this process may do and what this kernel offers, probed once and named.

use std::fs;

/// A right that pyagent needs, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// Name, as capabilities(7) has it.
    pub name: &'static str,
    /// Its bit.
    bit: u8,
    /// What it is needed for.
    pub purpose: &'static str,
}

/// Loads the kernel programs (5.8+; before: CAP_SYS_ADMIN).
pub const CAP_BPF: Capability = Capability {
    name: "CAP_BPF",
    bit: 39,
    purpose: "load the kernel programs",
};

/// Opens the sampling events (5.8+; before: CAP_SYS_ADMIN).
pub const CAP_PERFMON: Capability = Capability {
    name: "CAP_PERFMON",
    bit: 38,
    purpose: "open the sampling events",
};

/// Reads memory and files of other users' processes.
pub const CAP_SYS_PTRACE: Capability = Capability {
    name: "CAP_SYS_PTRACE",
    bit: 19,
    purpose: "read the memory of processes",
};

/// Stands for CAP_BPF and CAP_PERFMON too, and opens files of deleted binaries.
pub const CAP_SYS_ADMIN: Capability = Capability {
    name: "CAP_SYS_ADMIN",
    bit: 21,
    purpose: "",
};

/// A right without which pyagent runs, at a loss.
#[derive(Debug)]
pub struct Useful {
    /// Name, as capabilities(7) has it.
    pub name: &'static str,
    /// Its bit, and those of capabilities that include it.
    bits: [u8; 2],
    /// What is lost without it.
    pub loss: &'static str,
}

/// CAP_DAC_OVERRIDE includes the first one, CAP_SYS_ADMIN the second one. Without CAP_SYSLOG the kernel may show its functions
/// all the same: whoever reads them says it.
pub const USEFUL: [Useful; 2] = [
    Useful {
        name: "CAP_DAC_READ_SEARCH",
        bits: [2, 1],
        loss: "programs that only their user may read are not profiled",
    },
    Useful {
        name: "CAP_CHECKPOINT_RESTORE",
        bits: [40, CAP_SYS_ADMIN.bit],
        loss: "libraries that were deleted or replaced while they run are not read",
    },
];

/// Inode of the initial pid namespace (`PROC_PID_INIT_INO` in the kernel).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The effective capabilities of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    effective: u64,
}

impl Rights {
    /// Of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self::shown("CapEff:")
    }

    /// What this process could have at most: its bounding set.
    #[must_use]
    pub fn limit_of_this_process() -> Self {
        Self::shown("CapBnd:")
    }

    /// A line of proc_pid_status(5).
    fn shown(name: &str) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0);
        Self { effective }
    }

    /// Whether it has this capability.
    #[must_use]
    pub const fn has(&self, capability: Capability) -> bool {
        let admin =
            matches!(capability.bit, 38 | 39) && self.effective >> CAP_SYS_ADMIN.bit & 1 == 1;
        self.effective >> capability.bit & 1 == 1 || admin
    }

    /// What is missing for sampling in the kernel.
    #[must_use]
    pub fn missing(&self) -> Vec<Capability> {
        [CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE]
            .into_iter()
            .filter(|capability| !self.has(*capability))
            .collect()
    }

    /// What it runs without.
    pub fn without(&self) -> impl Iterator<Item = &'static Useful> {
        let has = |bit: u8| self.effective >> bit & 1 == 1;
        USEFUL
            .iter()
            .filter(move |useful| !useful.bits.into_iter().any(has))
    }
}

/// Whether a filter of system calls is in force, as container runtimes have one by default.
#[must_use]
pub fn has_seccomp_filter() -> bool {
    /// `SECCOMP_MODE_FILTER` of linux/seccomp.h.
    const FILTER: &str = "2";
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() == FILTER)
}

/// Whether this process sees the process ids that the kernel programs see. `None`: /proc does not tell.
#[must_use]
pub fn in_initial_pid_namespace() -> Option<bool> {
    let link = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(link.to_str()? == INITIAL_PID_NAMESPACE)
}

/// Release and version of the running kernel.
#[must_use]
pub fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// Major and minor number of the running kernel; (0, 0) when they cannot be told.
#[must_use]
pub fn kernel_version() -> (u32, u32) {
    let release = kernel_release();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Oldest kernel that was tried. What the programs use is there from 5.8 on: the ring buffer, and the two
/// capabilities.
pub const OLDEST_KERNEL: (u32, u32) = (5, 10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sys_admin_stands_for_bpf_and_perfmon_but_not_for_ptrace() {
        let rights = Rights { effective: 1 << 21 };
        assert_eq!(rights.missing(), vec![CAP_SYS_PTRACE]);
        assert_eq!(Rights { effective: 0 }.missing().len(), 3);
        assert!(
            Rights {
                effective: 1 << 38 | 1 << 39 | 1 << 19
            }
            .missing()
            .is_empty()
        );
    }

    #[test]
    fn rights_that_include_others_stand_for_them() {
        let without = |effective| {
            let rights = Rights { effective };
            rights.without().map(|it| it.name).collect::<Vec<_>>()
        };
        let all = USEFUL.map(|it| it.name);
        assert_eq!(without(0), all);
        assert_eq!(without(1 << 2), all[1..]);
        assert_eq!(without(1 << 1 | 1 << 40), [""; 0]);
        assert_eq!(without(1 << 21), all[..1]);
    }

    #[test]
    fn the_kernel_has_a_version() {
        assert!(kernel_version() >= (4, 0));
    }
}
