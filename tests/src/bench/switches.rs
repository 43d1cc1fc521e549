//! How much slower programs become that are switched out all the time, while their waits are recorded.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::allocation::{own, seconds};
use super::report::Section;
use crate::{compiler::workload, interpreters::Interpreter};

/// Runs of each program, alone and recorded in turn; the best counts.
const N_ROUNDS: usize = 7;

/// A program of `tests/workloads/bench_switches.py`.
struct Program {
    name: &'static str,
    what: &'static str,
    /// Turns of its loop.
    n: u32,
    /// Switches of each.
    n_switches: u32,
    aim: &'static str,
}

const PROGRAMS: [Program; 3] = [
    Program {
        name: "pipes",
        what: "two processes pass a byte to and fro",
        n: 100_000,
        n_switches: 2,
        aim: "1.02",
    },
    Program {
        name: "threads",
        what: "two threads pass a byte to and fro",
        n: 50_000,
        n_switches: 2,
        aim: "1.02",
    },
    Program {
        name: "calls",
        what: "system calls without a wait",
        n: 3_000_000,
        n_switches: 0,
        aim: "1.00",
    },
];

/// Measures each program.
pub fn measure(interpreter: &Interpreter, pyagent: &Path) -> Result<Section> {
    let mut section = Section::new(
        "Slow-down by `--type offcpu`",
        &format!(
            "Time of the program's own work, all on one CPU, recorded over alone; CPython {}. Best of {N_ROUNDS} runs, in turn.",
            super::kernel_cost::version(interpreter)
        ),
        &[
            "program",
            "switches a second, alone",
            "recorded / alone",
            "aim",
        ],
    );
    for program in PROGRAMS {
        let n = program.n.to_string();
        let script = workload("bench_switches.py");
        let script = [&*script.to_string_lossy(), program.name, &n].map(str::to_owned);
        let (mut alone, mut recorded) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..N_ROUNDS {
            alone = alone.min(seconds(Command::new(&interpreter.path).args(&script))?);
            let mut command = own(pyagent, &["--type", "offcpu", "--subprocesses"]);
            command.arg(&interpreter.path);
            recorded = recorded.min(seconds(command.args(&script))?);
        }
        let n_switches = f64::from(program.n) * f64::from(program.n_switches);
        section.push(vec![
            program.what.to_owned(),
            format!("{:.0}", n_switches / alone),
            format!("{:.3}", recorded / alone),
            program.aim.to_owned(),
        ]);
    }
    Ok(section)
}
