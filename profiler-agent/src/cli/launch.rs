//! `record -- CMD`: a child that waits until it is watched, and then becomes CMD.
//!
//! The child is pyagent itself (`pyagent __launch`), so that its process id is known, and in the kernel's map,
//! before CMD runs its first instruction. Nothing is stopped or traced.

use std::ffi::OsString;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode};

use anyhow::{Context as _, Result};
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
    _wait: PipeReader,
}

impl Launch {
    /// Starts the child. With sudo CMD runs as the user who called, unless `as_root`.
    pub fn prepare(command: &[OsString], as_root: bool) -> Result<Self> {
        let (wait, go) = std::io::pipe().context("cannot make a pipe")?;
        let own = std::env::current_exe().context("cannot find pyagent's own binary")?;
        let mut launcher = Command::new(own);
        // The child opens the pipe by this name, so that nothing is inherited, by CMD least of all.
        let name = format!("/proc/{}/fd/{}", std::process::id(), wait.as_raw_fd());
        launcher.arg("__launch").arg("--go").arg(name);
        if let (false, Some((uid, gid))) = (as_root, sudo_ids()) {
            launcher
                .arg("--uid")
                .arg(uid.to_string())
                .arg("--gid")
                .arg(gid.to_string());
        }
        launcher.arg("--").args(command);
        let child = launcher.spawn().context("cannot start a process")?;
        Ok(Self {
            child,
            go,
            _wait: wait,
        })
    }

    /// The process that becomes CMD.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// Lets CMD begin.
    pub fn go(mut self) -> Result<Child> {
        self.go
            .write_all(&[1])
            .context("the process that was to become CMD has gone")?;
        Ok(self.child)
    }
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

fn become_user(args: &LaunchArgs) -> nix::Result<()> {
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
