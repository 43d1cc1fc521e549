//! `pyagent doctor`: what works here, and why a process has no Python frames.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use profiler_common::arch;

use super::DoctorArgs;
use super::{exit, pods};
use crate::bpf::access::Access;
use crate::bpf::load::{Programs, Settings};
use crate::bpf::source::Periods;
use profiler_common::process::DEFAULT_MAX_PROCESSES;

use crate::config::{DEFAULT_ALLOC_PERIOD, DEFAULT_RATE_HZ, DEFAULT_RING_BYTES, POOL_PERIOD};
use crate::format::escape;
use crate::ids::Pid;
use crate::kernel::probe::{
    CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, OLDEST_KERNEL, Rights, in_initial_pid_namespace,
    kernel_release, kernel_version,
};
use crate::kernel::{btf, privileges, restrictions};
use crate::process::facts::{self, Facts, tids};
use crate::profile::model::ProfileType;
use crate::python::discover::{Discoverer, Discovery, DiscoveryStep};
use crate::python::layout::SUPPORTED;
use crate::python::refusal::Refusal;

/// Adds a line to the report.
macro_rules! line {
    ($out:expr, $($text:tt)*) => {
        // Writing to a String does not fail.
        let _ = writeln!($out, $($text)*);
    };
}

/// One line of the report.
struct Check {
    what: &'static str,
    result: Result<String, String>,
}

/// Runs the command. Exit code 0 when all is well, 1 when something is missing.
#[must_use]
pub fn run(args: &DoctorArgs) -> ExitCode {
    let mut out = String::new();
    let mut all_well = show(&mut out, "this host", host_checks());
    if let Some(pid) = args.pid {
        out.push('\n');
        all_well &= process(&mut out, Pid(pid));
    }
    let mut stdout = std::io::stdout();
    let written = stdout
        .write_all(out.as_bytes())
        .and_then(|()| stdout.flush());
    if let Err(error) = written {
        tell!("pyagent: cannot write to standard output: {error}");
        return ExitCode::from(exit::FAILED);
    }
    ExitCode::from(if all_well { exit::OK } else { exit::FAILED })
}

fn show(out: &mut String, title: &str, checks: Vec<Check>) -> bool {
    line!(out, "{title}");
    let mut all_well = true;
    for check in checks {
        let (mark, text) = match &check.result {
            Ok(text) => ("ok  ", text),
            Err(text) => {
                all_well = false;
                ("MISS", text)
            }
        };
        line!(out, "  {mark}  {:<19} {}", check.what, escape(text));
    }
    all_well
}

fn host_checks() -> Vec<Check> {
    let rights = Rights::of_this_process();
    let mut checks = Vec::new();
    for capability in [CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE] {
        let result = if rights.has(capability) {
            Ok(format!("{}: {}", capability.name, capability.purpose))
        } else {
            Err(format!(
                "{} is missing (needed to {}): run with sudo",
                capability.name, capability.purpose
            ))
        };
        checks.push(Check {
            what: "right",
            result,
        });
    }
    checks.extend(rights.without().map(|useful| Check {
        what: "right",
        result: Err(format!("{} is missing: {}", useful.name, useful.loss)),
    }));
    checks.push(Check {
        what: "kernel",
        result: kernel(),
    });
    if rights.missing().is_empty() {
        checks.push(Check {
            what: "kernel programs",
            result: programs(),
        });
        checks.push(Check {
            what: "probes",
            result: probes(),
        });
    }
    let restrictions = restrictions::all(&rights, DEFAULT_RATE_HZ);
    checks.extend(
        restrictions
            .into_iter()
            .map(|(what, result)| Check { what, result }),
    );
    let namespace = match in_initial_pid_namespace() {
        Some(true) => Ok("the initial one".to_owned()),
        Some(false) => Err(
            "not the initial one: run pyagent on the host, or its container with --pid=host \
             (Kubernetes: hostPID)"
                .to_owned(),
        ),
        None => Err("/proc/self/ns/pid cannot be read".to_owned()),
    };
    checks.extend(agent_keeps());
    checks.push(Check {
        what: "pid namespace",
        result: namespace,
    });
    checks.extend(pods::check().map(|result| Check {
        what: "Kubernetes",
        result,
    }));
    checks.push(Check {
        what: "CPython",
        result: Ok(format!("{SUPPORTED} ({}) can be unwound", arch::THIS.name)),
    });
    checks
}

/// What a running agent would keep of the rights that there are, and why; all others are given up.
fn agent_keeps() -> Vec<Check> {
    let (kept, admin) = privileges::would_keep();
    let admin = admin.map(|purpose| ("CAP_SYS_ADMIN", purpose));
    let kept = kept.iter().map(|kept| (kept.name, kept.purpose));
    let lines = kept.chain(admin).map(|(name, purpose)| Check {
        what: "the agent keeps",
        result: Ok(format!("{name}: {purpose}")),
    });
    let more = Check {
        what: "the agent gives up",
        result: Ok(format!(
            "all other rights, new ones (no_new_privs), and {} system calls that start programs or change other \
             processes or the host",
            privileges::n_forbidden_calls()
        )),
    };
    lines.chain([more]).collect()
}

/// Its release, and whether it is new enough.
fn kernel() -> Result<String, String> {
    let release = kernel_release();
    let (major, minor) = OLDEST_KERNEL;
    if kernel_version() < OLDEST_KERNEL {
        return Err(format!(
            "{release} is too old: {major}.{minor} or newer is needed"
        ));
    }
    let btf = if Path::new(btf::VMLINUX).exists() {
        "with BTF"
    } else {
        "without BTF"
    };
    Ok(format!("{release}, {btf}"))
}

/// Loads the kernel programs and attaches them as the agent does, and lets them go.
fn programs() -> Result<String, String> {
    let (access, programs) = load(&[ProfileType::Cpu, ProfileType::Faults], DEFAULT_RING_BYTES)?;
    let (mut sources, ..) = programs.split(RARE, Box::new(|events| events.open()));
    let sampled = sources.sync().with_context(restrictions::cannot_sample);
    let n_cpus = sampled.map_err(|error| first_line(&error))?;
    Ok(format!("they load; {access}; {n_cpus} CPUs can be sampled"))
}

/// So seldom that hardly a sample is taken.
const RARE: Periods = Periods {
    cpu_ns: Some(1_000_000_000),
    faults: Some(1 << 20),
};

/// For programs that send nothing.
const SMALL_RING_BYTES: u32 = 1 << 16;

/// What a probe in an allocator costs here.
fn probes() -> Result<String, String> {
    let (_, programs) = load(
        &[ProfileType::Pools, ProfileType::Alloc, ProfileType::Mmap],
        SMALL_RING_BYTES,
    )?;
    let (_, mut probes, ..) = programs.split(Periods::default(), Box::new(|events| events.open()));
    let cost = probes.cost().map_err(|error| first_line(&error))?;
    Ok(format!(
        "for --type pools, alloc and mmap alone: breakpoints in the chosen processes, {:.2} us each, {:.1} us where the kernel \
         has to single-step",
        cost.emulated_ns / 1e3,
        cost.stepped_ns / 1e3
    ))
}

fn load(types: &[ProfileType], ring_bytes: u32) -> Result<(Access, Programs), String> {
    let settings = Settings {
        types,
        alloc_period: DEFAULT_ALLOC_PERIOD,
        pool_period: POOL_PERIOD,
        // Nothing is sampled.
        max_allocations: 1,
        follow_all: false,
        follow_children: false,
        ring_bytes,
        max_processes: DEFAULT_MAX_PROCESSES,
        log_level: 0,
    };
    let loaded = || -> Result<(Access, Programs)> {
        let access = Access::of_running_kernel()?;
        let programs = Programs::load_by(settings, &access)?;
        Ok((access, programs))
    };
    loaded().map_err(|error| first_line(&error))
}

/// What follows it is the verifier's log.
fn first_line(error: &dyn std::fmt::Display) -> String {
    let text = format!("{error:#}");
    text.lines().next().unwrap_or_default().to_owned()
}

/// Every step of discovery with its result.
fn process(out: &mut String, pid: Pid) -> bool {
    let facts = match Facts::read(pid) {
        Ok(facts) => facts,
        Err(error) => {
            line!(
                out,
                "process {pid}\n  MISS  {error}: there is no such process, or /proc hides it"
            );
            return false;
        }
    };
    if let Some(process) = facts::thread_of(pid) {
        line!(
            out,
            "{pid} is a thread of process {process}: pyagent doctor {process}"
        );
        return false;
    }
    let mut checks = Vec::new();
    let discovery = Discoverer::default().discover(pid, &mut |DiscoveryStep { what, result }| {
        checks.push(Check { what, result });
    });
    let n_threads = tids(pid).map_or(0, |tids| tids.len());
    let title = format!(
        "process {pid} ({}), {n_threads} threads: {}",
        escape(&facts.comm),
        escape(&facts.program())
    );
    show(out, &title, checks);
    if !facts.cgroup.is_empty() {
        line!(out, "  control group {}", escape(&facts.cgroup));
    }
    if let Some(container) = &facts.container {
        line!(out, "  container {}", escape(&container.to_string()));
    }
    out.push('\n');
    match discovery {
        Discovery::Python(interpreter) => {
            line!(
                out,
                "  CPython {}: it can be profiled: sudo pyagent record --pid {pid}",
                interpreter.version
            );
            true
        }
        Discovery::NotPython { expected: false } => {
            line!(out, "  No Python frames: the process has no CPython in it.");
            false
        }
        Discovery::NotPython { expected: true } => {
            line!(
                out,
                "  No Python frames yet: a binary names libpython, but it is not mapped."
            );
            false
        }
        Discovery::NotYet => refused(out, &Refusal::NotInitialised),
        Discovery::Refused { refusal, .. } => refused(out, &refusal),
        Discovery::Gone => {
            line!(out, "  The process has ended.");
            false
        }
    }
}

fn refused(out: &mut String, refusal: &Refusal) -> bool {
    let (reason, name) = (refusal.reason(), refusal.reason().name());
    line!(out, "  No Python frames: {}.", escape(&refusal.to_string()));
    line!(out, "  What to do ({name}): {}.", reason.what_to_do());
    false
}
