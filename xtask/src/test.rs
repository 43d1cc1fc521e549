//! `cargo xtask test`: runs the test binaries stage by stage, and adds up what they say.

use std::{
    collections::HashMap,
    env,
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::{
    allocators, browser, build, collector, command, grpc_tools, hosts, image, interpreters,
    kubernetes, manifests, package, promtool, setup,
    timing::{self, Row},
    toolchain, viewers, vm, wheels, workspace,
};

/// What `cargo xtask test` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these; all but `kubernetes` and `vm` when nothing is named.
    #[arg(value_enum)]
    only: Vec<Suite>,
    /// For `vm`: only these kernels.
    #[arg(long, value_enum)]
    kernel: Vec<vm::Kernel>,
    /// Only tests whose name contains this.
    #[arg(long)]
    name: Option<String>,
}

/// A group of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// No interpreter, no rights: unit, property and golden tests.
    Offline,
    /// Over the interpreters of this machine.
    Live,
    /// Over this machine's kernel.
    Kernel,
    /// Over containers of Podman's, which is installed when it is missing.
    Containers,
    /// Over a Kubernetes of one node.
    Kubernetes,
    /// Over other kernels, in QEMU.
    Vm,
}

/// Other kernels take long in QEMU, and the image for a cluster takes long to be made: they are run by name.
const DEFAULT_SUITES: [Suite; 4] = [
    Suite::Offline,
    Suite::Live,
    Suite::Kernel,
    Suite::Containers,
];

/// What runs containers: Podman, over the runtime that needs the fewest rights.
const CONTAINER_PROGRAMS: [(&str, &str); 2] = [("podman", "podman"), ("runc", "runc")];

/// What a node of Kubernetes needs beside what is made for it.
const NODE_PROGRAMS: [(&str, &str); 2] = [("runc", "runc"), ("iproute2", "ip")];

/// Servers that run Python in themselves.
const HOST_PROGRAMS: [(&str, &str); 4] = [
    ("uwsgi-core", "/usr/bin/uwsgi"),
    (
        "uwsgi-plugin-python3",
        "/usr/lib/uwsgi/plugins/python3_plugin.so",
    ),
    ("apache2-bin", "/usr/sbin/apache2"),
    (
        "libapache2-mod-wsgi-py3",
        "/usr/lib/apache2/modules/mod_wsgi.so",
    ),
];

/// What cuts a network.
const NETWORK_PROGRAMS: [(&str, &str); 1] = [("iproute2", "ip")];

/// What views are looked at in.
const TERMINAL_PROGRAMS: [(&str, &str); 1] = [("tmux", "tmux")];

/// The stage of what is tested beside its code.
const UNIT: &str = "unit";

/// The stage that starts them.
const HOSTS: &str = "kernel::hosts";

/// The stage of the view that one presses keys in.
const TOP: &str = "kernel::top";

/// The stage that injects faults.
const FAULTS: &str = "kernel::push_faults";

/// The stages that run packages from PyPI.
const WITH_PACKAGES: [&str; 2] = ["kernel::native_memory", "live::heap_guppy"];

/// The stages that run programs with other allocators.
const WITH_ALLOCATORS: [&str; 2] = ["kernel::allocations", "live::probes"];

/// The stages that open profiles with other people's viewers.
const WITH_VIEWERS: [&str; 2] = ["kernel::timeline", "live::viewers"];

/// The stages that look at pages as a browser shows them.
const WITH_BROWSER: [&str; 2] = ["offline::pages", "offline::pages_lines"];

/// What is in the names of stages that push to others.
const PUSHES: &str = "push";

/// The stages that need other people's tools for gRPC, or generate clients.
const WITH_GRPC_TOOLS: [&str; 4] = [
    "kernel::grpc_tools",
    "kernel::service",
    "kernel::versions",
    "offline::proto_rules",
];

/// One run of `cargo test`.
struct Stage {
    name: String,
    what: What,
    /// Whether its tests load BPF programs: then they need root, and run one at a time.
    needs_root: bool,
    /// What its tests start: Debian's packages, each with a program or file of it.
    needs_programs: &'static [(&'static str, &'static str)],
}

/// Which tests a stage runs.
enum What {
    /// Those beside the code.
    Unit,
    /// Those of a test binary, or of one module of it.
    Binary(&'static str, Option<String>),
}

/// What was made before for the tests to run against.
#[derive(Default)]
struct Prepared {
    /// As [`interpreters::get`] says.
    interpreters: OsString,
    /// As [`hosts::get`] says; empty without.
    hosts: OsString,
    /// As [`promtool::get`] says; empty without.
    promtool: OsString,
    /// As [`viewers::get`] says; empty without.
    viewers: OsString,
    /// As [`wheels::get`] says, joined as in a search path; empty without.
    packages: OsString,
    /// As [`allocators::get`] says; empty without.
    allocators: OsString,
    /// As [`browser::get`] says; empty without.
    browser: OsString,
    /// As [`collector::get`] says; empty without.
    collector: OsString,
    /// As [`collector::packages`] says; empty without.
    otlp_packages: OsString,
    /// As [`collector::stand_in`] says; empty without.
    push_stand_in: OsString,
    /// As [`grpc_tools::get`] says; empty without.
    grpc_tools: OsString,
    /// As [`kubernetes::get`] says; empty without.
    kubernetes: OsString,
    /// As [`image::archive`] says; empty without.
    image: OsString,
    /// Names of the tests of each test binary, once they are built.
    tests: HashMap<&'static str, Vec<String>>,
}

impl Suite {
    /// The test binary of its tests.
    fn binary(self) -> Option<&'static str> {
        match self {
            Self::Offline => Some("offline"),
            Self::Live => Some("live"),
            Self::Kernel => Some("kernel"),
            Self::Containers => Some("containers"),
            Self::Kubernetes => Some("kubernetes"),
            Self::Vm => None,
        }
    }

    /// Its stages: one for each module of its test binary. `folder` is that of the binaries' sources.
    fn stages(self, folder: &Path) -> Result<Vec<Stage>> {
        let Some(binary) = self.binary() else {
            return Ok(Vec::new());
        };
        let stage = |name: String, what| Stage {
            needs_root: self != Self::Offline,
            needs_programs: match (self, name.as_str()) {
                (Self::Containers, _) => &CONTAINER_PROGRAMS,
                (Self::Kubernetes, _) => &NODE_PROGRAMS,
                (_, HOSTS) => &HOST_PROGRAMS,
                (_, FAULTS) => &NETWORK_PROGRAMS,
                (_, TOP) => &TERMINAL_PROGRAMS,
                _ => &[],
            },
            name,
            what,
        };
        let mut stages = Vec::new();
        if self == Self::Offline {
            stages.push(stage(UNIT.into(), What::Unit));
        }
        if folder.join(binary).with_extension("rs").is_file() {
            stages.push(stage(binary.into(), What::Binary(binary, None)));
            return Ok(stages);
        }
        for module in modules(&folder.join(binary))? {
            let name = format!("{binary}::{module}");
            stages.push(stage(name, What::Binary(binary, Some(module))));
        }
        Ok(stages)
    }
}

/// Names of the modules of a test binary, sorted: its folder's files.
fn modules(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(stem) = path.file_stem().filter(|stem| *stem != "main")
        {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Tests of a stage that are measured again at most: more than that are not chance.
const MAX_AGAIN: usize = 3;

/// Lines of what a failed test has printed that are repeated at the end: the last ones, where the reason stands.
const MAX_FAILURE_LINES: usize = 20;

/// What failed tests have printed, as they stand in what a test binary prints: behind `---- name stdout ----`, without
/// their backtraces.
#[derive(Debug, Default)]
struct Failures {
    /// Of each test its name and lines.
    tests: Vec<(String, Vec<String>)>,
    is_inside: bool,
    in_backtrace: bool,
}

impl Failures {
    /// Takes the next line of a test binary.
    fn line(&mut self, line: &str) {
        let name = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = name {
            self.tests.push((name.to_owned(), Vec::new()));
            (self.is_inside, self.in_backtrace) = (true, false);
            return;
        }
        match line {
            "failures:" => self.is_inside = false,
            "stack backtrace:" => self.in_backtrace = true,
            _ => {}
        }
        let is_of_backtrace = line.starts_with(' ') || line.starts_with("note: ");
        if self.in_backtrace && !is_of_backtrace && line != "stack backtrace:" {
            self.in_backtrace = false;
        }
        if self.is_inside
            && !self.in_backtrace
            && !line.is_empty()
            && let Some((_, lines)) = self.tests.last_mut()
        {
            lines.push(line.to_owned());
        }
    }

    /// All of them, the last lines of each, below what is said of them.
    fn text(&self, verdict: &str) -> String {
        let of_test = |(name, lines): &(String, Vec<String>)| {
            let skipped = lines.len().saturating_sub(MAX_FAILURE_LINES);
            let lines = lines[skipped..].iter().map(|line| format!("    {line}\n"));
            format!("{verdict} {name}\n{}", lines.collect::<String>())
        };
        self.tests.iter().map(of_test).collect()
    }

    /// Those whose test is named.
    fn of(&self, names: &[&String]) -> Vec<(String, Vec<String>)> {
        let is_named = |(name, _): &&(String, Vec<String>)| names.contains(&name);
        self.tests.iter().filter(is_named).cloned().collect()
    }
}

/// What was wrong at the first time.
#[derive(Debug, Default)]
struct Wrong {
    /// And for good.
    failed: Failures,
    /// And right when it was measured again.
    passed_again: Failures,
}

/// Passed and failed tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) n_passed: u64,
    pub(crate) n_failed: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.n_passed += other.n_passed;
        self.n_failed += other.n_failed;
    }
}

/// Runs the tests. Every stage runs, also after one that failed; a build that fails ends it.
pub(crate) fn test(args: &Args) -> Result<ExitCode> {
    let suites = if args.only.is_empty() {
        &DEFAULT_SUITES[..]
    } else {
        &args.only[..]
    };
    let mut rows = Vec::new();
    let mut total = Counts::default();
    let mut wrong = Wrong::default();
    let folder = workspace::root().join("tests/tests");
    let mut stages = Vec::new();
    for suite in suites {
        stages.extend(suite.stages(&folder)?);
    }
    let mut prepared = Prepared::default();
    if !stages.is_empty() {
        let has_peers = stages.iter().any(|stage| {
            stage.name.contains(PUSHES) || WITH_GRPC_TOOLS.contains(&stage.name.as_str())
        });
        // Minutes, where they were never made: beside all the rest.
        let peers = has_peers.then(|| thread::spawn(make_peers));
        let has_cluster = suites.contains(&Suite::Kubernetes);
        let cluster = has_cluster.then(|| thread::spawn(make_cluster));
        let start = Instant::now();
        prepared.interpreters = interpreters::get()?;
        rows.push(Row {
            name: "interpreters".into(),
            duration: start.elapsed(),
            outcome: "ok".into(),
        });
        if stages.iter().any(|stage| stage.name == HOSTS) {
            let start = Instant::now();
            prepared.hosts = hosts::get()?.unwrap_or_default().into_os_string();
            rows.push(Row {
                name: "packed programs".into(),
                duration: start.elapsed(),
                outcome: "ok".into(),
            });
        }
        if stages.iter().any(|stage| stage.name == UNIT) {
            prepared.promtool = promtool::get()?.unwrap_or_default().into_os_string();
        }
        get_packages(&stages, &mut prepared, &mut rows);
        let start = Instant::now();
        build_all(&prepared)?;
        rows.push(Row {
            name: "build".into(),
            duration: start.elapsed(),
            outcome: "ok".into(),
        });
        for suite in suites {
            if let Some(binary) = suite.binary() {
                prepared.tests.insert(binary, tests_of(binary, &prepared)?);
            }
        }
        if let Some(peers) = peers {
            let (made, row) = peers.join().expect("it does not panic");
            [
                prepared.collector,
                prepared.otlp_packages,
                prepared.push_stand_in,
                prepared.grpc_tools,
            ] = made?;
            rows.push(row);
        }
        if let Some(cluster) = cluster {
            let made = cluster.join().expect("it does not panic");
            total.add(get_cluster(made, &mut prepared, &mut rows)?);
        }
    }
    for stage in stages {
        let start = Instant::now();
        let (counts, outcome) = run_stage(&stage, &prepared, args.name.as_deref(), &mut wrong)?;
        total.add(counts);
        rows.push(Row {
            name: stage.name,
            duration: start.elapsed(),
            outcome,
        });
    }
    if suites.contains(&Suite::Vm) {
        let (counts, vm_rows) = vm::test(&args.kernel)?;
        total.add(counts);
        rows.extend(vm_rows);
    }
    println!("\n{}", timing::table(&rows));
    print!("{}", wrong.passed_again.text("PASSED WHEN MEASURED AGAIN"));
    print!("{}", wrong.failed.text("FAILED"));
    println!("{} passed, {} failed", total.n_passed, total.n_failed);
    Ok(if total.n_failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Other people's packages, for the stages that run them.
fn get_packages(stages: &[Stage], prepared: &mut Prepared, rows: &mut Vec<Row>) {
    let is_run = |names: &[&str]| {
        let mut stages = stages.iter();
        stages.any(|stage| names.contains(&stage.name.as_str()))
    };
    if is_run(&WITH_PACKAGES) {
        let (packages, row) = made("packages from PyPI", || {
            Ok(env::join_paths(wheels::get()?)?)
        });
        prepared.packages = packages;
        rows.push(row);
    }
    if is_run(&WITH_VIEWERS) {
        let get = || Ok(viewers::get()?.unwrap_or_default().into_os_string());
        let (folder, row) = made("viewers", get);
        prepared.viewers = folder;
        rows.push(row);
    }
    if is_run(&WITH_BROWSER) {
        let (launcher, row) = made("browser", || Ok(browser::get()?.into_os_string()));
        prepared.browser = launcher;
        rows.push(row);
    }
    if is_run(&WITH_ALLOCATORS) {
        let (folder, row) = made("allocators", || Ok(allocators::get()?.into_os_string()));
        prepared.allocators = folder;
        rows.push(row);
    }
}

/// What tests need that cannot do without it: where it cannot be made this says why, and they fail.
fn made(name: &str, make: impl FnOnce() -> Result<OsString>) -> (OsString, Row) {
    let start = Instant::now();
    let (place, outcome) = match make() {
        Ok(place) => (place, "ok".to_owned()),
        Err(error) => (OsString::new(), format!("FAILED: {error:#}")),
    };
    if place.is_empty() {
        println!("{name}: {outcome}");
    }
    let row = Row {
        name: name.into(),
        duration: start.elapsed(),
        outcome,
    };
    (place, row)
}

/// What profiles are pushed to, and what asks the service.
fn make_peers() -> (Result<[OsString; 4]>, Row) {
    let start = Instant::now();
    let path = |made: Option<PathBuf>| made.unwrap_or_default().into_os_string();
    let all = || {
        let collector = path(collector::get()?);
        let packages = path(collector::packages()?);
        let stand_in = path(collector::stand_in()?);
        Ok([collector, packages, stand_in, path(grpc_tools::get()?)])
    };
    let made = all();
    let row = Row {
        name: "collectors and tools (beside the rest)".into(),
        duration: start.elapsed(),
        outcome: "ok".into(),
    };
    (made, row)
}

/// A Kubernetes of one node.
fn make_cluster() -> (Result<OsString>, Row) {
    let start = Instant::now();
    let made = kubernetes::get().map(Option::unwrap_or_default);
    let row = Row {
        name: "Kubernetes (beside the rest)".into(),
        duration: start.elapsed(),
        outcome: "ok".into(),
    };
    (made, row)
}

/// What was made for a cluster, the image that runs there, and whether the manifests are what the chart makes.
fn get_cluster(
    (programs, row): (Result<OsString>, Row),
    prepared: &mut Prepared,
    rows: &mut Vec<Row>,
) -> Result<Counts> {
    prepared.kubernetes = programs?;
    rows.push(row);
    if prepared.kubernetes.is_empty() {
        return Ok(Counts::default());
    }
    let (archive, row) = made("image", || Ok(image::archive()?.into_os_string()));
    prepared.image = archive;
    rows.push(row);
    let start = Instant::now();
    let is_current = manifests::is_current()?;
    let outcome = if is_current {
        "ok"
    } else {
        "FAILED: deploy/kubernetes is not what the chart makes: cargo xtask manifests"
    };
    rows.push(Row {
        name: "manifests".into(),
        duration: start.elapsed(),
        outcome: outcome.into(),
    });
    Ok(Counts {
        n_passed: u64::from(is_current),
        n_failed: u64::from(!is_current),
    })
}

/// Builds the binary under test and all tests, so that a stage's time is that of its tests.
fn build_all(prepared: &Prepared) -> Result<()> {
    setup::setup()?;
    timing::timed("building pyagent", build::binary)?;
    timing::timed("building the tests", || {
        command::run(cargo_test(prepared).arg("--no-run"))
    })
}

/// `cargo test` over the same packages in every stage: another choice would mean other features, and
/// building again.
fn cargo_test(prepared: &Prepared) -> Command {
    let mut test = command::cargo();
    test.args([
        "test",
        "--workspace",
        "--exclude",
        "profiler-ebpf",
        "--features",
        "xtask/codegen",
    ])
    .env("PYAGENT_BIN", workspace::release_binary())
    .env("PYAGENT_INTERPRETERS", &prepared.interpreters)
    .env("PYAGENT_HOSTS", &prepared.hosts)
    .env("PYAGENT_PROMTOOL", &prepared.promtool)
    .env("PYAGENT_VIEWERS", &prepared.viewers)
    .env("PYAGENT_PACKAGES", &prepared.packages)
    .env("PYAGENT_ALLOCATORS", &prepared.allocators)
    .env("PYAGENT_BROWSER", &prepared.browser)
    .env("PYAGENT_COLLECTOR", &prepared.collector)
    .env("PYAGENT_OTLP_PACKAGES", &prepared.otlp_packages)
    .env("PYAGENT_PUSH_STAND_IN", &prepared.push_stand_in)
    .env("PYAGENT_GRPC_TOOLS", &prepared.grpc_tools)
    .env("PYAGENT_CLUSTER", &prepared.kubernetes)
    .env("PYAGENT_IMAGE", &prepared.image);
    test
}

fn run_stage(
    stage: &Stage,
    prepared: &Prepared,
    name: Option<&str>,
    wrong: &mut Wrong,
) -> Result<(Counts, String)> {
    println!("\n== {}", stage.name);
    let mut test = cargo_test(prepared);
    test.arg("--no-fail-fast");
    match &stage.what {
        What::Unit => {
            test.args(["--lib", "--bins", "--"]);
            test.args(name);
        }
        What::Binary(binary, module) => {
            let module = module
                .as_ref()
                .map_or_else(String::new, |it| format!("{it}::"));
            let is_meant = |test: &&String| {
                test.starts_with(&module) && name.is_none_or(|it| test.contains(it))
            };
            let names: Vec<_> = prepared.tests[binary].iter().filter(is_meant).collect();
            if names.is_empty() {
                return Ok(match name {
                    Some(_) => (Counts::default(), "no test of that name".into()),
                    None => left_out("it has no tests: is it named in the folder's main.rs?"),
                });
            }
            only(&mut test, binary, &names);
        }
    }
    if stage.needs_root
        && let Err(error) = give_root(&mut test)
    {
        return Ok(left_out(&format!("{error:#}")));
    }
    let (packages, programs): (Vec<&str>, Vec<&str>) = stage.needs_programs.iter().copied().unzip();
    if let Err(error) = package::install(&programs, &packages) {
        return Ok(left_out(&format!("{error:#}")));
    }
    let mut failed = Failures::default();
    let (mut counts, is_success) = tally(&mut test, &mut std::io::stdout(), &mut failed)?;
    if !is_success && counts.n_failed == 0 {
        // It did not get as far as a result line: crashed, or there is no such test binary.
        counts.n_failed = 1;
    }
    let n_again = measure_again(stage, prepared, &mut counts, &mut failed, wrong)?;
    wrong.failed.tests.append(&mut failed.tests);
    let again = match n_again {
        0 => String::new(),
        _ => format!(", {n_again} of them when measured again"),
    };
    let outcome = format!(
        "{} passed{again}, {} failed",
        counts.n_passed, counts.n_failed
    );
    Ok((counts, outcome))
}

/// Runs the failed tests of a stage once more, where they measure running processes: what else runs on the machine may have
/// been in the way, and chance, which their bounds leave a little to. What is wrong in the program is wrong again. How many
/// have passed: they are told apart at the end, with what they said first.
fn measure_again(
    stage: &Stage,
    prepared: &Prepared,
    counts: &mut Counts,
    failed: &mut Failures,
    wrong: &mut Wrong,
) -> Result<usize> {
    let names: Vec<String> = failed.tests.iter().map(|(name, _)| name.clone()).collect();
    let What::Binary(binary, _) = stage.what else {
        return Ok(0);
    };
    // After a crash not all of them are known.
    let are_all = names.len() as u64 == counts.n_failed;
    if !stage.needs_root || names.is_empty() || names.len() > MAX_AGAIN || !are_all {
        return Ok(0);
    }
    println!("\n== {}: again, what failed", stage.name);
    let mut test = cargo_test(prepared);
    test.arg("--no-fail-fast");
    only(&mut test, binary, &names.iter().collect::<Vec<_>>());
    give_root(&mut test)?;
    let mut failed_again = Failures::default();
    let (counts_again, _) = tally(&mut test, &mut std::io::stdout(), &mut failed_again)?;
    let passed = passed_again(&names, counts_again, &failed_again);
    wrong.passed_again.tests.extend(failed.of(&passed));
    failed.tests.retain(|(name, _)| !passed.contains(&name));
    counts.n_passed += passed.len() as u64;
    counts.n_failed -= passed.len() as u64;
    Ok(passed.len())
}

/// Which of them have passed, as far as what was counted says so: after a crash it does not.
fn passed_again<'a>(names: &'a [String], counts: Counts, failed: &Failures) -> Vec<&'a String> {
    let is_failed = |name: &&String| failed.tests.iter().any(|(failed, _)| failed == *name);
    let passed: Vec<&String> = names.iter().filter(|name| !is_failed(name)).collect();
    let expected = Counts {
        n_passed: passed.len() as u64,
        n_failed: (names.len() - passed.len()) as u64,
    };
    if counts == expected {
        passed
    } else {
        Vec::new()
    }
}

/// Of a test binary only these tests: a part of a name would be found in other modules' names too.
fn only(test: &mut Command, binary: &str, names: &[&String]) {
    test.args(["--test", binary, "--", "--exact"]).args(names);
}

/// Names of the tests of a test binary.
fn tests_of(binary: &str, prepared: &Prepared) -> Result<Vec<String>> {
    let mut list = cargo_test(prepared);
    list.args([
        "--quiet", "--test", binary, "--", "--list", "--format", "terse",
    ]);
    let listed = command::output(&mut list)?;
    let names = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// Makes cargo start the test binaries with root's rights, one test at a time.
fn give_root(test: &mut Command) -> Result<()> {
    test.arg("--test-threads=1");
    if !rustix::process::geteuid().is_root() {
        toolchain::as_root("the test binary")?;
        let machine = env::consts::ARCH.to_uppercase();
        let runner = format!("CARGO_TARGET_{machine}_UNKNOWN_LINUX_GNU_RUNNER");
        test.env(runner, "sudo -n -E");
    }
    Ok(())
}

/// A stage that cannot run: a failure in CI, which promises root and Debian's packages; else said, and left out.
fn left_out(reason: &str) -> (Counts, String) {
    let in_ci = env::var("CI").is_ok_and(|ci| ci == "true");
    let counts = Counts {
        n_passed: 0,
        n_failed: u64::from(in_ci),
    };
    (
        counts,
        format!("{}: {reason}", if in_ci { "FAILED" } else { "left out" }),
    )
}

/// Runs a test command, copies what it prints to `shown`, keeps of it what failed tests say, and adds up its result lines.
fn tally(
    command: &mut Command,
    shown: &mut impl Write,
    failures: &mut Failures,
) -> Result<(Counts, bool)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", command::line(command)))?;
    let stdout = child.stdout.take().expect("it is piped");
    let mut counts = Counts::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        shown.write_all(&line)?;
        shown.write_all(b"\n")?;
        let line = String::from_utf8_lossy(&line);
        failures.line(&line);
        if let Some(result) = result_line(&line) {
            counts.add(result);
        }
    }
    Ok((counts, child.wait()?.success()))
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn result_line(line: &str) -> Option<Counts> {
    let result = line.strip_prefix("test result: ")?;
    let count = |what: &str| {
        let before = result
            .split(';')
            .find_map(|part| part.trim().strip_suffix(what))?;
        before.split_whitespace().last()?.parse().ok()
    };
    Some(Counts {
        n_passed: count(" passed")?,
        n_failed: count(" failed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_read_and_other_lines_are_not() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.1s";
        assert_eq!(
            result_line(line),
            Some(Counts {
                n_passed: 12,
                n_failed: 3
            })
        );
        assert_eq!(result_line("test tests::a_name ... ok"), None);
        assert_eq!(result_line("12 passed, 3 failed"), None);
    }

    #[test]
    fn each_file_of_a_test_binary_is_a_stage() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            "containers.rs",
            "kernel/main.rs",
            "kernel/hosts.rs",
            "kernel/hosts/host.rs",
            "live/main.rs",
            "live/heap.rs",
            "offline/main.rs",
            "offline/lines.rs",
            "offline/help.rs",
            "offline/snapshots/help.snap",
        ];
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let stages = DEFAULT_SUITES.map(|suite| suite.stages(folder.path()).unwrap());
        let stages: Vec<_> = stages
            .iter()
            .flatten()
            .map(|stage| (stage.name.as_str(), stage.needs_root))
            .collect();
        assert_eq!(
            stages,
            [
                ("unit", false),
                ("offline::help", false),
                ("offline::lines", false),
                ("live::heap", true),
                ("kernel::hosts", true),
                ("containers", true)
            ]
        );
    }

    #[test]
    fn every_stage_that_needs_something_is_there() {
        let folder = workspace::root().join("tests/tests");
        let stages = DEFAULT_SUITES.map(|suite| suite.stages(&folder).unwrap());
        let names: Vec<_> = stages.iter().flatten().map(|stage| &stage.name).collect();
        let needing = [HOSTS, FAULTS, TOP]
            .into_iter()
            .chain(WITH_PACKAGES)
            .chain(WITH_ALLOCATORS)
            .chain(WITH_VIEWERS)
            .chain(WITH_BROWSER)
            .chain(WITH_GRPC_TOOLS);
        for stage in needing {
            assert!(names.iter().any(|name| *name == stage), "{stage}");
        }
    }

    #[test]
    fn what_failed_tests_say_is_kept_without_backtraces() {
        let output = "\
test a ... ok
test b ... FAILED
failures:

---- b stdout ----
3.14: 5 of 6

thread 'b' (7) panicked at tests/b.rs:1:2:
wrong
stack backtrace:
   0: __rustc::rust_begin_unwind
             at /rustc/library/std/src/panicking.rs:689:5
note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.

---- c stdout ----
thread 'c' (8) panicked at tests/b.rs:3:4:
also wrong

failures:
    b
    c

test result: FAILED. 1 passed; 2 failed; 0 ignored";
        let mut failures = Failures::default();
        for line in output.lines() {
            failures.line(line);
        }
        let expected = "\
FAILED b
    3.14: 5 of 6
    thread 'b' (7) panicked at tests/b.rs:1:2:
    wrong
FAILED c
    thread 'c' (8) panicked at tests/b.rs:3:4:
    also wrong
";
        assert_eq!(failures.text("FAILED"), expected);
    }

    #[test]
    fn only_what_was_counted_has_passed_again() {
        let names = ["a", "b"].map(str::to_owned);
        let mut failed = Failures::default();
        let counts = |n_passed, n_failed| Counts { n_passed, n_failed };
        assert_eq!(passed_again(&names, counts(2, 0), &failed), ["a", "b"]);
        // It crashed in the second one.
        assert!(passed_again(&names, counts(0, 0), &failed).is_empty());
        failed.line("---- b stdout ----");
        assert_eq!(passed_again(&names, counts(1, 1), &failed), ["a"]);
        assert!(passed_again(&names, counts(0, 1), &failed).is_empty());
    }

    #[test]
    fn a_test_command_is_added_up_over_its_binaries() {
        let lines = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; \
                     echo 'test result: FAILED. 1 passed; 4 failed; 0 ignored'; exit 101";
        let mut command = Command::new("sh");
        command.args(["-c", lines]);
        let (counts, is_success) =
            tally(&mut command, &mut Vec::new(), &mut Failures::default()).unwrap();
        assert_eq!(
            counts,
            Counts {
                n_passed: 3,
                n_failed: 4
            }
        );
        assert!(!is_success);
    }
}
