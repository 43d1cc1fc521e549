//! `--freeze`: a look at a process that stands still meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal as SignalNumber, raise};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::ExitError;
use crate::config::parse_duration;
use crate::format::{duration_text, escape};
use crate::heap::stopped::Stopped;
use crate::ids::Pid;
use crate::kernel::probe::{CAP_SYS_PTRACE, Rights};
use crate::process::freeze::{DEFAULT_LIMIT, End, Freeze, FreezeError, MAX_LIMIT, Release};

/// What `--freeze` without a time means.
pub(super) const DEFAULT: &str = "1s";
const _: () = assert!(DEFAULT_LIMIT.as_secs() == 1);

/// Why a look that was ended from outside is none of one moment.
const LET_GO: &str = "it was let go before all was read";

/// Parses the time of `--freeze=TIME`.
pub(super) fn parse_limit(text: &str) -> Result<Duration, String> {
    let limit = parse_duration(text)?;
    if limit > MAX_LIMIT {
        let most = duration_text(MAX_LIMIT);
        return Err(format!("`{text}`: a process is stopped for {most} at most"));
    }
    Ok(limit)
}

/// How long a process may stand, if it may, and what ends that from outside.
#[derive(Debug, Clone)]
pub(super) struct Freezing {
    pub(super) limit: Option<Duration>,
    pub(super) release: Release,
}

impl Freezing {
    /// For so long at most.
    pub(super) fn for_at_most(limit: Option<Duration>) -> Self {
        Self {
            limit,
            release: Release::default(),
        }
    }

    /// Looks at a process, which stands meanwhile if that was asked for. `look` gets whom to tell how much of all is done.
    pub(super) fn look<T>(
        &self,
        pid: Pid,
        look: impl FnOnce(&mut dyn FnMut(u64, u64)) -> Result<T>,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(T, Option<Stopped>)> {
        let Some(limit) = self.limit else {
            return Ok((look(&mut progress)?, None));
        };
        let freeze = match Freeze::begin(pid, limit, self.release.clone()) {
            Ok(freeze) => freeze,
            Err(error) => {
                let stopped = not_stopped(pid, &error)?;
                return Ok((look(&mut progress)?, Some(stopped)));
            }
        };
        let (mut done, mut all) = (0, 1);
        let found = look(&mut |n_done, n_all| {
            // Nothing is written while it stands: a terminal can hold that back.
            if freeze.is_over() {
                progress(n_done, n_all);
            } else {
                (done, all) = (n_done, n_all);
            }
        });
        let stop = freeze.end();
        let why = match stop.end {
            End::Asked => None,
            End::Released => Some(LET_GO.to_owned()),
            End::Limit => Some(format!(
                "that is the limit: what came after the first {} % was read while it ran (--freeze={} at most)",
                done.saturating_mul(100) / all.max(1),
                duration_text(MAX_LIMIT).replace(' ', "")
            )),
            End::Gone => Some("it was killed meanwhile".to_owned()),
        };
        Ok((found?, Some(Stopped::new(stop.lasted, why))))
    }
}

/// What is said of a process that did not stop, where it is looked at all the same; else the error.
fn not_stopped(pid: Pid, error: &FreezeError) -> Result<Stopped> {
    match error {
        FreezeError::Gone => {
            Err(ExitError::NothingMatched(format!("process {pid} has ended")).into())
        }
        FreezeError::Denied if !Rights::of_this_process().has(CAP_SYS_PTRACE) => {
            Err(ExitError::Rights(vec![CAP_SYS_PTRACE]).into())
        }
        FreezeError::Traced { tracer, name } => bail!(
            "process {pid} cannot be stopped: it is traced already by process {tracer} ({}), and the kernel allows one \
             tracer; end that, or leave --freeze out",
            escape(name)
        ),
        FreezeError::Unstoppable { waited, .. } => {
            let why = format!("{error}: all was read while it ran");
            Ok(Stopped::new(*waited, Some(why)))
        }
        FreezeError::Released => Ok(Stopped::new(Duration::ZERO, Some(LET_GO.to_owned()))),
        FreezeError::Denied | FreezeError::Stuck | FreezeError::System(_) => {
            bail!("process {pid} cannot be stopped: {error}; leave --freeze out")
        }
    }
}

/// Ctrl-Z while a process stands: it would stand as long as we do, whatever its limit. So that is done afterwards.
pub(super) struct Suspension(Option<Signal>);

impl Suspension {
    /// From now on, if it is needed.
    pub(super) fn put_off(is_needed: bool) -> Result<Self> {
        let kind = SignalKind::from_raw(SignalNumber::SIGTSTP as i32);
        let signal = is_needed.then(|| signal(kind)).transpose();
        Ok(Self(signal.context("cannot watch for Ctrl-Z")?))
    }

    /// Stops us each time that it was asked for; never ends.
    pub(super) async fn done(&mut self) {
        if let Some(signal) = &mut self.0 {
            while signal.recv().await.is_some() {
                // It does not fail for oneself.
                let _ = raise(SignalNumber::SIGSTOP);
            }
        }
        std::future::pending::<()>().await;
    }
}
