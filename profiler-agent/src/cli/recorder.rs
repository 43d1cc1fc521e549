//! What the recorder keeps: its flags, and how it is started.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::agent::WindowRecorder;
use crate::config::{parse_bytes, parse_duration};
use crate::recorder::{FolderError, MIN_KEEP_BYTES, RecorderConfig, default_folder};

/// The flag's value for: record nothing.
const NONE: &str = "none";

/// The recorder.
#[derive(Debug, Args, Clone)]
pub struct RecorderArgs {
    /// Where to keep the last hours for pulls; none: nowhere
    ///
    /// The default is /var/lib/pyagent. Other users than root keep it in $XDG_STATE_HOME/pyagent, else ~/.local/state/pyagent.
    #[arg(long, value_name = "DIR", env = "PYAGENT_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Length of the windows that are kept, pulled and watched, 1s to 10m
    #[arg(long, value_name = "TIME", default_value = "10s", env = "PYAGENT_WINDOW", value_parser = parse_window,
          hide_short_help = true)]
    pub window: Duration,
    /// How long to keep it, as 90m, 24h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", env = "PYAGENT_KEEP", value_parser = parse_duration,
          hide_short_help = true)]
    pub keep: Duration,
    /// The most room that it may take on the disk; the oldest goes first
    #[arg(long, value_name = "SIZE", default_value = "1GiB", env = "PYAGENT_KEEP_BYTES", value_parser = parse_keep_bytes,
          hide_short_help = true)]
    pub keep_bytes: u64,
}

fn parse_window(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        window if (Duration::from_secs(1)..=Duration::from_mins(10)).contains(&window) => {
            Ok(window)
        }
        _ => Err("a window is 1s to 10m long".to_owned()),
    }
}

fn parse_keep_bytes(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        n_bytes if n_bytes < MIN_KEEP_BYTES => {
            Err("that is too little: 8MiB at least, or --data-dir none".to_owned())
        }
        n_bytes => Ok(n_bytes),
    }
}

impl RecorderArgs {
    /// Starts the recorder; `None`: there is to be none, or none can be: why stands beside it, and is said.
    pub(super) fn start(&self) -> Result<(Option<WindowRecorder>, String), FolderError> {
        if self.data_dir.as_deref() == Some(Path::new(NONE)) {
            return Ok((None, String::new()));
        }
        let cannot = |problem: String| {
            tracing::warn!("nothing is recorded: {problem} (--data-dir DIR)");
            Ok((None, problem))
        };
        let Some(folder) = self.data_dir.clone().or_else(default_folder) else {
            return cannot("there is no home to keep it in".to_owned());
        };
        let config = RecorderConfig {
            folder,
            keep: self.keep,
            keep_bytes: self.keep_bytes,
        };
        match WindowRecorder::start(config) {
            Ok(recorder) => Ok((Some(recorder), String::new())),
            Err(error @ FolderError::InUse { .. }) => Err(error),
            Err(error @ FolderError::Unusable { .. }) => cannot(error.to_string()),
        }
    }
}
