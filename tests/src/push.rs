//! What push tests send, and to whom: windows of profiles with known sums, and the programs that take them.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, UNIX_EPOCH};

use profiler_agent::profile::aggregate::{
    Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
};
use profiler_agent::profile::model::{FrameKind, Profile, ProfileType, label};
use serde_json::Value;

/// Sums by process, sample type and function of the leaf.
pub type Sums = BTreeMap<(i64, String, String), i64>;

/// Distance of two CPU samples, in nanoseconds.
pub const PERIOD_NS: i64 = 10_101_010;

/// How large a made-up profile is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Processes.
    pub n_processes: u32,
    /// Threads of each.
    pub n_threads: u32,
    /// Different stacks of each thread.
    pub n_stacks: u32,
    /// Frames of each stack.
    pub depth: u32,
}

/// A small one.
pub const SMALL: Size = Size {
    n_processes: 3,
    n_threads: 2,
    n_stacks: 4,
    depth: 5,
};

/// Names that are hard to carry.
const HARD_NAMES: [&str; 5] = [
    "main",
    "Счёт.сложить",
    "函数_👩‍💻",
    "a;b\x1b[2J\u{202e}<&\"\n 7",
    "",
];

/// A profile of a window: the `n`th.
#[must_use]
pub fn profile(profile_type: ProfileType, n: u64, size: Size) -> Profile {
    let start = UNIX_EPOCH + Duration::from_secs(1_767_225_600 + 10 * n);
    let mut aggregator = Aggregator::new(start, profile_type.sample_types(), PERIOD_NS);
    for pid in 1..=size.n_processes {
        let process = process(pid);
        for thread in 0..size.n_threads {
            let labels = Arc::new(ThreadLabels {
                process: Arc::clone(&process),
                tid: pid * 100 + thread,
                started_ns: 0,
                thread_name: format!("worker {thread}").into(),
            });
            for stack in 0..size.n_stacks {
                let frames = (0..size.depth).map(|level| frame(pid, stack, level));
                let base = i64::from(pid + thread + stack) + i64::try_from(n).expect("few windows");
                let values = match profile_type {
                    ProfileType::Cpu => [base, base * PERIOD_NS, 0, 0, 0, 0],
                    // Some of them are 0.
                    _ => [base, base * 4096, i64::from(stack % 2), 0, base, 7],
                };
                let sample = ResolvedSample {
                    frames: frames.collect(),
                    labels: Arc::clone(&labels),
                    instruction: None,
                    values: values.into(),
                };
                aggregator.add(&sample);
            }
        }
    }
    aggregator.finish(Duration::from_secs(10), vec!["3 samples lost".to_owned()])
}

fn process(pid: u32) -> Arc<ProcessLabels> {
    // Two processes of a service.
    let service = format!("service-{}", pid / 2);
    let more: [(_, Box<str>); 4] = [
        (label::SERVICE_NAME, service.into()),
        (label::CONTAINER_NAME, "shop".into()),
        (label::K8S_POD_UID, "0b1c".into()),
        (label::CGROUP, format!("/shop/{pid}").into()),
    ];
    Arc::new(ProcessLabels {
        started_ns: u64::from(pid) * 1_000_000_000,
        cmdline: "python3 app.py".into(),
        comm: "python3".into(),
        python_version: "3.12.1".into(),
        more: more.map(|(name, text)| (name.into(), text)).into(),
        ..ProcessLabels::of_pid(pid)
    })
}

/// Frame `level` of a stack; 0 is the leaf.
fn frame(pid: u32, stack: u32, level: u32) -> ResolvedFrame {
    let kind = match (stack + level) % 4 {
        2 => FrameKind::Native,
        3 => FrameKind::Kernel,
        _ => FrameKind::Python,
    };
    let hard = HARD_NAMES[(stack as usize) % HARD_NAMES.len()];
    let name = format!("{hard}{}", if level == 0 { stack } else { level + pid });
    let function = match kind {
        FrameKind::Native | FrameKind::Kernel => ResolvedFunction {
            kind,
            name: name.into(),
            filename: "libz.so.1".into(),
            start_line: 0,
            mapping: "/usr/lib/libz.so.1".into(),
            build_id: "00ff".into(),
        },
        _ => ResolvedFunction::python(&name, "/srv/app.py", 3 + level),
    };
    let is_python = kind == FrameKind::Python;
    ResolvedFrame {
        function: Arc::new(function),
        line: if is_python { 10 + level } else { 0 },
        address: if is_python {
            0
        } else {
            0x7f00_0000 + u64::from(level)
        },
    }
}

/// What a profile says, to be compared with what arrives.
#[must_use]
pub fn sums(profile: &Profile) -> Sums {
    let mut sums = Sums::new();
    for sample in &profile.samples {
        let leaf = profile.frames(sample.stack).next().map_or("", |it| it.name);
        let leaf = profiler_agent::format::escape(leaf).into_owned();
        let pid = profile.thread(sample.labels).pid;
        let values = sample.values.of(profile.sample_types);
        for (kind, value) in profile.sample_types.iter().zip(values) {
            if *value != 0 {
                let kind = format!("{}/{}", kind.kind, kind.unit);
                *sums.entry((pid, kind, leaf.clone())).or_default() += value;
            }
        }
    }
    sums
}

/// Adds the sums of another.
pub fn add(sums: &mut Sums, others: Sums) {
    for (key, value) in others {
        *sums.entry(key).or_default() += value;
    }
}

/// Attributes of a resource that a Collector has written, as texts: it moves names and texts to the dictionary.
///
/// # Panics
/// When it is no resource.
#[must_use]
pub fn resource_attributes(data: &Value, of_resource: &Value) -> BTreeMap<String, String> {
    let string = |idx: &Value| {
        let idx = usize::try_from(int(idx)).expect("an index");
        data["dictionary"]["stringTable"][idx]
            .as_str()
            .unwrap_or_default()
    };
    let attributes = of_resource["resource"]["attributes"].as_array();
    let attributes = attributes.expect("a resource has attributes").iter();
    attributes
        .map(|attribute| {
            let key = match attribute["key"].as_str() {
                Some(key) if !key.is_empty() => key,
                _ => string(&attribute["keyStrindex"]),
            };
            let value = &attribute["value"];
            let text = match (value["intValue"].is_null(), value["stringValue"].as_str()) {
                (false, _) => int(&value["intValue"]).to_string(),
                (true, Some(text)) => text.to_owned(),
                (true, None) => string(&value["stringValueStrindex"]).to_owned(),
            };
            (key.to_owned(), text)
        })
        .collect()
}

/// Numbers of 64 bits are texts in JSON; 0 is left out.
#[must_use]
pub fn int(value: &Value) -> i64 {
    let from_text = value.as_str().and_then(|it| it.parse().ok());
    value.as_i64().or(from_text).unwrap_or(0)
}

/// What an environment variable names that `cargo xtask test` sets; `None`, said, without.
#[must_use]
pub fn prepared(name: &str) -> Option<OsString> {
    let value = env::var_os(name).filter(|value| !value.is_empty());
    if value.is_none() {
        let is_promised = env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!is_promised, "{name} is not set");
        println!("skipped: {name} is not set; `cargo xtask test` sets it, or says why it cannot");
    }
    value
}

/// A file that its owner alone can read, as a token's has to be.
///
/// # Panics
/// When it cannot be written.
pub fn write_secret(path: &Path, text: &str) {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.expect("the folder is ours");
}

/// A port of 127.0.0.1 that is free now.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

/// Waits until `look` gives something.
///
/// # Panics
/// With `what`, when it takes longer than a minute.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "waited in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program that takes what is pushed; killed when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    /// The first line of its standard output.
    pub greeting: String,
    lines: Option<Receiver<String>>,
    _errors: Option<BufReader<ChildStderr>>,
}

/// The lines that a program prints, read as they come: a full pipe would stop it.
fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

impl Peer {
    /// Starts a program that says on the first line of its standard output where it listens.
    ///
    /// # Panics
    /// When it cannot be started, or says nothing.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let lines = lines(child.stdout.take().expect("it is piped"));
        let greeting = lines.recv().expect("it says where it listens");
        Self {
            child,
            greeting,
            lines: Some(lines),
            _errors: None,
        }
    }

    /// The next line of JSON that it prints.
    ///
    /// # Panics
    /// When it has ended, or prints something else.
    pub fn next_line(&mut self) -> Value {
        let lines = self.lines.as_ref().expect("its output is read");
        let line = lines.recv_timeout(Duration::from_mins(1));
        json(&line.expect("it prints a line within a minute"))
    }

    /// All that it has printed since, once it was ended.
    ///
    /// # Panics
    /// When it prints something else than JSON.
    #[must_use]
    pub fn finish(mut self) -> Vec<Value> {
        let _ = self.child.kill();
        let lines = self.lines.take().expect("its output is read");
        lines.iter().map(|line| json(&line)).collect()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("`{line}`: {error}"))
}

/// A real OpenTelemetry Collector.
#[derive(Debug)]
pub struct Collector {
    program: PathBuf,
    place: Option<Place>,
    config: PathBuf,
    /// Where it takes OTLP.
    pub port: u16,
    output: PathBuf,
    peer: Option<Peer>,
}

/// How a Collector is set up.
#[derive(Debug, Clone, Default)]
pub struct CollectorSetup {
    /// Settings of its receiver for gRPC beside the address, lines of YAML with 8 blanks in front.
    pub receiver: String,
    /// Sends on to a Collector on this port, in place of a file.
    pub next: Option<u16>,
    /// Takes traces alone.
    pub has_no_profiles: bool,
    /// Where it runs, in place of 127.0.0.1 of the host.
    pub place: Option<Place>,
}

/// A network namespace, and an address in it.
#[derive(Debug, Clone)]
pub struct Place {
    /// Path of the namespace.
    pub namespace: PathBuf,
    /// The address to listen on.
    pub address: String,
}

impl Collector {
    /// Starts one, with its files in `folder`; `None`, said, where there is none.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(folder: &Path, setup: &CollectorSetup) -> Option<Self> {
        let program = prepared("PYAGENT_COLLECTOR")?;
        let port = free_port();
        let address = setup.place.as_ref();
        let address = address.map_or("127.0.0.1", |place| &place.address);
        let config = folder.join(format!("collector-{port}.yaml"));
        let output = folder.join(format!("collector-{port}.json"));
        let exporter = match setup.next {
            Some(next) => {
                format!("  otlp:\n    endpoint: 127.0.0.1:{next}\n    tls:\n      insecure: true\n")
            }
            // Started again, it goes on where it was.
            // With a bound on the size it writes before it answers: else what it took is lost when it is killed.
            None => format!(
                "  file:\n    path: {}\n    rotation:\n      max_megabytes: 1000\n",
                output.display()
            ),
        };
        let exporter_name = if setup.next.is_some() { "otlp" } else { "file" };
        let signal = if setup.has_no_profiles {
            "traces"
        } else {
            "profiles"
        };
        let text = format!(
            "receivers:\n  otlp:\n    protocols:\n      grpc:\n        endpoint: {address}:{port}\n{}\n\
             exporters:\n{exporter}\n\
             service:\n  telemetry:\n    metrics:\n      level: none\n  pipelines:\n    {signal}:\n      \
             receivers: [otlp]\n      exporters: [{exporter_name}]\n",
            setup.receiver
        );
        std::fs::write(&config, text).expect("the folder is there");
        let mut collector = Self {
            program: program.into(),
            place: setup.place.clone(),
            config,
            port,
            output,
            peer: None,
        };
        collector.restart();
        Some(collector)
    }

    /// Starts it again after [`Collector::kill`].
    ///
    /// # Panics
    /// When it does not come up.
    pub fn restart(&mut self) {
        let mut command = match &self.place {
            Some(place) => {
                let mut command = Command::new("nsenter");
                command
                    .arg(format!("--net={}", place.namespace.display()))
                    .arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        let mut child = command
            .arg("--config")
            .arg(&self.config)
            .arg("--feature-gates=service.profilesSupport")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the Collector starts");
        let mut errors = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut said = String::new();
        while !said.contains("Everything is ready") {
            let n_read = errors.read_line(&mut said).expect("it prints text");
            assert!(n_read > 0, "the Collector ended: {said}");
        }
        self.peer = Some(Peer {
            child,
            greeting: said,
            lines: None,
            // It says little: the pipe holds it.
            _errors: Some(errors),
        });
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.peer = None;
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.peer.as_ref().expect("it runs").pid()
    }

    /// What it has written, a value each request.
    #[must_use]
    pub fn written(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.output).unwrap_or_default();
        // The last line may not be whole.
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        lines
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }
}
