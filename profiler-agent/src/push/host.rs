//! The host that profiles are of, as far as it is told to those who get them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What is the same for all processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Release of the kernel.
    pub kernel_release: String,
    /// Architecture, in OpenTelemetry's words.
    pub architecture: &'static str,
    /// When it was booted, in milliseconds since 1970. Found once: what is computed from it must not change from window to
    /// window, as the clock does.
    boot_ms: u64,
}

impl Host {
    /// This one.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let system = rustix::system::uname();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let up = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let booted = now.unwrap_or_default().saturating_sub(up);
        Self {
            name: system.nodename().to_string_lossy().into_owned(),
            kernel_release: system.release().to_string_lossy().into_owned(),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            boot_ms: booted.as_millis() as u64,
        }
    }

    /// Wall time of a moment in nanoseconds since boot, in ISO 8601 with milliseconds.
    #[must_use]
    pub(super) fn time_text(&self, boot_ns: u64) -> Option<String> {
        let ms = self.boot_ms.checked_add(boot_ns / 1_000_000)?;
        let nanos = i128::from(ms) * 1_000_000;
        let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
        let (hour, minute, second) = time.to_hms();
        Some(format!(
            "{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.millisecond()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_iso_8601() {
        let host = Host {
            boot_ms: 1_700_000_000_000,
            ..Host::of_this_machine()
        };
        let text = host.time_text(1_234_567_890);
        assert_eq!(text.as_deref(), Some("2023-11-14T22:13:21.234Z"));
        assert_eq!(host.time_text(u64::MAX).map(|it| it.len()), Some(24));
    }
}
