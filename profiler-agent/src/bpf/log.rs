//! Debug messages of the kernel programs (`--log bpf=debug`), handed on to the agent's log.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;

/// How often messages are fetched; they are for people.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Names the messages `bpf`, whatever module of the kernel programs they come from.
struct Target;

impl log::Log for Target {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "bpf", "{}", record.args());
    }

    fn flush(&self) {}
}

/// Fetches messages until the process ends. Where the object has none, nothing happens.
pub(super) fn forward(ebpf: &mut Ebpf) {
    let mut logger = match EbpfLogger::init_with_logger(ebpf, Target) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!("no messages of the kernel programs: {error}");
            return;
        }
    };
    std::thread::spawn(move || {
        loop {
            logger.flush();
            std::thread::sleep(FLUSH_INTERVAL);
        }
    });
}
