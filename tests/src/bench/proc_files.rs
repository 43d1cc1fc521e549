//! What /proc tells of a process: CPU time, memory, and the BPF programs and maps that it holds.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

/// Switches the kernel's run-time statistics of BPF programs.
const STATS_SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// `BPF_PROG_TYPE_PERF_EVENT`.
const PERF_EVENT: &str = "7";

/// The kernel keeps run-time statistics of all BPF programs while this lives. Needs root.
#[derive(Debug)]
pub struct RunTimeStatistics {
    before: String,
}

impl RunTimeStatistics {
    /// Switches them on.
    pub fn enable() -> Result<Self> {
        let before = fs::read_to_string(STATS_SWITCH).context(STATS_SWITCH)?;
        fs::write(STATS_SWITCH, "1").context(STATS_SWITCH)?;
        Ok(Self { before })
    }
}

impl Drop for RunTimeStatistics {
    fn drop(&mut self) {
        // It is as it was, or the kernel has gone on with statistics that cost little.
        let _ = fs::write(STATS_SWITCH, self.before.trim());
    }
}

/// What the kernel counted of one BPF program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunTime {
    /// Nanoseconds in all runs.
    pub ns: u64,
    /// Runs.
    pub n_runs: u64,
}

/// The one sampling program that a process holds.
#[derive(Debug)]
pub struct Sampler {
    /// What the kernel says of its file descriptor.
    path: PathBuf,
}

impl Sampler {
    /// Finds it among the files of a process.
    pub fn of(pid: u32) -> Result<Self> {
        let mut programs = BTreeMap::new();
        for (path, info) in descriptors(pid)? {
            if info.get("prog_type").is_some_and(|kind| kind == PERF_EVENT) {
                programs.insert(number(&info, "prog_id"), path);
            }
        }
        let mut paths = programs.into_values();
        match (paths.next(), paths.next()) {
            (Some(path), None) => Ok(Self { path }),
            (None, _) => bail!("process {pid} holds no sampling program"),
            (Some(_), Some(_)) => bail!("process {pid} holds several sampling programs"),
        }
    }

    /// Its statistics since it was loaded (`run_time_ns` and `run_cnt`, Linux 5.8+).
    pub fn run_time(&self) -> Result<RunTime> {
        let text = fs::read_to_string(&self.path).context("the sampling program has gone")?;
        let info = fields(&text);
        Ok(RunTime {
            ns: number(&info, "run_time_ns"),
            n_runs: number(&info, "run_cnt"),
        })
    }
}

/// Bytes of kernel memory in the BPF maps that a process holds.
pub fn map_bytes(pid: u32) -> Result<u64> {
    let maps: BTreeMap<u64, u64> = descriptors(pid)?
        .iter()
        .filter(|(_, info)| info.contains_key("map_id"))
        .map(|(_, info)| (number(info, "map_id"), number(info, "memlock")))
        .collect();
    Ok(maps.values().sum())
}

/// A line of /proc/PID/status in bytes, such as `VmRSS`.
pub fn status_bytes(pid: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).context(path)?;
    let mut fields = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields
        .find(|(key, _)| *key == name)
        .with_context(|| format!("no {name} of process {pid}"))?;
    let kib: u64 = value
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .context("a size in kB")?;
    Ok(kib * 1024)
}

/// CPU time of all living threads of a process in nanoseconds, by the scheduler.
pub fn cpu_ns(pid: u32) -> Result<u64> {
    let mut ns = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that has just ended is not counted any more.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        ns += text
            .split(' ')
            .next()
            .and_then(|ns| ns.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(ns)
}

/// What the kernel says of an open file.
type Fields = BTreeMap<String, String>;

/// What the kernel says of each open file of a process, and where it does.
fn descriptors(pid: u32) -> Result<Vec<(PathBuf, Fields)>> {
    let path = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&path).context(path)?;
    let described = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        // A file can be closed in between.
        let text = fs::read_to_string(&path).ok()?;
        Some((path, fields(&text)))
    });
    Ok(described.collect())
}

fn fields(text: &str) -> Fields {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

fn number(info: &Fields, name: &str) -> u64 {
    info.get(name)
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}
