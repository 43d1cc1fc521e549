//! The command line: what can be typed, and how it becomes a validated configuration.

/// A line on standard error. A terminal or a reader that has gone is no reason to stop.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// The same without an end of line.
macro_rules! tell_part {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = write!(std::io::stderr(), $($text)*);
    }};
}

pub mod agent;
pub mod cluster;
pub mod connect;
pub mod convert;
pub mod diff;
pub mod doctor;
pub mod dump;
mod ending;
pub mod exit;
mod frames;
mod freeze;
pub mod gil;
pub mod heap;
mod input;
pub mod launch;
pub mod leaks;
pub mod listen;
pub mod log;
pub mod manual;
pub mod mem;
mod named;
mod output;
mod own_agent;
pub mod pods;
pub mod pull;
pub mod push;
pub mod record;
mod recorder;
pub mod report;
mod rows;
mod source;
pub mod stat;
pub mod timed;
pub mod top;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand};

use self::cluster::ClusterArgs;
use self::connect::ConnectArgs;
use self::frames::FramesArgs;
use self::gil::GilArgs;
use self::listen::ListenArgs;
use self::log::LogArgs;
use self::pods::{PodSelectionArgs, PodsArgs};
use self::push::{LabelArgs, PushArgs};
use profiler_common::process::DEFAULT_MAX_PROCESSES;

use crate::config::{
    AllocationConfig, DEFAULT_FAULT_PERIOD, DEFAULT_MAX_SAMPLES_PER_SECOND, DEFAULT_RATE_HZ,
    DEFAULT_WINDOW, SamplingConfig, default_ring_bytes, parse_budget, parse_duration, parse_period,
    parse_ring, parse_time,
};
use crate::format::FORMATS;
use crate::ids::Pid;
use crate::kernel::cpus::n_cpus_online;
use crate::kernel::privileges;
use crate::profile::model::ProfileType;
use crate::profile::query::{Criteria, LabelFilter, ProcessFilter, Viewer, parse_pattern};
use crate::profile::selector::{CgroupSelector, ContainerSelector};
use crate::push::OTLP_PROTO_VERSION;
use crate::track::allocators::PoolProbes;
use crate::track::consent::Consent;
use crate::track::tracker::Selection;
use crate::view::memory::SortKey;

/// What `pyagent --version` says: its own version, and that of the protocol that others must speak too.
static LONG_VERSION: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    format!("{version}\nOTLP profiles: opentelemetry-proto {OTLP_PROTO_VERSION} (v1development)")
});

/// Profiles every CPython process of a host from outside: no code change, no restart, no pause.
#[derive(Debug, Parser)]
#[command(
    name = "pyagent",
    version,
    long_version = LONG_VERSION.as_str(),
    args_conflicts_with_subcommands = true,
    mut_args(|arg| arg.hide_env(true)),
    mut_arg("namespace", |arg| arg.hide_short_help(false)),
    mut_subcommands(|verb| verb.mut_args(|arg| arg.hide_env(true))),
    after_help = "Examples:\n  sudo pyagent --all-python                          profile all, serve on 127.0.0.1:7099\n  sudo pyagent record -o app.pb.gz -- python app.py  profile a command from its first sample\n  pyagent doctor 1234                                why are there no frames?\n\nOptions are also read from the environment: PYAGENT_RATE=499 is --rate 499.\nExit codes: 0 ok, 1 failed, 2 usage, 3 rights missing, 4 nothing matched, 5 grew (`diff`);\n`record -- CMD`: CMD's own, 128+n a signal, 125 pyagent failed, 126 not executable, 127 not found."
)]
pub struct Cli {
    /// A subcommand; without one pyagent is the agent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What the agent does.
    #[command(flatten)]
    pub agent: AgentArgs,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Record a profile into a file: of running processes, or of a command
    Record(RecordArgs),
    /// Pull a profile from a running agent into a file
    Pull(PullArgs),
    /// Show where a profile's time or memory went: functions, callers, call tree, threads
    Report(report::ReportArgs),
    /// Write a profile in another format, for the viewer of your choice
    Convert(convert::ConvertArgs),
    /// Show what became slower and faster from one profile to another
    Diff(diff::DiffArgs),
    /// Time a command over several runs: seconds, memory, faults, and its functions
    Stat(stat::StatArgs),
    /// Show live which functions use the CPU, of all processes or of one
    Top(top::TopArgs),
    /// Show the stack of every thread as it is now, without a pause
    Dump(dump::DumpArgs),
    /// Show the memory of Python processes over time, and the lines that make it grow
    Mem(MemArgs),
    /// Find what only grows in a process: types and lines, and how likely that is chance
    Leaks(LeaksArgs),
    /// Count a process's objects by type, and what became more
    Heap(heap::HeapArgs),
    /// Say what works here, and why a process has no Python frames
    Doctor(DoctorArgs),
    /// Print what a shell needs to complete pyagent's words
    Completions(manual::CompletionsArgs),
    /// Print a page of the manual
    Man(manual::ManArgs),
    /// Waits for a byte on a pipe and becomes CMD: how `record -- CMD` has it watched from its first sample
    #[command(hide = true, name = "__launch")]
    Launch(LaunchArgs),
    /// The same, and it stays and times CMD: how `stat -- CMD` knows what CMD took
    #[command(hide = true, name = "__time")]
    Time(timed::TimeArgs),
}

/// Which processes.
#[derive(Debug, Args, Clone, Default)]
pub struct SelectionArgs {
    /// Every Python process, now and later
    #[arg(long, env = "PYAGENT_ALL_PYTHON", value_parser = clap::builder::BoolishValueParser::new())]
    pub all_python: bool,
    /// This process (repeatable)
    #[arg(long, value_name = "PID", env = "PYAGENT_PID", value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Python processes whose name matches (repeatable)
    ///
    /// The name is that of /proc/PID/comm.
    #[arg(long, value_name = "REGEX", env = "PYAGENT_COMM", value_parser = parse_regex)]
    pub comm: Vec<regex::Regex>,
    /// Python processes whose arguments match (repeatable)
    ///
    /// They are joined by single spaces.
    #[arg(long, value_name = "REGEX", env = "PYAGENT_CMDLINE", value_parser = parse_regex)]
    pub cmdline: Vec<regex::Regex>,
    /// Python processes of a control group (repeatable)
    ///
    /// What begins with a slash is a path, such as /system.slice/web.service, and means all below it too; all else is
    /// a regular expression, searched for in the path.
    #[arg(long, value_name = "PATH|REGEX", env = "PYAGENT_CGROUP")]
    pub cgroup: Vec<CgroupSelector>,
    /// Python processes of a container, by its name or id (repeatable)
    ///
    /// The first 12 digits of the id are enough. Names are known of Podman's, CRI-O's and Docker's containers.
    #[arg(
        long,
        value_name = "NAME|ID",
        env = "PYAGENT_CONTAINER",
        value_delimiter = ','
    )]
    pub container: Vec<ContainerSelector>,
    /// Not this process (repeatable)
    #[arg(
        long,
        value_name = "PID",
        env = "PYAGENT_EXCLUDE_PID",
        value_delimiter = ',',
        hide_short_help = true
    )]
    pub exclude_pid: Vec<u32>,
    /// Not those whose name matches (repeatable)
    #[arg(long, value_name = "REGEX", env = "PYAGENT_EXCLUDE_COMM", value_parser = parse_regex, hide_short_help = true)]
    pub exclude_comm: Vec<regex::Regex>,
    /// Not those whose arguments match (repeatable)
    #[arg(long, value_name = "REGEX", env = "PYAGENT_EXCLUDE_CMDLINE", value_parser = parse_regex, hide_short_help = true)]
    pub exclude_cmdline: Vec<regex::Regex>,
    /// Not those of this control group (repeatable)
    #[arg(
        long,
        value_name = "PATH|REGEX",
        env = "PYAGENT_EXCLUDE_CGROUP",
        hide_short_help = true
    )]
    pub exclude_cgroup: Vec<CgroupSelector>,
    /// Not those of this container (repeatable)
    #[arg(
        long,
        value_name = "NAME|ID",
        env = "PYAGENT_EXCLUDE_CONTAINER",
        value_delimiter = ',',
        hide_short_help = true
    )]
    pub exclude_container: Vec<ContainerSelector>,
    /// Children of the selected processes too
    #[arg(long, short_alias = 's', env = "PYAGENT_SUBPROCESSES", value_parser = clap::builder::BoolishValueParser::new())]
    pub subprocesses: bool,
}

/// How to sample.
#[derive(Debug, Args, Clone)]
pub struct SamplingArgs {
    /// Samples a second on each CPU, 1 to 10000
    #[arg(long, value_name = "HZ", default_value_t = DEFAULT_RATE_HZ, env = "PYAGENT_RATE",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// Page faults for one sample of the memory that is touched
    #[arg(long, value_name = "N", default_value_t = DEFAULT_FAULT_PERIOD, env = "PYAGENT_FAULT_PERIOD",
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000), hide_short_help = true)]
    pub fault_period: u64,
    /// Bytes of the ring buffer between kernel and agent (rounded up to a power of two) [default: 4MiB for each 32
    /// CPUs]
    #[arg(long, value_name = "SIZE", env = "PYAGENT_RING_BYTES", value_parser = parse_ring, hide_short_help = true)]
    pub ring_bytes: Option<u64>,
    /// Processes that are profiled at the same time, at most; 150 bytes of kernel memory each
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_PROCESSES, env = "PYAGENT_MAX_PROCESSES",
          value_parser = clap::value_parser!(u32).range(1..=4_194_304), hide_short_help = true)]
    pub max_processes: u32,
    /// What is said of processes.
    #[command(flatten)]
    pub labels: LabelArgs,
}

/// How allocations are sampled.
#[derive(Debug, Args, Clone)]
pub struct AllocationArgs {
    /// Bytes from one sampled allocation to the next, on average
    #[arg(long, value_name = "SIZE", default_value = "512KiB", env = "PYAGENT_ALLOC_PERIOD", value_parser = parse_period,
          hide_short_help = true)]
    pub alloc_period: u64,
    /// Take the probes of a process away that cost it more than this part of its CPU time
    #[arg(long, value_name = "PERCENT", default_value = "3%", env = "PYAGENT_ALLOC_BUDGET",
          value_parser = parse_budget, hide_short_help = true)]
    pub alloc_budget: f64,
    /// What is given back within this time is temporary
    #[arg(long, value_name = "TIME", default_value = "1s", env = "PYAGENT_TEMPORARY", value_parser = parse_duration,
          hide_short_help = true)]
    pub temporary: Duration,
    /// Where small objects are seen: pools is finer, arenas costs nothing; auto takes pools where single steps are cheap
    ///
    /// mmap: arenas too, where the C library maps them, which is what is done where CPython's functions are not found.
    #[arg(
        long,
        value_name = "STEP",
        default_value = "auto",
        env = "PYAGENT_POOL_PROBES",
        hide_short_help = true,
        hide_possible_values = true
    )]
    pub pool_probes: PoolProbes,
}

impl AllocationArgs {
    /// As the agent takes it.
    #[must_use]
    pub fn config(&self) -> AllocationConfig {
        AllocationConfig {
            period: self.alloc_period,
            budget: self.alloc_budget,
            temporary: self.temporary,
            pool_probes: self.pool_probes,
        }
    }
}

/// The agent's flags.
#[derive(Debug, Args, Clone)]
pub struct AgentArgs {
    /// Which processes.
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Which pods.
    #[command(flatten)]
    pub pod_selection: PodSelectionArgs,
    /// How pods are known.
    #[command(flatten)]
    pub pods: PodsArgs,
    /// How to sample.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How allocations are sampled.
    #[command(flatten)]
    pub allocation: AllocationArgs,
    /// What is sampled: cpu, faults; pools, alloc, mmap
    ///
    /// Memory is faults (touched for the first time); pools, alloc and mmap need probes in the processes.
    #[arg(
        long = "type",
        value_name = "TYPE",
        default_value = "cpu,faults",
        env = "PYAGENT_TYPE",
        value_delimiter = ','
    )]
    pub types: Vec<ProfileType>,
    /// What is kept.
    #[command(flatten)]
    pub recorder: recorder::RecorderArgs,
    /// Take fewer of a type above so many a second
    #[arg(long, value_name = "N", default_value_t = DEFAULT_MAX_SAMPLES_PER_SECOND,
          env = "PYAGENT_MAX_SAMPLES_PER_SECOND", value_parser = clap::value_parser!(u32).range(1..),
          hide_short_help = true)]
    pub max_samples_per_second: u32,
    /// Where to serve, and to whom.
    #[command(flatten)]
    pub listen: ListenArgs,
    /// Where profiles are sent.
    #[command(flatten)]
    pub push: PushArgs,
    /// With the instruction of each sample, as `record --bytecode` has it
    #[arg(long, env = "PYAGENT_BYTECODE", value_parser = clap::builder::BoolishValueParser::new(), hide_short_help = true)]
    pub bytecode: bool,
    /// Show arguments of processes to clients (can hold secrets)
    #[arg(long, env = "PYAGENT_SHOW_CMDLINE", value_parser = clap::builder::BoolishValueParser::new())]
    pub show_cmdline: bool,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

/// `pyagent record`.
#[derive(Debug, Args, Clone)]
#[command(
    after_help = "Examples:\n  sudo pyagent record --pid 1234 -d 30s -o app.svg             a flame graph\n  sudo pyagent record --all-python -d 30s -o all.html          of all, as a page with search and filters\n  sudo pyagent record -o app.pb.gz -- python app.py            a command, from its first sample\n  sudo pyagent record --subprocesses -o app.svg -- make test   with all that it starts\n  sudo pyagent record --type faults --pid 1234 -d 1m -o memory.svg"
)]
pub struct RecordArgs {
    /// Which processes.
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// How to sample.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How allocations are sampled.
    #[command(flatten)]
    pub allocation: AllocationArgs,
    /// What is recorded: cpu, faults, pools, alloc, mmap
    ///
    /// cpu: time on the CPU. faults: memory touched for the first time. pools: memory for small objects (up to 512 bytes).
    /// alloc: memory from malloc and its like. mmap: address space from mmap, mremap and sbrk, which those get theirs
    /// from. The last three place breakpoints in the processes (uprobes), which cost them
    /// about 1 us at each probe, and tell what is still in use at the end, and what was when the process had most.
    #[arg(
        long = "type",
        value_name = "TYPE",
        default_value = "cpu",
        env = "PYAGENT_TYPE"
    )]
    pub profile_type: ProfileType,
    /// Take fewer above this many samples a second (default: never)
    #[arg(long, value_name = "N", env = "PYAGENT_MAX_SAMPLES_PER_SECOND",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_samples_per_second: Option<u32>,
    /// How long, as 30, 30s, 5m (default: until Ctrl-C or the target's end)
    ///
    /// A command that was started (`-- CMD`) is left to run to its end, and the profile is written before.
    #[arg(long, short, value_name = "TIME", env = "PYAGENT_DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Keep when each sample was taken; by itself for chrome, firefox and speedscope
    ///
    /// 16 bytes of memory each, for the first 4 million. A .pb.gz has them as its label end_timestamp_ns, so that it can
    /// become any of the others later.
    #[arg(long, env = "PYAGENT_TIMESTAMPS", value_parser = clap::builder::BoolishValueParser::new())]
    pub timestamps: bool,
    /// Which samples.
    #[command(flatten)]
    pub gil: GilArgs,
    /// Where to and, by its ending, in which format
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which frames.
    #[command(flatten)]
    pub frames: FramesArgs,
    /// With the instruction of each sample, for report --bytecode
    ///
    /// Each sample gets a label `instruction`: where in its bytecode the innermost Python function was, and the opcode that
    /// stood there, such as `24 BINARY_OP_ADD_INT`. It costs one read of the process's memory for each sample, and makes
    /// files larger.
    #[arg(long, env = "PYAGENT_BYTECODE", value_parser = clap::builder::BoolishValueParser::new())]
    pub bytecode: bool,
    /// Run CMD as root too when pyagent was called by sudo
    #[arg(long, env = "PYAGENT_AS_ROOT", value_parser = clap::builder::BoolishValueParser::new())]
    pub as_root: bool,
    /// Command to run and record
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

/// Where a profile goes.
#[derive(Debug, Args, Clone)]
pub struct OutputArgs {
    /// File; its ending tells the format: .pb.gz, .folded, .svg, ... (--help); `-` is standard output
    #[arg(long, short, value_name = "FILE", env = "PYAGENT_OUTPUT", long_help = output_help())]
    pub output: Option<PathBuf>,
    /// Format, when the file's name does not tell: pprof, folded, svg, ... (--help)
    #[arg(long, value_name = "FORMAT", env = "PYAGENT_FORMAT")]
    pub format: Option<String>,
    /// Replace a file that pyagent named itself
    #[arg(long, env = "PYAGENT_FORCE", value_parser = clap::builder::BoolishValueParser::new())]
    pub force: bool,
}

/// Every format with the ending of its files.
fn output_help() -> String {
    let mut text = "File; its ending tells the format; `-` is standard output\n\n".to_owned();
    for format in FORMATS {
        let line = format!(
            "{:<18}{:<12}{}\n",
            format.extensions[0], format.name, format.description
        );
        text.push_str(&line);
    }
    text.trim_end().to_owned()
}

/// `pyagent pull`.
#[derive(Debug, Args, Clone)]
#[command(
    // As in kubectl, and not as in py-spy: -n is a namespace.
    mut_arg("native", |arg| arg.short_alias(None)),
    mut_arg("namespace", |arg| arg.hide_short_help(false)),
    after_help = "Examples:\n  pyagent pull --duration 30s --pid 1234 -o app.svg   of the agent on this host, from now on\n  pyagent pull web1:7099 --last 10m -o slow.html      what another one recorded\n  pyagent pull --k8s -n shop deploy/web --last 10m -o web.pb.gz   of a workload, from all nodes of its pods"
)]
pub struct PullArgs {
    /// The agent.
    #[command(flatten)]
    pub agent: ConnectArgs,
    /// The agents of a cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What the profile is about: cpu, faults, pools, alloc, mmap
    #[arg(
        long = "type",
        value_name = "TYPE",
        default_value = "cpu",
        env = "PYAGENT_TYPE"
    )]
    pub profile_type: ProfileType,
    /// How long, from now on
    #[arg(long, short, value_name = "TIME", default_value = "30s", env = "PYAGENT_DURATION", value_parser = parse_duration)]
    pub duration: Duration,
    /// What was recorded instead: so long until now
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with_all = ["duration", "from", "to"])]
    pub last: Option<Duration>,
    /// What was recorded from this time on, as 2026-03-01T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "duration")]
    pub from: Option<SystemTime>,
    /// What was recorded until this time
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "duration")]
    pub to: Option<SystemTime>,
    /// Only samples with such a label, as thread_name=^Worker (repeatable: all of them)
    #[arg(long = "label", alias = "filter", value_name = "NAME=REGEX", value_parser = parse_label)]
    pub labels: Vec<LabelFilter>,
    /// Which samples.
    #[command(flatten)]
    pub gil: GilArgs,
    /// Of which processes.
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// Of which pods.
    #[command(flatten)]
    pub pod_selection: PodSelectionArgs,
    /// Which frames.
    #[command(flatten)]
    pub frames: FramesArgs,
    /// Where to.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `pyagent mem`.
#[derive(Debug, Args, Clone)]
#[command(
    mut_arg("rate", |arg| arg.hide(true)),
    after_help = "Examples:\n  sudo pyagent mem                                    every Python process, live\n  sudo pyagent mem --sort slope --top 10              what grows fastest\n  sudo pyagent mem --pid 1234 -d 5m -o app.svg        a picture, with the lines that touched most\n  sudo pyagent mem --pid 1234 --subprocesses -o app.dat && mprof plot app.dat"
)]
pub struct MemArgs {
    /// Which processes; all when none is chosen.
    #[command(flatten)]
    pub selection: SelectionArgs,
    /// How to sample.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "2s", env = "PYAGENT_EVERY", value_parser = parse_duration)]
    pub every: Duration,
    /// How long (default: until Ctrl-C or the end of what --pid names)
    #[arg(long, short, value_name = "TIME", env = "PYAGENT_DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Look once, after the first interval
    #[arg(long)]
    pub once: bool,
    /// Sort by rss, peak, slope, faults or gc
    #[arg(long, value_name = "KEY", default_value = "rss", env = "PYAGENT_SORT")]
    pub sort: SortKey,
    /// Processes in the table (default: as many as fit)
    #[arg(long, value_name = "N", env = "PYAGENT_TOP")]
    pub top: Option<usize>,
    /// Print a line of JSON for each look
    #[arg(long)]
    pub json: bool,
    /// Write everything at the end: .svg, .png, .json, .dat (for `mprof plot`)
    #[arg(long, short, value_name = "FILE", env = "PYAGENT_OUTPUT")]
    pub output: Option<PathBuf>,
}

/// `pyagent leaks`.
#[derive(Debug, Args, Clone)]
#[command(
    mut_arg("rate", |arg| arg.hide(true)),
    mut_arg("temporary", |arg| arg.hide(true)),
    mut_arg("alloc_period", |arg| arg.default_value("128KiB").env("PYAGENT_LEAKS_ALLOC_PERIOD")),
    after_help = LEAKS_HELP
)]
pub struct LeaksArgs {
    /// The process
    #[arg(long, value_name = "PID", env = "PYAGENT_PID")]
    pub pid: u32,
    /// How long to look
    #[arg(long, short, value_name = "TIME", default_value = "1m", env = "PYAGENT_DURATION", value_parser = parse_duration)]
    pub duration: Duration,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// How to sample.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// How allocations are sampled.
    #[command(flatten)]
    pub allocation: AllocationArgs,
}

/// How to read what `pyagent leaks` says.
const LEAKS_HELP: &str = "\
Example:
  sudo pyagent leaks --pid 1234 --duration 5m

Two kinds of evidence, each with the probability that it is by chance (below 1 in 1,000 for all of the types together, and \
for all of the lines), the fastest first:

Types. The objects are counted 30 times, while the process runs on, but each 250 ms at most, and with a quarter of a core. \
A type is reported when its bytes went up in most of the steps, go up at the end still, and never fell far. That takes 17 \
looks with 60 types, 22 with 2,000: 4 to 6 s, and longer where one look takes more than 60 ms. What is too short for the \
heap at hand is said at the begin and in the report (JSON: \"conclusive\"). Growth below 64 KiB in the whole time is not \
seen: look longer.

Lines. Allocations are sampled, by probes in the process: about 1 us each, measured and said at the begin, and taken away \
above --alloc-budget of its CPU time, first those on malloc. A line is reported when it keeps of what it allocated in each \
part of the time as much as of any other, and the process grows by it. It has to keep 280 samples (35 MiB at the default), \
or 60 arenas of small objects (60 MiB) where single steps are dear, to be found in 99 of 100 cases. A pool of small objects (16 KiB) counts for the line that \
began it: where objects of one size are made in several lines, any of them may be named; the type says more.

What fills and stops, what comes and goes, and what grows and is freed at least once meanwhile is not reported. What lives \
longer than the time is not told from what is never freed: look longer than the program's own periods.";

/// `pyagent doctor`.
#[derive(Debug, Args, Clone)]
#[command(
    after_help = "Examples:\n  sudo pyagent doctor         does everything work on this host?\n  sudo pyagent doctor 1234    why has this process no Python frames?"
)]
pub struct DoctorArgs {
    /// A process to look at, step by step
    #[arg(value_name = "PID")]
    pub pid: Option<u32>,
}

/// `pyagent __launch`.
#[derive(Debug, Args, Clone)]
pub struct LaunchArgs {
    /// The pipe that says when.
    #[arg(long)]
    pub go: PathBuf,
    /// User to become.
    #[arg(long)]
    pub uid: Option<u32>,
    /// Group to become.
    #[arg(long)]
    pub gid: Option<u32>,
    /// The command.
    #[arg(last = true, required = true)]
    pub command: Vec<std::ffi::OsString>,
}

/// Runs what was typed.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    cli.agent.log.init();
    let result = match cli.command {
        Some(Command::Launch(args)) => return launch::become_command(&args),
        Some(Command::Time(args)) => return timed::run(&args),
        Some(Command::Doctor(args)) => return doctor::run(&args),
        Some(Command::Record(args)) => block_on(record::run(args, &cli.agent.log)),
        Some(Command::Pull(args)) => block_on(pull::run(args)),
        Some(Command::Dump(args)) => block_on(dump::run(args)),
        Some(Command::Report(args)) => block_on(report::run(args)),
        Some(Command::Convert(args)) => block_on(convert::run(args)),
        Some(Command::Completions(args)) => manual::completions(&args),
        Some(Command::Man(args)) => manual::man(&args),
        Some(Command::Diff(args)) => block_on(diff::run(args)),
        Some(Command::Stat(args)) => block_on(stat::run(args)),
        Some(Command::Top(args)) => block_on(top::run(args, &cli.agent.log)),
        Some(Command::Mem(args)) => block_on(mem::run(args, &cli.agent.log)),
        Some(Command::Leaks(args)) => block_on(leaks::run(args, &cli.agent.log)),
        Some(Command::Heap(args)) => block_on(heap::run(args)),
        None => {
            privileges::forbid_more();
            block_on_with(privileges::reduce_thread, agent::run(cli.agent))
        }
    };
    result.unwrap_or_else(|error| {
        print_error(&error);
        exit::code_of(&error)
    })
}

fn block_on(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    block_on_with(|| {}, work)
}

/// The same; each thread of the runtime begins with `start`.
fn block_on_with(
    start: impl Fn() + Send + Sync + 'static,
    work: impl Future<Output = anyhow::Result<ExitCode>>,
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(start)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| anyhow::anyhow!("cannot start the runtime: {error}"))?;
    let result = runtime.block_on(work);
    // A look-up of a name or a stuck file must not hold the end back.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

/// One line, with its causes.
fn print_error(error: &anyhow::Error) {
    tell!("pyagent: {error:#}");
}

fn parse_regex(text: &str) -> Result<regex::Regex, String> {
    parse_pattern(text).map_err(|error| error.to_string())
}

fn parse_label(text: &str) -> Result<LabelFilter, String> {
    let label = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, pattern) =
        label.ok_or_else(|| "write NAME=REGEX, as in thread_name=^Worker".to_owned())?;
    Ok(LabelFilter {
        name: name.to_owned(),
        pattern: parse_regex(pattern)?,
    })
}

impl SelectionArgs {
    /// Whether anything was chosen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.all_python && self.included().is_empty()
    }

    /// As a filter over processes.
    #[must_use]
    pub fn filter(&self) -> ProcessFilter {
        ProcessFilter {
            include: self.included(),
            exclude: Criteria {
                pids: self.exclude_pid.clone(),
                comm: self.exclude_comm.clone(),
                cmdline: self.exclude_cmdline.clone(),
                cgroups: self.exclude_cgroup.clone(),
                containers: self.exclude_container.clone(),
                ..Criteria::default()
            },
            viewer: Viewer::All,
        }
    }

    /// What a process must match.
    #[must_use]
    pub fn included(&self) -> Criteria {
        Criteria {
            pids: self.pid.clone(),
            comm: self.comm.clone(),
            cmdline: self.cmdline.clone(),
            cgroups: self.cgroup.clone(),
            containers: self.container.clone(),
            ..Criteria::default()
        }
    }

    /// As what the tracker follows. Processes that are named by id are the only ones to look at.
    #[must_use]
    pub fn selection(&self) -> Selection {
        let only_pids = (!self.pid.is_empty()).then(|| self.pid.iter().copied().map(Pid).collect());
        Selection {
            filter: self.filter(),
            only_pids,
            subprocesses: self.subprocesses,
            consent: Consent::default(),
        }
    }
}

impl SamplingArgs {
    /// With a selection, as the agent takes it.
    #[must_use]
    pub fn config(
        &self,
        types: &[ProfileType],
        selection: Selection,
        max_samples_per_second: Option<u32>,
        log: &LogArgs,
    ) -> SamplingConfig {
        let mut types = types.to_vec();
        types.sort_unstable();
        types.dedup();
        SamplingConfig {
            labels: self.labels.options(&selection),
            selection,
            types,
            rate_hz: self.rate,
            fault_period: self.fault_period,
            max_samples_per_second,
            ring_bytes: self.ring_bytes.map_or_else(
                || default_ring_bytes(n_cpus_online()),
                // The kernel wants a power of two; `parse_ring` has checked the rest.
                |bytes| bytes.next_power_of_two() as u32,
            ),
            max_processes: self.max_processes,
            window: DEFAULT_WINDOW,
            allocation: AllocationConfig::default(),
            has_instructions: false,
            bpf_debug: log.log.has_bpf_debug(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_short_help_fits_a_screen() {
        let mut pyagent = Cli::command().term_width(100);
        pyagent.build();
        let help = pyagent.render_help().to_string();
        assert!(help.lines().count() <= 48, "{help}");
        for verb in pyagent.get_subcommands_mut() {
            if verb.get_name().starts_with("__") || verb.get_name() == "help" {
                continue;
            }
            let help = verb.render_help().to_string();
            assert!(help.lines().count() <= 40, "{help}");
            assert!(help.contains("Example"), "{help}");
        }
    }
}
