//! Looks into processes over gRPC: what an agent says of stacks and objects, beside what the interpreter says of itself.

use std::collections::{BTreeMap, HashMap};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use profiler_agent::generated::pyagent::v1 as proto;
use profiler_agent::generated::pyagent::v1::heap_census_response::Part;
use profiler_agent::generated::pyagent::v1::profile_service_client::ProfileServiceClient;
use pyagent_tests::compiler::workload;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::pyagent::{Pyagent, binary};
use pyagent_tests::target::Target;
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::transport::Channel;

/// An argument of the processes that are meant.
const MARKER: &str = "pyagent-inspect";

/// Dumps of each process with a thread that runs.
const N_DUMPS: usize = 50;

/// What is a frame's: function, file, line, first line.
type Frame = (String, String, u32, u32);

struct Agent {
    process: Pyagent,
    runtime: Runtime,
    client: ProfileServiceClient<Channel>,
}

impl Agent {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(more: &[&str]) -> Self {
        let arguments = ["--cmdline", MARKER, "--listen", "127.0.0.1:0"];
        let process = Pyagent::start(&[&arguments, more].concat(), "go tool pprof");
        let runtime = Runtime::new().unwrap();
        let address = format!("http://{}", process.address());
        let client = runtime
            .block_on(ProfileServiceClient::connect(address))
            .unwrap();
        Self {
            process,
            runtime,
            client,
        }
    }

    fn dump(&mut self, pid: u32) -> Result<Vec<proto::DumpStacksResponse>, tonic::Status> {
        let request = proto::DumpStacksRequest {
            selector: Some(of_pid(pid)),
            ..proto::DumpStacksRequest::default()
        };
        self.runtime.block_on(async {
            let mut stream = self.client.dump_stacks(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(message) = stream.message().await? {
                all.push(message);
            }
            Ok(all)
        })
    }

    /// Once the agent knows it.
    fn dump_of(&mut self, pid: u32) -> proto::DumpStacksResponse {
        let begun = Instant::now();
        loop {
            match self.dump(pid) {
                Ok(mut all) => {
                    assert_eq!(all.len(), 1);
                    return all.remove(0);
                }
                Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
            }
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{pid} is not profiled"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn census(
        &mut self,
        pid: u32,
        max_types: u32,
    ) -> Result<(proto::HeapSummary, Vec<proto::HeapType>), tonic::Status> {
        let request = proto::HeapCensusRequest { pid, max_types };
        self.runtime.block_on(async {
            let mut stream = self.client.heap_census(request).await?.into_inner();
            let (mut summary, mut types) = (None, Vec::new());
            while let Some(message) = stream.message().await? {
                match message.part.unwrap() {
                    Part::Progress(_) => assert!(summary.is_none()),
                    Part::Summary(it) => summary = Some(it),
                    Part::Types(it) => types.extend(it.types),
                }
            }
            Ok((summary.unwrap(), types))
        })
    }
}

fn of_pid(pid: u32) -> proto::ProcessSelector {
    proto::ProcessSelector {
        pids: vec![pid],
        ..proto::ProcessSelector::default()
    }
}

fn start(python: &mut Command) -> Target {
    let script = workload("stacks.py");
    let mut target = Target::start(python.args(["-I", "-S", "-B"]).arg(script).arg(MARKER));
    assert_eq!(target.line(), "ready");
    target
}

/// What the interpreter says: ids and frames by the thread's name.
fn truth(target: &mut Target) -> HashMap<String, (u32, Vec<Frame>)> {
    target.tell("");
    let said: Value = serde_json::from_str(&target.line()).unwrap();
    let frame = |frame: &Value| {
        let text = |idx: usize| frame[idx].as_str().unwrap().to_owned();
        let number = |idx: usize| u32::try_from(frame[idx].as_u64().unwrap()).unwrap();
        (text(0), text(1), number(2), number(3))
    };
    let stacks = said["stacks"].as_object().unwrap().iter();
    stacks
        .map(|(name, frames)| {
            let tid = said["tids"][name].as_u64().unwrap();
            let frames = frames.as_array().unwrap().iter().map(frame);
            (
                name.clone(),
                (u32::try_from(tid).unwrap(), frames.collect()),
            )
        })
        .collect()
}

fn frames(thread: &proto::ThreadStack) -> Vec<Frame> {
    let frames = thread.frames.iter();
    frames
        .map(|it| (it.function.clone(), it.file.clone(), it.line, it.start_line))
        .collect()
}

/// What is wrong with a dump. Threads that wait are exact; that of the thread that runs is one that there can be.
fn errors(
    dump: &proto::DumpStacksResponse,
    truth: &HashMap<String, (u32, Vec<Frame>)>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let names: Vec<&str> = dump.threads.iter().map(|thread| &*thread.name).collect();
    if names.len() != truth.len() || names.first() != Some(&"MainThread") {
        wrong.push(format!("threads {names:?} {}", dump.problem));
    }
    for thread in &dump.threads {
        let Some((tid, expected)) = truth.get(&thread.name) else {
            continue;
        };
        if thread.tid != *tid {
            wrong.push(format!("{} is {}, not {tid}", thread.name, thread.tid));
        }
        let found = frames(thread);
        match &*thread.name {
            "spinner" => {
                let functions: Vec<&str> = found.iter().map(|frame| &*frame.0).collect();
                let outer: Vec<&str> = expected.iter().map(|frame| &*frame.0).collect();
                let spin = outer.iter().position(|name| *name == "spin").unwrap();
                let outer = &outer[spin..];
                let is_legal =
                    functions == outer || functions.split_first() == Some((&"step", outer));
                if !is_legal {
                    wrong.push(format!("spinner: {functions:?}"));
                }
            }
            "MainThread" => {
                let (last, truly) = (found.last().unwrap(), expected.last().unwrap());
                if (&last.0, &last.1) != (&truly.0, &truly.1) {
                    wrong.push(format!("main: {last:?}, not {truly:?}"));
                }
            }
            name => {
                if found != *expected {
                    wrong.push(format!("{name}: {found:?}, not {expected:?}"));
                }
                let waits = thread.state() == proto::ThreadState::Sleeping
                    && !thread.wait_function.is_empty()
                    && thread.holds_gil != Some(true);
                if !waits || thread.is_uncertain {
                    wrong.push(format!("{name}: {thread:?}"));
                }
            }
        }
    }
    wrong
}

fn version(python: &Interpreter) -> String {
    let (major, minor, micro) = python.version;
    format!("{major}.{minor}.{micro}")
}

#[test]
fn stacks_are_those_that_the_interpreter_sees() {
    let mut agent = Agent::start();
    let mut wrong = Vec::new();
    for python in interpreters::usual() {
        let mut target = start(&mut Command::new(&python.path));
        let pid = target.pid().0;
        agent.dump_of(pid);
        let truth = truth(&mut target);
        let (mut n_running, mut n_uncertain, mut n_holds) = (0, 0, 0);
        let begun = Instant::now();
        for _ in 0..N_DUMPS {
            let dump = agent.dump_of(pid);
            assert_eq!(dump.pid, pid);
            assert_eq!(dump.python_version, version(&python));
            assert_eq!(dump.n_other_threads, 0);
            wrong.extend(
                errors(&dump, &truth)
                    .into_iter()
                    .map(|error| format!("{} {}: {error}", version(&python), python.build)),
            );
            let spinner = dump.threads.iter().find(|thread| thread.name == "spinner");
            let spinner = spinner.expect("it runs");
            n_running += usize::from(spinner.state() == proto::ThreadState::Running);
            n_uncertain += usize::from(spinner.is_uncertain);
            n_holds += usize::from(spinner.holds_gil == Some(true));
        }
        println!(
            "{} {}: {:.1} ms a dump of 6 threads; of {N_DUMPS} the one that runs runs in {n_running}, holds the GIL in {n_holds}, is uncertain in {n_uncertain}",
            version(&python),
            python.build,
            begun.elapsed().as_secs_f64() * 1000.0 / N_DUMPS as f64
        );
        assert!(n_running > N_DUMPS / 2, "{n_running}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    agent.process.stop();
}

/// What `pyagent dump --json` prints of one process, in the form of the service's answer.
fn command(arguments: &[&str], pid: u32) -> proto::DumpStacksResponse {
    let output = Command::new(binary())
        .args(["dump", "--json", "--pid", &pid.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let thread = |thread: &Value| {
        let frames = thread["frames"].as_array().unwrap().iter();
        let frames = frames.map(|frame| proto::StackFrame {
            function: text(&frame["function"]),
            file: text(&frame["file"]),
            line: number(&frame["line"]),
            start_line: number(&frame["start_line"]),
            ..proto::StackFrame::default()
        });
        let state = match thread["state"].as_str().unwrap() {
            "running" => proto::ThreadState::Running,
            "sleeping" => proto::ThreadState::Sleeping,
            state => panic!("{state}"),
        };
        proto::ThreadStack {
            tid: number(&thread["tid"]),
            frames: frames.collect(),
            name: text(&thread["name"]),
            state: state.into(),
            wait_function: text(&thread["wait_function"]),
            holds_gil: thread["holds_gil"].as_bool(),
            is_uncertain: thread["uncertain"].as_bool().unwrap(),
            is_truncated: thread["truncated"].as_bool().unwrap(),
        }
    };
    let processes = document["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 1);
    let process = &processes[0];
    let threads = process["threads"].as_array().unwrap().iter();
    proto::DumpStacksResponse {
        pid: number(&process["pid"]),
        python_version: text(&process["python_version"]),
        threads: threads.map(thread).collect(),
        n_other_threads: number(&process["other_threads"]),
        ..proto::DumpStacksResponse::default()
    }
}

#[test]
fn the_command_shows_the_same_stacks_with_and_without_an_agent() {
    let mut agent = Agent::start();
    let address = agent.process.address().to_string();
    let mut wrong = Vec::new();
    for python in interpreters::usual() {
        let mut target = start(&mut Command::new(&python.path));
        let pid = target.pid().0;
        agent.dump_of(pid);
        let truth = truth(&mut target);
        for arguments in [&[][..], &[address.as_str()][..]] {
            let dump = command(arguments, pid);
            assert_eq!(
                (dump.pid, dump.python_version.clone()),
                (pid, version(&python))
            );
            let errors = errors(&dump, &truth).into_iter();
            wrong
                .extend(errors.map(|error| format!("{} {arguments:?}: {error}", version(&python))));
        }
        let printed = Command::new(binary())
            .args(["dump", "--pid", &pid.to_string()])
            .output()
            .unwrap();
        let printed = String::from_utf8(printed.stdout).unwrap();
        // Before 3.11 `time.sleep` is `select` without files.
        let sleeper = match python.minor() {
            (3, ..=10) => "\"sleeper\": waits for poll or select (",
            _ => "\"sleeper\": sleeps (",
        };
        for part in [
            "\"MainThread\": ",
            sleeper,
            "\"locker\": waits for a lock (",
            "\"reader\": waits for a pipe (",
            "    lock_twice  ",
        ] {
            assert!(printed.contains(part), "{part} in {printed}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // All of them: the agent's own tests run Python too, so that there is one more at least.
    let target = start(&mut Command::new(&interpreters::newest().path));
    let output = Command::new(binary())
        .args(["dump", "--all-python", "--json"])
        .output()
        .unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let processes = document["processes"].as_array().unwrap();
    let found = processes.iter().find(|it| it["pid"] == target.pid().0);
    assert_eq!(found.unwrap()["threads"].as_array().unwrap().len(), 6);
    agent.process.stop();
}

#[test]
fn local_variables_are_given_by_an_agent_that_was_told_to_and_are_the_same() {
    let dump = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("dump").args(arguments).stdin(Stdio::null());
        command.output().unwrap()
    };
    let python = interpreters::newest();
    let script = workload("locals.py");
    let mut target = Target::start(python.command(&script).args(["1", MARKER]));
    assert_eq!(target.line(), "ready");
    let pid = target.pid().0;
    for is_allowed in [false, true] {
        let mut agent = Agent::with(if is_allowed { &["--allow-locals"] } else { &[] });
        agent.dump_of(pid);
        let address = agent.process.address().to_string();
        let pid = pid.to_string();
        let asked = dump(&[&address, "--pid", &pid, "-ll", "--json"]);
        if is_allowed {
            let here = dump(&["--pid", &pid, "-ll", "--json"]);
            let threads = |output: &[u8]| -> Vec<Value> {
                let document: Value = serde_json::from_slice(output).unwrap();
                let threads = document["processes"][0]["threads"].as_array().unwrap();
                threads
                    .iter()
                    .filter(|it| it["name"] != "MainThread")
                    .cloned()
                    .collect()
            };
            assert_eq!(threads(&asked.stdout), threads(&here.stdout));
            assert!(threads(&asked.stdout).len() > 5);
        } else {
            let errors = String::from_utf8_lossy(&asked.stderr);
            assert!(!asked.status.success() && asked.stdout.is_empty());
            assert!(errors.contains("--allow-locals"), "{errors}");
            assert_eq!(errors.lines().count(), 1, "{errors}");
        }
        agent.process.stop();
    }
}

#[test]
fn who_cannot_be_dumped_is_said_in_one_line() {
    let fails = |arguments: &[&str], code: i32, part: &str| {
        let output = Command::new(binary())
            .arg("dump")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(part), "{arguments:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    };
    fails(&[], 2, "--pid");
    fails(&["--pid", "4194304"], 4, "4194304");
    let own = std::process::id().to_string();
    fails(&["--pid", &own], 4, "runs no CPython");
    fails(&["127.0.0.1:1", "--pid", "1"], 1, "no agent answers");
    fails(&["nonsense", "--pid", "1"], 2, "nonsense");
}

#[test]
fn threads_of_another_pid_namespace_have_the_ids_of_the_hosts() {
    let mut agent = Agent::start();
    let all = interpreters::usual();
    let old = all.iter().find(|python| python.minor() < (3, 11)).unwrap();
    for python in [&interpreters::newest(), old] {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
        let mut target = start(unshare.arg(&python.path));
        let children = format!("/proc/{0}/task/{0}/children", target.pid());
        let pid = std::fs::read_to_string(children).unwrap();
        let pid: u32 = pid.trim().parse().unwrap();
        let dump = agent.dump_of(pid);
        let mut truth = truth(&mut target);
        // What they call themselves: 1 and so on.
        assert!(truth.values().all(|(tid, _)| *tid < 100), "{truth:?}");
        for entry in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let outer = entry.unwrap().file_name().into_string().unwrap();
            let status = format!("/proc/{pid}/task/{outer}/status");
            let status = std::fs::read_to_string(status).unwrap();
            let ids = status.lines().find(|line| line.starts_with("NSpid:"));
            let inner: u32 = ids
                .unwrap()
                .split_whitespace()
                .last()
                .unwrap()
                .parse()
                .unwrap();
            let found = truth.values_mut().find(|(tid, _)| *tid == inner);
            found.unwrap().0 = outer.parse().unwrap();
        }
        assert_eq!(errors(&dump, &truth), Vec::<String>::new());
    }
    agent.process.stop();
}

/// Keeps 12,345 objects of a class and a list of as many bytes as are asked for, then waits.
const HEAP: &str = "
import sys
class Kept:
    pass
kept = [Kept() for _ in range(12345)]
large = [bytes(1000) for _ in range(int(sys.argv[1]) // 1000)]
print('ready', flush=True)
sys.stdin.readline()
";

fn start_heap(python: &Interpreter, n_bytes: u64) -> Target {
    let mut target = Target::python(python, HEAP, &[&n_bytes.to_string(), MARKER]);
    assert_eq!(target.line(), "ready");
    target
}

#[test]
fn a_census_counts_what_the_command_counts() {
    let mut agent = Agent::start();
    let python = interpreters::newest();
    let target = start_heap(&python, 1_000_000);
    let pid = target.pid().0;
    agent.dump_of(pid);
    let (summary, types) = agent.census(pid, 0).unwrap();
    let output = Command::new(binary())
        .args(["heap", "--json", "--pid", &pid.to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    let command: Value = serde_json::from_slice(&output.stdout).unwrap();
    let counted = |name: &str| types.iter().find(|it| it.name == name).unwrap();
    assert_eq!(counted("__main__.Kept").n_objects, 12345);
    assert!(counted("bytes").n_objects > 1000);
    let rows = command["types"].as_array().unwrap();
    let by_name: BTreeMap<String, (u64, u64)> = rows
        .iter()
        .map(|row| {
            let text = |key: &str| row[key].as_str().unwrap();
            let name = match (text("module"), text("type")) {
                ("builtins", name) => name.to_owned(),
                (module, name) => format!("{module}.{name}"),
            };
            let number = |key: &str| row[key].as_u64().unwrap();
            (name, (number("count"), number("bytes")))
        })
        .collect();
    assert_eq!(by_name.len(), types.len());
    for it in &types {
        assert_eq!(
            by_name.get(&it.name),
            Some(&(it.n_objects, it.size_bytes)),
            "{}",
            it.name
        );
    }
    assert_eq!(summary.n_types as usize, types.len());
    assert_eq!(
        summary.n_objects,
        types.iter().map(|it| it.n_objects).sum::<u64>()
    );
    assert_eq!(summary.python_version, version(&python));
    assert_eq!(summary.largest.len(), 10);
    assert!(types.is_sorted_by(|a, b| a.size_bytes >= b.size_bytes));
    let (again, few) = agent.census(pid, 3).unwrap();
    assert_eq!((again.n_types, &few[..]), (summary.n_types, &types[..3]));
    let gone = agent.census(u32::MAX >> 2, 0).unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    agent.process.stop();
}

#[test]
fn a_client_that_leaves_ends_the_reading() {
    let mut agent = Agent::start();
    let target = start_heap(&interpreters::newest(), 1_500_000_000);
    let pid = target.pid().0;
    agent.dump_of(pid);
    let (whole, before) = (Instant::now(), cpu_time(&agent));
    agent.census(pid, 1).unwrap();
    let (whole, used_by_whole) = (whole.elapsed(), cpu_time(&agent) - before);
    let request = proto::HeapCensusRequest { pid, max_types: 1 };
    let before = cpu_time(&agent);
    agent.runtime.block_on(async {
        let asked = agent.client.heap_census(request);
        // The first message comes after a second, or with the end.
        assert!(
            tokio::time::timeout(whole / 10, asked).await.is_err(),
            "{whole:?}"
        );
    });
    // It is free again at once, and what was begun does not go on.
    let begun = Instant::now();
    while let Err(status) = agent.census(pid, 1) {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(begun.elapsed() < whole * 3, "it goes on");
        std::thread::sleep(Duration::from_millis(2));
    }
    let used = cpu_time(&agent) - before;
    println!(
        "a census takes {used_by_whole:?} of a CPU; one that was left and one that was not took {used:?}"
    );
    // One and a tenth; it would be two.
    assert!(used < used_by_whole * 3 / 2, "{used:?}, {used_by_whole:?}");
    agent.process.stop();
}

/// Of all its threads, also of those that have ended.
fn cpu_time(agent: &Agent) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.process.pid())).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    // utime and stime, fields 14 and 15, in clock ticks of 10 ms; also of threads that have ended.
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|it| it.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

#[test]
fn processes_that_come_change_and_go_are_told() {
    let mut agent = Agent::start();
    let request = proto::WatchProcessesRequest { selector: None };
    let Agent {
        runtime, client, ..
    } = &mut agent;
    let stream = runtime.block_on(client.watch_processes(request)).unwrap();
    let mut stream = stream.into_inner();
    let mut next = || {
        let message =
            async { tokio::time::timeout(Duration::from_secs(60), stream.message()).await };
        runtime.block_on(message).unwrap().unwrap().unwrap()
    };
    let target = start_heap(&interpreters::newest(), 0);
    let pid = target.pid().0;
    // Others begin and end meanwhile.
    let mut told: Option<proto::Process> = None;
    while told
        .as_ref()
        .is_none_or(|it| it.state() != proto::ProcessState::Profiled)
    {
        let changes = next();
        assert!(
            changes.ended.iter().all(|ended| ended.pid != pid),
            "{changes:?}"
        );
        let now = changes
            .processes
            .into_iter()
            .find(|process| process.pid == pid);
        assert!(now.is_none() || now != told, "nothing is told twice");
        told = now.or(told);
    }
    let told = told.unwrap();
    assert_eq!(told.python_version, version(&interpreters::newest()));
    assert!(told.memory.is_none());
    drop(target);
    let ended = loop {
        let changes = next();
        assert!(
            changes.processes.iter().all(|process| process.pid != pid),
            "{changes:?}"
        );
        if let Some(ended) = changes.ended.into_iter().find(|ended| ended.pid == pid) {
            break ended;
        }
    };
    assert_eq!(ended.start_time, told.start_time);
    agent.process.stop();
}
