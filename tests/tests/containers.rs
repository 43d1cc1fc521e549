//! Processes in pid, mount and user namespaces of their own, in real containers: what the profile says of them is
//! compared with what the script, the kernel and Podman say. And pyagent itself in a container. Root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use profiler_agent::agent::{Agent, Recording};
use profiler_agent::ids::{Pid, Tid};
use profiler_agent::process::facts;
use profiler_agent::profile::model::{FrameKind, LabelSetId, Profile, ProfileType, Sample, label};
use pyagent_tests::compiler::workload;
use pyagent_tests::containers::{
    Container, Engine, MUSL_IMAGE, MUSL_PREFIX, OWN_USER_NAMESPACE, SCRIPT, prepared_root,
};
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::pyagent::binary;
use pyagent_tests::recorder::{Recorder, counter, of_containers, of_pids};
use pyagent_tests::target::Target;
use tokio::sync::oneshot;

const RATE_HZ: u32 = 999;

/// Samples that a test waits for: a second or less.
const ENOUGH: u64 = 300;

/// Names of the script's threads.
const THREADS: [&str; 2] = ["MainThread", "worker \u{e9}"];

/// Lines of the script whose comment ends so, 1 for the first.
fn lines(comment: &str) -> BTreeSet<u32> {
    let text = fs::read_to_string(workload(SCRIPT)).unwrap();
    let numbered = (1..).zip(text.lines());
    let lines: BTreeSet<u32> = numbered
        .filter(|(_, line)| line.ends_with(comment))
        .map(|(number, _)| number)
        .collect();
    assert!(!lines.is_empty(), "{comment}");
    lines
}

/// The kernel's thread ids, by those of the process's own pid namespace.
fn thread_ids(pid: Pid) -> BTreeMap<u32, Tid> {
    let ids = facts::tids(pid).unwrap().into_iter().map(|tid| {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap();
        let ids = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .unwrap();
        let inner = ids.split_whitespace().next_back().unwrap();
        (inner.parse().unwrap(), tid)
    });
    ids.collect()
}

/// Every set of labels of a process that has samples.
fn label_sets(profile: &Profile, pid: Pid) -> BTreeSet<LabelSetId> {
    let sets = profile.samples.iter().map(|sample| sample.labels);
    sets.filter(|labels| profile.thread(*labels).pid == i64::from(pid.0))
        .collect()
}

/// Processes of a profile.
fn pids(profile: &Profile) -> BTreeSet<u32> {
    let sets = profile.samples.iter().map(|sample| sample.labels);
    sets.map(|labels| profile.thread(labels).pid as u32)
        .collect()
}

/// Every complete stack of a process runs through the lines that the script says it does, in the file that the
/// process sees; both threads are there, by the names and the ids that they have.
fn check_stacks(
    profile: &Profile,
    pid: Pid,
    file: &str,
    tids: &BTreeMap<u32, Tid>,
    inner: [u32; 2],
) {
    let spins = lines("# spins");
    let ours = |function: &str, comment| (function.to_owned(), lines(comment));
    let callers = [
        vec![
            ours("main", "# called by main"),
            ours("<module>", "# called by the module"),
        ],
        vec![ours("work", "# called by work")],
    ];
    let mut seen = BTreeSet::new();
    let (mut n_complete, mut n_incomplete) = (0, 0);
    for sample in &profile.samples {
        let thread = profile.thread(sample.labels);
        if thread.pid != i64::from(pid.0) {
            continue;
        }
        let frames: Vec<_> = profile.frames(sample.stack).collect();
        if frames.iter().any(|frame| frame.kind == FrameKind::Reason) {
            n_incomplete += sample.values[0];
            continue;
        }
        n_complete += sample.values[0];
        let of_thread = THREADS.iter().position(|name| *name == thread.thread_name);
        let idx = of_thread.unwrap_or_else(|| panic!("a thread called {}", thread.thread_name));
        assert_eq!(
            thread.tid,
            i64::from(tids[&inner[idx]].0),
            "{}",
            thread.thread_name
        );
        seen.insert(idx);
        let mut python = frames
            .iter()
            .filter(|frame| frame.kind == FrameKind::Python && frame.filename == file);
        let leaf = python.next().expect("a frame of the script");
        assert_eq!(leaf.name, "spin");
        assert!(spins.contains(&leaf.line), "spin at line {}", leaf.line);
        let found: Vec<_> = python
            .map(|frame| (frame.name.to_owned(), BTreeSet::from([frame.line])))
            .collect();
        assert_eq!(found, callers[idx]);
    }
    assert_eq!(seen.len(), THREADS.len(), "both threads have samples");
    assert!(
        n_incomplete * 50 <= n_complete,
        "{n_incomplete} of {n_complete} stacks are not complete"
    );
}

/// The labels of a container's process are what Podman and the kernel say.
fn check_labels(profile: &Profile, container: &Container, python: &Interpreter) {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid)).unwrap();
    let (major, minor, micro) = python.version;
    let sets = label_sets(profile, container.pid);
    assert!(!sets.is_empty(), "{} has samples", container.name);
    for labels in sets {
        let text = |name| profile.label(labels, name).unwrap_or_default();
        assert_eq!(text(label::CONTAINER_ID), container.id);
        assert_eq!(text(label::CONTAINER_NAME), container.name);
        assert_eq!(text(label::CONTAINER_RUNTIME), "podman");
        assert_eq!(profile.label(labels, label::K8S_POD_UID), None);
        let group = text(label::CGROUP);
        assert!(group.contains(&container.id), "{group}");
        assert!(
            groups
                .lines()
                .any(|line| line.ends_with(&format!(":{group}")))
        );
        assert_eq!(
            text(label::PYTHON_VERSION),
            format!("{major}.{minor}.{micro}")
        );
    }
}

/// A process of this host that runs the script, and what it says of its threads.
fn on_the_host(python: &Interpreter) -> (Target, [u32; 2]) {
    let mut target = Target::start(&mut python.command(&workload(SCRIPT)));
    let line = target.line();
    let ids: Vec<u32> = line
        .strip_prefix("ready ")
        .unwrap_or_else(|| panic!("the script said `{line}`"))
        .split(' ')
        .map(|id| id.parse().unwrap())
        .collect();
    (target, [ids[0], ids[1]])
}

/// An interpreter that runs in this host's own root.
fn host_interpreter() -> Interpreter {
    let mut found = interpreters::supported();
    // `threading.get_native_id` came with 3.8.
    found.retain(|python| !python.has_own_root() && python.minor() >= (3, 8));
    found.pop().expect("an interpreter of this host")
}

fn record(recorder: Recorder, n_samples: u64) -> Profile {
    let wanted = counter(&recorder.status(), "samples_received") + n_samples;
    recorder.wait_until("enough samples", |status| {
        counter(status, "samples_received") >= wanted
    });
    recorder.stop()
}

fn script_in_root() -> String {
    Path::new("/").join(SCRIPT).display().to_string()
}

#[test]
fn containers_of_two_versions_have_true_frames_threads_and_labels_and_nothing_else_is_profiled() {
    let Some(engine) = Engine::get() else { return };
    let (oldest, newest) = (&engine.interpreters[0], engine.interpreters.last().unwrap());
    assert_ne!(oldest.minor(), newest.minor());
    let first = engine.start_script("first", &OWN_USER_NAMESPACE, &oldest.executable);
    // Its groups are of a namespace of their own, which changes nothing as seen from here.
    let second = engine.start_script("odd.name-2", &["--cgroupns", "private"], &newest.executable);
    let third = engine.start_script("third", &[], &newest.executable);
    let (host, _) = on_the_host(&host_interpreter());
    assert_ne!(
        thread_ids(first.pid)[&first.inner_tids[0]].0,
        first.inner_tids[0]
    );

    let recorder = Recorder::start(&of_containers(&["first", &second.id[..12]], RATE_HZ));
    let profile = record(recorder, 2 * ENOUGH);
    assert_eq!(pids(&profile), BTreeSet::from([first.pid.0, second.pid.0]));
    for (container, python) in [(&first, oldest), (&second, newest)] {
        let tids = thread_ids(container.pid);
        check_stacks(
            &profile,
            container.pid,
            &script_in_root(),
            &tids,
            container.inner_tids,
        );
        check_labels(&profile, container, python);
    }
    drop((third, host));
}

#[test]
fn a_container_without_glibc_has_true_frames_threads_and_labels() {
    let Some(engine) = Engine::get() else { return };
    let Some(python) = &engine.musl else {
        eprintln!("skipped: no CPython on musl (`cargo xtask interpreters`)");
        return;
    };
    let path = Path::new("/").join(MUSL_PREFIX).join("bin");
    let path = path.join(python.path.file_name().unwrap());
    let options = OWN_USER_NAMESPACE;
    let container = engine.start_script_in(MUSL_IMAGE, "without-glibc", &options, &path);
    let recorder = Recorder::start(&of_containers(&["without-glibc"], RATE_HZ));
    let profile = record(recorder, ENOUGH);
    assert_eq!(pids(&profile), BTreeSet::from([container.pid.0]));
    let tids = thread_ids(container.pid);
    let (file, inner) = (script_in_root(), container.inner_tids);
    check_stacks(&profile, container.pid, &file, &tids, inner);
    check_labels(&profile, &container, python);
}

#[test]
fn a_container_that_starts_later_is_profiled_and_one_that_is_removed_leaves_what_there_was() {
    let Some(engine) = Engine::get() else { return };
    let python = engine.interpreters.last().unwrap();
    let recorder = Recorder::start(&of_containers(&["later"], RATE_HZ));
    let container = engine.start_script("later", &OWN_USER_NAMESPACE, &python.executable);
    let tids = thread_ids(container.pid);
    // Its threads have names a second after the first sample at the latest.
    let wanted = counter(&recorder.status(), "samples_received") + 5 * ENOUGH;
    recorder.wait_until("samples of it", |status| {
        counter(status, "samples_received") >= wanted
    });
    container.remove();
    recorder.wait_until("no process", |status| {
        status
            .processes
            .iter()
            .all(|(_, n_processes)| *n_processes == 0)
    });
    assert_eq!(recorder.counter("records_undecodable"), 0);
    let profile = recorder.stop();
    // What ran before the script was ready belongs to the profile too.
    let spinning = spinning(&profile);
    assert_eq!(pids(&profile), BTreeSet::from([container.pid.0]));
    check_stacks(
        &spinning,
        container.pid,
        &script_in_root(),
        &tids,
        container.inner_tids,
    );
    for labels in label_sets(&profile, container.pid) {
        assert_eq!(
            profile.label(labels, label::CONTAINER_ID),
            Some(&*container.id)
        );
    }
}

/// The samples in which the script spins, in threads whose names were known: a new one's is looked for once a second.
fn spinning(profile: &Profile) -> Profile {
    let mut profile = profile.clone();
    let spins = |sample: &Sample| {
        let mut frames = profile.frames(sample.stack);
        THREADS.contains(&profile.thread(sample.labels).thread_name)
            && frames.any(|frame| frame.kind == FrameKind::Python && frame.name == "spin")
    };
    let samples = profile.samples.iter().copied().filter(spins).collect();
    profile.samples = samples;
    profile
}

#[test]
fn the_same_path_in_a_container_is_another_interpreter() {
    let Some(engine) = Engine::get() else { return };
    let on_host = host_interpreter();
    let in_container = engine.interpreters.last().unwrap();
    assert_ne!(on_host.minor(), in_container.minor());
    let executable = in_container.executable.strip_prefix("/").unwrap();
    let other = prepared_root(in_container).join(executable);
    let volume = format!("{}:{}:ro", other.display(), on_host.path.display());
    let container = engine.start_script("same-path", &["--volume", &volume], &on_host.path);
    let (host, host_tids) = on_the_host(&on_host);

    let recorder = Recorder::start(&of_pids(&[container.pid, host.pid()], RATE_HZ));
    let profile = record(recorder, 2 * ENOUGH);
    check_labels(&profile, &container, in_container);
    let tids = thread_ids(container.pid);
    check_stacks(
        &profile,
        container.pid,
        &script_in_root(),
        &tids,
        container.inner_tids,
    );
    let (major, minor, micro) = on_host.version;
    for labels in label_sets(&profile, host.pid()) {
        assert_eq!(
            profile.thread(labels).python_version,
            format!("{major}.{minor}.{micro}")
        );
        assert_eq!(profile.label(labels, label::CONTAINER_ID), None);
    }
    let file = workload(SCRIPT).display().to_string();
    check_stacks(
        &profile,
        host.pid(),
        &file,
        &thread_ids(host.pid()),
        host_tids,
    );
}

#[test]
fn read_from_outside_the_threads_have_the_kernels_ids_too() {
    let Some(engine) = Engine::get() else { return };
    let python = engine.interpreters.last().unwrap();
    let container = engine.start_script("from-outside", &OWN_USER_NAMESPACE, &python.executable);
    let (reply, profile) = oneshot::channel();
    let recording = Recording {
        profile_type: ProfileType::Cpu,
        duration: None,
        keeps_times: false,
        reply,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let config = of_pids(&[container.pid], 200);
    let mut agent = Agent::start_remote(&config, recording).unwrap();
    runtime.block_on(agent.scanned());
    let asker = agent.asker();
    let deadline = Instant::now() + Duration::from_mins(1);
    while counter(
        &runtime.block_on(asker.status()).unwrap(),
        "samples_received",
    ) < 100
    {
        assert!(Instant::now() < deadline, "not within a minute: samples");
        std::thread::sleep(Duration::from_millis(10));
    }
    agent.stop();
    let profile = profile.blocking_recv().unwrap();
    let tids = thread_ids(container.pid);
    check_stacks(
        &profile,
        container.pid,
        &script_in_root(),
        &tids,
        container.inner_tids,
    );
}

#[test]
fn a_container_that_is_not_there_is_an_error_that_lists_those_that_are() {
    let Some(engine) = Engine::get() else { return };
    let python = engine.interpreters.last().unwrap();
    let container = engine.start_script("there", &[], &python.executable);
    let output = Command::new(binary())
        .args([
            "record",
            "--container",
            "ther",
            "--duration",
            "1s",
            "-o",
            "-",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(
        message.contains("no running container matches `ther`"),
        "{message}"
    );
    let shown = format!("there ({})", &container.id[..12]);
    assert!(message.contains(&shown), "{message}");
}

/// The rights that the README names, and the runtime's filter of system calls off.
const IN_A_CONTAINER: [&str; 9] = [
    "--pid=host",
    "--cap-drop=all",
    "--cap-add=BPF",
    "--cap-add=PERFMON",
    "--cap-add=SYS_PTRACE",
    "--cap-add=DAC_READ_SEARCH",
    "--cap-add=CHECKPOINT_RESTORE",
    "--cap-add=SYSLOG",
    "--security-opt=seccomp=unconfined",
];

/// Folded stacks of what pyagent recorded in a container with these options.
fn recorded_in_a_container(engine: &Engine, options: &[&str], selection: &[&str]) -> String {
    let folder: PathBuf = engine.shared_folder();
    let volume = format!("{}:/shared", folder.display());
    let mut arguments = vec![
        "record",
        "--duration",
        "4s",
        "--rate",
        "999",
        "-o",
        "/shared/out.folded",
    ];
    arguments.extend(selection);
    let options: Vec<&str> = ["--volume", &volume]
        .into_iter()
        .chain(options.iter().copied())
        .collect();
    let output = engine.run_pyagent(&options, &arguments);
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{messages}");
    let profile = fs::read_to_string(folder.join("out.folded")).unwrap();
    assert!(!profile.is_empty(), "{messages}");
    fs::remove_file(folder.join("out.folded")).unwrap();
    profile
}

#[test]
fn pyagent_in_a_container_profiles_the_host_and_other_containers_with_few_rights() {
    let Some(engine) = Engine::get() else { return };
    let python = engine.interpreters.last().unwrap();
    let container = engine.start_script("other", &OWN_USER_NAMESPACE, &python.executable);
    let (host, _) = on_the_host(&host_interpreter());
    let pids = [container.pid.to_string(), host.pid().to_string()];
    let selection = ["--pid", &pids[0], "--pid", &pids[1]];
    for namespace in ["--cgroupns=host", "--cgroupns=private"] {
        let options: Vec<&str> = IN_A_CONTAINER.into_iter().chain([namespace]).collect();
        let both = recorded_in_a_container(engine, &options, &selection);
        for pid in &pids {
            let of_process = both
                .lines()
                .filter(|line| line.contains(&format!("({pid});")));
            let n_spins = of_process.filter(|line| line.contains(";spin (")).count();
            assert!(n_spins > 0, "{pid}: {both}");
        }
        let one = recorded_in_a_container(engine, &options, &["--container", "other"]);
        assert!(one.contains("spin (/contained.py:"), "{one}");
        assert!(!one.contains(&*workload(SCRIPT).to_string_lossy()), "{one}");
    }
}

#[test]
fn pyagent_in_a_container_of_its_own_pid_namespace_says_what_is_missing() {
    let Some(engine) = Engine::get() else { return };
    let options = &IN_A_CONTAINER[1..];
    for arguments in [
        &["record", "--all-python", "--duration", "1s", "-o", "-"][..],
        &[
            "record",
            "--container",
            "any",
            "--duration",
            "1s",
            "-o",
            "-",
        ][..],
        &["doctor"][..],
    ] {
        let output = engine.run_pyagent(options, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("--pid=host"))
            .collect();
        assert_eq!(lines.len(), 1, "{said}");
    }
}

#[test]
fn a_filter_of_system_calls_is_named_when_it_forbids_bpf() {
    let Some(engine) = Engine::get() else { return };
    let options: Vec<&str> = IN_A_CONTAINER[..IN_A_CONTAINER.len() - 1].to_vec();
    let output = engine.run_pyagent(
        &options,
        &["record", "--all-python", "--duration", "1s", "-o", "-"],
    );
    let message = String::from_utf8(output.stderr).unwrap();
    // Newer profiles allow bpf to whoever has CAP_BPF.
    assert!(
        output.status.success() || message.contains("--security-opt seccomp=unconfined"),
        "{message}"
    );
}
