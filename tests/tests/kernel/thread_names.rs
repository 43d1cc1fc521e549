//! Names of threads that come and go, and names that come late: a thread has one name in a profile, its own or none of
//! Python's, never that of one that had its place before or after it.

use std::collections::{BTreeMap, BTreeSet};

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

/// Threads that run at once. Of every second one `threading` knows nothing when it begins: it gets its name half a second
/// later, and has lost it when it ends. What runs in the thread `thread 7` is called `worker_7`.
const LATE: &str = "
import sys, threading, time, _thread
source = '''
def worker_%d(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
def late_%d():
    worker_%d(0.5)
    threading._active[threading.get_ident()] = threading.Thread(name='thread %d')
    worker_%d(2.5)
    del threading._active[threading.get_ident()]
    worker_%d(0.1)
    ended.release()
'''
ended = threading.Semaphore(0)
print('ready', flush=True)
sys.stdin.readline()
for n in range(0, 24, 2):
    exec(source % ((n,) * 6))
    _thread.start_new_thread(globals()['late_%d' % n], ())
threads = []
for n in range(1, 24, 2):
    exec(source % ((n,) * 6))
    thread = threading.Thread(target=globals()['worker_%d' % n], name='thread %d' % n, args=(1.5,))
    thread.start()
    threads.append(thread)
for thread in threads:
    thread.join()
for n in range(0, 24, 2):
    ended.acquire()
print('ended', flush=True)
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
            assert_eq!(names.len(), 1, "{version:?}: worker {worker}: {names:?}");
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

#[test]
fn a_thread_has_one_name_also_if_that_came_late_and_went_early() {
    let pythons = interpreters::supported();
    for python in [pythons.first().unwrap(), pythons.last().unwrap()] {
        let version = python.version;
        let mut target = Target::python(python, LATE, &[]);
        assert_eq!(target.line(), "ready");
        let recorder = Recorder::start(&of_pids(&[target.pid()], 499));
        target.tell("");
        assert_eq!(target.line(), "ended");
        let profile = recorder.stop();
        let mut by_tid: BTreeMap<i64, BTreeSet<&str>> = BTreeMap::new();
        for sample in &profile.samples {
            let thread = profile.thread(sample.labels);
            let names = by_tid.entry(thread.tid).or_default();
            names.insert(thread.thread_name);
        }
        let n_several = by_tid.values().filter(|names| names.len() > 1).count();
        let n_threads = by_tid.len();
        eprintln!("{version:?}: {n_several} of {n_threads} threads have several names");
        assert_eq!(n_several, 0, "{version:?}: {by_tid:?}");
        let by_worker = names(&profile);
        assert_eq!(by_worker.len(), 24, "{version:?}: {by_worker:?}");
        for (worker, names) in &by_worker {
            let names: Vec<&String> = names.keys().collect();
            assert_eq!(names, [&format!("thread {worker}")], "{version:?}");
        }
    }
}
