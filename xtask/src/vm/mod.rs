//! `cargo xtask test vm`: one Python process profiled under each of Debian's cloud kernels, in QEMU without
//! KVM. Here: which kernels, and the order of things; `apt` fetches, `guest` is what runs inside.

mod guest;
mod images;
mod machine;
mod mode;

use std::{fs, path::Path, process::Stdio, time::Instant};

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;

use self::machine::Machine;
use self::mode::Mode;
use crate::{command, dist, package, test::Counts, timing::Row, workspace};

/// Seconds that a guest gets from power-on to power-off; without KVM one takes 15 to 40.
const LIMIT_S: &str = "300";

/// A kernel to test on, by its series, and the machine that it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 11, bullseye: without `bpf_loop`, `bpf_task_pt_regs` and links of perf events.
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12, bookworm.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13, trixie.
    #[value(name = "6.12")]
    V6_12,
    /// Debian unstable, sid: the newest there is.
    #[value(name = "7.2")]
    V7_2,
    /// Debian 11 on arm64.
    #[value(name = "5.10-arm64")]
    V5_10Arm64,
    /// Debian 12 on arm64.
    #[value(name = "6.1-arm64")]
    V6_1Arm64,
    /// Debian 13 on arm64.
    #[value(name = "6.12-arm64")]
    V6_12Arm64,
    /// Debian unstable on arm64.
    #[value(name = "7.2-arm64")]
    V7_2Arm64,
}

impl Kernel {
    /// Series, as on the command line.
    fn series(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_2 => "7.2",
            Self::V5_10Arm64 => "5.10-arm64",
            Self::V6_1Arm64 => "6.1-arm64",
            Self::V6_12Arm64 => "6.12-arm64",
            Self::V7_2Arm64 => "7.2-arm64",
        }
    }

    /// The Debian suite that has it.
    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 | Self::V5_10Arm64 => "bullseye",
            Self::V6_1 | Self::V6_1Arm64 => "bookworm",
            Self::V6_12 | Self::V6_12Arm64 => "trixie",
            Self::V7_2 | Self::V7_2Arm64 => "sid",
        }
    }

    /// What it runs on.
    fn machine(self) -> Machine {
        match self {
            Self::V5_10 | Self::V6_1 | Self::V6_12 | Self::V7_2 => Machine::X86_64,
            Self::V5_10Arm64 | Self::V6_1Arm64 | Self::V6_12Arm64 | Self::V7_2Arm64 => {
                Machine::Arm64
            }
        }
    }
}

/// Boots each of `only`, or all kernels, in each mode. Each boot is one test; its console is left in `target/vm`.
pub(crate) fn test(only: &[Kernel]) -> Result<(Counts, Vec<Row>)> {
    let kernels = if only.is_empty() {
        Kernel::value_variants()
    } else {
        only
    };
    let start = Instant::now();
    let mut machines = Machine::ALL.to_vec();
    machines.retain(|machine| kernels.iter().any(|kernel| kernel.machine() == *machine));
    let images = images::get(kernels)?;
    let mut guests = Vec::new();
    for machine in machines {
        let facts = machine.facts();
        let binary = dist::dist(Some(facts.target).filter(|_| machine != Machine::own()))?;
        package::install(&[facts.qemu], &[facts.qemu_package])?;
        let scratch = tempfile::tempdir()?;
        let base = images::base(machine)?;
        let initramfs = guest::initramfs(&base, &images::busybox()?, &binary, scratch.path())?;
        guests.push((machine, initramfs, scratch));
    }
    let initramfs_of = |machine: Machine| {
        let guest = guests.iter().find(|(other, ..)| *other == machine);
        guest
            .map(|(_, initramfs, _)| initramfs)
            .context("every machine has a guest")
    };
    let logs = workspace::target().join("vm");
    fs::create_dir_all(&logs)?;
    let mut rows = vec![Row {
        name: "vm images".into(),
        duration: start.elapsed(),
        outcome: "ok".into(),
    }];
    let mut counts = Counts::default();
    let mut table = Table::default();
    let boots = kernels.iter().zip(&images);
    let boots = boots.flat_map(|boot| Mode::of(*boot.0).map(move |mode| (boot, mode)));
    for ((kernel, image), mode) in boots {
        let name = format!("vm {} {}", kernel.series(), mode.name());
        let start = Instant::now();
        let machine = kernel.machine();
        let booted =
            initramfs_of(machine).and_then(|initramfs| boot(machine, image, initramfs, mode));
        let run = booted.and_then(|console| {
            fs::write(logs.join(format!("{name}.log")), &console)?;
            verdict(&console, mode)
        });
        let outcome = match run {
            Ok(summary) => {
                counts.n_passed += 1;
                format!("ok: {summary}")
            }
            Err(error) => {
                counts.n_failed += 1;
                println!("{name}: {error:#}");
                "FAILED".to_owned()
            }
        };
        println!("test {name} ... {outcome}");
        table.add(*kernel, mode, &outcome);
        rows.push(Row {
            name,
            duration: start.elapsed(),
            outcome,
        });
    }
    let path = workspace::target().join("kernels.md");
    fs::write(&path, table.text())?;
    println!("table for the README: {}", path.display());
    Ok((counts, rows))
}

/// What was seen of each kernel in each mode, as Markdown.
#[derive(Default)]
struct Table {
    lines: Vec<String>,
}

impl Table {
    fn add(&mut self, kernel: Kernel, mode: Mode, outcome: &str) {
        let series = kernel.series().trim_end_matches("-arm64");
        let machine = kernel.machine().facts().kernel;
        let mode = mode.name();
        self.lines
            .push(format!("| {series} | {machine} | {mode} | {outcome} |\n"));
    }

    fn text(&self) -> String {
        let head = "| kernel | machine | mode | what was seen |\n|---|---|---|---|\n";
        head.to_owned() + &self.lines.concat()
    }
}

/// Runs a guest to its end; returns what it wrote to its serial console.
fn boot(machine: Machine, kernel: &Path, initramfs: &Path, mode: Mode) -> Result<String> {
    let facts = machine.facts();
    let command_line = format!(
        "console={} {} {}",
        facts.console,
        guest::KERNEL_COMMAND_LINE,
        mode.kernel_arguments()
    );
    let mut qemu = command::program("timeout");
    qemu.args([
        "--signal=KILL",
        LIMIT_S,
        facts.qemu,
        "-accel",
        "tcg",
        "-m",
        "1024",
    ])
    .args(mode.qemu_arguments())
    .args(facts.qemu_arguments)
    .args([
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-kernel",
    ])
    .arg(kernel)
    .arg("-initrd")
    .arg(initramfs)
    .args(["-append", &command_line])
    .stdin(Stdio::null());
    let output = qemu
        .output()
        .with_context(|| format!("cannot start `{}`", command::line(&qemu)))?;
    let console = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    if output.status.success() {
        return Ok(console);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(anyhow!(
        "the guest did not power off ({}): {stderr}\n{}",
        output.status,
        tail(&console)
    ))
}

/// The guest's verdict, with the console's end where it failed.
fn verdict(console: &str, mode: Mode) -> Result<String> {
    guest::verdict(console, mode)
        .map_err(|error| anyhow!("{error:#}; the console's end:\n{}", tail(console)))
}

fn tail(console: &str) -> String {
    const MAX_LINES: usize = 60;
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(MAX_LINES)..].join("\n")
}
