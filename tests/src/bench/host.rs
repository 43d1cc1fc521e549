//! Describes the machine that the figures hold for.

use std::{fs, process::Command};

/// A Markdown list of facts: processor, kernel, memory, load, commit.
#[must_use]
pub fn description() -> String {
    let cpuinfo = read("/proc/cpuinfo");
    let model = field(&cpuinfo, "model name").unwrap_or("unknown processor");
    let is_virtual = field(&cpuinfo, "flags")
        .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    let n_cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let memory_kib: f64 = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .unwrap_or(0.0);
    let facts = [
        format!(
            "date: {}",
            output("date", &["--utc", "+%Y-%m-%d %H:%M UTC"])
        ),
        format!(
            "pyagent: commit {}",
            output("git", &["describe", "--always", "--dirty"])
        ),
        format!(
            "processor: {model}, {n_cpus} CPUs, {}",
            if is_virtual {
                "a virtual machine"
            } else {
                "no virtual machine"
            }
        ),
        format!("memory: {:.1} GiB", memory_kib / 1024.0 / 1024.0),
        format!(
            "kernel: {}, BPF JIT {}",
            read("/proc/sys/kernel/osrelease").trim(),
            on_or_off("/proc/sys/net/core/bpf_jit_enable")
        ),
        format!(
            "load average when the run began: {}",
            read("/proc/loadavg")
                .split(' ')
                .take(3)
                .collect::<Vec<_>>()
                .join(" ")
        ),
    ];
    facts.iter().map(|fact| format!("- {fact}\n")).collect()
}

/// Value of the first `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

fn on_or_off(path: &str) -> &'static str {
    match read(path).trim() {
        "" => "not known",
        "0" => "off",
        _ => "on",
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
