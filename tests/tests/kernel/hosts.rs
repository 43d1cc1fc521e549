//! Python that does not look like Python, or not for long: under other names, in other programs, from files that are
//! gone, with several interpreters, with stacks that are switched. All of it runs at the same time, and one agent
//! profiles it. What is sampled must be what each program says of its own stacks. Root, one test at a time.

mod host;
mod truth;

use std::sync::LazyLock;
use std::time::Duration;

use pyagent_tests::compiler;
use pyagent_tests::interpreters::{self, Interpreter};
use pyagent_tests::recorder::{Recorder, of_cmdline, of_pids};

use self::host::{Hosts, Running};
use self::truth::Seen;

/// Samples a second and CPU; in step with nothing.
const RATE_HZ: u32 = 997;

/// Samples that every host must have: the CPUs are shared by all of them.
const MIN_SAMPLES: u64 = 100;

/// What was sampled of every host, recorded when the first test asks.
static SEEN: LazyLock<Vec<Seen>> = LazyLock::new(|| {
    let groups: [fn(&Hosts) -> Vec<Running>; 2] = [start_steady, start_interpreters];
    groups.into_iter().flat_map(see).collect()
});

/// Records what was started, for so long that each has its share of the CPUs.
fn see(start: fn(&Hosts) -> Vec<Running>) -> Vec<Seen> {
    let hosts = Hosts::new();
    let running = start(&hosts);
    running.iter().for_each(Running::wait_until_ready);
    let recorder = Recorder::start(&of_cmdline(hosts.marker(), RATE_HZ));
    host::use_for(Duration::from_secs(10), &running);
    let profile = recorder.stop();
    running
        .iter()
        .map(|host| {
            let seen = Seen::new(host.name(), &host.chains(), &profile);
            eprintln!("{seen}");
            seen
        })
        .collect()
}

/// The usual interpreters from a version on.
fn usual(from: (u8, u8)) -> Vec<Interpreter> {
    let mut usual = interpreters::usual();
    usual.retain(|python| python.minor() >= from);
    usual
}

/// Those whose code stays.
fn start_steady(hosts: &Hosts) -> Vec<Running> {
    let python = interpreters::newest();
    let mut running = vec![
        hosts.renamed("renamed", &python),
        hosts.deleted("deleted", &python),
        hosts.replaced("replaced", &python),
        hosts.environment("environment", &python),
        hosts.archive("archive", &python),
        hosts.script("optimized", &python, &["-OO"], &[], "plain.py"),
        hosts.module("module", &python),
        hosts.script("signals", &python, &[], &[], "signals.py"),
        hosts.script("at_exit", &python, &[], &[], "at_exit.py"),
        hosts.script("main_ended", &python, &[], &[], "main_ended.py"),
        hosts
            .script("forks", &python, &[], &[], "forks.py")
            .with_chains(2),
    ];
    for python in usual((3, 12)) {
        let (major, minor) = python.minor();
        let name = |what: &str| format!("{what} {major}.{minor}");
        running.push(hosts.script(
            &name("trampolines"),
            &python,
            &["-X", "perf"],
            &[],
            "plain.py",
        ));
        if minor >= 14 {
            let jit = [("PYTHON_JIT", "1")];
            running.push(hosts.script(&name("jit"), &python, &[], &jit, "plain.py"));
        }
    }
    for python in usual((3, 13)) {
        let (major, minor) = python.minor();
        let n_chains = if minor >= 14 { 3 } else { 2 };
        let name = format!("isolated {major}.{minor}");
        let running_interpreters = hosts.script(&name, &python, &[], &[], "isolated.py");
        running.push(running_interpreters.with_chains(n_chains));
    }
    running.extend(hosts.packaged());
    running.extend(hosts.servers());
    running
}

/// Those that run new code all the time. Up to 3.12 an interpreter's state carries the id of the thread that created it.
fn start_interpreters(hosts: &Hosts) -> Vec<Running> {
    let of = |python: Interpreter| {
        let (major, minor) = python.minor();
        // Up to 3.11 a thread of one interpreter keeps the GIL from those of others.
        let (what, n_chains) = match minor {
            ..12 => ("lent", 1),
            12 => ("lent", 4),
            13.. => ("interpreters", 4),
        };
        let name = format!("{what} {major}.{minor}");
        let running = hosts.script(&name, &python, &[], &[], "interpreters.py");
        running.with_chains(n_chains)
    };
    usual((3, 8)).into_iter().map(of).collect()
}

/// The hosts of this name, of whatever version.
fn seen(what: &str) -> Vec<&'static Seen> {
    let seen = SEEN.iter();
    let seen: Vec<_> = seen
        .filter(|seen| seen.name.split(' ').next() == Some(what))
        .collect();
    assert!(!seen.is_empty(), "no host {what} was started");
    seen
}

/// The stacks of these hosts are those that they say, with nothing left out.
fn assert_true(what: &str) {
    for seen in seen(what) {
        assert!(seen.wrong.is_empty(), "{seen}");
        assert!(seen.n_true >= MIN_SAMPLES, "{seen}");
        // A stack can be caught while it changes.
        assert!(seen.n_incomplete <= 1 + seen.n_true / 200, "{seen}");
        assert!(seen.missing.is_empty(), "{seen}");
    }
}

#[test]
fn an_interpreter_under_another_name() {
    assert_true("renamed");
}

#[test]
fn a_process_whose_main_thread_has_ended() {
    assert_true("main_ended");
}

#[test]
fn an_interpreter_whose_files_were_deleted() {
    assert_true("deleted");
}

#[test]
fn an_interpreter_whose_files_were_replaced_by_those_of_another_version() {
    assert_true("replaced");
}

#[test]
fn a_virtual_environment_behind_symbolic_links() {
    assert_true("environment");
}

#[test]
fn a_zip_archive_that_is_run() {
    assert_true("archive");
}

#[test]
fn optimized_code() {
    assert_true("optimized");
}

#[test]
fn a_module_that_frozen_code_runs() {
    assert_true("module");
}

#[test]
fn signal_handlers_on_the_stack() {
    assert_true("signals");
}

#[test]
fn an_interpreter_that_shuts_down() {
    assert_true("at_exit");
}

#[test]
fn a_program_with_threads_that_forks() {
    assert_true("forks");
}

#[test]
fn trampolines_for_perf() {
    assert_true("trampolines");
}

#[test]
fn the_experimental_jit() {
    assert_true("jit");
}

#[test]
fn several_interpreters_in_a_process_and_in_a_thread() {
    for seen in seen("interpreters") {
        assert!(seen.wrong.is_empty(), "{seen}");
        assert!(seen.n_true >= MIN_SAMPLES, "{seen}");
        assert!(seen.missing.is_empty(), "{seen}");
        assert_eq!(seen.n_with("own_thread"), 0, "{seen}");
        // What is executed is compiled each time, and gone soon. While a thread with two interpreters waits for the GIL,
        // nothing says which of them it waits for.
        let n_known =
            seen.n_remarked("[code object gone]") + seen.n_remarked("[ambiguous thread state]");
        assert!(seen.n_incomplete <= n_known, "{seen}");
        assert!(seen.n_incomplete <= seen.n_true / 4, "{seen}");
    }
}

#[test]
fn a_state_that_was_lent_to_another_thread_gives_no_wrong_stack() {
    for seen in seen("lent") {
        assert!(seen.wrong.is_empty(), "{seen}");
        // What the thread was in when it began to run the other interpreter, and is in no more.
        assert_eq!(seen.n_with("own_thread"), 0, "{seen}");
        assert!(seen.n_true >= MIN_SAMPLES, "{seen}");
    }
}

#[test]
fn interpreters_with_a_gil_of_their_own_and_some_in_which_nothing_runs() {
    assert_true("isolated");
}

#[test]
fn greenlets_that_switch_stacks() {
    assert_true("greenlets");
}

#[test]
fn a_one_file_program_of_pyinstaller() {
    assert_true("onefile");
}

#[test]
fn a_program_that_nuitka_compiled() {
    // Its functions are native code that shows itself as frames, which have no instruction and end nowhere.
    for seen in seen("compiled") {
        assert!(seen.wrong.is_empty(), "{seen}");
        assert!(seen.n_incomplete >= MIN_SAMPLES, "{seen}");
        assert_eq!(seen.n_unlined, seen.n_incomplete, "{seen}");
        assert_eq!(
            seen.n_remarked("[incomplete: frame switch]"),
            seen.n_incomplete,
            "{seen}"
        );
    }
}

#[test]
fn uwsgi_with_its_workers() {
    assert_true("uwsgi");
}

#[test]
fn mod_wsgi_in_apache() {
    assert_true("apache");
}

#[test]
fn a_program_that_loads_libpython_late_and_more_than_once() {
    let python = interpreters::supported()
        .into_iter()
        .rev()
        .find(|python| host::libpython(python).is_some());
    let Some(python) = python.filter(|_| compiler::is_there()) else {
        eprintln!("skipped: no CPython with a shared library, or no C compiler");
        return;
    };
    const N_ROUNDS: usize = 3;
    let hosts = Hosts::new();
    let mut running = hosts.embedded(&python, Duration::from_secs(2), N_ROUNDS);
    let recorder = Recorder::start(&of_pids(&[running.pid()], RATE_HZ));
    running.wait_until_ended();
    let profile = recorder.stop();
    let seen = Seen::new("embedded", &running.chains(), &profile);
    eprintln!("{seen}");
    assert!(seen.wrong.is_empty(), "{seen}");
    for round in 1..=N_ROUNDS {
        let name = format!("round_{round}");
        let n = seen.n_with(&name);
        // Each works for a second, on a CPU that it shares with its native thread at worst.
        assert!(
            n as f64 >= f64::from(RATE_HZ) * 0.4,
            "{n} samples of {name}: {seen}"
        );
    }
    // The native thread works from before the first interpreter to the end.
    assert!(seen.n_outside as f64 >= f64::from(RATE_HZ), "{seen}");
}
