//! The table of workloads, and the properties that every recording must have.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use pyagent_tests::interpreters;

use super::legal::Frame;
use super::recording::{Recorded, Sampled, record};
use super::workload::Workload;

const fn steady(name: &'static str, cpu_seconds: f64) -> Workload {
    Workload { name, cpu_seconds, has_young_processes: false }
}

const fn with_children(name: &'static str) -> Workload {
    Workload { name, cpu_seconds: 60.0, has_young_processes: true }
}

const WORKLOADS: [Workload; 15] = [
    steady("shares", 1.5),
    steady("recursion", 1.0),
    steady("generators", 1.0),
    steady("closures", 1.0),
    steady("classes", 1.0),
    steady("ordinary", 2.0),
    steady("switches", 2.0),
    steady("c_code", 1.0),
    steady("threads", 2.0),
    steady("thread_churn", 1.0),
    steady("names", 1.0),
    steady("dying", 1.0),
    with_children("fork"),
    with_children("spawn"),
    with_children("tree"),
];

/// Every interpreter that the project supports, recorded when the first test asks.
static RECORDED: LazyLock<Vec<Recorded>> = LazyLock::new(|| {
    let found: Vec<_> = interpreters::found()
        .into_iter()
        .filter(|python| (3, 8) <= python.minor() && python.minor() <= (3, 13) && !python.free_threaded)
        .filter(|python| {
            std::env::var("LIVE_PYTHON").map_or(true, |only| python.path.to_string_lossy().contains(&only))
        })
        .collect();
    let next = found.iter().cycle().skip(1);
    found.iter().zip(next).map(|(python, next)| record(&WORKLOADS, python, next)).collect()
});

/// Every workload of every interpreter.
fn sampled() -> impl Iterator<Item = (&'static Recorded, &'static Sampled)> {
    RECORDED.iter().flat_map(|recorded| recorded.sampled.iter().map(move |sampled| (recorded, sampled)))
}

#[test]
fn figures() {
    for recorded in RECORDED.iter() {
        let (major, minor, micro) = recorded.interpreter.version;
        println!("{major}.{minor}.{micro}: {:?}", recorded.comments);
        for sampled in &recorded.sampled {
            let n = sampled.n_samples();
            let mut remarks: BTreeMap<&str, u64> = BTreeMap::new();
            for stack in &sampled.stacks {
                if let Some(remark) = stack.remarks.first() {
                    *remarks.entry(remark).or_default() += stack.n_samples;
                }
            }
            let mut n_wrong = 0;
            let mut wrong = BTreeMap::new();
            for stack in sampled.stacks.iter().filter(|stack| stack.remarks.is_empty()) {
                if let Some(what) = sampled.legal.judge(&stack.frames) {
                    n_wrong += stack.n_samples;
                    *wrong.entry(format!("{what:?}")).or_insert(0) += stack.n_samples;
                }
            }
            println!(
                "  {:12} {n:6} samples, {:.3} of {:.3} s = {:.4}; {n_wrong} wrong; {remarks:?}",
                sampled.workload.name,
                sampled.sampled_seconds(),
                sampled.cpu_seconds,
                sampled.sampled_seconds() / sampled.cpu_seconds
            );
            for (what, n) in wrong.iter().take(4) {
                println!("      {n} {what}");
            }
            let is_odd = |stack: &&super::recording::Stack| {
                !stack.remarks.is_empty() || sampled.legal.judge(&stack.frames).is_some()
            };
            if !sampled.workload.has_young_processes {
                for stack in sampled.stacks.iter().filter(is_odd).take(12) {
                    println!("      {} x {}", stack.n_samples, stack.shown.chars().take(600).collect::<String>());
                }
            }
        }
        let mut counters: Vec<_> = recorded.counters.iter().filter(|(_, value)| **value > 0).collect();
        counters.sort();
        println!("  {counters:?}");
    }
}
