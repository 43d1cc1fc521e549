//! What the recorder costs: room on the disk, and the time to write a window.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use profiler_agent::profile::aggregate::{
    Aggregator, ProcessLabels, ResolvedFrame, ResolvedFunction, ResolvedSample, ThreadLabels,
};
use profiler_agent::profile::model::ProfileType;
use profiler_agent::profile::window::ClosedWindow;
use profiler_agent::recorder::{Message, Recorder, RecorderConfig};

use super::report::Section;

/// Processes of the host that is recorded.
const N_PROCESSES: u32 = 200;

/// Length of a window, in seconds.
const WINDOW_S: u64 = 10;

/// Windows that are written before the times count: the files are as large as they may be by then.
const MAX_WINDOWS: u64 = 20_000;

/// Windows whose times count.
const N_TIMED: usize = 200;

/// How busy the processes are.
struct Load {
    name: &'static str,
    /// Different stacks of a process in one window.
    n_stacks: u32,
    /// Functions that there are.
    n_functions: u32,
    /// Frames of a stack.
    depth: u32,
}

const LOADS: [Load; 2] = [
    Load {
        name: "mostly idle (5 stacks each)",
        n_stacks: 5,
        n_functions: 500,
        depth: 30,
    },
    Load {
        name: "busy (50 stacks each)",
        n_stacks: 50,
        n_functions: 5_000,
        depth: 30,
    },
];

/// Measures with the database's bound at 64 MiB: its size does not change what a window costs.
pub fn measure() -> Result<Section> {
    let mut section = Section::new(
        "The recorder",
        "200 processes, windows of 10 s with two types, written one after the other by the recorder as the agent runs \
         it; the database is at its bound (--keep-bytes 64MiB), so each window also removes the oldest ones. Half of \
         the stacks of a window were in the one before. Milliseconds from the window's end until it was committed.",
        &[
            "processes are",
            "MB an hour",
            "median ms",
            "99th percentile ms",
            "longest ms",
            "file and log at most MiB",
        ],
    );
    for load in &LOADS {
        section.push(one(load)?);
    }
    Ok(section)
}

fn one(load: &Load) -> Result<Vec<String>> {
    const KEEP_BYTES: u64 = 64 << 20;
    let scratch = tempfile::tempdir()?;
    let (messages, receiver) = sync_channel(1);
    let config = RecorderConfig {
        folder: scratch.path().join("data"),
        keep: Duration::from_hours(24),
        keep_bytes: KEEP_BYTES,
    };
    let recorder = Recorder::start(config, receiver)?;
    let reader = recorder.reader();
    let functions: Vec<Arc<ResolvedFunction>> = (0..load.n_functions)
        .map(|number| {
            let name = format!("Service.handle_request_{number}");
            let file = format!("/srv/app/packages/module_{}.py", number % 200);
            Arc::new(ResolvedFunction::python(&name, &file, number))
        })
        .collect();
    let labels: Vec<Arc<ThreadLabels>> = (1..=N_PROCESSES).map(thread).collect();
    let mut times = Vec::new();
    let mut bytes_per_window = 0.0;
    let mut largest = 0;
    for number in 0..MAX_WINDOWS {
        let window = window(load, number, &functions, &labels);
        let before = reader.status();
        let begun = Instant::now();
        messages
            .send(Message::Window(Arc::new(window)))
            .context("the recorder has ended")?;
        while reader.status().n_recorded == before.n_recorded {
            ensure!(
                begun.elapsed() < Duration::from_secs(60),
                "the recorder does not write: {:?}",
                reader.status().problem
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        let status = reader.status();
        largest = largest.max(status.n_bytes);
        if status.n_removed == 0 {
            bytes_per_window = status.n_bytes as f64 / (number + 1) as f64;
        } else {
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            // What is done after the commit is not waited for in the agent: the next window comes much later.
            settled(&messages)?;
            std::thread::sleep(Duration::from_millis(100));
            settled(&messages)?;
        }
        if times.len() == N_TIMED {
            break;
        }
    }
    ensure!(times.len() == N_TIMED, "the bound was not reached");
    drop(messages);
    recorder.join();
    times.sort_by(f64::total_cmp);
    let percentile = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    Ok(vec![
        load.name.to_owned(),
        format!("{:.1}", bytes_per_window * (3600 / WINDOW_S) as f64 / 1e6),
        format!("{:.1}", percentile(0.5)),
        format!("{:.1}", percentile(0.99)),
        format!("{:.1}", percentile(1.0)),
        format!("{:.1}", largest as f64 / f64::from(1 << 20)),
    ])
}

/// Waits until the recorder does nothing.
fn settled(messages: &SyncSender<Message>) -> Result<()> {
    let (reached, is_reached) = sync_channel(1);
    messages
        .send(Message::Barrier(reached))
        .context("the recorder has ended")?;
    // The sender is dropped when it is reached.
    let _ = is_reached.recv();
    Ok(())
}

fn thread(pid: u32) -> Arc<ThreadLabels> {
    let process = ProcessLabels {
        comm: "gunicorn".into(),
        cmdline: "/usr/bin/python3 /usr/bin/gunicorn".into(),
        python_version: "3.12.1".into(),
        ..ProcessLabels::of_pid(pid)
    };
    Arc::new(ThreadLabels {
        process: Arc::new(process),
        tid: pid,
        started_ns: 0,
        thread_name: "MainThread".into(),
    })
}

fn window(
    load: &Load,
    number: u64,
    functions: &[Arc<ResolvedFunction>],
    labels: &[Arc<ThreadLabels>],
) -> ClosedWindow {
    let profile = |profile_type: ProfileType, n_stacks: u32| {
        let mut aggregator =
            Aggregator::new(SystemTime::now(), profile_type.sample_types(), 10_101_010);
        for (labels, pid) in labels.iter().zip(0_u64..) {
            for stack in 0..u64::from(n_stacks) {
                // Half of them are those of the window before.
                let which = stack + number * u64::from(n_stacks) / 2;
                let frame = |depth: u64| {
                    // The callers are shared, the leaves are not.
                    let seed = if depth < 8 {
                        which * 31 + depth
                    } else {
                        depth + which % 4
                    };
                    let function = (seed * 7919 + pid % 20) as usize % functions.len();
                    ResolvedFrame {
                        function: functions[function].clone(),
                        line: (seed % 400) as u32,
                        address: 0,
                    }
                };
                aggregator.add(&ResolvedSample {
                    frames: (0..u64::from(load.depth)).map(frame).collect(),
                    labels: labels.clone(),
                    instruction: None,
                    values: [3, 30_303_030].into(),
                });
            }
        }
        aggregator.finish(Duration::from_secs(WINDOW_S), Vec::new())
    };
    let start_ns = number * WINDOW_S * 1_000_000_000;
    ClosedWindow {
        start_ns,
        end_ns: start_ns + WINDOW_S * 1_000_000_000,
        profiles: vec![
            (ProfileType::Cpu, profile(ProfileType::Cpu, load.n_stacks)),
            (
                ProfileType::Faults,
                profile(ProfileType::Faults, load.n_stacks / 5),
            ),
        ],
    }
}
