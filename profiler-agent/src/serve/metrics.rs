//! `/metrics`: the agent's status as Prometheus text, see
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.
//!
//! Base units, counters end in `_total`. No label takes its value from a process: the number of series does
//! not depend on what runs on the host.

use std::fmt::{self, Write as _};

use super::query::{ProcessState, Status};

/// Media type of the text.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The status as text.
pub(super) fn render(status: &Status) -> String {
    let mut text = String::new();
    write(&mut text, status).expect("writing to a String does not fail");
    text
}

fn write(out: &mut String, status: &Status) -> fmt::Result {
    let name = "pyagent_build_info";
    head(out, name, "Version of the agent; always 1.", "gauge")?;
    let version = env!("CARGO_PKG_VERSION");
    writeln!(out, "{name}{{version=\"{version}\"}} 1")?;

    for (name, help, value) in [
        (
            "pyagent_uptime_seconds",
            "Time since the agent was started.",
            status.uptime.as_secs_f64(),
        ),
        (
            "pyagent_sampling_rate_asked_hertz",
            "Samples a second on each CPU that were asked for.",
            status.rate_asked_hz,
        ),
        (
            "pyagent_sampling_rate_hertz",
            "Samples a second on each CPU that are taken.",
            status.rate_hz,
        ),
        (
            "pyagent_cpus_online",
            "CPUs that are online.",
            f64::from(status.n_cpus_online),
        ),
        (
            "pyagent_cpus_attached",
            "CPUs that samples are taken on.",
            f64::from(status.n_cpus_attached),
        ),
    ] {
        head(out, name, help, "gauge")?;
        writeln!(out, "{name} {value}")?;
    }

    if let Some(memory) = status.memory {
        for (name, help, value) in [
            (
                "pyagent_memory_limit_bytes",
                "Memory that the agent may use, by its control group.",
                memory.max,
            ),
            (
                "pyagent_memory_used_bytes",
                "Memory of that group that cannot be dropped; above 70 % the agent gives up what it can do without.",
                memory.used,
            ),
        ] {
            head(out, name, help, "gauge")?;
            writeln!(out, "{name} {value}")?;
        }
    }

    let name = "pyagent_processes";
    head(
        out,
        name,
        "Python processes, by whether they are profiled.",
        "gauge",
    )?;
    for state in ProcessState::ALL {
        let of_state = status.processes.iter().filter(|(other, _)| *other == state);
        let n_processes: u64 = of_state
            .map(|(_, n_processes)| u64::from(*n_processes))
            .sum();
        writeln!(out, "{name}{{state=\"{}\"}} {n_processes}", state.name())?;
    }

    let name = "pyagent_processes_not_profiled";
    head(
        out,
        name,
        "Processes that look like Python and are not profiled, by reason.",
        "gauge",
    )?;
    for (reason, n_processes) in &status.not_profiled {
        writeln!(out, "{name}{{reason=\"{reason}\"}} {n_processes}")?;
    }

    if let Some(kubernetes) = &status.kubernetes {
        let name = "pyagent_kubernetes_pods";
        head(
            out,
            name,
            "Pods on this node, as the API server tells.",
            "gauge",
        )?;
        writeln!(out, "{name} {}", kubernetes.n_pods)?;
        let name = "pyagent_kubernetes_well";
        let help =
            "Whether the API server is followed: 0 when names of pods may be missing or old.";
        head(out, name, help, "gauge")?;
        writeln!(out, "{name} {}", u8::from(kubernetes.problem.is_empty()))?;
    }

    for counter in &status.counters {
        let name = format!("pyagent_{}_total", counter.name);
        head(out, &name, counter.help, "counter")?;
        writeln!(out, "{name} {}", counter.value)?;
    }
    Ok(())
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) -> fmt::Result {
    writeln!(out, "# HELP {name} {help}")?;
    writeln!(out, "# TYPE {name} {kind}")
}
