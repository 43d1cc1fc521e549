//! What can keep the kernel from letting a profiler work: lockdown, security modules, sysctls. One sentence each.

use std::fs;

use super::probe::{CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE, Rights};

/// What one of them means for this process: in order, or in the way and what to do.
pub type Verdict = Result<String, String>;

/// Every restriction, by the name of what imposes it. `rate_hz`: samples a second and CPU.
#[must_use]
pub fn all(rights: &Rights, rate_hz: u32) -> Vec<(&'static str, Verdict)> {
    let apparmor_is_on = read("/sys/module/apparmor/parameters/enabled");
    // The older place has the context of whichever module is in charge.
    let apparmor = read("/proc/self/attr/apparmor/current").or_else(|| read(CURRENT_CONTEXT));
    let sample_rate = number("/proc/sys/kernel/perf_event_max_sample_rate");
    let cpu_percent = number("/proc/sys/kernel/perf_cpu_time_max_percent");
    vec![
        ("lockdown", lockdown(read(LOCKDOWN).as_deref())),
        (
            "AppArmor",
            app_armor(apparmor_is_on.as_deref(), apparmor.as_deref()),
        ),
        (
            "SELinux",
            se_linux(
                number("/sys/fs/selinux/enforce"),
                read(CURRENT_CONTEXT).as_deref(),
            ),
        ),
        (
            "ptrace_scope",
            ptrace_scope(
                number("/proc/sys/kernel/yama/ptrace_scope"),
                rights.has(CAP_SYS_PTRACE),
            ),
        ),
        (
            "perf_event_paranoid",
            perf_event_paranoid(number(PARANOIA), rights.has(CAP_PERFMON)),
        ),
        (
            "sample rate",
            sample_rate_limit(sample_rate, cpu_percent, rate_hz),
        ),
    ]
}

/// The security context of this process.
const CURRENT_CONTEXT: &str = "/proc/self/attr/current";

/// Where the kernel shows its lockdown: `none [integrity] confidentiality`, see kernel_lockdown(7).
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// Whether the lockdown is one that refuses the kernel programs.
#[must_use]
pub fn is_confidential() -> bool {
    fs::read_to_string(LOCKDOWN).is_ok_and(|modes| lockdown_mode(&modes) == Some(CONFIDENTIALITY))
}

const CONFIDENTIALITY: &str = "confidentiality";

fn lockdown_mode(modes: &str) -> Option<&str> {
    let (_, rest) = modes.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode)
}

fn lockdown(modes: Option<&str>) -> Verdict {
    match modes.and_then(lockdown_mode) {
        None => Ok("not known to be on (no /sys/kernel/security/lockdown)".to_owned()),
        Some("none") => Ok("off".to_owned()),
        Some(CONFIDENTIALITY) => Err(
            "confidentiality: the kernel programs are refused; `pyagent record --pid PID` reads stacks from outside \
             (running threads, no native or kernel frames), for more boot with lockdown=integrity or without"
                .to_owned(),
        ),
        Some(mode) => Ok(format!("{mode}: forbids nothing that pyagent does")),
    }
}

/// apparmor(7): the profile that confines this process, and its mode.
fn app_armor(enabled: Option<&str>, profile: Option<&str>) -> Verdict {
    if enabled.is_none_or(|enabled| enabled.trim() != "Y") {
        return Ok("off".to_owned());
    }
    let profile = profile.unwrap_or_default().trim_matches(['\0', '\n', ' ']);
    match profile.rsplit_once(" (") {
        Some((name, "enforce)" | "kill)")) => Err(format!(
            "its profile {name} confines this process and can refuse BPF, perf events and other processes' \
             memory: run pyagent unconfined (containers: --security-opt apparmor=unconfined)"
        )),
        Some((name, _)) => Ok(format!("its profile {name} only complains")),
        None => Ok("this process is unconfined".to_owned()),
    }
}

/// selinux(8): `enforce` is 1 or 0, the context `user:role:type:level`.
fn se_linux(enforce: Option<i64>, context: Option<&str>) -> Verdict {
    match enforce {
        None => return Ok("off".to_owned()),
        Some(0) => return Ok("permissive".to_owned()),
        Some(_) => {}
    }
    let context = context.unwrap_or_default().trim_matches(['\0', '\n', ' ']);
    match context.split(':').nth(2) {
        // What containers run as; it has no right to BPF.
        Some(name) if name.starts_with("container") => Err(format!(
            "enforcing, and this process is {name}, which may not load BPF programs: run the container with \
             --security-opt label=disable"
        )),
        Some(name) => Ok(format!(
            "enforcing, this process is {name}: its policy must allow bpf, perf_event and sys_ptrace (ausearch -m avc \
             tells)"
        )),
        None => Ok("enforcing".to_owned()),
    }
}

/// Yama: who may read the memory of other processes.
fn ptrace_scope(scope: Option<i64>, may_ptrace: bool) -> Verdict {
    match scope {
        None => Ok("no Yama".to_owned()),
        Some(3) => Err(
            "3: nobody may read the memory of other processes, not even root, until the next boot: no frame gets a \
             name; boot with kernel.yama.ptrace_scope at 2 or less"
                .to_owned(),
        ),
        Some(scope) if scope == 0 || may_ptrace => {
            Ok(format!("{scope}: the memory of processes may be read"))
        }
        Some(scope) => Err(format!(
            "{scope}: reading the memory of processes needs CAP_SYS_PTRACE: run with sudo"
        )),
    }
}

/// Where the level of paranoia is.
const PARANOIA: &str = "/proc/sys/kernel/perf_event_paranoid";

/// The highest level that Linux itself knows. From the next one on the kernels of Debian and Ubuntu want CAP_SYS_ADMIN for
/// every perf event (their patch "security,perf: Allow further restriction of perf_event_open"), and begin with it.
const MAX_LEVEL: i64 = 2;

/// Why nothing can be sampled, as far as can be told.
#[must_use]
pub fn cannot_sample() -> String {
    match number(PARANOIA) {
        Some(level) if level > MAX_LEVEL => format!(
            "cannot sample (kernel.perf_event_paranoid is {level}, where some kernels want CAP_SYS_ADMIN: grant it, or \
             sysctl kernel.perf_event_paranoid={MAX_LEVEL})"
        ),
        _ => "cannot sample".to_owned(),
    }
}

/// What to say where probes are refused: uprobes are for who has CAP_SYS_ADMIN (`perf_uprobe_event_init` of the kernel).
#[must_use]
pub fn cannot_place_probes() -> &'static str {
    if Rights::of_this_process().has(CAP_SYS_ADMIN) {
        "cannot place probes"
    } else {
        "cannot place probes, which the types pools, alloc and mmap need CAP_SYS_ADMIN for"
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn number(path: &str) -> Option<i64> {
    read(path)?.trim().parse().ok()
}

/// perf_event_open(2): who may sample whole CPUs.
fn perf_event_paranoid(level: Option<i64>, may_sample: bool) -> Verdict {
    match level {
        None => Err("not there: this kernel has no perf events (CONFIG_PERF_EVENTS), and nothing can be sampled".to_owned()),
        Some(level) if level > MAX_LEVEL => Ok(format!(
            "{level}: kernels of Debian and Ubuntu let nobody sample but who has CAP_SYS_ADMIN (at {MAX_LEVEL}: CAP_PERFMON)"
        )),
        Some(level) if may_sample => Ok(format!("{level}: does not bind who has CAP_PERFMON")),
        Some(level) if level <= 0 => Ok(format!("{level}: everybody may sample")),
        Some(level) => Err(format!(
            "{level}: sampling whole CPUs needs CAP_PERFMON: run with sudo"
        )),
    }
}

/// The kernel's own throttle: samples a second and CPU, and the share of CPU time at which it lowers them.
fn sample_rate_limit(limit: Option<i64>, cpu_percent: Option<i64>, rate_hz: u32) -> Verdict {
    let Some(limit) = limit else {
        return Ok("no limit is known".to_owned());
    };
    if limit < i64::from(rate_hz) {
        return Err(format!(
            "the kernel lets {limit} samples a second and CPU through, and pyagent takes {rate_hz}: sysctl \
             kernel.perf_event_max_sample_rate=100000, or a lower --rate"
        ));
    }
    let lowers = match cpu_percent {
        None | Some(0 | 100) => "never lowered by the kernel".to_owned(),
        Some(percent) => {
            format!("lowered by the kernel when sampling takes {percent} % of a CPU")
        }
    };
    Ok(format!("at most {limit} a second and CPU, {lowers}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sentence, and whether it is in order.
    fn told(verdict: Verdict) -> (bool, String) {
        match verdict {
            Ok(text) => (true, text),
            Err(text) => (false, text),
        }
    }

    #[track_caller]
    fn check(verdict: Verdict, is_in_order: bool, part: &str) {
        let (is_ok, text) = told(verdict);
        assert_eq!(is_ok, is_in_order, "{text}");
        assert!(text.contains(part), "{text}");
        assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
    }

    #[test]
    fn confidentiality_is_in_the_way() {
        check(
            lockdown(Some("[none] integrity confidentiality\n")),
            true,
            "off",
        );
        check(
            lockdown(Some("none [integrity] confidentiality\n")),
            true,
            "integrity",
        );
        check(
            lockdown(Some("none integrity [confidentiality]\n")),
            false,
            "from outside",
        );
        check(lockdown(Some("nonsense")), true, "not known");
        check(lockdown(None), true, "not known");
    }

    #[test]
    fn a_profile_that_is_enforced_is_named() {
        check(app_armor(None, None), true, "off");
        check(app_armor(Some("N\n"), Some("x (enforce)\n")), true, "off");
        check(
            app_armor(Some("Y\n"), Some("unconfined\n")),
            true,
            "unconfined",
        );
        check(
            app_armor(Some("Y\n"), Some("docker-default (enforce)\n\0")),
            false,
            "docker-default confines",
        );
        check(
            app_armor(Some("Y\n"), Some("/usr/bin/my tool (complain)\n")),
            true,
            "/usr/bin/my tool only",
        );
    }

    #[test]
    fn the_type_of_an_enforced_context_is_named() {
        check(se_linux(None, None), true, "off");
        check(
            se_linux(Some(0), Some("system_u:system_r:container_t:s0:c1,c2")),
            true,
            "permissive",
        );
        check(
            se_linux(Some(1), Some("system_u:system_r:container_t:s0:c1,c2\0")),
            false,
            "container_t",
        );
        check(
            se_linux(
                Some(1),
                Some("unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\0"),
            ),
            true,
            "unconfined_t",
        );
        check(se_linux(Some(1), None), true, "enforcing");
    }

    #[test]
    fn the_highest_ptrace_scope_binds_everybody() {
        check(ptrace_scope(None, false), true, "no Yama");
        check(ptrace_scope(Some(0), false), true, "0");
        check(ptrace_scope(Some(1), false), false, "CAP_SYS_PTRACE");
        check(ptrace_scope(Some(2), true), true, "2");
        check(ptrace_scope(Some(3), true), false, "not even root");
    }

    #[test]
    fn paranoia_binds_those_without_the_right() {
        check(perf_event_paranoid(None, true), false, "CONFIG_PERF_EVENTS");
        check(perf_event_paranoid(Some(2), true), true, "2");
        check(perf_event_paranoid(Some(4), true), true, "CAP_SYS_ADMIN");
        check(perf_event_paranoid(Some(2), false), false, "CAP_PERFMON");
        check(perf_event_paranoid(Some(-1), false), true, "everybody");
    }

    #[test]
    fn a_limit_below_the_rate_is_in_the_way() {
        check(
            sample_rate_limit(Some(100_000), Some(25), 99),
            true,
            "25 % of a CPU",
        );
        check(
            sample_rate_limit(Some(100_000), Some(0), 99),
            true,
            "never lowered",
        );
        check(sample_rate_limit(Some(98), Some(25), 99), false, "lets 98");
        check(
            sample_rate_limit(Some(99), Some(25), 99),
            true,
            "at most 99",
        );
        check(sample_rate_limit(None, None, 99), true, "no limit");
    }

    #[test]
    fn every_restriction_is_looked_at() {
        let rights = Rights::of_this_process();
        let names: Vec<&str> = all(&rights, 99).into_iter().map(|(name, _)| name).collect();
        let expected = [
            "lockdown",
            "AppArmor",
            "SELinux",
            "ptrace_scope",
            "perf_event_paranoid",
            "sample rate",
        ];
        assert_eq!(names, expected);
    }
}
