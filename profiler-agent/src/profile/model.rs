//! The profile: interned tables of strings, functions, locations and stacks, and the samples over them.
//!
//! Ids are indices into the tables of the same [`Profile`] and mean nothing in another one. Stacks are leaf
//! first, as in pprof.

use std::time::{Duration, SystemTime};

use super::moments::Moment;

/// Index into [`Profile::strings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StringId(pub u32);

/// Index into [`Profile::functions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionId(pub u32);

/// Index into [`Profile::locations`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocationId(pub u32);

/// Index into [`Profile::mappings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MappingId(pub u32);

/// Index into [`Profile::stacks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u32);

/// Index into [`Profile::processes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub u32);

/// Index into [`Profile::label_sets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelSetId(pub u32);

/// What kind of code a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrameKind {
    /// A Python function.
    Python,
    /// Machine code of the process: C extensions, libraries, the interpreter outside of its loop.
    Native,
    /// The kernel.
    Kernel,
    /// Not a function but a remark, such as `[incomplete: frame switch]`.
    Reason,
}

/// A function: Python (qualified name, file, first line), native or kernel (symbol, module).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Function {
    /// Kind of code.
    pub kind: FrameKind,
    /// Name to show: the qualified name where the version has it.
    pub name: StringId,
    /// Source file of Python functions, module (`libz.so.1`, `vmlinux`) of others; may be empty.
    pub filename: StringId,
    /// First line, 0 when there is none.
    pub start_line: u32,
}

/// A place in a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// The function.
    pub function: FunctionId,
    /// Line, 0 when it is not known.
    pub line: u32,
    /// The mapping that the location belongs to.
    pub mapping: MappingId,
    /// Address for native and kernel frames, 0 for Python frames.
    pub address: u64,
}

/// A binary, or the pseudo mapping of all Python code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// Path, `[python]`, or `[kernel]`.
    pub filename: StringId,
    /// Hexadecimal GNU build id; empty when there is none.
    pub build_id: StringId,
}

/// Value of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LabelValue {
    /// Text.
    Str(StringId),
    /// A number, as of `pid` and `tid`.
    Num(i64),
}

/// The labels of a process, or of a thread beside those of its process: names, and what they say.
pub type Labels = Box<[(StringId, LabelValue)]>;

/// A process that has samples.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// When it was started, in nanoseconds since boot; with the id it names a process of this boot.
    pub started_ns: u64,
    /// The user whose it wholly is; `None`: nobody's but root's.
    pub owner: Option<u32>,
    /// What it runs, as far as it may be shown: by default the program with its script or module.
    pub cmdline: StringId,
    /// The labels that all of its threads share, in the order in which they are shown.
    pub labels: Labels,
}

/// The labels of a sample.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LabelSet {
    /// Whose sample it is.
    pub process: ProcessId,
    /// When its thread began, in nanoseconds since boot: tells threads with the same id apart. 0: not known, or of no thread.
    /// No label: it is not shown.
    pub thread_started_ns: u64,
    /// The labels beside those of the process.
    pub labels: Labels,
}

/// What the values of a sample mean, for example `samples/count` and `cpu/nanoseconds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueType {
    /// Kind, a term of pprof: `samples`, `cpu`.
    pub kind: &'static str,
    /// Unit: `count`, `nanoseconds`, `bytes`.
    pub unit: &'static str,
}

impl ValueType {
    /// Number of samples.
    pub const SAMPLES: Self = Self {
        kind: "samples",
        unit: "count",
    };

    /// Time on the CPU.
    pub const CPU: Self = Self {
        kind: "cpu",
        unit: "nanoseconds",
    };

    /// The two values of a CPU profile.
    pub const CPU_SAMPLES: [Self; 2] = [Self::SAMPLES, Self::CPU];

    /// The two values of a profile of page faults: how many, and how much memory they made resident. `go tool pprof` tells
    /// values apart by their kind alone and refuses a profile with two of one kind.
    pub const PAGE_FAULTS: [Self; 2] = [Self::count("page_faults"), Self::bytes("fault_space")];

    /// The values of a profile of allocations: how many and how much, of them what is alive at its end, what was alive when
    /// the process had most memory resident, and what was given back soon after it was allocated.
    pub const ALLOCATIONS: [Self; 6] = [
        Self::count("alloc_objects"),
        Self::bytes("alloc_space"),
        Self::count("inuse_objects"),
        Self::bytes("inuse_space"),
        Self::bytes(PEAK_SPACE),
        Self::bytes("temporary_space"),
    ];

    /// The values of a heap profile of Go, in its order: the first of [`ValueType::ALLOCATIONS`].
    pub const HEAP: [Self; 4] = [
        Self::ALLOCATIONS[0],
        Self::ALLOCATIONS[1],
        Self::ALLOCATIONS[2],
        Self::ALLOCATIONS[3],
    ];

    /// What the period of a heap profile of Go counts; who stores profiles knows them by it.
    pub const SPACE: Self = Self::bytes("space");

    const fn count(kind: &'static str) -> Self {
        Self {
            kind,
            unit: "count",
        }
    }

    const fn bytes(kind: &'static str) -> Self {
        Self {
            kind,
            unit: "bytes",
        }
    }
}

const PEAK_SPACE: &str = "peak_space";

/// Which of [`ValueType::ALLOCATIONS`] tell what was at the end: in use, and at the peak.
const SNAPSHOTS: std::ops::Range<usize> = 2..5;

/// Most values of a sample.
pub const MAX_VALUES: usize = 6;

/// The values of a sample, in the order of [`Profile::sample_types`]. Those that the profile does not have are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Values([i64; MAX_VALUES]);

impl Values {
    /// Adds others, each to its like.
    pub fn add(&mut self, others: Self) {
        for (sum, value) in self.0.iter_mut().zip(others.0) {
            *sum = sum.saturating_add(value);
        }
    }

    /// As many as the profile has.
    #[must_use]
    pub fn of(&self, sample_types: &[ValueType]) -> &[i64] {
        &self.0[..sample_types.len().min(MAX_VALUES)]
    }
}

impl<const N: usize> From<[i64; N]> for Values {
    /// The first values; more than there can be are dropped.
    fn from(first: [i64; N]) -> Self {
        let mut values = [0; MAX_VALUES];
        for (into, value) in values.iter_mut().zip(first) {
            *into = value;
        }
        Self(values)
    }
}

impl std::ops::Index<usize> for Values {
    type Output = i64;

    fn index(&self, idx: usize) -> &i64 {
        &self.0[idx]
    }
}

/// What a profile is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProfileType {
    /// Time on the CPU.
    Cpu,
    /// Memory touched for the first time.
    Faults,
    /// Memory for small objects.
    Pools,
    /// Memory from `malloc` and its like.
    Alloc,
    /// Address space from `mmap` and its like.
    Mmap,
}

impl ProfileType {
    /// Every type.
    pub const ALL: [Self; 5] = [
        Self::Cpu,
        Self::Faults,
        Self::Pools,
        Self::Alloc,
        Self::Mmap,
    ];

    /// Name, as `--type` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Faults => "faults",
            Self::Pools => "pools",
            Self::Alloc => "alloc",
            Self::Mmap => "mmap",
        }
    }

    /// What the values of its samples mean.
    #[must_use]
    pub const fn sample_types(self) -> &'static [ValueType] {
        match self {
            Self::Cpu => &ValueType::CPU_SAMPLES,
            Self::Faults => &ValueType::PAGE_FAULTS,
            Self::Pools | Self::Alloc | Self::Mmap => &ValueType::ALLOCATIONS,
        }
    }

    /// What the first value counts, in words.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Cpu => "samples",
            Self::Faults => "page faults",
            Self::Pools => "pools",
            Self::Alloc => "allocations",
            Self::Mmap => "mappings",
        }
    }

    /// Whether its samples are allocations, which may be given back.
    #[must_use]
    pub const fn is_of_allocations(self) -> bool {
        matches!(self, Self::Pools | Self::Alloc | Self::Mmap)
    }

    /// The values without those that tell what was at the end of the profile, of which several windows have no sum.
    #[must_use]
    pub fn without_snapshots(self, mut values: Values) -> Values {
        if self.is_of_allocations() {
            values.0[SNAPSHOTS].fill(0);
        }
        values
    }

    /// The first two values of a sample that stands for `period`: nanoseconds, page faults of `n_bytes` each, bytes of
    /// pools of `n_bytes` each; or of an allocation of `n_bytes` that was chosen with a probability of
    /// `1 - exp(-n_bytes / period)`.
    #[must_use]
    pub fn values(self, period: u64, n_bytes: u64, rounding: &mut Rounding) -> Values {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let first = match self {
            Self::Cpu => [1, number(period)],
            Self::Faults => [number(period), number(period.saturating_mul(n_bytes))],
            Self::Pools => [number(period / n_bytes.max(1)), number(period)],
            Self::Alloc | Self::Mmap => {
                let share = n_bytes as f64 / period.max(1) as f64;
                let n_objects = 1.0 / -(-share).exp_m1();
                // One of no bytes stands for none.
                let n_objects = if n_objects.is_finite() {
                    n_objects
                } else {
                    1.0
                };
                [
                    rounding.round(n_objects),
                    (n_objects * n_bytes as f64).round() as i64,
                ]
            }
        };
        first.into()
    }
}

/// Rounds numbers so that the sum of any of them stays right: up or down by chance, up with the probability of what is
/// behind the point. What one lost must not be given to the next one: of samples that come in turns, each second one would
/// always be rounded up.
#[derive(Debug, Clone, Copy)]
pub struct Rounding {
    /// Of xorshift64*; not 0.
    state: u64,
}

impl Default for Rounding {
    fn default() -> Self {
        Self {
            state: 88_172_645_463_325_252,
        }
    }
}

impl Rounding {
    fn round(&mut self, number: f64) -> i64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let random = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        // 53 bits: below 1.
        let random = random as f64 / 9_007_199_254_740_992.0;
        (number + random).floor() as i64
    }
}

impl std::str::FromStr for ProfileType {
    type Err = UnknownType;

    fn from_str(name: &str) -> Result<Self, UnknownType> {
        let known = Self::ALL.into_iter().find(|known| known.name() == name);
        known.ok_or_else(|| UnknownType(name.to_owned()))
    }
}

/// A name that no [`ProfileType`] has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no profile type: there are {}{}", .0.escape_debug(), names(), one_of_several(.0))]
pub struct UnknownType(String);

/// What to say to somebody who named several where one can be.
fn one_of_several(name: &str) -> &'static str {
    if name.contains(',') {
        "; a profile has one of them"
    } else {
        ""
    }
}

fn names() -> String {
    ProfileType::ALL.map(ProfileType::name).join(", ")
}

/// In which class an age falls; each is ten times as long as the one before, or six.
#[must_use]
pub fn age_class(age: Duration) -> &'static str {
    match age.as_secs() {
        0 => "below 1 s",
        1..10 => "1 s to 10 s",
        10..60 => "10 s to 1 min",
        60..600 => "1 min to 10 min",
        600..3600 => "10 min to 1 h",
        _ => "above 1 h",
    }
}

/// Names of labels: the same in every format.
pub mod label {
    /// Process id in the initial pid namespace; a number.
    pub const PID: &str = "pid";
    /// The kernel's thread id in the initial pid namespace; a number.
    pub const TID: &str = "tid";
    /// Name of the thread: `threading`'s where it has one, else the kernel's.
    pub const THREAD_NAME: &str = "thread_name";
    /// The kernel's name of the process.
    pub const COMM: &str = "comm";
    /// Version of the interpreter, such as `3.12.1`.
    pub const PYTHON_VERSION: &str = "python_version";
    /// Path of the process's control group (`process.linux.cgroup` of OpenTelemetry); absent for the root.
    pub const CGROUP: &str = "process_linux_cgroup";
    /// Id of the container: 64 hexadecimal digits (`container.id`).
    pub const CONTAINER_ID: &str = "container_id";
    /// The name that the container's runtime gave it (`container.name`).
    pub const CONTAINER_NAME: &str = "container_name";
    /// Who runs the container: `podman`, `docker`, `containerd`, `cri-o` (`container.runtime.name`).
    pub const CONTAINER_RUNTIME: &str = "container_runtime_name";
    /// Its Kubernetes namespace (`k8s.namespace.name`).
    pub const K8S_NAMESPACE: &str = "k8s_namespace_name";
    /// Name of its Kubernetes pod (`k8s.pod.name`).
    pub const K8S_POD_NAME: &str = "k8s_pod_name";
    /// UID of the container's Kubernetes pod (`k8s.pod.uid`).
    pub const K8S_POD_UID: &str = "k8s_pod_uid";
    /// What the container is called in its pod (`k8s.container.name`).
    pub const K8S_CONTAINER_NAME: &str = "k8s_container_name";
    /// Name of the node that the pod runs on (`k8s.node.name`).
    pub const K8S_NODE_NAME: &str = "k8s_node_name";
    /// Name of the Deployment that the pod belongs to (`k8s.deployment.name`).
    pub const K8S_DEPLOYMENT_NAME: &str = "k8s_deployment_name";
    /// Of the ReplicaSet (`k8s.replicaset.name`).
    pub const K8S_REPLICASET_NAME: &str = "k8s_replicaset_name";
    /// Of the StatefulSet (`k8s.statefulset.name`).
    pub const K8S_STATEFULSET_NAME: &str = "k8s_statefulset_name";
    /// Of the DaemonSet (`k8s.daemonset.name`).
    pub const K8S_DAEMONSET_NAME: &str = "k8s_daemonset_name";
    /// Of the CronJob (`k8s.cronjob.name`).
    pub const K8S_CRONJOB_NAME: &str = "k8s_cronjob_name";
    /// Of the Job (`k8s.job.name`).
    pub const K8S_JOB_NAME: &str = "k8s_job_name";
    /// The machine's name (`host.name`).
    pub const HOST_NAME: &str = "host_name";
    /// What the process is part of (`service.name`).
    pub const SERVICE_NAME: &str = "service_name";
    /// What that is part of (`service.namespace`).
    pub const SERVICE_NAMESPACE: &str = "service_namespace";
    /// Its version (`service.version`).
    pub const SERVICE_VERSION: &str = "service_version";
    /// Where it is deployed, such as `production` (`deployment.environment.name`).
    pub const DEPLOYMENT_ENVIRONMENT: &str = "deployment_environment_name";
    /// How long ago memory was allocated that is in use at the end of the profile: one of [`super::age_class`].
    pub const AGE: &str = "age";
    /// Whether the thread held the global interpreter lock: [`GIL_HELD`] or [`GIL_RELEASED`]; absent where that is not
    /// known, and in interpreters that have none.
    pub const GIL: &str = "gil";
    /// Value of [`GIL`].
    pub const GIL_HELD: &str = "held";
    /// Value of [`GIL`].
    pub const GIL_RELEASED: &str = "released";

    /// The instruction of the innermost Python frame, of samples that were taken with it:
    /// [`super::super::instructions::Instruction`].
    pub const INSTRUCTION: &str = "instruction";

    /// Every label that pyagent itself gives.
    pub const ALL: &[&str] = &[
        PID,
        TID,
        THREAD_NAME,
        COMM,
        PYTHON_VERSION,
        CGROUP,
        CONTAINER_ID,
        CONTAINER_NAME,
        CONTAINER_RUNTIME,
        K8S_NAMESPACE,
        K8S_POD_NAME,
        K8S_POD_UID,
        K8S_CONTAINER_NAME,
        K8S_NODE_NAME,
        K8S_DEPLOYMENT_NAME,
        K8S_REPLICASET_NAME,
        K8S_STATEFULSET_NAME,
        K8S_DAEMONSET_NAME,
        K8S_CRONJOB_NAME,
        K8S_JOB_NAME,
        HOST_NAME,
        SERVICE_NAME,
        SERVICE_NAMESPACE,
        SERVICE_VERSION,
        DEPLOYMENT_ENVIRONMENT,
        AGE,
        GIL,
        INSTRUCTION,
    ];
}

/// One aggregated sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The stack.
    pub stack: StackId,
    /// The labels.
    pub labels: LabelSetId,
    /// Values, in the order of [`Profile::sample_types`].
    pub values: Values,
}

/// A profile over one span of time.
#[derive(Debug, Clone)]
pub struct Profile {
    /// What the values of each sample mean: at least one, at most [`MAX_VALUES`]; two of pyagent's own.
    pub sample_types: &'static [ValueType],
    /// What [`Profile::period`] counts.
    pub period_type: ValueType,
    /// The place of the value that readers are to show first; `None`: that follows from the types.
    pub main_value: Option<usize>,
    /// Distance between two samples, in the unit of `period_type`; the true one, also when it was lowered.
    pub period: i64,
    /// Wall time of the start.
    pub start: SystemTime,
    /// Length of the span.
    pub duration: Duration,
    /// Text; element 0 is the empty string.
    pub strings: Vec<Box<str>>,
    /// Functions.
    pub functions: Vec<Function>,
    /// Binaries; element 0 is the pseudo mapping `[python]`.
    pub mappings: Vec<Mapping>,
    /// Locations.
    pub locations: Vec<Location>,
    /// Stacks, leaf first.
    pub stacks: Vec<Box<[LocationId]>>,
    /// Processes.
    pub processes: Vec<Process>,
    /// Sets of labels.
    pub label_sets: Vec<LabelSet>,
    /// Samples; no two with the same stack and labels.
    pub samples: Vec<Sample>,
    /// When samples were taken, the first one first; empty: that was not kept.
    pub moments: Vec<Moment>,
    /// Remarks for the reader: what was lost, cut, not completed or sampled in another way.
    pub comments: Vec<String>,
    /// Texts of frames have the whole path of a file, not only what is below its package.
    pub has_full_filenames: bool,
}

/// A frame of a stack, with its tables looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The function.
    pub function: FunctionId,
    /// Kind of code.
    pub kind: FrameKind,
    /// Name to show.
    pub name: &'a str,
    /// Source file of Python functions, module of others; may be empty.
    pub filename: &'a str,
    /// Line, 0 when it is not known.
    pub line: u32,
    /// Address for native and kernel frames, 0 for Python frames.
    pub address: u64,
}

/// The labels of a thread, looked up. Absent texts are empty, absent numbers 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Thread<'a> {
    /// [`label::PID`].
    pub pid: i64,
    /// [`label::TID`].
    pub tid: i64,
    /// [`label::THREAD_NAME`].
    pub thread_name: &'a str,
    /// [`label::COMM`].
    pub comm: &'a str,
    /// [`label::PYTHON_VERSION`].
    pub python_version: &'a str,
}

impl Profile {
    /// The text with this id; empty for an id of another profile.
    #[must_use]
    pub fn str(&self, id: StringId) -> &str {
        self.strings.get(id.0 as usize).map_or("", |text| text)
    }

    /// Which of the values tells how much a sample weighs, where there is room for one: the number of samples of time, the
    /// bytes of memory, of allocations those that were alive when the process had most.
    #[must_use]
    pub fn weight_idx(&self) -> usize {
        if let Some(main_value) = self.main_value {
            return main_value;
        }
        let is_peak = |it: &ValueType| it.kind == PEAK_SPACE;
        let peak = self.sample_types.iter().position(is_peak);
        peak.unwrap_or_else(|| {
            let second = self.sample_types.get(1);
            usize::from(second.is_some_and(|it| it.unit == "bytes"))
        })
    }

    /// Sum of the weights of all samples.
    #[must_use]
    pub fn total_weight(&self) -> i64 {
        let weights = self.samples.iter().map(|it| it.values[self.weight_idx()]);
        weights.fold(0, i64::saturating_add)
    }

    /// Sum of the first value (samples) over all samples.
    #[must_use]
    pub fn n_samples(&self) -> i64 {
        self.samples
            .iter()
            .fold(0, |sum, sample| sum.saturating_add(sample.values[0]))
    }

    /// The frames of a stack, leaf first. Ids of another profile give nothing.
    #[must_use = "it does nothing but to look frames up"]
    pub fn frames(&self, stack: StackId) -> impl DoubleEndedIterator<Item = Frame<'_>> {
        let locations = self.stacks.get(stack.0 as usize).into_iter().flatten();
        locations.filter_map(|id| self.frame(*id))
    }

    /// The frame at a location; `None` for an id of another profile.
    #[must_use]
    pub fn frame(&self, location: LocationId) -> Option<Frame<'_>> {
        let location = self.locations.get(location.0 as usize)?;
        let function = self.functions.get(location.function.0 as usize)?;
        Some(Frame {
            function: location.function,
            kind: function.kind,
            name: self.str(function.name),
            filename: self.str(function.filename),
            line: location.line,
            address: location.address,
        })
    }

    /// A function as a frame at its first line; `None` for an id of another profile.
    #[must_use]
    pub fn function_frame(&self, id: FunctionId) -> Option<Frame<'_>> {
        let function = self.functions.get(id.0 as usize)?;
        Some(Frame {
            function: id,
            kind: function.kind,
            name: self.str(function.name),
            filename: self.str(function.filename),
            line: function.start_line,
            address: 0,
        })
    }

    /// The labels of a set, those of its process first. Ids of another profile give nothing.
    #[must_use = "it does nothing but to look labels up"]
    pub fn labels(&self, id: LabelSetId) -> impl Iterator<Item = (StringId, LabelValue)> {
        let set = self.label_sets.get(id.0 as usize);
        let process = set.and_then(|set| self.processes.get(set.process.0 as usize));
        let of_process = process.into_iter().flat_map(|process| &process.labels);
        let own = set.into_iter().flat_map(|set| &set.labels);
        of_process.chain(own).copied()
    }

    /// The text of a label in a set; `None` when the set has no such label, or a number.
    #[must_use]
    pub fn label(&self, labels: LabelSetId, name: &str) -> Option<&str> {
        self.labels(labels).find_map(|(key, value)| match value {
            LabelValue::Str(text) if self.str(key) == name => Some(self.str(text)),
            LabelValue::Str(_) | LabelValue::Num(_) => None,
        })
    }

    /// The thread that a set of labels describes.
    #[must_use]
    pub fn thread(&self, labels: LabelSetId) -> Thread<'_> {
        let mut thread = Thread::default();
        for (name, value) in self.labels(labels) {
            match (self.str(name), value) {
                (label::PID, LabelValue::Num(pid)) => thread.pid = pid,
                (label::TID, LabelValue::Num(tid)) => thread.tid = tid,
                (label::THREAD_NAME, LabelValue::Str(id)) => thread.thread_name = self.str(id),
                // Datadog's profilers name them so.
                ("thread native id", LabelValue::Num(tid)) if thread.tid == 0 => thread.tid = tid,
                ("thread name", LabelValue::Str(id)) if thread.thread_name.is_empty() => {
                    thread.thread_name = self.str(id);
                }
                (label::COMM, LabelValue::Str(id)) => thread.comm = self.str(id),
                (label::PYTHON_VERSION, LabelValue::Str(id)) => {
                    thread.python_version = self.str(id);
                }
                _ => {}
            }
        }
        thread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_rounded_numbers_are_right_also_of_each_second_one() {
        const N: usize = 40_000;
        for number in [1.0, 1.27, 1.5, 7.05] {
            let mut rounding = Rounding::default();
            let rounded: Vec<i64> = (0..N).map(|_| rounding.round(number)).collect();
            for step in [1, 2, 3, 4] {
                let sum: i64 = rounded.iter().step_by(step).sum();
                let n = N.div_ceil(step) as f64;
                // Half of one is the largest deviation of each; 5 of the sum.
                let allowed = 5.0 * 0.5 * n.sqrt();
                assert!(
                    (sum as f64 - n * number).abs() <= allowed,
                    "{number} {step}: {sum}"
                );
            }
        }
        assert_eq!(Rounding::default().round(f64::MAX), i64::MAX);
    }

    #[test]
    fn ages_fall_into_one_class_each() {
        let classes =
            [0, 1, 9, 10, 60, 600, 3600, 1 << 40].map(|it| age_class(Duration::from_secs(it)));
        assert_eq!(classes[1], classes[2]);
        let mut different = classes.to_vec();
        different.dedup();
        assert_eq!(different.len(), 6);
    }
}
