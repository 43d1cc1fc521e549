//! The signals that end a command which goes on until somebody ends it: Ctrl-C, SIGTERM, and the end of the terminal.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::process::facts;

/// Waits for them. Since they are waited for they no longer kill.
pub(super) struct Ending {
    interrupt: Signal,
    terminate: Signal,
    /// `None` under `nohup`, which has it ignored.
    hangup: Option<Signal>,
}

impl Ending {
    /// Those from now on.
    pub(super) fn new() -> Result<Self> {
        let hangup = if facts::ignores_hangup() {
            None
        } else {
            Some(signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?)
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?,
            terminate: signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?,
            hangup,
        })
    }

    /// Ends with the first of them.
    pub(super) async fn received(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => drop(hangup.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hangup => {}
        }
    }
}
