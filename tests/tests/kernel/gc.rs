//! Time that collections of garbage take, estimated from samples of the CPU, against the interpreter's own callbacks.

use pyagent_tests::interpreters;
use pyagent_tests::recorder::{Recorder, of_pids};
use pyagent_tests::target::Target;

/// Samples a second.
const RATE_HZ: u32 = 499;

/// Collects over many objects and computes in between, until it has run for a while; prints the seconds that a clock of
/// its thread says, in collections and in all.
const PROGRAM: &str = "
import gc, json, sys, time
clock = time.thread_time if hasattr(time, 'thread_time') else time.perf_counter
kept = [[] for _ in range(200000)]
inside = 0.0
begun = 0.0
def seen(phase, info):
    global inside, begun
    if phase == 'start':
        begun = clock()
    else:
        inside += clock() - begun
gc.callbacks.append(seen)
print('ready', flush=True)
sys.stdin.readline()
start = clock()
n = 0
while clock() - start < 1.2:
    gc.collect()
    end = clock() + 0.02
    while clock() < end:
        n += 1
print(json.dumps([inside, clock() - start]), flush=True)
sys.stdin.readline()
";

#[test]
fn the_share_of_collections_is_that_which_the_interpreter_measures() {
    let mut n_builds = 0;
    for python in interpreters::usual() {
        let name = format!("{:?} {}", python.version, python.build);
        let mut target = Target::python(&python, PROGRAM, &[]);
        assert_eq!(target.line(), "ready", "{name}");
        let interpreter = target.interpreter();
        let recorder = Recorder::start(&of_pids(&[target.pid()], RATE_HZ));
        target.tell("");
        let [inside, all]: [f64; 2] = serde_json::from_str(&target.line()).unwrap();
        // What the ring still holds.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let processes = recorder.processes();
        let stats = processes
            .iter()
            .find(|process| process.pid == target.pid().0)
            .and_then(|process| process.memory?.gc);
        drop(recorder.stop());
        let (major, minor) = interpreter.version.minor();
        if (major, minor) == (3, 6) {
            assert_eq!(stats, None, "{name}: its statistics are not known");
            continue;
        }
        let stats = stats.unwrap_or_else(|| panic!("{name}: no statistics"));
        if stats.duration.is_some() {
            assert_eq!(
                stats.sampled_duration, None,
                "{name}: it measures by itself"
            );
            continue;
        }
        let found = stats.sampled_duration.unwrap_or_default().as_secs_f64();
        eprintln!("{name}: {found:.3} s of {inside:.3} s in collections, {all:.3} s in all");
        // Samples are taken at fixed distances of CPU time: each collection is off by one of them at most, either way, so
        // the sum by less than the binomial's deviation.
        let n_samples = all * f64::from(RATE_HZ);
        let share = inside / all;
        let deviation = (n_samples * share * (1.0 - share)).sqrt() / f64::from(RATE_HZ);
        assert!(
            (found - inside).abs() < 4.0 * deviation + 0.01 * all,
            "{name}: {found:.3} s, not {inside:.3} s"
        );
        n_builds += 1;
    }
    assert!(n_builds > 0);
}
