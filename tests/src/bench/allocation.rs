//! How much slower programs become while their memory is profiled: by pyagent, and by the tools that run inside of them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::report::Section;
use crate::{compiler::workload, interpreters::Interpreter};

/// Runs of each program under each tool, in turn; the best counts.
const N_ROUNDS: usize = 5;

/// CPU time of the work of which it is told what a program pays that runs on.
const MINUTE_S: f64 = 60.0;

/// How often, alone and under the tool in turn.
const N_MINUTES: usize = 3;

/// Names and arguments of `pyagent record`, and the aim.
const OWN: [(&str, &[&str], &str); 5] = [
    ("pyagent, faults", &["--type", "faults"], "1.00"),
    ("pyagent, pools", &["--type", "pools"], "1.00"),
    ("pyagent, alloc", &["--type", "alloc"], "1.05"),
    (
        "pyagent, alloc without a budget",
        &["--type", "alloc", "--alloc-budget", "100%"],
        "",
    ),
    (
        "pyagent, pools, each pool",
        &[
            "--type",
            "pools",
            "--pool-probes",
            "pools",
            "--alloc-budget",
            "100%",
        ],
        "",
    ),
];

/// The programs: names of `tests/workloads/bench_allocation.py`.
const PROGRAMS: [&str; 2] = ["heavy", "normal"];

/// A tool that runs inside of the program: what stands between the interpreter and the script.
struct Peer {
    name: String,
    python: PathBuf,
    arguments: Vec<String>,
}

/// Measures every tool. `folder` has, or gets, a virtual environment with those of others.
pub fn measure(interpreter: &Interpreter, pyagent: &Path, folder: &Path) -> Result<Section> {
    let mut section = Section::new(
        "Slow-down by profiling memory",
        &format!(
            "CPU time of the program's own work (`time.process_time`), under each tool over alone; CPython {}. *heavy* makes \
             lists, dicts and strings, two in three larger than 512 bytes; *normal* parses, sorts and searches. Best of \
             {N_ROUNDS} runs, in turn, of half a second or so: probes that cost too much are in place for that long. *a minute of \
             it* is the same work for {MINUTE_S} s, the best of {N_MINUTES}: what a program pays that runs on. What is not in the table could not \
             be installed.",
            super::kernel_cost::version(interpreter)
        ),
        &["tool", PROGRAMS[0], PROGRAMS[1], "aim"],
    );
    let peers = peers(interpreter, folder);
    let n_tools = 1 + OWN.len() + peers.len();
    let mut best = vec![[f64::INFINITY; PROGRAMS.len()]; n_tools];
    for _ in 0..N_ROUNDS {
        for (program_idx, program) in PROGRAMS.into_iter().enumerate() {
            let mut times = vec![seconds(
                Command::new(&interpreter.path).args(script(program)),
            )?];
            for (_, arguments, _) in OWN {
                let mut command = own(pyagent, arguments);
                command.arg(&interpreter.path);
                times.push(seconds(command.args(script(program)))?);
            }
            for peer in &peers {
                let mut command = Command::new(&peer.python);
                command.args(&peer.arguments);
                times.push(seconds(command.args(script(program)))?);
            }
            for (best, time) in best.iter_mut().zip(times) {
                best[program_idx] = best[program_idx].min(time);
            }
        }
    }
    let mut minute = Vec::new();
    for (program_idx, program) in PROGRAMS.into_iter().enumerate() {
        let n_times = (MINUTE_S / best[0][program_idx])
            .ceil()
            .max(1.0)
            .to_string();
        let times = |command: &mut Command| seconds(command.args(script(program)).arg(&n_times));
        let (mut alone, mut under) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..N_MINUTES {
            alone = alone.min(times(&mut Command::new(&interpreter.path))?);
            let mut record = own(pyagent, &["--type", "alloc"]);
            under = under.min(times(record.arg(&interpreter.path))?);
        }
        minute.push(format!("{:.2}", under / alone));
    }
    let own = OWN.iter().map(|(name, _, aim)| ((*name).to_owned(), *aim));
    let others = peers.iter().map(|peer| (peer.name.clone(), ""));
    for ((name, aim), times) in own.chain(others).zip(&best[1..]) {
        let ratio = |idx: usize| format!("{:.2}", times[idx] / best[0][idx]);
        section.push(vec![name, ratio(0), ratio(1), aim.to_owned()]);
    }
    let name = "pyagent, alloc, a minute of it".to_owned();
    section.push([vec![name], minute, vec!["1.05".to_owned()]].concat());
    Ok(section)
}

/// `pyagent record` with these arguments, of a command that is still to be named.
fn own(pyagent: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(pyagent);
    command
        .args([
            "record",
            "--as-root",
            "-o",
            "/dev/null",
            "--format",
            "folded",
        ])
        .args(arguments)
        .arg("--");
    command
}

fn script(program: &str) -> [String; 2] {
    let path = workload("bench_allocation.py");
    [path.display().to_string(), program.to_owned()]
}

/// Runs a command whose program says how long its work took; other tools print too.
fn seconds(command: &mut Command) -> Result<f64> {
    let output = command
        .stdin(Stdio::null())
        .current_dir("/tmp")
        .output()
        .with_context(|| format!("{:?}", command.get_program()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = text.lines().find_map(|line| line.strip_prefix("seconds "));
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = said.with_context(|| format!("{command:?} says no time: {text} {errors}"))?;
    Ok(said.trim().parse()?)
}

/// The tools of others that can be had and run.
fn peers(interpreter: &Interpreter, folder: &Path) -> Vec<Peer> {
    let python = folder.join("bin/python");
    let installed = install(interpreter, folder);
    if let Err(error) = &installed {
        eprintln!("skipped: memray, memory_profiler, Scalene ({error:#})");
    }
    let in_module = |name: &str, arguments: &[&str]| Peer {
        name: name.to_owned(),
        python: python.clone(),
        arguments: arguments.iter().map(|it| (*it).to_owned()).collect(),
    };
    let own = Peer {
        name: "tracemalloc".to_owned(),
        python: interpreter.path.clone(),
        arguments: vec!["-X".to_owned(), "tracemalloc".to_owned()],
    };
    let mut peers = vec![own];
    if installed.is_ok() {
        peers.extend([
            in_module(
                "memray",
                &[
                    "-m",
                    "memray",
                    "run",
                    "--force",
                    "--output",
                    "/dev/null",
                    "--quiet",
                ],
            ),
            in_module(
                "memory_profiler (mprof)",
                &["-m", "mprof", "run", "--python", "--output", "/dev/null"],
            ),
            in_module(
                "Scalene, memory",
                &["-m", "scalene", "run", "--memory", "--outfile", "/dev/null"],
            ),
        ]);
    }
    peers.retain(|peer| {
        let run = seconds(
            Command::new(&peer.python)
                .args(&peer.arguments)
                .args(script("normal")),
        );
        if let Err(error) = &run {
            eprintln!("skipped: {} ({error:#})", peer.name);
        }
        run.is_ok()
    });
    peers
}

fn install(interpreter: &Interpreter, folder: &Path) -> Result<()> {
    let python = folder.join("bin/python");
    if !python.exists() {
        let status = Command::new(&interpreter.path)
            .args(["-m", "venv"])
            .arg(folder)
            .status()?;
        ensure!(status.success(), "no virtual environment");
    }
    let status = Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "memray",
            "memory_profiler",
            "scalene",
        ])
        .status()?;
    ensure!(status.success(), "pip cannot install them");
    Ok(())
}
