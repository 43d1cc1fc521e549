//! `--log` and `--log-format`: what is said on standard error, and how.

use std::{io::IsTerminal as _, str::FromStr};

use clap::Args;
use tracing::Level;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// Target of the kernel programs' messages.
const BPF: &str = "bpf";

/// Target of the client for Kubernetes, which logs each failure itself, at length. What matters of them is told elsewhere.
const KUBERNETES_CLIENT: &str = "kube_client";

/// Logging.
#[derive(Debug, Args, Clone)]
pub struct LogArgs {
    /// Messages: error, warn, info, debug, `info,bpf=debug`
    ///
    /// The last one shows those of the kernel programs too.
    #[arg(
        long,
        hide_short_help = true,
        value_name = "FILTER",
        default_value = "info",
        env = "PYAGENT_LOG",
        global = true
    )]
    pub log: LogFilter,
    /// Form of the messages: text, json
    #[arg(
        long,
        hide_short_help = true,
        value_name = "FORM",
        default_value = "text",
        hide_possible_values = true,
        env = "PYAGENT_LOG_FORMAT",
        global = true
    )]
    pub log_format: LogFormat,
}

/// Forms of log messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which messages are shown: a level, and levels of single targets (`warn,bpf=debug`). Without a level of its
/// own the rest is at `info`.
#[derive(Debug, Clone, PartialEq)]
pub struct LogFilter(Targets);

/// A part of a filter that is neither a level nor `TARGET=LEVEL`.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is neither a level (off, error, warn, info, debug, trace) nor TARGET=LEVEL, such as bpf=debug"
)]
pub struct LogFilterError(String);

impl FromStr for LogFilter {
    type Err = LogFilterError;

    fn from_str(text: &str) -> Result<Self, LogFilterError> {
        let mut targets = Targets::new()
            .with_default(LevelFilter::INFO)
            .with_target(KUBERNETES_CLIENT, LevelFilter::OFF);
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let error = || LogFilterError(part.to_owned());
            targets = match part.split_once('=') {
                None => targets.with_default(level(part).ok_or_else(error)?),
                Some((target, text)) if !target.is_empty() => {
                    targets.with_target(target, level(text).ok_or_else(error)?)
                }
                Some(_) => return Err(error()),
            };
        }
        Ok(Self(targets))
    }
}

/// A level by its name. Numbers, which `LevelFilter` reads too, are more likely a slip.
fn level(name: &str) -> Option<LevelFilter> {
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphabetic());
    is_name.then(|| name.parse().ok()).flatten()
}

impl LogFilter {
    /// Whether the kernel programs were asked for by name: their messages cost time in the kernel.
    #[must_use]
    pub fn has_bpf_debug(&self) -> bool {
        self.0
            .iter()
            .any(|(target, level)| target == BPF && level >= Level::DEBUG)
    }
}

impl LogArgs {
    /// Starts logging; to be called once.
    pub(super) fn init(&self) {
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            // Where a message cannot be written, one about it cannot be either.
            .log_internal_errors(false);
        let registry = tracing_subscriber::registry().with(self.log.0.clone());
        match self.log_format {
            LogFormat::Text => registry.with(layer).init(),
            LogFormat::Json => registry.with(layer.json()).init(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> LogFilter {
        text.parse().unwrap()
    }

    #[test]
    fn a_target_does_not_silence_the_rest() {
        let filter = filter("bpf=debug");
        assert!(filter.0.would_enable(BPF, &Level::DEBUG));
        assert!(filter.0.would_enable("profiler_agent", &Level::INFO));
        assert!(!filter.0.would_enable("profiler_agent", &Level::DEBUG));
    }

    #[test]
    fn the_kernel_programs_speak_only_when_they_are_named() {
        assert!(filter("info,bpf=debug").has_bpf_debug());
        assert!(filter("warn, bpf=trace").has_bpf_debug());
        assert!(!filter("debug").has_bpf_debug());
        assert!(!filter("debug,bpf=info").has_bpf_debug());
    }

    #[test]
    fn the_client_for_kubernetes_speaks_only_when_it_is_named() {
        let speaks = |text: &str| {
            let target = format!("{KUBERNETES_CLIENT}::client::builder");
            filter(text).0.would_enable(&target, &Level::ERROR)
        };
        assert!(!speaks("info") && !speaks("debug"));
        assert!(speaks("info,kube_client=debug"));
    }

    #[test]
    fn a_slip_is_an_error_not_a_target() {
        for slip in ["inof", "bpf=loud", "=debug", "info;debug", "3"] {
            let error = slip.parse::<LogFilter>().unwrap_err();
            assert!(error.to_string().contains(slip), "{error}");
        }
    }
}
