//! `record -- CMD`: a child that waits until it is watched, and then becomes CMD.
//!
//! The child is pyagent itself (`pyagent __launch`), so that its process id is known, and in the kernel's map,
//! before CMD runs its first instruction. Nothing is stopped or traced. `stat -- CMD` has a child that stays and runs CMD.

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal as _, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Uid, User, initgroups, setgid, setuid};

use super::LaunchArgs;
use super::exit;
use crate::ids::Pid;

/// A child that waits.
#[derive(Debug)]
pub struct Launch {
    child: Child,
    go: PipeWriter,
    /// The child opens it by name; it must be there until then.
    wait: PipeReader,
}

impl Launch {
    /// Starts the child. With sudo CMD runs as the user who called, unless `as_root`.
    pub fn prepare(command: &[OsString], as_root: bool) -> Result<Self> {
        Self::prepare_as("__launch", &[], command, as_root)
    }

    /// The same with another command of pyagent's own, and what it takes beside.
    pub(super) fn prepare_as(
        verb: &str,
        options: &[&OsStr],
        command: &[OsString],
        as_root: bool,
    ) -> Result<Self> {
        let (wait, go) = std::io::pipe().context("cannot make a pipe")?;
        let own = std::env::current_exe().context("cannot find pyagent's own binary")?;
        let mut launcher = Command::new(own);
        // The child opens the pipe by this name, so that nothing is inherited, by CMD least of all.
        launcher.arg(verb).arg("--go").arg(name_of(&wait));
        launcher.args(options);
        if let (false, Some((uid, gid))) = (as_root, sudo_ids()) {
            launcher
                .arg("--uid")
                .arg(uid.to_string())
                .arg("--gid")
                .arg(gid.to_string());
        }
        launcher.arg("--").args(command);
        let child = launcher.spawn().context("cannot start a process")?;
        Ok(Self { child, go, wait })
    }

    /// The process that becomes CMD.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// Lets CMD begin.
    pub fn go(self) -> Result<Child> {
        self.go_at_once().map(|(child, _)| child)
    }

    /// The same of a child that may not have opened its pipe yet: that end must be there until the child has.
    pub(super) fn go_at_once(mut self) -> Result<(Child, PipeReader)> {
        self.go
            .write_all(&[1])
            .context("the process that was to become CMD has gone")?;
        Ok((self.child, self.wait))
    }
}

/// The name by which a child can open an end of a pipe.
pub(super) fn name_of(end: &impl AsRawFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), end.as_raw_fd())
}

/// From a terminal the whole foreground process group gets Ctrl-C, CMD too; else it is passed on.
pub(super) fn pass_on_interrupt(pid: u32) {
    let stdin = std::io::stdin();
    let is_foreground = stdin.is_terminal()
        && rustix::termios::tcgetpgrp(&stdin)
            .is_ok_and(|group| group == rustix::process::getpgrp());
    if !is_foreground {
        pass_on(pid, Signal::SIGINT);
    }
}

/// Gives a child a signal that was meant for it, too.
pub(super) fn pass_on(pid: u32, signal: Signal) {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    // It may have ended meanwhile.
    let _ = kill(pid, signal);
}

/// The user who called sudo, if that is how pyagent became root.
fn sudo_ids() -> Option<(u32, u32)> {
    if !Uid::effective().is_root() {
        return None;
    }
    let id = |name| std::env::var(name).ok()?.parse().ok();
    Some((id("SUDO_UID")?, id("SUDO_GID")?))
}

/// Waits for the byte and becomes CMD; returns only when it cannot.
#[must_use]
pub fn become_command(args: &LaunchArgs) -> ExitCode {
    let mut go = [0];
    let opened = std::fs::File::open(&args.go);
    if !matches!(opened.and_then(|mut pipe| pipe.read(&mut go)), Ok(1)) {
        // The parent has gone: nobody wants CMD any more.
        return ExitCode::from(exit::LAUNCH_FAILED);
    }
    if let Err(error) = become_user(args) {
        tell!(
            "pyagent: cannot run the command as user {}: {error}",
            args.uid.unwrap_or_default()
        );
        return ExitCode::from(exit::LAUNCH_FAILED);
    }
    let Some((program, arguments)) = args.command.split_first() else {
        return ExitCode::from(exit::USAGE);
    };
    let error = Command::new(program).args(arguments).exec();
    tell!("pyagent: {}: {error}", program.to_string_lossy());
    ExitCode::from(match error.kind() {
        std::io::ErrorKind::NotFound => exit::NOT_FOUND,
        _ => exit::NOT_EXECUTABLE,
    })
}

pub(super) fn become_user(args: &LaunchArgs) -> nix::Result<()> {
    let (Some(uid), Some(gid)) = (args.uid.map(Uid::from_raw), args.gid.map(Gid::from_raw)) else {
        return Ok(());
    };
    match User::from_uid(uid)? {
        Some(user) => {
            let name = std::ffi::CString::new(user.name).map_err(|_| nix::errno::Errno::EINVAL)?;
            initgroups(&name, gid)?;
        }
        None => nix::unistd::setgroups(&[gid])?,
    }
    setgid(gid)?;
    setuid(uid)
}
