//! What one thread does at this moment, as the kernel says it.

use std::fs;

use crate::ids::{Pid, Tid};

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// On a CPU, or ready to be.
    Running,
    /// Waits; a signal can wake it.
    Sleeping,
    /// Waits, and nothing else can wake it.
    Uninterruptible,
    /// Stopped by a signal or a debugger.
    Stopped,
}

/// A look at a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskState {
    /// What it does.
    pub activity: Activity,
    /// How often it has left a CPU, because it waits or because another was to run (proc_pid_status(5)).
    n_switches: u64,
}

impl TaskState {
    /// Looks at a thread; an error when it has ended.
    pub fn read(pid: Pid, tid: Tid) -> std::io::Result<Self> {
        let path = format!("/proc/{pid}/task/{tid}/status");
        let text = fs::read(&path)?;
        Self::parse(&text).ok_or_else(|| std::io::Error::other(format!("{path}: it has ended")))
    }

    /// `None`: it has ended.
    fn parse(text: &[u8]) -> Option<Self> {
        let field = |name: &str| {
            let lines = text.split(|byte| *byte == b'\n');
            let mut values = lines.filter_map(|line| line.strip_prefix(name.as_bytes()));
            let value = str::from_utf8(values.next()?).ok()?;
            Some(value.trim())
        };
        let activity = match field("State:")?.chars().next()? {
            'R' => Activity::Running,
            'S' | 'I' => Activity::Sleeping,
            'T' | 't' => Activity::Stopped,
            'Z' | 'X' => return None,
            // D, and what kernels have called it: K, W, P.
            _ => Activity::Uninterruptible,
        };
        let count = |name: &str| field(name)?.parse::<u64>().ok();
        Some(Self {
            activity,
            n_switches: count("voluntary_ctxt_switches:")?
                .wrapping_add(count("nonvoluntary_ctxt_switches:")?),
        })
    }

    /// Whether it has not run between an earlier look and this one.
    #[must_use]
    pub fn stood_still_since(&self, before: &Self) -> bool {
        self.activity != Activity::Running && self == before
    }

    /// Function of the kernel that a thread waits in; empty when it is not known (no rights for it, or it runs).
    #[must_use]
    pub fn wait_function(pid: Pid, tid: Tid) -> String {
        let name = fs::read_to_string(format!("/proc/{pid}/task/{tid}/wchan")).unwrap_or_default();
        // It is "0" when there is none.
        if name == "0" { String::new() } else { name }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_that_waits_stands_still_and_one_that_runs_does_not() {
        let own = |tid: u32| TaskState::read(Pid(std::process::id()), Tid(tid));
        let gettid = || {
            rustix::thread::gettid()
                .as_raw_nonzero()
                .get()
                .cast_unsigned()
        };
        let runs = own(gettid()).unwrap();
        assert_eq!(runs.activity, Activity::Running);
        assert!(!own(gettid()).unwrap().stood_still_since(&runs));
        let (send_tid, tid) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let waiting = std::thread::spawn(move || {
            send_tid.send(gettid()).unwrap();
            let _ = wait.recv();
        });
        let tid = tid.recv().unwrap();
        let mut before = own(tid).unwrap();
        while before.activity == Activity::Running {
            before = own(tid).unwrap();
        }
        assert!(own(tid).unwrap().stood_still_since(&before));
        drop(go);
        waiting.join().unwrap();
        assert!(own(tid).is_err());
    }

    #[test]
    fn a_switch_in_between_is_seen() {
        let text = |n: u32| {
            format!(
                "Name:\tState: R\nState:\tS (sleeping)\nvoluntary_ctxt_switches:\t{n}\nnonvoluntary_ctxt_switches:\t3\n"
            )
        };
        let at = |n| TaskState::parse(text(n).as_bytes()).unwrap();
        assert!(at(7).stood_still_since(&at(7)));
        assert!(!at(8).stood_still_since(&at(7)));
        assert_eq!(TaskState::parse(b"State:\tZ (zombie)\n"), None);
    }
}
