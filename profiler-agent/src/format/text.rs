//! A frame as one piece of text: what the folded format, the flame graph and the views show.
//!
//! | kind | text |
//! |---|---|
//! | Python | `name (file:line)`, without `:line` when it is not known |
//! | native | `[module] name` |
//! | kernel | `name_[k]`, the mark of the FlameGraph tools |
//! | reason | `[reason]` as it is |
//!
//! A file below `site-packages`, `dist-packages` or the standard library is shown from there
//! (`django/core/handlers/base.py`, `threading.py`), others with their whole path: two files never become one
//! for want of a folder, as they would with the last component alone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::escape::escape;
use crate::profile::model::{Frame, FrameKind, Profile, ValueType};

/// The text of a frame, as this profile wants it: [`Profile::has_full_filenames`].
pub(super) fn frame_text_in(profile: &Profile, frame: &Frame<'_>) -> String {
    if profile.has_full_filenames {
        text_with_file(frame, frame.filename)
    } else {
        frame_text(frame)
    }
}

/// The text of a frame. Escaped, never empty, without line breaks.
#[must_use]
pub fn frame_text(frame: &Frame<'_>) -> String {
    text_with_file(frame, short_file(frame.filename))
}

fn text_with_file(frame: &Frame<'_>, file: &str) -> String {
    let name = match frame.name {
        "" => "<no name>".into(),
        name => escape(name),
    };
    match frame.kind {
        FrameKind::Python | FrameKind::Native if frame.filename.is_empty() => name.into_owned(),
        FrameKind::Python => {
            let file = escape(file);
            match frame.line {
                0 => format!("{name} ({file})"),
                line => format!("{name} ({file}:{line})"),
            }
        }
        FrameKind::Native => format!("[{}] {name}", escape(frame.filename)),
        FrameKind::Kernel => format!("{name}_[k]"),
        FrameKind::Reason => name.into_owned(),
    }
}

/// The text of a frame without its file: of machine code and of the kernel as [`frame_text`] has it.
pub(super) fn name_text(frame: &Frame<'_>) -> String {
    match frame.kind {
        FrameKind::Python if frame.name.is_empty() => "<no name>".to_owned(),
        FrameKind::Python => escape(frame.name).into_owned(),
        FrameKind::Native | FrameKind::Kernel | FrameKind::Reason => frame_text(frame),
    }
}

/// What was done with the bytes that a profile weighs its samples by: `256.0 MiB touched`.
#[must_use]
pub fn weight_text(profile: &Profile) -> String {
    let n_bytes = bytes_text(profile.total_weight());
    if profile.sample_types == ValueType::ALLOCATIONS {
        format!("{n_bytes} in use at the peak")
    } else {
        format!("{n_bytes} touched")
    }
}

/// Bytes for people: `512 B`, `1.5 KiB`, `256.0 MiB`.
#[must_use]
pub fn bytes_text(n_bytes: i64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = n_bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value.abs() < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    match unit {
        "B" => format!("{n_bytes} B"),
        unit => format!("{value:.1} {unit}"),
    }
}

/// A number for people: `1,234,567`.
#[must_use]
pub fn thousands(count: i64) -> String {
    let digits = count.unsigned_abs().to_string();
    let mut text = String::new();
    if count < 0 {
        text.push('-');
    }
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds since 1970, for programs; 0 for a clock that is before it.
#[must_use]
pub fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// A time for people: `250 ms`, `2.5 s`, `5 min`.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let (value, unit) = match seconds {
        ..1.0 => (seconds * 1e3, "ms"),
        ..120.0 => (seconds, "s"),
        ..7200.0 => (seconds / 60.0, "min"),
        ..172_800.0 => (seconds / 3600.0, "h"),
        _ => (seconds / 86_400.0, "days"),
    };
    let tenths = (value * 10.0).round() / 10.0;
    format!("{tenths} {unit}")
}

/// Where the code of a Python file comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// `site-packages` or `dist-packages`.
    Package,
    /// The standard library, frozen modules included.
    StandardLibrary,
    /// Anything else: the program's own.
    Program,
}

/// The origin of a file, by its path.
pub(super) fn origin(file: &str) -> Origin {
    split_origin(file).0
}

/// Whether a Python file is none of the program's own: an installed package, or the standard library.
#[must_use]
pub fn is_of_library(file: &str) -> bool {
    origin(file) != Origin::Program
}

/// The file's path without the folders above its package.
#[must_use]
pub fn short_file(file: &str) -> &str {
    split_origin(file).1
}

fn split_origin(file: &str) -> (Origin, &str) {
    for folder in ["/site-packages/", "/dist-packages/"] {
        if let Some((_, below)) = file.rsplit_once(folder) {
            return (Origin::Package, below);
        }
    }
    if file.starts_with("<frozen ") {
        return (Origin::StandardLibrary, file);
    }
    match below_standard_library(file) {
        Some(below) => (Origin::StandardLibrary, below),
        None => (Origin::Program, file),
    }
}

/// What follows `lib/python3.12/` (`lib64`, `python3.13t` too), or the name of the zip `lib/python312.zip/`.
fn below_standard_library(file: &str) -> Option<&str> {
    let (start, _) = file.match_indices("/python").last()?;
    let folder_above = file[..start].rsplit('/').next().unwrap_or_default();
    let (version, below) = file[start + "/python".len()..].split_once('/')?;
    let is_version = version.starts_with(|char: char| char.is_ascii_digit());
    (folder_above.starts_with("lib") && is_version && !below.is_empty()).then_some(below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::model::FunctionId;

    fn text(kind: FrameKind, name: &str, filename: &str, line: u32) -> String {
        frame_text(&Frame {
            function: FunctionId(0),
            kind,
            name,
            filename,
            line,
            address: 0,
        })
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        let shown = |seconds| duration_text(Duration::from_secs_f64(seconds));
        let cases = [
            (0.0, "0 ms"),
            (0.25, "250 ms"),
            (2.069, "2.1 s"),
            (60.0, "60 s"),
            (150.0, "2.5 min"),
            (7200.0, "2 h"),
            (359_996_400.0, "4166.6 days"),
        ];
        for (seconds, text) in cases {
            assert_eq!(shown(seconds), text);
        }
    }

    #[test]
    fn each_kind_has_its_text() {
        assert_eq!(
            text(FrameKind::Python, "C.run", "/srv/app.py", 7),
            "C.run (/srv/app.py:7)"
        );
        assert_eq!(text(FrameKind::Python, "f", "<string>", 0), "f (<string>)");
        assert_eq!(
            text(FrameKind::Native, "deflate", "libz.so.1", 0),
            "[libz.so.1] deflate"
        );
        assert_eq!(
            text(FrameKind::Kernel, "vfs_read", "vmlinux", 0),
            "vfs_read_[k]"
        );
        assert_eq!(text(FrameKind::Reason, "[truncated]", "", 0), "[truncated]");
        assert_eq!(text(FrameKind::Python, "", "", 0), "<no name>");
        assert_eq!(
            text(FrameKind::Python, "a\n", "\x1b.py", 1),
            "a\\n (\\u{1b}.py:1)"
        );
    }

    #[test]
    fn files_of_packages_and_of_the_standard_library_are_shown_from_there() {
        for (file, origin, short) in [
            ("/srv/app/views.py", Origin::Program, "/srv/app/views.py"),
            (
                "/v/lib/python3.12/site-packages/flask/app.py",
                Origin::Package,
                "flask/app.py",
            ),
            (
                "/usr/lib/python3/dist-packages/apt/cache.py",
                Origin::Package,
                "apt/cache.py",
            ),
            (
                "/usr/lib/python3.12/json/decoder.py",
                Origin::StandardLibrary,
                "json/decoder.py",
            ),
            (
                "/opt/lib/python3.13t/threading.py",
                Origin::StandardLibrary,
                "threading.py",
            ),
            (
                "/home/python3/app.py",
                Origin::Program,
                "/home/python3/app.py",
            ),
            (
                "/usr/lib/python3.12/",
                Origin::Program,
                "/usr/lib/python3.12/",
            ),
            ("/lib/pythonic/a.py", Origin::Program, "/lib/pythonic/a.py"),
            (
                "<frozen importlib._bootstrap>",
                Origin::StandardLibrary,
                "<frozen importlib._bootstrap>",
            ),
            ("", Origin::Program, ""),
        ] {
            assert_eq!(split_origin(file), (origin, short), "{file}");
        }
    }
}
