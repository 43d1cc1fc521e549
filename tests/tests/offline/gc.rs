//! Statistics of the garbage collector, read from outside, against those that each interpreter gives itself.

use std::time::Duration;

use profiler_agent::process::memory::ProcessMemory;
use profiler_agent::profile::memory::N_GENERATIONS;
use profiler_agent::python::gc;
use pyagent_tests::interpreters;
use pyagent_tests::target::Target;
use serde::Deserialize;

/// Makes garbage in cycles, collects each generation, and prints what `gc` says of it.
const COLLECT: &str = "
import gc, json, sys
gc.disable()
def garbage(n):
    for _ in range(n):
        cycle = []
        cycle.append(cycle)
for n in (300, 20, 7):
    garbage(n)
    gc.collect(0)
garbage(50)
gc.collect(1)
gc.collect(1)
garbage(11)
gc.collect()
for _ in range(30):
    gc.collect(0)
print(json.dumps(gc.get_stats()), flush=True)
sys.stdin.readline()
";

/// A generation, by `gc.get_stats()`.
#[derive(Debug, Deserialize)]
struct Generation {
    collections: u64,
    collected: u64,
    uncollectable: u64,
    /// Seconds (3.15).
    duration: Option<f64>,
}

#[test]
fn every_interpreter_has_the_statistics_that_it_gives_itself() {
    for python in interpreters::supported() {
        let mut target = Target::python(&python, COLLECT, &[]);
        let said: [Generation; N_GENERATIONS] = serde_json::from_str(&target.line()).unwrap();
        let interpreter = target.interpreter();
        let memory = ProcessMemory::new(target.pid());
        let read = gc::read(&memory, &interpreter).unwrap();
        let name = format!("{} ({})", interpreter.version, python.path.display());
        let Some(read) = read else {
            eprintln!("{name}: not known");
            assert_eq!(interpreter.version.minor(), (3, 6), "{name}");
            continue;
        };
        eprintln!("{name}: {read:?}");
        assert_eq!(
            read.collections,
            said.each_ref().map(|of| of.collections),
            "{name}"
        );
        assert_eq!(
            read.collected,
            said.each_ref().map(|of| of.collected),
            "{name}"
        );
        assert_eq!(
            read.uncollectable,
            said.each_ref().map(|of| of.uncollectable),
            "{name}"
        );
        let seconds: Option<f64> = said.iter().map(|of| of.duration).sum();
        let duration = read.duration.as_ref().map(Duration::as_secs_f64);
        match (duration, seconds) {
            (Some(duration), Some(seconds)) => {
                assert!(
                    (duration - seconds).abs() < 1e-6,
                    "{name}: {duration}, not {seconds}"
                );
            }
            (duration, seconds) => assert_eq!(duration, seconds, "{name}"),
        }
    }
}
