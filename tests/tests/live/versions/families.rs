//! Processes that come and go while they are sampled: forked, spawned, started, replaced.

use std::collections::BTreeSet;

use super::check::{RECORDED, has, is_in, of};
use super::recording::Stack;

/// CPU seconds of a process, beyond those that its interpreter says it took to start, until it is discovered: half of
/// them need no more. The agent waits for a CPU as everybody does, which the processes may keep longer.
const USUAL_SECONDS: f64 = 0.05;
/// And none needs more.
const MAX_SECONDS: f64 = 0.25;

#[test]
fn forked_children_are_profiled_from_their_first_sample() {
    for (name, sampled) in of("fork") {
        let is_undiscovered = |stack: &Stack| {
            stack
                .remarks
                .iter()
                .any(|remark| remark == "[not yet discovered]")
        };
        assert_eq!(sampled.count(is_undiscovered), 0, "{name}");
        // The files of a child that has ended are its parent's. Of a grandchild the parent can have ended too.
        let n_nameless = sampled.count(|stack| {
            ["anonymous code", "native code of a process that ended"]
                .iter()
                .any(|name| stack.shown.contains(name))
        });
        eprintln!(
            "{name}: {n_nameless} of {} samples in native code of nobody knows what",
            sampled.n_samples()
        );
        let children: BTreeSet<i64> = sampled
            .stacks
            .iter()
            .filter(|stack| has(stack, "spin"))
            .map(|stack| stack.pid)
            .collect();
        assert!(
            children.len() >= 20,
            "{name}: {} of 36 children with a sample of their work",
            children.len()
        );
        for work in ["bare_child", "process_child", "grandchild"] {
            assert!(
                sampled.count(|stack| has(stack, work)) > 0,
                "{name}: no sample of {work}"
            );
        }
    }
}

#[test]
fn started_interpreters_are_profiled_as_soon_as_they_are_discovered() {
    let mut all_late = Vec::new();
    for (name, sampled) in of("spawn").chain(of("tree")) {
        for (pid, started) in &sampled.legal.started {
            let stacks = || sampled.stacks.iter().filter(|stack| stack.pid == *pid);
            let without = stacks().filter(|stack| stack.frames.is_empty());
            let late = without.map(|stack| stack.seconds).sum::<f64>() - started;
            assert!(
                late < MAX_SECONDS,
                "{name}: {pid} without a frame for {late:.3} s after the {started:.3} s of its start"
            );
            all_late.push(late);
            if stacks().map(|stack| stack.seconds).sum::<f64>() > started + MAX_SECONDS {
                assert!(
                    stacks().any(|stack| has(stack, "spin")),
                    "{name}: {pid} has no sample of its work"
                );
            }
        }
    }
    assert!(!all_late.is_empty(), "no interpreter was started");
    all_late.sort_by(f64::total_cmp);
    let (usual, most) = (all_late[all_late.len() / 2], all_late[all_late.len() - 1]);
    eprintln!(
        "{} interpreters: {usual:.3} s until they are discovered, {most:.3} s at most",
        all_late.len()
    );
    assert!(usual < USUAL_SECONDS, "{all_late:.3?}");
}

#[test]
fn a_process_that_becomes_another_program_is_another_program() {
    for recorded in RECORDED.iter() {
        let version = |(major, minor, micro): (u8, u8, u8)| format!("{major}.{minor}.{micro}");
        let (before, after) = (
            version(recorded.interpreter.version),
            version(recorded.next.version),
        );
        for sampled in recorded
            .sampled
            .iter()
            .filter(|sampled| sampled.workload.name == "exec_before")
        {
            let (mut n_before, mut n_after) = (0, 0);
            for stack in &sampled.stacks {
                let is_after = stack
                    .frames
                    .iter()
                    .any(|frame| is_in(frame, "exec_after.py"));
                let is_before = stack
                    .frames
                    .iter()
                    .any(|frame| is_in(frame, "exec_before.py"));
                assert!(!(is_before && is_after), "{before}: {}", stack.shown);
                if is_before {
                    n_before += stack.n_samples;
                    assert_eq!(stack.python_version, before, "{}", stack.shown);
                }
                if is_after {
                    n_after += stack.n_samples;
                    assert_eq!(stack.python_version, after, "{}", stack.shown);
                    let n_after = stack
                        .frames
                        .iter()
                        .take_while(|frame| !is_in(frame, "exec_after.py"))
                        .count();
                    let names: Vec<&str> = stack.frames[n_after..]
                        .iter()
                        .map(|frame| &*frame.function.0)
                        .collect();
                    let is_legal = matches!(
                        names[..],
                        ["<module>"] | ["main", "<module>"] | ["after", "main", "<module>"]
                    );
                    assert!(
                        is_legal || !stack.remarks.is_empty(),
                        "{before} to {after}: {}",
                        stack.shown
                    );
                }
            }
            assert!(
                n_before > 400 && n_after > 1000,
                "{before} to {after}: {n_before} and {n_after} samples"
            );
        }
    }
}
