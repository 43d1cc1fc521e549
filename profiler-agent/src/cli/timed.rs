//! `__time`: a small process that waits for a word, runs CMD once, and says what CMD took.
//!
//! Why a process of its own: the kernel counts to a program's resident memory what its process had before it became that
//! program, so a child of pyagent itself would have pyagent's. A copy of this process has little. And what all waited-for
//! children of a process took is then what one CMD took, with all that it waited for.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::time::TimeValLike as _;
use nix::unistd::getgid;
use tokio::signal::unix::{SignalKind, signal};

use super::LaunchArgs;
use super::exit;
use super::launch::{become_user, pass_on, pass_on_interrupt};
use crate::process::facts;
use crate::view::stat::Run;

/// `pyagent __time`.
#[derive(Debug, Args, Clone)]
pub struct TimeArgs {
    /// When, as who, and what.
    #[command(flatten)]
    pub launch: LaunchArgs,
    /// Where the figures go.
    #[arg(long)]
    pub report: PathBuf,
    /// What CMD reads is empty.
    #[arg(long)]
    pub no_input: bool,
    /// Where its standard output goes.
    #[arg(long)]
    pub prints: Prints,
}

/// Where what CMD prints goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Prints {
    /// To pyagent's own standard output and error.
    Own,
    /// All to standard error: standard output is for something else.
    Error,
    /// Nowhere.
    Nowhere,
}

impl Prints {
    /// Its name, as `--prints` takes it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Error => "error",
            Self::Nowhere => "nowhere",
        }
    }
}

/// Runs CMD when the word comes. The exit code tells nothing but that CMD could not be started.
#[must_use]
pub fn run(args: &TimeArgs) -> ExitCode {
    match timed(args) {
        Ok(code) => code,
        Err(error) => {
            tell!("pyagent: {error:#}");
            ExitCode::from(exit::LAUNCH_FAILED)
        }
    }
}

fn timed(args: &TimeArgs) -> Result<ExitCode> {
    let report = OpenOptions::new().write(true).open(&args.report);
    let mut go = [0];
    let opened = File::open(&args.launch.go);
    if !matches!(opened.and_then(|mut pipe| pipe.read(&mut go)), Ok(1)) {
        // Nobody wants CMD any more.
        return Ok(ExitCode::from(exit::LAUNCH_FAILED));
    }
    let mut report = report.context("cannot open the way back")?;
    become_user(&args.launch).context("cannot become the user who called sudo")?;
    let Some((program, arguments)) = args.launch.command.split_first() else {
        return Ok(ExitCode::from(exit::USAGE));
    };
    // They are caught, not ignored: CMD begins with what they do by default.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let signals = {
        let _entered = runtime.enter();
        let hangup = if facts::ignores_hangup() {
            None
        } else {
            Some(signal(SignalKind::hangup())?)
        };
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            hangup,
        )
    };
    let mut command = Command::new(program);
    command.args(arguments);
    // With a group to become the process is a copy of this one, not one that lends its memory (`posix_spawn`), which the
    // kernel would count as CMD's. It is the group that it has.
    command.gid(getgid().as_raw());
    if args.no_input {
        command.stdin(Stdio::null());
    }
    match args.prints {
        Prints::Own => {}
        Prints::Error => {
            let error = rustix::io::dup(std::io::stderr()).context("there is no standard error")?;
            command.stdout(Stdio::from(error));
        }
        Prints::Nowhere => {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
    }
    let begun = Instant::now();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            tell!("pyagent: {}: {error}", program.to_string_lossy());
            return Ok(ExitCode::from(match error.kind() {
                std::io::ErrorKind::NotFound => exit::NOT_FOUND,
                _ => exit::NOT_EXECUTABLE,
            }));
        }
    };
    let pid = child.id();
    std::thread::spawn(move || {
        let (mut interrupt, mut terminate, mut hangup) = signals;
        runtime.block_on(async move {
            loop {
                let hung_up = async {
                    match &mut hangup {
                        Some(hangup) => drop(hangup.recv().await),
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = interrupt.recv() => pass_on_interrupt(pid),
                    _ = terminate.recv() => pass_on(pid, Signal::SIGTERM),
                    () = hung_up => pass_on(pid, Signal::SIGHUP),
                }
            }
        });
    });
    let status = child.wait().context("cannot wait for the command")?;
    let wall = begun.elapsed().as_secs_f64();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("cannot ask what the command used")?;
    let run = Run {
        wall,
        user: usage.user_time().num_microseconds() as f64 / 1e6,
        system: usage.system_time().num_microseconds() as f64 / 1e6,
        max_rss: usage.max_rss().saturating_mul(1024),
        minor_faults: usage.minor_page_faults(),
        major_faults: usage.major_page_faults(),
        voluntary_switches: usage.voluntary_context_switches(),
        involuntary_switches: usage.involuntary_context_switches(),
        blocks_in: usage.block_reads(),
        blocks_out: usage.block_writes(),
        code: status.code(),
        signal: status.signal(),
    };
    let line = serde_json::to_string(&run).context("cannot write the figures")?;
    report
        .write_all(line.as_bytes())
        .context("nobody waits for the figures")?;
    Ok(ExitCode::SUCCESS)
}
