//! `cargo xtask test`: runs the test binaries stage by stage, and adds up what they say.

mod failures;

use std::{
    collections::HashMap,
    env,
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, Write, stdout},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread::{self, JoinHandle},
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
use failures::{Failures, Wrong};

/// What `cargo xtask test` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these; all but `vm` when nothing is named.
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

/// Other kernels take long in QEMU: they are run by name.
const DEFAULT_SUITES: [Suite; 5] = [
    Suite::Offline,
    Suite::Live,
    Suite::Kernel,
    Suite::Containers,
    Suite::Kubernetes,
];

/// What runs containers: Podman, over the runtime that needs the fewest rights.
const CONTAINER_PROGRAMS: [(&str, &str); 2] = [("podman", "podman"), ("runc", "runc")];

/// What a node of Kubernetes needs beside what is made for it.
const NODE_PROGRAMS: [(&str, &str); 2] = [("runc", "runc"), ("iproute2", "ip")];

/// What takes an image beside containerd.
const IMAGE_PROGRAMS: [(&str, &str); 3] =
    [("podman", "podman"), ("runc", "runc"), ("skopeo", "skopeo")];

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

/// The stage that looks at the image.
const IMAGE: &str = "kubernetes::image";

/// The stage that fills a node with busy processes.
const CROWD: &str = "kubernetes::scale";

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
#[derive(Default, Clone)]
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

impl Stage {
    /// Whether it waits most of the time, and what it does meanwhile need not be exact.
    fn waits(&self) -> bool {
        matches!(self.what, What::Binary("kubernetes", _)) && self.name != CROWD
    }

    /// Whether it compares what was measured with what the machine did.
    fn measures_the_machine(&self) -> bool {
        match self.what {
            What::Unit => false,
            What::Binary(binary, _) => !matches!(binary, "offline" | "live"),
        }
    }
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
                (Self::Kubernetes, IMAGE) => &IMAGE_PROGRAMS,
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

/// What stages came to.
#[derive(Debug, Default)]
struct Outcome {
    rows: Vec<Row>,
    counts: Counts,
    wrong: Wrong,
}

impl Outcome {
    /// Something took its time, and went well.
    fn is_made(&mut self, name: &str, begun: Instant) {
        self.rows.push(Row {
            name: name.into(),
            duration: begun.elapsed(),
            outcome: "ok".into(),
        });
    }

    /// Runs a stage; what it prints goes to `shown`.
    fn run(
        &mut self,
        stage: &Stage,
        prepared: &Prepared,
        name: Option<&str>,
        shown: &mut impl Write,
    ) -> Result<()> {
        let begun = Instant::now();
        let (counts, outcome) = run_stage(stage, prepared, name, shown, &mut self.wrong)?;
        self.counts.add(counts);
        self.rows.push(Row {
            name: stage.name.clone(),
            duration: begun.elapsed(),
            outcome,
        });
        Ok(())
    }

    fn add(&mut self, mut other: Self) {
        self.rows.append(&mut other.rows);
        self.counts.add(other.counts);
        self.wrong.add(other.wrong);
    }
}

/// A Kubernetes that is made beside the rest.
type MakingCluster = JoinHandle<(Result<OsString>, Row)>;

/// Runs the tests. Every stage runs, also after one that failed; a build that fails ends it.
pub(crate) fn test(args: &Args) -> Result<ExitCode> {
    let suites = if args.only.is_empty() {
        &DEFAULT_SUITES[..]
    } else {
        &args.only[..]
    };
    let folder = workspace::root().join("tests/tests");
    let mut stages = Vec::new();
    for suite in suites {
        stages.extend(suite.stages(&folder)?);
    }
    let mut outcome = Outcome::default();
    if !stages.is_empty() {
        let has_cluster = suites.contains(&Suite::Kubernetes);
        let cluster = has_cluster.then(|| thread::spawn(make_cluster));
        let prepared = prepare(suites, &stages, &mut outcome)?;
        run_stages(
            stages,
            prepared,
            cluster,
            args.name.as_deref(),
            &mut outcome,
        )?;
    }
    if suites.contains(&Suite::Vm) {
        let (counts, rows) = vm::test(&args.kernel)?;
        outcome.counts.add(counts);
        outcome.rows.extend(rows);
    }
    let Outcome {
        rows,
        counts,
        wrong,
    } = outcome;
    println!("\n{}", timing::table(&rows));
    print!("{}", wrong.passed_again.text("PASSED WHEN MEASURED AGAIN"));
    print!("{}", wrong.failed.text("FAILED"));
    println!("{} passed, {} failed", counts.n_passed, counts.n_failed);
    Ok(if counts.n_failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Makes what these stages need, and builds them.
fn prepare(suites: &[Suite], stages: &[Stage], outcome: &mut Outcome) -> Result<Prepared> {
    let mut prepared = Prepared::default();
    let has_peers = stages
        .iter()
        .any(|stage| stage.name.contains(PUSHES) || WITH_GRPC_TOOLS.contains(&stage.name.as_str()));
    // Minutes, where they were never made: beside all the rest.
    let peers = has_peers.then(|| thread::spawn(make_peers));
    let begun = Instant::now();
    prepared.interpreters = interpreters::get()?;
    outcome.is_made("interpreters", begun);
    if stages.iter().any(|stage| stage.name == HOSTS) {
        let begun = Instant::now();
        prepared.hosts = hosts::get()?.unwrap_or_default().into_os_string();
        outcome.is_made("packed programs", begun);
    }
    if stages.iter().any(|stage| stage.name == UNIT) {
        prepared.promtool = promtool::get()?.unwrap_or_default().into_os_string();
    }
    get_packages(stages, &mut prepared, &mut outcome.rows);
    let begun = Instant::now();
    build_all(&prepared)?;
    outcome.is_made("build", begun);
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
        outcome.rows.push(row);
    }
    Ok(prepared)
}

/// Runs all stages. Those of Kubernetes wait most of the time: they run beside those that measure nothing of the machine, and what
/// they print is shown when each is over.
fn run_stages(
    stages: Vec<Stage>,
    mut prepared: Prepared,
    cluster: Option<MakingCluster>,
    name: Option<&str>,
    outcome: &mut Outcome,
) -> Result<()> {
    let (waiting, others): (Vec<_>, Vec<_>) = stages.into_iter().partition(Stage::waits);
    let (quiet, measuring): (Vec<_>, Vec<_>) = others
        .into_iter()
        .partition(|stage| !stage.measures_the_machine());
    let is_alone = quiet.is_empty();
    let mut with_cluster = prepared.clone();
    let run_waiting = |cluster: MakingCluster| {
        let mut outcome = Outcome::default();
        let made = cluster.join().expect("it does not panic");
        let counts = get_cluster(made, &mut with_cluster, &mut outcome.rows)?;
        outcome.counts.add(counts);
        for stage in &waiting {
            if is_alone {
                outcome.run(stage, &with_cluster, name, &mut stdout())?;
                continue;
            }
            let mut text = Vec::new();
            outcome.run(stage, &with_cluster, name, &mut text)?;
            stdout().lock().write_all(&text)?;
        }
        anyhow::Ok((with_cluster, outcome))
    };
    thread::scope(|scope| {
        let beside = cluster.map(|cluster| scope.spawn(|| run_waiting(cluster)));
        for stage in &quiet {
            outcome.run(stage, &prepared, name, &mut stdout())?;
        }
        if let Some(beside) = beside {
            let (with_cluster, of_cluster) = beside.join().expect("it does not panic")?;
            prepared = with_cluster;
            outcome.add(of_cluster);
        }
        anyhow::Ok(())
    })?;
    for stage in &measuring {
        outcome.run(stage, &prepared, name, &mut stdout())?;
    }
    Ok(())
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
    shown: &mut impl Write,
    wrong: &mut Wrong,
) -> Result<(Counts, String)> {
    writeln!(shown, "\n== {}", stage.name)?;
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
    let (mut counts, is_success) = tally(&mut test, shown, &mut failed)?;
    if !is_success && counts.n_failed == 0 {
        // It did not get as far as a result line: crashed, or there is no such test binary.
        counts.n_failed = 1;
    }
    let n_again = measure_again(stage, prepared, &mut counts, &mut failed, shown, wrong)?;
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
    shown: &mut impl Write,
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
    writeln!(shown, "\n== {}: again, what failed", stage.name)?;
    let mut test = cargo_test(prepared);
    test.arg("--no-fail-fast");
    only(&mut test, binary, &names.iter().collect::<Vec<_>>());
    give_root(&mut test)?;
    let mut failed_again = Failures::default();
    let (counts_again, _) = tally(&mut test, shown, &mut failed_again)?;
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
            "kubernetes/main.rs",
            "kubernetes/scale.rs",
            "kubernetes/pods.rs",
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
                ("containers", true),
                ("kubernetes::pods", true),
                ("kubernetes::scale", true)
            ]
        );
    }

    #[test]
    fn what_waits_runs_beside_what_measures_nothing() {
        let folder = workspace::root().join("tests/tests");
        let stages = DEFAULT_SUITES.map(|suite| suite.stages(&folder).unwrap());
        let mut n = [0; 3];
        for stage in stages.iter().flatten() {
            let (suite, _) = stage.name.split_once("::").unwrap_or((&stage.name, ""));
            let (idx, expected) = match (stage.waits(), stage.measures_the_machine()) {
                (true, _) => (0, &["kubernetes"][..]),
                (false, false) => (1, &["unit", "offline", "live"][..]),
                (false, true) => (2, &["kernel", "containers", "kubernetes"][..]),
            };
            assert!(expected.contains(&suite), "{}", stage.name);
            n[idx] += 1;
        }
        assert!(n.iter().all(|n| *n > 3), "{n:?}");
    }

    #[test]
    fn every_stage_that_needs_something_is_there() {
        let folder = workspace::root().join("tests/tests");
        let stages = DEFAULT_SUITES.map(|suite| suite.stages(&folder).unwrap());
        let names: Vec<_> = stages.iter().flatten().map(|stage| &stage.name).collect();
        let needing = [HOSTS, FAULTS, TOP, IMAGE, CROWD]
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
