//! Stacks of threads at one moment, as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::format::{escape, short_file, unix_seconds};
use crate::profile::aggregate::ResolvedFrame;
use crate::profile::inspect::{
    FrameLocals, LocalVariable, ProcessStacks, ThreadStack, ThreadState,
};
use crate::profile::model::FrameKind;

/// How frames are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct DumpStyle {
    /// Files with their whole paths.
    pub has_full_filenames: bool,
    /// Functions without the line that runs.
    pub has_no_lines: bool,
}

/// What threads wait for, by the function of the kernel that they wait in.
const WAITS: [(&str, &str); 26] = [
    ("anon_pipe_read", "a pipe"),
    ("anon_pipe_write", "a pipe"),
    ("pipe_read", "a pipe"),
    ("pipe_write", "a pipe"),
    ("do_epoll_wait", "epoll"),
    ("ep_poll", "epoll"),
    ("do_poll", "poll"),
    ("do_select", "select"),
    ("poll_schedule_timeout", "poll or select"),
    ("do_sys_poll", "poll"),
    ("do_nanosleep", "sleep"),
    ("hrtimer_nanosleep", "sleep"),
    ("do_wait", "a child process"),
    ("kernel_waitid", "a child process"),
    ("do_sigtimedwait", "a signal"),
    ("do_signal_stop", "a signal"),
    ("futex_do_wait", "a lock"),
    ("futex_wait", "a lock"),
    ("futex_wait_queue", "a lock"),
    ("futex_wait_queue_me", "a lock"),
    ("inet_csk_accept", "a socket"),
    ("sk_wait_data", "a socket"),
    ("unix_stream_read_generic", "a socket"),
    ("__skb_wait_for_more_packets", "a socket"),
    ("n_tty_read", "the terminal"),
    ("folio_wait_bit_common", "the disk"),
];

/// Stacks for people.
///
/// ```text
/// process 1234: python3 app.py, CPython 3.12.1
///
/// thread 1234 "MainThread": runs, holds the GIL
///     fib  app.py:7
///     main  app.py:20
/// ```
#[must_use]
pub fn text(process: &ProcessStacks, style: DumpStyle) -> String {
    let mut text = format!(
        "process {}: {}, CPython {}\n",
        process.pid,
        escape(&process.program),
        process.python_version
    );
    match &process.stacks {
        Ok(stacks) => {
            for thread in &stacks.threads {
                write_thread(&mut text, thread, style);
            }
            let others = match stacks.n_other_threads {
                0 => return text,
                1 => "1 more thread is none of Python's".to_owned(),
                n => format!("{n} more threads are none of Python's"),
            };
            // Writing to a String does not fail.
            let _ = writeln!(text, "\n{others}");
        }
        Err(problem) => {
            let _ = writeln!(text, "    {}", escape(problem));
        }
    }
    text
}

fn write_thread(text: &mut String, thread: &ThreadStack, style: DumpStyle) {
    let _ = writeln!(
        text,
        "\nthread {} \"{}\": {}",
        thread.tid,
        escape(&thread.name),
        state_text(thread)
    );
    for (idx, frame) in thread.frames.iter().enumerate() {
        let _ = writeln!(text, "    {}", frame_text(frame, style));
        if let Some(locals) = thread.locals.get(idx) {
            write_locals(text, locals);
        }
    }
    if thread.is_truncated {
        text.push_str("    [outer frames are missing]\n");
    }
    if thread.frames.is_empty() {
        text.push_str("    [no Python function]\n");
    }
    if thread.is_uncertain {
        text.push_str("    [it ran on while it was read: frames may be of different moments]\n");
    }
}

/// `name = value` in lines of their own, arguments first.
fn write_locals(text: &mut String, locals: &FrameLocals) {
    for variable in &locals.variables {
        let value = match &variable.value {
            Some(value) => escape(&value.text),
            None => "[not known: it changed while it was read]".into(),
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "        {} = {value}", escape(&variable.name));
    }
    if !locals.problem.is_empty() {
        let _ = writeln!(
            text,
            "        [variables are missing: {}]",
            escape(&locals.problem)
        );
    }
}

/// What a thread does: `runs, holds the GIL`, `waits for a lock (futex_do_wait)`.
fn state_text(thread: &ThreadStack) -> String {
    let mut text = match thread.state {
        ThreadState::Running => "runs".to_owned(),
        ThreadState::Sleeping | ThreadState::Uninterruptible => waits_text(thread),
        ThreadState::Stopped => "is stopped".to_owned(),
    };
    if thread.holds_gil == Some(true) {
        text.push_str(", holds the GIL");
    }
    text
}

fn waits_text(thread: &ThreadStack) -> String {
    let function = escape(&thread.wait_function);
    match wait_of(&thread.wait_function) {
        Some("sleep") => format!("sleeps ({function})"),
        Some(what) => format!("waits for {what} ({function})"),
        None if function.is_empty() => "waits".to_owned(),
        None => format!("waits ({function})"),
    }
}

/// What is waited for in this function of the kernel; `None`: it is not known.
fn wait_of(function: &str) -> Option<&'static str> {
    // Behind the point stands what the compiler did to it: `poll_schedule_timeout.constprop.0`.
    let function = function.split('.').next().unwrap_or_default();
    let known = WAITS.iter().find(|(known, _)| *known == function);
    known.map(|(_, what)| *what)
}

fn frame_text(frame: &ResolvedFrame, style: DumpStyle) -> String {
    let function = &frame.function;
    let name = escape(&function.name);
    if function.kind != FrameKind::Python || function.filename.is_empty() {
        return name.into_owned();
    }
    let file = escape(if style.has_full_filenames {
        &function.filename
    } else {
        short_file(&function.filename)
    });
    match frame.line {
        line @ 1.. if !style.has_no_lines => format!("{name}  {file}:{line}"),
        _ => format!("{name}  {file}"),
    }
}

/// The same for programs.
#[must_use]
pub fn json(processes: &[ProcessStacks]) -> Value {
    let processes: Vec<Value> = processes.iter().map(process_json).collect();
    json!({ "processes": processes })
}

fn process_json(process: &ProcessStacks) -> Value {
    let mut value = json!({
        "pid": process.pid,
        "start": unix_seconds(process.start_time),
        "program": process.program,
        "python_version": process.python_version,
    });
    match &process.stacks {
        Ok(stacks) => {
            value["time"] = unix_seconds(stacks.time).into();
            value["threads"] = stacks.threads.iter().map(thread_json).collect();
            value["other_threads"] = stacks.n_other_threads.into();
        }
        Err(problem) => value["problem"] = problem.as_str().into(),
    }
    value
}

fn thread_json(thread: &ThreadStack) -> Value {
    let state = match thread.state {
        ThreadState::Running => "running",
        ThreadState::Sleeping => "sleeping",
        ThreadState::Uninterruptible => "uninterruptible",
        ThreadState::Stopped => "stopped",
    };
    let frames = thread.frames.iter().enumerate().map(|(idx, frame)| {
        let mut value = json!({
            "function": &*frame.function.name,
            "file": &*frame.function.filename,
            "line": frame.line,
            "start_line": frame.function.start_line,
        });
        if let Some(locals) = thread.locals.get(idx) {
            value["locals"] = locals.variables.iter().map(local_json).collect();
            if !locals.problem.is_empty() {
                value["locals_problem"] = (*locals.problem).into();
            }
        }
        value
    });
    json!({
        "tid": thread.tid,
        "name": &*thread.name,
        "state": state,
        "holds_gil": thread.holds_gil,
        "wait": wait_of(&thread.wait_function),
        "wait_function": Some(&thread.wait_function).filter(|function| !function.is_empty()),
        "frames": frames.collect::<Vec<_>>(),
        "uncertain": thread.is_uncertain,
        "truncated": thread.is_truncated,
    })
}

/// A value of `null`: it changed while it was read.
fn local_json(variable: &LocalVariable) -> Value {
    let value = variable.value.as_ref();
    json!({
        "name": &*variable.name,
        "argument": variable.is_argument,
        "type": value.map(|value| &*value.type_name),
        "value": value.map(|value| &*value.text),
        "truncated": value.is_some_and(|value| value.is_truncated),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::profile::aggregate::ResolvedFunction;
    use crate::profile::inspect::{LocalValue, Stacks};

    fn process() -> ProcessStacks {
        let frame = |name: &str, file: &str, line| ResolvedFrame {
            function: Arc::new(ResolvedFunction::python(name, file, 3)),
            line,
            address: 0,
        };
        let thread = |tid, name: &str, state, wait: &str, frames| ThreadStack {
            tid,
            name: name.into(),
            state,
            wait_function: wait.into(),
            holds_gil: Some(state == ThreadState::Running),
            frames,
            locals: Vec::new(),
            is_uncertain: false,
            is_truncated: false,
        };
        ProcessStacks {
            pid: 12,
            start_time: UNIX_EPOCH,
            program: "python3 app.py".into(),
            python_version: "3.14.0".into(),
            stacks: Ok(Stacks {
                time: UNIX_EPOCH,
                threads: vec![
                    thread(
                        12,
                        "MainThread",
                        ThreadState::Running,
                        "",
                        vec![
                            frame("fib", "/srv/app.py", 7),
                            frame("<module>", "/srv/app.py", 9),
                        ],
                    ),
                    thread(
                        13,
                        "pool\n1",
                        ThreadState::Sleeping,
                        "futex_do_wait",
                        vec![frame("Queue.get", "/usr/lib/python3.14/queue.py", 180)],
                    ),
                    thread(
                        14,
                        "new",
                        ThreadState::Sleeping,
                        "some_function",
                        Vec::new(),
                    ),
                    thread(
                        15,
                        "old",
                        ThreadState::Sleeping,
                        "do_poll.constprop.0",
                        Vec::new(),
                    ),
                ],
                n_other_threads: 1,
            }),
        }
    }

    #[test]
    fn people_read_what_each_thread_does_and_where() {
        assert_eq!(
            text(&process(), DumpStyle::default()),
            "process 12: python3 app.py, CPython 3.14.0\n\
             \n\
             thread 12 \"MainThread\": runs, holds the GIL\n\
             \x20   fib  /srv/app.py:7\n\
             \x20   <module>  /srv/app.py:9\n\
             \n\
             thread 13 \"pool\\n1\": waits for a lock (futex_do_wait)\n\
             \x20   Queue.get  queue.py:180\n\
             \n\
             thread 14 \"new\": waits (some_function)\n\
             \x20   [no Python function]\n\
             \n\
             thread 15 \"old\": waits for poll (do_poll.constprop.0)\n\
             \x20   [no Python function]\n\
             \n\
             1 more thread is none of Python's\n"
        );
        let style = DumpStyle {
            has_full_filenames: true,
            has_no_lines: true,
        };
        assert!(text(&process(), style).contains("    Queue.get  /usr/lib/python3.14/queue.py\n"));
    }

    /// The first frame has variables.
    fn with_locals() -> ProcessStacks {
        let variable = |name: &str, text: Option<&str>, is_argument| LocalVariable {
            name: name.into(),
            is_argument,
            value: text.map(|text| LocalValue {
                type_name: "str".into(),
                text: text.into(),
                is_truncated: false,
            }),
        };
        let mut process = process();
        let thread = &mut process.stacks.as_mut().unwrap().threads[0];
        thread.locals = vec![
            FrameLocals {
                variables: vec![
                    variable("n", Some("'\u{202e}'"), true),
                    variable("busy", None, false),
                ],
                problem: "".into(),
            },
            FrameLocals {
                variables: Vec::new(),
                problem: "they\ncannot".into(),
            },
        ];
        process
    }

    #[test]
    fn variables_stand_below_their_frames() {
        let shown = text(&with_locals(), DumpStyle::default());
        let expected = "    fib  /srv/app.py:7\n\
             \x20       n = '\\u{202e}'\n\
             \x20       busy = [not known: it changed while it was read]\n\
             \x20   <module>  /srv/app.py:9\n\
             \x20       [variables are missing: they\\ncannot]\n";
        assert!(shown.contains(expected), "{shown}");
        let document = json(&[with_locals()]);
        let frames = &document["processes"][0]["threads"][0]["frames"];
        assert_eq!(
            frames[0]["locals"][0],
            json!({"name": "n", "argument": true, "type": "str", "value": "'\u{202e}'", "truncated": false})
        );
        assert_eq!(frames[0]["locals"][1]["value"], Value::Null);
        assert_eq!(frames[1]["locals_problem"], "they\ncannot");
        assert_eq!(
            document["processes"][0]["threads"][1]["frames"][0].get("locals"),
            None
        );
    }

    #[test]
    fn programs_read_the_same() {
        let document = json(&[process()]);
        let process = &document["processes"][0];
        assert_eq!(process["threads"][1]["wait"], "a lock");
        assert_eq!(
            process["threads"][0]["frames"][0],
            json!({"function": "fib", "file": "/srv/app.py", "line": 7, "start_line": 3})
        );
        assert_eq!(process["threads"][0]["holds_gil"], true);
        assert_eq!(process["other_threads"], 1);
    }

    #[test]
    fn a_process_without_stacks_says_why() {
        let process = ProcessStacks {
            stacks: Err("the process has ended".into()),
            ..process()
        };
        assert!(text(&process, DumpStyle::default()).ends_with("    the process has ended\n"));
        assert_eq!(
            json(&[process])["processes"][0]["problem"],
            "the process has ended"
        );
    }
}
