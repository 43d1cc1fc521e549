//! Names of threads that come and go: a thread has its own name in the profile or none of Python's, never that of one
//! that had its place before or after it.

use std::collections::BTreeMap;

use profiler_agent::profile::model::Profile;
use pyagent_tests::interpreters;
use pyagent_tests::recorder::{Recorder, of_pids};
use pyagent_tests::target::Target;

/// Threads that run one after the other, so that each gets the `pthread_t` of the one before; every eighth of them stays
/// long enough for its name to be looked for. What runs in the thread `thread 7` is called `worker_7`. Prints how
/// many different idents they had.
const CHURN: &str = "
import sys, threading, time
source = '''
def worker_%d(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    idents.add(threading.get_ident())
'''
idents = set()
print('ready', flush=True)
sys.stdin.readline()
for n in range(32):
    exec(source % n)
    seconds = 1.3 if n % 8 == 7 else 0.06
    thread = threading.Thread(target=globals()['worker_%d' % n], name='thread %d' % n, args=(seconds,))
    thread.start()
    thread.join()
print(len(idents), flush=True)
sys.stdin.readline()
";

/// Of each worker, how many samples have which thread name.
fn names(profile: &Profile) -> BTreeMap<u32, BTreeMap<String, i64>> {
    let mut names: BTreeMap<u32, BTreeMap<String, i64>> = BTreeMap::new();
    for sample in &profile.samples {
        let worker = profile
            .frames(sample.stack)
            .find_map(|frame| frame.name.strip_prefix("worker_")?.parse().ok());
        if let Some(worker) = worker {
            let name = profile.thread(sample.labels).thread_name.to_owned();
            *names.entry(worker).or_default().entry(name).or_default() += sample.values[0];
        }
    }
    names
}

#[test]
fn a_thread_never_has_the_name_of_another() {
    let pythons = interpreters::supported();
    for python in [pythons.first().unwrap(), pythons.last().unwrap()] {
        let mut target = Target::python(python, CHURN, &[]);
        assert_eq!(target.line(), "ready");
        let recorder = Recorder::start(&of_pids(&[target.pid()], 499));
        target.tell("");
        let n_idents: usize = target.line().parse().unwrap();
        let profile = recorder.stop();
        drop(target);
        let names = names(&profile);
        let version = python.version;
        assert!(n_idents <= 8, "{version:?}: {n_idents} idents");
        assert!(names.len() >= 28, "{version:?}: {} threads", names.len());
        let (mut n_named, mut n_unnamed) = (0, 0);
        for (worker, names) in &names {
            for (name, n_samples) in names {
                if *name == format!("thread {worker}") {
                    n_named += n_samples;
                } else {
                    assert!(
                        name.starts_with("python"),
                        "{version:?}: worker {worker} ran in the thread {name:?}: {names:?}"
                    );
                    n_unnamed += n_samples;
                }
            }
            if worker % 8 == 7 {
                assert!(
                    names.contains_key(&format!("thread {worker}")),
                    "{version:?}: {worker}: {names:?}"
                );
            }
        }
        eprintln!(
            "{version:?}: {n_idents} idents; {n_named} samples have the name, {n_unnamed} none"
        );
    }
}
